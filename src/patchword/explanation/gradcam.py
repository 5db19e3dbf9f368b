"""Grad-CAM: which places of a convolutional feature map spoke for a class (Selvaraju et al. 2017, arXiv 1610.02391).

For BiT and EfficientNet, and for the convolutions before the encoder of a hybrid. Letters: B images, C channels, h×w places.
"""

import torch
from torch import Tensor

from patchword.core.errors import UsageError, nearest
from patchword.evaluation.predict import comfortable_batch, evaluating
from patchword.explanation.attention import frozen
from patchword.models.contract import Model

_PLACES = 6
"""Across the shorter side; at 224 px the last map of a ResNet has 7."""
_SMALLER = 16
"""All activations are kept for the backward pass, so fewer images go through at once than in evaluation."""


def gradcam(model: Model, images: Tensor, classes: Tensor | None = None, layer: str | None = None) -> Tensor:
    """B×C×H×W and classes B → B×h×w, 0 where nothing spoke for the class of the image (None: the one that it is named).

    (Σ_c α_c A_c)⁺ with α_c the mean over places of ∂ logit / ∂A_c (equations 1 and 2). A is the last feature map that
    convolutions made (`encoded` of a ResNet or EfficientNet, the stem's last of a hybrid); on small images, where that
    has hardly a place, the last of those that have 6 across their shorter side, or the most; or the `layer` of that name
    in `model.walk`. Raises `UsageError` for a model without convolutions or without a head, and for a layer that is no
    feature map.
    """
    if not model.num_classes:
        raise UsageError(f"{model.name} has no head, so nothing in it speaks for a class")
    device = next(model.parameters()).device
    per_chunk = max(1, comfortable_batch(model) // _SMALLER)
    parts = []
    with evaluating(model), frozen(model):
        for start in range(0, len(images), per_chunk):
            chosen = None if classes is None else classes[start : start + per_chunk].to(device)
            parts.append(_maps(model, images[start : start + per_chunk].to(device), chosen, layer))
    return torch.cat(parts)


def _maps(model: Model, images: Tensor, classes: Tensor | None, layer: str | None) -> Tensor:
    # Weights are frozen: it is for this copy that a graph is kept at all.
    images = images.detach().clone().requires_grad_()
    kept, most, offered, last = None, 0, [], images
    for name, last in model.walk(images):
        if last.ndim == 4:
            offered.append(name)
            places = min(*last.shape[2:], _PLACES)
            if name == layer or (layer is None and places >= most):
                kept, most = last, places
    if kept is None:
        if not offered:
            raise UsageError(
                f"{model.name} has no convolutions for Grad-CAM to look at; attention rollout shows where it looks"
            )
        raise UsageError(f"{model.name} has no feature map {layer!r}; {nearest(str(layer), offered)}")
    logits = model.head(last)
    chosen = logits.argmax(1) if classes is None else classes
    (gradient,) = torch.autograd.grad(logits.gather(1, chosen[:, None]).sum(), kept)
    share = gradient.mean(dim=(2, 3), keepdim=True)
    return (share * kept.detach()).sum(1).clamp_min(0)
