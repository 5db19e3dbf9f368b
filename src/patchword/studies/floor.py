"""The floor of fine-tuning: a linear probe on the features of the pre-trained weights as they stand, cell by cell.

What tunes all of a model and ends below it has lost what the weights knew. Each probe learns from the pictures of its cell and
is measured on test once; `floor.json` keeps what was measured.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchword.core import files
from patchword.core.errors import DataError
from patchword.studies.grid import Look
from patchword.training.pictures import open_training_data
from patchword.weights.io import load_model

if TYPE_CHECKING:
    from patchword.studies.compare import Study

FLOOR = "floor.json"


def stored(folder: Path) -> dict[str, float]:
    """Place of a cell → accuracy of the probe, as far as it was measured; a damaged file is measured again."""
    try:
        found = files.read_json(folder / FLOOR)
    except DataError:
        return {}
    return found if isinstance(found, dict) else {}


def ahead(study: "Study") -> dict[str, Look]:
    """Place of a cell whose probe is not measured yet → what is seen for it: its pictures and, once a model, those of test."""
    known, question, splits = stored(study.grid.folder), study.question, study.dataset.splits
    looks = {}
    for model in question.models if question.pretrain else ():
        tested = len(splits["test" if "test" in splits else "validation"])
        for seed in range(question.seeds):
            for size in question.sizes:
                cell = study.cell(model, size, seed)
                if cell.place not in known:
                    looks[cell.place] = Look(cell, (size or len(splits["train"])) + tested)
                    tested = 0  # their features are remembered
    return looks


def measure(study: "Study") -> dict[str, float]:
    """Measure the probes of all cells that are not measured yet; nothing where the models began with nothing."""
    from patchword.evaluation.frozen import measure_features

    folder = study.grid.folder
    known: dict[str, Any] = stored(folder)
    for place, look in ahead(study).items():
        if place not in study.outcomes:
            continue
        with study.grid.looking(look):
            dataset = open_training_data(look.cell.recipe, study.grid.shelf).dataset
            split = "test" if "test" in dataset.splits else "validation"
            weights = load_model(look.cell.recipe.init)
            known[place] = measure_features(weights, dataset, split, probe=True)["probe"]["value"]
        files.write_json(folder / FLOOR, known)
    return known
