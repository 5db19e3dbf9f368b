"""Model names: `ViT-B/16` → a model, and the list of what there is."""

import dataclasses
import fnmatch
import functools
import re
from typing import Any, get_type_hints

import torch

from patchword.core import config
from patchword.core.errors import DataError, UsageError, nearest
from patchword.core.preprocessing import Preprocessing
from patchword.models.contract import Model
from patchword.models.early import EarlyConvViT
from patchword.models.efficientnet import EfficientNet
from patchword.models.hybrid import Hybrid
from patchword.models.resnet import ResNet
from patchword.models.vit import ViT

Family = type[ViT] | type[ResNet] | type[EfficientNet]
FAMILIES: dict[str, Family] = {family.family: family for family in (ViT, Hybrid, EarlyConvViT, ResNet, EfficientNet)}
_SIZES = {"tiny": "Ti", "small": "S", "base": "B", "large": "L", "huge": "H", "giant": "g", "gigantic": "G"}
_FOREIGN = (
    (r"(?:.*/)?(?:vit|deit3?)[_-](?P<size>[a-z]+)[_-]patch(?P<patch>\d+).*", "ViT-{size}/{patch}"),
    (r"vit_(?P<size>[blh])_(?P<patch>\d+)", "ViT-{size}/{patch}"),
    (r"vit_(?P<size>[a-z]+)_r(?P<stem>\d*)_s(?P<patch>\d+).*", "R{stem}+ViT-{size}/{patch}"),
    (r"(?:vit|deit3?)[_-]?(?P<size>tiny|small|base|large)", "ViT-{size}/16"),
    (r"resnetv2_(?P<stem>\d+)x(?P<patch>\d+)_bit.*", "BiT-R{stem}x{patch}"),
    (r"resnet[_-]?(?P<stem>\d+)(?:x1)?", "BiT-R{stem}x1"),
    (r"(?:.*/)?(?:tf_)?efficientnet[_-](?P<size>b\d|l2).*", "EfficientNet-{size}"),
)
"""What timm, transformers and torchvision call their models → what they are called here."""


def create_model(
    name: str,
    num_classes: int = 1000,
    image_size: int | tuple[int, int] = 224,
    in_channels: int = 3,
    **options: Any,
) -> Model:
    """A new model with initial weights as in the original code, in training mode, on torch's default device.

    `name` is one of `list_models()` or any other patch side of a listed size (`ViT-B/20`); `image_size` is a side or
    (height, width) in pixels, divided by the patch; `num_classes=0` gives features. `options` are fields of the family's
    configuration, such as `pool="gap"` or `position="sincos"`. Unknown names and fields raise `UsageError`.
    """
    family, model_config = parse_name(name, options)
    if isinstance(image_size, int):
        image_size = (image_size, image_size)
    if len(image_size) != 2 or not all(isinstance(side, int) for side in image_size):
        raise UsageError(f"image_size={image_size!r} is not a side or (height, width) in pixels")
    if in_channels not in (1, 3):
        raise UsageError(f"in_channels={in_channels} is not known; 1 (grey) or 3 (RGB) are right")
    if not isinstance(num_classes, int) or num_classes < 0:
        raise UsageError(f"num_classes={num_classes!r} must be a whole number, 0 for features or more")
    half = (0.5,) * in_channels
    preprocessing = Preprocessing(image_size=image_size, mean=half, std=half)
    return family(name, model_config, preprocessing, num_classes).reset()


def build_model(architecture: dict[str, Any], preprocessing: Preprocessing) -> Model:
    """The model that `Model.architecture` describes, without weights: its parameters are on the meta device."""
    fields = dict(architecture)
    family, name, num_classes = fields.pop("family", None), fields.pop("name", None), fields.pop("num_classes", None)
    if (
        not isinstance(family, str)
        or family not in FAMILIES
        or not isinstance(name, str)
        or type(num_classes) is not int
    ):
        known = ", ".join(FAMILIES)
        raise DataError(f"unknown architecture {architecture!r}; a family ({known}), a name and num_classes are right")
    kind = config_type(FAMILIES[family])
    required = {field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING}
    # A field that came later has the default that models had before it.
    if lacking := sorted(required - set(fields)):
        raise DataError(f"architecture of {name}: {lacking[0]} is missing")
    try:
        model_config = config.build(kind, fields, "model")
    except UsageError as error:
        raise DataError(f"architecture of {name}: {error}") from error
    with torch.device("meta"):
        return FAMILIES[family](name, model_config, preprocessing, num_classes)


def list_models(pattern: str = "*") -> list[str]:
    """Names of the usual models, family by family, smallest first, that match a shell pattern such as `ViT-S/*`."""
    names = [name for family in FAMILIES.values() for name in family.names()]
    return [name for name in names if fnmatch.fnmatchcase(name, pattern)]


def parse_name(name: str, options: dict[str, Any]) -> tuple[Family, Any]:
    """A name such as `ViT-{size}/{patch}` and options → the family and the configuration."""
    for family in FAMILIES.values():
        fields = family.parse(name)
        if fields is not None:
            return family, config.build(config_type(family), {**fields, **options}, "model")
    for pattern, ours in _FOREIGN:
        if match := re.fullmatch(pattern, name, re.IGNORECASE):
            parts = {"stem": "", "size": "", "patch": ""} | match.groupdict()
            parts["size"] = _SIZES.get(parts["size"].lower(), parts["size"].upper())
            if any(family.parse(ours.format(**parts)) for family in FAMILIES.values()):
                raise UsageError(f"{name!r} is another library's name; here it is {ours.format(**parts)!r}")
    raise UsageError(f"unknown model {name!r}; {nearest(name, list_models())}")


def name_of(family: Family, model_config: Any) -> str:
    """The name of a model of this configuration: one whose name gives the same sizes, else one that says `custom`."""
    fields = dataclasses.asdict(model_config)
    for name in family.likely_names(fields):
        parsed = family.parse(name)
        if parsed is not None and all(fields[key] == value for key, value in parsed.items()):
            return name
    return f"{family.family}-custom"


@functools.cache  # a millisecond each, and every recipe asks
def config_type(family: Family) -> type:
    """The dataclass that a family's `config` is."""
    return get_type_hints(family)["config"]
