"""Accuracy against size: power laws fitted to learning curves, and where two of them cross. Pure functions of numbers.

Letters: S sizes of training sets, k seeds, R resamples, n training pictures.
"""

import dataclasses
import math
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from patchword.evaluation.intervals import Z95, t_quantile
from patchword.studies.statistics import Estimate, as_numbers, ends_of

RESAMPLES = 2000
REACH = 10.0
"""Up to so many times the largest size a power law is believed."""
_LEVELS = [0.025, 0.975]
_EXPONENTS = (0.02, 3.0)
"""Between which the exponent of a power law is looked for: nearly a logarithm, and steeper than any learning curve."""
_LEAST_ERROR = 1e-3
"""Residuals are relative to the error, but not to one smaller than this."""
_PLACES = 512
"""Sizes at which two curves are compared, evenly spaced in their logarithm; between them a line is exact enough."""


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """error = a · size^−b + c: how a model's error falls with its training pictures (Hestness et al., arXiv 1712.00409)."""

    a: float
    b: float
    c: float
    sizes: tuple[float, ...]
    """Those that it was fitted to, ascending."""
    resampled: np.ndarray
    """R×3: a, b and c of resampled seeds; none where every size has a single seed, so that nothing is known of their spread."""

    def error(self, sizes: ArrayLike) -> np.ndarray:
        """The error at each of `sizes`."""
        return self.a * np.asarray(sizes, np.float64) ** -self.b + self.c

    def errors(self, sizes: ArrayLike) -> np.ndarray:
        """The error at each of `sizes` in each resample, R×len(sizes)."""
        a, b, c = self.resampled.T[:, :, None]
        return a * np.asarray(sizes, np.float64)[None] ** -b + c

    def band(self, sizes: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """The ends of the 95 % interval of the curve at each of `sizes`; infinite where there are no resamples."""
        places = np.atleast_1d(np.asarray(sizes, np.float64))
        if not len(self.resampled):
            return np.full(len(places), -math.inf), np.full(len(places), math.inf)
        low, high = np.quantile(self.errors(places), _LEVELS, axis=0)
        return low, high

    def size_for(self, error: float, resampled: np.ndarray | None = None) -> Estimate:
        """How many training pictures bring the error down to `error`; infinite where no number would.

        `resampled`, R, is that error in each resample where it was measured like this curve; else it is taken as known.
        """
        value = float(_sizes_for(error, np.array([[self.a, self.b, self.c]]))[0])
        if not len(self.resampled):
            return Estimate(value, 0.0, math.inf)
        return Estimate(value, *ends_of(_sizes_for(error if resampled is None else resampled, self.resampled)))


def fit_power_law(sizes: ArrayLike, errors: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> PowerLaw:
    """Fit a power law to errors S×k, of k seeds at each of S sizes; NaN stands for a seed that has not been run.

    The relative residuals of the means over seeds have the least squares, with a ≥ 0 and c ≥ 0, and c = 0 where there are two
    sizes only. A resample moves the mean of each size by the mean of so many seeds' relative deviations, which are drawn from
    those of all sizes: three seeds of one size alone say too little of the tails. They are stretched, for few seeds look
    surer than they are: by √(k/(k−1)) (Rao and Wu 1988), and by Student's quantile against the normal one. Curves with the
    same seeds draw the same ones, so that their differences are those of pairs.
    """
    places, table = as_numbers(sizes), np.asarray(errors, np.float64)
    if table.ndim != 2 or len(table) != len(places) or len(places) < 2:
        raise ValueError(
            f"errors of shape {table.shape} at {len(places)} sizes; S×k at two sizes or more would be right"
        )
    if places.min() <= 0 or len(np.unique(places)) < len(places):
        raise ValueError(f"sizes {places.tolist()} must be positive and differ")
    order = np.argsort(places)
    places, table = places[order], table[order]
    seen = [row[np.isfinite(row)] for row in table]
    if any(len(row) == 0 for row in seen):
        raise ValueError(f"there is no error at size {places[[len(row) == 0 for row in seen]][0]:g}")
    means, counts = np.array([row.mean() for row in seen]), np.array([len(row) for row in seen])
    weights = counts / np.maximum(means, _LEAST_ERROR) ** 2
    drawn = _resampled_means(seen, resamples, seed)
    fitted = _fit(places, np.concatenate([means[None], drawn]), weights)
    a, b, c = map(float, fitted[0])
    return PowerLaw(a, b, c, tuple(map(float, places)), fitted[1:])


@dataclasses.dataclass(frozen=True)
class Crossing:
    """Where the order of two fitted curves changes: "before" and "after" are smaller and larger training sets."""

    leads_before: Literal[0, 1]
    """Whose error is smaller before the last crossing, or where there is none, throughout: the first's (0), the second's (1)."""
    leads_after: Literal[0, 1]
    """The same behind it, to the end of the reach."""
    size: float | None
    """The last crossing from the one to the other; None: there is none in reach."""
    low: float | None
    """The 95 % interval over resamples; None: it begins below the smallest size, or there is no crossing."""
    high: float | None
    """None: it goes beyond the reach, or there is no crossing."""
    share: float
    """Of the resamples in which the curves cross in reach; NaN where there are none."""

    def row(self, first: str, second: str) -> dict[str, Any]:
        """The crossing of the curves of two models by name, as tables keep it and `telling` says it."""
        models = (first, second)
        return {
            "models": models,
            "before": models[self.leads_before],
            "after": models[self.leads_after],
            "size": self.size,
            "low": self.low,
            "high": self.high,
            "share": None if math.isnan(self.share) else self.share,
        }


def crossing(first: PowerLaw, second: PowerLaw, *, reach: float = REACH) -> Crossing:
    """Where two curves cross, between the smallest size that both were measured at and `reach` times the largest."""
    low, high = max(first.sizes[0], second.sizes[0]), reach * max(first.sizes[-1], second.sizes[-1])
    places = np.geomspace(low, high, _PLACES)
    ahead = second.error(places) - first.error(places)  # positive: the first leads
    behind = ahead < 0
    crossed, after = bool((behind[1:] != behind[:-1]).any()), int(behind[-1])
    before = 1 - after if crossed else after  # of two crossings the last one counts, too
    resampled = np.empty((0, _PLACES))
    if len(first.resampled) and len(first.resampled) == len(second.resampled):
        resampled = second.errors(places) - first.errors(places)
    sign = resampled < 0
    share = float((sign[:, 1:] != sign[:, :-1]).any(axis=1).mean()) if len(sign) else math.nan
    leaders: dict[str, Literal[0, 1]] = {"leads_before": _bit(before), "leads_after": _bit(after)}
    if not crossed:
        return Crossing(**leaders, size=None, low=None, high=None, share=share)
    towards = 1.0 if before == 0 else -1.0  # so that the leader before is ahead where the difference is positive
    [size] = _last_falls(places, towards * ahead[None])
    if not len(resampled):
        return Crossing(**leaders, size=float(size), low=None, high=None, share=share)
    ends = ends_of(_last_falls(places, towards * resampled))
    inside = [float(end) if 0 < end < math.inf else None for end in ends]
    return Crossing(**leaders, size=float(size), low=inside[0], high=inside[1], share=share)


def _bit(value: int) -> Literal[0, 1]:
    return 1 if value else 0


def _last_falls(places: np.ndarray, ahead: np.ndarray) -> np.ndarray:
    """The last place where each row of `ahead` falls below zero; infinite where it ends above zero, 0 where it is below
    throughout."""
    sizes = np.empty(len(ahead))
    for row, values in enumerate(ahead):
        falls = np.flatnonzero((values[:-1] >= 0) & (values[1:] < 0))
        if values[-1] >= 0:
            sizes[row] = math.inf
        elif not len(falls):
            sizes[row] = 0.0
        else:
            left = falls[-1]
            part = values[left] / (values[left] - values[left + 1])
            sizes[row] = places[left] * (places[left + 1] / places[left]) ** part
    return sizes


def _sizes_for(error: float | np.ndarray, curves: np.ndarray) -> np.ndarray:
    a, b, c = curves.T
    room = error - c
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        # No room above the floor: never. No slope: from the first picture on.
        return np.where(room <= 0, math.inf, np.where(a == 0, 0.0, (a / room) ** (1 / b)))


def _resampled_means(seen: list[np.ndarray], resamples: int, seed: int) -> np.ndarray:
    """R×S means as new seeds would have them, of the errors seen at each size; 0×S where no size has two of them."""
    repeated = [row for row in seen if len(row) > 1]
    if not repeated:
        return np.empty((0, len(seen)))
    pool = np.concatenate(
        [math.sqrt(len(row) / (len(row) - 1)) * (row - row.mean()) / max(row.mean(), _LEAST_ERROR) for row in repeated]
    )
    pool *= t_quantile(len(pool) - len(repeated)) / Z95
    generator = np.random.default_rng(seed)
    moved = [pool[generator.integers(0, len(pool), (resamples, len(row)))].mean(axis=1) for row in seen]
    means = np.array([row.mean() for row in seen])
    return np.maximum(0.0, means + np.maximum(means, _LEAST_ERROR) * np.stack(moved, axis=1))


def _fit(sizes: np.ndarray, means: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """a, b and c for each row of means, R×S → R×3. Given b the rest is linear; b is looked for ever more closely."""
    unit = math.exp(np.log(sizes).mean())
    lowest, highest = _EXPONENTS
    tried = np.broadcast_to(np.geomspace(lowest, highest, 201), (len(means), 201))
    step = (highest / lowest) ** (1 / 200)
    found = np.empty((3, len(means)))
    for _ in range(4):
        a, c, loss = _linear(sizes / unit, means, weights, tried)
        best = loss.argmin(axis=1)[:, None]
        found = np.stack([np.take_along_axis(each, best, axis=1)[:, 0] for each in (a, tried, c)])
        tried = np.clip(found[1][:, None] * step ** np.linspace(-1, 1, 21), lowest, highest)
        step **= 0.1
    a, b, c = found
    return np.stack([a * unit**b, b, c], axis=1)


def _linear(
    sizes: np.ndarray, means: np.ndarray, weights: np.ndarray, exponents: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """a and c ≥ 0 of the least weighted squares, and these squares, for each exponent of each row, R×G."""
    w = weights / weights.sum()
    x = sizes[None, None] ** -exponents[:, :, None]  # R×G×S
    y = means[:, None]
    xx, xy, mx, my = (x * x) @ w, (x * y) @ w, x @ w, y @ w
    variance = xx - mx**2
    a = np.divide(xy - mx * my, variance, out=np.zeros_like(xx), where=variance > 1e-15)
    c = my - a * mx
    a = np.where(c < 0, xy / xx, a)  # without a floor
    if len(sizes) == 2:
        a, c = xy / xx, np.zeros_like(c)
    a, c = np.where(a < 0, 0.0, a), np.where(a < 0, my, np.maximum(c, 0.0))
    loss = ((a[:, :, None] * x + c[:, :, None] - y) ** 2) @ w
    return a, c, loss
