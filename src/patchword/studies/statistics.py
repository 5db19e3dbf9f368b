"""How sure an answer is: intervals, and tests of pairs. Pure functions of numbers.

Letters: k seeds, n pictures of a test set.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from patchword.evaluation.intervals import LEVEL, Z95, student_half


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval, whose ends are infinite on the sides where nothing is known."""

    value: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """What stands behind ±: half of the interval."""
        return (self.high - self.low) / 2

    def powers(self) -> "Estimate":
        """Of a logarithm to the base 2: what it is the logarithm of."""
        return Estimate(2.0**self.value, 2.0**self.low, 2.0**self.high)

    def plain(self) -> dict[str, float | None]:
        """`value`, `low` and `high` as JSON has them: None where one is not finite."""
        ends = {"value": self.value, "low": self.low, "high": self.high}
        return {name: end if math.isfinite(end) else None for name, end in ends.items()}


def mean_interval(values: ArrayLike, level: float = LEVEL) -> Estimate:
    """The mean of independent values, such as one of each seed, with Student's interval; one value says nothing of spread."""
    numbers = as_numbers(values)
    mean, half = float(numbers.mean()), student_half(numbers, level)
    return Estimate(mean, mean - half, mean + half)


def estimate(values: Sequence[float], level: float = LEVEL) -> Estimate:
    """The same, and not a number where there are no values."""
    return mean_interval(values, level) if values else Estimate(math.nan, -math.inf, math.inf)


def mean_row(values: Sequence[float]) -> dict[str, Any]:
    """The mean with its interval and all `values`, as JSON has them; None where there are no values."""
    return {**estimate(values).plain(), "values": list(values)}


def ends_of(resampled: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The ends of the interval of resampled values, each one of them: some may be infinite."""
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return float(low), float(high)


@dataclasses.dataclass(frozen=True)
class McNemar:
    """Two models on the same pictures."""

    only_first: int
    """Pictures that the first alone got right."""
    only_second: int
    p_value: float
    """How often a difference at least so large, to either side, comes about by chance (exact; McNemar 1947)."""
    difference: Estimate
    """Accuracy of the first less that of the second, with the interval of Agresti and Min (2005)."""


def mcnemar(first_right: ArrayLike, second_right: ArrayLike) -> McNemar:
    """Compare what two models got right, n booleans each, by the pictures on which they differ."""
    first, second = np.asarray(first_right, dtype=bool), np.asarray(second_right, dtype=bool)
    if first.shape != second.shape or first.ndim != 1 or len(first) == 0:
        raise ValueError(f"answers of shapes {first.shape} and {second.shape} are not about the same pictures")
    b, c, n = int((first & ~second).sum()), int((second & ~first).sum()), len(first)
    # Half a picture more in each of the four cells keeps the interval honest where hardly any differ.
    middle, disagreeing = (b - c) / (n + 2), (b + c + 1) / (n + 2)
    half = Z95 * math.sqrt(max(0.0, disagreeing - middle**2) / (n + 2))
    difference = Estimate((b - c) / n, max(-1.0, middle - half), min(1.0, middle + half))
    return McNemar(b, c, sign_test(b, c), difference)


def sign_test(more: int, less: int) -> float:
    """The two-sided probability that fair coins fall so unevenly or more: exact, in whole numbers."""
    n, term, total = more + less, 1, 0
    for heads in range(min(more, less) + 1):
        total += term
        term = term * (n - heads) // (heads + 1)
    return min(1.0, 2 * total / 2**n)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several questions asked at once, each corrected for the others (Holm 1979), in their order."""
    corrected, least = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = least
    return corrected


def pareto_front(costs: ArrayLike, values: ArrayLike) -> list[int]:
    """The places of those that nobody beats: none costs at most as much, is worth at least as much, and one of the two
    more. From the cheapest to the dearest."""
    cost, value = as_numbers(costs), as_numbers(values)
    if len(cost) != len(value):
        raise ValueError(f"{len(cost)} costs are not of {len(value)} values")
    front: list[int] = []
    for place in np.lexsort((-value, cost)):  # by cost; of equal costs the best first
        best = front[-1] if front else None
        if best is None or value[place] > value[best] or (value[place], cost[place]) == (value[best], cost[best]):
            front.append(int(place))
    return front


@functools.lru_cache
def range_quantile(count: int, freedom: float, level: float = LEVEL) -> float:
    """Of `count` independent means that are equal, the range over the standard error of each that is not surpassed so often.

    Tukey's studentised range: with it every difference of two means has an interval that holds together with all others, so that
    it may be asked of the best and the second, whichever these are. `freedom` is that of the error, `math.inf` where it is
    known. Of two means it is √2 times Student's quantile.
    """
    low, high = 0.0, 500.0  # three with one degree of freedom need 27.0, and 135 for 99 %
    while high - low > 1e-7 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _range_within(middle, count, freedom) < level else (low, middle)
    return (low + high) / 2


def half_of_pairs(table: ArrayLike, count: int) -> float:
    """Half of the interval of the difference of any two rows' means, for all pairs of `count` at once (Tukey).

    `table` is M×k: M ≥ 2 of the `count`, such as models, in k ≥ 2 rounds, such as seeds. What a round does to all is taken out,
    and what is left is taken for equally large in all rows, with (M − 1)(k − 1) degrees of freedom. Of two rows it is half of
    the interval of the paired t-test.
    """
    values = np.asarray(table, np.float64)
    rest = values - values.mean(1, keepdims=True) - values.mean(0, keepdims=True) + values.mean()
    freedom = (values.shape[0] - 1) * (values.shape[1] - 1)
    return range_quantile(count, freedom) * math.sqrt((rest**2).sum() / freedom / values.shape[1])


def _range_within(width: float, count: int, freedom: float) -> float:
    """P(range ≤ width · s), s² a χ² over its degrees of freedom: the integral over s, and over the place of the smallest."""
    z = np.linspace(-8.0, 8.0, 1201)
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    below = np.array([0.5 * math.erfc(-each / math.sqrt(2)) for each in z])

    def within(width: float) -> float:
        others = np.interp(z + width, z, below, right=1.0) - below
        return count * _integral(density * others ** (count - 1), z)

    if math.isinf(freedom):
        return within(width)
    spread = 8 / math.sqrt(2 * freedom)
    low, high = max(1e-9, 1 - spread), 1 + spread + 2 / freedom
    s = low + (high - low) * np.linspace(0, 1, 241) ** 3  # denser where few degrees of freedom need it
    log = (freedom - 1) * np.log(s) - freedom * s * s / 2
    weights = np.exp(log - log.max())
    return _integral(weights * [within(width * each) for each in s], s) / _integral(weights, s)


def _integral(values: np.ndarray, places: np.ndarray) -> float:
    return float((values[1:] + values[:-1]) @ np.diff(places)) / 2


def as_numbers(values: ArrayLike) -> np.ndarray:
    """float64 n ≥ 1; raises `ValueError` for anything else."""
    numbers = np.asarray(values, np.float64)
    if numbers.ndim != 1 or len(numbers) == 0:
        raise ValueError(f"values of shape {numbers.shape}; a list of one or more would be right")
    return numbers
