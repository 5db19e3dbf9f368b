"""The ViT against the paper's figures, against timm, and against itself by another path."""

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from patchword.core.errors import UsageError
from patchword.models import linear
from patchword.models.cost import cost
from patchword.models.gelu import gelu
from patchword.models.layers import MLP, Block, Dropout
from patchword.models.names import build_model, create_model, list_models
from patchword.models.vit import SIZES, ViT

POOLS = ("token", "gap", "map")
POSITIONS = ("none", "1d", "2d", "relative", "sincos", "rope")
ONEDNN = torch.backends.mkldnn.is_available()


def small(image_size: tuple[int, int] = (14, 22), num_classes: int = 5, **options: Any) -> ViT:
    """7 × 11 patches of 2×2; no zero left in any parameter."""
    sizes = {"patch_size": 2, "embed_dim": 24, "depth": 3, "num_heads": 3, "mlp_dim": 40}
    torch.manual_seed(0)
    model = create_model("ViT-At/2", num_classes, image_size, **{**sizes, **options})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    assert isinstance(model, ViT)
    return model.eval()


def images(model: ViT, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, model.in_channels, *model.image_size, generator=generator)


# Exact counts of the backbone without head, as published (keras-hub's presets of the paper's models).
PUBLISHED = [
    ("ViT-B/16", 224, 85_798_656),
    ("ViT-B/16", 384, 86_090_496),
    ("ViT-B/32", 224, 87_455_232),
    ("ViT-L/16", 224, 303_301_632),
    ("ViT-L/32", 224, 305_510_400),
    ("ViT-H/14", 224, 630_764_800),
]


@pytest.mark.parametrize(("name", "side", "expected"), PUBLISHED)
def test_parameter_count_is_the_published_one(name: str, side: int, expected: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in create_model(name, 0, side).parameters()) == expected


def test_plain_vit_s16_has_the_published_parameter_count() -> None:
    """21,974,632 with 1,000 classes, as the reproduction of "Better plain ViT baselines" reports for its linear head."""
    with torch.device("meta"):
        model = create_model("ViT-S/16", 1000, pool="gap", position="sincos")
    assert sum(p.numel() for p in model.parameters()) == 21_974_632


# What each size is in an independent library: timm's own name where it has one, else its constructor's arguments.
TIMM: dict[str, str | dict[str, Any]] = {
    "At": {"embed_dim": 64, "depth": 4, "num_heads": 2},
    "Fe": {"embed_dim": 96, "depth": 6, "num_heads": 3},
    "Pi": {"embed_dim": 128, "depth": 6, "num_heads": 4},
    "Na": {"embed_dim": 192, "depth": 9, "num_heads": 6},
    "Ti": "vit_tiny_patch16_224",
    "S": "vit_small_patch16_224",
    "B": "vit_base_patch16_224",
    "L": "vit_large_patch16_224",
    "H": "vit_huge_patch14_224",
    "g": "vit_giant_patch14_224",
    "G": "vit_gigantic_patch14_224",
}


def test_no_size_is_missing_from_the_table() -> None:
    assert set(TIMM) == set(SIZES)
    assert {name.split("-")[1].split("/")[0] for name in list_models("ViT-*")} == set(SIZES)


@pytest.mark.parametrize("name", list_models("ViT-*"))
def test_parameter_count_equals_timm(name: str) -> None:
    size, patch = name.removeprefix("ViT-").split("/")
    theirs = TIMM[size]
    with torch.device("meta"):
        ours = create_model(name, 11, 3 * int(patch))
        other: dict[str, Any] = {"patch_size": int(patch), "img_size": 3 * int(patch), "num_classes": 11}
        peer = timm.create_model(theirs, **other) if isinstance(theirs, str) else VisionTransformer(**theirs, **other)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in peer.parameters())


def timm_weights(model: ViT) -> dict[str, Tensor]:
    """Our parameters under timm's names, written down independently of any converter."""
    P, D = model.config.patch_size, model.config.embed_dim
    weights = {}
    for name, value in model.state_dict().items():
        name = name.replace(".attention.", ".attn.").replace("position.table", "pos_embed")
        name = name.replace("patch_embed", "patch_embed.proj").replace("class_token", "cls_token")
        if name in ("pos_embed", "cls_token"):
            value = value.reshape(1, -1, D)
        if name == "patch_embed.proj.weight":
            value = value.reshape(D, model.in_channels, P, P)
        weights[name] = value
    return weights


@pytest.mark.parametrize("pool", ["token", "gap"])
@pytest.mark.parametrize("gelu", ["tanh", "erf"])
def test_logits_and_gradients_equal_timm(pool: str, gelu: str) -> None:
    model = small(pool=pool, gelu=gelu)
    peer = VisionTransformer(
        img_size=model.image_size,
        patch_size=2,
        embed_dim=24,
        depth=3,
        num_heads=3,
        mlp_ratio=40 / 24,
        num_classes=5,
        class_token=pool == "token",
        global_pool="token" if pool == "token" else "avg",
        final_norm=True,
        fc_norm=False,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        act_layer="gelu_tanh" if gelu == "tanh" else "gelu",
    ).eval()
    peer.load_state_dict(timm_weights(model))
    batch = images(model)
    ours, theirs = model(batch), peer(batch)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    (ours**2).sum().backward()
    (theirs**2).sum().backward()
    assert model.patch_embed.weight.grad is not None
    assert peer.patch_embed.proj.weight.grad is not None
    torch.testing.assert_close(
        model.patch_embed.weight.grad, peer.patch_embed.proj.weight.grad.flatten(1), rtol=1e-4, atol=1e-3
    )
    theirs = peer.get_parameter("blocks.1.attn.qkv.weight").grad
    torch.testing.assert_close(model.blocks[1].attention.qkv.weight.grad, theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("position", POSITIONS)
def test_every_parameter_gets_a_gradient(pool: str, position: str) -> None:
    model = small(pool=pool, position=position, hidden_head=True).train()
    model(images(model)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("position", POSITIONS)
def test_walk_with_attention_equals_the_fused_path(pool: str, position: str) -> None:
    model = small(pool=pool, position=position, hidden_head=True)
    batch = images(model)
    steps = dict(model.walk(batch, attention=True))
    torch.testing.assert_close(model.head(steps["pre_logits"]), model(batch), rtol=1e-5, atol=1e-5)
    tokens = 77 + (pool == "token")
    weights = steps["block_01/attention"]
    assert weights.shape == (2, 3, tokens, tokens)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 3, tokens))
    inside = model.intermediates(batch)
    assert list(inside) == ["stem", "with_position", "block_00", "block_01", "block_02", "encoded", "pre_logits"]
    for name, value in inside.items():
        torch.testing.assert_close(value, steps[name], rtol=1e-5, atol=1e-5)


def _infer(model: ViT, batch: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(batch)


BOTH_LIBRARIES = [False, pytest.param(True, marks=pytest.mark.skipif(not ONEDNN, reason="no oneDNN"))]


@pytest.mark.parametrize("by_onednn", BOTH_LIBRARIES)
@pytest.mark.parametrize("kind", ["tanh", "erf"])
@pytest.mark.parametrize("pool", POOLS)
def test_inference_mode_computes_the_same(
    pool: str, kind: str, by_onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU every block takes another way there, by either library, and no block outside."""
    monkeypatch.setattr(linear, "ONEDNN", by_onednn)
    model = small(pool=pool, gelu=kind)
    batch = images(model)
    taken: list[Any] = []
    infer = linear.infer
    monkeypatch.setattr(linear, "infer", lambda block, *of: taken.append(block) or infer(block, *of))
    plain = model(batch).detach()
    assert not taken
    torch.testing.assert_close(_infer(model, batch), plain, rtol=1e-5, atol=1e-5)
    assert len(taken) == 3


def test_hooks_and_adapters_inside_a_block_are_called_in_inference_mode() -> None:
    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            return 2 * super().forward(input)

    model = small()
    batch = images(model)
    seen = []
    handle = model.blocks[1].mlp.fc1.register_forward_hook(lambda *_: seen.append(1))
    _infer(model, batch)
    assert seen == [1]
    handle.remove()

    before = model(batch).detach()
    mlp = model.blocks[0].mlp
    doubled = Doubled(40, 24)
    doubled.load_state_dict(mlp.fc2.state_dict())
    mlp.fc2 = doubled
    after = _infer(model, batch)
    torch.testing.assert_close(after, model(batch).detach(), rtol=1e-5, atol=1e-5)
    assert (after - before).abs().max() > 1e-2


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("position", POSITIONS)
def test_features_are_embed_encode_pool(pool: str, position: str) -> None:
    """`features` may skip rows that nobody reads; the contract's three steps compute them all."""
    model = small(pool=pool, position=position)
    batch = images(model)
    whole = model.pool(model.encode(model.embed(batch)))
    torch.testing.assert_close(model.features(batch), whole, rtol=1e-5, atol=1e-5)
    assert model.feature_map(batch).shape == (2, 24, 7, 11)


@pytest.mark.parametrize("position", POSITIONS)
def test_keep_drops_exactly_the_other_patches(position: str) -> None:
    """Keeping all patches changes nothing; a kept subset equals a model that never saw the others."""
    model = small(position=position)
    batch = images(model)
    everything = torch.arange(77).expand(2, -1)
    torch.testing.assert_close(model.features(batch, everything), model.features(batch), rtol=1e-5, atol=1e-5)
    keep = torch.tensor([[3, 5, 70], [0, 13, 76]])
    for row in range(2):
        tokens = model.embed(batch[row : row + 1])[:, [0, *(keep[row] + 1).tolist()]]
        if position not in ("relative", "rope"):  # there the places matter inside the blocks
            torch.testing.assert_close(
                model.features(batch, keep)[row : row + 1], model.pool(model.encode(tokens)), rtol=1e-5, atol=1e-5
            )
    # What the last block computes for one row is what it computes for that row of all.
    torch.testing.assert_close(
        model.features(batch, keep), model.pool(model.encode(model.embed(batch), keep)), rtol=1e-5, atol=1e-5
    )
    shuffled = model.features(batch, keep[:, [2, 0, 1]])
    torch.testing.assert_close(shuffled, model.features(batch, keep), rtol=1e-5, atol=1e-5)


def test_rotary_logits_are_products_of_complex_numbers() -> None:
    """RoPE, term by term: each two neighbouring numbers of a head are one complex number that turns."""
    model = small(image_size=(4, 6), position="rope", pool="gap", registers=1, num_heads=3)
    tokens = torch.randn(1, 7, 24, generator=torch.Generator().manual_seed(3))
    attention = model.blocks[0].attention
    plain = torch.nn.functional.linear(tokens, attention.qkv.weight, attention.qkv.bias).reshape(1, 7, 3, 3, 8)
    logits = torch.empty(3, 7, 7)
    for head in range(3):
        turned: list[list[torch.Tensor]] = []
        for which in range(2):
            numbers = torch.complex(plain[0, :, which, head, ::2], plain[0, :, which, head, 1::2])
            rows = [numbers[0]]  # the register is not turned
            for patch in range(6):
                row, column = divmod(patch, 3)
                angles = [math.pi * k * (row + 0.5) / 2 for k in (1, 2)] + [
                    math.pi * k * (column + 0.5) / 3 for k in (1, 2)
                ]
                rows.append(numbers[1 + patch] * torch.tensor([complex(math.cos(a), math.sin(a)) for a in angles]))
            turned.append(rows)
        for asking in range(7):
            for asked in range(7):
                logits[head, asking, asked] = (turned[0][asking] * turned[1][asked].conj()).sum().real / math.sqrt(8)
    torch.testing.assert_close(attention.explicit(tokens)[1][0], logits.softmax(-1), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        kept = attention(tokens[:, [0, 2, 5]], None, torch.tensor([[0, 2, 5]]))
    q = torch.tensor([0, 2, 5])
    weights = logits[:, q][:, :, q].softmax(-1)
    values = plain[0, q, 2].transpose(0, 1)
    torch.testing.assert_close(kept, attention.join((weights @ values)[None]), rtol=1e-5, atol=1e-6)


def test_zero_init_residual_lets_blocks_begin_as_the_identity_and_learn() -> None:
    torch.manual_seed(0)
    model = create_model("ViT-At/2", 5, (14, 22), depth=2, pool="gap")
    assert isinstance(model, ViT)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.zero_init_residual()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    ends = ("attention.proj.weight", "mlp.fc2.weight", "mlp.fc2.bias")
    assert changed == {f"blocks.{block}.{end}" for block in range(2) for end in ends}
    x = model.embed(images(model))
    assert torch.equal(model.blocks[1](model.blocks[0](x)), x)
    nn.init.normal_(model.get_parameter("head.weight"))
    model(images(model)).square().sum().backward()
    for block in model.blocks:
        for last in (block.attention.proj, block.mlp.fc2):
            assert last.weight.grad is not None
            assert last.weight.grad.abs().max() > 0


def test_a_class_token_sees_the_picture_though_all_else_begins_as_the_identity() -> None:
    """With rotary positions, a token of zeros and a head of zeros nothing but the head's bias would ever have a gradient."""
    torch.manual_seed(0)
    model = create_model("ViT-At/2", 5, (14, 22), depth=3, pool="token", position="rope")
    assert isinstance(model, ViT)
    model.zero_init_residual()
    assert [bool(block.attention.proj.weight.any()) for block in model.blocks] == [False, False, True]
    assert not any(block.mlp.fc2.weight.any() for block in model.blocks)
    assert not model.get_parameter("head.weight").any()
    model(images(model)).softmax(-1)[:, 0].sum().backward()
    gradient = model.get_parameter("head.weight").grad
    assert gradient is not None
    assert gradient.abs().max() > 0


def test_turns_keep_lengths_and_know_the_places_of_kept_tokens() -> None:
    rotation = (
        small(image_size=(4, 6), position="rope", pool="gap", registers=1, num_heads=3).blocks[0].attention.rotation
    )
    assert rotation is not None
    words = torch.randn(
        2, 7, 2, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True
    )
    turned = rotation(words)
    assert torch.equal(turned[:, 0], words[:, 0])
    torch.testing.assert_close(turned.norm(dim=-1), words.norm(dim=-1))
    half = rotation(words.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), turned, rtol=0.02, atol=0.02)
    assert not torch.allclose(turned[:, 1:], words[:, 1:])
    places = torch.tensor([[0, 2, 5], [0, 1, 6]])
    kept = torch.stack([words[0, places[0]], words[1, places[1]]])
    torch.testing.assert_close(rotation(kept, places), torch.stack([turned[0, places[0]], turned[1, places[1]]]))


def test_rotary_heads_begin_by_looking_at_the_nine_neighbours_in_turn() -> None:
    torch.manual_seed(0)
    model = create_model(
        "ViT-At/2", 5, (14, 22), depth=3, embed_dim=96, num_heads=4, mlp_dim=40, position="rope", pool="gap"
    )
    assert isinstance(model, ViT)
    neighbours = [(0, 0), (0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1)]
    for block in range(3):
        # Tokens without content: what the places alone say.
        weights = model.blocks[block].explicit(torch.zeros(1, 77, 96))[1][0].detach().unflatten(2, (7, 11))
        for head in range(4):
            down, right = neighbours[(4 * block + head) % 9]
            for row, column in ((3, 5), (1, 9), (5, 2)):
                seen = weights[head, row * 11 + column]
                assert divmod(int(seen.argmax()), 11) == (row + down, column + right)
                assert seen.max() > 0.5


def test_rotary_positions_mean_the_same_part_of_the_picture_on_another_grid() -> None:
    model = small(image_size=(6, 10), position="rope", pool="gap")
    larger = model.with_image_size((18, 30))
    mine, theirs = model.blocks[1].attention.rotation, larger.blocks[1].attention.rotation
    assert mine is not None
    assert theirs is not None
    device = torch.device("cpu")
    # The middle one of three patches stands where the one patch stood.
    middles = theirs.angles(device).unflatten(0, (9, 15))[1::3, 1::3]
    torch.testing.assert_close(mine.angles(device).unflatten(0, (3, 5)), middles)
    assert not [name for name in model.state_dict() if "rotation" in name or "position" in name]


def test_relative_logits_are_query_times_key_of_the_offset() -> None:
    """Appendix D.4, term by term."""
    model = small(image_size=(4, 6), position="relative", pool="gap")
    tokens = torch.randn(1, 6, 24, generator=torch.Generator().manual_seed(3))
    attention = model.blocks[0].attention
    q, k, _ = attention.heads(tokens, None)
    assert attention.relative is not None
    table = attention.relative.table
    logits = torch.empty(3, 6, 6)
    for head in range(3):
        for asking in range(6):
            for asked in range(6):
                key = k[0, head, asked] + table[asking - asked + 5]
                logits[head, asking, asked] = q[0, head, asking] @ key / math.sqrt(8)
    torch.testing.assert_close(attention.explicit(tokens)[1][0], logits.softmax(-1), rtol=1e-5, atol=1e-6)


def test_attention_pooling_equals_torchs_attention() -> None:
    model = small(pool="map")
    head = model.attention_pool
    assert head is not None
    peer = nn.MultiheadAttention(24, 3, batch_first=True)
    with torch.no_grad():
        peer.in_proj_weight.copy_(torch.cat([head.q.weight, head.kv.weight]))
        peer.in_proj_bias.copy_(torch.cat([head.q.bias, head.kv.bias]))
        peer.out_proj.weight.copy_(head.proj.weight)
        peer.out_proj.bias.copy_(head.proj.bias)
    tokens = torch.randn(2, 13, 24, generator=torch.Generator().manual_seed(3))
    asked, weights = peer(head.probe.expand(2, 1, -1), tokens, tokens, average_attn_weights=False)
    expected = (asked + head.mlp(head.norm(asked)))[:, 0]
    pooled, ours = head.explicit(tokens)
    torch.testing.assert_close(pooled, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours, weights, rtol=1e-5, atol=1e-6)


def test_patchify_is_the_convolution_of_the_original() -> None:
    model = small(image_size=(14, 22))
    batch = images(model)
    kernel = model.patch_embed.weight.reshape(24, 3, 2, 2)
    conv = torch.nn.functional.conv2d(batch, kernel, model.patch_embed.bias, stride=2)
    torch.testing.assert_close(model.intermediates(batch, ["stem"])["stem"], conv.flatten(2).transpose(1, 2))


def test_initial_values_are_the_original_ones() -> None:
    torch.manual_seed(0)
    model = create_model("ViT-Ti/16", 10)
    assert isinstance(model, ViT)
    assert isinstance(model.head, nn.Linear)
    assert not model.head.weight.any()
    assert not model.head.bias.any()
    assert model.class_token is not None
    assert not model.class_token.any()
    std = 1 / math.sqrt(16 * 16 * 3)
    assert model.patch_embed.weight.std().item() == pytest.approx(std, rel=0.02)
    assert model.patch_embed.weight.abs().max() <= 2 * std / 0.87962566
    assert model.position.table.std().item() == pytest.approx(0.02, rel=0.02)
    limit = math.sqrt(6 / (192 + 192))  # Xavier for each of q, k, v alone
    for matrix in model.blocks[5].attention.qkv.weight.chunk(3):
        assert matrix.abs().max() <= limit
        assert matrix.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.02)
    assert 0 < model.blocks[0].mlp.fc1.bias.abs().max() < 1e-5


def test_every_parameter_begins_as_in_the_original() -> None:
    """The whole list of values, on a model with every part; none keeps what was in memory before.

    But the norm of the pooling head, of which the test after this one speaks.
    """
    torch.manual_seed(0)
    parts = {
        "pool": "map",
        "position": "relative",
        "hidden_head": True,
        "registers": 40,
        "layer_scale": True,
        "depth": 1,
    }
    model = create_model("ViT-Ti/16", 10, (64, 96), **parts)
    for name, parameter in model.named_parameters():
        if not name.startswith("attention_pool.norm."):
            nn.init.constant_(parameter, 9e9)
    model.reset()
    found = dict(model.named_parameters())

    def begins(*names: str, std: float, limit: float, tolerance: float = 0.03) -> None:
        for name in names:
            value = found.pop(name)
            assert value.std().item() == pytest.approx(std, rel=tolerance), name
            assert value.abs().max() <= limit, name

    def xavier(name: str, rows: int, columns: int, parts: int = 1, tolerance: float = 0.03) -> None:
        limit = math.sqrt(6 / (rows + columns))
        for matrix in found.pop(name).chunk(parts):
            assert matrix.abs().max() <= limit, name
            assert matrix.std().item() == pytest.approx(limit / math.sqrt(3), rel=tolerance), name

    for name, fan_in in (("patch_embed", 768), ("pre_logits", 192)):
        begins(f"{name}.weight", std=fan_in**-0.5, limit=2 * fan_in**-0.5 / 0.87962566)
    begins("registers", "blocks.0.attention.relative.table", std=0.02, limit=0.12)
    for mlp in ("blocks.0.mlp", "attention_pool.mlp"):
        xavier(f"{mlp}.fc1.weight", 768, 192)
        xavier(f"{mlp}.fc2.weight", 192, 768)
        begins(f"{mlp}.fc1.bias", f"{mlp}.fc2.bias", std=1e-6, limit=6e-6, tolerance=0.2)
    xavier("blocks.0.attention.qkv.weight", 192, 192, parts=3)
    xavier("blocks.0.attention.proj.weight", 192, 192)
    xavier("attention_pool.probe", 1, 192, tolerance=0.15)
    xavier("attention_pool.q.weight", 192, 192)
    xavier("attention_pool.kv.weight", 192, 192, parts=2)
    xavier("attention_pool.proj.weight", 192, 192)
    norms = ("blocks.0.norm1", "blocks.0.norm2", "norm", "attention_pool.norm")
    constants = dict.fromkeys((f"{name}.weight" for name in norms), 1.0)
    constants |= {"blocks.0.scale1": 1e-5, "blocks.0.scale2": 1e-5, "head.weight": 0.0}
    for name, parameter in found.items():
        expected = constants.get(name, 0.0 if name.endswith(".bias") else math.nan)
        torch.testing.assert_close(parameter, torch.full_like(parameter, expected), msg=name)


def test_reset_reaches_the_norm_of_the_pooling_head() -> None:
    model = create_model("ViT-At/8", 3, 16, pool="map", depth=1)
    weight = model.get_parameter("attention_pool.norm.weight")
    nn.init.constant_(weight, 9e9)
    model.reset()
    assert weight.max() == 1


def test_the_defaults_are_the_original_ones() -> None:
    """GELU by its tanh formula and norms with 1e-6, as in JAX; torch's own defaults are others."""
    config = create_model("ViT-At/8", 3, 16, pool="map").config
    options = {"pool": "map", "position": "1d", "hidden_head": False, "registers": 0, "layer_scale": False}
    size = {"patch_size": 8, "embed_dim": 64, "depth": 4, "mlp_dim": 256, "num_heads": 2}
    assert dataclasses.asdict(config) == {**size, **options, "gelu": "tanh", "norm_eps": 1e-6}
    assert create_model("ViT-At/8", 3, 16).config.pool == "token"
    model = create_model("ViT-At/8", 3, 16, pool="map")
    assert {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)} == {1e-6}
    block = Block(24, 3, 40)
    assert (block.mlp.gelu, block.norm1.eps, block.norm2.eps) == ("tanh", 1e-6, 1e-6)


@pytest.mark.parametrize("pool", ["token", "map"])
def test_dropout_comes_after_positions_attention_gelu_and_each_dense_layer(
    pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Table 3. A dropout that doubles leaves its place in the result; nothing is in training, so all else is exact."""
    model = small(pool=pool, depth=2, hidden_head=True)
    batch = images(model)
    calls: list[nn.Module] = []
    monkeypatch.setattr(Dropout, "forward", lambda self, x, use=0: (calls.append(self), 2 * x)[1])

    def mlp(part: MLP, x: Tensor) -> Tensor:
        return 2 * part.fc2(2 * nn.functional.gelu(part.fc1(x), approximate="tanh"))

    tokens = 2 * model.position(model.project(batch), model.class_token)
    for block in model.blocks:
        tokens = tokens + 2 * block.attention.explicit(block.norm1(tokens))[0]
        tokens = tokens + mlp(block.mlp, block.norm2(tokens))
    tokens = model.norm(tokens)
    head = model.attention_pool
    if head is None:
        pooled = tokens[:, 0]
    else:
        asked = head.proj(nn.functional.scaled_dot_product_attention(*head.heads(tokens)).transpose(1, 2).flatten(2))
        pooled = (asked + mlp(head.mlp, head.norm(asked)))[:, 0]
    assert model.pre_logits is not None
    expected = torch.tanh(model.pre_logits(pooled))
    assert not calls
    torch.testing.assert_close(model.features(batch), expected, rtol=1e-4, atol=1e-4)
    assert len(calls) == 1 + 2 * 3 + (2 if pool == "map" else 0)
    torch.testing.assert_close(dict(model.walk(batch, attention=True))["pre_logits"], expected, rtol=1e-4, atol=1e-4)


def test_layer_scale_multiplies_each_branch() -> None:
    model = small(layer_scale=True)
    block = model.blocks[1]
    x = torch.randn(2, 13, 24, generator=torch.Generator().manual_seed(3))
    assert block.scale1 is not None
    assert block.scale2 is not None
    middle = x + block.scale1 * block.attention.explicit(block.norm1(x))[0]
    expected = middle + block.scale2 * block.mlp(block.norm2(middle))
    torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(block.explicit(x)[0], expected, rtol=1e-5, atol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pool", ["token", "gap", "gap-norm", "map"])
def test_pooling_by_hand(pool: str) -> None:
    """Registers speak for nothing; `gap-norm` averages first and norms then, once."""
    model = small(pool=pool, registers=3, hidden_head=True)
    batch = images(model)
    first = 3 + (pool == "token")
    last = model.intermediates(batch, ["block_02"])["block_02"]
    assert last.shape == (2, first + 77, 24)
    patches = last[:, first:]
    if pool == "token":
        pooled = model.norm(last[:, 0])
    elif pool == "gap":
        pooled = model.norm(patches).mean(dim=1)
    elif pool == "gap-norm":
        pooled = model.norm(patches.mean(dim=1))
    else:
        assert model.attention_pool is not None
        pooled = model.attention_pool.explicit(model.norm(patches))[0]
    assert model.pre_logits is not None
    hidden = nn.functional.linear(pooled, model.pre_logits.weight, model.pre_logits.bias)
    assert hidden.min() < -0.1
    torch.testing.assert_close(model.features(batch), hidden.tanh(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pool", ["token", "gap"])
def test_feature_map_has_each_patch_where_it_was(pool: str) -> None:
    model = small(pool=pool, registers=2)
    batch = images(model)
    tokens, first = model.encode(model.embed(batch)), 2 + (pool == "token")
    grid = model.feature_map(batch)
    for row in range(7):
        for column in range(11):
            torch.testing.assert_close(grid[:, :, row, column], tokens[:, first + row * 11 + column])


def test_regularization_acts_in_training_only() -> None:
    model = small()
    batch = images(model, 3)
    quiet = model(batch)
    model.regularize(dropout=0.5, stochastic_depth=0.5)
    torch.testing.assert_close(model(batch), quiet)
    model.train()
    assert not torch.equal(model(batch), model(batch))
    model.regularize()
    torch.testing.assert_close(model(batch), quiet)


def test_stochastic_depth_keeps_the_expectation() -> None:
    """The last block's branch is dropped for whole images at its full rate, and scaled up where it stays."""
    model = small(depth=2)
    model.regularize(stochastic_depth=0.25)
    assert [block.stochastic_depth.p for block in model.blocks] == [0.0, 0.25]
    block = model.blocks[1].train()
    torch.manual_seed(0)
    dropped = block.stochastic_depth(torch.ones(4001, 1, 1)).flatten()
    assert dropped.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.03)


def test_stages_hold_every_parameter_once_in_order() -> None:
    model = small(pool="map", hidden_head=True)
    stages = model.stages()
    assert len(stages) == 5
    flat = [name for stage in stages for name in stage]
    assert sorted(flat) == sorted(name for name, _ in model.named_parameters())
    assert "position.table" in stages[0]
    assert "blocks.1.norm1.weight" in stages[2]
    assert {"head.weight", "norm.bias", "pre_logits.weight", "attention_pool.probe"} <= set(stages[4])


def test_decay_spares_everything_but_matrices() -> None:
    model = small(pool="map", position="relative", hidden_head=True)
    decayed = {name for name, _ in model.named_parameters()} - model.no_weight_decay()
    assert all(name.endswith(".weight") for name in decayed)
    assert not [name for name in decayed if "norm" in name]
    assert "attention_pool.probe" in model.no_weight_decay()
    assert "blocks.0.attention.relative.table" in model.no_weight_decay()


def test_replace_head_starts_from_equal_probabilities() -> None:
    model = small()
    model.replace_head(3, ("a", "b", "c"))
    assert not model(images(model)).any()
    assert model.labels == ("a", "b", "c")
    model.replace_head(0)
    assert model(images(model)).shape == (2, 24)
    with pytest.raises(UsageError, match="2 labels cannot name 3 classes"):
        model.replace_head(3, ("a", "b"))


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("position", POSITIONS)
def test_with_image_size_keeps_all_but_positions(pool: str, position: str) -> None:
    model = small(pool=pool, position=position)
    same = model.with_image_size(model.image_size)
    torch.testing.assert_close(same(images(model)), model(images(model)))
    other = model.with_image_size((18, 26))
    assert other.grid == (9, 13)
    assert other(images(other)).shape == (2, 5)
    torch.testing.assert_close(other.blocks[2].mlp.fc1.weight, model.blocks[2].mlp.fc1.weight)
    with torch.no_grad():
        other.patch_embed.weight.zero_()
    assert model.patch_embed.weight.any(), "the new model must not share its weights with the old one"


@pytest.mark.parametrize("position", POSITIONS)
def test_architecture_builds_the_same_model(position: str) -> None:
    model = small(position=position, pool="map", hidden_head=True)
    twin = build_model(model.architecture, model.preprocessing)
    twin.load_state_dict(model.state_dict(), assign=True)
    torch.testing.assert_close(twin(images(model)), model(images(model)))


def test_cost_is_the_hand_count() -> None:
    model = small(pool="gap")
    N, D, M, P = 77, 24, 40, 2
    block = N * (D * 3 * D + D * D + 2 * D * M) + 2 * N * N * D
    macs = N * 3 * P * P * D + 3 * block + D * 5
    counted = cost(model)
    assert counted.forward_flops == 2 * macs
    assert counted.params == sum(p.numel() for p in model.parameters())
    assert counted.activation_bytes > 3 * 4 * N * (6 * D + M)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: create_model("ViT-B/16", image_size=(224, 230)), r"224×230 is not divided by the patch of 16×16; 224×224 or"),
        (lambda: create_model("ViT-X/16"), r"unknown model 'ViT-X/16'; did you mean"),
        (lambda: create_model("vit_base_patch16_224"), r"another library's name; here it is 'ViT-B/16'"),
        (lambda: create_model("vit_base"), r"another library's name; here it is 'ViT-B/16'"),
        (lambda: create_model("resnet50"), r"another library's name; here it is 'BiT-R50x1'"),
        (lambda: create_model("resnet50d"), r"unknown model 'resnet50d'"),
        (lambda: create_model("google/vit-large-patch32-384"), r"here it is 'ViT-L/32'"),
        (lambda: create_model("vit_b_16"), r"here it is 'ViT-B/16'"),
        (lambda: create_model("ViT-B/16", pol="gap"), r"unknown field model.pol; did you mean 'model.pool'"),
        (lambda: create_model("ViT-B/16", pool="avg"), r"model.pool='avg' is not known"),
        (lambda: create_model("ViT-B/16", num_heads=5), r"model.embed_dim=768 is not divisible by model.num_heads=5"),
        (lambda: create_model("ViT-B/16", depth="deep"), r"model.depth='deep' is not of the right type"),
        (lambda: create_model("ViT-B/16", in_channels=4), r"in_channels=4"),
        (lambda: small()(torch.zeros(1, 3, 14, 20)), r"takes images of B×3×14×22, not 1×3×14×20"),
        (lambda: small().intermediates(torch.zeros(1, 3, 14, 22), ["block_3"]), r"no intermediate 'block_3'; did you mean"),
    ],
)  # fmt: skip
def test_wrong_requests_are_answered_in_one_sentence(call: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()


def test_preprocess_takes_a_picture_or_a_list() -> None:
    from PIL import Image

    model = small()
    picture = Image.fromarray(np.full((31, 53, 3), 255, np.uint8))
    batch = model.preprocess([picture, picture])
    assert batch.shape == (2, 3, 14, 22)
    torch.testing.assert_close(model.preprocess(picture), torch.ones(1, 3, 14, 22))


def test_gelu_is_torchs_own_where_others_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compilers, exporters and other types see one operator; a model that trains on a CPU does not take torch's."""
    assert "aten.gelu" in str(torch.export.export(MLP(7, 11, "tanh"), (torch.ones(3, 7),)).graph)
    assert gelu(torch.ones(3, dtype=torch.bfloat16), "tanh").dtype == torch.bfloat16
    model = small(depth=1).train()
    monkeypatch.setattr(nn.functional, "gelu", None)
    model(images(model)).sum().backward()
    assert torch.count_nonzero(model.blocks[0].mlp.fc1.weight.grad)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("maker", "intels"),
    [("vendor_id\t: GenuineIntel\n", True), ("vendor_id\t: AuthenticAMD\nflags\t: avx512f\n", False)],
)
def test_the_maker_of_the_processor_says_who_takes_gradients(
    maker: str, intels: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no list of processors, the platform names it."""
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{maker}model name\t: 7\n")
    monkeypatch.setattr(linear, "Path", lambda _: tmp_path / "cpuinfo")
    assert linear._is_intels() == intels
    (tmp_path / "cpuinfo").unlink()
    for name in ("Intel64 Family 6 Model 85 Stepping 7, GenuineIntel", "AMD64 Family 25, AuthenticAMD", ""):
        monkeypatch.setattr(linear.platform, "processor", lambda name=name: name)
        assert linear._is_intels() == name.endswith("GenuineIntel")


def test_products_go_to_onednn_where_the_processor_has_avx_512(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a model that trains, or its forward pass alone, and the same gradients by either library."""
    assert (torch.backends.cpu.get_cpu_capability() == "AVX512" and ONEDNN) == linear.ONEDNN
    assert linear.ONEDNN >= linear.ONEDNN_BACKWARD
    if not ONEDNN:
        pytest.skip("this build of torch has no oneDNN")
    calls: list[int] = []
    by_onednn = linear.by_onednn
    monkeypatch.setattr(linear, "by_onednn", lambda *inputs: (calls.append(1), by_onednn(*inputs))[1])
    gradients, counts = [], []
    for forward, backward in ((True, True), (True, False), (False, False)):
        monkeypatch.setattr(linear, "ONEDNN", forward)
        monkeypatch.setattr(linear, "ONEDNN_BACKWARD", backward)
        calls.clear()
        model = small(depth=1).train()
        model(images(model)).square().sum().backward()
        gradients.append([each.grad for each in model.parameters()])
        counts.append(len(calls))
    # Patches, queries, keys and values, projection, two in the MLP; of patches no gradient goes to the pictures.
    assert counts == [3 * 6 - 1, 6, 0]
    for own in gradients[1:]:
        for one, other in zip(gradients[0], own, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
