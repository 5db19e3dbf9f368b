"""What is true of a model, and not of one picture: its filters, positions and heads, and whether its maps are true."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from patchword.core.progress import say
from patchword.explanation import faithfulness
from patchword.explanation.attention import HeadFigures, head_figures, patch_distances
from patchword.explanation.embeddings import position_similarity, principal_filters
from patchword.explanation.known import Atlas, KnownPictures
from patchword.explanation.maps import Choice, as_images
from patchword.explanation.picture import Look
from patchword.models.contract import Model
from patchword.models.hybrid import StemmedViT
from patchword.models.vit import ViT

ARRAYS = ("attention_distance", "attention_entropy", "filters", "filters_explained", "position_similarity")
"""The names of a model's numbers in a file."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """The facts; what a model has not is None."""

    truth: tuple[faithfulness.Figure, ...] = ()
    heads: HeadFigures | None = None
    even: tuple[float, float] = (0.0, 0.0)
    """Distance and entropy of attention to all alike."""
    filters: np.ndarray | None = None
    """k×P×P×C."""
    explained: np.ndarray | None = None
    """k: the share of the filters' variance along each."""
    projection: bool = True
    """Whether they are a ViT's patch projection, else a convolution's kernels."""
    positions: np.ndarray | None = None
    """h×w×h×w, of the kind `position`."""
    position: str = "none"
    atlas: Atlas | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """Its numbers of the model, for a file."""
        of_heads = (None, None) if self.heads is None else (self.heads.distance, self.heads.entropy)
        found = zip(ARRAYS, (*of_heads, self.filters, self.explained, self.positions), strict=True)
        return {name: array for name, array in found if array is not None}


def facts_of(
    model: Model,
    choice: Choice,
    looks: Sequence[Look],
    wanted: int | None = None,
    known: KnownPictures | None = None,
    tell: Callable[[int, int], None] | None = None,
) -> Facts:
    """The facts of a model; what needs pictures is of those that were looked at, for the class `wanted` or the likeliest.

    Whether the maps of `choice` are true is measured where there is somebody to `tell` how far it has come.
    """
    images = torch.empty(0, model.in_channels, *model.image_size)
    if looks:
        images = as_images(model, np.stack([seen.pixels for seen in looks]))
    filters, explained = principal_filters(model)
    truth: list[faithfulness.Figure] = []
    if tell is not None and not all(side in faithfulness.SIDES for side in model.image_size):
        height, width = model.image_size
        say(
            f"note: whether the maps are true is not measured at {height}×{width}: the objects for it are drawn in pictures of "
            f"{faithfulness.SIDES[0]} to {faithfulness.SIDES[-1]:,} pixels a side"
        )
    elif tell is not None:
        classes = None
        if model.num_classes:
            classes = torch.tensor([seen.classes[seen.place(wanted)] for seen in looks], dtype=torch.int64)
        objects = faithfulness.known_objects(model.image_size, model.in_channels)
        truth = faithfulness.check(model, choice, images, classes, objects, tell)
    facts = Facts(
        truth=tuple(truth),
        filters=filters,
        explained=explained,
        projection=isinstance(model, ViT) and not isinstance(model, StemmedViT),
        atlas=None if known is None else known.atlas(),
    )
    if not isinstance(model, ViT):
        return facts
    between = patch_distances(model)
    return dataclasses.replace(
        facts,
        heads=head_figures(model, images) if looks else None,
        even=(float(between.mean()), math.log2(model.prefix + len(between))),
        positions=position_similarity(model).numpy() if model.config.position != "none" else None,
        position=model.config.position,
    )
