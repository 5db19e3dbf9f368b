"""What two claims of the paper see inside a model, a number for each figure: attention reaches further with depth, and position
embeddings know rows and columns (section 4.5, Figure 7).

Letters: L layers, H heads.
"""

import functools
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from patchword.core.picture import DecodeError
from patchword.data.dataset import Split
from patchword.data.decoding.decode import decode
from patchword.explanation.attention import head_figures
from patchword.explanation.embeddings import position_table
from patchword.explanation.faithfulness import known_objects
from patchword.explanation.maps import as_images
from patchword.explanation.structure import depth_trend, grid_structure
from patchword.explanation.untrained import untrained
from patchword.models.contract import Model
from patchword.models.vit import ViT
from patchword.weights import shipped
from patchword.weights.io import load_model

DEPTH, GRID, LINES = "depth", "grid", "lines"
DRAWS = 9
"""Of new weights for each seed, over which the control is the mean: of a single one, chance is most of the interval."""
_CONTROLS = 3
PICTURES = 128
"""That attention distances are the mean over, as in the paper."""


def _depth(model: ViT, images: Tensor) -> float:
    return depth_trend(head_figures(model, images).distance).correlation


def _grid(model: ViT, images: Tensor) -> float:
    return grid_structure(position_table(model).numpy(), model.grid).additive


def _lines(model: ViT, images: Tensor) -> float:
    return grid_structure(position_table(model).numpy(), model.grid).aligned


FIGURES: dict[str, Callable[[ViT, Tensor], float]] = {DEPTH: _depth, GRID: _grid, LINES: _lines}
"""Spearman's correlation of the heads' distances with their depth; the share of the position embeddings' variance that one
vector for each row and column explains; by how much more alike patches of one line are than patches as far apart off it."""


def figure(name: str, model: Model, split: Split, *, new_weights: int | None = None) -> float:
    """A figure of a ViT over the first 128 pictures of a split.

    With `new_weights`, a seed, the mean over nine of the same network untrained; no two seeds have one in common.
    """
    images = as_images(model, _first(model, split))
    if new_weights is not None:
        return _untrained(name, model, images, range(DRAWS * new_weights, DRAWS * (new_weights + 1)))
    assert isinstance(model, ViT)
    return FIGURES[name](model, images)


def _first(model: Model, split: Split) -> np.ndarray:
    """uint8 B×H×W×C: the first pictures that can be read."""
    found: list[np.ndarray] = []
    for index in range(len(split)):
        try:
            found.append(model.preprocessing.fit(decode(split.read(index), model.in_channels)))
        except DecodeError:
            continue
        if len(found) == PICTURES:
            break
    return np.stack(found)


@functools.cache  # weights in the package do not change, and a study asks after each of its runs
def shipped_depth() -> str:
    """What the weights that come with the package say about distance and depth, over drawn pictures."""
    lines = []
    for name, model in _shipped():
        if model.config.depth < 2:
            lines.append(f"{name} has a single layer, and so no trend")
            continue
        pixels, _ = known_objects(model.image_size, model.in_channels)
        images = as_images(model, pixels)
        found = depth_trend(head_figures(model, images).distance)
        lines.append(
            f"in {name} distance ({found.layers[0]:.1f} px in the first layer, {found.layers[-1]:.1f} in the last) and depth "
            f"correlate by {found.correlation:.2f}, untrained by {_untrained(DEPTH, model, images):.2f}, and by as much in "
            f"{found.p_value:.3f} of the orders of its layers"
        )
    return _told(lines)


@functools.cache
def shipped_lines() -> str:
    """What they say about position embeddings, where these are learned."""
    lines, nothing = [], torch.empty(0)  # positions need no images
    for name, model in _shipped():
        if model.config.position != "1d" or min(model.grid) < 3:
            continue
        found = grid_structure(position_table(model).numpy(), model.grid)
        lines.append(
            f"in {name} rows and columns explain {found.additive:.2f} of the variance, untrained "
            f"{_untrained(GRID, model, nothing):.2f}, of that of shuffled patches {found.additive_by_chance:.2f} "
            f"(p = {found.additive_p:.3f}), and patches of a line are more alike by {found.aligned:.2f}, untrained by "
            f"{_untrained(LINES, model, nothing):.2f} (p = {found.aligned_p:.3f})"
        )
    return _told(lines)


def _untrained(name: str, model: Model, images: Tensor, seeds: Iterable[int] = range(_CONTROLS)) -> float:
    """The mean of a figure over the same network with new weights of these seeds."""
    found = []
    for seed in seeds:
        new = untrained(model, images, seed)
        assert isinstance(new, ViT)
        found.append(FIGURES[name](new, images))
    return float(np.mean(found))


def _shipped() -> list[tuple[str, ViT]]:
    models = [(name, load_model(f"{shipped.PREFIX}{name}")) for name in shipped.names()]
    return [(name, model) for name, model in models if isinstance(model, ViT)]


def _told(lines: list[str]) -> str:
    return f"Of the weights that come with the package: {'; '.join(lines)}." if lines else ""
