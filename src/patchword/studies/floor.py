"""The floor of fine-tuning: a linear probe on the features of the pre-trained weights as they stand, cell by cell.

What tunes all of a model and ends below it has lost what the weights knew. Each probe learns from the pictures of its cell and
is measured on test once; `floor.json` keeps what was measured.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchword.core import files
from patchword.core.errors import DataError
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


def measure(study: "Study") -> dict[str, float]:
    """Measure the probes of all cells that are not measured yet; nothing where the models began with nothing."""
    from patchword.evaluation.frozen import measure_features

    folder, question = study.grid.folder, study.question
    known: dict[str, Any] = stored(folder)
    for model in question.models if question.pretrain else ():
        cells = [study.cell(model, size, seed) for size in question.sizes for seed in range(question.seeds)]
        missing = [cell for cell in cells if cell.place not in known and cell.place in study.outcomes]
        weights = load_model(study.start(model)) if missing else None
        for cell in missing:
            assert weights is not None
            dataset = open_training_data(cell.recipe, study.grid.shelf).dataset
            split = "test" if "test" in dataset.splits else "validation"
            known[cell.place] = measure_features(weights, dataset, split, probe=True)["probe"]["value"]
            files.write_json(folder / FLOOR, known)
    return known
