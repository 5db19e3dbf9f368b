"""A table that a command prints goes to the page that shows it, between two marks."""

import datetime
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from patchword.core import files
from patchword.core.errors import DataError
from patchword.core.progress import say

ROOT = Path(__file__).resolve().parents[1]
"""Of the repository."""


def table(columns: Sequence[str], rows: Iterable[str]) -> str:
    """A table in Markdown, of rows that are lines already."""
    return f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n" + "".join(f"{row}\n" for row in rows)


def mean_and_range(values: Sequence[float], digits: int) -> str:
    """Shares of 1 in percent, with so many digits: `47.74 (47.48–48.24)`."""
    shown = [100 * value for value in values]
    return f"{statistics.fmean(shown):.{digits}f} ({min(shown):.{digits}f}–{max(shown):.{digits}f})"


def folder_of(name: str) -> str:
    """The name of a trial as that of its folder."""
    return name.replace(", ", "-").replace(" ", "-")


def finished(run: Path) -> bool:
    """Whether a run folder holds a run that came to its end."""
    return (run / "result.json").is_file() and files.read_json(run / "result.json")["status"] == "finished"


def last_day(out: Path) -> str:
    """The day on which the last of the runs below a folder came to its end; today, where there is none."""
    days = [files.read_json(path)["date"][:10] for path in out.rglob("result.json") if finished(path.parent)]
    return max(days, default=f"{datetime.date.today():%Y-%m-%d}")


def put(page: Path, mark: str, text: str) -> None:
    """Let `text` stand between `<!-- mark -->` and `<!-- /mark -->`, in the place of what was there.

    Raises `DataError` where the page has not each of them once, in this order, and leaves it as it is.
    """
    begin, end = f"<!-- {mark} -->\n", f"<!-- /{mark} -->"
    old = page.read_text("utf-8")
    if old.count(begin) != 1 or old.count(end) != 1 or old.index(begin) > old.index(end):
        raise DataError(
            f"{page} has no one place for the table; {begin.strip()} above {end}, each once, would be right"
        )
    files.write_text(page, old.partition(begin)[0] + begin + text + end + old.partition(end)[2])
    say(f"written to {page}")
