"""Model names: `ViT-B/16` → a model, and the list of what there is."""

import dataclasses
import fnmatch
import re
from typing import Any

import torch

from patchword.core import config
from patchword.core.errors import DataError, UsageError, nearest
from patchword.core.preprocessing import Preprocessing
from patchword.models.contract import Model
from patchword.models.vit import SIZES, ViT, ViTConfig

_VIT = re.compile(r"ViT-(\w+)/(\d+)")
# Other libraries spell sizes out; their names are answered with ours.
_SPELLED = {"tiny": "Ti", "small": "S", "base": "B", "large": "L", "huge": "H", "giant": "g", "gigantic": "G"}
_FOREIGN = re.compile(
    r"(?:.*/)?(?:vit|deit3?)[_-](?P<size>[a-z]+)[_-]patch(?P<patch>\d+).*|vit_(?P<tv_size>[blh])_(?P<tv_patch>\d+)",
    re.IGNORECASE,
)


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
    vit_config = parse_name(name, options)
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if in_channels not in (1, 3):
        raise UsageError(f"in_channels={in_channels} is not known; 1 (grey) or 3 (RGB) are right")
    if num_classes < 0:
        raise UsageError(f"num_classes={num_classes} must be 0 (features) or more")
    half = (0.5,) * in_channels
    preprocessing = Preprocessing(image_size=(height, width), mean=half, std=half)
    return ViT(name, vit_config, preprocessing, num_classes).reset()


def build_model(architecture: dict[str, Any], preprocessing: Preprocessing) -> Model:
    """The model that `Model.architecture` describes, without weights: its parameters are on the meta device."""
    fields = dict(architecture)
    family, name, num_classes = fields.pop("family", None), fields.pop("name", None), fields.pop("num_classes", None)
    if family != "vit" or not isinstance(name, str) or not isinstance(num_classes, int):
        raise DataError(
            f"unknown architecture {architecture!r}; this release knows family='vit' with a name and num_classes"
        )
    known = {field.name for field in dataclasses.fields(ViTConfig)}
    if set(fields) != known:
        raise DataError(f"architecture of {name}: fields {sorted(set(fields) ^ known)} are missing or unknown")
    with torch.device("meta"):
        return ViT(name, ViTConfig(**fields), preprocessing, num_classes)


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models with the usual patch sides, smallest first, that match a shell pattern such as `ViT-S/*`."""
    names = [f"ViT-{size}/{patch}" for size, row in SIZES.items() for patch in row.patches]
    return [name for name in names if fnmatch.fnmatchcase(name, pattern)]


def parse_name(name: str, options: dict[str, Any]) -> ViTConfig:
    """`ViT-{size}/{patch}` and options → the configuration."""
    match = _VIT.fullmatch(name)
    if match is None or match[1] not in SIZES:
        foreign = _FOREIGN.fullmatch(name)
        if foreign is not None:
            size = _SPELLED.get((foreign["size"] or "").lower()) or (foreign["tv_size"] or "").upper()
            patch = foreign["patch"] or foreign["tv_patch"]
            if size in SIZES:
                raise UsageError(f"{name!r} is another library's name; here it is 'ViT-{size}/{patch}'")
        raise UsageError(f"unknown model {name!r}; {nearest(name, list_models())}")
    size = SIZES[match[1]]._asdict()
    size.pop("patches")
    return config.build(ViTConfig, {"patch_size": int(match[2]), **size, **options}, "model")
