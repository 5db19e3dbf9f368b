"""What happens to a normalised batch on the model's device: random erasing, then MixUp or CutMix."""

import numpy as np
from torch import Tensor

from patchword.data.augment import Augment, sample_boxes
from patchword.data.plan import uniform

ERASING_AREA = (0.02, 1 / 3)
"""The share of the picture that an erased rectangle takes, as in torchvision and timm (random erasing, arXiv:1708.04896)."""
ERASING_ASPECT = (0.3, 1 / 0.3)
"""Its width : height."""


def erase(images: Tensor, augment: Augment, *, seed: int, epochs: np.ndarray, ids: np.ndarray) -> Tensor:
    """Cover a random rectangle of some pictures with the mean colour (0 once normalised): float B×C×H×W, in place.

    Each picture is chosen with probability `augment.erasing`, keyed by (seed, its epoch, its id).
    """
    if augment.erasing == 0:
        return images
    draws = uniform(seed, "erasing", epochs, ids, count=41)
    heights, widths = np.full((2, len(ids)), [[images.shape[2]], [images.shape[3]]])
    boxes, found = sample_boxes(heights, widths, ERASING_AREA, ERASING_ASPECT, draws[:, 1:].reshape(-1, 10, 4))
    for index in np.flatnonzero(found & (draws[:, 0] < augment.erasing)):
        top, left, bottom, right = boxes[index]
        images[index, :, top:bottom, left:right] = 0
    return images


def mix(images: Tensor, targets: Tensor, augment: Augment, *, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """MixUp or CutMix of each picture with its neighbour, as `augment` says; keyed by (seed, step).

    Picture 0 is mixed with 1, 2 with 3 …, each with the other; the last of an odd number stays itself. A part of a batch that
    begins at an even place is therefore mixed as in the whole.

    `images`, float B×C×H×W, is overwritten and returned; `targets` is float B×K, and new targets are returned. Give a
    picture that must not count a target of zeros: then its share in a mixture adds nothing to a softmax loss.

    MixUp (arXiv:1710.09412) is as in big_vision: one λ ≥ ½ for the whole batch. CutMix (arXiv:1905.04899): one rectangle
    of area 1 − λ for the whole batch, cut off at the border, and targets by the area that it really covers. When both
    are set, each batch gets one of them, by a fair coin, as in timm.
    """
    if augment.mixup == 0 and augment.cutmix == 0:
        return images, targets
    key, coin, *center = uniform(seed, "mix", step, np.zeros(1, np.int64), count=4).reshape(-1)
    cut = augment.mixup == 0 or (augment.cutmix > 0 and coin < 0.5)
    parameter = augment.cutmix if cut else augment.mixup
    keep = float(np.random.Generator(np.random.Philox(int(key * 2**53))).beta(parameter, parameter))
    if cut:
        height, width = images.shape[2:]
        # Half the side of a rectangle of area 1 − λ, to each side of its centre.
        reach = np.array([height, width]) * np.sqrt(1 - keep) / 2
        middle = np.array(center) * [height, width]
        top, left = np.maximum(np.rint(middle - reach), 0).astype(int)
        bottom, right = np.minimum(np.rint(middle + reach), [height, width]).astype(int)
        images[:, :, top:bottom, left:right] = _swapped(images[:, :, top:bottom, left:right])
        keep = 1 - (bottom - top) * (right - left) / (height * width)
    else:
        keep = max(keep, 1 - keep)
        images.lerp_(_swapped(images), 1 - keep)
    return images, targets.lerp(_swapped(targets), 1 - keep)


def _swapped(batch: Tensor) -> Tensor:
    """Every row changed with its neighbour's."""
    return batch[[min(place ^ 1, len(batch) - 1) for place in range(len(batch))]]
