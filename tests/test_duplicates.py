"""Exact copies are found, remembered for as long as nothing changes, and never left in train when test has them."""

import os
from pathlib import Path

import numpy as np
import pytest

from patchword.core.errors import DataError
from patchword.data import duplicates as module
from patchword.data.dataset import Arrays, Dataset, Split
from patchword.data.duplicates import Duplicates, Group, find_duplicates, without_leaks
from patchword.data.sources import open_data


def write(root: Path, **contents: bytes) -> Path:
    """`train__ant__0=b"x"` writes train/ant/0.jpg."""
    for name, content in contents.items():
        path = root / (name.replace("__", "/") + ".jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


@pytest.fixture
def leaky(tmp_path: Path) -> Path:
    return write(
        tmp_path / "leaky",
        train__ant__0=b"one",
        train__ant__1=b"two",
        train__ant__2=b"four",
        train__bee__0=b"one",
        train__bee__1=b"",
        train__bee__2=b"five!",
        train__bee__3=b"five!",
        validation__ant__0=b"two",
        validation__bee__0=b"sixsix",
        test__ant__0=b"two",
        test__ant__1=b"",
        test__bee__0=b"sixsix",
    )


def named(dataset: Dataset, group: Group) -> list[str]:
    return [dataset.splits[split].name(index) for split, index in group.members]


def test_groups(leaky: Path, tmp_path: Path) -> None:
    dataset = open_data(leaky)
    found = find_duplicates(dataset, tmp_path / "cache")
    assert sorted(named(dataset, group) for group in found.groups) == [
        ["train/ant/0.jpg", "train/bee/0.jpg"],
        ["train/ant/1.jpg", "validation/ant/0.jpg", "test/ant/0.jpg"],
        ["train/bee/2.jpg", "train/bee/3.jpg"],
        ["validation/bee/0.jpg", "test/bee/0.jpg"],
    ]
    assert [named(dataset, group)[0] for group in found.conflicts] == ["train/ant/0.jpg"]
    assert sorted(named(dataset, group)[0] for group in found.within("train")) == ["train/ant/0.jpg", "train/bee/2.jpg"]
    assert found.within("test") == ()
    assert [group.splits for group in found.across] == [("test", "validation", "train"), ("test", "validation")]
    assert {split: indices.tolist() for split, indices in found.leaked().items()} == {
        "train": [1],
        "validation": [0, 1],
    }
    assert found.sentence == (
        "exact copies: 5, across splits: 3, left out of train or validation, groups of copies with different labels: 1"
    )


def test_leaks_are_taken_out_of_train_and_never_out_of_test(leaky: Path, tmp_path: Path) -> None:
    dataset = open_data(leaky)
    clean = without_leaks(dataset, find_duplicates(dataset, tmp_path / "cache"))
    assert {split: len(pictures) for split, pictures in clean.splits.items()} == {
        "train": 6,
        "test": 3,
    }
    train = clean.splits["train"]
    assert "train/ant/1.jpg" not in [train.name(index) for index in range(len(train))]
    assert train.labels.tolist() == [0, 0, 1, 1, 1, 1]
    assert {(notice.kind, notice.where) for notice in clean.notices} == {
        ("leak", "train/ant/1.jpg"),
        ("leak", "validation/ant/0.jpg"),
    }
    assert len(dataset.splits["train"]) == 7


def test_without_duplicates_nothing_changes(tmp_path: Path) -> None:
    dataset = open_data(write(tmp_path / "set", ant__0=b"a", ant__1=b"bb", bee__0=b"ccc"))
    found = find_duplicates(dataset, tmp_path / "cache")
    assert (found.groups, found.sentence) == ((), "no exact duplicates")
    clean = without_leaks(dataset, found)
    assert clean.splits == dataset.splits
    assert clean.notices == dataset.notices


def test_files_of_a_unique_size_are_not_read(leaky: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_data(leaky)
    read = []
    for split in dataset.splits.values():
        original = split.read
        monkeypatch.setattr(
            split,
            "read",
            lambda index, split=split, original=original: read.append(split.name(index)) or original(index),
        )
    find_duplicates(dataset, tmp_path / "cache")
    assert len(read) == 9
    assert "train/ant/2.jpg" not in read


def test_arrays_are_compared_by_their_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    pixels[6] = pixels[1]
    splits = {
        "train": Split(Arrays(pixels, "train"), np.arange(7)),
        "test": Split(Arrays(pixels[2:4].copy(), "test"), np.array([2, 3])),
    }
    found = find_duplicates(Dataset("a", "here", tuple("0123456"), False, splits, ""), tmp_path)
    assert {group.members for group in found.groups} == {
        (("train", 1), ("train", 6)),
        (("train", 2), ("test", 0)),
        (("train", 3), ("test", 1)),
    }
    assert [group.members[0] for group in found.conflicts] == [("train", 1)]


def test_several_labels_conflict_when_their_sets_differ(tmp_path: Path) -> None:
    pixels = np.zeros((3, 2, 2), np.uint8)
    for labels, conflict in (([[1, 0], [1, 0], [1, 0]], False), ([[1, 0], [1, 0], [1, 1]], True)):
        splits = {"train": Split(Arrays(pixels, "train"), np.array(labels, np.uint8))}
        (group,) = find_duplicates(Dataset("a", "here", ("x", "y"), True, splits, ""), tmp_path).groups
        assert group.conflict is conflict


def test_the_index_is_kept_and_forgotten_when_a_file_changes(
    leaky: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    first = find_duplicates(open_data(leaky), cache)
    monkeypatch.setattr(module, "_groups", lambda *_: pytest.fail("the pictures were read again"))
    assert find_duplicates(open_data(leaky), cache) == first
    monkeypatch.undo()
    path = leaky / "train" / "bee" / "3.jpg"
    path.write_bytes(b"other")  # of the same size
    os.utime(path, ns=(1, 1))
    assert len(find_duplicates(open_data(leaky), cache).groups) == len(first.groups) - 1


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b'{"version": 0, "groups": []}',
        b'{"version": 1, "groups": [[[["train", 99]], false]]}',
        b"\xff",
    ],
)
def test_a_damaged_index_is_made_again(leaky: Path, tmp_path: Path, damage: bytes) -> None:
    cache = tmp_path / "cache"
    first = find_duplicates(open_data(leaky), cache)
    (index,) = cache.iterdir()
    index.write_bytes(damage)
    assert find_duplicates(open_data(leaky), cache) == first
    assert index.read_bytes() != damage


def test_a_cache_that_cannot_be_written_is_done_without(leaky: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file is in the way")
    assert len(find_duplicates(open_data(leaky), tmp_path / "cache").groups) == 4


def test_the_sentence_without_leaks() -> None:
    group = Group((("train", 0), ("train", 1), ("train", 2)), False)
    assert Duplicates((group,)).sentence == "exact copies: 2, across splits: none"


def test_real_photographs(real_data: Path, tmp_path: Path) -> None:
    dataset = open_data(real_data / "clothing")
    test = dataset.splits["test"]
    assert len({bytes(test.read(index)) for index in range(len(test))}) == len(test)
    assert find_duplicates(dataset, tmp_path).groups == ()


def test_a_set_whose_training_pictures_are_all_elsewhere_too_is_an_error(tmp_path: Path) -> None:
    root = write(tmp_path / "all", train__ant__0=b"one", train__bee__0=b"two", test__ant__0=b"one", test__bee__0=b"two")
    dataset = open_data(root)
    with pytest.raises(DataError, match="every training picture is in validation or test, too"):
        without_leaks(dataset, find_duplicates(dataset, tmp_path / "cache"))
