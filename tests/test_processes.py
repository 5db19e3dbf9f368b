"""Several processes train one model as one does; when one of them goes, the others say so and go, too."""

import contextlib
import dataclasses
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from patchword.core.processes import Processes
from patchword.weights.folder import read_tensors
from test_crash import said, victim
from victims import Victim, end, finish, log_lines, result, start, weights_hash

CLOSE: Any = {"rtol": 2e-3, "atol": 1e-4}
"""The tolerance that docs/reliability.md states. Sums are made in another order, and where a gradient is zero but for
rounding (the biases of keys), Adam makes steps of it: a thirtieth of one of the twelve is allowed."""


def seen(ids: Path) -> dict[int, list[Any]]:
    """Step → (id, pixels) of the whole batch, in the order of its places, from what each process wrote down."""
    steps: dict[int, dict[int, Any]] = {}
    for file in sorted(ids.glob("*.jsonl")):
        for line in map(json.loads, file.read_text().splitlines()):
            for place, pair in enumerate(zip(line["ids"], line["pixels"], strict=True), line["first"]):
                steps.setdefault(line["step"], {})[place] = pair
    assert all(sorted(places) == list(range(10)) for places in steps.values())
    return {step: [places[place] for place in range(10)] for step, places in steps.items()}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_tensors(folder / "model/model.safetensors")


def close(a: Path, b: Path) -> None:
    one, two = weights(a), weights(b)
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, **CLOSE)


def recorded(one: Victim) -> Victim:
    ids = one.log.parent / f"ids-{one.out.name}"
    ids.mkdir(exist_ok=True)
    return dataclasses.replace(one, ids=ids)


def test_one_two_and_three_processes_see_the_same_and_learn_the_same(pictures: Path, tmp_path: Path) -> None:
    """The same pictures at the same places, changed alike; losses equal to 1e-4, weights to the stated tolerance; and the
    same number of processes repeats to the bit."""
    runs = {count: recorded(victim(pictures, tmp_path, f"of-{count}")) for count in (1, 2, 3)}
    for count, one in runs.items():
        assert finish(one, count) == [0] * count, said(one)
        assert result(one.out)["processes"] == count
    for count in (2, 3):
        assert runs[1].ids is not None
        assert seen(runs[count].ids or tmp_path) == seen(runs[1].ids)
        close(runs[1].out, runs[count].out)
        for mine, theirs in zip(log_lines(runs[1].out), log_lines(runs[count].out), strict=True):
            assert mine.pop("kind") == theirs.pop("kind")
            assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-4)
        assert result(runs[count].out)["n"] == 21
    again = victim(pictures, tmp_path, "again")
    assert finish(again, 2) == [0, 0], said(again)
    assert weights_hash(again.out) == weights_hash(runs[2].out)


def test_shared_out_weights_learn_the_same(pictures: Path, tmp_path: Path) -> None:
    """FSDP2: checkpoints and the model hold whole tensors, so that a run may go on with whole weights, and back."""
    whole, shared = victim(pictures, tmp_path, "whole"), victim(pictures, tmp_path, "shared")
    shared_out = {"compute": {"sharded": "yes"}}
    assert finish(whole, 2) == [0, 0], said(whole)
    one = victim(pictures, tmp_path, "shared", **shared_out)
    assert finish(dataclasses.replace(one, signal_at={"where": "step", "step": 5, "rank": 1}), 2) == [143, 143], said(
        one
    )
    assert finish(one, 2) == [0, 0], said(one)
    close(whole.out, shared.out)
    names = [
        sorted(read_tensors(file)) for file in sorted((shared.out / "checkpoints/step-00000012").glob("*.safetensors"))
    ]
    assert names == [
        sorted(read_tensors(file)) for file in sorted((whole.out / "checkpoints/step-00000012").glob("*.safetensors"))
    ]


@pytest.mark.parametrize("counts", [(2, 1), (1, 3)])
def test_a_run_goes_on_with_another_number_of_processes(
    pictures: Path, tmp_path: Path, counts: tuple[int, int]
) -> None:
    quiet = recorded(victim(pictures, tmp_path, "quiet"))
    assert finish(quiet) == [0], said(quiet)
    one = recorded(victim(pictures, tmp_path))
    stopped = dataclasses.replace(one, signal_at={"where": "step", "step": 6, "rank": counts[0] - 1})
    assert finish(stopped, counts[0]) == [143] * counts[0], said(one)
    assert result(one.out)["status"] == "stopped"
    assert finish(one, counts[1]) == [0] * counts[1], said(one)
    assert seen(one.ids or tmp_path) == seen(quiet.ids or tmp_path)
    assert result(one.out)["resumed_from"] == [7]
    close(quiet.out, one.out)


@pytest.mark.parametrize("where", ["step", "validate", "save"])
def test_a_signal_to_one_process_stops_all(pictures: Path, tmp_path: Path, where: str) -> None:
    one = victim(pictures, tmp_path, evaluation={"every_steps": 4})
    hit = dataclasses.replace(one, signal_at={"where": where, "step": 3, "rank": 0 if where == "save" else 1})
    assert finish(hit, 2) == [143, 143], said(one)
    assert result(one.out)["status"] == "stopped"
    assert finish(one, 2) == [0, 0], said(one)


def test_what_is_not_finite_on_one_process_stops_both_and_spoils_nothing(pictures: Path, tmp_path: Path) -> None:
    one = victim(pictures, tmp_path)
    assert finish(dataclasses.replace(one, poison={"step": 7, "rank": 1}), 2) == [4, 4], said(one)
    assert "diverged in step 8" in said(one)
    assert len(json.loads((one.out / "diverged.json").read_text())["pictures"]) == 10
    for value in read_tensors(one.out / "checkpoints/step-00000007/model.safetensors").values():
        assert value.isfinite().all()
    assert finish(one, 2) == [0, 0], said(one)


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_dead_or_frozen_process_ends_the_other(
    pictures: Path, tmp_path: Path, lost: int, how: signal.Signals
) -> None:
    """Within the time-out of five seconds and what it takes to see who is silent; it is named, and nothing is lost."""
    if lost == 0 and how == signal.SIGSTOP:
        pytest.skip("the first process holds the store here; under torchrun its agent does")
    one = victim(pictures, tmp_path, budget={"steps": 100000}, checkpoint={"every_steps": 10}, compute={"timeout": 5.0})
    processes = start(one, 2)
    until = time.monotonic() + 60
    while not list(one.out.glob("checkpoints/step-*")):
        assert time.monotonic() < until, said(one)
        time.sleep(0.05)
    lost_pid = processes[lost].pid
    assert lost_pid is not None
    os.kill(lost_pid, how)
    try:
        [code] = end([processes[1 - lost]], 40)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(lost_pid, signal.SIGKILL)
        processes[lost].join()
    assert code == 4, said(one)
    if lost == 1:
        assert "process 1 of 2 (counted from 0) has ended or hangs" in said(one)
        assert result(one.out)["status"] == "failed"
    else:
        assert "the network between them failed" in said(one)


def test_a_batch_too_small_to_share_is_refused(pictures: Path, tmp_path: Path) -> None:
    one = victim(pictures, tmp_path, batch_size=3)
    assert finish(one, 2) == [2, 2]
    assert "batch_size=3 is too small to be shared by 2 processes; 4 or more would be right" in said(one)


@pytest.mark.parametrize(("count", "of"), [(10, 3), (11, 3), (256, 7), (7, 3), (2, 1)])
def test_shares_are_even_and_begin_at_even_places(count: int, of: int) -> None:
    shares = [Processes(rank, of).share(count) for rank in range(of)]
    assert [place for share in shares for place in share] == list(range(count))
    assert all(share.start % 2 == 0 for share in shares)
    assert max(map(len, shares)) - min(map(len, shares)) <= 3
    assert Processes(0, of).shares(count) == list(map(len, shares))
