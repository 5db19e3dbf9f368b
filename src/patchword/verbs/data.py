"""`patchword data check`: look at a data set before training on it."""

from typing import TYPE_CHECKING, Any

from patchword.verbs.options import Data

if TYPE_CHECKING:
    from patchword.data.check import Report


def check(data: Data, *, decode: bool = True) -> Any:
    """Counts, sizes, bad files, duplicates, leakage, imbalance, and what training would do with the set.

    Args:
        data: As for train.
        decode: Decode every picture; --no-decode looks at names and headers only.
    """
    from patchword.core.progress import Progress
    from patchword.data import check as checks

    with Progress("looking at pictures", 0) as progress:

        def progressed(done: int, total: int) -> None:
            progress.total = total
            progress.update(done)

        return checks.check(data, decode_all=decode, on_progress=progressed)


def show(report: "Report") -> str:
    """The report as lines."""
    return report.to_text()
