"""A path → the tensors there and what lies beside them. Whose they are is seen in their names, never in the file's."""

import dataclasses
import os
import struct
import warnings
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from patchword.core import files
from patchword.core.errors import DataError, UsageError, brief, suggestion
from patchword.weights import folder, npz, shipped

Dialect = Literal["patchword", "google", "timm", "huggingface"]
DIALECTS: tuple[Dialect, ...] = ("patchword", "google", "timm", "huggingface")

CONFIG = "config.json"
"""What timm and transformers write beside the tensors."""
_PREPROCESSOR = "preprocessor_config.json"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_CHECKPOINTS, _RECIPE = "checkpoints", "recipe.toml"  # of a run folder
_PICKLES = ("pytorch_model.bin", "model.bin", "pytorch_model.pt")
# The keys under which training programs keep a model's weights among other things.
_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model")


@dataclasses.dataclass(frozen=True)
class Source:
    """Somebody's weights, opened."""

    where: Path
    """The file or folder, for sentences."""
    dialect: Dialect
    tensors: Mapping[str, Tensor]
    """By their names there; empty for a model folder of ours, which `folder.load` reads."""
    description: dict[str, Any] = dataclasses.field(default_factory=dict)
    """`config.json`, where there is one."""
    preprocessor: dict[str, Any] = dataclasses.field(default_factory=dict)
    """`preprocessor_config.json`, where there is one."""


def open_source(path: Path, *, trust_pickle: bool = False) -> Source:
    """What lies at `path`: a model or run folder of ours, a folder of timm's or transformers', or a file of weights.

    Nothing is executed: a pickle is refused, or with `trust_pickle` read by torch's restricted reader, which makes nothing
    but tensors. Raises `UsageError` where there is no model, `DataError` where one is damaged.
    """
    if (ours := own_folder(path)) is not None:
        return Source(ours, "patchword", {})
    if not path.exists():
        raise UsageError(f"{path} holds no model: it does not exist{_shipped(str(path))}")
    _check_finished(path)
    home = path if path.is_dir() else path.parent
    described = path.is_dir() or path.name == _WEIGHTS or path.name in _PICKLES
    description = _json(home / CONFIG) if described else {}
    preprocessor = _json(home / _PREPROCESSOR) if described else {}
    tensors = _shards(path, trust_pickle) if path.is_dir() else _file(path, trust_pickle)
    return Source(path, recognize(tensors, path), tensors, description, preprocessor)


def own_folder(path: Path) -> Path | None:
    """The model folder of ours at `path`: itself, a run's, or that of its file of weights; None where there is none."""
    places = (path, path / "model", *([path.parent] if path.name == folder.WEIGHTS else []))
    return next((place for place in places if (place / folder.DESCRIPTION).is_file()), None)


def _shipped(word: str) -> str:
    """What comes with the package and may have been meant by a word that is no path, for the end of a sentence."""
    names = shipped.names()
    if word in names:
        return f"; {shipped.PREFIX}{word} comes with patchword"
    if word == shipped.PREFIX.removesuffix(":") and names:
        return f"; {', '.join(shipped.PREFIX + name for name in names)} would be right"
    guess = suggestion(word, [shipped.PREFIX + name for name in names])
    return f"; {guess}" if guess else ""


def _check_finished(path: Path) -> None:
    """Raise `UsageError` for a run without a model, and for its checkpoints: they do not say what their tensors are."""
    for place in (path / _CHECKPOINTS, path, path.parent, path.parent.parent):
        run = place.parent
        if place.name == _CHECKPOINTS and place.is_dir() and (run / _RECIPE).is_file():
            if (run / "model" / folder.DESCRIPTION).is_file():
                raise UsageError(f"{path} belongs to the checkpoints of a run; the run's folder, {run}, would be right")
            raise UsageError(
                f"{path} holds no model, for the run {run} is not finished; its command, given again, finishes it"
            )


def recognize(names: Collection[str], where: Path) -> Dialect:
    """Whose names these are."""
    if any("/" in name for name in names):
        return "google"
    if any("patch_embeddings.projection" in name for name in names):
        return "huggingface"
    if any(name.startswith(("patch_embed.", "stem.conv.", "stages.0.blocks.")) for name in names):
        if "position.table" in names or "patch_embed.weight" in names:
            raise UsageError(
                f"{where} holds tensors of a patchword model without its {folder.DESCRIPTION}; give the folder"
            )
        return "timm"
    first = ", ".join(sorted(names)[:3]) or "none"
    raise DataError(f"{where} holds weights of no kind that is known (its tensors are {first}, …)")


def _shards(path: Path, trust_pickle: bool) -> dict[str, Tensor]:
    """The tensors of a folder: one file, or several that an index names."""
    if (path / _WEIGHTS).is_file():
        return folder.read_tensors(path / _WEIGHTS)
    if not (path / _INDEX).is_file():
        pickled = [name for name in _PICKLES if (path / name).is_file()]
        if pickled:
            return _file(path / pickled[0], trust_pickle)
        raise UsageError(
            f"{path} holds no model: a finished run's folder, or one with {folder.DESCRIPTION} or {_WEIGHTS}, is right"
        )
    index = _json(path / _INDEX).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
        raise DataError(f"{path / _INDEX} has no weight_map of names to files")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(index.values())):
        if Path(name).name != name:
            raise DataError(f"{path / _INDEX} names {name!r}, which leads out of the folder; a file beside it is right")
        if not os.path.isfile(path / name):  # pathlib's raises where a name is too long
            raise DataError(f"{path / name} does not exist, though {_INDEX} names it")
        tensors.update(folder.read_tensors(path / name))
    if missing := sorted(set(index) ^ set(tensors)):
        raise DataError(f"{path}: {missing[0]} is in {_INDEX} or in its files, but not in both")
    return tensors


def _file(path: Path, trust_pickle: bool) -> dict[str, Tensor]:
    files.check_regular(path)
    with path.open("rb") as file:
        start = file.read(16)
    if start[8:9] == b"{":
        return folder.read_tensors(path)
    if start.startswith(b"PK"):
        try:
            with zipfile.ZipFile(path) as archive:
                pickled = any(name.endswith("data.pkl") for name in archive.namelist())
        except (zipfile.BadZipFile, NotImplementedError, ValueError, LookupError, OSError, struct.error) as error:
            raise DataError(f"{path} is not a whole archive ({error})") from error
        if not pickled:
            return npz.read(path)
    elif not start.startswith(b"\x80"):
        raise DataError(f"{path} is neither safetensors nor .npz: it is damaged, or of another kind")
    if not trust_pickle:
        raise _refuse_pickle(path)
    return _pickle(path)


def _pickle(path: Path) -> dict[str, Tensor]:
    """A state dict that `torch.save` wrote, alone or among other things."""
    try:
        # Opened here, for by its name torch may take a file for one of another format.
        with path.open("rb") as file, warnings.catch_warnings(action="ignore"):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader fails with any of a dozen kinds on what is damaged
        # Around its reason, torch says at length how a file that is trusted could be opened all the same.
        reason = str(error).rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0].partition(". ")[0]
        raise DataError(
            f"{path} holds more than tensors, or is damaged; it was not opened ({brief(reason or type(error).__name__)})"
        ) from error
    for key in _NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise DataError(f"{path} holds no state dict of tensors alone")
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def _refuse_pickle(path: Path) -> DataError:
    return DataError(
        f"{path} is a pickle, which can run any code when it is loaded; 'patchword weights convert {path} TARGET --to "
        "patchword --trust-pickle' reads its tensors and nothing else"
    )


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content = files.read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path} is not an object of fields")
    return content
