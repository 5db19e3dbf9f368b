"""Errors as one sentence: what is wrong, where, and what would be right; each kind has its exit code."""

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator

_SHOWN = 12
_NEAR = 0.7
"""The share of letters in order that a name has in common with what it is a slip for: of four, one may be another."""
_LESS = 0.95
"""What a mere beginning of a choice counts, and each likeness that skips a word of it."""
_ABBREVIATED = 3
"""The fewest letters that are understood as a beginning."""
_COMPARED = 100
"""Characters of a name; a cell of a table may have many more."""
_WORD = re.compile(r"[^\W_]+")
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


@contextlib.contextmanager
def blamed(on: str) -> Iterator[None]:
    """Begin the sentence of whatever is wrong inside with what was asked for, such as `teacher.weights=runs/x`."""
    try:
        yield
    except PatchwordError as error:
        raise type(error)(f"{on}: {error}") from error


_MOST_SIGNS = 200
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def nearest(name: str, choices: Iterable[str], prefix: str = "") -> str:
    """A clause for the end of a sentence about an unknown name: the nearest choices, or what there is when none is near.

    All that are equally near are said. `prefix` is put before each choice, and is none of what is compared.

    >>> nearest("sofmax", ["softmax", "sigmoid"])
    "did you mean 'softmax'?"
    >>> nearest("masked", ["softmax", "masked-patch", "masked-autoencoder"])
    "did you mean 'masked-patch' or 'masked-autoencoder'?"
    >>> nearest("banana", ["softmax", "sigmoid"])
    'known: softmax, sigmoid'
    """
    known = list(choices)
    if guess := suggestion(name, known, prefix):
        return guess
    shown = [prefix + choice for choice in known]
    if len(known) > _SHOWN + 2:
        shown = [*shown[:_SHOWN], f"… and {len(known) - _SHOWN} more"]
    return "known: " + ", ".join(shown)


def suggestion(name: str, choices: Iterable[str], prefix: str = "") -> str:
    """The clause of `nearest` where some choice is near, otherwise nothing."""
    likeness = {choice: _likeness(name, choice) for choice in choices}
    most = max(likeness.values(), default=0.0)
    near = [repr(prefix + choice) for choice, value in likeness.items() if value == most >= _NEAR]
    if not 0 < len(near) <= _SHOWN:
        return ""
    *others, last = near
    return f"did you mean {', '.join(others)} or {last}?" if others else f"did you mean {last}?"


def _likeness(name: str, choice: str) -> float:
    """How near a name is to a choice, or to what follows one of its words; 1: the same but for case and punctuation."""
    name, words = "".join(_words(name)), _words(choice)
    best = 0.0
    for first in range(len(words)):
        there = "".join(words[first:])
        if name != there and len(name) >= _ABBREVIATED and there.startswith(name):
            value = _LESS
        else:
            value = difflib.SequenceMatcher(None, there, name, autojunk=False).ratio()
        best = max(best, value * _LESS**first)
    return best


def _words(text: str) -> list[str]:
    """Its words without case and punctuation."""
    return _WORD.findall(text[:_COMPARED].casefold())


def brief(error: object) -> str:
    """What another library says of a fault, on one line, for the brackets at the end of a sentence of ours."""
    words = " ".join(_COLOUR.sub("", str(error)).split())
    return words[:_MOST_SIGNS].rstrip(". ") or type(error).__name__
