"""One update: a batch → gradients → new weights.

Letters: B images of this process's share of a batch, K classes, N patches, n patches that are kept.
"""

import numpy as np
import torch
from torch import Tensor

from patchword.data.loader import Batch
from patchword.data.mixing import erase, mix
from patchword.data.plan import uniform
from patchword.models.chance import PATCH_DROPOUT, Chance
from patchword.models.contract import Model
from patchword.training.passes import Part, Passes
from patchword.training.recipe import Recipe
from patchword.training.sharded import full


def gradients(passes: Passes, batch: Batch, recipe: Recipe, step: int) -> tuple[float, float]:
    """Give the model the gradient of the mean loss over the whole batch; this process's share of that mean, and the norm.

    The batch passes through the model in parts of `recipe.micro_batch` images whose gradients add up: the caches hold the
    activations of a part. Nothing that is drawn depends on how it is parted, or on how many processes share it.
    """
    model, augment, seed = passes.model, recipe.augment, recipe.seed
    images = model.preprocessing.normalize(batch.images.to(passes.device))
    images = erase(images, augment, seed=seed, epochs=batch.epochs, ids=batch.ids)
    weights = batch.weights.to(passes.device)
    # A bad picture has no label either: none of it is mixed into another's.
    labels = batch.labels.to(passes.device)
    targets = passes.objective.targets(labels, batch.ids) * weights[:, None]
    [total_weight] = passes.world.sum(weights.sum().item())
    importance = passes.objective.weigh(labels)
    if importance is not None:  # mixed as the labels are
        targets = torch.cat([targets, importance[:, None]], dim=1)
    images, targets = mix(images, targets, augment, seed=seed, step=step)
    if importance is not None:
        targets, weights = targets[:, :-1], weights * targets[:, -1]
    weights = weights / max(1.0, total_weight)

    key = int(uniform(seed, "regularization", step, np.zeros(1, np.int64)).item() * 2**53)
    keep = _draw_patches(model, images, recipe.regularization.patch_dropout, Chance(key, batch.first))
    pieces = []
    for rows in parts(len(images), recipe, passes):
        kept = None if keep is None else keep[rows]
        chance = Chance(key, batch.first + rows.start)
        pieces.append(Part(images[rows], targets[rows], weights[rows], kept, chance))
    for parameter in passes.learning:
        parameter.grad = None
    loss = passes.backward(pieces)
    norm = torch.nn.utils.get_total_norm([p.grad for p in passes.learning if p.grad is not None])
    return loss, full(norm).item()


def update(passes: Passes, optimizer: torch.optim.Optimizer, norm: float, clip_norm: float) -> None:
    """Change the weights by their gradients, whose global norm is known."""
    if clip_norm:
        total = torch.tensor(norm, device=passes.device)
        torch.nn.utils.clip_grads_with_norm_(passes.learning, clip_norm, total)
    optimizer.step()


def train_step(
    passes: Passes, optimizer: torch.optim.Optimizer, batch: Batch, recipe: Recipe, step: int
) -> tuple[float, float]:
    """Both, unguarded: the mean loss (this process's share of it) before the update, and the gradient norm before clipping."""
    loss, norm = gradients(passes, batch, recipe, step)
    update(passes, optimizer, norm, recipe.optimizer.clip_norm)
    return loss, norm


def parts(count: int, recipe: Recipe, passes: Passes) -> list[slice]:
    """The rows of each part. All processes have as many, none of them empty: passes of one are waited for by the others."""
    size, world = recipe.micro_batch, passes.world
    bounds = list(range(0, count, size))
    if world.count > 1:
        shares = world.shares(recipe.batch_size)
        number = min(-(-max(shares) // size), min(shares))
        bounds = [count * part // number for part in range(number)]
    return [slice(low, high) for low, high in zip(bounds, [*bounds[1:], count], strict=True)]


def kept_patches(grid: tuple[int, int], patch_dropout: float) -> int:
    """How many patches of a grid h×w each image keeps."""
    return max(1, round(grid[0] * grid[1] * (1 - patch_dropout)))


def _draw_patches(model: Model, images: Tensor, patch_dropout: float, chance: Chance) -> Tensor | None:
    """For each image a random choice of patches, int64 B×n in raster order; None to keep all."""
    if not patch_dropout or model.grid is None:
        return None
    N, kept = model.grid[0] * model.grid[1], kept_patches(model.grid, patch_dropout)
    return chance.uniform(PATCH_DROPOUT, (len(images), N), images).topk(kept).indices.sort().values
