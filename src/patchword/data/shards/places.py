"""Where shards lie: a folder of this machine, or an address that fsspec opens. Exact ranges of bytes are read from either."""

import io
import os
import re
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from patchword.core.errors import DataError, FaultError, UsageError
from patchword.data.splits import SPLIT_NAMES

TRIES = 5
FIRST_WAIT = 0.5
"""Seconds before the second try; each further wait is twice as long."""

_OPEN_FILES = 32
_DEEPEST = 3  # data/train/0000.parquet
_PIECE = 2**23
_STAMPS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "created", "updated", "sha256", "blob_id")

Result = TypeVar("Result")


@dataclass(frozen=True)
class Entry:
    """A file of a place."""

    name: str
    """Its path below the place, with `/`."""
    size: int
    stamp: str
    """Another one when the file has been written again, as far as the place tells; else empty."""


class Place(Protocol):
    """A folder of files that do not change."""

    location: str
    """As people write it."""
    name: str
    remote: bool

    def entries(self, ending: str) -> list[Entry]:
        """The files with this ending, in the order of their names; locally at the top and in folders named as splits."""
        ...

    def read(self, name: str, start: int, length: int) -> bytes:
        """Exactly those bytes; raises `DataError` where they are not there, `FaultError` where the place does not answer."""
        ...

    def entry(self, name: str) -> Entry | None:
        """One file; None where there is no such file."""
        ...


def is_address(data: str | os.PathLike[str]) -> bool:
    """Whether `data` is no path but an address such as `s3://bucket/folder`."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*(::|://)", os.fspath(data)) is not None


def safe_name(name: Any) -> bool:
    """Whether `name`, found in a file, stays below its place."""
    if not isinstance(name, str) or not 0 < len(name) < 1024 or "\0" in name or "\\" in name or "://" in name:
        return False
    return all(part not in ("", ".", "..") for part in name.split("/"))


def whole(place: Place, name: str, limit: int) -> bytes | None:
    """A small file; None where there is none. More than `limit` bytes are an error."""
    entry = place.entry(name)
    if entry is None:
        return None
    if entry.size > limit:
        raise DataError(f"{place.location}/{name} has {entry.size:,} bytes; at most {limit:,} are right")
    return place.read(name, 0, entry.size)


class Folder:
    """A folder of this machine. Files are opened when they are first read, and few are kept open."""

    remote = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.location = str(path)
        self.name = path.name
        self._prepare()

    def entries(self, ending: str) -> list[Entry]:
        found = []
        try:
            top = sorted(os.listdir(self.path))
            names = [name for name in top if name.endswith(ending)]
            for folder in top:
                if folder.lower() in SPLIT_NAMES and (self.path / folder).is_dir():
                    inside = sorted(os.listdir(self.path / folder))
                    names += [f"{folder}/{name}" for name in inside if name.endswith(ending)]
            for name in names:
                entry = None if os.path.basename(name).startswith(".") else self.entry(name)
                if entry is not None:
                    found.append(entry)
        except OSError as error:
            raise DataError(f"{error.filename or self.path} cannot be read: {error.strerror}") from error
        return found

    def entry(self, name: str) -> Entry | None:
        try:
            status = os.stat(self.path / name)
        except OSError:
            return None
        return Entry(name, status.st_size, str(status.st_mtime_ns)) if stat.S_ISREG(status.st_mode) else None

    def read(self, name: str, start: int, length: int) -> bytes:
        try:
            content = os.pread(self._handle(name).number, length, start)
            while 0 < len(content) < length:
                more = os.pread(self._handle(name).number, length - len(content), start + len(content))
                if not more:
                    break
                content += more
        except OSError as error:
            raise DataError(f"{self.path / name} cannot be read: {error.strerror}") from error
        if len(content) < length:
            raise DataError(
                f"{self.path / name} ends before byte {start + length:,}, up to which it was to be read; copy it again"
            )
        return content

    def _handle(self, name: str) -> "_Handle":
        with self._lock:
            handle = self._handles.get(name)
            if handle is None:
                handle = self._handles[name] = _Handle(self.path / name)
                if len(self._handles) > _OPEN_FILES:
                    self._handles.popitem(last=False)
            else:
                self._handles.move_to_end(name)
            return handle

    def _prepare(self) -> None:
        self._lock = threading.Lock()
        self._handles: OrderedDict[str, _Handle] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        return Folder, (self.path,)


class _Handle:
    """An open file that closes itself when the last thread that reads it has let go."""

    def __init__(self, path: Path) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


class Remote:
    """An address that fsspec opens, such as `s3://bucket/folder`, `https://host/folder` or `hf://datasets/org/name`.

    A read that fails, or that brings another number of bytes than asked for, is tried again a few times.
    """

    remote = True

    def __init__(self, address: str) -> None:
        self.location = address.rstrip("/")
        self.name = re.split(r"[/:]+", self.location)[-1]
        self._lock = threading.Lock()
        self._owner = -1
        self._root = ""
        self._system: Any = None

    def entries(self, ending: str) -> list[Entry]:
        listed = self._ask(self.location, lambda system: system.find(self._root, maxdepth=_DEEPEST, detail=True))
        root = self._root.rstrip("/") + "/"
        found = []
        for path, told in (listed or {}).items():
            name = path.removeprefix(root)
            if path.startswith(root) and name.endswith(ending) and safe_name(name):
                # A web server's list of files has no sizes.
                entry = Entry(name, told["size"], _stamp(told)) if told.get("size") is not None else self.entry(name)
                if entry is not None:
                    found.append(entry)
        return sorted(found, key=lambda entry: entry.name)

    def entry(self, name: str) -> Entry | None:
        where = f"{self.location}/{name}"
        told = self._ask(where, lambda system: system.info(self._path(name)))
        if told is None or told.get("type") == "directory":
            return None
        if not isinstance(told.get("size"), int):
            raise DataError(f"{where}: the place does not tell its size, so that no part of it can be read")
        return Entry(name, told["size"], _stamp(told))

    def read(self, name: str, start: int, length: int) -> bytes:
        if length == 0:
            return b""

        def ranged(system: Any) -> bytes:
            content = system.cat_file(self._path(name), start=start, end=start + length)
            if len(content) != length:
                whole = "; the place must serve parts of files" if len(content) > length else ""
                raise OSError(f"{len(content):,} bytes arrived where {length:,} were asked for{whole}")
            return content

        content = self._ask(f"{self.location}/{name}", ranged)
        if content is None:
            raise DataError(f"{self.location}/{name} does not exist")
        return content

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _ask(self, where: str, question: Callable[[Any], Result]) -> Result | None:
        """The answer; None for what does not exist."""
        reason = ""
        for attempt in range(TRIES):
            if attempt:
                time.sleep(FIRST_WAIT * 2 ** (attempt - 1))
            try:
                return question(self._opened())
            except FileNotFoundError as error:
                if not _no_answer(error.__cause__):
                    return None
                reason = _short(error.__cause__ or error)
            except PermissionError as error:
                raise DataError(
                    f"{where} may not be read ({_short(error)}); its credentials belong into the environment"
                ) from error
            except UsageError:
                raise
            except Exception as error:  # each of the systems behind fsspec has errors of its own
                reason = _short(error)
        raise FaultError(
            f"{where} cannot be read ({reason}; tried {TRIES} times); the same command goes on once it answers again"
        )

    def _opened(self) -> Any:
        """The file system, one for each process: a connection cannot be shared across a fork."""
        with self._lock:
            if self._owner != os.getpid():
                try:
                    import fsspec
                    import fsspec.core
                except ImportError as error:
                    raise UsageError(f"reading {self.location} takes fsspec: pip install 'patchword[data]'") from error
                try:
                    self._system, self._root = fsspec.core.url_to_fs(self.location, skip_instance_cache=True)
                except (ImportError, ValueError) as error:
                    raise UsageError(f"{self.location} cannot be opened: {_short(error)}") from error
                self._owner = os.getpid()
            return self._system

    def __reduce__(self) -> tuple[Any, ...]:
        return Remote, (self.location,)


class Ranged(io.RawIOBase):
    """A file of a place as Python's file objects are, for libraries that want one; every read is a whole one."""

    def __init__(self, place: Place, name: str) -> None:
        super().__init__()
        entry = place.entry(name)
        if entry is None:
            raise DataError(f"{place.location}/{name} does not exist")
        self._place, self._name, self._size, self._at = place, name, entry.size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._size - self._at)
        length = left if size is None or size < 0 else min(size, left)
        content = self._place.read(self._name, self._at, length)
        self._at += length
        return content

    def readinto(self, buffer: Any, /) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


def copy(place: Place, name: str, size: int, write: Callable[[bytes], Any]) -> None:
    """The first `size` bytes of a file, in pieces."""
    for start in range(0, size, _PIECE):
        write(place.read(name, start, min(_PIECE, size - start)))


def _stamp(told: dict[str, Any]) -> str:
    return next((str(told[key]) for key in _STAMPS if told.get(key)), "")


def _no_answer(cause: BaseException | None) -> bool:
    """Whether "file not found" only stands for a web server that did not answer: fsspec calls both by this name."""
    if type(cause).__module__.partition(".")[0] == "aiohttp":
        return getattr(cause, "status", None) not in (404, 410)
    return isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)


def _short(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
