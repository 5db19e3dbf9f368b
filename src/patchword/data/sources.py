"""A path or a name → an opened data set: class folders, a table, a folder of Parquet files, or a named public set."""

import os
from pathlib import Path

from patchword.core.errors import DataError
from patchword.data import named
from patchword.data.assemble import Found, assemble
from patchword.data.dataset import Dataset, Notice, Split
from patchword.data.folder import find_folders
from patchword.data.parquet import find_parquet, find_shards
from patchword.data.published import find_published
from patchword.data.table import find_table

__all__ = ["Dataset", "Notice", "Split", "open_data"]


def open_data(data: str | os.PathLike[str], *, classes: tuple[str, ...] | None = None) -> Dataset:
    """Open a data set without reading any picture.

    `data` is a folder of class folders (with or without train, validation and test above them), a CSV, TSV or Parquet
    table, a folder of Parquet files, or a name: looked for under `$PATCHWORD_DATA`, then in the system's data folders,
    then in the cache, then downloaded. A path that exists wins over a name. `classes` applies the class list of a model
    instead of deciding one on train: labels become positions in it, and a class outside it is an error.

    Raises `DataError` in one sentence: what is wrong, where, what would be right.
    """
    path = Path(data).expanduser()
    if path.exists() or path.is_symlink():
        return assemble(_find(Path(os.path.abspath(path))), classes)
    return assemble(named.find(os.fspath(data), _find), classes)


def _find(path: Path) -> Found:
    if path.is_dir():
        return find_published(path) or find_shards(path) or find_folders(path)
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return find_table(path)
    if suffix == ".parquet":
        return find_parquet(path)
    if not path.exists():
        raise DataError(f"{path} is a broken symbolic link")
    raise DataError(f"{path} is neither a folder nor a table (.csv, .tsv or .parquet)")
