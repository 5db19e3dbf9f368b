"""Everything that is decided before the first step: the data, the model, and what the recipe leaves open."""

import contextlib
import dataclasses
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from patchword.core import config
from patchword.core.errors import DataError, PatchwordError, UsageError
from patchword.core.picture import DecodeError
from patchword.core.preprocessing import Preprocessing
from patchword.core.processes import Processes
from patchword.core.progress import Progress, say, size
from patchword.core.runtime import MOST_REPLICAS, available_memory, choose_device
from patchword.data.dataset import Dataset, Split
from patchword.data.decoding.decode import header
from patchword.data.duplicates import find_duplicates, without_leaks
from patchword.data.join import together
from patchword.data.plan import evened
from patchword.data.sources import open_data
from patchword.data.splits import first_of
from patchword.data.store import Store, estimated_bytes
from patchword.evaluation.predict import look_at_all
from patchword.models.contract import Model
from patchword.models.cost import Cost
from patchword.models.names import create_model, parse_name
from patchword.models.vit import ViT
from patchword.training.choice import SMALL_PICTURE, choose_model
from patchword.training.objectives import UNLABELLED, Distillation, Objective, Sigmoid, Softmax, start_at_prior
from patchword.training.recipe import Balance, Recipe, load
from patchword.training.shelf import Shelf, filled
from patchword.training.tune import tune
from patchword.weights import hub, shipped
from patchword.weights.adapt import adapt
from patchword.weights.io import load_model

SHIPPED_STRIDE = 8
"""Of the weights that are taken where no model is named."""
_CHECK_DUPLICATES_BELOW = 100_000
_HEADERS = 64
_ROWS = 1600
"""Tokens of all images of a micro-batch together."""
_PIXELS = 1_000_000
"""Of all images of a micro-batch together, in a convolutional network."""
_NORM_BATCH = 16
"""The fewest images whose statistics batch norm takes together, however large they are."""
_ROOM = 0.8
"""The share of a device's free memory that may be planned with."""


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
    """Of the data set as it lies there, before any picture was left out."""


def open_training_data(recipe: Recipe, shelf: Shelf | None = None) -> Opened:
    """The recipe's data set, looked through for duplicates where the recipe says so or the set is small enough."""
    dataset, fingerprint = (shelf or Shelf()).open(recipe.data)
    if recipe.learn_validation:
        dataset = _learning_validation(dataset, recipe.validation_share)
    dataset = _with_validation(dataset, recipe.validation_share)
    if recipe.evaluation.final not in (*dataset.splits, "test"):
        raise UsageError(
            f"evaluation.final=validation, but {dataset.location} has no validation pictures; "
            "validation_share takes some of train"
        )
    dataset = _with_images(dataset, recipe.train_images, recipe.train_images_seed)
    count = sum(len(split) for split in dataset.splits.values())
    wanted = recipe.loading.duplicates
    if wanted == "no" or (wanted == "auto" and count >= _CHECK_DUPLICATES_BELOW):
        return Opened(dataset, "not checked (loading.duplicates=yes checks)", fingerprint)
    with Progress("looking for duplicates", count) as progress:
        duplicates = find_duplicates(dataset, on_progress=lambda done, _: progress.update(done))
    return Opened(without_leaks(dataset, duplicates), duplicates.sentence, fingerprint)


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
    chosen = first_of(train.keys(), train.labels, round(share * len(train)))
    rest = np.setdiff1d(np.arange(len(train)), chosen)
    if not len(chosen) or not len(rest):
        raise UsageError(
            f"validation_share={share} of {len(train):,} pictures leaves none on one side; another share is right"
        )
    splits = {**splits, "train": train.subset(rest), "validation": train.subset(chosen)}
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
    if train.labels.ndim == 1 and len(np.unique(few.labels)) < len(np.unique(train.labels)):
        classes = len(np.unique(train.labels))
        raise UsageError(
            f"train_images={count} leaves classes of {dataset.location} without a picture; it has {classes}"
        )
    return dataclasses.replace(dataset, splits={**dataset.splits, "train": few})


def look_at(split: Split) -> Pictures:
    """The typical shape and colour, from the headers of an evenly spread sample."""
    shapes, grey = [], []
    for index in np.linspace(0, len(split) - 1, min(_HEADERS, len(split))).astype(int):
        try:
            height, width, is_grey = header(split.read(int(index)))
        except DecodeError:
            continue
        shapes.append((height, width))
        grey.append(is_grey)
    if not shapes:
        raise DataError(
            f"none of {_HEADERS} training pictures can be read ({split.name(0)} is the first); 'patchword data check' lists why"
        )
    heights, widths = zip(*shapes, strict=True)
    return Pictures(
        round(statistics.median(heights)), round(statistics.median(widths)), len(set(shapes)) == 1, all(grey)
    )


def decide_start(
    recipe: Recipe, with_weights: Recipe | None, dataset: Dataset, published: Callable[[str], str | None]
) -> tuple[Recipe, str]:
    """What `init=auto` comes to, and a sentence that says it.

    Weights of the package where architecture and size fit, else those of the hub for a model that is named, from its cache or
    if it answers soon, else nothing. `with_weights` is the same request with the recipe for weights; None: the one that there
    is serves both. `published` gives the address of a model's weights.
    """
    if recipe.init != "auto":
        return recipe, ""
    other = with_weights or recipe
    pictures, wanted = look_at(dataset.splits["train"]), dict(other.model)
    stride, whole = SHIPPED_STRIDE, ""
    if name := wanted.pop("name", None):
        whole = "" if wanted else name  # nothing but the name, so that it is as others have it
        family, decided = parse_name(name, wanted)
        stride = decided.stride
        wanted = {"family": family.family, **(family.parse(name) or {}), **wanted}
    size = natural_size(pictures, stride) if other.image_size == (0, 0) else other.image_size
    found = shipped.fitting(wanted, size) if not any(side % stride for side in size) else None
    if found is not None:
        note = f"starting from weights that come with patchword, {found} (--init none starts from nothing)"
        return dataclasses.replace(other, init=shipped.PREFIX + found, image_size=size), note
    if whole and (address := published(whole)) is not None:
        note = f"starting from {address} (--init none starts from nothing)"
        return dataclasses.replace(other, init=address), note
    silent = ", and the hub does not answer" if whole in hub.PUBLISHED else ""
    return dataclasses.replace(recipe, init="none"), (
        f"starting from nothing: no weights that come with patchword fit{silent} (--init RUN takes those of another run)"
    )


def published_weights(model: str, stored: Path | None) -> str | None:
    """The address of the hub's weights of a model, if it is at hand; or where a run with a recipe `stored` began, if there."""
    if model not in hub.PUBLISHED:
        return None
    if stored is not None and stored.is_file():
        with contextlib.suppress(PatchwordError):  # what is wrong with the folder is said where it is taken
            began = load(str(stored)).init
            return began if began == hub.PUBLISHED[model] else None
    return hub.at_hand(model)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A model, ready to be trained."""

    model: Model
    recipe: Recipe
    """With all that concerns the model decided."""
    origin: str
    """Where the weights come from: `none` or a sentence."""
    small: bool
    """Whether the pictures are small ones of one shape, which are seen whole."""


def prepare_model(recipe: Recipe, dataset: Dataset) -> Prepared:
    """The model to train, new or from weights, fitted to the data set."""
    pictures = look_at(dataset.splits["train"])
    image_size = None if recipe.image_size == (0, 0) else recipe.image_size
    if recipe.init != "none":
        model, origin = _from_weights(recipe, dataset, image_size)
    else:
        model, recipe = _from_nothing(recipe, dataset, pictures, image_size)
        origin = "none"
    if recipe.preprocessing:
        model.preprocessing = _preprocessing(model.preprocessing, recipe.preprocessing)
    if recipe.init == "none" and model.wants_images:
        model.begin_with(some_images(model, dataset.splits["train"]))
    regularization = recipe.regularization
    model.regularize(dropout=regularization.dropout, stochastic_depth=regularization.stochastic_depth)
    if regularization.patch_dropout and model.grid is None:
        raise UsageError(f"regularization.patch_dropout needs a model with patches; {model.name} has none")
    tune(model, recipe.tune, recipe.seed)
    architecture = model.architecture
    family_fields = {key: value for key, value in architecture.items() if key not in ("family", "num_classes")}
    preprocessing = {key: value for key, value in model.preprocessing.to_dict().items() if key != "image_size"}
    objective = recipe.objective or ("sigmoid" if dataset.multi_label else "softmax")
    check_objective(recipe, objective, dataset)
    if objective in UNLABELLED:
        model.replace_head(0)
    elif objective == "sigmoid" and _has_new_head(model):
        counts, count = label_counts(dataset), len(dataset.splits["train"])
        if recipe.balance.sampling:
            counts = torch.from_numpy(evened(counts.numpy(), recipe.balance.sampling)) * count
        start_at_prior(model, counts, count)
    decided = dataclasses.replace(
        recipe,
        model=family_fields,
        image_size=model.image_size,
        preprocessing=preprocessing,
        objective=objective,
    )
    return Prepared(model, decided, origin, pictures.small)


def some_images(model: Model, split: Split) -> Tensor:
    """Pictures from all over the split, at most `_FIRST_LOOK`, as evaluation sees them: normalised B×C×H×W."""
    found: list[Tensor] = []
    rows = np.unique(np.linspace(0, len(split) - 1, _FIRST_LOOK).round().astype(np.int64))
    # One thread, so that they come in order.
    look_at_all(model, split.subset(rows), lambda _, images: found.append(images.cpu()), what="a first look", threads=1)
    if not found:
        raise DataError(f"none of {len(rows):,} training pictures can be read; the first is {split.name(0)}")
    return torch.cat(found)


_FIRST_LOOK = 2000


def check_objective(recipe: Recipe, objective: str, dataset: Dataset) -> None:
    """Raise `UsageError` where the objective does not go with the labels or with another wish of the recipe."""
    if dataset.multi_label and objective == "softmax":
        raise UsageError(f"{dataset.location} has several labels a picture; objective=sigmoid would be right")
    if objective in UNLABELLED:
        if recipe.regularization.patch_dropout:
            raise UsageError(f"objective={objective} hides patches itself; regularization.patch_dropout=0 is right")
        if recipe.tune == "head":
            raise UsageError(f"objective={objective} has no use for a head, which is all that tune=head lets learn")
    if recipe.balance != Balance():
        if dataset.multi_label or objective in UNLABELLED:
            why = (
                "has several labels a picture"
                if dataset.multi_label
                else f"is learned from without labels ({objective})"
            )
            raise UsageError(
                f"{dataset.location} {why}; balance needs one label a picture, 0 in both its fields is right"
            )
        if recipe.balance.sampling and recipe.teacher.unlabelled:
            raise UsageError(
                "balance.sampling needs a label for every picture; teacher.unlabelled has none, 0 is right"
            )
    if recipe.teacher.weights and objective != "softmax":
        raise UsageError(f"a teacher answers with one class a picture, for objective=softmax, not {objective}")


def make_objective(recipe: Recipe, model: Model, dataset: Dataset, answers: Tensor | None) -> Objective:
    """What the recipe minimises; `answers` are the teacher's, M×K, where it has one."""
    num_classes, smoothing = len(dataset.classes), recipe.regularization.label_smoothing
    if recipe.objective in UNLABELLED:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            return UNLABELLED[recipe.objective](model)
    if answers is not None:
        objective = Distillation(num_classes, smoothing, answers, recipe.teacher.share)
    else:
        objective = {"softmax": Softmax, "sigmoid": Sigmoid}[recipe.objective](num_classes, smoothing)
    if recipe.balance.class_weights:
        objective.class_weights = class_weights(label_counts(dataset), recipe.balance)
    return objective


def class_weights(counts: Tensor, balance: Balance) -> Tensor:
    """float32 K: what a picture's loss is multiplied by, of how many training pictures each class has; 1 on average."""
    weights = counts.clamp(min=1).double() ** -balance.class_weights
    drawn = torch.from_numpy(evened(counts.numpy(), balance.sampling))
    return (weights / (drawn * weights).sum()).float()


def label_counts(dataset: Dataset) -> Tensor:
    """How many training pictures have each of the K labels."""
    labels = torch.from_numpy(dataset.splits["train"].labels)
    if labels.ndim == 2:
        return labels.long().sum(0)
    return torch.bincount(labels[labels >= 0], minlength=len(dataset.classes))


def _has_new_head(model: Model) -> bool:
    return isinstance(model.head, nn.Linear) and not model.head.weight.any() and not model.head.bias.any()


def decide_machine(recipe: Recipe, model: Model, cost: Cost, dataset: Dataset, world: Processes) -> Recipe:
    """Device, precision, threads, batch and micro-batch where the recipe leaves them open."""
    device = choose_device(recipe.device)
    cores = len(_usable_cores())
    # A launcher tells each process to use one thread; what all of them together may use is what the machine has.
    threads = recipe.threads or (cores if world.count > 1 else torch.get_num_threads())
    torch.set_num_threads(max(1, threads // world.local_count))
    batch_size = min(recipe.batch_size, len(dataset.splits["train"]))
    half = device.type == "cuda" and torch.cuda.is_bf16_supported()
    compute = recipe.compute
    if compute.precision == "auto":
        compute = dataclasses.replace(compute, precision="bfloat16" if half else "float32")
    if compute.recompute and model.has_batch_norm:
        raise UsageError(
            f"compute.recompute=true would count every picture of {model.name}'s batch norms twice; false is right"
        )
    micro_batch = recipe.micro_batch or (
        comfortable_micro_batch(model, batch_size, threads) if device.type == "cpu" else _room(device, cost, batch_size)
    )
    return dataclasses.replace(
        recipe,
        device=str(device),
        threads=threads,
        batch_size=batch_size,
        micro_batch=min(micro_batch, batch_size),
        compute=compute,
        loading=dataclasses.replace(
            recipe.loading, workers=cores - 1 if recipe.loading.workers < 0 else recipe.loading.workers
        ),
    )


def shards(recipe: Recipe, cost: Cost, world: Processes) -> bool:
    """Whether the processes share out weights, gradients and moments: where asked, or where one has no room for them."""
    wanted = recipe.compute.sharded
    if world.count == 1 or wanted == "no":
        return False
    device = torch.device(recipe.device)
    free = available_memory() // world.local_count if device.type == "cpu" else torch.cuda.mem_get_info()[0]
    needed = _state_bytes(recipe, cost, cost.params)
    return bool(world.decide(lambda: wanted == "yes" or needed > _ROOM * free))


def memory_needed(recipe: Recipe, cost: Cost, learning: int, world: Processes, *, sharded: bool) -> int:
    """Bytes that training takes in each process beside the pictures; `learning` parameters have gradients and moments."""
    on_cpu = torch.device(recipe.device).type == "cpu"
    passes = min(torch.get_num_threads(), MOST_REPLICAS) if on_cpu and world.count == 1 else 1
    share = world.count if sharded else 1
    state = _state_bytes(recipe, cost, learning)
    return round(state / share + cost.activation_bytes * min(recipe.micro_batch, recipe.batch_size) * passes)


def check_memory(needed: int) -> None:
    """Raise `UsageError` where the machine has not so many bytes."""
    if needed > (free := available_memory()):
        raise UsageError(
            f"training would need about {size(needed)} of memory, of which {size(free)} are free; "
            "a smaller model, image size or micro_batch would be right"
        )


def _state_bytes(recipe: Recipe, cost: Cost, learning: int) -> int:
    """Weights and their average; gradient and two moments of what learns."""
    return 4 * (cost.params * (1 + bool(recipe.regularization.average_decay)) + 3 * learning)


def _room(device: torch.device, cost: Cost, batch_size: int) -> int:
    """Images whose activations the device has room for beside weights, average, gradients and moments."""
    if device.type != "cuda":
        return batch_size
    free = _ROOM * torch.cuda.mem_get_info(device)[0] - 5 * 4 * cost.params
    return max(1, min(batch_size, int(free / cost.activation_bytes)))


def fetch(recipe: Recipe) -> None:
    """Find, or download, the recipe's data set."""
    open_data(recipe.data)


def held_in_memory(recipe: Recipe, dataset: Dataset, channels: int, world: Processes, shelf: Shelf | None) -> bool:
    """Whether the decoded pictures are held, and not streamed: as the recipe says, or as far as there is room."""
    if recipe.loading.in_memory != "auto":
        return recipe.loading.in_memory == "yes"
    if shelf is not None and shelf.holds(dataset, channels):
        return True
    needed = sum(estimated_bytes(split, channels=channels) for split in dataset.splits.values())
    limit = recipe.loading.memory_share * available_memory() / world.local_count
    if needed > limit:
        say(f"pictures are streamed: decoded they would take about {size(needed)} (limit {size(limit)})")
    return needed <= limit


def fill_stores(dataset: Dataset, channels: int, shelf: Shelf | None) -> dict[str, Store]:
    """The decoded pictures of every split."""
    fill = filled if shelf is None else shelf.fill
    return {name: fill(name, split, channels) for name, split in dataset.splits.items()}


def _from_weights(recipe: Recipe, dataset: Dataset, image_size: tuple[int, int] | None) -> tuple[Model, str]:
    model = load_model(recipe.init)
    origin = f"{recipe.init} ({model.name} at {model.image_size[0]}×{model.image_size[1]})"
    patch_size, hidden_head = recipe.model.get("patch_size"), recipe.model.get("hidden_head", False)
    model, changes = adapt(
        model,
        labels=dataset.classes,
        image_size=image_size,
        patch_size=None if patch_size is None else config.coerce(patch_size, int, "model.patch_size"),
        in_channels=_channels(recipe),
        hidden_head=config.coerce(hidden_head, bool, "model.hidden_head"),
        resampling=recipe.resampling,
    )
    name = recipe.model.get("name")
    if name and name != model.name:
        raise UsageError(f"--model {name} and --init {recipe.init} exclude each other: the weights are of {model.name}")
    for option, value in recipe.model.items():
        there = model.architecture.get(option)
        if (list(there) if isinstance(there, tuple) else there) != value:  # TOML knows no tuples
            raise UsageError(f"model.{option}={value!r} does not fit --init {recipe.init}: there it is {there!r}")
    for change in changes:
        say(f"{recipe.init}: {change}")
    return model, "; ".join([origin, *changes])


def _from_nothing(
    recipe: Recipe, dataset: Dataset, pictures: Pictures, image_size: tuple[int, int] | None
) -> tuple[Model, Recipe]:
    options = {key: value for key, value in recipe.model.items() if key != "name"}
    name = recipe.model.get("name")
    if not name:
        name, image_size, reason = choose_model(
            recipe.budget, len(dataset.splits["train"]), (pictures.height, pictures.width), image_size, options
        )
        say(reason)
    if image_size is None:
        image_size = natural_size(pictures, parse_name(name, options)[1].stride)
    channels = _channels(recipe) or (1 if pictures.grey else 3)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = create_model(name, len(dataset.classes), image_size, channels, **options)
    model.labels = dataset.classes
    if recipe.zero_init_residual:
        if not isinstance(model, ViT):
            raise UsageError(f"zero_init_residual is for an encoder, which {model.name} does not have")
        model.zero_init_residual()
    if pictures.small:
        # Small pictures of one shape are seen whole: there is no margin to cut off.
        model.preprocessing = dataclasses.replace(model.preprocessing, resize="stretch", crop_fraction=1.0)
    return model, recipe


def _channels(recipe: Recipe) -> int | None:
    """The number that the recipe's means say, if any."""
    mean = recipe.preprocessing.get("mean")
    return None if mean is None else len(config.coerce(mean, tuple[float, ...], "preprocessing.mean"))


def natural_size(pictures: Pictures, stride: int) -> tuple[int, int]:
    """The input size for pictures of this shape: their own if small, else 224 px, rounded up to the stride."""
    if max(pictures.height, pictures.width) <= SMALL_PICTURE:
        return (-(-pictures.height // stride) * stride, -(-pictures.width // stride) * stride)
    side = -(-224 // stride) * stride
    return (side, side)


def comfortable_micro_batch(model: Model, batch_size: int, threads: int) -> int:
    """Images whose activations fit in a core's caches, in parts that the threads share evenly (measured in `make bench`)."""
    if not model.replicates:
        height, width = model.image_size
        fewest = _NORM_BATCH if model.has_batch_norm else 1
        return min(batch_size, max(fewest, min(64, _PIXELS // (height * width))))
    tokens = 64 if model.grid is None else model.grid[0] * model.grid[1]
    parts = -(-batch_size // max(1, min(64, _ROWS // tokens)))
    parts = min(batch_size, -(-parts // threads) * threads)
    return -(-batch_size // parts)


def _preprocessing(base: Preprocessing, changes: dict[str, Any]) -> Preprocessing:
    known = {name: kind for name, kind in config.field_types(Preprocessing).items() if name != "image_size"}
    for name in changes:
        if name not in known:
            raise UsageError(f"unknown field preprocessing.{name}; known: {', '.join(known)}")
    typed = {name: config.coerce(value, known[name], f"preprocessing.{name}") for name, value in changes.items()}
    return dataclasses.replace(base, **typed)


def _usable_cores() -> set[int]:
    import os

    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def default_out(recipe: Recipe, dataset: Dataset, model_name: str) -> Path:
    """`runs/DATA-MODEL-SEED`."""
    return Path("runs") / f"{dataset.name}-{model_name.replace('/', '-')}-{recipe.seed}"
