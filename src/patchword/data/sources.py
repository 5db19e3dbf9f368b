"""A path, an address or a name → an opened data set: folders, a table, shards, Parquet files, a named public set, formulas."""

import os
from pathlib import Path

from patchword.core import files
from patchword.core.errors import DataError
from patchword.data.assemble import Found, assemble
from patchword.data.dataset import Dataset, Notice, Split
from patchword.data.formats import named
from patchword.data.formats.folder import find_folders
from patchword.data.formats.parquet import find_parquet, find_parquet_address, find_parquets
from patchword.data.formats.published import find_published
from patchword.data.formats.table import find_table
from patchword.data.formula import find_formula, is_formula
from patchword.data.shards.find import find_address, find_tar, find_tars
from patchword.data.shards.places import is_address
from patchword.data.vtab import is_vtab, open_vtab

__all__ = ["Dataset", "Notice", "Split", "open_data"]


def open_data(
    data: str | os.PathLike[str], *, classes: tuple[str, ...] | None = None, labelled: bool = True
) -> Dataset:
    """Open a data set without reading any picture.

    `data` is a folder of class folders (with or without train, validation and test above them), a CSV, TSV or Parquet
    table, a folder of tar shards or of Parquet files, here or at an address that fsspec opens (`s3://bucket/folder`,
    `https://host/folder`, …), or a name: looked for under `$PATCHWORD_DATA`, then in the system's data folders, then in
    the cache, then downloaded. A path that exists wins over a name. `formula:fractals-1000x100` and the like are drawn
    (`data/formula.py` has the grammar); `vtab:cifar100` and the like are tasks in VTAB's form (`data/vtab.py`). `classes`
    applies the class list of a model instead of deciding one on train: labels become positions in it, and a class outside
    it is an error. Where labels do not count (`labelled=False`), one class will do, and a folder of pictures without any.

    Raises `DataError` in one sentence: what is wrong, where, what would be right; `FaultError` for an address that does
    not answer.
    """
    if is_formula(data):
        return assemble(find_formula(os.fspath(data)), classes, labelled=labelled)
    if is_vtab(data):
        return open_vtab(os.fspath(data), classes)
    path = files.at_home(data)
    if path.exists() or path.is_symlink():
        return assemble(_find(Path(os.path.abspath(path)), loose=not labelled), classes, labelled=labelled)
    if is_address(data):
        return assemble(_find_address(os.fspath(data)), classes, labelled=labelled)
    return assemble(named.find(os.fspath(data), _find), classes, labelled=labelled)


def _find(path: Path, *, loose: bool = False) -> Found:
    if path.is_dir():
        return find_published(path) or find_parquets(path) or find_tars(path) or find_folders(path, loose=loose)
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return find_table(path)
    if suffix == ".parquet":
        return find_parquet(path)
    if suffix == ".tar":
        return find_tar(path)
    if not path.exists():
        raise DataError(f"{path} is a broken symbolic link")
    raise DataError(f"{path} is neither a folder nor a table (.csv, .tsv or .parquet) nor a shard (.tar)")


def _find_address(address: str) -> Found:
    found = find_parquet_address(address) if address.endswith(".parquet") else find_address(address)
    found = found or find_parquet_address(address)
    if found is None:
        raise DataError(f"{address} has neither tar shards nor Parquet files; addresses are opened for these alone")
    return found
