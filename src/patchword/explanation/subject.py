"""Who is asked where it looks, and for what: a model with the map and the class that were chosen."""

import dataclasses
from typing import Literal

import numpy as np
import torch

from patchword.core.errors import UsageError, nearest
from patchword.explanation.attention import Layer, asker
from patchword.explanation.maps import Choice, Kind, as_images, choose
from patchword.explanation.overlay import overlay
from patchword.explanation.picture import probabilities
from patchword.models.contract import Model
from patchword.models.vit import ViT

Says = list[tuple[str, float]]
"""Labels with what a model gives them, the likeliest first."""

_SAID = 5


@dataclasses.dataclass(frozen=True)
class Beside:
    """A picture as another model sees it."""

    model: str
    source: str
    map_words: str
    says: Says
    overlay: np.ndarray
    """uint8 H×W×3."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """The model that is asked."""

    model: Model
    choice: Choice
    """The map that is shown first, and as the overlay."""
    wanted: int | None = None
    """The class that maps are for; None: the likeliest."""
    source: str = ""
    """Where its weights come from, as it was said; nothing of a model that was given itself."""

    @property
    def words(self) -> str:
        """What its map is called, with the class that was asked for."""
        if self.wanted is None or not self.choice.for_class:
            return self.choice.words
        return f"{self.choice.words} for {self.labels[self.wanted]}"

    @property
    def labels(self) -> tuple[str, ...]:
        """Of all its classes; where they have no names, their numbers."""
        return labels_of(self.model)

    @property
    def asker(self) -> str | None:
        """Who asks in a rollout, in words; None without attention."""
        return asker(self.model) if isinstance(self.model, ViT) else None

    @property
    def layer_asker(self) -> str | None:
        """Who asks in a layer."""
        averaged = isinstance(self.model, ViT) and self.model.config.pool != "token"
        return "the mean patch" if averaged else self.asker

    def says(self, shares: np.ndarray) -> Says:
        """The likeliest classes and their shares, of K."""
        order = (-shares).argsort(kind="stable")[:_SAID]
        return [(self.labels[i], float(shares[i])) for i in order.tolist()]

    def glance(self, pixels: np.ndarray) -> Beside:
        """What it makes of uint8 H×W×C, as far as that stands beside another's."""
        image = as_images(self.model, pixels[None])
        classes = None if self.wanted is None else torch.tensor([self.wanted])
        says = self.says(probabilities(self.model, image))
        drawn = overlay(pixels, self.choice.of(self.model, image, classes)[0].cpu().numpy())
        return Beside(self.model.name, self.source, self.words, says, drawn)


def subject_of(
    model: Model,
    kind: Kind | Literal["auto"] = "auto",
    layer: Layer | None = None,
    head: int | None = None,
    label: str | None = None,
    source: str = "",
) -> Subject:
    """The model with the map that is asked for (`maps.choose`) and the class called `label`; raises `UsageError`."""
    choice = choose(model, kind, layer, head, for_class=label is not None)
    if label is None:
        return Subject(model, choice, source=source)
    labels = labels_of(model)
    if not labels:
        raise UsageError(f"{model.name} has no head, so it knows no {label!r}")
    if label not in labels:
        raise UsageError(f"{model.name} knows no class {label!r}; {nearest(label, labels)}")
    return Subject(model, choice, labels.index(label), source)


def labels_of(model: Model) -> tuple[str, ...]:
    """The names of its classes; where they have none, their numbers."""
    return model.labels or tuple(str(i) for i in range(model.num_classes))
