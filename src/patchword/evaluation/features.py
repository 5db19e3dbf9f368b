"""What the body of a model makes of pictures, before the head: computed once for all that is measured on it."""

import dataclasses

import numpy as np
import torch
from torch import Tensor

from patchword.data.dataset import Split
from patchword.data.loader import Batch
from patchword.evaluation.memory import remembered
from patchword.evaluation.predict import Looking, check_finite, look_at_all, why_unreadable
from patchword.models.contract import Model


@dataclasses.dataclass(frozen=True)
class Features:
    """The features of every picture of a split, in order."""

    values: np.ndarray
    """float32 n×D, what the last linear layer sees (`Model.features`); rows of unreadable pictures are zero."""
    labels: np.ndarray
    """int64 n, the class of each picture."""
    unreadable: dict[int, str]
    """Index → reason. These pictures are not learned from, and in a test they count as wrong."""

    @property
    def mask(self) -> np.ndarray:
        """bool n: whether each picture could be read."""
        mask = np.ones(len(self.labels), dtype=bool)
        mask[list(self.unreadable)] = False
        return mask

    def readable(self) -> "Features":
        """Those of the pictures that could be read."""
        return Features(self.values[self.mask], self.labels[self.mask], {})


def features_of(model: Model, split: Split, how: Looking = Looking(what="computing features")) -> Features:
    """The features of each picture of a split, as evaluation sees it, or those remembered from before.

    They are remembered by weights, pictures and resolution (`evaluation/memory.py`).
    """

    def compute() -> dict[str, Tensor]:
        values = np.zeros((len(split), model.num_features), dtype=np.float32)

        def look(batch: Batch, images: Tensor) -> None:
            values[batch.ids] = model.features(images).float().cpu().numpy()

        unreadable = look_at_all(model, split, look, how)
        values = how.world.add(values)  # each row is zeros everywhere but in one process
        values[list(unreadable)] = 0
        check_finite(model, values, "features")
        readable = torch.ones(len(split), dtype=torch.uint8)
        readable[list(unreadable)] = 0
        return {"features": torch.from_numpy(values), "readable": readable}

    shapes = {"features": (len(split), model.num_features), "readable": (len(split),)}
    found = remembered("features", model, split, shapes, compute, how.world)
    bad = np.flatnonzero(found["readable"].numpy() == 0).tolist()
    return Features(
        found["features"].numpy(), split.labels, {index: why_unreadable(split, how.store, index) for index in bad}
    )
