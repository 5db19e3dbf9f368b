"""Errors as one sentence: what is wrong, where, and what would be right; each kind has its exit code."""

import difflib
import re
from collections.abc import Iterable

_SHOWN = 12
_LONGEST = 2000
"""Characters of a sentence: a table may have a cell, and so a class, of 100,000."""


def one_line(text: str) -> str:
    """`text` as one line that a terminal shows as it is: names in files may hold line ends, escape codes and no end.

    >>> one_line("the class 'a\nb'")
    "the class 'a\\nb'"
    """
    if not text.isprintable():
        text = "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"


class PatchwordError(Exception):
    """The base of every error that patchword raises on purpose."""

    exit_code = 4
    told = False
    """Whether another process has said it already."""

    def __init__(self, sentence: str = "") -> None:
        super().__init__(one_line(sentence))


class UsageError(PatchwordError):
    """The request itself is wrong: an unknown name, a field out of range, two options that exclude each other."""

    exit_code = 2


class DataError(PatchwordError):
    """A data set, a picture, a table or a file of weights is not what it should be."""

    exit_code = 3


class FaultError(PatchwordError):
    """Work stopped by a fault outside the request: a full disk, a diverging loss."""

    exit_code = 4


class DivergedError(FaultError):
    """Training would have spoiled the weights, and did not."""


class StoppedError(PatchwordError):
    """Work stopped by a signal; the same command resumes it."""

    exit_code = 143


_MOST_SIGNS = 200
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def nearest(name: str, choices: Iterable[str]) -> str:
    """A clause for the end of a sentence about an unknown name: the nearest choice, or what there is when none is near.

    >>> nearest("sofmax", ["softmax", "sigmoid"])
    "did you mean 'softmax'?"
    """
    known = list(choices)
    folded = {choice.casefold(): choice for choice in known}
    close = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)
    if close:
        return f"did you mean {folded[close[0]]!r}?"
    shown = known if len(known) <= _SHOWN + 2 else [*known[:_SHOWN], f"… and {len(known) - _SHOWN} more"]
    return "known: " + ", ".join(shown)


def brief(error: object) -> str:
    """What another library says of a fault, on one line, for the brackets at the end of a sentence of ours."""
    words = " ".join(_COLOUR.sub("", str(error)).split())
    return words[:_MOST_SIGNS].rstrip(". ") or type(error).__name__
