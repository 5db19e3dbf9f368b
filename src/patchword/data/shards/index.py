"""The index of shards: where each sample lies, how it is called and labelled, in one file that is mapped, not loaded.

Layout: a magic line, the SHA-256 of all that follows, the length of a JSON header, the header, then plain arrays, each
beginning at a multiple of 64 bytes, in the order of `_layout`, all little-endian. There is no pickle in it, and every number
is checked before it is used. Mapped pages belong to the system's cache: they are no memory of the process.
"""

import hashlib
import json
import math
import mmap
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, BinaryIO

import numpy as np

from patchword.core.errors import DataError
from patchword.core.files import new_file
from patchword.data import splits as splitting
from patchword.data.shards.places import Entry, safe_name

_MAGIC = b"patchword index 1\n"
_LARGEST_HEADER = 2**28
_ALIGNMENT = 64
_CHUNK = 65_536


class Mapped(np.memmap):
    """An array in a file; another process maps it again instead of receiving a copy."""

    def __reduce__(self) -> Any:
        if isinstance(self.base, mmap.mmap) and self.filename is not None:
            return map_array, (Path(self.filename), self.offset, self.dtype.str, self.shape)
        return np.asarray(self).__reduce__()

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        return np.asarray(array)[()] if return_scalar else np.asarray(array)


def map_array(path: Path, offset: int, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array of `shape` at a byte of a file, read-only."""
    if math.prod(shape) == 0:
        return np.zeros(shape, dtype)
    return Mapped(path, dtype, "r", offset, shape)


@dataclass(frozen=True)
class Shard:
    """An archive, as it was when the index was made."""

    file: Entry
    split: str | None
    """None: the samples come without splits."""
    samples: int


@dataclass(frozen=True)
class Index:
    """N samples, shard after shard."""

    path: Path
    shards: tuple[Shard, ...]
    classes: tuple[str, ...]
    ordered: bool
    """Whether `classes` is the set's own list, or what was met, sorted."""
    several: bool
    """Whether a sample may have several labels."""
    notices: tuple[tuple[str, str, str], ...]
    carved: dict[str, int] | None
    """For samples without splits: how many went into each split; None: they came with splits."""
    offsets: np.ndarray
    """int64 (N,): the byte of a shard at which a picture begins."""
    sizes: np.ndarray
    """int64 (N,), in bytes."""
    name_ends: np.ndarray
    """int64 (N,): the byte of `names` after a name's zero byte."""
    labels: np.ndarray
    """int64 (N,): positions in `classes`, −1 without; or uint8 (N, K)."""
    rows: np.ndarray
    """int64: sample numbers, those of each split in `carved` after the other."""
    row_labels: np.ndarray
    """The labels of `rows`."""
    names: np.ndarray
    """uint8: all names, each ended by a zero byte."""

    def __len__(self) -> int:
        return len(self.offsets)


def _layout(
    samples: int, classes: int, several: bool, rows: int, name_bytes: int
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """dtype and shape of each array, in the file's order."""
    label = ("|u1", (classes,)) if several else ("<i8", ())
    return {
        "offsets": ("<i8", (samples,)),
        "sizes": ("<i8", (samples,)),
        "name_ends": ("<i8", (samples,)),
        "labels": (label[0], (samples, *label[1])),
        "rows": ("<i8", (rows,)),
        "row_labels": (label[0], (rows, *label[1])),
        "names": ("|u1", (name_bytes,)),
    }


class IndexWriter:
    """Gathers samples in files aside, a column each, so that memory does not grow with their number."""

    def __init__(self) -> None:
        self.samples = 0
        self._columns = {name: _Column(kind) for name, kind in _COLUMNS.items()}
        self._offset, self._size, self._end, self._count, self._code = (
            self._columns[name].values for name in ("offsets", "sizes", "name_ends", "counts", "codes")
        )
        self._names = bytearray()
        self._name_file = TemporaryFile()  # noqa: SIM115 (it lives as long as the writer)
        self._name_bytes = 0

    def add(self, offset: int, size: int, name: bytes, codes: tuple[int, ...] | None) -> None:
        """One sample; `codes` None: it has no label."""
        self.samples += 1
        self._name_bytes += len(name) + 1
        self._names += name
        self._names.append(0)
        self._offset.append(offset)
        self._size.append(size)
        self._end.append(self._name_bytes)
        self._count.append(-1 if codes is None else len(codes))
        if codes:
            self._code.extend(codes)
        if self.samples % _CHUNK == 0:
            self._flush()

    def _flush(self) -> None:
        for column in self._columns.values():
            column.flush()
        self._name_file.write(self._names)
        self._names.clear()

    def write(
        self, path: Path, shards: list[Shard], names: list[str], classes: list[str], *, ordered: bool, several: bool,
        notices: list[tuple[str, str, str]],
    ) -> None:  # fmt: skip
        """The index file. `names` are those of the codes, `classes` the same in the order of the class list."""
        self._flush()
        place = {name: number for number, name in enumerate(classes)}
        order = np.array([place[name] for name in names] or [0], np.int64)
        carving = [shard.split for shard in shards] == [None] * len(shards)
        # Splits are carved once, here, and not in each process that opens the set.
        chosen = self._carved(order, len(classes), several) if carving else {}
        rows = sum(map(len, chosen.values()))
        told = {
            "samples": self.samples,
            "name_bytes": self._name_bytes,
            "classes": classes,
            "ordered": ordered,
            "several": several,
            "carved": {split: len(numbers) for split, numbers in chosen.items()} if carving else None,
            "shards": [[s.file.name, s.file.size, s.file.stamp, s.split, s.samples] for s in shards],
            "notices": notices,
        }
        header = json.dumps(told, ensure_ascii=False).encode()
        with new_file(path) as file:
            start = len(_MAGIC) + 32
            file.write(_MAGIC + bytes(32))
            hashed = _Hashed(file, start)
            hashed.write(len(header).to_bytes(8, "little") + header)
            layout = _layout(self.samples, len(classes), several, rows, self._name_bytes)
            for name in layout:
                hashed.write(bytes(-hashed.position % _ALIGNMENT))
                if name in ("offsets", "sizes", "name_ends"):
                    _copy(self._columns[name].file, hashed.write)
                elif name == "labels":
                    for labels in self._labels(order, len(classes), several):
                        hashed.write(labels.tobytes())
                elif name == "rows":
                    for numbers in chosen.values():
                        hashed.write(numbers.astype("<i8").tobytes())
                elif name == "row_labels" and chosen:
                    labels = np.concatenate(list(self._labels(order, len(classes), several)))
                    for numbers in chosen.values():
                        hashed.write(labels[numbers].tobytes())
                elif name == "names":
                    _copy(self._name_file, hashed.write)
            file.seek(len(_MAGIC))
            file.write(hashed.digest())

    def _labels(self, order: np.ndarray, classes: int, several: bool) -> Iterator[np.ndarray]:
        """The array of labels in pieces."""
        counts, codes = self._columns["counts"].file, self._columns["codes"].file
        counts.seek(0)
        codes.seek(0)
        while piece := counts.read(8 * _CHUNK):
            count = np.frombuffer(piece, np.int64)
            present = np.maximum(count, 0)
            found = order[np.frombuffer(codes.read(8 * int(present.sum())), np.int64)]
            if several:
                labels = np.zeros((len(count), classes), np.uint8)
                labels[np.repeat(np.arange(len(count)), present), found] = 1
            else:
                labels = np.full(len(count), -1, np.int64)
                labels[present > 0] = found
            yield labels

    def _carved(self, order: np.ndarray, classes: int, several: bool) -> dict[str, np.ndarray]:
        """Sample numbers by split; takes about 60 bytes for each sample while it works."""
        labels = np.concatenate(list(self._labels(order, classes, several)))
        if not several and (labels < 0).any():
            return {}
        return splitting.carve(self._all_names(), labels)

    def _all_names(self) -> Iterator[bytes]:
        self._name_file.seek(0)
        rest = b""
        while piece := self._name_file.read(2**20):
            *whole, rest = (rest + piece).split(b"\0")
            yield from whole

    def close(self) -> None:
        for column in self._columns.values():
            column.file.close()
        self._name_file.close()

    def __enter__(self) -> "IndexWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


_COLUMNS = dict.fromkeys(("offsets", "sizes", "name_ends", "counts", "codes"), "q")


class _Column:
    def __init__(self, kind: str) -> None:
        self.values = array(kind)
        self.file: IO[bytes] = TemporaryFile()  # noqa: SIM115 (it lives as long as the writer)

    def flush(self) -> None:
        self.values.tofile(self.file)
        del self.values[:]


class _Hashed:
    def __init__(self, file: BinaryIO, position: int) -> None:
        self._file, self.position, self._hash = file, position, hashlib.sha256()

    def write(self, content: bytes) -> None:
        self._file.write(content)
        self._hash.update(content)
        self.position += len(content)

    def digest(self) -> bytes:
        return self._hash.digest()


def _copy(source: IO[bytes], write: Callable[[bytes], Any]) -> None:
    source.seek(0)
    while piece := source.read(2**20):
        write(piece)


def open_index(path: Path) -> Index:
    """The index at `path`, its arrays mapped; raises `DataError` in one sentence where it is damaged or not one."""
    try:
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise DataError(f"{path} is not an index of shards")
            told_hash = file.read(32)
            if hashlib.file_digest(file, "sha256").digest() != told_hash:
                raise DataError(f"{path} is damaged: its hash does not fit its content")
            file.seek(len(_MAGIC) + 32)
            length = int.from_bytes(file.read(8), "little")
            if length > _LARGEST_HEADER:
                raise DataError(f"{path} is damaged: a header of {length:,} bytes")
            header = file.read(length)
            position = file.tell()
            size = file.seek(0, 2)
        return _checked(_parsed(path, json.loads(header), position, size))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise DataError(f"{path} is damaged: {' '.join(str(error).split())[:100]}") from error


def _parsed(path: Path, told: Any, position: int, size: int) -> Index:
    classes = _strings(told["classes"])
    samples, name_bytes = _whole(told["samples"]), _whole(told["name_bytes"])
    several, ordered = told["several"] is True, told["ordered"] is True
    carved = told["carved"]
    if carved is not None:
        carved = {split: _whole(count) for split, count in carved.items()}
        if not carved.keys() <= set(splitting.SPLITS):
            raise ValueError("unknown splits")
    shards = []
    for name, file_size, stamp, split, count in told["shards"]:
        if not safe_name(name) or not isinstance(stamp, str) or split not in (None, *splitting.SPLITS):
            raise ValueError("a shard that cannot be")
        shards.append(Shard(Entry(name, _whole(file_size), stamp), split, _whole(count)))
    if sum(shard.samples for shard in shards) != samples:
        raise ValueError("its counts do not add up")
    rows = sum((carved or {}).values())
    arrays = {}
    for name, (dtype, shape) in _layout(samples, len(classes), several, rows, name_bytes).items():
        position += -position % _ALIGNMENT
        length = math.prod(shape) * np.dtype(dtype).itemsize
        if position + length > size:
            raise ValueError("it is too short")
        arrays[name] = map_array(path, position, dtype, shape)
        position += length
    if position != size:
        raise ValueError("it is too long")
    notices = tuple(tuple(_strings(notice)) for notice in told["notices"])
    if any(len(notice) != 3 for notice in notices):
        raise ValueError("a notice that cannot be")
    return Index(path, tuple(shards), classes, ordered, several, notices, carved, **arrays)  # pyright: ignore[reportArgumentType]


def _checked(index: Index) -> Index:
    """Numbers that would lead out of an array are refused; whether a place in a shard is right, reading it will show."""
    for array_, low, high in (
        (index.labels, 0 if index.several else -1, 2 if index.several else len(index.classes)),
        (index.row_labels, 0, 2 if index.several else len(index.classes)),
        (index.rows, 0, len(index)),
        (index.sizes, 0, 2**62),
        (index.offsets, 0, 2**62),
    ):
        if array_.size and not low <= array_.min() <= array_.max() < high:
            raise ValueError("a number out of its range")
    ends = index.name_ends
    for start in range(0, len(ends), _CHUNK):
        piece = np.asarray(ends[max(0, start - 1) : start + _CHUNK])
        if (np.diff(piece) < 1).any() or (start == 0 and piece[0] < 1):
            raise ValueError("names out of order")
    if len(ends) and int(ends[-1]) != len(index.names):
        raise ValueError("names that are cut short")
    return index


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**62:
        raise ValueError(f"{value!r} for a count")
    return value


def _strings(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError("no list of words where one is right")
    return tuple(value)
