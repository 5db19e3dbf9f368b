"""What two claims of the paper see inside a model, a number for each figure: attention reaches further with depth, and position
embeddings know rows and columns (section 4.5, Figure 7).

Letters: L layers, H heads.
"""

from collections.abc import Callable

import numpy as np
from torch import Tensor

from patchword.core.picture import DecodeError
from patchword.data.dataset import Split
from patchword.data.decoding.decode import decode
from patchword.explanation.attention import head_figures
from patchword.explanation.embeddings import position_table
from patchword.explanation.faithfulness import known_objects, untrained
from patchword.explanation.maps import as_images
from patchword.explanation.structure import depth_trend, grid_structure
from patchword.models.contract import Model
from patchword.models.vit import ViT
from patchword.weights import shipped
from patchword.weights.io import load_model

DEPTH, GRID, LINES = "depth", "grid", "lines"
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
    """A figure of a ViT over the first 128 pictures of a split; with `new_weights`, a seed, of the same network untrained."""
    assert isinstance(model, ViT)
    if new_weights is not None:
        model = untrained(model, new_weights)
        assert isinstance(model, ViT)
    return FIGURES[name](model, as_images(model, _first(model, split)))


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


def shipped_depth() -> str:
    """What the weights that come with the package say about distance and depth, over drawn pictures."""
    lines = []
    for name, model in _shipped():
        if model.config.depth < 2:
            lines.append(f"{name} has a single layer, and so no trend")
            continue
        pixels, _ = known_objects(model.image_size, model.in_channels)
        found = depth_trend(head_figures(model, as_images(model, pixels)).distance)
        lines.append(
            f"in {name} distance and depth correlate by {found.correlation:.2f}, and so they do in {found.p_value:.3f} of the "
            "orders of its layers"
        )
    return _told(lines)


def shipped_lines() -> str:
    """What they say about position embeddings."""
    lines = []
    for name, model in _shipped():
        if model.config.position != "1d" or min(model.grid) < 3:
            continue
        found = grid_structure(position_table(model).numpy(), model.grid)
        lines.append(
            f"in {name} rows and columns explain {found.additive:.2f} of the variance, {found.additive_by_chance:.2f} of that "
            f"of shuffled patches (p = {found.additive_p:.3f}), and patches of a line are more alike by {found.aligned:.2f} "
            f"(p = {found.aligned_p:.3f})"
        )
    return _told(lines)


def _shipped() -> list[tuple[str, ViT]]:
    models = [(name, load_model(f"{shipped.PREFIX}{name}")) for name in shipped.names()]
    return [(name, model) for name, model in models if isinstance(model, ViT)]


def _told(lines: list[str]) -> str:
    return f"Of the weights that come with the package: {'; '.join(lines)}." if lines else ""
