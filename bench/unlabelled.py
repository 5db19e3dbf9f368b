"""`make unlabelled-study`: what pictures without labels are worth beside a few that have some.

LABELLED=1000 pictures of CIFAR-10 have labels, all others have none. SEEDS=3; each run is an ordinary run folder below
OUT=runs/unlabelled: what is done is not done again. Whatever learns without labels does so once, for PRETRAIN=0.03 PFLOP, and is
then trained as what has labels alone, for BUDGET=0.002; Noisy Student spends all on one student, and so does a
control that has labels alone for as long. The table goes to docs/pretraining.md.
"""

import os
from pathlib import Path
from typing import Any

from bench.page import ROOT, folder_of, last_day, mean_and_range, put, table
from bench.wishes import answered, number, typed, whole
from patchword.core import config, files
from patchword.reports.run import write_report
from patchword.training import recipe as recipes
from patchword.training.run import run

PAGE, MARK = ROOT / "docs/pretraining.md", "unlabelled"
MODELS = {"plain": "speedrun/plain-0.02", "hybrid": "speedrun/hybrid-0.02"}
ALONE, LONGER, STUDENT = "labels alone", "labels alone, for all FLOPs", "Noisy Student"
MASKED = {"masked patches, then labels": "masked-patch", "masked auto-encoder, then labels": "masked-autoencoder"}
"""Name → objective."""
OF_THE_PRESET = {
    "augment": ("randaugment_layers", "randaugment_magnitude"),
    "regularization": ("dropout", "stochastic_depth", "label_smoothing"),
    "teacher": ("share", "confidence"),
}
"""What makes a student of `noisy-student` a noisy one, and how far it believes its teacher."""
METHODS = {"plain": (ALONE, LONGER, *MASKED), "hybrid": (ALONE, LONGER, STUDENT)}
"""Masks need patches; a student the better teacher."""


def main() -> None:
    """Run what is not there, print and publish the table."""
    study = Study(
        out=Path(os.environ.get("OUT", "runs/unlabelled")),
        labelled=whole("LABELLED", 1000),
        budget=number("BUDGET", 0.002),
        pretrain=number("PRETRAIN", 0.03),
    )
    seeds = whole("SEEDS", 3)
    rows = []
    for model, methods in METHODS.items():
        for method in methods:
            values = [
                files.read_json(study.run(model, method, seed) / "result.json")["accuracy"] for seed in range(seeds)
            ]
            rows.append((model, method, values))
            print(line(*rows[-1]), flush=True)
    study.publish(rows, seeds)


class Study:
    """Where the runs are, and how long they are."""

    def __init__(self, *, out: Path, labelled: int, budget: float, pretrain: float) -> None:
        self.out, self.labelled, self.budget, self.pretrain = out, labelled, budget, pretrain

    def run(self, model: str, method: str, seed: int) -> Path:
        """The run folder of one cell, after those that it stands on."""
        over: dict[str, Any] = {"seed": seed, "train_images": self.labelled, "budget": {"pflop": self.budget}}
        if method in MASKED:
            over["init"] = str(self.without_labels(model, MASKED[method]))
        elif method != ALONE:
            over["budget"] = {"pflop": self.budget + self.pretrain}
        if method == STUDENT:
            over["loading"] = {"duplicates": "yes"}  # those with labels are among all of CIFAR-10's
            # The batches are the larger ones of the recipe, as most pictures are new.
            noisy = recipes.load("noisy-student")
            for section, fields in OF_THE_PRESET.items():
                over[section] = {field: getattr(getattr(noisy, section), field) for field in fields}
            over["teacher"] |= {"weights": str(self.run(model, ALONE, seed)), "unlabelled": "cifar10"}
        else:
            over["batch_size"] = 64
        return self.train(f"{model}-{method}-{seed}", model, over)

    def without_labels(self, model: str, objective: str) -> Path:
        """The run folder of a model that has seen no label."""
        return self.train(f"{model}-{objective}", model, {"objective": objective, "budget": {"pflop": self.pretrain}})

    def train(self, name: str, model: str, over: dict[str, Any]) -> Path:
        """One run folder, made if it is not there."""
        common = {
            "data": "cifar10",
            "init": "none",
            "loading": {"duplicates": "no"},
            "evaluation": {"every_steps": 10**9},
        }
        folder = self.out / folder_of(name)
        return run(recipes.load(MODELS[model], config.merge(common, over)), folder, publish=write_report)

    def publish(self, rows: list[tuple[str, str, list[float]]], seeds: int) -> None:
        """Put the table into the page, and what the heads of masked training find."""
        text = (
            f"`{typed('make unlabelled-study', 'LABELLED', 'SEEDS', 'BUDGET', 'PRETRAIN')}` of {last_day(self.out)}: "
            "accuracy on CIFAR-10's test pictures in % with "
            f"{self.labelled:,} labels, mean and range of {seeds} seeds; {self.budget:g} PFLOP with labels, {self.pretrain:g} "
            "without:\n\n"
        )
        text += table(("model", "learns from", "accuracy"), (line(*row) for row in rows)) + "\n"
        for objective in MASKED.values():
            folder = self.without_labels("plain", objective)
            result = files.read_json(folder / "result.json")
            low, high = (100 * value for value in result["value_ci95"])
            text += f"`{objective}`: {result['metric']} {100 * result['value']:.2f} % ({low:.2f}–{high:.2f}) on test"
            if objective == "masked-patch":
                guessed = files.read_json(folder / "evaluation.json")["majority"]
                text += f"; {100 * guessed:.2f} % is what naming the commonest colour finds"
            text += ".\n"
        put(PAGE, MARK, text)


def line(model: str, method: str, values: list[float]) -> str:
    """A row of the table."""
    return f"| {model} | {method} | {mean_and_range(values, 2)} |"


if __name__ == "__main__":
    answered(main)
