"""What is true of somebody's weights beyond the model they make: files, values, what vouches for them, what a format lost."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from patchword.core import files
from patchword.core.errors import DataError
from patchword.models.contract import Model
from patchword.weights import io
from patchword.weights.folder import is_finite
from patchword.weights.mapping import Hints, type_of
from patchword.weights.source import Source, open_source


def files_of(source: Source) -> list[dict[str, Any]]:
    """Every file that the model was read from: path, bytes, SHA-256."""
    home = source.where if source.where.is_dir() else source.where.parent
    weights = [source.where] if source.where.is_file() else sorted(home.glob("*.safetensors"))
    names = ("model.json", "model.safetensors.index.json", "config.json", "preprocessor_config.json")
    described = source.dialect == "patchword" or source.description or source.preprocessor
    beside = [home / name for name in names if described and (home / name).is_file()]
    return [
        {"path": str(path), "bytes": path.stat().st_size, "sha256": files.sha256(path)} for path in [*weights, *beside]
    ]


def values_of(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Counts by type, the least and the largest number, and whether all are finite."""
    types: dict[str, int] = {}
    bounds, finite = [], True
    for tensor in tensors.values():
        name = type_of(tensor)
        types[name] = types.get(name, 0) + tensor.numel()
        if tensor.is_floating_point() and tensor.numel():
            bounds += [bound.item() for bound in tensor.aminmax()]
            finite &= is_finite(tensor)
    return {"types": types, "least": min(bounds), "largest": max(bounds), "finite": finite}


def checked(source: Source) -> str:
    """What stands behind the values in this kind of file."""
    if source.dialect == "patchword":
        return "its SHA-256 is the one in model.json"
    if source.where.is_file() and zipfile.is_zipfile(source.where):
        return "every array agrees with its CRC-32 in the archive"
    return "safetensors has no checksum: that the file is whole and its values are finite is all that can be checked"


def read_back(model: Model, target: Path) -> tuple[Model, list[str]]:
    """The model that was written, and a sentence for each thing of it that the format does not keep."""
    opened, changed = open_source(target), []
    try:
        again = io.read(opened, Hints()).model
    except DataError:
        again = None
    if again is None or again.image_size != model.image_size:
        height, width = model.image_size
        changed.append(f"the format does not say the image size; give image_size={height}x{width} to read it")
        again = io.read(opened, Hints(image_size=model.image_size)).model
    if again.labels != model.labels:
        changed.append("the format does not keep the labels")
    before = {**model.architecture, **model.preprocessing.to_dict()}
    after = {**again.architecture, **again.preprocessing.to_dict()}
    idle = ("name", "crop_fraction") if model.preprocessing.resize == "stretch" else ("name",)
    changed += [
        f"{field} {plain(value)} reads back as {plain(after.get(field))}"
        for field, value in before.items()
        if field not in idle and after.get(field) != value
    ]
    if model.multi_label and not again.multi_label:
        changed.append("that a picture may have several labels is not kept: probabilities read back add up to one")
    return again, changed


def plain(value: Any) -> str:
    """A value as a person writes it: `(14, 22)`."""
    return f"({', '.join(map(str, value))})" if isinstance(value, list | tuple) else str(value)
