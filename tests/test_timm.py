"""timm's models ↔ ours, against timm itself: tiny random instances of its own classes, in every dialect, both ways."""

import functools
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from patchword.core.errors import DataError, UsageError
from patchword.models.contract import Model
from patchword.models.efficientnet import EfficientNet
from patchword.models.hybrid import Hybrid
from patchword.models.names import create_model
from patchword.models.position import sincos
from patchword.models.resnet import ResNet
from patchword.models.vit import ViT
from patchword.weights.io import load_model, read, save_model
from patchword.weights.mapping import Hints
from patchword.weights.source import open_source
from patchword.weights.timm import _ARCHITECTURES, _STEMS

timm = pytest.importorskip("timm", reason="timm is not installed")

CLASSES, PATCH, WIDTH, DEPTH, HEADS, MLP, GRID = 5, 4, 21, 2, 3, 41, (3, 5)
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
CLOSE = {"rtol": 0.0, "atol": 1e-5}

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
    model = timm.create_model(architecture, **options).eval()
    torch.manual_seed(11)
    for name, parameter in model.named_parameters():
        centre = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
        nn.init.normal_(parameter, centre, 0.3)
    return model


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


def compare(ours: Model, theirs: Any, record: Any, kind: str) -> None:
    """Logits and all hidden states."""
    batch = images(ours)
    with torch.no_grad():
        pairs = [(ours(batch), theirs(batch))]
        if isinstance(ours, ViT):
            inside = ours.intermediates(batch)
            names = [f"block_{i:02d}" for i in range(len(ours.blocks))]
            states = hidden(theirs, batch)
            pairs += [(inside[name], state) for name, state in zip(names, states[:-1], strict=True)]
            if ours.config.pool != "token" or not isinstance(theirs.norm, nn.Identity):
                pairs.append((inside["encoded"], states[-1]))
            spatial = theirs.forward_intermediates(batch, intermediates_only=True)[-1]
            pairs.append((inside[names[-1]][:, ours.prefix :].transpose(1, 2).unflatten(2, ours.grid), spatial))
    worst = max(float((mine - other).abs().max()) for mine, other in pairs)
    spread = min(float(other.std()) for _, other in pairs)
    record(f"{kind}_largest_difference", worst)
    assert spread > 0.05  # nothing is flat, so that agreement means something
    for mine, other in pairs:
        torch.testing.assert_close(mine, other, **CLOSE)


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
def test_vit_agrees_both_ways(
    dialect: str, tmp_path: Path, record_property: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    architecture, options, pool, registers = VITS[dialect]
    theirs = build(architecture, **{**TINY, **options})
    ours = load_model(saved(theirs, tmp_path / "theirs"))
    assert isinstance(ours, ViT)
    assert (ours.config.pool, ours.config.registers, ours.grid) == (pool, registers, GRID)
    assert (ours.config.mlp_dim, ours.config.num_heads) == (MLP, HEADS)
    said = capsys.readouterr().err
    assert "assumed" not in said
    compare(ours, theirs, record_property, "reading")
    compare(ours, back_from(ours, tmp_path / "ours"), record_property, "writing")
    assert_same(ours, load_model(tmp_path / "ours"))
