"""A recipe: everything that decides what training does, typed, frozen and strict.

A preset (`training/presets/*.toml`) or a file gives the start, `--set field=value` changes single fields, and the run writes
the result, with nothing left open, as its `recipe.toml`. Unknown names and wrong types are errors.
"""

from patchword.training.recipe.fields import (
    LEFT_OPEN,
    Balance,
    Budget,
    Checkpoint,
    Compute,
    Evaluation,
    Guard,
    Loading,
    Recipe,
    Regularization,
    Teacher,
)
from patchword.training.recipe.reading import load, loads, presets

__all__ = [
    "LEFT_OPEN",
    "Balance",
    "Budget",
    "Checkpoint",
    "Compute",
    "Evaluation",
    "Guard",
    "Loading",
    "Recipe",
    "Regularization",
    "Teacher",
    "load",
    "loads",
    "presets",
]
