"""`patchword compare`: which model your own pictures and your own compute want, asked with many runs and answered on a page."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from patchword.core.errors import UsageError
from patchword.verbs.options import (
    Assignments,
    Data,
    ImageSize,
    Name,
    Number,
    OtherData,
    Target,
    Whole,
    argument,
    assignments,
    one_budget,
    parse_image_size,
)

if TYPE_CHECKING:
    Several = str | Sequence[str | int]
else:
    Several = Annotated[str, argument("A,B,...")]


def compare(
    data: Data,
    *,
    models: Several,
    sizes: Several = "all",
    seeds: Whole = None,
    out: Target = None,
    image_size: ImageSize = None,
    pflop: Number = None,
    minutes: Number = None,
    pretrain: OtherData = None,
    pretrain_pflop: Number = None,
    recipe: Name = None,
    set: Assignments = (),  # noqa: A002 (the command line's word)
) -> Path:
    """Compare models on your own pictures: accuracy against training pictures and compute, with what is certain about it.

    Every model gets the same budget, the same search for its learning rate (on validation, or on a tenth of train) and the
    same pictures. Each run is an ordinary run folder; the same command goes on where it was ended. How long all of it takes is
    said first. The study folder with its page, report.html, is returned.

    Args:
        data: As for train; one label a picture.
        models: Names of `patchword models`, separated by commas.
        sizes: Numbers of training pictures, and all; smaller ones lie in larger ones, of each class its share.
        seeds: How often each is run, on other pictures and from another start; 3 if not given.
        out: The study folder; studies/DATA if not given.
        image_size: The side, or height x width, of every model's input in pixels.
        pflop: The budget of each run in 10^15 FLOPs; if not given, what the dearest model takes for 30 epochs.
        minutes: The budget of each run in minutes instead.
        pretrain: Begin with weights that each model learns on this data set first, with equal FLOPs; else all from nothing.
        pretrain_pflop: The budget of that; four runs' if not given.
        recipe: A preset or a TOML file; scratch, or finetune after pre-training, if not given.
        set: Change a field of the recipe, such as batch_size=32; a field of model holds for the families that have it.
    """
    from patchword.core import config, files
    from patchword.core.progress import say
    from patchword.reports.run import write_report
    from patchword.reports.study import write_study
    from patchword.studies import compare as studies
    from patchword.studies.answer import STUDY, write_answer
    from patchword.studies.telling import headline
    from patchword.training.recipe import Budget

    budget = one_budget(pflop=pflop, minutes=minutes)
    before = one_budget(pretrain_pflop=pretrain_pflop)
    if pretrain is None and before:
        raise UsageError("--pretrain-pflop is the budget of pre-training; --pretrain DATA asks for it")
    changes = config.parse_assignments(assignments(set))
    _refuse_said(changes)
    place = Path(out) if out is not None else Path("studies") / (Path(str(data)).name or "data")
    studies.compare(
        str(data),
        _listed(models),
        _listed(sizes),
        place,
        seeds=3 if seeds is None else seeds,
        image_size=None if image_size is None else parse_image_size(image_size),
        budget=config.build(Budget, budget) if budget else None,
        pretrain="" if pretrain is None else str(pretrain),
        pretrain_budget=Budget(pflop=before["pretrain_pflop"]) if before else None,
        recipe="" if recipe is None else str(recipe),
        changes=changes,
        publish_run=write_report,
        publish=lambda study: write_study(write_answer(study)),
    )
    say(headline(files.read_json(place / STUDY)).replace("**", ""))
    say(f"the page is {place / 'report.html'}")
    return place


_SAID = {
    "data": "DATA",
    "init": "--pretrain",
    "seed": "--seeds",
    "budget": "--pflop",
    "image_size": "--image-size",
    "train_images": "--sizes",
    "train_images_seed": "--seeds",
    "validation_share": "the study",
}


def _refuse_said(changes: dict[str, Any]) -> None:
    """Raise `UsageError` where `--set` says what an option or the study says, or would make the runs differ."""
    from patchword.studies.grid import QUIET

    for field, option in _SAID.items():
        if field in changes:
            raise UsageError(
                f"--set {field}=… would make the runs differ from what {option} says; {option} alone is right"
            )
    for table, fields in QUIET.items():
        asked = changes.get(table, {})
        for field in fields:
            if not isinstance(asked, dict) or field in asked:
                raise UsageError(f"--set {table}.{field}=… would change nothing: the study says it for all of its runs")
    if isinstance(changes.get("model"), str):
        raise UsageError("--set model=… says what --models says; --models alone is right")


def _listed(words: "str | Sequence[str | int]") -> tuple[str, ...]:
    """`A,B` or a list → what is in it."""
    parts = words.split(",") if isinstance(words, str) else [str(word) for word in words]
    return tuple(part.strip() for part in parts if part.strip())
