"""What a person sees while they wait: a bar on a terminal, a line now and then elsewhere, always on standard error."""

import contextlib
import sys
import time
from types import TracebackType
from typing import Self

from patchword.core.errors import one_line

_SECONDS_BETWEEN_LINES = 15.0
_quiet = False


def quiet(yes: bool) -> None:
    """Show nothing from now on, or everything again: of several processes, one talks."""
    global _quiet
    _quiet = yes


def is_quiet() -> bool:
    """Whether another process talks."""
    return _quiet


def say(sentence: str) -> None:
    """One line to the person at the terminal; results go to standard output, not here."""
    if _quiet:
        return
    # Where standard error goes to a file, its disk may be full: what cannot be said must not end the work.
    with contextlib.suppress(OSError):
        sys.stderr.write(one_line(sentence) + "\n")
        sys.stderr.flush()


def duration(seconds: float) -> str:
    """A length of time as a person would say it: `48 s`, `4 min 10 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return "under 1 s" if seconds < 0.95 else f"{seconds:.1f} s" if seconds < 9.5 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(num_bytes: float) -> str:
    """A number of bytes as a person would say it: `512 kB`, `1.3 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(num_bytes) < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


class Progress:
    """Progress through `total` units of one long work; nothing is shown before the first half second."""

    def __init__(self, what: str, total: int, start: int = 0) -> None:
        self.what, self.total, self.start, self.done = what, total, start, start
        self._begun = self._last_line = time.monotonic()
        self._bar = None

    def __enter__(self) -> Self:
        return self

    def update(self, done: int, detail: str = "") -> None:
        """`done` units are complete; `detail` is shown beside the bar."""
        self.done = done
        now = time.monotonic()
        if _quiet or now - self._begun < 0.5:
            return
        if sys.stderr.isatty():
            self._show_bar(detail)
        elif now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            say(f"{self.what} {done:,}/{self.total:,}  {detail}  {duration(self._left(now))} left")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _left(self, now: float) -> float:
        advanced = self.done - self.start
        return (self.total - self.done) * (now - self._begun) / advanced if advanced > 0 else 0.0

    def _show_bar(self, detail: str) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Bar(*columns, TextColumn("{task.fields[detail]}"), console=Console(stderr=True), expand=True)
            self._task = self._bar.add_task(self.what, total=self.total, completed=self.start, detail=detail)
            self._bar.start()
        self._bar.update(self._task, completed=self.done, detail=detail)
