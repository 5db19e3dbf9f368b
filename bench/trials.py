"""`make trials`: one thing changed at a time in the recipe for a small budget.

Accuracy is measured on a tenth of train that is not learned from; the test split is not looked at for it. BUDGET=0.02 (PFLOP;
there are trials for 0.02 and 0.1, another budget has those of the nearer), ONLY=name,name (all if not given), OUT=runs/trials.
Each trial is an ordinary run folder: what is done is not done again. The tables go to docs/pretraining.md.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from bench.page import ROOT, finished, folder_of, last_day, put, table
from bench.wishes import answered, names, number, typed
from patchword.core import config, files
from patchword.reports.run import write_report
from patchword.training import recipe as recipes
from patchword.training.run import run

PAGE = ROOT / "docs/pretraining.md"


def widths(*channels: int) -> list[str]:
    """What changes with a stem: an encoder as wide as the last of its channels, heads of 32, a hidden layer twice as wide."""
    width = channels[-1]
    return [
        f"model.stem_channels=[{','.join(map(str, channels))}]",
        f"model.embed_dim={width}",
        f"model.num_heads={width // 32}",
        f"model.mlp_dim={2 * width}",
    ]


TRIALS: dict[float, dict[str, tuple[str, list[str]]]] = {
    0.02: {
        "hybrid": ("hybrid", []),
        "no whitening": ("hybrid", ["model.stem_whitening=0"]),
        "ReLU in the stem": ("hybrid", ["model.stem_activation=relu"]),
        "one convolution at each width": ("hybrid", ["model.stem_depth=1"]),
        "a plainer, wider stem": ("hybrid", ["model.stem_whitening=0", "model.stem_depth=1", *widths(16, 48, 96)]),
        "twice the width": ("hybrid", widths(32, 128, 128)),
        "widths that grow": ("hybrid", widths(16, 48, 96)),
        "two blocks": ("hybrid", ["model.depth=2"]),
        "rotary positions": ("hybrid", ["model.position=rope"]),
        "kernels as other matrices": ("hybrid", ["optimizer.kernel_lr=0"]),
        "kernels half as fast": ("hybrid", ["optimizer.kernel_lr=0.05"]),
        "kernels twice as fast": ("hybrid", ["optimizer.kernel_lr=0.2"]),
        "momentum of 0.95": ("hybrid", ["optimizer.momentum=0.95"]),
        "AdamW alone": ("hybrid", ["optimizer.name=adamw", "optimizer.lr=5e-3", "optimizer.weight_decay=0.05"]),
        "a third of the rate for what is no matrix": ("hybrid", ["optimizer.lr=3e-3"]),
        "norms of whole batches": ("hybrid", ["micro_batch=256"]),
        "cosine": ("hybrid", ["schedule.decay=cosine"]),
        "batches of 512": ("hybrid", ["batch_size=512"]),
        "blocks begin at random": ("hybrid", ["zero_init_residual=false"]),
        "no shifts": ("hybrid", ["augment.crop=resize"]),
        "CutMix": ("hybrid", ["augment.cutmix=1.0"]),
        "no label smoothing": ("hybrid", ["regularization.label_smoothing=0.0"]),
        "label smoothing of 0.2": ("hybrid", ["regularization.label_smoothing=0.2"]),
        "average of weights": ("hybrid", ["regularization.average_decay=0.99"]),
        "a third of it at 24 pixels": ("hybrid", ["init=FIRST", "image_size=[32,32]"]),
        "half of it for a teacher": ("hybrid", ["teacher.weights=FIRST"]),
        "plain": ("plain", []),
        "plain, learned positions": ("plain", ["model.position=1d"]),
        "plain, two heads": ("plain", ["model.num_heads=2"]),
        "plain, blocks begin at random": ("plain", ["zero_init_residual=false"]),
        "plain, momentum of 0.6": ("plain", ["optimizer.momentum=0.6"]),
        "plain, wider": ("plain", ["model.name=ViT-Fe/4", "model.mlp_dim=192", "model.num_heads=6"]),
        "plain, patches of 8": ("plain", ["model.name=ViT-Pi/8", "model.mlp_dim=512"]),
        "plain, AdamW alone": ("plain", ["optimizer.name=adamw", "optimizer.lr=3e-3", "optimizer.weight_decay=0.05"]),
        "plain, half of the patches dropped": ("plain", ["regularization.patch_dropout=0.5"]),
    },
    0.1: {
        "hybrid": ("hybrid", []),
        "batches of 512": ("hybrid", ["batch_size=512"]),
        "three quarters of the width": ("hybrid", widths(24, 96, 96)),
        "a quarter wider": ("hybrid", widths(40, 160, 160)),
        "widths that grow": ("hybrid", widths(32, 96, 192)),
        "widths that grow, batches of 512": ("hybrid", [*widths(32, 96, 192), "batch_size=512"]),
        "widths that grow from less": ("hybrid", widths(24, 96, 192)),
        "widths that grow further": ("hybrid", widths(24, 96, 256)),
        "three convolutions at each width": ("hybrid", ["model.stem_depth=3"]),
        "two blocks": ("hybrid", ["model.depth=2"]),
        "momentum of 0.8": ("hybrid", ["optimizer.momentum=0.8"]),
        "half of the rates": ("hybrid", ["optimizer.lr=5e-3", "optimizer.matrix_lr=0.01", "optimizer.kernel_lr=0.05"]),
        "five times the weight decay": ("hybrid", ["optimizer.weight_decay=0.1"]),
        "label smoothing of 0.2": ("hybrid", ["regularization.label_smoothing=0.2"]),
        "erasing": ("hybrid", ["augment.erasing=0.25"]),
        "MixUp": ("hybrid", ["augment.mixup=0.2"]),
        "one operation of RandAugment": (
            "hybrid",
            ["augment.randaugment_layers=1", "augment.randaugment_magnitude=5.0"],
        ),
        "average of weights": ("hybrid", ["regularization.average_decay=0.995"]),
        "a third of it at 24 pixels": ("hybrid", ["init=FIRST", "image_size=[32,32]"]),
        "a fifth of it for fractals": ("hybrid", ["init=FIRST"]),
    },
}
"""Budget in PFLOP → name → whose recipe, and what is changed in it; FIRST is the run of before."""
FIRST: dict[str, tuple[float, list[str]]] = {
    "a third of it at 24 pixels": (1 / 3, ["image_size=[24,24]"]),
    "half of it for a teacher": (1 / 2, []),
    "a fifth of it for fractals": (1 / 5, ["data=formula:fractals-100x1000"]),
}
"""Trials with a run before → its share of the budget, and what is changed in it."""


def main() -> None:
    """Run what is not there, print and publish the table."""
    out, budget = Path(os.environ.get("OUT", "runs/trials")), number("BUDGET", 0.02)
    known = TRIALS[near(budget)]
    only = names("ONLY", known)
    rows = []
    for name in known:
        folder = out / f"{folder_of(name)}-{budget:g}"
        if name in only or finished(folder):
            rows.append((name, *trial(name, folder, budget)))
            print(line(*rows[-1]), flush=True)
    publish(rows, budget, last_day(out))


def near(budget: float) -> float:
    """The budget of the trials that are nearest, by factors."""
    return min(TRIALS, key=lambda each: abs(math.log(each / budget)))


def trial(name: str, folder: Path, budget: float) -> tuple[list[str], dict[str, Any]]:
    """What was changed in a trial and what came of it; its runs are made if they are not there."""
    at = near(budget)
    base, changes = TRIALS[at][name]
    preset = f"speedrun/{base}-{at:g}"
    if name not in FIRST:
        train(folder, preset, changes, budget)
        return changes, figures(folder)
    first = folder.with_name(f"{folder.name}-first")
    share, before = FIRST[name]
    train(first, preset, before, share * budget)
    train(folder, preset, [change.replace("FIRST", f'"{first}"') for change in changes], (1 - share) * budget)
    found = figures(folder)
    return [*before, *changes], {**found, "epochs": figures(first)["epochs"] + found["epochs"]}


def train(folder: Path, preset: str, changes: list[str], budget: float) -> None:
    """One run, unless it is there."""
    over = config.merge(
        {
            "data": "cifar10",
            "validation_share": 0.1,
            "budget": {"pflop": budget},
            "evaluation": {"every_steps": 10**9},
            "loading": {"duplicates": "no"},
        },
        config.parse_assignments(changes),
    )
    run(recipes.load(preset, over), folder, publish=write_report)


def figures(folder: Path) -> dict[str, Any]:
    """The last look at validation, and what the run cost."""
    records = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    last = next(record for record in reversed(records) if record["kind"] == "validation")
    rates = [record["images_per_second"] for record in records if record["kind"] == "train"]
    result = files.read_json(folder / "result.json")
    batch = recipes.load(str(folder / "recipe.toml")).batch_size
    looks = result["steps"] * batch / result["train_images"]
    # Most of the steps are slower where other work is beside it: the fastest quarter says what the machine can do.
    per_image = result["train_flops"] / (result["steps"] * batch)
    speed = float(np.quantile(rates, 0.75)) * per_image / 1e9
    return {"accuracy": last["accuracy"], "epochs": looks, "gflops": speed}


def line(name: str, changes: list[str], found: dict[str, Any]) -> str:
    """A row of the table."""
    changed = " ".join(f"`{change}`" for change in changes)
    return f"| {name} | {changed} | {100 * found['accuracy']:.2f} | {found['epochs']:.1f} | {found['gflops']:.0f} |"


def publish(rows: list[tuple[str, list[str], dict[str, Any]]], budget: float, day: str) -> None:
    """Put the table into the page."""
    head = (
        f"`{typed('make trials', 'BUDGET')}` of {day}: accuracy in % on 5,000 pictures of train that are not learned from, "
        f"one seed, {budget:g} PFLOP each; GFLOP/s is that of the fastest quarter of the steps:\n\n"
    )
    columns = ("trial", "changed", "accuracy", "epochs", "GFLOP/s")
    put(PAGE, f"trials-{near(budget):g}", head + table(columns, (line(*row) for row in rows)))


if __name__ == "__main__":
    answered(main)
