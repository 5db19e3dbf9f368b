"""One door to weights, in and out: whatever dialect they are in ↔ models."""

import importlib
import tempfile
from pathlib import Path
from typing import Any

import torch

from patchword.core.errors import DataError, UsageError, nearest
from patchword.core.progress import say
from patchword.core.runtime import choose_device
from patchword.models.contract import Model
from patchword.models.layers import Gelu
from patchword.models.names import build_model
from patchword.models.position import Position, Resampling
from patchword.weights import folder, hub
from patchword.weights.adapt import adapt
from patchword.weights.mapping import Foreign, Hints
from patchword.weights.source import DIALECTS, Dialect, Source, open_source


def load_model(
    source: str | Path,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    device: "str | torch.device | None" = None,
    *,
    num_heads: int | None = None,
    gelu: Gelu | None = None,
    norm_eps: float | None = None,
    position: Position | None = None,
    in_channels: int | None = None,
    patch_size: int | None = None,
    hidden_head: bool = False,
    resampling: Resampling = "official",
) -> Model:
    """The model at `source`, in evaluation mode: a run folder or a model folder, a file or folder in the dialect of Google,
    timm or transformers, or an address such as `hf://org/name` (see `docs/weights.md`).

    Another `num_classes` gives it a new zero head (0: features), on the pre-training head's tanh layer if `hidden_head`;
    another `image_size` or `patch_size` resamples its position embedding (`resampling`) and its projection; `in_channels` is
    1 for grey pictures, 3 for RGB. `num_heads`, `gelu`, `norm_eps` and `position` say what bare tensors cannot; each default
    taken for want of one, and each change, is logged.
    Raises `UsageError` for a place that holds no model and `DataError` for a damaged one.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    opened = open_source(hub.locate(source))
    found = read(opened, Hints(num_heads=num_heads, gelu=gelu, norm_eps=norm_eps, position=position, image_size=size))
    for sentence in found.assumed:
        say(f"{source}: {sentence}")
    model, changes = adapt(
        found.model,
        num_classes=num_classes,
        image_size=size,
        patch_size=patch_size,
        in_channels=in_channels,
        hidden_head=hidden_head,
        resampling=resampling,
    )
    for change in changes:
        say(f"{source}: {change}")
    return model.to(choose_device(str(device)) if device is not None else torch.device("cpu")).eval()


def as_model(source: "str | Path | Model") -> Model:
    """A model as it is; or the one at `source`, on the first GPU where there is one. In evaluation mode."""
    return source.eval() if isinstance(source, Model) else load_model(source, device="auto")


def save_model(model: Model, target: str | Path, format: Dialect = "patchword") -> None:  # noqa: A002
    """Write `model` with its labels and preprocessing to `target`, whole or not at all: a `.npz` file for Google's format,
    a folder for the others, each as its own library reads it. The same weights give the same bytes.

    Raises `UsageError` where the format cannot hold the model, or `target` holds something that is not a model.
    """
    if format not in DIALECTS:
        raise UsageError(f"unknown format {format!r}; {nearest(format, DIALECTS)}")
    path = Path(target)
    check_target(path, format)
    if format == "patchword":
        folder.save(model, path)
    else:
        _module(format).write(model, path)


def check_target(path: Path, format: Dialect) -> None:  # noqa: A002
    """Raise `UsageError` unless a model in this format may be written to `path`: only its like is replaced."""
    if format == "google" and (path.suffix != ".npz" or path.is_dir()):
        raise UsageError(f"{path}: Google's format is one file whose name ends in .npz")
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    try:
        there = open_source(path).dialect
    except (DataError, UsageError) as error:
        raise UsageError(f"{path} exists and holds no model; a new name would be right ({error})") from error
    if there != format:
        raise UsageError(f"{path} holds a model of another format ({there}); a new name would be right")


def read(source: Source, hints: Hints) -> Foreign:
    """The model in an opened source, and what there is to say about it."""
    if source.dialect != "patchword":
        found: Foreign = _module(source.dialect).read(source, hints)
        found.model.provenance = {"source": str(source.where), "dialect": source.dialect, "assumed": found.assumed}
        found.model.eval()
        return found
    if given := hints.given():
        raise UsageError(f"{source.where} says itself what it is; {given[0]} is for bare tensors of other libraries")
    return Foreign(folder.load(source.where))


def refusal(model: Model, format: Dialect) -> str | None:  # noqa: A002
    """Why `format` cannot hold the model, or None where it can. Nothing is written.

    The writer gets a model of the meta device: it gets as far as the values, which there are none of.
    """
    if format == "patchword":
        return None
    twin = build_model(model.architecture, model.preprocessing)
    twin.labels = model.labels
    with tempfile.TemporaryDirectory() as aside:
        try:
            _module(format).write(twin, Path(aside) / ("model.npz" if format == "google" else "model"))
        except UsageError as error:
            return str(error)
        except RuntimeError:
            return None
    return None


def _module(dialect: Dialect) -> Any:
    return importlib.import_module(f"patchword.weights.{dialect}")
