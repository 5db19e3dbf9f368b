"""`result.json`: what came of a run, or how far it is."""

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from patchword.core import files
from patchword.core.runtime import circumstances, peak_memory
from patchword.training.objectives import UNLABELLED
from patchword.training.run_folder import RECIPE, RESULT

if TYPE_CHECKING:
    from patchword.training.run import Run


def result_of(
    run: "Run", status: str, *, reason: str | None = None, diverged: bool = False, figures: dict[str, Any] | None = None
) -> dict[str, Any]:
    """All that `result.json` holds of a run; `figures` are those of the final model, where it has been measured."""
    recipe, dataset, state = run.recipe, run.dataset, run.state
    return {
        "status": status,
        "reason": reason,
        "diverged": diverged,
        "model": run.model.name,
        "params": run.cost.params,
        "init": run.prepared.origin,
        **({"teacher": _teacher(run)} if recipe.teacher.weights else {}),
        "train_images": len(dataset.splits["train"]) - len(state.unreadable),
        "steps": state.step,
        "seconds": round(state.seconds, 3),
        "train_flops": state.step * recipe.batch_size * run.train_flops_per_image,
        "peak_memory": peak_memory(torch.device(recipe.device)),
        "resumed_from": state.resumed_from,
        "left_out_steps": state.left_out,
        "processes": run.world.count,
        **(_measured(figures) if figures else {}),
        "seed": recipe.seed,
        "image_size": list(run.model.image_size),
        "command": _command(recipe.data, run.out),
        "data": {
            "name": dataset.name,
            "location": dataset.location,
            "classes": [] if recipe.objective in UNLABELLED else list(dataset.classes),
            "multi_label": dataset.multi_label,
            "splits": {name: len(split) for name, split in dataset.splits.items()},
            "split_rule": dataset.split_rule,
            "notices": [dataclasses.asdict(notice) for notice in dataset.notices],
            "duplicates": run.opened.duplicates,
            "unreadable": [
                {"name": dataset.splits["train"].name(index), "reason": why}
                for index, why in sorted(state.unreadable.items())
            ],
        },
        **circumstances(torch.device(recipe.device)),
    }


def _teacher(run: "Run") -> dict[str, Any]:
    """Who answered beside the labels, for how many training pictures, of `unlabelled`, where there is none, and of how many it
    was too unsure.
    """
    teacher = run.recipe.teacher
    asked, left = (int((each.splits["train"].labels < 0).sum()) for each in (run.opened.dataset, run.dataset))
    return {
        "weights": teacher.weights,
        "unlabelled": teacher.unlabelled,
        "pictures": left,
        "unsure": asked - left,
    }


def _measured(figures: dict[str, Any]) -> dict[str, Any]:
    """The few of all figures that the result repeats."""
    measured = {key: figures[key] for key in ("split", "n", "metric", "value", "value_ci95")}
    if figures["metric"] == "accuracy":
        balanced = figures["balanced"]
        measured |= {"accuracy": figures["value"], "accuracy_ci95": figures["value_ci95"]}
        measured |= {"balanced_accuracy": balanced["value"], "balanced_accuracy_ci95": balanced["ci95"]}
    return measured


def _command(data: str, out: Path) -> str:
    """What repeats the run, bit for bit on the same machine."""
    return shlex.join(["patchword", "train", data, "--recipe", str(out / RECIPE), "--out", f"{out}-again"])


def result_sentence(folder: Path) -> str:
    """What a run came to, in one line; empty where nothing was measured."""
    result = files.read_json(folder / RESULT)
    if result.get("value") is None:
        return ""
    (height, width), (low, high) = result["image_size"], (100 * bound for bound in result["value_ci95"])
    what = (
        f"{100 * result['value']:.2f} % of {result['n']:,} {result['split']} pictures"
        if result["metric"] == "accuracy"
        else f"{result['metric'].replace('_', ' ')} {100 * result['value']:.2f} % on {result['n']:,} {result['split']} pictures"
    )
    between = f"{low:.2f}–{high:.2f}" if low >= 0 else f"{low:.2f} to {high:.2f}"
    return (
        f"{result['model']} at {height}×{width}: {what} (95 % interval {between}), "
        f"{result['seconds']:.0f} s of training"
    )
