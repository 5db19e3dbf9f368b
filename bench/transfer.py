"""`make transfer-study`: what pre-training is worth for a small model, on data that it has not seen.

From nothing, from pictures of formulas, from those and CIFAR-10 (the weights that come with the package) × the same and a higher
resolution × 500 and all pictures, and 1,000 at 64 px, × SEEDS=3, on Fashion-MNIST and on DATA=… (a folder;
$PATCHWORD_DATA/clothing if there is one): so for MODEL=hybrid; for MODEL=plain 1,000 pictures at 64 px alone. All runs of a row
take the same FLOPs: BUDGET=0.002 PFLOP at 32 px, and elsewhere as much more as there are more pixels; so all have as many steps.
Each run is an ordinary run folder below OUT=runs/transfer: what is done is not done again. The table goes to docs/pretraining.md.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

from bench.page import ROOT, folder_of, last_day, mean_and_range, put, table
from bench.wishes import answered, number, typed, whole
from patchword.core import config, files
from patchword.core.errors import UsageError, nearest
from patchword.core.progress import say
from patchword.reports.run import write_report
from patchword.training import recipe as recipes
from patchword.training.run import run

PAGE = ROOT / "docs/pretraining.md"
RECIPE = "speedrun/hybrid-0.1"
STARTS = ("nothing", "formula", "formula, CIFAR-10")
Cells = dict[str, tuple[tuple[int, int], ...]]
"""Data set → pixels of a side, and training pictures (0: all)."""


class Kind(NamedTuple):
    """A model that is studied."""

    recipe: str
    shipped: str
    cells: Cells
    mark: str
    """Of the table in the page."""


KINDS = {
    "hybrid": Kind(
        RECIPE,
        "shipped:small-hybrid",
        {
            "fashion-mnist": ((64, 1000), (32, 500), (32, 0), (48, 500), (48, 0)),
            "clothing": ((64, 1000), (32, 500), (32, 0), (64, 500), (64, 0)),
        },
        "transfer",
    ),
    "plain": Kind(
        "speedrun/plain-0.1",
        "shipped:small-plain",
        {"fashion-mnist": ((64, 1000),), "clothing": ((64, 1000),)},
        "transfer-plain",
    ),
}


def main() -> None:
    """Pre-train, fine-tune the grid, print and publish the table."""
    out, seeds = Path(os.environ.get("OUT", "runs/transfer")), whole("SEEDS", 3)
    budget, name = number("BUDGET", 0.002), os.environ.get("MODEL") or "hybrid"
    if name not in KINDS:
        raise UsageError(f"MODEL={name} is not known; {nearest(name, KINDS)}")
    kind = KINDS[name]
    # As the one that comes with the package was trained first.
    formula = pretrain(out / f"{name}-formula", "fractals-100x1000", 0.04, begins=kind.recipe)
    starts = dict(zip(STARTS, ("none", str(formula), kind.shipped), strict=True))
    rows = []
    for data, place in sets().items():
        for side, pictures in kind.cells[data]:
            found: dict[str, list[float]] = {}
            for seed in range(seeds):
                for start, init in starts.items():
                    folder = out / name / data / f"{side}-{pictures or 'all'}-{folder_of(start)}-{seed}"
                    pflop = budget * (side / 32) ** 2
                    changes = {"seed": seed, "train_images": pictures, "budget": {"pflop": pflop}}
                    found.setdefault(start, []).append(tune(folder, place, init, side, changes, begins=kind.recipe))
            rows.append((data, side, pictures, found))
            print(line(*rows[-1]), flush=True)
    publish(name, rows, seeds, budget, last_day(out / name))


def sets() -> dict[str, str]:
    """Name → place of the data sets that are here."""
    beside = Path(os.environ.get("PATCHWORD_DATA", "")) / "clothing"
    place = os.environ.get("DATA", str(beside) if beside.is_dir() else "")
    if not place:
        say("note: DATA names no folder of pictures: the study is made on Fashion-MNIST alone")
    return {"fashion-mnist": "fashion-mnist", **({"clothing": place} if place else {})}


def pretrain(folder: Path, data: str, budget: float, *changes: str, begins: str = RECIPE) -> Path:
    """The run folder of a model that was trained on pictures of formulas, with changes of the recipe."""
    over = {
        "data": f"formula:{data}",
        "init": "none",
        "budget": {"pflop": budget},
        "loading": {"duplicates": "no"},
    }
    changed = config.merge(over, config.parse_assignments(list(changes)))
    return run(recipes.load(begins, changed), folder, publish=write_report)


def tune(folder: Path, data: str, init: str, side: int, changes: dict[str, Any], *, begins: str = RECIPE) -> float:
    """The accuracy after fine-tuning at `side` pixels; from nothing, with the model and the rates of the recipe `begins`."""
    over: dict[str, Any] = {
        "data": data,
        "init": init,
        "image_size": [side, side],
        "preprocessing": {"resize": "stretch", "crop_fraction": 1.0},
        "loading": {"duplicates": "no"},
    }
    if init == "none":
        before = recipes.load(begins)
        over["model"], over["zero_init_residual"] = before.model, before.zero_init_residual
        over["optimizer"] = {"matrix_lr": before.optimizer.matrix_lr}
    run(recipes.load("finetune/muon", config.merge(over, changes)), folder, publish=write_report)
    return files.read_json(folder / "result.json")["accuracy"]


def line(data: str, side: int, pictures: int, found: dict[str, list[float]]) -> str:
    """A row of the table: mean and range of each start."""
    cells = [f"{data}, {side} px", f"{pictures:,}" if pictures else "all"]
    cells += [mean_and_range(found[start], 1) for start in STARTS]
    return "| " + " | ".join(cells) + " |"


def publish(
    model: str, rows: list[tuple[str, int, int, dict[str, list[float]]]], seeds: int, budget: float, day: str
) -> None:
    """Put the table into the page."""
    head = (
        f"`{typed('make transfer-study', 'MODEL', 'SEEDS', 'BUDGET')}` of {day}: accuracy on test in %, "
        f"mean and range of {seeds} {'seed' if seeds == 1 else 'seeds'}, "
        f"{budget:g} PFLOP each at 32 px, elsewhere in proportion to the pixels:\n\n"
    )
    put(PAGE, KINDS[model].mark, head + table(("data", "training pictures", *STARTS), (line(*row) for row in rows)))


if __name__ == "__main__":
    answered(main)
