"""Training in processes that may be killed: started from one that has torch loaded, so that a start costs little.

`start` gives processes of a run; what they print goes to a file. A *fault* is the number of a file operation before which
the process kills itself, so that every instant between two of them can be tried.
"""

import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

# The process that is forked from finds modules by this alone, and says nothing when it finds none.
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["victims_preload"])
LONG = 120.0
"""Seconds after which a process that should have ended has hung."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Victim:
    """How to start one process of a run."""

    recipe: Path
    out: Path
    log: Path
    kill_before: int = 0
    """The file operation before which it kills itself, counted from 1; 0: none."""
    largest_file: int = 0
    """The most bytes that a file may have (RLIMIT_FSIZE); 0: no limit."""
    signal_at: dict[str, Any] = dataclasses.field(default_factory=dict)
    """`{"where": "step" | "validate" | "save" | "data", "step": 3, "rank": 1, "signal": 15, "times": 1}`."""
    poison: dict[str, Any] = dataclasses.field(default_factory=dict)
    """`{"step": 4, "rank": 1}`: a picture of that process's batch is NaN there."""
    ids: Path | None = None
    """A folder for the ids and pixel hashes that each process trains on, a line a step."""
    environment: dict[str, str] = dataclasses.field(default_factory=dict)


def start(victim: Victim, count: int = 1) -> list[BaseProcess]:
    """The processes of a run, running."""
    port = _free_port()
    started = []
    for rank in range(count):
        world = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count}
        world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
        environment = {**victim.environment, **({k: str(v) for k, v in world.items()} if count > 1 else {})}
        log = victim.log if count == 1 else victim.log.with_suffix(f".{rank}.log")
        process = CONTEXT.Process(
            target=run, args=(dataclasses.replace(victim, environment=environment, log=log), rank)
        )
        process.start()
        started.append(process)
    return started


def end(processes: list[BaseProcess], seconds: float = LONG) -> list[int]:
    """Their exit codes; those that hang are killed and raise."""
    until = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    hung = [process for process in processes if process.exitcode is None]
    for process in hung:
        process.kill()
        process.join()
    if hung:
        raise TimeoutError(f"{len(hung)} of {len(processes)} processes had not ended after {seconds:g} s")
    return [process.exitcode or 0 for process in processes]


def finish(victim: Victim, count: int = 1) -> list[int]:
    """Start, wait, and give the exit codes."""
    return end(start(victim, count))


def weights_hash(folder: Path) -> str:
    return hashlib.sha256((folder / "model/model.safetensors").read_bytes()).hexdigest()


def log_lines(folder: Path) -> list[dict[str, Any]]:
    """The log without what the clock decides."""
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in read]


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def run(victim: Victim, rank: int) -> None:
    """In the process: the run, with what is to befall it."""
    os.environ.update(victim.environment)
    multiprocessing.set_start_method("fork", force=True)  # as in a process that was started the usual way
    log = os.open(victim.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    import torch

    from patchword.core.errors import PatchwordError
    from patchword.reports.run import write_report
    from patchword.training import loop, recipe
    from patchword.training import run as runs

    torch.set_num_threads(1)
    loop.seconds_per_step = lambda *_: 0.01
    if victim.largest_file:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (victim.largest_file, victim.largest_file))
    if victim.signal_at and victim.signal_at.get("rank", 0) == rank:
        _signal_at(victim.signal_at)
    if victim.poison.get("rank") == rank:
        _poison(victim.poison["step"])
    if victim.ids is not None:
        _record_ids(victim.ids / f"{rank}.jsonl")
    if victim.kill_before:
        before_file_operations(_killer(victim.kill_before))
    try:
        runs.run(recipe.load(str(victim.recipe)), victim.out, publish=write_report)
    except PatchwordError as error:
        with contextlib.suppress(OSError):  # as with the other files
            sys.stderr.write(f"patchword: {error}\n")
            sys.stderr.flush()
        os._exit(error.exit_code)
    os._exit(0)


def _killer(number: int) -> Callable[[str], None]:
    left = [number]

    def count(operation: str) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return count


def before_file_operations(call: Callable[[str], None]) -> None:
    """Call `call(name)` before everything that changes the disk, in this process, for good."""
    from patchword.training import checkpoint
    from patchword.weights import folder

    places: list[tuple[Any, str]] = [(os, "replace"), (os, "fsync"), (os, "rename"), (os, "unlink"), (os, "mkdir")]
    places += [(tempfile, "mkdtemp"), (tempfile, "mkstemp"), (shutil, "rmtree")]
    places += [(checkpoint, "write_tensors"), (folder, "save_file")]
    for module, name in places:
        real = getattr(module, name)

        def counted(*arguments: Any, real: Any = real, name: str = name, **options: Any) -> Any:
            call(name)
            return real(*arguments, **options)

        setattr(module, name, counted)


def _signal_at(at: dict[str, Any]) -> None:
    """Send this process a signal in the middle of something."""
    from patchword.core import runtime
    from patchword.data import loader
    from patchword.training import checkpoint, loop, measuring

    sent = [False]

    def send() -> None:
        if not sent[0]:
            sent[0] = True
            for number in range(at.get("times", 1)):
                if number:
                    time.sleep(runtime.SAME_SIGNAL + 0.2)  # sooner, it would count as the same
                os.kill(os.getpid(), at.get("signal", signal.SIGTERM))

    step, gradients = at.get("step", 3), loop.gradients

    def stepped(*arguments: Any) -> Any:
        if at["where"] == "step" and arguments[-1] == step:
            send()
        return gradients(*arguments)

    loop.gradients = stepped
    if at["where"] == "validate":
        predict = measuring.predict
        measuring.predict = lambda *a, **k: (send(), predict(*a, **k))[1]
    if at["where"] == "save":
        write = checkpoint.write_tensors
        checkpoint.write_tensors = lambda *a, **k: (send(), write(*a, **k))[1]
    if at["where"] == "data":
        build = loader._train_batch

        def slow(*arguments: Any) -> Any:
            if arguments[-2] == step:
                send()
                time.sleep(0.5)
            return build(*arguments)

        loader._train_batch = slow


def _poison(step: int) -> None:
    from patchword.training import loop

    gradients = loop.gradients

    def poisoned(passes: Any, batch: Any, recipe: Any, at: int) -> Any:
        if at == step:
            batch.weights[0] = float("nan")
        return gradients(passes, batch, recipe, at)

    loop.gradients = poisoned


def _record_ids(file: Path) -> None:
    from patchword.training import loop

    gradients = loop.gradients

    def recorded(passes: Any, batch: Any, recipe: Any, step: int) -> Any:
        pixels = [hashlib.sha256(image.numpy().tobytes()).hexdigest()[:12] for image in batch.images]
        line = {"step": step, "ids": batch.ids.tolist(), "first": batch.first, "pixels": pixels}
        with file.open("a") as log:
            log.write(json.dumps(line) + "\n")
        return gradients(passes, batch, recipe, step)

    loop.gradients = recorded


def _free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
