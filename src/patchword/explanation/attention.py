"""Where a ViT or hybrid looks: attention of any layer and head, rollout, rollout for a class, distance, entropy.

All of it is computed when asked for, by the model's own explicit path, which tests hold equal to the fused one: block by
block and a few images at a time, so that memory does not grow with either.

Letters: B images, L layers, H heads, M tokens, N patches on a grid of h×w, D width, K classes.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from patchword.core.errors import UsageError
from patchword.core.progress import size
from patchword.core.runtime import available_memory
from patchword.evaluation.predict import evaluating
from patchword.models.contract import Model
from patchword.models.vit import ViT

Layer = int | Literal["pool"]
"""A block, from 0; or the attention pooling after them, where the model has one."""
Query = tuple[int, int] | None
"""The patch that asks, (row, column) of the grid; None: whatever speaks for the picture, as `asker` says."""

_BYTES_AT_ONCE = 2**28
"""Of attention weights that are held at the same time, unless those of a single image are more."""


def attention(model: Model, images: Tensor, layer: Layer, head: int | None = None, query: Query = None) -> Tensor:
    """B×C×H×W → B×h×w: how much of its attention the query pays to each patch, in one layer and head (None: their mean).

    What it pays to the class token and to registers is left out, so that a map sums to 1 or less. Raises `UsageError` for a
    model without attention, and for a layer, head or patch that there is not.
    """
    vit = attentive(model)
    wanted = check_layer(vit, layer, head)
    if layer == "pool" and query is not None:
        raise UsageError(f"in the attention pooling of {vit.name} the probe alone asks; no patch does")
    _check_query(vit, query)

    def look(batch: Tensor) -> Tensor:
        weights = next(weights for name, weights in vit.walk(batch, attention=True) if name == wanted)
        chosen = weights.mean(1) if head is None else weights[:, head]
        row = chosen[:, 0] if layer == "pool" else _asked(vit, chosen, query)
        return row[:, -_patches(vit) :].unflatten(1, vit.grid).clone()  # which lets go of the weights

    return _by_chunk(vit, images, look)


@dataclasses.dataclass(frozen=True)
class Attended:
    """The attention of one pass over a few images, as far as it can be kept."""

    prefix: int
    """Tokens before the patches."""
    grid: tuple[int, int]
    heads: Tensor
    """B×L×H×h×w: what the class token, or else the mean patch, pays to each patch."""
    means: list[Tensor]
    """L times B×M×M: the mean over the heads."""
    listened: Tensor
    """B×M: the shares of the tokens in what the head of the model sees: one for the class token, equal ones for the patches
    where they are averaged, and what the probe of attention pooling pays to each."""
    probe: Tensor | None
    """B×H×h×w: what the probe pays to each patch, head by head."""

    def rollouts(self, query: Query = None) -> Tensor:
        """B×L×h×w: attention rollout through the first 1, 2, … L layers (Abnar and Zuidema 2020, arXiv 2005.00928).

        As in the paper's section 4.5 and appendix D.8, weights are averaged over heads and the layers' matrices multiplied; the
        residual stream counts as much as the attention, ½ A + ½ 1. The query is the last factor.
        """
        first = self._row(query)
        through = []
        for count in range(1, len(self.means) + 1):
            row = first
            for mean in reversed(self.means[:count]):
                row = (row + row @ mean) / 2
            through.append(row[:, 0, self.prefix :].unflatten(1, self.grid))
        return torch.stack(through, dim=1)

    def rollout(self, query: Query = None) -> Tensor:
        """B×h×w: the same through all layers."""
        row = self._row(query)
        for mean in reversed(self.means):
            row = (row + row @ mean) / 2
        return row[:, 0, self.prefix :].unflatten(1, self.grid)

    def between_patches(self) -> Iterator[Tensor]:
        """Yield for each layer B×N×N: what each patch pays to each, averaged over the heads."""
        for mean in self.means:
            yield mean[:, self.prefix :, self.prefix :]

    def _row(self, query: Query) -> Tensor:
        """B×1×M."""
        if query is None:
            return self.listened[:, None]
        row = torch.zeros_like(self.listened)
        row[:, self.prefix + query[0] * self.grid[1] + query[1]] = 1
        return row[:, None]


def attend(model: Model, images: Tensor) -> Attended:
    """Look at a few images, B×C×H×W, once; L·B·M² numbers are kept."""
    vit = attentive(model)
    _chunk(vit)  # that one image fits
    heads, means, probe = [], [], None
    with evaluating(vit), torch.inference_mode():
        for name, weights in vit.walk(_on_device(vit, images), attention=True):
            if name == "pool/attention":
                probe = weights[:, :, 0]
            elif name.endswith("/attention"):
                means.append(weights.mean(1))
                heads.append(_asked(vit, weights, None)[..., vit.prefix :].clone())  # a view would keep all of them
                if len(means) == vit.config.depth and vit.attention_pool is None:
                    break  # what the last block makes of it is not asked for
        listened = torch.zeros_like(means[0][:, 0])
        if probe is not None:
            listened[:, vit.prefix :] = probe.mean(1)
        elif vit.config.pool == "token":
            listened[:, 0] = 1
        else:
            listened[:, vit.prefix :] = 1 / _patches(vit)
    return Attended(
        prefix=vit.prefix,
        grid=vit.grid,
        heads=torch.stack(heads, dim=1).unflatten(-1, vit.grid),
        means=means,
        listened=listened,
        probe=None if probe is None else probe.unflatten(-1, vit.grid),
    )


def rollout(model: Model, images: Tensor, query: Query = None) -> Tensor:
    """B×C×H×W → B×h×w: how much of what the query has at the end came from each patch (`Attended.rollouts` says how).

    The query is a patch, or what the head of the model reads: the class token, the mean over patches, the probe.
    """
    vit = attentive(model)
    _check_query(vit, query)
    return _by_chunk(vit, images, lambda batch: attend(vit, batch).rollout(query))


def class_rollout(model: Model, images: Tensor, classes: Tensor) -> Tensor:
    """B×C×H×W and classes B×K → B×K×h×w: what spoke for each class (Chefer et al. 2021, arXiv 2103.15679).

    R = 1, then R ← R + Ā R for each block, where Ā is the mean over heads of (∂ logit / ∂A ⊙ A)⁺ (equations 5 and 6); the
    row of the query is given. Gradients go backwards one block at a time, each computed again from its input.
    """
    vit = attentive(model)
    if not vit.num_classes:
        raise UsageError(f"{vit.name} has no head, so it speaks for no class; rollout needs none")
    if len(classes) != len(images):
        raise ValueError(f"{len(images)} images and classes for {len(classes)}; as many of both are right")
    per_chunk = _chunk(vit, copies=6)
    with evaluating(vit), frozen(vit):
        parts = [
            _class_rows(vit, _on_device(vit, batch), chosen.to(_device(vit)))
            for batch, chosen in zip(images.split(per_chunk), classes.split(per_chunk), strict=True)
        ]
    return torch.cat(parts).unflatten(-1, vit.grid)


@dataclasses.dataclass(frozen=True)
class HeadFigures:
    """Of each layer (rows) and head (columns), averaged over images and queries; float64 L×H."""

    distance: np.ndarray
    """How far away patches look, in pixels (Figure 7, right)."""
    entropy: np.ndarray
    """Of the attention weights over all tokens, in bits: 0 looks at one token, log₂ M at all alike."""


def head_figures(model: Model, images: Tensor) -> HeadFigures:
    """The mean attention distance and the entropy of every head over B×C×H×W."""
    vit = attentive(model)
    between = patch_distances(vit).to(_device(vit))
    distance = torch.zeros(vit.config.depth, vit.config.num_heads, dtype=torch.float64)
    entropy = torch.zeros_like(distance)
    with evaluating(vit), torch.inference_mode():
        for batch in images.split(_chunk(vit, copies=4)):
            walked = vit.walk(_on_device(vit, batch), attention=True)
            weights = (value for name, value in walked if name.endswith("/attention") and name != "pool/attention")
            for layer, each in enumerate(weights):
                distance[layer] += attention_distance(each, between).cpu().double().sum(0)
                entropy[layer] += attention_entropy(each).cpu().double().sum(0)
    return HeadFigures((distance / len(images)).numpy(), (entropy / len(images)).numpy())


def attention_distance(weights: Tensor, between: Tensor) -> Tensor:
    """Weights …×M×M and distances N×N → …: the distance from a patch to those that it looks at, averaged over patches.

    The last N tokens are the patches; of their attention, only what they pay to patches counts, as shares of 1.
    """
    count = len(between)
    among = weights[..., -count:, -count:]
    return ((among * between).sum(-1) / among.sum(-1).clamp_min(1e-30)).mean(-1)


def attention_entropy(weights: Tensor) -> Tensor:
    """Weights …×M×M → …: the entropy of a token's attention in bits, averaged over tokens."""
    return -torch.special.xlogy(weights, weights).sum(-1).mean(-1) / np.log(2)


def patch_distances(model: ViT) -> Tensor:
    """N×N: the way between the middles of two patches, in pixels of the model's input."""
    (h, w), (height, width) = model.grid, model.image_size
    rows, columns = torch.meshgrid(torch.arange(h) * (height / h), torch.arange(w) * (width / w), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], dim=1)
    return torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")


def attentive(model: Model) -> ViT:
    """The model as one that has attention; raises `UsageError` where it has none."""
    if not isinstance(model, ViT):
        raise UsageError(
            f"{model.name} has no attention to show; Grad-CAM shows where it looks (map gradcam, or none named)"
        )
    return model


def check_layer(model: ViT, layer: Layer, head: int | None = None) -> str:
    """The name of a layer's attention in `model.walk`; raises `UsageError` for a layer or head that there is not."""
    depth, heads = model.config.depth, model.config.num_heads
    if head is not None and not 0 <= head < heads:
        raise UsageError(f"{model.name} has no head {head}; {_there_are('head', heads)}")
    if layer == "pool" and model.attention_pool is not None:
        return "pool/attention"
    if isinstance(layer, int) and 0 <= layer < depth:
        return f"block_{layer:02d}/attention"
    known = _there_are("layer", depth, also="" if model.attention_pool is None else " and pool")
    raise UsageError(f"{model.name} has no layer {layer}; {known}")


def asker(model: ViT) -> str:
    """Who asks where no patch is named, in words."""
    words = {"token": "the class token", "map": "the probe"}
    return words.get(model.config.pool, "the mean over all patches")


@contextmanager
def frozen(model: Model) -> Iterator[None]:
    """Gradients of activations alone for as long as the context lasts: weights need none, and cost nothing."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def _there_are(what: str, count: int, also: str = "") -> str:
    if count == 1 and not also:
        return f"its only {what} is 0"
    return f"its {what}s are {f'0 to {count - 1}' if count > 1 else '0'}{also}"


def _asked(vit: ViT, weights: Tensor, query: Query) -> Tensor:
    """Weights …×M×M → …×M: the row of the query; for None that of the class token, else the mean of the patches' rows."""
    if query is not None:
        return weights[..., vit.prefix + query[0] * vit.grid[1] + query[1], :]
    return weights[..., 0, :] if vit.config.pool == "token" else weights[..., vit.prefix :, :].mean(-2)


def _class_rows(vit: ViT, images: Tensor, classes: Tensor) -> Tensor:
    """B×C×H×W and B×K → B×K×N."""
    with torch.no_grad():
        inputs = [vit.embed(images)]
        for block in vit.blocks:
            inputs.append(block(inputs[-1]))
    tokens = inputs.pop().requires_grad_()
    encoded = vit.final_norm(tokens)
    if vit.attention_pool is None:
        pooled, probe = vit.pool(encoded), None
    else:
        pooled, probe = vit.attention_pool.explicit(encoded[:, vit.prefix :])
        pooled = vit.hidden(pooled)
    logits = vit.head(pooled).gather(1, classes).sum(0)

    rows, gradients = [], []
    for k, logit in enumerate(logits):
        wanted = [tokens] if probe is None else [tokens, probe]
        gradient, *of_probe = torch.autograd.grad(logit, wanted, retain_graph=k + 1 < len(logits))
        row = torch.zeros(len(images), 1, tokens.shape[1], device=tokens.device, dtype=tokens.dtype)
        if probe is not None:
            row[:, :, vit.prefix :] = (probe.detach() * of_probe[0]).clamp_min(0).mean(1)
        elif vit.config.pool == "token":
            row[:, :, 0] = 1
        else:
            row[:, :, vit.prefix :] = 1 / _patches(vit)
        rows.append(row)
        gradients.append(gradient)
    for block in reversed(vit.blocks):
        before = inputs.pop().requires_grad_()
        after, weights = block.explicit(before)
        for k, gradient in enumerate(gradients):
            of_weights, gradients[k] = torch.autograd.grad(
                after, (weights, before), gradient, retain_graph=k + 1 < len(gradients)
            )
            rows[k] = rows[k] + rows[k] @ (weights.detach() * of_weights).clamp_min(0).mean(1)
    return torch.stack([row[:, 0, vit.prefix :] for row in rows], dim=1)


def _by_chunk(vit: ViT, images: Tensor, look: Callable[[Tensor], Tensor]) -> Tensor:
    with evaluating(vit), torch.inference_mode():
        parts = [look(_on_device(vit, batch)) for batch in images.split(_chunk(vit))]
    return torch.cat(parts)  # outside of inference mode: what comes out is a tensor like any other


def _chunk(vit: ViT, copies: int = 3) -> int:
    """Images at once: of each there are so many copies of a layer's weights, and the means of all layers."""
    each = 4 * (vit.prefix + _patches(vit)) ** 2 * (copies * vit.config.num_heads + vit.config.depth)
    if each > _BYTES_AT_ONCE and _device(vit).type == "cpu" and each > available_memory():
        raise UsageError(
            f"the attention weights of {_patches(vit):,} patches take {size(each)} for one image of {vit.name}, more than there "
            "is; a smaller image or a larger patch would be right"
        )
    return max(1, min(256, _BYTES_AT_ONCE // each))


def _check_query(vit: ViT, query: Query) -> None:
    (h, w), (row, column) = vit.grid, query or (0, 0)
    if not (0 <= row < h and 0 <= column < w):
        raise UsageError(f"{vit.name} has no patch {query} (row, column); its grid is {h}×{w}, from (0, 0)")


def _patches(vit: ViT) -> int:
    return vit.grid[0] * vit.grid[1]


def _device(model: Model) -> torch.device:
    return next(model.parameters()).device


def _on_device(model: Model, images: Tensor) -> Tensor:
    return images.to(_device(model))
