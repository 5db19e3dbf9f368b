"""timm's models ↔ ours: its ViTs, the hybrids of the paper and of AugReg, and BiT, as bare tensors and as folders of its hub.

Names and shapes say most of what a model is; `config.json` beside them (`timm_config.py`) says the rest. Facts:
github.com/huggingface/pytorch-image-models (release 1.0.31: timm/models/vision_transformer.py, vision_transformer_hybrid.py,
resnetv2.py). Letters: C channels, P patch side, N patches, D width, R registers, K classes.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchword.core import files
from patchword.core.errors import DataError
from patchword.models.contract import Model
from patchword.models.hybrid import Hybrid
from patchword.models.resnet import ResNet, stem_stride
from patchword.models.vit import Pool, ViT
from patchword.weights import adapt, folder, mapping, timm_config
from patchword.weights.mapping import Foreign, Hints, Row, shape_of
from patchword.weights.reading import Reading, usual_heads
from patchword.weights.source import CONFIG, Source
from patchword.weights.timm_config import Said

_STRANGERS: tuple[tuple[str, str], ...] = (
    (r"dist_token|head_dist\.", "a distillation token"),
    (r"\.attn\.[qk]_norm\.", "norms of queries and keys (qk_norm)"),
    (r"^norm_pre\.", "a norm before the encoder (pre_norm, as CLIP has)"),
    (r"rope|freqs", "rotary positions"),
    (r"rel_pos|relative_position", "relative position biases"),
    (r"\.attn\.(?:q_bias|v_bias|q_proj|k_proj)", "apart queries and keys with biases of their own (EVA, BEiT)"),
    (r"\.attn\.lambda_", "differential attention"),
    (r"\.attn\.gate\.", "gated attention"),
    (r"\.(?:attn|mlp)\.norm\.", "norms inside attention and MLP"),
    (r"\.mlp\.(?:fc1_[gx]|w\d)", "a gated MLP (SwiGLU)"),
    (r"^blocks\.\d+\.(?:attns|ffns|in_proj|in_split)", "parallel branches"),
    (r"running_mean", "batch norms"),
    (r"^stem\.conv1\.", "a root of three convolutions"),
)
"""Parts that none of our models has, by the names of their tensors."""


_NAMES: tuple[tuple[str, str], ...] = (
    (r"^patch_embed\.", "patch_embed.proj."),
    (r"^class_token$", "cls_token"),
    (r"^registers$", "reg_token"),
    (r"^position\.table$", "pos_embed"),
    (r"\.attention\.", ".attn."),
    (r"\.scale([12])$", r".ls\1.gamma"),
    (r"^attention_pool\.probe$", "attn_pool.latent"),
    (r"^attention_pool\.", "attn_pool."),
    (r"^pre_logits\.", "pre_logits.fc."),
    (r"^backbone\.", "patch_embed.backbone."),
    (r"(conv|norm)_root\.", r"stem.\1."),
    (r"\bunits\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"(conv|norm)_proj\.", r"downsample.\1."),
)
"""Ours → theirs, as regular expressions that are applied in turn; what none of them meets has the same name."""


def read(source: Source, hints: Hints) -> Foreign:
    """The model in a state dict or hub folder of timm's: sizes from shapes, kinds from names, and from `config.json` what
    they cannot say; then from `hints`, else by an assumption that is said.

    Raises `DataError` for a tensor that is missing, left over, of another shape or not finite, for a `config.json` that
    the tensors contradict and for a part that none of our models has; `UsageError` for hints that the file contradicts.
    """
    reading = Reading(str(source.where), dict(source.tensors), hints)
    said, bit = timm_config.parse(source), "stem.conv.weight" in source.tensors
    timm_config.refuse_architecture(reading, said, bit)
    reading.refuse_parts(_STRANGERS)
    timm_config.refuse_arguments(said, bit)
    reading.widen()
    model = _read_bit(reading, said) if bit else _read_vit(reading, said)
    model.labels = timm_config.labels(reading, said, model.num_classes)
    return reading.fill(model, _rows(model))


def write(model: Model, target: Path) -> None:
    """Write a folder that `timm.create_model("local-dir:…", pretrained=True)` loads with no key missing or left over and
    whose outputs agree: `model.safetensors` and a `config.json` that says every size, the activation and the pooling.

    Positions that are not learned in 1-D become the table that they add up to, and read back as one. Raises `UsageError`
    that names what no configuration of timm's says.
    """
    timm_config.refuse_unheld(model)
    if isinstance(model, ViT):
        model = mapping.tabled(model, keep=("1d", "none"))
    first, last = (
        _their_name(name, model).removesuffix(".weight") for name in (*adapt.FIRST[model.family], "head.weight")
    )
    with files.new_directory(target) as aside:
        folder.write_tensors(aside / folder.WEIGHTS, mapping.write(_rows(model), model))
        files.write_json(aside / CONFIG, timm_config.describe(model, first, last))


# ViT and hybrid: file → configuration


def _read_vit(reading: Reading, said: Said) -> ViT:
    """The model that names, shapes and description make, without weights; the tensors take the form that `write` gives."""
    tensors = reading.tensors
    family, sizes, in_channels = _sizes(reading)
    stride, D = sizes["patch_size"], sizes["embed_dim"]
    prefix = _prefix(reading, D)
    pool = _pool(reading, said)
    learned, layer_scale = "pos_embed" in tensors, "blocks.0.ls1.gamma" in tensors
    told = said.args.pair("img_size")
    if learned:
        # Tokens before the patches have positions all or none.
        image_size, slots = reading.grid_size("pos_embed", stride, D, (sum(prefix), 0), told)
    else:
        image_size, slots = reading.any_size(stride, told), 0
    num_classes = reading.shape("head.weight", 2)[0] if "head.weight" in tensors else 0
    found = {
        "in_chans": in_channels,
        "num_classes": num_classes,
        "patch_size": tensors["patch_embed.proj.weight"].shape[3],
        "embed_dim": D,
        "depth": sizes["depth"],
        "mlp_ratio": sizes["mlp_dim"],
        "class_token": bool(prefix[0]),
        "reg_tokens": prefix[1],
        "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
        "init_values": layer_scale,
        "fc_norm": "fc_norm.weight" in tensors,
        "pos_embed": learned,
    }
    if learned and sum(prefix):
        found["no_embed_class"] = slots == 0
    timm_config.refuse_contradiction(said, found)
    registers = sum(prefix) - (pool == "token")
    if said.args.get("pool_include_prefix") and pool != "token" and registers:
        raise reading.stranger("pool_include_prefix", "a pooling of all tokens")
    fixed = timm_config.fixed(said, D)
    fields = {
        **sizes,
        "pool": pool,
        "position": reading.says("position", "1d" if learned else "none"),
        "registers": registers,
        "layer_scale": layer_scale,
        "hidden_head": "pre_logits.fc.weight" in tensors,
        "num_heads": reading.num_heads(fixed["num_heads"], D, usual_heads(D)),
        "gelu": reading.settle("gelu", fixed["gelu"], "erf", "as most of timm's ViTs have it"),
        "norm_eps": reading.settle(
            "norm_eps", fixed["norm_eps"], timm_config.NORM_EPS, "as most of timm's ViTs have it"
        ),
    }
    preprocessing = timm_config.preprocessing(reading, said, image_size, in_channels, timm_config.UNDESCRIBED)
    model = reading.build(family, fields, num_classes, preprocessing)
    reading.tensors = _canonical(tensors, model, prefix, slots)
    return model


def _sizes(reading: Reading) -> tuple[type[ViT], dict[str, Any], int]:
    """The family, the fields that shapes decide, and C."""
    tensors = reading.tensors
    D, in_channels, P, other = reading.shape("patch_embed.proj.weight", 4)
    if other != P:
        raise DataError(f"{reading.where}: patch_embed.proj.weight has patches of {P}×{other}; square ones are right")
    mlp_dim, _ = reading.shape("blocks.0.mlp.fc1.weight", 2)
    if 2 * reading.shape("blocks.0.mlp.fc2.weight", 2)[1] == mlp_dim:
        raise reading.stranger("blocks.0.mlp", "a gated MLP (SwiGLU)")
    if "blocks.0.norm1.weight" in tensors and "blocks.0.norm1.bias" not in tensors:
        raise reading.stranger("blocks.0.norm1", "norms without biases (RMS norm)")
    fields: dict[str, Any] = {"patch_size": P, "embed_dim": D, "depth": reading.count("blocks."), "mlp_dim": mlp_dim}
    if not any(name.startswith("patch_embed.backbone.") for name in tensors):
        return ViT, fields, in_channels
    root = next((root for root in ("stem.conv", "conv") if f"patch_embed.backbone.{root}.weight" in tensors), None)
    if root is None:
        raise reading.stranger("patch_embed.backbone", "a stem of another kind than a ResNet with group norms")
    width, in_channels, *_ = reading.shape(f"patch_embed.backbone.{root}.weight", 4)
    units = reading.units("patch_embed.backbone.stages.{}.blocks.", first=0)
    fields |= {"stem_units": units, "stem_width": width, "stem_arithmetic": "timm"}
    return Hybrid, {**fields, "patch_size": P * stem_stride(units)}, in_channels


def _prefix(reading: Reading, embed_dim: int) -> tuple[int, int]:
    """How many class tokens (0 or 1) and registers stand before the patches in timm."""
    counts = []
    for name in ("cls_token", "reg_token"):
        one, count, width = reading.shape(name, 3) if name in reading.tensors else (1, 0, embed_dim)
        if (one, width) != (1, embed_dim) or (name == "cls_token" and count > 1):
            shape = shape_of(reading.tensors[name])
            raise DataError(f"{reading.where}: {name} is {shape}; 1×tokens×{embed_dim} is right")
        counts.append(count)
    return counts[0], counts[1]


def _pool(reading: Reading, said: Said) -> Pool:
    """How the tokens become one vector; the tensors of a pooling that the description leaves aside are dropped."""
    tensors = reading.tensors
    attention = [name for name in tensors if name.startswith("attn_pool.")]
    token, after = "cls_token" in tensors, "fc_norm.weight" in tensors
    if not after and "norm.weight" not in tensors:
        raise reading.stranger("no norm.weight, no fc_norm.weight", "an encoder without a final norm")
    by_name = "map" if attention else "avg" if after or not token else "token"
    kind = said.args.get("global_pool")
    if kind is None:
        kind = by_name
        if kind != "map":
            how = "from the class token" if kind == "token" else "by the average of the patches"
            reading.assumed.append(f"it is assumed to pool {how}, as the names of its tensors have it")
    if kind == "avg" and attention and "siglip" in (said.architecture or ""):
        # timm builds these from the weights of the same model with attention pooling.
        reading.dropped = dict.fromkeys(attention, f"{said.architecture} pools by the average")
    elif (kind == "map") != bool(attention):
        verb = "has" if attention else "lacks"
        raise DataError(f"{said.args.where} says global_pool={kind!r}, but the file {verb} attn_pool.*")
    if kind == "token" and not token:
        raise DataError(f"{said.args.where} says global_pool={kind!r}, but the file lacks cls_token")
    if kind == "map" and after:
        raise reading.stranger("fc_norm.weight", "a norm after the attention pooling")
    # A norm of every token and then the class token's row is the norm of that row.
    return "token" if kind == "token" else "map" if kind == "map" else "gap-norm" if after else "gap"


def _canonical(tensors: dict[str, Tensor], model: ViT, prefix: tuple[int, int], slots: int) -> dict[str, Tensor]:
    """The same function of images in the one form that `_rows` knows and `write` gives.

    Queries, keys and values have biases; positions have a row for every token, whose registers' are zero; and all tokens
    that nothing reads at the end are registers.
    """
    found, (D, depth) = dict(tensors), (model.config.embed_dim, model.config.depth)
    if not any(name.endswith(".attn.qkv.bias") for name in found):
        for i in range(depth):
            if (weight := found.get(f"blocks.{i}.attn.qkv.weight")) is not None:
                found[f"blocks.{i}.attn.qkv.bias"] = weight.new_zeros(len(weight))
    token = model.config.pool == "token"
    if token and "norm.weight" not in found:
        names = [name for name in found if name.startswith("fc_norm.")]
        found |= {name.removeprefix("fc_"): found.pop(name) for name in names}
    names = [name for name, count in zip(("cls_token", "reg_token"), prefix, strict=True) if count]
    registers = [found.pop(name).reshape(-1, D) for name in names if name == "reg_token" or not token]
    if "pos_embed" in found:
        rows = found["pos_embed"][0]
        positions = rows[:slots] if slots else rows.new_zeros(sum(prefix), D)
        first, none = positions[: int(token)], rows.new_zeros(model.config.registers, D)
        found["pos_embed"] = torch.cat([first, none, rows[slots:]])[None]
        registers = [torch.cat(registers) + positions[int(token) :]] if registers else []
    if registers:
        found["reg_token"] = torch.cat(registers)[None]
    return found


# BiT: file → configuration


def _read_bit(reading: Reading, said: Said) -> ResNet:
    """The model that names and shapes make, without weights."""
    reading.refuse_hints("a BiT")
    width, in_channels, *_ = reading.shape("stem.conv.weight", 4)
    num_classes = reading.shape("head.fc.weight", 4)[0] if "head.fc.weight" in reading.tensors else 0
    timm_config.refuse_contradiction(said, {"in_chans": in_channels, "num_classes": num_classes})
    image_size = reading.any_size(1, said.args.pair("img_size"))
    preprocessing = timm_config.preprocessing(reading, said, image_size, in_channels, timm_config.UNDESCRIBED_BIT)
    fields = {"units": reading.units("stages.{}.blocks.", first=0), "width": width, "arithmetic": "timm"}
    return reading.build(ResNet, fields, num_classes, preprocessing)


# Names and layouts


def _rows(model: Model) -> list[Row]:
    """One row for each tensor of ours, from `_NAMES` and the few shapes that differ."""
    rows = []
    for name, tensor in model.state_dict().items():
        theirs, mine = _their_name(name, model), tuple(tensor.shape)
        other = _their_shape(name, mine, model)
        if name == "position.table" and isinstance(model, ViT):
            rows.append(_positions(theirs, model))
        else:
            rows.append(mapping.same(name, theirs) if other == mine else mapping.shaped(name, theirs, mine, other))
    return rows


def _their_name(name: str, model: Model) -> str:
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    if isinstance(model, ResNet):
        return re.sub(r"^head\.", "head.fc.", name)
    if isinstance(model, Hybrid) and not model.config.stem_units:
        return name.replace("backbone.stem.", "backbone.")  # the root alone
    if isinstance(model, ViT) and model.config.pool == "gap-norm":
        return re.sub(r"^norm\.", "fc_norm.", name)
    return name


def _their_shape(name: str, mine: tuple[int, ...], model: Model) -> tuple[int, ...]:
    if name == "patch_embed.weight" and isinstance(model, ViT):
        P = model.config.patch_size
        P = P // stem_stride(model.config.stem_units) if isinstance(model, Hybrid) else P
        return (mine[0], mine[1] // P**2, P, P)
    if name in ("class_token", "registers", "attention_pool.probe"):
        return (1, *((1,) if name == "class_token" else ()), *mine)
    return (*mine, 1, 1) if name == "head.weight" and isinstance(model, ResNet) else mine


def _positions(theirs: str, model: ViT) -> Row:
    """The table, with a zero row for each register in timm's."""
    first, count = int(model.config.pool == "token"), model.config.registers

    def write(table: Tensor) -> tuple[Tensor]:
        return (torch.cat([table[:first], table.new_zeros(count, table.shape[1]), table[first:]])[None],)

    return Row("position.table", (theirs,), lambda rows: torch.cat([rows[0, :first], rows[0, first + count :]]), write)
