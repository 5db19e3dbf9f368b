"""A grid of cells, each an ordinary run folder: killed anywhere, it goes on there, and what is finished is never done again.

A study's folder holds `study.toml`, what was asked for, and the folders of its cells. One process at a time writes there.
"""

import contextlib
import dataclasses
import math
import os
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from patchword.core import files
from patchword.core.errors import DataError, DivergedError, UsageError
from patchword.core.progress import duration, say
from patchword.core.runtime import only_writer
from patchword.training.budget import steps_for
from patchword.training.estimate import Estimate, estimate
from patchword.training.recipe import Budget, Recipe
from patchword.training.run import run
from patchword.training.run_folder import RESULT, ended_as, removed_if_empty
from patchword.training.shelf import Shelf

SETTINGS = "study.toml"
QUIET: dict[str, Any] = {"evaluation": {"every_steps": 10**9}, "checkpoint": {"keep": 1}}
"""What every cell's recipe says: nobody looks at validation on the way, and the newest checkpoint is enough."""
_AROUND = 2.5
"""Seconds that a cell takes beside its training: opening, saving, its page; of models of a million weights, on two cores."""


_BUSY = 2.0
"""Processes for each core, above which times say more of them than of the runs; our own are one."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    place: str
    """Its folder, below the study's."""
    title: str
    """What it is, as a person reads it."""
    recipe: Recipe


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a cell."""

    cell: Cell
    folder: Path
    result: dict[str, Any]
    """Of its `result.json`."""
    diverged: str = ""
    """Why there is no model, where training went wrong."""

    @property
    def value(self) -> float | None:
        """What the final model was measured to be, 0…1; None where there is none."""
        return None if self.diverged else self.result.get("value")


@dataclasses.dataclass(frozen=True)
class Extra:
    """What is measured of a cell's final model beside its run."""

    cell: Cell
    pictures: int
    """That the model sees for it."""


def figures_in(path: Path) -> dict[str, Any]:
    """What was measured beside the runs so far, by key; a damaged file is made anew."""
    try:
        found = files.read_json(path)
    except DataError:
        return {}
    return found if isinstance(found, dict) else {}


@contextlib.contextmanager
def held(folder: Path) -> Iterator[dict[str, Any]]:
    """Hold a study's folder, new or not, until the context ends; the settings that it was begun with are given.

    Raises `UsageError` where it holds other things, or another process writes there.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; a study needs a folder")
    foreign = [path.name for path in folder.iterdir() if not path.name.startswith(".")] if folder.exists() else []
    if foreign and not (folder / SETTINGS).is_file():
        raise UsageError(f"{folder} holds other things ({min(foreign)}, …); a new folder would be right")
    with only_writer(folder), removed_if_empty(folder):
        files.remove_leftovers(folder, ".*")
        yield _stored(folder)


def settle(folder: Path, stored: dict[str, Any], settings: dict[str, Any], free: Sequence[str] = ()) -> None:
    """Write down what a study is, as plain values; those in `free` may differ from what was stored there before.

    Raises `UsageError` that says in what it is another study.
    """
    for name, value in settings.items():
        if stored and name not in free and stored.get(name) != value:
            before, now = _in_words(stored.get(name)), _in_words(value)
            raise UsageError(
                f"{folder} holds another study ({name}: {before} there, {now} asked for); choose another --out"
            )
    if stored != settings:
        files.write_text(folder / SETTINGS, tomli_w.dumps(settings))


def _in_words(value: Any, name: str = "") -> str:
    """A setting as it is written on a command line: numbers with commas between, tables as field=value."""
    if isinstance(value, dict):
        words = [_in_words(each, f"{name}.{key}" if name else key) for key, each in value.items()]
    else:
        text = ",".join(map(str, value)) if isinstance(value, list) else str("" if value is None else value)
        words = [f"{name}={text}" if name else text]
    return " ".join(filter(None, words)) or "none"


def _stored(folder: Path) -> dict[str, Any]:
    if not (folder / SETTINGS).is_file():
        return {}
    try:
        return tomllib.loads((folder / SETTINGS).read_text("utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{folder / SETTINGS} cannot be read: {error}") from error


def plain(model: str) -> str:
    """A model's name as a part of a folder's."""
    return model.replace("/", "-")


class OutOfTime(Exception):
    """The time that was given is over; what is finished is kept."""


class Grid:
    """Runs cells in order and says how far it is."""

    def __init__(
        self, folder: Path, publish: Callable[[Path], object] | None = None, *, until: float = math.inf
    ) -> None:
        """`publish` is called with the folder of each cell that has a new result: it writes its page.

        No cell is begun after `until`, in seconds of `time.monotonic`.
        """
        self.folder, self.publish, self.until, self.shelf = folder, publish, until, Shelf()
        self._total = self._done = 0
        self._left = self._spent = self._expected = 0.0
        self._known: dict[str, Estimate] = {}

    def begin(self, cells: Sequence[Cell], like: Sequence[Cell] = (), extras: Sequence[Extra] = ()) -> None:
        """Say how many cells there are, and how long those that are not finished will take, with the extras.

        `like` are cells that cost as much as some that cannot be known yet.
        """
        waiting = [*(cell for cell in cells if not self.finished(cell)), *like]
        self._total = len(cells) + len(like)
        self._done = self._total - len(waiting)
        self._left = self.expected([*waiting, *extras])
        finished = f", {self._done:,} of them finished" if self._done else ""
        time_needed = f"; about {duration(self._left)} on this machine" if waiting or extras else ""
        say(f"{self.folder}: {self._total:,} runs{finished}{time_needed}")
        if waiting and (load := _load()) > _BUSY:
            say(
                f"note: other work keeps this machine busy ({load:.1f} processes for each core), and what was measured is slower "
                "than it would be alone"
            )

    def expected(self, work: Iterable[Cell | Extra]) -> float:
        """About how many seconds these cells take from nothing, and these extras."""
        # One data set after the other: the shelf holds few.
        return sum(self.seconds(each) for each in sorted(work, key=_data_of))

    def finished(self, cell: Cell) -> bool:
        """Whether a cell needs nothing more: it is finished, or its training diverges."""
        return ended_as(self.folder / cell.place, cell.recipe)

    def seconds(self, work: Cell | Extra) -> float:
        """About how long a cell takes from nothing, or an extra."""
        if isinstance(work, Extra):
            return work.pictures * self._tried(work.cell.recipe).seconds_per_look
        recipe = work.recipe
        if recipe.budget.minutes:
            return 60 * recipe.budget.minutes + _AROUND
        found = self._tried(recipe)
        dataset, _ = self.shelf.open(recipe.data)
        pictures = recipe.train_images or len(dataset.splits["train"])
        steps = steps_for(recipe.budget, pictures, found.batch_size, found.flops_per_image)
        # The pictures are decoded already, by the cells before, and it is not looked at validation on the way.
        return dataclasses.replace(found, steps=steps or 0, looks=0, saves=1, decoded=0).seconds

    def _tried(self, recipe: Recipe) -> Estimate:
        """A trial of a recipe; those that differ in budget, seed, rate or pictures share one."""
        kind = dataclasses.replace(
            recipe,
            seed=0,
            init=recipe.init if "name" not in recipe.model else "none",
            budget=Budget(steps=1),
            optimizer=dataclasses.replace(recipe.optimizer, lr=1e-3, matrix_lr=1e-3),
            evaluation=dataclasses.replace(recipe.evaluation, final="test"),
            validation_share=0.0,
            train_images=0,
            train_images_seed=0,
        )
        key = kind.identity()
        if not self._known:
            say("timing a few steps of each kind of run")
        if key not in self._known:
            self._known[key] = estimate(kind, shelf=self.shelf)
        return self._known[key]

    def run(self, cells: Sequence[Cell]) -> list[Outcome]:
        """Run what is not finished; what became of each, in their order. Raises `OutOfTime`."""
        return [self._run(cell) for cell in cells]

    def _run(self, cell: Cell) -> Outcome:
        if self.finished(cell):
            return self.outcome(cell)
        if time.monotonic() > self.until:
            raise OutOfTime
        anew, began = not (self.folder / cell.place).exists(), time.perf_counter()
        with contextlib.suppress(DivergedError):  # its result.json says so
            run(cell.recipe, self.folder / cell.place, publish=self.publish, shelf=self.shelf)
        outcome = self.outcome(cell)
        self._tell(outcome, time.perf_counter() - began, anew=anew)
        return outcome

    def outcome(self, cell: Cell) -> Outcome:
        """What became of a cell that has ended."""
        folder = self.folder / cell.place
        result = files.read_json(folder / RESULT)
        return Outcome(cell, folder, result, result["reason"] if result["diverged"] else "")

    def _tell(self, outcome: Outcome, seconds: float, *, anew: bool) -> None:
        """One line about a cell that has just been run, and how long the others will take by what was seen so far."""
        self._done += 1
        self._total = max(self._total, self._done)
        self._count(outcome.cell, seconds, anew=anew)
        value = outcome.value
        found = outcome.diverged or ("not measured" if value is None else f"{100 * value:.2f} %")
        left = self._left * (self._spent / self._expected if self._expected else 1)
        rest = f"; about {duration(left)} left" if self._done < self._total else ""
        say(f"[{self._done}/{self._total}] {outcome.cell.title}: {found} in {duration(seconds)}{rest}")

    @contextlib.contextmanager
    def measuring(self, extra: Extra) -> Iterator[None]:
        """Around an extra: what is left is less by it afterwards."""
        began = time.perf_counter()
        yield
        self._count(extra, time.perf_counter() - began)

    def _count(self, work: Cell | Extra, seconds: float, *, anew: bool = True) -> None:
        """Work is done, and took so long; what was only brought to its end says nothing of the pace."""
        expected = self.seconds(work)
        if anew:
            self._spent, self._expected = self._spent + seconds, self._expected + expected
        self._left = max(0.0, self._left - expected)


def _data_of(work: Cell | Extra) -> str:
    return (work.cell if isinstance(work, Extra) else work).recipe.data


def _load() -> float:
    """Processes that waited for each core in the last minute; 0 where the system does not say."""
    return os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else 0.0
