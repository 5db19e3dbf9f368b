"""Interleaved measurement: every system in a process of its own, one at a time, round after round.

On a shared machine two timings minutes apart differ more than the systems do; the ratio of two timings seconds apart
does not. The order turns round in every second round (ABBA), so that a drift favours nobody.
"""

import contextlib
import dataclasses
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.shapes import THREADS, Job

_SAME = 1e-4  # logits that differ by more, in proportion beyond 1, come from another function
_MOST_STEAL = 0.05  # rounds in which the host took more of the processor are left out
_FEWEST_ROUNDS = 3


class Worker:
    """A system's process, on the first cores that this process may use."""

    def __init__(self, name: str) -> None:
        cores = sorted(os.sched_getaffinity(0))[:THREADS]
        environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "TOKENIZERS_PARALLELISM": "false"}
        self.name = name
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - it lives as long as the process
        self.process = subprocess.Popen(
            ["taskset", "--cpu-list", ",".join(map(str, cores)), sys.executable, "-m", "bench.worker", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=environment,
        )

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise RuntimeError(f"{self.name} ended: {self.log.read()[-2000:]}")
        return json.loads(line)


@contextlib.contextmanager
def workers(names: Sequence[str]) -> Iterator[dict[str, Worker]]:
    """The processes of these systems; they end with the context."""
    running = {name: Worker(name) for name in names}
    try:
        yield running
    finally:
        for worker in running.values():
            worker.process.kill()
            worker.process.wait()


@dataclasses.dataclass
class Timings:
    """What one job's rounds gave: for each system a list with one figure a round."""

    job: Job
    seconds: dict[str, list[float]]
    cpu: dict[str, list[float]]
    steal: list[float]
    discarded: int


def measure(running: dict[str, Worker], job: Job, rounds: int, slice_seconds: float) -> Timings:
    """Build the job everywhere, see that all compute the same, then time it in rounds of slices of `slice_seconds`."""
    logits = {name: worker.ask({"job": dataclasses.asdict(job)})["logits"] for name, worker in running.items()}
    reference = logits["patchword"]
    for name, theirs in logits.items():
        if not theirs or name.endswith("GELU"):  # no model, or another function on purpose
            continue
        difference = _difference(reference, theirs)
        if difference > _SAME:
            raise RuntimeError(f"{job.title}: the logits of {name} differ from ours by {difference:.1e}")
    steps = {
        name: max(1, round(slice_seconds / worker.ask({"steps": 1})["seconds"])) for name, worker in running.items()
    }
    timings = Timings(job, {name: [] for name in running}, {name: [] for name in running}, [], 0)
    for number in range(rounds):
        before = _steal()
        order = list(running) if number % 2 == 0 else list(reversed(running))
        answers = {name: running[name].ask({"steps": steps[name]}) for name in order}
        stolen, total = (after - first for after, first in zip(_steal(), before, strict=True))
        for name, answer in answers.items():
            timings.seconds[name].append(answer["seconds"])
            timings.cpu[name].append(answer["cpu"])
        timings.steal.append(stolen / total if total else 0.0)
    _discard(timings)
    return timings


def ratio(mine: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """How many times as long theirs takes: the median over rounds with a 95 % bootstrap interval."""
    each = [b / a for a, b in zip(mine, theirs, strict=True)]
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(each, k=len(each))) for _ in range(2000))
    return statistics.median(each), medians[50], medians[-51]


def _difference(mine: list[list[float]], theirs: list[list[float]]) -> float:
    pairs = [pair for one, other in zip(mine, theirs, strict=True) for pair in zip(one, other, strict=True)]
    return max(abs(a - b) for a, b in pairs) / max(1.0, *(abs(a) for a, _ in pairs))


def _discard(timings: Timings) -> None:
    keep = [number for number, share in enumerate(timings.steal) if share <= _MOST_STEAL]
    if len(keep) >= _FEWEST_ROUNDS:
        timings.discarded = len(timings.steal) - len(keep)
        for series in (timings.seconds, timings.cpu):
            for name, values in series.items():
                series[name] = [values[number] for number in keep]


def _steal() -> tuple[int, int]:
    """Ticks that the host gave to others, and all ticks, since the machine started."""
    ticks = [int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return ticks[7], sum(ticks)
