"""The floor of fine-tuning: a linear probe on the features of the pre-trained weights as they stand, cell by cell.

What tunes all of a model and ends below it has lost what the weights knew. Each probe learns from the pictures of its cell and
is measured on test once; `floor.json` keeps what was measured.
"""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchword.core import files
from patchword.studies.grid import Extra, figures_in
from patchword.training.pictures import open_training_data
from patchword.weights.io import load_model

if TYPE_CHECKING:
    from patchword.studies.compare import Study

FLOOR = "floor.json"


def stored(folder: Path) -> dict[str, float]:
    """Place of a cell → accuracy of the probe, as far as it was measured."""
    return figures_in(folder / FLOOR)


def ahead(study: "Study") -> list[Extra]:
    """What is seen for each probe that is not measured yet, model by model: a cell's pictures and, once, those of test."""
    known, question, dataset = stored(study.grid.folder), study.question, study.dataset
    extras = []
    for model in study.models if question.pretrain else ():
        tested = len(dataset.splits[dataset.tested_on])
        for seed in range(question.seeds):
            for size in question.sizes:
                cell = study.cell(model, size, seed)
                if cell.place not in known:
                    extras.append(Extra(cell, (size or len(dataset.splits["train"])) + tested))
                    tested = 0  # their features are remembered
    return extras


def measure(study: "Study") -> dict[str, float]:
    """Measure the probes of all cells that are not measured yet; nothing where the models began with nothing."""
    from patchword.evaluation.frozen import measure_features

    folder = study.grid.folder
    known: dict[str, Any] = stored(folder)
    missing = [extra for extra in ahead(study) if extra.cell.place in study.outcomes]
    for start, extras in itertools.groupby(missing, key=lambda extra: extra.cell.recipe.init):
        weights = load_model(start)
        for extra in extras:
            with study.grid.measuring(extra):
                dataset = open_training_data(extra.cell.recipe, study.grid.shelf).dataset
                found = measure_features(weights, dataset, dataset.tested_on, probe=True)
                known[extra.cell.place] = found["probe"]["value"]
            files.write_json(folder / FLOOR, known)
    return known
