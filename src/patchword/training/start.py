"""What a run begins with: weights or nothing, as a model that fits the data."""

import contextlib
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from patchword.core import config, files
from patchword.core.errors import DataError, PatchwordError, UsageError
from patchword.core.preprocessing import Preprocessing
from patchword.core.progress import say
from patchword.data.dataset import Dataset, Split
from patchword.data.plan import evened
from patchword.evaluation.predict import Looking, look_at_all
from patchword.models.contract import Model
from patchword.models.names import create_model, parse_name
from patchword.models.vit import ViT
from patchword.training.choice import HYBRID_STRIDE, SMALL_PICTURE, assumed_speed, choose_model, choose_side
from patchword.training.objectives import UNLABELLED, start_at_prior
from patchword.training.objectives.choose import check_objective, label_counts
from patchword.training.pictures import Pictures, look_at, natural_size
from patchword.training.recipe import Recipe, load
from patchword.training.run_folder import RECIPE
from patchword.training.tune import tune
from patchword.weights import hub, shipped
from patchword.weights.adapt import adapt
from patchword.weights.folder import DESCRIPTION
from patchword.weights.io import load_model
from patchword.weights.source import own_folder

_FIRST_LOOK, _FIRST_NUMBERS = 2000, 50_000_000
"""Pictures of a first look, and numbers of them all: 2,000 of 64 px, 332 of 224."""


def decide_start(
    recipe: Recipe,
    with_weights: Callable[[str], Recipe] | None,
    dataset: Dataset,
    published: Callable[[str], str | None],
) -> tuple[Recipe, str]:
    """What `init=auto` comes to, and a sentence that says it.

    Weights of the package where architecture and size fit, else those of the hub for a model that is named, from its cache or
    if it answers soon, else nothing. `with_weights` gives the same request with the recipe for the weights of an address, or for
    any (`auto`); None: the one that there is serves all. `published` gives the address of a model's weights.
    """
    if recipe.init != "auto":
        return recipe, ""
    request = with_weights or (lambda init: dataclasses.replace(recipe, init=init))
    other = request(recipe.init)
    pictures, wanted = look_at(dataset.splits["train"]), dict(other.model)
    stride, whole, size = HYBRID_STRIDE, "", other.image_size
    if name := wanted.pop("name", None):
        whole = "" if wanted else name  # nothing but the name, so that it is as others have it
        family, decided = parse_name(name, wanted)
        stride = decided.stride
        wanted = {"family": family.family, **(family.parse(name) or {}), **wanted}
    elif size == (0, 0) and max(pictures.height, pictures.width) > SMALL_PICTURE:
        side = choose_side(other.budget, len(dataset.splits["train"]), assumed_speed(recipe))
        size = (side, side)
    if other.objective in UNLABELLED:
        wanted.setdefault("family", ViT.family)  # a hybrid's convolutions show what is hidden
    if size == (0, 0):
        size = natural_size(pictures, stride)
    found = shipped.fitting(wanted, size) if not any(side % stride for side in size) else None
    if found is not None:
        note = f"starting from weights that come with patchword, {found} (--init none starts from nothing)"
        return dataclasses.replace(request(shipped.PREFIX + found), image_size=size), note
    if whole and (address := published(whole)) is not None:
        note = f"starting from {address} (--init none starts from nothing)"
        return request(address), note
    silent = ", and the hub does not answer" if whole in hub.PUBLISHED else ""
    return dataclasses.replace(recipe, init="none"), (
        f"starting from nothing: no weights that come with patchword fit{silent} (--init RUN takes those of another run)"
    )


def preset_from_nothing(wanted: dict[str, Any]) -> str:
    """The preset for a request, as nested tables, that may begin with nothing: without a model's name a hybrid's, if it can.

    A hybrid learns more from little, but shows what a masked objective hides, and its sides are multiples of 8.
    """
    model, sides = wanted.get("model", {}), wanted.get("image_size", (0, 0))
    divided = isinstance(sides, list | tuple) and not any(
        isinstance(side, int) and side % HYBRID_STRIDE for side in sides
    )
    free = not model.keys() & {"name", "patch_size"}
    return "hybrid" if free and divided and wanted.get("objective") not in UNLABELLED else "scratch"


def preset_for(init: str) -> str:
    """The preset that fine-tunes the weights at `init`: by Muon what was trained by Muon, whose weights AdamW is slow to move."""
    place = files.at_home(init)
    if init.startswith(shipped.PREFIX) and not place.exists():
        return "finetune/muon"
    optimizer = None
    with contextlib.suppress(PatchwordError):  # what is wrong with the folder is said where it is taken
        stored = place / RECIPE
        optimizer = load(str(stored)).optimizer.name if stored.is_file() else _optimizer_of(place)
    return "finetune/muon" if optimizer == "muon" else "finetune"


def _optimizer_of(place: Path) -> str | None:
    """What trained the model at `place`, as its own folder says, wherever that was moved; None where it does not."""
    ours = own_folder(place)
    description = None if ours is None else files.read_json(ours / DESCRIPTION)
    said = description.get("provenance") if isinstance(description, dict) else None
    optimizer = said.get("optimizer") if isinstance(said, dict) else None
    return optimizer if isinstance(optimizer, str) else None


def published_weights(model: str, stored: Path | None) -> str | None:
    """The address of the hub's weights of a model, if it is at hand; or where a run with a recipe `stored` began, if there."""
    if model not in hub.PUBLISHED:
        return None
    if stored is not None and stored.is_file():
        with contextlib.suppress(PatchwordError):  # what is wrong with the folder is said where it is taken
            began = load(str(stored)).init
            return began if began == hub.PUBLISHED[model] else None
    return hub.at_hand(model)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A model, ready to be trained."""

    model: Model
    recipe: Recipe
    """With all that concerns the model decided."""
    origin: str
    """Where the weights come from: `none` or a sentence."""
    small: bool
    """Whether the pictures are small ones of one shape, which are seen whole."""


def prepare_model(recipe: Recipe, dataset: Dataset) -> Prepared:
    """The model to train, new or from weights, fitted to the data set."""
    objective = recipe.objective or ("sigmoid" if dataset.multi_label else "softmax")
    check_objective(recipe, objective, dataset)  # before weights are fetched and pictures are looked at
    recipe = dataclasses.replace(recipe, objective=objective)
    pictures = look_at(dataset.splits["train"])
    image_size = None if recipe.image_size == (0, 0) else recipe.image_size
    if recipe.init != "none":
        model, origin = _from_weights(recipe, dataset, image_size)
    else:
        model, origin = _from_nothing(recipe, dataset, pictures, image_size), "none"
    if recipe.preprocessing:
        model.preprocessing = _preprocessing(model.preprocessing, recipe.preprocessing)
    if recipe.init == "none" and model.wants_images:
        model.begin_with(some_images(model, dataset.splits["train"]))
    regularization = recipe.regularization
    model.regularize(dropout=regularization.dropout, stochastic_depth=regularization.stochastic_depth)
    if regularization.patch_dropout and model.grid is None:
        raise UsageError(f"regularization.patch_dropout needs a model with patches; {model.name} has none")
    tune(model, recipe.tune, recipe.seed)
    architecture = model.architecture
    family_fields = {key: value for key, value in architecture.items() if key not in ("family", "num_classes")}
    preprocessing = {key: value for key, value in model.preprocessing.to_dict().items() if key != "image_size"}
    if objective in UNLABELLED:
        model.replace_head(0)
    elif objective == "sigmoid" and _has_new_head(model):
        counts, count = label_counts(dataset), len(dataset.splits["train"])
        if recipe.balance.sampling:
            counts = torch.from_numpy(evened(counts.numpy(), recipe.balance.sampling)) * count
        start_at_prior(model, counts, count)
    decided = dataclasses.replace(
        recipe,
        model=family_fields,
        image_size=model.image_size,
        preprocessing=preprocessing,
    )
    return Prepared(model, decided, origin, pictures.small)


def some_images(model: Model, split: Split) -> Tensor:
    """At most 2,000 pictures from all over the split, fewer of large ones, as evaluation sees them: normalised B×C×H×W."""
    found: list[Tensor] = []
    count = max(1, min(_FIRST_LOOK, _FIRST_NUMBERS // (model.in_channels * math.prod(model.image_size))))
    rows = np.unique(np.linspace(0, len(split) - 1, count).round().astype(np.int64))
    how = Looking(threads=1, what="a first look")  # one thread, so that they come in order
    look_at_all(model, split.subset(rows), lambda _, images: found.append(images.cpu()), how)
    if not found:
        raise DataError(f"none of {len(rows):,} training pictures can be read; the first is {split.name(0)}")
    return torch.cat(found)


def _has_new_head(model: Model) -> bool:
    return isinstance(model.head, nn.Linear) and not model.head.weight.any() and not model.head.bias.any()


def _from_weights(recipe: Recipe, dataset: Dataset, image_size: tuple[int, int] | None) -> tuple[Model, str]:
    model = load_model(recipe.init)
    origin = f"{recipe.init} ({model.name} at {model.image_size[0]}×{model.image_size[1]})"
    patch_size, hidden_head = recipe.model.get("patch_size"), recipe.model.get("hidden_head", False)
    model, changes = adapt(
        model,
        labels=() if recipe.objective in UNLABELLED else dataset.classes,
        image_size=image_size,
        patch_size=None if patch_size is None else config.coerce(patch_size, int, "model.patch_size"),
        in_channels=_channels(recipe),
        hidden_head=config.coerce(hidden_head, bool, "model.hidden_head"),
        resampling=recipe.resampling,
    )
    name = recipe.model.get("name")
    if name and name != model.name:
        raise UsageError(f"--model {name} and --init {recipe.init} exclude each other: the weights are of {model.name}")
    for option, value in recipe.model.items():
        there = model.architecture.get(option)
        if (list(there) if isinstance(there, tuple) else there) != value:  # TOML knows no tuples
            raise UsageError(f"model.{option}={value!r} does not fit --init {recipe.init}: there it is {there!r}")
    for change in changes:
        say(f"{recipe.init}: {change}")
    return model, "; ".join([origin, *changes])


def _from_nothing(recipe: Recipe, dataset: Dataset, pictures: Pictures, image_size: tuple[int, int] | None) -> Model:
    options = {key: value for key, value in recipe.model.items() if key != "name"}
    name = recipe.model.get("name")
    if not name:
        shape = (pictures.height, pictures.width)
        pictures_there, speed = len(dataset.splits["train"]), assumed_speed(recipe)
        chosen, reason = choose_model(recipe.budget, pictures_there, shape, image_size, options, speed)
        name, options, image_size = chosen
        say(reason)
    if image_size is None:
        image_size = natural_size(pictures, parse_name(name, options)[1].stride)
    channels = _channels(recipe) or (1 if pictures.grey else 3)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = create_model(name, len(dataset.classes), image_size, channels, **options)
    model.labels = dataset.classes
    if recipe.zero_init_residual:
        if not isinstance(model, ViT):
            raise UsageError(f"zero_init_residual is for an encoder, which {model.name} does not have")
        model.zero_init_residual()
    if pictures.small:
        # Small pictures of one shape are seen whole: there is no margin to cut off.
        model.preprocessing = dataclasses.replace(model.preprocessing, resize="stretch", crop_fraction=1.0)
    return model


def _channels(recipe: Recipe) -> int | None:
    """The number that the recipe's means say, if any."""
    mean = recipe.preprocessing.get("mean")
    return None if mean is None else len(config.coerce(mean, tuple[float, ...], "preprocessing.mean"))


def _preprocessing(base: Preprocessing, changes: dict[str, Any]) -> Preprocessing:
    known = {name: kind for name, kind in config.field_types(Preprocessing).items() if name != "image_size"}
    for name in changes:
        if name not in known:
            raise UsageError(f"unknown field preprocessing.{name}; known: {', '.join(known)}")
    typed = {name: config.coerce(value, known[name], f"preprocessing.{name}") for name, value in changes.items()}
    return dataclasses.replace(base, **typed)
