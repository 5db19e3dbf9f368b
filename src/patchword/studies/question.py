"""What a comparison asks, with nothing left open: models, sizes, seeds, resolution, budgets and recipe.

What cannot be compared is refused here, in one sentence, before anything is trained.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch

from patchword.core import config, files
from patchword.core.errors import UsageError
from patchword.data.dataset import Dataset
from patchword.models.contract import Model
from patchword.models.cost import cost
from patchword.models.names import config_type, create_model, parse_name
from patchword.studies.search import part_of
from patchword.training import recipe as recipes
from patchword.training.pictures import look_at, natural_size
from patchword.training.recipe import Budget

EPOCHS = 30
"""The budget where none is given: what the dearest model takes to see all training pictures so often."""
PRETRAINING = 4.0
"""The budget of pre-training where none is given, in those of a run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked, with nothing left open."""

    data: str
    models: tuple[str, ...]
    sizes: tuple[int, ...]
    """Ascending; 0, for all training pictures, comes last."""
    seeds: int
    image_size: tuple[int, int]
    budget: Budget
    """Of each run."""
    pretrain: str
    """The data set that all models begin with; empty: they begin with nothing."""
    pretrain_budget: Budget
    recipe: str
    changes: dict[str, Any]
    """Of the recipe, as nested tables."""

    @property
    def first_recipe(self) -> str:
        """Whose wishes the architecture follows: the recipe that begins with nothing."""
        return "scratch" if self.pretrain else self.recipe

    def settings(self, fingerprint: str) -> dict[str, Any]:
        """As plain values, for `study.toml`."""
        budget, before = ({k: v for k, v in dataclasses.asdict(each).items() if v} for each in self.budgets)
        return {
            "data": self.data,
            "data_fingerprint": fingerprint,
            "models": list(self.models),
            "sizes": [size or "all" for size in self.sizes],
            "seeds": self.seeds,
            "image_size": list(self.image_size),
            "budget": budget,
            "pretrain": self.pretrain,
            "pretrain_budget": before,
            "recipe": self.recipe,
            "set": self.changes,
        }

    @property
    def budgets(self) -> tuple[Budget, Budget]:
        """Of a run, and of pre-training."""
        return self.budget, self.pretrain_budget if self.pretrain else Budget()


def ask(
    data: str,
    models: tuple[str, ...],
    sizes: tuple[str | int, ...],
    *,
    seeds: int = 3,
    image_size: tuple[int, int] | None = None,
    budget: Budget | None = None,
    pretrain: str = "",
    pretrain_budget: Budget | None = None,
    recipe: str = "",
    changes: dict[str, Any] | None = None,
    dataset: Dataset,
    stored: dict[str, Any],
) -> Question:
    """The question with nothing left open: what is not said is as in `stored`, the settings of before, or is chosen.

    Raises `UsageError` for what cannot be compared: in one sentence, before anything is trained.
    """
    changes = changes or {}
    _check(models, seeds, dataset)
    for field in changes.get("model", {}):
        if not any(field in model_options(name, changes) for name in models):
            raise UsageError(
                f"model.{field} is a field of none of {', '.join(models)}; 'patchword train' says which there are"
            )
    counts = _sizes(sizes, dataset)
    place = str(files.at_home(data).resolve()) if files.at_home(data).exists() else data
    if image_size is None:
        image_size = tuple(stored["image_size"]) if stored else _common_size(models, changes, dataset)
    recipe = recipe or ("finetune" if pretrain else "scratch")
    first = "scratch" if pretrain else recipe
    skeletons = [skeleton(name, first, changes, image_size, len(dataset.classes)) for name in models]
    if budget is None:
        flops = max(cost(model).train_flops for model in skeletons)
        pictures = counts[-1] or len(dataset.splits["train"])
        chosen = Budget(pflop=float(f"{EPOCHS * pictures * flops / 1e15:.3g}"))
        budget = Budget(**stored["budget"]) if stored else chosen
    if pretrain_budget is None:
        before = stored.get("pretrain_budget")
        pretrain_budget = Budget(**before) if before else part_of(budget, PRETRAINING)
    return Question(
        data=place,
        models=models,
        sizes=counts,
        seeds=seeds,
        image_size=image_size,
        budget=budget,
        pretrain=str(files.at_home(pretrain).resolve()) if pretrain and files.at_home(pretrain).exists() else pretrain,
        pretrain_budget=pretrain_budget,
        recipe=recipe,
        changes=changes,
    )


def _check(models: tuple[str, ...], seeds: int, dataset: Dataset) -> None:
    if len(models) < 2:
        found = f"{models[0]} alone cannot be compared" if models else "--models names none"
        raise UsageError(f"{found}; --models A,B would be right")
    twice = [name for name in models if models.count(name) > 1]
    if twice:
        raise UsageError(f"--models names {twice[0]} twice; each model once is right")
    if seeds < 1:
        raise UsageError(f"--seeds {seeds} must be 1 or more")
    if dataset.multi_label:
        raise UsageError(f"{dataset.location} has several labels a picture; models are compared by one label a picture")
    if not {"test", "validation"} & set(dataset.splits):
        raise UsageError(f"{dataset.location} has no pictures to test on; a test split would be right")


def _sizes(sizes: tuple[str | int, ...], dataset: Dataset) -> tuple[int, ...]:
    """Numbers of training pictures, ascending, 0 for all; a size of all that there are is all."""
    there, classes = len(dataset.splits["train"]), len(dataset.splits["train"].counts().nonzero()[0])
    counts = []
    if not sizes:
        raise UsageError("--sizes names none; numbers of pictures or all, such as 100,300,all, would be right")
    for size in sizes:
        text = str(size).strip()
        if text != "all" and not (text.isascii() and text.isdigit() and int(text)):
            raise UsageError(f"--sizes {text!r} is not a number of pictures or all, such as 100,300,all")
        count = 0 if text == "all" else int(text)
        if count > there:
            raise UsageError(f"--sizes {count} is more than the {there:,} training pictures of {dataset.location}")
        if count and count < classes:
            raise UsageError(f"--sizes {count} is fewer than the {classes:,} classes of {dataset.location}")
        counts.append(0 if count == there else count)
    if len(set(counts)) < len(counts):
        raise UsageError(f"--sizes {','.join(map(str, sizes))} says a size twice; each once is right")
    return tuple(sorted(counts, key=lambda count: count or math.inf))


def _common_size(models: tuple[str, ...], changes: dict[str, Any], dataset: Dataset) -> tuple[int, int]:
    """The size that `train` would take, for all alike: a multiple of every model's stride."""
    strides = [parse_name(name, model_options(name, changes))[1].stride for name in models]
    return natural_size(look_at(dataset.splits["train"]), math.lcm(*strides))


def model_options(name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """What the changes say of a model of this name: the fields that its family has."""
    known = config.field_types(config_type(parse_name(name, {})[0]))
    return {field: value for field, value in changes.get("model", {}).items() if field in known}


def architecture(name: str, recipe: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The `model` of a recipe for a model of this name."""
    return recipes.load(recipe, {"model": {"name": name, **model_options(name, changes)}}).model


def skeleton(name: str, recipe: str, changes: dict[str, Any], image_size: tuple[int, int], num_classes: int) -> Model:
    """A model without weights, to be counted; raises `UsageError` with its name where it cannot take the size."""
    options = {field: value for field, value in architecture(name, recipe, changes).items() if field != "name"}
    try:
        with torch.device("meta"):
            return create_model(name, num_classes, image_size, **options)
    except UsageError as error:
        height, width = image_size
        raise UsageError(f"{name} cannot be compared at {height}×{width}: {error}") from error


def sentence(question: Question) -> str:
    """What is about to be compared, in one line."""
    budget = next(f"{value:g} {name}" for name, value in _named(question.budget))
    start = f"pre-trained on {question.pretrain} for {next(f'{v:g} {n}' for n, v in _named(question.pretrain_budget))}"
    height, width = question.image_size
    return (
        f"comparing {', '.join(question.models)} at {height}×{width}, {budget} a run, "
        f"{start if question.pretrain else 'all from nothing'}"
    )


def _named(budget: Budget) -> Iterator[tuple[str, float]]:
    for name in ("steps", "epochs", "minutes", "pflop"):
        if value := getattr(budget, name):
            yield name.replace("pflop", "PFLOP"), value
