"""Parquet tables, alone or as a folder in the layout of the Hugging Face hub → what `assemble` needs."""

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
from patchword.data.splits import SPLIT_NAMES
from patchword.data.table import Rows, find_columns

if TYPE_CHECKING:
    import pyarrow.parquet

_SHARD = re.compile(r"(?P<split>[A-Za-z]+)(?:[-_.]\d+.*)?\.parquet", re.IGNORECASE)
_CACHE_BYTES = 2**28
_LARGEST_GROUP = 2**31
_BATCH = 8192


def find_shards(folder: Path) -> Found | None:
    """A folder of Parquet files, by split; None where it is none.

    `train-00000-of-00001.parquet` …, also in `data/` or in one folder for a configuration, or `train/0000.parquet` ….
    """
    inner = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    # A single folder below is the set's one configuration; among several, pictures in class folders are meant.
    below = [folder / "data"] if folder / "data" in inner else inner if len(inner) == 1 else []
    shards = next((found for place in (folder, *below) if (found := _shards(place))), None)
    if shards is None:
        return None
    notices = []
    known: dict[str | None, list[Path]] = {name: files for name, files in shards.items() if name in SPLIT_NAMES}
    if not known and len(shards) == 1:
        known[None] = next(iter(shards.values()))
    for name in sorted(shards.keys() - known.keys()) if None not in known else ():
        sentence = f"{name}: Parquet files neither of train, validation nor test are left out"
        notices.append(Notice("not-a-split", name, sentence))
    found = _find(folder, known)
    found.notices.extend(notices)
    return found


def find_parquet(path: Path) -> Found:
    """The pictures of one Parquet table, embedded or as paths relative to its folder."""
    found = _find(path, {None: [path]})
    found.name = path.stem
    return found


def _shards(place: Path) -> dict[str, list[Path]]:
    shards: dict[str, list[Path]] = {}
    for file in sorted(place.glob("*.parquet")):
        if match := _SHARD.fullmatch(file.name):
            shards.setdefault(match["split"].lower(), []).append(file)
    for split in sorted(place.iterdir()):
        if split.name.lower() in SPLIT_NAMES and split.is_dir():
            shards.setdefault(split.name.lower(), []).extend(sorted(split.glob("*.parquet")))
    return {split: files for split, files in shards.items() if files}


def _find(source: Path, files: dict[str | None, list[Path]]) -> Found:
    """`files` by split; None as a split: each row says it itself, or there are no splits."""
    by_split = [(split, path) for split, paths in files.items() for path in paths]
    first = by_split[0][1]
    schema = _open(first).schema_arrow
    image, label, split_column = find_columns(first, schema.names)
    columns = [schema.names[label], schema.names[image]]
    embedded = _embedded(first, schema.field(image))
    root = source if source.is_dir() else source.parent
    rows = Rows(source, root, _class_names(schema, columns[0], source))
    for split, path in by_split:
        table = _open(path)
        if missing := [name for name in columns if name not in table.schema_arrow.names]:
            raise DataError(
                f"{path} has no column {missing[0]!r}, as {first.name} has; "
                f"its columns are {', '.join(table.schema_arrow.names)}"
            )
        wanted = columns[:1] if embedded else columns[:]
        if split is None and split_column is not None:
            wanted.append(schema.names[split_column])
        number = 0
        with _sound(path):
            for batch in table.iter_batches(_BATCH, columns=wanted, use_threads=False):
                cells = {name: batch.column(name).to_pylist() for name in wanted}
                splits = cells[wanted[-1]] if split is None and split_column is not None else [split] * len(batch)
                paths = [None] * len(batch) if embedded else cells[columns[1]]
                for cell, its_split, picture in zip(cells[columns[0]], splits, paths, strict=True):
                    rows.add(f"row {number} of {path.name}", cell, its_split, None if embedded else picture or "")
                    number += 1
    return rows.found(
        source.name, ParquetPictures(root, [path for _, path in by_split], columns[1]) if embedded else None
    )


class ParquetPictures:
    """Pictures embedded in Parquet files, read a row group at a time; the groups last used are kept in memory."""

    def __init__(self, root: Path, paths: list[Path], column: str) -> None:
        self.root = root
        self.paths = paths
        self.column = column
        groups: list[tuple[int, int, int]] = []
        for file, path in enumerate(paths):
            metadata = _open(path).metadata
            for group in range(metadata.num_row_groups):
                described = metadata.row_group(group)
                if described.total_byte_size > _LARGEST_GROUP:
                    raise DataError(
                        f"{path} holds {described.total_byte_size >> 20} MiB in one row group, which has to be read as a "
                        "whole for each of its pictures; write it again with row_group_size=1000"
                    )
                groups.append((file, group, described.num_rows))
        self._groups = groups
        self._ends = np.cumsum([rows for _, _, rows in groups], dtype=np.int64)
        rows_of_file = np.zeros(len(paths), np.int64)
        np.add.at(rows_of_file, [file for file, _, _ in groups], [rows for _, _, rows in groups])
        self._file_starts = (np.cumsum(rows_of_file) - rows_of_file).tolist()
        self._prepare()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, row: int) -> bytes:
        group = int(np.searchsorted(self._ends, row, side="right"))
        try:
            with _sound(self.paths[self._groups[group][0]]):
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
        path = self.paths[file].relative_to(self.root).as_posix()
        return os.fsencode(f"{path}:{row - self._file_starts[file]}")

    def digest(self, rows: np.ndarray | None) -> bytes:
        files = [(str(path.relative_to(self.root)), path.stat().st_size) for path in self.paths]
        rows = np.arange(len(self)) if rows is None else rows
        return hashlib.sha256(repr((files, self._groups)).encode() + rows.astype(np.int64).tobytes()).digest()

    def _group(self, number: int) -> Any:
        with self._lock:
            if number in self._cache:
                self._cache.move_to_end(number)
                return self._cache[number]
            file, group, _ = self._groups[number]
            if file not in self._open_files:
                self._open_files[file] = _open(self.paths[file])
            # Without Arrow's threads, which a forked worker does not have.
            column = self._open_files[file].read_row_group(group, columns=[self.column], use_threads=False).column(0)
            while self._cache and self._cached + column.nbytes > _CACHE_BYTES:
                self._cached -= self._cache.popitem(last=False)[1].nbytes
            self._cache[number] = column
            self._cached += column.nbytes
            return column

    def _prepare(self) -> None:
        self._lock = threading.Lock()
        self._open_files: dict[int, pyarrow.parquet.ParquetFile] = {}
        self._cache: OrderedDict[int, Any] = OrderedDict()
        self._cached = 0

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _OF_THE_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()


_OF_THE_PROCESS = ("_lock", "_open_files", "_cache", "_cached")


def _open(path: Path) -> "pyarrow.parquet.ParquetFile":
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError(f"reading {path} takes pyarrow: pip install 'patchword[data]'") from error
    check_regular(path)
    with _sound(path):
        return pyarrow.parquet.ParquetFile(path)


@contextlib.contextmanager
def _sound(path: Path) -> Iterator[None]:
    """Say of everything that Arrow complains of that `path` is damaged: pages are first looked at when they are read."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, LookupError, TypeError, ArithmeticError) as error:
        raise DataError(
            f"{path} is not a Parquet file that can be read ({' '.join(str(error).split())[:200]})"
        ) from error


def _embedded(path: Path, field: "pyarrow.Field") -> bool:
    """Whether the column of pictures holds the pictures themselves and not their paths."""
    from pyarrow import types

    kind = field.type
    if types.is_struct(kind) and "bytes" in [kind.field(number).name for number in range(kind.num_fields)]:
        return True
    if types.is_binary(kind) or types.is_large_binary(kind):
        return True
    if types.is_string(kind) or types.is_large_string(kind):
        return False
    raise DataError(f"{path} has {kind} in its column {field.name!r}; paths, or the bytes of picture files, are right")


def _class_names(schema: "pyarrow.Schema", column: str, source: Path) -> tuple[str, ...]:
    """What the numbers in the column of labels stand for, by the Hugging Face features in the schema; else nothing."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"][column]
        names = features.get("names") or features["feature"]["names"]
        return tuple(str(name) for name in names)
    except (KeyError, TypeError, ValueError, AttributeError):
        is_cifar10 = re.fullmatch(r"cifar[-_]?10", source.name, re.IGNORECASE)
        return CIFAR10 if is_cifar10 else ()
