"""A teacher's answers as targets (Hinton et al., arXiv 1503.02531), and with pictures that nobody has labelled Noisy Student's.

Letters: B images, M training pictures, K classes.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from patchword.training.objectives.softmax import Softmax


class Distillation(Softmax):
    """Softmax cross-entropy with a mixture of each picture's label and of what the teacher says of it."""

    def __init__(self, num_classes: int, label_smoothing: float, answers: Tensor, share: float) -> None:
        """`answers`: M×K probabilities by index in the training split; `share`: that of the teacher in the target."""
        super().__init__(num_classes, label_smoothing)
        # No buffer, which several processes would exchange before each pass and checkpoints hold; nor a tensor of the module,
        # which replicas and trials of the speed would copy. Of ImageNet there are 5 GB.
        self._answers: Callable[[], Tensor] = lambda: answers
        self.share = share

    def targets(self, labels: Tensor, ids: np.ndarray | None = None) -> Tensor:
        """int64 B, −1 where nobody has labelled the picture → B×K; there the teacher alone decides."""
        if ids is None:
            raise ValueError("a teacher is asked about pictures of the training split, by their indices")
        said = self._answers()[torch.from_numpy(ids)].to(labels.device)
        known = (labels >= 0)[:, None]
        hard = super().targets(labels.clamp(min=0))
        return torch.where(known, hard.lerp(said, self.share), said)
