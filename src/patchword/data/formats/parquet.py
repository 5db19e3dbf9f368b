"""Parquet tables, alone or as a folder in the layout of the Hugging Face hub, local or remote → what `assemble` needs."""

import contextlib
import hashlib
import json
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from patchword.core.errors import DataError, UsageError
from patchword.core.files import check_regular
from patchword.core.picture import DecodeError
from patchword.data.arrays import CIFAR10
from patchword.data.assemble import Found
from patchword.data.dataset import Notice
from patchword.data.formats.table import Rows, find_columns
from patchword.data.shards.places import Folder, Place, Ranged, Remote
from patchword.data.splits import SPLIT_NAMES

if TYPE_CHECKING:
    import pyarrow.parquet

_SHARD = re.compile(r"(?P<split>[A-Za-z]+)(?:[-_.]\d+.*)?\.parquet", re.IGNORECASE)
_CACHE_BYTES = 2**28
_LARGEST_GROUP = 2**31
_BATCH = 8192


def find_parquets(folder: Path) -> Found | None:
    """A folder of Parquet files, by split; None where it is none.

    `train-00000-of-00001.parquet` …, also in `data/` or in one folder for a configuration, or `train/0000.parquet` ….
    """
    inner = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    # A single folder below is the set's one configuration; among several, pictures in class folders are meant.
    below = [folder / "data"] if folder / "data" in inner else inner if len(inner) == 1 else []
    shards = next((found for place in (folder, *below) if (found := _shards(place))), None)
    if shards is None:
        return None
    place = Folder(folder)
    return _chosen(
        place, {split: [file.relative_to(folder).as_posix() for file in files] for split, files in shards.items()}
    )


def _chosen(place: Place, shards: dict[str, list[str]]) -> Found:
    """The data set of those files, by the word that stands for a split in their names."""
    notices = []
    known: dict[str | None, list[str]] = {name: files for name, files in shards.items() if name in SPLIT_NAMES}
    if not known and len(shards) == 1:
        known[None] = next(iter(shards.values()))
    for name in sorted(shards.keys() - known.keys()) if None not in known else ():
        sentence = f"{name}: Parquet files neither of train, validation nor test are left out"
        notices.append(Notice("not-a-split", name, sentence))
    found = _find(place, None, known)
    found.notices.extend(notices)
    return found


def find_parquet(path: Path) -> Found:
    """The pictures of one Parquet table, embedded or as paths relative to its folder."""
    found = _find(Folder(path.parent), path, {None: [path.name]})
    found.name = path.stem
    return found


def find_parquet_address(address: str) -> Found | None:
    """Parquet files with embedded pictures at an address: one, or those of a folder; None where there is none."""
    if address.endswith(".parquet"):
        folder, _, name = address.rpartition("/")
        found = _find(Remote(folder), address, {None: [name]})
        found.name = name.removesuffix(".parquet")
        return found
    place = Remote(address)
    shards: dict[str, list[str]] = {}
    for entry in place.entries(".parquet"):
        folder, _, name = entry.name.rpartition("/")
        above = folder.rpartition("/")[2].lower()
        match = _SHARD.fullmatch(name)
        split = above if above in SPLIT_NAMES else match["split"].lower() if match else None
        if split is not None:
            shards.setdefault(split, []).append(entry.name)
    return _chosen(place, shards) if shards else None


def _shards(place: Path) -> dict[str, list[Path]]:
    shards: dict[str, list[Path]] = {}
    for file in sorted(place.glob("*.parquet")):
        if match := _SHARD.fullmatch(file.name):
            shards.setdefault(match["split"].lower(), []).append(file)
    for split in sorted(place.iterdir()):
        if split.name.lower() in SPLIT_NAMES and split.is_dir():
            shards.setdefault(split.name.lower(), []).extend(sorted(split.glob("*.parquet")))
    return {split: files for split, files in shards.items() if files}


def _find(place: Place, table: Path | str | None, files: dict[str | None, list[str]]) -> Found:
    """`files` of `place` by split; None as a split: each row says it itself, or there are no splits.

    `table` is what was given, where that is one file.
    """
    by_split = [(split, name) for split, names in files.items() for name in names]
    first = by_split[0][1]
    where = f"{place.location}/{first}"
    schema = _open(place, first).schema_arrow
    image, label, split_column = find_columns(where, schema.names)
    columns = [schema.names[label], schema.names[image]]
    embedded = _embedded(where, schema.field(image))
    if place.remote and not embedded:
        raise DataError(f"{where} holds paths of pictures; at an address, pictures embedded in the table are right")
    root = place.path if isinstance(place, Folder) else Path(place.name)
    source = table or (root if isinstance(place, Folder) else place.location)
    rows = Rows(source, root, _class_names(schema, columns[0], place.name if table is None else ""))
    for split, name in by_split:
        opened = _open(place, name)
        file_name = name.rpartition("/")[2]
        if missing := [each for each in columns if each not in opened.schema_arrow.names]:
            raise DataError(
                f"{place.location}/{name} has no column {missing[0]!r}, as {first.rpartition('/')[2]} has; "
                f"its columns are {', '.join(opened.schema_arrow.names)}"
            )
        wanted = columns[:1] if embedded else columns[:]
        if split is None and split_column is not None:
            wanted.append(schema.names[split_column])
        number = 0
        with _faults(f"{place.location}/{name}"):
            for batch in opened.iter_batches(_BATCH, columns=wanted, use_threads=False):
                cells = {each: batch.column(each).to_pylist() for each in wanted}
                splits = cells[wanted[-1]] if split is None and split_column is not None else [split] * len(batch)
                paths = [None] * len(batch) if embedded else cells[columns[1]]
                for cell, its_split, picture in zip(cells[columns[0]], splits, paths, strict=True):
                    rows.add(f"row {number} of {file_name}", cell, its_split, None if embedded else picture or "")
                    number += 1
    pictures = ParquetPictures(place, [name for _, name in by_split], columns[1]) if embedded else None
    return rows.found(place.name, pictures)


class ParquetPictures:
    """Pictures embedded in Parquet files, read a row group at a time; the groups last used are kept in memory."""

    def __init__(self, place: Place, files: list[str], column: str) -> None:
        self.place = place
        self.files = files
        self.column = column
        self._file_sizes = []
        groups: list[tuple[int, int, int]] = []
        for file, name in enumerate(files):
            metadata = _open(place, name).metadata
            entry = place.entry(name)
            self._file_sizes.append(None if entry is None else entry.size)
            for group in range(metadata.num_row_groups):
                described = metadata.row_group(group)
                if described.total_byte_size > _LARGEST_GROUP:
                    raise DataError(
                        f"{place.location}/{name} holds {described.total_byte_size >> 20} MiB in one row group, which has "
                        "to be read as a whole for each of its pictures; write it again with row_group_size=1000"
                    )
                groups.append((file, group, described.num_rows))
        self._groups = groups
        self._ends = np.cumsum([rows for _, _, rows in groups], dtype=np.int64)
        rows_of_file = np.zeros(len(files), np.int64)
        np.add.at(rows_of_file, [file for file, _, _ in groups], [rows for _, _, rows in groups])
        self._file_starts = (np.cumsum(rows_of_file) - rows_of_file).tolist()
        self._prepare()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, row: int) -> bytes:
        group = int(np.searchsorted(self._ends, row, side="right"))
        try:
            with _faults(f"{self.place.location}/{self.files[self._groups[group][0]]}"):
                value = self._group(group)[row - int(self._ends[group]) + self._groups[group][2]].as_py()
        except DataError as error:
            raise DecodeError(f"cannot be had: {error}") from error
        if isinstance(value, dict):
            value = value["bytes"]
        if not isinstance(value, bytes):
            raise DecodeError("has no bytes in its row")
        return value

    def key(self, row: int) -> bytes:
        file = int(np.searchsorted(self._file_starts, row, side="right")) - 1
        return os.fsencode(f"{self.files[file]}:{row - self._file_starts[file]}")

    def digest(self, rows: np.ndarray | None) -> bytes:
        files = list(zip(self.files, self._file_sizes, strict=True))
        rows = np.arange(len(self)) if rows is None else rows
        return hashlib.sha256(repr((files, self._groups)).encode() + rows.astype(np.int64).tobytes()).digest()

    def _group(self, number: int) -> Any:
        with self._lock:
            if self._owner != os.getpid():  # a file of a process is not to be shared across a fork
                self._open_files, self._owner = {}, os.getpid()
            if number in self._cache:
                self._cache.move_to_end(number)
                return self._cache[number]
            file, group, _ = self._groups[number]
            if file not in self._open_files:
                self._open_files[file] = _open(self.place, self.files[file])
            # Without Arrow's threads, which a forked worker does not have.
            with _faults(f"{self.place.location}/{self.files[file]}"):
                column = (
                    self._open_files[file].read_row_group(group, columns=[self.column], use_threads=False).column(0)
                )
            while self._cache and self._cached + column.nbytes > _CACHE_BYTES:
                self._cached -= self._cache.popitem(last=False)[1].nbytes
            self._cache[number] = column
            self._cached += column.nbytes
            return column

    def _prepare(self) -> None:
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._open_files: dict[int, pyarrow.parquet.ParquetFile] = {}
        self._cache: OrderedDict[int, Any] = OrderedDict()
        self._cached = 0

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _OF_THE_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()


_OF_THE_PROCESS = ("_lock", "_owner", "_open_files", "_cache", "_cached")


def _open(place: Place, name: str) -> "pyarrow.parquet.ParquetFile":
    where = f"{place.location}/{name}"
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError(f"reading {where} takes pyarrow: pip install 'patchword[data]'") from error
    if isinstance(place, Folder):
        check_regular(place.path / name)
    with _faults(where):
        # Of a remote file a row group is one range, read when a picture of it is wanted.
        return pyarrow.parquet.ParquetFile(place.path / name if isinstance(place, Folder) else Ranged(place, name))


@contextlib.contextmanager
def _faults(where: str) -> Iterator[None]:
    """Say of everything that Arrow complains of that the file is damaged: pages are first looked at when they are read."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, LookupError, TypeError, ArithmeticError) as error:
        raise DataError(
            f"{where} is not a Parquet file that can be read ({' '.join(str(error).split())[:200] or type(error).__name__})"
        ) from error


def _embedded(where: str, field: "pyarrow.Field") -> bool:
    """Whether the column of pictures holds the pictures themselves and not their paths."""
    from pyarrow import types

    kind = field.type
    if types.is_struct(kind) and "bytes" in [kind.field(number).name for number in range(kind.num_fields)]:
        return True
    if types.is_binary(kind) or types.is_large_binary(kind):
        return True
    if types.is_string(kind) or types.is_large_string(kind):
        return False
    raise DataError(f"{where} has {kind} in its column {field.name!r}; paths, or the bytes of picture files, are right")


def _class_names(schema: "pyarrow.Schema", column: str, name: str) -> tuple[str, ...]:
    """What the numbers in the column of labels stand for, by the Hugging Face features in the schema; else nothing."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"][column]
        names = features.get("names") or features["feature"]["names"]
        return tuple(str(name) for name in names)
    except (KeyError, TypeError, ValueError, AttributeError):
        is_cifar10 = re.fullmatch(r"cifar[-_]?10", name, re.IGNORECASE)
        return CIFAR10 if is_cifar10 else ()
