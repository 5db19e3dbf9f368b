"""The paper's experiments: declared as published, run once each, judged as their intervals say, shown without surprises."""

import dataclasses
import itertools
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from patchword import cli
from patchword.core.errors import DataError, UsageError
from patchword.data.decoding.decode import decode
from patchword.data.sources import open_data
from patchword.data.vtab import LITE_TASKS, TASKS
from patchword.explanation.attention import head_figures
from patchword.explanation.embeddings import position_table
from patchword.explanation.maps import as_images
from patchword.explanation.structure import depth_trend, grid_structure
from patchword.explanation.untrained import untrained
from patchword.models.cost import cost
from patchword.models.names import create_model
from patchword.models.vit import ViT
from patchword.reports import charts, page
from patchword.reports import paper as paper_page
from patchword.reports import run as pages
from patchword.reports.paper import claims_table, command, write_paper
from patchword.reports.paper import difference as told_difference
from patchword.reports.run import read_fields
from patchword.studies import grid as grids
from patchword.studies import inside, paper, reproduce, scales, trials, vtab
from patchword.studies.claims import CLAIMS
from patchword.studies.experiment import Arm, Measured, Stage
from patchword.studies.grid import Grid
from patchword.studies.judging import LOOKS, Part, difference, judge, judge_by_looks
from patchword.studies.results import as_row, write_table1
from patchword.studies.search import ROUNDS
from patchword.studies.statistics import Estimate, estimate
from patchword.studies.trials import Trials, flops_of
from patchword.training import estimate as estimates
from patchword.training.recipe import Budget, Recipe
from patchword.verbs.paper import _places
from patchword.weights.io import save_model

SMOKE, LAPTOP, FULL = (scales.SCALES[name] for name in ("smoke", "laptop", "full"))
JUDGED = dataclasses.replace(SMOKE, seeds=3, searched=True, verdicts=True)
"""The data of the smallest scale, all else as at the next."""

Ran = list[tuple[Recipe, Path]]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Ran:
    """What would have been trained; each run reaches what a hash of its recipe says, near one half, wherever its start lies."""
    made: Ran = []

    def run(recipe: Recipe, out: Path, **_: Any) -> Path:
        made.append((recipe, out))
        named = dataclasses.replace(recipe, init=Path(recipe.init).name)
        value = 0.4 + int(named.identity()[:4], 16) / 2**16 / 5
        (out / "model").mkdir(parents=True)
        (out / "recipe.toml").write_text(recipe.to_toml())
        (out / "evaluation.json").write_text(json.dumps({"loss": 1.0}))
        result = {"status": "finished", "diverged": False, "reason": None, "value": value, "train_flops": 1e12}
        (out / "result.json").write_text(json.dumps(result | {"seconds": 1.0}))
        return out

    monkeypatch.setattr(grids, "run", run)
    found = estimates.Estimate(
        steps=10,
        batch_size=8,
        seconds_per_step=0.01,
        looks=0,
        validation=0,
        evaluated=20,
        seconds_per_look=0.001,
        saves=1,
        seconds_per_save=0.1,
        decoded=0,
        seconds_per_decoding=0.0,
        opening=0.1,
        asking=0.0,
        flops_per_image=1e6,
        memory=0,
    )
    monkeypatch.setattr(grids, "estimate", lambda *_, **__: found)
    return made


# What is declared


def test_the_tables_add_up() -> None:
    """Table 9's own means, and the first row of each other table."""
    facts = list(vtab.FACTS.values())
    means = [sum(task.published[place] for task in facts) / 19 for place in range(3)]
    assert [round(mean, 1) for mean in means] == [77.6, 76.3, 72.7]
    assert set(vtab.FACTS) == set(TASKS)
    assert {group: sum(task.group == group for task in facts) for group in vtab.GROUPS} == {
        "natural": 7,
        "specialised": 4,
        "structured": 8,
    }
    assert vtab.FACTS["sun397"].classes == 397
    first = {name: each.published[0].value for name, each in paper.EXPERIMENTS.items() if each.published}
    assert first == {
        "position": 61.382,
        "patch": 81.28,
        "resolution": 75.45,
        "adam-vs-sgd": 89.33,
        "masked": 77.91,
        "fig3": 77.91,
        "fig5": 80.73,
        "table2": 88.55,
        "fig2": 86.69,
    }


@pytest.mark.parametrize("scale", scales.SCALES.values(), ids=lambda scale: scale.name)
@pytest.mark.parametrize("name", paper.EXPERIMENTS)
def test_every_experiment_is_declared_at_every_scale(name: str, scale: Any, tmp_path: Path) -> None:
    arms = paper.EXPERIMENTS[name].arms(scale)
    assert len({arm.label for arm in arms}) == len(arms) >= 2
    runner = Trials(Grid(tmp_path), scale)
    for arm in arms:
        for step in runner.steps(arm, 1):
            assert step.recipe.seed == (0 if arm.one_start and not step.origin else 1)
            budget = step.recipe.budget
            assert budget.steps or budget.pflop or budget.epochs


@pytest.mark.parametrize("scale", [SMOKE, LAPTOP], ids=lambda scale: scale.name)
def test_every_run_and_every_trial_has_a_step(scale: Any, tmp_path: Path) -> None:
    """Counted by shapes, with the head of ten classes: a budget of less than a step would end a study on its way."""
    runner, flops = Trials(Grid(tmp_path), scale), dict[tuple[Any, ...], int]()
    for experiment in paper.EXPERIMENTS.values():
        for arm in experiment.arms(scale):
            for step in runner.steps(arm, 0):
                for recipe, part in ((step.recipe, 1.0), (step.trial, ROUNDS[0])):
                    if recipe.budget.steps or (recipe is step.trial and not scale.searched):
                        continue
                    options = {name: value for name, value in recipe.model.items() if name != "name"}
                    kind = (recipe.model["name"], recipe.image_size, *map(repr, sorted(options.items())))
                    if kind not in flops:
                        with torch.device("meta"):
                            model = create_model(recipe.model["name"], 10, recipe.image_size, **options)
                        flops[kind] = cost(model).train_flops
                    assert part * recipe.budget.pflop * 1e15 >= recipe.batch_size * flops[kind], (
                        f"{arm.label}, {recipe.data}"
                    )


def test_the_full_scale_costs_what_the_paper_says() -> None:
    """ViT-B/16 on ImageNet-21k: 90 epochs of 14.2 M pictures of 35.1 GFLOP, three times; our last block saves 7 %."""
    arm = Arm(label="b", series="b", model="ViT-B/16", before=Stage(data="imagenet21k"))
    runner = Trials(Grid(Path("nowhere")), FULL)
    flops = flops_of([arm], runner, 1)
    assert flops / 1e18 == pytest.approx(0.93 * 90 * 14.197122e6 * 3 * 35.1e9 / 1e18, rel=0.01)


def test_arms_are_what_the_paper_compares() -> None:
    by_name = {name: each.arms(LAPTOP) for name, each in paper.EXPERIMENTS.items()}
    assert [arm.before.changes["model"]["position"] for arm in by_name["position"] if arm.before] == [
        "none",
        "1d",
        "2d",
        "relative",
    ]
    assert [arm.before and arm.before.changes.get("objective") for arm in by_name["masked"]] == [
        None,
        "masked-patch",
        None,
    ]
    assert [arm.after.image_size for arm in by_name["resolution"] if arm.after] == [32, 48]
    assert {arm.before.steps for arm in by_name["patch"] if arm.before} == {1000}
    assert [arm.x for arm in by_name["fig4"]][:4] == [500, 2000, 10_000, 50_000]
    assert all(arm.one_start for arm in by_name["table2"] + by_name["fig2"])
    assert len(by_name["fig2"]) == 3 * len(LITE_TASKS)


def test_the_full_scale_is_the_papers_protocol() -> None:
    """Table 4: 384 px and so many steps on each set; section 4.3: nothing is the set itself, by Table 3's first row."""
    runner, tuned, alone = Trials(Grid(Path("nowhere")), FULL), {}, set()
    for name in ("table2", "fig3", "fig2"):
        for arm in paper.EXPERIMENTS[name].arms(FULL):
            first, last = runner.steps(arm, 0)
            assert (last.recipe.image_size, last.recipe.optimizer.name) == ((384, 384), "sgd")
            tuned[last.recipe.data.partition(":")[0]] = last.recipe.budget.steps
            if first.recipe.data == "imagenet":
                alone.add(
                    (first.recipe.budget.epochs, first.recipe.optimizer.weight_decay, first.recipe.schedule.decay)
                )
    assert tuned == {
        "imagenet": 20_000,
        "cifar10": 10_000,
        "cifar100": 10_000,
        "pets": 500,
        "flowers102": 500,
        "vtab": 2500,
    }
    assert alone == {(300, 0.3, "cosine")}
    [_, masked, supervised] = paper.EXPERIMENTS["masked"].arms(FULL)
    rates = [runner.steps(arm, 0)[0].recipe.optimizer.lr for arm in (masked, supervised)]
    assert rates == [2e-4, 1e-3], "appendix B.1.2 and Table 3"


def test_structured_tasks_are_seen_as_they_are() -> None:
    structured, natural = vtab.stage("vtab-lite:count", LAPTOP), vtab.stage("vtab:cifar100=x", LAPTOP)
    assert structured.changes["augment"] == {"crop": "resize", "flip": False}
    assert "augment" not in natural.changes
    assert structured.changes["learn_validation"]
    assert vtab.stage("vtab:dmlab", FULL).recipe == "paper-finetune/vtab"


# What is run


def test_runs_are_made_once_and_named_by_what_they_are(ran: Ran, tmp_path: Path) -> None:
    """Masked and position share nothing; fig3 and fig4 share the pre-trainings of the same sets."""
    scale = dataclasses.replace(SMOKE, seeds=2)
    reproduce.run_one(paper.EXPERIMENTS["masked"], scale, tmp_path)
    assert len(ran) == 2 * (3 + 3)
    starts = {recipe.init for recipe, _ in ran}
    assert len(starts) == 1 + 6  # none, and three kinds of weights of two seeds
    before = len(ran)
    reproduce.run_one(paper.EXPERIMENTS["masked"], dataclasses.replace(scale, seeds=3), tmp_path)
    assert len(ran) == before + 6, "one seed more"
    reproduce.run_one(paper.EXPERIMENTS["fig3"], scale, tmp_path)
    third = {out.name for _, out in ran}
    reproduce.run_one(paper.EXPERIMENTS["table2"], scale, tmp_path)
    shared = [out for recipe, out in ran if recipe.init == "none" and out.name in third]
    assert len({out.name for out in shared}) == len(shared), "no folder is run twice"
    assert len({out for _, out in ran}) == len(ran)


def test_rates_are_searched_once_for_each_kind(ran: Ran, tmp_path: Path) -> None:
    """Two models are pre-trained with two optimizers and tuned: each of four kinds of start, and the tuning of each."""
    reproduce.run_one(paper.EXPERIMENTS["adam-vs-sgd"], JUDGED, tmp_path)
    searched = [(recipe, out) for recipe, out in ran if "search" in out.parts]
    kinds = Counter(out.parent.name for _, out in searched)
    assert len(kinds) == 4 + 4
    assert set(kinds.values()) <= {6, 7, 8, 9}, "four, two of them, and as many beyond as are better"
    assert all(recipe.evaluation.final == "validation" for recipe, _ in searched)
    cells = [recipe for recipe, out in ran if "cells" in out.parts]
    assert len(cells) == 3 * (4 + 4)
    assert {recipe.evaluation.final for recipe in cells} == {"test"}
    starts = {str(out): recipe.optimizer.name for recipe, out in ran}
    rates: dict[tuple[str, ...], set[float]] = {}
    for recipe in cells:
        kind = recipe.model["name"], recipe.optimizer.name, starts.get(recipe.init, "nothing")
        rates.setdefault(kind, set()).add(recipe.optimizer.lr)
    assert len(rates) == 8
    assert all(len(each) == 1 for each in rates.values())


def test_nothing_is_no_straw_man() -> None:
    """What begins with nothing learns its few pictures for as many FLOPs, by the recipe for that, and is then tuned alike."""
    runner = Trials(Grid(Path("nowhere")), JUDGED)
    nothing, _, supervised = paper.EXPERIMENTS["masked"].arms(JUDGED)
    (alone, after), (before, tuned) = runner.steps(nothing, 2), runner.steps(supervised, 2)
    assert (alone.recipe.name, alone.recipe.budget, alone.recipe.seed) == ("scratch", before.recipe.budget, 2)
    few = (JUDGED.sets["tune"], JUDGED.few, 2)
    for recipe in (alone.recipe, after.recipe, tuned.recipe):
        assert (recipe.data, recipe.train_images, recipe.train_images_seed) == few
    assert (alone.trial.train_images, alone.trial.seed) == (JUDGED.few, 0), "as few in the search for its rate"
    assert before.trial.train_images == 0
    assert dataclasses.replace(after.recipe, init="") == dataclasses.replace(tuned.recipe, init="")
    of_each = {arm.model: arm for arm in paper.EXPERIMENTS["fig3"].arms(JUDGED) if arm.x == 0}
    assert len(of_each) == 3
    assert all(arm.before == nothing.before for arm in of_each.values())


def test_rates_do_not_depend_on_the_order_of_experiments(ran: Ran, tmp_path: Path) -> None:
    """What is tuned is tuned at the rate of one start, the usual one, whoever asked first."""
    names = ("masked", "fig5", "table2", "fig3")
    rates = []
    for order in (names, names[::-1]):
        ran.clear()
        for name in order:
            reproduce.run_one(paper.EXPERIMENTS[name], JUDGED, tmp_path / order[0])
        rates.append({out.relative_to(tmp_path / order[0]): recipe.optimizer.lr for recipe, out in ran})
    assert rates[0] == rates[1]
    place = {out.name: recipe for recipe, out in ran if "cells" in out.parts}
    starts = {recipe.init for recipe, out in ran if "search" in out.parts and recipe.init != "none"}
    assert len(starts) == 6 + 3, "five models, one of them also from masked patches, and three from nothing"
    for start in starts:
        usual = place[Path(start).name]
        few = JUDGED.few if usual.data == JUDGED.sets["tune"] else 0
        assert (usual.seed, usual.train_images, usual.budget) == (0, few, JUDGED.before)


@pytest.fixture
def sgd_diverges(monkeypatch: pytest.MonkeyPatch) -> None:
    """No run with SGD ends."""
    outcome = Grid.outcome

    def lost(grid: Grid, cell: grids.Cell) -> grids.Outcome:
        found = outcome(grid, cell)
        return dataclasses.replace(found, diverged="it did") if cell.recipe.optimizer.name == "sgd" else found

    monkeypatch.setattr(Grid, "outcome", lost)


@pytest.mark.usefixtures("sgd_diverges")
def test_a_search_that_diverges_at_every_rate_leaves_the_others(
    ran: Ran, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No run with SGD ends: its arms have no value, and the others have theirs."""
    path = reproduce.run_one(paper.EXPERIMENTS["adam-vs-sgd"], JUDGED, tmp_path, publish=write_paper)
    told = json.loads(path.read_text())
    assert [len(row["values"]) for row in told["arms"]] == [3, 0, 3, 0]
    assert [row["verdict"] for row in told["claims"]] == ["undecided"]
    assert "training diverges at every rate tried" in capsys.readouterr().err


def test_a_search_whose_start_diverged_leaves_the_presets_rate(
    ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The usual start of fig5's hybrid is lost, the others of the hybrid are not: they are tuned without a search."""
    usual = paper.EXPERIMENTS["fig5"].arms(JUDGED)[11]
    assert usual.label == "C3+ViT-At/8, 1 of the budget"
    outcome = Grid.outcome

    def lost(grid: Grid, cell: grids.Cell) -> grids.Outcome:
        found, budget = outcome(grid, cell), cell.recipe.budget
        whole = cell.recipe.model["name"] == usual.model and budget == JUDGED.before and cell.recipe.seed == 0
        return dataclasses.replace(found, diverged="it did") if whole else found

    monkeypatch.setattr(Grid, "outcome", lost)
    path = reproduce.run_one(paper.EXPERIMENTS["fig5"], JUDGED, tmp_path)
    arms = {row["label"]: row for row in json.loads(path.read_text())["arms"]}
    assert [len(arms[f"{usual.model}, {share:g} of the budget"]["values"]) for share in (0.5, 1)] == [3, 2]
    tuned = [r for r, out in ran if "-tuning-" in out.name and r.model["name"] == usual.model]
    assert {recipe.optimizer.lr for recipe in tuned} == {3e-4}


def test_a_lost_seed_does_not_take_the_flops_of_the_others(
    ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last seed of a pre-training diverges: its arm still stands at what the other two took, and is compared there."""
    outcome = Grid.outcome

    def lost(grid: Grid, cell: grids.Cell) -> grids.Outcome:
        found = outcome(grid, cell)
        gone = "ViT-At/8, 1 of the budget, training" in cell.title and cell.recipe.seed == 2
        return dataclasses.replace(found, diverged="it did") if gone else found

    monkeypatch.setattr(Grid, "outcome", lost)
    told = json.loads(reproduce.run_one(paper.EXPERIMENTS["fig5"], JUDGED, tmp_path).read_text())
    arm = next(row for row in told["arms"] if row["label"] == "ViT-At/8, 1 of the budget")
    assert (len(arm["values"]), arm["flops"], arm["x"]) == (2, 1e12, 1e-3)
    monkeypatch.setattr(Trials, "_few_shot", lambda self, outcome, data: 0.5)
    monkeypatch.setattr(Trials, "_inside", lambda self, outcome, arm, seed: 0.5)
    reproduce.run_claims(JUDGED, tmp_path)
    told = json.loads((tmp_path / "fig5.json").read_text())
    assert {row["flops"] for row in told["arms"]} == {1e12}


def test_what_is_finished_is_counted_and_left_alone(
    ran: Ran, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reproduce.run_one(paper.EXPERIMENTS["position"], JUDGED, tmp_path, seeds=2)
    count = len(ran)
    capsys.readouterr()
    path = reproduce.run_one(paper.EXPERIMENTS["position"], JUDGED, tmp_path, seeds=2)
    assert len(ran) == count
    said = capsys.readouterr().err
    assert f"{count} runs, {count} of them finished\n" in said
    with pytest.raises(UsageError, match=r"holds another study \(paper: smoke there, laptop asked for\)"):
        reproduce.run_one(paper.EXPERIMENTS["position"], LAPTOP, tmp_path)
    told = json.loads(path.read_text())
    assert [row["label"] for row in told["arms"]] == ["no positions", "1-D", "2-D", "relative"]
    values = told["arms"][1]["values"]
    low, high = stats.t.interval(0.95, 1, np.mean(values), stats.sem(values))
    assert (told["arms"][1]["low"], told["arms"][1]["high"]) == pytest.approx((low, high))
    assert told["arms"][1]["deviation"] == pytest.approx(np.std(values, ddof=1))


def test_missing_data_is_named_and_averaged_over_nowhere(
    ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATCHWORD_DATA", str(tmp_path / "nothing"))
    scale = dataclasses.replace(SMOKE, others=("nowhere", "formula:shapes-4x60@32,seed=2"))
    path = reproduce.run_one(paper.EXPERIMENTS["table2"], scale, tmp_path / "out")
    told = json.loads(path.read_text())
    assert list(told["missing"]) == ["nowhere"]
    assert [row["value"] is None for row in told["arms"]] == [False] * 3 + [True] * 3 + [False] * 3
    assert (
        "note: nowhere is missing: nowhere is neither a path that exists nor a named data set"
        in capsys.readouterr().err
    )
    gone = dataclasses.replace(SMOKE, sets={**SMOKE.sets, "pretrain": "nowhere"})
    with pytest.raises(DataError, match="nothing of position can be run here, for nowhere is missing"):
        reproduce.run_one(paper.EXPERIMENTS["position"], gone, tmp_path / "other")
    gone = dataclasses.replace(gone, sets={name: f"no-{name}" for name in gone.sets})
    with pytest.raises(DataError, match="can be run here, for no-pretrain and no-tune are missing"):
        reproduce.run_one(paper.EXPERIMENTS["resolution"], gone, tmp_path / "other")
    page = write_paper(path).read_text()
    assert "nowhere is missing, and with it what needs it" in page
    assert page.count("missing</") >= 3


def test_groups_have_a_mean_where_no_task_is_missing() -> None:
    def task(label: str, *values: float | None) -> Measured:
        arm = Arm(label=label, series=vtab.group_of(label), model="m")
        return Measured(arm, values)

    measured = [task("count", 0.5, 0.7), task("size", 0.1, 0.3), task("digits", 0.9, 0.9), task("clothing", None, None)]
    assert vtab.group_means(measured, {"structured": 2, "natural": 2}) == {
        "structured": [pytest.approx(0.3), pytest.approx(0.5)],
        "natural": None,
    }
    assert vtab.group_means(measured, {"structured": 5})["structured"] is None
    assert vtab.sizes_of_groups(lite=True) == {"natural": 4, "structured": 5}
    assert sum(vtab.sizes_of_groups(lite=False).values()) == 19


def test_vtab_of_somebodys_weights(
    ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATCHWORD_DATA", str(tmp_path / "nothing"))
    monkeypatch.setattr(trials, "open_data", _there("vtab-lite:count", "vtab-lite:digits"))
    model = create_model("ViT-At/8", 5, (24, 16), depth=1, embed_dim=16, num_heads=2, mlp_dim=16)
    save_model(model, tmp_path / "weights")
    out = patchword_paper("vtab-lite", tmp_path / "weights", scale="smoke", out=tmp_path / "out")
    assert len(ran) == 2
    assert {recipe.init for recipe, _ in ran} == {str(tmp_path / "weights")}
    assert {recipe.image_size for recipe, _ in ran} == {(24, 16)}
    assert all(recipe.learn_validation for recipe, _ in ran)
    told = json.loads((tmp_path / "out/vtab-lite.json").read_text())
    assert [row["group"] for row in told["groups"]] == ["natural", "structured", "all tasks"]
    assert [row["value"] for row in told["groups"]] == [None] * 3
    assert len(told["groups"][0]["missing"]) == 3
    assert out == tmp_path / "out/vtab-lite.html"
    words = command(read_fields(tmp_path / "out/vtab-lite.json"), tmp_path / "out")
    assert words == [
        *("patchword", "paper", "vtab-lite", str(tmp_path / "weights")),
        *("--scale", "smoke", "--out", str(tmp_path / "out")),
    ]
    assert " ".join(f"<span>{word}</span>" for word in words) in out.read_text()
    # Other weights at the same place are another start.
    torch_bytes = next(iter(model.parameters())).detach().numpy()
    torch_bytes += 1
    save_model(model, tmp_path / "weights")
    patchword_paper("vtab-lite", tmp_path / "weights", scale="smoke", out=tmp_path / "out")
    assert len(ran) == 4


def _there(*names: str) -> Callable[[str], object]:
    def opened(data: str) -> object:
        if data not in names:
            raise DataError(f"{data} is not here")
        return object()

    return opened


def patchword_paper(*arguments: Any, **options: Any) -> Path:
    from patchword.verbs.paper import paper as verb

    return verb(*arguments, **options)


# Claims


def measured(
    name: str, values: Mapping[str, Sequence[float | None]], scale: Any = JUDGED, seeds: int = 3
) -> list[Measured]:
    """The arms of an experiment with values by their labels; those not named have the mean of nothing special, 0.5."""
    arms = paper.EXPERIMENTS[name].arms(scale)
    assert set(values) <= {arm.label for arm in arms}
    return [
        Measured(arm, tuple(values.get(arm.label, [0.5] * seeds)), 1e12 * arm.before.share if arm.before else 0.0)
        for arm in arms
    ]


def claim(key: str) -> Any:
    return next(each for each in CLAIMS if each.key == key)


def test_twelve_claims_of_experiments_that_there_are() -> None:
    assert len({each.key for each in CLAIMS}) == len(CLAIMS) == 12
    assert {each.experiment for each in CLAIMS} <= set(paper.EXPERIMENTS)


def test_differences_are_taken_seed_by_seed() -> None:
    one, other = [0.5, None, 0.7, 0.9], [0.4, 0.1, 0.65, None]
    pairs = difference(one, other)
    assert pairs == pytest.approx([0.1, 0.05])
    for level in (0.95, 0.99):
        found = estimate(pairs, level)
        low, high = stats.t.interval(level, 1, 0.075, stats.sem([0.1, 0.05]))
        assert (found.value, found.low, found.high) == pytest.approx((0.075, low, high))
    assert math.isnan(estimate(difference([None], [0.5])).value)
    assert Part("nothing", estimate([])).verdict == "undecided"


@pytest.mark.parametrize(
    ("low", "high", "alike", "verdict"),
    [
        (0.001, 0.1, False, "holds"),
        (-0.001, 0.1, False, "undecided"),
        (-0.2, -0.001, False, "does not hold"),
        (-0.009, 0.009, True, "holds"),
        (-0.009, 0.02, True, "undecided"),
        (0.011, 0.02, True, "does not hold"),
        (-0.02, 0.009, True, "undecided"),
        (-0.02, -0.011, True, "does not hold"),
        (-math.inf, math.inf, False, "undecided"),
    ],
)
def test_verdicts_are_what_intervals_say(low: float, high: float, alike: bool, verdict: str) -> None:
    assert Part("it", Estimate((low + high) / 2 if math.isfinite(low) else 0.0, low, high), alike).verdict == verdict


@pytest.mark.parametrize(
    ("key", "values", "verdict"),
    [
        ("masked", {"masked patches": [0.6, 0.61, 0.6], "supervised": [0.7, 0.71, 0.7]}, "holds"),
        ("masked", {"masked patches": [0.6, 0.61, 0.6], "supervised": [0.55, 0.56, 0.55]}, "does not hold"),
        ("masked", {"masked patches": [0.4, 0.7, 0.5], "supervised": [0.7, 0.71, 0.7]}, "undecided"),
        ("positions", {"no positions": [0.4, 0.41, 0.4], "2-D": [0.501, 0.5, 0.499]}, "holds"),
        ("positions", {"no positions": [0.6, 0.61, 0.6]}, "does not hold"),
        ("positions", {"no positions": [0.4, 0.41, 0.4], "relative": [0.6, 0.61, 0.6]}, "does not hold"),
        ("resolution", {"tuned at 48 px": [0.6, 0.61, 0.6]}, "holds"),
        ("resolution", {"tuned at 32 px": [0.6, 0.61, 0.6]}, "does not hold"),
        ("patches", {"ViT-At/4": [0.7, 0.71, 0.7], "ViT-At/8": [0.6, 0.6, 0.6]}, "holds"),
        ("patches", {"ViT-At/16": [0.7, 0.71, 0.7]}, "does not hold"),
        ("adam", {"BiT-R14x0.25, SGD": [0.4, 0.41, 0.4], "BiT-R14x0.5, SGD": [0.3, 0.3, 0.31]}, "holds"),
        ("adam", {"BiT-R14x0.25, SGD": [0.4, 0.41, 0.4], "BiT-R14x0.5, SGD": [0.6, 0.6, 0.61]}, "does not hold"),
        ("large-models", {"ViT-Fe/8, all": [0.8, 0.81, 0.8]}, "holds"),
        ("large-models", {"ViT-At/8, all": [0.8, 0.81, 0.8]}, "does not hold"),
        (
            "large-models",
            {f"ViT-Fe/8, {of}": [0.8, 0.81, 0.8] for of in ("from nothing", "all")},
            "holds",  # over the smallest set, and not over none
        ),
        ("pretraining", {f"{m}, all": [0.8, 0.81, 0.8] for m in ("ViT-At/8", "ViT-Fe/8", "BiT-R14x0.5")}, "holds"),
        ("pretraining", {"ViT-At/8, all": [0.8, 0.81, 0.8]}, "undecided"),
        ("crossing", {"BiT-R14x0.5, 100": [0.6, 0.61, 0.6], "ViT-Fe/8, all": [0.7, 0.7, 0.71]}, "holds"),
        ("crossing", {"ViT-Fe/8, 100": [0.6, 0.61, 0.6], "ViT-Fe/8, all": [0.7, 0.7, 0.71]}, "does not hold"),
        (
            "hybrids",
            {f"C3+ViT-At/8, {s:g} of the budget": [0.7, 0.7, 0.71] for s in (0.125, 0.25)},
            "holds",
        ),
        ("hybrids", {"ViT-At/8, 0.25 of the budget": [0.7, 0.7, 0.71]}, "does not hold"),
        (
            "hybrids",
            {
                f"{model}, {s:g} of the budget": reached
                for model, reached in (
                    ("C3+ViT-At/8", [0.7, 0.7, 0.71]),
                    ("ViT-At/8", [0.9, 0.3, 0.3]),  # one lucky seed does not make the best
                    ("ViT-Fe/8", [0.6, 0.61, 0.6]),
                )
                for s in (0.125, 0.25)
            },
            "holds",
        ),
        (
            "attention-distance",
            {
                f"{m}{control}, depth": [value, value + 0.1, value]
                for m in ("ViT-At/8", "ViT-Fe/8")
                for control, value in (("", 0.8), (" untrained", 0.1))
            },
            "holds",
        ),
        (
            "attention-distance",
            {f"ViT-At/8{control}, depth": [0.8, 0.81, 0.8] for control in ("", " untrained")},
            "undecided",
        ),
        ("attention-distance", {"ViT-Fe/8, depth": [-0.8, -0.81, -0.8]}, "does not hold"),
        (
            "rows-and-columns",
            {f"{m}, {f}": [0.8, 0.81, 0.8] for m in ("ViT-At/8", "ViT-Fe/8") for f in ("grid", "lines")},
            "holds",
        ),
        (
            "rows-and-columns",
            {f"{m}, grid": [0.8, 0.81, 0.8] for m in ("ViT-At/8", "ViT-Fe/8")},
            "undecided",
        ),
        ("rows-and-columns", {"ViT-At/8, lines": [0.1, 0.11, 0.1]}, "does not hold"),
    ],
)
def test_claims_are_judged(key: str, values: dict[str, list[float | None]], verdict: str) -> None:
    asked = claim(key)
    found = measured(asked.experiment, values)
    assert judge(asked, found, JUDGED).verdict == verdict
    assert judge(asked, found, SMOKE).verdict == "not judged"


def test_where_two_families_cross_is_told_with_how_sure_it_is() -> None:
    """2·n^−0.25 and 20·n^−0.625 meet at 464; then the other way round, without a crossing, and with a lost arm."""
    asked, whole = claim("crossing"), [arm.x for arm in paper.EXPERIMENTS["fig4"].arms(JUDGED)][2]
    assert whole is not None
    sizes, draws = {"100": 100, "400": 400, "all": whole}, np.random.default_rng(3)

    def note(net: tuple[float, float], vit: tuple[float, float], spread: float) -> str:
        values: dict[str, list[float | None]] = {}
        for model, (a, b) in (("BiT-R14x0.25", net), ("ViT-At/8", vit)):
            for label, size in sizes.items():
                errors = a * size**-b * (1 + spread * draws.standard_normal(3))
                values[f"{model}, {label}"] = list(1 - errors)
        return judge(asked, measured("fig4", values), JUDGED).note

    slow, fast = (2.0, 0.25), (20.0, 0.625)
    said = note(slow, fast, 0.001)
    assert said.startswith(
        "By their fitted curves: The plain ViT (ViT-At/8) overtakes the ResNet (BiT-R14x0.25) at about 46"
    )
    assert said.endswith("].")
    assert "The ResNet (BiT-R14x0.25) overtakes the plain ViT (ViT-At/8)" in note(fast, slow, 0.001)
    assert " or more]" in note(slow, (2.0 * 5000**0.1, 0.35), 0.02), "an end beyond the reach is not left unsaid"
    assert note((1.0, 0.25), slow, 0.001) == (
        f"By their fitted curves: The ResNet (BiT-R14x0.25) is ahead of the plain ViT (ViT-At/8) from 100 to {10 * whole:,.0f} "
        "pictures: no crossing in reach."
    )
    lost: dict[str, list[float | None]] = {f"ViT-At/8, {label}": [None] * 3 for label in ("100", "all")}
    assert judge(asked, measured("fig4", lost), JUDGED).note == ""


def over_compute(vit: Sequence[float], net: Sequence[float], *, lost: str = "") -> list[Measured]:
    """What the large ViT and the small ResNet reach at each budget, the others far less; one arm has lost its second seed."""
    values: dict[str, list[float | None]] = {}
    for index, share in enumerate((0.125, 0.25, 0.5, 1)):
        for model, reached in (("ViT-Fe/8", vit), ("BiT-R14x0.25", net), ("ViT-At/8", None), ("BiT-R14x0.5", None)):
            near = reached[index] if reached is not None else 0.1
            seeds = [near, near + 0.01, near + 0.005]
            values[f"{model}, {share:g} of the budget"] = list(reversed(seeds) if "BiT" in model else seeds)
    if lost:
        values[lost][1] = None
    return measured("fig5", values)


def test_compute_is_compared_at_equal_accuracy() -> None:
    """A curve that lies two budgets, four times the FLOPs, to the left; then the other way round; then nowhere near."""
    asked, early, late = claim("compute"), [0.5, 0.6, 0.7, 0.8], [0.3, 0.4, 0.5, 0.6]
    for values, verdict, ratio in (((early, late), "holds", 2.0), ((late, early), "does not hold", -2.0)):
        judged = judge(asked, over_compute(*values), JUDGED)
        assert judged.verdict == verdict
        assert judged.parts[0].estimate.value == pytest.approx(ratio)
    found = over_compute(early, late, lost="ViT-Fe/8, 1 of the budget")
    assert judge(asked, found, JUDGED).parts[0].estimate.value == pytest.approx(2.0), "that seed is left out of all"
    apart = judge(asked, over_compute(early, [0.1, 0.2, 0.3, 0.4]), JUDGED)
    [part] = apart.parts
    assert (apart.verdict, part.what) == ("holds", "FLOPs of ResNets ÷ FLOPs of ViTs, at least")
    assert part.estimate.value == pytest.approx(3.0, abs=0.03), "eight budgets of the smallest"
    [turned] = judge(asked, over_compute([0.1, 0.2, 0.3, 0.4], early), JUDGED).parts
    assert (turned.verdict, turned.what) == ("does not hold", "FLOPs of ResNets ÷ FLOPs of ViTs, at most")
    assert apart.note == (
        "ViTs reach more with the least compute than ResNets with the most: no accuracy is common. "
        "At equal compute the best ViT less the best ResNet is +40.0 points."
    )
    nothing = [dataclasses.replace(each, values=(None, None, None)) for each in found]
    assert judge(asked, nothing, JUDGED).verdict == "undecided"
    [alike] = judge(asked, over_compute(early, [0.49, 0.62, 0.69, 0.8]), JUDGED).parts
    assert alike.verdict == "undecided"
    assert alike.width == pytest.approx(0.1 * alike.estimate.half, rel=0.05), "ten points for each doubling"


def test_times_and_points_are_written_as_what_they_are() -> None:
    judged = judge(claim("compute"), over_compute([0.5, 0.6, 0.7, 0.8], [0.4, 0.5, 0.6, 0.7]), JUDGED)
    [part] = as_row(judged)["parts"]
    assert (part["unit"], part["value"]) == ("times", pytest.approx(2.0))
    assert told_difference(part).startswith("2\u202f× [")
    alone = dataclasses.replace(judged.parts[0], estimate=Estimate(1.0, -math.inf, math.inf))
    [part] = as_row(dataclasses.replace(judged, parts=(alone,)))["parts"]
    assert (told_difference(part), alone.verdict) == ("2\u202f×", "undecided")
    assert [page.gained(0.021, unit) for unit in ("points", "value", "times")] == ["+2.1", "+0.02", "0.021\u202f×"]
    assert page.gained(None, "times") == "–"


def test_places_of_an_axis_have_the_names_that_all_series_give_them() -> None:
    rows = [
        {"series": series, "label": f"{series}, {name}", "x": x}
        for series in ("ViT-B/16", "ViT-L/16")
        for x, name in ((1.0, "ImageNet"), (2.0, "JFT"))
    ]
    assert paper_page._named([*rows, {"series": "ViT-B/32", "label": "ViT-B/32, alone", "x": None}]) == {
        1: "ImageNet",
        2: "JFT",
    }
    assert paper_page._named([*rows, {"series": "ViT-B/32", "label": "ViT-B/32, other", "x": 2.0}]) == {}
    published = [vars(each) for each in paper.EXPERIMENTS["fig3"].published]
    assert paper_page._named(published) == {1: "ImageNet", 2: "ImageNet-21k", 3: "JFT-300M"}
    series = [charts.Series(0, [charts.Reading(1, 0.5, None, None), charts.Reading(2, 0.6, None, None)])]
    drawn = charts.accuracy_over(series, "set", "fig3", logarithmic=False, named=paper_page._named(rows))
    assert all(f">{name}<" in drawn for name in ("ImageNet", "JFT"))


def test_a_diverged_seed_is_left_out_of_its_pairs() -> None:
    found = measured("masked", {"masked patches": [0.6, None, 0.6], "supervised": [0.7, 0.2, 0.7]})
    judged = judge(claim("masked"), found, JUDGED)
    assert judged.parts[0].estimate.value == pytest.approx(0.1)


def test_looks_are_few_and_fixed_before() -> None:
    # What comes between two looks is not looked at: the fourth and fifth seed would turn it.
    asked, low = claim("resolution"), [0.5] * 5
    found = measured("resolution", {"tuned at 32 px": low, "tuned at 48 px": [0.6, 0.61, 0.6, 0.1, 0.1]})
    judged = judge_by_looks(asked, found, JUDGED)
    assert judged is not None
    assert (judged.verdict, judged.seeds, judged.level) == ("holds", 3, 0.95)
    assert judge(asked, found, JUDGED).verdict == "undecided"
    assert judge_by_looks(asked, measured("resolution", {}, seeds=2), JUDGED) is None


@pytest.mark.parametrize(
    ("high", "verdict", "seeds", "level"),
    [
        ([0.6, 0.61, 0.605, 0.45, 0.62, 0.6], "holds", 3, 0.95),  # all six together say nothing
        ([0.6, 0.3, 0.5], "undecided", 3, 0.95),
        ([0.6, 0.3, 0.5, *[0.1] * 8], "undecided", 6, 0.99),
        ([0.7, 0.3, 0.5] * 4, "undecided", 12, 0.99),
        ([0.7, 0.5, 0.7, 0.7, 0.7, 0.7, *[0.1] * 6], "holds", 6, 0.99),
    ],
)
def test_the_first_look_that_decides_is_the_last(high: list[float], verdict: str, seeds: int, level: float) -> None:
    low = [0.5] * len(high)
    judged = judge_by_looks(
        claim("resolution"), measured("resolution", {"tuned at 32 px": low, "tuned at 48 px": high}), JUDGED
    )
    assert judged is not None
    assert (judged.verdict, judged.seeds, judged.level) == (verdict, seeds, level)


def test_an_experiment_alone_is_judged_as_among_all_claims(
    ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its second look leaves open six seeds do not decide by an interval of one look."""
    higher = [0.6, 0.52, 0.62, 0.55, 0.59, 0.51]
    found = measured("resolution", {"tuned at 32 px": [0.5] * 6, "tuned at 48 px": list(higher)}, seeds=6)
    assert judge(claim("resolution"), found, JUDGED).verdict == "holds"
    monkeypatch.setattr(
        reproduce,
        "_measure",
        lambda *of: [dataclasses.replace(each, values=each.values[: len(of[3])]) for each in found],
    )
    for seeds, expected in ((6, ("undecided", 6, 0.99)), (3, ("undecided", 3, 0.95)), (2, ("undecided", 2, 0.95))):
        path = reproduce.run_one(paper.EXPERIMENTS["resolution"], JUDGED, tmp_path, seeds=seeds)
        [row] = json.loads(path.read_text())["claims"]
        assert (row["verdict"], row["seeds"], row["level"]) == expected


def test_looking_again_errs_little_more_often_than_looking_once() -> None:
    """Of claims about nothing 6 in 100 are decided; a look after every seed would decide 18."""
    draws = np.random.default_rng(1).standard_normal((40_000, LOOKS[-1][0] * 3))

    def decided(looks: Sequence[tuple[int, float]]) -> float:
        found = np.zeros(len(draws), dtype=bool)
        for seeds, level in looks:
            some = draws[:, :seeds]
            found |= np.abs(some.mean(1)) > stats.t.ppf((1 + level) / 2, seeds - 1) * stats.sem(some, axis=1)
        return float(found.mean())

    assert decided([(times * 3, level) for times, level in LOOKS]) == pytest.approx(0.063, abs=0.004)
    assert decided([(seeds, 0.95) for seeds in range(3, 13)]) == pytest.approx(0.18, abs=0.01)


def test_a_claim_of_many_differences_is_not_refuted_more_often_by_chance() -> None:
    """Of nothing: by intervals of one alone the four differences would refute it in 11 of 100, and now do in 5.

    It would be less, were the best of two not chosen by the seeds that it is compared with.
    """
    draws, asked = np.random.default_rng(0), dataclasses.replace(claim("hybrids"), note=lambda *_: "")
    arms, found = paper.EXPERIMENTS["fig5"].arms(JUDGED), dict.fromkeys(("refuted", "by one"), 0)
    for _ in range(400):
        values = 0.5 + 0.02 * draws.standard_normal((1, 3)) + 0.02 * draws.standard_normal((len(arms), 3))
        judged = judge(
            asked, [Measured(arm, tuple(row)) for arm, row in zip(arms, values.tolist(), strict=True)], JUDGED
        )
        found["refuted"] += judged.verdict == "does not hold"
        found["by one"] += "does not hold" in [part.verdict for part in judged.parts]
    assert found["by one"] / 400 > 0.08
    assert found["refuted"] / 400 < 0.07


def test_what_refutes_a_claim_needs_as_much_as_there_are_differences() -> None:
    """Of two differences one lies 4.6 standard errors below zero: 4.3 are enough for one alone, and 6.2 for two."""
    low = {"masked patches": [0.6, 0.61, 0.6]}
    near = {**low, "supervised": [0.59, 0.59, 0.588]}
    judged = judge(claim("masked"), measured("masked", near), JUDGED)
    assert [part.verdict for part in judged.parts] == ["holds", "does not hold"]
    assert (judged.verdict, judged.width) == ("undecided", pytest.approx(judged.parts[1].estimate.half))
    assert judge(claim("masked"), measured("masked", {**low, "supervised": [0.58, 0.59, 0.58]}), JUDGED).verdict == (
        "does not hold"
    )


def test_seeds_go_where_the_interval_is_widest() -> None:
    """The scale's seeds for each, in order; then the widest of what is undecided, where there is time for more."""
    least = {"masked": 3, "resolution": 3}

    def found(masked: list[float], high: list[float]) -> dict[str, list[Measured]]:
        labels: dict[str, list[float | None]] = {
            "from nothing": [0.5] * len(masked),
            "masked patches": list(masked),
            "supervised": [0.9 + 0.01 * i for i in range(len(masked))],
        }
        tuned: dict[str, list[float | None]] = {"tuned at 48 px": list(high), "tuned at 32 px": [0.5] * len(high)}
        return {
            "masked": measured("masked", labels),
            "resolution": measured("resolution", tuned),
            "fig3": [Measured(arm, ()) for arm in paper.EXPERIMENTS["fig3"].arms(JUDGED)],
        }

    def following(masked: list[float], high: list[float], more: bool = False) -> str | None:
        return reproduce._next(found(masked, high), least, JUDGED, more=more)

    assert following([], []) == "masked"
    assert following([0.6, 0.5], []) == "masked"
    assert following([0.6, 0.5, 0.6], [0.6]) == "resolution"
    wide, narrow, sure = [0.6, 0.3, 0.5], [0.5, 0.51, 0.5], [0.6, 0.61, 0.6]
    assert following(wide, narrow) is None
    assert following(wide, narrow, more=True) == "masked"
    assert following(narrow, wide, more=True) == "resolution"
    assert following([*wide, 0.6], narrow, more=True) == "masked", "until its next look"
    assert following(sure, sure, more=True) is None, "nothing is undecided"
    assert following(wide * 4, sure, more=True) is None, "no look is left"
    least["resolution"] = 6
    assert following(wide, sure) == "resolution", "these are there"
    assert following(wide, sure * 2) is None


def test_seeds_that_were_bought_are_not_forgotten(ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without minutes nothing more is bought, and what there is counts."""
    monkeypatch.setattr(Trials, "_few_shot", lambda self, outcome, data: 0.5)
    monkeypatch.setattr(Trials, "_inside", lambda self, outcome, arm, seed: 0.5)
    reproduce.run_one(paper.EXPERIMENTS["resolution"], JUDGED, tmp_path, seeds=6)
    reproduce.run_one(paper.EXPERIMENTS["patch"], JUDGED, tmp_path, seeds=5)
    count = len(ran)
    told = json.loads(reproduce.run_claims(JUDGED, tmp_path).read_text())
    seeds = {row["experiment"]: row["seeds"] for row in told["claims"]}
    assert (seeds.pop("resolution"), set(seeds.values())) == (6, {3})
    assert count < len(ran), "the others are run"
    assert all(recipe.seed < 3 for recipe, _ in ran[count:])


def test_what_a_claim_cost_has_its_searches_in_it(ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a second each: three patches of three seeds, and six trials or more of the rate of each; whoever ran them."""
    monkeypatch.setattr(Trials, "_few_shot", lambda self, outcome, data: 0.5)
    monkeypatch.setattr(Trials, "_inside", lambda self, outcome, arm, seed: 0.5)
    for _ in range(2):
        told = json.loads(reproduce.run_claims(JUDGED, tmp_path).read_text())
        [row] = [row for row in told["claims"] if row["experiment"] == "patch"]
        arms = paper.EXPERIMENTS["patch"].arms(JUDGED)
        runner = Trials(Grid(tmp_path), JUDGED)
        places = {f"search/{runner.steps(arm, 0)[0].kind}" for arm in arms}
        searched = {out for _, out in ran if str(out.parent.relative_to(tmp_path)) in places}
        assert (len(places), len(searched) >= 3 * 6) == (3, True)
        assert (row["seconds"], row["flops"]) == (3 * 3 + len(searched), 1e12 * (3 * 3 + len(searched)))


@pytest.mark.usefixtures("sgd_diverges")
def test_what_diverges_is_not_waited_for(ran: Ran, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With SGD no run ends, so none is tuned: the searches for their rates have ended, and six seeds of the others are there."""
    experiment = paper.EXPERIMENTS["adam-vs-sgd"]
    reproduce.run_one(experiment, JUDGED, tmp_path, seeds=6)
    count = len(ran)
    capsys.readouterr()
    path = reproduce.run_one(experiment, JUDGED, tmp_path, seeds=6, publish=write_paper)
    assert len(ran) == count
    arms = json.loads(path.read_text())["arms"]
    assert [arm["why"] for arm in arms] == ["", "diverged"] * 2
    assert [arm["expected"] for arm in arms] == [89.33, 88.79, 94.01, 93.72], "Table 7, whatever the models here"
    page = path.with_suffix(".html").read_text()
    assert page.count('<span class="none">diverged</span>') == 2
    assert page.count('class="none">diverged</text>') == 2
    assert f"{count} runs, {count} of them finished\n" in capsys.readouterr().err
    assert reproduce._seeds_there(Trials(Grid(tmp_path), JUDGED), experiment.arms(JUDGED)) == 6


def test_the_cheapest_comes_first_and_what_it_costs_is_said_before(
    ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Trials, "_few_shot", lambda self, outcome, data: 0.5)
    monkeypatch.setattr(Trials, "_inside", lambda self, outcome, arm, seed: 0.5)
    seconds = {"adam-vs-sgd": "BiT", "fig5": "C3+"}

    def told(grid: Grid, work: grids.Cell | grids.Extra) -> float:
        if isinstance(work, grids.Extra):
            return 0.05
        return 100.0 if any(name in work.place for name in seconds.values()) else 1.0 + work.recipe.seed

    monkeypatch.setattr(Grid, "seconds", told)
    reproduce.run_claims(SMOKE, tmp_path)
    said = capsys.readouterr().err.splitlines()
    begun = next(place for place, line in enumerate(said) if line.startswith(f"{tmp_path}: "))
    before, order = said[:begun], [line.split(":")[0] for line in said[begun:] if line.endswith(": seed 0")]
    assert [line.split(",")[0] for line in before] == order
    assert order[:5] == ["fig7", "resolution", "patch", "position", "masked"]
    assert before[0] == (
        "fig7, 12 arms × 1 seed, 2 runs: about 2.6 s. Attention distance grows with depth. Position embeddings learn rows and "
        "columns."
    )
    assert "position, 4 arms × 1 seed, 3 runs: about 3.0 s." in before[3], "one arm is that of fig7"
    assert order[-1] == "fig5"
    runs = sum(int(line.split(" runs")[0].rpartition(" ")[2]) for line in before)
    assert runs == len(ran) == len({out for _, out in ran})


def test_what_is_measured_beside_the_runs_is_in_the_estimate(
    ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A millisecond a picture: all test pictures of each arm and those that three seeds draw, 16 × (120 + 5·8·3)."""
    monkeypatch.setattr(Trials, "_few_shot", lambda self, outcome, data: 0.5)
    arms = paper.EXPERIMENTS["fig4"].arms(SMOKE)
    test = len(open_data(SMOKE.sets["tune"]).splits["test"])
    runner = Trials(Grid(tmp_path), SMOKE)
    extras = runner.extras(arms, range(1))
    assert [extra.pictures for extra in extras.values()] == [test + 5 * 8 * 3] * len(arms)
    assert runner.grid.expected(extras.values()) == pytest.approx(len(arms) * (test + 120) / 1000)
    known, _ = runner.ahead(arms, range(1))
    alone = runner.grid.expected(known.values())
    runner.grid.begin(list(known.values()), extras=list(extras.values()))
    assert runner.grid._left == pytest.approx(alone + len(arms) * (test + 120) / 1000)
    runner.measure(arms, range(1))
    assert runner.grid._left == pytest.approx(0)
    assert runner.extras(arms, range(1)) == {}, "what is known takes no time"
    inner = runner.extras(paper.EXPERIMENTS["fig7"].arms(SMOKE), range(1))
    assert (len(inner), {extra.pictures for extra in inner.values()}) == (12, {128})


def test_data_sets_follow_one_another(ran: Ran, tmp_path: Path) -> None:
    """All of a seed's pre-training, then all of its tuning: a data set is decoded once and not once an arm."""
    reproduce.run_one(paper.EXPERIMENTS["table2"], SMOKE, tmp_path)
    sets = [recipe.data for recipe, _ in ran]
    assert len(sets) == 3 + 9
    assert sum(one != other for one, other in itertools.pairwise(sets)) == len(set(sets)) - 1 == 3


def test_time_that_is_over_ends_between_two_runs_and_the_same_command_goes_on(
    ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Trials, "_few_shot", lambda self, outcome, data: 0.5)
    monkeypatch.setattr(Trials, "_inside", lambda self, outcome, arm, seed: 0.5)
    with monkeypatch.context() as patch:
        patch.setattr(grids.time, "monotonic", lambda: float(len(ran)))  # a run takes a second
        path = reproduce.run_claims(SMOKE, tmp_path, minutes=0.2, publish=write_paper)
    assert len(ran) == 13
    assert "the 0.2 minutes are over; the same command goes on" in capsys.readouterr().err
    whys = [row["why"] for row in json.loads(path.read_text())["claims"]]
    assert whys.count("not run yet") == 7
    assert path.with_suffix(".html").is_file()
    done = [out for _, out in ran]
    reproduce.run_claims(SMOKE, tmp_path, minutes=10)
    assert not set(done) & {out for _, out in ran[13:]}
    assert len(ran) == 76


def test_all_claims_in_one_go(ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trials, "_few_shot", lambda self, outcome, data: 0.5)
    monkeypatch.setattr(Trials, "_inside", lambda self, outcome, arm, seed: 0.5)
    path = reproduce.run_claims(SMOKE, tmp_path, publish=write_paper)
    told = json.loads(path.read_text())
    assert [row["verdict"] for row in told["claims"]] == ["not judged"] * 12
    assert {row["seeds"] for row in told["claims"]} == {1}
    page = path.with_suffix(".html").read_text()
    assert "At this scale nothing is judged" in page
    table = path.with_suffix(".md").read_text()
    assert "3 seconds of training" in page
    assert {row["experiment"]: (row["seconds"], row["flops"]) for row in told["claims"]}["patch"] == (3.0, 3e12)
    [patch] = [line.split(" | ") for line in table.splitlines() if "Smaller patches" in line]
    assert (patch[1], patch[3], patch[4]) == ("**not judged**", "1", "3 seconds, 3\u00a0TFLOP")
    assert table == claims_table(told)
    assert table.count("\n") == 14
    for name in {each.experiment for each in CLAIMS}:
        assert (tmp_path / f"{name}.html").is_file()
        ElementTree.parse(tmp_path / f"{name}.svg")
    published = {path.name.removesuffix("-published.svg") for path in tmp_path.glob("*-published.svg")}
    assert {"position", "masked", "adam-vs-sgd"} < published < {each.experiment for each in CLAIMS}
    ElementTree.parse(tmp_path / "position-published.svg")
    count = len(ran)
    reproduce.run_claims(SMOKE, tmp_path)
    assert len(ran) == count


def test_the_shown_command_asks_the_same(ran: Ran, tmp_path: Path) -> None:
    folder = tmp_path / "my study"
    path = reproduce.run_one(paper.EXPERIMENTS["masked"], SMOKE, folder, seeds=2)
    asked = ["patchword", "paper", "masked", "--scale", "smoke", "--seeds", "2", "--out"]
    assert command(read_fields(path), Path("my study")) == [*asked, "'my study'"]
    path = reproduce.run_claims(SMOKE, folder, minutes=0.0, publish=write_paper)
    asked = ["patchword", "paper", "claims", "--scale", "smoke", "--minutes", "0", "--out"]
    assert command(read_fields(path), Path("out")) == [*asked, "out"]
    assert "<span>--out</span>" in path.with_suffix(".html").read_text()
    told = vtab.experiment(create_model("ViT-At/8", 5, (24, 16)), "w", lite=False, data={"dmlab": "a/b"})
    path = reproduce.write_experiment(folder, told, SMOKE, [Measured(told.arms(SMOKE)[0], (0.5,))], {}, [])
    assert "--data dmlab=a/b --out" in " ".join(command(read_fields(path), Path("out")))


def test_minutes_end_where_they_are_over(
    ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = reproduce.run_claims(JUDGED, tmp_path, minutes=0.0)
    assert not ran
    told = json.loads(path.read_text())
    assert {row["why"] for row in told["claims"]} == {"not run yet"}
    assert "the 0 minutes are over; the same command goes on" in capsys.readouterr().err


# The front door and the pages


def test_figures_of_what_is_inside_are_those_of_the_explanations(toy_vit: ViT) -> None:
    """Over the pictures of a split; of the same network untrained the mean of nine, others for each seed."""
    split = open_data("formula:shapes-3x10@24").splits["test"]
    pixels = np.stack([toy_vit.preprocessing.fit(decode(split.read(index), 3)) for index in range(len(split))])
    depth = depth_trend(head_figures(toy_vit, as_images(toy_vit, pixels)).distance).correlation
    lines = grid_structure(position_table(toy_vit).numpy(), toy_vit.grid)
    found = [inside.figure(name, toy_vit, split) for name in inside.FIGURES]
    assert found == [depth, lines.additive, lines.aligned]
    controls = {inside.figure("grid", toy_vit, split, new_weights=seed) for seed in (0, 1, 0)}
    assert len(controls) == 2
    assert lines.additive not in controls
    draws = []
    for seed in range(9, 18):
        new = untrained(toy_vit, torch.empty(0), seed)
        assert isinstance(new, ViT)
        draws.append(grid_structure(position_table(new).numpy(), new.grid).additive)
    assert inside.figure("grid", toy_vit, split, new_weights=1) == pytest.approx(np.mean(draws))
    assert np.mean(draws) == pytest.approx(lines.additive_by_chance, abs=0.03)


def test_shipped_weights_say_what_they_have() -> None:
    """Beside the same networks untrained: a rotary ViT whose heads begin as looks at neighbours, and a hybrid's positions."""
    depth, lines = inside.shipped_depth(), inside.shipped_lines()
    assert "small-hybrid has a single layer, and so no trend" in depth
    assert (
        "in small-plain distance (5.5 px in the first layer, 16.5 in the last) and depth correlate by 0.83, untrained by 0.09, "
        "and by as much in 0.001 of the orders of its layers" in depth
    )
    assert (
        "in small-hybrid rows and columns explain 0.58 of the variance, untrained 0.41, of that of shuffled patches 0.40"
        in lines
    )
    assert "patches of a line are more alike by 0.22, untrained by 0.00 (p = 0.002)" in lines
    assert "small-plain" not in lines  # it turns queries and keys, and has no embedding


@pytest.fixture
def toy_vit() -> ViT:
    """Untrained, but for positions that know rows and columns."""
    model = create_model(
        "ViT-At/8", 3, (24, 32), depth=3, embed_dim=16, num_heads=2, mlp_dim=16, pool="token", position="1d"
    )
    assert isinstance(model, ViT)
    model.reset()
    table = next(parameter for name, parameter in model.named_parameters() if name.startswith("position."))
    rows, columns = np.random.default_rng(0).normal(size=(3, 1, 16)), np.random.default_rng(1).normal(size=(1, 4, 16))
    with torch.no_grad():
        table[..., -12:, :] = torch.from_numpy(rows + columns).reshape(12, 16).float()
    return model


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["fig6"], "the paper has no 'fig6'; did you mean 'fig"),
        (["vtab"], "patchword paper vtab MODEL is right"),
        (["position", "runs/x"], "position trains its own models"),
        (["position", "--minutes", "3"], "--minutes is for claims"),
        (["claims", "--minutes", "0"], "--minutes 0.0 must be greater than 0"),
        (["claims", "--seeds", "3"], "--seeds is not for claims"),
        (["position", "--seeds", "0"], "--seeds 0 must be 1 or more"),
        (["position", "--data", "a=b"], "--data says where tasks of vtab are, and is not for position"),
        (["vtab", "nowhere", "--data", "photos/dmlab"], "--data 'photos/dmlab' is not of the form TASK=DATA, such as"),
        (["vtab", "nowhere", "--data", "dmlap=x"], "VTAB has no such task; did you mean 'dmlab'?"),
        (["position", "--scale", "desk"], "--scale 'desk' is not known"),
    ],
)
def test_wrong_questions_are_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["paper", *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_places_of_tasks_are_taken_letter_for_letter() -> None:
    assert _places(["dmlab=2024_10", "pets=a=b.toml"]) == {"dmlab": "2024_10", "pets": "a=b.toml"}


def test_large_costs_are_told_in_full() -> None:
    told = [reproduce._figures(value, 3) for value in (3583.2, 1.79e6, 0.12345, 12.0)]
    assert told == ["3,580", "1,790,000", "0.123", "12"]


def test_table1_is_the_papers(tmp_path: Path) -> None:
    told = json.loads(write_table1(tmp_path).read_text())
    for row in told["rows"]:
        assert row["expected"] == row["obtained"]
        assert row["params"] / 1e6 == pytest.approx(row["published"], rel=0.02)
    page = patchword_paper("table1", scale="smoke", out=tmp_path / "out").read_text()
    assert "86.6 M" in page
    assert "parameters,<br>expected" in page
    assert "ViT-H/14" in page


def test_the_sizes_lie_beside_the_other_experiments(ran: Ran, tmp_path: Path) -> None:
    """All share a folder, whichever comes first."""
    for order in (("table1", "position"), ("position", "table1")):
        pages = [patchword_paper(name, scale="smoke", out=tmp_path / order[0]) for name in order]
        assert [page.name for page in pages] == [f"{name}.html" for name in order]


def test_a_real_experiment_from_the_front_door(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained for real: masked patches, supervision and nothing, then tuned; each finds its weights."""
    monkeypatch.setattr(pages, "write_report", lambda _: None)  # the runs' own pages take most of the time
    little = dataclasses.replace(SMOKE, before=Budget(steps=2), after=Budget(steps=2), few=20)
    monkeypatch.setitem(scales.SCALES, "smoke", little)
    page = patchword_paper("masked", scale="smoke", out=tmp_path / "out")
    said = capsys.readouterr().err
    assert "masked at the scale smoke: 3 arms × 1 seed" in said
    assert "6 runs; about" in said
    results = [json.loads(path.read_text()) for path in (tmp_path / "out/cells").glob("*/result.json")]
    assert len(results) == 6
    tuned = [each for each in results if each["init"] != "none"]
    assert len(tuned) == 3
    assert all("/cells/ViT-At-8-training-" in each["init"] for each in tuned)
    text = page.read_text()
    assert "The scale smoke shows that the experiment runs" in text
    assert "79.90" in text


def test_pages_escape_what_others_named(ran: Ran, tmp_path: Path) -> None:
    path = reproduce.run_one(paper.EXPERIMENTS["masked"], SMOKE, tmp_path)
    told = json.loads(path.read_text())
    hostile = "<script>alert(1)</script>$x^2$"
    told["arms"][0]["label"] = hostile
    told["measures"] = hostile
    told["missing"] = {hostile: hostile}
    path.write_text(json.dumps(told))
    page = write_paper(path).read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;$x^2$" in page
    ElementTree.parse(path.with_suffix(".svg"))
    assert write_paper(path).read_text() == page


def test_dots_stand_where_their_values_are() -> None:
    rows = [
        charts.Row("a", 0, 0.25, 0.2, 0.3),
        charts.Row("b", 1, 0.75, None, None),
        charts.Row("c", 2, None, None, None),
    ]
    tree = ElementTree.fromstring(charts.standalone(charts.dots(rows, "title"), ":root { --ink: #000 }"))
    space = "{http://www.w3.org/2000/svg}"
    circles = [float(each.attrib["cx"]) for each in tree.iter(f"{space}circle")]
    ticks = {
        float(each.text.removesuffix(" %")): float(each.attrib["x"])
        for each in tree.iter(f"{space}text")
        if each.attrib["class"] == "tick" and each.text
    }
    per_point = (ticks[60] - ticks[20]) / 40
    assert circles[1] - circles[0] == pytest.approx(50 * per_point, abs=0.2)
    assert circles[0] == pytest.approx(ticks[20] + 5 * per_point, abs=0.2)
    assert [each.text for each in tree.iter(f"{space}text") if each.attrib["class"] == "none"] == ["missing"]


def test_an_interval_beyond_the_axis_has_an_arrow() -> None:
    """The first on both sides; a share's interval ends at 0 % whatever its formula says."""

    def lines(rows: list[charts.Row], percent: bool) -> list[int]:
        drawn = re.findall(r'd="([^"]*)" stroke="var\(--series', charts.dots(rows, "title", percent=percent))
        return [line.count("l") for line in drawn]

    rows = [charts.Row("a", 0, -0.2, -1.6, 1.2), charts.Row("b", 0, 0.3, 0.25, 0.4)]
    assert lines(rows, percent=False) == [4, 0]
    assert lines([charts.Row("a", 0, 0.005, -0.01, 0.02)], percent=True) == [0]
