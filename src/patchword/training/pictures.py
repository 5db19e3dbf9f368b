"""The pictures that a recipe learns from and is measured on."""

import dataclasses
import hashlib
import math
import statistics
from collections.abc import Callable

import numpy as np

from patchword.core.errors import DataError, UsageError, blamed
from patchword.core.picture import DecodeError
from patchword.core.processes import Processes
from patchword.core.progress import Progress, say, size
from patchword.core.runtime import available_memory
from patchword.data.dataset import Dataset, Split
from patchword.data.decoding.decode import header
from patchword.data.duplicates import WITHOUT_LABELS, find_duplicates, without_leaks
from patchword.data.join import together
from patchword.data.sources import open_data
from patchword.data.splits import first_of
from patchword.data.store import Store, estimated_bytes
from patchword.training.budget import TIMES_LOOKED
from patchword.training.choice import SMALL_PICTURE, whole_patches
from patchword.training.objectives import UNLABELLED
from patchword.training.recipe import Recipe
from patchword.training.shelf import Shelf, filled

_CHECK_DUPLICATES_BELOW = 100_000
_HEADERS = 64
_NOTICES = 5
_WORTH_STREAMING = 20_000
"""So many training pictures are not worth being decoded for a training that does not come to them."""


@dataclasses.dataclass(frozen=True)
class Pictures:
    """What the headers of a sample of the training pictures say."""

    height: int
    """The median, in pixels."""
    width: int
    same_shape: bool
    grey: bool

    @property
    def small(self) -> bool:
        """Whether they are small and all of one shape."""
        return self.same_shape and max(self.height, self.width) <= SMALL_PICTURE


@dataclasses.dataclass(frozen=True)
class Opened:
    """A data set, ready to be trained on."""

    dataset: Dataset
    """Pictures that would leak from evaluation are no longer in train."""
    duplicates: str
    """What was found out about duplicates, as a sentence."""
    fingerprint: str
    """Of the data set as it lies there, before any picture was left out, and of the teacher's unlabelled pictures."""


def open_training_data(recipe: Recipe, shelf: Shelf | None = None) -> Opened:
    """The recipe's data set, looked through for duplicates where the recipe says so or the set is small enough."""
    dataset, fingerprint = (shelf or Shelf()).open(recipe.data, labelled=recipe.objective not in UNLABELLED)
    dataset, found = _without_duplicates(chosen(dataset, recipe), recipe)
    return Opened(dataset, found, fingerprint)


def chosen(dataset: Dataset, recipe: Recipe) -> Dataset:
    """What a recipe learns of a data set and is measured on, before duplicates are looked for.

    Raises `UsageError` where the data set does not have what the recipe asks for.
    """
    if recipe.learn_validation:
        dataset = _learning_validation(dataset, recipe.validation_share)
    dataset = _with_validation(dataset, recipe.validation_share)
    if recipe.evaluation.final not in (*dataset.splits, "test"):
        raise UsageError(
            f"evaluation.final=validation, but {dataset.location} has no validation pictures; "
            "validation_share takes some of train"
        )
    return _with_images(dataset, recipe.train_images, recipe.train_images_seed)


def tell_notices(dataset: Dataset) -> None:
    """A line for each of the first few things that the owner of the data should know."""
    for notice in dataset.notices[:_NOTICES]:
        say(f"note: {notice.sentence}")
    if len(dataset.notices) > _NOTICES:
        say(f"note: and {len(dataset.notices) - _NOTICES} more; 'patchword data check' lists them")


def tell_unreadable(name: str, split: Split, bad: dict[int, str], fate: str) -> None:
    """A line on the pictures of a split that cannot be read, where there are some: why, by `bad`, and what becomes of them."""
    if not bad:
        return
    index, reason = next(iter(bad.items()))
    say(
        f"note: {len(bad):,} of {len(split):,} pictures of {name} cannot be read and {'is' if len(bad) == 1 else 'are'} {fate} "
        f"({split.name(index)} {reason})"
    )


def with_unlabelled(opened: Opened, recipe: Recipe) -> Opened:
    """The data set with the teacher's unlabelled pictures behind those of train; their labels are −1.

    Those that are to be measured on, or have a label in train, are left out, wherever duplicates are looked for.
    """
    if not recipe.teacher.unlabelled:
        return opened
    dataset = opened.dataset
    with blamed(f"teacher.unlabelled={recipe.teacher.unlabelled}"):
        more = open_data(recipe.teacher.unlabelled, labelled=False)
    extra = more.whole() if more.carved else more.splits["train"]  # the others are there to measure on
    extra = Split(extra.items, np.full(len(extra), -1, np.int64), extra.rows)
    beside = {**dataset.splits, WITHOUT_LABELS: extra}
    if not _looks_for_duplicates(recipe, beside):
        del beside["train"]  # too many to look through: what is seen twice does less harm than what is measured on
    pool, _ = _without_duplicates(dataclasses.replace(dataset, splits=beside), recipe)
    if WITHOUT_LABELS not in pool.splits:
        raise DataError(
            f"{more.location}: every picture is in train, validation or test of {dataset.location}, too; other ones belong "
            "there, or loading.duplicates=no keeps them"
        )
    splits = {**dataset.splits, "train": together([dataset.splits["train"], pool.splits[WITHOUT_LABELS]])}
    return dataclasses.replace(
        opened,
        dataset=dataclasses.replace(dataset, splits=splits, notices=pool.notices),
        fingerprint=hashlib.sha256(f"{opened.fingerprint} {extra.fingerprint()}".encode()).hexdigest(),
    )


def _without_duplicates(dataset: Dataset, recipe: Recipe) -> tuple[Dataset, str]:
    """The data set without training pictures that it is measured on, too, where the recipe looks for them; and what was found."""
    if not _looks_for_duplicates(recipe, dataset.splits):
        return dataset, "not checked (loading.duplicates=yes checks)"
    with Progress("looking for duplicates", sum(map(len, dataset.splits.values()))) as progress:
        duplicates = find_duplicates(dataset, on_progress=lambda done, _: progress.update(done))
    return without_leaks(dataset, duplicates), duplicates.sentence


def _looks_for_duplicates(recipe: Recipe, splits: dict[str, Split]) -> bool:
    """Whether the recipe has splits looked through: auto does where they are few pictures."""
    wanted = recipe.loading.duplicates
    return wanted == "yes" or (wanted == "auto" and sum(map(len, splits.values())) < _CHECK_DUPLICATES_BELOW)


def _with_validation(dataset: Dataset, share: float) -> Dataset:
    """The data set with a share of train as its validation; 0: as it is."""
    if not share:
        return dataset
    splits = dict(dataset.splits)
    if "validation" in splits and "test" in splits:
        raise UsageError(f"{dataset.location} has validation pictures of its own; validation_share=0 is right")
    if "validation" in splits:
        splits["test"] = splits.pop("validation")
    train = splits["train"]
    aside = first_of(train.keys(), train.labels, round(share * len(train)))
    rest = np.setdiff1d(np.arange(len(train)), aside)
    if not len(aside) or not len(rest):
        raise UsageError(
            f"validation_share={share} of {len(train):,} pictures leaves none on one side; another share is right"
        )
    splits = {**splits, "train": train.subset(rest), "validation": train.subset(aside)}
    return dataclasses.replace(dataset, splits=splits)


def _learning_validation(dataset: Dataset, share: float) -> Dataset:
    """The data set with the pictures of validation in train."""
    splits = dict(dataset.splits)
    if share:
        raise UsageError(
            "learn_validation=true and validation_share exclude each other: one takes what the other gives"
        )
    if "validation" not in splits or "test" not in splits:
        raise UsageError(f"learn_validation=true needs validation and test; {dataset.location} has {', '.join(splits)}")
    splits["train"] = together([splits["train"], splits.pop("validation")])
    return dataclasses.replace(dataset, splits=splits)


def _with_images(dataset: Dataset, count: int, seed: int) -> Dataset:
    """The data set with so many training pictures; 0: all of them."""
    train = dataset.splits["train"]
    if not count:
        return dataset
    if count > len(train):
        raise UsageError(
            f"train_images={count} is more than the {len(train):,} that {dataset.location} has for training"
        )
    few = train.subset(first_of(train.keys(), train.labels, count, seed))
    lost = np.setdiff1d(train.labels, few.labels) if train.labels.ndim == 1 else []
    if len(lost):
        rare = f"{dataset.classes[lost[-1]]!r}, of which it has {(train.labels == lost[-1]).sum():,} of {len(train):,}, for one"
        raise UsageError(
            f"train_images={count} leaves classes of {dataset.location} without a picture ({rare}); more would be right"
        )
    return dataclasses.replace(dataset, splits={**dataset.splits, "train": few})


def look_at(split: Split) -> Pictures:
    """The typical shape and colour, from the headers of an evenly spread sample."""
    shapes, grey = [], []
    rows = np.linspace(0, len(split) - 1, min(_HEADERS, len(split))).astype(int)
    for index in rows:
        try:
            height, width, is_grey = header(split.read(int(index)))
        except DecodeError:
            continue
        shapes.append((height, width))
        grey.append(is_grey)
    if not shapes:
        raise DataError(
            f"none of {len(rows)} training pictures can be read ({split.name(0)} is the first); 'patchword data check' lists why"
        )
    heights, widths = zip(*shapes, strict=True)
    return Pictures(
        round(statistics.median(heights)), round(statistics.median(widths)), len(set(shapes)) == 1, all(grey)
    )


def natural_size(pictures: Pictures, stride: int) -> tuple[int, int]:
    """The input size for pictures of this shape: their own if small, else 224 px, rounded up to the stride."""
    small = max(pictures.height, pictures.width) <= SMALL_PICTURE
    return whole_patches((pictures.height, pictures.width) if small else (224, 224), stride)


def fetch(recipe: Recipe) -> None:
    """Find, or download, the recipe's data set."""
    open_data(recipe.data, labelled=recipe.objective not in UNLABELLED)


def held_in_memory(
    recipe: Recipe,
    dataset: Dataset,
    channels: int,
    world: Processes,
    shelf: Shelf | None,
    looked_at: float = math.inf,
) -> bool:
    """Whether the decoded pictures are held, and not streamed: as the recipe says, or as far as there is room.

    `looked_at` is how many pictures training will take, where that is known: of a large set a short one needs only these.
    """
    if recipe.loading.in_memory != "auto":
        return recipe.loading.in_memory == "yes"
    if shelf is not None and shelf.holds(dataset, channels):
        return True
    train = len(dataset.splits["train"])
    again = TIMES_LOOKED * len(dataset.splits.get("validation", ()))  # streamed, those are decoded at each look
    if shelf is None and train - looked_at >= max(_WORTH_STREAMING, again):
        say(f"pictures are streamed: the budget is for {looked_at:,.0f} of the {train:,} training pictures")
        return False
    needed = sum(estimated_bytes(split, channels=channels) for split in dataset.splits.values())
    free = available_memory() + (0 if shelf is None else shelf.spare)
    limit = recipe.loading.memory_share * free / world.local_count
    if needed > limit:
        say(f"pictures are streamed: decoded they would take about {size(needed)} (limit {size(limit)})")
    return needed <= limit


def fill_stores(
    dataset: Dataset, channels: int, shelf: Shelf | None, stop: Callable[[], bool] = bool
) -> dict[str, Store]:
    """The decoded pictures of every split; raises `StoppedError` when told to stop."""
    fill = filled if shelf is None else shelf.fill
    return {name: fill(name, split, channels, stop) for name, split in dataset.splits.items()}
