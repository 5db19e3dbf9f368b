"""How many times the compute one family needs: exact on curves whose answer is known, and as sure as it says."""

import math

import numpy as np
import pytest
from scipy import stats

from patchword.studies import equal
from patchword.studies.equal import Family, above, slope, times_the_compute
from patchword.studies.statistics import Estimate

BUDGETS = np.array([1.0, 2.0, 4.0, 8.0])


def reached(flops: np.ndarray) -> np.ndarray:
    """Ten points for each doubling."""
    return 0.4 + 0.1 * np.log2(flops)


def family(values: np.ndarray, flops: np.ndarray = BUDGETS, spread: tuple[float, ...] = (0.0,)) -> Family:
    return Family(flops, values[:, None] + np.array(spread))


@pytest.mark.parametrize("ratio", [1.0, 2.0, 0.5, 3.0])
def test_a_shifted_curve_needs_so_many_times_the_compute(ratio: float) -> None:
    """Whatever the budgets that it was measured at."""
    first, second = family(reached(BUDGETS)), family(reached(1.3 * BUDGETS / ratio), 1.3 * BUDGETS)
    assert times_the_compute(first, second).value == pytest.approx(math.log2(ratio))
    assert times_the_compute(second, first).value == pytest.approx(-math.log2(ratio))
    assert slope(first, second) == pytest.approx(0.1)


def test_by_hand() -> None:
    """From 0.4 to 0.5 the first needs 0 … 1 doublings, the second 0 … 3: on average one more. Above nothing is compared."""
    first = family(np.array([0.4, 0.5, 0.9]), BUDGETS[:3])
    second = family(np.array([0.4, 0.5]), np.array([1.0, 8.0]))
    assert times_the_compute(first, second).value == pytest.approx(1.0)
    assert slope(first, second) == pytest.approx((0.25 + 0.1 / 3) / 2)
    assert slope(first, family(np.array([0.5]), np.array([2.0]))) == pytest.approx(0.25 / 2)  # one budget has no slope


def test_a_curve_is_the_best_of_the_family_and_never_falls() -> None:
    best = family(reached(BUDGETS))
    other = np.concatenate([BUDGETS, BUDGETS, 0.98 * BUDGETS[1:], [16.0]])
    worse = np.concatenate([reached(BUDGETS), reached(BUDGETS) - 0.07, reached(BUDGETS[1:]) - 0.12, [0.3]])
    both = family(worse, other)
    assert times_the_compute(best, both).value == pytest.approx(0.0, abs=1e-12)


def test_curves_that_share_no_accuracy_give_a_bound() -> None:
    """What begins above the end of the other needs less by all that was measured: three doublings, or none where it is dearer."""
    low, high = family(reached(BUDGETS)), family(reached(BUDGETS) + 0.31)
    assert (times_the_compute(high, low).value, times_the_compute(low, high).value) == (3.0, -3.0)
    assert (above(low, high), above(high, low), above(low, low)) == (1, 0, None)
    dear = family(reached(BUDGETS) + 0.31, 8 * BUDGETS)
    assert (times_the_compute(dear, low).value, times_the_compute(low, dear).value) == (0.0, 0.0)
    dearer = family(reached(BUDGETS) + 0.31, 16 * BUDGETS)
    assert times_the_compute(dearer, low).value == 0.0, "nothing is known of less than the least"
    spread = family(reached(BUDGETS) + 0.31, spread=(-0.2, 0.0, 0.2))
    found = times_the_compute(spread, family(reached(BUDGETS), spread=(0.0, 0.0, 0.0)))
    assert (found.value, found.high) == (3.0, 3.0)
    assert found.low < 0, "by the chance of these seeds it might be below"


def test_a_curve_that_is_level_is_compared_at_its_one_accuracy() -> None:
    """Where the other needs two budgets more, or the same; ends that touch have that accuracy in common."""
    level, rising = family(np.full(4, reached(BUDGETS)[1])), family(reached(BUDGETS))
    assert times_the_compute(level, rising).value == pytest.approx(1.0)
    assert times_the_compute(rising, level).value == pytest.approx(-1.0)
    assert times_the_compute(level, level).value == 0.0
    top = family(np.full(4, reached(BUDGETS)[-1]))
    assert (above(top, rising), times_the_compute(top, rising).value) == (None, pytest.approx(3.0))


def test_one_seed_says_nothing_of_spread() -> None:
    found = times_the_compute(family(reached(BUDGETS)), family(reached(BUDGETS / 2)))
    assert (found.low, found.high) == (-math.inf, math.inf)
    told = found.powers().plain()
    assert (told["value"], told["low"], told["high"]) == (pytest.approx(2.0), 0.0, None)
    assert Estimate(1.0, 0.0, 3.0).powers() == Estimate(2.0, 1.0, 8.0)


def test_the_interval_is_students_where_the_ratio_is_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """A seed that lifts one whole curve shifts it by a tenth of a doubling a point; what it does to both is not in it."""
    monkeypatch.setattr(equal, "RESAMPLES", 40_000)
    mine, common = (-0.004, 0.001, 0.003), np.array([0.02, -0.03, 0.01])
    first = Family(BUDGETS, reached(BUDGETS)[:, None] + np.array(mine) + common)
    second = Family(BUDGETS, np.repeat(reached(BUDGETS / 2)[:, None], 3, axis=1) + common)
    for level in (0.95, 0.9):
        found = times_the_compute(first, second, level)
        half = stats.t.ppf((1 + level) / 2, 2) * stats.sem(mine) / 0.1
        assert found.value == pytest.approx(1.0)
        assert (found.value - found.low, found.high - found.value) == pytest.approx((half, half), rel=0.06)


def test_the_interval_holds_the_truth_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two models a family, at three seeds, with chance that is common to a seed and chance that is not."""
    monkeypatch.setattr(equal, "RESAMPLES", 600)
    generator, flops, held = np.random.default_rng(3), np.concatenate([BUDGETS, 0.98 * BUDGETS]), 0

    def drawn(ratio: float, common: np.ndarray) -> Family:
        means = np.concatenate([reached(BUDGETS / ratio), reached(BUDGETS / ratio) - 0.03])
        return Family(flops, means[:, None] + common + 0.02 * generator.standard_normal((8, 3)))

    for _ in range(200):
        common = 0.02 * generator.standard_normal(3)
        found = times_the_compute(drawn(1.0, common), drawn(2.0, common))
        held += found.low <= 1 <= found.high
    assert 0.91 <= held / 200 <= 0.99


def test_resamples_without_a_common_accuracy_count_as_far_as_was_measured() -> None:
    """Curves that hardly meet: the interval ends at the whole range of FLOPs, three doublings."""
    first = family(reached(BUDGETS) + 0.29, spread=(-0.01, 0.0, 0.01))
    second = family(reached(BUDGETS), spread=(0.01, -0.01, 0.0))
    found = times_the_compute(first, second)
    assert found.value == pytest.approx(2.9, abs=0.02)
    assert found.high == pytest.approx(3.0, abs=0.1)
    assert 2 < found.low < 2.9
    turned = times_the_compute(second, first)
    assert (turned.value, turned.low) == (pytest.approx(-2.9, abs=0.02), pytest.approx(-3.0, abs=0.1))
    assert -2.9 < turned.high < -2
