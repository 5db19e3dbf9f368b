"""Weights that come with the package: whole, small, told of; taken where they fit and nowhere else."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import patchword as pw
from conftest import write_pictures
from patchword import cli
from patchword.core.errors import UsageError
from patchword.data.sources import open_data
from patchword.models.names import create_model
from patchword.training import recipe as recipes
from patchword.training import start
from patchword.training.objectives import UNLABELLED
from patchword.weights import folder, hub, shipped
from patchword.weights.io import load_model, save_model

LOGITS = {
    "small-hybrid": [0.888, -1.381, -0.177, 2.089, -0.161, -0.349],
    "small-plain": [4.302, -1.032, 0.022, 0.470, -1.115, -0.585],
}
"""What comes with the package, and the first it says of one drawn picture: weights that never learned say something else."""


def test_what_is_shipped_is_all_there() -> None:
    assert shipped.names() == list(LOGITS)


@pytest.mark.parametrize("name", LOGITS)
def test_what_is_shipped_has_learned(name: str) -> None:
    model = load_model(f"shipped:{name}").eval()
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in model.image_size), indexing="ij")
    with torch.no_grad():
        said = model(torch.stack([y, x, y * x])[None])[0]
    torch.testing.assert_close(said[:6], torch.tensor(LOGITS[name]), rtol=0, atol=1e-2)


@pytest.mark.parametrize("name", LOGITS)
def test_what_is_shipped_is_small_whole_and_told_of(name: str) -> None:
    place = shipped.FOLDER / name
    assert sum(file.stat().st_size for file in place.iterdir()) <= 8e6
    model = load_model(f"shipped:{name}")
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    card = (place / "README.md").read_text("utf-8")
    for what in ("PFLOP", "pictures", "accuracy", "Apache-2.0", "stage 1"):
        assert what in card, what
    assert model.labels is not None
    shares = model.probabilities(torch.randn(2, 3, *model.image_size, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(shares.sum(1), torch.ones(2))


@pytest.fixture
def ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with one tiny model in it."""
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "shipped")
    torch.manual_seed(0)
    model = create_model("C3+ViT-At/8", 3, 32, depth=1, embed_dim=16, mlp_dim=24, num_heads=2, pool="gap")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.labels = ("x", "y", "z")
    folder.save(model, tmp_path / "shipped/tiny", half=True)
    return tmp_path


@pytest.fixture
def small_pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for name in ("ant", "bee"):
            place = tmp_path / "data" / split / name
            place.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(rng.integers(0, 256, (30, 30, 3), np.uint8)).save(place / f"{number}.png")
    return tmp_path / "data"


def test_half_as_large_and_computed_with_in_full(ours: Path) -> None:
    model = load_model("shipped:tiny")
    full = ours / "full"
    folder.save(model, full)
    halves, wholes = ((place / folder.WEIGHTS).stat().st_size for place in (ours / "shipped/tiny", full))
    assert halves < 0.6 * wholes
    for value in model.state_dict().values():
        assert not value.is_floating_point() or torch.equal(value, value.half().float())


def test_auto_takes_what_fits_and_says_so(ours: Path, small_pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = pw.train(str(small_pictures), steps=2, out=str(ours / "auto"))
    assert "starting from weights that come with patchword, tiny" in capsys.readouterr().err
    result = json.loads((run / "result.json").read_text())
    assert result["init"].startswith("shipped:tiny (C3+ViT-At/8 at 32×32)")
    assert result["image_size"] == [32, 32]
    again = pw.train(str(small_pictures), steps=2, out=str(ours / "auto"))  # the same command: the same run
    assert again == run
    assert "holds this run, finished" in capsys.readouterr().err
    large = pw.train(str(small_pictures), steps=2, image_size=48, out=str(ours / "large"))
    assert json.loads((large / "result.json").read_text())["image_size"] == [48, 48]


@pytest.mark.parametrize(
    "wish",
    [
        {"init": "none"},
        {"model": "ViT-At/8", "image_size": 32},
        {"model": "C3+ViT-At/8", "image_size": 32},
        {"image_size": 72, "model": "ViT-At/8"},
        {"image_size": 30, "model": "ViT-At/6"},
        {"image_size": 136},
        {"image_size": 30},
    ],
)
def test_auto_takes_nothing_where_nothing_fits(wish: dict[str, object], ours: Path, small_pictures: Path) -> None:
    """Another architecture, another size, or nothing wanted; the named hybrid has six blocks and not one.

    Without a model's name the size alone decides: too large, or no multiple of the stride.
    """
    run = pw.train(str(small_pictures), steps=1, out=str(ours / "run"), **wish)  # pyright: ignore[reportArgumentType]
    assert json.loads((run / "result.json").read_text())["init"] == "none"


@pytest.mark.parametrize("name", shipped.names())
def test_the_help_of_train_names_what_is_shipped(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.run(["train", "--help"])
    assert f"shipped:{name}" in capsys.readouterr().out


@pytest.mark.parametrize("objective", UNLABELLED)
def test_auto_takes_no_convolutions_where_patches_are_hidden(objective: str, small_pictures: Path) -> None:
    """The first that fits would be the hybrid; what is hidden would show through its convolutions."""
    wish = {"data": str(small_pictures), "objective": objective, "image_size": [32, 32], "budget": {"steps": 1}}

    def with_weights(found: str) -> recipes.Recipe:
        return recipes.load("finetune/muon", {**wish, "init": found})

    dataset = open_data(small_pictures, labelled=False)
    decided, said = start.decide_start(with_weights("auto"), with_weights, dataset, lambda _: None)
    assert decided.init == "shipped:small-plain"
    assert said.startswith("starting from weights that come with patchword, small-plain")


def test_they_fit_every_wished_field_and_images_of_up_to_128(ours: Path) -> None:
    there = {"family": "early-conv", "depth": 1, "stem_channels": (16, 48, 96)}
    assert shipped.fitting({}, (64, 64)) == shipped.fitting(there, (8, 64)) == "tiny"
    assert shipped.fitting(there, (128, 64)) == shipped.fitting(there, (64, 128)) == "tiny"
    assert shipped.fitting(there, (129, 64)) is shipped.fitting(there, (64, 136)) is None
    for field, value in (("family", "vit"), ("depth", 2), ("stem_channels", (16, 48)), ("no_such", 1)):
        assert shipped.fitting({**there, field: value}, (32, 32)) is None


@pytest.mark.parametrize(
    ("side", "budget", "size"),
    [
        (20, {"epochs": 99}, 24),
        (24, {"pflop": 1}, 24),
        (33, {"steps": 7}, 40),
        (64, {"minutes": 99}, 64),
        (65, {"epochs": 99}, 64),
        (65, {"steps": 99}, 64),
        (300, {"pflop": 16 * 7.9 * 2.341e-6}, 64),
        (300, {"pflop": 16 * 8.1 * 2.341e-6}, 96),
        (300, {"minutes": 16 * 8.1 * 2.341e9 / 60e9 / 60}, 96),
        (300, {"pflop": 1}, 128),
    ],
)
def test_auto_sees_small_pictures_whole_and_larger_ones_as_the_budget_says(
    side: int, budget: dict[str, float], size: int, ours: Path, tmp_path: Path
) -> None:
    """Small ones at the next multiple of eight; larger ones at 96 px if there is time for eight looks at each of the 16."""
    data = tmp_path / "pictures"
    for split, count in (("train", 8), ("test", 1)):
        write_pictures(data / split, ("ant", "bee"), count, side)
    wish = {"data": str(data), "init": "auto", "budget": budget, "threads": 2}
    scratch, finetune = (recipes.load(name, wish) for name in ("scratch", "finetune"))
    asked: list[str] = []

    def with_weights(found: str) -> recipes.Recipe:
        asked.append(found)
        return dataclasses.replace(finetune, init=found)

    decided, said = start.decide_start(scratch, with_weights, open_data(str(data)), lambda _: None)
    assert asked == ["auto", "shipped:tiny"]
    assert (decided.init, decided.image_size) == ("shipped:tiny", (size, size))
    assert "tiny" in said


def test_what_muon_has_trained_is_fine_tuned_by_muon(ours: Path, small_pictures: Path) -> None:
    """The weights of the package, and a run whose recipe says so; and so on from run to run. All else by AdamW."""

    def trained(out: str, **options: Any) -> tuple[Path, recipes.Recipe]:
        run = pw.train(str(small_pictures), steps=1, out=str(ours / out), **options)
        return run, recipes.load(str(run / "recipe.toml"))

    first, by_muon = trained("first")
    assert (by_muon.name, by_muon.optimizer.name, by_muon.init) == ("finetune/muon", "muon", "shipped:tiny")
    assert trained("second", init=str(first))[1].name == "finetune/muon"
    nothing, scratch = trained("nothing", init="none", model="ViT-At/8")
    assert (scratch.name, scratch.optimizer.name) == ("scratch", "adamw")
    assert trained("after", init=str(nothing))[1].name == "finetune"
    (nothing / "recipe.toml").write_text("optimizer = 3")
    assert start.preset_for(str(nothing)) == "finetune"
    by_wish, _ = trained("wish", init="none", model="ViT-At/8", recipe="scratch", set=["optimizer.name=muon"])
    for run, preset in ((first, "finetune/muon"), (by_wish, "finetune/muon"), (nothing, "finetune")):
        model = run / "model"
        save_model(load_model(model), ours / f"{run.name}-copy")
        assert {
            start.preset_for(str(place)) for place in (model, model / folder.WEIGHTS, ours / f"{run.name}-copy")
        } == {preset}


@pytest.mark.parametrize("name", shipped.names())
def test_a_copy_of_the_packages_weights_is_fine_tuned_as_they_are(name: str) -> None:
    assert start.preset_for(str(shipped.FOLDER / name)) == start.preset_for(f"shipped:{name}") == "finetune/muon"


@pytest.mark.parametrize(
    "description",
    [
        "{",
        "[1]",
        '{"provenance": 3}',
        *(f'{{"provenance": {{"optimizer": {it}}}}}' for it in ('"gone"', "[3]", '["muon"]')),
    ],
)
def test_a_damaged_description_does_not_stop_the_choice_of_a_preset(description: str, tmp_path: Path) -> None:
    (tmp_path / folder.DESCRIPTION).write_text(description)
    assert start.preset_for(str(tmp_path)) == "finetune"


def test_auto_takes_them_for_their_own_architecture(ours: Path, small_pictures: Path) -> None:
    fields = {"depth": 1, "embed_dim": 16, "mlp_dim": 24, "num_heads": 2}
    wanted = [f"model.{name}={value}" for name, value in fields.items()]
    run = pw.train(str(small_pictures), model="C3+ViT-At/8", steps=1, set=wanted, out=str(ours / "run"))
    assert json.loads((run / "result.json").read_text())["init"].startswith("shipped:tiny")


def test_auto_takes_them_for_the_model_of_a_recipe_when_asked(small_pictures: Path, tmp_path: Path) -> None:
    wishes: list[tuple[dict[str, Any], str]] = [
        ({"init": "auto"}, "shipped:small-plain (ViT-Fe/4 at 32×32)"),
        ({}, "none"),
    ]
    for wish, taken in wishes:
        run = pw.train(str(small_pictures), recipe="speedrun/plain-0.1", steps=1, out=str(tmp_path / taken[:4]), **wish)
        assert json.loads((run / "result.json").read_text())["init"].startswith(taken)


def test_auto_takes_the_hubs_for_a_named_model_and_stays_with_what_it_began_with(
    ours: Path, small_pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    folder.save(create_model("ViT-At/8", 3, 32), ours / "hub")
    address = "hf://org/name"
    monkeypatch.setattr(hub, "PUBLISHED", {"ViT-At/8": address})
    real = hub.locate
    monkeypatch.setattr(hub, "locate", lambda source: ours / "hub" if source == address else real(source))
    at_hand: list[str | None] = [address]
    monkeypatch.setattr(hub, "at_hand", lambda model: at_hand[0] if model == "ViT-At/8" else None)

    def train(out: str, **wish: Any) -> tuple[str, str]:
        place = pw.train(str(small_pictures), out=str(ours / out), steps=1, **{"model": "ViT-At/8", **wish})
        return json.loads((place / "result.json").read_text())["init"], capsys.readouterr().err

    init, said = train("run")
    assert init.startswith("hf://org/name (ViT-At/8 at 32×32)")
    assert "starting from hf://org/name (--init none starts from nothing)" in said
    at_hand[0] = None  # the network is gone: it is the same run
    again, said = train("run")
    assert again == init
    assert "holds this run, finished" in said
    init, said = train("other")
    assert init == "none"
    assert "and the hub does not answer" in said
    at_hand[0] = address  # it is back: what began from nothing stays so, until it is begun again
    assert train("other")[0] == "none"
    assert train("other", restart=True)[0].startswith(address)
    assert train("fields", set=["model.depth=2"])[0] == "none"  # no model that others have


def test_an_unknown_name_is_refused(ours: Path) -> None:
    with pytest.raises(UsageError, match="no weights called 'tny' come with patchword; did you mean 'tiny'"):
        load_model("shipped:tny")
