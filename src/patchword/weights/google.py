"""Google's `.npz` ↔ our models: the ViTs and hybrids of vision_transformer and big_vision, and BiT.

The files are flat dictionaries of Flax's (BiT's: TensorFlow's) parameters. Kernels have their inputs before their outputs,
convolutions are h×w×in×out, and attention keeps its heads apart. Facts: github.com/google-research/vision_transformer
(vit_jax/models_vit.py, models_resnet.py, checkpoint.py) and github.com/google-research/big_vision (models/vit.py,
models/bit_paper.py). Letters: C channels, P patch side, N patches, D width, H heads, K = D/H head width.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from patchword.core.errors import DataError, UsageError
from patchword.core.preprocessing import Preprocessing
from patchword.models.contract import Model
from patchword.models.hybrid import Hybrid, HybridConfig
from patchword.models.position import sincos
from patchword.models.resnet import ResNet, stem_stride
from patchword.models.vit import ViT
from patchword.weights import mapping, npz
from patchword.weights.mapping import Foreign, Hints, Row, by
from patchword.weights.reading import Reading
from patchword.weights.source import Source

NORM_EPS = 1e-6
"""Flax's default, which both code bases keep."""
_CODE = "as in Google's code"

_ROOTS = ("params/", "opt/target/", "target/")
"""Under which training programs keep the parameters: big_vision, its older form, Flax's optimizers."""
_STATE = {"opt", "state", "chrono", "extra", "step"}
"""What stands beside them."""
_TABLES = ("Transformer/posembed_input/pos_embedding", "Transformer/pos_embedding", "pos_embedding")
"""Where the position embedding was over the years."""
_MOST_LAYERS = 1000
"""More in one stack are no layers, and are not taken apart."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """What the files call things, where they differ in it."""

    norms: tuple[str, str]
    attention: str
    mlp: str
    table: str | None = None
    """The position embedding; None where the file has none."""
    slot: bool = False
    """Whether its first row is the class token's."""
    pooling: str = "MAPHead_0/"


RELEASED = Layout(norms=("LayerNorm_0", "LayerNorm_2"), attention="MultiHeadDotProductAttention_1", mlp="MlpBlock_3")
"""The paper's files and AugReg's: modules of a block are counted together."""
BIG_VISION = Layout(norms=("LayerNorm_0", "LayerNorm_1"), attention="MultiHeadDotProductAttention_0", mlp="MlpBlock_0")
"""Newer code: each kind of module is counted for itself."""


def read(source: Source, hints: Hints) -> Foreign:
    """The model in an opened `.npz`: sizes from shapes, kinds from names; what it cannot say from `hints` or by assumption.

    Raises `DataError` for a tensor that is missing, left over, of another shape or not finite, and for a grid that is not
    square and not said; `UsageError` for hints that the file contradicts.
    """
    tensors, dropped = _unpack(source.tensors)
    reading = Reading(str(source.where), tensors, hints, dropped=dropped)
    if any(name.startswith("resnet/") for name in tensors):
        model, rows = _bit(reading)
    elif any(name.startswith(("Transformer/", "embedding/")) for name in tensors):
        model, rows = _vit(reading)
    else:
        first = ", ".join(sorted(tensors)[:3])
        raise DataError(f"{source.where} holds no ViT, hybrid or BiT of Google's (its tensors are {first}, …)")
    model.labels = reading.unnamed(model.num_classes)
    return reading.fill(model, rows)


def write(model: Model, target: Path) -> None:
    """Write one `.npz` for the original code: class-token models and hybrids as the released files are, average and attention
    pooling as big_vision's are, BiT as its own. The same weights give the same bytes.

    Positions that are not learned in 1-D become the table that they add up to, and read back as one; sin-cos ones that
    big_vision would make itself are left out. The format has no labels and no preprocessing. Raises `UsageError` that
    names what else it cannot hold.
    """
    _refuse_unheld(model)
    if isinstance(model, ResNet):
        rows = _bit_rows(model)
    else:
        assert isinstance(model, ViT)
        model = mapping.tabled(model, keep=("1d", "sincos") if _makes_its_own(model) else ("1d",))
        token = model.config.pool == "token"
        layout = RELEASED if token or isinstance(model, Hybrid) else BIG_VISION
        table = None if model.config.position == "sincos" else _TABLES[0] if layout is RELEASED else _TABLES[2]
        rows = _vit_rows(model, dataclasses.replace(layout, table=table, slot=token))
    npz.write(target, mapping.write(rows, model))


def _unpack(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The parameters alone, each layer's for itself, in float32; and what was left out → why."""
    root = next((root for root in _ROOTS if any(name.startswith(root) for name in tensors)), "")
    plain: dict[str, Tensor] = {}
    dropped: dict[str, str] = {}
    for name, tensor in tensors.items():
        if root and not name.startswith(root) and name.partition("/")[0] in _STATE:
            dropped[name] = "state of the training program, not of the model"
            continue
        # Some of BiT's files number their convolutions.
        short = re.sub(r"/standardized_conv2d_\d+/", "/standardized_conv2d/", name.removeprefix(root))
        stack = "Transformer/encoderblock/"
        if short.startswith(stack) and tensor.ndim and len(tensor) <= _MOST_LAYERS:
            # A model whose layers were run by `scan` has them in one tensor.
            for i, layer in enumerate(tensor.float().unbind()):
                plain[f"Transformer/encoderblock_{i}/{short.removeprefix(stack)}"] = layer
        else:
            plain[short] = tensor.float()
    return plain, dropped


# ViT and hybrid: file → configuration


def _vit(reading: Reading) -> tuple[ViT, list[Row]]:
    """The model that the names and shapes describe, without weights, and its table."""
    tensors, hints = reading.tensors, reading.hints
    released = any(name.startswith(f"Transformer/encoderblock_0/{RELEASED.mlp}/") for name in tensors)
    layout = RELEASED if released else BIG_VISION
    if "probe" in tensors:
        # Of the time when big_vision's attention pooling was no module of its own.
        layout = dataclasses.replace(layout, pooling="")
    block = "Transformer/encoderblock_0/"
    side, width, in_channels, embed_dim = reading.shape("embedding/kernel", 4)
    if side != width:
        raise DataError(f"{reading.where}: embedding/kernel has patches of {side}×{width}; square ones are right")
    _, num_heads, _ = reading.shape(f"{block}{layout.attention}/query/kernel", 3)
    _, mlp_dim = reading.shape(f"{block}{layout.mlp}/Dense_0/kernel", 2)
    family, stem, stride = ViT, {}, side
    if "conv_root/kernel" in tensors:
        _, _, in_channels, stem_width = reading.shape("conv_root/kernel", 4)
        units = reading.units("block{}/unit", first=1)
        family, stem, stride = Hybrid, {"stem_units": units, "stem_width": stem_width}, side * stem_stride(units)
    pool = "map" if f"{layout.pooling}probe" in tensors else "token" if "cls" in tensors else "gap"
    table = next((name for name in _TABLES if name in tensors), None)
    if table is None and hints.position not in (None, "none", "sincos"):
        raise UsageError(f"{reading.where} has no learned positions; position='sincos' or 'none' would be right")
    why = "as in big_vision, for the file has no position embedding"
    fields = {
        "patch_size": stride,
        "embed_dim": embed_dim,
        "depth": reading.count("Transformer/encoderblock_"),
        "mlp_dim": mlp_dim,
        "num_heads": reading.says("num_heads", num_heads),
        "pool": pool,
        "position": reading.settle("position", table and "1d", "sincos", why),
        "hidden_head": "pre_logits/kernel" in tensors,
        "gelu": reading.settle("gelu", None, "tanh", _CODE),
        "norm_eps": reading.settle("norm_eps", None, NORM_EPS, _CODE),
        **stem,
    }
    if table is None:
        size = reading.any_size(stride)
    else:
        size, slot = reading.grid_size(table, stride, embed_dim, (0, 1))
        layout = dataclasses.replace(layout, table=table, slot=bool(slot))
        if slot and pool != "token":
            reading.assumed.append("the first of its positions is a class token's, which is left out")
    num_classes = reading.shape("head/kernel", 2)[1] if "head/kernel" in tensors else 0
    model = reading.build(family, fields, num_classes, _preprocessing(reading, in_channels, size))
    return model, _vit_rows(model, layout)


def _preprocessing(reading: Reading, channels: int, size: tuple[int, int]) -> Preprocessing:
    """What the code that trained the model did to pictures."""
    reading.check_channels(channels)
    reading.assumed.append(f"pictures are stretched to {by(size)}, with values from −1 to 1, {_CODE}")
    half = (0.5,) * channels
    return Preprocessing(image_size=size, resize="stretch", mean=half, std=half)


# ViT and hybrid: names


def _vit_rows(model: ViT, layout: Layout) -> list[Row]:
    config = model.config
    D, H, mlp_dim = config.embed_dim, config.num_heads, config.mlp_dim
    P = config.patch_size // (stem_stride(config.stem_units) if isinstance(config, HybridConfig) else 1)
    channels = model.word_size // P**2
    rows = _backbone_rows(model) if isinstance(model, Hybrid) else []
    rows += [
        _laid("patch_embed.weight", ["embedding/kernel"], (P, P, channels, D), (3, 2, 0, 1), (D, -1)),
        mapping.same("patch_embed.bias", "embedding/bias"),
        *_position_rows(model, layout),
        *_norm("norm", "Transformer/encoder_norm"),
    ]
    if config.pool == "token":
        rows.append(mapping.shaped("class_token", "cls", (D,), (1, 1, D)))
    for i in range(config.depth):
        ours, theirs = f"blocks.{i}", f"Transformer/encoderblock_{i}"
        attention = f"{theirs}/{layout.attention}"
        rows += [
            *_norm(f"{ours}.norm1", f"{theirs}/{layout.norms[0]}"),
            *_heads(f"{ours}.attention.qkv", [f"{attention}/{name}" for name in ("query", "key", "value")], D, H),
            *_join(f"{ours}.attention.proj", f"{attention}/out", D, H),
            *_norm(f"{ours}.norm2", f"{theirs}/{layout.norms[1]}"),
            *_mlp(f"{ours}.mlp", f"{theirs}/{layout.mlp}", D, mlp_dim),
        ]
    if config.pool == "map":
        ours, theirs = "attention_pool", layout.pooling
        attention = f"{theirs}{BIG_VISION.attention}"
        rows += [
            mapping.shaped(f"{ours}.probe", f"{theirs}probe", (1, D), (1, 1, D)),
            *_heads(f"{ours}.q", [f"{attention}/query"], D, H),
            *_heads(f"{ours}.kv", [f"{attention}/key", f"{attention}/value"], D, H),
            *_join(f"{ours}.proj", f"{attention}/out", D, H),
            *_norm(f"{ours}.norm", f"{theirs}LayerNorm_0"),
            *_mlp(f"{ours}.mlp", f"{theirs}{BIG_VISION.mlp}", D, mlp_dim),
        ]
    if config.hidden_head:
        rows += _linear("pre_logits", "pre_logits", D, D)
    if model.num_classes:
        rows += _linear("head", "head", D, model.num_classes)
    return rows


def _position_rows(model: ViT, layout: Layout) -> list[Row]:
    config, (h, w) = model.config, model.grid
    if config.position == "sincos":
        return [Row("position.fixed", (), lambda: sincos((h, w), config.embed_dim), lambda _: ())]
    if layout.table is None:
        return []
    more = (config.pool == "token") - layout.slot
    length = layout.slot + h * w
    return [
        Row(
            "position.table",
            (layout.table,),
            lambda theirs: _with_slot(theirs.reshape(length, config.embed_dim), more),
            lambda ours: (_with_slot(ours, -more)[None],),
        )
    ]


def _with_slot(table: Tensor, more: int) -> Tensor:
    """With one zero row more in front, for the class token, or one row less, or as it is.

    A file whose token comes after the positions were added has no row for it: nothing is added to it.
    """
    return torch.cat([table.new_zeros(1, table.shape[1]), table]) if more > 0 else table[-more:]


def _backbone_rows(model: Hybrid) -> list[Row]:
    rows = [
        _conv(model, "backbone.conv_root", "conv_root/kernel"),
        *_group_norm(model, "backbone.norm_root", "gn_root"),
    ]
    for i, count in enumerate(model.config.stem_units):
        for j in range(count):
            ours, theirs = f"backbone.units.{i}.{j}", f"block{i + 1}/unit{j + 1}"
            for part in ("1", "2", "3", "_proj"):
                if part != "_proj" or _projects(model, ours):
                    rows.append(_conv(model, f"{ours}.conv{part}", f"{theirs}/conv{part}/kernel"))
                    rows += _group_norm(model, f"{ours}.norm{part}", f"{theirs}/gn{part}")
    return rows


# BiT


def _bit(reading: Reading) -> tuple[ResNet, list[Row]]:
    """The BiT that the names and shapes describe, without weights, and its table."""
    reading.refuse_hints("a BiT")
    _, _, in_channels, width = reading.shape(f"{_BIT_ROOT}/kernel", 4)
    head = "resnet/head/conv2d/kernel"
    num_classes = reading.shape(head, 4)[3] if head in reading.tensors else 0
    fields = {"units": reading.units("resnet/block{}/unit", first=1), "width": width}
    preprocessing = _preprocessing(reading, in_channels, reading.any_size(1))
    model = reading.build(ResNet, fields, num_classes, preprocessing)
    return model, _bit_rows(model)


_BIT_ROOT = "resnet/root_block/standardized_conv2d"


def _bit_rows(model: ResNet) -> list[Row]:
    names = {"scale": "gamma", "bias": "beta"}
    rows = [_conv(model, "conv_root", f"{_BIT_ROOT}/kernel")]
    for i, count in enumerate(model.config.units):
        for j in range(count):
            ours, theirs = f"units.{i}.{j}", f"resnet/block{i + 1}/unit{j + 1:02d}"
            for n, part in enumerate("abc", 1):
                rows += _group_norm(model, f"{ours}.norm{n}", f"{theirs}/{part}/group_norm", **names)
                rows.append(_conv(model, f"{ours}.conv{n}", f"{theirs}/{part}/standardized_conv2d/kernel"))
            if _projects(model, ours):
                rows.append(_conv(model, f"{ours}.conv_proj", f"{theirs}/a/proj/standardized_conv2d/kernel"))
    rows += _group_norm(model, "norm", "resnet/group_norm", **names)
    if K := model.num_classes:
        # Their head is a convolution of one place.
        theirs, shape = "resnet/head/conv2d", (1, 1, model.num_features, K)
        rows += [
            _laid("head.weight", [f"{theirs}/kernel"], shape, (3, 2, 0, 1), (K, -1)),
            mapping.same("head.bias", f"{theirs}/bias"),
        ]
    return rows


# What a format cannot hold


def _refuse_unheld(model: Model) -> None:
    """Raise `UsageError` for what of the model no file of Google's says."""
    reasons = {f"the {model.family} architecture": not isinstance(model, ResNet | ViT)}
    arithmetic = "google"
    if isinstance(model, ResNet):
        arithmetic = model.config.arithmetic
        reasons["the missing head"] = not model.num_classes
    elif isinstance(model, ViT):
        config = model.config
        if isinstance(config, HybridConfig):
            arithmetic = config.stem_arithmetic
        reasons |= {
            "the norm after the average (pool=gap-norm)": config.pool == "gap-norm",
            "the attention pooling of a hybrid": config.pool == "map" and isinstance(model, Hybrid),
            "the relative positions": config.position == "relative",
            "the rotary positions": config.position == "rope",
            "the registers": config.registers > 0,
            "the LayerScale": config.layer_scale,
            "the exact GELU (gelu=erf)": config.gelu != "tanh",
            f"the norm epsilon of {config.norm_eps:g}": config.norm_eps != NORM_EPS,
        }
    mapping.refuse("Google's", model, {**reasons, f"the {arithmetic} arithmetic": arithmetic != "google"})


def _makes_its_own(model: ViT) -> bool:
    """Whether big_vision would make the very sin-cos positions of the model; resampled ones are not the formula's."""
    if model.config.position != "sincos" or model.config.pool == "token" or isinstance(model, Hybrid):
        return False
    return torch.equal(model.position.fixed.cpu(), sincos(model.grid, model.config.embed_dim))


# Kinds of rows


def _laid(ours: str, theirs: Sequence[str], shape: Sequence[int], order: Sequence[int], mine: Sequence[int]) -> Row:
    """Pieces of `shape` there, whose axes in `order`, flattened to `mine`, lie one below the other here."""
    turned = [shape[axis] for axis in order]
    back = [order.index(axis) for axis in range(len(order))]

    def read(*pieces: Tensor) -> Tensor:
        for piece in pieces:
            # Of another shape with as many numbers, it would be misread: heads of another width, say.
            if tuple(piece.shape) != tuple(shape):
                raise RuntimeError(f"not {tuple(shape)}")
        return torch.cat([piece.permute(*order).reshape(*mine) for piece in pieces])

    def write(tensor: Tensor) -> Sequence[Tensor]:
        return [piece.reshape(turned).permute(*back) for piece in tensor.chunk(len(theirs))]

    return Row(ours, tuple(theirs), read, write)


def _linear(ours: str, theirs: str, inputs: int, outputs: int) -> list[Row]:
    return [
        _laid(f"{ours}.weight", [f"{theirs}/kernel"], (inputs, outputs), (1, 0), (outputs, inputs)),
        mapping.same(f"{ours}.bias", f"{theirs}/bias"),
    ]


def _mlp(ours: str, theirs: str, D: int, mlp_dim: int) -> list[Row]:
    return [
        *_linear(f"{ours}.fc1", f"{theirs}/Dense_0", D, mlp_dim),
        *_linear(f"{ours}.fc2", f"{theirs}/Dense_1", mlp_dim, D),
    ]


def _heads(ours: str, theirs: Sequence[str], D: int, H: int) -> list[Row]:
    """Queries, keys or values: D×H×K each there, one D×D matrix below the other here."""
    kernels, biases = [f"{name}/kernel" for name in theirs], [f"{name}/bias" for name in theirs]
    return [
        _laid(f"{ours}.weight", kernels, (D, H, D // H), (1, 2, 0), (D, D)),
        _laid(f"{ours}.bias", biases, (H, D // H), (0, 1), (D,)),
    ]


def _join(ours: str, theirs: str, D: int, H: int) -> list[Row]:
    """The layer after attention: H×K×D there."""
    return [
        _laid(f"{ours}.weight", [f"{theirs}/kernel"], (H, D // H, D), (2, 0, 1), (D, D)),
        mapping.same(f"{ours}.bias", f"{theirs}/bias"),
    ]


def _norm(ours: str, theirs: str) -> list[Row]:
    return [mapping.same(f"{ours}.weight", f"{theirs}/scale"), mapping.same(f"{ours}.bias", f"{theirs}/bias")]


def _group_norm(model: Model, ours: str, theirs: str, scale: str = "scale", bias: str = "bias") -> list[Row]:
    """C there, or 1×1×1×C in old files."""
    C = len(model.get_parameter(f"{ours}.weight"))
    both = ((f"{ours}.weight", f"{theirs}/{scale}"), (f"{ours}.bias", f"{theirs}/{bias}"))
    return [mapping.shaped(mine, other, (C,), (C,)) for mine, other in both]


def _conv(model: Model, ours: str, theirs: str) -> Row:
    outputs, inputs, h, w = model.get_parameter(f"{ours}.weight").shape
    return _laid(f"{ours}.weight", [theirs], (h, w, inputs, outputs), (3, 2, 0, 1), (outputs, inputs, h, w))


def _projects(model: Model, unit: str) -> bool:
    """Whether a unit's shortcut has a convolution of its own."""
    return model.get_submodule(unit).conv_proj is not None
