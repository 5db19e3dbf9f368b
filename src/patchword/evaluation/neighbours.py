"""Nearest neighbours: a picture is named as the training pictures are whose features point the same way.

Nothing is learned, so nothing can be tuned: what is measured is how far the features alone put like with like. As in the
protocol of DINO (arXiv 2104.14294): cosine similarity s, and a neighbour's vote weighs e^(s/0.07).
"""

import numpy as np
import torch
import torch.nn.functional as F

NEIGHBOURS = 20
TEMPERATURE = 0.07
_ROWS = 1024
"""Pictures that are compared with all of train at once."""


def votes(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    num_classes: int,
    *,
    neighbours: int = NEIGHBOURS,
) -> np.ndarray:
    """m×K: what the nearest of n training pictures (all of them where there are fewer) say of each of m others.

    Features are n×D and m×D, labels int64 n. The weights of the votes for all classes add up to 1.
    """
    known = F.normalize(torch.as_tensor(train_features).float(), dim=1)
    labels = torch.as_tensor(train_labels)
    count = min(neighbours, len(known))
    shares = torch.zeros(len(test_features), num_classes)
    for start in range(0, len(test_features), _ROWS):
        rows = F.normalize(torch.as_tensor(test_features[start : start + _ROWS]).float(), dim=1)
        near = (rows @ known.T).topk(count, dim=1)
        weights = (near.values / TEMPERATURE).softmax(1)
        shares[start : start + _ROWS].scatter_add_(1, labels[near.indices], weights)
    return shares.numpy()
