"""The learning rate of a model, by halving, on pictures that are neither learned from nor tested on.

Four rates a factor of about three apart, as in the paper's Table 4, get a quarter of the budget each; the better two get half of
it; the better of these is taken (successive halving, arXiv 1502.07943). Every model gets the same search: twice the budget of a
run. It begins at the recipe's own rate, whose multiples these are.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from patchword.core import files
from patchword.core.errors import DivergedError
from patchword.data.dataset import Dataset
from patchword.studies.grid import Cell, Grid, Outcome
from patchword.training.recipe import Budget, Recipe
from patchword.training.run_folder import EVALUATION

FACTORS = (0.15, 0.5, 1.5, 5.0)
ROUNDS = (0.25, 0.5)
"""Shares of the budget; half of the rates go on to the next."""
DEVELOPMENT = 0.1
"""The share of train that the search chooses by, where a data set has no validation for it."""
COST = sum(share * (len(FACTORS) >> place) for place, share in enumerate(ROUNDS))
"""Of a whole search, in budgets."""


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search came to."""

    factor: float
    """On the recipe's own rate."""
    rate: float
    trials: tuple[dict[str, Any], ...]
    """`rate`, `share` of the budget, `accuracy` on the pictures that were set aside (None: diverged), and its `seconds`."""

    @property
    def at_edge(self) -> bool:
        """Whether a rate beyond those tried might be better still."""
        return self.factor in (FACTORS[0], FACTORS[-1])


def with_rate(recipe: Recipe, factor: float) -> Recipe:
    """The recipe with all its learning rates so many times as high, to four figures."""
    optimizer = recipe.optimizer
    rates = {name: float(f"{factor * getattr(optimizer, name):.4g}") for name in ("lr", "matrix_lr")}
    return dataclasses.replace(recipe, optimizer=dataclasses.replace(optimizer, **rates))


def part_of(budget: Budget, share: float) -> Budget:
    """A share of a budget, of one step at least."""
    if budget.steps:
        return dataclasses.replace(budget, steps=max(1, round(share * budget.steps)))
    parts = [float(f"{share * whole:.6g}") for whole in (budget.epochs, budget.minutes, budget.pflop)]
    return Budget(epochs=parts[0], minutes=parts[1], pflop=parts[2])


def tried(recipe: Recipe, dataset: Dataset) -> Recipe:
    """A recipe as the search tries it: measured on validation, or on a part of train where the data set has none beside test."""
    if {"validation", "test"} <= set(dataset.splits):
        return dataclasses.replace(recipe, learn_validation=False)
    train = len(dataset.splits["train"])
    left = train - round(DEVELOPMENT * train)
    few = recipe.train_images if recipe.train_images < left else 0
    return dataclasses.replace(recipe, validation_share=DEVELOPMENT, train_images=few)


def trials(place: str, title: str, recipe: Recipe, factors: Sequence[float], share: float) -> list[Cell]:
    """A round of the search as cells: `recipe` with a share of its budget, measured on validation."""
    cells = []
    for factor in factors:
        tried = with_rate(recipe, factor)
        rate = f"{tried.optimizer.lr:g}"
        tried = dataclasses.replace(
            tried,
            budget=part_of(recipe.budget, share),
            evaluation=dataclasses.replace(recipe.evaluation, final="validation"),
        )
        cells.append(Cell(f"{place}/rate-{rate}-{share:g}", f"{title}, rate {rate}, {share:g} of the budget", tried))
    return cells


def search(grid: Grid, place: str, title: str, recipe: Recipe) -> Found:
    """The best rate for a recipe. Raises `DivergedError` where every one diverges."""
    factors, rows = FACTORS, []
    for number in range(len(ROUNDS)):
        outcomes = grid.run(trials(place, title, recipe, factors, ROUNDS[number]))
        rows += [_row(outcome, ROUNDS[number]) for outcome in outcomes]
        factors = _better(factors, outcomes, number)
        if not factors:
            raise DivergedError(
                f"{title}: training diverges at every rate tried; a recipe with a lower one would be right"
            )
    return Found(factors[0], with_rate(recipe, factors[0]).optimizer.lr, tuple(rows))


def ahead(grid: Grid, place: str, title: str, recipe: Recipe) -> tuple[list[Cell], list[Cell], float | None]:
    """What a search will run, as far as it is known by now; cells that cost as much as its others; the factor it came to.

    Nothing is run. The factor is None until the search has ended.
    """
    factors, known = FACTORS, []
    for number, share in enumerate(ROUNDS):
        cells = trials(place, title, recipe, factors, share)
        known += cells
        if not all(grid.finished(cell) for cell in cells):
            later = range(number + 1, len(ROUNDS))
            like = [trials(place, title, recipe, FACTORS[: len(FACTORS) >> each], ROUNDS[each]) for each in later]
            return known, [cell for cells in like for cell in cells], None
        factors = _better(factors, [grid.outcome(cell) for cell in cells], number)
    return known, [], factors[0] if factors else None


def _better(factors: tuple[float, ...], outcomes: Sequence[Outcome], number: int) -> tuple[float, ...]:
    """The better half of a round, ascending; those that diverged are not among them."""
    order = sorted(range(len(factors)), key=lambda each: _worth(outcomes[each]), reverse=True)
    best = order[: len(FACTORS) >> (number + 1)]
    return tuple(sorted(factors[each] for each in best if not outcomes[each].diverged))


def _row(outcome: Outcome, share: float) -> dict[str, Any]:
    return {
        "rate": outcome.cell.recipe.optimizer.lr,
        "share": share,
        "accuracy": outcome.value,
        "seconds": outcome.result["seconds"],
    }


def _worth(outcome: Outcome) -> tuple[float, float, float]:
    """Accuracy; where it is equal, the loss; where that is, too, the lower rate."""
    if outcome.value is None:
        return (-1.0, -math.inf, 0.0)
    loss = files.read_json(outcome.folder / EVALUATION)["loss"]
    return (outcome.value, -(math.inf if loss is None else loss), -outcome.cell.recipe.optimizer.lr)
