"""Folders, tables and Parquet files open to the same thing; what is wrong with them is said in one sentence."""

import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from patchword.core.errors import DataError
from patchword.data.dataset import FILE_LIMIT, Dataset, Files, Names
from patchword.data.decoding.decode import DecodeError, decode
from patchword.data.sources import open_data
from patchword.data.splits import CARVED, GIVEN, TOO_FEW, TRAIN_AND_TEST, TRAIN_AND_VALIDATION

PICTURE = b"\x89PNG\r\n\x1a\n of which nothing is read on opening"


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PICTURE)
    return root


def fill(root: Path, **counts: int) -> Path:
    """`ant=3` makes ant/0.jpg … ant/2.jpg."""
    for name, count in counts.items():
        touch(root, *(f"{name}/{number}.jpg" for number in range(count)))
    return root


def contents(dataset: Dataset) -> dict[str, list[tuple[str, int]]]:
    return {
        split: [(pictures.name(index), int(pictures.labels[index])) for index in range(len(pictures))]
        for split, pictures in dataset.splits.items()
    }


def refusal(data: Path | str, classes: tuple[str, ...] | None = None) -> str:
    with pytest.raises(DataError) as caught:
        open_data(data, classes=classes)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


# Folders


def test_given_splits_are_used_as_they_are(tmp_path: Path) -> None:
    fill(tmp_path / "train", bee=2, ant=3)
    fill(tmp_path / "val", ant=1)
    fill(tmp_path / "Test", bee=1)
    dataset = open_data(tmp_path)
    assert dataset.classes == ("ant", "bee")
    assert not dataset.multi_label
    assert not dataset.carved
    assert dataset.split_rule == GIVEN
    assert dataset.notices == ()
    assert contents(dataset) == {
        "train": [
            ("train/ant/0.jpg", 0),
            ("train/ant/1.jpg", 0),
            ("train/ant/2.jpg", 0),
            ("train/bee/0.jpg", 1),
            ("train/bee/1.jpg", 1),
        ],
        "validation": [("val/ant/0.jpg", 0)],
        "test": [("Test/bee/0.jpg", 1)],
    }
    assert dataset.splits["train"].labels.dtype == np.int64
    assert dataset.splits["test"].read(0) == PICTURE
    assert dataset.splits["train"].counts().tolist() == [3, 2]


@pytest.mark.parametrize(("second", "rule"), [("test", TRAIN_AND_TEST), ("valid", TRAIN_AND_VALIDATION)])
def test_two_splits_are_left_as_two(tmp_path: Path, second: str, rule: str) -> None:
    fill(tmp_path / "train", ant=20, bee=20)
    fill(tmp_path / second, ant=1, bee=1)
    dataset = open_data(tmp_path)
    assert dataset.split_rule == rule
    assert len(dataset.splits["train"]) == 40
    assert len(dataset.splits) == 2


@pytest.mark.parametrize("below", ["", "train"])
def test_without_splits_they_are_carved(tmp_path: Path, below: str) -> None:
    fill(tmp_path / below, ant=20, bee=31)
    dataset = open_data(tmp_path)
    assert (dataset.split_rule, dataset.carved) == (CARVED, True)
    assert [dataset.splits[split].counts().tolist() for split in ("train", "validation", "test")] == [
        [16, 25],
        [2, 3],
        [2, 3],
    ]
    assert contents(dataset) == contents(open_data(tmp_path))


def test_too_few_to_hold_any_out(tmp_path: Path) -> None:
    dataset = open_data(fill(tmp_path, ant=4, bee=1))
    assert dataset.split_rule == TOO_FEW
    assert set(dataset.splits) == {"train"}


def test_train_and_test_may_be_classes(tmp_path: Path) -> None:
    assert open_data(fill(tmp_path, train=3, bus=3)).classes == ("bus", "train")


def test_the_name_is_the_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "photos", ant=2, bee=2)
    (tmp_path / "link").symlink_to("photos")
    monkeypatch.chdir(tmp_path / "photos")
    assert open_data(".").name == "photos"
    assert open_data("../link").name == "link"
    assert open_data(str(tmp_path / "photos") + "/").name == "photos"


def test_numbers_are_ordered_as_numbers(tmp_path: Path) -> None:
    assert open_data(fill(tmp_path, **{"10": 1, "9": 1, "0": 1})).classes == ("0", "9", "10")


def test_what_is_left_out_is_noticed(tmp_path: Path) -> None:
    fill(tmp_path, ant=2, bee=2)
    touch(
        tmp_path,
        ".ipynb_checkpoints/ant/0.jpg",
        "ant/._0.jpg",
        "ant/notes.txt",
        "bee/notes.txt",
        "ant/old/7.jpg",
        "loose.jpg",
    )
    (tmp_path / "empty").mkdir()
    (tmp_path / "bee" / "gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "bee" / "linked.jpg").symlink_to("0.jpg")
    (tmp_path / "ant" / ".DS_Store").touch()
    os.mkfifo(tmp_path / "ant" / "fifo.jpg")
    dataset = open_data(tmp_path)
    assert dataset.classes == ("ant", "bee")
    assert len(dataset.splits["train"]) == 5
    assert {(notice.kind, notice.where) for notice in dataset.notices} == {
        ("hidden", ".ipynb_checkpoints"),
        ("not-a-picture", "ant/notes.txt"),
        ("not-a-file", "ant/fifo.jpg"),
        ("nested", "ant/old"),
        ("not-in-a-class", "loose.jpg"),
        ("empty-class", "empty"),
        ("broken-link", "bee/gone.jpg"),
    }
    by_kind = {notice.kind: notice.sentence for notice in dataset.notices}
    assert by_kind["hidden"].endswith("(and 1 more)")
    assert by_kind["not-a-picture"].endswith("(and 1 more)")
    assert by_kind["not-a-file"] == "ant/fifo.jpg: pipe, socket or device is no regular file and is left out"
    assert by_kind["empty-class"] == "empty: class folder holds no picture and is left out"


def test_a_folder_beside_the_splits_is_noticed(tmp_path: Path) -> None:
    fill(tmp_path / "train", ant=2, bee=2)
    fill(tmp_path, extra=1)
    (notice,) = open_data(tmp_path).notices
    assert (notice.kind, notice.where) == ("not-a-split", "extra")


def test_names_of_any_bytes(tmp_path: Path) -> None:
    fill(tmp_path, ant=1)
    folder = os.fsencode(tmp_path) + b"/\xe9t\xe9"
    os.mkdir(folder)
    with open(folder + b"/\xff.jpg", "wb") as file:
        file.write(PICTURE)
    train = open_data(tmp_path).splits["train"]
    assert [train.name(index) for index in range(2)] == ["ant/0.jpg", r"\xe9t\xe9/\xff.jpg"]
    assert train.read(1) == PICTURE
    assert open_data(tmp_path).classes == (r"\xe9t\xe9", "ant")


def test_bad_folders(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert refusal(tmp_path / "empty").endswith(
        "empty is empty; one folder for each class, holding its pictures, is right"
    )
    assert "holds pictures of" not in refusal(tmp_path / "empty")

    fill(tmp_path / "one", ant=3)
    assert "pictures of one class only (ant)" in refusal(tmp_path / "one")

    fill(tmp_path / "clash", Cat=2, cat=2, dog=2)
    assert "classes 'Cat' and 'cat', which differ only by case" in refusal(tmp_path / "clash")

    touch(tmp_path / "accents", "e\u0301/0.jpg", "\u00e9/0.jpg")
    assert "in the way they are written" in refusal(tmp_path / "accents")

    touch(tmp_path / "flat", "a.jpg", "b.jpg")
    assert "holds pictures (2) but no class folders" in refusal(tmp_path / "flat")
    assert refusal(tmp_path / "flat").endswith(
        "and train --set objective=masked-patch learns from pictures without labels (data check --no-labels looks at them)"
    )

    (tmp_path / "flat" / "labels.csv").write_text("path,label\n")
    assert refusal(tmp_path / "flat").endswith(f"to use the table, give {tmp_path / 'flat' / 'labels.csv'}")

    touch(tmp_path / "words", "ant/a.txt", "bee/b.heic")
    assert "none of its 2 folders (ant, bee) holds a picture" in refusal(tmp_path / "words")

    touch(tmp_path / "texts", "a.txt")
    assert "texts holds no pictures" in refusal(tmp_path / "texts")


def test_where_labels_do_not_count_pictures_need_no_class_folders(tmp_path: Path) -> None:
    """Nor a second class; where there are class folders, everything is as ever."""
    flat, fill_flat = tmp_path / "flat", [f"{number}.jpg" for number in range(23)]
    touch(flat, *fill_flat, "notes.txt")
    (flat / "nothing").mkdir()
    dataset = open_data(flat, labelled=False)
    assert dataset.classes == ("pictures",)
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 19, "validation": 2, "test": 2}
    names = [split.name(index) for split in dataset.splits.values() for index in range(len(split))]
    assert sorted(names) == sorted(fill_flat)
    assert [notice.kind for notice in dataset.notices] == ["not-a-picture"]

    touch(tmp_path / "split", "train/0.jpg", "train/1.jpg", "test/0.jpg")
    dataset = open_data(tmp_path / "split", labelled=False)
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 2, "test": 1}
    assert dataset.splits["test"].name(0) == "test/0.jpg"

    fill(tmp_path / "one", ant=3)
    assert open_data(tmp_path / "one", labelled=False).classes == ("ant",)
    fill(tmp_path / "two", ant=3, bee=2)
    touch(tmp_path / "two", "loose.jpg")
    with_labels, without = open_data(tmp_path / "two"), open_data(tmp_path / "two", labelled=False)
    assert with_labels.fingerprint() == without.fingerprint()
    assert [notice.kind for notice in without.notices] == ["not-in-a-class"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="is empty; a folder of pictures, in whatever folders, is right"):
        open_data(tmp_path / "empty", labelled=False)


def test_a_tree_of_any_form_where_labels_do_not_count(tmp_path: Path) -> None:
    """As a camera leaves it: by year and month, and beside them. Links that lead back are gone once."""
    touch(tmp_path / "2023/05", "b.jpg", "a.jpg", "notes.txt")
    touch(tmp_path / "2023", "c.jpg")
    touch(tmp_path / "2024/01/raw", "d.jpg")
    (tmp_path / "2024/back").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "2025").mkdir()
    dataset = open_data(tmp_path, labelled=False)
    assert dataset.classes == ("pictures",)
    split = dataset.splits["train"]
    names = [split.name(index) for index in range(len(split))]
    assert names == ["2023/c.jpg", "2023/05/a.jpg", "2023/05/b.jpg", "2024/01/raw/d.jpg"]
    assert [notice.where for notice in dataset.notices] == ["2023/05/notes.txt"]
    refusal(tmp_path)  # with labels it is none


def test_classes_missing_from_train(tmp_path: Path) -> None:
    fill(tmp_path / "train", ant=2, bee=2)
    fill(tmp_path / "test", ant=2, wasp=2)
    assert "class 'wasp' of test is missing from train" in refusal(tmp_path)
    fill(tmp_path / "test", yak=1)
    assert "classes 'wasp', 'yak' of test are missing from train" in refusal(tmp_path)


def test_trees_of_another_form(tmp_path: Path) -> None:
    fill(tmp_path / "wrapped" / "photos", ant=2, bee=2)
    assert (
        refusal(tmp_path / "wrapped")
        == f"{tmp_path}/wrapped has its class folders one level deeper; give {tmp_path}/wrapped/photos"
    )

    touch(tmp_path / "nested", "ant/red/0.jpg", "ant/black/0.jpg", "bee/0.jpg")
    assert f"the pictures of {tmp_path}/nested/ant/black lie one level too deep" in refusal(tmp_path / "nested")

    touch(tmp_path / "unsorted", "train/0.jpg", "test/0.jpg")
    sentence = refusal(tmp_path / "unsorted")
    assert f"{tmp_path}/unsorted/test holds pictures (1) but no class folders" in sentence

    fill(tmp_path / "two" / "val", ant=1, bee=1)
    fill(tmp_path / "two" / "train", ant=1, bee=1)
    fill(tmp_path / "two" / "validation", ant=1, bee=1)
    assert "two folders for validation" in refusal(tmp_path / "two")

    fill(tmp_path / "late" / "test", ant=1, bee=1)
    assert "has test but no train" in refusal(tmp_path / "late")


def test_paths_and_names_that_stand_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATCHWORD_DATA", str(fill(tmp_path / "sets" / "weeds", ant=1, bee=1).parent))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert refusal("fashion-minst").endswith("did you mean 'fashion-mnist'?")
    assert refusal("weed").endswith("did you mean 'weeds'?")
    assert "named sets are digits, mnist" in refusal("qqqqqqq")
    assert refusal("sets/weedz") == "sets/weedz does not exist; did you mean 'weeds'?"
    assert refusal("photos.csv") == "photos.csv does not exist"
    (tmp_path / "gone").symlink_to("nowhere")
    assert refusal(tmp_path / "gone").endswith("gone is a broken symbolic link")
    (tmp_path / "notes.txt").write_text("x")
    assert "neither a folder nor a table" in refusal(tmp_path / "notes.txt")
    assert open_data("weeds").name == "weeds"


def test_a_path_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "digits", ant=1, bee=1)
    monkeypatch.chdir(tmp_path)
    assert open_data("digits").classes == ("ant", "bee")


# A model's class list


def test_the_classes_of_a_model_are_applied(tmp_path: Path) -> None:
    fill(tmp_path / "test", bee=1, ant=1)
    dataset = open_data(tmp_path, classes=("yak", "bee", "ant"))
    assert dataset.classes == ("yak", "bee", "ant")
    assert contents(dataset) == {"test": [("test/ant/0.jpg", 2), ("test/bee/0.jpg", 1)]}
    sentence = refusal(tmp_path, classes=("bees", "ant"))
    assert "the class 'bee' of test is not among the 2 classes of the model; did you mean 'bees'?" in sentence
    sentence = refusal(tmp_path, classes=("ant", *map(str, range(40)), "bees"))
    assert sentence.endswith("is not among the 42 classes of the model; did you mean 'bees'?")
    sentence = refusal(tmp_path, classes=("ant", *map(str, range(40))))
    assert sentence.endswith(
        "is not among the 41 classes of the model; known: ant, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, … and 29 more"
    )
    only = fill(tmp_path / "only", bee=20)
    assert open_data(only, classes=("ant", "bee")).splits["train"].labels.tolist() == [1] * 16


# Tables


def table(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_table_with_splits(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b/c d.jpg", "e,f.jpg", "g.jpg")
    path = table(
        tmp_path / "birds.csv",
        "\ufeffFile_Name,note,Label,Split",
        "a.jpg,,wren,train",
        '"b/c d.jpg",x,owl,train',
        "",
        '"e,f.jpg",,owl,VAL',
        f"{tmp_path / 'g.jpg'},,wren,test",
    )
    dataset = open_data(path)
    assert (dataset.name, dataset.classes, dataset.split_rule) == ("birds", ("owl", "wren"), GIVEN)
    assert contents(dataset) == {
        "train": [("a.jpg", 1), ("b/c d.jpg", 0)],
        "validation": [("e,f.jpg", 0)],
        "test": [("g.jpg", 1)],
    }
    assert dataset.splits["test"].read(0) == PICTURE


@pytest.mark.parametrize(("name", "separator"), [("t.tsv", "\t"), ("t.csv", ";"), ("t.csv", "\t")])
def test_separators_are_seen_in_the_first_line(tmp_path: Path, name: str, separator: str) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    path = table(
        tmp_path / name, *(separator.join(cells) for cells in (("path", "class"), ("a.jpg", "x"), ("b.jpg", "y")))
    )
    assert contents(open_data(path)) == {"train": [("a.jpg", 0), ("b.jpg", 1)]}


def test_several_labels_a_picture(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{number}.jpg" for number in range(5)))
    path = table(
        tmp_path / "t.csv", "image,labels", "0.jpg,sea|sky", "1.jpg,sky", "2.jpg,", "3.jpg,sand ; sea", "4.jpg,sky|sky"
    )
    dataset = open_data(path)
    assert dataset.multi_label
    assert dataset.classes == ("sand", "sea", "sky")
    labels = dataset.splits["train"].labels
    assert labels.dtype == np.uint8
    assert labels.tolist() == [[0, 1, 1], [0, 0, 1], [0, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert dataset.splits["train"].counts().tolist() == [1, 2, 3]
    assert open_data(path, classes=("sky", "sea", "sand")).splits["train"].labels[0].tolist() == [1, 1, 0]


def test_bad_tables(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    touch(tmp_path.parent, "outside.jpg")

    def said(*lines: str) -> str:
        return refusal(table(tmp_path / "t.csv", *lines))

    head = "path,label,split"
    assert said("picture,label", "a.jpg,x").endswith(
        "has no column of pictures (called image, img, path, file, filename or file_name); its columns are picture, label"
    )
    assert "has no column of labels" in said("path,kind", "a.jpg,x")
    assert "line 3 has 2 cells; its first line has 3 columns" in said(head, "a.jpg,x,train", "b.jpg,y")
    assert "line 2: the path '../outside.jpg' leads out of the table's folder" in said(head, "../outside.jpg,x,train")
    assert "leads out of" in said(head, f"{tmp_path.parent / 'outside.jpg'},x,train")
    assert "leads out of" in said(head, "b/../../outside.jpg,x,train")
    assert "names 'c.jpg', which does not exist" in said(head, "a.jpg,x,train", "c.jpg,y,train")
    assert "(1 of the 2 paths looked for are not there)" in said(head, "a.jpg,x,train", "c.jpg,y,train")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert "names 'pipe.jpg', which does not exist" in said(head, "a.jpg,x,train", "pipe.jpg,y,train")
    assert "line 3 has the split 'tset'; did you mean 'test'?" in said(head, "a.jpg,x,train", "b.jpg,y,tset")
    assert "class 'y' of test is missing from train" in said(head, "a.jpg,x,train", "a.jpg,z,train", "b.jpg,y,test")
    assert "line 3 has no label" in said("path,label", "a.jpg,x", "b.jpg,")
    assert "line 2 has no path of a picture" in said("path,label", ",x")
    assert "differ only by case" in said("path,label", "a.jpg,X", "b.jpg,x")
    assert "one class only (x)" in said("path,label", "a.jpg,x")
    assert "holds no pictures" in said("path,label")
    assert "is not a table" in said("path,label", 'a.jpg,"x')
    (tmp_path / "t.csv").write_bytes(b"")
    assert refusal(tmp_path / "t.csv").endswith("is empty; a first line with the names of the columns is right")
    (tmp_path / "t.csv").write_bytes(b"path,label\na.jpg,\xe9\n")
    assert "is not UTF-8 text" in refusal(tmp_path / "t.csv")


# Parquet


def png(value: int) -> bytes:
    import io

    content = io.BytesIO()
    Image.new("L", (4, 3), value).save(content, "PNG")
    return content.getvalue()


def write_parquet(
    path: Path, labels: list, pictures: list | None = None, *, names: list[str] | None = None, **columns: list
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = [{"bytes": png(place), "path": None} for place in range(len(labels))] if pictures is None else pictures
    content = pa.table({"image": pictures, "label": labels, **columns})
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        content = content.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(content, path, row_group_size=3)
    return path


def test_embedded_pictures_are_read_by_row(tmp_path: Path) -> None:
    dataset = open_data(write_parquet(tmp_path / "t.parquet", ["b", "a", "a", "b", "b", "a", "a"]))
    train = dataset.splits["train"]
    assert dataset.name == "t"
    assert train.labels.tolist() == [1, 0, 0, 1, 1, 0, 0]
    assert [int(decode(train.read(index), 1)[0, 0, 0]) for index in (6, 0, 3, 2)] == [6, 0, 3, 2]
    assert train.name(5) == "t.parquet:5"
    copied = pickle.loads(pickle.dumps(train))  # noqa: S301 (worker processes receive splits in this way)
    assert copied.read(4) == train.read(4)
    assert copied.fingerprint() == train.fingerprint()


def test_a_hub_folder_with_names_in_its_schema(tmp_path: Path) -> None:
    names = ["yak", "ant", "bee"]
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", [0, 1, 2, 1], names=names)
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", [2, 2], names=names)
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", [1], names=names)
    write_parquet(tmp_path / "data" / "extra-00000-of-00001.parquet", [1], names=names)
    dataset = open_data(tmp_path)
    assert dataset.classes == ("yak", "ant", "bee")
    assert dataset.splits["train"].labels.tolist() == [0, 1, 2, 1, 2, 2]
    assert dataset.splits["train"].name(5) == "data/train-00001-of-00002.parquet:1"
    assert int(decode(dataset.splits["train"].read(5), 1)[0, 0, 0]) == 1
    assert int(decode(dataset.splits["test"].read(0), 1)[0, 0, 0]) == 0
    assert [notice.kind for notice in dataset.notices] == ["not-a-split"]


def test_numbers_without_names(tmp_path: Path) -> None:
    assert open_data(write_parquet(tmp_path / "t.parquet", [0, 10, 9, 0])).classes == ("0", "9", "10")
    assert open_data(write_parquet(tmp_path / "cifar10" / "train-0.parquet", [0, 9]).parent).classes[0] == "airplane"


def test_folders_for_splits_and_split_columns(tmp_path: Path) -> None:
    write_parquet(tmp_path / "conf" / "train" / "0000.parquet", ["a", "b"])
    write_parquet(tmp_path / "conf" / "validation" / "0000.parquet", ["b"])
    assert {split: len(pictures) for split, pictures in open_data(tmp_path).splits.items()} == {
        "train": 2,
        "validation": 1,
    }
    single = write_parquet(tmp_path / "t.parquet", ["a", "b", "a"], split=["train", "train", "test"])
    dataset = open_data(single)
    assert [dataset.splits["train"].name(1), dataset.splits["test"].name(0)] == ["t.parquet:1", "t.parquet:2"]


def test_lists_of_labels_and_bare_bytes(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "t.parquet", [["a", "c"], [None], ["b"]], [png(7), png(8), png(9)])
    dataset = open_data(path)
    assert dataset.multi_label
    assert dataset.splits["train"].labels.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert int(decode(dataset.splits["train"].read(1), 1)[0, 0, 0]) == 8


def test_paths_in_parquet(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    assert contents(open_data(write_parquet(tmp_path / "t.parquet", ["x", "y"], ["b.jpg", "a.jpg"]))) == {
        "train": [("b.jpg", 0), ("a.jpg", 1)]
    }
    assert "leads out of" in refusal(write_parquet(tmp_path / "t.parquet", ["x", "y"], ["b.jpg", "../a.jpg"]))


def test_an_unlabelled_split_is_left_out(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", [0, 1, 0], names=["a", "b"])
    write_parquet(tmp_path / "validation-0.parquet", [1], names=["a", "b"])
    write_parquet(tmp_path / "test-0.parquet", [-1, -1], names=["a", "b"])
    dataset = open_data(tmp_path)
    assert set(dataset.splits) == {"train", "validation"}
    assert [(notice.kind, notice.where) for notice in dataset.notices] == [("unlabelled", "test")]


def test_a_class_of_the_schema_without_pictures(tmp_path: Path) -> None:
    dataset = open_data(write_parquet(tmp_path / "t.parquet", [0, 2, 2], names=["a", "b", "c"]))
    assert dataset.classes == ("a", "b", "c")
    assert dataset.notices[0].sentence == "class 'b': no training pictures"


def test_bad_parquet(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 is how it begins")
    assert "is not a Parquet file that can be read" in refusal(tmp_path / "t.parquet")
    assert "'9', which is not among its 2 classes" in refusal(
        write_parquet(tmp_path / "t.parquet", [0, 9], names=["a", "b"])
    )
    assert "row 1 of t.parquet has no label" in refusal(write_parquet(tmp_path / "t.parquet", ["a", None, "b"]))
    assert "has double in its column 'image'" in refusal(write_parquet(tmp_path / "t.parquet", ["a", "b"], [1.5, 2.5]))
    pq.write_table(pa.table({"image": [png(0)], "kind": ["a"]}), tmp_path / "t.parquet")
    assert "no column of labels" in refusal(tmp_path / "t.parquet")
    write_parquet(tmp_path / "two" / "train-0.parquet", ["a", "b"])
    pq.write_table(pa.table({"image": [png(0)], "kind": ["a"]}), tmp_path / "two" / "train-1.parquet")
    assert "train-1.parquet has no column 'label', as train-0.parquet has" in refusal(tmp_path / "two")


def test_a_row_without_bytes_is_a_bad_picture(tmp_path: Path) -> None:
    path = write_parquet(
        tmp_path / "t.parquet", ["a", "b"], [{"bytes": png(0), "path": None}, {"bytes": None, "path": "x.png"}]
    )
    train = open_data(path).splits["train"]
    with pytest.raises(DecodeError, match="has no bytes in its row"):
        train.read(1)


# Splits and their names


def test_reading_what_is_not_there_is_a_bad_picture(tmp_path: Path) -> None:
    train = open_data(fill(tmp_path, ant=2, bee=2)).splits["train"]
    (tmp_path / "ant" / "0.jpg").unlink()
    with pytest.raises(DecodeError) as caught:
        train.read(0)
    assert caught.value.reason == "does not exist"
    with (tmp_path / "ant" / "1.jpg").open("wb") as file:
        file.truncate(FILE_LIMIT + 1)
    with pytest.raises(DecodeError, match="more than the limit of 512 MiB"):
        train.read(1)
    with pytest.raises(IndexError):
        train.read(4)
    with pytest.raises(IndexError):
        train.name(-1)


def test_subsets_of_subsets(tmp_path: Path) -> None:
    train = open_data(fill(tmp_path, ant=3, bee=2)).splits["train"]
    part = train.subset(np.array([4, 1, 0])).subset(np.array([2, 0]))
    assert [part.name(0), part.name(1)] == ["ant/0.jpg", "bee/1.jpg"]
    assert part.labels.tolist() == [0, 1]
    assert list(part.keys()) == [b"ant/0.jpg", b"bee/1.jpg"]


def test_fingerprints_change_with_what_matters(tmp_path: Path) -> None:
    first, second = (fill(tmp_path / name / "set", ant=3, bee=2) for name in ("here", "there"))
    base = open_data(first).fingerprint()
    assert re.fullmatch("[0-9a-f]{64}", base)
    assert open_data(second).fingerprint() == base
    assert open_data(first, classes=("bee", "ant")).fingerprint() != base
    train = open_data(first).splits["train"]
    assert train.subset(np.arange(5)).fingerprint() == train.fingerprint()
    assert train.subset(np.arange(4)).fingerprint() != train.fingerprint()
    (second / "ant" / "0.jpg").write_bytes(PICTURE + b"!")
    assert open_data(second).fingerprint() != base
    (first / "ant" / "0.jpg").rename(first / "ant" / "7.jpg")
    assert open_data(first).fingerprint() != base


def test_names_are_kept_in_one_block() -> None:
    names = Names([b"a", b""])
    names.extend([b"b", b"cc"], b"x/")
    names.extend([])
    assert [names[row] for row in range(len(names))] == [b"a", b"", b"x/b", b"x/cc"]
    names.extend([b"d"])
    assert names[4] == b"d"
    assert names.hash(None) == names.hash(np.arange(5)) == Names([b"a", b"", b"x/b", b"x/cc", b"d"]).hash(None)
    for row in (-1, 5):
        with pytest.raises(IndexError):
            names[row]
    assert len(Names()) == 0


def test_a_hundred_thousand_names_take_little_memory(tmp_path: Path) -> None:
    import tracemalloc

    n = 100_000
    lines = (f"{number % 1000:04d}/{number:08d}.jpg" for number in range(n))
    tracemalloc.start()
    files = Files(tmp_path, Names(line.encode() for line in lines))
    files.key(0)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 32 * n


def test_real_data_opens_as_its_readme_says(real_data: Path) -> None:
    clothing = open_data(real_data / "clothing")
    assert {split: len(pictures) for split, pictures in clothing.splits.items()} == {
        "train": 3068,
        "validation": 341,
        "test": 372,
    }
    cifar = open_data(real_data / "cifar10")
    assert {split: pictures.counts().tolist() for split, pictures in cifar.splits.items()} == {
        "train": [5000] * 10,
        "test": [1000] * 10,
    }
    assert decode(cifar.splits["train"].read(49_999), 3).shape == (32, 32, 3)
