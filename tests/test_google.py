"""Google's `.npz`: equal to what the original code computed, in every dialect, both ways; and what is refused."""

import io
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from patchword.core.errors import DataError, UsageError
from patchword.core.preprocessing import Preprocessing
from patchword.models.contract import Model
from patchword.models.names import create_model
from patchword.models.position import sincos
from patchword.weights.io import load_model, save_model
from patchword.weights.io import read as read_source
from patchword.weights.labels import imagenet_labels
from patchword.weights.mapping import Hints
from patchword.weights.source import open_source

SMALL = Path(__file__).parent / "fixtures" / "google"
SHARED = Path(__file__).parents[2] / "shared" / "fixtures" / "google"
SIZES = {"bigvision_vit_gap_sincos2d": 48, "bit_r_1121": 64}
"""What a file without positions cannot say."""
VITS = ("vit_token", "vit_token_prelogits", "bigvision_vit_map", "bigvision_vit_gap_sincos2d")
ALL = (*VITS, "hybrid_r3stages_s16", "hybrid_r4stages_s32", "bit_r_1121")

Arrays = dict[str, np.ndarray]


def fixture(name: str) -> Path:
    for folder in (SMALL, SHARED):
        if (folder / f"{name}.npz").is_file():
            return folder / f"{name}.npz"
    pytest.skip(f"{name} is too large for the repository and not beside it")


def arrays(name: str) -> Arrays:
    return dict(np.load(fixture(name)))


def images(name: str) -> Tensor:
    expected = np.load(fixture(name).with_suffix(".expected.npz"))
    return torch.from_numpy(expected["images"]).permute(0, 3, 1, 2)


def saved(path: Path, content: Mapping[str, Any]) -> Path:
    np.savez(path, **content)  # pyright: ignore[reportArgumentType] (its own keywords are no names here)
    return path


@torch.no_grad()
def logits(path: Path, batch: Tensor, **said: Any) -> Tensor:
    return load_model(path, **said)(batch)


def random(model: Model, seed: int = 5) -> Model:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return model.eval()


def renamed(content: Arrays, *pairs: tuple[str, str]) -> Arrays:
    def other(name: str) -> str:
        for old, new in pairs:
            name = name.replace(old, new)
        return name

    return {other(name): array for name, array in content.items()}


# The original code


def counterpart(recorded: str, inside: dict[str, Tensor]) -> str | None:
    """Our name for an intermediate result of theirs."""
    names = {
        "embedding": "stem",
        "Transformer/posembed_input": "with_position",
        "Transformer/Dropout_0": "with_position",
        "with_posemb": "with_position",
        "Transformer/encoder_norm": "encoded",
        "Transformer": "encoded",
        "norm_pre_head": "encoded",
        "head": "logits",
    }
    if recorded in names:
        return names[recorded]
    if recorded.startswith("Transformer/encoderblock_"):
        return f"block_{int(recorded.rpartition('_')[2]):02d}"
    stage, _, unit = recorded.replace("block", "backbone/stage").replace("unit0", "unit").partition("/unit")
    if recorded.startswith("block") and not unit:
        return [name for name in inside if name.startswith(f"{stage}/unit")][-1]
    if unit:
        return f"{stage}/unit{unit}"
    return recorded if recorded in inside else None


@pytest.mark.parametrize("name", ALL)
def test_equals_the_original_code(name: str) -> None:
    model = load_model(fixture(name), image_size=SIZES.get(name))
    expected = np.load(fixture(name).with_suffix(".expected.npz"))
    with torch.no_grad():
        inside = model.intermediates(images(name))
        inside["logits"] = model(images(name))
    torch.testing.assert_close(inside["logits"], torch.from_numpy(expected["logits"]), rtol=0, atol=1e-4)
    unmatched = set()
    for key in expected.files:
        if not key.startswith("at/"):
            continue
        theirs = torch.from_numpy(expected[key])
        ours = counterpart(key.removeprefix("at/"), inside)
        if ours is None:
            unmatched.add(key)
            continue
        mine = inside[ours]
        if (name, key) == ("vit_token_prelogits", "at/pre_logits"):
            theirs = theirs.tanh()  # what the layer gives was recorded, before the tanh
        if key == "at/norm_pre_head":
            theirs = theirs.relu()  # and here before the ReLU
        if mine.ndim == 4:
            mine = mine.permute(0, 2, 3, 1)
        elif mine.ndim == 3:
            theirs = theirs.reshape(len(theirs), -1, theirs.shape[-1])
        tolerance = 1e-4 + 1e-5 * float(theirs.abs().max())
        torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance, msg=lambda text, key=key: f"{key}: {text}")
    assert unmatched <= {"at/conv_root", "at/gn_root", "at/head_input"}


@pytest.mark.parametrize("name", ALL)
def test_writes_the_very_arrays_that_the_original_code_wrote(name: str, tmp_path: Path) -> None:
    save_model(load_model(fixture(name), image_size=SIZES.get(name)), tmp_path / "ours.npz", format="google")
    ours, theirs = dict(np.load(tmp_path / "ours.npz")), arrays(name)
    assert ours.keys() == theirs.keys()
    for key, array in theirs.items():
        # Newer code has C where the old had 1×1×1×C.
        array = array.reshape(-1) if "gn" in key else array
        assert ours[key].shape == array.shape, key
        assert ours[key].tobytes() == array.tobytes(), key


def test_what_the_files_say(capsys: pytest.CaptureFixture[str]) -> None:
    model = load_model(fixture("vit_token"))
    expected = {"patch_size": 8, "embed_dim": 24, "depth": 3, "mlp_dim": 40, "num_heads": 3, "pool": "token"}
    assert expected.items() <= model.architecture.items()
    assert (model.config.position, model.config.gelu, model.config.norm_eps) == ("1d", "tanh", 1e-6)
    assert not model.config.hidden_head
    assert model.preprocessing == Preprocessing(image_size=(48, 48), resize="stretch")
    assert not model.training
    assert model.labels is None
    said = capsys.readouterr().err
    for sentence in (
        "image_size=48×48 is assumed: 6×6 of its 37 positions are patches'",
        "gelu=tanh is assumed, as in Google's code",
        "norm_eps=1e-06 is assumed, as in Google's code",
        "pictures are stretched to 48×48, with values from −1 to 1, as in Google's code",
        "the file has no labels: its 7 classes have no names",
    ):
        assert sentence in said
    assert load_model(fixture("vit_token_prelogits")).config.hidden_head
    assert load_model(fixture("bigvision_vit_map")).config.pool == "map"
    model = load_model(fixture("bigvision_vit_gap_sincos2d"))
    assert (model.config.pool, model.config.position, model.image_size) == ("gap", "sincos", (224, 224))
    said = capsys.readouterr().err
    assert "position=sincos is assumed, as in big_vision, for the file has no position embedding" in said
    assert "image_size=224×224 is assumed, for nothing in the file depends on it" in said


def test_what_hybrids_and_bit_say() -> None:
    model = load_model(fixture("hybrid_r3stages_s16"))
    config = model.config
    assert (config.patch_size, config.stem_units, config.stem_width) == (16, (1, 2, 1), 32)
    assert (model.image_size, model.grid) == ((64, 64), (4, 4))
    assert load_model(fixture("hybrid_r4stages_s32")).config.patch_size == 32
    model = load_model(fixture("bit_r_1121"))
    assert (model.config.units, model.config.width, model.image_size) == ((1, 1, 2, 1), 32, (224, 224))


# Dialects


def test_newer_names_and_places_of_the_position_embedding(tmp_path: Path) -> None:
    content, batch = arrays("vit_token"), images("vit_token")
    expected = logits(fixture("vit_token"), batch)
    newer = renamed(
        content, ("LayerNorm_2", "LayerNorm_1"), ("MlpBlock_3", "MlpBlock_0"), ("Attention_1", "Attention_0")
    )
    assert newer.keys() != content.keys()
    for place in ("Transformer/posembed_input/pos_embedding", "Transformer/pos_embedding", "pos_embedding"):
        moved = renamed(newer, ("Transformer/posembed_input/pos_embedding", place))
        assert torch.equal(logits(saved(tmp_path / "m.npz", moved), batch), expected)


def test_a_token_added_after_the_positions_has_no_slot(tmp_path: Path) -> None:
    content, batch = arrays("vit_token"), images("vit_token")
    table = content.pop("Transformer/posembed_input/pos_embedding")
    content["cls"] = content["cls"] + table[:, :1]
    content["pos_embedding"] = table[:, 1:]
    path = saved(tmp_path / "m.npz", content)
    assert torch.equal(logits(path, batch), logits(fixture("vit_token"), batch))
    model = load_model(path)
    assert not model.state_dict()["position.table"][0].any()


def test_a_slot_for_a_token_that_the_model_lacks_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, batch = arrays("bigvision_vit_map"), images("bigvision_vit_map")
    content["pos_embedding"] = np.concatenate([np.full((1, 1, 24), 7.0, np.float32), content["pos_embedding"]], axis=1)
    path = saved(tmp_path / "m.npz", content)
    assert torch.equal(logits(path, batch), logits(fixture("bigvision_vit_map"), batch))
    assert "the first of its positions is a class token's, which is left out" in capsys.readouterr().err
    # Of the two ways to see 37 positions, 6×6 and 4×9 after the token's, the caller chooses.
    assert load_model(path, image_size=(32, 72)).grid == (4, 9)
    assert "the first of its positions is a class token's, which is left out" in capsys.readouterr().err


def test_layers_stacked_by_scan(tmp_path: Path) -> None:
    for name in ("vit_token", "bigvision_vit_map"):
        content, stacked = arrays(name), {}
        for key, array in content.items():
            if "encoderblock_0/" in key:
                layers = [content[key.replace("block_0", f"block_{i}")] for i in range(3)]
                stacked[key.replace("encoderblock_0", "encoderblock")] = np.stack(layers)
            elif "encoderblock" not in key:
                stacked[key] = array
        path = saved(tmp_path / f"{name}.npz", stacked)
        assert torch.equal(logits(path, images(name)), logits(fixture(name), images(name)))


def test_an_inlined_probe(tmp_path: Path) -> None:
    content, batch = arrays("bigvision_vit_map"), images("bigvision_vit_map")
    path = saved(tmp_path / "m.npz", renamed(content, ("MAPHead_0/", "")))
    assert torch.equal(logits(path, batch), logits(fixture("bigvision_vit_map"), batch))


@pytest.mark.parametrize("root", ["params/", "opt/target/", "target/"])
def test_a_training_programs_state_is_left_out_with_a_reason(root: str, tmp_path: Path) -> None:
    content, batch = arrays("vit_token"), images("vit_token")
    nested = {f"{root}{key}": array for key, array in content.items()}
    nested |= {"opt/state/param_states/cls/grad_ema": np.zeros((1, 1, 24), np.float32), "state/step": np.int64(7)}
    path = saved(tmp_path / "m.npz", nested)
    assert torch.equal(logits(path, batch), logits(fixture("vit_token"), batch))
    dropped = read_source(open_source(path), Hints()).dropped
    assert dropped.keys() == {"opt/state/param_states/cls/grad_ema", "state/step"}
    assert set(dropped.values()) == {"state of the training program, not of the model"}
    with pytest.raises(DataError, match="has the tensor stranger, which vit-custom has no place for"):
        load_model(saved(path, nested | {"stranger": np.zeros(3, np.float32)}))


def test_bfloat16_kept_as_voids(tmp_path: Path) -> None:
    content, batch = arrays("vit_token"), images("vit_token")
    rounded = {key: torch.from_numpy(array).bfloat16() for key, array in content.items()}
    voids = {key: tensor.view(torch.int16).numpy().view("V2") for key, tensor in rounded.items()}
    plain = {key: tensor.float().numpy() for key, tensor in rounded.items()}
    model = load_model(saved(tmp_path / "voids.npz", voids))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model(batch), logits(saved(tmp_path / "plain.npz", plain), batch))


def test_old_and_new_shapes_of_group_norms(tmp_path: Path) -> None:
    for name, shape in (("hybrid_r3stages_s16", (1, 1, 1, -1)), ("hybrid_r4stages_s32", (-1,))):
        content = {key: array.reshape(shape) if "gn" in key else array for key, array in arrays(name).items()}
        assert any(
            array.shape != before.shape for array, before in zip(content.values(), arrays(name).values(), strict=True)
        )
        path = saved(tmp_path / f"{name}.npz", content)
        assert torch.equal(logits(path, images(name)), logits(fixture(name), images(name)))


def test_numbered_convolutions_of_bit(tmp_path: Path) -> None:
    batch = images("bit_r_1121")
    content = renamed(arrays("bit_r_1121"), ("b/standardized_conv2d/", "b/standardized_conv2d_13/"))
    path = saved(tmp_path / "m.npz", content)
    assert torch.equal(logits(path, batch, image_size=64), logits(fixture("bit_r_1121"), batch, image_size=64))


def test_compressed_and_half_precision_files(tmp_path: Path) -> None:
    batch, path = images("vit_token"), tmp_path / "m.npz"
    np.savez_compressed(path, **arrays("vit_token"))  # pyright: ignore[reportArgumentType]
    assert torch.equal(logits(path, batch), logits(fixture("vit_token"), batch))
    saved(path, {key: array.astype(np.float16) for key, array in arrays("vit_token").items()})
    torch.testing.assert_close(logits(path, batch), logits(fixture("vit_token"), batch), rtol=0, atol=0.02)


# What the caller says


def test_what_the_caller_says_is_taken(tmp_path: Path) -> None:
    model = load_model(fixture("vit_token"), gelu="erf", norm_eps=1e-3)
    assert (model.config.gelu, model.config.norm_eps) == ("erf", 1e-3)
    model = load_model(fixture("bigvision_vit_gap_sincos2d"), position="none", image_size=48)
    assert (model.config.position, model.grid) == ("none", (6, 6))
    # 36 patches are 6×6 or 4×9, whichever image is said; 37 with the class token's slot.
    for name in ("bigvision_vit_map", "vit_token"):
        model = load_model(fixture(name), image_size=(32, 72))
        assert (model.grid, model.image_size) == ((4, 9), (32, 72))
        table = next(array for key, array in arrays(name).items() if key.endswith("pos_embedding"))
        assert np.array_equal(model.state_dict()["position.table"].numpy(), table[0])


def test_another_size_is_resampled_from_the_files(capsys: pytest.CaptureFixture[str]) -> None:
    model = load_model(fixture("vit_token"), image_size=(40, 56))
    assert model.grid == (5, 7)
    assert "image size 48×48 → 40×56, position embedding resampled in 2-D from 6×6 to 5×7" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "said", "message"),
    [
        ("vit_token", {"num_heads": 4}, "says itself that num_heads is 3; num_heads=4 is wrong"),
        ("vit_token", {"position": "sincos"}, "says itself that position is 1d; position=sincos is wrong"),
        ("bigvision_vit_gap_sincos2d", {"position": "1d"}, "no learned positions; position='sincos' or 'none' would"),
        ("bit_r_1121", {"gelu": "erf"}, "holds a BiT, which has nothing that gelu could say"),
    ],
)
def test_what_contradicts_the_file_is_refused(name: str, said: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_model(fixture(name), **said)


def test_a_grid_that_is_no_square_is_asked_for(tmp_path: Path) -> None:
    model = random(create_model("ViT-At/2", 5, (14, 22), depth=1))
    save_model(model, tmp_path / "m.npz", format="google")
    with pytest.raises(DataError, match="has 78 positions, which are no square grid; image_size=HEIGHT×WIDTH"):
        load_model(tmp_path / "m.npz")
    with pytest.raises(DataError, match="has 78 positions"):
        load_model(tmp_path / "m.npz", image_size=(22, 22))
    again = load_model(tmp_path / "m.npz", image_size=(14, 22))
    assert_same(again, model)


# Ours → theirs → ours


def assert_same(again: Model, model: Model) -> None:
    assert {**again.architecture, "name": ""} == {**model.architecture, "name": ""}
    state, wanted = again.state_dict(), model.state_dict()
    assert state.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(state[name], value), name


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("ViT-At/2", (14, 22), {}),
        ("ViT-At/2", (14, 22), {"hidden_head": True}),
        ("ViT-At/2", (14, 22), {"pool": "gap"}),
        ("ViT-At/2", (14, 22), {"pool": "map", "hidden_head": True}),
        ("ViT-At/2", (14, 22), {"pool": "gap", "position": "sincos"}),
        ("ViT-At/2", (14, 22), {"pool": "map", "position": "sincos"}),
        ("R8+ViT-Pi/8", (40, 56), {"depth": 1}),
        ("R8+ViT-Pi/16", (48, 80), {"depth": 1, "pool": "gap"}),
        ("R+ViT-Ti/16", (64, 96), {"depth": 1}),
        ("BiT-R14x0.5", (33, 65), {}),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_round_trip_is_exact(
    name: str, size: tuple[int, int], options: dict[str, Any], channels: int, tmp_path: Path
) -> None:
    model = random(create_model(name, 5, size, channels, **options))
    for target in ("a.npz", "b.npz"):
        save_model(model, tmp_path / target, format="google")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    again = load_model(tmp_path / "a.npz", image_size=size)
    assert_same(again, model)
    assert again.image_size == size
    assert again.name == model.name or "depth" in options
    batch = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again(batch), model(batch))


def test_features_alone_travel(tmp_path: Path) -> None:
    model = random(create_model("ViT-At/4", 0, (20, 28), depth=1))
    save_model(model, tmp_path / "m.npz", format="google")
    again = load_model(tmp_path / "m.npz", image_size=(20, 28))
    assert again.num_classes == 0
    assert_same(again, model)


@pytest.mark.parametrize("pool", ["token", "gap", "map"])
@pytest.mark.parametrize("position", ["none", "2d", "sincos"])
def test_other_positions_become_the_table_that_they_add_up_to(pool: str, position: str, tmp_path: Path) -> None:
    model = random(create_model("ViT-At/2", 5, (14, 22), depth=2, pool=pool, position=position))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = torch.randn(2, 3, 14, 22, generator=torch.Generator().manual_seed(1))
    save_model(model, tmp_path / "m.npz", format="google")
    again = load_model(tmp_path / "m.npz", image_size=(14, 22))
    assert again.config.position == ("sincos" if position == "sincos" and pool != "token" else "1d")
    assert torch.equal(again(batch), model(batch))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_resampled_sincos_positions_are_written_since_the_formula_does_not_give_them(tmp_path: Path) -> None:
    model = random(create_model("ViT-At/2", 5, (14, 22), depth=1, pool="gap", position="sincos"))
    model = model.with_image_size((18, 26))
    save_model(model, tmp_path / "m.npz", format="google")
    again = load_model(tmp_path / "m.npz", image_size=(18, 26))
    assert again.config.position == "1d"
    assert not torch.allclose(again.state_dict()["position.table"], sincos((9, 13), 64))
    batch = torch.randn(2, 3, 18, 26, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again(batch), model(batch))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ViT-At/4", {"pool": "gap-norm"}, "the norm after the average (pool=gap-norm)"),
        ("ViT-At/4", {"position": "relative"}, "the relative positions"),
        ("ViT-At/4", {"position": "rope"}, "the rotary positions"),
        ("ViT-At/4", {"registers": 2}, "the registers"),
        ("ViT-At/4", {"layer_scale": True}, "the LayerScale"),
        ("ViT-At/4", {"gelu": "erf"}, "the exact GELU (gelu=erf)"),
        ("ViT-At/4", {"norm_eps": 1e-5}, "the norm epsilon of 1e-05"),
        ("R5+ViT-Fe/4", {"pool": "map"}, "the attention pooling of a hybrid"),
        ("R5+ViT-Fe/4", {"stem_arithmetic": "timm"}, "the timm arithmetic"),
        ("BiT-R14x0.5", {"arithmetic": "timm"}, "the timm arithmetic"),
        ("EfficientNet-B0", {}, "the efficientnet architecture"),
    ],
)
def test_what_the_format_cannot_hold_is_named(name: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = create_model(name, 5, 32, **options)
    with pytest.raises(UsageError) as caught:
        save_model(model, tmp_path / "m.npz", format="google")
    assert f"Google's format cannot hold {message} of {name}; format='patchword' would be right" in str(caught.value)
    assert not (tmp_path / "m.npz").exists()


def test_bit_without_a_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot hold the missing head of BiT-R14x0.5"):
        save_model(create_model("BiT-R14x0.5", 0, 32), tmp_path / "m.npz", format="google")


# timm's readers of these files are an independent implementation


@pytest.mark.parametrize("pool", ["token", "gap", "map"])
def test_timm_reads_the_vits_that_we_write(pool: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    model = random(create_model("ViT-At/4", 5, 28, depth=2, pool=pool))
    save_model(model, tmp_path / "m.npz", format="google")
    sizes = {"img_size": 28, "patch_size": 4, "num_classes": 5, "embed_dim": 64, "depth": 2, "num_heads": 2}
    pools = {"token": "token", "gap": "avg", "map": "map"}
    theirs = timm.models.VisionTransformer(
        **sizes, act_layer="gelu_tanh", global_pool=pools[pool], class_token=pool == "token", fc_norm=False
    )
    theirs.load_pretrained(str(tmp_path / "m.npz"))
    batch = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(batch), model(batch), rtol=0, atol=1e-4)


def test_timm_reads_the_bits_that_we_write(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    model = random(create_model("BiT-R14x0.5", 5, 65))
    save_model(model, tmp_path / "m.npz", format="google")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = timm.models.ResNetV2(
            layers=(1, 1, 1, 1), channels=(128, 256, 512, 1024), num_classes=5, stem_chs=32, stem_type="fixed",
            conv_layer=timm.layers.StdConv2d,
        )  # fmt: skip
    theirs.load_pretrained(str(tmp_path / "m.npz"))
    for mine, other in (("units.2.0.conv2.weight", "stages.2.blocks.0.conv2.weight"), ("norm.bias", "norm.bias")):
        assert torch.equal(model.state_dict()[mine], theirs.state_dict()[other])
    batch = torch.randn(2, 3, 65, 65, generator=torch.Generator().manual_seed(1))
    # Theirs counts the zeros at the border into the first maximum, as ours does in its arithmetic.
    other = create_model("BiT-R14x0.5", 5, 65, arithmetic="timm")
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(batch), other.eval()(batch), rtol=1e-4, atol=1e-4)


# Names and labels


def test_usual_models_get_their_names_and_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(random(create_model("ViT-Ti/16", 1000, 32)), tmp_path / "m.npz", format="google")
    model = load_model(tmp_path / "m.npz")
    assert (model.name, model.labels) == ("ViT-Ti/16", imagenet_labels(1000))
    assert "has no labels: its 1000 classes are taken for ImageNet-1k's" in capsys.readouterr().err
    assert model.provenance["dialect"] == "google"


def test_labels_of_imagenet() -> None:
    labels = imagenet_labels(1000)
    assert labels is not None
    assert (len(labels), len(set(labels))) == (1000, 1000)
    assert (labels[0], labels[207], labels[999]) == ("tench", "golden retriever", "toilet tissue")
    assert imagenet_labels(1001) is None
    meta = pytest.importorskip("torchvision.models._meta")
    assert list(labels) == meta._IMAGENET_CATEGORIES


# Bad input


def without(key: str) -> Callable[[Arrays], Mapping[str, Any]]:
    return lambda content: {name: array for name, array in content.items() if name != key}


def replaced(key: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays], Mapping[str, Any]]:
    return lambda content: content | {key: change(content[key])}


QUERY = "Transformer/encoderblock_1/MultiHeadDotProductAttention_1/query/kernel"
POSITIONS = "Transformer/posembed_input/pos_embedding"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("head/bias"), "lacks the tensor head/bias, which vit-custom needs for its head.bias"),
        (without("embedding/kernel"), "lacks the tensor embedding/kernel, which every such model has"),
        (
            without("Transformer/encoderblock_1/LayerNorm_2/scale"),
            "lacks the tensor Transformer/encoderblock_1/LayerNorm_2",
        ),
        (lambda content: content | {"Transformer/encoderblock_7/LayerNorm_0/scale": np.zeros(24)}, "lacks the tensor"),
        (
            lambda content: content | {"MAPHead_0/extra": np.zeros(3)},
            "has the tensor MAPHead_0/extra, which vit-custom",
        ),
        (lambda content: content | {"pos_embedding": np.zeros((1, 37, 24))}, "has the tensor pos_embedding, which"),
        (
            lambda content: content | {"Transformer/encoderblock/bias": np.zeros((2000, 1))},
            "has the tensor Transformer/encoderblock/bias, which",
        ),
        (
            replaced(QUERY, lambda array: array.reshape(24, 4, 6)),
            "query/kernel is 24×4×6, 24×3×8, 24×3×8, which does not fit",
        ),
        (replaced("cls", lambda array: array[..., :7]), "cls is 1×1×7, which does not fit"),
        (replaced("head/kernel", lambda array: array[:23]), "head/kernel is 23×7, which does not fit"),
        (replaced("head/bias", lambda array: array[:5]), "head/bias gives 5 for head.bias, of which vit-custom has 7"),
        (replaced("embedding/kernel", lambda array: array[:4]), "has patches of 4×8; square ones are right"),
        (replaced("embedding/kernel", lambda array: array[:, :, :2]), "takes images of 2 channels"),
        (replaced("embedding/kernel", lambda array: array[0]), "embedding/kernel is 8×3×24; 4 axes are right"),
        (replaced(POSITIONS, lambda array: array[:, :-2]), "has 35 positions, which are no square grid"),
        (replaced(POSITIONS, lambda array: array[:, :0]), "pos_embedding is 1×0×24; no axis may be empty"),
        (
            replaced(POSITIONS, lambda array: np.repeat(array, 2, axis=0)),
            "pos_embedding is 2×37×24; 1×positions×24 is right",
        ),
        (replaced("head/bias", lambda array: array * np.nan), "head.bias holds values that are not finite"),
        (replaced("cls", lambda array: array / 0), "cls holds values that are not finite"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_tensors_that_do_not_fit(change: Callable[[Arrays], Mapping[str, Any]], message: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "m.npz", change(arrays("vit_token")))
    with pytest.raises(DataError, match=message) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_architecture(tmp_path: Path) -> None:
    mixer = {"stem/kernel": np.zeros((4, 4, 3, 8)), "MixerBlock_0/LayerNorm_0/scale": np.zeros(8)}
    with pytest.raises(DataError, match=r"no ViT, hybrid or BiT of Google's \(its tensors are MixerBlock_0/LayerNorm"):
        load_model(saved(tmp_path / "m.npz", mixer))
    with pytest.raises(DataError, match="holds weights of no kind that is known"):
        load_model(saved(tmp_path / "m.npz", {"features": np.zeros((4, 4))}))


def test_truncated_files(tmp_path: Path) -> None:
    content, path = fixture("vit_token").read_bytes(), tmp_path / "m.npz"
    for length in (0, 3, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match="is not a whole archive|is damaged, or of another kind"):
            load_model(path)


def test_flipped_bits(tmp_path: Path) -> None:
    content, path = fixture("vit_token").read_bytes(), tmp_path / "m.npz"
    with zipfile.ZipFile(fixture("vit_token")) as archive:
        entries = archive.infolist()
    generator = np.random.default_rng(11)
    for entry in generator.choice(np.array(entries, dtype=object), 20, replace=False):
        # The name and the extra field before the array are as long as in the directory, or a little longer.
        start = entry.header_offset + 30 + len(entry.filename) + 20
        place = int(generator.integers(start, start + entry.file_size - 40))
        spoiled = bytearray(content)
        spoiled[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(spoiled)
        with pytest.raises(DataError, match="m.npz"):
            load_model(path)


def test_a_damaged_directory(tmp_path: Path) -> None:
    content, path = fixture("vit_token").read_bytes(), tmp_path / "m.npz"
    places = [place for place in range(len(content)) if content.startswith(b"PK\x01\x02", place)]
    # The comment's length of the entry before head/bias: longer, it swallows the two that are left.
    spoiled = bytearray(content)
    spoiled[places[-3] + 33] ^= 0x80
    path.write_bytes(spoiled)
    with pytest.raises(DataError, match="lists 54 arrays where it promises 56: its directory is damaged"):
        load_model(path)
    # The version that is needed to unpack an entry.
    spoiled = bytearray(content)
    spoiled[places[5] + 6] ^= 0x80
    path.write_bytes(spoiled)
    with pytest.raises(DataError, match="is not a whole archive"):
        load_model(path)


class Payload:
    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (Path("executed"),))


def test_a_pickle_inside_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path / "m.npz", arrays("vit_token") | {"cls": np.array([Payload()], dtype=object)})
    with pytest.raises(DataError, match=r"cls\.npy is not an array of plain numbers \(Object arrays cannot be loaded"):
        load_model(path)
    assert not (tmp_path / "executed").exists()


def test_bombs(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("embedding/kernel.npy", b"")
    content = bytearray(path.read_bytes())
    # The directory claims four billion bytes.
    where = content.index(b"PK\x01\x02") + 24
    content[where : where + 4] = b"\xf0\xff\xff\xff"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"embedding/kernel\.npy claims 4,294,967,280 bytes from \d: a bomb"):
        load_model(path)
    # An array whose header claims what is not there.
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("embedding/kernel.npy", header.getvalue())
    with pytest.raises(DataError, match=r"embedding/kernel\.npy is not an array of plain numbers"):
        load_model(path)


@pytest.mark.parametrize("shape", [b"3, 4)", b"(3, 4", b"{3: (4}", b"(3, 4j)", b"(-3, 4)", b"\xff\xff"])
def test_damaged_headers_of_arrays(shape: bytes, tmp_path: Path) -> None:
    text = b"{'descr': '<f4', 'fortran_order': False, 'shape': " + shape + b", }"
    text += b" " * (117 - len(text)) + b"\n"
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        archive.writestr("embedding/kernel.npy", b"\x93NUMPY\x01\x00\x76\x00" + text + bytes(48))
    with pytest.raises(DataError, match=r"embedding/kernel\.npy is not an array of plain numbers"):
        load_model(tmp_path / "m.npz")


def test_what_is_no_array_or_not_of_numbers(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("embedding/kernel.txt", "hello")
    with pytest.raises(DataError, match="no array; it is not a .npz of weights"):
        load_model(path)
    with pytest.raises(DataError, match="cls.npy holds <U3, not numbers"):
        load_model(saved(path, arrays("vit_token") | {"cls": np.array(["yes"])}))


def test_bombs_that_deflate_can_make(tmp_path: Path) -> None:
    """300 MB of zeros in 0.3 MB: within what deflate can do, and beyond what weights are."""
    path = tmp_path / "zeros.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("embedding/kernel.npy", "w") as entry,
    ):
        np.lib.format.write_array_header_1_0(entry, {"descr": "<f4", "fortran_order": False, "shape": (75_000_000,)})
        for _ in range(30):
            entry.write(bytes(10_000_000))
    with pytest.raises(DataError, match=r"to 300,000,128, which no weights do: a bomb"):
        load_model(path)


HOLDS = {
    "vit_token": {"google", "timm", "huggingface", "patchword"},
    "vit_token_prelogits": {"google", "patchword"},
    "bigvision_vit_map": {"google", "timm", "patchword"},
    "bigvision_vit_gap_sincos2d": {"google", "patchword"},
    "hybrid_r3stages_s16": {"google", "patchword"},
    "hybrid_r4stages_s32": {"google", "patchword"},
    "bit_r_1121": {"google", "patchword"},
}
"""What can hold each: timm and transformers have no pre-logits beside a classifier, and other epsilons in their ResNets."""


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("form", ["google", "timm", "huggingface", "patchword"])
def test_every_file_goes_into_every_format_that_can_hold_it(name: str, form: Any, tmp_path: Path) -> None:
    model = load_model(fixture(name), image_size=SIZES.get(name))
    target = tmp_path / ("out.npz" if form == "google" else "out")
    if form not in HOLDS[name]:
        with pytest.raises(UsageError, match=r"cannot hold|format holds no other"):
            save_model(model, target, format=form)
        assert not target.exists()
        return
    save_model(model, target, format=form)
    again = load_model(target, image_size=model.image_size)
    batch = images(name)
    with torch.no_grad():
        torch.testing.assert_close(again(batch), model(batch), rtol=0, atol=1e-6)
    save_model(again, tmp_path / "back.npz", format="google")
    mine, theirs = np.load(tmp_path / "back.npz"), np.load(fixture(name))
    assert set(mine.files) == set(theirs.files)
    for key in theirs.files:
        assert np.array_equal(mine[key].reshape(theirs[key].shape), theirs[key]), key
