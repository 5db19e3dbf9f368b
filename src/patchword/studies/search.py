"""The learning rate of a model, by halving, on pictures that are neither learned from nor tested on.

Four rates a factor of about three apart, as in the paper's Table 4, get a quarter of the budget each; the better two get half of
it; the better of these is taken (successive halving, arXiv 1502.07943). It begins at the recipe's own rate, whose multiples these
are. Where the winner lies at an end of what was tried, the rate beyond gets half of the budget, too, for as long as it is better:
a model whose best rate is far from the recipe's is not to lose by that. Every model gets the same search: twice the budget of a
run, and half of it for each rate beyond.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from patchword.core import files
from patchword.core.errors import DivergedError
from patchword.data.dataset import Dataset
from patchword.studies.grid import Cell, Grid, Outcome
from patchword.training.recipe import Budget, Recipe
from patchword.training.run_folder import EVALUATION

FACTORS = (0.15, 0.5, 1.5, 5.0)
BELOW, ABOVE = (0.05, 0.015, 0.005), (15.0, 50.0, 150.0)
"""What is tried beyond either end, one after the other; further is not looked."""
ROUNDS = (0.25, 0.5)
"""Shares of the budget; half of the rates go on to the next."""
DEVELOPMENT = 0.1
"""The share of train that the search chooses by, where a data set has no validation for it."""
COST = sum(share * (len(FACTORS) >> place) for place, share in enumerate(ROUNDS))
"""Of a search that ends within the four rates, in budgets."""


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
        rates = [trial["rate"] for trial in self.trials]
        return self.rate in (min(rates), max(rates))


class Ahead(NamedTuple):
    """What a search will run, as far as it is known by now."""

    known: list[Cell]
    like: list[Cell]
    """Cells that cost as much as those that cannot be known yet."""
    factor: float | None
    """What it came to; None: it has not ended, or came to nothing."""
    lost: bool = False
    """Whether it has ended, and every rate diverges."""


def with_rate(recipe: Recipe, factor: float) -> Recipe:
    """The recipe with its learning rates so many times as high, to four figures.

    Not that of kernels, which is a share of their length.
    """
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
    if has_validation(dataset):
        return dataclasses.replace(recipe, learn_validation=False)
    train = len(dataset.splits["train"])
    left = train - round(DEVELOPMENT * train)
    few = recipe.train_images if recipe.train_images < left else 0
    return dataclasses.replace(recipe, validation_share=DEVELOPMENT, train_images=few)


def has_validation(dataset: Dataset) -> bool:
    """Whether a data set has pictures to choose by, beside those of test."""
    return {"validation", "test"} <= set(dataset.splits)


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
    rows: list[dict[str, Any]] = []

    def run(factors: Sequence[float], share: float) -> Sequence[Outcome]:
        outcomes = grid.run(trials(place, title, recipe, factors, share))
        rows.extend(_row(outcome, share) for outcome in outcomes)
        return outcomes

    factor = _halve(run)
    if factor is None:
        raise DivergedError(f"{title}: training diverges at every rate tried; a recipe with a lower one would be right")
    return Found(factor, with_rate(recipe, factor).optimizer.lr, tuple(rows))


def ahead(grid: Grid, place: str, title: str, recipe: Recipe) -> Ahead:
    """What a search will run; nothing is run."""
    known: list[Cell] = []

    def recall(factors: Sequence[float], share: float) -> Sequence[Outcome]:
        cells = trials(place, title, recipe, factors, share)
        known.extend(cells)
        if not all(grid.finished(cell) for cell in cells):
            raise _NotRunYet(share)
        return [grid.outcome(cell) for cell in cells]

    try:
        factor = _halve(recall)
    except _NotRunYet as end:
        later = [number for number, each in enumerate(ROUNDS) if each > end.share]
        like = [trials(place, title, recipe, FACTORS[: len(FACTORS) >> number], ROUNDS[number]) for number in later]
        return Ahead(known, [cell for cells in like for cell in cells], None)
    return Ahead(known, [], factor, lost=factor is None)


class _NotRunYet(Exception):
    """A round of the search has runs that are not finished."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share


def _halve(run: Callable[[Sequence[float], float], Sequence[Outcome]]) -> float | None:
    """The best factor by what `run` gives for factors and their share of the budget, round by round; None where all diverge."""
    factors, found = FACTORS, dict[float, Outcome]()
    for number, share in enumerate(ROUNDS):
        found = dict(zip(factors, run(factors, share), strict=True))
        factors = _better(found, len(FACTORS) >> (number + 1))
        if not factors:
            return None
    best = factors[0]
    for beyond in BELOW if best == FACTORS[0] else ABOVE if best == FACTORS[-1] else ():
        [outcome] = run((beyond,), ROUNDS[-1])
        if _worth(outcome)[:2] <= _worth(found[best])[:2]:
            break
        best, found[beyond] = beyond, outcome
    return best


def _better(found: dict[float, Outcome], count: int) -> tuple[float, ...]:
    """The best of a round, ascending; those that diverged are not among them."""
    best = sorted(found, key=lambda factor: _worth(found[factor]), reverse=True)[:count]
    return tuple(sorted(factor for factor in best if not found[factor].diverged))


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
