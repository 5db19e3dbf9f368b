"""What a teacher says of every training picture: asked once, and remembered."""

import dataclasses

import numpy as np
import torch
from torch import Tensor

from patchword.core.errors import DataError, blamed
from patchword.core.progress import say
from patchword.data.dataset import Dataset, Split
from patchword.evaluation.memory import identity, place_of, remembered
from patchword.evaluation.predict import Looking, predict
from patchword.models.contract import Model
from patchword.training.recipe import Teacher
from patchword.weights.io import load_model

_ROOM = "answers"
"""Of the cache."""


def load_teacher(teacher: Teacher, classes: tuple[str, ...]) -> Model:
    """The teacher, which must know the same classes; their order may be another."""
    with blamed(f"teacher.weights={teacher.weights}"):
        model = load_model(teacher.weights)
    if model.multi_label:
        raise DataError(
            f"teacher {teacher.weights} says yes or no to each label (objective=sigmoid); one that names a single class "
            "(objective=softmax) would be right"
        )
    if model.labels is None or set(model.labels) != set(classes):
        theirs = "none that are named" if model.labels is None else ", ".join(model.labels[:5])
        raise DataError(
            f"teacher {teacher.weights} has other classes ({theirs}, {model.num_classes} in all) than the data set "
            f"({', '.join(classes[:5])}, {len(classes)} in all); one trained on the same classes would be right"
        )
    return model


def ask(teacher: Teacher, dataset: Dataset, device: str, how: Looking) -> tuple[Dataset, Tensor, str]:
    """The data set without the training pictures that the teacher is unsure of, what it says of the others (as `answers`), and
    a hash of who it is.
    """
    train = dataset.splits["train"]
    model = load_teacher(teacher, dataset.classes).to(device)
    said, who = answers(teacher, model, train, dataset.classes, how), identity(model)
    sure = confident(train, said, teacher.confidence)
    labelled = int((train.labels >= 0).sum())
    if labelled < len(train) and teacher.confidence:
        say(
            f"the teacher is sure of the class of {len(sure) - labelled:,} of {len(train) - labelled:,} pictures without "
            f"labels (teacher.confidence={teacher.confidence:g})"
            + ("; the others are left out" if len(sure) < len(train) else "")
        )
    if len(sure) == len(train):
        return dataset, said, who
    return dataclasses.replace(dataset, splits={**dataset.splits, "train": train.subset(sure)}), said[sure], who


def answers(teacher: Teacher, model: Model, split: Split, classes: tuple[str, ...], how: Looking) -> Tensor:
    """float32 M×K: the probabilities that the teacher, `model`, gives each picture of a split, in the order of `classes`.

    They are looked for among the answers that were kept before, by the weights, the preprocessing and the pictures. A
    picture that cannot be read gets equal shares; training leaves it out anyway.
    """

    def compute() -> dict[str, Tensor]:
        return {"logits": torch.from_numpy(predict(model, split, how).logits)}

    kept = remembered(_ROOM, model, split, {"logits": (len(split), len(classes))}, compute, how.world)["logits"]
    places = {name: place for place, name in enumerate(model.labels or ())}
    order = torch.tensor([places[name] for name in classes])
    return (kept[:, order] / teacher.temperature).softmax(1)


def has_answered(model: Model, split: Split) -> bool:
    """Whether a teacher's answers for the pictures of a split were kept before."""
    return place_of(_ROOM, model, split).is_file()


def confident(split: Split, probabilities: Tensor, least: float) -> np.ndarray:
    """The indices of a split's pictures that have a label, or of whose class the teacher is as sure as `least`."""
    sure = probabilities.max(1).values.numpy() >= least
    return np.flatnonzero((split.labels >= 0) | sure)
