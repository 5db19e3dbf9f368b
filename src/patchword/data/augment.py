"""How training pictures are varied: the settings in one place, and the geometry of crop, shift and flip.

All chance is keyed by (seed, epoch, picture), never by order, so that a picture looks the same in its epoch whatever
batch, process or restarted run it appears in.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import numpy as np

from patchword.core.errors import UsageError
from patchword.core.preprocessing import Preprocessing
from patchword.data.decoding.part import Part
from patchword.data.decoding.resize import resized
from patchword.data.plan import uniform

if TYPE_CHECKING:
    import torch


class Partial(Protocol):
    """A picture that gives its parts without being decoded whole, as `part.Undecoded` does."""

    @property
    def shape(self) -> tuple[int, ...]:
        """h, w, C."""
        ...

    def part(self, box: tuple[int, int, int, int], least: tuple[int, int]) -> Part: ...


Pictures = Sequence[np.ndarray] | np.ndarray
"""B pictures, uint8 h×w×C of any sizes; where all have one size, they may be one array B×h×w×C."""

CROPS = ("auto", "random-resized", "shift", "resize")
FEW_LOOKS = 5
"""Training that sees each picture less often than this has no time to learn that a picture moved is the same picture."""
CROP_ASPECT = (3 / 4, 4 / 3)
"""Width : height of a random-resized crop, as in the Inception papers."""

AUGREG_LEVELS: dict[str, dict[str, Any]] = {
    # AugReg (arXiv:2106.10270) as in big_vision, `configs/vit_i21k.py`. RandAugment of magnitude 0 is not nothing:
    # it inverts, equalizes, darkens and greys.
    "none": {"randaugment_layers": 0, "randaugment_magnitude": 0.0, "mixup": 0.0},
    "light1": {"randaugment_layers": 2, "randaugment_magnitude": 0.0, "mixup": 0.0},
    "light2": {"randaugment_layers": 2, "randaugment_magnitude": 10.0, "mixup": 0.2},
    "medium1": {"randaugment_layers": 2, "randaugment_magnitude": 15.0, "mixup": 0.2},
    "medium2": {"randaugment_layers": 2, "randaugment_magnitude": 15.0, "mixup": 0.5},
    "strong1": {"randaugment_layers": 2, "randaugment_magnitude": 20.0, "mixup": 0.5},
    "strong2": {"randaugment_layers": 2, "randaugment_magnitude": 20.0, "mixup": 0.8},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augment:
    """The random changes that training pictures undergo, in the order in which they are made."""

    crop: Literal["auto", "random-resized", "shift", "resize"] = "random-resized"
    """`random-resized`: a random part, scaled to the model's size (Inception's crop). `resize`: the picture as evaluation
    sees it. `shift`: that, moved by a few pixels (the usual crop for CIFAR). `auto`: `resize` for training that sees each
    picture fewer than five times, else `shift` by an eighth of the side for small pictures of one shape, which have no
    margin to lose, else `random-resized`."""
    crop_area: tuple[float, float] = (0.05, 1.0)
    """The least and the greatest share of the picture's area that a random-resized crop keeps."""
    shift_pixels: int = 4
    """The farthest that `shift` moves a picture, each way; its own mirror image comes into view. `crop=auto` chooses it."""
    flip: bool = True
    """Mirror every picture, left to right, every second time that it comes: which of the two comes first is drawn. Two looks at a
    picture then see both sides, which half of the pairs of independent draws do not (arXiv 2404.00498, section 3.6)."""
    randaugment_layers: int = 0
    """Operations of RandAugment for each picture; 0 is none."""
    randaugment_magnitude: float = 0.0
    """The strength of those operations, 0…30, in the scale of the original code."""
    erasing: float = 0.0
    """The share of pictures in which a random rectangle is covered with the mean colour."""
    mixup: float = 0.0
    """MixUp's λ is drawn from Beta(mixup, mixup), once a batch; 0 is no MixUp."""
    cutmix: float = 0.0
    """CutMix's λ is drawn from Beta(cutmix, cutmix), once a batch; 0 is no CutMix. With both, a coin decides."""

    def __post_init__(self) -> None:
        if self.crop not in CROPS:
            raise UsageError(f"unknown crop {self.crop!r} in augment; known: {', '.join(CROPS)}")
        area = self.crop_area
        right = {  # written so that NaN is wrong, too
            "crop_area": (len(area) == 2 and 0 < area[0] <= area[1] <= 1, "two shares, 0 < least ≤ greatest ≤ 1"),
            "shift_pixels": (self.shift_pixels >= 0, "0 or more pixels"),
            "randaugment_layers": (self.randaugment_layers >= 0, "0 or more"),
            "randaugment_magnitude": (0 <= self.randaugment_magnitude <= 30, "0…30"),
            "erasing": (0 <= self.erasing <= 1, "a probability, 0…1"),
            "mixup": (0 <= self.mixup < float("inf"), "0 (none) or the parameter of a Beta distribution"),
            "cutmix": (0 <= self.cutmix < float("inf"), "0 (none) or the parameter of a Beta distribution"),
        }
        for field, (fine, rule) in right.items():
            if not fine:
                raise UsageError(f"augment.{field} is {getattr(self, field)}; right is {rule}")

    def settle(self, small: bool, side: int, looks: float) -> Augment:
        """The same with `auto` decided, for training that sees each picture `looks` times.

        `small`: pictures of one small shape, seen whole, `side` pixels at their shorter side.
        """
        if self.crop != "auto":
            return self
        if looks < FEW_LOOKS:
            return dataclasses.replace(self, crop="resize")
        if not small:
            return dataclasses.replace(self, crop="random-resized")
        return dataclasses.replace(self, crop="shift", shift_pixels=max(1, min(4, side // 8)))

    @property
    def takes_parts(self) -> bool:
        """Whether pictures need not be decoded whole: the crop says which part of each is looked at."""
        return self.crop == "random-resized"

    def __call__(
        self,
        pictures: Pictures | Sequence[np.ndarray | Partial],
        preprocessing: Preprocessing,
        *,
        seed: int,
        epochs: np.ndarray,
        ids: np.ndarray,
    ) -> torch.Tensor:
        """Crop, flip and RandAugment: B pictures → uint8 B×C×H×W at the model's size.

        `epochs` and `ids`, int64 of length B, say which draws each picture gets. Where `takes_parts`, a picture may be
        `Partial`; what its `part` raises, this raises.
        """
        import torch

        from patchword.data.randaugment import rand_augment

        if self.takes_parts:
            draws = uniform(seed, "crop", epochs, ids, count=40)
            images = torch.from_numpy(_crop(pictures, self.crop_area, preprocessing, draws))
        else:
            pixels = self.shift_pixels if self.crop == "shift" else 0
            shifts = (uniform(seed, "shift", epochs, ids, count=2) * (2 * pixels + 1)).astype(np.int64)
            fitted = fit_all(cast(Pictures, pictures), preprocessing)
            images = torch.from_numpy(_shift(fitted, shifts, pixels))
        if self.flip:
            first = uniform(seed, "flip", 0, ids).reshape(-1) < 0.5
            for index in np.flatnonzero(first ^ (epochs % 2 == 1)).tolist():
                images[index] = images[index].flip(2)
        return rand_augment(
            images,
            layers=self.randaugment_layers,
            magnitude=self.randaugment_magnitude,
            seed=seed,
            epochs=epochs,
            ids=ids,
        )

    def source_side(self, preprocessing: Preprocessing) -> int:
        """The short side, in pixels, from which on a larger picture that is seen whole gains next to nothing."""
        return math.ceil(2 * max(preprocessing.image_size) / preprocessing.crop_fraction)


def fit_all(pictures: Pictures, preprocessing: Preprocessing) -> np.ndarray:
    """Every picture as evaluation sees it: uint8 B×H×W×C, maybe the same memory."""
    first = pictures[0]
    if isinstance(pictures, np.ndarray) and preprocessing.fit(first) is first:
        return pictures
    fitted = np.empty((len(pictures), *preprocessing.image_size, preprocessing.channels), np.uint8)
    for place, picture in zip(fitted, pictures, strict=True):
        place[:] = preprocessing.fit(picture)
    return fitted


def sample_boxes(
    heights: np.ndarray, widths: np.ndarray, area: tuple[float, float], aspect: tuple[float, float], draws: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Random rectangles of whole pixels inside pictures of the given sizes (B), by up to `draws.shape[1]` attempts.

    `area` bounds the share of the picture's area (uniform), `aspect` width : height (log-uniform), and an attempt that
    does not fit is followed by the next, as in torchvision's RandomResizedCrop and RandomErasing. `draws` is
    B×attempts×4 in 0…1. Returns the boxes, int64 B×4 (top, left, bottom, right), and which of them fit, bool B.
    """
    target = (heights * widths)[:, None] * (area[0] + (area[1] - area[0]) * draws[..., 0])
    ratio = aspect[0] * (aspect[1] / aspect[0]) ** draws[..., 1]
    tall, wide = np.rint(np.sqrt(target / ratio)), np.rint(np.sqrt(target * ratio))
    fits = (tall >= 1) & (wide >= 1) & (tall <= heights[:, None]) & (wide <= widths[:, None])
    first = (np.arange(len(fits)), fits.argmax(axis=1))
    tall, wide = tall[first], wide[first]
    top = np.floor(draws[..., 2][first] * (heights - tall + 1))
    left = np.floor(draws[..., 3][first] * (widths - wide + 1))
    return np.stack([top, left, top + tall, left + wide], axis=1).astype(np.int64), np.any(fits, axis=1)


def _crop(
    pictures: Sequence[np.ndarray | Partial] | np.ndarray,
    area: tuple[float, float],
    preprocessing: Preprocessing,
    draws: np.ndarray,
) -> np.ndarray:
    """A random part of each picture, scaled to the model's size: uint8 B×C×H×W. `draws` is B×40."""
    heights, widths = np.array([picture.shape[:2] for picture in pictures]).reshape(-1, 2).T
    boxes, found = sample_boxes(heights, widths, area, CROP_ASPECT, draws.reshape(len(pictures), -1, 4))
    # No attempt fits only in a very long or a tiny picture: then the middle, as large as the aspect allows.
    tall = np.minimum(heights, np.maximum(1, np.rint(widths / CROP_ASPECT[0])))
    wide = np.minimum(widths, np.maximum(1, np.rint(heights * CROP_ASPECT[1])))
    top, left = (heights - tall) // 2, (widths - wide) // 2
    middle = np.stack([top, left, top + tall, left + wide], axis=1).astype(np.int64)
    size = preprocessing.image_size
    cropped = np.empty((len(pictures), preprocessing.channels, *size), np.uint8)
    for place, picture, (y, x, bottom, right) in zip(
        cropped, pictures, np.where(found[:, None], boxes, middle).tolist(), strict=True
    ):
        if isinstance(picture, np.ndarray):
            part = Part(picture[y:bottom, x:right], (0, 0, bottom - y, right - x))
        else:
            part = picture.part((y, x, bottom, right), size)
        place[:] = resized(part, size, preprocessing.interpolation)
    return cropped


def _shift(images: np.ndarray, shifts: np.ndarray, pixels: int) -> np.ndarray:
    """The windows at `shifts` (B×2, 0…2·pixels) of pictures padded with mirror images: uint8 B×H×W×C → B×C×H×W, a copy."""
    padded = np.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)), "reflect") if pixels else images
    windows = np.lib.stride_tricks.sliding_window_view(padded, images.shape[1:3], axis=(1, 2))
    return np.ascontiguousarray(windows[np.arange(len(images)), shifts[:, 0], shifts[:, 1]])
