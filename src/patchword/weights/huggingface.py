"""transformers' ViT (`ViTModel`, `ViTForImageClassification`) ↔ ours: names of tensors and the fields of `config.json`.

Letters: D width, C channels, P patch side, N patches, K classes.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from patchword.core import files
from patchword.core.errors import DataError, UsageError
from patchword.core.progress import say
from patchword.models.contract import Model
from patchword.models.layers import Gelu
from patchword.models.names import build_model, name_of
from patchword.models.vit import ViT, ViTConfig
from patchword.weights import folder, mapping, processor
from patchword.weights.mapping import Foreign, Hints, Row, same, shape_of, shaped, stacked
from patchword.weights.processor import Fields
from patchword.weights.source import Source

_CONFIG = "config.json"
_PROJECTION = "embeddings.patch_embeddings.projection.weight"

# The values of `hidden_act` that are a GELU, by whether they are the exact one or its approximation with tanh.
_GELUS: dict[str, Gelu] = {
    "gelu": "erf",
    "gelu_python": "erf",
    "gelu_pytorch_tanh": "tanh",
    "gelu_python_tanh": "tanh",
    "gelu_new": "tanh",
    "gelu_fast": "tanh",
    "gelu_accurate": "tanh",
}
_WRITTEN_GELU: dict[Gelu, str] = {"erf": "gelu", "tanh": "gelu_pytorch_tanh"}
# What transformers takes where `config.json` says nothing.
_DEFAULT_HEADS, _DEFAULT_GELU, _DEFAULT_EPS = 12, "gelu", 1e-12
# Tensors that only a relative of the ViT has.
_RELATIVES = {
    "distillation_token": "DeiT",
    "register_tokens": "DINOv2 with registers",
    "layer_scale1.": "DINOv2",
    "lambda_1": "BEiT",
    "relative_position_bias_table": "BEiT or Swin",
    "decoder_embed.": "ViT-MAE",
    "detection_tokens": "YOLOS",
}


class _Spelling(NamedTuple):
    """How the tensors of the encoder's layers are called."""

    layers: str
    qkv: tuple[str, str, str]
    output: str
    fc1: str
    fc2: str


_ON_DISK = _Spelling(
    "encoder.layer",
    ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
"""In every file that transformers writes."""
_IN_MEMORY = _Spelling(
    "layers",
    ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "attention.o_proj",
    "mlp.fc1",
    "mlp.fc2",
)
"""In the state dict of a model of transformers 5."""


def _rows(config: ViTConfig, channels: int, num_classes: int, prefix: str, spelling: _Spelling) -> list[Row]:
    """The table of names for one model; `prefix` is what stands before all names but the classifier's."""
    D, P = config.embed_dim, config.patch_size
    table = [
        shaped("class_token", f"{prefix}embeddings.cls_token", (D,), (1, 1, D)),
        shaped("position.table", f"{prefix}embeddings.position_embeddings", (-1, D), (1, -1, D)),
        shaped("patch_embed.weight", f"{prefix}{_PROJECTION}", (D, channels * P * P), (D, channels, P, P)),
        same("patch_embed.bias", f"{prefix}embeddings.patch_embeddings.projection.bias"),
    ]
    for i in range(config.depth):
        ours, theirs = f"blocks.{i}.", f"{prefix}{spelling.layers}.{i}."
        attention = [theirs + name for name in spelling.qkv]
        table += [
            *_layer(ours + "norm1", theirs + "layernorm_before"),
            stacked(ours + "attention.qkv.weight", [f"{name}.weight" for name in attention]),
            stacked(ours + "attention.qkv.bias", [f"{name}.bias" for name in attention]),
            *_layer(ours + "attention.proj", theirs + spelling.output),
            *_layer(ours + "norm2", theirs + "layernorm_after"),
            *_layer(ours + "mlp.fc1", theirs + spelling.fc1),
            *_layer(ours + "mlp.fc2", theirs + spelling.fc2),
        ]
    table += _layer("norm", f"{prefix}layernorm")
    if config.hidden_head:
        table += _layer("pre_logits", f"{prefix}pooler.dense")
    if num_classes:
        table += _layer("head", "classifier")
    return table


def _layer(ours: str, theirs: str) -> list[Row]:
    return [same(f"{ours}.{part}", f"{theirs}.{part}") for part in ("weight", "bias")]


_SEVERAL = "multi_label_classification"
"""transformers' word for several labels a picture."""


def read(source: Source, hints: Hints) -> Foreign:
    """The ViT in a folder of transformers', or in bare tensors with its names.

    Raises `DataError` where `config.json` and the tensors contradict each other, for another model than a ViT and for what
    `mapping.read` finds; `UsageError` for a hint that the file contradicts, or one that is needed and not there.
    """
    where = str(source.where)
    _refuse_relatives(source)
    said = Fields(source.description, f"{where}: {_CONFIG}")
    assumed: list[str] = []
    tensors = _widened(source.tensors, where, assumed)
    found = _measure(tensors, where)
    _compare(found, said)
    config = _config(found, said, hints, where, assumed)
    image_size = _image_size(found, said, hints, where, assumed)
    preprocessing = processor.read(source.preprocessor, where, image_size, found.channels, assumed)
    architecture = {"family": ViT.family, "name": name_of(ViT, config), "num_classes": found.num_classes}
    model = build_model({**architecture, **dataclasses.asdict(config)}, preprocessing)
    table = _rows(config, found.channels, found.num_classes, found.prefix, found.spelling)
    dropped = _dropped(found, tensors)
    mapping.read(table, tensors if found.qkv_bias else _with_biases(found, tensors), model, dropped, where)
    model.labels = _labels(found, said, assumed)
    model.multi_label = source.description.get("problem_type") == _SEVERAL
    return Foreign(model, assumed, dropped)


@dataclasses.dataclass(frozen=True)
class _Found:
    """What the tensors say of the model."""

    prefix: str
    spelling: _Spelling
    embed_dim: int
    channels: int
    patch_size: int
    num_patches: int
    depth: int
    mlp_dim: int
    num_classes: int
    """0 without a classifier."""
    qkv_bias: bool
    pooler: bool

    def layer(self, name: str, i: int = 0) -> str:
        """The full name of a tensor of layer `i`."""
        return f"{self.prefix}{self.spelling.layers}.{i}.{name}"


def _refuse_relatives(source: Source) -> None:
    kind = source.description.get("model_type")
    if source.description and kind != "vit":
        raise DataError(
            f"{source.where}: {_CONFIG} says model_type {kind!r}, whose architecture is not the ViT's; 'vit' is right"
        )
    for name in source.tensors:
        for sign, relative in _RELATIVES.items():
            if sign in name:
                raise DataError(
                    f"{source.where} has the tensor {name}, which makes it a {relative}, not a ViT; a ViTModel or "
                    "ViTForImageClassification is right"
                )


def _widened(tensors: Mapping[str, Tensor], where: str, assumed: list[str]) -> dict[str, Tensor]:
    """All tensors in one type, float32 at least: what processors compute without detours, and no number changes."""
    known = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    for name, tensor in tensors.items():
        if tensor.dtype not in known:
            raise DataError(f"{where}: {name} holds {_plain(tensor.dtype)}; weights of 16, 32 or 64 bits are right")
    kinds = {tensor.dtype for tensor in tensors.values()}
    widest = functools.reduce(torch.promote_types, kinds, torch.float32)
    if kinds != {widest}:
        narrow = " and ".join(sorted(_plain(kind) for kind in kinds - {widest}))
        assumed.append(f"{narrow} tensors are widened to {_plain(widest)}, which is exact")
    return {name: tensor.to(widest) for name, tensor in tensors.items()}


def _plain(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


def _measure(tensors: Mapping[str, Tensor], where: str) -> _Found:
    """Sizes as the tensors have them; those which a reshape could hide are checked here, the others by `mapping.read`."""

    def need(name: str, dimensions: int) -> torch.Size:
        if name not in tensors:
            raise DataError(f"{where} lacks the tensor {name}, which every ViT of transformers has")
        if tensors[name].ndim != dimensions:
            raise DataError(
                f"{where}: {name} is {shape_of(tensors[name])}; a tensor of {dimensions} dimensions is right"
            )
        return tensors[name].shape

    starts = sorted(name.removesuffix(_PROJECTION) for name in tensors if name.endswith(_PROJECTION))
    if len(starts) != 1 or starts[0] not in ("", "vit."):
        places = ", ".join(repr(start) for start in starts) or "nothing"
        raise DataError(f"{where} has a ViT's tensors under {places}; no prefix or 'vit.' is right")
    [prefix] = starts
    spelling = next(
        (
            each
            for each in (_ON_DISK, _IN_MEMORY)
            if any(name.startswith(f"{prefix}{each.layers}.") for name in tensors)
        ),
        _ON_DISK,
    )
    pattern = re.compile(rf"{re.escape(prefix + spelling.layers)}\.([0-9]+)\.")
    layers = {match[1] for name in tensors if (match := pattern.match(name))}

    D, C, P, other = need(prefix + _PROJECTION, 4)
    token, positions = f"{prefix}embeddings.cls_token", f"{prefix}embeddings.position_embeddings"
    if other != P or min(D, C, P) < 1:
        raise DataError(f"{where}: {prefix}{_PROJECTION} is {D}×{C}×{P}×{other}; a square patch (D×C×P×P) is right")
    if need(token, 3) != (1, 1, D):
        raise DataError(f"{where}: {token} is {shape_of(tensors[token])}; 1×1×{D} is right")
    if (shape := need(positions, 3))[::2] != (1, D) or shape[1] < 2:
        raise DataError(f"{where}: {positions} is {shape_of(tensors[positions])}; 1×(1 + N)×{D} is right")
    if C not in (1, 3):
        raise DataError(f"{where}: {prefix}{_PROJECTION} takes {C} channels; 1 (grey) or 3 (RGB) are right")
    first, biases = f"{prefix}{spelling.layers}.0.", tuple(f".{name}.bias" for name in spelling.qkv)
    return _Found(
        prefix=prefix,
        spelling=spelling,
        embed_dim=D,
        channels=C,
        patch_size=P,
        num_patches=shape[1] - 1,
        depth=len(layers),
        mlp_dim=need(f"{first}{spelling.fc1}.weight", 2)[0],
        num_classes=need("classifier.weight", 2)[0] if "classifier.weight" in tensors else 0,
        qkv_bias=any(name.endswith(biases) for name in tensors),
        pooler=f"{prefix}pooler.dense.weight" in tensors,
    )


def _compare(found: _Found, said: Fields) -> None:
    """Raise `DataError` where `config.json` says another size than the tensors have."""
    projection = found.prefix + _PROJECTION
    numbers: dict[str, tuple[int, str]] = {
        "hidden_size": (found.embed_dim, projection),
        "num_channels": (found.channels, projection),
        "num_hidden_layers": (found.depth, f"{found.prefix}{found.spelling.layers}.*"),
        "intermediate_size": (found.mlp_dim, found.layer(found.spelling.fc1) + ".weight"),
    }
    if found.num_classes:
        numbers["num_labels"] = (found.num_classes, "classifier.weight")
    for field, (size, tensor) in numbers.items():
        value = said.get(field, int, size)
        if value != size:
            raise DataError(f"{said.where} says {field} {value}, and the tensors ({tensor}) have {size}")
    patch, P = said.pair("patch_size"), found.patch_size
    if patch not in (None, (P, P)):
        raise DataError(f"{said.where} says patch_size {processor.by(patch)}, and {projection} has {P}×{P}")
    if said.get("qkv_bias", bool, found.qkv_bias) != found.qkv_bias:
        has = "has" if found.qkv_bias else "lacks"
        raise DataError(
            f"{said.where} says qkv_bias {str(not found.qkv_bias).lower()}, and the file {has} the tensor "
            f"{found.layer(found.spelling.qkv[0])}.bias"
        )
    classes = len(said.get("id2label", dict, {}))
    if "ViTForImageClassification" in said.get("architectures", list, []) and classes and not found.num_classes:
        raise DataError(
            f"{said.where} says ViTForImageClassification with {classes} classes, and there is no tensor classifier.weight"
        )


def _config(found: _Found, said: Fields, hints: Hints, where: str, assumed: list[str]) -> ViTConfig:
    """Our configuration: sizes from the tensors, the rest from `config.json`, else from the caller, else the defaults."""
    if hints.position not in (None, "1d"):
        raise UsageError(f"{where} has learned 1-D positions, as every ViT of transformers; position='1d' is right")
    act = said.get("hidden_act", str)
    if act is not None and act not in _GELUS:
        raise DataError(f"{said.where} says hidden_act {act!r}; a GELU is right ({', '.join(_GELUS)})")

    def choose(argument: str, meaning: str, value: Any, hint: Any, default: Any) -> Any:
        if value is not None and hint not in (None, value):
            raise UsageError(f"{said.where} says {value} for {meaning}; {argument}={hint!r} contradicts it")
        if value is None and hint is None:
            assumed.append(f"the file does not say {meaning}: {default} is taken ({argument}= says otherwise)")
        return next(each for each in (value, hint, default) if each is not None)

    D = found.embed_dim
    value, hint = said.get("num_attention_heads", int), hints.num_heads
    usual = mapping.usual_heads(D)
    if value is None and hint is None and not said.values and usual is None:
        raise UsageError(
            f"{where} does not say its number of heads, and its width of {D} is no multiple of 64; give num_heads"
        )
    default = _DEFAULT_HEADS if said.values or usual is None else usual[0]
    heads = choose("num_heads", "the number of heads", value, hint, default)
    if heads < 1 or D % heads:
        if hint is not None:
            raise UsageError(f"{where}: num_heads={heads} does not divide the width of {D}")
        raise DataError(f"{said.where}: num_attention_heads {heads} does not divide hidden_size {D}")
    gelu = choose("gelu", "the kind of GELU", _GELUS.get(act or ""), hints.gelu, _GELUS[_DEFAULT_GELU])
    norm_eps = choose("norm_eps", "the norm epsilon", said.number("layer_norm_eps"), hints.norm_eps, _DEFAULT_EPS)
    if found.pooler and not found.num_classes:
        _check_pooler(found, said, assumed)
    return ViTConfig(
        patch_size=found.patch_size,
        embed_dim=D,
        depth=found.depth,
        mlp_dim=found.mlp_dim,
        num_heads=heads,
        position="1d",
        hidden_head=found.pooler and not found.num_classes,
        gelu=gelu,
        norm_eps=norm_eps,
    )


def _check_pooler(found: _Found, said: Fields, assumed: list[str]) -> None:
    """Our hidden layer is as wide as the model and has tanh behind it."""
    width, act = said.get("pooler_output_size", int, found.embed_dim), said.get("pooler_act", str, "tanh")
    if width != found.embed_dim:
        raise DataError(f"{said.where} says pooler_output_size {width}; the hidden size, {found.embed_dim}, is right")
    if act != "tanh":
        raise DataError(f"{said.where} says pooler_act {act!r}; 'tanh' is right")
    if not said.values:
        assumed.append("tanh is taken for the pooler, for want of a word in the file")


def _image_size(found: _Found, said: Fields, hints: Hints, where: str, assumed: list[str]) -> tuple[int, int]:
    """H×W: as `config.json` says, else as the caller, where the number of patches fits it, else a square."""
    P, N = found.patch_size, found.num_patches
    size = said.pair("image_size")
    if size is not None:
        height, width = size
        if height % P or width % P:
            raise DataError(
                f"{said.where} says image_size {processor.by(size)}, which patches of {P}×{P} do not divide"
            )
        if (height // P) * (width // P) != N:
            raise DataError(
                f"{said.where} says image_size {processor.by(size)}, which is {(height // P) * (width // P)} patches of {P}×{P}, "
                f"and {found.prefix}embeddings.position_embeddings has {N} and the class token's"
            )
        return size
    if (size := hints.image_size) is not None and not any(side % P for side in size) and math.prod(size) == N * P * P:
        return size
    side = math.isqrt(N)
    if side * side != N:
        raise UsageError(
            f"{where} has positions for {N} patches of {P}×{P}, which is no square, and does not say its image size; "
            "give image_size"
        )
    assumed.append(
        f"images of {side * P}×{side * P} are taken, the square with its {N} patches, for want of a word in the file "
        "(image_size)"
    )
    return side * P, side * P


def _with_biases(found: _Found, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, with zeros for the biases that queries, keys and values lack (qkv_bias=false): the same, exactly."""
    zeros = next(iter(tensors.values())).new_zeros(found.embed_dim)
    biases = {f"{found.layer(name, i)}.bias": zeros for i in range(found.depth) for name in found.spelling.qkv}
    return {**tensors, **biases}


def _dropped(found: _Found, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Tensors that take no part in the model's output."""
    reasons = {f"{found.prefix}embeddings.mask_token": "it stands for hidden patches, in masked pre-training alone"}
    for part in ("weight", "bias"):
        reasons[f"decoder.0.{part}"] = "it rebuilds pixels, in masked pre-training alone"
        if found.num_classes:
            reasons[f"{found.prefix}pooler.dense.{part}"] = "the classifier of transformers does not read the pooler"
    return {name: reason for name, reason in reasons.items() if name in tensors}


def _labels(found: _Found, said: Fields, assumed: list[str]) -> tuple[str, ...] | None:
    """The names of the K classes in order; None where there are none but placeholders."""
    K = found.num_classes
    labels = said.get("id2label", dict)
    if K == 0:
        return None
    if labels is None:
        assumed.append(f"its {K} classes have no names")
        return None
    ids = [str(i) for i in range(K)]
    if odd := [key for key in (*ids, *labels) if key not in labels or key not in ids]:
        does = "lacks" if odd[0] not in labels else "has"
        raise DataError(
            f"{said.where}: id2label {does} the id {odd[0]!r}; classifier.weight has {K} rows, so 0 to {K - 1} are right"
        )
    if not all(isinstance(label, str) for label in labels.values()):
        raise DataError(f"{said.where}: id2label must name every id with a text")
    if all(labels[key] == f"LABEL_{key}" for key in ids):
        assumed.append(f"its {K} classes have no names but placeholders (LABEL_0, …)")
        return None
    return tuple(labels[key] for key in ids)


def write(model: Model, target: Path) -> None:
    """Write a ViT to the folder `target` as transformers' `save_pretrained` would: a `ViTForImageClassification`, or a
    `ViTModel` where there is no head (with its pooler for the hidden layer; else load it with `add_pooling_layer=False`).

    Positions that are not a learned table are written as the table that they add up to. Raises `UsageError` that names what
    the format cannot hold.
    """
    if not isinstance(model, ViT):
        raise UsageError(f"{model.name} is not a plain ViT, and transformers' format holds no other; a ViT is right")
    _refuse(model)
    written, config = _with_table(model), model.config
    prefix = "vit." if model.num_classes else ""
    tensors = mapping.write(_rows(written.config, model.in_channels, model.num_classes, prefix, _ON_DISK), written)
    height, width = model.image_size
    description: dict[str, Any] = {
        "architectures": ["ViTForImageClassification" if model.num_classes else "ViTModel"],
        "model_type": "vit",
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_dim,
        "hidden_act": _WRITTEN_GELU[config.gelu],
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": config.norm_eps,
        "image_size": height if height == width else [height, width],
        "patch_size": config.patch_size,
        "num_channels": model.in_channels,
        "qkv_bias": True,
        "encoder_stride": config.patch_size,
        "pooler_act": "tanh",
        "dtype": _plain(next(iter(tensors.values())).dtype),
    }
    if model.num_classes:
        labels = model.labels or [f"LABEL_{i}" for i in range(model.num_classes)]
        if model.multi_label:
            description["problem_type"] = _SEVERAL
        description["id2label"] = {str(i): label for i, label in enumerate(labels)}
        description["label2id"] = {label: i for i, label in enumerate(labels)}
    with files.new_directory(target) as aside:
        folder.write_tensors(aside / folder.WEIGHTS, tensors, {"format": "pt"})
        files.write_json(aside / _CONFIG, description)
        files.write_json(aside / processor.NAME, processor.write(model.preprocessing))
    if model.preprocessing.resize == "crop" and height != width:
        say(
            f"{target}: transformers cuts {height}×{width} out of one short side, whatever the shape of the picture; its "
            "crop is the same as here for square pictures alone"
        )


def _refuse(model: ViT) -> None:
    """One sentence for what transformers' ViT has no place for."""
    config = model.config
    reasons = {
        f"a ResNet as its stem (family={model.family})": model.family != ViT.family,
        f"pool={config.pool}": config.pool != "token",
        f"position={config.position}": config.position == "relative",
        f"registers={config.registers}": config.registers > 0,
        "layer_scale": config.layer_scale,
        "hidden_head together with a classifier": config.hidden_head and model.num_classes > 0,
    }
    for reason, applies in reasons.items():
        if applies:
            raise UsageError(f"{model.name} has {reason}, which transformers' ViT cannot hold; another format is right")


def _with_table(model: ViT) -> ViT:
    """The same function with its positions as one learned table, in which the class token's row is zero."""
    if model.config.position == "1d":
        return model
    architecture = {**model.architecture, "position": "1d"}
    other = build_model(architecture, model.preprocessing)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("position.")}
    assert isinstance(other, ViT)
    assert model.class_token is not None
    token, patches = torch.zeros_like(model.class_token)[None], model.position.patches()
    if patches is None:
        patches = token.expand(math.prod(model.grid), -1)
    other.load_state_dict({**state, "position.table": torch.cat([token, patches.to(token)])}, assign=True)
    return other
