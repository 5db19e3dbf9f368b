"""What studies ask of a run: shared pictures, other subsets, a choice that leaves test alone, an answer to each picture."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from patchword.core.errors import DataError, UsageError
from patchword.data.dataset import Split
from patchword.data.store import Store
from patchword.evaluation.answers import read_answers, write_answers
from patchword.training import measuring
from patchword.training import pictures as opening
from patchword.training import shelf as shelves
from patchword.training.pictures import open_training_data
from patchword.training.run import run
from tiny import tiny
from victims import weights_hash

NAMES = ("ant", "bee", "cat")


def test_where_there_is_no_test_split_validation_stands_in_for_it(pictures: Path, tmp_path: Path) -> None:
    shutil.rmtree(pictures / "test")
    folder = run(tiny(pictures, validation_share=0.25), tmp_path / "shared")
    result = json.loads((folder / "result.json").read_text())
    assert result["data"]["splits"] == {"train": 54, "test": 15, "validation": 18}
    assert (result["split"], result["n"]) == ("test", 15)


def test_what_is_chosen_by_validation_does_not_look_at_test(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    look = measuring.predict
    monkeypatch.setattr(
        measuring, "predict", lambda m, split, *a, **k: (seen.append(len(split)), look(m, split, *a, **k))[1]
    )
    folder = run(tiny(pictures, evaluation={"final": "validation"}), tmp_path / "trial")
    result = json.loads((folder / "result.json").read_text())
    assert (result["split"], result["n"]) == ("validation", 15)
    assert set(seen) == {15}
    shutil.rmtree(pictures / "validation")
    with pytest.raises(UsageError, match="has no validation pictures; validation_share takes some of train"):
        run(tiny(pictures, evaluation={"final": "validation"}), tmp_path / "none")


def test_the_answers_are_those_that_were_counted(pictures: Path, tmp_path: Path) -> None:
    (pictures / "test" / "bee" / "000.png").write_bytes(b"no picture")
    folder = run(tiny(pictures), tmp_path / "run")
    answers, figures = read_answers(folder / "predictions.csv"), json.loads((folder / "evaluation.json").read_text())
    assert (len(answers.pictures), int(answers.right.sum())) == (21, figures["correct"])
    assert answers.pictures[7:9] == ("test/bee/000.png", "test/bee/001.png")
    assert (answers.predicted[7], answers.confidence[7]) == (None, 0)
    counted = [[0] * 3 for _ in range(3)]
    for label, said in zip(answers.labels, answers.predicted, strict=True):
        if said is not None:
            counted[NAMES.index(label)][NAMES.index(said)] += 1
    assert counted == figures["confusion"]
    write_answers(tmp_path / "again.csv", answers)
    assert (tmp_path / "again.csv").read_bytes() == (folder / "predictions.csv").read_bytes()
    for damaged in ("picture,label\n", "picture,label,predicted,confidence\na,b,c\n", 'picture,"', "\0"):
        (tmp_path / "again.csv").write_text(damaged)
        with pytest.raises(DataError, match="is no table of answers"):
            read_answers(tmp_path / "again.csv")


def test_pictures_are_chosen_by_another_number(pictures: Path, tmp_path: Path) -> None:
    """Of the same share of each class, and those of a smaller part lie in a larger one of the same number."""

    def chosen(count: int, number: int) -> Split:
        recipe = tiny(pictures, train_images=count, train_images_seed=number)
        return open_training_data(recipe).dataset.splits["train"]

    names = {key: set(chosen(*key).keys()) for key in ((15, 0), (30, 0), (15, 1), (30, 1))}
    assert names[15, 0] < names[30, 0]
    assert names[15, 1] < names[30, 1]
    assert not names[15, 1] <= names[30, 0]
    assert [chosen(30, number).counts().tolist() for number in (0, 1)] == [[10, 10, 10]] * 2


@pytest.mark.parametrize("in_memory", ["auto", "no"])
def test_runs_that_share_a_shelf_are_those_that_do_not(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: str
) -> None:
    decoded: list[str] = []
    fill = shelves.filled
    monkeypatch.setattr(shelves, "filled", lambda name, *rest: (decoded.append(name), fill(name, *rest))[1])
    shelf, alone = shelves.Shelf(), {"train_images": 30, "train_images_seed": 1, "loading": {"in_memory": in_memory}}
    for number, changes in enumerate(({"loading": {"in_memory": in_memory}}, alone)):
        run(tiny(pictures, **changes), tmp_path / f"shared-{number}", shelf=shelf)
    assert decoded == (["train", "validation", "test"] if in_memory == "auto" else [])
    folder = run(tiny(pictures, **alone), tmp_path / "alone")
    assert weights_hash(folder) == weights_hash(tmp_path / "shared-1")
    assert (folder / "evaluation.json").read_bytes() == (tmp_path / "shared-1" / "evaluation.json").read_bytes()
    # Nor does a run that was begun beside others see another content when it goes on alone.
    states = [
        json.loads(next(at.glob("checkpoints/*/state.json")).read_text()) for at in (folder, tmp_path / "shared-1")
    ]
    assert states[0]["content"] == states[1]["content"]


@pytest.mark.parametrize(("sets", "decoded"), [(2.2, "AB"), (1.5, "ABAB"), (0.5, "")])
def test_data_sets_that_take_turns_stay_while_there_is_room(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sets: float, decoded: str
) -> None:
    """Room for so many data sets; what is held of one never has the other streamed, which would change its pixels."""
    other = Path(shutil.copytree(pictures, tmp_path / "other"))
    shelf, names = shelves.Shelf(), {str(pictures): "A", str(other): "B"}
    splits = shelf.open(str(pictures))[0].splits.values()
    whole = sum(shelves.estimated_bytes(split, channels=3) for split in splits)
    found: list[str] = []
    fill = shelves.filled

    def filled(name: str, split: Split, *rest: Any) -> Store:
        store, here = fill(name, split, *rest), next(reversed(shelf._opened))
        if name == "train":
            found.append(names[here])
        return store

    def available() -> int:
        """What is left of a machine that has room for so many sets in a quarter of its memory."""
        there = sum(store.nbytes for each in shelf._opened.values() for store in each.stores.values())
        return round(4 * sets * whole) - there

    monkeypatch.setattr(shelves, "filled", filled)
    monkeypatch.setattr(shelves, "available_memory", available)
    monkeypatch.setattr(opening, "available_memory", available)
    for number, data in enumerate((pictures, other, pictures, other)):
        out = run(tiny(data, seed=number, budget={"steps": 1}), tmp_path / str(number), shelf=shelf)
        assert ('in_memory = "yes"' in (out / "recipe.toml").read_text()) is (sets > 1)
    assert "".join(found) == decoded


def test_the_shelf_holds_few_data_sets_and_forgets_those_first_whose_pictures_it_does_not_hold(
    pictures: Path, tmp_path: Path
) -> None:
    shelf = shelves.Shelf()
    first, _ = shelf.open(str(pictures))
    shelf.fill("train", first.splits["train"], 3)
    copies = [str(shutil.copytree(pictures, tmp_path / str(number))) for number in range(9)]
    opened = [shelf.open(copy)[0] for copy in copies]
    assert shelf.open(copies[-1])[0] is opened[-1]
    assert shelf.open(str(pictures))[0] is first
    assert shelf.open(copies[0])[0] is not opened[0]


def test_a_data_set_that_has_no_room_sends_no_other_away(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = shelves.Shelf()
    first, _ = shelf.open(str(pictures))
    store = shelf.fill("train", first.splits["train"], 3)
    second, _ = shelf.open(str(shutil.copytree(pictures, tmp_path / "other")))
    monkeypatch.setattr(shelves, "available_memory", lambda: store.nbytes)
    assert shelf.fill("train", second.splits["train"], 3).nbytes == store.nbytes
    monkeypatch.setattr(shelves, "filled", lambda *_: pytest.fail("it was decoded again"))
    shelf.open(str(pictures))
    shelf.fill("train", first.splits["train"], 3)
