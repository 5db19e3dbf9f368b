"""Training state that survives a crash: a folder written aside, hashed in a manifest, published by one rename.

| file                       | what                                                                                  |
|----------------------------|---------------------------------------------------------------------------------------|
| `model.safetensors`        | weights and buffers                                                                   |
| `average.safetensors`      | their moving average, where the recipe has one                                        |
| `objective.safetensors`    | what the objective has of its own, where it has anything                              |
| `optimizer-*.safetensors`  | the optimizer's state, a file a kind (`exp_avg`, …), by parameter name                |
| `state.json`               | everything else: the fields of `State`                                                |
| `manifest.json`            | size and SHA-256 of each of the others; without it the folder is not a checkpoint     |

The order of the data and all randomness are pure functions of the step, so the step is their whole state. bfloat16 needs no
loss scaler, so there is none.
"""

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from patchword.core import config, files
from patchword.core.errors import DataError, FaultError, UsageError
from patchword.core.progress import say
from patchword.models.contract import Model
from patchword.training.optimizer import OBJECTIVE, Average
from patchword.training.sharded import as_sharded, full
from patchword.weights.folder import check_fit, check_like, is_finite, read_tensors, write_tensors

MANIFEST = "manifest.json"
_MODEL, _AVERAGE, _OBJECTIVE = "model.safetensors", "average.safetensors", "objective.safetensors"
_STATE = "state.json"


@dataclasses.dataclass
class State:
    """What the loop knows beside tensors."""

    step: int = 0
    """Steps that are done: their updates are in the weights."""
    total_steps: int = 0
    samples_seen: int = 0
    """Pictures that these steps took, over all processes."""
    seconds: float = 0.0
    """Training time, over all the processes that took part."""
    window: list[float] = dataclasses.field(default_factory=list)
    """Losses since the last line of the log."""
    losses: list[float] = dataclasses.field(default_factory=list)
    """The newest losses, by which a spike is told."""
    lr: float = 0.0
    """Of the newest step, as its gradient norm."""
    grad_norm: float = 0.0
    left_out: list[int] = dataclasses.field(default_factory=list)
    """Steps whose batch was left out after the training had gone wrong in them."""
    resumed_from: list[int] = dataclasses.field(default_factory=list)
    unreadable: dict[int, str] = dataclasses.field(default_factory=dict)
    """Index in the training split → reason, for pictures that turned out bad on the way."""
    recipe_hash: str = ""
    data_fingerprint: str = ""
    teacher: str = ""
    """A hash of who answers beside the labels or in their place; empty: nobody."""
    content: dict[str, str] = dataclasses.field(default_factory=dict)
    """Split → a hash of what the files of its pictures held, where they are held in memory."""
    pictures: dict[str, int] = dataclasses.field(default_factory=dict)
    """Split → the number of its pictures."""
    classes: list[str] = dataclasses.field(default_factory=list)
    processes: int = 1
    threads: int = 1
    """Of each process."""
    most_at_once: int = 0
    """Images that pass through the model at once, where a GPU has had no room for more; 0: no limit met."""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    """Of patchword, torch and Python, when it was saved."""

    def change_of_data(self, before: "State") -> str | None:
        """What is another in the data than it was `before`, in words; None if all is as it was."""
        if gone := [name for name in before.classes if name not in self.classes]:
            return f"the class {gone[0]} is gone"
        if new := [name for name in self.classes if name not in before.classes]:
            return f"the class {new[0]} is new"
        for split in sorted({*self.pictures, *before.pictures}):
            now, then = self.pictures.get(split, 0), before.pictures.get(split, 0)
            if now != then:
                return f"{split} has {now:,} pictures, not {then:,}"
        if self.data_fingerprint != before.data_fingerprint:
            return "the name, size or label of a picture is another"
        for split, content in self.content.items():
            if content != before.content.get(split, content):
                return f"the content of a picture in {split} is another"
        return None


Tensors = dict[str, dict[str, Tensor]]
"""The name of a file → its tensors, whole and by name."""


def tensors_of(
    model: Model,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average | None,
    *,
    keep: bool = True,
) -> Tensors:
    """What a checkpoint holds of them. Where they are sharded every process must ask, and only who saves should `keep` it.

    What is shared out is put together tensor by tensor and kept in main memory: no device has room for all of it.
    """
    tensors: Tensors = {}

    def add(file: str, name: str, value: Tensor) -> None:
        whole = full(value)
        if keep:
            tensors.setdefault(file, {})[name] = value if whole is value else whole.cpu()

    for name, value in model.state_dict().items():
        add(_MODEL, name, value)
    for name, value in {} if average is None else average.weights.items():
        add(_AVERAGE, name, value)
    for name, value in objective.state_dict().items():
        add(_OBJECTIVE, name, value)
    for name, parameter in _named(optimizer).items():
        for kind, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                add(_optimizer_file(kind), name, value)
    return tensors


def save(folder: Path, state: State, tensors: Tensors, keep: int) -> None:
    """Publish a checkpoint of this step in `folder`, then remove all but the newest `keep` that are whole.

    Raises `FaultError` where the disk refuses, or where weights are not finite: nothing is published then, and what was
    there stays.
    """
    for name in (_MODEL, _AVERAGE, _OBJECTIVE):
        if (spoiled := _non_finite(tensors.get(name, {}))) is not None:
            raise FaultError(f"{spoiled} is not finite after step {state.step}: no checkpoint of it is written")
    # Files are hashed and brought to the disk while the next one is written.
    with files.new_directory(folder / f"step-{state.step:08d}") as aside, ThreadPoolExecutor(1) as behind:
        done: dict[str, Future[list[Any]]] = {}
        for name, part in tensors.items():
            write_tensors(aside / name, part)
            done[name] = behind.submit(_seal, aside / name)
        files.write_json(aside / _STATE, dataclasses.asdict(state))
        done[_STATE] = behind.submit(_seal, aside / _STATE)
        files.write_json(aside / MANIFEST, {name: done[name].result() for name in sorted(done)})
    there = _newest_first(folder)
    # What lies beyond this step was passed over as damaged, or is of a way that was left.
    beyond = [path for path in there if _step_of(path) > state.step]
    whole = [path for path in there if path not in beyond and (path / MANIFEST).is_file()]
    for old in [*beyond, *whole[max(1, keep) :]]:
        with contextlib.suppress(OSError):  # the disk may be full: the next saving removes it
            files.remove_directory(old)


@dataclasses.dataclass(frozen=True)
class Saved:
    """A whole checkpoint."""

    path: Path
    state: State

    def weights(self) -> dict[str, Tensor]:
        return read_tensors(self.path / _MODEL)

    def objective(self) -> dict[str, Tensor]:
        path = self.path / _OBJECTIVE
        return read_tensors(path) if path.exists() else {}

    def fill_average(self, average: Average) -> None:
        for name, value in read_tensors(self.path / _AVERAGE).items():
            average.weights[name].copy_(as_sharded(value, average.weights[name]))

    def fill_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.state.clear()
        parameters = _named(optimizer)
        for file in sorted(self.path.glob(_optimizer_file("*"))):
            kind = file.name.removeprefix("optimizer-").removesuffix(".safetensors")
            for name, value in read_tensors(file).items():
                # Step counts stay on the CPU, where the optimizer keeps them; moments live with their parameter.
                parameter = parameters[name]
                optimizer.state[parameter][kind] = value if kind == "step" else as_sharded(value, parameter)


def newest(folder: Path, model: Model, objective: nn.Module) -> Saved | None:
    """The newest checkpoint that is whole and fits model and objective; None where there is none.

    A damaged one is named and left where it is, and the one before it is taken.
    """
    for path in _newest_first(folder):
        try:
            _verify(path)
            saved = Saved(path, _read_state(path / _STATE))
            _check_fit(saved, model, objective)
        except DataError as error:
            say(f"checkpoint {path.name} is passed over: {error}")
            continue
        return saved
    return None


def newest_step(folder: Path) -> int | None:
    """The step of the newest checkpoint that lies in `folder`, whole or not; None where there is none."""
    return next(map(_step_of, _newest_first(folder)), None)


def at(path: Path) -> Saved:
    """A checkpoint that another process has found to be whole."""
    return Saved(path, _read_state(path / _STATE))


def _seal(file: Path) -> list[Any]:
    """Bring a file to the disk; its size and SHA-256."""
    digest = files.sha256(file)
    files.sync_file(file)
    return [file.stat().st_size, digest]


def _optimizer_file(kind: str) -> str:
    return f"optimizer-{kind}.safetensors"


def _newest_first(folder: Path) -> list[Path]:
    found = folder.glob("step-[0-9]*") if folder.is_dir() else ()
    return sorted((path for path in found if re.fullmatch(r"step-\d{8,}", path.name)), key=_step_of, reverse=True)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _verify(path: Path) -> None:
    manifest = files.read_json(path / MANIFEST)
    entries = list(_entries(manifest, path / MANIFEST))
    if not {_MODEL, _STATE} <= {name for name, _, _ in entries}:
        raise DataError(f"{path / MANIFEST} is not a manifest: it lacks {_MODEL} or {_STATE}")
    if strange := sorted({file.name for file in path.glob("*.safetensors")} - {name for name, _, _ in entries}):
        raise DataError(f"{path / strange[0]} is not in its manifest")
    for name, size, digest in entries:
        file = path / name
        if not os.path.isfile(file) or file.stat().st_size != size or files.sha256(file) != digest:
            raise DataError(f"{file} is missing or not what its manifest says")


def _check_fit(saved: Saved, model: Model, objective: nn.Module) -> None:
    """Raise `DataError` unless the checkpoint is of the step that its name says, and all its tensors are theirs."""
    if saved.path.name != f"step-{saved.state.step:08d}":
        raise DataError(f"{saved.path / _STATE} is of step {saved.state.step}, and not of this checkpoint's")
    for file in (saved.path / _MODEL, saved.path / _AVERAGE):
        if file.name == _MODEL or file.exists():
            weights = read_tensors(file)
            check_fit(model, weights, str(file), model.name)
            if (name := _non_finite(weights)) is not None:
                raise DataError(f"{file}: {name} is not finite")
    own = saved.objective()
    check_fit(objective, own, str(saved.path / _OBJECTIVE), "the objective")
    if (name := _non_finite(own)) is not None:
        raise DataError(f"{saved.path / _OBJECTIVE}: {name} is not finite")
    shapes = {name: value.shape for name, value in model.named_parameters()}
    shapes |= {OBJECTIVE + name: value.shape for name, value in objective.named_parameters()}
    for file in sorted(saved.path.glob(_optimizer_file("*"))):
        for name, value in read_tensors(file).items():
            if name not in shapes:
                raise DataError(f"{file} has an unknown tensor {name}")
            shape = torch.Size() if file.name == _optimizer_file("step") else shapes[name]
            check_like(name, value, shape, str(file), "the optimizer")


def _entries(manifest: Any, where: Path) -> Iterator[tuple[str, int, str]]:
    for name, entry in manifest.items() if isinstance(manifest, dict) else ():
        if Path(name).name != name or not isinstance(entry, list) or len(entry) != 2:
            raise DataError(f"{where} is not a manifest of files beside it with their size and SHA-256")
        yield name, entry[0], entry[1]


def _read_state(path: Path) -> State:
    values = files.read_json(path)
    try:
        values["unreadable"] = {int(index): reason for index, reason in values["unreadable"].items()}
        return config.build(State, values, "state")
    except (TypeError, KeyError, ValueError, AttributeError, UsageError) as error:
        raise DataError(f"{path} is not the state of a run ({error})") from error


def _non_finite(tensors: dict[str, Tensor]) -> str | None:
    """The name of the first tensor with values that are not finite."""
    return next((name for name, value in tensors.items() if not is_finite(value)), None)


def _named(optimizer: torch.optim.Optimizer) -> dict[str, torch.nn.Parameter]:
    return {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
    }
