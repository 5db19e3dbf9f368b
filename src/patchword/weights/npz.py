"""NumPy's `.npz`, read from strangers and written for them: no pickle, no bomb, every byte checked by its CRC."""

import io
import lzma
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from patchword.core import files
from patchword.core.errors import DataError, brief

_MOST_RATIO = 1100
"""Deflate cannot pack better than 1:1032; what claims more is no honest archive."""
_ANY_SIZE, _USUAL_RATIO = 2**26, 100
"""Bytes that any archive may unpack to, and how many times its own size beyond that: weights hardly shrink at all."""


def read(path: Path) -> dict[str, Tensor]:
    """Every array of the archive as a tensor; bfloat16, which NumPy keeps as voids of two bytes, as what it is.

    Raises `DataError` for anything that is not a whole archive of plain arrays.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _refuse_bombs(entries, path)
            _refuse_losses(archive, path)
            return {entry.filename.removesuffix(".npy"): _array(archive, entry, path) for entry in entries}
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        OSError,
        EOFError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise DataError(f"{path} is not a whole .npz archive ({brief(error)})") from error


def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as `numpy.savez` does, in the order of their names and without dates: equal values are equal bytes."""
    with files.new_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(tensors):
            array = tensors[name].detach().cpu().float().numpy()
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)


def _refuse_bombs(entries: list[zipfile.ZipInfo], path: Path) -> None:
    names = [entry.filename for entry in entries]
    if len(set(names)) != len(names):
        raise DataError(f"{path} holds the same name twice")
    packed = path.stat().st_size
    for entry in entries:
        if not entry.filename.endswith(".npy"):
            raise DataError(f"{path} holds {entry.filename!r}, which is no array; it is not a .npz of weights")
        if entry.file_size > _MOST_RATIO * max(1, entry.compress_size) or entry.compress_size > packed:
            raise DataError(
                f"{path}: {entry.filename} claims {entry.file_size:,} bytes from {entry.compress_size:,}: a bomb"
            )
    total, limit = sum(entry.file_size for entry in entries), _ANY_SIZE + _USUAL_RATIO * packed
    if total > limit:
        raise DataError(f"{path} would unpack {packed:,} bytes to {total:,}, which no weights do: a bomb")


def _refuse_losses(archive: zipfile.ZipFile, path: Path) -> None:
    """`zipfile` does not look at the number of entries at the archive's end; damage before can hide the last of them."""
    with path.open("rb") as file:
        file.seek(-22 - len(archive.comment), io.SEEK_END)
        promised = int.from_bytes(file.read(12)[10:], "little")
    if promised != min(found := len(archive.infolist()), 0xFFFF):
        raise DataError(f"{path} lists {found} arrays where it promises {promised}: its directory is damaged")


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> Tensor:
    try:
        with archive.open(entry) as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
            if file.read(1):
                raise ValueError("there is more behind the array")
    except zipfile.BadZipFile:
        raise
    # NumPy reads the header as Python's literals, and says of some damage what Python's parsers say.
    except (ValueError, EOFError, MemoryError, TypeError, SyntaxError, tokenize.TokenError) as error:
        raise DataError(f"{path}: {entry.filename} is not an array of plain numbers ({brief(error)})") from error
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16).float()
    if array.dtype.kind not in "fiu" or array.dtype.itemsize > 8:
        raise DataError(f"{path}: {entry.filename} holds {array.dtype}, not numbers")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(np.require(array, requirements=("C", "W")))
