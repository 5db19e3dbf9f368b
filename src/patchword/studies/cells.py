"""What was measured in a comparison, by model, size, seed and share of the budget.

Letters: S sizes, k seeds.
"""

import math
from pathlib import Path

import numpy as np

from patchword.evaluation.answers import Answers, read_answers
from patchword.studies import floor
from patchword.studies.compare import Study
from patchword.studies.curves import PowerLaw, fit_power_law
from patchword.studies.grid import Outcome
from patchword.training.run_folder import ANSWERS, MODEL


class Cells:
    """The cells of a study that were run."""

    def __init__(self, study: Study) -> None:
        self.study, self.question = study, study.question
        self.floor = floor.stored(study.grid.folder)
        whole = [outcome.result["train_images"] for outcome in self.of_size(self.question.sizes[-1])]
        self.sizes = [size or max(whole, default=len(study.dataset.splits["train"])) for size in self.question.sizes]
        """Ascending, in pictures: 0, which stands for all, is the number that there were."""
        self._answers: dict[str, list[Answers | None]] = {}

    def outcome(self, model: str, size: int, seed: int, share: float = 1.0) -> Outcome | None:
        """A cell, if it was run."""
        return self.study.outcomes.get(self.study.place(model, size, seed, share))

    def of_size(self, size: int) -> list[Outcome]:
        """Those of a size."""
        found = [
            self.outcome(model, size, seed) for model in self.question.models for seed in range(self.question.seeds)
        ]
        return [outcome for outcome in found if outcome is not None]

    @property
    def complete(self) -> bool:
        """Whether nothing is missing, but for models that were left out."""
        return all(
            self.outcome(model, size, seed) is not None
            for model in self.study.models
            for size in self.question.sizes
            for seed in range(self.question.seeds)
        )

    def values(self, model: str, size: int, share: float = 1.0) -> list[float]:
        """Accuracies, of each seed that has one."""
        outcomes = [self.outcome(model, size, seed, share) for seed in range(self.question.seeds)]
        return [outcome.value for outcome in outcomes if outcome is not None and outcome.value is not None]

    def probe(self, model: str, size: int) -> float | None:
        """The mean over seeds of a linear probe's accuracy on the weights that the cells began with, where there are such."""
        places = [self.study.place(model, size, seed) for seed in range(self.question.seeds)]
        found = [self.floor[place] for place in places if place in self.floor]
        return float(np.mean(found)) if found else None

    def table(self, model: str) -> np.ndarray:
        """Errors S×k, NaN where there is none."""
        table = np.full((len(self.sizes), self.question.seeds), math.nan)
        for row, size in enumerate(self.question.sizes):
            for seed in range(self.question.seeds):
                outcome = self.outcome(model, size, seed)
                if outcome is not None and outcome.value is not None:
                    table[row, seed] = 1 - outcome.value
        return table

    def law(self, model: str) -> PowerLaw | None:
        """The fitted curve; None where fewer than two sizes were measured."""
        table = self.table(model)
        seen = np.isfinite(table).any(axis=1)
        return fit_power_law(np.array(self.sizes)[seen], table[seen]) if seen.sum() >= 2 else None

    def answers(self, model: str) -> list[Answers | None]:
        """To each test picture, at the largest size, of each seed."""
        if model not in self._answers:
            outcomes = [self.outcome(model, self.question.sizes[-1], seed) for seed in range(self.question.seeds)]
            self._answers[model] = [
                None if outcome is None or outcome.value is None else read_answers(outcome.folder / ANSWERS)
                for outcome in outcomes
            ]
        return self._answers[model]

    def trained(self, model: str) -> Path | None:
        """The run at the largest size whose weights stand for the model: that of the first seed that left any."""
        outcomes = [self.outcome(model, self.question.sizes[-1], seed) for seed in range(self.question.seeds)]
        folders = [outcome.folder for outcome in outcomes if outcome is not None and outcome.value is not None]
        return next((folder for folder in folders if (folder / MODEL).is_dir()), None)
