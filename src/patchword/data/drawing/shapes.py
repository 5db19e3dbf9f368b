"""Textured shapes on a textured ground, whose kinds, places, sizes, orientations and number are known exactly.

A class is a kind of shape with a pattern on it, in one variant: 16 kinds × 16 patterns make 256 classes, the next 256 are the
same pairs with other proportions and another fineness of the pattern, and so on. All objects of a picture are of its class;
they never touch. What is in a picture can be asked for: `scene`.

Lengths inside this file are in units of half the picture's shorter side, from its middle, unless a name says pixels.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from patchword.data.drawing.outlines import KINDS, SPREAD, distance, outline
from patchword.data.drawing.textures import GROUND_DRAWS, LATTICE, PATTERNS, Dice, colour, direction, ground, to_pixels

VERSION = 1
"""Of the drawing: raised whenever a picture changes, so that fingerprints do, too."""
MOST_CLASSES = 4096
"""Sixteen variants of each pair; the last of them differ by less than a small picture shows."""

_MOST_OBJECTS = 6
_TRIES = 8
_GAP = 0.12  # between the circles around two objects: two pixels of 32
_SIZES = (
    (0.55, 0.88),
    (0.36, 0.52),
    (0.3, 0.42),
    (0.27, 0.36),
    (0.25, 0.32),
    (0.23, 0.3),
)  # radii, by the number wanted
_NUMBERS = (0.4, 0.62, 0.76, 0.86, 0.94)  # shares of pictures where at most 1, 2, … objects are wanted
_CONTRAST = 0.28
_CENTRED = ("rings", "fade")
_PLACING_DRAWS = 1 + _MOST_OBJECTS * (2 + 2 * _TRIES)


@dataclass(frozen=True)
class Object:
    """One shape of a picture."""

    kind: str
    pattern: str
    y: float
    """Of its centre of area, in pixels from the picture's upper edge; the middle of the first row is 0.5."""
    x: float
    """In pixels from the left edge."""
    radius: float
    """Of the circle around its centre that just holds it, in pixels."""
    orientation: float
    """In degrees, anticlockwise, from 0 to below 360 / `symmetry`; 0 where there is none."""
    symmetry: int
    """How many times it comes to cover itself in a whole turn; 0 for discs and rings, which always do."""
    area: float
    """In pixels², exact."""


@dataclass(frozen=True, eq=False)
class Scene:
    """What is to be seen in a picture."""

    objects: tuple[Object, ...]
    """One to six."""
    owner: np.ndarray
    """int64 H×W: the number of the object that covers the middle of each pixel, −1 for the ground.
    Where a tip is thinner than a pixel, a few pixels of it may lie apart from the rest.
    """

    @property
    def mask(self) -> np.ndarray:
        """bool H×W: where an object is."""
        return self.owner >= 0

    @property
    def count(self) -> int:
        """How many objects there are."""
        return len(self.objects)


class _Placed(NamedTuple):
    """Where an object is."""

    y: float
    x: float
    radius: float
    turns: float


@dataclass(frozen=True, eq=False)
class _Points:
    """The pixels in the circles around the objects, seen from these; all arrays have their number as length."""

    where: np.ndarray
    """int64: row · W + column."""
    owner: np.ndarray
    """int64: the object's number."""
    right: np.ndarray
    down: np.ndarray
    """float64: the way from the object's centre, its radius being 1."""
    u: np.ndarray
    v: np.ndarray
    """The same, along the axes of the turned object."""


_KINDS, _PATTERNS = tuple(KINDS), tuple(PATTERNS)


def class_parts(label: int) -> tuple[str, str, int]:
    """Kind, pattern and variant (from 0) of a class: 16 classes one after another differ in both kind and pattern."""
    variant, pair = divmod(label, len(_KINDS) * len(_PATTERNS))
    turn, kind = divmod(pair, len(_KINDS))
    return _KINDS[kind], _PATTERNS[(kind + turn) % len(_PATTERNS)], variant


def class_name(label: int) -> str:
    """`disc-stripes`; `disc-stripes-2` for the second variant."""
    kind, pattern, variant = class_parts(label)
    return f"{kind}-{pattern}" + (f"-{variant + 1}" if variant else "")


def scene(seed: int, label: int, instance: int, size: tuple[int, int]) -> Scene:
    """What is to be seen in `picture` of the same arguments."""
    placed = _place(Dice(seed, "shapes:picture", label, instance, _PLACING_DRAWS), size)
    points = _points(placed, size)
    kind, _, variant = class_parts(label)
    inside = distance(outline(kind, variant), points.u, points.v) < 0
    owner = np.full(size[0] * size[1], -1)
    owner[points.where[inside]] = points.owner[inside]
    return Scene(_objects(placed, label, size), owner.reshape(size))


def objects(seed: int, label: int, instance: int, size: tuple[int, int]) -> tuple[Object, ...]:
    """The objects of `scene` alone, for those who ask about many pictures: which pixels are whose takes most of its time."""
    return _objects(_place(Dice(seed, "shapes:picture", label, instance, _PLACING_DRAWS), size), label, size)


def _objects(placed: list[_Placed], label: int, size: tuple[int, int]) -> tuple[Object, ...]:
    kind, pattern, variant = class_parts(label)
    shape, symmetry, half = outline(kind, variant), KINDS[kind].symmetry, min(size) / 2
    return tuple(
        Object(
            kind,
            pattern,
            y=size[0] / 2 + half * each.y,
            x=size[1] / 2 + half * each.x,
            radius=half * each.radius,
            orientation=360 * each.turns % (360 / symmetry) if symmetry else 0.0,
            symmetry=symmetry,
            area=shape.area * (half * each.radius) ** 2,
        )
        for each in placed
    )


def picture(seed: int, label: int, instance: int, size: tuple[int, int]) -> np.ndarray:
    """Picture `instance` of class `label`, uint8 H×W×3 for `size` = (H, W).

    Number, places, sizes, orientations, colours, light and ground are the picture's own.
    """
    dice = Dice(seed, "shapes:picture", label, instance, _PLACING_DRAWS + GROUND_DRAWS + LATTICE + 40)
    placed = _place(dice, size)
    lightness = dice.between(0.08, 0.92)
    lattice, phases, swapped = dice.take(LATTICE), 16 * dice.take(2 * _MOST_OBJECTS), dice.take(_MOST_OBJECTS) < 0.5
    colours = np.array(_colours(lightness, dice))
    strength, (cosine, sine) = dice.between(0, 0.16), direction(dice.between(0, 1))
    surface = ground(*size, lightness, dice)

    kind, pattern, variant = class_parts(label)
    points = _points(placed, size)
    owner = points.owner
    pixel = (2 / min(size) / np.array([each.radius for each in placed]))[owner]
    cover = (0.5 - distance(outline(kind, variant), points.u, points.v) / pixel).clip(0, 1)
    periods = 2.2 if variant == 0 else 1.2 + 2.6 * (variant * SPREAD[1] % 1)
    if pattern in _CENTRED:
        phases[:] = 0
    across, along = phases.reshape(2, -1)[:, owner]
    share = PATTERNS[pattern](periods * points.u + across, periods * points.v + along, periods * pixel, lattice)
    share = np.where(swapped[owner], 1 - share, share)
    light = strength * (cosine * points.right + sine * points.down)
    for plane, first, second in zip(surface.reshape(3, -1), *colours, strict=True):
        under = plane[points.where]
        plane[points.where] = under + cover * (first + (second - first) * share + light - under)
    return to_pixels(surface)


def _place(dice: Dice, size: tuple[int, int]) -> list[_Placed]:
    """As many objects as are wanted, less those that find no room in a few tries."""
    half = min(size)
    high, wide = size[0] / half, size[1] / half
    chosen = dice.between(0, 1)
    wanted = 1 + sum(chosen >= share for share in _NUMBERS)
    numbers = dice.take(_MOST_OBJECTS * (2 + 2 * _TRIES)).reshape(_MOST_OBJECTS, -1).tolist()
    low, large = _SIZES[wanted - 1]
    placed: list[_Placed] = []
    for fraction, turns, *tries in numbers[:wanted]:
        radius = low + (large - low) * fraction
        for down, right in zip(tries[::2], tries[1::2], strict=True):
            y, x = (2 * down - 1) * (high - radius), (2 * right - 1) * (wide - radius)
            if all((y - b) ** 2 + (x - a) ** 2 >= (radius + other + _GAP) ** 2 for b, a, other, _ in placed):
                placed.append(_Placed(y, x, radius, turns))
                break
    return placed


def _points(placed: list[_Placed], size: tuple[int, int]) -> _Points:
    pixel = 2 / min(size)
    rows = (np.arange(size[0]) + 0.5) * pixel - size[0] / min(size)
    columns = (np.arange(size[1]) + 0.5) * pixel - size[1] / min(size)
    parts = []
    for number, (y, x, radius, turns) in enumerate(placed):
        reach = radius + pixel
        top, bottom = np.searchsorted(rows, [y - reach, y + reach]).tolist()
        left, end = np.searchsorted(columns, [x - reach, x + reach]).tolist()
        down, right = rows[top:bottom, None] - y, columns[None, left:end] - x
        row, column = np.nonzero(down * down + right * right < reach * reach)
        down, right = down[row, 0] / radius, right[0, column] / radius
        cosine, sine = direction(turns)
        u, v = cosine * right - sine * down, sine * right + cosine * down
        parts.append(((row + top) * size[1] + column + left, np.full(len(row), number), right, down, u, v))
    return _Points(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _colours(lightness: float, dice: Dice) -> list[tuple[float, float, float]]:
    """Two colours that differ in lightness from the ground and from each other."""
    below, above = max(0.0, lightness - _CONTRAST), max(0.0, 1 - lightness - _CONTRAST)
    first = dice.between(0, 1)
    second = (first + dice.between(0.4, 0.6)) % 1
    colours = []
    for place in (first, second):
        light = place * (below + above)
        light = light if light < below else 1 - above + light - below
        colours.append(colour(dice.between(0, 1), dice.between(0.2, 1.0), light))
    return colours
