"""What every objective offers.

Letters: B images, C channels, H×W pixels, K numbers that say what a picture should be answered with.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from patchword.core.errors import UsageError
from patchword.models.contract import Model
from patchword.models.vit import ViT


class Objective(nn.Module, ABC):
    """Labels → targets that can be mixed; images and targets → one loss for each image.

    It may have parameters, which learn with the model, are kept in checkpoints and are left behind with them: a model
    folder does not hold them.
    """

    metric: ClassVar[str] = ""
    """The name of the figure that `measure` gives, the higher the better; empty where predictions of labels are measured."""
    least: ClassVar[float] = -math.inf
    """The least that this figure can be; the most is 1."""
    choices: int = 0
    """Of how many answers one is right for a patch; 0 where none is (see `answers`)."""
    class_weights: Tensor | None
    """K: what the loss of a picture of each class is multiplied by; None: all losses count alike."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("class_weights", None, persistent=False)  # a function of recipe and labels: not kept

    def weigh(self, labels: Tensor) -> Tensor | None:
        """What the losses of B pictures are multiplied by, if anything; 1 where nobody has labelled the picture."""
        if self.class_weights is None:
            return None
        return torch.where(labels < 0, 1.0, self.class_weights.to(labels.device)[labels.clamp(min=0)])

    @abstractmethod
    def targets(self, labels: Tensor, ids: np.ndarray | None = None) -> Tensor:
        """Labels of B pictures, and their indices in the training split, → B×K."""

    @abstractmethod
    def forward(self, model: Model, images: Tensor, targets: Tensor, keep: Tensor | None = None) -> Tensor:
        """Normalised images B×C×H×W and targets B×K → losses B; `keep` are the patches to look at, B×n."""

    def measure(self, model: Model, images: Tensor) -> tuple[Tensor, Tensor]:
        """Losses B and figures B of images that nobody has labelled."""
        raise NotImplementedError(type(self).__name__)

    def answers(self, model: Model, images: Tensor) -> Tensor | None:
        """Which of the `choices` is right for each patch of normalised images, int64 B×N; None where there are none."""
        return None

    def on_meta(self) -> Callable[[Model, Tensor], object]:
        """`measure` for a model on the meta device, to be counted."""
        return copy.deepcopy(self).to("meta").measure


class Unlabelled(Objective):
    """What learns from pictures alone: the model has no head, and labels mean nothing."""

    def targets(self, labels: Tensor, ids: np.ndarray | None = None) -> Tensor:
        """Nothing to say: zeros B×1."""
        return torch.zeros(len(labels), 1, device=labels.device)

    def forward(self, model: Model, images: Tensor, targets: Tensor, keep: Tensor | None = None) -> Tensor:
        """Normalised images B×C×H×W → losses B."""
        return self.measure(model, images)[0]


def with_patches(model: Model, objective: str) -> ViT:
    """The model as a ViT; `UsageError` for others, which have nothing to hide one by one."""
    if not isinstance(model, ViT):
        raise UsageError(f"objective={objective} needs a model with patches, which {model.name} does not have")
    return model
