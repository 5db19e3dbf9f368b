"""Make loaded weights fit another task, image size, patch size or number of channels, and say each thing that was done.

Letters: O outputs of a layer, C channels, P patch side, Q another patch side, h×w grid of patches.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from patchword.core.errors import UsageError, nearest
from patchword.core.preprocessing import Preprocessing
from patchword.models.contract import Model
from patchword.models.names import build_model
from patchword.models.position import Resampling
from patchword.models.vit import ViT
from patchword.weights.mapping import by

FIRST = {
    "vit": ("patch_embed.weight",),
    "hybrid": ("backbone.conv_root.weight",),
    "early-conv": ("backbone.whitening.kernels", "backbone.convs.0.weight"),
    "bit": ("conv_root.weight",),
    "efficientnet": ("layers.0.0.weight",),
}
"""Family → the tensor that knows the channels, O×C×… in memory: the first of these that the model has."""


def adapt(
    model: Model,
    *,
    labels: tuple[str, ...] | None = None,
    num_classes: int | None = None,
    image_size: tuple[int, int] | None = None,
    patch_size: int | None = None,
    in_channels: int | None = None,
    hidden_head: bool = False,
    resampling: Resampling = "official",
) -> tuple[Model, list[str]]:
    """The model with all that was asked for, and a sentence for each thing that had to be done; `model` itself may change.

    `labels` decides the number of classes (no label: no head); a head that already names the same labels in the same order
    is kept. A new head is one zero-initialised linear layer, and stands on the pre-training head's tanh layer only if
    `hidden_head` says so. Position embeddings go to another grid by `resampling` (`models/position.py`). Another patch keeps
    the image size unless that is given, too. Raises `UsageError` for what the model cannot become.
    """
    if resampling not in get_args(Resampling):
        raise UsageError(f"resampling={resampling!r} is not known; {nearest(resampling, get_args(Resampling))}")
    changes = []
    if in_channels is not None and in_channels != model.in_channels:
        model, change = _with_channels(model, in_channels)
        changes.append(change)
    size, grid = model.image_size, model.grid
    target = image_size or size
    if patch_size is not None and patch_size != model.config.stride:
        model, change = _with_patch(model, patch_size, target)
        changes.append(change)
    if target != model.image_size:
        model = model.with_image_size(target, resampling) if isinstance(model, ViT) else model.with_image_size(target)
    if sentences := [*_size_change(size, target), *_grid_change(model, grid, resampling)]:
        changes.append(", ".join(sentences))
    has_layer = bool(model.architecture.get("hidden_head"))
    if hidden_head and not has_layer:
        raise UsageError(f"hidden_head keeps the tanh layer of a pre-training head, which {model.name} does not have")
    wanted = len(labels) if labels is not None else num_classes
    names = labels or None
    if wanted is not None and (wanted != model.num_classes or (labels is not None and names != model.labels)):
        there = model.num_classes
        changes.append(
            f"new zero-initialised head for {wanted} classes (it had {there})"
            if wanted
            else f"the head for {there} classes is left out"
        )
        model.replace_head(wanted, names)
        for_task = labels is not None or wanted > 0
        if for_task and has_layer:
            what = "kept under the new head" if hidden_head else "dropped"
            changes.append(f"the pre-training head's tanh layer {what}")
        if for_task and isinstance(model, ViT) and not hidden_head:
            model.pre_logits, model.config = None, dataclasses.replace(model.config, hidden_head=False)
    return model, changes


def resize_projection(weight: Tensor, side: int) -> Tensor:
    """Kernels …×P×P for patches of P×P → …×Q×Q for patches of Q×Q, Q = `side` (FlexiViT, arXiv 2212.08013, section 3.4).

    With B the matrix that resizes a patch to Q×Q (bilinear, without antialiasing, as their code does it), the new kernel is
    the least-squares solution w' of Bᵀ w' = w, the shortest where there are several. For Q ≥ P it is exact: a patch that is
    resized by itself gives the same word.
    """
    P = weight.shape[-1]
    if side == P:
        return weight
    # Bᵀ is the Kronecker product of this P×Q matrix, of one direction, with itself; so are their pseudo-inverses.
    one = F.interpolate(torch.eye(P, dtype=torch.float64)[None], size=side, mode="linear")[0]
    inverse = torch.linalg.pinv(one).to(weight.device)
    return (inverse @ weight.double() @ inverse.T).to(weight.dtype)


def _with_patch(model: Model, patch_size: int, image_size: tuple[int, int]) -> tuple[Model, str]:
    """The model for patches of another side on the same grid, so on a smaller or larger image."""
    if type(model) is not ViT:
        raise UsageError(
            f"{model.name} cannot change its patch size to {patch_size}: its first layers are convolutions; a ViT can"
        )
    old = model.config.patch_size
    dataclasses.replace(model.config, patch_size=patch_size)  # raises where no patch is of this size
    name = f"{model.name.rpartition('/')[0]}/{patch_size}"
    fields = {"name": model.name if ViT.parse(name) is None else name, "patch_size": patch_size}
    # Whether the image that is to come can be cut so is known before any work.
    build_model({**model.architecture, **fields}, model.preprocessing.with_image_size(image_size))
    kernels = model.patch_embed.weight.detach().unflatten(1, (model.in_channels, old, old))
    changed = {FIRST["vit"][0]: resize_projection(kernels, patch_size).flatten(1)}
    preprocessing = model.preprocessing.with_image_size((model.grid[0] * patch_size, model.grid[1] * patch_size))
    change = f"patch size {by((old, old))} → {by((patch_size, patch_size))}, projection resampled"
    return _rebuilt(model, changed, preprocessing, fields), change


def _with_channels(model: Model, channels: int) -> tuple[Model, str]:
    """The model for grey images or for RGB, such that a grey picture gives the same as its three equal colours.

    That is exact for a linear projection: what the colours' normalisation differs in goes into weights and bias. A convolution
    that pads has no bias for it, and a standardised one forgets the scale of the sum: there it is near.
    """
    if channels not in (1, 3):
        raise UsageError(f"in_channels={channels} is not known; 1 (grey) or 3 (RGB) are right")
    before, state = model.preprocessing, model.state_dict()
    name = next(name for name in FIRST[model.family] if name in state)
    weight = state[name]
    kernels = weight.reshape(len(weight), model.in_channels, -1)  # O×C×…
    linear = type(model) is ViT
    if channels == 3:
        mean, std = before.mean * 3, before.std * 3
        changed = {name: (kernels / 3).expand(-1, 3, -1)}
        how = "a third of the weights for each colour"
    else:
        mean, std = (sum(before.mean) / 3,), (sum(before.std) / 3,)
        scale = torch.tensor([std[0] / each for each in before.std], dtype=weight.dtype, device=weight.device)
        changed = {name: (kernels * scale[:, None]).sum(1)}
        exact = linear or (model.family == "efficientnet" and len({*before.mean}) == len({*before.std}) == 1)
        how = "the colours' weights summed" + ("" if exact else " (outputs for grey pictures come near, not equal)")
        if linear:
            offset = torch.tensor([(mean[0] - m) / s for m, s in zip(before.mean, before.std, strict=True)]).to(weight)
            changed["patch_embed.bias"] = state["patch_embed.bias"] + kernels.sum(2) @ offset
    shape = (len(weight), -1) if linear else (len(weight), channels, *weight.shape[2:])
    changed[name] = changed[name].reshape(shape)
    preprocessing = dataclasses.replace(before, mean=mean, std=std)
    return _rebuilt(model, changed, preprocessing, {}), f"input channels {model.in_channels} → {channels}, {how}"


def _rebuilt(
    model: Model, changed: Mapping[str, Tensor], preprocessing: Preprocessing, fields: Mapping[str, Any]
) -> Model:
    """A model with other `fields` in its architecture and the same tensors, without a copy, but for the `changed` ones."""
    other = build_model({**model.architecture, **fields}, preprocessing)
    other.load_state_dict({**model.state_dict(), **changed}, assign=True)
    other.labels, other.multi_label, other.provenance = model.labels, model.multi_label, model.provenance
    return other.train(model.training)


def _size_change(old: tuple[int, int], new: tuple[int, int]) -> list[str]:
    return [] if old == new else [f"image size {by(old)} → {by(new)}"]


def _grid_change(model: Model, old: tuple[int, int] | None, resampling: Resampling) -> list[str]:
    if not isinstance(model, ViT) or old is None or old == model.grid or model.config.position == "none":
        return []
    if model.config.position == "rope":
        return [f"positions turn by the picture's side, {by(old)} patches before and {by(model.grid)} now"]
    way = "linear" if model.config.position == "relative" else resampling
    return [f"position embedding resampled in 2-D from {by(old)} to {by(model.grid)} patches ({way})"]
