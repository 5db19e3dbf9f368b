"""`make formula-study`: which pictures of formulas are worth the most to a model that then has 1,000 real ones.

Each attempt pre-trains the hybrid for PRETRAIN=0.01 PFLOP and is tuned at 64 px for each of BUDGETS (PFLOP), on Fashion-MNIST and
on DATA=… (a folder; $PATCHWORD_DATA/clothing if there is one), like the same model from nothing. Accuracy is that on
validation: what is chosen here is not to be chosen on test. ONLY=name,name (all if not given), OUT=runs/formulas. Each run is an
ordinary run folder: what is done is not done again. The table goes to docs/pretraining.md.
"""

import os
from pathlib import Path

from bench.page import finished, folder_of, last_day, put, table
from bench.transfer import PAGE, pretrain, sets, tune
from bench.wishes import answered, names, number, typed

MARK = "formulas"
BUDGETS = (0.0005, 0.002)
NOTHING = "nothing"
PART = ["augment.crop=random-resized", "augment.crop_area=[0.3,1.0]"]
ATTEMPTS: dict[str, tuple[str, list[str]]] = {
    "fractals": ("fractals-1000x100", []),
    "more pictures of each": ("fractals-1000x1000", []),
    "fewer classes": ("fractals-100x1000", []),
    "thirty classes": ("fractals-30x3000", []),
    "ten classes": ("fractals-10x10000", []),
    "more classes": ("fractals-10000x10", []),
    "fractals at 64 px": ("fractals-1000x100@64", ["image_size=[64,64]"]),
    "parts of fractals": ("fractals-1000x100", PART),
    "fractals, RandAugment": (
        "fractals-1000x100",
        ["augment.randaugment_layers=2", "augment.randaugment_magnitude=10.0"],
    ),
    "fractals, CutMix": ("fractals-1000x100", ["augment.cutmix=1.0"]),
    "fractals, AdamW": (
        "fractals-1000x100",
        ["optimizer.name=adamw", "optimizer.lr=3e-3", "optimizer.weight_decay=0.05"],
    ),
    "shapes": ("shapes-256x400", []),
    "shapes of 32 classes": ("shapes-32x3000", []),
    "shapes of more proportions": ("shapes-4096x25", []),
    "parts of shapes": ("shapes-256x400", PART),
    "shapes at 64 px": ("shapes-256x400@64", ["image_size=[64,64]"]),
}
"""Name → the data set, and what is changed in the recipe."""


def main() -> None:
    """Run what is not there, print and publish the table."""
    out, before = Path(os.environ.get("OUT", "runs/formulas")), number("PRETRAIN", 0.01)
    only = names("ONLY", (NOTHING, *ATTEMPTS))
    rows = []
    for name in (NOTHING, *ATTEMPTS):
        folder, init = out / folder_of(name), "none"
        if name in only or all(finished(cell) for cell, *_ in cells(folder)):
            if name != NOTHING:
                data, changes = ATTEMPTS[name]
                init = str(pretrain(folder, data, before, *changes, "evaluation.mirror=false"))
            values = [tuned(cell, place, init, budget) for cell, place, budget in cells(folder)]
            rows.append((name, values))
            print(line(*rows[-1]), flush=True)
    publish(rows, before, last_day(out))


def cells(folder: Path) -> list[tuple[Path, str, float]]:
    """The run folder of each column of an attempt, its data set and its budget."""
    return [
        (folder.with_name(f"{folder.name}-{data}-{budget:g}"), place, budget)
        for data, place in sets().items()
        for budget in BUDGETS
    ]


def tuned(folder: Path, data: str, init: str, budget: float) -> float:
    """The accuracy on validation after training on 1,000 pictures for the budget."""
    changes = {
        "train_images": 1000,
        "budget": {"pflop": budget},
        "validation_share": 0.05 if data == "fashion-mnist" else 0.0,
        "evaluation": {"final": "validation", "mirror": True},
    }
    return tune(folder, data, init, 64, changes)


def line(name: str, values: list[float]) -> str:
    """A row of the table."""
    data, changes = ATTEMPTS.get(name, ("", []))
    what = " ".join(f"`{each}`" for each in (*([f"formula:{data}"] if data else []), *changes))
    return f"| {name} | {what} | {' | '.join(f'{100 * value:.2f}' for value in values)} |"


def publish(rows: list[tuple[str, list[float]]], before: float, day: str) -> None:
    """Put the table into the page."""
    columns = [f"{data}, {budget:g}" for data in sets() for budget in BUDGETS]
    head = (
        f"`{typed('make formula-study', 'PRETRAIN')}` of {day}: accuracy on validation in %, 1,000 pictures at 64 px, "
        f"one seed; {before:g} PFLOP of pre-training each, and the budget of the column of tuning:\n\n"
    )
    put(PAGE, MARK, head + table(("before", "on what", *columns), (line(*row) for row in rows)))


if __name__ == "__main__":
    answered(main)
