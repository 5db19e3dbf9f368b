"""The paper's experiments: declared as published, run once each, judged as their intervals say, shown without surprises."""

import dataclasses
import json
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import patchword
from patchword import cli
from patchword.core.errors import DataError, UsageError
from patchword.data.vtab import LITE_TASKS, TASKS
from patchword.models.names import create_model
from patchword.reports import charts
from patchword.reports import run as pages
from patchword.reports.paper import claims_table, write_paper
from patchword.studies import grid as grids
from patchword.studies import paper, reproduce, vtab
from patchword.studies.claims import CLAIMS, Part, difference, judge
from patchword.studies.experiment import Arm, Measured, Stage, Trials
from patchword.studies.grid import Grid
from patchword.studies.statistics import Estimate
from patchword.training import estimate as estimates
from patchword.training import loop
from patchword.training.recipe import Budget, Recipe
from patchword.weights.io import save_model

SMOKE, LAPTOP, FULL = (paper.SCALES[name] for name in ("smoke", "laptop", "full"))
JUDGED = dataclasses.replace(SMOKE, seeds=3, searched=True, verdicts=True)
"""The data of the smallest scale, all else as at the next."""

Ran = list[tuple[Recipe, Path]]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Ran:
    """What would have been trained; each run reaches what a hash of its recipe says, near one half."""
    made: Ran = []

    def run(recipe: Recipe, out: Path, **_: Any) -> Path:
        made.append((recipe, out))
        value = 0.4 + int(recipe.identity()[:4], 16) / 2**16 / 5
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
        "masked": 77.9,
        "fig3": 77.91,
        "fig5": 80.73,
        "table2": 88.55,
        "fig2": 86.69,
    }


@pytest.mark.parametrize("scale", paper.SCALES.values(), ids=lambda scale: scale.name)
@pytest.mark.parametrize("name", paper.EXPERIMENTS)
def test_every_experiment_is_declared_at_every_scale(name: str, scale: Any, tmp_path: Path) -> None:
    arms = paper.EXPERIMENTS[name].arms(scale)
    assert len({arm.label for arm in arms}) == len(arms) >= 2
    trials = Trials(Grid(tmp_path), scale)
    for arm in arms:
        for step in trials.steps(arm, 1):
            assert step.recipe.seed == (0 if arm.one_start and not step.origin else 1)
            budget = step.recipe.budget
            assert budget.steps or budget.pflop or budget.epochs


def test_the_full_scale_costs_what_the_paper_says() -> None:
    """ViT-B/16 on ImageNet-21k: 90 epochs of 14.2 M pictures of 35.1 GFLOP, three times; our last block saves 7 %."""
    arm = Arm(label="b", series="b", model="ViT-B/16", before=Stage(data="imagenet21k"))
    trials = Trials(Grid(Path("nowhere")), FULL)
    flops = paper.flops_of([arm], trials, 1)
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
    assert {arm.before.steps for arm in by_name["patch"] if arm.before} == {1500}
    assert [arm.x for arm in by_name["fig4"]][:4] == [500, 2000, 10_000, 50_000]
    assert all(arm.one_start for arm in by_name["table2"] + by_name["fig2"])
    assert len(by_name["fig2"]) == 3 * len(LITE_TASKS)


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
    assert len(ran) == 2 * (2 + 3)
    starts = {recipe.init for recipe, _ in ran}
    assert len(starts) == 1 + 4  # none, and two kinds of weights of two seeds
    before = len(ran)
    reproduce.run_one(paper.EXPERIMENTS["masked"], dataclasses.replace(scale, seeds=3), tmp_path)
    assert len(ran) == before + 5, "one seed more"
    reproduce.run_one(paper.EXPERIMENTS["fig3"], scale, tmp_path)
    third = {out.name for _, out in ran}
    reproduce.run_one(paper.EXPERIMENTS["table2"], scale, tmp_path)
    shared = [out for recipe, out in ran if recipe.init == "none" and out.name in third]
    assert len({out.name for out in shared}) == len(shared), "no folder is run twice"
    assert len({out for _, out in ran}) == len(ran)


def test_rates_are_searched_once_for_each_kind(ran: Ran, tmp_path: Path) -> None:
    """Four models are pre-trained with two optimizers and tuned: each of four kinds of start, and each model's tuning."""
    reproduce.run_one(paper.EXPERIMENTS["adam-vs-sgd"], JUDGED, tmp_path)
    searched = [(recipe, out) for recipe, out in ran if "search" in out.parts]
    assert len(searched) == (4 + 2) * 6
    assert all(recipe.evaluation.final == "validation" for recipe, _ in searched)
    cells = [recipe for recipe, out in ran if "cells" in out.parts]
    assert len(cells) == 3 * (4 + 4)
    assert {recipe.evaluation.final for recipe in cells} == {"test"}
    by_kind = {(r.model["name"], r.optimizer.name, r.init == "none"): set() for r in cells}
    for recipe in cells:
        by_kind[recipe.model["name"], recipe.optimizer.name, recipe.init == "none"].add(recipe.optimizer.lr)
    assert all(len(rates) == 1 for rates in by_kind.values())


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
    with pytest.raises(UsageError, match=r"holds another study \(paper is 'laptop', not 'smoke'\)"):
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
    monkeypatch.setattr(paper, "open_data", _there("vtab-lite:count", "vtab-lite:digits"))
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
    assert f"patchword paper vtab-lite {tmp_path / 'weights'} --scale smoke" in out.read_text()
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


def measured(name: str, values: Mapping[str, Sequence[float | None]], scale: Any = JUDGED) -> list[Measured]:
    """The arms of an experiment with values by their labels; those not named have the mean of nothing special, 0.5."""
    arms = paper.EXPERIMENTS[name].arms(scale)
    assert set(values) <= {arm.label for arm in arms}
    return [Measured(arm, tuple(values.get(arm.label, [0.5, 0.5, 0.5]))) for arm in arms]


def claim(key: str) -> Any:
    return next(each for each in CLAIMS if each.key == key)


def test_ten_claims_of_experiments_that_there_are() -> None:
    assert len({each.key for each in CLAIMS}) == len(CLAIMS) == 10
    assert {each.experiment for each in CLAIMS} <= set(paper.EXPERIMENTS)


def test_differences_are_taken_seed_by_seed() -> None:
    one, other = [0.5, None, 0.7, 0.9], [0.4, 0.1, 0.65, None]
    found = difference(one, other)
    low, high = stats.t.interval(0.95, 1, 0.075, stats.sem([0.1, 0.05]))
    assert (found.value, found.low, found.high) == pytest.approx((0.075, low, high))
    assert math.isnan(difference([None], [0.5]).value)
    assert Part("nothing", difference([None], [0.5])).verdict == "undecided"


@pytest.mark.parametrize(
    ("low", "high", "alike", "verdict"),
    [
        (0.001, 0.1, False, "holds"),
        (-0.001, 0.1, False, "undecided"),
        (-0.2, -0.001, False, "does not hold"),
        (-0.009, 0.009, True, "holds"),
        (-0.009, 0.02, True, "undecided"),
        (0.011, 0.02, True, "does not hold"),
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
        ("compute", {"ViT-Fe/8, 0.5 of the budget": [0.7, 0.7, 0.71]}, "holds"),
        ("compute", {"BiT-R14x0.25, 1 of the budget": [0.7, 0.7, 0.71]}, "does not hold"),
    ],
)
def test_claims_are_judged(key: str, values: dict[str, list[float | None]], verdict: str) -> None:
    asked = claim(key)
    found = measured(asked.experiment, values)
    assert judge(asked, found, JUDGED).verdict == verdict
    assert judge(asked, found, SMOKE).verdict == "not judged"


def test_a_diverged_seed_is_left_out_of_its_pairs() -> None:
    found = measured("masked", {"masked patches": [0.6, None, 0.6], "supervised": [0.7, 0.2, 0.7]})
    judged = judge(claim("masked"), found, JUDGED)
    assert judged.parts[0].estimate.value == pytest.approx(0.1)


def test_seeds_go_where_the_interval_is_widest() -> None:
    """Two seeds for all first; then the widest undecided, then only with more time."""
    lacking: dict[str, dict[str, str]] = {"masked": {}, "resolution": {}, "fig3": {"cifar10": "gone"}}

    def found(masked: list[float], high: list[float]) -> dict[str, list[Measured]]:
        base: list[float | None] = [0.5] * len(masked)
        labels = {
            "from nothing": base,
            "masked patches": list(masked),
            "supervised": [0.9 + 0.01 * i for i in range(len(masked))],
        }
        tuned = {"tuned at 48 px": list(high), "tuned at 32 px": [0.5] * len(high)}
        return {
            "masked": measured("masked", labels),
            "resolution": measured("resolution", tuned),
            "fig3": [Measured(arm, ()) for arm in paper.EXPERIMENTS["fig3"].arms(JUDGED)],
        }

    def following(masked: list[float], high: list[float], more: bool = False) -> str | None:
        return reproduce._next(found(masked, high), lacking, JUDGED, more=more)

    assert following([], []) == "masked"
    assert following([0.6, 0.5], [0.6]) == "resolution"
    assert following([0.6, 0.5], [0.5, 0.7]) == "resolution", "the wider of two"
    assert following([0.6, 0.3], [0.5, 0.51]) == "masked"
    assert following([0.6, 0.3, 0.5], [0.5, 0.51, 0.5]) is None
    assert following([0.6, 0.3, 0.5], [0.5, 0.51, 0.5], more=True) == "masked"
    sure = [0.6, 0.6, 0.6]
    assert following(sure, [0.6, 0.61, 0.6], more=True) is None, "nothing is undecided"
    assert following([0.6, 0.3] * 6, [0.6, 0.61, 0.6], more=True) is None, "as many as there may be"


def test_all_claims_in_one_go(ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trials, "_few_shot", lambda self, outcome, data: 0.5)
    path = reproduce.run_claims(SMOKE, tmp_path, publish=write_paper)
    told = json.loads(path.read_text())
    assert [row["verdict"] for row in told["claims"]] == ["not judged"] * 10
    assert {row["seeds"] for row in told["claims"]} == {1}
    page = path.with_suffix(".html").read_text()
    assert "At this scale nothing is judged" in page
    table = path.with_suffix(".md").read_text()
    assert table == claims_table(told)
    assert table.count("\n") == 12
    for name in {each.experiment for each in CLAIMS}:
        assert (tmp_path / f"{name}.html").is_file()
        ElementTree.parse(tmp_path / f"{name}.svg")
    count = len(ran)
    reproduce.run_claims(SMOKE, tmp_path)
    assert len(ran) == count


def test_minutes_end_where_they_are_over(
    ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = reproduce.run_claims(JUDGED, tmp_path, minutes=0.0)
    assert not ran
    told = json.loads(path.read_text())
    assert {row["why"] for row in told["claims"]} == {"not run yet"}
    assert "the 0 minutes are over; the same command goes on" in capsys.readouterr().err


# The front door and the pages


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["fig6"], "the paper has no 'fig6'; did you mean 'fig"),
        (["vtab"], "patchword paper vtab MODEL is right"),
        (["position", "runs/x"], "position trains its own models"),
        (["position", "--minutes", "3"], "--minutes is for claims"),
        (["claims", "--seeds", "3"], "--seeds is not for claims"),
        (["position", "--seeds", "0"], "--seeds 0 must be 1 or more"),
        (["position", "--data", "a=b"], "--data says where tasks of vtab are"),
        (["position", "--scale", "desk"], "--scale 'desk' is not known"),
    ],
)
def test_wrong_questions_are_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["paper", *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_table1_is_the_papers(tmp_path: Path) -> None:
    told = json.loads(reproduce.table1(tmp_path).read_text())
    for row in told["rows"]:
        assert row["expected"] == row["obtained"]
        assert row["params"] / 1e6 == pytest.approx(row["published"], rel=0.02)
    assert "85.8" not in told
    page = patchword_paper("table1", out=tmp_path).read_text()
    assert "86.6 M" in page
    assert "ViT-H/14" in page


def test_a_real_experiment_from_the_front_door(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained for real: masked patches, supervision and nothing, then tuned; each finds its weights."""
    monkeypatch.setattr(loop, "seconds_per_step", lambda *_: 0.01)
    monkeypatch.setattr(pages, "write_report", lambda _: None)  # the runs' own pages take most of the time
    little = dataclasses.replace(SMOKE, before=Budget(steps=2), after=Budget(steps=2), few=20)
    monkeypatch.setitem(paper.SCALES, "smoke", little)
    page = patchword_paper("masked", scale="smoke", out=tmp_path / "out")
    said = capsys.readouterr().err
    assert "masked at the scale smoke: 3 arms × 1 seed" in said
    assert "5 runs; about" in said
    results = [json.loads(path.read_text()) for path in (tmp_path / "out/cells").glob("*/result.json")]
    assert len(results) == 5
    tuned = [each for each in results if each["init"] != "none"]
    assert len(tuned) == 2
    assert all("/cells/ViT-At-8-training-" in each["init"] for each in tuned)
    assert {each["metric"] for each in results} == {"accuracy", "share_of_colours_found"} or len(results) == 5
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
    assert patchword.__name__ == "patchword"
