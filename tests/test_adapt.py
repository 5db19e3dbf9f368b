"""Adapting: each thing by its definition, in NumPy or by hand; what was not asked for stays to the bit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from patchword.core import config
from patchword.core.errors import UsageError
from patchword.core.preprocessing import Preprocessing
from patchword.models.contract import Model
from patchword.models.names import create_model
from patchword.models.position import Resampling
from patchword.models.vit import ViT
from patchword.training import recipe as recipes
from patchword.training.run import run
from patchword.weights.adapt import adapt, resize_projection
from patchword.weights.io import load_model, save_model

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def filled(name: str, image_size: tuple[int, int], channels: int = 3, **options: Any) -> Model:
    """A model with random numbers everywhere, also where training begins with zeros."""
    torch.manual_seed(3)
    model = create_model(name, 5, image_size, channels, **options)
    for parameter in model.parameters():
        if parameter.ndim < 2:
            nn.init.normal_(parameter, std=0.2)
    nn.init.normal_(model.get_parameter("head.weight"))
    model.labels = ("a", "b", "c", "d", "e")
    model.provenance = {"source": "there"}
    return model.eval()


def vit(image_size: tuple[int, int] = (15, 21), patch: int = 3, **options: Any) -> ViT:
    """A grid of 5×7."""
    model = filled(f"ViT-At/{patch}", image_size, depth=2, embed_dim=24, num_heads=3, mlp_dim=29, **options)
    assert isinstance(model, ViT)
    return model


def grey_picture(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8))


def normalised(model: Model, statistics: dict[str, Any]) -> None:
    model.preprocessing = Preprocessing(image_size=model.image_size, resize="stretch", **statistics)


WIDE: dict[str, dict[str, Any]] = {
    # 64 channels in 32 groups: a norm cannot undo that two channels of a group were scaled differently.
    "R5+ViT-Fe/4": {"depth": 1, "stem_width": 64},
    "BiT-R26x0.5": {"units": (1,), "width": 64},
}


@torch.no_grad()
@pytest.mark.parametrize("statistics", [{}, IMAGENET])
def test_a_grey_picture_gives_the_same_as_its_three_colours(statistics: dict[str, Any]) -> None:
    model = vit()
    normalised(model, statistics)
    picture = grey_picture(15, 21)
    expected = model(model.preprocess(picture))
    grey, changes = adapt(model, in_channels=1)
    assert changes == ["input channels 3 → 1, the colours' weights summed"]
    assert grey.preprocess(picture).shape == (1, 1, 15, 21)
    torch.testing.assert_close(grey(grey.preprocess(picture)), expected, rtol=1e-5, atol=2e-5)
    assert grey.preprocessing.mean == (pytest.approx(sum(model.preprocessing.mean) / 3),)
    assert (grey.labels, grey.provenance, grey.training) == (model.labels, {"source": "there"}, False)


def test_colours_are_summed_exactly() -> None:
    """Integers: no rounding may hide a swapped axis."""
    model = vit()
    weight = torch.arange(24.0 * 3 * 9).reshape(24, 3, 3, 3)
    with torch.no_grad():
        model.patch_embed.weight.copy_(weight.flatten(1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    grey, _ = adapt(model, in_channels=1)
    after = grey.state_dict()
    assert torch.equal(after.pop("patch_embed.weight"), weight.sum(1).flatten(1))
    for name, value in after.items():
        assert torch.equal(value, before[name]), name


@torch.no_grad()
@pytest.mark.parametrize("name", ["ViT-At/3", "EfficientNet-B0", *WIDE])
def test_colours_take_a_third_each(name: str) -> None:
    model = filled(name, (36, 60), 1, **WIDE.get(name, {}))
    normalised(model, {"mean": (0.3,), "std": (0.2,)})
    picture, last = grey_picture(36, 60), "pre_logits" if name in WIDE else "stem"
    expected = model.intermediates(model.preprocess(picture), [last])[last]
    colours, changes = adapt(model, in_channels=3)
    assert changes == ["input channels 1 → 3, a third of the weights for each colour"]
    assert (colours.preprocessing.mean, colours.preprocessing.std) == ((0.3,) * 3, (0.2,) * 3)
    given = colours.intermediates(colours.preprocess(picture), [last])[last]
    assert expected.std() > 0.05
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_plain_convolution_is_exact_where_the_colours_are_normalised_alike() -> None:
    model = filled("EfficientNet-B0", (36, 60))
    normalised(model, {})
    picture = grey_picture(36, 60)
    expected = model.intermediates(model.preprocess(picture), ["stem"])["stem"]
    grey, [change] = adapt(model, in_channels=1)
    assert change == "input channels 3 → 1, the colours' weights summed"
    given = grey.intermediates(grey.preprocess(picture), ["stem"])["stem"]
    assert expected.std() > 0.1
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)
    normalised(model, IMAGENET)
    _, [change] = adapt(model, in_channels=1)
    assert change.endswith("summed (outputs for grey pictures come near, not equal)")


@torch.no_grad()
@pytest.mark.parametrize("name", WIDE)
def test_a_standardised_convolution_says_that_it_only_comes_near(name: str) -> None:
    model = filled(name, (36, 60), **WIDE[name])
    normalised(model, {})
    picture = grey_picture(36, 60)
    expected = model(model.preprocess(picture))
    grey, [change] = adapt(model, in_channels=1)
    assert change.endswith("summed (outputs for grey pictures come near, not equal)")
    difference = (grey(grey.preprocess(picture)) - expected).abs().max()
    assert 1e-4 < difference < expected.abs().max()


@pytest.mark.parametrize("resampling", ["official", "bicubic"])
def test_what_fits_already_is_left_to_the_bit(resampling: Resampling) -> None:
    model = vit()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    same, changes = adapt(
        model, labels=model.labels, image_size=(15, 21), patch_size=3, in_channels=3, resampling=resampling
    )
    assert same is model
    assert changes == []
    for name, value in same.state_dict().items():
        assert torch.equal(value, before[name]), name


def with_coordinates(model: ViT) -> ViT:
    """The first two channels of every position say its row and its column."""
    rows, columns = torch.meshgrid(torch.arange(5.0), torch.arange(7.0), indexing="ij")
    with torch.no_grad():
        model.position.table[1:, 0] = rows.flatten()
        model.position.table[1:, 1] = columns.flatten()
    return model


@pytest.mark.parametrize("resampling", ["official", "bicubic"])
@pytest.mark.parametrize("by_patch", [False, True])
def test_grids_that_are_not_square_keep_their_orientation(resampling: Resampling, by_patch: bool) -> None:
    """5×7 → 11×13 patches, by a larger image or by smaller patches in the same one."""
    model = with_coordinates(vit() if not by_patch else vit((5 * 143, 7 * 143), 143))
    token = model.position.table[0].clone()
    if by_patch:
        other, changes = adapt(model, image_size=(11 * 65, 13 * 65), patch_size=65, resampling=resampling)
        assert changes[0] == "patch size 143×143 → 65×65, projection resampled"
    else:
        other, changes = adapt(model, image_size=(33, 39), resampling=resampling)
        assert changes[0].startswith("image size 15×21 → 33×39, ")
    assert changes[-1].endswith(f"position embedding resampled in 2-D from 5×7 to 11×13 patches ({resampling})")
    assert isinstance(other, ViT)
    assert torch.equal(other.position.table[0], token)
    moved = other.position.table[1:].reshape(11, 13, 24)
    torch.testing.assert_close(moved[:, :, 0], moved[:, :1, 0].expand(-1, 13))
    torch.testing.assert_close(moved[:, :, 1], moved[:1, :, 1].expand(11, -1))
    rows, columns = moved[:, 0, 0], moved[0, :, 1]
    if resampling == "official":
        torch.testing.assert_close(rows, torch.linspace(0, 4, 11))
        torch.testing.assert_close(columns, torch.linspace(0, 6, 13))
    assert (rows.diff() > -0.05).all()
    assert (columns.diff() > -0.05).all()
    assert rows.max() > 3.9 < columns.max()


def test_the_ways_of_resampling_differ() -> None:
    tables = []
    for resampling in ("official", "bicubic"):
        other, _ = adapt(vit(), image_size=(33, 39), resampling=resampling)
        tables.append(other.get_parameter("position.table"))
    assert (tables[0] - tables[1]).abs().max() > 0.01


def bilinear(old: int, new: int) -> np.ndarray:
    """The matrix new × old of linear interpolation between pixel centres, the outermost held beyond the edge."""
    matrix = np.zeros((new, old))
    for i in range(new):
        place = min(max((i + 0.5) * old / new - 0.5, 0), old - 1)
        low = int(place)
        high = min(low + 1, old - 1)
        matrix[i, low] += 1 - (place - low)
        matrix[i, high] += place - low
    return matrix


@pytest.mark.parametrize(("old", "new"), [(3, 7), (7, 3), (5, 5), (16, 17), (2, 13)])
def test_the_projection_is_the_least_squares_one(old: int, new: int) -> None:
    """FlexiViT's definition, not factored by axes: w' of least norm among those that minimise ‖Bᵀ w' − w‖."""
    kernel = np.random.default_rng(1).normal(size=(2, old, old))
    resize = np.kron(bilinear(old, new), bilinear(old, new))  # Q² × P²
    expected = np.stack([np.linalg.lstsq(resize.T, each.reshape(-1), rcond=None)[0] for each in kernel])
    ours = resize_projection(torch.from_numpy(kernel), new)
    np.testing.assert_allclose(ours.numpy().reshape(2, -1), expected, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 3])
def test_resized_patches_are_the_same_words(channels: int) -> None:
    """Patches resized by themselves, on the same grid: the words, and so the logits, are the same."""
    model = filled("ViT-At/3", (15, 21), channels, depth=2)
    images = torch.randn(2, channels, 15, 21)
    patches = images.unfold(2, 3, 3).unfold(3, 3, 3).reshape(-1, 1, 3, 3)
    larger = F.interpolate(patches, size=(11, 11), mode="bilinear").reshape(2, channels, 5, 7, 11, 11)
    larger = larger.permute(0, 1, 2, 4, 3, 5).reshape(2, channels, 55, 77)
    expected, words = model(images), model.intermediates(images, ["stem"])["stem"]
    other, changes = adapt(model, image_size=(55, 77), patch_size=11)
    assert changes == ["patch size 3×3 → 11×11, projection resampled", "image size 15×21 → 55×77"]
    assert (other.name, other.architecture["patch_size"], other.grid) == ("ViT-At/11", 11, (5, 7))
    torch.testing.assert_close(other.intermediates(larger, ["stem"])["stem"], words, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(other(larger), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "asked", "message"),
    [
        ("R5+ViT-Fe/4", {"depth": 1}, {"patch_size": 8}, r"R5\+ViT-Fe/4 cannot change its patch size to 8: its first"),
        ("BiT-R26x0.5", {}, {"patch_size": 8}, "BiT-R26x0.5 cannot change its patch size to 8"),
        ("EfficientNet-B0", {}, {"patch_size": 8}, "EfficientNet-B0 cannot change its patch size to 8"),
        ("ViT-At/4", {}, {"patch_size": 7}, "36×60 is not divided by the patch of 7×7; 35×56 or 42×63 would be right"),
        ("ViT-At/4", {}, {"patch_size": 0}, "model.patch_size=0 must be at least 1"),
        ("ViT-At/4", {}, {"patch_size": 10**9}, "is not divided by the patch of 1000000000×1000000000"),
        ("ViT-At/4", {}, {"in_channels": 2}, r"in_channels=2 is not known; 1 \(grey\) or 3 \(RGB\) are right"),
        ("ViT-At/4", {}, {"resampling": "bicubik"}, "resampling='bicubik' is not known; did you mean 'bicubic'?"),
        ("ViT-At/4", {}, {"num_classes": 2, "hidden_head": True}, "which ViT-At/4 does not have"),
        ("BiT-R26x0.5", {}, {"num_classes": 2, "hidden_head": True}, "which BiT-R26x0.5 does not have"),
    ],
)
def test_what_a_model_cannot_become_is_refused(
    name: str, options: dict[str, Any], asked: dict[str, Any], message: str
) -> None:
    model = filled(name, (36, 60), **options)
    with pytest.raises(UsageError, match=message):
        adapt(model, **asked)


@pytest.mark.parametrize("keep", [False, True])
def test_a_new_head_stands_on_the_tanh_layer_only_by_choice(keep: bool, tmp_path: Path) -> None:
    model = vit(hidden_head=True)
    assert model.pre_logits is not None
    layer, images = model.pre_logits.weight.detach().clone(), torch.randn(2, 3, 15, 21)
    pooled = model.pool(model.encode(model.embed(images))).detach()
    other, changes = adapt(model, num_classes=3, hidden_head=keep)
    what = "kept under the new head" if keep else "dropped"
    assert changes == [
        "new zero-initialised head for 3 classes (it had 5)",
        f"the pre-training head's tanh layer {what}",
    ]
    assert other(images).tolist() == [[0, 0, 0]] * 2
    assert isinstance(other, ViT)
    features = other.features(images)
    if keep:
        assert other.pre_logits is not None
        assert torch.equal(other.pre_logits.weight, layer)
        torch.testing.assert_close(features, pooled)
    else:
        assert other.pre_logits is None
        torch.testing.assert_close(features, other.encode(other.embed(images))[:, 0])
    save_model(other, tmp_path / "m")
    assert load_model(tmp_path / "m").architecture["hidden_head"] is keep


def test_features_keep_the_tanh_layer() -> None:
    model, changes = adapt(vit(hidden_head=True), num_classes=0)
    assert changes == ["the head for 5 classes is left out"]
    assert model(torch.randn(1, 3, 15, 21)).abs().max() <= 1


def test_without_a_label_there_is_no_head_and_no_layer_before_one() -> None:
    model, changes = adapt(vit(hidden_head=True), labels=())
    assert changes == ["the head for 5 classes is left out", "the pre-training head's tanh layer dropped"]
    assert (model.labels, model.num_classes, model.pre_logits) == (None, 0, None)
    assert adapt(model, labels=())[1] == []


@torch.no_grad()
def test_load_model_passes_everything_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(with_coordinates(vit(hidden_head=True)), tmp_path / "m")
    model = load_model(tmp_path / "m", 3, (22, 26), in_channels=1, patch_size=2, hidden_head=True, resampling="bicubic")
    assert model(torch.randn(1, 1, 22, 26)).shape == (1, 3)
    said = capsys.readouterr().err.splitlines()
    assert [line.partition("m: ")[2] for line in said] == [
        "input channels 3 → 1, the colours' weights summed",
        "patch size 3×3 → 2×2, projection resampled",
        "image size 15×21 → 22×26, position embedding resampled in 2-D from 5×7 to 11×13 patches (bicubic)",
        "new zero-initialised head for 3 classes (it had 5)",
        "the pre-training head's tanh layer kept under the new head",
    ]
    save_model(model, tmp_path / "other")
    again = load_model(tmp_path / "other")
    assert (again.architecture, again.preprocessing) == (model.architecture, model.preprocessing)
    for name, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def tiny(data: Path, init: Path, **changes: Any) -> recipes.Recipe:
    base = {"data": str(data), "init": str(init), "batch_size": 10, "threads": 1, "budget": {"steps": 2}}
    return recipes.load("finetune", config.merge(base, changes))


def grey(pictures: Path) -> Path:
    for path in pictures.rglob("*.png"):
        Image.open(path).convert("L").save(path)
    return pictures


def test_training_keeps_three_channels_for_grey_pictures_unless_told(pictures: Path, tmp_path: Path) -> None:
    save_model(vit(), tmp_path / "m")
    grey(pictures)
    kept = load_model(run(tiny(pictures, tmp_path / "m"), tmp_path / "kept"))
    assert (kept.in_channels, kept.preprocessing.mean) == (3, (0.5, 0.5, 0.5))
    one = {"mean": [0.4], "std": [0.3]}
    folder = run(tiny(pictures, tmp_path / "m", preprocessing=one), tmp_path / "one")
    model = load_model(folder)
    assert (model.in_channels, model.preprocessing.mean, model.preprocessing.std) == (1, (0.4,), (0.3,))
    assert "input channels 3 → 1" in json.loads((folder / "result.json").read_text())["init"]


def test_training_adapts_the_patch_and_repeats_from_its_recipe(pictures: Path, tmp_path: Path) -> None:
    save_model(vit(hidden_head=True), tmp_path / "m")
    asked = {"model": {"patch_size": 4, "hidden_head": True}, "image_size": [16, 24]}
    folder = run(tiny(pictures, tmp_path / "m", **asked, resampling="bicubic"), tmp_path / "first")
    model = load_model(folder)
    assert (model.name, model.grid, model.architecture["hidden_head"]) == ("ViT-At/4", (4, 6), True)
    said = json.loads((folder / "result.json").read_text())["init"]
    assert "(ViT-At/3 at 15×21); patch size 3×3 → 4×4" in said
    assert "from 5×7 to 4×6 patches (bicubic)" in said
    again = run(recipes.load(str(folder / "recipe.toml")), tmp_path / "again")
    official = run(tiny(pictures, tmp_path / "m", **asked), tmp_path / "official")
    bytes_of = [(each / "model/model.safetensors").read_bytes() for each in (folder, again, official)]
    assert bytes_of[0] == bytes_of[1]
    assert bytes_of[0] != bytes_of[2]
    with pytest.raises(UsageError, match="holds another run"):
        run(tiny(pictures, tmp_path / "m", **asked), folder)


def test_a_run_from_a_hybrid_repeats_from_its_recipe(pictures: Path, tmp_path: Path) -> None:
    save_model(filled("R5+ViT-Fe/4", (16, 16), depth=1), tmp_path / "m")
    folder = run(tiny(pictures, tmp_path / "m"), tmp_path / "first")
    again = run(recipes.load(str(folder / "recipe.toml")), tmp_path / "again")
    assert (again / "model/model.safetensors").read_bytes() == (folder / "model/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": {"patch_size": "small"}},
            "model.patch_size='small' is not of the right type; it takes a whole number",
        ),
        ({"model": {"hidden_head": True}}, "hidden_head keeps the tanh layer of a pre-training head, which ViT-At/3"),
        ({"model": {"depth": 3}}, "model.depth=3 does not fit --init .*: there it is 2"),
        ({"preprocessing": {"mean": 0.5}}, "preprocessing.mean=0.5 is not of the right type"),
        ({"preprocessing": {"mean": [0.5, 0.5]}}, "in_channels=2 is not known"),
        ({"resampling": "nearest"}, "resampling='nearest' is not known; known: official, bicubic"),
    ],
)
def test_wrong_requests_to_training_are_answered(
    pictures: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    save_model(vit(), tmp_path / "m")
    with pytest.raises(UsageError, match=message):
        run(tiny(pictures, tmp_path / "m", **changes), tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_several_labels_stay_several_labels() -> None:
    model = create_model("ViT-At/4", 3, 16, depth=1)
    model.multi_label = True
    assert adapt(model, patch_size=8)[0].multi_label
    assert adapt(model, in_channels=1)[0].multi_label
