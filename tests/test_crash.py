"""Killed, stopped or cut off from its disk at any instant, a run ends in the same bits as one that nobody disturbed."""

import dataclasses
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from patchword.core import config
from tiny import tiny
from victims import Victim, end, finish, log_lines, result, start, weights_hash


def victim(pictures: Path, folder: Path, name: str = "run", **changes: Any) -> Victim:
    """Twelve steps with every kind of chance; a checkpoint every second step, three looks at validation."""
    often: dict[str, Any] = {
        "threads": 1,
        "evaluation": {"every_steps": 4},
        "checkpoint": {"every_steps": 2},
        "compute": {"timeout": 30.0},
    }
    recipe = folder / f"{name}.toml"
    recipe.write_text(tiny(pictures, **config.merge(often, changes)).to_toml())
    return Victim(recipe=recipe, out=folder / name, log=folder / f"{name}.log")


def said(one: Victim) -> str:
    """What all processes of a run have printed."""
    return "".join(path.read_text() for path in sorted(one.log.parent.glob(f"{one.log.stem}*.log")))


@pytest.fixture
def quiet(pictures: Path, tmp_path: Path) -> Path:
    one = victim(pictures, tmp_path, "quiet")
    assert finish(one) == [0], said(one)
    return one.out


def same_end(folder: Path, quiet: Path) -> None:
    """Weights, log, figures and checkpoints of a run are those of the undisturbed one, and nothing is left lying about."""
    assert weights_hash(folder) == weights_hash(quiet)
    assert log_lines(folder) == log_lines(quiet)
    assert (folder / "evaluation.json").read_bytes() == (quiet / "evaluation.json").read_bytes()
    for mine, theirs in zip(*(sorted((each / "checkpoints").iterdir()) for each in (folder, quiet)), strict=True):
        assert mine.name == theirs.name
        for file in theirs.glob("*.safetensors"):
            assert (mine / file.name).read_bytes() == file.read_bytes(), file
    odd = {path.name for path in folder.iterdir()} ^ {path.name for path in quiet.iterdir()}
    assert not odd, odd
    assert result(folder)["status"] == "finished"


def no_orphans(out: Path, seconds: float = 15.0) -> bool:
    """Whether all processes that have the run's folder open are gone within some seconds of the death of the first."""
    until = time.monotonic() + seconds
    while holders := [link for link in Path("/proc").glob("[0-9]*/fd/*") if _leads_to(link, out / ".lock")]:
        if time.monotonic() > until:
            return not holders
        time.sleep(0.1)
    return True


def _leads_to(link: Path, file: Path) -> bool:
    try:
        return Path(os.readlink(link)) == file
    except OSError:
        return False


def count_operations(one: Victim) -> int:
    """How many file operations the run makes: those before the first number that it survives."""
    low, high = 1, 4096
    while low < high:
        middle = (low + high) // 2
        tried = dataclasses.replace(one, kill_before=middle, out=one.out.with_name(f"count-{middle}"))
        low, high = (middle + 1, high) if finish(tried) == [-signal.SIGKILL] else (low, middle)
    return low - 1


OPERATIONS = 340
"""About what the run makes (`count_operations`); `test_the_number_of_operations_is_known` holds it to it."""


def test_the_number_of_operations_is_known(pictures: Path, tmp_path: Path) -> None:
    """So that the kills below reach from the first to the page."""
    one = victim(pictures, tmp_path)
    assert finish(dataclasses.replace(one, kill_before=int(0.95 * OPERATIONS))) == [-signal.SIGKILL]
    assert finish(dataclasses.replace(one, kill_before=int(1.06 * OPERATIONS), out=tmp_path / "more")) == [0]


@pytest.mark.parametrize("share", [0.03, 0.12, 0.31, 0.48, 0.66, 0.83, 0.9, 0.94])
def test_killed_before_any_file_operation_and_again(pictures: Path, tmp_path: Path, quiet: Path, share: float) -> None:
    """Twice in one run: at a share of its file operations, then soon after it has resumed."""
    one = victim(pictures, tmp_path)
    operation = int(OPERATIONS * share)
    assert finish(dataclasses.replace(one, kill_before=operation)) == [-signal.SIGKILL]
    assert finish(dataclasses.replace(one, kill_before=7 + operation % 5)) == [-signal.SIGKILL]
    assert finish(one) == [0], said(one)
    same_end(one.out, quiet)


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_in_a_stream_it_sees_the_same_pictures(pictures: Path, tmp_path: Path, workers: int) -> None:
    """The ids and the augmented pixels of every step, over two kills, are those of the plan."""
    streamed = {"loading": {"in_memory": "no", "workers": workers}}
    quiet, one = (victim(pictures, tmp_path, name, **streamed) for name in ("quiet", "run"))
    seen: dict[str, dict[int, Any]] = {}
    for each, kills in ((quiet, ()), (one, (90, 60))):
        ids = tmp_path / f"ids-{each.out.name}"
        ids.mkdir()
        for kill in kills:
            [process] = start(dataclasses.replace(each, ids=ids, kill_before=kill))
            assert end([process]) == [-signal.SIGKILL]
            assert no_orphans(each.out)
        assert finish(dataclasses.replace(each, ids=ids)) == [0], said(each)
        lines = [json.loads(line) for line in (ids / "0.jsonl").read_text().splitlines()]
        seen[each.out.name] = {line["step"]: (line["ids"], line["pixels"]) for line in lines}
        assert len(lines) > 12 or not kills  # steps after the newest checkpoint are made again
    assert seen["run"] == seen["quiet"]
    same_end(one.out, quiet.out)


@pytest.mark.parametrize("where", ["step", "validate", "save", "data"])
def test_a_signal_stops_it_after_the_step_and_it_resumes(
    pictures: Path, tmp_path: Path, quiet: Path, where: str
) -> None:
    one = victim(pictures, tmp_path, loading={"in_memory": "no", "workers": 0} if where == "data" else {})
    assert finish(dataclasses.replace(one, signal_at={"where": where, "step": 3})) == [143], said(one)
    assert result(one.out)["status"] == "stopped"
    assert "the same command goes on" in said(one)
    assert finish(one) == [0], said(one)
    if where != "data":
        same_end(one.out, quiet)
    assert weights_hash(one.out) == weights_hash(quiet)
    assert len(result(one.out)["resumed_from"]) == 1


def test_a_second_signal_ends_it_at_once(pictures: Path, tmp_path: Path, quiet: Path) -> None:
    """Both come while the first checkpoint is written: nothing is put in order, and the same command does it again."""
    one = victim(pictures, tmp_path)
    twice = dataclasses.replace(one, signal_at={"where": "save", "times": 2})
    assert finish(twice) == [-signal.SIGTERM], said(one)
    assert json.loads((one.out / "result.json").read_text())["status"] == "running"
    assert not list((one.out / "checkpoints").glob("step-*"))
    assert finish(one) == [0], said(one)
    same_end(one.out, quiet)


@pytest.mark.parametrize("largest", [700, 3000, 9000, 13000, 20000])
def test_a_disk_that_takes_no_large_file_loses_nothing(
    pictures: Path, tmp_path: Path, quiet: Path, largest: int
) -> None:
    """As with a full disk or a quota, whichever file it hits: no half-written one is taken for whole."""
    one = victim(pictures, tmp_path)
    [code] = finish(dataclasses.replace(one, largest_file=largest))
    assert code == 4, said(one)
    assert "File too large" in said(one)
    assert not [path for path in one.out.rglob(".*") if path.name != ".lock"], "something was left lying about"
    assert finish(one) == [0], said(one)
    same_end(one.out, quiet)
