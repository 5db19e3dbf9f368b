"""RandAugment on batches of uint8 pictures: every picture draws its own operations, alike draws are done together.

The sixteen operations, their order and the meaning of the magnitude are those of the original code, which AugReg and
"Better plain ViT baselines" used (google-research/big_vision, `pp/autoaugment.py`, forked from tensorflow/tpu,
`efficientnet/autoaugment.py`), with two differences. Distances that are pixels of a 224-pixel picture there are the same
share of the side here, so that they mean the same at any size. And Contrast pivots on the picture's mean grey, as
Pillow's does and as the original says it does; its code pivots on (number of pixels / 256), a slip.
Arithmetic follows Pillow's, bit for bit, wherever Pillow has the operation.

Papers: RandAugment, arXiv:1909.13719; AugReg, arXiv:2106.10270.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from patchword.data.plan import uniform

GREY = 128  # what comes into view from outside the picture, and what cutout leaves


# Operations on single pixels: B×C×H×W uint8 → the same. Every picture of the batch gets the same argument.


def invert(images: Tensor) -> Tensor:
    """Every value v becomes 255 − v."""
    return 255 - images


def posterize(images: Tensor, bits: int) -> Tensor:
    """Keep the highest `bits` (1…8) of every value."""
    return images & (256 - (1 << (8 - bits)))


def solarize(images: Tensor, threshold: int) -> Tensor:
    """Invert the values at or above `threshold`; from 256 on, none."""
    # 255 − v is v with all bits turned; torch.where on uint8 takes three times as long.
    return (images >= threshold).to(torch.uint8).mul_(255).bitwise_xor_(images) if threshold < 256 else images


def solarize_add(images: Tensor, addition: int, threshold: int = 128) -> Tensor:
    """Add `addition` (at least 0) to the values below `threshold`, up to 255."""
    return (255 - images).clamp_(max=min(addition, 255)).mul_(images < threshold).add_(images)


def brightness(images: Tensor, factor: float) -> Tensor:
    """Blend with black: 0 is black, 1 the picture, more is brighter."""
    return _blend(0.0, images, factor)


# Operations that look at the whole picture.


def contrast(images: Tensor, factor: float) -> Tensor:
    """Blend with the mean grey of each picture, rounded to a whole value: 0 is that grey, 1 the picture."""
    # An integer sum, since a float one would depend on how many threads and pictures there are.
    grey = _to_grey(images)
    mean = grey.sum(dim=(1, 2, 3), keepdim=True, dtype=torch.int64).double() / grey[0].numel()
    return _blend((mean + 0.5).floor().float(), images, factor)


def color(images: Tensor, factor: float) -> Tensor:
    """Blend with the grey version of each picture: 0 is grey, 1 the picture; a grey picture stays as it is."""
    return images if images.shape[1] == 1 else _blend(_to_grey(images).float(), images, factor)


def sharpness(images: Tensor, factor: float) -> Tensor:
    """Blend with a smoothed version, 3×3 with weights 1/13 and 5/13 in the middle: 0 is smooth, 1 the picture."""
    if min(images.shape[2:]) < 3:
        return images
    wide = images.to(torch.int16)
    rows = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    inside = images[:, :, 1:-1, 1:-1]
    smooth = box.add_(wide[:, :, 1:-1, 1:-1], alpha=4).float().add_(6.5).div_(13).floor_()
    sharp = images.clone()  # the border has no neighbours and stays
    sharp[:, :, 1:-1, 1:-1] = _blend(smooth, inside, factor)
    return sharp


def auto_contrast(images: Tensor) -> Tensor:
    """Stretch each channel of each picture so that its darkest value becomes 0 and its lightest 255."""
    low, high = (bound[..., None].double() for bound in images.flatten(2).aminmax(dim=2))
    # Divided, as Pillow does: torch's 255 / tensor multiplies by a rounded reciprocal.
    scale = torch.where(high > low, torch.full_like(high, 255).div_(high - low), 1.0)
    offset = torch.where(high > low, -low * scale, 0.0)
    values = torch.arange(256, dtype=torch.float64, device=images.device)
    return _look_up(images, (values * scale + offset).clamp_(0, 255).to(torch.uint8))


def equalize(images: Tensor) -> Tensor:
    """Spread the values of each channel of each picture so that all grey levels are about equally frequent."""
    count = images.shape[0] * images.shape[1]
    planes = torch.arange(count, device=images.device).view(*images.shape[:2], 1, 1) * 256
    histogram = torch.bincount(images.long().add_(planes).flatten(), minlength=count * 256).view(count, 256)
    # The lightest value present needs no room above it: its count is left out of the step between two grey levels.
    lightest = images.flatten(2).amax(dim=2).view(count, 1).long()
    step = (histogram.sum(dim=1, keepdim=True) - histogram.gather(1, lightest)) // 255
    below = histogram.cumsum(dim=1) - histogram
    table = ((below + step // 2) // step.clamp(min=1)).clamp_(max=255)
    table = torch.where(step > 0, table, torch.arange(256, device=images.device))
    return _look_up(images, table.to(torch.uint8).view(*images.shape[:2], 256))


# Operations that move pixels: the nearest pixel is read, with pixel (0, 0) in the upper left corner.


def rotate(images: Tensor, degrees: np.ndarray) -> Tensor:
    """Turn each picture about its middle by its own angle, counter-clockwise."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    x, y = (images.shape[3] - 1) / 2, (images.shape[2] - 1) / 2
    return _affine(images, [cosine, -sine, x - cosine * x + sine * y, sine, cosine, y - sine * x - cosine * y])


def shear_x(images: Tensor, slope: np.ndarray) -> Tensor:
    """Row y of each picture moves left by slope · y pixels."""
    return _affine(images, [1, slope, 0, 0, 1, 0])


def shear_y(images: Tensor, slope: np.ndarray) -> Tensor:
    """Column x of each picture moves up by slope · x pixels."""
    return _affine(images, [1, 0, 0, slope, 1, 0])


def translate_x(images: Tensor, pixels: np.ndarray) -> Tensor:
    """Each picture moves left by its own number of pixels."""
    return _affine(images, [1, 0, pixels, 0, 1, 0])


def translate_y(images: Tensor, pixels: np.ndarray) -> Tensor:
    """Each picture moves up by its own number of pixels."""
    return _affine(images, [1, 0, 0, 0, 1, pixels])


def cutout(images: Tensor, reach: tuple[int, int], centers: np.ndarray) -> Tensor:
    """Cover a rectangle with grey: `reach` pixels (vertical, horizontal) to each side of `centers`, B×2 in 0…1."""
    covered = torch.ones((), dtype=torch.bool, device=images.device)
    for axis, (side, far) in enumerate(zip(images.shape[2:], reach, strict=True)):
        center = torch.as_tensor((centers[:, axis] * side).astype(np.int64), device=images.device)[:, None]
        place = torch.arange(side, device=images.device)
        within = (place >= center - far) & (place < center + far)
        covered = covered & within.view(len(images), 1, *((side, 1) if axis == 0 else (1, side)))
    return images.masked_fill(covered, GREY)


def _to_grey(images: Tensor) -> Tensor:
    """Luma (ITU-R 601-2) in Pillow's fixed point, B×1×H×W uint8."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.to(torch.int32).split(1, dim=1)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000).bitwise_right_shift_(16).to(torch.uint8)


def _blend(start: Tensor | float, images: Tensor, factor: float) -> Tensor:
    """start + factor · (images − start), cut off (not rounded) to 0…255 as Pillow does."""
    pixels = images.float()
    return (pixels - start).mul_(factor).add_(start).clamp_(0, 255).to(torch.uint8)


def _look_up(images: Tensor, table: Tensor) -> Tensor:
    """Replace every value by its entry in the table of its picture and channel, B×C×256."""
    return table.gather(2, images.flatten(2).long()).view(images.shape)


def _affine(images: Tensor, matrix: list[np.ndarray | float]) -> Tensor:
    """Pixel (x, y) of each result is read at (a x + b y + c, d x + e y + f) of its picture; beyond it lies grey.

    `matrix` holds a…f, each a number or one value per picture.
    """
    height, width = images.shape[2:]
    a, b, c, d, e, f = (
        torch.as_tensor(entry, dtype=torch.float64, device=images.device).view(-1, 1, 1) for entry in matrix
    )
    x = torch.arange(width, dtype=torch.float64, device=images.device)
    y = torch.arange(height, dtype=torch.float64, device=images.device)[:, None]
    # One grey pixel all around stands for everything outside: hence + 1, and + ½ for the nearest.
    column = (a * x + (b * y + (c + 1.5))).floor_().clamp_(0, width + 1)
    row = (d * x + (e * y + (f + 1.5))).floor_().clamp_(0, height + 1)
    source = (row * (width + 2) + column).long().expand(len(images), -1, -1)
    padded = F.pad(images, (1, 1, 1, 1), value=GREY).flatten(2)
    return padded.gather(2, source.flatten(1)[:, None].expand(-1, images.shape[1], -1)).view(images.shape)


# Name → (images, magnitude 0…30, draws B×3 in 0…1) → images. Draws: a sign, and the place of a cutout.
# Ten is the magnitude at which the original's arguments reach the figures below.


def _sign(draws: np.ndarray) -> np.ndarray:
    return np.where(draws[:, 0] < 0.5, 1.0, -1.0)


def _enhancement(magnitude: float) -> float:
    return 0.1 + 1.8 * magnitude / 10


def _distance(magnitude: float, pixels: int, side: int) -> float:
    """`pixels` of 224 at magnitude 10, as the same share of `side`."""
    return magnitude / 10 * pixels * side / 224


OPERATIONS: dict[str, Callable[[Tensor, float, np.ndarray], Tensor]] = {
    "AutoContrast": lambda images, m, draws: auto_contrast(images),
    "Equalize": lambda images, m, draws: equalize(images),
    "Invert": lambda images, m, draws: invert(images),
    "Rotate": lambda images, m, draws: rotate(images, _sign(draws) * (30 * m / 10)),
    "Posterize": lambda images, m, draws: posterize(images, min(max(int(4 * m / 10), 1), 8)),
    "Solarize": lambda images, m, draws: solarize(images, int(256 * m / 10)),
    "Color": lambda images, m, draws: color(images, _enhancement(m)),
    "Contrast": lambda images, m, draws: contrast(images, _enhancement(m)),
    "Brightness": lambda images, m, draws: brightness(images, _enhancement(m)),
    "Sharpness": lambda images, m, draws: sharpness(images, _enhancement(m)),
    "ShearX": lambda images, m, draws: shear_x(images, _sign(draws) * (0.3 * m / 10)),
    "ShearY": lambda images, m, draws: shear_y(images, _sign(draws) * (0.3 * m / 10)),
    "TranslateX": lambda images, m, draws: translate_x(images, _sign(draws) * _distance(m, 100, images.shape[3])),
    "TranslateY": lambda images, m, draws: translate_y(images, _sign(draws) * _distance(m, 100, images.shape[2])),
    "Cutout": lambda images, m, draws: cutout(
        images, (int(_distance(m, 40, images.shape[2])), int(_distance(m, 40, images.shape[3]))), draws[:, 1:3]
    ),
    "SolarizeAdd": lambda images, m, draws: solarize_add(images, int(110 * m / 10)),
}


def rand_augment(
    images: Tensor, *, layers: int, magnitude: float, seed: int, epochs: np.ndarray, ids: np.ndarray
) -> Tensor:
    """Apply `layers` operations, drawn for each picture by (seed, its epoch, its id), to B×C×H×W uint8, in place.

    All sixteen operations are equally likely and may repeat; the magnitude is the same for all, 0…30.
    """
    operations = list(OPERATIONS.values())
    for layer in range(layers):
        draws = uniform(seed, f"randaugment/{layer}", epochs, ids, count=4)
        chosen = (draws[:, 0] * len(operations)).astype(np.int64)
        for index in np.unique(chosen):
            members = np.flatnonzero(chosen == index)
            where = torch.as_tensor(members, device=images.device)
            changed = operations[index](images.index_select(0, where), magnitude, draws[members, 1:])
            images.index_copy_(0, where, changed)
    return images
