"""What training minimises: one file an objective, all with the same two methods."""

from typing import Protocol

from torch import Tensor

from patchword.models.contract import Model
from patchword.training.objectives.sigmoid import Sigmoid
from patchword.training.objectives.softmax import Softmax

OBJECTIVES = {"softmax": Softmax, "sigmoid": Sigmoid}


class Objective(Protocol):
    """Labels → targets that can be mixed; images and targets → one loss for each image."""

    @property
    def num_classes(self) -> int: ...

    def targets(self, labels: Tensor) -> Tensor: ...

    def __call__(self, model: Model, images: Tensor, targets: Tensor, keep: Tensor | None = None) -> Tensor: ...
