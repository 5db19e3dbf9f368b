"""What a model has learned to see and to place: filters, position embeddings, feature maps, neighbours, a map of pictures.

Letters: n pictures, B images, C channels, P side of a filter, h×w places of a grid, D width, K head width.
"""

import dataclasses

import numpy as np
import torch
from torch import Tensor, nn

from patchword.core.errors import UsageError
from patchword.evaluation.predict import check_finite, comfortable_batch, evaluating
from patchword.explanation.attention import attentive
from patchword.models.contract import Model
from patchword.models.hybrid import StemmedViT
from patchword.models.resnet import StandardizedConv
from patchword.models.stem import Whitening
from patchword.models.vit import ViT


@dataclasses.dataclass(frozen=True)
class PrincipalComponents:
    """Principal components of rows n×d."""

    components: np.ndarray
    """float64 k×d, orthonormal, the most telling first; of each the largest entry is positive."""
    explained: np.ndarray
    """float64 k: the share of the rows' variance along each."""
    mean: np.ndarray
    """float64 d, of the rows."""

    def project(self, rows: np.ndarray) -> np.ndarray:
        """m×d → m×k."""
        return (rows - self.mean) @ self.components.T


def principal_components(rows: np.ndarray, count: int) -> PrincipalComponents:
    """The first `count` principal components of n×d, or as many as there are."""
    rows = np.asarray(rows, dtype=np.float64)
    mean = rows.mean(axis=0)
    _, scales, components = np.linalg.svd(rows - mean, full_matrices=False)
    count = min(count, len(components))
    components = components[:count]
    signs = np.sign(components[np.arange(count), np.abs(components).argmax(axis=1)])
    shares = scales**2 / max(float((scales**2).sum()), 1e-300)
    return PrincipalComponents(components * np.where(signs == 0, 1, signs)[:, None], shares[:count], mean)


def first_filters(model: Model) -> Tensor:
    """D×C×P×P, what pixels meet first: the patch projection of a ViT, else the first convolution, learned or fixed."""
    if isinstance(model, ViT) and not isinstance(model, StemmedViT):
        side = model.config.patch_size
        return model.patch_embed.weight.detach().unflatten(1, (model.in_channels, side, side))
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d | Whitening))
    if isinstance(first, Whitening):
        return first.kernels.detach()
    kernels = first.kernel() if isinstance(first, StandardizedConv) else first.weight
    return kernels.detach()


def principal_filters(model: Model, count: int = 28) -> tuple[np.ndarray, np.ndarray]:
    """The principal components of the first filters, k×P×P×C, and the share of their variance along each (Figure 7, left)."""
    filters = first_filters(model).float().cpu()
    found = principal_components(filters.flatten(1).numpy(), count)
    return found.components.reshape(-1, *filters.shape[1:]).transpose(0, 2, 3, 1), found.explained


def position_similarity(model: Model) -> Tensor:
    """h×w×h×w: the cosine between the position embeddings of two patches (Figure 7, centre), symmetric, 1 on the diagonal.

    A model with relative positions has no embedding of a patch; in its place stand the keys of its offsets to all tokens in
    all blocks. Of one that turns queries and keys, it is the mean cosine of the angle between the turns. Raises `UsageError`
    for a model that is told no positions.
    """
    vit = attentive(model)
    if vit.config.position == "none":
        raise UsageError(f"{vit.name} was made with position=none: there is no embedding to compare")
    kinds = {"relative": _relative_products, "rope": _rotary_products}
    products = kinds.get(vit.config.position, _products)(vit)
    lengths = products.diagonal().clamp_min(0).sqrt()
    below = lengths[:, None] * lengths
    similarity = torch.where(below > 0, products / below.clamp_min(1e-300), 0.0).clamp(-1, 1)
    similarity.fill_diagonal_(1)
    return similarity.float().unflatten(1, vit.grid).unflatten(0, vit.grid)


def position_table(model: Model) -> Tensor:
    """N×D, what is added to the patch tokens; raises `UsageError` where nothing is (`none`, `relative`, `rope`)."""
    vit = attentive(model)
    table = vit.position.patches()
    if table is None:
        raise UsageError(f"{vit.name} was made with position={vit.config.position}: nothing is added to its patches")
    return table.detach()


def feature_colours(model: Model, images: Tensor) -> np.ndarray:
    """B×C×H×W → float32 B×h×w×3 in 0…1: the first three principal components of the last feature map as red, green and blue.

    They are those of all the images together, so that one colour means one thing; the outermost hundredths are cut off.
    Raises `DivergedError` for features that are not finite.
    """
    device = next(model.parameters()).device
    with evaluating(model), torch.inference_mode():
        parts = [model.feature_map(batch.to(device)).float().cpu() for batch in images.split(comfortable_batch(model))]
    maps = torch.cat(parts).permute(0, 2, 3, 1).numpy()
    rows = maps.reshape(-1, maps.shape[-1])
    check_finite(model, rows)
    found = principal_components(rows, 3).project(rows)
    low, high = np.percentile(found, [1, 99], axis=0)
    colours = np.zeros((len(rows), 3))
    colours[:, : found.shape[1]] = ((found - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    return colours.reshape(*maps.shape[:3], 3).astype(np.float32)


def nearest(features: np.ndarray, of: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """For each row of B×D the `count` rows of n×D with the largest cosine, nearest first: indices int64 and cosines, B×k."""
    known, asked = _unit_rows(features), _unit_rows(of)
    count = min(count, len(known))
    cosines = asked @ known.T
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
    return order, np.take_along_axis(cosines, order, axis=1)


def picture_map(features: np.ndarray, side: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """n×D → cells of a square of `side` (0: a little more than holds all), int64 n×2 (row, column), no two the same; and the
    share of the variance that the two axes hold, float64 2.

    Across is the first principal component, down the second; a picture whose cell is taken moves to the nearest that is free.
    """
    n = len(features)
    side = side or int(np.ceil(1.2 * np.sqrt(n)))
    if side * side < n:
        raise ValueError(f"{n} pictures do not fit in {side}×{side} cells")
    found = principal_components(features, 2)
    places = np.zeros((n, 2))
    places[:, : found.components.shape[0]] = found.project(features)
    # By rank, so that a few far away do not press all others together.
    ranks = np.argsort(np.argsort(places, axis=0, kind="stable"), axis=0, kind="stable")
    wanted = (ranks[:, ::-1] + 0.5) * side / n
    rows, columns = np.divmod(np.arange(side * side), side)
    free, cells = np.ones(side * side, dtype=bool), np.zeros((n, 2), dtype=np.int64)
    for i in range(n):
        far = (rows + 0.5 - wanted[i, 0]) ** 2 + (columns + 0.5 - wanted[i, 1]) ** 2
        cell = int(np.where(free, far, np.inf).argmin())
        free[cell] = False
        cells[i] = rows[cell], columns[cell]
    return cells, found.explained


def _rotary_products(vit: ViT) -> Tensor:
    """N×N: products of the unit vectors that two patches turn alike."""
    rotation = vit.blocks[0].attention.rotation
    assert rotation is not None
    angles = rotation.angles(torch.device("cpu"))[vit.prefix :].double()
    turned = torch.cat([angles.cos(), angles.sin()], dim=1)
    return turned @ turned.T


def _products(vit: ViT) -> Tensor:
    """float64 N×N: of what is added to two patches."""
    table = position_table(vit).double().cpu()
    return table @ table.T


def _relative_products(vit: ViT) -> Tensor:
    """float64 N×N: of the keys that two patches meet all tokens with, in all blocks.

    Patch p asks token q with the key of offset p − q, so its keys are a window of the table, and the product with those of
    patch p + d a window of the products of rows that lie d apart.
    """
    keys = [block.attention.relative for block in vit.blocks if block.attention.relative is not None]
    table = torch.cat([each.table.detach() for each in keys], dim=1).double().cpu()
    tokens = (len(table) + 1) // 2
    patches = tokens - vit.prefix
    products = torch.zeros(patches, patches, dtype=torch.float64)
    for apart in range(patches):
        each = (table[: len(table) - apart] * table[apart:]).sum(1)
        sums = torch.cat([each.new_zeros(1), each.cumsum(0)])
        first = torch.arange(vit.prefix, tokens - apart)
        diagonal = sums[first + tokens] - sums[first]
        products.diagonal(apart).copy_(diagonal)
        products.diagonal(-apart).copy_(diagonal)
    return products


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
