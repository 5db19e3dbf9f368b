"""The outlines of shapes: sixteen kinds with their corners, areas and the distance of points from them.

All lie about their centre of area, in the circle of radius 1; x points right and y down.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np

from patchword.data.drawing.textures import direction

SPREAD = (0.7548776662466927, 0.5698402909980532)
"""1/ρ and 1/ρ² of ρ³ = ρ + 1: the fractions of their multiples spread evenly over a square (Roberts' sequence R₂, "The
unreasonable effectiveness of quasirandom sequences"). Variants take their proportions by the one, their periods by the other."""


@dataclass(frozen=True)
class Kind:
    """A kind of shape."""

    symmetry: int
    """How many times it comes to cover itself in a whole turn; 0 for discs and rings, which always do."""
    low: float
    usual: float
    high: float
    """The range of its proportion (width to length, inner to outer radius, …), and that of the first variant."""


@dataclass(frozen=True, eq=False)
class Outline:
    """A shape about its centre of area, in the circle of radius 1."""

    kind: str
    proportion: float
    corners: np.ndarray
    """float64 E×2, x and y, in order; none for disc, ring and ellipse."""
    area: float


KINDS: dict[str, Kind] = {
    "disc": Kind(0, 1, 1, 1),
    "triangle": Kind(3, 1, 1, 1),
    "star": Kind(5, 0.3, 0.42, 0.55),
    "square": Kind(4, 1, 1, 1),
    "ring": Kind(0, 0.35, 0.5, 0.65),
    "cross": Kind(4, 0.2, 0.33, 0.45),
    "ellipse": Kind(2, 0.4, 0.55, 0.7),
    "hexagon": Kind(6, 1, 1, 1),
    "arrow": Kind(1, 0.3, 0.45, 0.6),
    "bar": Kind(2, 0.2, 0.32, 0.45),
    "chevron": Kind(1, 0.4, 0.55, 0.7),
    "diamond": Kind(2, 0.4, 0.55, 0.7),
    "tee": Kind(1, 0.18, 0.26, 0.36),
    "wedge": Kind(1, 0.34, 0.45, 0.58),
    "ell": Kind(1, 0.18, 0.26, 0.36),
    "pentagon": Kind(5, 1, 1, 1),
}
"""Name → kind. Their order and that of `PATTERNS` decide what class a number stands for."""


@functools.lru_cache(maxsize=1024)
def outline(name: str, variant: int) -> Outline:
    """The outline of a kind: of its usual proportion in variant 0, of another one in every further variant."""
    kind = KINDS[name]
    proportion = kind.low + (kind.high - kind.low) * (variant * SPREAD[0] % 1) if variant else kind.usual
    corners = np.array(_corners(name, proportion)).reshape(-1, 2)
    if not len(corners):
        inner = {"disc": 0.0, "ring": proportion**2, "ellipse": 1 - proportion}[name]
        return Outline(name, proportion, corners, math.pi * (1 - inner))
    following = np.roll(corners, -1, axis=0)
    crosses = corners[:, 0] * following[:, 1] - corners[:, 1] * following[:, 0]
    area = crosses.sum() / 2
    corners = corners - ((corners + following) * crosses[:, None]).sum(axis=0) / (6 * area)
    radius = float(np.sqrt((corners**2).sum(axis=1)).max())
    return Outline(name, proportion, corners / radius, abs(float(area)) / radius**2)


def _corners(kind: str, q: float) -> list[tuple[float, float]]:
    """x and y (down) of the corners in order, about any centre and of any size; none for the round kinds."""
    if kind in ("triangle", "square", "pentagon", "hexagon"):
        count = {"triangle": 3, "square": 4, "pentagon": 5, "hexagon": 6}[kind]
        return [direction(number / count) for number in range(count)]
    if kind == "star":
        points = [(direction(number / 10), q if number % 2 else 1.0) for number in range(10)]
        return [(radius * x, radius * y) for (x, y), radius in points]
    if kind == "cross":
        quarter = [(q, -1.0), (q, -q), (1.0, -q)]
        turned = [quarter, *([] for _ in range(3))]
        for number in range(1, 4):
            turned[number] = [(-y, x) for x, y in turned[number - 1]]
        return [corner for each in turned for corner in each]
    return {
        "disc": [],
        "ring": [],
        "ellipse": [],
        "arrow": [(-1, -q / 2), (0.1, -q / 2), (0.1, -0.75), (1, 0), (0.1, 0.75), (0.1, q / 2), (-1, q / 2)],
        "bar": [(-1, -q), (1, -q), (1, q), (-1, q)],
        "chevron": [(-0.2, -0.9), (0.7, 0), (-0.2, 0.9), (-0.2 - q, 0.9), (0.7 - q, 0), (-0.2 - q, -0.9)],
        "diamond": [(1, 0), (0, q), (-1, 0), (0, -q)],
        "tee": [(-1, -1), (1, -1), (1, 2 * q - 1), (q, 2 * q - 1), (q, 1), (-q, 1), (-q, 2 * q - 1), (-1, 2 * q - 1)],
        "wedge": [(1, 0), (-1, q), (-1, -q)],
        "ell": [(-1, -1), (2 * q - 1, -1), (2 * q - 1, 1 - 2 * q), (0.6, 1 - 2 * q), (0.6, 1), (-1, 1)],
    }[kind]


def distance(outline: Outline, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """How far points lie outside the outline, negative inside: exact, but for ellipses, where it is right near the edge.

    `u` and `v`: float64 of one length, in units of the outline's circle.
    """
    if outline.kind == "ellipse":
        squashed = v / outline.proportion
        ratio = np.sqrt(u * u + squashed * squashed)
        steepness = np.sqrt(u * u + (squashed / outline.proportion) ** 2)
        return ratio * (ratio - 1) / np.maximum(steepness, 1e-9)
    if not len(outline.corners):
        radius = np.sqrt(u * u + v * v)
        q = outline.proportion
        return radius - 1 if outline.kind == "disc" else np.abs(radius - (1 + q) / 2) - (1 - q) / 2
    return _distance_to_polygon(outline.corners, u, v)


def _distance_to_polygon(corners: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Edge by edge: the nearest point of it; and a ray to the right, which leaves the inside when it meets an odd number."""
    nearest = np.full(u.shape, np.inf)
    inside = np.zeros(u.shape, bool)
    before = corners[-1].tolist()
    for x, y in corners.tolist():
        along_x, along_y = before[0] - x, before[1] - y
        right, down = u - x, v - y
        share = (right * along_x + down * along_y) / (along_x * along_x + along_y * along_y)
        share = np.minimum(np.maximum(share, 0), 1)
        off_x, off_y = right - share * along_x, down - share * along_y
        np.minimum(nearest, off_x * off_x + off_y * off_y, out=nearest)
        if along_y:
            crosses = (v >= y) != (v >= before[1])
            inside ^= crosses & (right < down * (along_x / along_y))
        before = [x, y]
    distance = np.sqrt(nearest)
    return np.where(inside, -distance, distance)
