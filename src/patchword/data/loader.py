"""Plan + pictures + augmentation → batches: each a pure function of its step number, prepared ahead of the model."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from patchword.core.errors import DataError
from patchword.core.picture import DecodeError
from patchword.core.preprocessing import Preprocessing
from patchword.data.augment import Augment, Partial, Pictures, fit_all
from patchword.data.decoding.decode import decode
from patchword.data.decoding.part import Part, Undecoded, open_picture
from patchword.data.feed import Feed, Stop
from patchword.data.plan import BalancedPlan, Plan

if TYPE_CHECKING:
    from patchword.data.dataset import Split
    from patchword.data.store import Store

T = TypeVar("T")
_Built = tuple["Batch", dict[int, str]]
"""A batch, and the reasons why some of its pictures could not be decoded."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """B pictures with their labels, on the CPU."""

    images: Tensor
    """uint8 B×C×H×W, augmented, not yet normalised."""
    labels: Tensor
    """int64 (B,): one class each; or float32 B×K: 1 for each label of the picture."""
    weights: Tensor
    """float32 (B,): 1, or 0 for a picture that could not be decoded, whose pixels are zeros."""
    ids: np.ndarray
    """int64 (B,): the pictures' indices in their split."""
    epochs: np.ndarray
    """int64 (B,): how often the plan has gone through the split (or, where it evens them out, the class) before; with `ids` the
    key of all chance."""
    first: int = 0
    """The place of the first of them in the whole batch, of which other processes may have the rest."""


class TrainLoader:
    """Endless training batches for steps `first_step`, `first_step` + 1, …; iterating again goes on where it was.

    The batch of a step depends on the arguments of `__init__` up to `seed` and on nothing else: not on the number of
    workers or on where the iteration began. Store and stream give the same batches, too, unless a picture is bad (the
    store knows before, the stream meets it) or what is seen of a JPEG is at least twice as large as the model's input
    (the store has decoded it at full size, the stream does it at 1/2, 1/4 or 1/8). The crops themselves are the same.

    With a `store` a thread prepares the batches, and pictures that the store could not decode are left out of the plan.
    Without one, `workers` processes read and decode (0: the thread does), and a picture that fails gets weight 0. An
    exception in either arrives in the consumer.
    """

    def __init__(
        self,
        split: Split,
        *,
        preprocessing: Preprocessing,
        augment: Augment,
        batch_size: int,
        seed: int,
        store: Store | None,
        workers: int,
        first_step: int = 0,
        places: range | None = None,
        evenness: float = 0.0,
    ) -> None:
        """`places`: the part of each batch that is wanted; None: all of it. `evenness`: how far the classes are drawn alike
        (`data.plan.evened`), which needs one label for every picture."""
        self.bad: dict[int, str] = {} if store is None else dict(store.bad)
        """Index in the split → why the picture could not be decoded, as far as is known by now."""
        self.split = split
        good = None  # all: a list of them would be memory for each picture of the set
        if self.bad:
            good = np.setdiff1d(np.arange(len(split)), np.fromiter(self.bad, np.int64, len(self.bad)))
        count = len(split) if good is None else len(good)
        if count == 0:
            raise DataError("none of the training pictures can be decoded; `patchword data check` lists the reasons")
        source = _Source(split, store, preprocessing.channels, augment.source_side(preprocessing))
        self._plan: Plan | BalancedPlan = Plan(count, batch_size, seed)
        self._good = good
        if evenness:
            labels = np.asarray(split.labels if good is None else split.labels[good])
            self._plan = BalancedPlan(labels, batch_size, seed, evenness)
        places = range(batch_size) if places is None else places
        build = functools.partial(_train_batch, source, preprocessing, augment, self._plan, good, places)
        self._feed = Feed(build, itertools.count(first_step), workers if store is None else 0)

    def __iter__(self) -> Iterator[Batch]:
        for batch, bad in self._feed:
            self.bad.update(bad)
            yield batch

    def ids(self, step: int) -> np.ndarray:
        """The indices in the split of the whole batch of a step."""
        positions, _ = self._plan.batch(step)
        return positions if self._good is None else self._good[positions]

    @property
    def wait_seconds(self) -> float:
        """Seconds that the consumer has waited for batches so far."""
        return self._feed.wait_seconds

    def close(self) -> None:
        """End the thread or the processes; nothing can be taken afterwards. Closing twice is fine."""
        self._feed.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def evaluation_batches(
    split: Split,
    *,
    preprocessing: Preprocessing,
    batch_size: int,
    store: Store | None,
    workers: int,
    rank: int = 0,
    count: int = 1,
) -> Generator[Batch, None, None]:
    """Every picture of the split exactly once, in order, as `preprocessing` fits it; the last batch may be short.

    Of `count` processes that share the work, `rank` gets every so-manieth batch, from its own on.

    A picture that cannot be decoded is there, too, with weight 0. `store` and `workers` are as in `TrainLoader`, but JPEGs
    are always decoded at full size: a figure must not depend on whether the pictures fitted into memory.
    """
    source = _Source(split, store, preprocessing.channels, shrink_to=None)
    build = functools.partial(_evaluation_batch, source, preprocessing, batch_size)
    feed = Feed(build, range(rank, -(-len(split) // batch_size), count), workers if store is None else 0)
    try:
        for batch, _ in feed:
            yield batch
    finally:
        feed.close()


@dataclasses.dataclass(frozen=True)
class _Source:
    """Where pixels come from: the store, or else the split's files."""

    split: Split
    store: Store | None
    channels: int
    shrink_to: int | None

    def pictures(self, ids: np.ndarray, stop: Stop) -> tuple[Pictures, dict[int, str]]:
        """uint8 h×w×C for each of `ids`, one array where all shapes are equal, and why some of them failed."""
        if self.store is not None and self.store.same_shape and not self.store.bad:
            return self.store.stacked()[ids], {}
        bad: dict[int, str] = {}
        return [self._tried(index, self._pixels, bad, stop) for index in ids.tolist()], bad

    def parts(self, ids: np.ndarray, stop: Stop) -> tuple[Pictures | list[np.ndarray | Partial], dict[int, str]]:
        """The same, with JPEGs not yet decoded; those that then fail are added to the dictionary."""
        if self.store is not None:
            return self.pictures(ids, stop)
        bad: dict[int, str] = {}

        def opened(index: int) -> np.ndarray | Partial:
            picture = open_picture(self.split.read(index), self.channels)
            return picture if isinstance(picture, np.ndarray) else _Watched(picture, index, bad, stop)

        return [self._tried(index, opened, bad, stop) for index in ids.tolist()], bad

    def _pixels(self, index: int) -> np.ndarray:
        if self.store is not None:
            return self.store.pixels(index)
        return decode(self.split.read(index), self.channels, shrink_to=self.shrink_to)

    def _tried(self, index: int, get: Callable[[int], T], bad: dict[int, str], stop: Stop) -> T | np.ndarray:
        _raise_if(stop)
        try:
            return get(index)
        except DecodeError as error:
            bad[index] = error.reason
            return _nothing(self.channels)

    def batch(self, images: Tensor, ids: np.ndarray, epochs: np.ndarray, bad: dict[int, str], first: int = 0) -> _Built:
        weights = torch.ones(len(ids))
        if bad:
            failed = torch.from_numpy(np.isin(ids, list(bad)))
            weights[failed] = 0
            images[failed] = 0
        labels = torch.from_numpy(self.split.labels[ids])
        labels = labels.long() if labels.ndim == 1 else labels.float()
        return Batch(images, labels, weights, ids, epochs, first), bad


@dataclasses.dataclass(frozen=True)
class _Watched:
    """A picture that, when it fails, says so in `bad` and is zeros; it stops with the loader."""

    picture: Undecoded
    index: int
    bad: dict[int, str]
    stop: Stop

    @property
    def shape(self) -> tuple[int, ...]:
        return self.picture.shape

    def part(self, box: tuple[int, int, int, int], least: tuple[int, int]) -> Part:
        _raise_if(self.stop)
        try:
            return self.picture.part(box, least)
        except DecodeError as error:
            self.bad[self.index] = error.reason
            return Part(_nothing(self.shape[2]), (0, 0, 1, 1))


def _nothing(channels: int) -> np.ndarray:
    return np.zeros((1, 1, channels), np.uint8)


def _raise_if(stop: Stop) -> None:
    if stop.is_set():
        raise InterruptedError("the loader was closed")


def _train_batch(
    source: _Source,
    preprocessing: Preprocessing,
    augment: Augment,
    plan: Plan | BalancedPlan,
    good: np.ndarray | None,
    places: range,
    step: int,
    stop: Stop,
) -> _Built:
    positions, epochs = (each[places.start : places.stop] for each in plan.batch(step))
    ids = positions if good is None else good[positions]
    pictures, bad = (source.parts if augment.takes_parts else source.pictures)(ids, stop)
    images = augment(pictures, preprocessing, seed=plan.seed, epochs=epochs, ids=ids)
    return source.batch(images, ids, epochs, bad, places.start)


def _evaluation_batch(source: _Source, preprocessing: Preprocessing, batch_size: int, step: int, stop: Stop) -> _Built:
    ids = np.arange(step * batch_size, min((step + 1) * batch_size, len(source.split)))
    pictures, bad = source.pictures(ids, stop)
    images = torch.from_numpy(fit_all(pictures, preprocessing).transpose(0, 3, 1, 2).copy())
    return source.batch(images, ids, np.zeros_like(ids), bad)
