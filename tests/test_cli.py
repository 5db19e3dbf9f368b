"""The command line as a person meets it: what it offers, what it answers, with which exit code."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import patchword
from patchword import cli
from patchword.core.errors import UsageError
from patchword.training import recipe as recipes
from patchword.verbs.options import parse_image_size
from patchword.weights.io import load_model, save_model

TINY = ["--set", "model.depth=1", "model.embed_dim=16", "model.mlp_dim=16", "batch_size=8"]


def call(*arguments: object) -> int:
    return cli.run([str(argument) for argument in arguments])


@pytest.fixture
def trained(pictures: Path, tmp_path: Path) -> Path:
    out = tmp_path / "run"
    assert (
        call("train", pictures, "--model", "ViT-At/8", "--image-size", "16x24", "--steps", 3, "--out", out, *TINY) == 0
    )
    return out


def test_train_evaluate_predict(
    trained: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (trained / "report.html").is_file()
    capsys.readouterr()
    assert call("evaluate", trained, pictures, "--out", tmp_path / "figures.json") == 0
    shown = capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    stored = json.loads((trained / "evaluation.json").read_text())
    for field in ("split", "n", "correct", "value_ci95", "confusion"):
        assert figures[field] == stored[field], field
    assert f"{figures['correct']} of 21 test pictures" in shown

    (tmp_path / "broken.png").write_bytes(b"")
    image = pictures / "test/bee/000.png"
    assert call("predict", trained, image, tmp_path / "broken.png", "--top", 2, "--out", tmp_path / "p.csv") == 3
    shown = capsys.readouterr().out
    assert f"{tmp_path / 'broken.png'}: is empty (0 bytes)" in shown
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    assert [row["rank"] for row in rows] == ["1", "2", ""]
    assert {row["label"] for row in rows[:2]} <= {"ant", "bee", "cat"}
    assert call("predict", trained, pictures / "test", "--features", "--out", tmp_path / "f.npz") == 0
    with np.load(tmp_path / "f.npz") as saved:
        assert saved["features"].shape == (21, 16)
        assert saved["images"][0].endswith("test/ant/000.png")


def test_python_front_door_is_the_same(trained: Path, pictures: Path, tmp_path: Path) -> None:
    import patchword as pw

    folder = pw.train(
        str(pictures),
        model="ViT-At/8",
        image_size=(16, 24),
        steps=3,
        out=tmp_path / "py",
        set=tuple(t for t in TINY if "=" in t),
    )
    assert (folder / "model/model.safetensors").read_bytes() == (trained / "model/model.safetensors").read_bytes()
    figures = pw.evaluate(folder, str(pictures))
    assert figures["n"] == 21
    answers = pw.predict(folder, [str(pictures / "test/bee/000.png")], top=3)
    assert sum(each["probability"] for each in answers[0]["predictions"]) == pytest.approx(1)
    model = pw.load_model(folder)
    with Image.open(pictures / "test/bee/000.png") as picture:
        probabilities = model(model.preprocess(picture)).softmax(1)[0]
    assert answers[0]["predictions"][0]["probability"] == pytest.approx(probabilities.max().item())


def test_the_shown_command_repeats_the_run(trained: Path, tmp_path: Path) -> None:
    command = json.loads((trained / "result.json").read_text())["command"].split()
    assert call(*command[1:]) == 0
    again = Path(command[-1])
    assert (again / "model/model.safetensors").read_bytes() == (trained / "model/model.safetensors").read_bytes()


WRONG = [
    (["trian"], 2, "unknown verb 'trian'; did you mean 'train'?"),
    (["data", "chek"], 2, "unknown verb 'data chek'; did you mean 'data check'?"),
    (["train", "DATA", "--steps", "3", "--minutes", "2"], 2, "--minutes and --steps exclude each other"),
    (["train", "DATA", "--steps", "0"], 2, "patchword: steps=0 must be greater than 0"),
    (
        ["train", "DATA", "--model", "ViT-At/5", "--image-size", "16", "--steps", "1"],
        2,
        "16×16 is not divided by the patch of 5×5",
    ),
    (["train", "DATA", "--image-size", "big", "--steps", "1"], 2, "image size 'big' is not a side or height×width"),
    (
        ["train", "DATA", "--set", "optimizer.lrr=1", "--steps", "1"],
        2,
        "unknown field optimizer.lrr; did you mean 'optimizer.lr'?",
    ),
    (["train", "DATA", "--set", "lr", "--steps", "1"], 2, "'lr' is not of the form field=value"),
    (["train", "DATA", "--recipe", "scrtch"], 2, "unknown recipe 'scrtch'; did you mean 'scratch'?"),
    (["train", "DATA", "--recipe", "", "--steps", "1"], 2, "unknown recipe ''; known: finetune, "),
    (["train", "DATA", "--init", "nowhere", "--steps", "1"], 2, "nowhere holds no model: it does not exist"),
    (["train", "DATA", "--init", "small-plain"], 2, "does not exist; shipped:small-plain comes with patchword"),
    (["train", "DATA", "--init", "ship:small-plain"], 2, "does not exist; did you mean 'shipped:small-plain'?"),
    (["evaluate", "small-hybird", "DATA"], 2, "does not exist; did you mean 'shipped:small-hybrid'?"),
    (["evaluate", "shipped", "DATA"], 2, "not exist; shipped:small-hybrid, shipped:small-plain would be right"),
    (["train", "nowhere", "--steps", "1"], 3, "nowhere is neither a path that exists nor a named data set"),
    (["data", "check", "fractals-10x7@9"], 3, "nor a named data set; did you mean 'formula:fractals-10x7@9'?"),
    (["evaluate", "nowhere", "DATA"], 2, "nowhere holds no model"),
    (["data", "check", "nowhere"], 3, "nowhere is neither"),
    (["models", "ViX*"], 2, "no model matches 'ViX*'"),
    (["predict", "nowhere", "x.jpg"], 2, "nowhere holds no model"),
    (["predict", "nowhere"], 2, "no picture given"),
    (["train", "DATA", "--steps", "1.5"], 2, "--steps '1.5' is not a whole number, such as 10"),
    (["train", "DATA", "--minutes=soon"], 2, "--minutes 'soon' is not a number, such as 10 or 2.5"),
    (["data", "pack", "DATA", "x", "--shard-size", "abc"], 2, "--shard-size 'abc' is not a whole number"),
    (["weights", "convert", "a", "b", "--to", "tim"], 2, "--to 'tim' is not known; did you mean 'timm'?"),
    (["train", "DATA", "--minutes", "nan"], 2, "patchword: minutes=nan must be greater than 0"),
    (["train", "DATA", "--epochs", "inf"], 2, "budget.epochs=inf is no number to work with"),
    (["train", "DATA", "--pflop", "1e300"], 2, "budget.pflop=1e+300 must lie in"),
    (["train", "DATA", "--set", "optimizer.lr=inf"], 2, "optimizer.lr=inf is no number"),
    (["train", "DATA", "--set", "schedule.warmup=nan"], 2, "schedule.warmup=nan is no number"),
    (["train", "DATA", "--set", "threads=100000"], 2, "threads=100000 must be at most"),
    (["train", "DATA", "--set", "checkpoint.keep=0"], 2, "checkpoint.keep=0 must be at least 1"),
    (["train", "DATA", "--set", "loading.memory_share=2"], 2, "loading.memory_share=2.0 must lie in"),
    (["train", "DATA", "--set", "model=ViT-Ti/16"], 2, "--set model=… says what --model says"),
    (["train", "DATA", "--model", "ViT-Ti/16", "--set", "model=5"], 2, "--set model=… says what --model says"),
    (["train", "DATA", "--seed", "1", "--set", "seed=2"], 2, "--seed alone is right"),
    (["train", "DATA", "--set", "data=x"], 2, "DATA alone is right"),
    (["train", "DATA", "--steps", "1", "--set", "budget.steps=2"], 2, "--set budget and --steps exclude each other"),
    (["train", "DATA", "--set", "objective=foo"], 2, "objective='foo' is not known; known: softmax, sigmoid"),
]


@pytest.mark.parametrize(("arguments", "code", "sentence"), WRONG)
def test_wrong_input_is_one_sentence(
    arguments: list[str], code: int, sentence: str, pictures: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    filled = [str(pictures) if argument == "DATA" else argument for argument in arguments]
    filled += ["--out", str(tmp_path / "out")] if arguments[0] == "train" else []
    assert call(*filled) == code
    *before, last = capsys.readouterr().err.strip().splitlines()
    assert len(before) <= (arguments[0] == "train")  # that it starts from nothing
    assert last.startswith("patchword: ")
    assert sentence in last
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").glob("*"))


def test_image_sizes() -> None:
    assert [parse_image_size(value) for value in (24, "24", "24x32", "24×32", (24, 32))] == [(24, 24), (24, 24)] + [
        (24, 32)
    ] * 3
    for wrong in ("0", "3x4x5", "x", "-3"):
        with pytest.raises(UsageError):
            parse_image_size(wrong)


def test_models_lists_what_can_be_made(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("models", "ViT-B/*") == 0
    rows = capsys.readouterr().out.strip().splitlines()
    assert [row.split()[0] for row in rows] == ["model", "ViT-B/8", "ViT-B/16", "ViT-B/32"]
    assert "86.57 M" in rows[2]


OPTIONS = {
    "train": "epochs help image-size init minutes model no-restart out pflop recipe restart seed set steps",
    "explain": "beside check data head help label layer map no-check out",
    "evaluate": "few-shot help mirror neighbours no-mirror no-neighbours no-probe out probe split",
    "compare": "help image-size minutes models out pflop pretrain pretrain-pflop recipe seeds set sizes",
    "paper": "data help minutes out scale seeds",
    "predict": "features help no-features out top",
    "data check": "decode help labels no-decode no-labels",
    "data pack": "help quality shard-size side",
    "weights check": "help set",
    "weights convert": "help no-trust-pickle set to trust-pickle",
    "models": "help",
}


def test_no_option_is_added_by_accident() -> None:
    """The snapshot of the command line: an option is added on purpose, here as well."""
    assert set(OPTIONS) == set(cli.VERBS)
    for verb, expected in OPTIONS.items():
        shown = subprocess.run(
            [sys.executable, "-m", "patchword.cli", *verb.split(), "--help"], capture_output=True, text=True, check=True
        ).stdout
        assert sorted(set(re.findall(r"--([a-z][a-z-]+)", shown))) == expected.split(), verb


def test_overview_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--help") == 0
    shown = capsys.readouterr().out
    for verb in cli.VERBS.values():
        assert verb.shown in shown
        assert verb.summary in shown
    assert call("weights", "--help") == 0
    shown = capsys.readouterr().out
    assert [name for name, verb in cli.VERBS.items() if verb.shown in shown] == ["weights check", "weights convert"]
    assert call("--version") == 0
    assert re.fullmatch(r"patchword \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_a_folder_of_new_pictures_is_evaluated_as_a_whole(trained: Path, pictures: Path, tmp_path: Path) -> None:
    """Class folders without splits: all of them where the model has seen none, else the tenth that is held out."""
    new = tmp_path / "new"
    for path in sorted((pictures / "test").rglob("*.png")):
        copy = new / path.parent.name / f"new-{path.name}"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    figures = patchword.evaluate(trained, new)
    assert (figures["split"], figures["n"]) == ("all", 21)
    # What it was trained on is not all counted, though one picture more makes it another set; nor after fine-tuning.
    (new / "ant" / "one-more.png").write_bytes(next((pictures / "test" / "ant").iterdir()).read_bytes())
    own = patchword.train(new, model="ViT-At/8", image_size=16, steps=1, out=tmp_path / "own", set=TINY[1:])
    assert patchword.evaluate(own, new)["split"] == "test"
    (new / "ant" / "another.png").write_bytes(next((pictures / "test" / "bee").iterdir()).read_bytes())
    assert patchword.evaluate(own, new)["split"] == "test"
    tuned = patchword.train(pictures, init=own, steps=1, out=tmp_path / "tuned", set=["batch_size=8"])
    assert patchword.evaluate(tuned, new)["split"] == "test"
    assert patchword.evaluate(own, new, split="all")["n"] == 23
    # A copy of the training split alone is recognised, too.
    assert patchword.evaluate(trained, pictures / "train")["split"] == "test"
    with pytest.raises(UsageError, match="came with its splits"):
        patchword.evaluate(own, pictures, split="all")


def test_python_takes_what_people_pass(trained: Path, pictures: Path, tmp_path: Path) -> None:
    model = load_model(trained)
    one = next((pictures / "test" / "ant").iterdir())
    [row] = patchword.predict(model, one)
    [same] = patchword.predict(str(trained), [str(one)])
    assert row["predictions"] == same["predictions"]
    assert patchword.evaluate(model, pictures)["value"] == patchword.evaluate(trained, str(pictures))["value"]
    settings = {"optimizer.lr": 2e-3, "augment.flip": False, "augment.crop": "shift", "augment.crop_area": (0.5, 1.0)}
    run = patchword.train(pictures, steps=1, image_size=16, model="ViT-At/8", set=settings, out=tmp_path / "other")
    stored = recipes.load(str(run / "recipe.toml"))
    assert (stored.optimizer.lr, stored.augment.flip, stored.augment.crop_area) == (2e-3, False, (0.5, 1.0))


def test_several_labels_are_predicted_each_on_its_own(trained: Path, pictures: Path, tmp_path: Path) -> None:
    model = load_model(trained)
    model.multi_label = True
    save_model(model, tmp_path / "model")
    one = next((pictures / "test" / "ant").iterdir())
    [row] = patchword.predict(tmp_path / "model", one)
    with torch.inference_mode():
        logits = model(model.preprocess(Image.open(one)))[0]
    expected = dict(zip(model.labels or (), logits.sigmoid().tolist(), strict=True))
    assert {each["label"]: each["probability"] for each in row["predictions"]} == pytest.approx(expected)


def test_one_answer_is_right_if_it_is_among_several_labels(
    trained: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ReaL (arXiv 2006.07159): what the model says first counts, and pictures without a label do not."""
    folder = pictures / "test"
    names = sorted(str(path.relative_to(pictures)) for path in folder.rglob("*.png"))
    (folder / "bee/000.png").write_bytes(b"broken")
    said = {
        row["image"]: row["predictions"][0]["label"]
        for row in patchword.predict(trained, folder)
        if "predictions" in row
    }
    labels = {name: ("ant|cat", "bee", "", "cat;bee")[place % 4] for place, name in enumerate(names)}
    rows = [f"{name},{label},test" for name, label in labels.items()]
    (pictures / "real.csv").write_text("\n".join(["image,label,split", *rows]))
    assert call("evaluate", trained, pictures / "real.csv", "--out", tmp_path / "real.json") == 0
    shown = capsys.readouterr().out
    figures = json.loads((tmp_path / "real.json").read_text())
    by_name = {str(Path(name).relative_to(pictures)): label for name, label in said.items()}
    right = [name for name, label in labels.items() if by_name.get(name, "?") in label.replace(";", "|").split("|")]
    unlabelled = sum(label == "" for label in labels.values())
    assert (figures["metric"], figures["n"], figures["unlabelled"]) == ("real_accuracy", 21 - unlabelled, unlabelled)
    assert 0 < figures["correct"] == len(right) < figures["n"]
    assert f"{len(right)} of {21 - unlabelled} test pictures are given one of their labels" in shown
    assert f"{unlabelled} more have no label and do not count" in shown
    # A model that was trained to answer yes or no to each label is asked each of them.
    model = load_model(trained)
    model.multi_label = True
    assert patchword.evaluate(model, pictures / "real.csv")["metric"] == "mean_average_precision"


def test_the_balanced_accuracy_is_shown_where_classes_differ_in_size(
    trained: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("evaluate", trained, pictures) == 0
    assert "balanced" not in capsys.readouterr().out
    for number in range(3):
        (pictures / f"test/cat/00{number}.png").unlink()
    figures = patchword.evaluate(trained, pictures)
    recalls = [row["correct"] / row["n"] for row in figures["classes"]]
    assert figures["balanced"]["value"] == pytest.approx(sum(recalls) / 3)
    assert call("evaluate", trained, pictures) == 0
    assert f"balanced    {100 * sum(recalls) / 3:.2f} % (95 % interval" in capsys.readouterr().out


def test_classes_without_names_are_the_data_sets_in_order(
    trained: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As timm's checkpoints have them; another number of classes cannot be compared."""
    model = load_model(trained)
    named = patchword.evaluate(model, pictures)
    model.labels = None
    assert patchword.evaluate(model, pictures)["confusion"] == named["confusion"]
    assert "does not name its classes; they are taken for the data set's" in capsys.readouterr().err
    with pytest.raises(UsageError, match="does not name its 5 classes, and .* has 3"):
        patchword.evaluate(load_model(trained, num_classes=5), pictures)
    with pytest.raises(UsageError, match="has no head, so it names nothing; --probe or --few-shot"):
        patchword.evaluate(load_model(trained, num_classes=0), pictures)
    with pytest.raises(UsageError, match="has no head, so it names nothing"):
        patchword.predict(load_model(trained, num_classes=0), next((pictures / "test" / "ant").iterdir()))
