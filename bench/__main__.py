"""`python -m bench quick|full|scale`: figures with their spread, printed and written to `bench/results/`.

quick: eager systems, at most ten minutes. full: compiled peers beside them, and more rounds. scale: index
and memory for sets of up to a million samples.
"""

import argparse
import dataclasses
import datetime
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from bench import engine, pictures, scale, startup
from bench.limit import GEMM_FLOPS
from bench.shapes import CONVOLUTIONS, FORWARD, THREADS, TRAINING, Job
from bench.systems import EAGER, ours
from bench.timing import Timings, measure, ratio, workers
from patchword.models.cost import TRAINING_FACTOR, cost

RESULTS = Path(__file__).parent / "results"
PARTS = ("train", "forward", "convolutions", "pictures", "engine", "other")
PACKAGES = ("torch", "timm", "transformers", "torchvision", "onnxruntime")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("mode", choices=("quick", "full", "scale"))
    parser.add_argument("--only", choices=PARTS, help="one part of it")
    arguments = parser.parse_args()
    full = arguments.mode == "full"
    parts = {
        "train": functools.partial(_compare, TRAINING, full=full),
        "forward": functools.partial(_compare, FORWARD, full=full),
        "convolutions": functools.partial(_compare, CONVOLUTIONS, full=full, eager=("patchword", "timm")),
        "pictures": functools.partial(_pictures, rounds=15 if full else 7),
        "engine": functools.partial(_engine, rounds=5 if full else 3),
        "other": functools.partial(_other, rounds=7 if full else 3),
    }
    if arguments.mode == "scale":
        parts = {"scale": scale.measure}
    machine = _machine()
    print(" · ".join(f"{key} {value}" for key, value in machine.items()))
    results = {name: part() for name, part in parts.items() if arguments.only in (None, name)}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{datetime.date.today():%Y-%m-%d}-{arguments.mode}.json"
    before = json.loads(path.read_text()) if arguments.only and path.exists() else {}
    if before.get("machine") != machine:  # parts of one record come from one machine
        before = {}
    path.write_text(json.dumps({"machine": machine, **before, **results}, indent=1) + "\n")
    print(f"\nwritten to {path}")


def _compare(jobs: list[Job], full: bool, eager: Sequence[str] = tuple(EAGER)) -> list[dict[str, Any]]:
    """Every job on every system; processes are started once for all jobs."""
    rows = []
    kinds = {job.kind for job in jobs}
    extra = (
        ["ONNX Runtime"] if kinds == {"forward"} else ["patchword, tanh GELU"] if kinds == {"train"} and full else []
    )
    compiled = [f"{name} compiled" for name in eager if name != "patchword"] if full else []
    with workers([*eager, *extra, *compiled, "roofline"]) as running:
        for job in jobs:
            training = job.kind == "train"
            timings = measure(
                running, job, rounds=(11 if full else 4 if training else 5), slice_seconds=1.0 if training else 0.3
            )
            rows.append(_summary(timings))
            _show(rows[-1])
    return rows


def _summary(timings: Timings) -> dict[str, Any]:
    """Figures for each system; ratios are above 1 where ours is faster."""
    job, mine = timings.job, timings.seconds["patchword"]
    factor = TRAINING_FACTOR if job.kind == "train" else 1
    flops = factor * _forward_flops(job.shape) * job.batch
    peak = GEMM_FLOPS / statistics.median(timings.seconds["roofline"])
    systems = {}
    for name, seconds in timings.seconds.items():
        if name == "roofline":
            continue
        typical = statistics.median(seconds)
        systems[name] = {
            "milliseconds": typical * 1e3,
            "images_per_second": job.batch / typical,
            "gflops": flops / typical / 1e9,
            "share_of_roofline": flops / typical / peak,
            "ratio": ratio(mine, seconds),
            "cpu_ratio": ratio(timings.cpu["patchword"], timings.cpu[name])[0],
            "seconds": seconds,
        }
    return {
        "job": dataclasses.asdict(job),
        "title": job.title,
        "roofline_gflops": peak / 1e9,
        "rounds": len(mine),
        "discarded_rounds": timings.discarded,
        "steal": timings.steal,
        "load": os.getloadavg()[0],
        "systems": systems,
    }


@functools.cache
def _forward_flops(shape: str) -> int:
    """FLOPs of the whole model, for everyone: what a system leaves out because nothing reads it counts as speed."""
    return cost(ours(Job("forward", shape, 1))).forward_flops


def _show(row: dict[str, Any]) -> None:
    print(f"\n{row['title']}  (roofline {row['roofline_gflops']:.0f} GFLOP/s, load {row['load']:.1f})")
    print(f"  {'':24}{'ms':>9}{'images/s':>10}{'GFLOP/s':>9}{'roofline':>10}   ours is faster by   by CPU time")
    for name, each in row["systems"].items():
        middle, low, high = each["ratio"]
        faster = "" if name == "patchword" else f"{middle:6.2f}× [{low:.2f}, {high:.2f}]{each['cpu_ratio']:10.2f}×"
        print(
            f"  {name:24}{each['milliseconds']:9.1f}{each['images_per_second']:10.1f}{each['gflops']:9.0f}"
            f"{each['share_of_roofline']:10.0%}   {faster}",
            flush=True,
        )


def _pictures(rounds: int) -> dict[str, Any]:
    if not pictures.FOLDER.is_dir():
        print(f"\nJPEG bytes → augmented batch: left out, there are no photographs in {pictures.FOLDER}")
        return {}
    found = json.loads(subprocess.check_output([sys.executable, "-m", "bench.pictures", str(rounds)], text=True))
    pictures.show(found)
    return found


def _engine(rounds: int) -> list[dict[str, Any]]:
    print()
    rows = []
    for sentence, figures in engine.lines(rounds):
        print(sentence, flush=True)
        rows.append({"sentence": sentence, **figures})
    return rows


def _other(rounds: int) -> dict[str, Any]:
    helped = statistics.median(startup.help_seconds(max(5, rounds)))
    print(f"\npatchword --help: {helped:.2f} s (at most 0.4)")
    cold = startup.cold_start(rounds)
    for name, seconds in cold.items():
        middle, low, high = ratio(seconds, cold["patchword"])
        share = "" if name == "patchword" else f"; ours takes {middle:.2f} [{low:.2f}, {high:.2f}] of it (at most 0.6)"
        print(f"first prediction of ViT-S/16, {name}: {statistics.median(seconds):.1f} s{share}")
    large = {name: statistics.median(values) for name, values in startup.large_model(rounds).items()}
    print(
        f"loading ViT-L/16: {large['load']:.2f} s, {large['load'] / large['hash']:.2f} times hashing its file (at most 1.2); "
        f"{large['peak_bytes'] / large['file_bytes']:.2f} times its size in memory (at most 1.3)"
    )
    names = startup.million_names()
    for kind, figures in names.items():
        print(
            f"opening a {kind} of {figures['pictures']:,} pictures: {figures['seconds']:.1f} s (below 30), "
            f"{figures['peak_bytes'] / 2**20:.0f} MiB (below 286)"
        )
    waiting = json.loads(subprocess.check_output([sys.executable, "-m", "bench.waiting"], text=True))
    print(f"waiting for data in training, 32 px, cached, augmented: {waiting['share']:.1%} (at most 5 %)")
    return {
        "help_seconds": helped,
        "cold_start_seconds": cold,
        "large_model": large,
        "million_names": names,
        "waiting": waiting,
    }


def _machine() -> dict[str, Any]:
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    found = {"cpu": model, "capability": torch.backends.cpu.get_cpu_capability(), "threads": THREADS}
    return found | {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


if __name__ == "__main__":
    main()
