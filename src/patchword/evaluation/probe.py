"""The linear probe: multinomial logistic regression on features that stand still, with an L2 penalty chosen on held-out pictures.

It is the floor of every fine-tuning: what tunes all of a model and ends below its probe has gone wrong.

Letters: n training pictures, D width of the features, K classes.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from patchword.core.errors import DataError
from patchword.core.runtime import Crew

STRENGTHS = tuple(10.0**exponent for exponent in range(1, -7, -1))
"""Of the penalty, beside the mean loss of a picture, from the strongest: each fit starts where the one before has ended."""
FITS = len(STRENGTHS) + 3
"""How many fits a probe takes at most."""
_LEAST_STD = 1e-5
_ITERATIONS = 300
_GRADIENT = 1e-6
"""The largest entry of the gradient at which a fit has come to its end."""
_SMALL = 1e8
"""Multiply-adds of one look at all pictures, below which a second core only waits for the first."""


@dataclasses.dataclass(frozen=True)
class Probe:
    """A linear classifier on features."""

    weight: np.ndarray
    """D×K, for the features as they come."""
    bias: np.ndarray
    """K."""
    strength: float
    """Of the penalty that was chosen."""
    chosen_at: float
    """The accuracy on the held-out pictures that it was chosen for."""

    def logits(self, features: np.ndarray) -> np.ndarray:
        """m×D → m×K."""
        return features @ self.weight + self.bias


def linear_probe(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    held_out: np.ndarray | tuple[np.ndarray, np.ndarray],
    num_classes: int,
    *,
    tick: Callable[[int], object] = lambda _: None,
) -> Probe:
    """Fit a probe to n×D features and int64 labels n.

    `held_out` are the features and the labels of other pictures, which choose the strength and are not learned from; or the
    indices of training pictures: these choose it, and then a fit to all has it. Of the decades, and then of the half decades
    beside the best, that with the highest accuracy there wins, the strongest where several have it. `tick` is called after
    each fit with how many have been made.
    """
    values, labels = torch.as_tensor(train_features).double(), torch.as_tensor(train_labels)
    if isinstance(held_out, tuple):
        fitted, fitted_labels = values, labels
        others, truth = torch.as_tensor(held_out[0]).double(), torch.as_tensor(held_out[1])
    else:
        mask = torch.zeros(len(labels), dtype=torch.bool)
        mask[torch.as_tensor(held_out)] = True
        fitted, fitted_labels, others, truth = values[~mask], labels[~mask], values[mask], labels[mask]
    if not len(fitted) or not len(others):
        raise DataError("a linear probe needs pictures to learn from and others to choose its penalty by")

    def try_all(strengths: tuple[float, ...], start: Tensor | None) -> list[tuple[float, float, Tensor]]:
        """Accuracy on the held-out pictures, strength and solution of each."""
        tried = []
        for strength in strengths:
            start = problem.solve(strength, start)
            said = problem.logits(others, start).argmax(1)
            tried.append(((said == truth).double().mean().item(), strength, start))
            tick(len(found) + len(tried))
        return tried

    problem = _Problem(fitted, fitted_labels, num_classes)
    found: list[tuple[float, float, Tensor]] = []
    found += try_all(STRENGTHS, None)
    _, best, solution = max(found, key=lambda each: each[:2])
    found += try_all((best * 10**0.5, best * 10**-0.5), solution)
    accuracy, strength, solution = max(found, key=lambda each: each[:2])
    if not isinstance(held_out, tuple):
        problem = _Problem(values, labels, num_classes)
        solution = problem.solve(strength, solution)
        tick(len(found) + 1)
    weight = solution[:-1] / problem.std[:, None]
    bias = solution[-1] - problem.mean @ weight
    return Probe(weight.numpy(), bias.numpy(), strength, accuracy)


class _Problem:
    """Minimise the mean cross-entropy + strength/2 · Σ weight², over standardised features; the bias pays nothing."""

    def __init__(self, features: Tensor, labels: Tensor, num_classes: int) -> None:
        self.mean, self.std = features.mean(0), features.std(0, correction=0) + _LEAST_STD
        self.x, self.y, self.num_classes = (features - self.mean) / self.std, labels, num_classes

    def logits(self, features: Tensor, solution: Tensor) -> Tensor:
        """m×D → m×K; the last row of the solution, D+1×K, is the bias."""
        return torch.addmm(solution[-1], (features - self.mean) / self.std, solution[:-1])

    def solve(self, strength: float, start: Tensor | None) -> Tensor:
        """D+1×K, from `start` or from zeros, by L-BFGS."""
        solution = self.x.new_zeros(self.x.shape[1] + 1, self.num_classes) if start is None else start.clone()
        solution.requires_grad_()
        solver = torch.optim.LBFGS(
            [solution],
            max_iter=_ITERATIONS,
            tolerance_grad=_GRADIENT,
            tolerance_change=1e-10,
            history_size=10,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            solver.zero_grad()
            fit = F.cross_entropy(torch.addmm(solution[-1], self.x, solution[:-1]), self.y)
            loss = fit + strength / 2 * solution[:-1].square().sum()
            loss.backward()
            return loss

        small = self.x.numel() * self.num_classes < _SMALL
        with Crew(1 if small else torch.get_num_threads(), most=1):
            solver.step(closure)  # pyright: ignore[reportArgumentType] (it may return a tensor)
        return solution.detach()
