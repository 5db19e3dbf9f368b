"""A budget → steps, with the looks at validation and the checkpoints between them."""

import dataclasses
import math
from collections.abc import Callable

from patchword.core.errors import UsageError
from patchword.core.progress import duration, say
from patchword.data.dataset import Dataset
from patchword.training.objectives import UNLABELLED
from patchword.training.recipe import Budget, Recipe

TIMES_LOOKED = 10
"""Looks at validation in a run, at most, and its checkpoints, where the recipe leaves them open."""
_LOOKING = 0.2
"""The share of the forward passes that looks may take at most, where more than one is had."""
_MOST_LOOKING = 0.5
"""The share of a time that a single look may take."""


def fix_steps(
    recipe: Recipe,
    dataset: Dataset,
    model_name: str,
    flops_per_image: float,
    seconds_per_step: Callable[[float], float],
) -> Recipe:
    """The recipe with the number of steps that its budget comes to, and the intervals that follow from it.

    `flops_per_image` are those of training. `seconds_per_step` measures for at most so many seconds, and is asked only where
    the budget is a time. Raises `UsageError` where there is no budget, one of less FLOPs than a step, or a time of which a
    single look at validation would take more than half.
    """
    check_a_step(recipe, model_name, flops_per_image)
    budget, batch_size = recipe.budget, recipe.batch_size
    steps = steps_for(budget, len(dataset.splits["train"]), batch_size, flops_per_image)
    look = _passes_per_look(recipe, dataset)
    if steps is None:
        if not budget.minutes:
            raise UsageError("the recipe has no budget; --steps, --epochs, --minutes or --pflop gives it one")
        seconds = budget.minutes * 60
        step = seconds_per_step(min(20.0, seconds / 20))
        looking = look * step / (_passes_per_picture(recipe) * batch_size)
        if looking > _MOST_LOOKING * seconds:
            enough = rounded_up(looking / (60 * _MOST_LOOKING))
            raise UsageError(
                f"{budget.minutes:g} min is too little for one look at {len(dataset.splits['validation']):,} validation "
                f"pictures, which takes {duration(looking)}; {enough:g} min or more would be right"
            )
        steps = _steps_in(seconds, recipe, look, step)
        if steps == 0:
            say(f"note: {budget.minutes:g} min is less than a step takes; one step is made")
    steps = max(1, steps)
    if (warmup := recipe.schedule.warmup) >= max(2, steps):
        say(f"note: schedule.warmup={warmup:g} is no less than the {steps} steps, so the rate never reaches its peak")
    looks = _looks(_passes_per_picture(recipe) * steps * batch_size, look)
    evaluation, checkpoint = recipe.evaluation, recipe.checkpoint
    return dataclasses.replace(
        recipe,
        budget=dataclasses.replace(budget, steps=steps),
        evaluation=dataclasses.replace(
            evaluation,
            every_steps=evaluation.every_steps or math.ceil(steps / looks),
            batch_size=evaluation.batch_size or 2 * recipe.micro_batch,
        ),
        checkpoint=dataclasses.replace(checkpoint, every_steps=checkpoint.every_steps or max(1, steps // TIMES_LOOKED)),
    )


def check_a_step(recipe: Recipe, model_name: str, flops_per_image: float) -> None:
    """Raise `UsageError` where the budget is of less FLOPs than a step of training takes."""
    budget, batch_size = recipe.budget, recipe.batch_size
    if steps_for(budget, batch_size, batch_size, flops_per_image) == 0:
        step = flops_per_image * batch_size / 1e15
        raise UsageError(
            f"a budget of {budget.pflop:g} PFLOP is less than one step of {model_name} on {batch_size} pictures; "
            f"{rounded_up(step):.2g} or more, a smaller model or a smaller batch_size would be right"
        )


def steps_for(budget: Budget, pictures: int, batch_size: int, flops_per_image: float) -> int | None:
    """How many steps a budget comes to, rounded down, where it is in FLOPs, else up; None where it is a time."""
    if budget.steps:
        return budget.steps
    if budget.epochs:
        return math.ceil(budget.epochs * pictures / batch_size)
    return int(budget.pflop * 1e15 / (flops_per_image * batch_size)) if budget.pflop else None


def steps_and_looks(recipe: Recipe, dataset: Dataset) -> float:
    """The steps of a fixed recipe, and the looks at validation between them as the steps that would take as long."""
    steps = recipe.budget.steps
    passes = math.ceil(steps / recipe.evaluation.every_steps) * _passes_per_look(recipe, dataset)
    return steps + passes / (_passes_per_picture(recipe) * recipe.batch_size)


def _steps_in(seconds: float, recipe: Recipe, look: int, step: float) -> int:
    """How many steps of so many seconds, with the looks at validation between them of so many passes each, fit in `seconds`."""
    passes = _passes_per_picture(recipe) * seconds / step * recipe.batch_size
    looking = _looks(passes, look) * look / passes
    return int(seconds * (1 - looking) / step)


def _passes_per_picture(recipe: Recipe) -> int:
    """Forward passes that take as long as training on a picture: all of it where only the head learns."""
    return 1 if recipe.tune == "head" else 3


def _passes_per_look(recipe: Recipe, dataset: Dataset) -> int:
    """Forward passes of one look at validation: two a picture where its mirror image is looked at, too."""
    mirrored = recipe.evaluation.mirror and recipe.objective not in UNLABELLED
    return len(dataset.splits.get("validation", ())) * (1 + mirrored)


def _looks(passes: float, look: int) -> int:
    """How often to look in a training of so many forward passes, `look` at a time: ten times, but for a fifth of it at most."""
    return max(1, min(TIMES_LOOKED, int(_LOOKING * passes / look))) if look else TIMES_LOOKED


def rounded_up(value: float) -> float:
    """To two digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(value / unit) * unit
