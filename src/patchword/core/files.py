"""Files that are whole or absent: atomic writes, atomic folders, hashes."""

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from patchword.core.errors import DataError, FaultError, UsageError

MARK = ".patchword-"
"""Stands in the names of what is written aside, between a dot, the name, and eight signs of `tempfile`'s choice."""
_ASIDE = r"\.(?P<name>{})(?P<old>\.old)?" + re.escape(MARK) + "[a-z0-9_]{{8}}"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
# The fault is the disk's or the place's, and what was there before must stay: what would be right instead.
_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room there or choose another place"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "choose a place that can be written"),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.EEXIST), "choose a folder that can be made"),
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    **dict.fromkeys((errno.EIO, errno.ESTALE), "look after the disk or choose another place"),
    errno.EISDIR: "the path of a file would be right",
}
_OF_FOLDERS = {errno.ENOENT, errno.EEXIST}
"""These may as well be of a file that was to be read."""


@contextmanager
def disk_faults(target: Path) -> Iterator[None]:
    """Turn the disk's refusals to write `target` into one sentence."""
    try:
        yield
    except OSError as error:
        place = Path(str(error.filename))
        ours = place in (target, *target.parents) or place.name.startswith(f".{target.name}{MARK}")
        if error.errno in _ADVICE and (ours or error.errno not in _OF_FOLDERS):
            raise FaultError(f"cannot write {target}: {os.strerror(error.errno)}; {_ADVICE[error.errno]}") from error
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a crash or a full disk leaves the old file or the new one, never a part."""
    with new_file(path) as file:
        file.write(content)


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Fill a file aside, then publish it under `path` by one rename; on any failure only the file aside is removed."""
    with disk_faults(path):
        _make_directories(path.parent)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}{MARK}")
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            make_readable(name)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def write_text(path: Path, content: str) -> None:
    """Write `content` as UTF-8, whole or not at all."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write `content` as readable JSON, whole or not at all; NaN is an error, for JSON has none."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file; a sentence names the file where it is damaged."""
    check_regular(path)
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        if _SURROGATE.search(text):  # half a character: whatever writes or prints it later would fail
            json.dumps(content, ensure_ascii=False).encode()
        return content
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON ({error})") from error


def at_home(path: str | os.PathLike[str]) -> Path:
    """The path with a leading `~` or `~user` as that home; raises `UsageError` for nobody's."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{os.fspath(path)} begins with the home of nobody on this machine") from error


def cache(room: str) -> Path:
    """Where what can be had again is kept: `$XDG_CACHE_HOME/patchword/ROOM`, by default in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "patchword" / room


def check_regular(path: Path) -> None:
    """Raise `DataError` where `path` is a folder, a pipe or a device, which may never end; one that is not there passes."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return
    if not stat.S_ISREG(mode):
        raise DataError(
            f"{path} is {'a folder' if stat.S_ISDIR(mode) else 'a pipe or a device'}; a file would be right"
        )


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Fill a folder aside, then publish it under `path` by one rename; on any failure only the folder aside is removed.

    A folder already at `path` is replaced once the new one is complete.
    """
    with disk_faults(path):
        _make_directories(path.parent)
        aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}{MARK}"))
        try:
            os.chmod(aside, 0o777 & ~_umask())
            yield aside
            for file in sorted(aside.rglob("*")):
                if file.is_file():
                    sync_file(file)
            sync_directory(aside)
            if path.exists():
                old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old{MARK}"))
                os.replace(path, old / path.name)
                os.replace(aside, path)
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.replace(aside, path)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        sync_directory(path.parent)


def remove_directory(path: Path) -> None:
    """Remove a folder so that a crash leaves it whole or, under another name, for `remove_leftovers`: never a part of it."""
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}{MARK}"))
    os.replace(path, aside / path.name)
    shutil.rmtree(aside, ignore_errors=True)


def remove_leftovers(folder: Path, names: str, *, idle: float = 0.0) -> None:
    """Clear away what a crash has left of files and folders that were being written aside, and nothing else.

    `names` is a regular expression of what is written here. A folder that was just being replaced is put back. Only for
    whoever alone writes in `folder`, or of what nobody has written to for `idle` seconds: the rest may be another's.
    """
    for path in sorted(folder.glob(".*")) if folder.is_dir() else ():
        match = re.fullmatch(_ASIDE.format(names), path.name)
        if match is None or (idle and not _is_idle(path, idle)):
            continue
        if match["old"] and not (folder / match["name"]).exists() and (path / match["name"]).is_dir():
            os.replace(path / match["name"], folder / match["name"])
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _is_idle(path: Path, seconds: float) -> bool:
    try:
        return time.time() - path.lstat().st_mtime >= seconds
    except FileNotFoundError:  # it was another's, who has just published or removed it
        return False


def _make_directories(path: Path) -> None:
    """Make a folder and those above it, durably: the name of a new folder is lost with the power as that of a file is."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for each in missing:
        sync_directory(each.parent)


def sync_file(path: Path) -> None:
    """Make the content of a file durable."""
    with path.open("rb") as opened:
        os.fsync(opened.fileno())


def sync_directory(path: Path) -> None:
    """Make renames inside `path` durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal, read in constant memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_readable(path: str | Path) -> None:
    """Give a file the rights that a new one has: what writes aside makes files that only their owner can read."""
    os.chmod(path, 0o666 & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
