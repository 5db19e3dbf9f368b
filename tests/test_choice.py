"""What is trained where no model is named: the hybrid or the ViT, its width, and the pixels at which it looks."""

from pathlib import Path
from typing import Any

import pytest
import torch

import patchword as pw
from patchword.core.errors import DataError
from patchword.data.sources import open_data
from patchword.models.cost import cost
from patchword.models.names import create_model
from patchword.training import choice
from patchword.training import recipe as recipes
from patchword.training.choice import assumed_speed, choose_model, choose_side
from patchword.training.pictures import look_at
from patchword.training.recipe import Budget, Recipe
from patchword.training.start import preset_from_nothing


@pytest.mark.parametrize(("looks", "chosen"), [(19.5, "ViT-At/4"), (20.5, "ViT-Fe/4")])
def test_a_larger_model_is_chosen_for_twenty_looks(looks: float, chosen: str) -> None:
    """50,000 pictures are enough for the parameters of either."""
    with torch.device("meta"):
        flops = cost(create_model("ViT-Fe/4", 0, 32)).train_flops
    budget = Budget(pflop=looks * flops * 50_000 / 1e15)
    assert choose_model(budget, 50_000, (32, 32), None, {}, 1.0)[0] == (chosen, {}, (32, 32))


HYBRID = {"pool": "gap", "depth": 1, "stem_depth": 2, "stem_whitening": 24}


@pytest.mark.parametrize(
    ("shape", "pictures", "gigaflops", "width", "side"),
    [
        ((300, 400), 50_000, 0.1, 64, 64),  # less than eight looks, whatever is chosen
        ((300, 400), 50_000, 8 * 1.03, 64, 64),
        ((300, 400), 50_000, 8 * 1.04, 128, 64),
        ((300, 400), 50_000, 8 * 2.35, 128, 96),
        ((300, 400), 50_000, 8 * 4.21, 128, 128),
        ((300, 400), 50_000, 8 * 15.2, 256, 128),
        ((300, 400), 300, 8 * 15.2, 64, 64),  # 650,000 parameters would learn them by heart
        ((300, 400), 1_300, 8 * 15.2, 128, 128),
        ((28, 28), 50_000, 8 * 0.25, 64, 32),
        ((28, 28), 50_000, 8 * 0.27, 128, 32),
        ((28, 28), 50_000, 8 * 1.1, 256, 32),
    ],
)
def test_a_hybrid_grows_in_width_and_pixels_with_eight_looks(
    shape: tuple[int, int], pictures: int, gigaflops: float, width: int, side: int
) -> None:
    """GFLOP of training for each picture: 0.307 of width 64 at 64 px, 1.033, 2.341, 4.206 of 128 at 64, 96, 128; 15.18 of 256."""
    chosen, reason = choose_model(Budget(pflop=gigaflops * pictures / 1e6), pictures, shape, None, HYBRID, 1.0)
    assert (chosen.options["embed_dim"], chosen.image_size) == (width, (side, side))
    assert chosen.options["stem_channels"] == [width // 4, width, width]
    assert chosen.options.items() >= HYBRID.items()
    assert f"{chosen.name} at {side}×{side} px suits {pictures:,} pictures" in reason


@pytest.mark.parametrize("budget", [Budget(epochs=500), Budget(steps=10**9)])
def test_a_hybrid_stays_small_where_nobody_says_how_long_it_may_take(budget: Budget) -> None:
    assert choose_model(budget, 10**6, (300, 300), None, HYBRID, 1.0)[0].image_size == (64, 64)
    assert choose_model(budget, 10**6, (300, 300), None, HYBRID, 1.0)[0].options["embed_dim"] == 128
    asked = choose_model(budget, 10**6, (300, 300), (96, 160), {**HYBRID, "embed_dim": 32}, 1.0)[0]
    assert (asked.image_size, asked.options["embed_dim"]) == ((96, 160), 32)


@pytest.mark.parametrize(("speed", "width", "side"), [(60e9, 64, 64), (63e9, 128, 64), (6e12, 256, 128)])
def test_minutes_are_worth_what_the_machine_does_in_them(speed: float, width: int, side: int) -> None:
    """So many minutes at 62 GFLOP/s are eight looks of width 128 at each picture."""
    budget, pictures = Budget(minutes=8 * 1.033 * 2_250 / 62 / 60), 2_250
    chosen, _ = choose_model(budget, pictures, (300, 400), None, HYBRID, speed)
    assert (chosen.options["embed_dim"], chosen.image_size) == (width, (side, side))
    assert choose_side(budget, pictures, speed) == side


def test_a_gpu_and_more_cores_are_thought_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "usable_cores", lambda: 3)
    assert assumed_speed(Recipe(device="cpu")) == 9e10
    assert assumed_speed(Recipe(device="cpu", threads=7)) == 2.1e11
    monkeypatch.setattr(choice, "choose_device", torch.device)
    assert assumed_speed(Recipe(device="cuda")) == 6e12


@pytest.mark.parametrize(
    ("wanted", "preset"),
    [
        ({}, "hybrid"),
        ({"image_size": (96, 64)}, "hybrid"),
        ({"image_size": [96, 60]}, "scratch"),
        ({"model": {"pool": "map"}}, "hybrid"),
        ({"model": {"name": "ViT-At/8"}}, "scratch"),
        ({"model": {"patch_size": 4}}, "scratch"),
        ({"objective": "sigmoid"}, "hybrid"),
        ({"objective": "masked-patch"}, "scratch"),
        ({"objective": "masked-autoencoder"}, "scratch"),
    ],
)
def test_without_a_models_name_a_hybrid_learns_from_nothing(wanted: dict[str, Any], preset: str) -> None:
    assert preset_from_nothing(wanted) == preset


def test_a_hybrid_learns_where_nothing_is_named(pictures: Path, tmp_path: Path) -> None:
    """Its width is in its recipe, and the same command goes on."""
    folder = pw.train(str(pictures), init="none", steps=2, out=str(tmp_path / "run"))
    recipe = recipes.load(str(folder / "recipe.toml"))
    assert (recipe.name, recipe.optimizer.name, recipe.image_size) == ("hybrid", "muon", (16, 16))
    assert (recipe.model["embed_dim"], recipe.model["stem_channels"]) == (64, [16, 64, 64])
    assert pw.train(str(pictures), init="none", steps=2, out=str(tmp_path / "run")) == folder


def test_pictures_of_which_none_can_be_read_are_counted_as_they_are(pictures: Path) -> None:
    for picture in (pictures / "train").rglob("*.png"):
        if picture.stem < "002":
            picture.write_bytes(b"no picture")
        else:
            picture.unlink()
    with pytest.raises(DataError, match=r"none of 6 training pictures can be read \(.*/000.png is the first\)"):
        look_at(open_data(str(pictures)).splits["train"])
