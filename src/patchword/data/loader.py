"""Plan + pictures + augmentation → batches: each a pure function of its step number, prepared ahead of the model."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

from patchword.core.errors import DataError
from patchword.core.picture import DecodeError
from patchword.core.preprocessing import Preprocessing
from patchword.data.augment import Augment, Pictures, fit_all
from patchword.data.decode import PIXEL_LIMIT, Side, decode
from patchword.data.feed import Feed, Stop
from patchword.data.jpeg import decode_plain, plain_size
from patchword.data.plan import Plan

if TYPE_CHECKING:
    from patchword.data.dataset import Split
    from patchword.data.store import Store

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
    """int64 (B,): how often the plan has gone through the split before; with `ids` the key of all chance."""
    first: int = 0
    """The place of the first of them in the whole batch, of which other processes may have the rest."""


class TrainLoader:
    """Endless training batches for steps `first_step`, `first_step` + 1, …; iterating again goes on where it was.

    The batch of a step depends on the arguments of `__init__` up to `seed` and on nothing else: not on the number of
    workers or on where the iteration began. Store and stream give the same batches, too, unless a picture is bad (the
    store knows before, the stream meets it) or JPEGs are much larger than the model's input (the store has decoded them
    at full size, the stream does it at 1/2, 1/4 or 1/8).

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
    ) -> None:
        """`places`: the part of each batch that is wanted; None: all of it."""
        self.bad: dict[int, str] = {} if store is None else dict(store.bad)
        """Index in the split → why the picture could not be decoded, as far as is known by now."""
        self.split = split
        good = None  # all: a list of them would be memory for each picture of the set
        if self.bad:
            good = np.setdiff1d(np.arange(len(split)), np.fromiter(self.bad, np.int64, len(self.bad)))
        count = len(split) if good is None else len(good)
        if count == 0:
            raise DataError("none of the training pictures can be decoded; `patchword data check` lists the reasons")
        source = _Source(split, store, preprocessing.channels)
        self._plan, self._good = Plan(count, batch_size, seed), good
        places = range(batch_size) if places is None else places
        self.build = functools.partial(_train_batch, source, preprocessing, augment, self._plan, good, places)
        """(step, stop) → the batch of the step and its bad pictures, here and now."""
        self._feed = Feed(self.build, itertools.count(first_step), workers if store is None else 0)

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
    source = _Source(split, store, preprocessing.channels)
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

    def pictures(
        self, ids: np.ndarray, stop: Stop, shrink_to: Sequence[Side] | None = None
    ) -> tuple[Pictures, dict[int, str]]:
        """uint8 h×w×C for each of `ids`, one array where all shapes are equal, and why some of them failed.

        `shrink_to` says for each how far a decoder may shrink it.
        """
        if self.store is not None and self.store.same_shape and not self.store.bad:
            return self.store.stacked()[ids], {}
        pictures, bad = [], {}
        for place, index in enumerate(ids.tolist()):
            if stop.is_set():
                raise InterruptedError("the loader was closed")
            try:
                if self.store is not None:
                    pictures.append(self.store.pixels(index))
                else:
                    side = None if shrink_to is None else shrink_to[place]
                    pictures.append(_decode(self.split.read(index), self.channels, side))
            except DecodeError as error:
                bad[index] = error.reason
                pictures.append(np.zeros((1, 1, self.channels), np.uint8))
        return pictures, bad

    def batch(self, images: Tensor, ids: np.ndarray, epochs: np.ndarray, bad: dict[int, str], first: int = 0) -> _Built:
        weights = torch.ones(len(ids))
        if bad:
            failed = torch.from_numpy(np.isin(ids, list(bad)))
            weights[failed] = 0
            images[failed] = 0
        labels = torch.from_numpy(self.split.labels[ids])
        labels = labels.long() if labels.ndim == 1 else labels.float()
        return Batch(images, labels, weights, ids, epochs, first), bad


def _decode(item: bytes | np.ndarray, channels: int, shrink_to: Side | None) -> np.ndarray:
    """As `decode`; a plain JPEG that does not shrink takes a shorter way to the same pixels."""
    if isinstance(item, bytes) and (size := plain_size(item)) is not None and math.prod(size) <= PIXEL_LIMIT:
        shrinks = shrink_to is not None and min(size) >= 2 * shrink_to(*size)
        if not shrinks and (pixels := decode_plain(item, channels)) is not None:
            return pixels
    return decode(item, channels, shrink_to=shrink_to)


def _train_batch(
    source: _Source,
    preprocessing: Preprocessing,
    augment: Augment,
    plan: Plan,
    good: np.ndarray | None,
    places: range,
    step: int,
    stop: Stop,
) -> _Built:
    positions, epochs = (each[places.start : places.stop] for each in plan.batch(step))
    ids = positions if good is None else good[positions]
    keys = zip(epochs.tolist(), ids.tolist(), strict=True)
    shrink_to = [augment.source_side(preprocessing, plan.seed, epoch, index) for epoch, index in keys]
    pictures, bad = source.pictures(ids, stop, shrink_to)
    images = augment(pictures, preprocessing, seed=plan.seed, epochs=epochs, ids=ids)
    return source.batch(images, ids, epochs, bad, places.start)


def _evaluation_batch(source: _Source, preprocessing: Preprocessing, batch_size: int, step: int, stop: Stop) -> _Built:
    ids = np.arange(step * batch_size, min((step + 1) * batch_size, len(source.split)))
    pictures, bad = source.pictures(ids, stop)
    images = torch.from_numpy(fit_all(pictures, preprocessing).transpose(0, 3, 1, 2).copy())
    return source.batch(images, ids, np.zeros_like(ids), bad)
