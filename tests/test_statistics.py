"""Intervals and tests against SciPy and by hand; power laws and crossings on curves whose answer is known."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import optimize, stats

from patchword.evaluation.intervals import t_quantile
from patchword.studies.curves import crossing, fit_power_law
from patchword.studies.statistics import (
    Estimate,
    half_of_pairs,
    holm,
    mcnemar,
    mean_interval,
    pareto_front,
    range_quantile,
    sign_test,
)

SIZES = [100, 300, 1000, 3000]


def law(a: float, b: float, c: float) -> np.ndarray:
    return a * np.array(SIZES, float) ** -b + c


def test_nothing_here_needs_torch() -> None:
    code = "import sys, patchword.studies.statistics; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 6, 7, 10, 29, 100])
def test_student_is_scipys(freedom: int) -> None:
    assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-9)
    for level in (0.99, 0.9975):
        assert t_quantile(freedom, level) == pytest.approx(stats.t.ppf((1 + level) / 2, freedom), rel=1e-9)


@pytest.mark.parametrize(("count", "freedom"), [(2, 2), (3, 1), (3, 4), (4, 6), (4, 40), (10, 18), (4, 2000)])
def test_the_range_is_scipys(count: int, freedom: int) -> None:
    for level in (0.95, 0.99):
        theirs = stats.studentized_range.ppf(level, count, freedom)
        assert range_quantile(count, freedom, level) == pytest.approx(theirs, rel=2e-3 if freedom == 1 else 1e-4)
    assert range_quantile(2, freedom) == pytest.approx(math.sqrt(2) * t_quantile(freedom), rel=1e-3)
    assert range_quantile(2, math.inf) == pytest.approx(math.sqrt(2) * 1.959964, rel=1e-4)


def test_pairs_hold_together_whoever_is_first() -> None:
    """Of four that are equal the best is told from the worst in 5 of 100 studies; by intervals of pairs alone in 12."""
    draws = np.random.default_rng(6).standard_normal((4000, 4, 3)) + 3 * np.random.default_rng(7).standard_normal(
        (4000, 1, 3)
    )
    means = draws.mean(2)
    best, worst = draws[np.arange(4000), means.argmax(1)], draws[np.arange(4000), means.argmin(1)]
    range_ = means.max(1) - means.min(1)
    half = np.array([half_of_pairs(table, 4) for table in draws])
    assert np.mean(range_ > half) == pytest.approx(0.05, abs=0.012)
    alone = stats.t.ppf(0.975, 2) * stats.sem(best - worst, axis=1)
    assert np.mean(range_ > alone) == pytest.approx(0.12, abs=0.015)
    assert half_of_pairs(draws[0, :2], 2) == pytest.approx(mean_interval(draws[0, 0] - draws[0, 1]).half, rel=1e-4)


def test_student_has_a_degree_of_freedom() -> None:
    with pytest.raises(ValueError, match="one or more"):
        t_quantile(0)


def test_the_mean_has_students_interval() -> None:
    """Of 1, 2 and 6: the mean is 3, s² = 7, and two degrees of freedom want 4.303 standard errors."""
    found = mean_interval([1, 2, 6])
    half = 4.302652729911275 * math.sqrt(7 / 3)
    assert (found.value, found.low, found.high) == pytest.approx((3, 3 - half, 3 + half))
    assert found.half == pytest.approx(half)
    assert mean_interval([0.25]) == Estimate(0.25, -math.inf, math.inf)
    with pytest.raises(ValueError, match="a list of one or more"):
        mean_interval([])


@pytest.mark.parametrize(("more", "less"), [(0, 0), (1, 0), (5, 0), (3, 9), (9, 3), (7, 7), (250, 301)])
def test_the_sign_test_is_the_binomial_test(more: int, less: int) -> None:
    theirs = stats.binomtest(more, more + less).pvalue if more + less else 1.0
    assert sign_test(more, less) == pytest.approx(theirs, rel=1e-12)


def test_mcnemar_counts_the_pictures_on_which_two_differ() -> None:
    """Of 10 pictures both know 3, the first alone 5, the second alone 1: 2·(1 + 6)/2⁶."""
    first = [1, 1, 1, 1, 1, 1, 1, 1, 0, 0]
    second = [1, 1, 1, 0, 0, 0, 0, 0, 1, 0]
    found = mcnemar(first, second)
    assert (found.only_first, found.only_second, found.p_value) == (5, 1, 14 / 64)
    # Agresti and Min: 12 pictures with half a one more in each cell.
    half = 1.959963984540054 * math.sqrt((7 / 12 - (4 / 12) ** 2) / 12)
    assert found.difference.value == pytest.approx(0.4)
    assert (found.difference.low, found.difference.high) == pytest.approx((4 / 12 - half, 4 / 12 + half))
    turned = mcnemar(second, first)
    assert (turned.p_value, turned.difference.value) == (found.p_value, -found.difference.value)
    assert mcnemar([1, 0], [1, 0]).p_value == 1
    for hostile in ([[1]], [[0]]), ([1, 0], [1]), ([], []):
        with pytest.raises(ValueError, match="same pictures"):
            mcnemar(*hostile)


def test_the_interval_of_a_difference_holds_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(5)
    first_only, second_only, n, held = 0.12, 0.05, 203, 0
    for _ in range(600):
        draw = generator.random(n)
        first, second = draw < first_only, (draw >= first_only) & (draw < first_only + second_only)
        found = mcnemar(first, second).difference
        held += found.low <= first_only - second_only <= found.high
    assert 0.93 <= held / 600 <= 0.98


def test_holm_by_hand() -> None:
    """Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, and never less than the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_pareto_front_is_whom_nobody_beats() -> None:
    generator = np.random.default_rng(2)
    costs, values = generator.integers(0, 12, 60).astype(float), generator.integers(0, 12, 60).astype(float)

    def beaten(i: int) -> bool:
        better = [(costs[j] < costs[i]) or (values[j] > values[i]) for j in range(60)]
        as_good = [(costs[j] <= costs[i]) and (values[j] >= values[i]) for j in range(60)]
        return any(one and other for one, other in zip(better, as_good, strict=True))

    front = pareto_front(costs, values)
    assert sorted(front) == [i for i in range(60) if not beaten(i)]
    assert costs[front].tolist() == sorted(costs[front])
    assert pareto_front([3, 1, 2, 1], [5, 4, 4, 4]) == [1, 3, 0]
    with pytest.raises(ValueError, match="costs"):
        pareto_front([1, 2], [1])


@pytest.mark.parametrize(("a", "b", "c"), [(3.0, 0.4, 0.05), (1.2, 0.15, 0.0), (40.0, 1.1, 0.2)])
def test_an_exact_power_law_is_found_again(a: float, b: float, c: float) -> None:
    found = fit_power_law(SIZES, law(a, b, c)[:, None])
    assert (found.a, found.b, found.c) == pytest.approx((a, b, c), rel=2e-3, abs=2e-4)
    assert found.error(777.0) == pytest.approx(a * 777**-b + c, rel=1e-4)
    assert len(found.resampled) == 0
    assert [each.tolist() for each in found.band([50])] == [[-math.inf], [math.inf]]


def test_the_fit_has_the_least_relative_squares() -> None:
    """SciPy's bounded least squares finds nothing better."""
    generator = np.random.default_rng(8)
    for _ in range(5):
        means = law(2.0, 0.35, 0.08) * (1 + 0.05 * generator.standard_normal(4))

        def residuals(p: np.ndarray, means: np.ndarray = means) -> np.ndarray:
            return (p[0] * np.array(SIZES) ** -p[1] + p[2]) / means - 1

        best = min(
            optimize.least_squares(residuals, start, bounds=([0, 0.02, 0], [np.inf, 3, np.inf])).cost
            for start in itertools.product([1.0, 5.0], [0.2, 0.8], [0.01, 0.1])
        )
        found = fit_power_law(SIZES, means[:, None])
        assert 0.5 * (residuals(np.array([found.a, found.b, found.c])) ** 2).sum() <= best * 1.0001 + 1e-12


def test_a_mean_of_more_seeds_counts_more() -> None:
    """A size with twelve seeds draws the curve to it, and one with a single seed does not: again SciPy finds nothing better."""
    counts, means = np.array([12, 1, 12, 1]), law(2.0, 0.35, 0.08) * np.array([1.1, 0.9, 1.05, 0.93])
    table = np.where(np.arange(12) < counts[:, None], means[:, None], math.nan)

    def residuals(p: np.ndarray) -> np.ndarray:
        return np.sqrt(counts) * ((p[0] * np.array(SIZES) ** -p[1] + p[2]) / means - 1)

    best = optimize.least_squares(residuals, [2.0, 0.35, 0.08], bounds=([0, 0.02, 0], [np.inf, 3, np.inf])).x
    found = fit_power_law(SIZES, table, resamples=10)
    assert found.error(SIZES) == pytest.approx(best[0] * np.array(SIZES) ** -best[1] + best[2], rel=1e-3)


def test_a_curve_without_a_floor_is_fitted_again_without_it() -> None:
    """Errors that fall faster and faster: with the floor at 0 the slope is another than where it may lie below."""
    means = np.array([0.5, 0.4, 0.25, 0.1])

    def residuals(p: np.ndarray) -> np.ndarray:
        return p[0] * np.array(SIZES) ** -p[1] / means - 1

    best = optimize.least_squares(residuals, [2.0, 0.3], bounds=([0, 0.02], [np.inf, 3])).x
    found = fit_power_law(SIZES, means[:, None])
    assert (found.a, found.b, found.c) == pytest.approx((*best, 0), rel=1e-3)


def test_what_two_sizes_or_a_rising_error_say() -> None:
    two = fit_power_law([1000, 100], [[0.1], [0.4]])
    assert (two.b, two.c) == pytest.approx((math.log10(4), 0), rel=1e-4)
    assert two.sizes == (100, 1000)
    rising = fit_power_law([10, 20, 40], [[0.2], [0.3], [0.4]])
    weights = np.array([0.2, 0.3, 0.4]) ** -2
    assert (rising.a, rising.c) == (0, pytest.approx(weights @ [0.2, 0.3, 0.4] / weights.sum()))
    assert fit_power_law([10, 20, 40], [[0.0], [0.0], [0.0]]).error(30) == 0


@pytest.mark.parametrize(
    ("sizes", "errors", "said"),
    [
        ([100], [[0.1]], "two sizes"),
        ([100, 200], [0.1, 0.2], "S×k"),
        ([100, 100], [[0.1], [0.2]], "differ"),
        ([0, 100], [[0.1], [0.2]], "positive"),
        ([100, 200], [[0.1, 0.2], [math.nan, math.nan]], "no error at size 200"),
    ],
)
def test_what_cannot_be_fitted_is_refused(sizes: list[int], errors: list[list[float]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fit_power_law(sizes, errors)


def noisy(truth: np.ndarray, spread: float, seed: int, seeds: int = 3) -> np.ndarray:
    draws = np.random.default_rng(seed).standard_normal((len(SIZES), seeds))
    return truth[:, None] * (1 + spread * draws)


def test_the_band_holds_the_truth_about_as_often_as_it_says() -> None:
    """Without the two stretches three seeds would hold it about 80 times of 100."""
    truth, held = law(3.0, 0.4, 0.05), np.zeros(4)
    for seed in range(150):
        low, high = fit_power_law(SIZES, noisy(truth, 0.04, seed), resamples=300).band(SIZES)
        held += (low <= truth) & (truth <= high)
    assert ((held / 150 > 0.89) & (held / 150 < 0.99)).all()


def test_the_size_for_an_error_is_the_inverse() -> None:
    curve = fit_power_law(SIZES, noisy(law(3.0, 0.4, 0.05), 0.01, 1))
    needed = curve.size_for(0.12)
    assert curve.error(needed.value) == pytest.approx(0.12)
    assert needed.low < needed.value < needed.high
    assert curve.size_for(0.001).value == math.inf
    assert fit_power_law(SIZES, law(3.0, 0.4, 0.05)[:, None]).size_for(0.2).high == math.inf


def test_the_size_for_an_error_that_was_measured_is_as_unsure_as_that() -> None:
    """Of a leader whose seeds differ by more than those of who follows: taken as known it would be held 71 times of 100."""
    truth, leader, held = law(3.0, 0.4, 0.05), law(2.0, 0.4, 0.05), np.zeros(2)
    for seed in range(80):
        curve = fit_power_law(SIZES, noisy(truth, 0.01, seed), resamples=300)
        theirs = noisy(leader, 0.05, 1000 + seed)
        moved = fit_power_law(SIZES, theirs, resamples=300).errors([3000])[:, 0]
        wanted = float(theirs[-1].mean())
        for place, found in enumerate(
            (curve.size_for(wanted), curve.size_for(wanted, wanted + moved - float(moved.mean())))
        ):
            held[place] += found.low <= 3000 * 1.5**2.5 <= found.high
    assert held[0] / 80 < 0.85
    assert held[1] / 80 > 0.9


def test_missing_seeds_are_left_out() -> None:
    errors = noisy(law(3.0, 0.4, 0.05), 0.05, 4)
    errors[1, 2] = math.nan
    errors[3, 1:] = math.nan  # a single seed moves as those of other sizes do
    found = fit_power_law(SIZES, errors)
    assert np.isfinite(found.resampled).all()
    assert np.ptp(found.errors([3000])) > 0
    assert found.error(3000) == pytest.approx(errors[3, 0], rel=0.05)


def test_two_curves_cross_where_they_are_equal() -> None:
    """2·n^−0.25 = 20·n^−0.625 at n = 10^(8/3)."""
    slow, fast = law(2.0, 0.25, 0), law(20.0, 0.625, 0)
    first, second = fit_power_law(SIZES, noisy(slow, 0.02, 1)), fit_power_law(SIZES, noisy(fast, 0.02, 2))
    exact = crossing(fit_power_law(SIZES, slow[:, None]), fit_power_law(SIZES, fast[:, None]))
    assert exact.size == pytest.approx(10 ** (8 / 3), rel=2e-3)
    assert (exact.leads_before, exact.leads_after, exact.low, exact.high) == (0, 1, None, None)
    assert math.isnan(exact.share)
    found = crossing(first, second)
    assert found.low is not None
    assert found.high is not None
    assert found.size is not None
    assert found.low < 10 ** (8 / 3) < found.high
    assert found.share == 1
    turned = crossing(second, first)
    assert (turned.leads_before, turned.leads_after) == (1, 0)
    assert (turned.size, turned.low, turned.high) == pytest.approx((found.size, found.low, found.high))


def test_curves_that_do_not_cross_in_reach_say_so() -> None:
    better, worse = law(2.0, 0.4, 0.02), law(3.0, 0.4, 0.02)
    found = crossing(fit_power_law(SIZES, noisy(worse, 0.02, 1)), fit_power_law(SIZES, noisy(better, 0.02, 2)))
    assert (found.leads_before, found.leads_after, found.size, found.low, found.high) == (1, 1, None, None, None)
    assert found.share < 0.3
    # 1.1·n^−0.2 and 20·n^−0.45 meet at about 109,000: not in reach of 10 × 3,000, but of 100 times as many.
    slow, fast = (fit_power_law(SIZES, each[:, None]) for each in (law(1.1, 0.2, 0), law(20.0, 0.45, 0)))
    assert crossing(slow, fast).size is None
    assert crossing(slow, fast, reach=100).size == pytest.approx((20 / 1.1) ** 4, rel=2e-2)


def test_curves_are_compared_from_where_both_were_measured_to_the_reach_of_either() -> None:
    """They meet at 464: not where one was measured from 1,000 on, and in the reach of 3,000 though the other ends at 300."""
    slow, fast = law(2.0, 0.25, 0)[:, None], law(20.0, 0.625, 0)[:, None]
    late = crossing(fit_power_law(SIZES, slow), fit_power_law(SIZES[2:], fast[2:]))
    assert (late.size, late.leads_before, late.leads_after) == (None, 1, 1)
    few = fit_power_law(SIZES[:2], slow[:2])
    assert crossing(few, fit_power_law(SIZES, fast)).size == pytest.approx(10 ** (8 / 3), rel=2e-3)
    assert crossing(few, fit_power_law(SIZES[:2], fast[:2]), reach=1.5).size is None
    assert crossing(few, fit_power_law(SIZES, fast), reach=0.2).size == pytest.approx(10 ** (8 / 3), rel=2e-3)


def test_a_crossing_with_a_curve_of_single_seeds_has_no_interval() -> None:
    slow, fast = law(2.0, 0.25, 0), law(20.0, 0.625, 0)
    known, alone = fit_power_law(SIZES, noisy(slow, 0.02, 1)), fit_power_law(SIZES, fast[:, None])
    for found in (crossing(known, alone), crossing(alone, known)):
        assert found.size == pytest.approx(10 ** (8 / 3), rel=0.1)
        assert (found.low, found.high) == (None, None)
        assert math.isnan(found.share)


def test_an_interval_that_begins_before_the_smallest_size_has_no_beginning() -> None:
    """The curves meet at 150 of 100 … 30,000, and are uncertain: below 100 nothing was measured."""
    slow, fast = law(2.0, 0.25, 0), law(2.0 * 150**0.2, 0.45, 0)
    found = crossing(fit_power_law(SIZES, noisy(slow, 0.12, 1)), fit_power_law(SIZES, noisy(fast, 0.12, 2)))
    assert found.size is not None
    assert found.high is not None
    assert found.low is None
    assert 100 < found.size < found.high


def test_no_resample_has_a_curve_below_no_error() -> None:
    """Where hardly anything goes wrong the deviations are as large as the errors."""
    found = fit_power_law(SIZES, [[0.02, 0.0, 0.001], [0.01, 0.0, 0.0], [0.0, 0.004, 0.0], [0.0, 0.0, 0.003]])
    assert (found.errors([100, 3000, 30_000]) >= 0).all()


def test_curves_that_cross_twice_have_a_last_crossing() -> None:
    """0.9·n^−0.1 leads at 100 and at 30,000 pictures, and is behind where 20·n^−0.8 + 0.35 has fallen to its floor."""
    slow, floored = law(0.9, 0.1, 0), law(20.0, 0.8, 0.35)
    assert (slow < floored).tolist() == [True, True, False, False]
    last = optimize.root_scalar(lambda n: 0.9 * n**-0.1 - 20 * n**-0.8 - 0.35, bracket=(3000, 30_000)).root
    exact = crossing(fit_power_law(SIZES, slow[:, None]), fit_power_law(SIZES, floored[:, None]))
    assert (exact.leads_before, exact.leads_after) == (1, 0)
    assert exact.size == pytest.approx(last, rel=0.02)
    found = crossing(fit_power_law(SIZES, noisy(slow, 0.002, 1)), fit_power_law(SIZES, noisy(floored, 0.002, 2)))
    assert (found.leads_before, found.leads_after, found.share) == (1, 0, 1)
    assert found.low is not None
    assert found.low < last
    assert found.high is None or last < found.high


def test_an_interval_that_leaves_the_reach_has_no_end() -> None:
    """The curves meet at 20,000 of 30,000 in reach, and are uncertain: the upper end is open."""
    slow, fast = law(2.0, 0.25, 0), law(2.0 * 20_000**0.1, 0.35, 0)
    found = crossing(fit_power_law(SIZES, noisy(slow, 0.03, 1)), fit_power_law(SIZES, noisy(fast, 0.03, 2)), reach=10)
    assert found.low is not None
    assert found.size is not None
    assert found.low < found.size < 30_000
    assert found.high is None
    assert 0.5 < found.share < 0.975


def test_the_same_seeds_are_compared_as_pairs() -> None:
    """What makes a training set hard for one model makes it hard for the other: the crossing is as sure as the pairs are."""
    slow, fast = law(2.0, 0.25, 0), law(20.0, 0.625, 0)
    shared, alone = noisy(np.ones(4), 0.05, 3), noisy(np.ones(4), 0.05, 4)
    paired = crossing(fit_power_law(SIZES, slow[:, None] * shared), fit_power_law(SIZES, fast[:, None] * shared))
    loose = crossing(fit_power_law(SIZES, slow[:, None] * shared), fit_power_law(SIZES, fast[:, None] * alone))
    widths = []
    for each in (paired, loose):
        assert each.low is not None
        assert each.high is not None
        widths.append(math.log(each.high / each.low))
    assert widths[0] < widths[1] / 4
