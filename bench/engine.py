"""What the engine's promises cost: `python -m bench.engine saving|guards|alone` measures one of them in a process of its own.

| what     | question                                                                                                |
|----------|---------------------------------------------------------------------------------------------------------|
| `saving` | how long a checkpoint of ViT-B holds training up, against writing as many bytes with fsync              |
| `guards` | how long a step takes with everything that watches over it, against one without                         |
| `alone`  | pictures a second of one process; two of them at once are two processes that train one model            |
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.shapes import THREADS
from patchword.core.processes import joined
from patchword.core.progress import quiet
from patchword.core.runtime import StopFlag, keep_memory
from patchword.data.dataset import Arrays, Split
from patchword.data.loader import TrainLoader
from patchword.data.store import Store
from patchword.models.names import create_model
from patchword.training import checkpoint
from patchword.training import recipe as recipes
from patchword.training.checkpoint import State
from patchword.training.loop import Loop, passes_for
from patchword.training.objectives import Softmax
from patchword.training.optimizer import Average, build_optimizer
from patchword.training.step import train_step

_PICTURES, _BATCH = 2048, 256


def measure(what: str, processes: int = 1) -> dict[str, Any]:
    """The figures of one question; of several processes, the first's."""
    environments = [
        {
            **os.environ,
            "OMP_NUM_THREADS": str(THREADS // processes),
            **({} if processes == 1 else _world(rank, processes)),
        }
        for rank in range(processes)
    ]
    command = [sys.executable, "-m", "bench.engine", what]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=each) for each in environments]
    said = [process.communicate()[0] for process in running]
    return json.loads(said[0])


def _world(rank: int, count: int) -> dict[str, str]:
    here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": 29517}
    return {
        **{name: str(value) for name, value in here.items()},
        "MASTER_ADDR": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
    }


def _saving() -> dict[str, Any]:
    model = create_model("ViT-B/16", 1000)
    optimizer = build_optimizer(recipes.Recipe().optimizer, model)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    for parameter in model.parameters():
        parameter.grad = None
    average = Average(model, 0.999)
    folder = Path(tempfile.mkdtemp(dir=Path.cwd()))  # beside the repository's files: /tmp may be memory
    ours, plain, size = [], [], 0
    try:
        for step in range(1, 8):
            began = time.perf_counter()
            checkpoint.save(
                folder, State(step=step), checkpoint.tensors_of(model, Softmax(10), optimizer, average), keep=1
            )
            ours.append(time.perf_counter() - began)
            files = [file.stat().st_size for file in (folder / f"step-{step:08d}").iterdir()]
            size = sum(files)
            content = [memoryview(np.random.default_rng(step).bytes(each)) for each in files]
            began = time.perf_counter()
            for number, each in enumerate(content):
                with (folder / f"plain-{number}").open("wb") as file:
                    file.write(each)
                    file.flush()
                    os.fsync(file.fileno())
            plain.append(time.perf_counter() - began)
            for each in folder.glob("plain-*"):
                each.unlink()
    finally:
        shutil.rmtree(folder)
    return {"bytes": size, "save_seconds": ours[1:], "write_seconds": plain[1:]}


def _training(name: str, image_size: int, batch_size: int) -> tuple[recipes.Recipe, Any, Callable[..., TrainLoader]]:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (_PICTURES, image_size, image_size, 3), dtype=np.uint8)
    split = Split(Arrays(pixels, "noise"), generator.integers(0, 10, _PICTURES))
    store = Store.fill(split, 3, 1)
    model = create_model(name, 10, image_size)
    recipe = recipes.load(
        "scratch",
        {
            "batch_size": batch_size,
            "micro_batch": 32,
            "budget": {"steps": 10**6},
            "augment": {"crop": "shift"},
            "evaluation": {"every_steps": 10**6},
            "checkpoint": {"every_steps": 10**6},
        },
    )

    def make(step: int, places: range | None = None) -> TrainLoader:
        return TrainLoader(
            split,
            preprocessing=model.preprocessing,
            augment=recipe.augment,
            batch_size=batch_size,
            seed=0,
            store=store,
            workers=0,
            first_step=step,
            places=places,
        )

    return recipe, model, make


def _guards() -> dict[str, Any]:
    """Steps of the loop and bare steps of a twin, in turns."""
    recipe, model, make = _training("ViT-Ti/4", 32, 64)
    flag = StopFlag()
    folder = Path(tempfile.mkdtemp())
    loop = Loop(model, Softmax(10), recipe, make, folder=folder, state=State(), stop=lambda: bool(flag))
    twin = create_model("ViT-Ti/4", 10, 32)
    passes = passes_for(twin.train(), Softmax(10), recipe, loop.world, sharded=False)
    optimizer, batches = build_optimizer(recipe.optimizer, twin), iter(make(0))
    loop.passes.model.train()
    loop._began = time.perf_counter()
    seconds: dict[str, list[float]] = {"guarded": [], "bare": []}
    with loop.passes, passes:
        for turn in range(22):
            for kind in ("guarded", "bare") if turn % 2 else ("bare", "guarded"):
                began = time.perf_counter()
                for number in range(2):
                    if kind == "guarded":
                        loop.step()
                        loop.log(0.0)
                    else:
                        train_step(passes, optimizer, next(batches), recipe, 2 * turn + number)
                if turn > 1:
                    seconds[kind].append((time.perf_counter() - began) / 2)
    loop.loader.close()
    shutil.rmtree(folder)
    return seconds


def _alone() -> dict[str, Any]:
    """Pictures a second over some steps of the whole machine's batch, by however many processes there are."""
    recipe, model, make = _training("ViT-Na/4", 32, _BATCH)
    rates = []
    with joined() as world:
        torch.set_num_threads(THREADS // world.count)
        passes = passes_for(model.train(), Softmax(10), recipe, world, sharded=False)
        optimizer, batches = build_optimizer(recipe.optimizer, model), iter(make(0, world.share(_BATCH)))
        with passes:
            for turn in range(6):
                began = time.perf_counter()
                for number in range(3):
                    train_step(passes, optimizer, next(batches), recipe, 3 * turn + number)
                rates.append(3 * _BATCH / (time.perf_counter() - began))
    return {"images_per_second": rates[1:]}


def lines(rounds: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Everything, as sentences with their figures."""
    saving = measure("saving")
    ours, plain = saving["save_seconds"], saving["write_seconds"]
    yield (
        f"saving a checkpoint of ViT-B/16 ({saving['bytes'] / 1e9:.2f} GB): {statistics.median(ours):.2f} s, "
        f"{_spread([mine / other for mine, other in zip(ours, plain, strict=True)])} times writing as many bytes (at most 1.5)",
        saving,
    )
    guards = measure("guards")
    costs = [100 * (mine / bare - 1) for mine, bare in zip(guards["guarded"], guards["bare"], strict=True)]
    yield f"guards and log at ViT-Ti/4, 32 px: {_spread(costs)} % of a step (at most 2 %)", guards
    one, two = [], []
    for _ in range(rounds):
        one += measure("alone")["images_per_second"]
        two += measure("alone", THREADS)["images_per_second"]
    yield (
        f"{THREADS} processes of one thread train ViT-Na/4 at 32 px {_spread([b / a for a, b in zip(one, two, strict=True)])} "
        f"times as fast as one of {THREADS} (at least 0.9)",
        {"one_process": one, f"{THREADS}_processes": two},
    )


def _spread(values: list[float]) -> str:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    keep_memory()  # as the verbs do
    quiet(True)
    print(json.dumps({"saving": _saving, "guards": _guards, "alone": _alone}[sys.argv[1]]()))
