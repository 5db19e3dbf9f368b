"""How many pictures a second a model names on this machine: measured once a study, and kept beside it."""

import statistics
import time
from pathlib import Path
from typing import Any

import torch

from patchword.core import files
from patchword.core.errors import DataError
from patchword.models.contract import Model

SPEED = "speed.json"
BATCHES = (1, 32)
_ROUNDS = 5
_SECONDS = 0.2
"""Of each round, at least."""


def stored(folder: Path) -> dict[str, dict[str, float]]:
    """Model → batch → pictures a second, as far as it was measured; a damaged file is measured again."""
    try:
        found = files.read_json(folder / SPEED)
    except DataError:
        return {}
    return found if isinstance(found, dict) else {}


def measure(folder: Path, models: dict[str, Model]) -> dict[str, Any]:
    """Measure those that are not measured yet; the median of rounds in which all take their turn, for each batch."""
    known = stored(folder)
    missing = {name: model.eval() for name, model in models.items() if name not in known}
    if missing:
        found: dict[str, dict[str, list[float]]] = {name: {str(batch): [] for batch in BATCHES} for name in missing}
        for _ in range(_ROUNDS):
            for name, model in missing.items():
                for batch in BATCHES:
                    found[name][str(batch)].append(_rate(model, batch))
        for name, rates in found.items():
            known[name] = {batch: round(statistics.median(each), 1) for batch, each in rates.items()}
        files.write_json(folder / SPEED, known)
    return known


def _rate(model: Model, batch: int) -> float:
    reference = next(model.parameters())
    images = torch.zeros(batch, model.in_channels, *model.image_size, device=reference.device)
    done, began = 0, 0.0
    with torch.inference_mode():
        model(images)  # what is made once
        began = time.perf_counter()
        while done == 0 or time.perf_counter() - began < _SECONDS:
            model(images)
            done += batch
    return done / (time.perf_counter() - began)
