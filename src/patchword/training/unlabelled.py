"""How well an objective without labels does on pictures that training has not seen."""

from typing import Any

import numpy as np
from torch import Tensor

from patchword.data.dataset import Split
from patchword.data.loader import Batch
from patchword.evaluation.intervals import Z95
from patchword.evaluation.predict import Looking, check_finite, look_at_all
from patchword.models.chance import Chance, drawing_from
from patchword.models.contract import Model
from patchword.training.objectives import Objective


def measure(objective: Objective, model: Model, split: Split, how: Looking) -> dict[str, Any]:
    """`n`, `metric`, `value` with its 95 % interval over pictures, and `loss`; what is hidden of a picture is always the same.

    Where one of several answers is right for a patch, `majority` is the share of patches for which the commonest of them is.
    A picture that cannot be read is left out: nobody can say what it hides.
    """
    found = np.zeros((len(split), 2))
    counts: dict[int, np.ndarray] = {}

    def look(batch: Batch, images: Tensor) -> None:
        with drawing_from(Chance(0, int(batch.ids[0]))):
            losses, figures = objective.measure(model, images)
        found[batch.ids, 0], found[batch.ids, 1] = losses.float().cpu().numpy(), figures.float().cpu().numpy()
        if (answers := objective.answers(model, images)) is not None:
            counts[int(batch.ids[0])] = np.bincount(
                answers.cpu()[batch.weights > 0].flatten(), minlength=objective.choices
            )

    unreadable = look_at_all(model, split, look, how)
    found = np.delete(how.world.add(found), list(unreadable), axis=0)
    check_finite(model, found, "losses")
    loss, value = found.mean(axis=0).tolist()
    majority = {}
    if objective.choices:
        seen = how.world.add(sum(counts.values(), np.zeros(objective.choices)))
        majority["majority"] = float(seen.max() / seen.sum())
    half = Z95 * float(found[:, 1].std(ddof=1)) / len(found) ** 0.5 if len(found) > 1 else 1.0
    return {
        "n": len(found),
        "metric": objective.metric,
        "value": value,
        "value_ci95": [max(objective.least, value - half), min(1.0, value + half)],
        "loss": loss,
        **majority,
        "unreadable": [{"name": split.name(index), "reason": why} for index, why in sorted(unreadable.items())],
    }
