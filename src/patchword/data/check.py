"""Look at a data set before training on it: what it holds, what is wrong with it, what training would do with it."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from patchword.core.picture import DecodeError
from patchword.core.progress import size
from patchword.core.runtime import available_memory, usable_cores
from patchword.data.dataset import Dataset, Split
from patchword.data.decoding.decode import decode, header
from patchword.data.duplicates import Duplicates, find_duplicates
from patchword.data.shards.find import Shards
from patchword.data.shards.manifest import verify
from patchword.data.sources import open_data
from patchword.data.store import MEMORY_SHARE, MOST_BAD, in_order, worthwhile_threads

IMBALANCE = 10.0
"""From this ratio of the largest to the smallest class in train on, a warning is due."""

_NAMED = 10
_COLOUR_SAMPLE = 1024
_HEADERS = 10_000
_TASK = 16


@dataclass
class SplitReport:
    """What one split holds."""

    count: int
    per_class: dict[str, int]
    bad: dict[str, str]
    """Name of a picture → why it cannot be decoded."""
    looked_at: int
    """Pictures counted below: all that are not bad, or those of an evenly spaced sample."""
    heights: tuple[int, int, int] = (0, 0, 0)
    """Smallest, median and largest, in pixels."""
    widths: tuple[int, int, int] = (0, 0, 0)
    aspects: tuple[float, float, float] = (0, 0, 0)
    """Width : height; smallest, median and largest."""
    shapes: int = 0
    """How many different sizes there are."""
    grey: int = 0
    """Pictures stored as grey, of those looked at."""
    pixels: int = 0
    """Pixels of those looked at, together."""


@dataclass
class Report:
    """What `patchword data check` found; `to_text` is for people, the fields are for programs."""

    dataset: Dataset
    splits: dict[str, SplitReport]
    duplicates: Duplicates
    labelled: bool
    """Whether labels count."""
    decoded: bool
    """Whether every picture was decoded, or only headers were read."""
    mean: tuple[float, ...]
    """Per channel, of values in 0…1, over a sample of train."""
    std: tuple[float, ...]
    channels: int
    """What training would use: 1 if every picture looked at is grey, else 3."""
    memory: int
    """Bytes that the decoded pictures take together."""
    in_memory: bool
    """Whether training would keep them decoded in memory, or read them as it goes."""
    warnings: list[str] = field(default_factory=list)
    """Sentences; the worst first."""
    changed: list[str] = field(default_factory=list)
    """Those of the warnings that are about shards which are not what `data pack` wrote."""

    @property
    def damaged(self) -> bool:
        """Whether the set is not fit to be trained on as it is."""
        return self.stops_training or bool(self.changed)

    @property
    def stops_training(self) -> bool:
        """Whether training would stop at the bad pictures of train."""
        train = self.splits["train"]
        return len(train.bad) > MOST_BAD * max(1, train.looked_at + len(train.bad))

    def to_text(self) -> str:
        """Everything as lines for a terminal."""
        dataset = self.dataset
        kind = "several labels a picture" if dataset.multi_label else "one label a picture"
        what = f"{len(dataset.classes)} classes, {kind}" if self.labelled else "pictures whose labels do not count"
        lines = [f"{dataset.location}: {what}", dataset.split_rule, ""]
        lines += self._table()
        lines += ["", *(line for name, split in self.splits.items() for line in self._pictures(name, split))]
        mean, std = (" ".join(f"{value:.3f}" for value in values) for values in (self.mean, self.std))
        lines += [
            "",
            f"colour      mean {mean}, standard deviation {std} (of 0…1, {_COLOUR_SAMPLE:,} pictures of train at most)",
        ]
        lines.append(f"duplicates  {self.duplicates.sentence}")
        where = (
            "keep them decoded in memory" if self.in_memory else "read and decode them as it goes (too many for memory)"
        )
        kind = "grey (1 channel)" if self.channels == 1 else "RGB (3 channels)"
        lines.append(f"training    would take the pictures as {kind} and {where}: {size(self.memory)}")
        for title, sentences in (("warning", self.warnings), ("notice", [each.sentence for each in dataset.notices])):
            lines += ["", *(f"{title}: {sentence}" for sentence in sentences)] if sentences else []
        if not self.warnings:
            lines += ["", "nothing stands in the way of training"]
        return "\n".join(lines)

    def _table(self) -> list[str]:
        classes = self.dataset.classes if self.labelled else ()
        width = max([len(name) for name in classes] + [len("all")])
        lines = [" " * width + "".join(f"{name:>12}" for name in self.splits)]
        shown = classes if len(classes) <= 2 * _NAMED else (*classes[:_NAMED], "…", *classes[-_NAMED:])
        for name in shown:
            cells = (
                f"{split.per_class.get(name, 0):>12,}" if name != "…" else f"{'…':>12}"
                for split in self.splits.values()
            )
            lines.append(f"{name:<{width}}" + "".join(cells))
        lines.append(f"{'all':<{width}}" + "".join(f"{split.count:>12,}" for split in self.splits.values()))
        return lines

    def _pictures(self, name: str, split: SplitReport) -> list[str]:
        lines = []
        if split.looked_at:
            height, width, aspect = split.heights, split.widths, split.aspects
            of = "" if split.looked_at + len(split.bad) == split.count else f" (of {split.looked_at:,} looked at)"
            if split.shapes == 1:
                one = f"{width[1]}×{height[1]} px"
                sizes = f"all {one if width == height else f'{width[1]} px wide, {height[1]} px high'}"
            else:
                sizes = (
                    f"width {width[0]}–{width[2]}, height {height[0]}–{height[2]} px (median {width[1]}×{height[1]}), "
                    f"width : height {aspect[0]:.2f}–{aspect[2]:.2f}, {split.shapes:,} different sizes"
                )
            lines.append(f"{name:<12}{sizes}; {split.grey:,} grey, {split.looked_at - split.grey:,} in colour{of}")
        if split.bad:
            lines.append(f"{name:<12}bad: {len(split.bad):,}")
            lines += [f"  {picture} {reason}" for picture, reason in list(split.bad.items())[:_NAMED]]
            if len(split.bad) > _NAMED:
                lines.append(f"  and {len(split.bad) - _NAMED:,} more")
        return lines


def check(
    data: str | os.PathLike[str],
    *,
    labelled: bool = True,
    decode_all: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Open `data` as training would, and look at its pictures: all, decoded; or without `decode_all` headers of a sample.

    Without `labelled`, labels do not count, and any folder of pictures will do, as for objectives without labels.

    Raises `DataError` for what keeps the data set from being opened at all. `on_progress` gets (done, total) pictures.
    """
    dataset = open_data(data, labelled=labelled)
    chosen = {
        name: _evenly(len(split), len(split) if decode_all else _HEADERS) for name, split in dataset.splits.items()
    }
    total = sum(map(len, chosen.values()))
    before = 0
    splits = {}
    colour = _Colour()
    for name, split in dataset.splits.items():

        def progress(done: int, before: int = before) -> None:
            if on_progress is not None:
                on_progress(before + done, total)

        splits[name] = _look(
            split, dataset.classes, chosen[name], decode_all, colour if name == "train" else None, progress
        )
        before += len(chosen[name])
    looked_at = sum(split.looked_at for split in splits.values())
    channels = 1 if looked_at and sum(split.grey for split in splits.values()) == looked_at else 3
    memory = channels * sum(split.pixels * split.count // max(1, split.looked_at) for split in splits.values())
    mean, std = colour.figures(channels)
    in_memory = memory <= MEMORY_SHARE * available_memory()
    duplicates = find_duplicates(dataset)
    report = Report(dataset, splits, duplicates, labelled, decode_all, mean, std, channels, memory, in_memory)
    report.warnings = list(_warnings(report))
    if decode_all:
        report.changed = _changed_shards(dataset)
        report.warnings += report.changed
    return report


def _changed_shards(dataset: Dataset) -> list[str]:
    """Of shards that `data pack` wrote those that no longer have their hashes."""
    items = next(iter(dataset.splits.values())).items
    if not isinstance(items, Shards):
        return []
    return [
        f"{name}: {fault}; copy it again, or pack the set again"
        for name, fault in verify(items.place, {shard.file.name for shard in items.index.shards})
    ]


class _Colour:
    """Mean and standard deviation of pixels, every picture weighing the same."""

    def __init__(self) -> None:
        self.count = 0
        self.shares = np.zeros((3, 256))

    def add(self, pixels: np.ndarray) -> None:
        """`pixels`: uint8 H×W×3."""
        for channel in range(3):
            self.shares[channel] += np.bincount(pixels[..., channel].reshape(-1), minlength=256) / pixels[..., 0].size
        self.count += 1

    def figures(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        shares = self.shares[:channels] / max(1, self.count)
        values = np.arange(256) / 255
        mean = shares @ values
        std = np.sqrt(np.maximum(shares @ values**2 - mean**2, 0))
        return tuple(mean.tolist()), tuple(std.tolist())


def _evenly(n: int, count: int) -> np.ndarray:
    """Up to `count` of the numbers 0…n−1, evenly spaced."""
    return np.unique(np.linspace(0, n - 1, min(count, n)).astype(np.int64))


def _range(values: np.ndarray) -> tuple[Any, Any, Any]:
    """Smallest, median (one of the values) and largest."""
    ordered = np.sort(values)
    return ordered[0].item(), ordered[len(ordered) // 2].item(), ordered[-1].item()


def _look(
    split: Split,
    classes: tuple[str, ...],
    indices: np.ndarray,
    decode_all: bool,
    colour: _Colour | None,
    progress: Callable[[int], None],
) -> SplitReport:
    sample = set(indices[_evenly(len(indices), _COLOUR_SAMPLE)].tolist()) if colour is not None else set()

    def examine(place: int) -> tuple[int, int, bool, np.ndarray | None] | str:
        index = int(indices[place])
        try:
            item = split.read(index)
            pixels = decode(item, 3) if decode_all or index in sample else None
            return *header(item), pixels if index in sample else None
        except DecodeError as error:
            return error.reason

    heights, widths, grey = [], [], 0
    bad: dict[str, str] = {}
    for first, results in in_order(len(indices), examine, worthwhile_threads(split, usable_cores()), _TASK):
        for place, result in enumerate(results, first):
            if isinstance(result, str):
                bad[split.name(int(indices[place]))] = result
                continue
            heights.append(result[0])
            widths.append(result[1])
            grey += result[2]
            if colour is not None and result[3] is not None:
                colour.add(result[3])
        progress(first + len(results))
    counts = split.counts()
    per_class = {name: int(counts[code]) if code < len(counts) else 0 for code, name in enumerate(classes)}
    report = SplitReport(len(split), per_class, bad, len(heights))
    if heights:
        tall, wide = np.array(heights), np.array(widths)
        report.heights, report.widths = _range(tall), _range(wide)
        report.aspects = _range(wide / tall)
        report.shapes = len(np.unique(np.stack([tall, wide]), axis=1).T)
        report.grey, report.pixels = int(grey), int((tall * wide).sum())
    return report


def _warnings(report: Report) -> Iterator[str]:
    """What is wrong enough to act on, the worst first."""
    dataset = report.dataset
    leaked = report.duplicates.leaked()
    if leaked:
        named = " and ".join(f"{len(indices):,} of {name}" for name, indices in leaked.items())
        yield f"leakage: {named} also in a split that is kept for measuring; training leaves them out"
    for name, split in report.splits.items():
        if not split.bad:
            continue
        looked_at = split.looked_at + len(split.bad)
        consequence = "evaluation counts them as wrong"
        if name == "train":
            consequence = "training leaves them out"
            if report.stops_training:
                consequence = f"more than {100 * MOST_BAD:g} %, so training would stop; mend or remove them"
        yield f"bad pictures of {name}: {len(split.bad):,} of {looked_at:,}; {consequence}"
    if not report.labelled:
        return
    if report.duplicates.conflicts:
        (first, place), (second, other) = report.duplicates.conflicts[0].members[:2]
        yield (
            f"the same picture under different labels: {len(report.duplicates.conflicts):,}, the first as "
            f"{dataset.splits[first].name(place)} and {dataset.splits[second].name(other)}"
        )
    train = report.splits["train"].per_class
    largest, smallest = max(train, key=lambda name: train[name]), min(train, key=lambda name: train[name])
    if train[largest] >= IMBALANCE * max(1, train[smallest]):
        yield (
            f"imbalance: {largest} has {train[largest]:,} training pictures, {smallest} has {train[smallest]:,}; "
            "accuracy will say little about the small classes, the balanced accuracy and each class's own figures more; "
            "--set balance.sampling=1 draws all classes alike in training"
        )
