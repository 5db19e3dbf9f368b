"""Maps of where a model looks, whatever its family: which there are, and how they come to the size of a picture.

Letters: B images, h×w places of a map, H×W pixels.
"""

import dataclasses
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from patchword.core.errors import UsageError, nearest
from patchword.evaluation.predict import comfortable_batch, evaluating
from patchword.explanation.attention import Layer, attention, attentive, check_layer, class_rollout, rollout
from patchword.explanation.gradcam import gradcam
from patchword.models.contract import Model
from patchword.models.hybrid import StemmedViT
from patchword.models.vit import ViT

Kind = Literal["rollout", "class", "attention", "gradcam"]
"""Attention rollout; gradient-weighted rollout for a class; the attention of one layer; Grad-CAM for a class."""
_FOR_CLASS: tuple[Kind, ...] = ("class", "gradcam")


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of the maps that a model can give."""

    kind: Kind
    layer: Layer = 0
    """Of `attention`, as is `head`; None is the mean of the heads."""
    head: int | None = None

    @property
    def words(self) -> str:
        """What it is called."""
        head = "" if self.head is None else f", head {self.head}"
        place = "the attention pooling" if self.layer == "pool" else f"layer {self.layer}"
        return {
            "rollout": "attention rollout",
            "class": "gradient-weighted rollout",
            "attention": f"attention of {place}{head}",
            "gradcam": "Grad-CAM",
        }[self.kind]

    @property
    def for_class(self) -> bool:
        """Whether it is a map for a class."""
        return self.kind in _FOR_CLASS

    def of(self, model: Model, images: Tensor, classes: Tensor | None = None) -> Tensor:
        """B×C×H×W → B×h×w, none of it negative; `classes` (B) are those that it is for (None: those that are named)."""
        if self.kind == "rollout":
            return rollout(model, images)
        if self.kind == "attention":
            return attention(model, images, self.layer, self.head)
        classes = named(model, images) if classes is None else classes
        if self.kind == "gradcam":
            return gradcam(model, images, classes)
        return class_rollout(model, images, classes[:, None])[:, 0]


def kinds(model: Model) -> tuple[Kind, ...]:
    """The kinds of map that a model can give, the one that stands for it first."""
    if not isinstance(model, ViT):
        return ("gradcam",) if model.num_classes else ()
    if not model.num_classes:
        return ("rollout", "attention")
    return ("rollout", "class", "attention", *(("gradcam",) if isinstance(model, StemmedViT) else ()))


def choose(
    model: Model,
    kind: Kind | Literal["auto"] = "auto",
    layer: Layer | None = None,
    head: int | None = None,
    *,
    for_class: bool = False,
) -> Choice:
    """The map that is asked for; `auto` is attention where a layer or head is named, else the first that the model can give
    of those `for_class` or of all.

    Raises `UsageError` for one that the model cannot give, and for a layer or head that there is not.
    """
    if kind != "auto" and kind not in get_args(Kind):
        raise UsageError(f"there is no map {kind!r}; {nearest(kind, get_args(Kind))}")
    if kind == "auto":
        if not kinds(model):
            raise UsageError(
                f"{model.name} has no head, so Grad-CAM has no class to look for; a model with a head is right"
            )
        able: list[Kind] = [each for each in kinds(model) if each in _FOR_CLASS or not for_class] or list(kinds(model))
        kind = able[0]
        if layer is not None or head is not None:
            kind = "attention"
    elif kind != "attention" and (layer is not None or head is not None):
        raise UsageError(f"a layer and a head are chosen for the map attention, not for {kind}")
    if kind == "attention":
        vit = attentive(model)
        layer = vit.config.depth - 1 if layer is None else layer
        check_layer(vit, layer, head)
        return Choice(kind, layer, head)
    if kind not in kinds(model):
        if kind == "gradcam" and model.num_classes:
            raise UsageError(f"{model.name} has no convolutions for Grad-CAM to look at; rollout shows where it looks")
        if kind != "rollout" and not model.num_classes:
            raise UsageError(f"{model.name} has no head, so nothing in it speaks for a class; rollout needs none")
        attentive(model)
    return Choice(kind)


def named(model: Model, images: Tensor) -> Tensor:
    """B×C×H×W → B: the class that the model names, a few images at a time; raises `UsageError` where it has no head."""
    if not model.num_classes:
        raise UsageError(f"{model.name} has no head, so it names no class")
    device = next(model.parameters()).device
    with evaluating(model), torch.inference_mode():
        parts = [model(batch.to(device)).argmax(1) for batch in images.split(comfortable_batch(model))]
    return torch.cat(parts)


def as_images(model: Model, pixels: np.ndarray) -> Tensor:
    """uint8 B×H×W×C of the model's size → its images, normalised B×C×H×W, on its device."""
    images = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2)  # a copy: pixels from Pillow may not be written to
    return model.preprocessing.normalize(images.to(next(model.parameters()).device))


def enlarge(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """B×h×w → B×H×W, bilinear: the middle of a place keeps its value."""
    return F.interpolate(maps[:, None].float(), size=size, mode="bilinear", align_corners=False)[:, 0]


def unit(maps: Tensor) -> Tensor:
    """B×h×w → the same between 0, the lowest value of each map, and 1, its highest; zeros where all are equal."""
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return torch.where(high > low, (maps - low) / (high - low).clamp_min(torch.finfo(maps.dtype).tiny), 0.0)
