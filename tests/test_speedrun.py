"""`make speedrun` and the studies of docs/pretraining.md: what they run, what they keep, what they say.

A run of its own is `ONLY=hybrid BUDGET=0.001 make speedrun`.
"""

import dataclasses
import datetime
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bench import formulas, limit, page, speedrun, transfer, trials, unlabelled, wishes
from torch.utils.flop_counter import FlopCounterMode

from patchword.core import config, files
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


PEERS: dict[str, tuple[float, ...]] = {
    "better-plain-vit": (1024, 1e-3, 0.1, 1.0, 0.089, 10.0, 0.2, 0.0, 0.0, 0.0, 0.0),
    "cct-2-3x2": (128, 6e-4, 0.06, 0.0, 0.05, 9.0, 0.8, 1.0, 0.0, 0.1, 0.1),
    "deit-ti-4": (512, 5e-4, 0.05, 0.0, 0.0167, 9.0, 0.8, 1.0, 0.25, 0.1, 0.1),
    "vit-lite-7-4": (128, 6e-4, 0.06, 0.0, 0.05, 9.0, 0.8, 1.0, 0.0, 0.1, 0.1),
}
"""Batch, rate, decay, clipping, warm-up, RandAugment's magnitude, MixUp, CutMix, erasing, label smoothing, stochastic depth:
a second copy of the hyper-parameters that the files say where they come from."""


@pytest.mark.parametrize("file", sorted(path.stem for path in speedrun.PEERS.glob("*.toml")))
def test_peers_train_as_published(file: str) -> None:
    """By AdamW with a cosine, moved by CIFAR's four pixels, and measured with mirror images as ours are."""
    recipe = recipes.load(str(speedrun.PEERS / f"{file}.toml"))
    optimizer, augment, regular = recipe.optimizer, recipe.augment, recipe.regularization
    assert PEERS[file] == (
        *(recipe.batch_size, optimizer.lr, optimizer.weight_decay, optimizer.clip_norm, recipe.schedule.warmup),
        *(augment.randaugment_magnitude, augment.mixup, augment.cutmix, augment.erasing),
        *(regular.label_smoothing, regular.stochastic_depth),
    )
    assert (optimizer.name, optimizer.betas, recipe.schedule.decay) == ("adamw", (0.9, 0.999), "cosine")
    assert (augment.crop, augment.shift_pixels, augment.flip, augment.randaugment_layers) == ("shift", 4, True, 2)
    assert recipe.evaluation.mirror
    assert (recipe.init, recipe.zero_init_residual, regular.dropout, regular.average_decay) == ("none", False, 0.0, 0.0)


def test_rows_of_before_stay_and_those_of_another_run_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "speedrun.json"
    path.write_text(json.dumps([row(), row("plain"), row(seed=1)]))
    merged = speedrun._merged(path, [row(roofline=7.0), row(seed=1, accuracy=0.75), row("new")])
    assert merged == [row(), row("plain"), row(seed=1, accuracy=0.75), row("new")]
    path.write_text("[")
    with pytest.raises(DataError, match="speedrun.json is not valid JSON"):
        speedrun._merged(path, [row()])


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


@pytest.mark.parametrize(
    ("budget", "name"), [(budget, name) for budget, known in trials.TRIALS.items() for name in known]
)
def test_each_trial_is_a_recipe_and_a_model_and_changes_something(budget: float, name: str) -> None:
    base, changes = trials.TRIALS[budget][name]
    plain = recipes.load(f"speedrun/{base}-{budget}")
    _, before = trials.FIRST.get(name, (1.0, []))
    recipe = recipes.load(f"speedrun/{base}-{budget}", config.parse_assignments([*changes, *before]))
    assert (recipe != plain) == bool(changes)
    options = {key: value for key, value in recipe.model.items() if key != "name"}
    model = create_model(recipe.model["name"], 10, 32, **options)
    assert model.grid is not None


@pytest.mark.parametrize(
    ("budget", "near"), [(0.001, 0.02), (0.02, 0.02), (0.0446, 0.02), (0.0448, 0.1), (0.1, 0.1), (7.0, 0.1)]
)
def test_a_budget_has_the_trials_and_the_preset_of_the_nearer(
    budget: float, near: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[recipes.Recipe] = []
    monkeypatch.setattr(trials, "run", lambda recipe, *_, **__: asked.append(recipe))
    monkeypatch.setattr(trials, "figures", lambda _: {})
    trials.trial("batches of 512", tmp_path, budget)
    preset = recipes.load(f"speedrun/hybrid-{near}")
    assert trials.near(budget) == near
    assert (asked[0].model, asked[0].batch_size, asked[0].budget.pflop) == (preset.model, 512, budget)


def test_the_table_of_trials_goes_between_its_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- trials-0.1 -->\nold\n<!-- /trials-0.1 -->\nafter\n")
    monkeypatch.setattr(trials, "PAGE", page)
    monkeypatch.setenv("BUDGET", "")
    trials.publish(
        [("cosine", ["schedule.decay=cosine"], {"accuracy": 0.5, "epochs": 3.0, "gflops": 7.0})], 0.5, "2026-02-03"
    )
    text = page.read_text()
    assert text.startswith("before\n<!-- trials-0.1 -->\n`make trials` of 2026-02-03: ")
    assert "one seed, 0.5 PFLOP each; GFLOP/s" in text
    assert "| cosine | `schedule.decay=cosine` | 50.00 | 3.0 | 7 |" in text
    assert "old" not in text
    assert text.endswith("<!-- /trials-0.1 -->\nafter\n")


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


@pytest.mark.parametrize("mark", ["formulas", "transfer", "transfer-plain", "trials-0.02", "trials-0.1", "unlabelled"])
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
        (cell / "result.json").write_text(
            '{"status": "finished", "accuracy": 0.25, "date": "2026-02-03T04:05:06+00:00"}'
        )
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setenv("ONLY", "fractals")
    monkeypatch.setattr(formulas, "sets", lambda: {"digits": "digits"})
    monkeypatch.setattr(formulas, "pretrain", lambda folder, *_: folder)
    monkeypatch.setattr(formulas, "tuned", lambda *_: 0.5)
    published: list[str] = []
    monkeypatch.setattr(formulas, "put", lambda *said: published.append(said[2]))
    formulas.main()
    assert [line.split(" | ")[0] for line in published[0].splitlines()[4:]] == ["| fractals", "| shapes"]
    assert published[0].startswith("`make formula-study` of 2026-02-03: ")
    (cells[-1] / "result.json").write_text('{"status": "running"}')
    formulas.main()
    assert [line.split(" | ")[0] for line in published[1].splitlines()[4:]] == ["| fractals"]


def test_an_attempt_learns_formulas_and_is_tuned_on_a_thousand_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what it changes in the recipe, and measured on validation, of which Fashion-MNIST has none of its own."""
    before: list[tuple[Any, ...]] = []
    after: list[tuple[Any, ...]] = []
    monkeypatch.setattr(formulas, "pretrain", lambda *asked: (before.append(asked), asked[0])[1])
    monkeypatch.setattr(formulas, "tune", lambda *asked: (after.append(asked), 0.5)[1])
    monkeypatch.setattr(formulas, "sets", lambda: {"fashion-mnist": "fashion-mnist", "clothing": "place"})
    published: list[str] = []
    monkeypatch.setattr(formulas, "put", lambda *said: published.append(said[2]))
    for name, value in (("OUT", str(tmp_path)), ("PRETRAIN", "0.03"), ("ONLY", "parts of shapes;nothing")):
        monkeypatch.setenv(name, value)
    formulas.main()
    folder, part = tmp_path / "parts-of-shapes", ("augment.crop=random-resized", "augment.crop_area=[0.3,1.0]")
    assert before == [(folder, "shapes-256x400", 0.03, *part, "evaluation.mirror=false")]
    assert after == [
        (
            tmp_path / f"{name}-{data}-{budget}",
            place,
            init,
            64,
            {
                "train_images": 1000,
                "budget": {"pflop": budget},
                "validation_share": share,
                "evaluation": {"final": "validation", "mirror": True},
            },
        )
        for name, init in (("nothing", "none"), ("parts-of-shapes", str(folder)))
        for data, place, share in (("fashion-mnist", "fashion-mnist", 0.05), ("clothing", "place", 0.0))
        for budget in (0.0005, 0.002)
    ]
    [head, _, columns, *_] = published[0].splitlines()
    assert "0.03 PFLOP of pre-training each" in head
    assert columns.endswith("| fashion-mnist, 0.0005 | fashion-mnist, 0.002 | clothing, 0.0005 | clothing, 0.002 |")


def test_a_table_has_the_day_of_its_last_run(tmp_path: Path) -> None:
    """However often it is printed again; what is not at its end does not count."""
    assert page.last_day(tmp_path) == f"{datetime.date.today():%Y-%m-%d}"
    for name, status, date in (
        ("a", "finished", "2026-02-03"),
        ("b/c", "finished", "2026-02-05"),
        ("d", "running", "2026-02-07"),
    ):
        (tmp_path / name).mkdir(parents=True)
        files.write_json(tmp_path / name / "result.json", {"status": status, "date": f"{date}T04:05:06+00:00"})
    assert page.last_day(tmp_path) == "2026-02-05"
    assert [page.finished(tmp_path / name) for name in ("a", "d", "e")] == [True, False, False]


def test_a_trial_that_nobody_asks_for_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, status in (("hybrid", "finished"), ("cosine", "running")):
        folder = tmp_path / f"{name}-0.03"
        folder.mkdir()
        files.write_json(folder / "result.json", {"status": status, "date": "2026-02-03"})
    asked: list[str] = []
    monkeypatch.setattr(trials, "train", lambda folder, *_: asked.append(folder.name))
    monkeypatch.setattr(trials, "figures", lambda _: {"accuracy": 0.5, "epochs": 1.0, "gflops": 1.0})
    monkeypatch.setattr(trials, "put", lambda *_: None)
    for name, value in (("OUT", str(tmp_path)), ("BUDGET", "0.03"), ("ONLY", "no shifts")):
        monkeypatch.setenv(name, value)
    trials.main()
    assert asked == ["hybrid-0.03", "no-shifts-0.03"]


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
        finished(tmp_path / objective, metric=metric, value=0.25, value_ci95=[0.2, 0.3125])
        files.write_json(tmp_path / objective / "evaluation.json", {"majority": 0.0569})
    monkeypatch.setattr(study, "without_labels", lambda _, objective: tmp_path / objective)
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


def finished(folder: Path, **figures: Any) -> Path:
    """A run folder with nothing in it but figures."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(
        json.dumps({"status": "finished", "date": "2026-02-03T04:05:06+00:00", **figures})
    )
    return folder


def test_a_speedrun_spends_its_budget_on_cifar10_and_says_what_came_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From nothing, with nothing left out; FLOPs over seconds, and the better of the limits before and after.

    What another budget came to stays in the file and is not in the table.
    """
    asked: dict[str, recipes.Recipe] = {}

    def ran(recipe: recipes.Recipe, folder: Path, **_: Any) -> Path:
        asked[folder.name] = recipe
        return finished(folder, accuracy=0.625, train_flops=6 * 10**12, seconds=48.0, steps=7)

    limits = iter([3e9, 5e9, 7e9, 2e9])
    files.write_json(tmp_path / "speedrun.json", [row()])
    monkeypatch.setattr(speedrun, "run", ran)
    monkeypatch.setattr(speedrun, "roofline", lambda: next(limits))
    for name, value in (("OUT", str(tmp_path)), ("BUDGET", "0.07"), ("SEEDS", "2"), ("ONLY", "plain")):
        monkeypatch.setenv(name, value)
    speedrun.main()
    assert list(asked) == ["plain-0.07-0", "plain-0.07-1"]
    for seed, recipe in enumerate(asked.values()):
        told = (recipe.name, recipe.data, recipe.init, recipe.seed, recipe.train_images, recipe.loading.duplicates)
        assert told == ("speedrun/plain-0.1", "cifar10", "none", seed, 0, "no")
        assert recipe.budget == recipes.Budget(pflop=0.07)
    figures = {"accuracy": 0.625, "train_flops": 6 * 10**12, "seconds": 48.0, "gflops_per_second": 125.0}
    assert json.loads((tmp_path / "speedrun.json").read_text()) == [row()] + [
        {"system": "plain", "budget": 0.07, "seed": seed, **figures, "roofline": limit}
        for seed, limit in enumerate((5.0, 7.0))
    ]
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["system", "plain"]


def test_the_limit_is_the_flops_of_a_product_over_its_shortest_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight products, the fifth of which takes a quarter of a second and the others half of one, as torch counts them."""
    product = torch.rand(7, 5), torch.rand(5, 11)
    with FlopCounterMode(display=False) as counter:
        monkeypatch.setattr(limit, "_seconds", lambda step: (step(), 1.0)[1])
        monkeypatch.setattr(torch, "rand", lambda *shape: [torch.empty(shape[1:], device="meta")] * shape[0])
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        step = limit.gemm()
        before = counter.get_total_flops()
        step()
        assert counter.get_total_flops() - before == limit.GEMM_FLOPS
    monkeypatch.undo()
    ticks = itertools.accumulate(itertools.chain([0.0], *([0.25 if number == 4 else 0.5, 3.0] for number in range(8))))
    monkeypatch.setattr(limit.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(limit, "gemm", lambda: lambda: torch.mm(*product))
    assert limit.roofline() == 4 * limit.GEMM_FLOPS


@pytest.mark.parametrize("model", ["hybrid", "plain"])
def test_all_starts_of_a_row_take_the_same_flops(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many at 32 px as BUDGET says, elsewhere in proportion to the pixels; the table has mean and range of the seeds."""
    asked: dict[str, dict[str, Any]] = {}

    def tuned(folder: Path, data: str, init: str, side: int, changes: dict[str, Any], *, begins: str) -> float:
        assert begins == f"speedrun/{model}-0.1"
        asked[folder.name] = {"data": data, "init": init, "side": side, **changes}
        return {"none": 0.5, f"shipped:small-{model}": 0.75}.get(init, 0.625) + 0.01 * changes["seed"]

    before: list[tuple[Any, ...]] = []
    monkeypatch.setattr(transfer, "pretrain", lambda *asked, begins: (before.append((*asked, begins)), asked[0])[1])
    monkeypatch.setattr(transfer, "tune", tuned)
    monkeypatch.setattr(transfer, "sets", lambda: {"clothing": "place"})
    kind = transfer.KINDS[model]._replace(cells={"clothing": ((32, 500), (48, 0))})
    monkeypatch.setitem(transfer.KINDS, model, kind)
    published: list[tuple[str, str]] = []
    monkeypatch.setattr(transfer, "put", lambda *said: published.append(said[1:]))
    for name, value in (("OUT", str(tmp_path)), ("BUDGET", "0.004"), ("SEEDS", "2"), ("MODEL", model)):
        monkeypatch.setenv(name, value)
    transfer.main()
    formula = tmp_path / f"{model}-formula"
    assert before == [(formula, "fractals-100x1000", 0.04, f"speedrun/{model}-0.1")]
    starts = {"nothing": "none", "formula": str(formula), "formula-CIFAR-10": f"shipped:small-{model}"}
    assert asked == {
        f"{side}-{shown}-{start}-{seed}": {
            "data": "place",
            "init": init,
            "side": side,
            "seed": seed,
            "train_images": pictures,
            "budget": {"pflop": pytest.approx(pflop)},
        }
        for side, pictures, shown, pflop in ((32, 500, "500", 0.004), (48, 0, "all", 0.009))
        for seed in range(2)
        for start, init in starts.items()
    }
    [(mark, text)] = published
    assert mark == {"hybrid": "transfer", "plain": "transfer-plain"}[model]
    assert text.startswith(f"`MODEL={model} SEEDS=2 BUDGET=0.004 make transfer-study` of ")
    assert text.splitlines()[4:] == [
        f"| clothing, {side} px | {shown} | 50.5 (50.0–51.0) | 63.0 (62.5–63.5) | 75.5 (75.0–76.0) |"
        for side, shown in ((32, "500"), (48, "all"))
    ]


def test_the_model_of_a_transfer_study_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL", "plane")
    with pytest.raises(UsageError, match="MODEL=plane is not known; did you mean 'plain'?"):
        transfer.main()


@pytest.mark.parametrize("model", ["hybrid", "plain"])
def test_from_nothing_begins_the_model_of_the_pre_training_at_its_rates(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All else is as from weights, so that a row differs in its start alone."""
    asked: list[recipes.Recipe] = []

    def ran(recipe: recipes.Recipe, folder: Path, **_: Any) -> Path:
        asked.append(recipe)
        return finished(folder, accuracy=0.375)

    monkeypatch.setattr(transfer, "run", ran)
    recipe = transfer.KINDS[model].recipe
    for init in ("none", f"shipped:small-{model}"):
        changes = {"train_images": 7}
        assert transfer.tune(tmp_path / init[:4], "data", init, 40, changes, begins=recipe) == 0.375
    nothing, weights = asked
    base = recipes.load(recipe)
    assert (nothing.model, nothing.zero_init_residual) == (base.model, True)
    assert (nothing.optimizer.matrix_lr, weights.optimizer.matrix_lr) == (0.02, 0.01)
    same = {"init": weights.init, "model": weights.model, "zero_init_residual": False, "optimizer": weights.optimizer}
    assert dataclasses.replace(nothing, **same) == weights
    assert (weights.image_size, weights.train_images, weights.name) == ((40, 40), 7, "finetune/muon")
    assert (weights.data, weights.loading.duplicates) == ("data", "no")
    assert weights.preprocessing == {"resize": "stretch", "crop_fraction": 1.0}


def test_formulas_are_learned_from_nothing_for_their_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the recipe that is asked for, with the changes that are and no others."""
    asked: list[recipes.Recipe] = []
    monkeypatch.setattr(transfer, "run", lambda recipe, folder, **_: (asked.append(recipe), folder)[1])
    changes = ("augment.cutmix=0.75", "evaluation.mirror=false")
    assert transfer.pretrain(tmp_path, "shapes-7x5", 0.003, *changes, begins="speedrun/plain-0.1") == tmp_path
    base = recipes.load("speedrun/plain-0.1", {"augment": {"cutmix": 0.75}, "evaluation": {"mirror": False}})
    wanted = {"data": "formula:shapes-7x5", "budget": recipes.Budget(pflop=0.003)}
    loading = dataclasses.replace(base.loading, duplicates="no")
    assert asked == [dataclasses.replace(base, **wanted, loading=loading)]
    assert base.init == "none"


def test_clothes_are_studied_where_there_are_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that DATA names, else those beside the other sets; Fashion-MNIST always."""
    monkeypatch.delenv("DATA", raising=False)
    monkeypatch.setenv("PATCHWORD_DATA", str(tmp_path))
    assert transfer.sets() == {"fashion-mnist": "fashion-mnist"}
    assert "the study is made on Fashion-MNIST alone" in capsys.readouterr().err
    (tmp_path / "clothing").mkdir()
    assert transfer.sets() == {"fashion-mnist": "fashion-mnist", "clothing": str(tmp_path / "clothing")}
    monkeypatch.setenv("DATA", "mine")
    assert transfer.sets() == {"fashion-mnist": "fashion-mnist", "clothing": "mine"}
    assert not capsys.readouterr().err


def test_what_has_labels_alone_gets_all_flops_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masked objectives come first, once for all seeds, with no label; then the same training as from labels alone."""
    study = unlabelled.Study(out=tmp_path, labelled=700, budget=0.002, pretrain=0.03)
    asked: dict[str, recipes.Recipe] = {}

    def ran(recipe: recipes.Recipe, folder: Path, **_: Any) -> Path:
        asked[folder.name] = recipe
        return folder

    monkeypatch.setattr(unlabelled, "run", ran)
    for model, methods in unlabelled.METHODS.items():
        for method in methods:
            study.run(model, method, 3)
    told = {
        name: (recipe.objective, recipe.init, recipe.train_images, recipe.seed, round(recipe.budget.pflop, 9))
        for name, recipe in asked.items()
    }
    assert told == {
        "plain-labels-alone-3": ("", "none", 700, 3, 0.002),
        "plain-labels-alone-for-all-FLOPs-3": ("", "none", 700, 3, 0.032),
        "plain-masked-patch": ("masked-patch", "none", 0, 0, 0.03),
        "plain-masked-patches-then-labels-3": ("", str(tmp_path / "plain-masked-patch"), 700, 3, 0.002),
        "plain-masked-autoencoder": ("masked-autoencoder", "none", 0, 0, 0.03),
        "plain-masked-auto-encoder-then-labels-3": ("", str(tmp_path / "plain-masked-autoencoder"), 700, 3, 0.002),
        "hybrid-labels-alone-3": ("", "none", 700, 3, 0.002),
        "hybrid-labels-alone-for-all-FLOPs-3": ("", "none", 700, 3, 0.032),
        "hybrid-Noisy-Student-3": ("", "none", 700, 3, 0.032),
    }
    # Batches are small where a thousand pictures are all there is; what has a label is left out of what has none.
    others = {"plain-masked-patch", "plain-masked-autoencoder", "hybrid-Noisy-Student-3"}
    assert {name for name, recipe in asked.items() if recipe.batch_size == 256} == others
    assert {recipe.batch_size for name, recipe in asked.items() if name not in others} == {64}
    student = asked.pop("hybrid-Noisy-Student-3")
    assert student.teacher == recipes.Teacher(
        weights=str(tmp_path / "hybrid-labels-alone-3"), unlabelled="cifar10", share=0.0, confidence=0.3
    )
    assert student.loading.duplicates == "yes"
    assert {(recipe.loading.duplicates, recipe.teacher.weights) for recipe in asked.values()} == {("no", "")}
    assert {recipe.data for recipe in (student, *asked.values())} == {"cifar10"}
    plain, masked = (asked[f"plain-{name}-3"] for name in ("labels-alone", "masked-patches-then-labels"))
    assert dataclasses.replace(masked, init="none") == plain


def test_the_figures_of_a_trial_by_hand(tmp_path: Path) -> None:
    """The last look; looks at each picture; FLOPs of a picture times the pictures a second of the fastest quarter."""
    finished(tmp_path, steps=45, train_images=1000, train_flops=45 * 200 * 3e9)
    (tmp_path / "recipe.toml").write_text(recipes.load("speedrun/plain-0.02", {"batch_size": 200}).to_toml())
    records: list[dict[str, Any]] = [
        {"kind": "train", "images_per_second": rate} for rate in (10.0, 50.0, 20.0, 40.0, 30.0)
    ]
    records.insert(2, {"kind": "validation", "accuracy": 0.25})
    records.append({"kind": "validation", "accuracy": 0.75})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert trials.figures(tmp_path) == {"accuracy": 0.75, "epochs": 9.0, "gflops": pytest.approx(120.0)}


def test_a_trial_is_the_preset_of_its_kind_but_for_what_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks at the tenth of train that is set aside when it is done, and not before."""
    asked: list[recipes.Recipe] = []
    monkeypatch.setattr(trials, "run", lambda recipe, *_, **__: asked.append(recipe))
    for base in ("hybrid", "plain"):
        trials.train(tmp_path / base, f"speedrun/{base}-0.02", ["batch_size=7"], 0.03)
        preset = recipes.load(f"speedrun/{base}-0.02")
        assert asked.pop() == dataclasses.replace(
            preset,
            data="cifar10",
            validation_share=0.1,
            batch_size=7,
            budget=recipes.Budget(pflop=0.03),
            evaluation=dataclasses.replace(preset.evaluation, every_steps=10**9),
            loading=dataclasses.replace(preset.loading, duplicates="no"),
        )


def test_a_trial_in_two_parts_spends_no_more_than_one_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, recipes.Recipe] = {}

    def ran(recipe: recipes.Recipe, folder: Path, **_: Any) -> Path:
        asked[folder.name] = recipe
        return finished(folder)

    monkeypatch.setattr(trials, "run", ran)
    monkeypatch.setattr(trials, "figures", lambda _: {"accuracy": 0.5, "epochs": 1.0, "gflops": 1.0})
    lines: list[str] = []
    monkeypatch.setattr(trials, "put", lambda *said: lines.extend(said[2].splitlines()[4:]))
    for name, value in (
        ("OUT", str(tmp_path)),
        ("BUDGET", "0.03"),
        ("ONLY", "hybrid;a third of it at 24 pixels;half of it for a teacher"),
    ):
        monkeypatch.setenv(name, value)
    trials.main()
    # Two parts of as many epochs each are twice as many.
    assert [line.split(" | ")[-2] for line in lines] == ["1.0", "2.0", "2.0"]
    assert [line.split(" | ")[1] for line in lines] == [
        "",
        "`image_size=[24,24]` `init=FIRST` `image_size=[32,32]`",
        "`teacher.weights=FIRST`",
    ]
    assert {name: recipe.budget.pflop for name, recipe in asked.items()} == pytest.approx(
        {
            "hybrid-0.03": 0.03,
            "a-third-of-it-at-24-pixels-0.03-first": 0.01,
            "a-third-of-it-at-24-pixels-0.03": 0.02,
            "half-of-it-for-a-teacher-0.03-first": 0.015,
            "half-of-it-for-a-teacher-0.03": 0.015,
        }
    )
    assert [recipe.validation_share for recipe in asked.values()] == [0.1] * 5
    assert [recipe.image_size for recipe in asked.values()] == [(0, 0), (24, 24), (32, 32), (0, 0), (0, 0)]
    small, teacher = (str(tmp_path / name) for name in asked if name.endswith("-first"))
    assert [recipe.init for recipe in asked.values()] == ["none", "none", small, "none", "none"]
    assert [recipe.teacher.weights for recipe in asked.values()] == ["", "", "", "", teacher]
