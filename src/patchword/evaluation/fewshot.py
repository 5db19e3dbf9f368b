"""Few-shot linear accuracy, in closed form: what a model knows of classes that it is shown a few pictures of (section 4.1).

Features are mapped to −1 and 1 for each class by least squares with an L2 penalty, as in big_vision's evaluator, which the
paper's figures 3 and 4 come from: equal to it to the picture.

Letters: n drawn pictures, m test pictures, D width of the features, K classes.
"""

import functools
from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from patchword.core.errors import DataError, UsageError
from patchword.core.runtime import Crew

STRENGTH = 2.0**10
"""The penalty on the weights, that of the bias included."""
SEEDS = 3
_BIAS = 100.0
"""The constant feature; large, so that its weight hardly pays the penalty."""
_LEAST_STD = 1e-5


class Ridge:
    """Least squares from whitened features to −1 and 1, factorised once for penalties of every strength."""

    def __init__(self, features: Tensor, labels: Tensor, num_classes: int) -> None:
        """Of n×D features and n labels. The smaller of the two Gram matrices is factorised: D×D, or n×n where n < D."""
        features = features.double()
        self._mean, self._std = features.mean(0), features.std(0, correction=0) + _LEAST_STD
        x = F.pad((features - self._mean) / self._std, (0, 1), value=_BIAS)
        y = 2 * F.one_hot(labels, num_classes).double() - 1
        if len(x) >= x.shape[1]:
            self._squares, self._left = torch.linalg.eigh(x.T @ x)
            self._right = self._left.T @ (x.T @ y)
        else:
            self._squares, basis = torch.linalg.eigh(x @ x.T)
            self._left, self._right = x.T @ basis, basis.T @ y

    def scores(self, features: Tensor, strength: float = STRENGTH) -> Tensor:
        """m×D → m×K, the larger the likelier."""
        weights = (self._left / (self._squares + strength)) @ self._right
        # The weights are whitened, not the features: there are fewer of them.
        whitened = weights[:-1] / self._std[:, None]
        return torch.addmm(_BIAS * weights[-1] - self._mean @ whitened, features.double(), whitened)


def draw(labels: np.ndarray, num_classes: int, shots: int, seed: int) -> np.ndarray:
    """The indices of `shots` pictures of each class, class after class; fewer shots are a part of more.

    Raises `DataError` for a class that has not so many.
    """
    generator = np.random.default_rng(seed)
    by_class, ends = np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels, minlength=num_classes))
    drawn = []
    for number, members in enumerate(np.split(by_class, ends[:-1])):
        if len(members) < shots:
            raise DataError(
                f"class {number} has {len(members):,} training pictures, fewer than {shots:,} shots; {len(members):,} or "
                "fewer would be right"
            )
        drawn.append(generator.permutation(members)[:shots])
    return np.concatenate(drawn)


def few_shot_accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    shots: int,
    seed: int = 0,
    strength: float = STRENGTH,
) -> float:
    """The share of test pictures named right after `shots` pictures of each class, drawn from train by `seed`.

    Features are n×D and m×D, labels int64 n and m. The classes are 0 … the highest label of train.
    """
    [[share]] = few_shot_accuracies(
        train_features, train_labels, test_features, test_labels, shots=[shots], seeds=[seed], strength=strength
    )
    return share


def few_shot_accuracies(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    shots: Sequence[int],
    seeds: Sequence[int] = range(SEEDS),
    strength: float = STRENGTH,
    unreadable: Collection[int] = (),
) -> list[list[float]]:
    """The same for several numbers of shots (a row each) and seeds (a column each), side by side on the cores.

    Training pictures whose indices are `unreadable` are drawn, and not learned from. A test picture of label −1 is wrong.
    """
    if not shots or min(shots) < 1:
        raise UsageError(f"shots={list(shots)} must be 1 or more, each of them")
    train, test = torch.as_tensor(train_features), torch.as_tensor(test_features).double()
    labels, truth = torch.as_tensor(train_labels), torch.as_tensor(test_labels)
    num_classes = int(labels.max()) + 1

    def share_of(count: int, seed: int) -> float:
        drawn = draw(labels.numpy(), num_classes, count, seed)
        drawn = torch.from_numpy(drawn[~np.isin(drawn, list(unreadable))])
        ridge = Ridge(train[drawn], labels[drawn], num_classes)
        said = ridge.scores(test, strength).argmax(1)
        return (said == truth).double().mean().item()

    jobs = [functools.partial(share_of, count, seed) for count in shots for seed in seeds]
    shares = list(_side_by_side(jobs))
    return [shares[row * len(seeds) : (row + 1) * len(seeds)] for row in range(len(shots))]


def _side_by_side(jobs: Sequence[Callable[[], float]]) -> Iterator[float]:
    # A factorisation on all cores waits for each of them thousands of times: one core for each is faster, and far more so
    # beside other work. That goes for the last one, too, where it is alone.
    with Crew(torch.get_num_threads()) as crew:
        for start in range(0, len(jobs), crew.size):
            group = jobs[start : start + crew.size]
            yield from crew.run(group) if len(group) > 1 else [group[0]()]
