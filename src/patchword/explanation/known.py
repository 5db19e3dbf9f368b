"""Pictures of a data set beside those that are explained: the nearest to each, and a map of them all."""

import dataclasses

import numpy as np
import torch

from patchword.core.errors import DataError
from patchword.core.preprocessing import Preprocessing
from patchword.data.decoding.decode import decode
from patchword.data.sources import open_data
from patchword.evaluation.features import features_of
from patchword.evaluation.mistakes import thumbnail
from patchword.evaluation.predict import Looking
from patchword.explanation.embeddings import nearest, picture_map
from patchword.explanation.maps import as_images
from patchword.explanation.picture import Look
from patchword.models.contract import Model

_MOST = 1000
_NEAREST = 6
_ON_THE_MAP = 196
_TILE = 36


@dataclasses.dataclass(frozen=True)
class Neighbour:
    """A picture of a data set that is near."""

    thumbnail: str
    """A data URL."""
    label: str
    cosine: float


@dataclasses.dataclass(frozen=True)
class Atlas:
    """A map of a data set's pictures."""

    data: str
    picture: np.ndarray
    """uint8 H×W×4, transparent between thumbnails."""
    explained: float
    """The share of the features' variance along its two axes."""


class KnownPictures:
    """At most 1,000 training pictures of a data set, evenly taken, with what a model's head sees of each."""

    def __init__(self, model: Model, data: str) -> None:
        dataset = open_data(data)
        split = dataset.splits["train"]
        split = split.subset(_evenly(len(split), _MOST))
        found = features_of(model, split, Looking(what="looking for neighbours"))
        if not found.mask.any():
            raise DataError(f"{data}: none of its pictures can be read")
        self.model, self.name, self.classes = model, dataset.name, dataset.classes
        self.split, self.features = split.subset(np.flatnonzero(found.mask)), found.readable().values

    def near(self, seen: Look) -> tuple[Neighbour, ...]:
        """The nearest to a picture, the nearest first."""
        image = as_images(self.model, seen.pixels[None])
        with torch.inference_mode():
            features = self.model.features(image).float().cpu().numpy()
        order, cosines = nearest(self.features, features, _NEAREST)
        return tuple(
            Neighbour(thumbnail(decode(self.split.read(row), 3)), self._label(row), cosine)
            for row, cosine in zip(order[0].tolist(), cosines[0].tolist(), strict=True)
        )

    def atlas(self) -> Atlas:
        """Thumbnails of some of them by their features."""
        some = _evenly(len(self.features), _ON_THE_MAP)
        cells, explained = picture_map(self.features[some])
        side = int(cells.max()) + 1
        picture = np.zeros((side * _TILE, side * _TILE, 4), np.uint8)
        small = Preprocessing(image_size=(_TILE, _TILE), crop_fraction=1.0)
        for row, (y, x) in zip(some.tolist(), (cells * _TILE).tolist(), strict=True):
            tile = picture[y : y + _TILE, x : x + _TILE]
            tile[..., :3], tile[..., 3] = small.fit(decode(self.split.read(row), 3)), 255
        return Atlas(self.name, picture, float(explained.sum()))

    def _label(self, row: int) -> str:
        labels = self.split.labels[row]
        if self.split.labels.ndim == 1:
            return self.classes[int(labels)]
        return ", ".join(name for name, has in zip(self.classes, labels, strict=True) if has)


def _evenly(count: int, most: int) -> np.ndarray:
    """int64, ascending: at most so many of `count` places."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))
