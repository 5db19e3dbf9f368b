"""Several labels a picture: an independent yes or no for each (big_vision's loss for JFT and ImageNet-21k)."""

import dataclasses

import torch.nn.functional as F
from torch import Tensor

from patchword.models.contract import Model


@dataclasses.dataclass(frozen=True)
class Sigmoid:
    """The loss of each image is the sum over the K labels of the binary cross-entropy."""

    num_classes: int
    label_smoothing: float = 0.0

    def targets(self, labels: Tensor) -> Tensor:
        """Float B×K of 0 and 1, or int64 B of single labels → B×K; smoothing moves each towards one half."""
        hard = F.one_hot(labels, self.num_classes).float() if labels.ndim == 1 else labels
        return hard * (1 - self.label_smoothing) + self.label_smoothing / 2

    def __call__(self, model: Model, images: Tensor, targets: Tensor, keep: Tensor | None = None) -> Tensor:
        """Normalised images B×C×H×W and targets B×K → losses B; `keep` are the patches to look at, B×n."""
        return F.binary_cross_entropy_with_logits(
            model.head(model.features(images, keep)), targets, reduction="none"
        ).sum(dim=1)
