"""timm's models ↔ ours, against timm itself: tiny random instances of its own classes, in every dialect, both ways."""

import contextlib
import copy
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from patchword.core.errors import DataError, UsageError
from patchword.models.contract import Model
from patchword.models.hybrid import Hybrid
from patchword.models.names import create_model
from patchword.models.resnet import ResNet
from patchword.models.vit import ViT
from patchword.weights import timm_config
from patchword.weights.io import load_model, save_model
from patchword.weights.mapping import Hints
from patchword.weights.reading import Fields, Reading

timm = pytest.importorskip("timm", reason="timm is not installed")

CLASSES, PATCH, WIDTH, DEPTH, HEADS, MLP, GRID = 5, 4, 21, 2, 3, 41, (3, 11)
SIZE = (GRID[0] * PATCH, GRID[1] * PATCH)
TINY: dict[str, Any] = {
    "img_size": SIZE,
    "patch_size": PATCH,
    "embed_dim": WIDTH,
    "depth": DEPTH,
    "num_heads": HEADS,
    "mlp_ratio": (MLP + 0.5) / WIDTH,
    "num_classes": CLASSES,
}

# Every dialect: the architecture in timm, the arguments that overrule it, and the pooling and registers that ours has.
VITS: dict[str, tuple[str, dict[str, Any], str, int]] = {
    "token": ("vit_base_patch16_224", {}, "token", 0),
    "token-tanh": ("vit_base_patch16_224", {"act_layer": "gelu_tanh"}, "token", 0),
    "token-no-slot": ("deit3_small_patch16_224", {"init_values": None}, "token", 0),
    "token-fc-norm": ("vit_base_patch16_224", {"fc_norm": True}, "token", 0),
    "token-registers": ("vit_base_patch16_224", {"reg_tokens": 2}, "token", 2),
    "token-registers-no-slot": ("vit_base_patch14_reg4_dinov2", {"reg_tokens": 2}, "token", 2),
    "no-positions": ("vit_base_patch16_224", {"pos_embed": "none", "reg_tokens": 2}, "token", 2),
    "layer-scale": ("vit_base_patch16_224", {"init_values": 0.1}, "token", 0),
    "no-qkv-bias": ("vit_base_patch16_224_miil", {}, "token", 0),
    "no-head": ("vit_base_patch16_224", {"num_classes": 0}, "token", 0),
    "grey": ("vit_base_patch16_224", {"in_chans": 1}, "token", 0),
    "clip-epsilon": ("vit_base_patch32_clip_224", {"pre_norm": False}, "token", 0),
    "gap": ("vit_base_patch16_gap_224", {}, "gap", 0),
    "gap-token": ("vit_base_patch16_224", {"global_pool": "avg", "fc_norm": False}, "gap", 1),
    "gap-norm": ("vit_base_patch16_224", {"global_pool": "avg", "class_token": False}, "gap-norm", 0),
    "gap-norm-token": ("eva_large_patch14_196", {}, "gap-norm", 1),
    "gap-norm-token-no-slot": ("eva_large_patch14_196", {"no_embed_class": True}, "gap-norm", 1),
    "gap-norm-registers": ("vit_medium_patch16_reg4_gap_256", {"reg_tokens": 2}, "gap-norm", 2),
    "gap-norm-token-registers": ("eva_large_patch14_196", {"reg_tokens": 2}, "gap-norm", 3),
    "map": ("vit_base_patch16_siglip_224", {}, "map", 0),
    "map-tanh-registers": ("vit_so150m_patch16_reg4_map_256", {"act_layer": "gelu_tanh", "reg_tokens": 2}, "map", 2),
    "map-token": ("vit_base_patch16_siglip_224", {"class_token": True}, "map", 1),
}


def build(architecture: str, **options: Any) -> Any:
    """A model of timm's with random values in every parameter."""
    return randomize(timm.create_model(architecture, **options))


def randomize(model: Any) -> Any:
    """Random values in every parameter, such that activations keep their size and rounding does not grow with depth."""
    torch.manual_seed(11)
    for name, parameter in model.named_parameters():
        centre = 0.0
        if parameter.ndim == 1 and name.endswith("weight"):
            centre = 0.2 if name.endswith("norm3.weight") else 1.0  # as in trained ResNets, branches add a little
        spread = parameter[0].numel() ** -0.5 if parameter.ndim in (2, 4) else 0.3
        nn.init.normal_(parameter, centre, spread)
    return model.eval()


def saved(model: Any, folder: Path, **description: Any) -> Path:
    """A folder as timm itself writes it."""
    config = {"model_config": description} if description else {}
    timm.models.save_for_hf(model, str(folder), safe_serialization=True, **config)
    return folder


def images(model: Model) -> Tensor:
    torch.manual_seed(5)
    return torch.randn(2, model.in_channels, *model.image_size)


def hidden(model: Any, batch: Tensor) -> list[Tensor]:
    """All tokens after each block of a ViT of timm's, and after its last norm."""
    kept: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda _, __, out: kept.append(out)) for block in model.blocks]
    kept.append(model.forward_features(batch))
    for hook in hooks:
        hook.remove()
    return kept


def states(ours: Model, theirs: Any, batch: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Logits and all hidden states, ours beside theirs."""
    pairs = [(ours(batch), theirs(batch))]
    inside = ours.intermediates(batch)
    if isinstance(ours, ViT):
        names = [f"block_{i:02d}" for i in range(len(ours.blocks))]
        *blocks, encoded = hidden(theirs, batch)
        pairs += [(inside[name], block) for name, block in zip(names, blocks, strict=True)]
        pairs.append((inside["stem"], theirs.patch_embed(batch)))
        if isinstance(theirs.fc_norm, nn.Identity):
            pairs.append((inside["encoded"], encoded))
        spatial = theirs.forward_intermediates(batch, intermediates_only=True)[-1]
        return [*pairs, (inside[names[-1]][:, ours.prefix :].transpose(1, 2).unflatten(2, ours.grid), spatial)]
    for i, stage in enumerate(theirs.forward_intermediates(batch, intermediates_only=True)[1:], 1):
        pairs.append((inside[f"stage{i}/unit{ours.config.units[i - 1]}"], stage))
    return pairs


@torch.no_grad()
def compare(ours: Model, theirs: Any, kind: str) -> None:
    """1e-5 for logits, and for hidden states where they are no larger than 1; in float64 the two are one function.

    What is left there is the float32 sum of a register and its position, which timm makes anew in float64.
    """
    batch = images(ours)
    pairs = states(ours, theirs, batch)
    assert min(float(other.std()) for _, other in pairs) > 0.05  # nothing is flat, so that agreement means something
    print(f"largest differences {kind}: logits", float((pairs[0][0] - pairs[0][1]).abs().max()), end=", ")
    print("hidden", max(float((mine - other).abs().max()) for mine, other in pairs[1:]), end=" of ")
    print(max(float(other.abs().max()) for _, other in pairs[1:]))
    for mine, other in pairs:
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5 * max(1.0, float(other.abs().max())))
    summed = isinstance(ours, ViT) and ours.config.registers > 0
    for mine, other in states(copy.deepcopy(ours).double(), copy.deepcopy(theirs).double(), batch.double()):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-6 if summed else 1e-11)


def back_from(ours: Model, folder: Path) -> Any:
    """What timm makes of a folder that we wrote, with no key missing or left over."""
    save_model(ours, folder, format="timm")
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert set(theirs.state_dict()) == set(load_file(folder / "model.safetensors"))
    return theirs


def assert_same(model: Model, again: Model) -> None:
    """Bit for bit."""
    assert again.architecture == model.architecture
    assert again.preprocessing == model.preprocessing
    assert again.labels == model.labels
    mine, other = model.state_dict(), again.state_dict()
    assert list(mine) == list(other)
    for name, value in mine.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("dialect", VITS)
def test_vit_agrees_both_ways(dialect: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    architecture, options, pool, registers = VITS[dialect]
    theirs = build(architecture, **{**TINY, **options})
    ours = load_model(saved(theirs, tmp_path / "theirs"))
    assert isinstance(ours, ViT)
    assert (ours.config.pool, ours.config.registers, ours.grid) == (pool, registers, GRID)
    assert (ours.config.mlp_dim, ours.config.num_heads) == (MLP, HEADS)
    assert "assumed" not in capsys.readouterr().err
    compare(ours, theirs, "reading")
    compare(ours, back_from(ours, tmp_path / "ours"), "writing")
    assert_same(ours, load_model(tmp_path / "ours"))


HYBRIDS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "root-alone": ("vit_tiny_r_s16_p8_224", {"img_size": (64, 96)}, ()),
    "two-pixels": ("vit_tiny_r_s16_p8_224", {"img_size": (24, 40), "patch_size": 2}, ()),
    "four-stages": ("vit_small_r26_s32_224", {"img_size": (64, 96)}, (2, 2, 2, 2)),
    "three-stages": ("vit_base_r50_s16_224", {"img_size": (48, 80), "global_pool": "avg"}, (3, 4, 9)),
    "grey-map": ("vit_large_r50_s32_224", {"img_size": (32, 96), "in_chans": 1, "global_pool": "map"}, (3, 4, 6, 3)),
}


@pytest.mark.parametrize("dialect", HYBRIDS)
def test_hybrid_agrees_both_ways(dialect: str, tmp_path: Path) -> None:
    architecture, options, units = HYBRIDS[dialect]
    tiny = {name: value for name, value in TINY.items() if name not in ("patch_size", "img_size")}
    theirs = build(architecture, **{**tiny, **options})
    ours = load_model(saved(theirs, tmp_path / "theirs"))
    assert isinstance(ours, Hybrid)
    assert (ours.config.stem_units, ours.image_size) == (units, options["img_size"])
    compare(ours, theirs, "reading")
    compare(ours, back_from(ours, tmp_path / "ours"), "writing")
    assert_same(ours, load_model(tmp_path / "ours"))


def test_stems_that_timm_cannot_name_are_read(tmp_path: Path) -> None:
    from timm.layers.hybrid_embed import HybridEmbed
    from timm.layers.std_conv import StdConv2dSame
    from timm.models.resnetv2 import ResNetV2
    from timm.models.vision_transformer import VisionTransformer

    convolution = functools.partial(StdConv2dSame, eps=1e-8)
    backbone = ResNetV2(
        [1, 2], (128, 256), 0, global_pool="", stem_chs=32, stem_type="same", preact=False, conv_layer=convolution
    )
    embed = functools.partial(HybridEmbed, backbone=backbone)
    sizes = {**TINY, "patch_size": 1, "img_size": (24, 40)}
    theirs = randomize(VisionTransformer(**sizes, embed_layer=embed))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    ours = load_model(tmp_path / "model.safetensors", num_heads=HEADS, image_size=(24, 40))
    assert isinstance(ours, Hybrid)
    assert (ours.config.stem_units, ours.config.stem_width, ours.config.patch_size) == ((1, 2), 32, 8)
    compare(ours, theirs, "reading")
    with pytest.raises(UsageError, match=r"timm's format cannot hold the stem's units \(1, 2\)"):
        save_model(ours, tmp_path / "out", format="timm")


BITS: dict[str, tuple[str, dict[str, Any], str]] = {
    "50x1": ("resnetv2_50x1_bit", {}, "BiT-R50x1"),
    "two-stages": ("resnetv2_152x2_bit", {"channels": (128, 256), "stem_chs": 32, "in_chans": 1}, "bit-custom"),
    "half-width": (
        "resnetv2_50x1_bit",
        {"channels": (128, 256, 512, 1024), "stem_chs": 32, "num_classes": 0},
        "BiT-R50x0.5",
    ),
}


@pytest.mark.parametrize("dialect", BITS)
def test_bit_agrees_both_ways(dialect: str, tmp_path: Path) -> None:
    architecture, options, name = BITS[dialect]
    theirs = build(architecture, **{"num_classes": CLASSES, **options})
    folder = saved(theirs, tmp_path / "theirs")
    description = json.loads((folder / "config.json").read_text())
    description["pretrained_cfg"]["input_size"][1:] = [37, 53]  # odd sides: where paddings differ if they do
    (folder / "config.json").write_text(json.dumps(description))
    ours = load_model(folder)
    assert isinstance(ours, ResNet)
    assert (ours.name, ours.image_size) == (name, (37, 53))
    compare(ours, theirs, "reading")
    compare(ours, back_from(ours, tmp_path / "ours"), "writing")
    assert_same(ours, load_model(tmp_path / "ours"))


def test_old_hidden_layer_is_read_and_refused_where_timm_lost_it(tmp_path: Path) -> None:
    theirs = build("vit_base_patch16_224", **TINY)
    hidden_layer = randomize(nn.Linear(WIDTH, WIDTH))
    old = {f"pre_logits.fc.{name}": value for name, value in hidden_layer.state_dict().items()}
    save_file({**theirs.state_dict(), **old}, tmp_path / "model.safetensors")
    ours = load_model(tmp_path / "model.safetensors", num_heads=HEADS, image_size=SIZE)
    batch = images(ours)
    with torch.no_grad():
        pooled = theirs.forward_head(theirs.forward_features(batch), pre_logits=True)
        torch.testing.assert_close(ours(batch), theirs.head(torch.tanh(hidden_layer(pooled))), rtol=0, atol=1e-5)
    with pytest.raises(UsageError, match="timm's format cannot hold the hidden layer before the head"):
        save_model(ours, tmp_path / "out", format="timm")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("position", ["none", "1d", "2d", "sincos"])
@pytest.mark.parametrize("pool", ["token", "gap", "gap-norm", "map"])
def test_every_model_of_ours_that_timm_can_hold(position: str, pool: str, tmp_path: Path) -> None:
    options = {"embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_dim": MLP, "registers": 2, "layer_scale": True}
    ours = create_model("ViT-Ti/4", CLASSES, SIZE, pool=pool, position=position, gelu="tanh", **options)
    randomize(ours)
    ours.labels = ("ä", "b", "c", "d", "<e>")
    theirs = back_from(ours, tmp_path / "m")
    batch = images(ours)
    with torch.no_grad():
        torch.testing.assert_close(ours(batch), theirs(batch), rtol=0, atol=1e-5)
    again = load_model(tmp_path / "m")
    assert again.architecture == {
        **ours.architecture,
        "name": again.name,
        "position": "none" if position == "none" else "1d",
    }
    torch.testing.assert_close(again(batch), ours(batch), rtol=0, atol=1e-6)
    # To the bit where the weights do not lie as in the file: by that the order of a sum over a single row may change.
    again.load_state_dict({name: value.clone() for name, value in again.state_dict().items()}, assign=True)
    assert torch.equal(again(batch), ours(batch))
    assert (again.labels, again.preprocessing) == (ours.labels, ours.preprocessing)
    save_model(again, tmp_path / "m", format="timm")  # over itself
    assert_same(again, load_model(tmp_path / "m"))


def test_the_ratio_that_is_written_gives_our_width_exactly(tmp_path: Path) -> None:
    assert int(19 * (53 / 19)) == 52  # what a plain quotient would give
    ours = randomize(create_model("ViT-Ti/4", CLASSES, SIZE, embed_dim=19, num_heads=1, mlp_dim=53, depth=1))
    compare(ours, back_from(ours, tmp_path / "m"), "53 of 19")


@pytest.mark.parametrize(
    ("name", "options", "what"),
    [
        ("ViT-Ti/4", {"position": "relative"}, "the relative positions"),
        ("ViT-Ti/4", {"position": "rope"}, "the rotary positions"),
        ("ViT-Ti/4", {"norm_eps": 1e-12}, "the norm epsilon of 1e-12"),
        ("R26+ViT-Ti/32", {}, "the epsilons of google's arithmetic"),
        ("R26+ViT-Ti/32", {"stem_arithmetic": "timm", "norm_eps": 1e-5}, "the norm epsilon of 1e-05 in a hybrid"),
        ("R26+ViT-Ti/32", {"stem_arithmetic": "timm", "stem_width": 32}, "the stem's width 32"),
        ("R8+ViT-Ti/8", {"stem_arithmetic": "timm"}, r"the stem's units \(1, 1\)"),
        ("BiT-R14x0.5", {"arithmetic": "timm"}, r"the units \(1, 1, 1, 1\)"),
        ("BiT-R50x1", {}, "the epsilons of google's arithmetic"),
        ("BiT-R50x0.25", {"arithmetic": "timm"}, "the norms of 16 channels"),
        ("EfficientNet-B0", {}, "the family efficientnet"),
    ],
)
def test_what_timm_cannot_hold_is_refused(name: str, options: dict[str, Any], what: str, tmp_path: Path) -> None:
    with torch.device("meta"):  # no weights are looked at
        model = create_model(name, CLASSES, 32, **({"depth": 1} if "ViT" in name else {}), **options)
    with pytest.raises(UsageError, match=f"timm's format cannot hold {what} of .*; format='patchword' would be right"):
        save_model(model, tmp_path / "m", format="timm")
    assert not (tmp_path / "m").exists()


def test_names_that_the_writer_gives_are_timms() -> None:
    depths = timm_config._BIT_DEPTHS.values()
    bits = [f"resnetv2_{depth}x{factor}_bit" for depth, factors in depths for factor in factors]
    named = [
        *timm_config._ARCHITECTURES.values(),
        timm_config._ANY,
        timm_config._ANY_CLIP,
        *timm_config._STEMS.values(),
    ]
    for name in [*named, *bits]:
        assert timm.is_model(name), name


def test_bare_tensors_need_what_they_cannot_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = build("vit_base_patch16_224", **{**TINY, "act_layer": "gelu_tanh"})
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(DataError, match="has 34 positions, which are no square grid; image_size=HEIGHT×WIDTH"):
        load_model(tmp_path / "w.safetensors", num_heads=HEADS)
    with pytest.raises(UsageError, match="its width of 21 is no multiple of 64; give num_heads"):
        load_model(tmp_path / "w.safetensors", image_size=SIZE)
    capsys.readouterr()
    ours = load_model(tmp_path / "w.safetensors", image_size=SIZE, num_heads=HEADS, gelu="tanh", norm_eps=1e-6)
    compare(ours, theirs, "bare")
    said = capsys.readouterr().err
    for word in ("num_heads", "gelu", "norm_eps", "image_size"):
        assert word not in said
    assert "it is assumed to pool from the class token" in said
    assert "preprocessing is assumed: mean=0.5, std=0.5, interpolation=bicubic, crop_pct=0.9" in said
    assert "the file has no labels: its 5 classes have no names" in said
    with pytest.raises(UsageError, match="says itself that position is 1d; position=sincos is wrong"):
        load_model(tmp_path / "w.safetensors", image_size=SIZE, position="sincos")


def test_assumptions_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {**TINY, "embed_dim": 192, "num_heads": 3, "img_size": 5 * PATCH}
    theirs = build("vit_base_patch16_224", **{**sizes, "num_classes": 0, "reg_tokens": 2})
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    ours = load_model(tmp_path / "w.safetensors")
    compare(ours, theirs, "assumed")
    said = capsys.readouterr().err
    for sentence in (
        "num_heads=3 is assumed, 64 channels a head",
        "gelu=erf is assumed",
        "norm_eps=1e-06 is assumed",
        "image_size=20×20 is assumed: 5×5 of its 28 positions are patches'",
    ):
        assert sentence in said
    assert "labels" not in said  # there is no head


def test_half_and_double_precision_are_widened_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = build("vit_base_patch16_224", **{**TINY, "num_classes": 0})
    for kind, wide in ((torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        tensors = {name: tensor.to(kind) for name, tensor in theirs.state_dict().items()}
        save_file(tensors, tmp_path / "w.safetensors")
        ours = load_model(tmp_path / "w.safetensors", num_heads=HEADS, image_size=SIZE)
        assert torch.equal(ours.state_dict()["norm.weight"], tensors["norm.weight"].to(wide))
        assert {value.dtype for value in ours.state_dict().values()} == {wide}
        said = f"{str(kind).removeprefix('torch.')} tensors are widened to float32, which is exact"
        assert (said in capsys.readouterr().err) == (kind != wide)


def test_another_size_is_resampled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(build("vit_base_patch16_224", **TINY), tmp_path / "m")
    assert load_model(folder, image_size=(28, 20)).grid == (7, 5)
    assert "image size 12×44 → 28×20" in capsys.readouterr().err


def described(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """The same folder with another `config.json`."""
    description = json.loads((folder / "config.json").read_text())
    change(description)
    (folder / "config.json").write_text(json.dumps(description))
    return folder


def test_preprocessing_and_labels_come_along(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = build("vit_base_patch16_224", **TINY)
    names = [f"n{i:04d}" for i in range(CLASSES)]
    folder = saved(theirs, tmp_path / "m", label_names=names)
    way = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_pct": 0.95, "interpolation": "bilinear"}
    described(folder, lambda d: d["pretrained_cfg"].update(way))
    ours = load_model(folder)
    assert ours.labels == tuple(names)
    found = ours.preprocessing
    assert (found.mean, found.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (found.crop_fraction, found.interpolation, found.resize, found.image_size) == (
        0.95,
        "bilinear",
        "crop",
        SIZE,
    )
    assert capsys.readouterr().err == ""
    described(folder, lambda d: d["pretrained_cfg"].update(crop_mode="squash", interpolation="random"))
    ours = load_model(folder)
    assert (ours.preprocessing.resize, ours.preprocessing.interpolation) == ("stretch", "bicubic")
    said = capsys.readouterr().err
    assert "interpolation=bicubic is taken for 'random'" in said
    assert "pictures are stretched, where timm puts them without its edges" in said
    save_model(ours, tmp_path / "again", format="timm")
    data = timm.data.resolve_model_data_config(timm.create_model(f"local-dir:{tmp_path / 'again'}", pretrained=True))
    assert (data["crop_mode"], data["crop_pct"], data["input_size"]) == ("squash", 1.0, (3, *SIZE))
    assert (list(data["mean"]), list(data["std"])) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])


def test_grey_images_take_the_average_of_three_means(tmp_path: Path) -> None:
    folder = saved(build("vit_base_patch16_224", **{**TINY, "in_chans": 1}), tmp_path / "m")
    described(folder, lambda d: d["pretrained_cfg"].update(mean=[0.1, 0.2, 0.6], std=[0.5]))
    found = load_model(folder).preprocessing
    assert found.mean == pytest.approx((0.3,))
    assert found.std == (0.5,)


def test_arguments_count_without_an_architecture(tmp_path: Path) -> None:
    theirs = build("vit_base_patch16_224", **{**TINY, "act_layer": "gelu_tanh"})
    folder = saved(theirs, tmp_path / "m")
    compare(load_model(described(folder, lambda d: d.pop("architecture"))), theirs, "nameless")


def test_old_folders_have_one_table(tmp_path: Path) -> None:
    theirs = build("vit_base_patch16_224", **TINY)
    folder = saved(theirs, tmp_path / "m")

    def flatten(description: dict[str, Any]) -> None:
        whole = {**description.pop("pretrained_cfg"), **description, "labels": list("abcde")}
        description.clear()
        description.update(whole)

    ours = load_model(described(folder, flatten))
    compare(ours, theirs, "flat")
    assert ours.labels == tuple("abcde")


def test_pixels_beyond_the_last_whole_patch_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = build("vit_so400m_patch14_siglip_384", **{**TINY, "img_size": (14, 47)})
    ours = load_model(saved(theirs, tmp_path / "m"))
    assert ours.image_size == SIZE
    assert "image_size=12×44 is taken for 14×47, which 4 does not divide" in capsys.readouterr().err
    batch = torch.randn(2, 3, 14, 47)
    with torch.no_grad():
        torch.testing.assert_close(ours(batch[:, :, :12, :44]), theirs(batch), rtol=0, atol=1e-5)


def test_a_pooling_that_timm_leaves_aside_is_dropped(tmp_path: Path) -> None:
    whole = build("vit_base_patch16_siglip_224", **TINY)
    theirs = build("vit_base_patch16_siglip_gap_224", **TINY)
    theirs.load_state_dict({k: v for k, v in whole.state_dict().items() if not k.startswith("attn_pool.")})
    folder = saved(theirs, tmp_path / "m")
    save_file(whole.state_dict(), folder / "model.safetensors")
    compare(load_model(folder), theirs, "gap of a MAP")


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    theirs = build("vit_base_patch16_224", **TINY)
    folder = saved(theirs.half(), tmp_path / "m")
    compare(load_model(folder), theirs.float(), "half")


def test_a_thousand_classes_have_imagenets_names(tmp_path: Path) -> None:
    labels = pytest.importorskip("patchword.weights.labels", reason="the list of names is not here yet")
    ours = load_model(saved(build("vit_base_patch16_224", **{**TINY, "num_classes": 1000}), tmp_path / "m"))
    assert ours.labels == labels.imagenet_labels(1000)


# What is not ours is refused by name


STRANGERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "qk-norm": ("vit_base_patch16_224", {"qk_norm": True}, "norms of queries and keys"),
    "clip": ("vit_base_patch16_clip_224", {}, "a norm before the encoder"),
    "quick-gelu": ("vit_base_patch32_clip_quickgelu_224", {"pre_norm": False}, "CLIP's quick GELU"),
    "silu": ("vit_base_patch16_224", {"act_layer": "silu"}, "act_layer='silu'"),
    "distilled": ("deit_tiny_distilled_patch16_224", {}, "a distillation token"),
    "swiglu": ("aimv2_large_patch14_224", {}, "aimv2_large_patch14_224"),
    "packed-swiglu": ("vit_giant_patch14_dinov2", {"mlp_ratio": 2.0}, "a gated MLP"),
    "parallel": ("vit_small_patch16_18x2_224", {}, "parallel branches"),
    "parallel-scaling": ("vit_pwee_patch16_reg1_gap_256", {}, "parallel branches"),
    "differential": ("vit_dwee_patch16_reg1_gap_256", {}, "differential attention"),
    "post-norm": ("vit_base_patch16_rpn_224", {}, "norms after the branches"),
    "inner-norms": ("vit_base_patch16_224", {"scale_attn_norm": True}, "norms inside attention and MLP"),
    "rms-norm": ("vit_base_patch16_224", {"norm_layer": "rmsnorm"}, "norm_layer='rmsnorm'"),
    "no-final-norm": ("vit_base_patch16_224", {"final_norm": False}, "final_norm=False"),
    "avgmax": ("vit_base_patch16_224", {"global_pool": "avgmax"}, "global_pool='avgmax'"),
    "prr": ("vit_base_patch16_224", {"global_pool": "prr"}, "global_pool='prr'"),
    "all-tokens": ("vit_base_patch16_siglip_224", {"class_token": True, "pool_include_prefix": True}, "all tokens"),
    "map-fc-norm": ("vit_base_patch16_siglip_224", {"fc_norm": True}, "a norm after the attention pooling"),
    "five-channels": ("vit_base_patch16_224", {"in_chans": 5}, "images of 5 channels"),
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_strangers_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    architecture, options, what = STRANGERS[kind]
    folder = saved(timm.create_model(architecture, **{**TINY, **options}), tmp_path / "m")
    with pytest.raises(DataError, match=what):
        load_model(folder)


@pytest.mark.parametrize(
    ("architecture", "options", "what"),
    [
        ("vit_base_patch16_224", {"qk_norm": True}, "norms of queries and keys"),
        ("vit_base_patch16_clip_224", {}, "a norm before the encoder"),
        ("vit_base_patch16_224", {"norm_layer": "rmsnorm"}, "RMS norm"),
        ("vit_base_patch16_224", {"final_norm": False}, "an encoder without a final norm"),
        ("aimv2_large_patch14_224", {}, "a gated MLP|norms without biases"),
        ("eva02_tiny_patch14_224", {"num_heads": 3, "embed_dim": 24}, "biases of their own"),
        ("beit_base_patch16_224", {"embed_dim": 24}, "relative position biases|biases of their own"),
        ("vit_relpos_base_patch16_224", {}, "relative position biases"),
        ("beit3_base_patch16_224", {}, "norms inside attention and MLP"),
    ],
)
def test_strangers_are_known_by_their_tensors(
    architecture: str, options: dict[str, Any], what: str, tmp_path: Path
) -> None:
    model = timm.create_model(architecture, **{**TINY, "img_size": 16, **options})
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, tmp_path / "w.safetensors")
    with pytest.raises(DataError, match=what):
        load_model(tmp_path / "w.safetensors", num_heads=HEADS)


@pytest.mark.parametrize(
    ("architecture", "what"),
    [
        ("resnetv2_50", "resnetv2_50|batch norms"),
        ("resnetv2_50d_gn", "resnetv2_50d_gn|three convolutions"),
        ("vit_small_resnet26d_224", "batch norms|a stem of another kind"),
        ("vit_base_mci_224", "batch norms|a stem of another kind"),
        ("convnext_atto", "holds no model|which every such model|none of our models"),
    ],
)
@pytest.mark.parametrize("bare", [True, False])
def test_other_convolutions_are_refused(architecture: str, what: str, bare: bool, tmp_path: Path) -> None:
    options = {"depth": 1} if architecture.startswith("vit") else {}
    folder = saved(timm.create_model(architecture, num_classes=CLASSES, **options), tmp_path / "m")
    with pytest.raises(DataError, match=what):
        load_model((folder / "model.safetensors").rename(tmp_path / "w.safetensors") if bare else folder)


def test_what_architectures_fix_is_what_timm_fixes(monkeypatch: pytest.MonkeyPatch) -> None:
    from timm.models._registry import model_entrypoint
    from timm.models.vision_transformer import Block

    made: list[tuple[Any, dict[str, Any]]] = []
    for name, module in list(sys.modules.items()):
        if name.startswith("timm.models.") and hasattr(module, "build_model_with_cfg"):
            monkeypatch.setattr(
                module, "build_model_with_cfg", lambda kind, *_, **options: made.append((kind, options))
            )
    taken = refused = 0
    for name in filter(timm_config._VITS.fullmatch, timm.list_models()):
        made.clear()
        with contextlib.suppress(AttributeError, TypeError):  # builders that go on with the model they did not get
            model_entrypoint(name)()
        kind, options = made[0]
        act, block = options.get("act_layer", "gelu"), options.get("block_fn", Block)
        plain = getattr(kind, "__name__", "") == "VisionTransformer" and act in ("gelu", "gelu_tanh") and block is Block
        said = timm_config.Said(name, Fields({}, name), {}, None)
        try:
            timm_config.refuse_architecture(Reading(name, {}, Hints()), said, False)
        except DataError:
            assert not plain, name  # what is one of ours is not refused
            refused += 1
            continue
        # What is not refused by its name and is none of ours is refused by its tensors, as other tests show.
        if plain and options.get("final_norm", True):
            norm = options.get("norm_layer")
            eps = norm.keywords["eps"] if isinstance(norm, functools.partial) else 1e-6
            gelu = "tanh" if act == "gelu_tanh" else "erf"
            told = timm_config.fixed(said, options.get("embed_dim", 768))
            assert told == {"num_heads": options["num_heads"], "gelu": gelu, "norm_eps": eps}, name
            taken += 1
    assert (taken > 130, refused > 60) == (True, True), (taken, refused)


# Damage and contradiction


def spoil(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.pop("blocks.1.norm2.bias"), "lacks the tensor blocks.1.norm2.bias"),
        (lambda t: t.pop("blocks.1.attn.qkv.bias"), "lacks the tensor blocks.1.attn.qkv.bias"),
        (lambda t: t.pop("norm.bias"), "lacks the tensor norm.bias"),
        (lambda t: t.pop("patch_embed.proj.weight"), "lacks the tensor patch_embed.proj.weight"),
        (lambda t: t.pop("head.bias"), "lacks the tensor head.bias"),
        (lambda t: [t.pop(n) for n in list(t) if "blocks.1" in n], r"config.json says depth=2, but .* depth=1"),
        (
            lambda t: t.update({"blocks.99999999999.norm1.bias": torch.ones(WIDTH)}),
            "lacks the tensor blocks.2|says depth",
        ),
        (lambda t: t.update(extra=torch.ones(1)), "has the tensor extra, which"),
        (lambda t: t.update({"fc_norm.weight": torch.ones(WIDTH)}), "has the tensor fc_norm.weight, which"),
        (
            lambda t: t.update({"norm.bias": torch.ones(WIDTH + 1)}),
            "norm.bias gives 22 for norm.bias, of which .* has 21",
        ),
        (lambda t: t.update({"cls_token": torch.ones(1, 2, WIDTH)}), "cls_token is 1×2×21; 1×tokens×21 is right"),
        (lambda t: t.update({"pos_embed": torch.ones(1, 34, 20)}), "pos_embed is 1×34×20; 1×positions×21 is right"),
        (
            lambda t: t.update({"pos_embed": torch.ones(1, 35, WIDTH)}),
            "says image_size 12×44, which is 3×11 patches, but .* 35",
        ),
        (lambda t: t.update({"head.weight": torch.ones(WIDTH)}), "head.weight is 21; 2 axes are right"),
        (
            lambda t: t["blocks.0.mlp.fc1.weight"].fill_(float("nan")),
            "blocks.0.mlp.fc1.weight holds values .* not finite",
        ),
        (
            lambda t: t.update({"norm.bias": torch.ones(WIDTH, dtype=torch.int8)}),
            "norm.bias holds int8; weights of 16, 32 or 64 bits are right",
        ),
        (lambda t: t["pos_embed"].fill_(float("inf")), "pos_embed holds values that are not finite"),
    ],
)
def test_damage_is_named(change: Callable[[dict[str, Tensor]], Any], sentence: str, tmp_path: Path) -> None:
    folder = spoil(saved(build("vit_base_patch16_224", **TINY), tmp_path / "m"), change)
    with pytest.raises(DataError, match=sentence):
        load_model(folder)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda d: d["model_args"].update(num_classes=7), "says num_classes=7, but the tensors are of num_classes=5"),
        (lambda d: (d["model_args"].pop("num_classes"), d.update(num_classes=7)), "says num_classes=7, but"),
        (lambda d: d["model_args"].update(embed_dim=24), "says embed_dim=24, but the tensors are of embed_dim=21"),
        (lambda d: d["model_args"].update(mlp_ratio=4), "says mlp_ratio=4, but the tensors are of MLPs of 41"),
        (lambda d: d["model_args"].update(class_token=False), "says class_token=False, but"),
        (lambda d: d["model_args"].update(reg_tokens=4), "says reg_tokens=4, but the tensors are of reg_tokens=0"),
        (lambda d: d["model_args"].update(qkv_bias=False), "says qkv_bias=False, but"),
        (lambda d: d["model_args"].update(init_values=1e-5), "says init_values=1e-05, but"),
        (lambda d: d["model_args"].update(no_embed_class=True), "says no_embed_class=True, but"),
        (lambda d: d["model_args"].update(pos_embed="none"), "says pos_embed='none', but"),
        (lambda d: d["model_args"].update(in_chans=1), "says in_chans=1, but the tensors are of in_chans=3"),
        (lambda d: d["model_args"].update(patch_size=[4, 5]), r"says patch_size=\[4, 5\], but"),
        (lambda d: d["model_args"].update(global_pool="map"), "says global_pool='map', but the file lacks attn_pool"),
        (
            lambda d: d["model_args"].update(img_size=[20, 20]),
            "says image_size 20×20, which is 5×5 patches, but pos_embed has 34",
        ),
        (lambda d: d["model_args"].update(img_size="big"), "img_size='big' is not of the right type"),
        (lambda d: d["model_args"].update(act_layer="relu"), "says act_layer='relu', which none of our models has"),
        (lambda d: d["model_args"].update(num_heads=4), "says 4 heads, which do not divide the width of 21"),
        (lambda d: d["model_args"].update(num_heads="3"), "num_heads='3' is not of the right type"),
        (lambda d: d["model_args"].update(mlp_ratio="2"), "says mlp_ratio='2', but"),
        (lambda d: d["model_args"].update(whirl=3), "says whirl=3, which is not known"),
        (lambda d: d.update(model_args=[]) or d.update(model_args=[1]), "model_args of config.json must be tables"),
        (lambda d: d.update(label_names=["a"]), "has 1 label_names for 5 classes"),
        (lambda d: d.update(architecture="resnet50"), "holds timm's resnet50, which is none of our models"),
        (lambda d: d["pretrained_cfg"].update(crop_pct="most"), "pretrained_cfg of config.json is out of range"),
        (lambda d: d["pretrained_cfg"].update(std=[0, 0, 0]), "pretrained_cfg of config.json is out of range"),
    ],
)
def test_contradictions_are_named(change: Callable[[dict[str, Any]], Any], sentence: str, tmp_path: Path) -> None:
    folder = described(saved(build("vit_base_patch16_224", **TINY), tmp_path / "m"), change)
    with pytest.raises(DataError, match=sentence):
        load_model(folder)


def test_hints_that_contradict_the_file_are_wrong(tmp_path: Path) -> None:
    folder = saved(build("vit_base_patch16_224", **TINY), tmp_path / "m")
    with pytest.raises(UsageError, match="says itself that num_heads is 3; num_heads=7 is wrong"):
        load_model(folder, num_heads=7)
    with pytest.raises(UsageError, match="says itself that gelu is erf; gelu=tanh is wrong"):
        load_model(folder, gelu="tanh")
    assert load_model(folder, num_heads=HEADS, gelu="erf", norm_eps=1e-6, position="1d").num_classes == CLASSES


def test_bit_damage_is_named(tmp_path: Path) -> None:
    options = {"channels": (128,), "stem_chs": 32, "num_classes": CLASSES}
    folder = saved(build("resnetv2_50x1_bit", **options), tmp_path / "m")
    with pytest.raises(UsageError, match="has nothing that num_heads could say"):
        load_model(folder, num_heads=3)
    spoil(folder, lambda t: t.pop("stages.0.blocks.0.downsample.conv.weight"))
    with pytest.raises(DataError, match=r"lacks the tensor stages.0.blocks.0.downsample.conv.weight"):
        load_model(folder)
    spoil(folder, lambda t: t.pop("head.fc.weight"))
    with pytest.raises(DataError, match="says num_classes=5, but the tensors are of num_classes=0"):
        load_model(folder)


def test_bit_arguments_that_would_change_it_are_named(tmp_path: Path) -> None:
    options = {"channels": (128,), "stem_chs": 32, "num_classes": CLASSES}
    folder = saved(build("resnetv2_50x1_bit", **options), tmp_path / "m")
    described(folder, lambda d: d["model_args"].update(act_layer="silu"))
    with pytest.raises(DataError, match="says act_layer='silu', which is not known"):
        load_model(folder)


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    torch.save(build("vit_base_patch16_224", **TINY).state_dict(), tmp_path / "w.pth")
    with pytest.raises(DataError, match="is a pickle, which can run any code"):
        load_model(tmp_path / "w.pth")
