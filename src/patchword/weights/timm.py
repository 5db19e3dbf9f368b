"""timm's models ↔ ours: its ViTs, the hybrids of the paper and of AugReg, and BiT, as bare tensors and as folders of its hub.

Names and shapes say most of what a model is; `config.json` beside them (`timm_config.py`) says the rest. Facts:
github.com/huggingface/pytorch-image-models (release 1.0.31: timm/models/vision_transformer.py, vision_transformer_hybrid.py,
resnetv2.py). Letters: C channels, P patch side, N patches, D width, R registers, K classes.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from patchword.core import files
from patchword.core.errors import DataError, UsageError
from patchword.core.preprocessing import Preprocessing
from patchword.models.contract import Model
from patchword.models.hybrid import Hybrid
from patchword.models.names import Family, build_model, config_type, name_of
from patchword.models.resnet import ResNet, stem_stride
from patchword.models.vit import Pool, ViT
from patchword.weights import adapt, folder, mapping, timm_config
from patchword.weights.mapping import Foreign, Hints, Row
from patchword.weights.source import Source
from patchword.weights.timm_config import Said, stranger

T = TypeVar("T")

_IMAGE_SIDE = 224
"""Where neither the positions nor anybody says it."""

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
    where = str(source.where)
    said, bit = timm_config.parse(source), "stem.conv.weight" in source.tensors
    timm_config.refuse_architecture(said, bit, where)
    for pattern, what in _STRANGERS:
        if name := next((name for name in source.tensors if re.search(pattern, name)), None):
            raise stranger(where, name, what)
    timm_config.refuse_arguments(said, bit, where)
    read_kind = _read_bit if bit else _read_vit
    found, tensors = read_kind(_float32(source.tensors, where), said, hints, where)
    found.model.labels = timm_config.labels(said, found.model.num_classes, found.assumed, where)
    mapping.read(_rows(found.model), tensors, found.model, found.dropped, where)
    return found


def write(model: Model, target: Path) -> None:
    """Write a folder that `timm.create_model("local-dir:…", pretrained=True)` loads with no key missing or left over and
    whose outputs agree: `model.safetensors` and a `config.json` that says every size, the activation and the pooling.

    Positions that are not learned in 1-D become the table that they add up to, and read back as one. Raises `UsageError`
    that names what no configuration of timm's says.
    """
    if refused := timm_config.unheld(model):
        raise UsageError(f"timm's format cannot hold {refused} of {model.name}; format='patchword' would be right")
    if isinstance(model, ViT):
        model = _with_table(model)
    with files.new_directory(target) as aside:
        folder.write_tensors(aside / folder.WEIGHTS, mapping.write(_rows(model), model))
        first, last = (
            _their_name(name, model).removesuffix(".weight") for name in (adapt.FIRST[model.family], "head.weight")
        )
        files.write_json(aside / timm_config.NAME, timm_config.describe(model, first, last))


def _float32(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Many files are in half precision to be short; what is computed and trained from them is not."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise DataError(f"{where}: {name} holds {str(tensor.dtype).removeprefix('torch.')}, not real numbers")
    return {name: tensor.float() for name, tensor in tensors.items()}


def _settle(name: str, told: T | None, hint: T | None, default: T, assumed: list[str], why: str, where: str) -> T:
    """A thing that tensors cannot say: what the file tells, else the caller, else `default`, which is said."""
    if told is not None:
        if hint not in (None, told):
            raise UsageError(f"{where} says itself that {name} is {told}; {name}={hint} is wrong")
        return told
    if hint is not None:
        return hint
    assumed.append(f"{name}={default} is assumed, {why}")
    return default


# ViT and hybrid: file → configuration


def _read_vit(tensors: Mapping[str, Tensor], said: Said, hints: Hints, where: str) -> tuple[Foreign, dict[str, Tensor]]:
    """The model that names, shapes and description make, without weights, and its tensors in the form that `write` gives."""
    assumed: list[str] = []
    family, sizes, in_channels = _sizes(tensors, where)
    stride, D = sizes["patch_size"], sizes["embed_dim"]
    prefix = _prefix(tensors, D, where)
    pool, dropped = _pool(tensors, said, assumed, where)
    image_size, slots = _image_size(tensors, said, hints, (stride, D, sum(prefix)), assumed, where)
    num_classes = _shape(tensors, "head.weight", 2, where)[0] if "head.weight" in tensors else 0
    learned, layer_scale = "pos_embed" in tensors, "blocks.0.ls1.gamma" in tensors
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
    timm_config.refuse_contradiction(said, found, where)
    registers = sum(prefix) - (pool == "token")
    if said.args.get("pool_include_prefix") and pool != "token" and registers:
        raise stranger(where, "pool_include_prefix", "a pooling of all tokens")
    position = "1d" if learned else "none"
    if hints.position not in (None, position):
        raise UsageError(f"{where} says itself that its position is {position}; position={hints.position} is wrong")
    fields = {**sizes, "pool": pool, "position": position, "registers": registers, "layer_scale": layer_scale}
    fields["hidden_head"] = "pre_logits.fc.weight" in tensors
    fields |= _unsaid(said, hints, D, assumed, where)
    preprocessing = timm_config.preprocessing(said, image_size, in_channels, timm_config.UNDESCRIBED, assumed, where)
    model = _build(family, fields, num_classes, preprocessing, where)
    return Foreign(model, assumed, dropped), _canonical(tensors, cast("ViT", model), prefix, slots)


def _sizes(tensors: Mapping[str, Tensor], where: str) -> tuple[Family, dict[str, Any], int]:
    """The family, the fields that shapes decide, and C."""
    D, in_channels, P, other = _shape(tensors, "patch_embed.proj.weight", 4, where)
    if other != P:
        raise DataError(f"{where}: patch_embed.proj.weight has patches of {P}×{other}; square ones are right")
    mlp_dim, _ = _shape(tensors, "blocks.0.mlp.fc1.weight", 2, where)
    if 2 * _shape(tensors, "blocks.0.mlp.fc2.weight", 2, where)[1] == mlp_dim:
        raise stranger(where, "blocks.0.mlp", "a gated MLP (SwiGLU)")
    if "blocks.0.norm1.weight" in tensors and "blocks.0.norm1.bias" not in tensors:
        raise stranger(where, "blocks.0.norm1", "norms without biases (RMS norm)")
    depth = _count(tensors, "blocks.")
    fields: dict[str, Any] = {"patch_size": P, "embed_dim": D, "depth": depth, "mlp_dim": mlp_dim}
    if not any(name.startswith("patch_embed.backbone.") for name in tensors):
        return ViT, fields, in_channels
    root = next((root for root in ("stem.conv", "conv") if f"patch_embed.backbone.{root}.weight" in tensors), None)
    if root is None:
        raise stranger(where, "patch_embed.backbone", "a stem of another kind than a ResNet with group norms")
    width, in_channels, *_ = _shape(tensors, f"patch_embed.backbone.{root}.weight", 4, where)
    units = _units(tensors, "patch_embed.backbone.stages.")
    fields |= {"stem_units": units, "stem_width": width, "stem_arithmetic": "timm"}
    return Hybrid, {**fields, "patch_size": P * stem_stride(units)}, in_channels


def _prefix(tensors: Mapping[str, Tensor], embed_dim: int, where: str) -> tuple[int, int]:
    """How many class tokens (0 or 1) and registers stand before the patches in timm."""
    counts = []
    for name in ("cls_token", "reg_token"):
        one, count, width = _shape(tensors, name, 3, where) if name in tensors else (1, 0, embed_dim)
        if (one, width) != (1, embed_dim) or (name == "cls_token" and count > 1):
            shape = mapping.shape_of(tensors[name])
            raise DataError(f"{where}: {name} is {shape}; 1×tokens×{embed_dim} is right")
        counts.append(count)
    return counts[0], counts[1]


def _pool(tensors: Mapping[str, Tensor], said: Said, assumed: list[str], where: str) -> tuple[Pool, dict[str, str]]:
    """How the tokens become one vector, and the tensors of a pooling that the description leaves aside."""
    attention = [name for name in tensors if name.startswith("attn_pool.")]
    token, after = "cls_token" in tensors, "fc_norm.weight" in tensors
    if not after and "norm.weight" not in tensors:
        raise stranger(where, "no norm.weight, no fc_norm.weight", "an encoder without a final norm")
    by_name = "map" if attention else "avg" if after or not token else "token"
    kind = said.args.get("global_pool")
    if kind is None:
        kind = by_name
        if kind != "map":
            how = "from the class token" if kind == "token" else "by the average of the patches"
            assumed.append(f"it is assumed to pool {how}, as the names of its tensors have it")
    dropped = {}
    if kind == "avg" and attention and "siglip" in (said.architecture or ""):
        # timm builds these from the weights of the same model with attention pooling.
        dropped = dict.fromkeys(attention, f"{said.architecture} pools by the average")
    elif (kind == "map") != bool(attention):
        verb = "has" if attention else "lacks"
        raise DataError(f"{where}: {timm_config.NAME} says global_pool={kind!r}, but the file {verb} attn_pool.*")
    if kind == "token" and not token:
        raise DataError(f"{where}: {timm_config.NAME} says global_pool={kind!r}, but the file lacks cls_token")
    if kind == "map" and after:
        raise stranger(where, "fc_norm.weight", "a norm after the attention pooling")
    # A norm of every token and then the class token's row is the norm of that row.
    return ("token" if kind == "token" else "map" if kind == "map" else "gap-norm" if after else "gap"), dropped


def _image_size(
    tensors: Mapping[str, Tensor],
    said: Said,
    hints: Hints,
    sizes: tuple[int, int, int],
    assumed: list[str],
    where: str,
) -> tuple[tuple[int, int], int]:
    """H×W of the images, and how many of the positions belong to tokens before the patches.

    `sizes` are the pixels between patches, D and the number of those tokens: they have positions all or none.
    """
    stride, D, prefix = sizes
    told = timm_config.image_size(said, where)
    if "pos_embed" not in tensors:
        return _whole(_any_size(said, hints, assumed, where), stride, assumed), 0
    one, rows, width = _shape(tensors, "pos_embed", 3, where)
    if (one, width) != (1, D):
        raise DataError(f"{where}: pos_embed is {mapping.shape_of(tensors['pos_embed'])}; 1×positions×{D} is right")
    fits = {rows - slots: slots for slots in (0, prefix)}
    if told is not None:
        slots = fits.get(math.prod(side // stride for side in told))
        if slots is None:
            grid = "×".join(str(side // stride) for side in told)
            raise DataError(
                f"{where}: {timm_config.NAME} has images of {told[0]}×{told[1]}, which are {grid} patches, but pos_embed has "
                f"{rows} positions for them and {prefix} tokens more"
            )
        return _whole(told, stride, assumed), slots
    # A size of whole patches that the positions do not fit is one to go to later, not the one they are for.
    if (hint := hints.image_size) is not None and not any(side % stride for side in hint):
        count = math.prod(side // stride for side in hint)
        if count in fits:
            return hint, fits[count]
    for count in (rows - prefix, rows):
        side = math.isqrt(max(0, count))
        if side and side * side == count:
            alone = "" if fits[count] == prefix else " and no position for other tokens"
            assumed.append(f"image_size={side * stride}×{side * stride} is assumed, for {side}×{side} patches{alone}")
            return (side * stride, side * stride), fits[count]
    raise UsageError(f"{where} has {rows} positions, which make no square; image_size=(height, width) is needed")


def _any_size(said: Said, hints: Hints, assumed: list[str], where: str) -> tuple[int, int]:
    """H×W of the images of a model that takes any."""
    if (size := timm_config.image_size(said, where) or hints.image_size) is not None:
        return size
    assumed.append(f"image_size={_IMAGE_SIDE}×{_IMAGE_SIDE} is assumed, as most of timm's models have it")
    return _IMAGE_SIDE, _IMAGE_SIDE


def _whole(size: tuple[int, int], stride: int, assumed: list[str]) -> tuple[int, int]:
    """A size of whole patches: timm drops the pixels beyond, on the right and at the bottom."""
    height, width = (side // stride * stride for side in size)
    if (height, width) != size:
        assumed.append(f"image_size={height}×{width} is taken for {size[0]}×{size[1]}, which {stride} does not divide")
    return height, width


def _unsaid(said: Said, hints: Hints, embed_dim: int, assumed: list[str], where: str) -> dict[str, Any]:
    """The fields that no tensor shows: from architecture and arguments, else from hints, else assumed."""
    told = timm_config.fixed(said, embed_dim)
    heads = told["num_heads"]
    if heads is not None and (not isinstance(heads, int) or heads < 1 or embed_dim % heads):
        raise DataError(
            f"{where}: {timm_config.NAME} says num_heads={heads!r}, which does not divide the width {embed_dim}"
        )
    usual = mapping.usual_heads(embed_dim)
    if heads is None and hints.num_heads is None and usual is None:
        raise UsageError(
            f"{where} does not say its heads, and its width {embed_dim} has not 64 for each; give num_heads"
        )
    defaults = (
        ("num_heads", usual[0] if usual else 0, usual[1] if usual else ""),
        ("gelu", "erf", "as most of timm's ViTs have it"),
        ("norm_eps", timm_config.NORM_EPS, "as most of timm's ViTs have it"),
    )
    return {
        name: _settle(name, told[name], getattr(hints, name), default, assumed, why, where)
        for name, default, why in defaults
    }


def _canonical(tensors: Mapping[str, Tensor], model: ViT, prefix: tuple[int, int], slots: int) -> dict[str, Tensor]:
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


def _read_bit(tensors: Mapping[str, Tensor], said: Said, hints: Hints, where: str) -> tuple[Foreign, dict[str, Tensor]]:
    """The model that names and shapes make, without weights, and its tensors."""
    for name in ("num_heads", "gelu", "norm_eps", "position"):
        if getattr(hints, name) is not None:
            raise UsageError(f"{where} holds a BiT ResNet, which has nothing that {name} could say")
    width, in_channels, *_ = _shape(tensors, "stem.conv.weight", 4, where)
    num_classes = _shape(tensors, "head.fc.weight", 4, where)[0] if "head.fc.weight" in tensors else 0
    timm_config.refuse_contradiction(said, {"in_chans": in_channels, "num_classes": num_classes}, where)
    assumed: list[str] = []
    size = _any_size(said, hints, assumed, where)
    preprocessing = timm_config.preprocessing(said, size, in_channels, timm_config.UNDESCRIBED_BIT, assumed, where)
    fields = {"units": _units(tensors, "stages."), "width": width, "arithmetic": "timm"}
    return Foreign(_build(ResNet, fields, num_classes, preprocessing, where), assumed), dict(tensors)


# What both have


def _shape(tensors: Mapping[str, Tensor], name: str, ndim: int, where: str) -> tuple[int, ...]:
    if name not in tensors:
        raise DataError(f"{where} lacks the tensor {name}, which every such model of timm's has")
    if tensors[name].ndim != ndim or not tensors[name].numel():
        raise DataError(f"{where}: {name} is {mapping.shape_of(tensors[name])}; {ndim} axes are right")
    return tuple(tensors[name].shape)


def _count(names: Iterable[str], before: str) -> int:
    """How many numbers stand behind `before`; a gap among them, or a number that no memory holds, leaves a tensor over."""
    return len({name.removeprefix(before).partition(".")[0] for name in names if name.startswith(before)})


def _units(names: Iterable[str], stages: str) -> tuple[int, ...]:
    """Units of each stage of a ResNet."""
    return tuple(_count(names, f"{stages}{i}.blocks.") for i in range(_count(names, stages)))


def _build(family: Family, fields: dict[str, Any], num_classes: int, preprocessing: Preprocessing, where: str) -> Model:
    """The model on the meta device, under the name that its sizes have with us."""
    try:
        config = config_type(family)(**fields)
        name = name_of(family, config)
        architecture = {"family": family.family, "name": name, "num_classes": num_classes, **dataclasses.asdict(config)}
        return build_model(architecture, preprocessing)
    except UsageError as error:
        raise DataError(f"{where} holds sizes that make no model: {error}") from error


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


# Ours → what timm has


def _with_table(model: ViT) -> ViT:
    """The same function of images with positions that timm has: none, or learned in 1-D with a slot for the class token."""
    patches = model.position.patches()
    if patches is None or model.config.position == "1d":
        return model
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("position.")}
    slot = patches.new_zeros(int(model.config.pool == "token"), patches.shape[1])
    state["position.table"] = torch.cat([slot, patches.detach()])
    twin = build_model({**model.architecture, "position": "1d"}, model.preprocessing)
    twin.load_state_dict(state, assign=True)
    twin.labels = model.labels
    return cast("ViT", twin)
