"""Several labels a picture: an independent yes or no for each (big_vision's loss for JFT and ImageNet-21k)."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchword.models.contract import Model
from patchword.training.objectives.objective import Objective


class Sigmoid(Objective):
    """The loss of each image is the sum over the K labels of the binary cross-entropy."""

    def __init__(self, num_classes: int, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.num_classes, self.label_smoothing = num_classes, label_smoothing

    def targets(self, labels: Tensor, ids: np.ndarray | None = None) -> Tensor:
        """Float B×K of 0 and 1, or int64 B of single labels → B×K; smoothing moves each towards one half."""
        hard = F.one_hot(labels, self.num_classes).float() if labels.ndim == 1 else labels
        return hard * (1 - self.label_smoothing) + self.label_smoothing / 2

    def forward(self, model: Model, images: Tensor, targets: Tensor, keep: Tensor | None = None) -> Tensor:
        """Normalised images B×C×H×W and targets B×K → losses B; `keep` are the patches to look at, B×n."""
        return F.binary_cross_entropy_with_logits(
            model.head(model.features(images, keep)), targets, reduction="none"
        ).sum(dim=1)


def start_at_prior(model: Model, counts: Tensor, pictures: int) -> None:
    """Let a new head answer with each label's share of the training pictures, `counts` (K) out of `pictures`.

    With thousands of labels the first steps of training would else do nothing but say no to all of them; big_vision sets
    one bias for all, −10 for JFT. A label on no picture, or on all, counts as half a picture off.
    """
    if isinstance(model.head, nn.Linear):
        share = counts.double().clamp(0.5, pictures - 0.5) / pictures
        with torch.no_grad():
            model.head.bias.copy_(share.logit())
