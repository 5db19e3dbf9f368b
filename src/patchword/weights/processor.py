"""transformers' image processors (`preprocessor_config.json`) ↔ our `Preprocessing`.

Theirs resize to a size, or to the length of the shortest edge, then cut out the middle; ours are the two usual ways of that.
"""

import math
from collections.abc import Mapping
from typing import Any

from patchword.core.errors import DataError
from patchword.core.preprocessing import Preprocessing
from patchword.weights.mapping import by
from patchword.weights.reading import Fields

NAME = "preprocessor_config.json"
# Pillow's numbers for filters, as `resample` counts them.
_FILTERS = {2: "bilinear", 3: "bicubic"}
# Whose fields mean what `read` takes them for.
_KINDS = ("ViTImageProcessor", "ViTImageProcessorFast", "ViTFeatureExtractor", "CLIPImageProcessor")


def read(
    values: Mapping[str, Any], where: str, image_size: tuple[int, int], channels: int, assumed: list[str]
) -> Preprocessing:
    """What the processor with these fields does (none: ViTImageProcessor's default), at the model's H×W.

    A sentence is added to `assumed` for each thing that ours does in another way. `DataError` names a field out of range.
    """
    said = Fields(values, f"{where}: {NAME}")
    half = (0.5,) * channels
    if not said.values:
        assumed.append(
            f"no {NAME}: pictures are stretched to {by(image_size)} and their values mapped to −1…1, "
            "as ViTImageProcessor does"
        )
        return Preprocessing(image_size=image_size, resize="stretch", mean=half, std=half)
    kind = said.get("image_processor_type", str) or said.get("feature_extractor_type", str, _KINDS[0])
    if kind not in _KINDS:
        assumed.append(f"{NAME} is for {kind}; what it says is taken as ViTImageProcessor would")
    fitted = _fit(said, image_size, assumed)
    number = said.get("resample", int, 2)
    if number not in _FILTERS:
        assumed.append(f"{NAME} says resample {number}, which is neither bilinear (2) nor bicubic (3): bicubic")
    # Theirs is (v·f − m) / s and ours (v/255 − mean) / std for values v of 0…255; f is 1/255 but for rarities.
    factor = 255 * (said.number("rescale_factor", 1 / 255) or 0) if said.get("do_rescale", bool, True) else 255
    factor = 1.0 if abs(factor - 1) < 1e-12 else factor
    normalizes = said.get("do_normalize", bool, True)
    mean = _channelwise(said, "image_mean", half, channels) if normalizes else (0.0,) * channels
    std = _channelwise(said, "image_std", half, channels) if normalizes else (1.0,) * channels
    if factor == 0 or min(std) <= 0:
        raise DataError(f"{said.where}: image_std and rescale_factor must be above 0")
    return Preprocessing(
        image_size=image_size,
        interpolation="bilinear" if number == 2 else "bicubic",
        mean=tuple(value / factor for value in mean),
        std=tuple(value / factor for value in std),
        **fitted,
    )


def write(preprocessing: Preprocessing) -> dict[str, Any]:
    """The fields of a processor that does the same, up to rounding.

    Stretching is ViTImageProcessor's way; short side and crop are CLIPImageProcessor's, which does both in every release of
    transformers. `crop_pct`, which they leave alone, keeps what rounding the short side loses.
    """
    height, width = preprocessing.image_size
    fields: dict[str, Any] = {
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": preprocessing.channels == 3,
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": {name: number for number, name in _FILTERS.items()}[preprocessing.interpolation],
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }
    if preprocessing.resize == "crop":
        fields |= {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": round(max(height, width) / preprocessing.crop_fraction)},
            "do_center_crop": True,
            "crop_size": {"height": height, "width": width},
            "crop_pct": preprocessing.crop_fraction,
        }
    return fields


def _fit(said: Fields, image_size: tuple[int, int], assumed: list[str]) -> dict[str, Any]:
    """`resize` and `crop_fraction` of the way from a picture to the model's size."""

    def but(sentence: str) -> None:
        assumed.append(f"{NAME} {sentence}")

    size, crop = _size(said, "size"), None
    if said.get("do_center_crop", bool, False):
        crop = _size(said, "crop_size")
        if not isinstance(crop, tuple):
            raise DataError(f"{said.where}: do_center_crop needs a crop_size with height and width")
    if said.get("do_pad", bool, False):
        but("pads pictures, which is not done here")
    if not said.get("do_resize", bool, True):
        but(f"does not resize pictures; here those of another size are brought to {by(image_size)}")
        size = None if crop else image_size
    made = crop or size
    if isinstance(made, tuple) and made != image_size:
        but(f"makes images of {by(made)}, which the model does not take; {by(image_size)} are made")

    if isinstance(size, tuple) and crop in (None, size):
        return {"resize": "stretch"}
    if size is None and crop is None:
        but(f"says no size with height and width or shortest_edge; pictures are stretched to {by(image_size)}")
        return {"resize": "stretch"}
    if crop is None:
        but(f"keeps the shape of a picture; here its middle is cut out, {by(image_size)}")
        return {"resize": "crop", "crop_fraction": 1.0}
    if size is None:
        return {"resize": "crop", "crop_fraction": 1.0}
    if isinstance(size, tuple):
        but(f"stretches pictures to {by(size)} before the crop; here they keep their shape")
        fraction = max(crop[0] / size[0], crop[1] / size[1])
    else:
        if crop[0] != crop[1]:
            but(f"cuts {by(crop)} out of a short side of {size}; here the crop is as large as the picture allows")
        fraction = max(crop) / size
        # The very number, where the writer of the file left it beside the rounded side.
        exact = said.number("crop_pct")
        if exact and exact <= 1 and round(max(crop) / exact) == size:
            fraction = exact
    if fraction > 1:
        but("pads pictures up to the crop; here they are resized to it")
    return {"resize": "crop", "crop_fraction": min(1.0, fraction)}


def _size(said: Fields, name: str) -> tuple[int, int] | int | None:
    """(height, width), the length of the shortest edge, or None for anything else; a bare number is a square's side."""
    value = said.values.get(name)
    if not isinstance(value, dict):
        return said.pair(name)
    sides = Fields({key: each for key, each in value.items() if each is not None}, f"{said.where}: {name}")
    lengths = {key: sides.get(key, int) for key in ("height", "width", "shortest_edge")}
    for key, length in lengths.items():
        if length is not None and length < 1:
            raise DataError(f"{sides.where}: {key}={length} is out of range; whole numbers from 1 are right")
    if set(sides.values) == {"height", "width"}:
        return lengths["height"], lengths["width"]
    return lengths["shortest_edge"] if set(sides.values) == {"shortest_edge"} else None


def _channelwise(said: Fields, name: str, default: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """One number for every channel; one number alone, or several equal ones, serve any number of channels."""
    value = said.get(name, float | tuple[float, ...], default)
    values = (value,) if isinstance(value, float) else value
    if len(set(values)) == 1:
        values = values[:1] * channels
    if len(values) != channels or not all(math.isfinite(each) for each in values):
        raise DataError(
            f"{said.where}: {name}={value} is out of range; a number for each of {channels} channels is right"
        )
    return values
