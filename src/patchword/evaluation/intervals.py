"""How far a share and a mean may be from the truth."""

import functools
import math

import numpy as np

LEVEL = 0.95
"""Of an interval, where nothing else is said."""
Z95 = 1.959963984540054
"""Standard deviations to either side that hold 95 % of a normal distribution."""


def wilson_interval(correct: int, n: int, z: float = Z95) -> list[float]:
    """The 95 % interval of a proportion (Wilson 1927), which stays inside 0…1 and is right for small n."""
    if n == 0:
        return [0.0, 1.0]
    share, spread = correct / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    # At 0 and n the bounds are exactly 0 and 1; rounding must not say otherwise.
    return [0.0 if correct == 0 else middle - half, 1.0 if correct == n else middle + half]


def student_half(values: np.ndarray, level: float = LEVEL) -> float:
    """Half of Student's interval of the mean of independent values; infinite of a single one, which says nothing of spread."""
    if len(values) == 1:
        return math.inf
    return t_quantile(len(values) - 1, level) * float(values.std(ddof=1)) / math.sqrt(len(values))


@functools.lru_cache
def t_quantile(freedom: int, level: float = LEVEL) -> float:
    """How many standard errors to either side hold 95 % of Student's distribution with so many degrees of freedom."""
    low, high = 0.0, 10_000.0  # one degree needs 12.7, 63.7 for 99 %, and 255 for a fourth of the doubt
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if _t_within(middle, freedom) < level else (low, middle)
    return (low + high) / 2


def _t_within(t: float, freedom: int) -> float:
    """P(|T| ≤ t), a finite sum for whole degrees of freedom (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    if freedom < 1:
        raise ValueError(f"{freedom} degrees of freedom; one or more would be right")
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term, total = math.cos(angle) if odd else 1.0, 0.0
    for power in range(1 if odd else 0, freedom - 1, 2):
        total += term
        term *= (power + 1) / (power + 2) * math.cos(angle) ** 2
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
