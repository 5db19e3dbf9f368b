"""Everything that one look at a picture shows, in the size in which it is kept.

Letters: B pictures, L layers, H heads, h×w patches, H×W pixels, K classes.
"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from patchword.evaluation.predict import check_finite, evaluating
from patchword.explanation.attention import attend, class_rollout
from patchword.explanation.embeddings import feature_colours
from patchword.explanation.gradcam import gradcam
from patchword.explanation.maps import Choice, as_images, kinds
from patchword.models.contract import Model
from patchword.models.vit import ViT

TOP = 3
"""Classes that a map is made for, the likeliest first."""
_BETWEEN = 480_000
"""Numbers at most for what patches pay to patches in all layers; finer grids are taken together."""


@dataclasses.dataclass(frozen=True, eq=False)
class Look:
    """One picture as a model sees it; float32 arrays, and None where the model has no such thing."""

    pixels: np.ndarray
    """uint8 H×W×C, the model's input."""
    probabilities: np.ndarray
    """K, empty without a head."""
    classes: tuple[int, ...]
    """Those that maps are for."""
    for_classes: np.ndarray | None = None
    """k×h×w: gradient-weighted rollout."""
    gradcam: np.ndarray | None = None
    """k×h×w: Grad-CAM, at the last feature map that convolutions made."""
    rollouts: np.ndarray | None = None
    """L×h×w: through the first 1 … L layers."""
    heads: np.ndarray | None = None
    """L×H×h×w: what the class token, or else the mean patch, pays to each patch."""
    probe: np.ndarray | None = None
    """H×h×w: what the probe of attention pooling pays to each patch."""
    between: np.ndarray | None = None
    """L×(h'·w')×h'×w': what each patch pays to each, averaged over heads; on large grids several patches taken together."""
    colours: np.ndarray | None = None
    """h×w×3 in 0…1: the last features by their principal components, over the pictures looked at together."""

    def chosen(self, choice: Choice, place: int = 0) -> np.ndarray:
        """h×w: the map of that choice; one for a class is that of `classes[place]`. It must be one that the model can give."""
        if choice.kind == "attention":
            heads = self.probe if choice.layer == "pool" else _there(self.heads)[choice.layer]
            return _there(heads).mean(axis=0) if choice.head is None else _there(heads)[choice.head]
        if choice.kind == "rollout":
            return _there(self.rollouts)[-1]
        return _there(self.for_classes if choice.kind == "class" else self.gradcam)[place]

    def place(self, wanted: int | None) -> int:
        """Of the class that maps are for, in `classes`: the one that was asked for, else the likeliest."""
        return self.classes.index(wanted) if wanted is not None else 0

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it but `between`, for a file."""
        fields = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "between"
        }
        return {name: np.asarray(value) for name, value in fields.items() if value is not None}


def look(model: Model, pixels: np.ndarray, also: int | None = None) -> Iterator[Look]:
    """Look at uint8 B×H×W×C, one picture after the other; `also` is a class that maps are for beside the likeliest three."""
    images = as_images(model, pixels)
    colours = feature_colours(model, images)
    for each, image, colour in zip(pixels, images, colours, strict=True):
        yield dataclasses.replace(_look(model, each, image[None], also), colours=colour)


def probabilities(model: Model, image: Tensor) -> np.ndarray:
    """One image 1×C×H×W → float32 K, empty without a head; raises `DivergedError` for what is not finite."""
    if not model.num_classes:
        return np.zeros(0, dtype=np.float32)
    with evaluating(model), torch.inference_mode():
        shares = _numpy(model.probabilities(image)[0])
    check_finite(model, shares)
    return shares


def _look(model: Model, pixels: np.ndarray, image: Tensor, also: int | None) -> Look:
    classes: tuple[int, ...] = ()
    shares = probabilities(model, image)
    if model.num_classes:
        best = np.argsort(-shares, kind="stable")[:TOP].tolist()
        classes = tuple(best if also is None or also in best else [*best, also])
    chosen = torch.tensor([classes], dtype=torch.int64)
    found: dict[str, np.ndarray] = {}
    if "class" in kinds(model):
        found["for_classes"] = _numpy(class_rollout(model, image, chosen)[0])
    if "gradcam" in kinds(model):
        found["gradcam"] = _numpy(gradcam(model, image.expand(len(classes), -1, -1, -1), chosen[0]))
    if isinstance(model, ViT):
        attended = attend(model, image)
        found["rollouts"], found["heads"] = _numpy(attended.rollouts()[0]), _numpy(attended.heads[0])
        if attended.probe is not None:
            found["probe"] = _numpy(attended.probe[0])
        grid = coarser(model.grid, model.config.depth)
        found["between"] = np.stack([_between(each[0], model.grid, grid) for each in attended.between_patches()])
    return Look(pixels, shares, classes, **found)


def _there(array: np.ndarray | None) -> np.ndarray:
    if array is None:
        raise ValueError("the model gives no such map")
    return array


def coarser(grid: tuple[int, int], depth: int) -> tuple[int, int]:
    """The largest grid of about the same shape on which every patch can be asked in all layers."""
    patches = math.isqrt(_BETWEEN // depth)
    if grid[0] * grid[1] <= patches:
        return grid
    scale = math.sqrt(patches / (grid[0] * grid[1]))
    return max(1, int(grid[0] * scale)), max(1, int(grid[1] * scale))


def _between(weights: Tensor, grid: tuple[int, int], to: tuple[int, int]) -> np.ndarray:
    """N×N → N'×h'×w', by the means of the patches that each cell covers."""
    n = weights.shape[0]
    if grid != to:
        keys = F.adaptive_avg_pool2d(weights.view(n, 1, *grid), to).view(n, -1)
        asking = F.adaptive_avg_pool2d(keys.T.reshape(-1, 1, *grid), to)
        weights = asking.flatten(1).T
    return _numpy(weights.reshape(-1, *to))


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()
