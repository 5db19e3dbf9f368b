"""`patchword train`: a data set in, a run folder with a trained model and its page out."""

from pathlib import Path
from typing import Any

from patchword.core.errors import UsageError
from patchword.verbs.options import (
    Assignments,
    Data,
    ImageSize,
    Name,
    Number,
    Start,
    Target,
    Whole,
    assignments,
    one_budget,
    parse_image_size,
)


def train(
    data: Data,
    *,
    model: Name = None,
    init: Start = None,
    image_size: ImageSize = None,
    minutes: Number = None,
    epochs: Number = None,
    steps: Whole = None,
    pflop: Number = None,
    seed: Whole = None,
    recipe: Name = None,
    set: Assignments = (),  # noqa: A002 (the command line's word)
    out: Target = None,
    restart: bool = False,
) -> Path:
    """Train a model on a data set; the run folder with everything that came of it is returned.

    The same command again resumes an unfinished run. Without a model, its size is chosen for the data and the budget.

    Args:
        data: A folder of class folders, a table (CSV, TSV, Parquet), a folder of Parquet files, a named set, or formula:….
        model: A name of `patchword models`, such as ViT-Ti/16.
        init: auto (the default without a recipe), none (from nothing), or weights: a run or model folder, shipped:small-hybrid or
            shipped:small-plain (they come with patchword), Google's .npz, timm's, transformers', hf://ORG/NAME.
        image_size: The side, or height x width, of the model's input in pixels.
        minutes: Train for so many minutes; the number of steps is fixed before the first.
        epochs: Train for so many passes over the training pictures.
        steps: Train for so many updates.
        pflop: Train for so many 10^15 FLOPs.
        seed: Of the initial weights, the order of the pictures and all their variation.
        recipe: A preset (hybrid, scratch, finetune, speedrun/hybrid-0.02, noisy-student, ...) or a TOML file.
        set: Change a field of the recipe, such as optimizer.lr=0.001; may be given several times.
        out: The run folder; runs/DATA-MODEL-SEED if not given.
        restart: Move what the run folder holds aside and begin anew.
    """
    from patchword.core import config
    from patchword.core.progress import say
    from patchword.reports.run import write_report
    from patchword.training import recipe as recipes
    from patchword.training.result import result_sentence
    from patchword.training.run import run
    from patchword.training.run_folder import PAGE
    from patchword.training.start import preset_for, preset_from_nothing

    changes = config.parse_assignments(assignments(set))
    _refuse_twice(changes, model, image_size, seed)
    budget = one_budget(minutes=minutes, epochs=epochs, steps=steps, pflop=pflop)
    if budget and "budget" in changes:
        raise UsageError(f"--set budget and --{next(iter(budget))} exclude each other: one budget is right")
    if init is None and recipe is None:
        init = "auto"
    over: dict[str, Any] = {"data": str(data)}
    if init is not None:
        over["init"] = str(init)
    if budget:
        over["budget"] = budget
    if model is not None:
        over["model"] = {"name": str(model)}
    if image_size is not None:
        over["image_size"] = parse_image_size(image_size)
    if seed is not None:
        over["seed"] = seed
    wanted = config.merge(changes, over)

    def with_weights(found: str) -> recipes.Recipe:
        return recipes.load(preset_for(found), {**wanted, "init": found})

    start = recipe
    if start is None:
        start = preset_from_nothing(wanted) if str(init) in ("auto", "none") else preset_for(str(init))
    chosen = recipes.load(str(start), wanted)
    place = None if out is None else Path(out)
    folder = run(
        chosen, place, restart=restart, publish=write_report, with_weights=with_weights if recipe is None else None
    )
    if sentence := result_sentence(folder):
        say(sentence)
    say(f"the report is {folder / PAGE}")
    return folder


def _refuse_twice(changes: dict[str, Any], model: Name, image_size: ImageSize, seed: Whole) -> None:
    """Raise `UsageError` where `--set` says what DATA or an option says."""
    named = changes.get("model", {})
    for option, twice in (
        ("DATA", "data" in changes),
        ("--init", "init" in changes),
        ("--model", not isinstance(named, dict) or (model is not None and "name" in named)),
        ("--image-size", image_size is not None and "image_size" in changes),
        ("--seed", seed is not None and "seed" in changes),
    ):
        if twice:
            field = option.lower().lstrip("-").replace("-", "_")
            raise UsageError(f"--set {field}=… says what {option} says; {option} alone is right")
