"""`make speedrun` and the studies of docs/pretraining.md: what they run, what they keep, what they say.

A run of its own is `ONLY=hybrid BUDGET=0.001 make speedrun`.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from bench import formulas, page, speedrun, transfer, trials, unlabelled, wishes

from patchword.core import config
from patchword.core.errors import DataError, UsageError
from patchword.data.formula import parse_formula
from patchword.models.cost import cost
from patchword.models.names import create_model
from patchword.training import recipe as recipes


def row(system: str = "hybrid", seed: int = 0, accuracy: float = 0.5, roofline: float = 100.0) -> dict[str, Any]:
    figures = {"accuracy": accuracy, "train_flops": 2e13, "seconds": 80.0, "gflops_per_second": 250.0}
    return {"system": system, "budget": 0.02, "seed": seed, **figures, "roofline": roofline}


def test_each_budget_takes_the_preset_made_for_the_nearest() -> None:
    names = [name for name, _ in speedrun.systems("", 0.02)]
    assert names == ["hybrid", "plain", "better-plain-vit", "cct-2-3x2", "deit-ti-4", "vit-lite-7-4"]
    assert dict(speedrun.systems("", 0.02))["plain"] == "speedrun/plain-0.02"
    assert list(speedrun.systems("hybrid", 1e-5)) == [("hybrid", "speedrun/hybrid-0.02")]
    assert [name for name, _ in speedrun.systems("peers", 0.1)] == names[2:]


@pytest.mark.parametrize(
    ("file", "params", "mac"),
    [("vit-lite-7-4", 3.7e6, 0.239e9), ("cct-2-3x2", 0.28e6, 0.033e9)],
)
def test_peers_have_the_published_sizes(file: str, params: float, mac: float) -> None:
    """arXiv 2104.05704, Table 2; CCT's within what its pooling and our norms differ in."""
    recipe = recipes.load(str(speedrun.PEERS / f"{file}.toml"))
    options = {key: value for key, value in recipe.model.items() if key != "name"}
    counted = cost(create_model(recipe.model["name"], 10, 32, **options))
    assert counted.params == pytest.approx(params, rel=0.08)
    assert counted.forward_flops / 2 == pytest.approx(mac, rel=0.11)


def test_rows_of_before_stay_and_those_of_another_run_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "speedrun.json"
    path.write_text(json.dumps([row(), row("plain"), row(seed=1)]))
    merged = speedrun._merged(path, [row(roofline=7.0), row(seed=1, accuracy=0.75), row("new")])
    assert merged == [row(), row("plain"), row(seed=1, accuracy=0.75), row("new")]


def test_the_table_says_mean_range_and_share(capsys: pytest.CaptureFixture[str]) -> None:
    speedrun.show([row(), row(seed=1, accuracy=0.75), row("plain", accuracy=0.7)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["system", "plain", "hybrid"]
    assert lines[2].split() == ["hybrid", "0.02", "2", "62.50", "%", "50.00–75.00", "80", "250", "250%"]


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("BUDGET", "0", "BUDGET=0 must be a number greater than 0"),
        ("BUDGET", "much", "BUDGET=much must be a number greater than 0"),
        ("SEEDS", "-1", "SEEDS=-1 must be a number greater than 0"),
        ("SEEDS", "0.5", "SEEDS=0.5 must be a whole number from 1"),
        ("ONLY", "cnn", "ONLY=cnn is not known; hybrid, plain and peers are right"),
    ],
)
def test_wrong_wishes_are_refused(name: str, value: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=sentence):
        speedrun.main()


@pytest.mark.parametrize("name", trials.TRIALS)
def test_each_trial_is_a_recipe_and_a_model_and_changes_something(name: str) -> None:
    base, changes = trials.TRIALS[name]
    plain = recipes.load(f"speedrun/{base}-0.02")
    recipe = recipes.load(f"speedrun/{base}-0.02", config.parse_assignments(changes))
    assert (recipe != plain) == bool(changes)
    options = {key: value for key, value in recipe.model.items() if key != "name"}
    model = create_model(recipe.model["name"], 10, 32, **options)
    assert model.grid is not None


def test_the_table_of_trials_goes_between_its_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- trials -->\nold\n<!-- /trials -->\nafter\n")
    monkeypatch.setattr(trials, "PAGE", page)
    trials.publish([("cosine", ["schedule.decay=cosine"], {"accuracy": 0.5, "epochs": 3.0, "gflops": 7.0})], 0.5)
    text = page.read_text()
    assert text.startswith("before\n<!-- trials -->\n`make trials` of ")
    assert "| cosine | `schedule.decay=cosine` | 50.00 | 3.0 | 7 |" in text
    assert "old" not in text
    assert text.endswith("<!-- /trials -->\nafter\n")


@pytest.mark.parametrize(
    "text",
    [
        "no marks",
        "<!-- trials -->\nno end",
        "no begin\n<!-- /trials -->\n",
        "<!-- /trials -->\n<!-- trials -->\n",
        "<!-- trials -->\n<!-- trials -->\n<!-- /trials -->\n",
    ],
)
def test_a_page_without_one_place_for_a_table_stays_as_it_is(text: str, tmp_path: Path) -> None:
    place = tmp_path / "page.md"
    place.write_text(text)
    with pytest.raises(DataError, match="page.md has no one place for the table; <!-- trials --> above"):
        page.put(place, "trials", "new\n")
    assert place.read_text() == text


@pytest.mark.parametrize("mark", ["formulas", "transfer", "trials", "unlabelled"])
def test_the_page_has_a_place_for_every_table(mark: str, tmp_path: Path) -> None:
    place = tmp_path / "page.md"
    place.write_text(trials.PAGE.read_text())
    page.put(place, mark, "new\n")
    assert f"<!-- {mark} -->\nnew\n<!-- /{mark} -->" in place.read_text()


@pytest.mark.parametrize("name", formulas.ATTEMPTS)
def test_each_attempt_is_a_set_of_formulas_and_a_recipe_and_differs(name: str) -> None:
    data, changes = formulas.ATTEMPTS[name]
    assert parse_formula(f"formula:{data}").classes >= 2
    recipe = recipes.load(transfer.RECIPE, config.parse_assignments(changes))
    assert (recipe != recipes.load(transfer.RECIPE)) == bool(changes)
    assert sum(each == formulas.ATTEMPTS[name] for each in formulas.ATTEMPTS.values()) == 1


def test_what_was_attempted_before_stays_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [tmp_path / f"shapes-digits-{budget:g}" for budget in formulas.BUDGETS]
    for cell in cells:
        cell.mkdir()
        (cell / "result.json").write_text('{"status": "finished", "accuracy": 0.25}')
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setenv("ONLY", "fractals")
    monkeypatch.setattr(formulas, "sets", lambda: {"digits": "digits"})
    monkeypatch.setattr(formulas, "pretrain", lambda folder, *_: folder)
    monkeypatch.setattr(formulas, "tuned", lambda *_: 0.5)
    published: list[str] = []
    monkeypatch.setattr(formulas, "put", lambda *said: published.append(said[2]))
    formulas.main()
    assert [line.split(" | ")[0] for line in published[0].splitlines()[4:]] == ["| fractals", "| shapes"]
    (cells[-1] / "result.json").write_text('{"status": "running"}')
    formulas.main()
    assert [line.split(" | ")[0] for line in published[1].splitlines()[4:]] == ["| fractals"]


def test_a_student_has_the_noise_of_the_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = unlabelled.Study(out=tmp_path, labelled=1000, budget=0.002, pretrain=0.03)
    asked: dict[str, dict[str, Any]] = {}
    monkeypatch.setattr(study, "train", lambda name, model, over: asked.setdefault(name, over) and tmp_path / name)
    study.run("hybrid", unlabelled.STUDENT, 3)
    over = asked["hybrid-Noisy Student-3"]
    assert over["teacher"]["weights"] == str(tmp_path / "hybrid-labels alone-3")
    assert over["regularization"] == {"dropout": 0.1, "stochastic_depth": 0.2, "label_smoothing": 0.0}
    assert over["augment"] == {"randaugment_layers": 2, "randaugment_magnitude": 10.0}
    assert over["budget"]["pflop"] == pytest.approx(0.032)


def test_the_table_of_what_has_no_labels_says_what_the_masked_ones_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the commonest colour where colours are named, and alone where patches are painted."""
    study = unlabelled.Study(out=tmp_path, labelled=1000, budget=0.002, pretrain=0.03)
    for objective, metric in (("masked-patch", "masked_accuracy"), ("masked-autoencoder", "explained_variance")):
        (tmp_path / objective).mkdir()
        result = {"metric": metric, "value": 0.25, "value_ci95": [0.2, 0.3125]}
        (tmp_path / objective / "result.json").write_text(json.dumps(result))
    monkeypatch.setattr(study, "without_labels", lambda _, objective: tmp_path / objective)
    monkeypatch.setattr(unlabelled, "load_model", lambda folder: folder.name)
    monkeypatch.setattr(unlabelled, "commonest", {"masked-patch": 0.0569}.__getitem__)
    published: list[str] = []
    monkeypatch.setattr(unlabelled, "put", lambda *said: published.append(said[2]))
    study.publish([("plain", unlabelled.ALONE, [0.5, 0.625, 0.75])], 3)
    assert published[0].splitlines()[2:] == [
        "| model | learns from | accuracy |",
        "|---|---|---|",
        "| plain | labels alone | 62.50 (50.00–75.00) |",
        "",
        "`masked-patch`: masked_accuracy 25.00 % (20.00–31.25) on test; 5.69 % is what naming the commonest colour finds.",
        "`masked-autoencoder`: explained_variance 25.00 % (20.00–31.25) on test.",
    ]


def test_a_row_of_the_transfer_study_has_mean_and_range_of_each_start() -> None:
    found = {"nothing": [0.5, 0.5], "formula": [0.5, 0.75], "formula, CIFAR-10": [0.1, 0.2]}
    row = transfer.line("clothing", 64, 0, found)
    assert row == "| clothing, 64 px | all | 50.0 (50.0–50.0) | 62.5 (50.0–75.0) | 15.0 (10.0–20.0) |"
    assert transfer.line("clothing", 32, 1000, found).startswith("| clothing, 32 px | 1,000 | ")


@pytest.mark.parametrize(
    ("wish", "found"),
    [
        ("", ["plain", "plain, wider", "SGD"]),
        ("plain", ["plain"]),
        ("plain, wider", ["plain, wider"]),
        ("plain,SGD", ["plain", "SGD"]),
        ("SGD, plain, wider,plain", ["SGD", "plain, wider", "plain"]),
    ],
)
def test_names_that_have_commas_are_told_apart(wish: str, found: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONLY", wish)
    assert wishes.names("ONLY", ("plain", "plain, wider", "SGD")) == found


def test_what_is_wrong_is_said_in_a_sentence_and_no_table_is_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = trials.PAGE.read_bytes()
    monkeypatch.setenv("ONLY", "hybrid,plan")
    for main in (trials.main, formulas.main):
        with pytest.raises(SystemExit) as ended:
            wishes.answered(main)
        assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "ONLY=plan is not known; did you mean 'plain'?"
    assert said[1].startswith("ONLY=hybrid is not known; ")
    assert trials.PAGE.read_bytes() == before
