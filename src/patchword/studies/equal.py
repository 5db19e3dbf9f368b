"""How many times the compute one family of models needs of another's for equal accuracy. Pure functions of numbers.

A family's curve goes through the runs that are better than all of the family that cost as much or less, and is linear in log
FLOPs between them. Two curves are compared at every accuracy that both reach. Where there is none, for the one begins above the
end of the other, it needs less by the whole range of FLOPs between these two: by so much at least.

Letters: P runs that differ in model or budget, k seeds, R resamples.
"""

import math
from typing import NamedTuple

import numpy as np

from patchword.studies.statistics import LEVEL, Estimate, ends_of

RESAMPLES = 10_000
_LEVELS = 65
"""Accuracies at which two curves are compared, evenly spaced."""


class Family(NamedTuple):
    """What models of a kind reached, with what compute."""

    flops: np.ndarray
    """P."""
    values: np.ndarray
    """P×k: accuracies, each seed's in a column of its own."""


def times_the_compute(first: Family, second: Family, level: float = LEVEL, *, seed: int = 0) -> Estimate:
    """log₂ of how many times the FLOPs of the first family the second needs, mean over the accuracies that both reach.

    Both have the same seeds. Where the curves of the means reach no accuracy in common (`above`) it is a bound.

    The interval comes from resamples of the means. A resample moves those of all runs at once by their seeds' deviations, each
    times a normal draw, over one χ draw: as the difference of two means it has Student's distribution exactly (k − 1 degrees of
    freedom), and what seeds do alike to all runs stays alike. One seed says nothing of spread.
    """
    value = _log_ratio(_means(first), _means(second))
    count = first.values.shape[1]
    if count < 2:
        return Estimate(value, -math.inf, math.inf)
    generator = np.random.default_rng(seed)
    draws = generator.standard_normal((RESAMPLES, count)) / math.sqrt(count * (count - 1))
    draws /= np.sqrt(generator.chisquare(count - 1, (RESAMPLES, 1)) / (count - 1))
    moved = [
        each.values.mean(1) + draws @ (each.values - each.values.mean(1, keepdims=True)).T for each in (first, second)
    ]
    ratios = np.empty(RESAMPLES)
    for row, (one, other) in enumerate(zip(*moved, strict=True)):
        ratios[row] = _log_ratio(_curve(first.flops, one), _curve(second.flops, other))
    return Estimate(value, *ends_of(ratios, level))


def slope(first: Family, second: Family) -> float:
    """Accuracy for each doubling of FLOPs, mean of both families: what a difference of log₂ FLOPs is worth."""
    slopes = []
    for flops, values in (_means(first), _means(second)):
        rise, doublings = values[-1] - values[0], flops[-1] - flops[0]
        slopes.append(rise / doublings if doublings > 0 else 0.0)
    return float(np.mean(slopes))


def above(first: Family, second: Family) -> int | None:
    """Which of two families reaches with its least compute more than the other with its most: 0, 1 or neither."""
    (_, one), (_, other) = _means(first), _means(second)
    return 0 if one[0] > other[-1] else 1 if other[0] > one[-1] else None


_Curve = tuple[np.ndarray, np.ndarray]
"""log₂ FLOPs and accuracy, both ascending."""


def _means(family: Family) -> _Curve:
    return _curve(family.flops, family.values.mean(1))


def _curve(flops: np.ndarray, values: np.ndarray) -> _Curve:
    order = np.lexsort((-values, flops))  # of equal FLOPs the best first
    best = np.maximum.accumulate(values[order])
    better = np.concatenate([[True], best[1:] > best[:-1]])
    return np.log2(flops[order][better]), best[better]


def _log_ratio(first: _Curve, second: _Curve) -> float:
    low, high = max(first[1][0], second[1][0]), min(first[1][-1], second[1][-1])
    if low > high:  # the one begins above the end of the other
        if first[1][0] > second[1][-1]:
            return max(0.0, second[0][-1] - first[0][0])
        return -max(0.0, first[0][-1] - second[0][0])
    # The middles of equal parts: at the ends themselves a level stretch would count with one of its sides.
    reached = low + (high - low) * (np.arange(_LEVELS) + 0.5) / _LEVELS
    needed = [np.interp(reached, values, flops) for flops, values in (first, second)]
    return float((needed[1] - needed[0]).mean())
