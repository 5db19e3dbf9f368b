"""`python -m bench.estimates`: how near the estimate of a run's time comes to the truth; the table goes to docs/evaluation.md.

Each model is estimated and then run for STEPS=60 steps on Fashion-MNIST and on DATA=… (a folder; $PATCHWORD_DATA/clothing if
there is one). With CLOCK=thread both are told by the time of the thread that computes, which other work on the machine
does not touch; without, by the clock on the wall. ONLY=… takes models whose names hold it; then
the rows are printed alone.
"""

import datetime
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.page import ROOT, put, table
from bench.transfer import sets
from bench.wishes import answered, whole
from patchword.core import config, files
from patchword.training import recipe as recipes
from patchword.training.estimate import estimate
from patchword.training.run import run

PAGE, MARK = ROOT / "docs/evaluation.md", "estimates"
MODELS: list[tuple[str, int, dict[str, Any]]] = [
    ("ViT-Fe/8", 64, {}),
    ("ViT-Pi/8", 64, {"loading": {"in_memory": "no"}}),
    ("C3+ViT-Fe/8", 64, {}),
    ("R5+ViT-Fe/4", 32, {}),
    ("BiT-R14x0.5", 64, {"threads": 1}),
    ("EfficientNet-B0", 64, {"threads": 1}),
]
"""Name, image side and what else is wanted; the networks of one replica compute on one thread, whose time then is all of it."""


def main() -> None:
    """Estimate, run, print and publish."""
    by_thread = os.environ.get("CLOCK") == "thread"
    if by_thread:
        time.perf_counter = time.thread_time
    steps, only = whole("STEPS", 60), os.environ.get("ONLY", "")
    rows = []
    for data in sets().values():
        for name, side, more in MODELS:
            if only in name:
                rows.append(row(data, name, side, more, steps))
                print(rows[-1], flush=True)
    command = f"{'CLOCK=thread ' if by_thread else ''}python -m bench.estimates"
    clock = "the computing thread's own time" if by_thread else "the clock on the wall"
    head = (
        f"`{command}` of {datetime.date.today():%Y-%m-%d}, {steps} steps, by {clock}: seconds of training, looks and "
        "saving, as estimated and as they were:\n\n"
    )
    if not only:
        put(PAGE, MARK, head + table(("model", "data", "estimated", "true", "ratio"), rows))


def row(data: str, name: str, side: int, more: dict[str, Any], steps: int) -> str:
    """A line of the table."""
    wanted = {"data": data, "model": {"name": name}, "image_size": [side, side], "budget": {"steps": steps}}
    recipe = recipes.load("scratch", config.merge(wanted, more))
    found = estimate(recipe)
    with tempfile.TemporaryDirectory() as folder:
        truth = files.read_json(run(recipe, Path(folder) / "run") / "result.json")["seconds"]
    return (
        f"| {name} | {Path(data).name}, {side} px | {found.training:.1f} | {truth:.1f} | {found.training / truth:.2f} |"
    )


if __name__ == "__main__":
    answered(main)
