"""What a study is asked for in the environment (`BUDGET=0.1 SEEDS=3 ONLY=… make …`), and how it says what it cannot do."""

import math
import os
import sys
from collections.abc import Callable, Collection

from patchword.core.errors import PatchwordError, UsageError, nearest


def number(name: str, default: float) -> float:
    """A number greater than 0; raises `UsageError` for anything else."""
    try:
        value = float(os.environ.get(name) or default)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UsageError(f"{name}={os.environ[name]} must be a number greater than 0")
    return value


def whole(name: str, default: int) -> int:
    """A whole number from 1; raises `UsageError` for anything else."""
    value = number(name, default)
    if value != int(value):
        raise UsageError(f"{name}={os.environ[name]} must be a whole number from 1")
    return int(value)


def names(name: str, known: Collection[str]) -> list[str]:
    """Those of `known` that are asked for, several divided by semicolons or commas; all where nothing is.

    A name may have a comma itself. Raises `UsageError` for one that is not known.
    """
    left = os.environ.get(name, "").strip()
    found: list[str] = []
    while left:
        # The longest that fits, as one may begin with another.
        fits = [each for each in known if left == each or left.startswith((f"{each},", f"{each};"))]
        if not fits:
            word = left.partition(",")[0]
            raise UsageError(f"{name}={word} is not known; {nearest(word, known)}")
        found.append(max(fits, key=len))
        left = left[len(found[-1]) :].lstrip(",; ")
    return found or list(known)


def typed(target: str, *wishes: str) -> str:
    """The command with those of its wishes that there are, as it is typed: `SEEDS=1 make transfer-study`."""
    return " ".join([*(f"{name}={os.environ[name]}" for name in wishes if os.environ.get(name)), target])


def answered(main: Callable[[], object]) -> None:
    """Run `main`; what is wrong is said in its sentence, and the process ends with its code, as the command line does."""
    try:
        main()
    except PatchwordError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
