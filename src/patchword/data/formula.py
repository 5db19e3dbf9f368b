"""`formula:…`: labelled pictures without end that need no download, no licence and no look at anybody's life.

    formula:KIND-CLASSESxPICTURES[@SIDE|@HEIGHTxWIDTH][,seed=N]        formula:fractals-1000x100@64,seed=3

KIND is `fractals` or `shapes`; without a size pictures are 32×32; without a seed it is 0. Picture i of class c depends on the
seed, c, i and the size, and on nothing else: `fractals-1000x100` contains `fractals-1000x10` and `fractals-100x100`, as the
paper's subsets of JFT do theirs. PICTURES counts those of train, of each class. Validation has a tenth as many, at most
10,000 of all classes together but one of each; so has test.
"""

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from patchword.core.errors import DataError, UsageError, nearest
from patchword.data.assemble import Found, Part
from patchword.data.drawing import fractals, shapes

PREFIX = "formula:"
MOST_PICTURES = 100_000_000
"""Of train; labels take 8 bytes each."""
SIDES = range(8, 1025)
"""Heights and widths in pixels."""

_EXAMPLE = "formula:fractals-1000x100 or formula:shapes-100x50@64,seed=3 would be right"
_HELD_OUT = 10_000
"""Pictures of validation, and of test, at most, unless there are more classes."""
# Where the numbers of pictures begin: each range is longer than any set, so that no picture of one is ever one of another.
_FIRST = {"train": 0, "validation": 2**33, "test": 2**34}


@dataclass(frozen=True)
class Kind:
    """How pictures are drawn; all of it pure functions."""

    version: int
    most_classes: int
    class_name: Callable[[int], str]
    picture: Callable[[int, int, int, tuple[int, int]], np.ndarray]
    """(seed, class, instance, (H, W)) → uint8 H×W×3."""


KINDS = {
    "fractals": Kind(fractals.VERSION, fractals.MOST_CLASSES, fractals.class_name, fractals.picture),
    "shapes": Kind(shapes.VERSION, shapes.MOST_CLASSES, shapes.class_name, shapes.picture),
}


@dataclass(frozen=True)
class Formula:
    """An address, understood."""

    kind: str
    classes: int
    pictures: int
    """Of each class in train."""
    size: tuple[int, int] = (32, 32)
    """Height and width in pixels."""
    seed: int = 0

    @property
    def name(self) -> str:
        """Short and without what is usual: `fractals-1000x100`, `shapes-100x50@64,seed=3`."""
        side = f"{self.size[0]}" if self.size[0] == self.size[1] else f"{self.size[0]}x{self.size[1]}"
        size = "" if self.size == (32, 32) else f"@{side}"
        return f"{self.kind}-{self.classes}x{self.pictures}{size}" + (f",seed={self.seed}" if self.seed else "")


class Drawn:
    """Pictures `first` … `first` + `count` − 1 of every class, one class after the other, drawn when they are read."""

    def __init__(self, formula: Formula, first: int, count: int) -> None:
        self.formula = formula
        self.first = first
        self.count = count

    def __len__(self) -> int:
        return self.formula.classes * self.count

    def place(self, row: int) -> tuple[int, int]:
        """Class and instance of a picture."""
        if not 0 <= row < len(self):
            raise IndexError(f"picture {row} of {len(self)}")
        label, number = divmod(int(row), self.count)
        return label, self.first + number

    def read(self, row: int) -> np.ndarray:
        """uint8 H×W×3."""
        formula = self.formula
        return KINDS[formula.kind].picture(formula.seed, *self.place(row), formula.size)

    def scene(self, row: int) -> shapes.Scene:
        """What is to be seen in a picture of shapes, and where; raises `UsageError` for fractals."""
        if self.formula.kind != "shapes":
            raise UsageError(f"{PREFIX}{self.formula.name} has no objects that could be named; formula:shapes-… has")
        return shapes.scene(self.formula.seed, *self.place(row), self.formula.size)

    def key(self, row: int) -> bytes:
        """`fractals:3:17:4@32x32`: kind, seed, class, instance, height and width."""
        label, instance = self.place(row)
        height, width = self.formula.size
        return f"{self.formula.kind}:{self.formula.seed}:{label}:{instance}@{height}x{width}".encode()

    def digest(self, rows: np.ndarray | None) -> bytes:
        """A hash over what the pictures follow from, the version of the drawing included; none of them is drawn."""
        told = (KINDS[self.formula.kind].version, self.formula, self.first, self.count)
        digest = hashlib.sha256(repr(told).encode())
        if rows is not None:
            digest.update(np.ascontiguousarray(rows, np.int64).tobytes())
        return digest.digest()


def is_formula(data: str | os.PathLike[str]) -> bool:
    """Whether `data` is an address of this kind."""
    return os.fspath(data).startswith(PREFIX)


def parse_formula(address: str) -> Formula:
    """The address as a `Formula`; raises `DataError` for one that is none."""
    shown, kind = _short(address, 60), address.removeprefix(PREFIX).partition("-")[0]
    if kind and kind not in KINDS:
        kind = _short(kind, 20)
        raise DataError(f"{shown}: there is no formula for {kind}; {nearest(kind, KINDS)}")
    match = re.fullmatch(
        r"formula:[a-z]+-(?P<classes>[^x@,]*)x(?P<pictures>[^@,]*)(@(?P<size>[^,]*))?(?P<options>(,[^,]*)*)", address
    )
    if match is None:
        raise DataError(f"{shown} does not say KIND-CLASSESxPICTURES[@SIDE][,seed=N]; {_EXAMPLE}")
    classes = _number(shown, "number of classes", match["classes"], 2, KINDS[kind].most_classes)
    pictures = _number(shown, "number of pictures", match["pictures"], 1, MOST_PICTURES)
    if classes * pictures > MOST_PICTURES:
        raise DataError(f"{shown} asks for {classes * pictures:,} pictures; at most {MOST_PICTURES:,} are possible")
    sides = [] if match["size"] is None else match["size"].split("x", 1)
    size = [_number(shown, "side", side, SIDES[0], SIDES[-1]) for side in sides] or [32]
    seeds = [_seed(shown, option) for option in match["options"].split(",")[1:]]
    if len(seeds) > 1:
        raise DataError(f"{shown} says its seed twice; once would be right")
    return Formula(kind, classes, pictures, (size[0], size[-1]), seeds[0] if seeds else 0)


def find_formula(address: str) -> Found:
    """The data set of an address: its splits, none of which takes a picture from another."""
    formula = parse_formula(address)
    held_out = max(1, min((formula.pictures + 5) // 10, _HELD_OUT // formula.classes))
    parts = {}
    for split, first in _FIRST.items():
        count = formula.pictures if split == "train" else held_out
        labels = np.repeat(np.arange(formula.classes), count)
        parts[split] = Part(Drawn(formula, first, count), labels)
    names = [KINDS[formula.kind].class_name(label) for label in range(formula.classes)]
    return Found(formula.name, address, names, parts, ordered=True)


def _seed(shown: str, option: str) -> int:
    name, equals, value = option.partition("=")
    if name != "seed" or not equals:
        raise DataError(f"{shown}: there is no option {_short(option, 20) or 'without a name'}; seed=N is the only one")
    return _number(shown, "seed", value, 0, 2**63 - 1)


def _number(shown: str, what: str, text: str, least: int, most: int) -> int:
    """Digits of ASCII alone: `int` would take those of every script, underscores and signs, and any length."""
    value = int(text) if re.fullmatch(r"[0-9]{1,19}", text) else -1
    if not least <= value <= most:
        raise DataError(f"{shown}: the {what} is {_short(text, 20) or 'missing'}; {least} to {most:,} would be right")
    return value


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}…"
