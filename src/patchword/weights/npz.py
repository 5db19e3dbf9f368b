"""NumPy's `.npz`, read from strangers and written for them: no pickle, no bomb, every byte checked by its CRC."""

import io
import lzma
import math
import re
import struct
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
# What `numpy.save` writes. NumPy reads it by Python's parser, which warns, recurses and takes its time over what others write.
_HEADER = re.compile(
    rb"\{'descr': '(?P<descr>[<>|]?[A-Za-z]\d*)', 'fortran_order': (?P<fortran>True|False), "
    rb"'shape': \((?P<shape>(?:\d{1,18}L?, ?)*(?:\d{1,18}L?)?)\),? ?\} *\n"
)
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
        ValueError,
        LookupError,
        struct.error,
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
            array = _parse(file.read())
    except (ValueError, EOFError, MemoryError, TypeError) as error:
        raise DataError(f"{path}: {entry.filename} is not an array of plain numbers ({brief(error)})") from error
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16).float()
    if array.dtype.kind not in "fiu" or array.dtype.itemsize > 8:
        raise DataError(f"{path}: {entry.filename} holds {array.dtype.str}, not numbers")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(np.require(array, requirements=("C", "W")))


def _parse(content: bytes) -> np.ndarray:
    """The array that `numpy.save` has written; raises `ValueError` for anything else."""
    if content[:6] != b"\x93NUMPY" or content[6:8] not in (b"\1\0", b"\2\0", b"\3\0"):
        raise ValueError("it does not begin as one")
    width = 2 if content[6] == 1 else 4
    start = 8 + width + int.from_bytes(content[8 : 8 + width], "little")
    header = content[8 + width : start]
    match = _HEADER.fullmatch(header)
    if match is None:
        raise ValueError(f"its header is {header[:80]!r}")
    dtype = np.dtype(match["descr"].decode())
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded: they are pickles")
    shape = tuple(int(side.rstrip(b"L")) for side in match["shape"].replace(b" ", b"").split(b",") if side)
    there, needed = len(content) - start, math.prod(shape) * dtype.itemsize
    if there != needed:
        raise ValueError(
            f"its shape takes {needed:,} bytes, and there is more behind the array"
            if there > needed
            else f"its shape takes {needed:,} bytes of which {max(0, there):,} are there"
        )
    if not dtype.itemsize or len(shape) > 32:
        raise ValueError(f"it has {len(shape)} axes of {dtype.itemsize} bytes")
    return np.frombuffer(content, dtype, offset=start).reshape(shape, order="F" if match["fortran"] == b"True" else "C")
