"""`make formula-study`: which pictures of formulas are worth the most to a model that then has 1,000 real ones.

Each attempt pre-trains the hybrid for PRETRAIN=0.01 PFLOP and is tuned at 64 px for each of BUDGETS (PFLOP), on Fashion-MNIST and
on DATA=… (a folder; $PATCHWORD_DATA/clothing if there is one), like the same model from nothing. Accuracy is that on
validation: what is chosen here is not to be chosen on test. ONLY=name,name (all if not given), OUT=runs/formulas. Each run is an
ordinary run folder: what is done is not done again. The table goes to docs/pretraining.md.
"""

import datetime
import os
from pathlib import Path
from typing import Any

from bench.page import put
from bench.transfer import PAGE, RECIPE, begun, sets
from patchword.core import config, files
from patchword.reports.run import write_report
from patchword.training import recipe as recipes
from patchword.training.run import run

MARK = "formulas"
BUDGETS = (0.0005, 0.002)
NOTHING = "nothing"
PART = ["augment.crop=random-resized", "augment.crop_area=[0.3,1.0]"]
ATTEMPTS: dict[str, tuple[str, list[str]]] = {
    "fractals": ("fractals-1000x100", []),
    "more pictures of each": ("fractals-1000x1000", []),
    "fewer classes": ("fractals-100x1000", []),
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
    "shapes of more proportions": ("shapes-4096x25", []),
    "parts of shapes": ("shapes-256x400", PART),
    "shapes at 64 px": ("shapes-256x400@64", ["image_size=[64,64]"]),
}
"""Name → the data set, and what is changed in the recipe."""


def main() -> None:
    """Run what is not there, print and publish the table."""
    out, pretrain = Path(os.environ.get("OUT", "runs/formulas")), float(os.environ.get("PRETRAIN", "0.01"))
    only = [name for name in os.environ.get("ONLY", "").split(",") if name]
    rows = []
    for name in (NOTHING, *ATTEMPTS):
        if not only or name in only:
            init = "none" if name == NOTHING else str(pretrained(out / plain(name), *ATTEMPTS[name], pretrain))
            values = [
                tuned(out / f"{plain(name)}-{data}-{budget:g}", place, init, budget)
                for data, place in sets().items()
                for budget in BUDGETS
            ]
            rows.append((name, values))
            print(line(*rows[-1]), flush=True)
    publish(rows, pretrain)


def plain(name: str) -> str:
    """A name as a part of a folder's."""
    return name.replace(", ", "-").replace(" ", "-")


def pretrained(folder: Path, data: str, changes: list[str], budget: float) -> Path:
    """The run folder of a model that has seen an attempt's pictures."""
    over: dict[str, Any] = {
        "data": f"formula:{data}",
        "init": "none",
        "budget": {"pflop": budget},
        "evaluation": {"mirror": False},
        "loading": {"duplicates": "no"},
    }
    changed = config.merge(over, config.parse_assignments(changes))
    return run(recipes.load(RECIPE, changed), folder, publish=write_report)


def tuned(folder: Path, data: str, init: str, budget: float) -> float:
    """The accuracy on validation after training on 1,000 pictures for the budget."""
    over = config.merge(
        begun(data, init, side=64),
        {
            "train_images": 1000,
            "budget": {"pflop": budget},
            "validation_share": 0.05 if data == "fashion-mnist" else 0.0,
            "evaluation": {"final": "validation", "mirror": True},
        },
    )
    run(recipes.load("finetune/muon", over), folder, publish=write_report)
    return files.read_json(folder / "result.json")["accuracy"]


def line(name: str, values: list[float]) -> str:
    """A row of the table."""
    data, changes = ATTEMPTS.get(name, ("", []))
    what = " ".join(f"`{each}`" for each in (*([f"formula:{data}"] if data else []), *changes))
    return f"| {name} | {what} | {' | '.join(f'{100 * value:.2f}' for value in values)} |"


def publish(rows: list[tuple[str, list[float]]], pretrain: float) -> None:
    """Put the table into the page."""
    columns = [f"{data}, {budget:g}" for data in sets() for budget in BUDGETS]
    head = (
        f"`make formula-study` of {datetime.date.today():%Y-%m-%d}: accuracy on validation in %, 1,000 pictures at 64 px, "
        f"one seed; {pretrain:g} PFLOP of pre-training each, and the budget of the column of tuning:\n\n"
        f"| before | on what | {' | '.join(columns)} |\n|---|---|{'---|' * len(columns)}\n"
    )
    put(PAGE, MARK, head + "".join(line(*row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
