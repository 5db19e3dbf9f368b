"""Training state that survives a crash: a folder written aside, hashed in a manifest, published by one rename.

| file                     | what                                                                                   |
|--------------------------|----------------------------------------------------------------------------------------|
| `model.safetensors`      | weights                                                                                |
| `average.safetensors`    | their moving average, where the recipe has one                                         |
| `optimizer.safetensors`  | the optimizer's state, by parameter name                                               |
| `state.json`             | step, seconds, unfinished log window, unreadable pictures, hashes of recipe and data   |
| `manifest.json`          | size and SHA-256 of each of the others; without it the folder is not a checkpoint      |

The order of the data and all randomness are pure functions of the step, so the step is their whole state.
"""

import dataclasses
import shutil
from pathlib import Path

import torch

from patchword.core import files
from patchword.core.errors import DataError
from patchword.core.progress import say
from patchword.models.contract import Model
from patchword.training.optimizer import Average
from patchword.weights.folder import check_fit, read_tensors, write_tensors

MANIFEST = "manifest.json"


@dataclasses.dataclass
class State:
    """What the loop knows beside tensors."""

    step: int = 0
    """Steps whose update is in the weights."""
    seconds: float = 0.0
    """Training time, over all the processes that took part."""
    window: list[float] = dataclasses.field(default_factory=list)
    """Losses since the last line of the log."""
    resumed_from: list[int] = dataclasses.field(default_factory=list)
    unreadable: dict[int, str] = dataclasses.field(default_factory=dict)
    """Index in the training split → reason, for pictures that turned out bad on the way."""
    recipe_hash: str = ""
    data_fingerprint: str = ""


def save(
    folder: Path, state: State, model: Model, optimizer: torch.optim.Optimizer, average: Average | None, keep: int
) -> None:
    """Publish a checkpoint of this step in `folder`, then remove all but the newest `keep` that are whole."""
    with files.new_directory(folder / f"step-{state.step:08d}") as aside:
        write_tensors(aside / "model.safetensors", model.state_dict())
        if average is not None:
            write_tensors(aside / "average.safetensors", average.weights)
        write_tensors(aside / "optimizer.safetensors", _optimizer_tensors(optimizer))
        files.write_json(aside / "state.json", dataclasses.asdict(state))
        manifest = {file.name: [file.stat().st_size, files.sha256(file)] for file in sorted(aside.iterdir())}
        files.write_json(aside / MANIFEST, manifest)
    whole = [path for path in _newest_first(folder) if (path / MANIFEST).is_file()]
    for old in whole[max(1, keep) :]:
        shutil.rmtree(old, ignore_errors=True)


def restore(folder: Path, model: Model, optimizer: torch.optim.Optimizer, average: Average | None) -> State | None:
    """Put the newest whole checkpoint into model, optimizer and average; None where there is none.

    A damaged one is named and left where it is, and the one before it is taken.
    """
    for path in _newest_first(folder):
        try:
            _verify(path)
            state = _read_state(path / "state.json")
            tensors = read_tensors(path / "model.safetensors")
            check_fit(model, tensors, str(path))
        except DataError as error:
            say(f"checkpoint {path.name} is passed over: {error}")
            continue
        model.load_state_dict(tensors)  # in place: the optimizer holds these very parameters
        if average is not None:
            device = next(model.parameters()).device
            average.weights = {k: v.to(device) for k, v in read_tensors(path / "average.safetensors").items()}
        _restore_optimizer(optimizer, read_tensors(path / "optimizer.safetensors"))
        return state
    return None


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-[0-9]*"), reverse=True) if folder.is_dir() else []


def _verify(path: Path) -> None:
    manifest = files.read_json(path / MANIFEST)
    if not isinstance(manifest, dict) or "model.safetensors" not in manifest:
        raise DataError(f"{path / MANIFEST} is not a manifest")
    for name, (size, digest) in manifest.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != size or files.sha256(file) != digest:
            raise DataError(f"{file} is missing or not what its manifest says")


def _read_state(path: Path) -> State:
    values = files.read_json(path)
    try:
        values["unreadable"] = {int(index): reason for index, reason in values["unreadable"].items()}
        return State(**values)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise DataError(f"{path} is not the state of a run ({error})") from error


def _named(optimizer: torch.optim.Optimizer) -> dict[str, torch.nn.Parameter]:
    return {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
    }


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{key}": value
        for name, parameter in _named(optimizer).items()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, torch.Tensor)
    }


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    optimizer.state.clear()
    parameters = _named(optimizer)
    for path, value in tensors.items():
        name, _, key = path.rpartition("/")
        parameter = parameters[name]
        # Step counts stay on the CPU, where the optimizer keeps them; moments live with their parameter.
        optimizer.state[parameter][key] = value if key == "step" else value.to(parameter.device)
