"""One door to weights, in and out: run folders and model folders ↔ models."""

from pathlib import Path
from typing import Literal

import torch

from patchword.core.errors import UsageError, nearest
from patchword.core.progress import say
from patchword.core.runtime import choose_device
from patchword.models.contract import Model
from patchword.weights import folder
from patchword.weights.adapt import adapt


def load_model(
    source: str | Path,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    device: "str | torch.device | None" = None,
) -> Model:
    """The model at `source` (a run folder or a model folder), in evaluation mode.

    Another `num_classes` gives it a new zero head (0: features); another `image_size` resamples its position embedding;
    each such change is logged. Raises `UsageError` for a place that holds no model and `DataError` for a damaged one.
    """
    path = Path(source)
    places = [place for place in (path, path / "model") if (place / folder.DESCRIPTION).is_file()]
    if not places:
        raise UsageError(f"{source} holds no model: a finished run's folder or one with {folder.DESCRIPTION} is right")
    model = folder.load(places[0])
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    model, changes = adapt(model, num_classes=num_classes, image_size=size)
    for change in changes:
        say(f"{source}: {change}")
    return model.to(choose_device(str(device)) if device is not None else torch.device("cpu")).eval()


def save_model(model: Model, target: str | Path, format: Literal["patchword"] = "patchword") -> None:  # noqa: A002
    """Write `model` with its labels and preprocessing to the folder `target`, whole or not at all.

    The same weights give the same bytes. Raises `UsageError` where `target` holds something that is not a model.
    """
    if format != "patchword":
        raise UsageError(f"unknown format {format!r}; {nearest(format, ['patchword'])}")
    path = Path(target)
    if path.exists() and not (path / folder.DESCRIPTION).is_file() and not (path.is_dir() and not any(path.iterdir())):
        raise UsageError(f"{target} exists and holds no model; a new folder would be right")
    folder.save(model, path)
