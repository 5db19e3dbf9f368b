"""A CSV or TSV table of pictures → what `assemble` needs; and the rows that it shares with Parquet."""

import csv
import itertools
import math
import os
import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from patchword.core.errors import DataError, nearest
from patchword.core.files import check_regular
from patchword.data.assemble import Found, Part
from patchword.data.dataset import Files, Items, Names, Notice
from patchword.data.splits import SPLIT_NAMES

IMAGE_COLUMNS = ("image", "img", "path", "file", "filename", "file_name")
LABEL_COLUMNS = ("label", "labels", "class", "category", "target", "fine_label")

_SEPARATORS = re.compile(r"\s*[|;]\s*")
_LOOKED_AT = 10_000  # so many paths are looked for on opening; a network file system answers that in seconds


def find_table(path: Path) -> Found:
    """The pictures of a table with a header line; their paths are relative to the table's folder."""
    lines = _lines(path)
    _, header = next(lines, (0, None))
    if header is None:
        raise DataError(f"{path} is empty; a first line with the names of the columns is right")
    image, label, split = find_columns(path, header)
    rows = Rows(path, path.parent)
    for number, cells in lines:
        where = f"line {number}"
        if len(cells) != len(header):
            raise DataError(f"{path} {where} has {len(cells)} cells; its first line has {len(header)} columns")
        rows.add(where, cells[label], None if split is None else cells[split], path=cells[image])
    return rows.found(path.stem)


def find_columns(path: Path | str, header: Sequence[str]) -> tuple[int, int, int | None]:
    """The positions of the columns of pictures, labels and (None where there is none) splits."""
    known = [name.strip().lower() for name in header]
    found = []
    for what, names in (("pictures", IMAGE_COLUMNS), ("labels", LABEL_COLUMNS)):
        position = next((known.index(name) for name in names if name in known), None)
        if position is None:
            raise DataError(
                f"{path} has no column of {what} (called {', '.join(names[:-1])} or {names[-1]}); "
                f"its columns are {', '.join(header)}"
            )
        found.append(position)
    return found[0], found[1], known.index("split") if "split" in known else None


class Rows:
    """The rows of a table as they are read, held as numbers: which cell of labels, which split, which path or row."""

    def __init__(self, source: Path | str, root: Path, class_names: Sequence[str] = ()) -> None:
        """`source` is named in errors, paths are relative to `root`; `class_names` are what whole numbers in the cells of
        labels stand for, where the table says so.
        """
        self.source = source
        self.root = root
        self.class_names = list(class_names)
        self._cells: dict[Any, int] = {}
        self._parts: dict[str, _RowsOfSplit] = {}
        self._count = 0
        self._unlabelled_at: str | None = None

    def add(self, where: str, cell: Any, split: str | None, path: str | None = None) -> None:
        """One row: its cell of labels (text, a number or a list of these), its split (None: the table has none) and the
        path of its picture (None: the picture is in the row itself). `where` names the row in errors."""
        if isinstance(cell, str):
            cell = cell.strip()
        elif isinstance(cell, list):
            cell = tuple(cell)
        if cell is None or cell in ("", -1) or (isinstance(cell, float) and math.isnan(cell)) or not _labels_in(cell):
            cell = ""
            self._unlabelled_at = self._unlabelled_at or where
        part = self._part(where, split)
        part.cells.append(self._cells.setdefault(cell, len(self._cells)))
        part.rows.append(self._count)
        self._count += 1
        if path is not None:
            part.add_path(self._inside(where, path.strip()))

    def found(self, name: str, embedded: Items | None = None) -> Found:
        """Everything read, with its labels resolved; `embedded` are the pictures of a table that holds them itself."""
        names, labels = self._labels()
        several = any(isinstance(cell, tuple) for cell in self._cells) or any(len(codes) > 1 for codes in labels)
        notices: list[Notice] = []
        parts: dict[str, Part] = {}
        for split, part in self._parts.items():
            cells = np.frombuffer(part.cells, np.int64)
            unlabelled = cells == self._cells.get("", -1)
            if unlabelled.all() and not several:
                notices.append(
                    Notice("unlabelled", split, f"{split}: none of its {len(cells)} rows has a label; it is left out")
                )
                continue
            if unlabelled.any() and not several:
                raise DataError(f"{self.source} {self._unlabelled_at} has no label; give it one or remove the row")
            items, rows = (
                (Files(self.root, part.names()), None) if embedded is None else (embedded, np.array(part.rows))
            )
            if isinstance(items, Files):
                self._refuse_missing(items)
            codes = np.fromiter(itertools.chain.from_iterable(labels[cell] for cell in cells), np.int64)
            owners = np.repeat(np.arange(len(cells)), [len(labels[cell]) for cell in cells]) if several else None
            parts[split] = Part(items, codes, owners, rows)
        return Found(name, self.source, names, parts, ordered=bool(self.class_names), notices=notices)

    def _part(self, where: str, split: str | None) -> "_RowsOfSplit":
        split = "train" if split is None else split
        if split not in self._parts:
            known = SPLIT_NAMES.get(str(split).strip().lower())
            if known is None:
                raise DataError(
                    f"{self.source} {where} has the split {split!r}; {nearest(str(split), ('train', 'validation', 'test'))}"
                )
            # Two spellings of one split share their rows.
            self._parts[split] = self._parts.setdefault(known, _RowsOfSplit())
        return self._parts[split]

    def _labels(self) -> tuple[list[str], list[list[int]]]:
        """Label names by code, and the codes of each distinct cell."""
        names = list(self.class_names)
        codes = {name: code for code, name in enumerate(names)}
        labels: list[list[int]] = []
        for cell in self._cells:
            single = cell if isinstance(cell, tuple) else _SEPARATORS.split(cell) if isinstance(cell, str) else (cell,)
            found: list[int] = []
            for value in single:
                if value is None or value == "":
                    continue
                label = self._label(value)
                if label not in codes:
                    if self.class_names:
                        raise DataError(
                            f"{self.source} has the label {label!r}, which is not among its {len(self.class_names)} classes; "
                            f"{nearest(label, self.class_names)}"
                        )
                    codes[label] = len(names)
                    names.append(label)
                found.append(codes[label])
            labels.append(found)
        return names, labels

    def _label(self, value: Any) -> str:
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # what pandas makes of whole numbers in a column with gaps
        if isinstance(value, int) and 0 <= value < len(self.class_names):
            return self.class_names[value]
        return str(value)

    def _inside(self, where: str, path: str) -> bytes:
        """`path` relative to the table's folder; it may not lead out of it."""
        if not path or "\0" in path:
            raise DataError(f"{self.source} {where} has no path of a picture")
        given = path
        if os.path.isabs(path):
            path = os.path.relpath(path, self.root.absolute())
        if ".." in path and os.path.normpath(path).split(os.sep)[0] == "..":
            raise DataError(
                f"{self.source} {where}: the path {given!r} leads out of the table's folder; "
                f"paths below {self.root} are right"
            )
        return os.fsencode(path)

    def _refuse_missing(self, files: Files) -> None:
        looked_at = np.unique(np.linspace(0, len(files) - 1, min(len(files), _LOOKED_AT)).astype(np.int64))
        missing = looked_at[files.sizes(looked_at) < 0]
        if len(missing):
            first = os.fsdecode(files.names[int(missing[0])])
            share = f"{len(missing)} of the {len(looked_at)} paths looked for are not there"
            raise DataError(
                f"{self.source} names {first!r}, which does not exist in {self.root} ({share}); "
                "paths relative to the table's folder are right"
            )


def _labels_in(cell: Any) -> bool:
    """Whether a cell of text has more than separators."""
    return not isinstance(cell, str) or bool(cell.strip("|; \t"))


class _RowsOfSplit:
    def __init__(self) -> None:
        self.cells = array("q")
        self.rows = array("q")
        self._names = Names()
        self._recent: list[bytes] = []

    def add_path(self, path: bytes) -> None:
        self._recent.append(path)
        if len(self._recent) == 65_536:
            self.names()

    def names(self) -> Names:
        self._names.extend(self._recent)
        self._recent.clear()
        return self._names


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The lines that are not blank, each with its number, cells stripped of nothing; the separator is seen in the first."""
    check_regular(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=max("\t,;", key=first.count), strict=True)
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{path} is not a table of separated values ({error})") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
