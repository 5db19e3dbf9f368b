"""A comparison whose every answer is made up: what its page and figures should say is known without training anything."""

from pathlib import Path
from typing import Any

import numpy as np

from patchword.core import files
from patchword.data.dataset import Arrays, Dataset, Split
from patchword.evaluation.answers import Answers, write_answers
from patchword.studies.compare import LADDER, Study
from patchword.studies.grid import Cell, Grid, Outcome
from patchword.studies.question import Question
from patchword.studies.search import FACTORS, Found
from patchword.training.recipe import Budget

MODELS = ("ViT-Fe/16", "C4x0.5+ViT-At/16", "BiT-R14x0.25", "EfficientNet-Na")
LAWS = ((2.1, 0.25), (2.3, 0.29), (3.5, 0.38), (4.2, 0.395))
"""error = a · n^−b of each."""
SIZES = (100, 300, 1000, 0)
TRAIN, TEST = 3067, 373
CLASSES = ("dress", "hat", "<script>alert(1)</script>", "shirt", "shoes")


def made(folder: Path, *, seeds: int = 3, sizes: tuple[int, ...] = SIZES, models: tuple[str, ...] = MODELS) -> Study:
    """A finished study in a folder: predictions, results, nothing else."""
    generator = np.random.default_rng(7)
    pixels = generator.integers(0, 256, (TEST, 48, 48, 3), dtype=np.uint8)
    labels = np.arange(TEST) % len(CLASSES)
    train = Split(Arrays(np.zeros((TRAIN, 1, 1, 3), np.uint8), "train"), np.arange(TRAIN) % len(CLASSES))
    test = Split(Arrays(pixels, "made"), labels)
    splits = {"train": train, "validation": test, "test": test}
    dataset = Dataset("clothing", "photos/clothing", CLASSES, False, splits, "given")
    question = Question(
        data="photos/clothing",
        models=models,
        sizes=sizes,
        seeds=seeds,
        image_size=(64, 64),
        budget=Budget(pflop=0.004),
        pretrain="",
        pretrain_budget=Budget(),
        recipe="scratch",
        changes={},
    )
    study = Study(question, Grid(folder), dataset)
    hardness = generator.random(TEST)
    for place, model in enumerate(models):
        trials = tuple({"rate": 2e-3 * f, "share": 0.25, "accuracy": 0.3 + 0.1 * f, "seconds": 7.0} for f in FACTORS)
        study.found[model] = Found(FACTORS[2 + place // 3], 2e-3 * FACTORS[2 + place // 3], trials)
        for seed in range(seeds):
            for size in sizes:
                a, b = LAWS[place]
                error = a * (size or TRAIN) ** -b + 0.012 * generator.standard_normal()
                add(study, study.cell(model, size, seed), error, hardness, generator, seed)
            for share in LADDER:
                error = LAWS[place][0] * TRAIN ** -LAWS[place][1] + 0.05 / share * (0.4 + 0.1 * place)
                add(study, study.cell(model, sizes[-1], seed, share), error, hardness, generator, seed)
    rates = {name: {"1": 412.0 / (1 + place), "32": 2750.0 / (1 + place) ** 1.4} for place, name in enumerate(models)}
    files.write_json(folder / "speed.json", rates)
    return study


def add(
    study: Study, cell: Cell, error: float, hardness: np.ndarray, generator: np.random.Generator, seed: int
) -> Outcome:
    """A cell that got about so many wrong, the hard ones first."""
    folder = study.grid.folder / cell.place
    wrong = np.argsort(-(hardness + 0.35 * generator.standard_normal(TEST)))[: round(error * TEST)]
    labels = np.arange(TEST) % len(CLASSES)
    said = labels.copy()
    said[wrong] = (said[wrong] + 1 + wrong % 2) % len(CLASSES)
    answers = Answers(
        tuple(f"test/{CLASSES[label]}/{number}.jpg" for number, label in enumerate(labels)),
        tuple(CLASSES[label] for label in labels),
        tuple(CLASSES[label] for label in said),
        0.4 + 0.6 * generator.random(TEST),
    )
    write_answers(folder / "predictions.csv", answers)
    share = cell.recipe.budget.pflop
    result: dict[str, Any] = {
        "status": "finished",
        "reason": None,
        "diverged": False,
        "value": float(answers.right.mean()),
        "train_images": cell.recipe.train_images or TRAIN,
        "train_flops": 1e15 * share,
        "seconds": 40.0 + 20 * MODELS.index(cell.recipe.model["name"]),
        "seed": seed,
    }
    files.write_json(folder / "result.json", result)
    study.outcomes[cell.place] = Outcome(cell, folder, result)
    return study.outcomes[cell.place]
