"""What every source of pictures becomes: items that can be read by number, splits of them with labels, a data set."""

import hashlib
import heapq
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from patchword.core.picture import DecodeError

FILE_LIMIT = 2**29
"""Larger picture files, in bytes, are not read."""

_CHUNK = 4096
_SKETCH = 64


@dataclass(frozen=True)
class Notice:
    """Something about the data that its owner should know: what was left out, what looks wrong."""

    kind: str
    """A fixed word for programs: `hidden`, `empty-class`, `not-a-picture`, `broken-link`, `nested`, `leak`, …"""
    where: str
    """The folder, file or column."""
    sentence: str


class Items(Protocol):
    """Pictures by row number, without labels."""

    def __len__(self) -> int: ...

    def read(self, row: int) -> bytes | np.ndarray:
        """The content of the picture's file, or its pixels, uint8 H×W or H×W×C; raises `DecodeError`."""
        ...

    def key(self, row: int) -> bytes:
        """A name that is the same wherever the data set lies."""
        ...

    def digest(self, rows: np.ndarray | None) -> bytes:
        """A hash over the keys of `rows` (None: all), and over sizes or content where that is cheap."""
        ...


class Names:
    """Many byte strings in one block of memory: a Python object each would take 100 MB for a million names."""

    def __init__(self, names: Iterable[bytes] = ()) -> None:
        self._block = bytearray()
        self._ends: list[np.ndarray] = []
        self._offsets: np.ndarray | None = None
        self.extend(names)

    def extend(self, names: Iterable[bytes], prefix: bytes = b"") -> None:
        """Append `prefix` + name for each of `names`."""
        names = list(names)
        if not names:
            return
        lengths = np.fromiter(map(len, names), np.int64, len(names)) + len(prefix) + 1
        self._ends.append(np.cumsum(lengths) + len(self._block))
        self._block += b"".join((prefix, (b"\0" + prefix).join(names), b"\0"))
        self._offsets = None

    def _bounds(self) -> np.ndarray:
        if self._offsets is None:
            self._offsets = np.concatenate([np.zeros(1, np.int64), *self._ends])
            self._ends = [self._offsets[1:]]
        return self._offsets

    def __len__(self) -> int:
        return len(self._bounds()) - 1

    def __getitem__(self, row: int) -> bytes:
        offsets = self._bounds()
        if not 0 <= row < len(offsets) - 1:
            raise IndexError(row)
        return bytes(self._block[offsets[row] : offsets[row + 1] - 1])

    def hash(self, rows: np.ndarray | None) -> bytes:
        """SHA-256 over the names of `rows` in their order, each ended by a zero byte."""
        digest = hashlib.sha256()
        if rows is None:
            digest.update(self._block)
        else:
            for row in rows:
                digest.update(self[row] + b"\0")
        return digest.digest()


def read_file(path: bytes | str | os.PathLike[str]) -> bytes:
    """The content of a picture file; raises `DecodeError` for what is none, or too large to be one."""
    try:
        # Without waiting: a pipe in a file's place would wait for somebody to write.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise DecodeError("is no regular file")
            if status.st_size > FILE_LIMIT:
                raise DecodeError(f"has {status.st_size:,} bytes, more than the limit of {FILE_LIMIT >> 20} MiB")
            return file.read()
    except FileNotFoundError as error:
        raise DecodeError("does not exist") from error
    except OSError as error:
        raise DecodeError(f"cannot be read ({error.strerror})") from error


class Files:
    """Picture files below one folder."""

    def __init__(self, root: str | os.PathLike[str], names: Names) -> None:
        self.root = os.fsencode(root)
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def path(self, row: int) -> bytes:
        return os.path.join(self.root, self.names[row])

    def read(self, row: int) -> bytes:
        return read_file(self.path(row))

    def key(self, row: int) -> bytes:
        return self.names[row]

    def sizes(self, rows: np.ndarray | None = None) -> np.ndarray:
        """File sizes in bytes, int64; −1 for what is not there or no file."""
        return self._stats(rows)[:, 0]

    def times(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Times of last change in ns, int64."""
        return self._stats(rows)[:, 1]

    def digest(self, rows: np.ndarray | None) -> bytes:
        return self.names.hash(rows) + hashlib.sha256(self.sizes(rows).tobytes()).digest()

    def _stats(self, rows: np.ndarray | None) -> np.ndarray:
        numbers = range(len(self)) if rows is None else rows
        found = np.full((len(numbers), 2), -1, np.int64)
        for place, row in enumerate(numbers):
            try:
                status = os.stat(self.path(row))
            except OSError:
                continue
            if stat.S_ISREG(status.st_mode):
                found[place] = status.st_size, status.st_mtime_ns
        return found


class Arrays:
    """Pictures that are pixels already, all of one shape, in one array."""

    def __init__(self, pixels: np.ndarray, name: str) -> None:
        """`pixels`: uint8 N×H×W or N×H×W×C."""
        self.pixels = pixels
        self.prefix = name

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, row: int) -> np.ndarray:
        return self.pixels[row]

    def key(self, row: int) -> bytes:
        return f"{self.prefix}:{row}".encode()

    def digest(self, rows: np.ndarray | None) -> bytes:
        digest = hashlib.sha256(f"{self.pixels.shape[1:]}".encode())
        rows = np.arange(len(self)) if rows is None else rows
        for start in range(0, len(rows), _CHUNK):
            digest.update(self.pixels[rows[start : start + _CHUNK]].tobytes())
        return digest.digest()


class Split:
    """N labelled pictures of a data set, read by their index."""

    def __init__(self, items: Items, labels: np.ndarray, rows: np.ndarray | None = None) -> None:
        """`rows` are the split's row numbers in `items`; None stands for all of them in order."""
        self.items = items
        self.rows = rows
        self.labels = labels
        """int64 (N,): the class of each picture; or uint8 (N, K): 1 for each of its labels."""
        if len(labels) != len(self):
            raise ValueError(f"{len(labels)} labels for {len(self)} pictures")

    def __len__(self) -> int:
        return len(self.items) if self.rows is None else len(self.rows)

    def read(self, index: int) -> bytes | np.ndarray:
        """The picture for `decode`: the content of its file, or uint8 pixels H×W or H×W×C; raises `DecodeError`."""
        return self.items.read(self._row(index))

    def name(self, index: int) -> str:
        """Where the picture is, for people: its path below the data set's folder, or `file.parquet:row`."""
        return self.key(index).decode("utf-8", "backslashreplace")

    def key(self, index: int) -> bytes:
        """The name as bytes."""
        return self.items.key(self._row(index))

    def keys(self) -> Iterator[bytes]:
        """The names as bytes, in order."""
        if self.rows is None:
            yield from map(self.items.key, range(len(self)))
            return
        for start in range(0, len(self.rows), _CHUNK):
            yield from map(self.items.key, self.rows[start : start + _CHUNK].tolist())

    def subset(self, indices: np.ndarray) -> "Split":
        """The pictures at `indices`, in that order; nothing but their numbers is copied."""
        indices = np.asarray(indices, dtype=np.int64)
        return Split(self.items, self.labels[indices], indices if self.rows is None else self.rows[indices])

    def counts(self) -> np.ndarray:
        """Pictures per class, int64 (K,), as far as the highest class that occurs (all K for several labels)."""
        return np.bincount(self.labels) if self.labels.ndim == 1 else self.labels.sum(axis=0, dtype=np.int64)

    def fingerprint(self) -> str:
        """A hash that changes when a picture is added, removed, renamed, resized or labelled otherwise."""
        digest = hashlib.sha256(self.items.digest(self.rows))
        for start in range(0, len(self.labels), _CHUNK):
            digest.update(self.labels[start : start + _CHUNK].tobytes())
        return digest.hexdigest()

    def sketch(self) -> list[str]:
        """The 64 smallest hashes of the names (fewer in a small split): whoever has the same pictures has these names."""
        return heapq.nsmallest(_SKETCH, map(name_hash, self.keys()))

    def meets(self, sketch: Collection[str]) -> bool:
        """Whether a picture has a name in the `sketch` of a split, however that lies elsewhere."""
        known = frozenset(sketch)
        return any(name_hash(key) in known for key in self.keys()) if known else False

    def _row(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        return index if self.rows is None else int(self.rows[index])


def name_hash(key: bytes) -> str:
    """A short hash of a picture's name, without a folder `train/` in front: a copy of that folder alone is recognised."""
    return hashlib.blake2b(key.removeprefix(b"train/"), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Dataset:
    """A data set, opened: its class list, its splits, and what was noticed on the way. No picture has been read."""

    name: str
    """Short, for the names of folders: `clothing`, `cifar10`."""
    location: str
    classes: tuple[str, ...]
    multi_label: bool
    splits: dict[str, Split]
    """`train` always, `validation` and `test` when present."""
    split_rule: str
    """One sentence that says where the splits come from."""
    notices: tuple[Notice, ...] = ()
    carved: bool = False
    """Whether the splits were made here, because the data set came without."""

    @property
    def tested_on(self) -> str:
        """The split that a final model is measured on: validation where there is no test."""
        return "test" if "test" in self.splits else "validation"

    def whole(self) -> Split:
        """All pictures of a carved data set as one split again."""
        if not self.carved:
            raise ValueError(f"{self.location} came with its splits")
        parts = list(self.splits.values())
        rows = np.concatenate([np.arange(len(part)) if part.rows is None else part.rows for part in parts])
        order = np.argsort(rows)
        return Split(parts[0].items, np.concatenate([part.labels for part in parts])[order], rows[order])

    def fingerprint(self) -> str:
        """A hash over class list and splits, the same wherever the data set lies."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for name, split in self.splits.items():
            digest.update(f"{name} {split.fingerprint()}".encode())
        return digest.hexdigest()
