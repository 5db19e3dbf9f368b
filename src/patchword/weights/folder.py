"""A portable model folder: `model.safetensors` and `model.json` say everything about the model, `README.md` to people."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from patchword.core import files
from patchword.core.errors import DataError, PatchwordError
from patchword.core.preprocessing import Preprocessing
from patchword.models.contract import Model
from patchword.models.names import build_model
from patchword.weights.card import card

WEIGHTS, DESCRIPTION, CARD = "model.safetensors", "model.json", "README.md"
_FORMAT = 1
HALF = "float16"
"""What a description says where weights are stored smaller than they are computed with."""
_NUMBERS = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64)


def save(model: Model, folder: Path, *, half: bool = False) -> None:
    """Write the model to `folder`, whole or not at all. Equal weights give equal bytes in `model.safetensors`.

    `half`: in float16, half as large, and made float32 again where it is loaded.
    """
    tensors = model.state_dict()
    if half:
        tensors = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
    with files.new_directory(folder) as aside:
        write_tensors(aside / WEIGHTS, tensors)
        description = {
            "format": _FORMAT,
            **({"stored": HALF} if half else {}),
            "architecture": model.architecture,
            "labels": None if model.labels is None else list(model.labels),
            "multi_label": model.multi_label,
            "preprocessing": model.preprocessing.to_dict(),
            "provenance": model.provenance,
            "sha256": {WEIGHTS: files.sha256(aside / WEIGHTS)},
        }
        description["sha256"][DESCRIPTION] = _hash(description)
        (aside / DESCRIPTION).write_text(json.dumps(description, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (aside / CARD).write_text(card(model), encoding="utf-8")


def load(folder: Path) -> Model:
    """The model in `folder`, in evaluation mode on the CPU, its weights mapped from the file.

    Raises `DataError` where a file is missing, damaged (the hash tells) or not what the description promises.
    """
    try:
        return _load(folder, files.read_json(folder / DESCRIPTION))
    except PatchwordError as error:
        if str(folder) in str(error):
            raise
        raise DataError(f"{folder / DESCRIPTION}: {error}") from error


def _load(folder: Path, description: Any) -> Model:
    if not isinstance(description, dict) or description.get("format") != _FORMAT:
        raise DataError(f"{folder / DESCRIPTION} is not a model description of format {_FORMAT}")
    try:
        hashes = dict(description["sha256"])
        expected, own = hashes[WEIGHTS], hashes.pop(DESCRIPTION, None)
        # Who edits the description on purpose takes its hash out.
        if own is not None and own != _hash({**description, "sha256": hashes}):
            raise DataError(
                f"{folder / DESCRIPTION} is damaged or was edited, for its own SHA-256 does not hold; "
                "whoever edits it on purpose takes that line out"
            )
        labels, architecture = description["labels"], description["architecture"]
        preprocessing = Preprocessing.from_dict(description["preprocessing"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder / DESCRIPTION} lacks {error}") from error
    if not isinstance(expected, str) or not isinstance(architecture, dict):
        raise DataError(
            f"{folder / DESCRIPTION} is not what this release writes: sha256 or architecture is of another kind"
        )
    if not (folder / WEIGHTS).is_file():
        raise DataError(f"{folder / WEIGHTS} does not exist")
    if (found := files.sha256(folder / WEIGHTS)) != expected:
        raise DataError(
            f"{folder / WEIGHTS} is damaged: its SHA-256 is {found[:12]}…, {DESCRIPTION} says {expected[:12]}…"
        )
    tensors = read_tensors(folder / WEIGHTS)
    if not _plausible(architecture, tensors):
        raise DataError(f"{folder / DESCRIPTION} describes a larger model than there are tensors for in {WEIGHTS}")
    model = build_model(architecture, preprocessing)
    if description.get("stored") == HALF:  # kept small, not computed with
        tensors = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    fill(model, tensors, str(folder / WEIGHTS))
    if labels is not None and not (
        isinstance(labels, list)
        and len(labels) == model.num_classes
        and all(isinstance(label, str) for label in labels)
    ):
        raise DataError(f"{folder / DESCRIPTION}: labels must name each of the {model.num_classes} classes with a text")
    model.labels = None if labels is None else tuple(labels)
    model.multi_label = description.get("multi_label") is True
    provenance = description.get("provenance")
    model.provenance = provenance if isinstance(provenance, dict) else {}
    return model.eval()


def _plausible(architecture: dict[str, Any], tensors: dict[str, torch.Tensor]) -> bool:
    """Whether a model as described has its like: nobody builds a million blocks to find that the file has twelve."""
    depths = architecture.get("depth", 0), architecture.get("depths", ())
    blocks = [depths[0], *depths[1]] if isinstance(depths[1], list | tuple) else [depths[0]]
    return all(not isinstance(count, int) or count <= len(tensors) for count in blocks)


def _hash(description: dict[str, Any]) -> str:
    """Of a description in one spelling, whatever its spaces and the order of its fields."""
    return hashlib.sha256(json.dumps(description, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def fill(model: Model, tensors: dict[str, torch.Tensor], where: str) -> None:
    """Give a model of the meta device its tensors, without a copy; every name and every shape must fit."""
    check_fit(model, tensors, where, model.name)
    model.load_state_dict(tensors, assign=True)


def check_fit(module: nn.Module, tensors: dict[str, torch.Tensor], where: str, needs: str) -> None:
    """Raise `DataError` unless `tensors`, read from `where`, have the names and shapes of a module called `needs`."""
    wanted = {name: value.shape for name, value in module.state_dict().items()}
    for name in sorted(wanted.keys() ^ tensors.keys()):
        raise DataError(f"{where} {'lacks' if name in wanted else 'has an unknown tensor'} {name} for {needs}")
    for name, shape in wanted.items():
        check_like(name, tensors[name], shape, where, needs)


def check_like(name: str, tensor: torch.Tensor, shape: torch.Size, where: str, needs: str) -> None:
    """Raise `DataError` unless `tensor`, read from `where`, has the shape that `needs` has, and numbers to compute with."""
    if tensor.shape != shape:
        raise DataError(f"{where}: {name} is {tuple(tensor.shape)}, {needs} needs {tuple(shape)}")
    if tensor.dtype not in _NUMBERS:
        raise DataError(f"{where}: {name} is of {tensor.dtype}; {', '.join(map(str, _NUMBERS[:-1]))} are right")


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all values are finite; whole numbers are."""
    # A sum is finite where all of its terms are, unless they are huge: only then look at each.
    return not tensor.is_floating_point() or bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors in the order of their names: the same values, and metadata of at most one key, are the same bytes."""
    ready = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    with files.disk_faults(path):
        try:
            save_file(ready, path, metadata)
            files.make_readable(path)
        except SafetensorError as error:
            raise OSError(_errno_of(error), str(error)) from error


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file; a sentence names it where it is damaged."""
    return read_described(path)[0]


def read_described(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The same, and its metadata: of one file, if another process puts a new one in its place meanwhile."""
    files.check_regular(path)
    try:
        with safe_open(path, "pt") as opened:
            return opened.get_tensors(), opened.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path} is not a whole safetensors file ({error})") from error


def _errno_of(error: Exception) -> int:
    """The system's error number, which safetensors reports as text ("… (os error 28)")."""
    _, _, tail = str(error).rpartition("os error ")
    digits = tail.rstrip(") ")
    return int(digits) if digits.isdigit() else 5
