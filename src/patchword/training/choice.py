"""Which model to train when none is named, and at which size: the largest that the data can teach in the budget."""

from typing import Any, NamedTuple

import torch

from patchword.core import config
from patchword.core.errors import UsageError
from patchword.core.runtime import choose_device, usable_cores
from patchword.models.cost import Cost, cost
from patchword.models.names import create_model
from patchword.models.vit import SIZES, ViTConfig
from patchword.training.recipe import Budget, Recipe, load

_FLOPS_OF_A_CORE, _FLOPS_OF_A_GPU = 30e9, 6e12
"""FLOPs a second that training small models sustains; only the choice of a size rests on it. That of a GPU is a guess: a
hundred times two cores."""
_LOOKS = 20
"""A ViT is small enough when the budget shows it every picture this often."""
_HYBRID_LOOKS = 8
"""The same of a hybrid, which has less to find out."""
_TOKENS = 64
"""About how many patches make a picture: a patch of a side of 1/8."""
SMALL_PICTURE = 64
"""Pictures of at most this side are taken at their own size."""
_PARAMS_PER_PICTURE = 2000
"""More parameters than this for each training picture only learn it by heart."""
HYBRID_STRIDE = 8
"""Pixels of a side that become one place."""
_WIDTHS = (64, 128, 256)
"""Of the hybrids that `speedrun` trains for 0.02, 0.1 and 0.4 PFLOP."""
_SIDES = (64, 96, 128)
"""Pixels at which a hybrid sees pictures that have more."""


class Candidate(NamedTuple):
    """A model that may be chosen."""

    name: str
    options: dict[str, Any]
    """What its name does not say."""
    image_size: tuple[int, int]

    @property
    def cost(self) -> Cost:
        """Without a head."""
        with torch.device("meta"):
            return cost(create_model(self.name, 0, self.image_size, **self.options))


def assumed_speed(recipe: Recipe) -> float:
    """FLOPs a second that a small model is thought to train with on the recipe's device."""
    if choose_device(recipe.device).type != "cpu":
        return _FLOPS_OF_A_GPU
    return _FLOPS_OF_A_CORE * (recipe.threads or usable_cores())


def choose_model(
    budget: Budget,
    num_pictures: int,
    shape: tuple[int, int],
    image_size: tuple[int, int] | None,
    options: dict[str, Any],
    speed: float,
) -> tuple[Candidate, str]:
    """A model for `num_pictures` training pictures of `shape` (h×w), and the reason as a line.

    `options` are what is said of it: it is a ViT, or a hybrid where one of them is a hybrid's alone. `speed` is in
    FLOPs a second.
    """
    if options.keys() <= config.field_types(ViTConfig).keys():
        candidates, least = _vits(shape, image_size, options), _LOOKS
    else:
        candidates, least = _hybrids(shape, image_size, options), _HYBRID_LOOKS
        if not (budget.pflop or budget.minutes):
            candidates = candidates[:2]  # the others see a picture as often, and nobody has said how long that may take
    chosen, why = candidates[0], ""
    for each in candidates:
        count = each.cost
        looks = _looks(budget, speed, num_pictures, count.train_flops)
        if why and (looks < least or count.params > _PARAMS_PER_PICTURE * num_pictures):
            break
        chosen, why = each, f"{count.params / 1e6:.1f} M parameters, about {looks:.1f} looks at each picture"
    height, width = chosen.image_size
    return chosen, (
        f"no --model given: {chosen.name} at {height}×{width} px suits {num_pictures:,} pictures and this budget ({why})"
    )


def choose_side(budget: Budget, num_pictures: int, speed: float) -> int:
    """At how many pixels a hybrid of the middle width that has learned already sees larger pictures."""
    if not (budget.pflop or budget.minutes):
        return _SIDES[0]
    options = load("hybrid").model
    flops = {side: _hybrid(_WIDTHS[1], (side, side), options).cost.train_flops for side in _SIDES}
    fitting = [side for side in _SIDES if _looks(budget, speed, num_pictures, flops[side]) >= _HYBRID_LOOKS]
    return max(fitting, default=_SIDES[0])


def _vits(shape: tuple[int, int], image_size: tuple[int, int] | None, options: dict[str, Any]) -> list[Candidate]:
    """Of all sizes, smallest first, with about as many patches."""
    if image_size is not None:
        patch = _patch_for(image_size)
    elif max(shape) <= SMALL_PICTURE:
        patch = max(2, round(max(shape) / 8))
        image_size = whole_patches(shape, patch)
    else:
        patch, image_size = 12, (96, 96)
    return [Candidate(f"ViT-{size}/{patch}", options, image_size) for size in SIZES]


def _hybrids(shape: tuple[int, int], image_size: tuple[int, int] | None, options: dict[str, Any]) -> list[Candidate]:
    """Three convolutions with pooling and an encoder, wider and wider; larger pictures at more and more pixels."""
    sizes = [image_size or whole_patches(shape, HYBRID_STRIDE)]
    if image_size is None and max(shape) > SMALL_PICTURE:
        sizes = [(side, side) for side in _SIDES]
    narrow, middle, wide = _WIDTHS
    steps = [(narrow, sizes[0]), *((middle, size) for size in sizes), (wide, sizes[-1])]
    return [_hybrid(width, size, options) for width, size in steps]


def _hybrid(width: int, image_size: tuple[int, int], options: dict[str, Any]) -> Candidate:
    widths = {
        "stem_channels": [width // 4, width, width],
        "embed_dim": width,
        "num_heads": width // 32,
        "mlp_dim": 2 * width,
    }
    return Candidate("C3+ViT-Fe/8", {**widths, **options}, image_size)


def whole_patches(shape: tuple[int, int], stride: int) -> tuple[int, int]:
    """h×w to multiples of the stride."""
    return (-(-shape[0] // stride) * stride, -(-shape[1] // stride) * stride)


def _patch_for(image_size: tuple[int, int]) -> int:
    """The side that divides the image into about 64 patches."""
    height, width = image_size
    sides = [side for side in range(1, min(height, width) + 1) if height % side == 0 and width % side == 0]
    if not sides:
        raise UsageError(f"image_size={image_size} must be at least 1×1")
    return min(sides, key=lambda side: abs(height * width / side**2 - _TOKENS))


def _looks(budget: Budget, speed: float, num_pictures: int, per_picture: int) -> float:
    """How often the budget shows each picture to a model that takes so many FLOPs for one."""
    if budget.pflop:
        return budget.pflop * 1e15 / per_picture / num_pictures
    if budget.minutes:
        return budget.minutes * 60 * speed / per_picture / num_pictures
    return max(budget.epochs, _LOOKS)  # steps and epochs bound the looks, not the size
