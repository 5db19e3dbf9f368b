"""From pixels of any size to what a model receives: one object that travels with the weights."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from patchword.core import config
from patchword.core.errors import DataError, UsageError, nearest
from patchword.core.picture import to_pixels

if TYPE_CHECKING:
    import torch

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a picture becomes a model's input at evaluation, and how pixels are normalised always.

    `resize="crop"` scales the short side to `image_size / crop_fraction` and cuts out the middle; `"stretch"` scales both
    sides to `image_size`, as the paper's fine-tuning does. Resizing is Pillow's, with antialiasing.
    """

    image_size: tuple[int, int] = (224, 224)
    """Height and width of the model's input, in pixels."""
    resize: Literal["crop", "stretch"] = "crop"
    crop_fraction: float = 0.875
    """The share of the scaled short side that the crop keeps (the field's usual 224 of 256)."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Per channel, for values in 0…1; the paper's code maps 0…255 to −1…1."""
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise UsageError(
                f"preprocessing has {len(self.mean)} means and {len(self.std)} stds; 1 or 3 of both are right"
            )
        if min(self.image_size) < 1:
            raise UsageError(f"image_size={self.image_size} must be at least 1×1")
        if not 0 < self.crop_fraction <= 1:
            raise UsageError(f"preprocessing.crop_fraction={self.crop_fraction} must lie in 0…1, above 0")
        if min(self.std) <= 0:
            raise UsageError(f"preprocessing.std={self.std} must be greater than 0")
        for field, choices in (("resize", ("crop", "stretch")), ("interpolation", tuple(_FILTERS))):
            if (value := getattr(self, field)) not in choices:
                raise UsageError(f"preprocessing.{field}={value!r} is not known; {nearest(str(value), choices)}")

    @property
    def channels(self) -> int:
        """1 for grey pictures, 3 for RGB."""
        return len(self.mean)

    def fit(self, pixels: np.ndarray) -> np.ndarray:
        """Resize and crop one picture, uint8 h×w×C, to uint8 H×W×C."""
        height, width = self.image_size
        if pixels.shape[:2] == (height, width) and (self.resize == "stretch" or self.crop_fraction == 1):
            return pixels
        picture = Image.fromarray(pixels[..., 0] if self.channels == 1 else pixels)
        resample = _FILTERS[self.interpolation]
        if self.resize == "stretch":
            picture = picture.resize((width, height), resample)
        else:
            # The middle box of the source with the target's shape, resized in one pass: the crop is never materialised.
            scale = min(picture.width / width, picture.height / height) * self.crop_fraction
            box_width, box_height = scale * width, scale * height
            left, top = (picture.width - box_width) / 2, (picture.height - box_height) / 2
            picture = picture.resize((width, height), resample, box=(left, top, left + box_width, top + box_height))
        return np.asarray(picture).reshape(height, width, self.channels)

    def normalize(self, images: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """uint8 B×C×H×W → float B×C×H×W, (value / 255 − mean) / std."""
        import torch

        dtype = dtype or torch.get_default_dtype()
        mean, std = torch.tensor(self.mean, dtype=dtype), torch.tensor(self.std, dtype=dtype)
        normalized = torch.empty(images.shape, dtype=dtype, device=images.device)
        # One multiply-add per pixel, −mean/std + value · 1/(255 std), and no float copy of the pixels before it.
        for channel, (offset, scale) in enumerate(zip(-mean / std, (1 / (255 * std)).tolist(), strict=True)):
            torch.add(offset, images[:, channel], alpha=scale, out=normalized[:, channel])
        return normalized

    def denormalize(self, images: torch.Tensor) -> torch.Tensor:
        """What `normalize` gave, float B×C×H×W → the values of the pixels, 0…1."""
        mean, std = images.new_tensor(self.mean), images.new_tensor(self.std)
        return images * std[:, None, None] + mean[:, None, None]

    def __call__(self, pictures: Image.Image | list[Image.Image]) -> torch.Tensor:
        """A picture or a list of them → a normalised batch, float B×C×H×W."""
        import torch

        several = pictures if isinstance(pictures, list) else [pictures]
        if not several:
            raise UsageError("no picture given: preprocess takes a Pillow picture or a list of at least one")
        fitted = np.stack([self.fit(to_pixels(picture, self.channels)) for picture in several])
        return self.normalize(torch.from_numpy(fitted).permute(0, 3, 1, 2))

    def with_image_size(self, image_size: tuple[int, int]) -> Preprocessing:
        """The same preprocessing for another input size, H×W."""
        return dataclasses.replace(self, image_size=image_size)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `model.json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """The inverse of `to_dict`; unknown or missing fields are errors."""
        known = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, dict) or set(values) != known:
            raise DataError(f"preprocessing must have exactly the fields {sorted(known)}, not {sorted(values)}")
        try:
            return config.build(cls, values, "preprocessing")
        except UsageError as error:
            raise DataError(str(error)) from error
