"""`make speedrun`: how much accuracy on CIFAR-10 a budget of FLOPs buys, ours beside public recipes.

BUDGET=0.02 (PFLOP), ONLY=hybrid|plain|peers (all if not given), SEEDS=1, OUT=runs/speedrun. Each run is an ordinary run
folder: what was done before is not done again, and what was ended goes on. All train with this library's engine, so that the
peers differ in their recipes alone; all count three forward passes for each picture, everything included, and are measured once,
on the full test set, with mirrored pictures.
"""

import math
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.limit import roofline
from bench.wishes import answered, number, whole
from patchword.core import files
from patchword.core.errors import UsageError
from patchword.core.progress import say
from patchword.reports.run import write_report
from patchword.training import recipe as recipes
from patchword.training.run import run

PEERS = Path(__file__).parent / "peers"
OURS = ("hybrid", "plain")


def main() -> None:
    """The table on standard output, and `speedrun.json` beside the runs."""
    budget, seeds = number("BUDGET", 0.02), whole("SEEDS", 1)
    only, out = os.environ.get("ONLY", ""), Path(os.environ.get("OUT", "runs/speedrun"))
    if only not in ("", *OURS, "peers"):
        raise UsageError(f"ONLY={only} is not known; hybrid, plain and peers are right, or nothing for all")
    rows: list[dict[str, Any]] = []
    for seed in range(seeds):
        for system, source in systems(only, budget):
            folder = out / f"{system}-{budget:g}-{seed}"
            over = {"data": "cifar10", "seed": seed, "budget": {"pflop": budget}, "loading": {"duplicates": "no"}}
            before = roofline()
            run(recipes.load(source, over), folder, publish=write_report)
            result = files.read_json(folder / "result.json")
            rows.append(_row(system, budget, seed, result, max(before, roofline())))
            files.write_json(out / "speedrun.json", _merged(out / "speedrun.json", rows))
    show([row for row in files.read_json(out / "speedrun.json") if row["budget"] == budget])
    say(f"written to {out / 'speedrun.json'}")


def systems(only: str, budget: float) -> Iterator[tuple[str, str]]:
    """Name, and recipe."""
    presets = recipes.presets()
    for name in OURS:
        if only in ("", name):
            fitting = [each for each in presets if each.startswith(f"speedrun/{name}-")]
            # The preset whose budget is the nearest, by factors.
            yield name, min(fitting, key=lambda each: abs(math.log(float(each.rpartition("-")[2]) / budget)))
    if only in ("", "peers"):
        for file in sorted(PEERS.glob("*.toml")):
            yield file.stem, str(file)


def show(rows: list[dict[str, Any]]) -> None:
    """One line a system: means over its seeds, and the range of the accuracy."""
    print(
        f"{'system':<20}{'PFLOP':>8}{'seeds':>7}{'accuracy':>11}{'range':>16}{'seconds':>9}{'GFLOP/s':>9}{'roofline':>10}"
    )
    systems: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        systems.setdefault(row["system"], []).append(row)
    for name, mine in sorted(systems.items(), key=lambda pair: -_mean(pair[1], "accuracy")):
        values = [100 * row["accuracy"] for row in mine]
        between = f"{min(values):.2f}–{max(values):.2f}"
        speed = _mean(mine, "gflops_per_second")
        print(
            f"{name:<20}{mine[0]['train_flops'] / 1e15:>8.3g}{len(mine):>7}{statistics.fmean(values):>9.2f} %{between:>16}"
            f"{_mean(mine, 'seconds'):>9.0f}{speed:>9.0f}{speed / _mean(mine, 'roofline'):>10.0%}"
        )


def _mean(rows: list[dict[str, Any]], field: str) -> float:
    return statistics.fmean(row[field] for row in rows)


def _row(system: str, budget: float, seed: int, result: dict[str, Any], peak: float) -> dict[str, Any]:
    return {
        "system": system,
        "budget": budget,
        "seed": seed,
        "accuracy": result["accuracy"],
        "train_flops": result["train_flops"],
        "seconds": result["seconds"],
        "gflops_per_second": result["train_flops"] / result["seconds"] / 1e9,
        "roofline": peak / 1e9,
    }


def _merged(path: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of before, and these in the place of those of other runs; one that was there keeps the roofline of its day."""
    found = {
        (row["system"], row["budget"], row["seed"]): row for row in (files.read_json(path) if path.exists() else [])
    }
    for row in rows:
        key = (row["system"], row["budget"], row["seed"])
        if key not in found or {**found[key], "roofline": 0} != {**row, "roofline": 0}:
            found[key] = row
    return list(found.values())


if __name__ == "__main__":
    answered(main)
