"""Tar shards and Parquet, here and at addresses: the same pictures in the same order, and one sentence for each fault."""

import http.server
import io
import itertools
import json
import os
import pickle
import re
import shutil
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import write_pictures
from patchword.core.errors import DataError, FaultError, PatchwordError, UsageError
from patchword.core.preprocessing import Preprocessing
from patchword.data.augment import Augment
from patchword.data.dataset import Dataset
from patchword.data.decoding.decode import DecodeError, decode
from patchword.data.duplicates import find_duplicates
from patchword.data.loader import TrainLoader
from patchword.data.shards import places, tar
from patchword.data.shards.find import Shards
from patchword.data.shards.index import open_index
from patchword.data.sources import open_data
from patchword.data.splits import CARVED, GIVEN
from test_sources import png, write_parquet


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(places, "FIRST_WAIT", 0.001)


def write_tar(path: Path, *files: tuple[str, bytes | str | int], form: int = tarfile.USTAR_FORMAT) -> Path:
    """An archive by Python's own writer, which shares no code with ours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in files:
            content = content if isinstance(content, bytes) else str(content).encode()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def samples(*labels: str | int, first: int = 0) -> list[tuple[str, bytes | str | int]]:
    """Pictures whose grey value is their number."""
    return [
        file
        for number, label in enumerate(labels, first)
        for file in ((f"{number:03d}.png", png(number)), (f"{number:03d}.cls", label))
    ]


def refusal(data: Path | str) -> str:
    with pytest.raises(PatchwordError) as caught:
        open_data(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def values(dataset: Dataset, split: str) -> list[int]:
    pictures = dataset.splits[split]
    return [int(decode(pictures.read(index), 1)[0, 0, 0]) for index in range(len(pictures))]


def shards_of(folder: Path, to: Path, samples_each: int = 7) -> Path:
    """The pictures of a folder of split folders as shards, in the order in which the folder is read."""
    dataset = open_data(folder)
    for split, pictures in dataset.splits.items():
        for number, start in enumerate(range(0, len(pictures), samples_each)):
            files: list[tuple[str, bytes | str | int]] = []
            for index in range(start, min(start + samples_each, len(pictures))):
                content = pictures.read(index)
                assert isinstance(content, bytes)
                files += [(pictures.name(index), content)]
                files += [(pictures.name(index)[:-3] + "cls", dataset.classes[pictures.labels[index]])]
            write_tar(to / f"{split}-{number:06d}.tar", *files)
    return to


# What is in them


def test_shards_by_split(tmp_path: Path) -> None:
    write_tar(tmp_path / "set-train-000001.tar", *samples("yak", "ant", first=3))
    write_tar(tmp_path / "set-train-000000.tar", *samples("ant", "yak", "bee"))
    write_tar(tmp_path / "set-val-0.tar", *samples("bee", first=5))
    write_tar(tmp_path / "set-extra-0.tar", *samples("wasp"))
    dataset = open_data(tmp_path)
    assert (dataset.name, dataset.classes, dataset.multi_label) == (tmp_path.name, ("ant", "bee", "yak"), False)
    assert dataset.splits["train"].labels.tolist() == [0, 2, 1, 2, 0]
    assert dataset.splits["train"].labels.dtype == np.int64
    assert values(dataset, "train") == [0, 1, 2, 3, 4]
    assert values(dataset, "validation") == [5]
    assert dataset.splits["validation"].labels.tolist() == [1]
    assert dataset.splits["train"].name(3) == "003.png"
    assert [(notice.kind, notice.where) for notice in dataset.notices] == [("not-a-split", "set-extra-0.tar")]
    assert (tmp_path / "shards.index").is_file()
    with pytest.raises(IndexError):
        dataset.splits["train"].read(5)


def test_folders_for_splits_and_class_names(tmp_path: Path) -> None:
    write_tar(tmp_path / "train" / "0.tar", *samples(2, 0, 1, 2))
    write_tar(tmp_path / "test" / "0.tar", *samples("bee", first=7))
    (tmp_path / "classes.txt").write_text("yak\nbee\nant\nfly\n")
    dataset = open_data(tmp_path)
    assert dataset.classes == ("yak", "bee", "ant", "fly")
    assert dataset.splits["train"].labels.tolist() == [2, 0, 1, 2]
    assert dataset.splits["test"].labels.tolist() == [1]
    assert [notice.kind for notice in dataset.notices] == ["empty-class"]
    (tmp_path / "classes.txt").write_text("yak\nbee\n")
    assert "has the class number 2; 0 to 1 are right" in refusal(tmp_path)
    (tmp_path / "classes.txt").unlink()
    (tmp_path / "dataset.json").write_text(json.dumps({"classes": ["yak", "wasp", "ant"]}))
    assert "has the label 'bee', which is not among its 3 classes" in refusal(tmp_path)


def test_without_splits_they_are_carved_as_in_a_folder(tmp_path: Path) -> None:
    write_pictures(tmp_path / "folder", ("ant", "bee"), 31)
    folder = open_data(tmp_path / "folder")
    files: list[tuple[str, bytes | str | int]] = []
    for path in sorted((tmp_path / "folder").rglob("*.png")):
        files += [(f"{path.parent.name}/{path.name}", path.read_bytes())]
        files += [(f"{path.parent.name}/{path.stem}.cls", path.parent.name)]
    write_tar(tmp_path / "tars" / "0.tar", *files[:40])
    write_tar(tmp_path / "tars" / "1.tar", *files[40:])
    tars = open_data(tmp_path / "tars")
    assert (tars.carved, tars.split_rule) == (True, CARVED)
    assert tars.fingerprint() == folder.fingerprint()
    assert tars.whole().fingerprint() == folder.whole().fingerprint()
    write_tar(tmp_path / "one.tar", *files)
    assert open_data(tmp_path / "one.tar").fingerprint() == folder.fingerprint()
    assert not (tmp_path / "shards.index").exists()


def test_several_labels(tmp_path: Path) -> None:
    files: list[tuple[str, bytes | str | int]] = []
    told = ['{"labels": ["sea", "sky"]}', '{"label": "sky"}', '{"labels": []}', '{"labels": ["sea", 7, "sea"]}']
    for number, label in enumerate(told):
        files += [(f"{number}.png", png(number)), (f"{number}.json", label)]
    write_tar(tmp_path / "train-0.tar", *files)
    write_tar(tmp_path / "test-0.tar", *files[2:4])
    dataset = open_data(tmp_path)
    assert dataset.multi_label
    assert dataset.classes == ("7", "sea", "sky")
    assert dataset.splits["train"].labels.tolist() == [[0, 1, 1], [0, 0, 1], [0, 0, 0], [1, 1, 0]]
    assert dataset.splits["train"].labels.dtype == np.uint8
    assert dataset.splits["train"].counts().tolist() == [1, 2, 2]
    other = open_data(tmp_path, classes=("sky", "x", "sea", "7"))
    assert other.splits["train"].labels.tolist() == [[1, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1]]


def test_the_classes_of_a_model_are_applied(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", *samples("ant", "bee", "ant"))
    assert open_data(tmp_path, classes=("bee", "x", "ant")).splits["train"].labels.tolist() == [2, 0, 2]
    with pytest.raises(DataError, match="'bee' of train is not among the 2 classes of the model"):
        open_data(tmp_path, classes=("x", "ant"))


def test_where_a_label_is_looked_for(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "train-0.tar",
        ("./a/0.txt", "from text\n"), ("./a/0.JPG", png(1)), ("./a/0.json", '{"label": "from json"}'), ("./a/0.cls", "bee"),
        ("a/1.seg.png", png(9)), ("a/1.png", png(2)), ("a/1.json", '{"width": 3}'), ("a/1.txt", "ant"),
        ("a/2.input.png", png(3)), ("a/2.cls", b"\xef\xbb\xbfbee\n"),
        ("a/3.png", png(4)), ("a/3.json", "4.0"),
        ("a/only.cls", "bee"), ("a/._5.png", b"x"), ("LICENSE", b"x"),
    )  # fmt: skip
    dataset = open_data(tmp_path)
    names = [dataset.classes[label] for label in dataset.splits["train"].labels]
    assert names == ["bee", "ant", "bee", "4"]
    assert values(dataset, "train") == [1, 2, 3, 4]
    assert dataset.splits["train"].name(0) == "a/0.JPG"
    assert [(notice.kind, notice.where) for notice in dataset.notices] == [("no-picture", "train-0.tar: a/only")]


def test_an_unlabelled_split_is_left_out(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", *samples("a", "b"))
    write_tar(tmp_path / "test-0.tar", ("x.png", png(0)), ("y.png", png(1)))
    dataset = open_data(tmp_path)
    assert set(dataset.splits) == {"train"} or dataset.carved
    assert [(notice.kind, notice.where) for notice in dataset.notices] == [("unlabelled", "test")]
    assert "000.png has no label" in refusal(
        write_tar(tmp_path / "no.tar", ("000.png", png(0)), *samples("a", first=1))
    )


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names(tmp_path: Path, form: int) -> None:
    long = "d" * 90 + "/" + ("n" * 90 if form == tarfile.USTAR_FORMAT else "ñ" * 150)
    files = [file for n in range(3) for file in ((f"{long}{n}.png", png(n)), (f"{long}{n}.cls", "ab"[n % 2]))]
    write_tar(tmp_path / "train-0.tar", *files, form=form)
    train = open_data(tmp_path).splits["train"]
    assert [train.key(n).decode() for n in range(3)] == [f"{long}{n}.png" for n in range(3)]
    assert values(open_data(tmp_path), "train") == [0, 1, 2]


# The same as a folder


def test_training_sees_the_same_from_shards_as_from_a_folder(tmp_path: Path, pictures: Path) -> None:
    folder, tars = open_data(pictures), open_data(shards_of(pictures, tmp_path / "tars"))
    assert tars.split_rule == GIVEN
    assert tars.fingerprint() == folder.fingerprint()
    assert [split.sketch() for split in tars.splits.values()] == [split.sketch() for split in folder.splits.values()]
    taken = []
    for dataset, workers in ((folder, 0), (tars, 0), (tars, 2)):
        with TrainLoader(
            dataset.splits["train"],
            preprocessing=Preprocessing(image_size=(12, 10)),
            augment=Augment(crop="random-resized", randaugment_layers=2, randaugment_magnitude=10),
            batch_size=17,
            seed=5,
            store=None,
            workers=workers,
        ) as loader:
            taken.append(list(itertools.islice(loader, 6)))
    for one, other in itertools.chain(zip(taken[0], taken[1], strict=True), zip(taken[0], taken[2], strict=True)):
        assert one.ids.tolist() == other.ids.tolist()
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)


def test_subsets_have_the_fingerprints_of_a_folder(tmp_path: Path, pictures: Path) -> None:
    rows = np.array([5, 2, 44, 71])
    folder, tars = (open_data(path).splits["train"] for path in (pictures, shards_of(pictures, tmp_path / "tars")))
    assert tars.subset(rows).fingerprint() == folder.subset(rows).fingerprint()
    assert tars.subset(rows).fingerprint() != tars.fingerprint()


def test_duplicates_are_found_by_size_and_hash(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(pictures / "test/ant/003.png", pictures / "train/ant/copy.png")
    folder, tars = open_data(pictures), open_data(shards_of(pictures, tmp_path / "tars"))
    reads = []
    original = Shards.read
    monkeypatch.setattr(Shards, "read", lambda self, row: reads.append(row) or original(self, row))
    assert find_duplicates(tars, tmp_path / "a") == find_duplicates(folder, tmp_path / "b")
    assert 2 <= len(reads) < 109
    before = len(reads)
    assert find_duplicates(tars, tmp_path / "a").groups
    assert len(reads) == before


def test_a_split_goes_to_another_process_without_its_arrays(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", *samples(*(n % 3 for n in range(1000))))
    write_tar(tmp_path / "test-0.tar", *samples(*(n % 3 for n in range(500))))
    for name in ("train", "test"):
        split = open_data(tmp_path).splits[name]
        sent = pickle.dumps(split)
        assert len(sent) < 2000
        again = pickle.loads(sent)  # noqa: S301 (worker processes receive splits in this way)
        assert again.labels.tolist() == split.labels.tolist()
        assert again.read(77) == split.read(77)
        assert again.fingerprint() == split.fingerprint()
    carved = open_data(write_tar(tmp_path / "one.tar", *samples(*(n % 3 for n in range(1000))))).splits["train"]
    assert len(pickle.dumps(carved)) < 2000
    assert pickle.loads(pickle.dumps(carved)).fingerprint() == carved.fingerprint()  # noqa: S301


def test_few_files_are_open(tmp_path: Path) -> None:
    for number in range(80):
        write_tar(tmp_path / f"train-{number:02d}.tar", *samples("a", "b", first=2 * number))
    write_tar(tmp_path / "test-0.tar", *samples("a", "b"))
    before = len(os.listdir("/proc/self/fd"))
    dataset = open_data(tmp_path)
    assert values(dataset, "train") == list(range(160))
    assert len(os.listdir("/proc/self/fd")) - before <= 40  # 32, and the mapped arrays
    del dataset
    assert len(os.listdir("/proc/self/fd")) <= before + 1


# Archives that are not what they should be


def test_members_that_are_no_files(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train-0.tar", "w") as archive:
        for name, kind, link in (
            ("a.png", tarfile.SYMTYPE, "/etc/passwd"),
            ("b.png", tarfile.LNKTYPE, "../x"),
            ("c.png", tarfile.FIFOTYPE, ""),
            ("d.png", tarfile.CHRTYPE, ""),
            ("folder", tarfile.DIRTYPE, ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, link
            archive.addfile(member)
        for name, content in [*samples("a", "b"), ("../up.png", png(7)), ("/abs.png", png(8)), ("x/../../y.cls", b"a")]:
            member = tarfile.TarInfo(name)
            content = content if isinstance(content, bytes) else str(content).encode()
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    dataset = open_data(tmp_path)
    assert values(dataset, "train") == [0, 1]
    assert {(notice.kind, notice.where) for notice in dataset.notices} == {
        ("not-a-file", "train-0.tar: a.png"),
        ("unsafe-name", "train-0.tar: ../up.png"),
    }
    assert dataset.notices[0].sentence.endswith("(and 3 more)")
    assert sorted(os.listdir(tmp_path)) == ["shards.index", "train-0.tar"]


def test_bad_archives(tmp_path: Path) -> None:
    path = tmp_path / "train-0.tar"

    def said(content: bytes) -> str:
        path.write_bytes(content)
        return refusal(tmp_path)

    good = write_tar(path, *samples("a", "b")).read_bytes()
    assert "is cut short: it has 2,048 bytes and no end mark" in said(good[:2048])
    assert "is cut short: 000.png at byte 0 is to have" in said(good[:520])
    assert "no header at byte 0" in said(b"\x1f\x8b" + bytes(1022))
    assert "no header at byte 1,024" in said(good[:1025] + b"?" + good[1026:])
    assert "goes on after its end mark" in said(good + good)
    assert "has two pictures under the key '000'" in said(
        write_tar(path, ("000.png", png(1)), ("000.png", png(1))).read_bytes()
    )
    assert "has the same key for its samples 0 and 2" in said(
        write_tar(path, *samples("a", "b"), *samples("a")).read_bytes()
    )
    assert "000.png has no label" in said(
        write_tar(path, *samples("a", "b")[::2], *samples("a", "b")[1::2]).read_bytes()
    )
    assert "hold no pictures" in said(write_tar(path, ("a.cls", "a")).read_bytes())
    assert "has a label that cannot be read" in said(
        write_tar(path, ("a.png", png(0)), ("a.json", "[" * 9999)).read_bytes()
    )
    assert "has a label that cannot be read" in said(
        write_tar(path, ("a.png", png(0)), ("a.cls", b"\xff")).read_bytes()
    )
    assert "'True' is neither" in said(write_tar(path, ("a.png", png(0)), ("a.json", '{"label": true}')).read_bytes())
    assert "has a label that cannot be read" in said(
        write_tar(path, ("a.png", png(0)), ("a.cls", "x" * 1001)).read_bytes()
    )
    assert "pictures of one class only" in said(write_tar(path, *samples("a", "a")).read_bytes())

    huge = bytearray(good)
    for size in (b"77777777777\0", b"\x80" + b"\x7f" * 11, b"\xff" * 12, b"-0000000001\0", b"0000000008x\0"):
        huge[124:136] = size
        huge[148:156] = b" " * 8
        huge[148:156] = b"%06o\0 " % sum(huge[:512])
        assert re.search("is to have [0-9,]+ bytes, and the archive ends|no header at byte 0", said(bytes(huge)))


@pytest.mark.parametrize(
    ("records", "sentence"),
    [
        (b"20 size=12345678901\n", "tells sizes in an extended header"),
        (b"22 GNU.sparse.major=1\n", "tells sizes in an extended header"),
        (b"999 path=x\n", "cannot be read"),
        (b"0 path=x\n", "cannot be read"),
        (b"x path=x\n", "cannot be read"),
        (b"99999999999999999999 path=x\n", "cannot be read"),
        (b"5010 path=" + b"n" * 4999 + b"\n", "a name of 4,999 bytes"),
    ],
)
def test_bad_extended_headers(tmp_path: Path, records: bytes, sentence: str) -> None:
    header = tar._header(b"pax", b"", len(records), b"x")
    (tmp_path / "train-0.tar").write_bytes(header + tar.padded(records) + tar.END)
    assert sentence in refusal(tmp_path)
    (tmp_path / "train-0.tar").write_bytes(tar._header(b"pax", b"", 2**21, b"x") + bytes(2**21) + tar.END)
    assert "an extended header of 2,097,152 bytes" in refusal(tmp_path)
    (tmp_path / "train-0.tar").write_bytes(tar._header(b"long", b"", 5000, b"L") + bytes(5120) + tar.END)
    assert "a name of 5,000 bytes" in refusal(tmp_path)
    (tmp_path / "train-0.tar").write_bytes(tar._header(b"sparse", b"", 0, b"S") + tar.END)
    assert "holds a sparse file" in refusal(tmp_path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_changed_bytes_give_a_result_or_a_sentence(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(write_tar(tmp_path / "t" / "train-0.tar", *samples("a", "b", "a")).read_bytes()[: 6 * 1024])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "t" / "train-0.tar"
    path.write_bytes(
        bytes(content[: data.draw(st.integers(0, len(content)))]) + bytes(1024 * data.draw(st.integers(0, 2)))
    )
    os.utime(path, ns=(data.draw(st.integers(0, 2**60)), data.draw(st.integers(0, 2**60))))
    try:
        split = open_data(tmp_path / "t").splits["train"]
        for index in range(len(split)):
            split.read(index)
            split.name(index)
    except PatchwordError as error:
        assert "\n" not in str(error)


def test_compressed_archives_and_archives_beside_classes(tmp_path: Path) -> None:
    (tmp_path / "train-000.tar.gz").write_bytes(b"x")
    assert "train-000.tar.gz is compressed" in refusal(tmp_path)
    write_pictures(tmp_path / "photos", ("ant", "bee"), 3)
    write_tar(tmp_path / "photos" / "raw.tar", *samples("a", "b"))
    assert open_data(tmp_path / "photos").classes == ("ant", "bee")


# The index


def test_a_changed_shard_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_tar(tmp_path / "train-0.tar", *samples("a", "b"))
    before = open_data(tmp_path)
    assert open_data(tmp_path).fingerprint() == before.fingerprint()
    assert capsys.readouterr().err == ""
    write_tar(path, *samples("b", "a"))
    after = open_data(tmp_path)
    assert "train-0.tar has changed since its index was made; the index is made anew" in capsys.readouterr().err
    assert after.fingerprint() != before.fingerprint()
    write_tar(tmp_path / "train-1.tar", *samples("b", first=9))
    assert values(open_data(tmp_path), "train") == [0, 1, 9]
    assert "train-1.tar is new since" in capsys.readouterr().err
    (tmp_path / "train-1.tar").unlink()
    assert values(open_data(tmp_path), "train") == [0, 1]
    assert "train-1.tar is gone since" in capsys.readouterr().err
    (tmp_path / "classes.txt").write_text("b\na\n")
    assert open_data(tmp_path).classes == ("b", "a")
    assert "the class list has changed" in capsys.readouterr().err


def test_a_shard_that_changes_while_it_is_open(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "train-0.tar", *samples("a", "b"))
    train = open_data(tmp_path).splits["train"]
    write_tar(path, ("x.cls", b"y" * 600), *samples("a", "b"))
    with pytest.raises(DataError, match=r"train-0.tar is not the shard that .*shards.index was made from") as caught:
        train.read(0)
    assert not isinstance(caught.value, DecodeError)  # not a bad picture that training may pass over
    other = open_data(tmp_path).splits["train"]
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(DataError, match="ends before byte"):
        other.read(1)
    write_tar(path, *samples("a", "b", "b"))
    another = pickle.loads(pickle.dumps(open_data(tmp_path).splits["train"]))  # noqa: S301
    path.unlink()
    with pytest.raises(DataError, match="train-0.tar cannot be read: No such file"):
        another.read(1)


def test_where_nothing_can_be_written_the_index_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from patchword.data.shards import index

    write_tar(tmp_path / "train-0.tar", *samples("a", "b"))
    original = index.new_file

    def new_file(path: Path) -> Any:
        if path.parent == tmp_path:
            raise FaultError("read-only")
        return original(path)

    monkeypatch.setattr(index, "new_file", new_file)
    dataset = open_data(tmp_path)
    assert values(dataset, "train") == [0, 1]
    assert not (tmp_path / "shards.index").exists()
    (cached,) = (Path(os.environ["XDG_CACHE_HOME"]) / "patchword" / "index").iterdir()
    monkeypatch.setattr(index, "new_file", None)  # it is not made again
    assert open_data(tmp_path).fingerprint() == dataset.fingerprint()
    assert cached.is_file()


def rehashed(content: bytes) -> bytes:
    import hashlib

    return content[:18] + hashlib.sha256(content[50:]).digest() + content[50:]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_hostile_indices_do_nothing(tmp_path: Path, data: st.DataObject) -> None:
    path = write_tar(tmp_path / "t" / "train-0.tar", *samples("a", "b", "a"))
    os.utime(path, ns=(7, 7))
    index = tmp_path / "t" / "shards.index"
    index.unlink(missing_ok=True)
    good = open_data(tmp_path / "t").fingerprint()
    content = bytearray(index.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(50, len(content) - 1))] = data.draw(st.integers(0, 255))
    changed = bytes(content[: data.draw(st.sampled_from([len(content), data.draw(st.integers(0, len(content)))]))])
    honest = data.draw(st.booleans())
    index.write_bytes(rehashed(changed) if honest else changed)
    try:
        dataset = open_data(tmp_path / "t")
        for split in dataset.splits.values():
            for number in range(len(split)):
                split.name(number)
                split.read(number)
        if not honest:
            assert dataset.fingerprint() == good
    except PatchwordError as error:
        assert "\n" not in str(error)


def test_damaged_indices_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tar(tmp_path / "train-0.tar", *samples("a", "b"))
    good = open_data(tmp_path).fingerprint()
    index = tmp_path / "shards.index"
    content = index.read_bytes()
    for damaged, said in (
        (b"x", "is not an index of shards"),
        (content[:-1], "is damaged: its hash does not fit"),
        (content[:60] + b"!" + content[61:], "is damaged: its hash does not fit"),
        (rehashed(content[:-1]), "is damaged: it is too short"),
        (rehashed(content + b"\0"), "is damaged: it is too long"),
        (rehashed(content.replace(b'"train-0.tar"', b'"../../a.tar"')), "is damaged: a shard that cannot be"),
    ):
        index.write_bytes(damaged)
        with pytest.raises(DataError, match=said):
            open_index(index)
        assert open_data(tmp_path).fingerprint() == good
        assert said in capsys.readouterr().err
        assert index.read_bytes() == content


# Addresses


@pytest.fixture
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/", recursive=True)


def upload(folder: Path, to: str, system: Any) -> str:
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            system.pipe_file(f"{to}/{path.relative_to(folder).as_posix()}", path.read_bytes())
    return f"memory://{to}"


def test_an_address_gives_what_a_folder_gives(tmp_path: Path, pictures: Path, memory: Any) -> None:
    tars = shards_of(pictures, tmp_path / "tars")
    address = upload(tars, "/sets/insects", memory)
    here, there = open_data(pictures), open_data(address)
    assert (there.name, there.location) == ("insects", "memory:///sets/insects")
    assert there.fingerprint() == here.fingerprint()
    assert all(there.splits["test"].read(index) == here.splits["test"].read(index) for index in range(21))
    assert open_data(address).fingerprint() == here.fingerprint()
    assert len(list((Path(os.environ["XDG_CACHE_HOME"]) / "patchword" / "index").iterdir())) == 1
    again = pickle.loads(pickle.dumps(there.splits["test"]))  # noqa: S301
    assert again.read(3) == here.splits["test"].read(3)
    memory.pipe_file("/sets/one.tar", write_tar(tmp_path / "one.tar", *samples("a", "b")).read_bytes())
    one = open_data("memory://sets/one.tar")
    assert (one.name, one.location, one.carved) == ("one", "memory://sets/one.tar", True)


def test_a_changed_remote_shard(tmp_path: Path, memory: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_tar(tmp_path / "train-0.tar", *samples("a", "b"))
    memory.pipe_file("/s/train-0.tar", path.read_bytes())
    old = open_data("memory://s").splits["train"]
    memory.pipe_file("/s/train-0.tar", write_tar(path, ("x.cls", b"y" * 600), *samples("b", "a")).read_bytes())
    with pytest.raises(DataError, match=r"memory://s/train-0.tar is not the shard"):
        old.read(0)
    assert open_data("memory://s").splits["train"].labels.tolist() == [1, 0]
    assert "has changed since its index was made" in capsys.readouterr().err
    memory.rm("/s/train-0.tar")
    with pytest.raises(DataError, match=r"memory://s/train-0.tar does not exist"):
        old.read(0)


def test_addresses_that_stand_for_nothing(memory: Any) -> None:
    memory.pipe_file("/s/notes.txt", b"x")
    assert "memory://s has neither tar shards nor Parquet files" in refusal("memory://s")
    assert "memory://s/x.tar does not exist" in refusal("memory://s/x.tar")
    with pytest.raises(UsageError, match="qqq://s cannot be opened: Protocol not known"):
        open_data("qqq://s")


@pytest.mark.parametrize("single", [True, False])
def test_remote_parquet(tmp_path: Path, memory: Any, single: bool) -> None:
    labels = ["b", "a", "a", "b", "b", "a", "a"]
    write_parquet(tmp_path / "data" / "train-0.parquet", labels)
    if single:
        address, here = "memory://p/data/train-0.parquet", open_data(tmp_path / "data" / "train-0.parquet")
    else:
        write_parquet(tmp_path / "data" / "test-0.parquet", ["b"])
        address, here = "memory://p", open_data(tmp_path)
    upload(tmp_path, "/p", memory)
    there = open_data(address)
    assert there.fingerprint() == here.fingerprint()
    for split, pictures in here.splits.items():
        assert [there.splits[split].name(n) for n in range(len(pictures))] == [
            pictures.name(n) for n in range(len(pictures))
        ]
        assert values(there, split) == values(here, split)
    assert values(there, "train")[:7] == list(range(7))[: len(there.splits["train"])]


def test_remote_parquet_reads_row_groups(tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = [np.random.default_rng(n).bytes(50_000) for n in range(20)]
    pq.write_table(pa.table({"image": noise, "label": ["a", "b"] * 10}), tmp_path / "t.parquet", row_group_size=2)
    memory.pipe_file("/p/t.parquet", (tmp_path / "t.parquet").read_bytes())
    read: list[int] = []
    original = places.Remote.read
    monkeypatch.setattr(
        places.Remote,
        "read",
        lambda self, name, start, length: read.append(length) or original(self, name, start, length),
    )
    split = open_data("memory://p/t.parquet").splits["train"]
    opening = sum(read)
    assert opening < 300_000  # footers and labels, no pictures
    assert split.read(7) in noise
    assert 100_000 < sum(read) - opening < 200_000


def test_paths_in_a_remote_table_are_refused(tmp_path: Path, memory: Any) -> None:
    write_parquet(tmp_path / "t.parquet", ["a", "b"], ["x.jpg", "y.jpg"])
    memory.pipe_file("/p/t.parquet", (tmp_path / "t.parquet").read_bytes())
    assert "holds paths of pictures; at an address" in refusal("memory://p/t.parquet")
    memory.pipe_file("/p/t.parquet", b"PAR1 is how it begins")
    assert "is not a Parquet file that can be read" in refusal("memory://p/t.parquet")


# A web server, and what networks do


class Served(http.server.SimpleHTTPRequestHandler):
    """Serves ranges as storage does; `faults` says what becomes of the next requests for content."""

    faults: tuple[str, ...] = ()
    requests = 0
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            super().do_GET()
            return
        kind = type(self)
        kind.requests += 1
        fault, kind.faults = (kind.faults[0], kind.faults[1:]) if kind.faults else ("", ())
        content = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        status, told = 200, ""
        if asked and fault != "whole":
            start, end = int(asked[1]), int(asked[2]) if asked[2] else len(content) - 1
            told = f"bytes {start}-{min(end, len(content) - 1)}/{len(content)}"
            content, status = content[start : end + 1], 206
        if fault == "error":
            self.send_error(503)
            return
        if fault == "hang up":
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Accept-Ranges", "bytes")
        if status == 206:
            self.send_header("Content-Range", told)
        self.end_headers()
        if fault == "cut":
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        self.wfile.write(content[:-1] if fault == "short" else content)
        if fault == "short":
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the library's name)
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str, type[Served]]]:
    folder = tmp_path / "served"
    folder.mkdir()

    class Own(Served):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Own)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{running.server_port}", Own
    running.shutdown()
    running.server_close()
    thread.join()


def test_a_web_server(server: tuple[Path, str, type[Served]], pictures: Path) -> None:
    folder, address, _ = server
    shards_of(pictures, folder)
    here, there = open_data(pictures), open_data(address)
    assert there.fingerprint() == here.fingerprint()
    assert all(there.splits["train"].read(n) == here.splits["train"].read(n) for n in range(0, 72, 5))
    with TrainLoader(
        there.splits["train"],
        preprocessing=Preprocessing(image_size=(12, 10)),
        augment=Augment(),
        batch_size=17,
        seed=5,
        store=None,
        workers=2,
    ) as loader:
        batch = next(iter(loader))
    assert batch.weights.tolist() == [1.0] * 17


@pytest.mark.parametrize("fault", ["error", "hang up", "cut", "short", "whole"])
def test_a_flaky_server(server: tuple[Path, str, type[Served]], fault: str) -> None:
    folder, address, handler = server
    write_tar(folder / "train-0.tar", *samples("a", "b", "a"))
    train = open_data(f"{address}/train-0.tar").splits["train"]
    want = train.read(1)
    handler.faults = (fault,) * 4
    assert train.read(1) == want
    before = handler.requests
    handler.faults = (fault,) * (10 if fault == "hang up" else 5)  # the client itself calls again once
    with pytest.raises(FaultError, match=rf"{address}/train-0.tar cannot be read \(.*; tried 5 times\)") as caught:
        train.read(1)
    assert "\n" not in str(caught.value)
    assert handler.requests - before == (10 if fault == "hang up" else 5)
    assert train.read(1) == want


def test_a_server_that_is_gone() -> None:
    for address in ("http://127.0.0.1:9/s/train-0.tar", "http://127.0.0.1:9/s"):
        assert re.search(r"http://127.0.0.1:9/s/\S+ cannot be read \(.*; tried 5 times\)", refusal(address))


def test_an_address_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    assert "s3://bucket/set cannot be opened" in refusal("s3://bucket/set")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    assert refusal("s3://bucket/set") == "reading s3://bucket/set takes fsspec: pip install 'patchword[data]'"
