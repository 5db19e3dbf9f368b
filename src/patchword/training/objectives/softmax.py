"""One label a picture: softmax cross-entropy (sections 4.1 and B.1.1)."""

import dataclasses

import torch.nn.functional as F
from torch import Tensor

from patchword.models.contract import Model


@dataclasses.dataclass(frozen=True)
class Softmax:
    """The loss of each image is −Σ target · log softmax(logit)."""

    num_classes: int
    label_smoothing: float = 0.0

    def targets(self, labels: Tensor) -> Tensor:
        """int64 B → B×K distributions; smoothing spreads a share of the label evenly over all K classes."""
        hard = F.one_hot(labels, self.num_classes).float()
        return hard * (1 - self.label_smoothing) + self.label_smoothing / self.num_classes

    def __call__(self, model: Model, images: Tensor, targets: Tensor, keep: Tensor | None = None) -> Tensor:
        """Normalised images B×C×H×W and targets B×K → losses B; `keep` are the patches to look at, B×n."""
        return F.cross_entropy(model.head(model.features(images, keep)), targets, reduction="none")
