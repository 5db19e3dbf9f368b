"""Which model to train when none is named: the largest that the data can teach in the budget."""

from typing import Any

import torch

from patchword.core.errors import UsageError
from patchword.models.cost import cost
from patchword.models.names import create_model
from patchword.models.vit import SIZES
from patchword.training.recipe import Budget

_ASSUMED_FLOPS = 60e9
"""FLOPs a second that training small ViTs sustains on two CPU cores; only the choice of a size rests on it."""
_LOOKS = 20
"""A model is small enough when the budget shows it every picture this often."""
_TOKENS = 64
"""About how many patches make a picture: a patch of a side of 1/8."""
SMALL_PICTURE = 64
"""Pictures of at most this side are taken at their own size."""
_PARAMS_PER_PICTURE = 2000
"""More parameters than this for each training picture only learn it by heart."""


def choose_model(
    budget: Budget,
    num_pictures: int,
    shape: tuple[int, int],
    image_size: tuple[int, int] | None,
    options: dict[str, Any],
) -> tuple[str, tuple[int, int], str]:
    """Model name, image size and the reason as a line, for `num_pictures` training pictures of `shape` (h×w)."""
    if image_size is not None:
        patch = _patch_for(image_size)
    elif max(shape) <= SMALL_PICTURE:
        patch = max(2, round(max(shape) / 8))
        image_size = (-(-shape[0] // patch) * patch, -(-shape[1] // patch) * patch)
    else:
        patch, image_size = 12, (96, 96)
    chosen, why = "", ""
    for size in SIZES:
        name = f"ViT-{size}/{patch}"
        with torch.device("meta"):
            count = cost(create_model(name, 0, image_size, **options))
        looks = _flops(budget, num_pictures, count.train_flops) / (count.train_flops * num_pictures)
        if not chosen or (looks >= _LOOKS and count.params <= _PARAMS_PER_PICTURE * num_pictures):
            chosen, why = name, f"{count.params / 1e6:.1f} M parameters, about {looks:.0f} looks at each picture"
        else:
            break
    sizes = f"{image_size[0]}×{image_size[1]}"
    return (
        chosen,
        image_size,
        f"no --model given: {chosen} at {sizes} px suits {num_pictures:,} pictures and this budget ({why})",
    )


def _patch_for(image_size: tuple[int, int]) -> int:
    """The side that divides the image into about 64 patches."""
    height, width = image_size
    sides = [side for side in range(1, min(height, width) + 1) if height % side == 0 and width % side == 0]
    if not sides:
        raise UsageError(f"image_size={image_size} must be at least 1×1")
    return min(sides, key=lambda side: abs(height * width / side**2 - _TOKENS))


def _flops(budget: Budget, num_pictures: int, per_picture: int) -> float:
    """The training FLOPs that the budget allows."""
    if budget.pflop:
        return budget.pflop * 1e15
    if budget.minutes:
        return budget.minutes * 60 * _ASSUMED_FLOPS
    return max(budget.epochs, _LOOKS) * num_pictures * per_picture  # steps and epochs bound the looks, not the size
