"""What a run will take: its counts are the run's own, its times are measured things times counts, and nothing is left behind."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from patchword.core.errors import UsageError
from patchword.training import estimate as estimates
from patchword.training import loop
from patchword.training.estimate import Estimate, estimate
from patchword.training.recipe import Recipe
from patchword.training.run import run
from tiny import tiny
from victims import weights_hash

BY_HAND = Estimate(
    steps=100,
    batch_size=8,
    seconds_per_step=0.5,
    looks=4,
    validation=30,
    evaluated=50,
    seconds_per_look=0.1,
    saves=2,
    seconds_per_save=1.5,
    decoded=200,
    seconds_per_decoding=0.01,
    opening=3.0,
    asking=7.0,
    flops_per_image=2.5e15,
    memory=1,
)


def test_the_whole_is_the_sum_of_its_parts() -> None:
    assert BY_HAND.training == pytest.approx(100 * 0.5 + 4 * 30 * 0.1 + 2 * 1.5)
    assert BY_HAND.seconds == pytest.approx(65 + 3 + 7 + 2 + 5 + estimates._PAGE)
    assert (BY_HAND.train_flops, BY_HAND.exaflops, BY_HAND.tpu_core_days) == (2e18, 2.0, 1.0)
    assert dataclasses.replace(BY_HAND, steps=200).training == pytest.approx(115)


@pytest.mark.speed
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"budget": {"epochs": 3}},
        {"budget": {"pflop": 1e-7}},
        {"loading": {"in_memory": "no", "workers": 0}},
        {"evaluation": {"final": "validation"}},
    ],
    ids=["steps", "epochs", "pflop", "streamed", "validation"],
)
def test_it_counts_what_the_run_then_does(
    changes: dict[str, Any], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    found = estimate(tiny(pictures, **changes))
    assert sorted(tmp_path.rglob("*")) == before
    folder = run(tiny(pictures, **changes), tmp_path / "run")
    result = json.loads((folder / "result.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert found.steps == result["steps"]
    assert found.looks == sum(line["kind"] == "validation" for line in lines)
    assert (found.validation, found.evaluated) == (15, result["n"])
    assert result["n"] == (15 if "evaluation" in changes else 21)
    assert found.train_flops == result["train_flops"]
    assert found.decoded == (0 if "loading" in changes else 72 + 15 + 21)
    assert found.batch_size == 10
    assert min(found.seconds_per_step, found.seconds_per_look, found.seconds_per_save, found.opening) > 0
    assert (found.seconds_per_decoding > 0) == (found.decoded > 0)


def test_estimating_changes_nothing_of_the_run(pictures: Path, tmp_path: Path) -> None:
    plain = run(tiny(pictures), tmp_path / "plain")
    estimate(tiny(pictures))
    assert weights_hash(run(tiny(pictures), tmp_path / "after")) == weights_hash(plain)


def test_minutes_become_steps_as_in_the_run(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "seconds_per_step", lambda *_: 0.07)
    recipe = tiny(pictures, budget={"minutes": 0.02})
    found = estimate(recipe)
    assert found.seconds_per_step == 0.07
    assert found.steps == json.loads((run(recipe, tmp_path / "run") / "result.json").read_text())["steps"]


def test_a_teacher_takes_its_time(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    taught = run(tiny(pictures, budget={"steps": 1}), tmp_path / "teacher")
    monkeypatch.setattr(estimates, "seconds_per_image", lambda *_, **__: 0.25)
    recipe = tiny(pictures, teacher={"weights": str(taught)})
    asked = estimate(recipe)
    assert asked.asking == 72 * 0.25
    assert asked.steps == 12
    assert not (tmp_path / "cache/patchword/answers").exists()
    run(recipe, tmp_path / "pupil")
    assert estimate(recipe).asking == 0  # its answers are kept
    assert estimate(tiny(pictures, teacher={"weights": str(taught)}, train_images=30)).asking == 30 * 0.25


def test_what_the_run_would_refuse_is_refused(pictures: Path) -> None:
    with pytest.raises(UsageError, match="the recipe has no budget"):
        estimate(tiny(pictures, budget={}))
    with pytest.raises(UsageError, match="is less than one step"):
        estimate(tiny(pictures, budget={"pflop": 1e-12}))


def test_saving_is_measured_with_a_part_and_scaled(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, average and two moments of every parameter, four bytes each."""
    written: list[int] = []
    save = estimates.checkpoint.save

    def watched(folder: Path, state: Any, tensors: Any, keep: int) -> None:
        written.append(sum(value.numel() * 4 for part in tensors.values() for value in part.values()))
        save(folder, state, tensors, keep)

    clock = iter([10.0, 14.0])
    monkeypatch.setattr(estimates.checkpoint, "save", watched)
    monkeypatch.setattr(estimates, "_WRITTEN", 1600)
    recipe: Recipe = tiny(pictures)
    trial = estimates._Trial(*_parts(recipe))
    monkeypatch.setattr(estimates.time, "perf_counter", lambda: next(clock))
    assert trial.save() == pytest.approx(4.0 * 16 * trial.cost.params / 1600)
    assert written == [1600]


def _parts(recipe: Recipe) -> tuple[Any, ...]:
    from patchword.core.processes import Processes
    from patchword.core.runtime import StopFlag
    from patchword.training.run import settle

    _, opened, prepared, note = settle(recipe, None, None, Processes())
    return (Path(), opened, prepared, None, StopFlag(), None, Processes(), note, None)
