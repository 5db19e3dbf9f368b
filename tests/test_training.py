"""A recipe in, a run folder out: repeatable to the bit, resumable, and honest when it fails."""

import dataclasses
import errno
import itertools
import json
import math
import os
import shutil
import signal
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from conftest import write_pictures
from patchword.core import config, files
from patchword.core.errors import DataError, DivergedError, FaultError, StoppedError, UsageError
from patchword.core.processes import Processes
from patchword.core.runtime import only_writer
from patchword.data.loader import Batch
from patchword.data.sources import open_data
from patchword.models import chance
from patchword.models.chance import Chance
from patchword.models.cost import cost
from patchword.models.names import create_model
from patchword.training import budget, checkpoint, loop, machine, measuring, shelf, start
from patchword.training import pictures as training_pictures
from patchword.training import recipe as recipes
from patchword.training.objectives import Objective, Sigmoid, Softmax
from patchword.training.optimizer import Average, build_optimizer
from patchword.training.passes import Part, Passes
from patchword.training.recipe import Recipe
from patchword.training.record import Record
from patchword.training.result import result_sentence
from patchword.training.run import counted, run
from patchword.training.step import gradients as step_gradients
from patchword.training.step import parts as parts_of
from patchword.training.step import train_step
from patchword.weights.folder import read_tensors
from patchword.weights.io import load_model
from tiny import tiny
from victims import log_lines as lines
from victims import weights_hash


@pytest.fixture
def done(pictures: Path, tmp_path: Path) -> Path:
    return run(tiny(pictures), tmp_path / "done")


def test_a_signal_while_pictures_are_decoded_stops_there(
    pictures: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Signalled(shelf.Progress):
        def update(self, done: int, detail: str = "") -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(shelf, "Progress", Signalled)
    out = tmp_path / "stopped"
    with pytest.raises(StoppedError, match="stopped by a signal while decoding train; the same command goes on"):
        run(tiny(pictures), out)
    assert json.loads((out / "result.json").read_text())["status"] == "stopped"
    monkeypatch.undo()
    assert weights_hash(run(tiny(pictures), out)) == weights_hash(done)


def test_a_process_stops_after_decoding_where_another_was_told_to(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Processes, "sum", lambda _, *values: [value + 1 for value in values])
    with pytest.raises(StoppedError, match="stopped by a signal while decoding; the same command goes on"):
        run(tiny(pictures), tmp_path / "stopped")
    assert json.loads((tmp_path / "stopped/result.json").read_text())["status"] == "stopped"


def test_run_folder_is_complete(done: Path) -> None:
    names = {path.name for path in done.iterdir() if not path.name.startswith(".")}
    assert names == {
        "recipe.toml",
        "metrics.jsonl",
        "result.json",
        "evaluation.json",
        "predictions.csv",
        "model",
        "checkpoints",
    }
    result = json.loads((done / "result.json").read_text())
    model = load_model(done)
    assert result["status"] == "finished"
    assert result["steps"] == 12
    assert result["params"] == sum(p.numel() for p in model.parameters())
    assert (result["split"], result["n"], result["metric"]) == ("test", 21, "accuracy")
    assert result["accuracy"] == result["value"]
    assert (result["train_images"], result["image_size"], result["resumed_from"]) == (72, [16, 16], [])
    assert result["train_flops"] > 0
    assert result["data"]["splits"] == {"train": 72, "validation": 15, "test": 21}
    assert model.labels == ("ant", "bee", "cat")
    stored = tomllib.loads((done / "recipe.toml").read_text())
    for path, value in recipes.LEFT_OPEN.items():
        found: Any = stored
        for name in path.split("."):
            found = found[name]
        assert found != (list(value) if isinstance(value, tuple) else value), path
    assert [line["step"] for line in lines(done) if line["kind"] == "validation"] == [3, 6, 9, 12]


def test_the_same_recipe_gives_the_same_bits(done: Path, pictures: Path, tmp_path: Path) -> None:
    """Also through the recipe that the run wrote, and whatever the state of the global random numbers."""
    torch.manual_seed(77)
    again = run(recipes.load(str(done / "recipe.toml"), {"data": str(pictures)}), tmp_path / "again")
    assert weights_hash(again) == weights_hash(done)
    assert lines(again) == lines(done)
    assert (again / "evaluation.json").read_bytes() == (done / "evaluation.json").read_bytes()
    other = run(tiny(pictures, seed=1), tmp_path / "other")
    assert weights_hash(other) != weights_hash(done)


def stop_after(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal comes in the step before which `at` are done."""
    step = loop.gradients

    def signalled(*arguments: Any) -> tuple[float, float]:
        if arguments[-1] == at - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    monkeypatch.setattr(loop, "gradients", signalled)


def test_a_whitened_stem_goes_on_with_the_pictures_that_it_began_with(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it looks at when it is resumed does not count: its kernels are those of the checkpoint."""
    fields = {"name": "C2+ViT-At/8", "stem_whitening": 24}
    optimizer = {"name": "muon", "kernel_lr": 0.1}
    recipe = tiny(pictures, model=fields, optimizer=optimizer, zero_init_residual=True)
    whole = run(recipe, tmp_path / "whole")
    stop_after(5, monkeypatch)
    with pytest.raises(StoppedError):
        run(recipe, tmp_path / "stopped")
    monkeypatch.undo()
    monkeypatch.setattr(start, "some_images", lambda model, split: torch.randn(3, 3, 16, 16))
    run(recipe, tmp_path / "stopped")
    assert json.loads((tmp_path / "stopped/result.json").read_text())["resumed_from"] == [5]
    assert weights_hash(tmp_path / "stopped") == weights_hash(whole)
    assert weights_hash(run(recipe, tmp_path / "other")) != weights_hash(whole)


def test_a_first_look_holds_few_numbers_from_all_over_the_split(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = open_data(str(pictures)).splits["train"]
    model = create_model("C2+ViT-At/8", 3, 16)
    seen = start.some_images(model, split)
    assert seen.shape == (72, 3, 16, 16)
    monkeypatch.setattr(start, "_FIRST_NUMBERS", 3 * 768 + 5)
    torch.testing.assert_close(start.some_images(model, split), seen[[0, 36, 71]])
    monkeypatch.setattr(start, "_FIRST_NUMBERS", 1)
    torch.testing.assert_close(start.some_images(model, split), seen[:1])


@pytest.mark.parametrize("at", [1, 5, 11])
def test_stop_and_resume_equals_an_uninterrupted_run(
    done: Path, pictures: Path, tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "stopped"
    stop_after(at, monkeypatch)
    with pytest.raises(StoppedError, match=f"after step {at} of 12; the same command goes on"):
        run(tiny(pictures), folder)
    assert json.loads((folder / "result.json").read_text())["status"] == "stopped"
    monkeypatch.undo()
    run(tiny(pictures), folder)
    assert weights_hash(folder) == weights_hash(done)
    assert lines(folder) == lines(done)
    assert json.loads((folder / "result.json").read_text())["resumed_from"] == [at]


@pytest.mark.parametrize(
    "model",
    [
        {"name": "R5+ViT-At/4", "depth": 1, "embed_dim": 16, "num_heads": 2, "mlp_dim": 24},
        {"name": "BiT-R14x0.5", "units": [1, 1]},
        {"name": "EfficientNet-B0", "width": 0.25, "depth": 0.5},
    ],
    ids=lambda model: model["name"],
)
def test_other_families_train_resume_and_reload(
    model: dict[str, Any], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Running statistics of batch norm included."""
    regularization = {"dropout": 0.1, "stochastic_depth": 0.1, "average_decay": 0.9, "patch_dropout": 0.0}
    recipe = tiny(pictures, regularization=regularization, budget={"steps": 3})
    recipe = dataclasses.replace(recipe, model=recipes.load("scratch", {"model": model}).model)
    quiet = run(recipe, tmp_path / "quiet")
    stop_after(1, monkeypatch)
    with pytest.raises(StoppedError):
        run(recipe, tmp_path / "stopped")
    monkeypatch.undo()
    run(recipe, tmp_path / "stopped")
    assert weights_hash(tmp_path / "stopped") == weights_hash(quiet)
    loaded = load_model(quiet, image_size=32)
    assert loaded.name == model["name"]
    assert (
        json.loads((quiet / "result.json").read_text())["train_flops"]
        == 3 * 10 * 3 * cost(load_model(quiet)).forward_flops
    )


def test_damaged_checkpoint_is_passed_over(done: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hash_before = weights_hash(done)
    newest = max((done / "checkpoints").iterdir())
    content = bytearray((newest / "model.safetensors").read_bytes())
    content[-3] ^= 1
    (newest / "model.safetensors").write_bytes(content)
    (done / "result.json").unlink()
    run(tiny(pictures), done)
    assert f"checkpoint {newest.name} is passed over" in capsys.readouterr().err
    assert weights_hash(done) == hash_before


def test_finished_run_is_left_as_it_is(done: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in done.rglob("*") if path.is_file() and path.name != ".lock"}
    run(tiny(pictures), done)
    assert "holds this run, finished; --restart trains again" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in before} == before
    run(tiny(pictures), done, restart=True)
    aside = [path for path in done.parent.iterdir() if path.name.startswith("done.")]
    assert len(aside) == 1
    assert weights_hash(aside[0]) == weights_hash(done)


def test_folder_of_another_run_is_refused(done: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"holds another run \(optimizer.lr is 0.001, not 0.003\); choose another --out"
    ):
        run(tiny(pictures, optimizer={"lr": 1e-3}), done)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match=r"holds other things \(thesis.txt"):
        run(tiny(pictures), tmp_path / "mine")
    assert (tmp_path / "mine/thesis.txt").read_text() == "precious"


def test_changed_data_is_an_error_on_resume(done: Path, pictures: Path) -> None:
    (done / "result.json").unlink()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(pictures / "train/ant/new.png")
    with pytest.raises(DataError, match="the data set has changed since"):
        run(tiny(pictures), done)


def test_what_has_changed_of_the_data_is_said(done: Path, pictures: Path) -> None:
    (done / "result.json").unlink()
    picture = sorted((pictures / "train/ant").iterdir())[2]
    before = picture.read_bytes()
    picture.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(DataError, match="was written: the content of a picture in train is another; --restart"):
        run(tiny(pictures), done)
    picture.write_bytes(before)
    picture.rename(picture.with_name("other.png"))
    with pytest.raises(DataError, match="was written: the name, size or label of a picture is another"):
        run(tiny(pictures), done)
    picture.with_name("other.png").unlink()
    with pytest.raises(DataError, match="was written: train has 71 pictures, not 72"):
        run(tiny(pictures), done)
    picture.write_bytes(before)
    for split in ("train", "validation", "test"):
        (pictures / split / "ant").rename(pictures / split / "moth")
    with pytest.raises(DataError, match="was written: the class ant is gone"):
        run(tiny(pictures), done)


def test_what_makes_no_difference_may_change_on_resume(pictures: Path, tmp_path: Path, done: Path) -> None:
    """After a stop: other intervals, another time-out, more checkpoints kept, and the same weights in the end."""
    folder = tmp_path / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(4, patch)
        with pytest.raises(StoppedError):
            run(tiny(pictures), folder)
    others = {
        "checkpoint": {"every_steps": 1, "keep": 5, "every_minutes": 3.0},
        "compute": {"timeout": 17.0},
        "loading": {"workers": 0},
    }
    run(tiny(pictures, **others), folder)
    assert weights_hash(folder) == weights_hash(done)
    assert len(list((folder / "checkpoints").iterdir())) == 5
    assert recipes.load(str(folder / "recipe.toml")).compute.timeout == 17.0


def test_a_run_on_its_way_says_so(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was said of it before: a process that is killed cannot say anything any more."""
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(4, patch)
        with pytest.raises(StoppedError):
            run(tiny(pictures), folder)
    (folder / "report.html").write_text("of before")
    told: list[str] = []
    monkeypatch.setattr(loop.Loop, "run", lambda self: told.append((folder / "result.json").read_text()) or sys.exit(9))
    with pytest.raises(SystemExit):
        run(tiny(pictures), folder)
    assert json.loads(told[0])["status"] == "running"
    assert not (folder / "report.html").exists()


def test_a_checkpoint_is_made_by_the_clock_too(pictures: Path, tmp_path: Path) -> None:
    often = tiny(pictures, checkpoint={"every_steps": 100, "every_minutes": 1e-9, "keep": 50})
    made = {path.name for path in (run(often, tmp_path / "often") / "checkpoints").iterdir()}
    assert made == {f"step-{step:08d}" for step in range(1, 13)}
    seldom = tiny(pictures, checkpoint={"every_steps": 100, "keep": 50})
    assert len(list((run(seldom, tmp_path / "seldom") / "checkpoints").iterdir())) == 1


@pytest.mark.parametrize("harm", ["damaged", "gone"])
def test_a_finished_model_that_is_lost_is_made_again(
    harm: str, done: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, result = weights_hash(done), json.loads((done / "result.json").read_text())
    if harm == "gone":
        shutil.rmtree(done / "model")
    else:
        (done / "model/model.safetensors").write_bytes(b"torn")
    run(tiny(pictures), done)
    assert "it is made again from the newest checkpoint" in capsys.readouterr().err
    assert weights_hash(done) == before
    assert json.loads((done / "result.json").read_text())["value"] == result["value"]


def test_outputs_that_are_damaged_or_gone_stop_no_resume(
    done: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = weights_hash(done)
    (done / "result.json").write_text("{bad")
    (done / "metrics.jsonl").unlink()
    run(tiny(pictures), done)
    said = capsys.readouterr().err
    assert "result.json is not valid JSON" in said
    assert "it is written again" in said
    assert "metrics.jsonl is gone; the log begins after step 12" in said
    assert f"{done} goes on after step 12 of 12" in said
    assert weights_hash(done) == before
    (done / "recipe.toml").write_text("bad")
    with pytest.raises(DataError, match="--restart begins anew and keeps what is there"):
        run(tiny(pictures), done)


def test_diverging_run_stops_before_the_weights_are_spoiled(pictures: Path, tmp_path: Path) -> None:
    """In a step: the weights before it are in a checkpoint. Seen on validation: they are spoiled, and are not kept."""
    wild = tiny(pictures, optimizer={"lr": 1e30, "clip_norm": 0.0, "name": "sgd"}, schedule={"warmup": 0.0})
    with pytest.raises(FaultError, match="training diverged in step 2: the loss is nan .* the checkpoint keeps"):
        run(wild, tmp_path / "wild")
    assert [path.name for path in (tmp_path / "wild/checkpoints").iterdir()] == ["step-00000001"]
    watched = dataclasses.replace(wild, evaluation=dataclasses.replace(wild.evaluation, every_steps=1))
    with pytest.raises(FaultError, match="training diverged before step 2: ViT-At/8 gives outputs that are not finite"):
        run(watched, tmp_path / "watched")
    result = json.loads((tmp_path / "watched/result.json").read_text())
    assert result["status"] == "failed"
    assert "diverged before step 2" in result["reason"]
    assert not (tmp_path / "watched/model").exists()


def test_looks_at_validation_take_a_fifth_at_most(pictures: Path, tmp_path: Path) -> None:
    """12 steps of 10 are 360 forward passes; a fifth of them looks at the 15 validation pictures four times."""
    folder = run(tiny(pictures), tmp_path / "run")
    assert len([line for line in lines(folder) if line["kind"] == "validation"]) == 4


def test_restart_waits_for_the_writer_and_the_same_request_resumes(pictures: Path, tmp_path: Path) -> None:
    """Also where train has fewer pictures than the batch asked for."""
    out = tmp_path / "run"
    large = tiny(pictures, batch_size=1000, budget={"steps": 2})
    run(large, out)
    assert run(large, out) == out
    with only_writer(out), pytest.raises(UsageError, match="is being written by another process"):
        run(large, out, restart=True)
    assert (out / "result.json").is_file()


def test_a_run_without_its_checkpoints_says_so(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    stop_after(5, monkeypatch)
    with pytest.raises(StoppedError):
        run(tiny(pictures), out)
    monkeypatch.undo()
    shutil.rmtree(out / "checkpoints")
    run(tiny(pictures), out)
    assert "without a checkpoint: it begins again at step 0" in capsys.readouterr().err


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_step_that_is_not_finite_changes_nothing_and_names_its_pictures(
    poison: float, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fourth batch is poisoned: the weights are those of three steps, and the file reproduces the batch."""
    seen: list[list[int]] = []
    gradients = loop.gradients

    def poisoned(passes: Passes, one: Batch, recipe: Recipe, step: int) -> tuple[float, float]:
        seen.append(one.ids.tolist())
        loss, norm = gradients(passes, one, recipe, step)
        return (loss if step < 3 else poison), norm

    monkeypatch.setattr(loop, "gradients", poisoned)
    with pytest.raises(FaultError, match=r"diverged in step 4: the loss is (nan|inf) at a learning rate of"):
        run(tiny(pictures), tmp_path / "out")
    story = json.loads((tmp_path / "out/diverged.json").read_text())
    assert [picture["id"] for picture in story["pictures"]] == seen[3]
    assert story["step"] == 4
    assert all(picture["name"].startswith("train/") for picture in story["pictures"])
    monkeypatch.setattr(loop, "gradients", gradients)
    stop_after(3, monkeypatch)
    with pytest.raises(StoppedError):
        run(tiny(pictures), tmp_path / "three")
    left = [tmp_path / name / "checkpoints/step-00000003/model.safetensors" for name in ("out", "three")]
    assert left[0].read_bytes() == left[1].read_bytes()


def test_a_step_that_goes_wrong_leaves_batch_norm_as_it_was(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"name": "EfficientNet-B0", "width": 0.25, "depth": 0.5}
    regularization = {"patch_dropout": 0.0, "average_decay": 0.0}
    recipe = recipes.load(
        "scratch",
        {
            "data": str(pictures),
            "model": small,
            "image_size": [32, 32],
            "batch_size": 16,
            "budget": {"steps": 8},
            "regularization": regularization,
        },
    )
    stop_after(5, monkeypatch)
    with pytest.raises(StoppedError):
        run(recipe, tmp_path / "stopped")
    monkeypatch.undo()
    gradients = loop.gradients

    def spoiled(passes: Passes, one: Batch, recipe: Recipe, step: int) -> tuple[float, float]:
        loss, norm = gradients(passes, one, recipe, step)
        return loss, math.inf if step == 5 else norm

    monkeypatch.setattr(loop, "gradients", spoiled)
    with pytest.raises(DivergedError, match="diverged in step 6: the gradient norm is inf"):
        run(recipe, tmp_path / "spoiled")
    for name, value in read_tensors(tmp_path / "stopped/checkpoints/step-00000005/model.safetensors").items():
        there = read_tensors(tmp_path / "spoiled/checkpoints/step-00000005/model.safetensors")[name]
        torch.testing.assert_close(there, value, rtol=0, atol=0, msg=name)


def test_a_place_that_cannot_be_read_is_not_blamed_on_the_learning_rate(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what was learned before it is kept."""

    def gone(*_: Any, **__: Any) -> None:
        raise FaultError("s3://somewhere cannot be read")

    monkeypatch.setattr(measuring, "predict", gone)
    with pytest.raises(FaultError, match="^s3://somewhere cannot be read$"):
        run(tiny(pictures, evaluation={"every_steps": 5}, checkpoint={"every_steps": 100}), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out/checkpoints").iterdir()] == ["step-00000005"]


def test_memory_is_counted_before_anything_is_tried(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: 100_000)
    monkeypatch.setattr(loop, "seconds_per_step", lambda *_: pytest.fail("a step was tried"))
    with pytest.raises(UsageError, match="training would need about .* of memory, of which 100 kB are free"):
        run(tiny(pictures, budget={"minutes": 1.0}, loading={"in_memory": "yes"}), tmp_path / "out")
    assert not (tmp_path / "out/recipe.toml").exists()  # so that the same place takes a smaller one


@pytest.mark.parametrize(("steps", "looks", "held"), [(2, 1, "no"), (3, 1, "yes"), (2, 10, "yes")])
def test_a_large_set_of_which_training_sees_a_part_is_streamed(
    steps: int,
    looks: int,
    held: str,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Where it leaves out more pictures than are worth it, or than are decoded again for validation: with the same result."""
    recipe = tiny(pictures, batch_size=7, budget={"steps": steps})
    train = len(open_data(str(pictures)).splits["train"])
    monkeypatch.setattr(training_pictures, "_WORTH_STREAMING", train - 14)
    monkeypatch.setattr(training_pictures, "TIMES_LOOKED", looks)
    auto = run(
        dataclasses.replace(recipe, loading=dataclasses.replace(recipe.loading, in_memory="auto")), tmp_path / "a"
    )
    assert (f"streamed: the budget is for 14 of the {train} training pictures" in capsys.readouterr().err) is (
        held == "no"
    )
    assert tomllib.loads((auto / "recipe.toml").read_text())["loading"]["in_memory"] == held
    recipe = dataclasses.replace(recipe, loading=dataclasses.replace(recipe.loading, in_memory="yes"))
    assert weights_hash(run(recipe, tmp_path / "b")) == weights_hash(auto)


def test_the_newest_good_checkpoint_outlives_damaged_ones_beyond_it(tmp_path: Path) -> None:
    model = create_model("ViT-At/8", 3, 16, depth=1)
    tensors = checkpoint.tensors_of(model, Softmax(3), build_optimizer(Recipe().optimizer, model), None)
    for step in (99999999, 100000000):
        checkpoint.save(tmp_path, checkpoint.State(step=step), tensors, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-100000000"]
    (tmp_path / "step-100000000/model.safetensors").write_bytes(b"torn")
    checkpoint.save(tmp_path, checkpoint.State(step=7), tensors, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000007"]
    saved = checkpoint.newest(tmp_path, model, Softmax(3))
    assert saved is not None
    assert saved.state.step == 7


MICRO_BATCHES = [
    ("speedrun/hybrid-0.02", 32, 64, 32),
    ("speedrun/hybrid-0.02", 32, 256, 64),
    ("speedrun/hybrid-0.1", 32, 256, 64),
    ("speedrun/hybrid-0.1", 48, 256, 43),
    ("speedrun/hybrid-0.1", 64, 256, 32),
    ("speedrun/plain-0.02", 32, 256, 64),
    ("speedrun/plain-0.1", 32, 256, 32),
]


@pytest.mark.parametrize("batch_size", [64, 256])
@pytest.mark.parametrize("side", [32, 224])
def test_no_number_of_cores_leaves_batch_norm_few_images(side: int, batch_size: int) -> None:
    """The shipped hybrid: parts are shared among the replicas that there are, of which more cores make no more."""
    with torch.device("meta"):
        model = create_model("C3+ViT-Fe/8", 10, side)
    found = [machine.comfortable_micro_batch(model, batch_size, threads) for threads in (2, 4, 8, 32, 64)]
    assert min(found) >= 16
    assert len(set(found[1:])) == 1


@pytest.mark.parametrize(("name", "side", "batch_size", "micro_batch"), MICRO_BATCHES)
def test_the_micro_batch_of_the_measured_recipes(name: str, side: int, batch_size: int, micro_batch: int) -> None:
    """On two cores, as docs/pretraining.md was measured: for models with batch norm another one trains another model."""
    options = dict(recipes.load(name).model)
    with torch.device("meta"):
        model = create_model(options.pop("name"), 10, side, **options)
    assert machine.comfortable_micro_batch(model, batch_size, 2) == micro_batch


def test_fewer_images_than_batch_norm_wants_stay_together() -> None:
    with torch.device("meta"):
        model = create_model("C3+ViT-Fe/8", 10, 32)
    assert [machine.comfortable_micro_batch(model, batch_size, 8) for batch_size in (1, 9, 31, 32)] == [1, 9, 31, 16]


@pytest.mark.parametrize(("size", "micro_batch", "count"), [(6, 1, 2), (10, 2, 3), (64, 7, 4), (9, 100, 4)])
def test_all_processes_pass_as_many_parts_and_none_is_empty(size: int, micro_batch: int, count: int) -> None:
    model = create_model("ViT-At/8", 3, 16, depth=1)
    recipe = Recipe(batch_size=size, micro_batch=micro_batch)
    numbers = set()
    for rank in range(count):
        world = Processes(rank, count)
        passes = Passes(model, Softmax(3))
        passes.world = world
        mine = len(world.share(size))
        parts = parts_of(mine, recipe, passes)
        assert [row for part in parts for row in range(part.start, part.stop)] == list(range(mine))
        assert all(part.stop > part.start for part in parts)
        numbers.add(len(parts))
    assert len(numbers) == 1


def test_a_copy_of_what_drops_is_its_own_master(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where blocks are compiled, the averaged copy that is measured must not drop because the model in training does."""
    monkeypatch.setattr(chance._Dropping, "drop", chance._Dropping.drop)  # put back afterwards
    model = create_model("ViT-At/8", 3, 16, depth=1)
    model.regularize(dropout=0.5)
    with Passes(model.train(), Softmax(3), compiled=True) as passes:
        whole = passes.whole(model.state_dict()).eval()
    ones = torch.ones(4, 100)
    assert torch.equal(whole.get_submodule("dropout")(ones), ones)
    assert not torch.equal(model.get_submodule("dropout")(ones), ones)


def test_a_checkpoint_gives_back_all_that_the_loop_knows(tmp_path: Path) -> None:
    """Every field of the state, with a value that is not its default."""
    state = checkpoint.State(
        step=7,
        total_steps=11,
        samples_seen=70,
        seconds=1.5,
        window=[0.5, 0.25],
        losses=[1.0, 2.0],
        lr=0.125,
        grad_norm=3.0,
        left_out=[2, 5],
        resumed_from=[3],
        unreadable={4: "is no picture"},
        recipe_hash="a",
        data_fingerprint="b",
        teacher="d",
        content={"train": "c"},
        pictures={"train": 13},
        classes=["x", "y"],
        processes=2,
        threads=3,
        most_at_once=17,
        versions={"torch": "2"},
    )
    fresh = checkpoint.State()
    for field in dataclasses.fields(state):
        assert getattr(state, field.name) != getattr(fresh, field.name), f"{field.name} is its default here"
    model = create_model("ViT-At/8", 3, 16, depth=1)
    tensors = checkpoint.tensors_of(model, Softmax(3), build_optimizer(Recipe().optimizer, model), None)
    checkpoint.save(tmp_path, state, tensors, keep=1)
    saved = checkpoint.newest(tmp_path, model, Softmax(3))
    assert saved is not None
    assert saved.state == state


def test_an_average_that_is_not_finite_is_not_published(tmp_path: Path) -> None:
    model = create_model("ViT-At/8", 3, 16, depth=1)
    average = Average(model, 0.9)
    average.weights["norm.bias"][1] = math.nan
    tensors = checkpoint.tensors_of(model, Softmax(3), build_optimizer(Recipe().optimizer, model), average)
    with pytest.raises(FaultError, match="norm.bias is not finite after step 3"):
        checkpoint.save(tmp_path / "c", checkpoint.State(step=3), tensors, keep=1)
    assert not list((tmp_path / "c").glob("*"))


def test_another_recipe_in_a_checkpoint_is_an_error(done: Path, pictures: Path) -> None:
    """The recipe's file was changed by hand, and the request with it."""
    (done / "result.json").unlink()
    text = (done / "recipe.toml").read_text()
    (done / "recipe.toml").write_text(text.replace("lr = 0.003", "lr = 0.004"))
    with pytest.raises(DataError, match="the recipe has changed since .*step-00000012 was written"):
        run(tiny(pictures, optimizer={"lr": 4e-3}), done)


def test_a_run_knows_of_other_threads(done: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (done / "result.json").unlink()
    run(tiny(pictures), done)
    assert "sums round otherwise" not in capsys.readouterr().err
    (done / "result.json").unlink()
    threads = torch.get_num_threads()
    try:
        with pytest.raises(UsageError, match="holds another run .threads is 1, not 2"):
            run(tiny(pictures, threads=1), done)
    finally:
        torch.set_num_threads(threads)


def test_a_folder_is_moved_aside_as_often_as_asked(done: Path, pictures: Path) -> None:
    for _ in range(3):
        run(tiny(pictures), done, restart=True)
    assert len([path for path in done.parent.iterdir() if path.name.startswith("done.")]) == 3


def test_files_of_others_stay_where_they_are(done: Path, pictures: Path) -> None:
    """Names that look like ours, but for the mark."""
    (done / "result.json").unlink()
    others = [done / ".recipe.toml.previous", done / ".model.original"]
    ours = done / f".recipe.toml{files.MARK}abcdefgh"
    for path in (*others, ours):
        path.write_text("precious")
    run(tiny(pictures), done)
    assert all(path.read_text() == "precious" for path in others)
    assert not ours.exists()


@pytest.mark.parametrize("share", [0.25, 0.5, 0.99])
def test_flops_with_patch_dropout_are_those_of_the_patches_that_are_kept(share: float) -> None:
    """Attention falls with their square, the projection with none of it."""
    model = create_model("ViT-Fe/4", 10, 32).to("meta")  # elsewhere torch does not count every linear layer
    recipe = Recipe(regularization=recipes.Regularization(patch_dropout=share))
    kept = {0.25: 48, 0.5: 32, 0.99: 1}[share]
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        model.head(model.features(torch.empty(1, 3, 32, 32), torch.zeros(1, kept, dtype=torch.int64)))
    found = counted(recipe, model, Softmax(10))
    assert found.forward_flops == counter.get_total_flops()
    assert found.activation_bytes < cost(model).activation_bytes


def test_patch_dropout_spares_no_stem() -> None:
    """Nine tenths of the hybrid's work are done before there are patches."""
    options = dict(recipes.load("speedrun/hybrid-0.02").model)
    with torch.device("meta"):
        model = create_model(options.pop("name"), 10, 32, **options)
    recipe = Recipe(regularization=recipes.Regularization(patch_dropout=0.5))
    assert 0.9 < counted(recipe, model, Softmax(10)).train_flops / cost(model).train_flops < 1


def test_a_run_counts_the_flops_of_the_patches_that_it_keeps(done: Path) -> None:
    """Three of four, in twelve steps of ten."""
    result, model = json.loads((done / "result.json").read_text()), load_model(done)
    keep = torch.zeros(1, 3, dtype=torch.int64, device="meta")
    found = cost(model, lambda model, images: model.head(model.features(images, keep)))
    assert result["train_flops"] == 12 * 10 * found.train_flops


def test_recomputing_is_in_the_estimate_of_memory() -> None:
    model = create_model("ViT-At/4", 3, 32)
    kept = cost(model).activation_bytes
    model.recompute = True
    again = cost(model)
    assert again.activation_bytes < kept / 2
    assert again.forward_flops == cost(create_model("ViT-At/4", 3, 32)).forward_flops


def test_a_spike_is_answered_by_going_back_and_leaving_it_out(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What comes out is a run that never took the step's pictures, also when it is killed and resumed afterwards."""
    monkeypatch.setattr(loop, "_REMEMBERED_LOSSES", 3)
    gradients, spoiled = loop.gradients, [8]

    def spiking(passes: Passes, one: Batch, recipe: Recipe, step: int) -> tuple[float, float]:
        loss, norm = gradients(passes, one, recipe, step)
        return (loss * 100 if step in spoiled else loss), norm

    monkeypatch.setattr(loop, "gradients", spiking)
    recipe = tiny(pictures, guard={"spike": 50.0, "rollbacks": 1}, checkpoint={"every_steps": 3})
    folder = run(recipe, tmp_path / "out")
    assert "step 9: the loss is" in capsys.readouterr().err
    result = json.loads((folder / "result.json").read_text())
    assert (result["left_out_steps"], result["steps"], result["resumed_from"]) == ([8], 12, [])
    assert [line["step"] for line in lines(folder) if line["kind"] == "train"] == [*range(1, 9), 10, 11, 12]
    shutil.rmtree(folder / "checkpoints/step-00000012")
    (folder / "result.json").unlink()
    before = weights_hash(folder)
    run(recipe, folder)
    assert weights_hash(folder) == before
    spoiled.append(10)
    with pytest.raises(FaultError, match="diverged in step 9"):
        run(tiny(pictures, guard={"spike": 50.0}), tmp_path / "strict")


def batch(count: int, weights: list[float] | None = None) -> Batch:
    generator = torch.Generator().manual_seed(5)
    return Batch(
        images=torch.randint(0, 256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8),
        labels=torch.arange(count) % 3,
        weights=torch.tensor(weights or [1.0] * count),
        ids=np.arange(count),
        epochs=np.zeros(count, np.int64),
    )


def gradients(micro_batch: int, one: Batch, **changes: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = create_model("ViT-At/8", 3, 16, depth=2).double()
    torch.nn.init.normal_(model.get_parameter("head.weight"))
    recipe = dataclasses.replace(Recipe(micro_batch=micro_batch), augment=recipes.load("scratch").augment, **changes)
    optimizer = build_optimizer(recipe.optimizer, model)
    torch.set_default_dtype(torch.float64)
    try:
        train_step(Passes(model, Softmax(3)), optimizer, one, recipe, 0)
    finally:
        torch.set_default_dtype(torch.float32)
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_micro_batches_add_up_to_the_batch() -> None:
    whole, parts = gradients(7, batch(7)), gradients(3, batch(7))
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-9, atol=1e-12)


class Squares(Objective):
    """An objective that is zero nowhere."""

    def targets(self, labels: torch.Tensor, ids: Any = None) -> torch.Tensor:
        return labels

    def forward(self, model: Any, images: torch.Tensor, targets: torch.Tensor, keep: Any = None) -> torch.Tensor:
        return model(images).square().sum(dim=1)


def test_replicas_add_up_to_the_model_and_repeat() -> None:
    """Three parts on two replicas: the same gradients as on one, the same bits each time, weights shared."""

    def gradients(threads: int) -> tuple[float, list[torch.Tensor]]:
        torch.manual_seed(0)
        model = create_model("ViT-At/8", 3, 16, depth=2).double()
        torch.nn.init.normal_(model.get_parameter("head.weight"))
        images = torch.randn(3, 3, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        ones = torch.ones(3, dtype=torch.float64)
        with Passes(model, Squares(), threads=threads) as passes:
            assert len(passes.losses) == threads
            loss = passes.backward([Part(each, ones, ones, None, Chance(0)) for each in images])
        with torch.no_grad():
            model.get_parameter("head.bias").add_(1.0)
        for number, replica in enumerate(passes.losses):
            assert replica.get_parameter("model.head.bias")[0] == 1.0
            assert number == 0 or replica.get_parameter("model.head.bias").grad is None
        return loss, [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    (one_loss, one), (two_loss, two), (again_loss, again) = gradients(1), gradients(2), gradients(2)
    assert (two_loss, again_loss) == (pytest.approx(one_loss), two_loss)
    for a, b, c in zip(one, two, again, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-12)
        assert torch.equal(b, c)


@pytest.mark.parametrize("family", ["vit", "bit", "hybrid"])
@pytest.mark.parametrize("micro_batch", [3, 11])
def test_nothing_that_is_drawn_depends_on_the_parts(family: str, micro_batch: int) -> None:
    """Dropout, stochastic depth and patch dropout follow the picture's place in the batch; recomputing changes nothing."""
    name = {"vit": "ViT-At/8", "bit": "BiT-R14x0.5", "hybrid": "R8+ViT-At/8"}[family]
    found = []
    for size, threads, recompute in ((23, 1, False), (micro_batch, 2, False), (micro_batch, 1, True)):
        torch.manual_seed(0)
        model = create_model(name, 3, 32).double()
        torch.nn.init.normal_(model.get_parameter("head.weight"))
        model.regularize(dropout=0.3, stochastic_depth=0.3)
        model.recompute = recompute
        patches = recipes.Regularization(patch_dropout=0.5 if model.grid else 0.0)
        recipe = dataclasses.replace(Recipe(batch_size=23, micro_batch=size), regularization=patches)
        one = dataclasses.replace(batch(23), images=batch(92).images.reshape(23, 3, 32, 32))
        torch.set_default_dtype(torch.float64)
        try:
            with Passes(model.train(), Softmax(3), threads=threads) as passes:
                loss, norm = step_gradients(passes, one, recipe, 3)
        finally:
            torch.set_default_dtype(torch.float32)
        found.append([torch.tensor([loss, norm]), *(p.grad for p in model.parameters() if p.grad is not None)])
    for other in found[1:]:
        assert len(other) == len(found[0])
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "compiled",
    [False, pytest.param(True, marks=pytest.mark.filterwarnings("ignore"))],  # the compiler warns of its own doings
)
def test_other_arithmetic_learns_about_the_same(compiled: bool, pictures: Path, tmp_path: Path, done: Path) -> None:
    """Bfloat16 products, or fused blocks: losses close to those of plain float32, weights kept in float32."""
    changes = {"compile": True} if compiled else {"precision": "bfloat16"}
    folder = run(tiny(pictures, compute=changes), tmp_path / "out")
    assert weights_hash(folder) != weights_hash(done)
    for mine, theirs in zip(lines(folder), lines(done), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5 if mine["step"] == 1 else 0.02)
    assert {value.dtype for value in load_model(folder).state_dict().values()} == {torch.float32}


def test_weights_are_shared_out_where_one_device_has_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 bytes for each parameter of 0.2 M: 4.3 MB, of which a machine with two processes has half its memory for each."""
    model = create_model("ViT-At/8", 3, 16)
    world = Processes(0, 2, 0, 2)
    monkeypatch.setattr(world, "decide", lambda decision: decision())
    averaged = dataclasses.replace(Recipe(device="cpu"), regularization=recipes.Regularization(average_decay=0.9))
    needed = 20 * cost(model).params
    for free, wanted in ((int(needed * 2 / 0.8) - 10**4, True), (int(needed * 2 / 0.8) + 10**4, False)):
        monkeypatch.setattr(machine, "available_memory", lambda free=free: free)
        assert machine.shards(averaged, cost(model), world) == wanted
        assert not machine.shards(averaged, cost(model), Processes())
        for told in ("yes", "no"):
            asked = dataclasses.replace(averaged, compute=recipes.Compute(sharded=told))
            assert machine.shards(asked, cost(model), world) == (told == "yes")


def test_a_gpu_without_room_gets_smaller_parts_and_the_same_pictures() -> None:
    """The first pass over more than five images at once finds no memory, halfway through its layers."""

    class Roomy(Squares):
        sizes: ClassVar[list[int]] = []

        def forward(self, model: Any, images: torch.Tensor, targets: torch.Tensor, keep: Any = None) -> torch.Tensor:
            self.sizes.append(len(images))
            features = model.features(images)
            if len(images) > 5:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return model.head(features).square().sum(dim=1)

    def gradients(objective: Squares) -> tuple[Passes, list[torch.Tensor]]:
        torch.manual_seed(0)
        model = create_model("ViT-At/8", 3, 16, depth=2).double()
        torch.nn.init.normal_(model.get_parameter("head.weight"))
        model.regularize(dropout=0.3, stochastic_depth=0.3)
        images = torch.randn(2, 13, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        ones = torch.ones(13, dtype=torch.float64)
        passes = Passes(model.train(), objective)
        passes.backward([Part(images[i], ones, ones, None, Chance(7, 13 * i)) for i in range(2)])
        return passes, [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    (passes, found), (_, expected) = gradients(Roomy()), gradients(Squares())
    assert passes.most_at_once == 4
    assert Roomy.sizes == [13, 7, 4, 4, 4, 1, 4, 4, 4, 1]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_every_drop_draws_for_itself() -> None:
    """Another use, module, grain or key is another draw; the same is the same, wherever the part begins."""
    ones, draws = torch.ones(16, 64), {}
    for key, stream, use in ((1, 0, 0), (1, 0, 1), (1, 1, 0), (10**12, 0, 0)):
        drop = chance.Dropout().train()
        drop.p, drop.stream = 0.5, stream
        with chance.drawing_from(Chance(key)):
            draws[key, stream, use] = drop(ones, use)
        with chance.drawing_from(Chance(key, 5)):
            assert torch.equal(drop(ones[:11], use), draws[key, stream, use][5:])
    for one, two in itertools.combinations(draws.values(), 2):
        assert 0.4 < (one == two).float().mean() < 0.6
    first = draws[1, 0, 0]
    assert 0.4 < (first[:8] == first[8:]).float().mean() < 0.6


def test_a_picture_of_weight_zero_takes_no_part() -> None:
    whole = batch(7, [1, 1, 0, 1, 1, 1, 1])
    without = batch(7)
    chosen = [0, 1, 3, 4, 5, 6]
    without = dataclasses.replace(
        without,
        images=without.images[chosen],
        labels=without.labels[chosen],
        weights=without.weights[chosen],
        ids=without.ids[chosen],
        epochs=without.epochs[chosen],
    )
    a, b = gradients(4, whole), gradients(4, without)
    for name, gradient in a.items():
        torch.testing.assert_close(b[name], gradient, rtol=1e-9, atol=1e-12)


def test_objectives_by_hand() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5]])
    softmax, sigmoid = Softmax(3, 0.3), Sigmoid(3, 0.2)
    targets = softmax.targets(torch.tensor([2]))
    torch.testing.assert_close(targets, torch.tensor([[0.1, 0.1, 0.8]]))

    class Fixed(torch.nn.Module):
        head = torch.nn.Identity()

        def features(self, images: torch.Tensor, keep: None) -> torch.Tensor:
            return logits

    loss = softmax(Fixed(), torch.empty(1), targets)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(loss, -(targets * logits.log_softmax(1)).sum(1))
    several = sigmoid.targets(torch.tensor([[1.0, 0.0, 1.0]]))
    torch.testing.assert_close(several, torch.tensor([[0.9, 0.1, 0.9]]))
    p = logits.sigmoid()
    expected = -(several * p.log() + (1 - several) * (1 - p).log()).sum(1)
    torch.testing.assert_close(sigmoid(Fixed(), torch.empty(1), several), expected)  # pyright: ignore[reportArgumentType]


@pytest.mark.speed
def test_minutes_are_turned_into_steps_before_the_first(pictures: Path, tmp_path: Path) -> None:
    folder = run(tiny(pictures, budget={"minutes": 0.02}), tmp_path / "timed")
    stored = recipes.load(str(folder / "recipe.toml"))
    assert stored.budget.minutes == 0.02
    assert stored.budget.steps == json.loads((folder / "result.json").read_text())["steps"] > 0
    again = run(stored, tmp_path / "again")
    assert weights_hash(again) == weights_hash(folder), "throw-away steps must leave no trace"


def test_a_run_takes_as_many_pictures_as_it_is_told(pictures: Path, tmp_path: Path) -> None:
    folder = run(tiny(pictures, train_images=30, budget={"epochs": 1.0}), tmp_path / "few")
    result = json.loads((folder / "result.json").read_text())
    assert (result["train_images"], result["steps"], result["n"]) == (30, 3, 21)
    for count, sentence in ((73, "is more than the 72 that"), (2, r"leaves classes of .* without a picture \('cat', ")):
        with pytest.raises(UsageError, match=f"train_images={count} {sentence}"):
            run(tiny(pictures, train_images=count, batch_size=2), tmp_path / "wrong")


def test_validation_is_taken_from_train_where_there_is_none(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has validation pictures of its own; validation_share=0 is right"):
        run(tiny(pictures, validation_share=0.25), tmp_path / "out")
    shutil.rmtree(pictures / "validation")
    with pytest.raises(UsageError, match="leaves none on one side"):
        run(tiny(pictures, validation_share=0.001), tmp_path / "out")
    folder = run(tiny(pictures, validation_share=0.25), tmp_path / "shared")
    result = json.loads((folder / "result.json").read_text())
    assert result["data"]["splits"] == {"train": 54, "validation": 18, "test": 21}
    assert (result["split"], result["n"], result["train_images"]) == ("test", 21, 54)
    assert lines(folder)[-1]["kind"] == "validation"


def test_a_set_too_small_to_hold_any_out_is_learned_and_not_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_pictures(tmp_path / "few", ("ant", "bee"), 3)
    folder = run(tiny(data, batch_size=2, budget={"steps": 1}), tmp_path / "out")
    assert "neither test nor validation pictures: the model is not evaluated" in capsys.readouterr().err
    result = json.loads((folder / "result.json").read_text())
    assert (result["status"], result["data"]["splits"]) == ("finished", {"train": 6})
    assert not {"split", "n", "metric", "value"} & result.keys()
    assert (folder / "model").is_dir()
    assert not (folder / "evaluation.json").exists()
    assert result_sentence(folder) == ""


def test_a_budget_of_less_than_a_step_is_refused(pictures: Path, tmp_path: Path) -> None:
    """What the sentence says would be enough is enough for one step, and for no second one."""
    with pytest.raises(UsageError, match="a budget of 1e-10 PFLOP is less than one step of ViT-At/8 on 10 pic") as said:
        run(tiny(pictures, budget={"pflop": 1e-10}), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    enough = float(str(said.value).split("; ")[1].split()[0])
    folder = run(tiny(pictures, budget={"pflop": enough}), tmp_path / "out")
    assert json.loads((folder / "result.json").read_text())["steps"] == 1
    assert [budget.rounded_up(value) for value in (1.01e-9, 3.0e-7, 0.0995, 2.41)] == pytest.approx(
        [1.1e-9, 3e-7, 0.1, 2.5]
    )


def test_a_time_of_less_than_a_step_is_told(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tiny(pictures, budget={"minutes": 1e-7})
    with pytest.raises(UsageError, match="1e-07 min is too little for one look at 15 validation pictures"):
        run(recipe, tmp_path / "out")
    shutil.rmtree(pictures / "validation")
    folder = run(recipe, tmp_path / "out")
    assert "note: 1e-07 min is less than a step takes; one step is made" in capsys.readouterr().err
    assert json.loads((folder / "result.json").read_text())["steps"] == 1


def test_epochs_and_pflop_are_counted(pictures: Path, tmp_path: Path) -> None:
    folder = run(tiny(pictures, budget={"epochs": 1.5}), tmp_path / "epochs")
    assert json.loads((folder / "result.json").read_text())["steps"] == 11  # ⌈1.5 · 72 / 10⌉
    result = json.loads((run(tiny(pictures, budget={"pflop": 1e-7}), tmp_path / "pflop") / "result.json").read_text())
    per_step = result["train_flops"] / result["steps"]
    assert result["train_flops"] <= 1e8 < result["train_flops"] + per_step


def test_fine_tuning_at_another_resolution(
    done: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = recipes.load(
        "finetune", {"data": str(pictures), "init": str(done), "image_size": [24, 32], "budget": {"steps": 2}}
    )
    folder = run(tuned, tmp_path / "tuned")
    assert "position embedding resampled in 2-D from 2×2 to 3×4 patches" in capsys.readouterr().err
    result = json.loads((folder / "result.json").read_text())
    assert result["image_size"] == [24, 32]
    assert "(ViT-At/8 at 16×16); image size 16×16 → 24×32" in result["init"]
    assert load_model(folder).image_size == (24, 32)
    with pytest.raises(UsageError, match="exclude each other: the weights are of ViT-At/8"):
        run(dataclasses.replace(tuned, model={"name": "ViT-S/8"}), tmp_path / "wrong")


def test_several_labels_train_with_sigmoid(pictures: Path, tmp_path: Path) -> None:
    rows = ["image,labels,split"]
    for split in ("train", "validation", "test"):
        for path in sorted((pictures / split).rglob("*.png")):
            labels = path.parent.name + ("|even" if int(path.stem) % 2 == 0 else "")
            rows.append(f"{path.relative_to(pictures)},{labels},{split}")
    (pictures / "table.csv").write_text("\n".join(rows) + "\n")
    folder = run(tiny(pictures / "table.csv"), tmp_path / "several")
    result = json.loads((folder / "result.json").read_text())
    assert (result["metric"], result["n"]) == ("mean_average_precision", 21)
    assert "accuracy" not in result
    assert [line["mean_average_precision"] for line in lines(folder) if line["kind"] == "validation"]
    assert recipes.load(str(folder / "recipe.toml")).objective == "sigmoid"
    with pytest.raises(UsageError, match="several labels a picture; objective=sigmoid"):
        run(tiny(pictures / "table.csv", objective="softmax"), tmp_path / "wrong")


def test_bad_pictures_are_listed_and_counted(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In memory: told before the first step; left out of training and listed; in the test split: counted as wrong."""
    for i in range(60):  # enough good ones that a single bad one is below one in a hundred
        source = Image.open(pictures / "train/bee/000.png").rotate(6 * i)
        source.save(pictures / f"train/ant/more{i}.png")
    (pictures / "train/ant/bad.png").write_bytes((pictures / "train/ant/000.png").read_bytes()[:90])
    (pictures / "test/cat/empty.png").write_bytes(b"")
    for name in ("ant/000.png", "bee/001.png"):
        (pictures / "validation" / name).write_bytes(b"no picture")
    folder = run(tiny(pictures), tmp_path / "memory")
    said = capsys.readouterr().err
    assert "note: 1 of 133 pictures of train cannot be read and is left out (train/ant/bad.png " in said
    assert (
        "note: 2 of 15 pictures of validation cannot be read and are counted as wrong (validation/ant/000.png " in said
    )
    assert "note: 1 of 22 pictures of test cannot be read and is counted as wrong (test/cat/empty.png " in said
    result = json.loads((folder / "result.json").read_text())
    assert [bad["name"] for bad in result["data"]["unreadable"]] == ["train/ant/bad.png"]
    assert (result["n"], result["train_images"]) == (22, 132)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert [bad["name"] for bad in evaluation["unreadable"]] == ["test/cat/empty.png"]
    assert sum(map(sum, evaluation["confusion"])) == 21

    unmixed = {"augment": {"mixup": 0.0, "cutmix": 0.0}, "regularization": {"patch_dropout": 0.0}}
    run(tiny(pictures, objective="masked-patch", **unmixed), tmp_path / "masked")  # which measures what it can see
    assert "2 of 15 pictures of validation cannot be read and are left out" in capsys.readouterr().err

    streamed = run(tiny(pictures, loading={"memory_share": 0.0, "workers": 0}), tmp_path / "streamed")
    result = json.loads((streamed / "result.json").read_text())
    assert [bad["name"] for bad in result["data"]["unreadable"]] == ["train/ant/bad.png"]
    assert json.loads((streamed / "evaluation.json").read_text())["unreadable"] == evaluation["unreadable"]


@pytest.mark.parametrize("share", [0.25, 0.0])
def test_more_than_one_in_a_hundred_bad_pictures_stops_the_run(pictures: Path, tmp_path: Path, share: float) -> None:
    for i in range(3):
        (pictures / f"train/ant/bad{i}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"of 75 training pictures cannot be read, more than 1%"):
        run(tiny(pictures, loading={"memory_share": share, "workers": 0}), tmp_path / "bad")
    assert json.loads((tmp_path / "bad/result.json").read_text())["status"] == "failed"


def test_full_disk_keeps_what_was_written_and_training_goes_on(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk is full from the second checkpoint on, and has room again for the last: nothing is lost but time."""

    write, full = checkpoint.write_tensors, {6, 9}

    def filling(path: Path, tensors: dict[str, torch.Tensor]) -> None:
        if int(path.parent.name.split("-")[1].split(".")[0]) in full:
            write(path, tensors)  # what is there of it must go
            raise FaultError(f"cannot write {path}: No space left on device")
        write(path, tensors)

    monkeypatch.setattr(checkpoint, "write_tensors", filling)
    recipe = tiny(pictures, checkpoint={"every_steps": 3})
    folder = run(recipe, tmp_path / "full")
    assert capsys.readouterr().err.count("goes on and tries again") == 2
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-00000003", "step-00000012"]
    assert weights_hash(folder) == weights_hash(run(recipe, tmp_path / "quiet"))
    full.update({3, 12})
    with pytest.raises(FaultError, match="No space left on device") as caught:
        run(recipe, tmp_path / "never")
    assert caught.value.exit_code == 4
    assert not list((tmp_path / "never/checkpoints").iterdir())
    assert json.loads((tmp_path / "never/result.json").read_text())["status"] == "failed"
    full.clear()
    run(recipe, tmp_path / "never")
    assert weights_hash(tmp_path / "never") == weights_hash(folder)


def test_weights_that_are_not_finite_are_not_published(tmp_path: Path) -> None:

    model = create_model("ViT-At/8", 3, 16, depth=1)
    tensors = checkpoint.tensors_of(model, Softmax(3), build_optimizer(Recipe().optimizer, model), None)
    with torch.no_grad():
        model.get_parameter("blocks.0.mlp.fc1.bias")[3] = -torch.inf
    with pytest.raises(FaultError, match="fc1.bias is not finite after step 7: no checkpoint of it is written"):
        checkpoint.save(tmp_path / "checkpoints", checkpoint.State(step=7), tensors, keep=2)
    assert not (tmp_path / "checkpoints").exists()


def test_a_log_that_cannot_be_written_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a line gets to the disk, then none, then all: every line is there once."""
    path, record_of = tmp_path / "metrics.jsonl", Record
    record = record_of(path, 0)
    record.open()
    record.write("train", 1, loss=1.0)
    fsync, refusing = os.fsync, [2]

    def refuse(handle: int) -> None:
        if refusing[0]:
            refusing[0] -= 1
            os.ftruncate(handle, os.fstat(handle).st_size - 7)
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refuse)
    for step in (2, 3, 4, 5):
        record.write("train", step, loss=1.0 / step)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4, 5]
    record.cut(3)
    record.write("train", 4, loss=7.0)
    assert [json.loads(line)["loss"] for line in path.read_text().splitlines()] == [1.0, 0.5, 1 / 3, 7.0]
    refusing[0] = 1
    record.write("train", 5, loss=8.0)
    with pytest.raises(FaultError, match="No space left"):
        refusing[0] = 1
        record.flush()
    record.flush()
    assert len(path.read_text().splitlines()) == 5


def test_every_field_of_a_recipe_is_read_in_a_run(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each attribute access is recorded, but those of the dataclass machinery and of the field's own checks."""
    read: set[tuple[str, str]] = set()

    def record(kind: type) -> Callable[[Any, str], Any]:
        def get(self: Any, name: str) -> Any:
            caller = sys._getframe(1).f_code
            if (
                caller.co_name != "__post_init__"
                and caller.co_filename != "<string>"  # the methods that dataclasses write
                and "dataclasses.py" not in caller.co_filename
            ):
                read.add((kind.__name__, name))
            return object.__getattribute__(self, name)

        return get

    kinds: list[type] = [Recipe]
    for kind in kinds:
        declared = config.field_types(kind).values()
        kinds += [each for each in declared if isinstance(each, type) and dataclasses.is_dataclass(each)]
        monkeypatch.setattr(kind, "__getattribute__", record(kind))
    budgets = [{"steps": 2}, {"epochs": 0.2}, {"minutes": 0.01}, {"pflop": 1e-8}]
    crops = ["shift", "random-resized", "resize", "shift"]
    for i, (spent, crop) in enumerate(zip(budgets, crops, strict=True)):
        optimizer = {"name": ("adamw", "sgd", "adam", "muon")[i]}
        augment = {"crop": crop, "randaugment_layers": 1}
        run(tiny(pictures, budget=spent, augment=augment, optimizer=optimizer), tmp_path / str(i))
    run(tiny(pictures, init=str(tmp_path / "0"), budget={"steps": 1}), tmp_path / "from-weights")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    teacher = {"weights": str(tmp_path / "0"), "unlabelled": str(pictures)}
    # The pictures that are learned from are no others.
    again = {"duplicates": "no"}
    run(tiny(pictures, teacher=teacher, budget={"steps": 1}, loading=again), tmp_path / "taught")
    for kind in kinds:
        for name in config.field_types(kind):
            assert (kind.__name__, name) in read, f"nothing reads {kind.__name__}.{name}"
