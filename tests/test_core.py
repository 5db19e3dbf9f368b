"""Files that are whole or absent, strict configuration, errors that help, preprocessing in numbers."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

from patchword.core import config, files, runtime
from patchword.core.errors import DataError, FaultError, UsageError, blamed, nearest
from patchword.core.preprocessing import Preprocessing
from patchword.core.progress import duration, size
from patchword.core.runtime import StopFlag, only_writer


def test_write_replaces_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "deep" / "a.json"
    files.write_json(target, {"a": 1})
    assert files.read_json(target) == {"a": 1}

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FaultError, match=r"cannot write .*a\.json: No space left on device; make room"):
        files.write_json(target, {"a": 2})
    assert files.read_json(target) == {"a": 1}
    assert [path.name for path in target.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EDQUOT, "make room there or choose another place"),
        (errno.EROFS, "choose a place that can be written"),
        (errno.EACCES, "choose a place that can be written"),
        (errno.EFBIG, r"raise the limit on the size of files \(ulimit -f\)"),
    ],
)
def test_what_the_disk_refuses_has_advice_that_helps(number: int, advice: str, tmp_path: Path) -> None:
    sentence = rf"^cannot write .*a\.json: [A-Z][a-z -]+; {advice}$"
    with pytest.raises(FaultError, match=sentence), files.disk_faults(tmp_path / "a.json"):
        raise OSError(number, os.strerror(number))


def test_where_no_folder_can_be_made_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for target in (
        Path("/proc/a.json"),
        Path("/proc/nowhere/a.json"),
        tmp_path / "file/a.json",
        tmp_path / "file/deep/a.json",
    ):
        with pytest.raises(FaultError, match="; choose a folder that can be made$"):
            files.write_json(target, {})
    with pytest.raises(FaultError, match="Is a directory; the path of a file would be right$"):
        files.write_json(tmp_path, {})
    with pytest.raises(FileNotFoundError), files.disk_faults(tmp_path / "a.json"):
        (tmp_path / "another.json").read_text()


def test_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "a.json", {"a": float("nan")})
    (tmp_path / "b.json").write_text('{"a": 1')
    with pytest.raises(DataError, match=r"b\.json is not valid JSON"):
        files.read_json(tmp_path / "b.json")


def test_new_directory_is_published_at_the_end_only(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with files.new_directory(target) as aside:
        (aside / "one").write_text("1")
        assert not target.exists()
    assert (target / "one").read_text() == "1"
    with pytest.raises(RuntimeError, match="half way"), files.new_directory(target) as aside:
        (aside / "one").write_text("2")
        raise RuntimeError("half way")
    assert (target / "one").read_text() == "1"
    with files.new_directory(target) as aside:
        (aside / "two").write_text("2")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["two"]


def test_only_one_writer(tmp_path: Path) -> None:
    with only_writer(tmp_path), pytest.raises(UsageError, match="another process"), only_writer(tmp_path):
        pass
    with only_writer(tmp_path):
        pass


def test_a_lock_is_of_the_folder_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one waits for the lock, who holds it moves the folder away: the lock that comes free is of another place."""
    folder, pauses = tmp_path / "run", []
    holding = only_writer(folder)
    holding.__enter__()

    def moved(seconds: float) -> None:
        if not pauses:
            folder.rename(tmp_path / "aside")
            holding.__exit__(None, None, None)
        pauses.append(seconds)

    monkeypatch.setattr(runtime.time, "sleep", moved)
    with only_writer(folder):
        assert (folder / ".lock").exists()
        with pytest.raises(UsageError, match="is being written by another process"), only_writer(folder):
            pass
    with pytest.raises(FileNotFoundError), only_writer(folder):
        (folder / "what is not there").read_bytes()


@pytest.mark.parametrize(("pause", "code"), [(0.0, 0), (1.3, -15)])
def test_the_second_signal_ends_it_unless_it_is_the_first_once_more(pause: float, code: int) -> None:
    """Who signals a whole group reaches torchrun too, which passes the signal on."""
    program = (
        "import os, signal, time\n"
        "from patchword.core.runtime import StopFlag\n"
        "flag = StopFlag()\n"
        "with flag.listening():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    assert flag\n"
        f"    time.sleep({pause})\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == code
    assert not StopFlag()


def test_who_is_blamed_stands_before_the_sentence_of_whatever_error_of_ours_it_is() -> None:
    for kind in (UsageError, DataError):
        with pytest.raises(kind, match=r"^teacher\.weights=x: it is empty$") as raised, blamed("teacher.weights=x"):
            raise kind("it is empty")
        assert type(raised.value) is kind
    with pytest.raises(KeyError, match="^'bare'$"), blamed("teacher.weights=x"):
        raise KeyError("bare")


def test_cores_are_those_that_the_process_was_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.os, "cpu_count", lambda: 64)
    monkeypatch.setattr(runtime.os, "sched_getaffinity", lambda _: {1, 2, 5}, raising=False)
    assert runtime.usable_cores() == 3
    monkeypatch.delattr(runtime.os, "sched_getaffinity")  # macOS
    assert runtime.usable_cores() == 64


def test_a_closed_terminal_stops_as_a_signal_does() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup, which may run the tests, lets it be ignored
    try:
        flag = StopFlag()
        with flag.listening():
            os.kill(os.getpid(), signal.SIGHUP)
        assert flag.received == signal.SIGHUP
    finally:
        signal.signal(signal.SIGHUP, before)


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    kind: Literal["up", "down"] = "up"


@dataclasses.dataclass(frozen=True)
class Outer:
    steps: int = 3
    sides: tuple[int, int] = (1, 2)
    many: tuple[float, ...] = ()
    inner: Inner = Inner()


def test_config_builds_nested_and_typed() -> None:
    built = config.build(Outer, {"sides": [5, 7], "many": [1, 2.5, 3], "inner": {"rate": 1, "kind": "down"}})
    assert built == Outer(sides=(5, 7), many=(1.0, 2.5, 3.0), inner=Inner(rate=1.0, kind="down"))
    assert isinstance(built.inner.rate, float)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"step": 3}, "unknown field step; did you mean 'steps'?"),
        ({"inner": {"banana": 3}}, "unknown field inner.banana; known: inner.rate, inner.kind"),
        ({"inner": {"rat": 3}}, "unknown field inner.rat; did you mean 'inner.rate'?"),
        ({"steps": 3.5}, "steps=3.5 is not of the right type; it takes a whole number"),
        ({"steps": True}, "steps=True is not of the right type"),
        ({"steps": "3"}, "steps='3' is not of the right type"),
        ({"steps": 2**63}, "steps is too large a number; whole ones have to lie between ±2^63"),
        ({"steps": -(16**5000)}, "steps is too large a number"),  # of more digits than Python writes
        ({"sides": [1, 2, 3]}, "sides=[1, 2, 3] is not of the right type"),
        ({"inner": {"kind": "dwn"}}, "inner.kind='dwn' is not known; did you mean 'down'?"),
        ({"inner": 5}, "inner must be a table of fields, not 5"),
    ],
)
def test_config_is_strict(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        config.build(Outer, values)
    assert message in str(error.value)


def test_assignments_are_toml_or_strings() -> None:
    parsed = config.parse_assignments(["a.b=3", "a.c=1e-3", "d=[1, 2]", "e=gap", 'f="x y"', "g=true", "h="])
    assert parsed == {"a": {"b": 3, "c": 1e-3}, "d": [1, 2], "e": "gap", "f": "x y", "g": True, "h": ""}
    with pytest.raises(UsageError, match="not of the form field=value"):
        config.parse_assignments(["lr"])
    with pytest.raises(UsageError, match="is set to a value as well"):
        config.parse_assignments(["a=1", "a.b=2"])
    assert config.merge({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 5}, "e": 6}) == {
        "a": {"b": 5, "c": 2},
        "d": 3,
        "e": 6,
    }


@pytest.mark.parametrize(
    ("name", "choices", "clause"),
    [
        ("vit-b/16", ["ViT-B/16", "ViT-L/16"], "did you mean 'ViT-B/16'?"),
        ("ViT-B16", ["ViT-L/16", "ViT-B/16", "R50+ViT-B/16"], "did you mean 'ViT-B/16'?"),
        ("vit_base", ["ViT-S/8", "ViT-B/8"], "known: ViT-S/8, ViT-B/8"),
        ("ViT-Q/16", ["ViT-S/16", "ViT-S/8", "ViT-L/16", "R50+ViT-L/16"], "did you mean 'ViT-S/16' or 'ViT-L/16'?"),
        ("hybrid-0.2", ["speedrun/hybrid-0.02", "speedrun/hybrid-0.1"], "did you mean 'speedrun/hybrid-0.02'?"),
        ("plain", ["plain-vit", "speedrun/plain-0.1"], "did you mean 'plain-vit'?"),
        ("paper", ["paper-a", "scratch", "paper-b", "paper-c"], "did you mean 'paper-a', 'paper-b' or 'paper-c'?"),
        ("sofmax", ["softmax", "sigmoid"], "did you mean 'softmax'?"),
        ("cosin", ["linear", "cosine", "constant"], "did you mean 'cosine'?"),
        ("cosin", ["softmax", "sigmoid"], "known: softmax, sigmoid"),
        ("1D", ["none", "1d", "2d"], "did you mean '1d'?"),
        ("3D", ["none", "1d", "2d"], "known: none, 1d, 2d"),
        ("rel", ["rope", "relative"], "did you mean 'relative'?"),
        ("re", ["rope", "relative"], "known: rope, relative"),
        ("banana", ["anchovy", "band", "canal"], "known: anchovy, band, canal"),
        ("tset", ["train", "test"], "did you mean 'test'?"),
        ("猫 ", ["犬", "猫"], "did you mean '猫'?"),
        ("", ["one", ""], "known: one, "),
        ("zzz", [], "known: "),
        ("a" * 10**6, ["b", "a" * 3], "known: b, aaa"),
        ("same", [f"same-{i}" for i in range(13)], f"known: {', '.join(f'same-{i}' for i in range(13))}"),
        ("zzz", map(str, range(15)), f"known: {', '.join(map(str, range(12)))}, … and 3 more"),
    ],
)
def test_only_what_is_near_is_suggested(name: str, choices: Iterable[str], clause: str) -> None:
    assert nearest(name, choices) == clause


def test_a_prefix_makes_nothing_near() -> None:
    assert nearest("lrr", ["lr", "momentum"], "optimizer.") == "did you mean 'optimizer.lr'?"
    assert nearest("banana", ["lr", "momentum"], "optimizer.") == "known: optimizer.lr, optimizer.momentum"


def test_words_for_time_and_size() -> None:
    assert [duration(seconds) for seconds in (1.25, 59, 250, 7500)] == ["1.2 s", "59 s", "4 min 10 s", "2 h 5 min"]
    assert [size(n) for n in (5, 512_000, 1.26e9)] == ["5 B", "512 kB", "1.26 GB"]


def test_normalize_maps_0_and_255_to_minus_one_and_one() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    torch.testing.assert_close(Preprocessing().normalize(images).flatten(), torch.tensor([-1.0, -0.6, 1.0]))
    grey = Preprocessing(mean=(0.2,), std=(0.4,))
    torch.testing.assert_close(grey.normalize(images[:, 1:2]).flatten(), torch.tensor([0.0]))


def test_fit_crops_the_middle_as_pillow_resizes_the_whole() -> None:
    """Scaling the short side and cutting out the middle, in two steps, gives the same pixels to within rounding."""
    generator = np.random.default_rng(0)
    pixels = np.asarray(
        Image.fromarray(generator.integers(0, 256, (9, 12, 3), np.uint8)).resize((120, 90), Image.Resampling.BICUBIC)
    )
    ours = Preprocessing(image_size=(42, 42), crop_fraction=0.875).fit(pixels)
    scaled = Image.fromarray(pixels).resize((64, 48), Image.Resampling.BILINEAR)  # 48 = 42 / 0.875
    expected = np.asarray(scaled.crop((11, 3, 53, 45)))
    assert np.abs(ours.astype(int) - expected.astype(int)).max() <= 1


def test_fit_keeps_shape_letters_apart() -> None:
    pixels = np.zeros((30, 50, 3), np.uint8)
    pixels[:15] = 200
    fitted = Preprocessing(image_size=(8, 14), resize="stretch").fit(pixels)
    assert fitted.shape == (8, 14, 3)
    assert fitted[0].min() == 200
    assert fitted[-1].max() == 0
    assert Preprocessing(image_size=(8, 14), mean=(0.5,), std=(0.5,)).fit(pixels[..., :1]).shape == (8, 14, 1)


def test_preprocessing_travels_as_json() -> None:
    original = Preprocessing(image_size=(8, 14), interpolation="bicubic", mean=(0.1,), std=(0.2,))
    assert Preprocessing.from_dict(json.loads(json.dumps(original.to_dict()))) == original
    with pytest.raises(DataError, match="exactly the fields"):
        Preprocessing.from_dict({"image_size": [8, 14]})
    with pytest.raises(UsageError, match="1 means and 3 stds"):
        Preprocessing(mean=(0.5,))


def test_importing_patchword_imports_no_torch() -> None:
    code = "import patchword, patchword.cli, sys; assert 'torch' not in sys.modules; patchword.DataError; print(dir(patchword))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "create_model" in done.stdout


def test_a_folder_that_is_half_removed_is_out_of_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a crash leaves of it has another name, and goes with the leftovers."""
    old = tmp_path / "step-00000007"
    old.mkdir()
    for name in ("a", "manifest.json"):
        (old / name).write_text(name)

    def killed(path: Path, **_: Any) -> None:
        next(path.rglob("manifest.json")).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            files.remove_directory(old)
    assert not old.exists()
    assert list(tmp_path.rglob("a"))
    files.remove_leftovers(tmp_path, r"step-\d+")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fails_is_told_in_a_sentence(tmp_path: Path) -> None:
    """Not in a trace: EIO comes from a failing disk, ESTALE from a network file system that has lost the file."""
    for number in (errno.EIO, errno.ESTALE):
        with (
            pytest.raises(FaultError, match="look after the disk or choose another place"),
            files.disk_faults(tmp_path),
        ):
            raise OSError(number, os.strerror(number))
