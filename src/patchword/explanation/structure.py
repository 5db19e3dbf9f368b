"""Two statistics for two claims of the paper: attention reaches further with depth, positions have learned rows and columns.

Each comes with what chance gives: layers in another order, patches in other places.
Letters: L layers, H heads, h×w patches, D width.
"""

import dataclasses
import itertools
import math

import numpy as np

_DRAWS = 10_000
_ALL_ORDERS = 7
"""Up to so many layers every order is tried."""


@dataclasses.dataclass(frozen=True)
class Trend:
    """Whether heads look further away in deeper layers (Figure 7, right)."""

    layers: np.ndarray
    """float64 L: the mean distance of each layer's heads, in pixels."""
    correlation: float
    """Spearman's, of all heads' distances with their depth: 1 where each layer looks further than the one before."""
    p_value: float
    """The share of the orders of layers whose correlation is at least as high."""


def depth_trend(distance: np.ndarray) -> Trend:
    """The mean attention distance of each head, L×H in pixels → its trend with depth; raises `ValueError` for one layer.

    The heads of a layer stay together when layers change places, as they are not independent of each other.
    """
    distance = np.asarray(distance, dtype=np.float64)
    depth, heads = distance.shape
    if depth < 2:
        raise ValueError(f"{depth} layer has no trend; two or more are right")
    ranks = average_ranks(distance.ravel()).reshape(depth, heads)
    ranks -= ranks.mean()
    places = average_ranks(np.repeat(np.arange(depth), heads)).reshape(depth, heads)
    places -= places.mean()
    below = math.sqrt(float((ranks**2).sum() * (places**2).sum()))
    if depth <= _ALL_ORDERS:
        orders = np.array(list(itertools.permutations(range(depth))))
    else:
        generator = np.random.default_rng(0)
        drawn = np.argsort(generator.random((_DRAWS, depth)), axis=1)
        orders = np.concatenate([np.arange(depth)[None], drawn])  # with the one that is there, so that no p is 0
    # A layer has one place, so its heads come in by the sum of their ranks.
    correlations = ranks.sum(axis=1)[orders] @ places[:, 0] / max(below, 1e-300)
    found = float(correlations[0])
    return Trend(distance.mean(axis=1), found, float((correlations >= found - 1e-12).mean()))


@dataclasses.dataclass(frozen=True)
class GridStructure:
    """Whether position embeddings know rows and columns (Figure 7, centre), beside the same embeddings in other places."""

    additive: float
    """The share of their variance that one vector for each row and one for each column explain: 1 for `2d` and `sincos`."""
    additive_by_chance: float
    """The mean over shuffled patches; (h + w − 2) / (h·w − 1) for embeddings without any order."""
    additive_p: float
    """The share of the shufflings that reach it."""
    aligned: float
    """By how much more alike (cosine) patches of one row or column are than patches that lie no further apart but share neither:
    embeddings that know nearness alone have less than 0."""
    aligned_p: float
    """The share of the shufflings that reach it."""


def grid_structure(table: np.ndarray, grid: tuple[int, int], draws: int = 1000) -> GridStructure:
    """Position embeddings (h·w)×D in raster order → their structure; raises `ValueError` for grids below 3×3."""
    height, width = grid
    if min(grid) < 3:
        raise ValueError(f"a grid of {height}×{width} is too small to tell rows from columns; 3×3 or more is right")
    table = np.asarray(table, dtype=np.float64)
    if len(table) != height * width:
        raise ValueError(f"{len(table)} embeddings do not make a grid of {height}×{width}")
    generator = np.random.default_rng(0)
    orders = [np.arange(len(table)), *(generator.permutation(len(table)) for _ in range(draws))]
    centred = table - table.mean(axis=0)
    lengths = np.linalg.norm(table, axis=1, keepdims=True)
    cosines = (table / np.maximum(lengths, 1e-300)) @ (table / np.maximum(lengths, 1e-300)).T
    pairs = _aligned_pairs(grid)
    additive = np.array([_additive(centred[order], grid) for order in orders])
    aligned = np.array([float((pairs * cosines[np.ix_(order, order)]).sum()) for order in orders])
    return GridStructure(
        additive=float(additive[0]),
        additive_by_chance=float(additive[1:].mean()),
        additive_p=float((additive >= additive[0] - 1e-12).mean()),
        aligned=float(aligned[0]),
        aligned_p=float((aligned >= aligned[0] - 1e-12).mean()),
    )


def average_ranks(values: np.ndarray) -> np.ndarray:
    """float64 n: 1 for the lowest; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def _additive(centred: np.ndarray, grid: tuple[int, int]) -> float:
    """The share of the variance of (h·w)×D, centred, that means of rows and columns hold (a two-way analysis of variance)."""
    cells = centred.reshape(*grid, -1)
    whole = float((cells**2).sum())
    rows = grid[1] * float((cells.mean(axis=1) ** 2).sum())
    columns = grid[0] * float((cells.mean(axis=0) ** 2).sum())
    return (rows + columns) / whole if whole > 0 else 0.0


def _aligned_pairs(grid: tuple[int, int]) -> np.ndarray:
    """(h·w)×(h·w) weights whose product with similarities is `GridStructure.aligned`.

    For each way d ≥ 2 along a row or column: the mean of the pairs that lie it apart, less the mean of the pairs off both
    whose way is in d − 1 … d; the mean over d.
    """
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    down, across = np.abs(rows[:, None] - rows), np.abs(columns[:, None] - columns)
    far = np.sqrt(down**2 + across**2)
    weights, counted = np.zeros(far.shape), 0
    for d in range(2, max(grid)):
        on = ((down == 0) | (across == 0)) & (far == d)
        off = (down > 0) & (across > 0) & (far > d - 1) & (far <= d)
        if on.any() and off.any():
            weights += on / on.sum() - off / off.sum()
            counted += 1
    return weights / max(1, counted)
