"""What pictures from formulas are made of: keyed chance, patterns, noise, colours and grounds.

Pixels come from +, −, ×, ÷, √, rounding and comparisons alone. IEEE 754 fixes their results, so that a picture has the same
bytes on every machine; sines, powers and matrix products differ in the last bit from one library to the next.

Axes: u and v are any coordinates of points, u to the right and v down; where they are counted in periods of a pattern,
`pixel` is the size of a pixel in periods, by which edges are softened so that nothing flickers at small sizes.
"""

import math
from collections.abc import Callable

import numpy as np

from patchword.data.plan import uniform

Points = np.ndarray
"""float64 of any shape, one value for each point."""
Pixel = float | np.ndarray
"""The size of a pixel in periods, one for all points or one for each."""

_SIDE = 16
_LAST = _SIDE - 1
LATTICE = _SIDE**2
"""Random numbers that noise is made of."""
GROUND_DRAWS = LATTICE + 20
"""Random numbers that `ground` takes at most."""


class Dice:
    """Random numbers of one thing: a pure function of (seed, stream, first, second), taken one after another."""

    def __init__(self, seed: int, stream: str, first: int, second: int, count: int) -> None:
        """`count`: how many there are to be taken; asking for more costs little, changing it changes nothing."""
        self._numbers = uniform(seed, stream, first, np.array([second]), count)[0]
        self._at = 0

    def take(self, count: int) -> np.ndarray:
        """float64 (count,) in [0, 1)."""
        self._at += count
        if self._at > len(self._numbers):
            raise ValueError(f"{self._at} numbers are wanted of {len(self._numbers)}")
        return self._numbers[self._at - count : self._at]

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * float(self.take(1)[0])

    def pick(self, count: int) -> int:
        """One of 0…count−1."""
        return int(count * float(self.take(1)[0]))


def direction(turns: float) -> tuple[float, float]:
    """Cosine and sine of so many full turns, to 1e-9, by the first terms of their series around the nearest quarter."""
    quarter = math.floor(4 * turns + 0.5)
    x = (turns - quarter / 4) * 6.283185307179586
    s = x * x
    cosine = 1 - s / 2 * (1 - s / 12 * (1 - s / 30 * (1 - s / 56 * (1 - s / 90))))
    sine = x * (1 - s / 6 * (1 - s / 20 * (1 - s / 42 * (1 - s / 72))))
    for _ in range(quarter % 4):
        cosine, sine = -sine, cosine
    return cosine, sine


def colour(hue: float, saturation: float, lightness: float) -> tuple[float, float, float]:
    """RGB in 0…1 around a grey of that lightness; the hue goes round once from 0 to 1."""
    red, green, blue = (
        min(1.0, max(0.0, tooth)) for tooth in (abs(6 * hue - 3) - 1, 2 - abs(6 * hue - 2), 2 - abs(6 * hue - 4))
    )
    grey, strength = (red + green + blue) / 3, 0.8 * saturation
    red, green, blue = (min(0.98, max(0.02, lightness + strength * (pure - grey))) for pure in (red, green, blue))
    return red, green, blue


def noise(u: Points, v: Points, lattice: np.ndarray) -> Points:
    """Value noise in 0…1, smooth and repeating after 16; `lattice`: float64 (256,). u and v broadcast."""
    left, top = np.floor(u), np.floor(v)
    x, y = u - left, v - top
    x, y = x * x * (3 - 2 * x), y * y * (3 - 2 * y)
    column, row = left.astype(np.int64) & _LAST, top.astype(np.int64) & _LAST
    after, below = (column + 1) & _LAST, ((row + 1) & _LAST) * _SIDE
    row = row * _SIDE
    if u.ndim == 2 and u.shape[0] == 1 and v.shape[1] == 1:  # a grid along the axes: columns are mixed once a row
        values = lattice.reshape(_SIDE, _SIDE)
        rows = values[row[:, 0] // _SIDE] * (1 - y) + values[below[:, 0] // _SIDE] * y
        return rows[:, column[0]] * (1 - x) + rows[:, after[0]] * x
    upper = lattice[row + column] * (1 - x) + lattice[row + after] * x
    lower = lattice[below + column] * (1 - x) + lattice[below + after] * x
    return upper * (1 - y) + lower * y


def clouds(u: Points, v: Points, lattice: np.ndarray) -> Points:
    """Two octaves of noise, 0…1, with more contrast than their mean has."""
    mixed = 0.65 * noise(u, v, lattice) + 0.35 * noise(2.1 * u + 5.3, 2.1 * v + 9.7, lattice)
    return (1.8 * mixed - 0.4).clip(0, 1)


def _triangle(x: Points) -> Points:
    """A wave of period 1 with straight flanks, −1…1."""
    return 4 * np.abs(x - np.floor(x + 0.5)) - 1


def _edge(distance: Points, pixel: Pixel) -> Points:
    """0…1 across an edge: 1 where `distance` (in periods) is half a pixel or more above 0."""
    return (distance / pixel + 0.5).clip(0, 1)


def _bands(x: Points, pixel: Pixel) -> Points:
    """Light and dark in equal parts, once a period; grey where a period is hardly a pixel."""
    return _edge(_triangle(x) / 4, pixel)


def _cell(x: Points) -> Points:
    """The way to the nearest whole number, −0.5…0.5."""
    return x - np.floor(x + 0.5)


def _stripes(u: Points, v: Points, pixel: Pixel, lattice: np.ndarray) -> Points:
    return _bands(u, pixel) + 0 * v


def _checks(u: Points, v: Points, pixel: Pixel, lattice: np.ndarray) -> Points:
    return 0.5 + 2 * (_bands(u / 1.4, pixel) - 0.5) * (_bands(v / 1.4, pixel) - 0.5)


def _dots(u: Points, v: Points, pixel: Pixel, lattice: np.ndarray) -> Points:
    return _edge(0.32 - np.sqrt(_cell(u) ** 2 + _cell(v) ** 2), pixel)


def _rings(u: Points, v: Points, pixel: Pixel, lattice: np.ndarray) -> Points:
    return _bands(np.sqrt(u * u + v * v), pixel)


def _waves(u: Points, v: Points, pixel: Pixel, lattice: np.ndarray) -> Points:
    swing = _triangle(v / 2)
    return _bands(u + 0.5 * swing * (1.5 - 0.5 * swing * swing), pixel)


def _zigzag(u: Points, v: Points, pixel: Pixel, lattice: np.ndarray) -> Points:
    return _bands(u + 0.45 * _triangle(v / 1.2), 1.5 * pixel)


def _grid(u: Points, v: Points, pixel: Pixel, lattice: np.ndarray) -> Points:
    return _edge(0.14 - np.minimum(np.abs(_cell(u)), np.abs(_cell(v))), pixel)


def _bricks(u: Points, v: Points, pixel: Pixel, lattice: np.ndarray) -> Points:
    row = np.floor(1.4 * v)
    joint = np.minimum(2 * np.abs(_cell(u / 1.6 + row / 2)), np.abs(_cell(1.4 * v - row)) / 1.1)
    return _edge(joint - 0.12, 1.3 * pixel)


def _clouds(u: Points, v: Points, pixel: Pixel, lattice: np.ndarray) -> Points:
    return clouds(1.3 * u, 1.3 * v, lattice)


def _marble(u: Points, v: Points, pixel: Pixel, lattice: np.ndarray) -> Points:
    return _bands(u / 1.5 + 1.6 * noise(0.8 * u, 0.8 * v, lattice), 2 * pixel)


def _weave(u: Points, v: Points, pixel: Pixel, lattice: np.ndarray) -> Points:
    across = (np.floor(u / 1.5) + np.floor(v / 1.5)) % 2
    return _bands(2 * np.where(across > 0, u, v) / 1.5, 2 * pixel / 1.5)


def _pyramids(u: Points, v: Points, pixel: Pixel, lattice: np.ndarray) -> Points:
    x, y = _cell(u / 1.4), _cell(v / 1.4)
    lit = np.where(np.abs(x) > np.abs(y), x > 0, y > 0) * 0.6
    return lit + 0.8 * np.maximum(np.abs(x), np.abs(y))


def _plusses(u: Points, v: Points, pixel: Pixel, lattice: np.ndarray) -> Points:
    x, y = np.abs(_cell(u)), np.abs(_cell(v))
    return _edge(np.minimum(0.34 - np.maximum(x, y), 0.12 - np.minimum(x, y)), pixel)


def _fade(u: Points, v: Points, pixel: Pixel, lattice: np.ndarray) -> Points:
    return (0.5 + 0.28 * u + 0 * v).clip(0, 1)


def _speckle(u: Points, v: Points, pixel: Pixel, lattice: np.ndarray) -> Points:
    return _edge(noise(2.6 * u, 2.6 * v, lattice) - 0.6, 2.5 * pixel)


def _plain(u: Points, v: Points, pixel: Pixel, lattice: np.ndarray) -> Points:
    return np.zeros(np.broadcast_shapes(u.shape, v.shape))


PATTERNS: dict[str, Callable[[Points, Points, Pixel, np.ndarray], Points]] = {
    "stripes": _stripes,
    "dots": _dots,
    "checks": _checks,
    "clouds": _clouds,
    "rings": _rings,
    "grid": _grid,
    "zigzag": _zigzag,
    "plain": _plain,
    "bricks": _bricks,
    "waves": _waves,
    "speckle": _speckle,
    "weave": _weave,
    "marble": _marble,
    "pyramids": _pyramids,
    "plusses": _plusses,
    "fade": _fade,
}
"""Name → values in 0…1 of points given in periods, between the two colours of a surface."""

_OF_GROUND = ("stripes", "checks", "dots", "waves", "grid", "marble", "bricks", "speckle", "weave", "zigzag")


def ground(height: int, width: int, lightness: float, dice: Dice) -> np.ndarray:
    """A textured ground about as light as `lightness`, float64 3×H×W in 0…1; the same one at any size of the same shape."""
    lattice = dice.take(LATTICE)
    spread = dice.between(0.08, 0.22)
    first, second, third = (
        colour(dice.between(0, 1), dice.between(0.1, 0.7), lightness + side * spread) for side in (-1, 1, 0.5)
    )
    side = min(height, width)
    v = ((np.arange(height) + 0.5) * 2 - height)[:, None] / side
    u = ((np.arange(width) + 0.5) * 2 - width)[None, :] / side
    frequency = dice.between(0.8, 3.2)
    mixture = clouds(u * frequency + 4, v * frequency + 4, lattice)
    strength = dice.between(-0.5, 0.8)
    name = _OF_GROUND[dice.pick(len(_OF_GROUND))]
    periods = dice.between(2.0, 6.0)
    cosine, sine = direction(dice.between(0, 1))
    share = None
    if strength > 0:
        x, y = periods * (cosine * u + sine * v), periods * (cosine * v - sine * u)
        share = strength * PATTERNS[name](x, y, 2 * periods / side, lattice)
    surface = np.empty((3, height, width))
    for plane, dark, bright, other in zip(
        surface, first, second, third, strict=True
    ):  # a plane fits into a core's cache
        np.multiply(mixture, bright - dark, out=plane)
        plane += dark
        if share is not None:
            plane += share * (other - plane)
    return surface


def to_pixels(surface: np.ndarray) -> np.ndarray:
    """uint8 H×W×3 of 3×H×W in 0…1."""
    pixels = np.empty((*surface.shape[1:], 3), np.uint8)
    for channel, plane in enumerate(surface):
        pixels[..., channel] = np.minimum(np.maximum(plane * 255 + 0.5, 0), 255)
    return pixels
