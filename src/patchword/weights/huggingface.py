"""transformers' ViT (`ViTModel`, `ViTForImageClassification`) ↔ ours: names of tensors and the fields of `config.json`.

Letters: D width, C channels, P patch side, N patches, K classes.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from patchword.core import files
from patchword.core.errors import DataError, UsageError
from patchword.core.progress import say
from patchword.models.contract import Model
from patchword.models.layers import Gelu
from patchword.models.vit import ViT
from patchword.weights import folder, mapping, processor
from patchword.weights.mapping import Foreign, Hints, Row, by, same, shape_of, shaped, stacked, type_of
from patchword.weights.reading import Fields, Reading, usual_heads
from patchword.weights.source import CONFIG, Source

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
_DEFAULT = "as transformers has it where nothing is said"
_RELATIVES = (
    (r"distillation_token", "DeiT's distillation token"),
    (r"register_tokens", "DINOv2's registers"),
    (r"layer_scale1\.", "DINOv2's layer scale"),
    (r"lambda_1", "BEiT's layer scale"),
    (r"relative_position_bias_table", "the relative positions of BEiT or Swin"),
    (r"decoder_embed\.", "ViT-MAE's decoder"),
    (r"detection_tokens", "YOLOS's detection tokens"),
)
"""Parts of the ViT's relatives, by the names of their tensors."""


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


def _rows(model: ViT, prefix: str, spelling: _Spelling) -> list[Row]:
    """The table of names for one model; `prefix` is what stands before all names but the classifier's."""
    config, C = model.config, model.in_channels
    D, P = config.embed_dim, config.patch_size
    table = [
        shaped("class_token", f"{prefix}embeddings.cls_token", (D,), (1, 1, D)),
        shaped("position.table", f"{prefix}embeddings.position_embeddings", (-1, D), (1, -1, D)),
        shaped("patch_embed.weight", f"{prefix}{_PROJECTION}", (D, C * P * P), (D, C, P, P)),
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
    if model.num_classes:
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
    reading = Reading(str(source.where), dict(source.tensors), hints)
    said = Fields(source.description, f"{source.where}: {CONFIG}")
    kind = said.get("model_type")
    if said.values and kind != "vit":
        raise DataError(f"{said.where} says model_type {kind!r}, whose architecture is not the ViT's; 'vit' is right")
    reading.refuse_parts(_RELATIVES)
    reading.widen()
    found = _measure(reading)
    _compare(found, said)
    fields = _fields(found, said, reading)
    image_size = _image_size(found, said, reading)
    preprocessing = processor.read(source.preprocessor, reading.where, image_size, found.channels, reading.assumed)
    model = reading.build(ViT, fields, found.num_classes, preprocessing)
    model.labels = _labels(found, said, reading.assumed)
    model.multi_label = source.description.get("problem_type") == _SEVERAL
    reading.dropped = _dropped(found, reading.tensors)
    if not found.qkv_bias:
        reading.tensors = _with_biases(found, reading.tensors)
    return reading.fill(model, _rows(model, found.prefix, found.spelling))


@dataclasses.dataclass(frozen=True)
class _Found:
    """What the tensors say of the model."""

    prefix: str
    spelling: _Spelling
    embed_dim: int
    channels: int
    patch_size: int
    depth: int
    mlp_dim: int
    num_classes: int
    """0 without a classifier."""
    qkv_bias: bool
    pooler: bool

    def layer(self, name: str, i: int = 0) -> str:
        """The full name of a tensor of layer `i`."""
        return f"{self.prefix}{self.spelling.layers}.{i}.{name}"


def _measure(reading: Reading) -> _Found:
    """Sizes as the tensors have them; those which a reshape could hide are checked here, the others by `mapping.read`."""
    tensors, where = reading.tensors, reading.where
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
    D, C, P, other = reading.shape(prefix + _PROJECTION, 4)
    if other != P:
        raise DataError(f"{where}: {prefix}{_PROJECTION} is {D}×{C}×{P}×{other}; a square patch (D×C×P×P) is right")
    reading.check_channels(C)
    token = f"{prefix}embeddings.cls_token"
    if reading.shape(token, 3) != (1, 1, D):
        raise DataError(f"{where}: {token} is {shape_of(tensors[token])}; 1×1×{D} is right")
    first, biases = f"{prefix}{spelling.layers}.0.", tuple(f".{name}.bias" for name in spelling.qkv)
    return _Found(
        prefix=prefix,
        spelling=spelling,
        embed_dim=D,
        channels=C,
        patch_size=P,
        depth=reading.count(f"{prefix}{spelling.layers}."),
        mlp_dim=reading.shape(f"{first}{spelling.fc1}.weight", 2)[0],
        num_classes=reading.shape("classifier.weight", 2)[0] if "classifier.weight" in tensors else 0,
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
        raise DataError(f"{said.where} says patch_size {by(patch)}, and {projection} has {P}×{P}")
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


def _fields(found: _Found, said: Fields, reading: Reading) -> dict[str, Any]:
    """Our configuration: sizes from the tensors, the rest from `config.json`, else from the caller, else the defaults."""
    D, act = found.embed_dim, said.get("hidden_act", str)
    if act is not None and act not in _GELUS:
        raise DataError(f"{said.where} says hidden_act {act!r}; a GELU is right ({', '.join(_GELUS)})")
    usual = (_DEFAULT_HEADS, _DEFAULT) if said.values else usual_heads(D)
    fields = {
        "patch_size": found.patch_size,
        "embed_dim": D,
        "depth": found.depth,
        "mlp_dim": found.mlp_dim,
        "num_heads": reading.num_heads(said.get("num_attention_heads", int), D, usual),
        "position": reading.says("position", "1d"),
        "hidden_head": found.pooler and not found.num_classes,
        "gelu": reading.settle("gelu", _GELUS.get(act or ""), _GELUS[_DEFAULT_GELU], _DEFAULT),
        "norm_eps": reading.settle("norm_eps", said.number("layer_norm_eps"), _DEFAULT_EPS, _DEFAULT),
    }
    if fields["hidden_head"]:
        _check_pooler(found, said, reading.assumed)
    return fields


def _check_pooler(found: _Found, said: Fields, assumed: list[str]) -> None:
    """Our hidden layer is as wide as the model and has tanh behind it."""
    width, act = said.get("pooler_output_size", int, found.embed_dim), said.get("pooler_act", str, "tanh")
    if width != found.embed_dim:
        raise DataError(f"{said.where} says pooler_output_size {width}; the hidden size, {found.embed_dim}, is right")
    if act != "tanh":
        raise DataError(f"{said.where} says pooler_act {act!r}; 'tanh' is right")
    if not said.values:
        assumed.append("tanh is taken for the pooler, for want of a word in the file")


def _image_size(found: _Found, said: Fields, reading: Reading) -> tuple[int, int]:
    """H×W: as `config.json` says, else as the caller, where the number of patches fits it, else a square."""
    P, told = found.patch_size, said.pair("image_size")
    if told is not None and any(side % P for side in told):
        raise DataError(f"{said.where} says image_size {by(told)}, which patches of {P}×{P} do not divide")
    table = f"{found.prefix}embeddings.position_embeddings"
    size, _ = reading.grid_size(table, P, found.embed_dim, (1,), told)
    return size


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
    config = model.config
    reasons = {
        f"a ResNet as its stem (family={model.family})": model.family != ViT.family,
        f"pool={config.pool}": config.pool != "token",
        f"position={config.position}": config.position in ("relative", "rope"),
        f"registers={config.registers}": config.registers > 0,
        "layer_scale": config.layer_scale,
        "hidden_head together with a classifier": config.hidden_head and model.num_classes > 0,
    }
    mapping.refuse("transformers'", model, reasons)
    written = mapping.tabled(model)
    prefix = "vit." if model.num_classes else ""
    tensors = mapping.write(_rows(written, prefix, _ON_DISK), written)
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
        "dtype": type_of(next(iter(tensors.values()))),
    }
    if model.num_classes:
        labels = model.labels or [f"LABEL_{i}" for i in range(model.num_classes)]
        if model.multi_label:
            description["problem_type"] = _SEVERAL
        description["id2label"] = {str(i): label for i, label in enumerate(labels)}
        description["label2id"] = {label: i for i, label in enumerate(labels)}
    with files.new_directory(target) as aside:
        folder.write_tensors(aside / folder.WEIGHTS, tensors, {"format": "pt"})
        files.write_json(aside / CONFIG, description)
        files.write_json(aside / processor.NAME, processor.write(model.preprocessing))
    if model.preprocessing.resize == "crop" and height != width:
        say(
            f"{target}: transformers cuts {height}×{width} out of one short side, whatever the shape of the picture; its "
            "crop is the same as here for square pictures alone"
        )
