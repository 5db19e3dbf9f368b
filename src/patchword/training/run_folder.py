"""A run folder: the names of what it holds, whose it is, and how one process at a time gets hold of it.

| file              | what                                                                       |
|-------------------|----------------------------------------------------------------------------|
| `recipe.toml`     | the recipe with nothing left open, written before the first step           |
| `metrics.jsonl`   | the log                                                                    |
| `checkpoints/`    | training state, the newest few                                             |
| `model/`          | the final model                                                            |
| `evaluation.json` | all figures of the final model on the test split (validation if none)      |
| `predictions.csv` | its answer to each of these pictures                                       |
| `result.json`     | what came of it, also when it stopped or failed                            |
| `diverged.json`   | the pictures of the newest step in which training went wrong, if one did   |
| `report.html`     | the page, made of the others                                               |
"""

import contextlib
import dataclasses
import itertools
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from patchword.core import files
from patchword.core.errors import DataError, UsageError
from patchword.core.progress import say
from patchword.core.runtime import only_writer

if TYPE_CHECKING:
    from patchword.data.dataset import Dataset
    from patchword.training.recipe import Recipe

RECIPE, LOG, CHECKPOINTS, MODEL = "recipe.toml", "metrics.jsonl", "checkpoints", "model"
EVALUATION, RESULT, DIVERGED, PAGE = "evaluation.json", "result.json", "diverged.json", "report.html"
ANSWERS = "predictions.csv"
_LEFT_BY_US = {RECIPE, LOG, CHECKPOINTS, MODEL, EVALUATION, ANSWERS, RESULT, DIVERGED, PAGE, ".lock"}

FINISHED = "finished"
"""The status of a run that needs nothing more."""
RUNNING = "running"
"""That of one on its way, or killed on it; the others are `stopped`, by a signal, and `failed`."""


def default_out(recipe: "Recipe", dataset: "Dataset", model_name: str) -> Path:
    """`runs/DATA-MODEL-SEED`."""
    return Path("runs") / f"{dataset.name}-{model_name.replace('/', '-')}-{recipe.seed}"


def take(
    out: Path, asked: "Recipe", restart: bool, held: contextlib.ExitStack, *, of_study: bool = False
) -> str | None:
    """Make `out` ours until `held` is closed; the recipe of the run in it as TOML, or that it is finished; None: a new run.

    Of a study where data and start lie may have changed, as in `ended_as`.
    """
    if restart and (out / RECIPE).is_file():
        with only_writer(out):  # not while another process writes there
            _move_aside(out)
    check(out)
    held.enter_context(only_writer(out))
    held.enter_context(removed_if_empty(out))
    files.remove_leftovers(out, "|".join(map(re.escape, sorted(_LEFT_BY_US))))
    if not (out / RECIPE).is_file():
        return None
    _check_same(out, asked, of_study)
    if _status(out) == FINISHED:
        if (damage := _damage(out / MODEL)) is None:
            return FINISHED
        say(f"note: {damage}; it is made again from the newest checkpoint")
    if not any((out / CHECKPOINTS).glob("step-*")):
        say(f"{out} holds this run without a checkpoint: it begins again at step 0")
    return (out / RECIPE).read_text("utf-8")


def ended_as(out: Path, asked: "Recipe") -> bool:
    """Whether `out` holds the run that is asked for, finished or diverged, by its small files alone: no data set is opened.

    Where the data and the weights of the start lie is not compared: a study may have been moved, and knows them by what they
    are. Nor is a batch of all pictures that there are. Raises `UsageError` where it holds another run, finished or not.
    """
    from patchword.training.recipe import load

    if not (out / RECIPE).is_file():
        return False
    stored = load(str(out / RECIPE))
    if stored.batch_size < asked.batch_size and stored.train_images <= asked.batch_size:
        asked = dataclasses.replace(asked, batch_size=stored.batch_size)
    if difference := _moved(asked, stored).difference(stored):
        raise UsageError(f"{out} holds another run ({difference}); it belongs to another study")
    if _status(out) == FINISHED:
        return (out / MODEL).is_dir()
    return _status(out) == "failed" and bool(files.read_json(out / RESULT).get("diverged"))


def _damage(model: Path) -> str | None:
    """What is wrong with a finished run's model, in words."""
    from patchword.weights.folder import load

    try:
        load(model)
    except DataError as error:
        return str(error)
    return None


def _moved(asked: "Recipe", stored: "Recipe") -> "Recipe":
    """A request as it would be if data and start lay where they did."""
    return dataclasses.replace(asked, data=stored.data, init=stored.init)


def _check_same(out: Path, asked: "Recipe", of_study: bool) -> None:
    """Raise `UsageError` unless the request is for the run that `out` holds."""
    from patchword.training.recipe import load  # and torch, which whoever only wants the names does not need

    try:
        stored = load(str(out / RECIPE))
    except (DataError, UsageError) as error:
        raise DataError(f"{error}; --restart begins anew and keeps what is there") from error
    if difference := (_moved(asked, stored) if of_study else asked).difference(stored):
        raise UsageError(
            f"{out} holds another run ({difference}); choose another --out or move it aside with --restart"
        )


def _status(out: Path) -> str:
    if not (out / RESULT).is_file():
        return "unfinished"
    try:
        return str(files.read_json(out / RESULT).get("status"))
    except (DataError, AttributeError) as error:
        say(f"note: {error}; it is written again")
        return "unfinished"


def check(out: Path) -> None:
    """A folder of other things is not ours to write in."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; a run needs a folder")
    foreign = (
        {path.name for path in out.iterdir() if not path.name.startswith(".")} - _LEFT_BY_US if out.exists() else set()
    )
    if foreign and not (out / RECIPE).is_file():
        raise UsageError(f"{out} holds other things ({min(foreign)}, …); a new folder would be right")


def _move_aside(out: Path) -> None:
    name = f"{out.name}.{time.strftime('%Y%m%d-%H%M%S')}"
    aside = next(path for i in itertools.count() if not (path := out.with_name(f"{name}-{i}" if i else name)).exists())
    out.rename(aside)
    say(f"{out} was moved to {aside}")


@contextlib.contextmanager
def removed_if_empty(out: Path) -> Iterator[None]:
    """What was refused before it wrote anything leaves no folder."""
    try:
        yield
    finally:
        if [path.name for path in out.iterdir()] == [".lock"]:
            shutil.rmtree(out)
