"""Pictures of several places as one split."""

import hashlib
from collections.abc import Iterator

import numpy as np

from patchword.data.dataset import Files, Split


class Joined:
    """The pictures of several splits, one behind the other, as `Items`."""

    def __init__(self, parts: list[Split]) -> None:
        self.parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, row: int) -> bytes | np.ndarray:
        part, index = self._at(row)
        return part.read(index)

    def key(self, row: int) -> bytes:
        part, index = self._at(row)
        return part.key(index)

    def digest(self, rows: np.ndarray | None) -> bytes:
        digest = hashlib.sha256()
        for part, wanted in self._dealt(rows):
            digest.update(part.items.digest(wanted))
        if rows is not None and (np.diff(rows) < 0).any():
            # Each part knows the order of its own; how they lie between each other nobody else does.
            digest.update(np.asarray(rows, np.int64).tobytes())
        return digest.digest()

    def times(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Times of last change in ns, int64, of those pictures that are files."""
        parts = [
            part.items.times(wanted) for part, wanted in self._dealt(rows) if isinstance(part.items, Files | Joined)
        ]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def _dealt(self, rows: np.ndarray | None) -> Iterator[tuple[Split, np.ndarray | None]]:
        """Each part with the rows of its own items that are wanted."""
        begin = 0
        for part, end in zip(self.parts, self._ends.tolist(), strict=True):
            wanted, mine = part.rows, None if rows is None else rows[(rows >= begin) & (rows < end)] - begin
            if mine is not None:
                wanted = mine if wanted is None else wanted[mine]
            yield part, wanted
            begin = end

    def _at(self, row: int) -> tuple[Split, int]:
        part = int(np.searchsorted(self._ends, row, side="right"))
        return self.parts[part], row - (int(self._ends[part - 1]) if part else 0)


def together(parts: list[Split]) -> Split:
    """One split of the pictures of several, with their labels, in order."""
    labels = np.concatenate([part.labels for part in parts])
    if any(part.items is not parts[0].items for part in parts):
        return Split(Joined(parts), labels)
    rows = [np.arange(len(part)) if part.rows is None else part.rows for part in parts]
    return Split(parts[0].items, labels, np.concatenate(rows))
