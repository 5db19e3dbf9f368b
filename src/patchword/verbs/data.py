"""`patchword data check`: look at a data set before training on it."""

from patchword.verbs.options import Data


def check(data: Data, *, decode: bool = True) -> str:
    """Counts, sizes, bad files, duplicates, leakage, imbalance, and what training would do with the set.

    Args:
        data: As for train.
        decode: Decode every picture; --no-decode looks at names and headers only.
    """
    from patchword.core.progress import Progress
    from patchword.data import check as checks

    with Progress("looking at pictures", 0) as progress:

        def show(done: int, total: int) -> None:
            progress.total = total
            progress.update(done)

        return checks.check(data, decode_all=decode, on_progress=show).to_text()
