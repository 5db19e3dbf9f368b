"""Thousands of damaged files at every entry, in processes that may die of them.

    python tests/fuzz_soak.py --count 10000 --workers 1 --report soak/files

prints the table and writes it as `soak/files.json` and `soak/files.md`; the exit code is 1 where there was a failure. One case
again: `python tests/fuzz_targets.py "Google npz" 17 CASE`, with a new folder's name.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from fuzz_targets import TARGETS, Cases, Outcome

_ADDRESSES = 6 * 2**30
"""Bytes of addresses that a worker may take beyond what it has at the start: an allocation of lies fails, and is seen."""
_GRACE = 30.0
"""Seconds for making a target's valid files, and for code that no signal interrupts, before the process is killed."""


@dataclasses.dataclass
class Row:
    """What came of all cases of one target."""

    kind: str
    cases: int = 0
    results: int = 0
    sentences: int = 0
    failures: int = 0
    slowest: float = 0.0
    """Seconds."""
    most_memory: float = 0.0
    """MiB beyond what the process had before the case."""
    failed: list[str] = dataclasses.field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.cases += 1
        self.results += outcome.ending == "result"
        self.sentences += outcome.ending == "sentence"
        if outcome.ending == "failure":
            self.failures += 1
            self.failed.append(str(outcome))
        self.slowest = max(self.slowest, round(outcome.seconds, 3))
        self.most_memory = max(self.most_memory, round(outcome.mebibytes, 1))


def soak(count: int, seconds_per_case: float, report: Path | None, workers: int = 1, first_seed: int = 0) -> list[Row]:
    """Run `count` cases over all targets by their shares; a row each, also written to `report`.json and .md."""
    queue = plan(count, first_seed)
    rows = {name: Row(name) for name in TARGETS}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as home:
        alive = [_Worker(Path(home) / str(number), seconds_per_case) for number in range(workers)]
        try:
            while queue or any(worker.case for worker in alive):
                for worker in alive:
                    if worker.case is None and queue:
                        worker.give(queue.pop())
                    if (outcome := worker.outcome(0.2 if workers > 1 else 1.0)) is not None:
                        rows[outcome.target].add(outcome)
                        if outcome.ending == "failure":
                            sys.stderr.write(f"{outcome}\n")
                            sys.stderr.flush()
        finally:
            for worker in alive:
                worker.end()
    table = list(rows.values())
    if report is not None:
        write(table, report, time.monotonic() - began)
    return table


def plan(count: int, first_seed: int = 0) -> list[tuple[str, int]]:
    """The cases, targets mixed: every target has its share, and at least one case."""
    whole = sum(target.share for target in TARGETS.values())
    exact = {name: count * target.share / whole for name, target in TARGETS.items()}
    numbers = {name: max(1, int(share)) for name, share in exact.items()}
    left = sorted(exact, key=lambda name: int(exact[name]) - exact[name])
    for name in left[: max(0, count - sum(numbers.values()))]:
        numbers[name] += 1
    cases = [(seed / number, name, first_seed + seed) for name, number in numbers.items() for seed in range(number)]
    return [(name, seed) for _, name, seed in sorted(cases, reverse=True)]


class _Worker:
    """A process that runs one case after the other; a new one takes its place where it dies or hangs."""

    def __init__(self, home: Path, seconds: float) -> None:
        self.home, self.seconds = home, seconds
        self.case: tuple[str, int] | None = None
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._since = 0.0

    def give(self, case: tuple[str, int]) -> None:
        if self._pipe is None:
            mine, theirs = _CONTEXT.Pipe()
            self._process = _CONTEXT.Process(target=_work, args=(theirs, self.home, self.seconds), daemon=False)
            self._process.start()
            theirs.close()
            self._pipe = mine
            self._pipe.recv()  # it is ready
        self.case, self._since = case, time.monotonic()
        self._pipe.send(case)

    def outcome(self, wait: float) -> Outcome | None:
        """Of the case that was given, if it is done; a failure where the process has died or hangs."""
        if self.case is None or self._pipe is None or self._process is None:
            return None
        wrong, (name, seed) = "", self.case
        try:
            if self._pipe.poll(wait):
                outcome = self._pipe.recv()
                self.case = None
                return outcome
            if time.monotonic() - self._since < self.seconds + _GRACE:
                return None
            wrong = "hung, and was killed"
        except EOFError:
            self._process.join()
            wrong = f"the process died (exit code {self._process.exitcode})"
        outcome = Outcome(name, seed, "failure", "as the seed says", wrong, time.monotonic() - self._since)
        self.case = None
        self.end()
        return outcome

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None


def _work(pipe: Connection, home: Path, seconds: float) -> None:
    """In the worker: cases come, outcomes go. A trace that another thread or process prints is a failure as well."""
    import torch

    torch.set_num_threads(1)
    home.mkdir(exist_ok=True)
    printed = os.open(home / "printed", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    now = int(Path("/proc/self/status").read_text().partition("VmSize:")[2].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (now + _ADDRESSES, now + _ADDRESSES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.chdir(home)
    cases = Cases(home, seconds)
    pipe.send("ready")
    while True:
        try:
            name, seed = pipe.recv()
        except EOFError:
            return
        before = os.fstat(printed).st_size
        try:
            outcome = cases.run(name, seed)
        except MemoryError:
            outcome = Outcome(name, seed, "failure", "as the seed says", "more memory than there is")
        text = os.pread(printed, 400, before).decode("utf-8", "replace")
        if "Traceback" in text:
            outcome = dataclasses.replace(outcome, ending="failure", text=f"printed: {text}")
        pipe.send(outcome)


def write(table: list[Row], report: Path, seconds: float) -> None:
    report.parent.mkdir(parents=True, exist_ok=True)
    content = {"seconds": round(seconds, 1), "rows": [dataclasses.asdict(row) for row in [*table, _sum(table)]]}
    report.with_suffix(".json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    report.with_suffix(".md").write_text(markdown(table))


def markdown(table: list[Row]) -> str:
    """The rows for a page; the failures below, each with its seed."""
    lines = ["| kind | cases | results | sentences | failures | slowest, s | most memory, MiB |", "|---|" + "--:|" * 6]
    for row in [*table, _sum(table)]:
        cells: tuple[Any, ...] = (row.kind, f"{row.cases:,}", f"{row.results:,}", f"{row.sentences:,}", row.failures)
        lines.append("| " + " | ".join(map(str, (*cells, f"{row.slowest:.2f}", f"{row.most_memory:.0f}"))) + " |")
    failed = [each for row in table for each in row.failed]
    return "\n".join([*lines, *([""] if failed else []), *(f"- {each}" for each in failed)]) + "\n"


def _sum(table: list[Row]) -> Row:
    total = Row("all")
    for row in table:
        for field in ("cases", "results", "sentences", "failures"):
            setattr(total, field, getattr(total, field) + getattr(row, field))
        total.slowest = max(total.slowest, row.slowest)
        total.most_memory = max(total.most_memory, row.most_memory)
    return total


_CONTEXT = multiprocessing.get_context("spawn")


def main() -> int:
    parser = argparse.ArgumentParser(description="Damaged files at every entry.")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=20.0, help="that a case may take")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--report", type=Path, default=None)
    given = parser.parse_args()
    table = soak(given.count, given.seconds, given.report, given.workers, given.first_seed)
    sys.stdout.write(markdown(table))
    return 1 if any(row.failures for row in table) else 0


if __name__ == "__main__":
    sys.exit(main())
