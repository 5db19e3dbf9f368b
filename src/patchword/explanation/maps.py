"""Maps of where a model looks, whatever its family: which there are, and how they come to the size of a picture.

Letters: B images, h×w places of a map, H×W pixels.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from patchword.core.errors import UsageError
from patchword.evaluation.predict import comfortable_batch, evaluating
from patchword.explanation.attention import attentive, class_rollout, rollout
from patchword.explanation.gradcam import gradcam
from patchword.models.contract import Model
from patchword.models.hybrid import StemmedViT
from patchword.models.vit import ViT

Kind = Literal["rollout", "class", "gradcam"]
"""Attention rollout; gradient-weighted rollout for a class; Grad-CAM for a class."""


def kinds(model: Model) -> tuple[Kind, ...]:
    """The maps that a model can give, the one that stands for it first."""
    for_a_class: tuple[Kind, ...] = ("class",) if model.num_classes else ()
    if isinstance(model, StemmedViT):
        return ("rollout", *for_a_class, "gradcam") if model.num_classes else ("rollout",)
    if isinstance(model, ViT):
        return ("rollout", *for_a_class)
    return ("gradcam",) if model.num_classes else ()


def map_of(model: Model, images: Tensor, kind: Kind, classes: Tensor | None = None) -> Tensor:
    """B×C×H×W → B×h×w of one kind, none of it negative; `classes` (B) are those that it is for (None: those it is named).

    Raises `UsageError` where the model cannot give it.
    """
    if kind == "rollout":
        return rollout(model, images)
    if kind == "gradcam":
        return gradcam(model, images, classes)
    attentive(model)
    return class_rollout(model, images, (named(model, images) if classes is None else classes)[:, None])[:, 0]


def named(model: Model, images: Tensor) -> Tensor:
    """B×C×H×W → B: the class that the model names, a few images at a time; raises `UsageError` where it has no head."""
    if not model.num_classes:
        raise UsageError(f"{model.name} has no head, so it names no class")
    device = next(model.parameters()).device
    with evaluating(model), torch.inference_mode():
        parts = [model(batch.to(device)).argmax(1) for batch in images.split(comfortable_batch(model))]
    return torch.cat(parts)


def enlarge(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """B×h×w → B×H×W, bilinear: the middle of a place keeps its value."""
    return F.interpolate(maps[:, None].float(), size=size, mode="bilinear", align_corners=False)[:, 0]


def unit(maps: Tensor) -> Tensor:
    """B×h×w → the same between 0, the lowest value of each map, and 1, its highest; zeros where all are equal."""
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return torch.where(high > low, (maps - low) / (high - low).clamp_min(torch.finfo(maps.dtype).tiny), 0.0)
