"""`config.json` of timm's hub folders ↔ what it means: the architecture it names, whose builder in timm fixes most of a model,
the arguments that overrule it, the labels, and the way of a picture to the model.

Facts: github.com/huggingface/pytorch-image-models (release 1.0.31: timm/models/vision_transformer.py,
vision_transformer_hybrid.py, resnetv2.py, _hub.py). Letters: D width.
"""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

from patchword.core.errors import DataError, UsageError
from patchword.core.preprocessing import Preprocessing
from patchword.models.contract import Model
from patchword.models.hybrid import HybridConfig
from patchword.models.names import name_of
from patchword.models.resnet import GROUPS, UNITS, WIDTHS, ResNet, ResNetConfig, stem_stride
from patchword.models.vit import ViT
from patchword.weights import mapping
from patchword.weights.reading import Fields, Reading
from patchword.weights.source import CONFIG, Source

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
NORM_EPS, _CLIP_NORM_EPS = 1e-6, 1e-5

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
_PLAIN_BIT: dict[str, tuple[Any, ...]] = {"global_pool": ("avg",)}
_READ = {*_PLAIN, *_COMPARED, "img_size", "num_heads", "pool_include_prefix"}
_READ_BIT = {*_PLAIN_BIT, "in_chans", "num_classes", "img_size", "channels", "stem_chs"}
_IDLE = re.compile(
    r".*drop_rate|weight_init|fix_init|dynamic_img_size|dynamic_img_pad|strict_img_size|pretrained_strict"
)
"""Arguments that say nothing of what a loaded model computes."""

# What stands for a picture's way to the model, where a file does not say it

UNDESCRIBED = {"mean": 0.5, "std": 0.5, "interpolation": "bicubic", "crop_pct": 0.9}
"""Of tensors alone: what nearly all of timm's ViTs have."""
UNDESCRIBED_BIT = {**UNDESCRIBED, "interpolation": "bilinear", "crop_pct": 0.875}
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
    UNITS["R26"]: "vit_small_r26_s32_224",
    (3, 4, 9): "vit_base_r50_s16_224",  # an R50 whose last units moved to the third stage
    UNITS["R50"]: "vit_large_r50_s32_224",
}
"""Units of the stems that timm can build; each has 64 channels after the root."""
_STEM_WIDTH = 64
_BIT_DEPTHS = {UNITS[size]: (size.removeprefix("R"), WIDTHS[size]) for size in ("R50", "R101", "R152")}
"""Units of the ResNets that timm can build → the depth and the width factors in their names."""


# File → meaning


@dataclasses.dataclass(frozen=True)
class Said:
    """What stands beside the tensors."""

    architecture: str | None
    """None for bare tensors."""
    args: Fields
    """`model_args`, and under the same names what stands elsewhere in the file."""
    picture: dict[str, Any]
    """`pretrained_cfg`: mean, std, crop and their like."""
    labels: Any


def parse(source: Source) -> Said:
    """What `config.json` says, wherever it says it: old files and new ones have the same things in different places."""
    description = source.description
    nested = description.get("pretrained_cfg", description)  # old files have everything in one table
    args = description.get("model_args") or {}
    if not isinstance(nested, dict) or not isinstance(args, dict):
        raise DataError(f"{source.where}: pretrained_cfg and model_args of {CONFIG} must be tables")
    tables = (args, description, nested)
    architecture = _first(tables, "architecture")
    args = dict(args)
    size = nested.get("input_size")
    if isinstance(size, list) and len(size) == 3:
        args.setdefault("in_chans", size[0])
        args.setdefault("img_size", size[1:])
    for name in ("num_classes", "global_pool"):
        args.setdefault(name, _first(tables, name))
    said = Fields({name: value for name, value in args.items() if value is not None}, f"{source.where}: {CONFIG}")
    labels = _first((description, nested), "label_names", "labels")
    return Said(None if architecture is None else str(architecture).partition(".")[0], said, nested, labels)


def _first(tables: Iterable[dict[str, Any]], *names: str) -> Any:
    return next((table[name] for table in tables for name in names if table.get(name) is not None), None)


def refuse_architecture(reading: Reading, said: Said, bit: bool) -> None:
    """Refuse an architecture that is none of our models."""
    name = said.architecture
    if name is None:
        return
    for pattern, what in _STRANGE_VITS:
        if name.startswith(("vit", "test_vit")) and re.search(pattern, name):
            raise reading.stranger(name, what)
    if not (_BITS if bit else _VITS).fullmatch(name):
        kinds = "vit_*, vit_*_r*_s*, deit_*, deit3_* and resnetv2_*_bit are read"
        raise DataError(f"{reading.where} holds timm's {name}, which is none of our models; {kinds}")


def refuse_arguments(said: Said, bit: bool) -> None:
    """Refuse an argument that is not known, or with which it is none of our models."""
    plain = _PLAIN_BIT if bit else _PLAIN
    for name, value in said.args.values.items():
        if name not in (_READ_BIT if bit else _READ) and not _IDLE.fullmatch(name):
            raise DataError(f"{said.args.where} says {name}={value!r}, which is not known")
        if name in plain and value not in plain[name]:
            right = " or ".join(map(repr, plain[name]))
            raise DataError(f"{said.args.where} says {name}={value!r}, which none of our models has; {right} is right")


def refuse_contradiction(said: Said, found: dict[str, Any]) -> None:
    """Refuse a description that says something else than the tensors."""
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
            raise DataError(f"{said.args.where} says {name}={value!r}, but the tensors are of {what}")


def fixed(said: Said, embed_dim: int) -> dict[str, Any]:
    """What arguments and architecture fix of what tensors cannot say; None where they do not."""
    name, args = said.architecture, said.args
    heads, gelu = args.get("num_heads", int), _GELUS.get(args.get("act_layer"))
    norm_eps = None if args.get("norm_layer") is None else NORM_EPS
    if name is not None:
        if heads is None:
            listed = next((heads for pattern, heads in _HEADS if re.fullmatch(pattern, name)), None)
            heads = listed or (None if embed_dim % 64 else embed_dim // 64)
        gelu = gelu or ("tanh" if _TANH.fullmatch(name) else "erf")
        norm_eps = norm_eps or (_CLIP_NORM_EPS if _CLIP.fullmatch(name) else NORM_EPS)
    return {"num_heads": heads, "gelu": gelu, "norm_eps": norm_eps}


def preprocessing(
    reading: Reading, said: Said, image_size: tuple[int, int], channels: int, undescribed: dict[str, Any]
) -> Preprocessing:
    """What `pretrained_cfg` says of pictures; of bare tensors what most of their kind have."""
    reading.check_channels(channels)
    picture = {**_DESCRIBED, **{key: value for key, value in said.picture.items() if value is not None}}
    if not said.picture:
        picture = undescribed
        told = ", ".join(f"{key}={value}" for key, value in picture.items())
        reading.assumed.append(f"preprocessing is assumed: {told}")
    filters = ("bilinear", "bicubic")
    if picture["interpolation"] not in filters:
        reading.assumed.append(f"interpolation=bicubic is taken for {picture['interpolation']!r}")
        picture = {**picture, "interpolation": "bicubic"}
    squash, fraction = picture.get("crop_mode") == "squash", picture["crop_pct"]
    if picture.get("crop_mode") == "border" or (squash and fraction != 1):
        how = "without its edges" if squash else "on a border"
        reading.assumed.append(f"pictures are {'stretched' if squash else 'cropped'}, where timm puts them {how}")
    try:
        return Preprocessing(
            image_size=image_size,
            resize="stretch" if squash else "crop",
            crop_fraction=1.0 if squash else float(fraction),
            interpolation=picture["interpolation"],
            mean=_per_channel(picture["mean"], channels),
            std=_per_channel(picture["std"], channels),
        )
    except (UsageError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{reading.where}: pretrained_cfg of {CONFIG} is out of range ({error})") from error


def _per_channel(values: Any, channels: int) -> tuple[float, ...]:
    """One value a channel; for another number of channels their average, as timm has it."""
    values = [float(value) for value in (values if isinstance(values, list | tuple) else [values])]
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels


def labels(reading: Reading, said: Said, num_classes: int) -> tuple[str, ...] | None:
    """The names of the classes, where there are any."""
    labels = said.labels
    if labels is None or not num_classes:
        return reading.unnamed(num_classes)
    if isinstance(labels, dict):  # index → name, where some have none
        labels = [labels.get(str(i), str(i)) for i in range(max(num_classes, len(labels)))]
    if not isinstance(labels, list) or len(labels) != num_classes:
        count = len(labels) if isinstance(labels, list) else "no list of"
        raise DataError(f"{said.args.where} has {count} label_names for {num_classes} classes")
    return tuple(map(str, labels))


# Configuration → file


def refuse_unheld(model: Model) -> None:
    """Raise `UsageError` for what of the model no configuration of timm's says."""
    reasons = {f"the family {model.family}": model.family not in ("vit", "hybrid", "bit")}
    if isinstance(model, ResNet):
        units, stem = model.config.units, model.config.arithmetic
        reasons |= {
            f"the units {units}": _bit_depth(units) is None,
            f"the epsilons of {stem}'s arithmetic": stem != "timm",
            f"the norms of {model.config.width} channels": model.config.width < GROUPS,
        }
    elif isinstance(model, ViT):
        config = model.config
        reasons |= {
            "the relative positions": config.position == "relative",
            "the rotary positions": config.position == "rope",
            "the hidden layer before the head": config.hidden_head,
            f"the norm epsilon of {config.norm_eps:g}": config.norm_eps not in (NORM_EPS, _CLIP_NORM_EPS),
        }
        if isinstance(config, HybridConfig):
            units, width, stem = config.stem_units, config.stem_width, config.stem_arithmetic
            reasons |= {
                f"the stem's units {units}": units not in _STEMS,
                f"the stem's width {width}": width != _STEM_WIDTH,
                f"the epsilons of {stem}'s arithmetic": stem != "timm",
                f"the norm epsilon of {config.norm_eps:g} in a hybrid": config.norm_eps != NORM_EPS,
            }
    mapping.refuse("timm's", model, reasons)


def describe(model: Model, first_conv: str, classifier: str) -> dict[str, Any]:
    """`config.json`: the architecture whose builder timm calls, the arguments that overrule it, and the picture's way.

    `first_conv` and `classifier` are timm's names of the layers that know the channels and the classes.
    """
    args: dict[str, Any] = {"num_classes": model.num_classes, "in_chans": model.in_channels}
    assert isinstance(model, ResNet | ViT)
    architecture, sizes = _bit_arguments(model.config) if isinstance(model, ResNet) else _vit_arguments(model)
    args |= sizes
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
        "first_conv": first_conv,
        "classifier": classifier,
    }
    labels = {} if model.labels is None else {"label_names": list(model.labels)}
    head = {"architecture": architecture, "num_classes": model.num_classes, "num_features": model.num_features}
    return {
        **head,
        "global_pool": args.get("global_pool", "avg"),
        **labels,
        "model_args": args,
        "pretrained_cfg": picture,
    }


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
    factor, stages = int(factors[0]), range(len(config.units))
    widths = [4 * config.width * 2**i // factor for i in stages]
    return f"resnetv2_{depth}x{factor}_bit", {"stem_chs": config.width // factor, "channels": widths}
