"""One label a picture: softmax cross-entropy (sections 4.1 and B.1.1)."""

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from patchword.models.contract import Model
from patchword.training.objectives.objective import Objective


class Softmax(Objective):
    """The loss of each image is −Σ target · log softmax(logit)."""

    def __init__(self, num_classes: int, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.num_classes, self.label_smoothing = num_classes, label_smoothing

    def targets(self, labels: Tensor, ids: np.ndarray | None = None) -> Tensor:
        """int64 B → B×K distributions; smoothing spreads a share of the label evenly over all K classes."""
        hard = F.one_hot(labels, self.num_classes).float()
        return hard * (1 - self.label_smoothing) + self.label_smoothing / self.num_classes

    def forward(self, model: Model, images: Tensor, targets: Tensor, keep: Tensor | None = None) -> Tensor:
        """Normalised images B×C×H×W and targets B×K → losses B; `keep` are the patches to look at, B×n."""
        return F.cross_entropy(model.head(model.features(images, keep)), targets, reduction="none")
