"""A comparison is fair, its figures are those of other hands, and its sentences say what the figures say."""

import dataclasses
import json
import math
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import patchword
from conftest import write_pictures
from made import MODELS, TEST, TRAIN, made
from patchword.core import config
from patchword.core.errors import DataError, DivergedError, UsageError
from patchword.data.decoding.decode import decode
from patchword.data.sources import open_data
from patchword.evaluation.answers import read_answers, write_answers
from patchword.evaluation.mistakes import thumbnail
from patchword.explanation.attention import rollout
from patchword.explanation.maps import as_images
from patchword.explanation.overlay import overlay
from patchword.models.cost import cost
from patchword.models.names import create_model
from patchword.reports import run as pages
from patchword.reports.study import command, warnings, write_study
from patchword.studies import answer as answers
from patchword.studies import compare as studies
from patchword.studies import disagreements, floor, telling
from patchword.studies.answer import answer, write_answer
from patchword.studies.cells import Cells
from patchword.studies.curves import REACH, fit_power_law
from patchword.studies.question import Question, ask, skeleton
from patchword.studies.search import Ahead, Found
from patchword.training.pictures import open_training_data
from patchword.training.recipe import Budget, Recipe
from patchword.weights.io import save_model

SMALL = {"model": {"depth": 1, "embed_dim": 16, "num_heads": 2, "mlp_dim": 16, "units": [1]}, "batch_size": 8}


def asked(data: Path, **changes: Any) -> Question:
    given: dict[str, Any] = {
        "models": ("ViT-At/8", "BiT-R14x0.25"),
        "sizes": ("12", "30", "all"),
        "image_size": (16, 16),
        "changes": SMALL,
        "stored": {},
    }
    return ask(str(data), dataset=open_data(data), **{**given, **changes})


# The question


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"models": ("ViT-At/8",)}, "ViT-At/8 alone cannot be compared"),
        ({"models": ()}, "--models names none; --models A,B would be right"),
        ({"models": ("ViT-At/8", "ViT-At/4", "ViT-At/8")}, "--models names ViT-At/8 twice"),
        ({"models": ("ViT-At/8", "ViX-At/8")}, "unknown model 'ViX-At/8'; did you mean"),
        (
            {"models": ("BiT-R14x0.25", "ViT-At/5")},
            "ViT-At/5 cannot be compared at 16×16: an image of 16×16 is not divided by",
        ),
        ({"sizes": ("73",)}, "--sizes 73 is more than the 72 training pictures of"),
        ({"sizes": ("2",)}, "--sizes 2 is fewer than the 3 classes of"),
        ({"sizes": ("12", "72", "all")}, "--sizes 12,72,all says a size twice"),
        ({"sizes": ("twelve",)}, "--sizes 'twelve' is not a number of pictures or all"),
        ({"sizes": ()}, "--sizes names none"),
        ({"sizes": ("0",)}, "--sizes '0' is not a number"),
        ({"seeds": 0}, "--seeds 0 must be 1 or more"),
        ({"changes": {"model": {"dept": 1}}}, "model.dept is a field of none of ViT-At/8, BiT-R14x0.25"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(pictures: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=re.escape(sentence)):
        asked(pictures, **changes)


def test_data_without_test_or_of_several_labels_is_refused(pictures: Path) -> None:
    dataset = open_data(pictures)
    for wrong, sentence in (
        (dataclasses.replace(dataset, splits={"train": dataset.splits["train"]}), "has no pictures to test on"),
        (dataclasses.replace(dataset, multi_label=True), "has several labels a picture"),
    ):
        with pytest.raises(UsageError, match=sentence):
            ask("x", ("ViT-At/8", "ViT-At/4"), ("all",), dataset=wrong, stored={})


def test_what_is_left_open_is_chosen_once(pictures: Path) -> None:
    """The size fits all models; the budget is 30 epochs of the dearest, three figures of it."""
    models = ("ViT-At/6", "ViT-At/4", "BiT-R14x0.25")
    first = asked(pictures, image_size=None, models=models)
    assert first.image_size == (24, 24)
    bones = [skeleton(name, "scratch", SMALL, (24, 24), 3) for name in first.models]
    dearest = max(cost(each).forward_flops for each in bones)
    assert first.budget.pflop == pytest.approx(30 * 72 * 3 * dearest / 1e15, rel=5e-3)
    assert first.sizes == (12, 30, 0)
    stored = first.settings("abc")
    more = asked(pictures, image_size=None, models=(*models, "ViT-Fe/4"), stored=stored)
    assert (more.budget, more.image_size) == (first.budget, first.image_size)
    pretrained = asked(pictures, pretrain="formula:shapes-2x5", budget=Budget(pflop=0.25))
    assert (pretrained.recipe, pretrained.pretrain_budget) == ("finetune", Budget(pflop=1.0))


# The cells


@pytest.fixture
def toy(pictures: Path, tmp_path: Path) -> studies.Study:
    grid = studies.Grid(tmp_path / "study")
    dataset, _ = grid.shelf.open(str(pictures))
    question = asked(pictures, budget=Budget(pflop=4e-5), seeds=3, sizes=("6", "30", "72"))
    return studies.Study(question, grid, dataset)


def pictures_of(study: studies.Study, model: str, size: int, seed: int) -> set[bytes]:
    opened = open_training_data(study.cell(model, size, seed).recipe)
    return set(opened.dataset.splits["train"].keys())


def test_sizes_lie_in_one_another_and_are_the_same_for_all_models(toy: studies.Study) -> None:
    for seed in range(3):
        small, middle, whole = (pictures_of(toy, "ViT-At/8", size, seed) for size in toy.question.sizes)
        assert (len(small), len(middle), len(whole)) == (6, 30, 72)
        assert small < middle < whole
        assert small == pictures_of(toy, "BiT-R14x0.25", 6, seed)
        for part in (small, middle):
            classes = [sum(name.split(b"/")[1] == each for name in part) for each in (b"ant", b"bee", b"cat")]
            assert classes == [len(part) // 3] * 3
    drawn = [pictures_of(toy, "ViT-At/8", 6, seed) for seed in range(3)]
    assert len(set(map(frozenset, drawn))) == 3


def test_the_cells_of_models_differ_in_nothing_but_model_and_rate(toy: studies.Study) -> None:
    rounds = [next(toy.rounds({"ViT-At/8": 1.5, "BiT-R14x0.25": 0.5})) for _ in range(2)]
    assert rounds[0] == rounds[1]
    by_model = [
        [cell.recipe for cell in rounds[0] if cell.recipe.model["name"] == name] for name in toy.question.models
    ]
    assert [len(each) for each in by_model] == [5, 5]
    for one, other in zip(*by_model, strict=True):
        assert (one.optimizer.lr, other.optimizer.lr) == (0.003, 0.001)
        alike = [
            dataclasses.replace(each, model={}, optimizer=dataclasses.replace(each.optimizer, lr=1.0, matrix_lr=1.0))
            for each in (one, other)
        ]
        assert alike[0] == alike[1]
    assert [cell.recipe.budget.pflop for cell in rounds[0][::2]] == [4e-5, 4e-5, 4e-5, 1e-5, 2e-5]
    assert by_model[0][0].model == {"pool": "gap", "position": "sincos", "name": "ViT-At/8", **{
        field: value for field, value in SMALL["model"].items() if field != "units"
    }}  # fmt: skip
    assert by_model[1][0].model == {"name": "BiT-R14x0.25", "units": [1]}


def test_rates_are_chosen_on_validation_or_a_tenth_of_train(toy: studies.Study, tmp_path: Path) -> None:
    assert toy.middle == 30
    tried = toy.tried("ViT-At/8")
    assert (tried.validation_share, tried.train_images, tried.seed) == (0.0, 30, 0)
    write_pictures(tmp_path / "bare" / "train", ("ant", "bee"), 10)
    write_pictures(tmp_path / "bare" / "test", ("ant", "bee"), 4, seed=1)
    grid = studies.Grid(tmp_path / "other")
    dataset, _ = grid.shelf.open(str(tmp_path / "bare"))
    for sizes, few in ((("4", "10", "all"), 10), (("19", "all"), 0), (("all",), 0)):
        study = studies.Study(asked(tmp_path / "bare", sizes=sizes), grid, dataset)
        tried = study.tried("ViT-At/8")
        assert (tried.validation_share, tried.train_images) == (0.1, few)
        splits = open_training_data(tried).dataset.splits
        assert len(splits["validation"]) == 2
        assert not set(splits["train"].keys()) & set(splits["validation"].keys())


# The command


def test_compare_from_the_front_door(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With pre-training: all spend the same FLOPs there and here, to a step; more seeds go on from what is there."""
    monkeypatch.setattr(pages, "write_report", lambda _: None)  # the runs' own pages take most of the time
    arguments: dict[str, Any] = {
        "models": ["ViT-At/8", "BiT-R14x0.25"],
        "sizes": [12, "all"],
        "image_size": 16,
        "pflop": 4.4e-8,
        "pretrain": "formula:shapes-2x10@16",
        "pretrain_pflop": 8.8e-8,
        "set": {f"model.{name}": value for name, value in SMALL["model"].items()} | {"batch_size": 8},
    }
    out = patchword.compare(pictures, out=tmp_path / "study", seeds=1, **arguments)
    said = capsys.readouterr().err
    assert "4.4e-08 PFLOP a run, pre-trained on formula:shapes-2x10@16 for 8.8e-08 PFLOP" in said
    assert "With your 72 training pictures and 0.044 GFLOP a model" in said
    results = {
        path.parent.relative_to(out).as_posix(): json.loads(path.read_text()) for path in out.rglob("result.json")
    }
    for room, budget in (("pretrain", 8.8e7), ("runs", 4.4e7)):
        spent = [each["train_flops"] for place, each in results.items() if place.startswith(f"{room}/")]
        assert len(spent) == (2 if room == "pretrain" else 4)
        for flops in spent:
            assert budget * 0.75 < flops <= budget
    starts = {place: each["init"] for place, each in results.items() if place.startswith("runs/")}
    for place, start in starts.items():
        model = "ViT-At-8" if "ViT" in place else "BiT-R14x0.25"
        assert f"/pretrain/{model} (" in start
    floor = json.loads((out / "floor.json").read_text())
    assert set(floor) == set(starts)
    [first, *_] = json.loads((out / "study.json").read_text())["models"]
    assert first["points"][0]["probe"] == floor["runs/ViT-At-8-12-0"]
    page = (out / "report.html").read_text()
    assert "Every model begins with weights of its own that were made on formula:shapes-2x10@16" in page
    before = {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    with pytest.raises(UsageError, match=r"holds another study \(sizes: 12,all there, all asked for\)"):
        patchword.compare(pictures, out=out, **{**arguments, "sizes": "all"})
    with pytest.raises(UsageError, match=r"\(budget: pflop=4.4e-08 there, pflop=3e-05 asked for\)"):
        patchword.compare(pictures, out=out, **{**arguments, "pflop": 3e-5})
    patchword.compare(pictures, out=out, seeds=2, **arguments)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(out.glob("runs/*/result.json"))) == 8
    (pictures / "train/ant/000.png").unlink()
    with pytest.raises(UsageError, match="holds a study of other data .* or .* has changed since"):
        patchword.compare(pictures, out=out, seeds=2, **arguments)


def test_all_models_are_pretrained_on_the_same_pictures(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that comes later would begin with what was learned from fewer."""
    monkeypatch.setattr(studies.Study, "begin", lambda _: None)
    monkeypatch.setattr(studies.Study, "run", lambda *_: None)
    write_pictures(tmp_path / "before" / "train", ("oak", "fir"), 9)
    write_pictures(tmp_path / "before" / "test", ("oak", "fir"), 2, seed=1)

    def compare(*models: str, pretrain: str = "before") -> studies.Study:
        return studies.compare(
            str(pictures),
            ("ViT-At/8", *models),
            ("all",),
            tmp_path / "study",
            image_size=(16, 16),
            budget=Budget(pflop=1.0),
            pretrain=pretrain and str(tmp_path / pretrain),
        )

    compare("ViT-At/4")
    compare("ViT-At/4", "ViT-At/16")
    (tmp_path / "before").rename(tmp_path / "moved")
    compare("ViT-At/4", pretrain="moved")
    with pytest.raises(UsageError, match=r"holds another study \(pretrain: .*moved there, none asked for\)"):
        compare("ViT-At/4", pretrain="")
    (tmp_path / "moved/train/oak/000.png").unlink()
    with pytest.raises(UsageError, match="pre-trained on .*moved; .*moved is another data set, or has changed since"):
        compare("ViT-At/4", "ViT-At/16", "ViT-At/2", pretrain="moved")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"pflop": 1, "minutes": 1}, "--pflop and --minutes exclude each other"),
        ({"pflop": 0}, "pflop=0 must be greater than 0"),
        ({"pretrain_pflop": 1}, "--pretrain DATA asks for it"),
        ({"set": ["seed=1"]}, "--seeds alone is right"),
        ({"set": ["train_images=5"]}, "--sizes alone is right"),
        ({"set": ["model=ViT-Ti/16"]}, "--models alone is right"),
        ({"set": ["checkpoint.keep=3"]}, "--set checkpoint.keep=… would change nothing"),
        ({"set": ["evaluation=3"]}, "--set evaluation.every_steps=… would change nothing"),
    ],
)
def test_options_that_exclude_each_other(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        patchword.compare("nowhere", models="ViT-At/8,ViT-At/4", **options)


def test_pictures_that_cannot_be_read_are_told_before_anything_is_done(pictures: Path, tmp_path: Path) -> None:
    """One of 72 is more than one in a hundred; nothing is left in the folder."""
    (pictures / "train/bee/007.png").write_bytes(b"no picture")
    changes = {f"model.{name}": value for name, value in SMALL["model"].items()} | {"batch_size": 8}
    asked: dict[str, Any] = {"models": "ViT-At/8,BiT-R14x0.25", "image_size": 16, "seeds": 1, "set": changes}
    with pytest.raises(DataError, match=r"1 of 72 training pictures cannot be read, more than 1% \(train/bee/007\.png"):
        patchword.compare(pictures, out=tmp_path / "study", pflop=1e-3, **asked)
    assert not (tmp_path / "study").exists()


def test_a_budget_of_less_than_a_step_is_refused_before_anything_is_done(pictures: Path, tmp_path: Path) -> None:
    """A quarter of it is tried: four steps of eight pictures are the least."""
    changes = {f"model.{name}": value for name, value in SMALL["model"].items()} | {"batch_size": 8}
    asked: dict[str, Any] = {"models": "ViT-At/8,BiT-R14x0.25", "image_size": 16, "seeds": 1, "set": changes}
    bones = [skeleton(name, "scratch", SMALL, (16, 16), 3) for name in ("ViT-At/8", "BiT-R14x0.25")]
    least = max(4 * 8 * 3 * cost(each).forward_flops for each in bones) / 1e15
    with pytest.raises(
        UsageError, match=r"--pflop .* is too little for BiT-R14x0\.25: 0\.25 of it, .* or more"
    ) as caught:
        patchword.compare(pictures, out=tmp_path / "study", pflop=0.99 * least, **asked)
    assert not (tmp_path / "study").exists()
    told = float(re.findall(r"step; (\S+) or more", str(caught.value))[0])
    assert least <= told < 1.1 * least
    with pytest.raises(UsageError, match="--pretrain-pflop 1e-12 is too little for ViT-At/8"):
        patchword.compare(
            pictures,
            out=tmp_path / "study",
            pflop=1.0,
            pretrain="formula:shapes-2x10@16",
            pretrain_pflop=1e-12,
            **asked,
        )


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ("evaluation.final=validation", "evaluation.final=validation measures on the pictures that choose the rates"),
        ("objective=masked-patch", "objective=masked-patch has no accuracy to compare"),
    ],
)
def test_a_recipe_that_measures_something_else_is_refused(
    pictures: Path, tmp_path: Path, wish: str, sentence: str
) -> None:
    field, _, value = wish.partition("=")
    table, _, last = field.rpartition(".")
    (tmp_path / "other.toml").write_text((f"[{table}]\n" if table else "") + f'{last} = "{value}"\n')
    asked: dict[str, Any] = {"models": "ViT-At/8,ViT-At/4", "image_size": 16, "pflop": 1e-5, "out": tmp_path / "study"}
    ways: list[dict[str, Any]] = [{"set": wish}, {"recipe": tmp_path / "other.toml"}]
    for way in ways:
        with pytest.raises(UsageError, match=sentence):
            patchword.compare(pictures, **asked, **way)
    assert not (tmp_path / "study").exists()


def test_a_size_that_leaves_a_class_without_a_picture_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    """Of 63 pictures three are of the rarest class: a size of 6 has its share of them, which is none."""
    for split, counts in (("train", (30, 30, 3)), ("test", (2, 2, 2))):
        for name, count in zip(("ant", "bee", "cat"), counts, strict=True):
            write_pictures(tmp_path / "data" / split, (name,), count, seed=count)
    asked: dict[str, Any] = {"models": "ViT-At/8,ViT-At/4", "image_size": 16, "pflop": 1e-5, "out": tmp_path / "study"}
    with pytest.raises(
        UsageError, match=r"--sizes 6: .* without a picture \('cat', of which it has 3 of 63, for one\)"
    ):
        patchword.compare(tmp_path / "data", sizes="6,40,all", **asked)
    assert not (tmp_path / "study").exists()


# The figures


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> studies.Study:
    return made(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def table(study: studies.Study) -> dict[str, Any]:
    return json.loads(json.dumps(answer(study)))


def right(study: studies.Study, model: str, size: int, seed: int) -> np.ndarray:
    folder = study.grid.folder / study.cell(model, size, seed).place
    lines = [line.split(",") for line in (folder / "predictions.csv").read_text().splitlines()[1:]]
    return np.array([line[1] == line[2] for line in lines])


def test_means_are_students(study: studies.Study, table: dict[str, Any]) -> None:
    assert table["sizes"] == [100, 300, 1000, TRAIN]
    for row in table["models"]:
        for point, size in zip(row["points"], study.question.sizes, strict=True):
            values = [right(study, row["name"], size, seed).mean() for seed in range(3)]
            low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
            assert point["values"] == pytest.approx(values)
            assert (point["value"], point["low"], point["high"]) == pytest.approx((np.mean(values), low, high))
    assert [point["share"] for point in table["models"][0]["compute"]] == [0.25, 0.5, 1.0]
    runs = sum(outcome.result["seconds"] for outcome in study.outcomes.values())
    assert table["seconds"] == runs + 7.0 * 4 * len(table["models"]), "searches are training, too"


def test_the_lead_has_the_chance_of_seeds_and_of_pictures_in_it(study: studies.Study, table: dict[str, Any]) -> None:
    """For all pairs of four models at once: of the seeds, models and seeds as factors leave six degrees of freedom."""
    lead = table["lead"]
    assert (lead["first"], lead["second"]) == ("BiT-R14x0.25", "EfficientNet-Na")
    rights = np.array([[right(study, name, 0, seed) for seed in range(3)] for name in MODELS]).astype(float)  # M×k×n
    accuracy = rights.mean(2)
    expected = accuracy.mean(1, keepdims=True) + accuracy.mean(0, keepdims=True) - accuracy.mean()
    variance = ((accuracy - expected) ** 2).sum() / 6
    seeds = stats.studentized_range.ppf(0.95, 4, 6) * math.sqrt(variance / 3)
    pairs = rights[2] - rights[3]
    pictures = stats.studentized_range.ppf(0.95, 4, 1e6) / math.sqrt(2) * stats.sem(pairs.mean(0))
    half = math.hypot(seeds, pictures)
    found = lead["difference"]
    assert (found["value"], found["low"], found["high"]) == pytest.approx(
        (pairs.mean(), pairs.mean() - half, pairs.mean() + half), rel=1e-4
    )


def test_what_another_needs_is_as_unsure_as_the_leader_too(study: studies.Study, table: dict[str, Any]) -> None:
    """Resample by resample: what the leader's curve came to at the largest size is what the other's has to reach."""
    cells = Cells(study)
    leader = cells.law(table["lead"]["first"])
    assert leader is not None
    wanted = 1 - table["lead"]["values"][table["lead"]["first"]]
    moved = wanted + leader.errors([TRAIN])[:, 0] - leader.error(TRAIN)
    for need in table["lead"]["needs"]:
        law = cells.law(need["name"])
        assert law is not None
        assert {**need, **law.size_for(wanted, moved).plain()} == need
        assert {**need, **law.size_for(wanted).plain()} != need
    lonely = fit_power_law([100, TRAIN], [[0.5], [0.3]])
    for other in (None, lonely):  # a leader of single seeds, or at a single size, moves nothing
        assert answers._as_moved(0.3, other, leader, TRAIN) is None


def test_the_lead_of_two_is_that_of_the_paired_test(tmp_path: Path) -> None:
    lead = answer(made(tmp_path, models=MODELS[:2]))["lead"]
    study = made(tmp_path, models=MODELS[:2])
    pairs = np.array(
        [right(study, lead["first"], 0, s).astype(int) - right(study, lead["second"], 0, s) for s in range(3)]
    )
    half = math.hypot(stats.t.ppf(0.975, 2) * stats.sem(pairs.mean(1)), 1.959964 * stats.sem(pairs.mean(0)))
    assert lead["difference"]["high"] - lead["difference"]["value"] == pytest.approx(half, rel=1e-4)


def test_a_seed_that_diverged_is_in_no_pair(tmp_path: Path) -> None:
    """The leader has lost a seed; the third model another, so that it does not help to know the spread of the first two."""
    study = made(tmp_path)
    for model, seed in ((MODELS[2], 0), (MODELS[1], 1)):
        place = study.cell(model, 0, seed).place
        study.outcomes[place] = dataclasses.replace(study.outcomes[place], diverged="it did")
    found = answer(study)["lead"]["difference"]
    assert found["seeds"] == 2
    rights = np.array([[right(study, MODELS[m], 0, seed) for seed in (1, 2)] for m in (0, 2, 3)]).astype(float)
    accuracy = rights.mean(2)
    rest = accuracy - accuracy.mean(1, keepdims=True) - accuracy.mean(0, keepdims=True) + accuracy.mean()
    seeds = stats.studentized_range.ppf(0.95, 4, 2) * math.sqrt((rest**2).sum() / 2 / 2)
    pairs = rights[1] - rights[2]
    pictures = stats.studentized_range.ppf(0.95, 4, 1e6) / math.sqrt(2) * stats.sem(pairs.mean(0))
    assert found["value"] == pytest.approx(pairs.mean())
    assert found["high"] - found["value"] == pytest.approx(math.hypot(seeds, pictures), rel=1e-4)


def test_pairs_are_tested_on_the_same_pictures(study: studies.Study, table: dict[str, Any]) -> None:
    assert len(table["tests"]) == 6 * 3
    for row in table["tests"]:
        one, other = (right(study, name, 0, row["seed"]) for name in row["models"])
        counts = int((one & ~other).sum()), int((other & ~one).sum())
        assert (row["only_first"], row["only_second"]) == counts
        assert row["p"] == pytest.approx(stats.binomtest(counts[0], sum(counts)).pvalue)
    seed = [row for row in table["tests"] if row["seed"] == 1]
    least = min(seed, key=lambda row: row["p"])
    assert least["p_corrected"] == pytest.approx(6 * least["p"]), "of a seed there are six pairs"


def test_disagreements_are_right_always_and_wrong_always(study: studies.Study, table: dict[str, Any]) -> None:
    found = table["disagreements"]
    always = np.array([[right(study, name, 0, seed) for seed in range(3)] for name in MODELS])  # M×k×n
    expected = np.asarray(always.all(1).any(0) & (~always).all(1).any(0))
    assert (found["count"], found["of"], len(found["pictures"])) == (expected.sum(), TEST, 8)
    for picture in found["pictures"]:
        assert expected[int(picture["name"].split("/")[-1].removesuffix(".jpg"))]
        assert picture["thumbnail"].startswith("data:image/jpeg;base64,")
        assert set(picture["said"]) == set(MODELS)


def test_disagreements_that_are_shown_are_those_where_both_sides_are_surest(
    study: studies.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the surest of those that are always right and the surest of those that never are; what is said is said most often."""
    monkeypatch.setattr(disagreements, "_varied", lambda pictures, kinds: list(pictures))
    given = {
        name: [
            read_answers(study.grid.folder / study.cell(name, 0, seed).place / "predictions.csv") for seed in range(3)
        ]
        for name in MODELS
    }
    always = np.array([np.all([each.right for each in rows], axis=0) for rows in given.values()])
    never = np.array([~np.any([each.right for each in rows], axis=0) for rows in given.values()])
    sure = np.array([np.mean([each.confidence for each in rows], axis=0) for rows in given.values()])
    both = np.where(always, sure, 0).max(0) + np.where(never, sure, 0).max(0)
    both[~(always.any(0) & never.any(0))] = -1
    found = disagreements.disagreements(study, Cells(study))
    assert found is not None
    assert [row["name"] for row in found["pictures"]] == [
        given[MODELS[0]][0].pictures[place] for place in np.argsort(-both, kind="stable")[:8]
    ]
    places = [given[MODELS[0]][0].pictures.index(row["name"]) for row in found["pictures"]]
    for place, row in zip(places, found["pictures"], strict=True):
        for name in MODELS:
            said = [each.predicted[place] for each in given[name]]
            assert said.count(row["said"][name]) == max(map(said.count, said))


def test_disagreements_are_of_several_labels() -> None:
    kinds = [("shoes", "1"), ("shoes", "2"), ("shoes", "3"), ("hat", "1"), ("hat", "1"), ("skirt", "4"), (None, "5")]
    assert disagreements._varied(range(10, 17), kinds) == [10, 11, 13, 15, 16, 12, 14]


def test_where_models_disagree_the_page_shows_where_each_looked(tmp_path: Path) -> None:
    """With the weights of the first seed that left some; a model that left none has its answers alone."""
    study = made(tmp_path, seeds=2, sizes=(300, 0))
    attends, convolves, gone, lost = MODELS
    models = {}
    for name, seed in ((attends, 1), (convolves, 0), (convolves, 1)):
        torch.manual_seed(seed)
        models[name, seed] = create_model(name, 5, 64)
        save_model(models[name, seed], tmp_path / study.cell(name, 0, seed).place / "model")
    found = json.loads(json.dumps(answer(study)))["disagreements"]
    words = "attention rollout"
    assert found["maps"] == {attends: words, convolves: words, gone: None, lost: None}
    assert len(found["pictures"]) == 8
    for row in found["pictures"]:
        index = int(row["name"].split("/")[-1].removesuffix(".jpg"))
        for name, model in ((attends, models[attends, 1]), (convolves, models[convolves, 0])):
            pixels = model.preprocessing.fit(decode(study.dataset.splits["test"].read(index), 3))
            values = rollout(model, as_images(model, pixels[None]))[0].numpy()
            assert row["maps"][name] == thumbnail(overlay(pixels, values))
        assert row["maps"][gone] is row["maps"][lost] is None
    page = write_study(write_answer(study)).read_text()
    sources = [attrs["src"] for tag, attrs in Texts(page).tags if tag == "img"]
    shown = [[row["thumbnail"], row["maps"][attends], row["maps"][convolves]] for row in found["pictures"]]
    assert sources == [source for each in shown for source in each]
    assert "bright where it looked (attention rollout), with the weights of its first seed." in page
    # What is no picture is not shown, and a file from before the maps has its page, too.
    told = json.loads((tmp_path / "study.json").read_text())
    told["disagreements"]["pictures"][0]["maps"][attends] = "https://example.org/a.png"
    del told["disagreements"]["pictures"][1]["maps"]
    (tmp_path / "study.json").write_text(json.dumps(told))
    page = write_study(tmp_path).read_text()
    assert "example.org" not in page
    assert [tag for tag, _ in Texts(page).tags].count("img") == len(sources) - 3


def test_fronts_hold_whom_nobody_beats(table: dict[str, Any]) -> None:
    assert [row["name"] for row in table["fronts"]["seconds"]] == list(MODELS[:3])
    points = [(p["flops"], p["value"]) for row in table["models"] for p in row["compute"]]
    best = [max(value for cost, value in points if cost <= each) for each in (1e12, 2e12, 4e12)]
    assert [row["value"] for row in table["fronts"]["flops"]] == best


def test_speed_is_that_of_the_first_seed_that_left_a_model(tmp_path: Path) -> None:
    """The first one of the plain ViT diverged, the second one did not; it is measured and stands on the front of time."""
    study = made(tmp_path, seeds=2, sizes=(300, 0), models=MODELS[:2])
    lost = study.cell(MODELS[0], 0, 0).place
    study.outcomes[lost] = dataclasses.replace(study.outcomes[lost], diverged="it did")
    save_model(create_model(MODELS[0], 5, 64), tmp_path / study.cell(MODELS[0], 0, 1).place / "model")
    known = json.loads((tmp_path / "speed.json").read_text())
    (tmp_path / "speed.json").write_text(json.dumps({MODELS[1]: known[MODELS[1]]}))
    write_answer(study)
    assert set(json.loads((tmp_path / "speed.json").read_text())) == set(MODELS[:2])


def test_answers_of_other_pictures_are_refused(tmp_path: Path) -> None:
    study = made(tmp_path, seeds=1, sizes=(300, 0))
    path = tmp_path / study.cell(MODELS[1], 0, 0).place / "predictions.csv"
    given = read_answers(path)
    write_answers(path, dataclasses.replace(given, pictures=("other.jpg", *given.pictures[1:])))
    with pytest.raises(DataError, match="were tested on other pictures; the data set has changed between"):
        study.outcomes.pop(study.cell(MODELS[2], 0, 0).place)
        study.outcomes.pop(study.cell(MODELS[3], 0, 0).place)
        answer(study)


# The sentences


def lead(table: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**table, "lead": {**table["lead"], **changes}}


def test_the_headline(table: dict[str, Any]) -> None:
    sure = {"value": 0.021, "low": 0.015, "high": 0.027, "seeds": 3}
    behind = {"value": 0.124, "low": 0.08, "high": 0.168, "seeds": 3}
    need = {"name": MODELS[0], "value": 8431.0, "low": 5012.0, "high": 19870.0, "never": False, "behind": behind}
    told = telling.headline(lead(table, difference=sure, needs=[need]))
    assert told.startswith(
        "With your 3,067 training pictures and 0.004 PFLOP a model, **the ResNet (BiT-R14x0.25) leads by 2.1 ± 0.6 points**: "
    )
    assert told.endswith("; the plain ViT (ViT-Fe/16) would need about 8,400 [5,000–20,000].")
    doubtful = {**sure, "low": -0.001}
    assert "**no model leads for sure**: the ResNet" in telling.headline(lead(table, difference=doubtful))
    assert telling.headline(lead(table, difference=doubtful, needs=[need])).endswith(
        "a difference of 2.1 ± 0.6 points; the plain ViT (ViT-Fe/16) is behind by 12.4 ± 4.4 points, and would need about 8,400 "
        "[5,000–20,000]."
    ), "who leads is open, and that it is not the plain ViT is not"
    close = {**need, "behind": {**behind, "low": -0.01}}
    lost = {**need, "behind": {"value": None, "low": None, "high": None, "seeds": 0}}
    for each in (close, lost, {**need, "name": MODELS[3]}):
        assert telling.headline(lead(table, difference=doubtful, needs=[each])).endswith(
            "a difference of 2.1 ± 0.6 points."
        )
    single = telling.headline(lead(table, difference={**sure, "seeds": 1}))
    assert "(of a single seed: the chance of training is not in the interval)" in single
    for change, end in (
        (
            {"never": True, "value": None},
            "not come so far with any number of pictures, by its fitted curve [5,000 or more].",
        ),
        ({"never": True, "value": None, "low": 40_000.0}, "any number of pictures, by its fitted curve."),
        ({"value": 40_000.0}, "would need more than 10 times as many."),
        ({"high": None}, "would need about 8,400 [5,000 or more]."),
        ({"low": None, "high": None}, "would need about 8,400."),
    ):
        assert telling.headline(lead(table, difference=sure, needs=[{**need, **change}])).endswith(end)
    assert telling.headline(lead(table, needs=[])).endswith(" points.")
    apart = {"value": None, "low": None, "high": None, "seeds": 0}
    assert "but no seed has both: **nothing is sure**." in telling.headline(lead(table, difference=apart))
    assert telling.headline({**table, "lead": None}).startswith("Nothing can be compared yet")


def test_two_of_a_kind_are_called_by_name(table: dict[str, Any]) -> None:
    rows = [{"name": "ViT-At/8", "kind": "plain ViT"}, {"name": "ViT-At/4", "kind": "plain ViT"}]
    assert telling.called(rows[0], rows) == "ViT-At/8"
    assert telling.called(rows[0], rows[:1]) == "the plain ViT (ViT-At/8)"


def test_crossings_in_words(table: dict[str, Any]) -> None:
    row: dict[str, Any] = {"models": MODELS[:2], "before": MODELS[0], "after": MODELS[1], "alike": False}
    row |= {"size": 1234.0, "low": 800.0, "high": 2000.0}
    told = {
        (
            1.0,
        ): "The hybrid (C4x0.5+ViT-At/16) overtakes the plain ViT (ViT-Fe/16) at about 1,200 pictures [800–2,000].",
        (0.61,): "pictures [800–2,000], in 61 % of the resamples.",
    }
    for (share,), sentence in told.items():
        assert telling.crossings({**table, "crossings": [{**row, "share": share}]})[0].endswith(sentence)
    none = {**row, "after": MODELS[0], "size": None, "low": None, "high": None}
    [told_of_none] = telling.crossings({**table, "crossings": [{**none, "share": 0.0}]})
    assert told_of_none == (
        "The plain ViT (ViT-Fe/16) is ahead of the hybrid (C4x0.5+ViT-At/16) from 100 to 30,670 pictures: no crossing in reach."
    )
    [same] = telling.crossings({**table, "crossings": [{**none, "share": 0.0, "alike": True}]})
    assert same == "The plain ViT (ViT-Fe/16) and the hybrid (C4x0.5+ViT-At/16) are alike at every size."
    [doubt] = telling.crossings({**table, "crossings": [{**none, "share": 0.4}]})
    assert doubt.endswith("no crossing in reach, though in 40 % of the resamples they cross.")
    assert [telling.about(number) for number in (0, 7.4, 94.6, 1250, 8431, 123456)] == [
        "0", "7", "95", "1,200", "8,400", "120,000",
    ]  # fmt: skip
    assert telling.between(None, 150.0, 1e4) == " [150 or fewer]"


# The page


class Texts(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_is_one_file_of_figures_without_scripts(study: studies.Study, tmp_path: Path) -> None:
    page = write_study(write_answer(study)).read_text()
    again = write_study(study.grid.folder).read_text()
    assert page == again, "the same study.json, the same bytes"
    tags = Texts(page).tags
    assert not [tag for tag, _ in tags if tag == "script"]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page)
    assert sum(tag == "svg" and each.get("class") == "plot" for tag, each in tags) == 3
    for variable in ("--series-0", "--series-3"):
        assert f"var({variable})" in page
    assert "#0000" not in page.partition("</style>")[2]
    assert "activations<br>a picture" in page
    for name in MODELS:
        assert name in page


@pytest.mark.parametrize(
    "changes", [{"seeds": 1}, {"sizes": (0,)}, {"models": MODELS[:2]}, {"seeds": 1, "sizes": (300, 0)}]
)
def test_less_makes_a_shorter_page(tmp_path: Path, changes: dict[str, Any]) -> None:
    study = made(tmp_path, **changes)
    page = write_study(write_answer(study)).read_text()
    assert ("There is one size only" in page) == (changes.get("sizes") == (0,))
    text = re.sub(r"<[^>]*>", " ", page.partition("</style>")[2])
    assert not re.search(r"\b(nan|None|inf)\b", text)


def test_a_study_on_its_way_says_so(tmp_path: Path) -> None:
    study = made(tmp_path)
    for place in [place for place in study.outcomes if place.startswith("runs/") and "-2" in place[-2:]]:
        del study.outcomes[place]
    lost = study.cell(MODELS[1], 300, 0).place
    study.outcomes[lost] = dataclasses.replace(study.outcomes[lost], diverged="training diverged in step 3")
    table = answer(study)
    assert table["status"] == "on its way"
    told = warnings(table_as_read(study))
    assert told[0] == "The study is on its way: what is not there yet is missing below."
    assert any(line.startswith("C4x0.5+ViT-At/16: training diverged in 1 of its runs") for line in told)
    assert any(
        line
        == "EfficientNet-Na: the best learning rate was the highest of those tried, 0.01; a higher one may be better."
        for line in told
    )
    assert len(table["models"][1]["points"][1]["values"]) == 1, "what diverged is averaged over nowhere"


def test_a_model_that_no_rate_can_teach_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = made(tmp_path, models=MODELS[:3])
    lost, *others = study.question.models
    found, known = dict(study.found), dict(study.outcomes)
    study.found.clear()
    study.outcomes.clear()

    def pretended(grid: studies.Grid, place: str, title: str, recipe: Recipe) -> Found:
        if recipe.model["name"] == lost:
            raise DivergedError(
                f"{title}: training diverges at every rate tried; a recipe with a lower one would be right"
            )
        return found[recipe.model["name"]]

    monkeypatch.setattr(studies, "search", pretended)
    monkeypatch.setattr(study.grid, "run", lambda cells: [known[cell.place] for cell in cells])
    begun: list[str] = []
    monkeypatch.setattr(
        study.grid, "begin", lambda cells, like, extras: begun.extend(cell.place for cell in [*cells, *like])
    )
    statuses = []
    study.run(lambda each: statuses.append(answer(each)["status"]))
    why = f"{lost}, search: training diverges at every rate tried; a recipe with a lower one would be right"
    assert f"note: {why}; the study goes on without it" in " ".join(capsys.readouterr().err.split())
    assert statuses == ["on its way", "on its way", "finished"]
    assert {place.split("/")[1].split("-")[0] for place in begun} == {"C4x0.5+ViT", "BiT"}, "counted anew"
    told = warnings(table_as_read(study))
    assert told[0] == f"{lost} is left out: {why}."
    assert answer(study)["lead"]["first"] in others
    text = re.sub(r"<[^>]*>", " ", write_study(tmp_path).read_text().partition("</style>")[2])
    assert not re.search(r"\b(nan|None|inf)\b", text)
    monkeypatch.setattr(studies, "search", lambda *_: pretended(study.grid, "", lost, study.tried(lost)))
    study.found.clear()
    with pytest.raises(DivergedError, match="diverges at every rate tried"):
        study.run(lambda _: None)


def test_a_model_whose_search_came_to_nothing_is_not_waited_for(
    toy: studies.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studies, "ahead", lambda grid, place, *_: Ahead([], [], None, lost="BiT" in place))
    known, like = toy.ahead()
    assert not known
    assert {cell.recipe.model["name"] for cell in like} == {"ViT-At/8"}
    before = studies.Study(dataclasses.replace(toy.question, pretrain="formula:shapes-2x10@16"), toy.grid, toy.dataset)
    _, like = before.ahead()
    assert {cell.recipe.model["name"] for cell in like} == {"ViT-At/8"}


def test_pictures_that_probes_will_see_are_in_the_estimate(toy: studies.Study) -> None:
    """Those of each cell, and once for each model those of test; what is measured already is not."""
    assert floor.ahead(toy) == []
    question = dataclasses.replace(toy.question, pretrain="formula:shapes-2x10@16", seeds=2)
    study = studies.Study(question, toy.grid, toy.dataset)
    seen = {extra.cell.place: extra.pictures for extra in floor.ahead(study)}
    for model in ("ViT-At-8", "BiT-R14x0.25"):
        cells = [f"runs/{model}-{size}-{seed}" for seed in range(2) for size in ("6", "30", "all")]
        assert [seen.pop(place) for place in cells] == [6 + 21, 30, 72, 6, 30, 72]
    assert not seen
    toy.grid.folder.mkdir()
    (toy.grid.folder / "floor.json").write_text(json.dumps({"runs/ViT-At-8-6-0": 0.5}))
    left = {extra.cell.place: extra.pictures for extra in floor.ahead(study)}
    assert ("runs/ViT-At-8-6-0" in left, left["runs/ViT-At-8-30-0"]) == (False, 30 + 21)


def table_as_read(study: studies.Study) -> dict[str, Any]:
    from patchword.reports.run import read_fields

    return read_fields(write_answer(study) / "study.json")


def test_tuning_below_the_probe_is_flagged(table: dict[str, Any], study: studies.Study) -> None:
    read = table_as_read(study)
    assert not any("probe" in line for line in warnings(read))
    read["models"][2]["points"][0]["probe"] = 0.9
    assert any(
        "with 100 pictures, tuning all of it (39.2\u202f%) ends below a linear probe" in line for line in warnings(read)
    )


def test_the_shown_command_asks_the_same(study: studies.Study, tmp_path: Path) -> None:
    words = command(table_as_read(study), Path("studies/x"))
    assert " ".join(words) == (
        "patchword compare photos/clothing --models ViT-Fe/16,C4x0.5+ViT-At/16,BiT-R14x0.25,EfficientNet-Na "
        "--sizes 100,300,1000,all --seeds 3 --image-size 64x64 --pflop 0.004 --out studies/x"
    )


def test_the_shown_command_says_all_that_the_study_would_refuse(table: dict[str, Any]) -> None:
    """A recipe that is not the start's own, and every figure of a budget: with others the folder holds another study."""

    def shown(**changes: Any) -> str:
        return " ".join(command(pages.Fields({**table, "question": {**table["question"], **changes}}), Path("x")))

    assert "--recipe finetune" in shown(recipe="finetune")
    tuned = {"pretrain": "cifar10", "pretrain_budget": {"pflop": 0.016}}
    assert "--recipe" not in shown(recipe="finetune", **tuned)
    assert "--recipe scratch" in shown(recipe="scratch", **tuned)
    assert "--pflop 0.00412345678 " in shown(budget={"pflop": 0.00412345678})
    assert "--minutes 3 " in shown(budget={"minutes": 3.0})
    wishes = {"zero_init_residual": False, "tune": "norm", "model": {"units": [1, 2], "depth": 3, "pool": "true"}}
    words = command(pages.Fields({**table, "question": {**table["question"], "set": wishes}}), Path("x"))
    read = [shlex.split(word)[0] for place, word in enumerate(words) if words[place - 1] == "--set"]
    assert config.parse_assignments(read) == wishes
    assert "--pretrain-pflop 0.0123456789 " in shown(pretrain="cifar10", pretrain_budget={"pflop": 0.0123456789})


def test_curves_go_as_far_as_they_are_believed(table: dict[str, Any]) -> None:
    for row in table["models"]:
        assert row["curve"][0]["size"] == pytest.approx(100)
        assert row["curve"][-1]["size"] == pytest.approx(REACH * TRAIN)
        for point in row["curve"]:
            expected = 1 - (row["law"]["a"] * point["size"] ** -row["law"]["b"] + row["law"]["c"])
            assert point["value"] == pytest.approx(expected)
            assert point["low"] <= point["high"]
