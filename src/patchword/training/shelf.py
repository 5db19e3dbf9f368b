"""What runs of one process share, so that a study of fifty opens and decodes its data sets once.

A run finds the same pictures, in the same order and with the same hash of their content, as without it.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from patchword.core.errors import StoppedError
from patchword.core.progress import Progress
from patchword.core.runtime import available_memory, usable_cores
from patchword.data.dataset import Dataset, Split
from patchword.data.sources import open_data
from patchword.data.store import MEMORY_SHARE, Store, estimated_bytes

_MOST = 8
"""Data sets at a time, with their lists of pictures."""


class Shelved(NamedTuple):
    """A data set on the shelf."""

    dataset: Dataset
    fingerprint: str
    labelled: bool
    stores: dict[tuple[str, int], Store]
    """The decoded pictures of a split, by its name and their channels."""

    @property
    def nbytes(self) -> int:
        """Of all its decoded pictures."""
        return sum(store.nbytes for store in self.stores.values())


class Shelf:
    """The data sets that were opened last, and the decoded pictures of their splits, as far as there is room."""

    def __init__(self) -> None:
        self._opened: dict[str, Shelved] = {}
        """The one that is in use is the last."""

    def open(self, data: str, *, labelled: bool = True) -> tuple[Dataset, str]:
        """The data set, which needs no labels where these do not count, and its fingerprint."""
        opened = self._opened.pop(data, None)
        if opened is None or (labelled and not opened.labelled):
            dataset = open_data(data, labelled=labelled)
            opened = Shelved(dataset, dataset.fingerprint(), labelled, {})
        self._opened[data] = opened
        if len(self._opened) > _MOST:
            empty = (name for name, each in self._opened.items() if not each.stores and each is not opened)
            del self._opened[next(empty, next(iter(self._opened)))]
        return opened.dataset, opened.fingerprint

    def holds(self, dataset: Dataset, channels: int) -> bool:
        """Whether all pictures of `dataset`, which was made of the one that was opened last, are decoded already."""
        places = [self._place(split) for split in dataset.splits.values()]
        return all(place is not None and (place[0], channels) in self._last.stores for place in places)

    def fill(self, name: str, split: Split, channels: int, stop: Callable[[], bool] = bool) -> Store:
        """The decoded pictures of a split: of all of the opened data set's that it is a part of, where these fit into memory."""
        place = self._place(split)
        if place is None:
            return filled(name, split, channels, stop)
        whole, indices = place
        base, stores = self._last.dataset.splits[whole], self._last.stores
        if (whole, channels) not in stores:
            needed, room = estimated_bytes(base, channels=channels), MEMORY_SHARE * (available_memory() + self._nbytes)
            if needed + self._last.nbytes > room:
                return filled(name, split, channels, stop)
            while needed + self._nbytes > room:
                next(each for each in self._opened.values() if each.stores).stores.clear()
            stores[whole, channels] = filled(whole, base, channels, stop)
        return stores[whole, channels].subset(indices)

    @property
    def spare(self) -> int:
        """Bytes of decoded pictures that the data set which was opened last may have, as others would go for them."""
        return self._nbytes - self._last.nbytes if self._opened else 0

    @property
    def _last(self) -> Shelved:
        return next(reversed(self._opened.values()))

    @property
    def _nbytes(self) -> int:
        return sum(each.nbytes for each in self._opened.values())

    def _place(self, split: Split) -> tuple[str, np.ndarray] | None:
        """The split of the opened data set that this one is a part of, and the indices of its pictures there."""
        for name, base in self._last.dataset.splits.items() if self._opened else ():
            if split.items is not base.items:
                continue
            mine, theirs = _rows(split), _rows(base)
            order = np.argsort(theirs)
            at = np.searchsorted(theirs, mine, sorter=order)
            found = order[np.minimum(at, len(theirs) - 1)]
            if (theirs[found] == mine).all():
                return name, found
        return None


def filled(name: str, split: Split, channels: int, stop: Callable[[], bool] = bool) -> Store:
    """The decoded pictures of one split, with a bar; raises `StoppedError` when told to stop."""
    with Progress(f"decoding {name}", len(split)) as progress:

        def progressed(done: int, total: int) -> None:
            progress.update(done)
            if stop():
                raise StoppedError(f"stopped by a signal while decoding {name}; the same command goes on")

        return Store.fill(split, channels, usable_cores(), on_progress=progressed)


def _rows(split: Split) -> np.ndarray:
    return np.arange(len(split)) if split.rows is None else split.rows
