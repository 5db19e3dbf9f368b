"""`data pack`: what goes in comes out, byte for byte the same however often it was killed on the way."""

import io
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import write_pictures
from patchword import cli
from patchword.core import files
from patchword.core.errors import DataError, FaultError, UsageError
from patchword.data.check import check
from patchword.data.dataset import Dataset
from patchword.data.decoding.decode import decode
from patchword.data.shards import pack as packing
from patchword.data.shards import tar
from patchword.data.shards.manifest import read_manifest
from patchword.data.shards.pack import escaped, pack
from patchword.data.shards.places import Folder
from patchword.data.sources import open_data

NOISE = np.random.default_rng(3).integers(0, 256, (37, 53, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def odd_pictures(folder: Path) -> Path:
    """One of each kind that is not plain RGB, twice, in two classes."""
    rgb = Image.fromarray(NOISE)
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = {
        "grey.png": encoded(rgb.convert("L"), "png"),
        "grey.jpg": encoded(rgb.convert("L"), "jpeg", quality=71),
        "sixteen.png": encoded(Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257), "png"),
        "alpha.png": encoded(Image.fromarray(np.dstack([NOISE, NOISE[..., 0]])), "png"),
        "grey-alpha.png": encoded(Image.fromarray(NOISE[..., :2].copy(), "LA"), "png"),
        "palette.gif": encoded(rgb.convert("P"), "gif"),
        "cmyk.jpg": encoded(rgb.convert("CMYK"), "jpeg", quality=71),
        "turned.jpg": encoded(rgb, "jpeg", exif=exif.tobytes()),
        "plain.webp": encoded(rgb, "webp", lossless=True),
        "plain.bmp": encoded(rgb, "bmp"),
        "plain.tiff": encoded(rgb, "tiff"),
        "dots.in.name.ppm": encoded(rgb, "ppm"),
    }
    for name in ("ant", "bee"):
        (folder / name).mkdir(parents=True)
        for file, content in kinds.items():
            (folder / name / file).write_bytes(content)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def assert_same(one: Dataset, other: Dataset) -> None:
    assert one.classes == other.classes
    assert one.multi_label == other.multi_label
    assert list(one.splits) == list(other.splits)
    for name, split in one.splits.items():
        again = other.splits[name]
        assert list(again.keys()) == list(split.keys())
        assert again.labels.tolist() == split.labels.tolist()
        for index in range(len(split)):
            for channels in (1, 3):
                np.testing.assert_array_equal(
                    decode(again.read(index), channels), decode(split.read(index), channels), split.name(index)
                )


def test_files_are_copied_byte_for_byte(tmp_path: Path) -> None:
    source = open_data(odd_pictures(tmp_path / "odd"))
    summary = pack(tmp_path / "odd", tmp_path / "shards", shard_bytes=30_000)
    assert summary["pictures"] == {name: len(split) for name, split in source.splits.items()}
    assert summary["left_out"] == []
    assert summary["shards"] > 4
    packed = open_data(tmp_path / "shards")
    assert_same(source, packed)
    for name, split in source.splits.items():
        assert [packed.splits[name].read(n) for n in range(len(split))] == [split.read(n) for n in range(len(split))]
    assert packed.name == "odd"
    assert not packed.carved
    # Splits, names, labels and bytes are those of the folder, and so is what a resumed run compares.
    assert packed.fingerprint() == source.fingerprint()
    for path in (tmp_path / "shards").glob("*.tar"):
        assert path.stat().st_size <= 30_000 or path.stat().st_size % tar.BLOCK == 0


def test_other_programs_read_the_shards(tmp_path: Path) -> None:
    pack(write_pictures(tmp_path / "set", ("ant", "b.ee"), 5), tmp_path / "shards")
    with tarfile.open(tmp_path / "shards" / "train-000000.tar") as archive:
        members = archive.getmembers()
        assert [member.name for member in members[:2]] == ["000000000/ant/000%2Epng.png", "000000000/ant/000%2Epng.cls"]
        assert {(member.mtime, member.uid, member.gid, member.mode, member.uname) for member in members} == {
            (0, 0, 0, 0o644, "")
        }
        file = archive.extractfile(members[0])
        assert file is not None
        assert file.read() == (tmp_path / "set/ant/000.png").read_bytes()
    told = json.loads((tmp_path / "shards" / "dataset.json").read_text())
    assert told["classes"] == ["ant", "b.ee"]


def test_pixels_without_files_are_kept_exactly(tmp_path: Path) -> None:
    summary = pack("digits", tmp_path / "shards", shard_bytes=200_000)
    assert sum(summary["pictures"].values()) == 1797
    assert_same(open_data("digits"), open_data(tmp_path / "shards"))
    first = open_data(tmp_path / "shards").splits["train"].read(0)
    assert isinstance(first, bytes)
    assert Image.open(io.BytesIO(first)).mode == "L"


def test_several_labels_survive(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", ("x",), 30)
    rows = [f"x/{n:03d}.png,{'|'.join(['sea', 'sky', '7', '0'][: n % 5])}" for n in range(30)]
    rows += ["x/003.png,sea"]  # the same file twice
    (tmp_path / "pictures" / "t.csv").write_text("\n".join(["path,labels", *rows]) + "\n")
    pack(tmp_path / "pictures" / "t.csv", tmp_path / "shards")
    source, packed = open_data(tmp_path / "pictures" / "t.csv"), open_data(tmp_path / "shards")
    assert packed.classes == ("0", "7", "sea", "sky")
    assert_same(source, packed)


def test_resized_pictures(tmp_path: Path) -> None:
    source = open_data(odd_pictures(tmp_path / "odd"))
    pack(tmp_path / "odd", tmp_path / "shards", side=23, quality=95)
    packed = open_data(tmp_path / "shards")
    for name, split in source.splits.items():
        for index in range(len(split)):
            item, before = packed.splits[name].read(index), split.read(index)
            assert isinstance(item, bytes)
            image = Image.open(io.BytesIO(item))
            grey = split.name(index).partition("/")[2] in ("grey.png", "grey.jpg", "sixteen.png", "grey-alpha.png")
            assert (image.format, image.mode) == ("JPEG", "L" if grey else "RGB")
            height, width = decode(before, 3).shape[:2]
            assert image.size == ((23, 33) if height > width else (33, 23))
            want = Image.fromarray(decode(before, 3)).resize(image.size, Image.Resampling.BICUBIC)
            assert np.abs(decode(item, 3).astype(int) - np.asarray(want).astype(int)).mean() < 25
    with_grey = next(
        packed.splits["train"].read(n)
        for n in range(len(packed.splits["train"]))
        if "grey.png" in packed.splits["train"].name(n)
    )
    want = encoded(Image.fromarray(NOISE).convert("L").resize((33, 23), Image.Resampling.BICUBIC), "jpeg", quality=95)
    assert with_grey == want
    # Pictures that are small enough are not touched.
    pack(tmp_path / "odd", tmp_path / "same", side=53)
    assert_same(source, open_data(tmp_path / "same"))


def test_bad_pictures_are_left_out_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path / "set" / "train", ("ant", "bee"), 9)
    write_pictures(tmp_path / "set" / "test", ("ant", "bee"), 4)
    for name in ("train/ant/003", "train/ant/004", "train/bee/008", "test/ant/000"):
        path = tmp_path / "set" / f"{name}.png"
        path.write_bytes(path.read_bytes()[:60])
    for size in (3000, 10**6):
        out = tmp_path / f"out-{size}"
        summary = pack(tmp_path / "set", out, shard_bytes=size)
        assert summary["pictures"] == {"train": 15, "test": 7}
        assert [each["name"] for each in summary["left_out"]] == [
            "train/ant/003.png", "train/ant/004.png", "train/bee/008.png", "test/ant/000.png"
        ]  # fmt: skip
        packed = open_data(out)
        assert packed.splits["train"].labels.tolist() == [0] * 7 + [1] * 8
        assert [(notice.kind, notice.where) for notice in packed.notices] == [
            ("left-out", "train/ant/003.png"), ("left-out", "test/ant/000.png")
        ]  # fmt: skip
    for path in (tmp_path / "set" / "test").rglob("*.png"):
        path.write_bytes(b"x")
    with pytest.raises(DataError, match="none of the 8 pictures of test can be decoded"):
        pack(tmp_path / "set", tmp_path / "none")


# Resuming


_PACK = """
import os, signal, sys
from pathlib import Path
from patchword.core import files
from patchword.data.shards.pack import pack
left = int(sys.argv[3])
rename = os.replace
def replace(old, new):
    global left
    left -= 1
    if left == 0 and sys.argv[4] == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    rename(old, new)
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
files.os.replace = replace
pack(sys.argv[1], Path(sys.argv[2]), side=11, quality=80, shard_bytes=9_000)
"""


def packed_in_a_process(data: Path, out: Path, killed_at: int, when: str) -> int:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", _PACK, str(data), str(out), str(killed_at), when]
    return subprocess.run(command, env=environment, check=False, capture_output=True).returncode


@pytest.mark.slow
def test_killed_at_every_rename_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    write_pictures(tmp_path / "set", ("ant", "bee"), 20)
    (tmp_path / "set" / "ant" / "003.png").write_bytes(b"no picture")
    pack(tmp_path / "set", tmp_path / "quiet", side=11, quality=80, shard_bytes=9_000)
    want = contents(tmp_path / "quiet")
    assert len(want) >= 7
    deaths = 0
    for killed_at in range(1, 40, 2):
        out = tmp_path / f"out-{killed_at}"
        when = "before" if killed_at % 4 == 1 else "after"
        died = packed_in_a_process(tmp_path / "set", out, killed_at, when) == -9
        deaths += died
        if not died:
            break
        packed_in_a_process(tmp_path / "set", out, 2, "before")  # and once more, soon after
        pack(tmp_path / "set", out, side=11, quality=80, shard_bytes=9_000)
        assert contents(out) == want, killed_at
        assert sorted(path.name for path in out.iterdir() if path.name.startswith(".")) == [".lock"]
    assert deaths >= 5


def test_what_was_written_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path / "set", ("ant", "bee"), 20)
    pack(tmp_path / "set", tmp_path / "quiet", shard_bytes=9_000)
    stop_at = 3
    original = packing._Work._record

    def record(self: Any, *arguments: Any) -> None:
        original(self, *arguments)
        if len(self.shards) == stop_at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(packing._Work, "_record", record)
        pack(tmp_path / "set", tmp_path / "out", shard_bytes=9_000)
    first = tmp_path / "out" / "train-000000.tar"
    inode, third = first.stat().st_ino, tmp_path / "out" / "train-000002.tar"
    third.write_bytes(third.read_bytes()[:-1] + b"!")  # the disk lost it
    pack(tmp_path / "set", tmp_path / "out", shard_bytes=9_000)
    assert first.stat().st_ino == inode
    assert contents(tmp_path / "out") == contents(tmp_path / "quiet")
    pack(tmp_path / "set", tmp_path / "out", shard_bytes=9_000)
    assert first.stat().st_ino == inode


def test_other_settings_other_data_and_other_files(tmp_path: Path) -> None:
    write_pictures(tmp_path / "set", ("ant", "bee"), 9)
    pack(tmp_path / "set", tmp_path / "out", side=12)
    options: dict[str, Any]
    for options, said in (
        ({"side": 11}, "side=12, not 11"),
        ({"side": 12, "quality": 7}, "quality=90, not 7"),
        ({}, "side=12"),
    ):
        with pytest.raises(UsageError, match=said):
            pack(tmp_path / "set", tmp_path / "out", **options)
    with pytest.raises(UsageError, match="shard_bytes=256000000, not 5"):
        pack(tmp_path / "set", tmp_path / "out", side=12, shard_bytes=5)
    write_pictures(tmp_path / "set", ("ant", "bee"), 10)
    with pytest.raises(UsageError, match="holds shards of other data"):
        pack(tmp_path / "set", tmp_path / "out", side=12)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UsageError, match="holds thesis.txt, which is not of this work"):
        pack(tmp_path / "set", tmp_path / "mine")
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    for options in ({"side": 1}, {"quality": 0}, {"quality": 101}, {"shard_bytes": 0}):
        with pytest.raises(UsageError):
            pack(tmp_path / "set", tmp_path / "new", **options)
    with pytest.raises(UsageError, match="is an address"):
        pack(tmp_path / "set", "s3://bucket/set")
    assert not (tmp_path / "new").exists()
    (tmp_path / "out" / "unfinished.json").write_text("{")
    (tmp_path / "out" / "dataset.json").unlink()
    with pytest.raises(DataError, match=r"unfinished.json is not valid JSON"):
        pack(tmp_path / "set", tmp_path / "out", side=12)
    (tmp_path / "out" / "unfinished.json").write_text("{}")
    with pytest.raises(DataError, match=r"unfinished.json is damaged"):
        pack(tmp_path / "set", tmp_path / "out", side=12)


def test_a_disk_that_lies_and_one_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path / "set", ("ant", "bee"), 9)
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_verify", lambda number, *rest: _spoil(number, *rest))
        with pytest.raises(FaultError, match="is not what was written when it is read again"):
            pack(tmp_path / "set", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tar"))

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(packing, "_verify", full)
        with pytest.raises(FaultError, match="No space left on device"):
            pack(tmp_path / "set", tmp_path / "out")
    pack(tmp_path / "set", tmp_path / "out")
    pack(tmp_path / "set", tmp_path / "quiet")
    assert contents(tmp_path / "out") == contents(tmp_path / "quiet")


_verify = packing._verify


def _spoil(number: int, *rest: Any) -> None:
    os.pwrite(number, b"?", 700)
    _verify(number, *rest)


# What lies there later


def test_shards_that_are_lost_or_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path / "set", ("ant", "bee"), 20)
    out = tmp_path / "out"
    pack(tmp_path / "set", out, shard_bytes=9_000)
    fingerprint = open_data(out).fingerprint()
    assert not [warning for warning in check(out).warnings if "SHA-256" in warning]
    shard = out / "train-000001.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[:600] + b"?" + content[601:])
    [changed] = check(out).changed
    assert "train-000001.tar: its SHA-256 is not the one" in changed
    assert cli.run(["data", "check", str(out)]) == 3
    assert f"warning: {changed}\n" in capsys.readouterr().out
    shard.write_bytes(content + b"?")
    with pytest.raises(DataError, match=rf"train-000001.tar has {len(content) + 1:,} bytes; {len(content):,} bytes"):
        open_data(out)
    shard.unlink()
    with pytest.raises(DataError, match="train-000001.tar does not exist"):
        open_data(out)
    shard.write_bytes(content)
    index = (out / "shards.index").read_bytes()
    for lost in (None, b"x", index[:-1]):
        (out / "shards.index").unlink()
        if lost is not None:
            (out / "shards.index").write_bytes(lost)
        assert open_data(out).fingerprint() == fingerprint
        assert (out / "shards.index").read_bytes() == index
    os.utime(shard, ns=(5, 5))  # a copy has another date
    assert open_data(out).fingerprint() == fingerprint
    (out / "train-000077.tar").write_bytes(content)
    assert [notice.where for notice in open_data(out).notices] == ["train-000077.tar"]


def test_hostile_manifests(tmp_path: Path) -> None:
    write_pictures(tmp_path / "set", ("ant", "bee"), 9)
    pack(tmp_path / "set", tmp_path / "out")
    path = tmp_path / "out" / "dataset.json"
    good = json.loads(path.read_text())
    for change in (
        {"shards": [good["shards"][0] | {"name": "../../etc/passwd"}]},
        {"shards": [good["shards"][0] | {"bytes": -1}]},
        {"shards": [good["shards"][0] | {"bytes": "9"}]},
        {"shards": [good["shards"][0] | {"split": "x"}]},
        {"shards": [good["shards"][0] | {"split": []}]},
        {"shards": 3},
        {"classes": [1, 2]},
        {"name": None},
        {"left_out": [[]]},
        {"index": {"sha256": "../x", "bytes": 1}},
        {"index": None},
    ):
        path.write_text(json.dumps(good | change))
        with pytest.raises(DataError, match=r"dataset.json is damaged \(.*\); copy it again") as caught:
            open_data(tmp_path / "out")
        assert "\n" not in str(caught.value)
    path.write_text(json.dumps(good | {"classes": ["ant", "ant"]}))
    with pytest.raises(DataError, match="names the class 'ant' twice"):
        open_data(tmp_path / "out")
    path.write_text("[" * 100_000)
    with pytest.raises(DataError, match="is damaged"):
        open_data(tmp_path / "out")


def test_an_address_uses_the_index_that_was_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    from patchword.data.shards import find as shards

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_pictures(tmp_path / "set", ("ant", "bee"), 20)
    pack(tmp_path / "set", tmp_path / "out", shard_bytes=9_000)
    system = fsspec.filesystem("memory")
    for path in (tmp_path / "out").iterdir():
        system.pipe_file(f"/packed/{path.name}", path.read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr(shards, "make_index", None)
        for _ in range(2):
            assert_same(open_data("memory://packed"), open_data(tmp_path / "out"))
    assert open_data("memory://packed").fingerprint() == open_data(tmp_path / "out").fingerprint()
    system.pipe_file("/packed/shards.index", b"x")
    for path in (tmp_path / "cache").rglob("*.index"):
        path.unlink()
    assert open_data("memory://packed").fingerprint() == open_data(tmp_path / "out").fingerprint()
    system.rm("/packed", recursive=True)


# Names


@pytest.mark.parametrize(
    ("name", "key"),
    [
        (b"train/ant/0.jpg", "train/ant/0%2Ejpg"),
        (b"a.b/c.d.e", "a.b/c%2Ed%2Ee"),
        (b"../up.png", "%2E./up%2Epng"),
        (b".hidden/./x", "%2Ehidden/%2E/x"),
        (b"/abs/x.png", "%2Fabs%2Fx%2Epng"),
        (b"a//b", "a%2F%2Fb"),
        (b"\xff \xc3\xa9%.png", "%FF %C3%A9%25%2Epng"),
        (b"t.parquet:7", "t%2Eparquet%3A7"),
        (b"", ""),
    ],
)
def test_names_become_keys_and_back(name: bytes, key: str) -> None:
    from urllib.parse import unquote_to_bytes

    assert escaped(name) == key
    assert unquote_to_bytes(key) == name
    assert "." not in key.rpartition("/")[2]


@pytest.mark.parametrize("length", [1, 99, 100, 101, 200, 255, 256, 257, 300, 1000])
def test_headers_are_those_of_python(length: int, tmp_path: Path) -> None:
    for name in (b"n" * length, b"/".join([b"d" * 40] * (length // 41 + 1))[:length].rstrip(b"/") or b"n"):
        content = b"x" * 700
        with (tmp_path / "t.tar").open("wb") as file:
            file.write(tar.header(name, len(content)) + tar.padded(content) + tar.END)
        with tarfile.open(tmp_path / "t.tar") as archive:
            (member,) = archive.getmembers()
            assert (member.name.encode(), member.size, member.mtime) == (name, 700, 0)
        data = (tmp_path / "t.tar").read_bytes()
        (ours,) = tar.members(lambda start, size, data=data: data[start : start + size], len(data), "t", 512)
        assert (ours.name, ours.size, data[ours.offset :][:700]) == (name, 700, content)
        if len(name) <= 100:
            theirs = tarfile.TarInfo(name.decode())
            theirs.size = 700
            expected = theirs.tobuf(tarfile.USTAR_FORMAT)
            assert tar.header(name, 700)[:148] == expected[:148]


# The command line


def test_the_verb(tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "shards"
    assert cli.run(["data", "pack", str(pictures), str(out), "--side", "12", "--quality", "85"]) == 0
    assert re.fullmatch(
        rf"{out}: 3 shards, [\d.]+ kB; pictures: train 72, validation 15, test 21\n", capsys.readouterr().out
    )
    assert read_manifest(Folder(out)).content["settings"] == {"side": 12, "quality": 85, "shard_bytes": 256_000_000}
    assert cli.run(["data", "pack", str(pictures), str(out)]) == 2
    assert cli.run(["data", "check", str(out)]) == 0
    assert "all          72          15          21" in capsys.readouterr().out.replace("  all", "  all")
    run = tmp_path / "run"
    arguments = [
        "--model",
        "ViT-Fe/4",
        "--steps",
        "2",
        "--out",
        str(run),
        "--set",
        "batch_size=8",
        "loading.in_memory=no",
    ]
    assert cli.run(["train", str(out), *arguments]) == 0
    assert cli.run(["evaluate", str(run), str(out)]) == 0
    assert files.read_json(run / "result.json")["n"] == 21


@pytest.mark.slow
def test_training_on_shards_here_or_at_an_address_gives_the_weights_of_the_folder(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec
    import torch
    from safetensors.torch import load_file

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pack(pictures, tmp_path / "shards", shard_bytes=30_000)
    system = fsspec.filesystem("memory")
    for path in (tmp_path / "shards").iterdir():
        system.pipe_file(f"/trained/{path.name}", path.read_bytes())
    arguments = ["--model", "ViT-Fe/4", "--init", "none", "--steps", "3", "--seed", "7"]
    arguments += ["--set", "batch_size=16", "loading.in_memory=no"]
    weights, prints = [], []
    for number, data in enumerate((pictures, tmp_path / "shards", "memory://trained")):
        run = tmp_path / f"run-{number}"
        assert cli.run(["train", str(data), *arguments, f"loading.workers={number}", "--out", str(run)]) == 0
        weights.append(load_file(run / "model" / "model.safetensors"))
        prints.append(files.read_json(run / "evaluation.json")["loss"])
    assert prints[0] == prints[1] == prints[2]
    for other in weights[1:]:
        assert weights[0].keys() == other.keys()
        assert all(torch.equal(tensor, other[name]) for name, tensor in weights[0].items())
    system.rm("/trained", recursive=True)
