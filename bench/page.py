"""A table that a command prints goes to the page that shows it, between two marks."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from patchword.core.progress import say


def table(columns: Sequence[str], rows: Iterable[str]) -> str:
    """A table in Markdown, of rows that are lines already."""
    return f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n" + "".join(f"{row}\n" for row in rows)


def folder_of(name: str) -> str:
    """The name of a trial as that of its folder."""
    return name.replace(", ", "-").replace(" ", "-")


def put(page: Path, mark: str, text: str) -> None:
    """Let `text` stand between `<!-- mark -->` and `<!-- /mark -->`, in the place of what was there."""
    begin, end = f"<!-- {mark} -->\n", f"<!-- /{mark} -->"
    before, _, rest = page.read_text("utf-8").partition(begin)
    page.write_text(before + begin + text + end + rest.partition(end)[2], "utf-8")
    say(f"written to {page}")
