"""Fractals of iterated function systems: one class each system, one picture each a changed copy of it.

A system is 2 to 8 affine maps of the plane that shrink it; the one set of points that they map onto itself is the fractal.
The idea of learning to see from them is Kataoka et al.'s (Pre-training without natural images, arXiv 2101.08515, FractalDB);
drawing the maps by their singular values, and textured grounds in many colours, are Anderson and Farrell's (Improving fractal
pre-training, arXiv 2110.03091, section 3).
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from patchword.data.drawing.textures import GROUND_DRAWS, Dice, colour, direction, ground, to_pixels
from patchword.data.plan import shuffled

VERSION = 1
"""Of the drawing: raised whenever a picture changes, so that fingerprints do, too."""
MOST_CLASSES = 100_000

_CHAINS, _BURN_IN = 1024, 14
"""Points that walk at once from the origin, and the steps after which they are taken to have come to the fractal."""
_FEWEST_STEPS, _MOST_CHAINS = 12, 4096
"""Of drawing: more points take more chains rather than steps, up to what a core's nearest cache holds."""
_POINTS, _POINTS_A_PIXEL, _MOST_PIXELS = 8192, 4, 2**19
"""How many points a picture is drawn of: so many, and so many for each pixel of the first half million."""
_LARGEST_SCALE = 0.93
"""Of a map, its larger singular value at most, so that a varied one shrinks, too."""
_GRID = 20
"""Cells of a side, by which a fractal is judged."""

Chains = tuple[np.ndarray, np.ndarray, np.ndarray]
"""x, y and tint of many points, float64 each."""


@dataclass(frozen=True, eq=False)
class System:
    """n affine maps z → A z + b of the plane, and how they are chosen."""

    matrices: np.ndarray
    """float64 n×2×2; rows and columns x, y."""
    offsets: np.ndarray
    """float64 n×2."""
    shares: np.ndarray
    """float64 (n,): how often each is applied; they add up to 1."""
    tints: np.ndarray
    """float64 (n,) in 0…1: where on a palette each of them draws towards."""


def class_name(label: int) -> str:
    """`fractal-0007`."""
    return f"fractal-{label:04d}"


@functools.lru_cache(maxsize=16384)  # 1 kB each, and more than a millisecond to find
def system(seed: int, label: int) -> System:
    """The system of a class: the first one drawn of (`seed`, `label`, attempt) whose fractal fills a picture well."""
    for attempt in range(1000):
        drawn = _draw_system(Dice(seed, "fractals:system", label, attempt, 80))
        if drawn is not None and _fills(drawn):
            return drawn
    raise AssertionError(f"no system of 1000 is fit for class {label} of seed {seed}")


def picture(seed: int, label: int, instance: int, size: tuple[int, int]) -> np.ndarray:
    """Picture `instance` of class `label`, uint8 H×W×3 for `size` = (H, W).

    Of the class come the maps; every picture has them a little changed, turned by up to an eighth of a turn or mirrored, at
    another place and zoom, in other colours, on another ground.
    """
    dice = Dice(seed, "fractals:picture", label, instance, GROUND_DRAWS + 80)
    height, width = size
    lightness = dice.between(0.08, 0.92)
    surface = ground(height, width, lightness, dice)
    maps = _varied(system(seed, label), dice)
    zoom, right, down = dice.between(0.72, 1.08), dice.between(-0.12, 0.12), dice.between(-0.12, 0.12)
    x, y, tint = _chains(maps, _CHAINS, _BURN_IN)
    middle = np.array([x.min() + x.max(), y.min() + y.max()]) / 2
    extent = max(float(x.max() - x.min()), float(y.max() - y.min())) / 2
    scale = zoom * min(height, width) / 2 / extent
    corner = np.array([width / 2 + right * width / 2, height / 2 + down * height / 2]) - scale * middle
    density, tint = _density(maps, (x, y, tint), scale, corner, size)
    return to_pixels(_painted(surface, density, tint, lightness, dice))


def _draw_system(dice: Dice) -> System | None:
    """Maps whose singular values add up to what suits their number; None where one of them would not shrink."""
    count = 2 + dice.pick(7)
    # arXiv 2110.03091, section 3.2: Σ (σ₁ + 2 σ₂) between (5 + n)/2 and (6 + n)/2 gives neither dust nor a blot.
    wanted = dice.between((5 + count) / 2, (6 + count) / 2)
    large = 0.25 + 0.75 * dice.take(count)
    small = large * (0.15 + 0.85 * dice.take(count))
    factor = wanted / float((large + 2 * small).sum())
    large, small = large * factor, small * factor
    if large.max() > _LARGEST_SCALE:
        return None
    mirrored = np.where(dice.take(count) < 0.5, -1.0, 1.0)
    stretches = np.stack([large, small * mirrored], axis=1)[:, None, :]
    matrices = _product(_rotations(dice.take(count)) * stretches, _rotations(dice.take(count)))
    offsets = 2 * dice.take(2 * count).reshape(count, 2) - 1
    areas = large * small
    shares = areas / areas.sum() + 0.25 / count
    return System(matrices, offsets, shares / shares.sum(), dice.take(count))


def _rotations(turns: np.ndarray) -> np.ndarray:
    """float64 n×2×2."""
    pairs = [direction(turn) for turn in turns.tolist()]
    return np.array([[[cosine, -sine], [sine, cosine]] for cosine, sine in pairs])


def _product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Products of matrices …×2×2; a library's own may round their sums in another order."""
    return left[..., :, :1] * right[..., :1, :] + left[..., :, 1:] * right[..., 1:, :]


def _fills(maps: System) -> bool:
    """Whether the fractal is neither dust, nor a line, nor a blot: by the cells of a grid over it that hold its points."""
    x, y, _ = _chains(maps, 4 * _CHAINS, _BURN_IN)
    wide, high = float(x.max() - x.min()), float(y.max() - y.min())
    if not 0.45 < wide / high < 2.2:
        return False
    column = ((x - x.min()) * (_GRID / wide)).astype(np.int64).clip(0, _GRID - 1)
    row = ((y - y.min()) * (_GRID / high)).astype(np.int64).clip(0, _GRID - 1)
    counts = np.bincount(row * _GRID + column, minlength=_GRID**2)
    held = np.count_nonzero(counts) / _GRID**2
    even = len(x) ** 2 / float((counts * counts).sum()) / _GRID**2
    return 0.32 < held < 0.85 and even > 0.14


def _varied(maps: System, dice: Dice) -> System:
    """Each map a little larger or smaller, turned and moved; then the whole fractal turned by up to an eighth of a turn
    either way, and perhaps mirrored along x and along y.
    """
    count = len(maps.offsets)
    sizes = (0.92 + 0.12 * dice.take(count))[:, None, None]
    matrices = _product(_rotations(0.06 * dice.take(count) - 0.03), maps.matrices) * sizes
    offsets = maps.offsets + 0.12 * dice.take(2 * count).reshape(count, 2) - 0.06
    signs = np.where(dice.take(2) < 0.5, -1.0, 1.0)
    turn = signs[:, None] * _rotations(0.25 * dice.take(1) - 0.125)[0]
    return System(
        _product(_product(turn, matrices), turn.T), _product(turn, offsets[..., None])[..., 0], maps.shares, maps.tints
    )


def _chains(maps: System, count: int, steps: int) -> Chains:
    """`count` points of the fractal, after so many steps from the origin."""
    start = np.zeros(count), np.zeros(count), np.full(count, 0.5)
    *_, last = _walk(maps, start, 0, steps)
    return last


def _walk(maps: System, chains: Chains, first: int, steps: int) -> Iterator[Chains]:
    """The chaos game: `steps` times every chain is sent through one of the maps, and all are given.

    The chains are dealt out anew before each step, so that the first `share` of them can go through the first map, the next
    through the second: every step uses the maps exactly as often as it should, and nothing is looked up point by point.
    """
    x, y, tint = chains
    count = len(x)
    ends = np.floor(np.cumsum(maps.shares) * count + 0.5).astype(np.int64)
    ends[-1] = count
    times = np.diff(ends, prepend=0)
    (xx, xy), (yx, yy) = (np.repeat(maps.matrices[:, row, :], times, axis=0).T.copy() for row in (0, 1))
    right, down, halved = (np.repeat(each, times) for each in (*maps.offsets.T, maps.tints / 2))
    for order in _orders(count, first, steps):
        x, y, tint = x[order], y[order], tint[order]
        x, y = xx * x + xy * y + right, yx * x + yy * y + down
        tint = tint / 2 + halved
        yield x, y, tint


@functools.lru_cache(maxsize=4)
def _orders(count: int, first: int, steps: int) -> np.ndarray:
    """How `count` chains are dealt out before the steps from `first` on, int64 steps×count; for all systems alike."""
    return np.stack([shuffled(0, step, count, np.arange(count)) for step in range(first, first + steps)])


def _density(
    maps: System, chains: Chains, scale: float, corner: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """How many points fall into each pixel, and their mean tint, float64 H×W; a point lies at scale · z + corner."""
    height, width = size
    across = width + 2  # a border takes what falls outside
    points = _POINTS + _POINTS_A_PIXEL * min(height * width, _MOST_PIXELS)
    count = min(_MOST_CHAINS, _CHAINS * -(-points // (_CHAINS * _FEWEST_STEPS)))
    steps = -(-points // count)
    corner = corner + 1
    moved = corner - _product(maps.matrices, corner[:, None])[..., 0]
    in_pixels = System(maps.matrices, scale * maps.offsets + moved, maps.shares, maps.tints)
    x, y, tint = (np.resize(each, count) for each in chains)
    cells, tints = np.empty((steps, count), np.int64), np.empty((steps, count))
    start = scale * x + corner[0], scale * y + corner[1], tint
    for step, (x, y, tint) in enumerate(_walk(in_pixels, start, _BURN_IN, steps)):
        column = np.minimum(np.maximum(x, 0), width + 1).astype(np.int64)
        row = np.minimum(np.maximum(y, 0), height + 1).astype(np.int64)
        cells[step] = row * across + column
        tints[step] = tint
    cells = cells.reshape(-1)
    density = np.bincount(cells, minlength=across * (height + 2)).astype(np.float64)
    mean = np.bincount(cells, tints.reshape(-1), minlength=across * (height + 2)) / np.maximum(density, 1)
    inside = (slice(1, -1), slice(1, -1))
    return density.reshape(height + 2, across)[inside], mean.reshape(height + 2, across)[inside]


def _painted(surface: np.ndarray, density: np.ndarray, tint: np.ndarray, lightness: float, dice: Dice) -> np.ndarray:
    """The fractal on `surface`: denser places cover more of it and are further along the palette's light."""
    usual = float(density.sum()) / max(1, np.count_nonzero(density))
    tone = density / (density + usual)
    cover = np.minimum(1, density * (1.8 / usual))
    lightness = (lightness + dice.between(0.38, 0.62)) % 1
    hue, span, vivid = dice.between(0, 1), dice.between(-0.5, 0.5), dice.between(0.4, 1.0)
    ends = [colour((hue + side * span) % 1, vivid, lightness + 0.15 * side) for side in (-1, 1)]
    contrast = dice.between(0.5, 1.1) * (1 if lightness > 0.5 else -1)
    light = contrast * (tone - 0.5)
    lit = dice.between(-0.5, 1.5)
    if lit > 0:
        cosine, sine = direction(dice.between(0, 1))
        light[1:-1, 1:-1] += lit * (
            cosine * (tone[1:-1, 2:] - tone[1:-1, :-2]) + sine * (tone[2:, 1:-1] - tone[:-2, 1:-1])
        )
    for plane, first, second in zip(surface, *ends, strict=True):
        plane += cover * (first + (second - first) * tint + 0.6 * light - plane)
    return surface
