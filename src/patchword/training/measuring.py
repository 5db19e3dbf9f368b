"""What a run measures its model by: a figure on validation in between, and all figures at the end."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from patchword.core.processes import Processes
from patchword.data.dataset import Dataset
from patchword.data.store import Store
from patchword.evaluation.answers import answers_of, write_answers
from patchword.evaluation.metrics import Predictions, measure
from patchword.evaluation.mistakes import confident_mistakes, sure_hits
from patchword.evaluation.predict import Looking, predict
from patchword.explanation.gallery import add_maps
from patchword.models.contract import Model
from patchword.training import unlabelled
from patchword.training.objectives import Objective
from patchword.training.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Measuring:
    """The splits of a run, and how a model looks at them."""

    recipe: Recipe
    """With nothing left open."""
    objective: Objective
    dataset: Dataset
    stores: dict[str, Store]
    """Split → its decoded pictures; none where they are streamed."""
    world: Processes
    stop: Callable[[], bool]

    def between(self, model: Model) -> dict[str, float]:
        """The loss and the figure on validation, for the log."""
        if self.objective.metric:
            figures = self.without_labels(model, "validation")
        else:
            figures = measure(self.predictions(model, "validation"), self.dataset.classes, interval=False)
        return {"loss": round(figures["loss"], 6), figures["metric"]: round(figures["value"], 6)}

    def at_the_end(self, model: Model, answers: Path) -> dict[str, Any]:
        """All figures on the split that the recipe keeps for the end, and its name; the answers to its pictures are written.

        Empty where there are pictures of neither test nor validation.
        """
        split = self.final
        if split not in self.dataset.splits:
            return {}
        if self.objective.metric:
            return {"split": split, **self.without_labels(model, split)}
        predictions = self.predictions(model, split)
        pictures, classes = self.dataset.splits[split], self.dataset.classes
        figures = {"split": split, **measure(predictions, classes)}
        figures["unreadable"] = [
            {"name": pictures.name(index), "reason": reason} for index, reason in sorted(predictions.unreadable.items())
        ]
        if not self.dataset.multi_label:
            given = answers_of(predictions, pictures, classes)
            self.world.decide(lambda: write_answers(answers, given))
            figures["mistakes"] = confident_mistakes(predictions, pictures, classes)
            figures["hits"] = sure_hits(predictions, pictures, classes)
            figures["map"] = add_maps(model, pictures, [*figures["mistakes"], *figures["hits"]])
        return figures

    @property
    def final(self) -> str:
        """The split that the recipe keeps for the end: validation where there is no test. There may be neither."""
        return self.recipe.evaluation.final if "test" in self.dataset.splits else "validation"

    def predictions(self, model: Model, split: str) -> Predictions:
        return predict(model, self.dataset.splits[split], self.looking(split), mirror=self.recipe.evaluation.mirror)

    def without_labels(self, model: Model, split: str) -> dict[str, Any]:
        """The objective's own figures, where there is no label to predict."""
        return unlabelled.measure(self.objective, model, self.dataset.splits[split], self.looking(split))

    def looking(self, split: str) -> Looking:
        return Looking(
            store=self.stores.get(split),
            batch_size=self.recipe.evaluation.batch_size,
            workers=self.recipe.loading.workers,
            threads=max(1, self.recipe.threads // self.world.local_count),
            world=self.world,
            stop=self.stop,
        )
