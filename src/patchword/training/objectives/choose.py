"""What a recipe minimises, and whether that goes with its data."""

import torch
from torch import Tensor

from patchword.core.errors import UsageError
from patchword.data.dataset import Dataset
from patchword.data.plan import evened
from patchword.models.contract import Model
from patchword.training.objectives import UNLABELLED, Distillation, Objective, Sigmoid, Softmax
from patchword.training.recipe import Balance, Recipe, Teacher


def check_objective(recipe: Recipe, objective: str, dataset: Dataset) -> None:
    """Raise `UsageError` where the objective does not go with the labels or with another wish of the recipe."""
    # Before the objective is looked at: none of them goes with a teacher here.
    if recipe.teacher != Teacher() and dataset.multi_label:
        raise UsageError(
            f"{dataset.location} has several labels a picture, and a teacher answers with one; training without it is right"
        )
    if dataset.multi_label and objective == "softmax":
        raise UsageError(f"{dataset.location} has several labels a picture; objective=sigmoid would be right")
    if objective in UNLABELLED:
        if recipe.regularization.patch_dropout:
            raise UsageError(f"objective={objective} hides patches itself; regularization.patch_dropout=0 is right")
        if recipe.tune == "head":
            raise UsageError(f"objective={objective} has no use for a head, which is all that tune=head lets learn")
    if recipe.balance != Balance():
        if dataset.multi_label or objective in UNLABELLED:
            why = (
                "has several labels a picture"
                if dataset.multi_label
                else f"is learned from without labels ({objective})"
            )
            raise UsageError(
                f"{dataset.location} {why}; balance needs one label a picture, 0 in both its fields is right"
            )
        if recipe.balance.sampling and recipe.teacher.unlabelled:
            raise UsageError(
                "balance.sampling needs a label for every picture; teacher.unlabelled has none, 0 is right"
            )
    if recipe.teacher != Teacher():
        _check_teacher(recipe, objective)


def _check_teacher(recipe: Recipe, objective: str) -> None:
    """Raise `UsageError` where what is said of a teacher would count for nothing."""
    teacher = recipe.teacher
    if objective != "softmax":
        raise UsageError(f"a teacher answers with one class a picture, for objective=softmax, not {objective}")
    if not teacher.weights:
        field, value = next(item for item in vars(teacher).items() if item[1] != getattr(Teacher(), item[0]))
        raise UsageError(
            f"recipe {recipe.name} with teacher.{field}={value} needs a teacher; "
            "--set teacher.weights=RUN (and teacher.unlabelled=PICTURES) gives one"
        )
    if not teacher.share and not teacher.unlabelled:
        raise UsageError(
            "the teacher would be asked about nothing that counts; "
            "teacher.unlabelled=PICTURES or teacher.share=0.5 would be right"
        )


def make_objective(recipe: Recipe, model: Model, dataset: Dataset, answers: Tensor | None) -> Objective:
    """What the recipe minimises; `answers` are the teacher's, M×K, where it has one."""
    num_classes, smoothing = len(dataset.classes), recipe.regularization.label_smoothing
    if recipe.objective in UNLABELLED:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            return UNLABELLED[recipe.objective](model)
    if answers is not None:
        objective = Distillation(num_classes, smoothing, answers, recipe.teacher.share)
    else:
        objective = {"softmax": Softmax, "sigmoid": Sigmoid}[recipe.objective](num_classes, smoothing)
    if recipe.balance.class_weights:
        objective.class_weights = class_weights(label_counts(dataset), recipe.balance)
    return objective


def class_weights(counts: Tensor, balance: Balance) -> Tensor:
    """float32 K: what a picture's loss is multiplied by, of how many training pictures each class has; 1 on average."""
    weights = counts.clamp(min=1).double() ** -balance.class_weights
    drawn = torch.from_numpy(evened(counts.numpy(), balance.sampling))
    return (weights / (drawn * weights).sum()).float()


def label_counts(dataset: Dataset) -> Tensor:
    """How many training pictures have each of the K labels."""
    labels = torch.from_numpy(dataset.splits["train"].labels)
    if labels.ndim == 2:
        return labels.long().sum(0)
    return torch.bincount(labels[labels >= 0], minlength=len(dataset.classes))
