"""What runs of one process share, so that a study of fifty opens and decodes its data set once.

A run finds the same pictures, in the same order and with the same hash of their content, as without it.
"""

import os

import numpy as np

from patchword.core.progress import Progress
from patchword.core.runtime import available_memory
from patchword.data.dataset import Dataset, Split
from patchword.data.sources import open_data
from patchword.data.store import MEMORY_SHARE, Store, estimated_bytes


class Shelf:
    """The data set that was opened last, and the decoded pictures of its splits: one data set at a time, to bound memory."""

    def __init__(self) -> None:
        self._data, self._labelled = "", True
        self._opened: tuple[Dataset, str] | None = None
        self._stores: dict[tuple[str, int], Store] = {}

    def open(self, data: str, *, labelled: bool = True) -> tuple[Dataset, str]:
        """The data set, which needs no labels where these do not count, and its fingerprint."""
        if self._opened is None or self._data != data or (labelled and not self._labelled):
            self._stores = {}
            dataset = open_data(data, labelled=labelled)
            self._data, self._labelled, self._opened = data, labelled, (dataset, dataset.fingerprint())
        return self._opened

    def holds(self, dataset: Dataset, channels: int) -> bool:
        """Whether all pictures of `dataset`, which was made of the one that was opened, are decoded already."""
        places = [self._place(split) for split in dataset.splits.values()]
        return all(place is not None and (place[0], channels) in self._stores for place in places)

    def fill(self, name: str, split: Split, channels: int) -> Store:
        """The decoded pictures of a split: of all of the opened data set's that it is a part of, where these fit into memory."""
        place = self._place(split)
        if place is None or self._opened is None:
            return filled(name, split, channels)
        whole, indices = place
        base = self._opened[0].splits[whole]
        if (whole, channels) not in self._stores:
            if estimated_bytes(base, channels=channels) > MEMORY_SHARE * available_memory():
                return filled(name, split, channels)
            self._stores[whole, channels] = filled(whole, base, channels)
        return self._stores[whole, channels].subset(indices)

    def _place(self, split: Split) -> tuple[str, np.ndarray] | None:
        """The split of the opened data set that this one is a part of, and the indices of its pictures there."""
        for name, base in self._opened[0].splits.items() if self._opened is not None else ():
            if split.items is not base.items:
                continue
            mine, theirs = _rows(split), _rows(base)
            order = np.argsort(theirs)
            at = np.searchsorted(theirs, mine, sorter=order)
            found = order[np.minimum(at, len(theirs) - 1)]
            if (theirs[found] == mine).all():
                return name, found
        return None


def filled(name: str, split: Split, channels: int) -> Store:
    """The decoded pictures of one split, with a bar."""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with Progress(f"decoding {name}", len(split)) as progress:
        return Store.fill(split, channels, threads, on_progress=lambda done, _: progress.update(done))


def _rows(split: Split) -> np.ndarray:
    return np.arange(len(split)) if split.rows is None else split.rows
