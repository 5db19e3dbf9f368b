"""timm's models ↔ ours: its ViTs, the hybrids of the paper and of AugReg, and BiT, as bare tensors and as folders of its hub.

Names and shapes say most of what a model is; `config.json` beside them names an architecture, whose builder in timm fixes the
rest, and `model_args` that overrule it. Facts: github.com/huggingface/pytorch-image-models (release 1.0.31:
timm/models/vision_transformer.py, vision_transformer_hybrid.py, resnetv2.py, _hub.py). Letters: C channels, P patch side,
N patches, D width, R registers, K classes.
"""

import dataclasses
import json
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
from patchword.models.hybrid import Hybrid, HybridConfig
from patchword.models.names import Family, build_model, config_type, name_of
from patchword.models.resnet import ResNet, ResNetConfig, stem_stride
from patchword.models.vit import Pool, ViT
from patchword.weights import folder, mapping
from patchword.weights.labels import imagenet_labels
from patchword.weights.mapping import Foreign, Hints, Row
from patchword.weights.source import Source

T = TypeVar("T")

_DESCRIPTION = "config.json"
_IMAGE_SIDE = 224
"""Where neither the positions nor anybody says it."""

# What builders in timm fix

_VITS = re.compile(r"(?:vit|deit3?|flexivit|eva_large|test_vit\d?)(?:_.*)?")
_BITS = re.compile(r"resnetv2_.*_bit.*")
_STRANGE_VITS: tuple[tuple[str, str], ...] = (
    ("rope|dinov3|_pe_|lingbot|sapiens", "rotary positions"),
    ("relpos", "relative position biases"),
    ("rpn", "norms after the branches"),
    ("quickgelu", "CLIP's quick GELU"),
)
"""Architectures whose names in timm begin like a ViT's, and what makes them another model; tensors alone may not show it."""
_HEADS: tuple[tuple[str, int], ...] = (
    (r"(?:vit|deit3)_(?:huge|giant|giantopt|gigantic|so400m)_.*", 16),
    (r"vit_base_patch16_gap_224", 16),
    (r"test_vit2?", 2),
    (r"test_vit[34]", 3),
)
"""Where a head does not have 64 channels."""
_TANH = re.compile(
    r"vit_(?:base_patch32|giantopt_patch16|so400m_patch16)_siglip.*|vit_large_patch16_siglip(?:_gap)?_512"
)
_CLIP = re.compile(r"vit_.*_clip_.*")
_NORM_EPS, _CLIP_NORM_EPS = 1e-6, 1e-5

# What the arguments of a builder may say

_GELUS = {"gelu": "erf", "gelu_tanh": "tanh"}
_ACTIVATIONS = {gelu: name for name, gelu in _GELUS.items()}
_PLAIN: dict[str, tuple[Any, ...]] = {
    "qk_norm": (False,),
    "scale_attn_norm": (False,),
    "scale_mlp_norm": (False,),
    "proj_bias": (True,),
    "pre_norm": (False,),
    "final_norm": (True,),
    "attn_layer": ("", "attn"),
    "act_layer": tuple(_GELUS),
    "norm_layer": ("layernorm", "layernormfp32"),
    "global_pool": ("token", "avg", "map"),
}
"""Arguments that may change a ViT's arithmetic, and the values with which it is one of ours."""
_COMPARED = ("in_chans", "num_classes", "patch_size", "embed_dim", "depth", "class_token", "reg_tokens", "qkv_bias")
_COMPARED = (*_COMPARED, "init_values", "mlp_ratio", "fc_norm", "no_embed_class", "pos_embed")
_READ = {*_PLAIN, *_COMPARED, "img_size", "num_heads", "pool_include_prefix"}
_READ_BIT = {"in_chans", "num_classes", "global_pool", "img_size", "channels", "stem_chs"}
_IDLE = re.compile(
    r".*drop_rate|weight_init|fix_init|dynamic_img_size|dynamic_img_pad|strict_img_size|pretrained_strict"
)
"""Arguments that say nothing of what a loaded model computes."""

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

# What stands for a picture's way to the model, where a file does not say it

_UNDESCRIBED = {"mean": 0.5, "std": 0.5, "interpolation": "bicubic", "crop_pct": 0.9}
"""Of tensors alone: what nearly all of timm's ViTs have."""
_UNDESCRIBED_BIT = {**_UNDESCRIBED, "interpolation": "bilinear", "crop_pct": 0.875}
_DESCRIBED = {
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
}
"""What timm itself takes for what a `pretrained_cfg` leaves out."""

# What the writer may choose from

_ARCHITECTURES = {
    "ViT-Ti/16": "vit_tiny_patch16_224",
    "ViT-S/8": "vit_small_patch8_224",
    "ViT-S/16": "vit_small_patch16_224",
    "ViT-S/32": "vit_small_patch32_224",
    "ViT-B/8": "vit_base_patch8_224",
    "ViT-B/16": "vit_base_patch16_224",
    "ViT-B/32": "vit_base_patch32_224",
    "ViT-L/16": "vit_large_patch16_224",
    "ViT-L/32": "vit_large_patch32_224",
    "ViT-H/14": "vit_huge_patch14_224",
    "ViT-g/14": "vit_giant_patch14_224",
    "ViT-G/14": "vit_gigantic_patch14_224",
}
"""Names that fit; any other would do as well, for every size is written beside it."""
_ANY, _ANY_CLIP = "vit_base_patch16_224", "vit_base_patch32_clip_224"
_STEMS: dict[tuple[int, ...], str] = {
    (): "vit_tiny_r_s16_p8_224",
    (2, 2, 2, 2): "vit_small_r26_s32_224",
    (3, 4, 9): "vit_base_r50_s16_224",
    (3, 4, 6, 3): "vit_large_r50_s32_224",
}
"""Units of the stems that timm can build; each has 64 channels after the root."""
_STEM_WIDTH = 64
_BIT_DEPTHS: dict[tuple[int, ...], tuple[int, tuple[int, ...]]] = {
    (3, 4, 6, 3): (50, (1, 3)),
    (3, 4, 23, 3): (101, (1, 3)),
    (3, 8, 36, 3): (152, (2, 4)),
}
"""Units of the ResNets that timm can build → the depth and the width factors in their names."""

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
    said = _said(source)
    _refuse_strangers(source.tensors, said, where)
    read_kind = _read_bit if "stem.conv.weight" in source.tensors else _read_vit
    found, tensors = read_kind(_float32(source.tensors, where), said, hints, where)
    found.model.labels = _labels(said, found.model.num_classes, found.assumed, where)
    mapping.read(_rows(found.model), tensors, found.model, found.dropped, where)
    return found


def write(model: Model, target: Path) -> None:
    """Write a folder that `timm.create_model("local-dir:…", pretrained=True)` loads with no key missing or left over and
    whose outputs agree: `model.safetensors` and a `config.json` that says every size, the activation and the pooling.

    Positions that are not learned in 1-D become the table that they add up to, and read back as one. Raises `UsageError`
    that names what no configuration of timm's says.
    """
    if refused := _unheld(model):
        raise UsageError(f"timm's format cannot hold {refused} of {model.name}; format='patchword' would be right")
    if isinstance(model, ViT):
        model = _with_table(model)
    with files.new_directory(target) as aside:
        folder.write_tensors(aside / folder.WEIGHTS, mapping.write(_rows(model), model))
        content = json.dumps(_describe(model), indent=2, ensure_ascii=False)
        (aside / _DESCRIPTION).write_text(content + "\n", encoding="utf-8")


# What `config.json` says


@dataclasses.dataclass(frozen=True)
class _Said:
    """What stands beside the tensors."""

    architecture: str | None
    """None for bare tensors."""
    args: dict[str, Any]
    """`model_args`, and under the same names what stands elsewhere in the file."""
    picture: dict[str, Any]
    """`pretrained_cfg`: mean, std, crop and their like."""
    labels: Any


def _said(source: Source) -> _Said:
    description = source.description
    nested = description.get("pretrained_cfg", description)  # old files have everything in one table
    args = description.get("model_args") or {}
    if not isinstance(nested, dict) or not isinstance(args, dict):
        raise DataError(f"{source.where}: pretrained_cfg and model_args of {_DESCRIPTION} must be tables")
    tables = (args, description, nested)
    architecture = _first(tables, "architecture")
    args = dict(args)
    size = nested.get("input_size")
    if isinstance(size, list) and len(size) == 3:
        args.setdefault("in_chans", size[0])
        args.setdefault("img_size", size[1:])
    for name in ("num_classes", "global_pool"):
        args.setdefault(name, _first(tables, name))
    args = {name: value for name, value in args.items() if value is not None}
    labels = _first((description, nested), "label_names", "labels")
    return _Said(None if architecture is None else str(architecture).partition(".")[0], args, nested, labels)


def _first(tables: Iterable[dict[str, Any]], *names: str) -> Any:
    return next((table[name] for table in tables for name in names if table.get(name) is not None), None)


def _refuse_strangers(tensors: Mapping[str, Tensor], said: _Said, where: str) -> None:
    """Raise `DataError` for what none of our models has."""
    architecture, bit = said.architecture, "stem.conv.weight" in tensors
    if architecture is not None:
        for pattern, what in _STRANGE_VITS:
            if architecture.startswith(("vit", "test_vit")) and re.search(pattern, architecture):
                raise _stranger(where, architecture, what)
        if not (_BITS if bit else _VITS).fullmatch(architecture):
            kinds = "vit_*, vit_*_r*_s*, deit_*, deit3_* and resnetv2_*_bit are read"
            raise DataError(f"{where} holds timm's {architecture}, which is none of our models; {kinds}")
    for pattern, what in _STRANGERS:
        if name := next((name for name in tensors if re.search(pattern, name)), None):
            raise _stranger(where, name, what)
    for name, value in said.args.items():
        if name not in (_READ_BIT if bit else _READ) and not _IDLE.fullmatch(name):
            raise DataError(f"{where}: {_DESCRIPTION} says {name}={value!r}, which is not known")
        if not bit and name in _PLAIN and value not in _PLAIN[name]:
            plain = " or ".join(map(repr, _PLAIN[name]))
            raise DataError(
                f"{where}: {_DESCRIPTION} says {name}={value!r}, which none of our models has; {plain} is right"
            )
    if bit and said.args.get("global_pool", "avg") != "avg":
        raise DataError(
            f"{where}: {_DESCRIPTION} says global_pool={said.args['global_pool']!r}; a BiT takes the average"
        )


def _float32(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Many files are in half precision to be short; what is computed and trained from them is not."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise DataError(f"{where}: {name} holds {str(tensor.dtype).removeprefix('torch.')}, not real numbers")
    return {name: tensor.float() for name, tensor in tensors.items()}


def _stranger(where: str, which: str, what: str) -> DataError:
    return DataError(f"{where} ({which}) has {what}, which none of our models has")


def _agree(said: _Said, found: dict[str, Any], where: str) -> None:
    """Raise `DataError` where `config.json` says something else than the tensors."""
    for name in _COMPARED:
        value = said.args.get(name)
        if name not in found or value is None:
            continue
        if name == "mlp_ratio":
            same = isinstance(value, int | float) and int(found["embed_dim"] * value) == found["mlp_ratio"]
        elif name == "pos_embed":
            same = (value not in ("", "none")) == found[name]
        elif name == "patch_size":
            same = value in (found[name], [found[name]] * 2)
        else:
            same = (bool(value) if name == "init_values" else value) == found[name]
        if not same:
            what = f"MLPs of {found[name]}" if name == "mlp_ratio" else f"{name}={found[name]!r}"
            raise DataError(f"{where}: {_DESCRIPTION} says {name}={value!r}, but the tensors are of {what}")


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


def _told(said: _Said, embed_dim: int) -> dict[str, Any]:
    """What arguments and architecture fix of what tensors cannot say; None where they do not."""
    name, args = said.architecture, said.args
    heads, gelu, norm_eps = args.get("num_heads"), _GELUS.get(args.get("act_layer", "")), None
    if "norm_layer" in args:
        norm_eps = _NORM_EPS
    if name is not None:
        listed = next((heads for pattern, heads in _HEADS if re.fullmatch(pattern, name)), None)
        heads = heads or listed or (None if embed_dim % 64 else embed_dim // 64)
        gelu = gelu or ("tanh" if _TANH.fullmatch(name) else "erf")
        norm_eps = norm_eps or (_CLIP_NORM_EPS if _CLIP.fullmatch(name) else _NORM_EPS)
    return {"num_heads": heads, "gelu": gelu, "norm_eps": norm_eps}


# ViT and hybrid: file → configuration


def _read_vit(
    tensors: Mapping[str, Tensor], said: _Said, hints: Hints, where: str
) -> tuple[Foreign, dict[str, Tensor]]:
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
    _agree(said, found, where)
    registers = sum(prefix) - (pool == "token")
    if said.args.get("pool_include_prefix") and pool != "token" and registers:
        raise _stranger(where, "pool_include_prefix", "a pooling of all tokens")
    position = "1d" if learned else "none"
    if hints.position not in (None, position):
        raise UsageError(f"{where} says itself that its position is {position}; position={hints.position} is wrong")
    fields = {**sizes, "pool": pool, "position": position, "registers": registers, "layer_scale": layer_scale}
    fields["hidden_head"] = "pre_logits.fc.weight" in tensors
    fields |= _unsaid(said, hints, D, assumed, where)
    preprocessing = _preprocessing(said, image_size, in_channels, _UNDESCRIBED, assumed, where)
    model = _build(family, fields, num_classes, preprocessing, where)
    return Foreign(model, assumed, dropped), _canonical(tensors, cast("ViT", model), prefix, slots)


def _sizes(tensors: Mapping[str, Tensor], where: str) -> tuple[Family, dict[str, Any], int]:
    """The family, the fields that shapes decide, and C."""
    D, in_channels, P, other = _shape(tensors, "patch_embed.proj.weight", 4, where)
    if other != P:
        raise DataError(f"{where}: patch_embed.proj.weight has patches of {P}×{other}; square ones are right")
    mlp_dim, _ = _shape(tensors, "blocks.0.mlp.fc1.weight", 2, where)
    if 2 * _shape(tensors, "blocks.0.mlp.fc2.weight", 2, where)[1] == mlp_dim:
        raise _stranger(where, "blocks.0.mlp", "a gated MLP (SwiGLU)")
    if "blocks.0.norm1.weight" in tensors and "blocks.0.norm1.bias" not in tensors:
        raise _stranger(where, "blocks.0.norm1", "norms without biases (RMS norm)")
    depth = _count(tensors, "blocks.")
    fields: dict[str, Any] = {"patch_size": P, "embed_dim": D, "depth": depth, "mlp_dim": mlp_dim}
    if not any(name.startswith("patch_embed.backbone.") for name in tensors):
        return ViT, fields, in_channels
    root = next((root for root in ("stem.conv", "conv") if f"patch_embed.backbone.{root}.weight" in tensors), None)
    if root is None:
        raise _stranger(where, "patch_embed.backbone", "a stem of another kind than a ResNet with group norms")
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


def _pool(tensors: Mapping[str, Tensor], said: _Said, assumed: list[str], where: str) -> tuple[Pool, dict[str, str]]:
    """How the tokens become one vector, and the tensors of a pooling that the description leaves aside."""
    attention = [name for name in tensors if name.startswith("attn_pool.")]
    token, after = "cls_token" in tensors, "fc_norm.weight" in tensors
    if not after and "norm.weight" not in tensors:
        raise _stranger(where, "no norm.weight, no fc_norm.weight", "an encoder without a final norm")
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
        raise DataError(f"{where}: {_DESCRIPTION} says global_pool={kind!r}, but the file {verb} attn_pool.*")
    if kind == "token" and not token:
        raise DataError(f"{where}: {_DESCRIPTION} says global_pool={kind!r}, but the file lacks cls_token")
    if kind == "map" and after:
        raise _stranger(where, "fc_norm.weight", "a norm after the attention pooling")
    # A norm of every token and then the class token's row is the norm of that row.
    return ("token" if kind == "token" else "map" if kind == "map" else "gap-norm" if after else "gap"), dropped


def _image_size(
    tensors: Mapping[str, Tensor],
    said: _Said,
    hints: Hints,
    sizes: tuple[int, int, int],
    assumed: list[str],
    where: str,
) -> tuple[tuple[int, int], int]:
    """H×W of the images, and how many of the positions belong to tokens before the patches.

    `sizes` are the pixels between patches, D and the number of those tokens: they have positions all or none.
    """
    stride, D, prefix = sizes
    told = _told_size(said, where)
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
                f"{where}: {_DESCRIPTION} has images of {told[0]}×{told[1]}, which are {grid} patches, but pos_embed has "
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


def _told_size(said: _Said, where: str) -> tuple[int, int] | None:
    """H×W as the description has it."""
    told = said.args.get("img_size")
    sides = [told, told] if isinstance(told, int) else told
    if sides is None:
        return None
    if not isinstance(sides, list) or len(sides) != 2 or not all(isinstance(n, int) and n > 0 for n in sides):
        raise DataError(f"{where}: {_DESCRIPTION} has images of {told!r}; height and width in pixels are right")
    return sides[0], sides[1]


def _any_size(said: _Said, hints: Hints, assumed: list[str], where: str) -> tuple[int, int]:
    """H×W of the images of a model that takes any."""
    if (size := _told_size(said, where) or hints.image_size) is not None:
        return size
    assumed.append(f"image_size={_IMAGE_SIDE}×{_IMAGE_SIDE} is assumed, as most of timm's models have it")
    return _IMAGE_SIDE, _IMAGE_SIDE


def _whole(size: tuple[int, int], stride: int, assumed: list[str]) -> tuple[int, int]:
    """A size of whole patches: timm drops the pixels beyond, on the right and at the bottom."""
    height, width = (side // stride * stride for side in size)
    if (height, width) != size:
        assumed.append(f"image_size={height}×{width} is taken for {size[0]}×{size[1]}, which {stride} does not divide")
    return height, width


def _unsaid(said: _Said, hints: Hints, embed_dim: int, assumed: list[str], where: str) -> dict[str, Any]:
    """The fields that no tensor shows: from architecture and arguments, else from hints, else assumed."""
    told = _told(said, embed_dim)
    heads = told["num_heads"]
    if heads is not None and (not isinstance(heads, int) or heads < 1 or embed_dim % heads):
        raise DataError(
            f"{where}: {_DESCRIPTION} says num_heads={heads!r}, which does not divide the width {embed_dim}"
        )
    usual = mapping.usual_heads(embed_dim)
    if heads is None and hints.num_heads is None and usual is None:
        raise UsageError(
            f"{where} does not say its heads, and its width {embed_dim} has not 64 for each; give num_heads"
        )
    defaults = (
        ("num_heads", usual[0] if usual else 0, usual[1] if usual else ""),
        ("gelu", "erf", "as most of timm's ViTs have it"),
        ("norm_eps", _NORM_EPS, "as most of timm's ViTs have it"),
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


def _read_bit(
    tensors: Mapping[str, Tensor], said: _Said, hints: Hints, where: str
) -> tuple[Foreign, dict[str, Tensor]]:
    """The model that names and shapes make, without weights, and its tensors."""
    for name in ("num_heads", "gelu", "norm_eps", "position"):
        if getattr(hints, name) is not None:
            raise UsageError(f"{where} holds a BiT ResNet, which has nothing that {name} could say")
    width, in_channels, *_ = _shape(tensors, "stem.conv.weight", 4, where)
    num_classes = _shape(tensors, "head.fc.weight", 4, where)[0] if "head.fc.weight" in tensors else 0
    _agree(said, {"in_chans": in_channels, "num_classes": num_classes}, where)
    assumed: list[str] = []
    size = _any_size(said, hints, assumed, where)
    preprocessing = _preprocessing(said, size, in_channels, _UNDESCRIBED_BIT, assumed, where)
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


def _preprocessing(
    said: _Said,
    image_size: tuple[int, int],
    channels: int,
    undescribed: dict[str, Any],
    assumed: list[str],
    where: str,
) -> Preprocessing:
    """What `pretrained_cfg` says of pictures; of bare tensors what most of their kind have."""
    if channels not in (1, 3):
        raise _stranger(where, f"{channels} channels", "images that are neither grey nor RGB")
    picture = {**_DESCRIBED, **{key: value for key, value in said.picture.items() if value is not None}}
    if not said.picture:
        picture = undescribed
        told = ", ".join(f"{key}={value}" for key, value in picture.items())
        assumed.append(f"preprocessing is assumed: {told}")
    filters = ("bilinear", "bicubic")
    if picture["interpolation"] not in filters:
        assumed.append(f"interpolation=bicubic is taken for {picture['interpolation']!r}")
        picture = {**picture, "interpolation": "bicubic"}
    squash, fraction = picture.get("crop_mode") == "squash", picture["crop_pct"]
    if picture.get("crop_mode") == "border" or (squash and fraction != 1):
        how = "without its edges" if squash else "on a border"
        assumed.append(f"pictures are {'stretched' if squash else 'cropped'}, where timm puts them {how}")
    try:
        return Preprocessing(
            image_size=image_size,
            resize="stretch" if squash else "crop",
            crop_fraction=1.0 if squash else float(fraction),
            interpolation=picture["interpolation"],
            mean=_per_channel(picture["mean"], channels),
            std=_per_channel(picture["std"], channels),
        )
    except (UsageError, TypeError, ValueError) as error:
        raise DataError(f"{where}: pretrained_cfg of {_DESCRIPTION} is out of range ({error})") from error


def _per_channel(values: Any, channels: int) -> tuple[float, ...]:
    """One value a channel; for another number of channels their average, as timm has it."""
    values = [float(value) for value in (values if isinstance(values, list | tuple) else [values])]
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels


def _labels(said: _Said, num_classes: int, assumed: list[str], where: str) -> tuple[str, ...] | None:
    """The names of the classes: the file's, or ImageNet-1k's for a thousand without names."""
    if not num_classes:
        return None
    if said.labels is not None:
        labels = said.labels
        if isinstance(labels, dict):  # index → name, where some have none
            labels = [labels.get(str(i), str(i)) for i in range(max(num_classes, len(labels)))]
        if not isinstance(labels, list) or len(labels) != num_classes:
            count = len(labels) if isinstance(labels, list) else "no list of"
            raise DataError(f"{where}: {_DESCRIPTION} has {count} label_names for {num_classes} classes")
        return tuple(map(str, labels))
    labels = imagenet_labels(num_classes)
    what = (
        f"its {num_classes} classes have no names" if labels is None else "its 1000 classes are taken for ImageNet-1k's"
    )
    assumed.append(f"the file has no labels: {what}")
    return labels


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


# Configuration → `config.json`


def _unheld(model: Model) -> str | None:
    """What of the model no configuration of timm's says, in words."""
    if isinstance(model, ResNet):
        stem, built = model.config.arithmetic, _bit_depth(model.config.units) is not None
        reasons = {f"the units {model.config.units}": not built, f"the epsilons of {stem}'s arithmetic": stem != "timm"}
    elif isinstance(model, ViT):
        config = model.config
        reasons = {
            "the relative positions": config.position == "relative",
            "the hidden layer before the head": config.hidden_head,
            f"the norm epsilon of {config.norm_eps:g}": config.norm_eps not in (_NORM_EPS, _CLIP_NORM_EPS),
        }
        if isinstance(config, HybridConfig):
            units, width, stem = config.stem_units, config.stem_width, config.stem_arithmetic
            reasons |= {
                f"the stem's units {units}": units not in _STEMS,
                f"the stem's width {width}": width != _STEM_WIDTH,
                f"the epsilons of {stem}'s arithmetic": stem != "timm",
                f"the norm epsilon of {config.norm_eps:g} in a hybrid": config.norm_eps != _NORM_EPS,
            }
    else:
        return f"the family {model.family}"
    return next((reason for reason, holds in reasons.items() if holds), None)


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


def _describe(model: Model) -> dict[str, Any]:
    """`config.json`: the architecture whose builder timm calls, the arguments that overrule it, and the picture's way."""
    args: dict[str, Any] = {"num_classes": model.num_classes, "in_chans": model.in_channels}
    if isinstance(model, ResNet):
        architecture, sizes = _bit_arguments(model.config)
        args |= sizes
        pool, first, classifier = "avg", "stem.conv", "head.fc"
    else:
        assert isinstance(model, ViT)
        architecture, sizes = _vit_arguments(model)
        args |= sizes
        pool, classifier = args["global_pool"], "head"
        first = _their_name("backbone.conv_root.x" if isinstance(model, Hybrid) else "patch_embed.x", model)[:-2]
    way = model.preprocessing
    stretch = way.resize == "stretch"
    picture = {
        "custom_load": False,
        "input_size": [way.channels, *way.image_size],
        "fixed_input_size": isinstance(model, ViT),
        "interpolation": way.interpolation,
        "crop_pct": 1.0 if stretch else way.crop_fraction,
        "crop_mode": "squash" if stretch else "center",
        "mean": list(way.mean),
        "std": list(way.std),
        "num_classes": model.num_classes,
        "pool_size": None,
        "first_conv": first,
        "classifier": classifier,
    }
    labels = {} if model.labels is None else {"label_names": list(model.labels)}
    head = {"architecture": architecture, "num_classes": model.num_classes, "num_features": model.num_features}
    return {**head, "global_pool": pool, **labels, "model_args": args, "pretrained_cfg": picture}


def _vit_arguments(model: ViT) -> tuple[str, dict[str, Any]]:
    config = model.config
    D, mlp_dim, side = config.embed_dim, config.mlp_dim, config.patch_size
    clip = config.norm_eps == _CLIP_NORM_EPS
    if isinstance(config, HybridConfig):
        architecture, side = _STEMS[config.stem_units], side // stem_stride(config.stem_units)
    else:
        # timm has no argument for the epsilon of norms: what CLIP's builders fix serves, without the rest of CLIP.
        architecture = _ANY_CLIP if clip else _ARCHITECTURES.get(name_of(ViT, config), _ANY)
    args = {
        "img_size": list(model.image_size),
        "patch_size": side,
        "embed_dim": D,
        "depth": config.depth,
        "num_heads": config.num_heads,
        # timm cuts the product down to a whole number, which must not fall below ours.
        "mlp_ratio": mlp_dim / D if int(D * (mlp_dim / D)) == mlp_dim else (mlp_dim + 0.5) / D,
        "global_pool": {"token": "token", "map": "map"}.get(config.pool, "avg"),
        "fc_norm": config.pool == "gap-norm",
        "class_token": config.pool == "token",
        "reg_tokens": config.registers,
        "pos_embed": "none" if config.position == "none" else "learn",
        "act_layer": _ACTIVATIONS[config.gelu],
    }
    if config.layer_scale:
        args["init_values"] = 1e-5
    if clip:
        args["pre_norm"] = False
    return architecture, args


def _bit_depth(units: tuple[int, ...]) -> tuple[int, ...] | None:
    """The units of timm's ResNet that begins with these."""
    return next((whole for whole in _BIT_DEPTHS if whole[: len(units)] == units), None)


def _bit_arguments(config: ResNetConfig) -> tuple[str, dict[str, Any]]:
    """The builder's own depth, cut off where we have fewer stages, and widths wherever its own are not ours."""
    whole = _bit_depth(config.units)
    assert whole is not None
    depth, factors = _BIT_DEPTHS[whole]
    factor, rest = divmod(config.width, _STEM_WIDTH)
    if whole == config.units and factor in factors and not rest:
        return f"resnetv2_{depth}x{factor}_bit", {}
    factor, stages = factors[0], range(len(config.units))
    widths = [4 * config.width * 2**i // factor for i in stages]
    return f"resnetv2_{depth}x{factor}_bit", {"stem_chs": config.width // factor, "channels": widths}
