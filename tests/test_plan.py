"""The order of the data is a permutation, the randomness is uniform, and both are pure functions."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from patchword.data.plan import Plan, shuffled, uniform


@settings(max_examples=100, deadline=None)
@given(st.integers(-(2**70), 2**70), st.integers(0, 10**9), st.integers(1, 3000))
def test_every_epoch_is_a_permutation(seed: int, epoch: int, n: int) -> None:
    assert sorted(shuffled(seed, epoch, n, np.arange(n)).tolist()) == list(range(n))


def test_large_sets_are_permuted_without_being_listed() -> None:
    n = 10**12 + 39
    positions = np.array([0, 1, n // 2, n - 1])
    samples = shuffled(7, 3, n, positions)
    assert len(set(samples.tolist())) == 4
    assert samples.min() >= 0
    assert samples.max() < n
    assert (samples != positions).all()


def test_a_position_can_be_asked_for_alone_and_in_any_shape() -> None:
    whole = shuffled(1, 2, 101, np.arange(101))
    assert shuffled(1, 2, 101, np.array(57)) == whole[57]
    assert (shuffled(1, 2, 101, np.arange(100).reshape(4, 25)) == whole[:100].reshape(4, 25)).all()
    mixed = shuffled(1, np.array([2, 9, 2]), 101, np.array([5, 5, 6]))
    assert mixed.tolist() == [whole[5], shuffled(1, 9, 101, np.array([5]))[0], whole[6]]


def test_seed_and_epoch_matter() -> None:
    orders = {tuple(shuffled(seed, epoch, 61, np.arange(61))) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_all_orders_of_a_few_are_equally_likely(n: int) -> None:
    epochs = 24_000
    orders = shuffled(1, np.repeat(np.arange(epochs), n), n, np.tile(np.arange(n), epochs)).reshape(epochs, n)
    digits = n ** np.arange(n)
    counts = np.bincount(orders @ digits, minlength=n**n)
    seen = counts[[int(np.dot(order, digits)) for order in itertools.permutations(range(n))]]
    assert seen.sum() == epochs
    assert stats.chisquare(seen).pvalue > 0.001


@pytest.mark.parametrize("n", [17, 257, 1000])
def test_positions_and_neighbours_are_uniform(n: int) -> None:
    epochs = 3000
    orders = shuffled(2, np.repeat(np.arange(epochs), n), n, np.tile(np.arange(n), epochs)).reshape(epochs, n)
    for place in (0, 1, n // 2, n - 1):
        assert stats.chisquare(np.bincount(orders[:, place], minlength=n)).pvalue > 0.001
    steps = np.bincount((orders[:, 1] - orders[:, 0]) % n, minlength=n)
    assert steps[0] == 0
    assert stats.chisquare(steps[1:]).pvalue > 0.001


def test_positions_outside_are_refused() -> None:
    for positions, n in (([5], 5), ([-1], 5), ([0], 0)):
        with pytest.raises(ValueError, match="positions must lie"):
            shuffled(0, 0, n, np.array(positions))


def test_batches_run_across_the_ends_of_epochs_and_are_always_full() -> None:
    plan = Plan(n=7, batch_size=3, seed=11)
    ids, epochs = (np.concatenate(parts) for parts in zip(*(plan.batch(step) for step in range(14)), strict=True))
    assert epochs.tolist() == [position // 7 for position in range(42)]
    for epoch in range(6):
        assert sorted(ids[epochs == epoch].tolist()) == list(range(7))
        assert (ids[epochs == epoch] == shuffled(11, epoch, 7, np.arange(7))).all()


def test_a_batch_may_hold_several_epochs_of_a_tiny_set() -> None:
    ids, epochs = Plan(n=2, batch_size=7, seed=0).batch(10**9)
    assert ids.dtype == epochs.dtype == np.int64
    assert epochs.tolist() == [(7 * 10**9 + place) // 2 for place in range(7)]
    assert sorted(ids[:2].tolist()) == sorted(ids[2:4].tolist()) == [0, 1]


def test_a_plan_needs_something_to_plan() -> None:
    for n, batch_size in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="at least one"):
            Plan(n, batch_size, 0)


def test_uniform_numbers_are_uniform_and_independent() -> None:
    draws = uniform(3, "flip", 5, np.arange(50_000), count=2)
    assert draws.shape == (50_000, 2)
    assert draws.min() >= 0
    assert draws.max() < 1
    for column in draws.T:
        assert stats.kstest(column, "uniform").pvalue > 0.001
    by_epoch = uniform(3, "flip", np.arange(50_000), np.zeros(50_000, np.int64))[:, 0]
    assert stats.kstest(by_epoch, "uniform").pvalue > 0.001
    for left, right in ((draws[:, 0], draws[:, 1]), (draws[1:, 0], draws[:-1, 0]), (by_epoch, draws[:, 0])):
        assert (
            abs(np.corrcoef(left, right)[0, 1]) < 3.3 / len(left) ** 0.5
        )  # 0.1 % of independent draws are farther off


def test_uniform_numbers_depend_on_each_key_and_on_nothing_else() -> None:
    base = uniform(3, "flip", 5, np.array([7, 8]), count=3)
    assert (base == uniform(3, "flip", np.array([5, 5]), np.array([7, 8]), count=3)).all()
    assert (base[1:] == uniform(3, "flip", 5, np.array([8]), count=3)).all()
    assert (base[:, :2] == uniform(3, "flip", 5, np.array([7, 8]), count=2)).all()
    for other in (
        uniform(4, "flip", 5, np.array([7, 8]), count=3),
        uniform(3, "crop", 5, np.array([7, 8]), count=3),
        uniform(3, "flip", 6, np.array([7, 8]), count=3),
        uniform(3, "flip", 5, np.array([9, 10]), count=3),
    ):
        assert not np.isin(base, other).any()


def test_the_numbers_stay_the_same_for_ever() -> None:
    # A run that is resumed with a newer release must see the same pictures: a change here is a change of every result.
    assert shuffled(0, 0, 10, np.arange(10)).tolist() == [2, 1, 3, 4, 6, 7, 0, 9, 5, 8]
    assert uniform(0, "flip", 1, np.array([2]), count=2).tolist() == [[0.6946412527165611, 0.6113751127604544]]
