"""Pictures of several places as one split: each is read where it lies, and fingerprints know order and time."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from conftest import write_pictures
from patchword.data.dataset import Arrays, Split
from patchword.data.join import Joined, together
from patchword.data.sources import open_data
from patchword.evaluation.memory import identity
from patchword.models.names import create_model


def split_of(first: int, count: int, name: str) -> Split:
    pixels = np.arange(first, first + count, dtype=np.uint8)[:, None, None].repeat(2, 1).repeat(3, 2)
    return Split(Arrays(pixels, name), np.arange(count, dtype=np.int64) % 2)


def test_each_picture_is_read_from_its_part() -> None:
    """Parts of 3, 5 and 2 pictures; of the second only some, in another order."""
    parts = [split_of(0, 3, "a"), split_of(10, 7, "b").subset(np.array([6, 1, 4, 0, 2])), split_of(30, 2, "c")]
    whole = together(parts)
    assert len(whole) == len(whole.items) == 10
    assert [int(np.asarray(whole.read(index))[0, 0]) for index in range(10)] == [0, 1, 2, 16, 11, 14, 10, 12, 30, 31]
    assert [whole.name(index) for index in range(10)] == [
        *("a:0", "a:1", "a:2"),
        *(f"b:{i}" for i in (6, 1, 4, 0, 2)),
        "c:0",
        "c:1",
    ]
    assert whole.labels.tolist() == [0, 1, 0, 0, 1, 0, 0, 0, 0, 1]
    few = whole.subset(np.array([9, 3, 0]))
    assert [few.name(index) for index in range(3)] == ["c:1", "b:6", "a:0"]


def test_splits_of_one_place_stay_there() -> None:
    base = split_of(0, 7, "a")
    one, two = base.subset(np.array([5, 0])), base.subset(np.array([3]))
    both = together([one, two])
    assert both.items is base.items
    assert [both.name(index) for index in range(3)] == ["a:5", "a:0", "a:3"]
    assert both.labels.tolist() == [1, 0, 1]
    apart = together([one, split_of(9, 2, "b")])
    assert [apart.name(index) for index in range(4)] == ["a:5", "a:0", "b:0", "b:1"]
    assert apart.labels.tolist() == [1, 0, 0, 1]


def test_a_fingerprint_knows_which_pictures_in_which_order() -> None:
    whole = Joined([split_of(0, 3, "a"), split_of(10, 5, "b").subset(np.array([4, 0, 1]))])
    chosen = (
        [0, 1, 2, 3, 4, 5],
        [0, 1, 2, 3, 4],
        [0, 1, 3, 4, 5],
        [0, 1, 2, 3, 5, 4],
        [0, 3, 1, 4, 2, 5],
        [3, 4, 5, 0, 1, 2],
    )
    assert len({whole.digest(np.array(rows)) for rows in chosen}) == len(chosen)
    assert whole.digest(None) == whole.digest(np.arange(6))


def test_a_picture_painted_over_is_another_wherever_it_lies(tmp_path: Path) -> None:
    """A teacher's answers are kept by this: a file of the same name and size may show something else."""
    labelled = open_data(str(write_pictures(tmp_path / "one", ("ant", "bee"), 9))).splits["train"]
    others = open_data(str(write_pictures(tmp_path / "two", ("ant", "bee"), 9))).splits["train"]
    model = create_model("ViT-At/8", 2, 16, depth=1)
    files = {place: tmp_path / place / split.name(0) for place, split in (("one", labelled), ("two", others))}
    both = together([labelled, together([split_of(0, 2, "x"), others])])  # a joined split may be a part of another
    times = itertools.count(7)
    for split, places in ((labelled, ("one",)), (both, ("one", "two"))):
        seen = {identity(model, split)}
        for place in places:
            os.utime(files[place], ns=(0, next(times)))
            seen.add(identity(model, split))
        assert len(seen) == 1 + len(places)


@pytest.mark.parametrize("rows", [None, np.array([3, 1])])
def test_times_are_those_of_files_alone(rows: np.ndarray | None) -> None:
    assert Joined([split_of(0, 3, "a"), split_of(0, 2, "b")]).times(rows).tolist() == []
