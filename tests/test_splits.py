"""Carving depends on names alone, keeps the classes' shares and never empties a class of train."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchword.data.splits import ALONE, GIVEN, TRAIN_AND_TEST, TRAIN_AND_VALIDATION, carve, first_of, rule


def test_a_part_of_the_pictures_lies_in_a_larger_part_and_has_each_class_in_its_share() -> None:
    labels = np.repeat([0, 1, 2], [70, 20, 10])
    keys = [b"%d" % i for i in range(100)]
    parts = [first_of(keys, labels, count) for count in (10, 37, 50, 100)]
    assert [np.bincount(labels[part]).tolist() for part in (parts[0], parts[2], parts[3])] == [
        [7, 2, 1],
        [35, 10, 5],
        [70, 20, 10],
    ]
    for small, large in itertools.pairwise(parts):
        assert set(small) < set(large)
        assert (np.diff(small) > 0).all()
    order = np.random.default_rng(0).permutation(100)
    shuffled = first_of([keys[i] for i in order], labels[order], 37)
    assert {keys[order[i]] for i in shuffled} == {keys[i] for i in parts[1]}, "names decide, not their order"
    other = [first_of(keys, labels, count, seed=1) for count in (10, 37)]
    assert np.bincount(labels[other[0]]).tolist() == [7, 2, 1]
    assert set(other[0]) < set(other[1])
    assert set(other[0]) != set(parts[0])
    assert first_of(keys, labels, 37, seed=0).tolist() == parts[1].tolist()
    # Another choice would make figures of different releases incomparable.
    assert (parts[0].tolist(), other[0].tolist()) == (
        [3, 9, 16, 38, 46, 67, 68, 72, 79, 92],
        [11, 12, 27, 35, 47, 54, 63, 71, 75, 96],
    )


def keys(n: int) -> list[bytes]:
    return [f"class/{number}.jpg".encode() for number in range(n)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=5).filter(any))
def test_every_picture_once_and_every_class_in_train(counts: list[int]) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    chosen = carve(keys(len(labels)), labels)
    assert sorted(np.concatenate(list(chosen.values())).tolist()) == list(range(len(labels)))
    for label, count in enumerate(counts):
        sizes = {split: int((labels[rows] == label).sum()) for split, rows in chosen.items()}
        tenth = (count + 5) // 10
        assert sizes.get("test", 0) == sizes.get("validation", 0) == tenth
        assert sizes.get("train", 0) == count - 2 * tenth
        assert count == 0 or sizes["train"] >= 1
    for rows in chosen.values():
        assert len(rows)
        assert (np.diff(rows) > 0).all()


def test_the_order_of_the_pictures_does_not_matter() -> None:
    names, labels = keys(97), np.arange(97) % 3
    order = np.random.default_rng(0).permutation(97)
    first = carve(names, labels)
    second = carve([names[place] for place in order], labels[order])
    for split in ("train", "validation", "test"):
        assert {names[row] for row in first[split]} == {names[order[row]] for row in second[split]}


def test_a_new_picture_moves_few_others() -> None:
    names, labels = keys(1000), np.zeros(1000, np.int64)
    before = carve(names, labels)
    after = carve([*names, b"class/new.jpg"], np.zeros(1001, np.int64))
    moved = sum(len(set(before[split].tolist()) - set(after[split].tolist())) for split in before)
    assert moved <= 2


def test_the_choice_stays_the_same_for_ever() -> None:
    # Another choice would make figures of different releases incomparable.
    chosen = carve(keys(20), np.zeros(20, np.int64))
    assert (chosen["validation"].tolist(), chosen["test"].tolist()) == ([1, 11], [2, 17])


@pytest.mark.parametrize(("count", "splits"), [(4, {"train"}), (5, {"train", "validation", "test"})])
def test_few_pictures_are_not_held_out(count: int, splits: set[str]) -> None:
    assert set(carve(keys(count), np.zeros(count, np.int64))) == splits


def test_with_several_labels_the_rarest_one_is_kept_in_train() -> None:
    labels = np.zeros((103, 3), np.uint8)
    labels[:, 0] = 1
    labels[:20, 1] = 1
    labels[3, 2] = 1  # its own stratum of one picture
    labels[100:] = 0  # no label: a stratum, too
    chosen = carve(keys(103), labels)
    assert 3 in chosen["train"]
    assert labels[chosen["test"], 1].sum() == labels[chosen["validation"], 1].sum() == 2
    assert len(chosen["test"]) == 2 + 8


def test_the_rule_says_what_came() -> None:
    assert rule(["train", "validation", "test"]) == GIVEN
    assert rule(["train", "test"]) == TRAIN_AND_TEST
    assert rule(["train", "validation"]) == TRAIN_AND_VALIDATION
    assert rule(["test"]) == ALONE
