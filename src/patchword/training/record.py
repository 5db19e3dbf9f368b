"""The run's log, one JSON object a line, which always agrees with the weights."""

import json
import os
from pathlib import Path
from typing import Any

from patchword.core import files
from patchword.core.errors import FaultError
from patchword.core.progress import say


class Record:
    """`metrics.jsonl`: lines of kind `train` and `validation`, in the order of their steps.

    Lines that the disk does not take are kept and written with the next; `flush` insists.
    """

    def __init__(self, path: Path, step: int, *, writes: bool = True) -> None:
        """Open the log to go on after `step`: lines of later steps, and a torn last line, are cut off.

        Of several processes, one `writes`; the others read what they need to know alike.
        """
        self.path, self.writes = path, writes
        if step and writes and not path.exists():
            say(f"note: {path} is gone; the log begins after step {step}")
        kept = [line for line in _whole_lines(path) if line["step"] <= step]
        self.last_validation = max((line["step"] for line in kept if line.get("kind") == "validation"), default=0)
        """The newest step that has a line of validation."""
        self._waiting = ""
        self._content = "".join(_dump(line) for line in kept).encode()
        self._size = len(self._content)
        """Bytes of whole lines: what a failed write adds is cut off again."""

    def open(self) -> None:
        """Bring the file to what is kept of it."""
        if not (self.path.exists() and self.path.read_bytes() == self._content):
            files.write_bytes(self.path, self._content)
        self._content = b""

    def write(self, kind: str, step: int, **values: float) -> None:
        """Append one line."""
        if kind == "validation":
            self.last_validation = step
        if not self.writes:
            return
        first = not self._waiting
        self._waiting += _dump({"kind": kind, "step": step, **values})
        try:
            self.flush()
        except FaultError as error:
            if first:
                say(f"note: {error}; the log's lines wait until it can be written")

    def flush(self) -> None:
        """Write what waits; raises `FaultError` where the disk refuses."""
        if not self._waiting:
            return
        content = self._waiting.encode()
        with files.disk_faults(self.path), self.path.open("r+b") as file:
            file.truncate(self._size)
            file.seek(self._size)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self._size += len(content)
        self._waiting = ""

    def cut(self, step: int) -> None:
        """Forget the lines after `step`, to which the training has gone back."""
        waiting = [json.loads(line) for line in self._waiting.splitlines()]
        self._waiting = "".join(_dump(line) for line in waiting if line["step"] <= step)
        again = Record(self.path, step, writes=self.writes)
        if self.writes:
            again.open()
        self._size, self.last_validation = again._size, again.last_validation


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The lines that a run has written, in the order of their steps. A crash tears the last; others that are damaged are told."""
    files.check_regular(path)
    lines: list[dict[str, Any]] = []
    damaged: list[int] = []
    texts = path.read_bytes().split(b"\n") if path.exists() else []
    for number, text in enumerate(texts, 1):
        line = _parse(text)
        if line is not None and (not lines or line["step"] >= lines[-1]["step"]):
            lines.append(line)
        elif number < len(texts):
            damaged.append(number)
    if damaged:
        say(f"note: {path} is damaged in line {damaged[0]} ({len(damaged)} in all); what stood there is lost")
    return lines


def _parse(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
        if [type(line["kind"]), type(line["step"])] != [str, int]:
            return None
        if not all(isinstance(value, int | float) for name, value in line.items() if name != "kind"):
            return None
        _dump(line).encode()  # what Python reads and JSON has not, such as NaN
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return line


def _dump(line: dict[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"
