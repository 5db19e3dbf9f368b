"""What every family promises, tried on a small member of each; and each family against an independent one."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from patchword.core.errors import UsageError
from patchword.models.contract import Model
from patchword.models.cost import cost
from patchword.models.early import EarlyConvViT
from patchword.models.efficientnet import SCALES
from patchword.models.hybrid import NAMED, STEMS, Hybrid
from patchword.models.layers import StochasticDepth
from patchword.models.names import FAMILIES, build_model, create_model, list_models, name_of
from patchword.models.resnet import UNITS, ResNet, pad_same
from patchword.models.stem import EarlyConvolutions, Whitening
from patchword.weights.io import load_model, save_model

SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViT-At/4", {"embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_dim": 40}),
    "hybrid": ("R5+ViT-At/4", {"embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_dim": 40}),
    "early-conv": (
        "C2+ViT-At/4",
        {"embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_dim": 40, "stem_channels": (11, 13)},
    ),
    "bit": ("BiT-R14x0.5", {"units": (1, 2)}),
    "efficientnet": ("EfficientNet-B0", {"width": 0.25, "depth": 0.5}),
}
SIZE = (44, 28)


def small(family: str, num_classes: int = 5, image_size: tuple[int, int] = SIZE, in_channels: int = 3) -> Model:
    """No parameter is left at zero, and no running statistic at its start."""
    name, options = SMALL[family]
    torch.manual_seed(0)
    model = create_model(name, num_classes, image_size, in_channels, **options)
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)  # pyright: ignore[reportArgumentType]
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # pyright: ignore[reportArgumentType]
    return model.eval()


def images(model: Model, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, model.in_channels, *model.image_size, generator=generator)


def test_no_family_is_missing_from_these_tests() -> None:
    assert set(SMALL) == set(FAMILIES)


@pytest.mark.parametrize("family", SMALL)
def test_every_parameter_gets_a_gradient(family: str) -> None:
    model = small(family).train()
    model(images(model)).square().mean().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("in_channels", [1, 3])
def test_logits_are_the_head_of_the_features(family: str, in_channels: int) -> None:
    model = small(family, in_channels=in_channels)
    batch = images(model)
    features = model.features(batch)
    assert features.shape == (3, model.num_features)
    torch.testing.assert_close(model(batch), model.head(features))
    assert model(batch).shape == (3, 5)
    model.replace_head(0)
    torch.testing.assert_close(model(batch), features)


@pytest.mark.parametrize("family", SMALL)
def test_intermediates_end_in_what_the_head_sees(family: str) -> None:
    model = small(family)
    batch = images(model)
    inside = model.intermediates(batch)
    assert list(inside)[-1] == "pre_logits"
    assert "stem" in inside
    torch.testing.assert_close(inside["pre_logits"], model.features(batch))
    grid = model.feature_map(batch)
    assert grid.shape[:1] == (3,)
    # The map keeps its orientation: the image is taller than wide.
    assert grid.shape[2] > grid.shape[3]


@pytest.mark.parametrize("family", ["hybrid", "bit", "efficientnet"])
def test_units_are_named_in_order(family: str) -> None:
    model = small(family)
    names = [name.removeprefix("backbone/") for name, _ in model.walk(images(model)) if "stage" in name]
    assert names == sorted(names)
    assert names[0] == "stage1/unit1"


@pytest.mark.parametrize("family", SMALL)
def test_stages_hold_every_parameter_once_from_input_to_output(family: str) -> None:
    model = small(family)
    stages = model.stages()
    flat = [name for stage in stages for name in stage]
    assert sorted(flat) == sorted(name for name, _ in model.named_parameters())
    assert all(stages)
    assert "head.weight" in stages[-1]
    first = {"vit": "patch_embed.weight", "hybrid": "backbone.conv_root.weight", "bit": "conv_root.weight"}
    first["early-conv"] = "backbone.convs.0.weight"
    assert first.get(family, "layers.0.0.weight") in stages[0]


@pytest.mark.parametrize("family", SMALL)
def test_the_architecture_builds_the_same_model(family: str) -> None:
    model = small(family)
    again = build_model(model.architecture, model.preprocessing)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    again.load_state_dict(model.state_dict(), assign=True)
    torch.testing.assert_close(again.eval()(images(model)), model(images(model)))


@pytest.mark.parametrize("family", SMALL)
def test_with_image_size_is_a_model_of_its_own(family: str) -> None:
    model = small(family)
    other = model.with_image_size((28, 60))
    assert other.image_size == (28, 60)
    assert model.image_size == SIZE
    assert other(images(other)).shape == (3, 5)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert all(parameter.any() for parameter in model.parameters())


@pytest.mark.parametrize("family", SMALL)
def test_regularization_acts_in_training_only(family: str) -> None:
    model = small(family)
    batch = images(model)
    quiet = model(batch)
    model.regularize(dropout=0.5, stochastic_depth=0.5)
    torch.testing.assert_close(model(batch), quiet)
    model.train()
    assert not torch.equal(model(batch), model(batch))
    model.regularize()
    torch.testing.assert_close(model.eval()(batch) if not model.has_batch_norm else quiet, quiet)


@pytest.mark.parametrize("family", SMALL)
def test_cost_is_what_torch_counts(family: str) -> None:
    model = small(family)
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        model.to("meta")(torch.empty(1, 3, *SIZE))
    counted = cost(model)
    assert counted.forward_flops == counter.get_total_flops()
    assert counted.params == sum(p.numel() for p in model.parameters())
    assert counted.activation_bytes > 0
    assert counted.train_flops == 3 * counted.forward_flops


@pytest.mark.parametrize("family", ["vit", "hybrid", "bit"])
def test_a_training_step_costs_at_most_three_forward_passes(family: str) -> None:
    """Less by the gradient with respect to the pictures, which nobody computes. torch counts no depthwise gradient right."""
    model = small(family).to("meta").train()
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(3, 3, *SIZE, device="meta")).sum().backward()
    assert 0.85 < counter.get_total_flops() / (3 * cost(model).train_flops) <= 1


@pytest.mark.parametrize("family", ["bit", "efficientnet"])
def test_convolutions_have_no_patches_to_keep(family: str) -> None:
    model = small(family)
    assert model.grid is None
    with pytest.raises(UsageError, match="has no patches to choose from"):
        model.features(images(model), torch.zeros(3, 1, dtype=torch.int64))


@pytest.mark.parametrize("name", list_models())
def test_the_configuration_of_a_name_has_that_name(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, 10)
    family = FAMILIES[model.family]
    assert name_of(family, model.config) == name


def test_early_convolutions_by_hand() -> None:
    """3×3 convolution, ReLU of batch norm, then the 2×2 maximum: the order of the paper, which the faster one equals."""
    model = small("early-conv")
    assert isinstance(model, EarlyConvViT)
    stem = model.backbone
    assert isinstance(stem, EarlyConvolutions)
    with torch.no_grad():  # a maximum commutes with a norm of positive scale alone
        for norm in stem.norms:
            norm.weight.abs_()  # pyright: ignore[reportCallIssue]
    x = images(model)
    for conv, norm in zip(stem.convs, stem.norms, strict=True):
        x = nn.functional.max_pool2d(norm(conv(x)).relu(), 2)
    torch.testing.assert_close(model.intermediates(images(model))["backbone/conv2"], x)
    assert model.grid == (11, 7)


def test_a_deeper_stem_halves_the_side_once_at_each_width() -> None:
    torch.manual_seed(0)
    model = create_model("C2+ViT-At/4", 3, 20, stem_channels=(5, 7), stem_depth=2)
    assert isinstance(model, EarlyConvViT)
    stem = model.backbone
    assert isinstance(stem, EarlyConvolutions)
    model.eval()
    inside = model.intermediates(images(model))
    shapes = {name: tuple(value.shape[1:]) for name, value in inside.items() if name.startswith("backbone/")}
    assert shapes == {
        "backbone/conv1": (5, 10, 10),
        "backbone/conv2": (5, 10, 10),
        "backbone/conv3": (7, 5, 5),
        "backbone/conv4": (7, 5, 5),
    }
    x = inside["backbone/conv1"]
    conv, norm = stem.convs[1], stem.norms[1]
    torch.testing.assert_close(inside["backbone/conv2"], norm(conv(x)).relu())
    # What comes in goes on, and something is added: the identity is at most a fan-in's root away from each kernel.
    for conv in stem.convs:
        assert isinstance(conv, torch.nn.Conv2d)
        kernel = conv.weight.detach().clone()
        for channel in range(min(kernel.shape[:2])):
            kernel[channel, channel, 1, 1] -= 1
        assert 0 < kernel.abs().max() <= kernel[0].numel() ** -0.5


def test_a_smooth_stem_by_hand() -> None:
    torch.manual_seed(0)
    model = create_model("C2+ViT-At/4", 3, 20, stem_channels=(5, 7), stem_activation="silu")
    assert isinstance(model, EarlyConvViT)
    stem = model.backbone
    assert isinstance(stem, EarlyConvolutions)
    x = images(model)
    inside = model.eval().intermediates(x)
    for number, (conv, norm) in enumerate(zip(stem.convs, stem.norms, strict=True), 1):
        x = norm(nn.functional.max_pool2d(conv(x), 2))
        x = x / (1 + torch.exp(-x))
        torch.testing.assert_close(inside[f"backbone/conv{number}"], x)


def test_whitening_makes_neighbouring_pixels_independent() -> None:
    """Against a plain covariance: the first half is uncorrelated and of equal strength, the second half its negative."""
    model = create_model("C2+ViT-At/4", 3, 20, stem_channels=(5, 7), stem_whitening=24)
    assert isinstance(model, EarlyConvViT)
    stem = model.backbone
    assert isinstance(stem, EarlyConvolutions)
    assert stem.whitening is not None
    assert model.wants_images
    generator = torch.Generator().manual_seed(5)
    rough = torch.randn(31, 3, 22, 22, generator=generator)
    x = torch.nn.functional.avg_pool2d(rough, 3, 1) * torch.tensor([3.0, 5.0, 7.0])[:, None, None]
    model.begin_with(x)
    kernels = stem.whitening.kernels
    assert kernels.shape == (24, 3, 2, 2)
    torch.testing.assert_close(kernels[12:], -kernels[:12])
    seen = torch.nn.functional.conv2d(x, kernels[:12]).permute(1, 0, 2, 3).flatten(1).double()
    moments = seen @ seen.T / seen.shape[1]
    values = torch.linalg.eigvalsh(
        torch.nn.functional.unfold(x.double(), 2).permute(1, 0, 2).flatten(1).cov(correction=0)
    )
    assert (moments - torch.diag(moments.diag())).abs().max() < 1e-4
    expected = (values / (values + 1e-2)).flip(0)
    torch.testing.assert_close(moments.diag(), expected, rtol=1e-2, atol=1e-3)
    # What looks at a picture sees it through them, with its own bias; nothing of it is learned but that.
    model.eval()
    inside = model.intermediates(x[:2, :, :20, :20])
    padded = torch.nn.functional.pad(x[:2, :, :20, :20], (0, 1, 0, 1))
    torch.testing.assert_close(
        inside["backbone/white"], torch.nn.functional.conv2d(padded, kernels).relu(), rtol=1e-4, atol=1e-5
    )
    assert "backbone.whitening.kernels" not in dict(model.named_parameters())
    assert "backbone.whitening.bias" in model.no_weight_decay()


def test_whitening_writes_out_a_few_pictures_at_a_time_and_sees_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last ones are the strongest: without them the moments would be others."""
    counts, unfold = [], nn.functional.unfold

    def watched(part: Tensor, side: int) -> Tensor:
        counts.append(len(part))
        return unfold(part, side)

    monkeypatch.setattr(nn.functional, "unfold", watched)
    monkeypatch.setattr("patchword.models.stem._MOST_PATCHES", 64 * 24, raising=False)  # of pictures with 24 patches
    x = torch.randn(131, 3, 7, 5, generator=torch.Generator().manual_seed(5))
    x[127:] *= 11.0
    white = Whitening(3, 24)
    white.fit(x)
    assert sum(counts) == 131
    assert max(counts) <= 64
    seen = nn.functional.conv2d(x.double(), white.kernels[:12].double()).permute(1, 0, 2, 3).flatten(1)
    moments = seen @ seen.T / seen.shape[1]
    torch.testing.assert_close(moments, torch.eye(12).double(), rtol=0, atol=0.02)


def test_whitening_begins_with_the_pixels_and_keeps_what_is_left_at_nothing() -> None:
    """Of 30 channels 12 and 12 are of use; the bias is added before the ReLU."""
    stem = Whitening(3, 30)
    torch.nn.init.constant_(stem.kernels, 9.0)
    stem.reset()
    x = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(5))
    places = torch.nn.functional.pad(x, (0, 1, 0, 1))
    pixels = torch.stack([places[:, c, i : i + 5, j : j + 6] for c in range(3) for i in range(2) for j in range(2)], 1)
    expected = torch.zeros(2, 30, 5, 6)
    expected[:, :12], expected[:, 15:27] = pixels, -pixels
    torch.testing.assert_close(stem(x), expected.relu())
    with torch.no_grad():
        stem.bias.copy_(torch.linspace(-1, 1, 30))
    torch.testing.assert_close(stem(x), (expected + stem.bias[:, None, None]).relu())
    torch.nn.init.constant_(stem.kernels, 9.0)
    stem.fit(x)
    assert not stem.kernels[12:15].any()
    assert not stem.kernels[27:].any()
    assert stem.kernels[:12].flatten(1).any(1).all()


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("C2+ViT-At/4", (24, 64)),
        ("C3+ViT-Fe/8", (16, 48, 96)),
        ("C4x0.5+ViT-At/16", (8, 16, 32, 64)),
        ("C4+ViT-Pi/16", (16, 32, 64, 128)),
    ],
)
def test_the_widths_of_plain_stems(name: str, channels: tuple[int, ...]) -> None:
    model = create_model(name, 0, 32)
    assert isinstance(model, EarlyConvViT)
    inside = model.intermediates(torch.zeros(1, 3, 32, 32))
    shapes = [tuple(value.shape[1:]) for part, value in inside.items() if part.startswith("backbone/")]
    assert shapes == [(width, 32 >> halvings, 32 >> halvings) for halvings, width in enumerate(channels, 1)]
    assert model.stem_shape == (channels[-1], 2 ** len(channels))


def test_whitening_goes_where_the_model_goes(tmp_path: Path) -> None:
    model = create_model("C2+ViT-At/4", 3, 20, stem_channels=(5, 7), stem_whitening=24)
    model.begin_with(torch.randn(11, 3, 20, 20, generator=torch.Generator().manual_seed(5)))
    save_model(model, tmp_path / "saved")
    loaded = load_model(tmp_path / "saved")
    x = images(model)
    torch.testing.assert_close(loaded(x), model.eval()(x))
    grey = load_model(tmp_path / "saved", in_channels=1)
    kernels = dict(model.named_buffers())["backbone.whitening.kernels"]
    torch.testing.assert_close(dict(grey.named_buffers())["backbone.whitening.kernels"], kernels.sum(1, keepdim=True))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"stem_whitening": 3}, "model.stem_whitening=3 must be an even number, or 0"),
        ({"stem_channels": ()}, "must have a width of at least 1 for each halving"),
        ({"stem_channels": (8, 0)}, "must have a width of at least 1 for each halving"),
        ({"stem_depth": 0}, "model.stem_depth=0 must be at least 1"),
        ({"stem_activation": "gelu"}, "model.stem_activation='gelu' is not known; did you mean 'relu'?"),
        ({"stem_channels": (8, 8, 8)}, "patch_size=4 must be a multiple of 8, which 3 halvings make of one pixel"),
    ],
)
def test_wrong_early_convolutions_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        create_model("C2+ViT-At/4", 3, 32, **options)


@pytest.mark.parametrize("dialect", ["google", "timm", "huggingface"])
def test_nobody_else_has_early_convolutions(dialect: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="C2.ViT-At/4"):
        save_model(
            create_model("C2+ViT-At/4", 3, 32), tmp_path / ("x.npz" if dialect == "google" else "x"), format=dialect
        )
    assert not list(tmp_path.iterdir())


def _meta_params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# Their names, where timm has the model; 1,000 classes at 224 px.
TIMM_HYBRIDS = {
    "R+ViT-Ti/16": "vit_tiny_r_s16_p8_224",
    "R26+ViT-S/32": "vit_small_r26_s32_224",
    "R50+ViT-B/16": "vit_base_r50_s16_224",
    "R50+ViT-L/32": "vit_large_r50_s32_224",
}


@pytest.mark.parametrize(("name", "theirs"), TIMM_HYBRIDS.items())
def test_hybrids_have_timms_parameters_and_grid(name: str, theirs: str) -> None:
    with torch.device("meta"):
        mine = create_model(name, 1000)
        other: Any = timm.create_model(theirs, num_classes=1000)
    assert isinstance(mine, Hybrid)
    assert _meta_params(mine) == _meta_params(other)
    assert mine.grid == other.patch_embed.grid_size


@pytest.mark.parametrize(
    ("name", "millions"), [("R+ViT-Ti/16", 6.34), ("R26+ViT-S/32", 36.43), ("R50+ViT-L/32", 328.99)]
)
def test_hybrids_have_the_published_parameters(name: str, millions: float) -> None:
    with torch.device("meta"):
        assert round(_meta_params(create_model(name, 1000)) / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("name", "stem"), [("R50+ViT-B/32", "vit_base_r26_s32_224"), ("R50+ViT-L/16", "vit_base_r50_s16_224")]
)
def test_the_papers_other_hybrids_are_a_known_stem_and_a_known_encoder(name: str, stem: str) -> None:
    """timm does not name them: its stems and encoders are put together here."""
    units = {"R50+ViT-B/32": (3, 4, 6, 3), "R50+ViT-L/16": (3, 4, 9)}[name]
    encoder = {"B": "vit_base_patch32_224", "L": "vit_large_patch16_224"}[name.split("-")[1][0]]
    with torch.device("meta"):
        mine = create_model(name, 1000)
        backbone: Any = timm.models.resnetv2.ResNetV2(
            list(units), num_classes=0, global_pool="", preact=False, stem_type="same"
        )
        other: Any = timm.create_model(encoder)
    channels, width = backbone.num_features, other.embed_dim
    projection = channels * width - other.patch_embed.proj.weight.numel()
    assert _meta_params(mine) == _meta_params(backbone) + _meta_params(other) + projection
    assert isinstance(mine, Hybrid)
    assert mine.config.stem_units == units


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ViT-Fe/16", {"pool": "gap", "position": "sincos"}),
        ("C4x0.5+ViT-At/16", {"pool": "gap", "position": "sincos"}),
        ("BiT-R14x0.25", {}),
        ("EfficientNet-Na", {}),
    ],
)
def test_every_kind_has_a_member_for_small_budgets(name: str, options: dict[str, Any]) -> None:
    """At most 25 MFLOP for a picture of 64×64: what `patchword compare` sets side by side on two cores."""
    with torch.device("meta"):
        model = create_model(name, 10, 64, **options)
    assert 10e6 < cost(model).forward_flops < 25e6
    assert name == "ViT-Fe/16" or name in list_models()
    assert name_of(FAMILIES[model.family], model.config) == name


def test_a_quarter_of_bit_has_a_group_for_each_narrow_channel() -> None:
    model = create_model("BiT-R14x0.25", 3, (44, 28))
    groups = {module.num_groups for module in model.modules() if isinstance(module, nn.GroupNorm)}
    channels = {module.num_channels for module in model.modules() if isinstance(module, nn.GroupNorm)}
    assert groups == {16, 32}
    assert channels == {16, 32, 64, 128, 256, 512}
    model(images(model)).sum().backward()


def test_no_stem_is_missing_from_the_named_hybrids() -> None:
    assert {name.split("+")[0] for name in NAMED} == set(STEMS)
    assert set(list_models("R*")) == set(NAMED)


# A norm of timm's has 32 groups always.
@pytest.mark.parametrize("name", [name for name in list_models("BiT-*") if not name.endswith("x0.25")])
def test_bit_has_timms_parameters(name: str) -> None:
    size, _, factor = name.removeprefix("BiT-").partition("x")
    with torch.device("meta"):
        mine = create_model(name, 1000)
        other = timm.models.resnetv2.ResNetV2(
            list(UNITS[size]),
            channels=tuple(int(c * float(factor)) for c in (256, 512, 1024, 2048)),
            stem_chs=int(64 * float(factor)),
        )
    assert _meta_params(mine) == _meta_params(other)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("BiT-R50x1", 25.55), ("BiT-R101x1", 44.54), ("BiT-R152x2", 236.34), ("BiT-R152x4", 936.53)],
)
def test_bit_has_the_published_parameters(name: str, millions: float) -> None:
    with torch.device("meta"):
        assert round(_meta_params(create_model(name, 1000)) / 1e6, 2) == millions


@pytest.mark.parametrize("size", [size for size in SCALES if size.startswith("B")])
def test_efficientnet_has_torchvisions_parameters(size: str) -> None:
    with torch.device("meta"):
        mine = create_model(f"EfficientNet-{size}", 1000)
        other = torchvision.models.get_model(f"efficientnet_{size.lower()}")
    assert _meta_params(mine) == _meta_params(other)


def test_efficientnet_l2_has_the_published_parameters() -> None:
    with torch.device("meta"):
        assert round(_meta_params(create_model("EfficientNet-L2", 1000)) / 1e6, 2) == 480.31


def test_efficientnet_is_torchvisions_function() -> None:
    torch.manual_seed(0)
    other = torchvision.models.efficientnet_b0(num_classes=7).eval()
    mine = create_model("EfficientNet-B0", 7, (44, 28)).eval()
    state = {name.replace("features.", "layers."): value for name, value in other.state_dict().items()}
    state = {name.replace("classifier.1.", "head."): value for name, value in state.items()}
    mine.load_state_dict(state)
    batch = images(mine, 2)
    torch.testing.assert_close(mine(batch), other(batch))
    # Statistics over the four places that are left magnify what another memory format rounds.
    torch.testing.assert_close(mine.train()(batch), _without_chance(other).train()(batch), rtol=1e-3, atol=1e-3)


def _without_chance(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout | torchvision.ops.StochasticDepth):
            module.p = 0.0
    return model


def test_batch_statistics_are_found() -> None:
    for family in SMALL:
        model = small(family)
        found = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
        assert model.has_batch_norm == found


@pytest.mark.parametrize(
    ("size", "side", "stride"), [(11, 3, 2), (12, 3, 2), (13, 7, 2), (14, 7, 2), (7, 3, 1), (5, 1, 2)]
)
def test_same_padding_by_hand(size: int, side: int, stride: int) -> None:
    """TensorFlow's SAME: ⌈n / stride⌉ windows, the odd zero on the right."""
    row = pad_same(torch.ones(1, 1, size, size), side, stride)[0, 0].amax(dim=0)
    out = -(-size // stride)
    total = max(0, (out - 1) * stride + side - size)
    assert row.tolist() == [0.0] * (total // 2) + [1.0] * size + [0.0] * (total - total // 2)


def test_standardized_kernels_have_no_mean_and_unit_variance_and_follow_their_weights() -> None:
    model = small("bit")
    assert isinstance(model, ResNet)
    conv = model.conv_root
    with torch.inference_mode():
        first = conv.kernel()
        assert conv.kernel() is first  # made once
    assert first.mean(dim=(1, 2, 3)).abs().max() < 1e-5
    torch.testing.assert_close(first.var(dim=(1, 2, 3), correction=0), torch.ones(32), atol=1e-4, rtol=0)
    with torch.no_grad():
        conv.weight.add_(torch.randn_like(conv.weight))
    with torch.inference_mode():
        assert (conv.kernel() - first).abs().max() > 0.1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("BiT-R50x0.3", {}, "neither 0.25 nor a multiple of 0.5"),
        ("BiT-R14x0.5", {"width": 48}, "must be 16 or a multiple of the 32 groups"),
        ("BiT-R51x1", {}, r"unknown model 'BiT-R51x1'; did you mean 'BiT-R101x1'|did you mean 'BiT-R50x1'"),
        ("BiT-R50x1", {"arithmetic": "torch"}, "model.arithmetic='torch' is not known"),
        ("BiT-R50x1", {"units": ()}, "must be at least 1 in at least one stage"),
        ("R50+ViT-B/6", {}, "must be a multiple of 4"),
        ("R50+ViT-B/16", {"stem_width": 48}, "must be a multiple of the 32 groups"),
        ("EfficientNet-B9", {}, "unknown model 'EfficientNet-B9'; did you mean 'EfficientNet-B"),
        ("EfficientNet-B0", {"width": 0.0}, "must be greater than 0"),
    ],
)
def test_wrong_names_and_fields_are_one_sentence(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create_model(name, **options)


@pytest.mark.parametrize("family", SMALL)
def test_stochastic_depth_grows_from_the_input_to_the_output(family: str) -> None:
    model = small(family)
    model.regularize(stochastic_depth=0.5)
    rates = [module.p for module in model.branches()]
    assert len(rates) > 1
    assert rates == pytest.approx([0.5 * i / (len(rates) - 1) for i in range(len(rates))])
    if isinstance(model, Hybrid):
        assert model.blocks[-1].stochastic_depth.p == 0.5
    every = [module for module in model.modules() if isinstance(module, StochasticDepth)]
    assert set(every) == set(model.branches())


def test_frozen_convolutions_can_be_differentiated_after_inference() -> None:
    """The kernels kept for inference must not come back where gradients are wanted."""
    model = small("bit")
    batch = images(model)
    with torch.inference_mode():
        before = model(batch).clone()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    wanted = batch.clone().requires_grad_()
    logits = model(wanted)
    logits.sum().backward()
    assert wanted.grad is not None
    assert wanted.grad.abs().sum() > 0
    torch.testing.assert_close(logits.detach(), before)
    with torch.inference_mode():
        assert build_model(model.architecture, model.preprocessing) is not None
        inside = create_model("BiT-R14x0.5", 3, 32)
        assert inside(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


def test_another_size_keeps_what_else_the_model_carries() -> None:
    model = small("vit")
    model.provenance, model.multi_label = {"source": "here"}, True
    model.regularize(dropout=0.25, stochastic_depth=0.5)
    model.head.weight.requires_grad_(False)  # pyright: ignore[reportAttributeAccessIssue]
    other = model.with_image_size((28, 60))
    assert (other.provenance, other.multi_label) == (model.provenance, True)
    assert [m.p for m in other.branches()] == [0.0, 0.5]
    assert [p.requires_grad for p in other.parameters()] == [p.requires_grad for p in model.parameters()]


def test_kept_kernels_never_outlive_their_weights() -> None:
    """A new parameter may lie where the old one lay, with its version, and must not be taken for it."""
    model = small("bit")
    assert isinstance(model, ResNet)
    conv = model.conv_root
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        conv.weight = nn.Parameter(torch.randn(conv.weight.shape, generator=generator))
        conv.weight = nn.Parameter(torch.randn(conv.weight.shape, generator=generator))
        with torch.inference_mode():
            torch.testing.assert_close(conv.kernel(), conv._standardize())


@pytest.mark.parametrize("family", ["hybrid", "bit"])
def test_a_dropped_unit_is_its_residual(family: str) -> None:
    """And so is a new unit of a hybrid's stem, whose last norm begins with a scale of zero."""
    model = small(family).train()
    stages: Any = (model.backbone if isinstance(model, Hybrid) else model).units
    unit = stages[0][0] if family == "hybrid" else stages[1][1]
    x = torch.randn(2, unit.conv1.in_channels, 6, 5).relu()
    residual = x if unit.conv_proj is None else unit.norm_proj(unit.conv_proj(x))
    unit.stochastic_depth.p = 1 - 1e-9
    torch.testing.assert_close(unit(x), residual.relu() if family == "hybrid" else residual)
    if family == "hybrid":
        unit.stochastic_depth.p = 0.0
        assert (unit(x) - residual.relu()).abs().max() > 1e-3
        unit.reset()
        torch.testing.assert_close(unit(x), nn.functional.relu(residual + unit.norm3.bias[:, None, None]))
