"""Matlab's level-5 files: arrays of numbers, of text and of tables of them, as data sets are published. Nothing else is read.

The format is Matlab's "MAT-File Format" (MathWorks, level 5): elements of a type, a length and bytes; an array is an element of
elements. SciPy's reader is native code, which damaged files crash.
"""

import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from patchword.core.errors import DataError
from patchword.core.files import check_regular

_HEADER = 128
_NUMBERS = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
    16: "u1",
    17: "u2",
}
_ARRAY, _PACKED = 14, 15
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_CELLS, _TABLES, _TEXT = 1, 2, 4
_COMPLEX = 0x0800
_MOST_BYTES = 2**31
"""What a variable may unpack to: the largest published one, SVHN's extra pictures, has 1.6 GB."""
_DEEPEST = 4


def read(path: Path) -> dict[str, Any]:
    """The variables by name: numbers as an array, text as a string, a table as an object array of dictionaries by field.

    Raises `DataError` where the file is anything else, or not whole.
    """
    check_regular(path)
    try:
        content = path.read_bytes()
        if len(content) < _HEADER or content[126:128] not in (b"IM", b"MI"):
            raise ValueError("it does not begin as a level-5 file")
        order = "<" if content[126:128] == b"IM" else ">"
        return dict(_variables(memoryview(content)[_HEADER:], order))
    except (OSError, ValueError, LookupError, zlib.error) as error:
        raise DataError(f"{path} is not a Matlab file that can be read ({error})") from error


def _variables(content: memoryview, order: str) -> Iterator[tuple[str, Any]]:
    for kind, body in _elements(content, order):
        if kind == _PACKED:
            unpacker = zlib.decompressobj()
            unpacked = unpacker.decompress(body, _MOST_BYTES)
            if not unpacker.eof:
                raise ValueError("a variable is cut off, or unpacks to more than any data set has")
            kind, body = next(_elements(memoryview(unpacked), order))
        if kind == _ARRAY and len(body):
            yield _array(body, order, 0)


def _elements(content: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """The parts of an element, each with its type."""
    byte_order, at = "little" if order == "<" else "big", 0
    while at < len(content):
        first = int.from_bytes(content[at : at + 4], byte_order)
        if first >> 16:  # a small one has its length beside its type, and four bytes
            kind, size, start, step = first & 0xFFFF, first >> 16, at + 4, 8
            if size > 4:
                raise ValueError("a small element has more than four bytes")
        else:
            kind, size, start = first, int.from_bytes(content[at + 4 : at + 8], byte_order), at + 8
            step = 8 + size if kind == _PACKED else 8 + (size + 7) // 8 * 8
        if start + size > len(content):
            raise ValueError(f"an element of {size:,} bytes is cut off")
        yield kind, content[start : start + size]
        at += step


def _array(content: memoryview, order: str, depth: int) -> tuple[str, Any]:
    if depth > _DEEPEST:
        raise ValueError("its tables are nested too deep")
    parts = _elements(content, order)

    def numbers() -> np.ndarray:
        kind, body = next(parts, (0, memoryview(b"")))
        if kind not in _NUMBERS:
            raise ValueError(f"there is no array of numbers of type {kind}")
        return np.frombuffer(body, order + _NUMBERS[kind])

    def more() -> Any:
        kind, body = next(parts, (0, memoryview(b"")))
        if kind != _ARRAY:
            raise ValueError("a table is cut off")
        return _array(body, order, depth + 1)[1] if len(body) else np.zeros((0, 0))

    flags, shape, name = int(numbers()[0]), [int(side) for side in numbers()], bytes(numbers()).decode("ascii")
    kind, count = flags & 0xFF, math.prod(shape)
    if not shape or min(shape) < 0 or count > len(content):
        raise ValueError(f"{name} cannot have the shape {shape}")
    if kind in _CLASSES and not flags & _COMPLEX:
        values = numbers()
        if len(values) != count:
            raise ValueError(f"{name} has {len(values):,} values for the shape {shape}")
        return name, values.astype(_CLASSES[kind], copy=False).reshape(shape, order="F")
    if kind == _TEXT and count in (0, shape[-1]):  # one row of it
        return name, "".join(map(chr, numbers().tolist()))
    if kind == _CELLS:
        cells = np.empty(count, object)
        cells[:] = [more() for _ in range(count)]
        return name, cells.reshape(shape, order="F")
    if kind == _TABLES:
        length, names = int(numbers()[0]), bytes(numbers())
        if length < 1 or len(names) > len(content):
            raise ValueError(f"{name} is a table without fields")
        fields = [names[at : at + length].partition(b"\0")[0].decode("ascii") for at in range(0, len(names), length)]
        rows = np.empty(count, object)
        rows[:] = [{field: more() for field in fields} for _ in range(count)]
        return name, rows.reshape(shape, order="F")
    raise ValueError(f"{name} is of Matlab's class {kind}; numbers, text and tables are read")
