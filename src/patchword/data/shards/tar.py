"""Tar archives read by position and written with nothing but names and content: no clock, no owner, nothing extracted.

The formats are POSIX ustar with pax headers (IEEE Std 1003.1, "pax Interchange Format") and GNU's long names.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from patchword.core.errors import DataError

BLOCK = 512

_ZEROS = bytes(BLOCK)
_LONGEST_NAME = 4096
_LARGEST_HEADER = 2**20  # of pax
_LARGEST_END = 2**20  # writers fill the last record, of 10 kB by default
_MOST_AHEAD = 2**18
_REGULAR = frozenset(b"0\0" + b"7")


class Member(NamedTuple):
    """A file of an archive, or what stands in the place of one."""

    name: bytes
    offset: int
    """Of its content, in bytes; the 512 bytes before it are its header."""
    size: int
    regular: bool
    """Whether it is a file, and no link, device or pipe. Folders are not reported."""


def members(read: Callable[[int, int], bytes], size: int, where: str, step: int) -> Iterator[Member]:
    """The members of an archive of `size` bytes, in order, looking at headers only.

    `read(start, length)` gives exactly those bytes; at least `step` are asked for at a time, where the archive has them, and
    more among small members, of which nothing is worth leaving out.
    Raises `DataError`, beginning with `where`, for an archive that is damaged, cut short, or not made by these rules.
    """
    block, block_start, block_end, ahead = b"", 0, 0, step

    def get(start: int, length: int) -> bytes:
        nonlocal block, block_start, block_end, ahead
        if start < block_start or start + length > block_end:
            ahead = max(step, min(2 * ahead, _MOST_AHEAD)) if 0 <= start - block_end <= step else step
            block = read(start, min(max(length, ahead), size - start))
            block_start, block_end = start, start + len(block)
        return block[start - block_start : start - block_start + length]

    at = 0
    long_name: bytes | None = None
    while True:
        if at + BLOCK > size:
            raise DataError(f"{where} is cut short: it has {size:,} bytes and no end mark; copy or write it again")
        header = get(at, BLOCK)
        if header == _ZEROS:
            _check_end(get, at, size, where)
            return
        length = _length(header, at, where)
        kind = header[156]
        content = at + BLOCK
        if content + length > size:
            name = _name(header).decode("utf-8", "backslashreplace")
            raise DataError(
                f"{where} is cut short: {name[:200]} at byte {at:,} is to have {length:,} bytes, and the archive ends "
                f"at byte {size:,}; copy or write it again"
            )
        at = content + -(-length // BLOCK) * BLOCK
        if kind in _REGULAR:
            name = _name(header) if long_name is None else long_name
            long_name = None
            if not name.endswith(b"/"):  # how the oldest archives write folders
                yield Member(name, content, length, True)
        elif kind == ord("L"):
            if length > _LONGEST_NAME:
                raise DataError(f"{where} is damaged: a name of {length:,} bytes at byte {content:,}")
            long_name = get(content, length).rstrip(b"\0")
        elif kind == ord("x"):
            if length > _LARGEST_HEADER:
                raise DataError(f"{where} is damaged: an extended header of {length:,} bytes at byte {content:,}")
            long_name = _pax_name(get(content, length), content, where) or long_name
        elif kind == ord("S"):
            raise DataError(f"{where} holds a sparse file at byte {content:,}; write it again without --sparse")
        elif kind in b"gK":
            pass
        else:
            name = _name(header) if long_name is None else long_name
            long_name = None
            if kind != ord("5"):
                yield Member(name, content, length, False)


def is_header_of(header: bytes, size: int) -> bool:
    """Whether these 512 bytes are the header of a file with `size` bytes of content."""
    try:
        return _length(header, 0, "") == size and header[156] in _REGULAR
    except DataError:
        return False


def header(name: bytes, size: int) -> bytes:
    """What comes before the content of a file: equal for equal names and sizes."""
    split = _split(name)
    if split is not None:
        return _header(*split, size, b"0")
    # A record tells its own length, the digits of it included.
    record = b" path=" + name + b"\n"
    length = len(record) + 1
    while len(record) + len(str(length)) != length:
        length = len(record) + len(str(length))
    record = str(length).encode() + record
    return (
        _header(b"pax/" + name[-90:], b"", len(record), b"x") + padded(record) + _header(name[-100:], b"", size, b"0")
    )


def padded(content: bytes) -> bytes:
    """Filled up to whole blocks."""
    return content + bytes(-len(content) % BLOCK)


END = bytes(2 * BLOCK)
"""What comes after the last file."""


def _header(name: bytes, prefix: bytes, size: int, kind: bytes) -> bytes:
    fields = (
        name.ljust(100, b"\0")
        + b"0000644\0" + b"0000000\0" * 2
        + b"%011o\0" % size
        + b"%011o\0" % 0
        + b" " * 8
        + kind
        + bytes(100)
        + b"ustar\00000"
        + bytes(64)
        + b"0000000\0" * 2
        + prefix.ljust(155, b"\0")
        + bytes(12)
    )  # fmt: skip
    return fields[:148] + b"%06o\0 " % sum(fields) + fields[156:]


def _split(name: bytes) -> tuple[bytes, bytes] | None:
    """`name` as (end, beginning) that fit into a header; None where they cannot."""
    if len(name) <= 100:
        return name, b""
    cut = name.find(b"/", len(name) - 101)
    if 0 < cut <= 155 and cut < len(name) - 1:
        return name[cut + 1 :], name[:cut]
    return None


def _name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    if header[345] and header[257:263] == b"ustar\0":
        return header[345:500].partition(b"\0")[0] + b"/" + name
    return name


def _length(header: bytes, at: int, where: str) -> int:
    """The size that a header tells, once its sum is right."""
    try:
        told = int(header[148:156].partition(b"\0")[0].strip() or b"0", 8)
        right = told == sum(header) - sum(header[148:156]) + 256
        if header[124] & 0x80:  # GNU writes sizes from 8 GiB on in base 256
            length = int.from_bytes(header[124:136], "big") - (1 << 95)
            right = right and header[124] == 0x80
        else:
            length = int(header[124:136].partition(b"\0")[0].strip() or b"0", 8)
        right = right and length >= 0
    except ValueError:
        right, length = False, 0
    if not right:
        raise DataError(f"{where} is damaged, or no tar archive: no header at byte {at:,}; copy or write it again")
    return length


def _pax_name(records: bytes, at: int, where: str) -> bytes | None:
    """The path among the records of an extended header."""
    path = None
    while records:
        told, _, _ = records.partition(b" ")
        length = int(told) if told.isdigit() and len(told) < 8 else 0
        key, equals, value = records[len(told) + 1 : length].partition(b"=")
        if not 0 < length <= len(records) or not equals or not value.endswith(b"\n"):
            raise DataError(f"{where} is damaged: an extended header at byte {at:,} that cannot be read")
        if key == b"path":
            path = value[:-1]
        elif key == b"size" or key.startswith(b"GNU.sparse."):
            raise DataError(
                f"{where} tells sizes in an extended header at byte {at:,}, as for files of 8 GiB and more or with gaps; "
                "pictures written by an ordinary tar are right"
            )
        records = records[length:]
    if path is not None and len(path) > _LONGEST_NAME:
        raise DataError(f"{where} is damaged: a name of {len(path):,} bytes at byte {at:,}")
    return path


def _check_end(get: Callable[[int, int], bytes], at: int, size: int, where: str) -> None:
    """After the end mark there may be zeros only, up to the end of a record: else samples would be missed in silence."""
    if size - at > _LARGEST_END or any(get(at, size - at)):
        raise DataError(
            f"{where} goes on after its end mark at byte {at:,}: archives joined end to end are not read as one; "
            "keep them as several shards"
        )
