"""Tasks in VTAB's form: questions about shapes with known answers, 800/200 of any set, the lists that are passed around."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import write_pictures
from patchword.core.errors import DataError, UsageError
from patchword.data import vtab
from patchword.data.drawing.outlines import KINDS
from patchword.data.drawing.shapes import objects, scene
from patchword.data.questions import COUNTS, QUESTIONS, SIZE, Asked
from patchword.data.sources import open_data
from patchword.training.pictures import open_training_data
from tiny import tiny


@pytest.mark.parametrize("name", QUESTIONS)
def test_answers_are_the_truth_and_equally_frequent(name: str) -> None:
    """By other hands, from the scenes; no picture is in two splits."""
    task = open_data(f"vtab-lite:{name}")
    assert {split: len(part) for split, part in task.splits.items()} == COUNTS
    keys = [part.key(index) for part in task.splits.values() for index in range(len(part))]
    assert len(set(keys)) == sum(COUNTS.values())
    for split, part in task.splits.items():
        counts = part.counts()
        assert len(counts) == len(task.classes)
        assert counts.max() - counts.min() <= 1, split
    part = task.splits["validation"]
    for index in range(0, 200, 7):
        _, label, instance = part.name(index).split(":")
        seen = scene(0, int(label), int(instance), SIZE).objects
        answer = task.classes[part.labels[index]]
        if name == "count":
            assert answer == ["one", "two", "three", "four"][len(seen) - 1]
        elif name == "distance":
            far = math.dist((seen[0].x, seen[0].y), (seen[1].x, seen[1].y)) / 32
            assert answer == ("touching" if far < 0.93 else "near" if far < 1.02 else "apart" if far < 1.11 else "far")
        elif name == "location":
            assert answer == f"{'upper' if seen[0].y < 32 else 'lower'} {'left' if seen[0].x < 32 else 'right'}"
        elif name == "orientation":
            assert KINDS[seen[0].kind].symmetry == 1
            start = float(answer.removesuffix("°"))
            assert start < seen[0].orientation < start + 45
        else:
            radius = seen[0].radius / 32
            assert answer == (
                "small" if radius < 0.5 else "middling" if radius < 0.65 else "large" if radius < 0.76 else "huge"
            )
        assert len(seen) == (2 if name == "distance" else len(seen) if name == "count" else 1)


def test_the_object_of_a_location_is_in_the_picture_there() -> None:
    """The pixels that differ from their row's ends lie where the answer says: the pictures show what is asked."""
    part = open_data("vtab-lite:location").splits["test"]
    assert isinstance(part.items, Asked)
    row = int(part.rows[3]) if part.rows is not None else 3
    [only] = part.items.objects(row)
    assert np.asarray(part.read(3)).shape == (64, 64, 3)
    _, label, instance = part.name(3).split(":")
    owner = scene(0, int(label), int(instance), SIZE).owner
    places = np.argwhere(owner == 0).mean(0)
    assert places == pytest.approx([only.y - 0.5, only.x - 0.5], abs=1.0)


def test_objects_are_those_of_the_scene() -> None:
    for label in (0, 17, 255):
        assert objects(3, label, 5, (40, 32)) == scene(3, label, 5, (40, 32)).objects


def test_a_set_becomes_800_and_200(tmp_path: Path) -> None:
    write_pictures(tmp_path / "bare" / "train", ("ant", "bee"), 600, side=2)
    write_pictures(tmp_path / "bare" / "test", ("ant", "bee"), 3, side=2, seed=1)
    task = open_data(f"vtab:cifar100={tmp_path / 'bare'}")
    assert {name: len(split) for name, split in task.splits.items()} == {"train": 800, "validation": 200, "test": 6}
    assert not set(task.splits["train"].keys()) & set(task.splits["validation"].keys())
    assert task.splits["train"].counts().tolist() == [400, 400]
    assert "not the published ones" in task.split_rule
    assert (task.name, task.carved) == ("vtab-cifar100", False)
    again = open_data(f"vtab:cifar100={tmp_path / 'bare'}")
    assert again.fingerprint() == task.fingerprint()
    # All thousand are learned from in the end.
    recipe = tiny(Path("x"), learn_validation=True, loading={"duplicates": "no"}, evaluation={"final": "test"})
    opened = open_training_data(recipe.__class__(**{**vars(recipe), "data": f"vtab:cifar100={tmp_path / 'bare'}"}))
    assert {name: len(split) for name, split in opened.dataset.splits.items()} == {"train": 1000, "test": 6}


def test_a_set_with_validation_gives_200_of_it(tmp_path: Path) -> None:
    for split, count in (("train", 410), ("validation", 110), ("test", 2)):
        write_pictures(tmp_path / "set" / split, ("ant", "bee"), count, side=2, seed=count)
    task = open_data(f"vtab:dtd={tmp_path / 'set'}")
    assert {name: len(split) for name, split in task.splits.items()} == {"train": 800, "validation": 200, "test": 4}
    assert all(task.splits["validation"].key(index).startswith(b"validation/") for index in range(200))


def vtab_folder(folder: Path) -> Path:
    """A task as it is passed around, with 3 classes."""
    (folder / "images").mkdir(parents=True)
    for name, first, count in (("train800", 0, 800), ("val200", 800, 200), ("test", 1000, 5)):
        rows = range(first, first + count)
        for row in rows:
            (folder / f"images/{row}.png").touch()
        (folder / f"{name}.txt").write_text("".join(f"images/{row}.png {row % 3:03d}\n" for row in rows))
    return folder


def test_the_lists_that_are_passed_around_are_taken_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vtab_folder(tmp_path / "vtab-1k" / "clevr_dist")
    monkeypatch.setenv("PATCHWORD_DATA", str(tmp_path))
    task = open_data("vtab:clevr-distance")
    assert task.classes == ("0", "1", "2")
    assert {name: len(split) for name, split in task.splits.items()} == {"train": 800, "validation": 200, "test": 5}
    assert task.splits["train"].labels[:4].tolist() == [0, 1, 2, 0]
    assert task.splits["validation"].name(0) == "images/800.png"
    assert "that come with the data set" in task.split_rule
    (tmp_path / "vtab-1k/clevr_dist/test.txt").write_text("images/1.png seven\n")
    with pytest.raises(DataError, match="test.txt: 'images/1.png seven' is not a path and the number of a class"):
        open_data("vtab:clevr-distance")
    (tmp_path / "vtab-1k/clevr_dist/test.txt").write_text("../../secret.png 1\n")
    with pytest.raises(DataError, match="leads out of the folder"):
        open_data("vtab:clevr-distance")


def test_what_is_no_task_or_not_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATCHWORD_DATA", str(tmp_path))
    for address, sentence in (
        ("vtab:cifar10", "vtab:cifar10: there is no such task; did you mean 'cifar100'"),
        ("vtab-lite:counts", "vtab-lite:counts: there is no such task; did you mean 'count'"),
        (
            "vtab:dmlab",
            r"vtab:dmlab is not on this machine \(dmlab is neither .*\); put it into \$PATCHWORD_DATA/vtab-1k/dmlab, or",
        ),
    ):
        with pytest.raises(DataError, match=sentence):
            open_data(address)
    write_pictures(tmp_path / "small" / "train", ("ant", "bee"), 30, side=2)
    write_pictures(tmp_path / "small" / "test", ("ant", "bee"), 3, side=2)
    with pytest.raises(DataError, match="has 60 training pictures; the task vtab:pets=.* needs 1,000"):
        open_data(f"vtab:pets={tmp_path / 'small'}")


def test_validation_is_learned_only_where_there_is_some(pictures: Path) -> None:
    with pytest.raises(UsageError, match="learn_validation=true and validation_share exclude each other"):
        open_training_data(tiny(pictures, learn_validation=True, validation_share=0.1))
    opened = open_training_data(tiny(pictures, learn_validation=True, loading={"duplicates": "no"}))
    assert {name: len(split) for name, split in opened.dataset.splits.items()} == {"train": 87, "test": 21}
    given = open_data(pictures).splits
    whole = {*given["train"].keys(), *given["validation"].keys()}
    assert set(opened.dataset.splits["train"].keys()) == whole
    Image.open(pictures / "test/ant/000.png").verify()


def test_digits_are_a_task() -> None:
    task = open_data("vtab-lite:digits")
    assert {name: len(split) for name, split in task.splits.items()} == {"train": 800, "validation": 200, "test": 179}


def test_every_task_has_its_place() -> None:
    assert len(vtab.TASKS) == 19
    assert len({folder for folder, _ in vtab.TASKS.values()}) == 19
    assert len(vtab.LITE_TASKS) == 9
