"""How many pictures a second a model names on this machine: measured once a study, and kept beside it."""

import statistics
from pathlib import Path
from typing import Any

from patchword.core import files
from patchword.evaluation.speed import seconds_per_image
from patchword.models.contract import Model
from patchword.studies.grid import figures_in

SPEED = "speed.json"
BATCHES = (1, 32)
_ROUNDS = 5
_SECONDS = 0.2
"""Of each round, at least."""


def stored(folder: Path) -> dict[str, dict[str, float]]:
    """Model → batch → pictures a second, as far as it was measured."""
    return figures_in(folder / SPEED)


def measure(folder: Path, models: dict[str, Model]) -> dict[str, Any]:
    """Measure those that are not measured yet; the median of rounds in which all take their turn, for each batch."""
    known = stored(folder)
    missing = {name: model.eval() for name, model in models.items() if name not in known}
    if missing:
        found: dict[str, dict[str, list[float]]] = {name: {str(batch): [] for batch in BATCHES} for name in missing}
        for _ in range(_ROUNDS):
            for name, model in missing.items():
                for batch in BATCHES:
                    found[name][str(batch)].append(1 / seconds_per_image(model, batch_size=batch, seconds=_SECONDS))
        for name, rates in found.items():
            known[name] = {batch: round(statistics.median(each), 1) for batch, each in rates.items()}
        files.write_json(folder / SPEED, known)
    return known
