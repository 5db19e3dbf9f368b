"""Runs the arms of the paper's experiments in a grid, and says before what they cost.

Runs that several arms or experiments ask for are made once: their folder is named by what they are.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from patchword.core import config, files
from patchword.core.errors import DataError, UsageError
from patchword.data.sources import open_data
from patchword.models.cost import cost
from patchword.models.names import create_model
from patchword.studies import inside
from patchword.studies.experiment import Arm, Measured, Scale, Stage
from patchword.studies.grid import QUIET, Cell, Grid, Outcome, plain
from patchword.studies.scales import PICTURES
from patchword.studies.search import ahead, part_of, search, tried, with_rate
from patchword.training import recipe as recipes
from patchword.training.recipe import Recipe
from patchword.weights.io import load_model

FEW_SHOT, INSIDE = "few-shot.json", "inside.json"
_SIGNS = 10


@dataclasses.dataclass(frozen=True)
class _Step:
    """A run of an arm with a seed, but for its learning rate."""

    title: str
    model: str
    recipe: Recipe
    trial: Recipe
    """What the search for its rate tries: the same for all that share the search."""
    origin: str = ""
    """The place of the cell whose weights it begins with."""

    @property
    def kind(self) -> str:
        """What shares a search: all that differ in seed, budget, number of pictures and the data of their start alone."""
        return _sign(dataclasses.replace(self.trial, init="given" if self.origin else "none").identity())

    def cell(self, factor: float) -> Cell:
        """The run at a rate. Its folder is named by all that makes it what it is; weights of the start by their own cell."""
        recipe = with_rate(self.recipe, factor)
        sign = _sign(f"{dataclasses.replace(recipe, init=self.origin).identity()} {self.origin}")
        name = f"{plain(self.model)}-{'tuning' if self.origin else 'training'}-{sign}"
        return Cell(f"cells/{name}", f"{self.title}, seed {recipe.seed}", recipe)


class Trials:
    """Runs arms at a scale, in a grid; what is there is not run again."""

    def __init__(self, grid: Grid, scale: Scale) -> None:
        self.grid, self.scale = grid, scale
        self._factors: dict[str, float] = {}
        """Kind of runs → the factor on its rate, as far as it was searched."""
        self._recipes: dict[str, Recipe] = {}

    # What is run

    def steps(self, arm: Arm, seed: int) -> list[_Step]:
        """The runs of an arm in order. What the second begins with lies where the first does by the rates that are known."""
        steps: list[_Step] = []
        if arm.before is not None:
            start = 0 if arm.one_start else seed
            steps.append(self._step(arm, arm.before, start, tuning=False))
        if arm.after is not None:
            steps.append(self._step(arm, arm.after, seed, tuning=True, start=self._cell(steps[0]) if steps else None))
        return steps

    def _step(self, arm: Arm, stage: Stage, seed: int, *, tuning: bool, start: Cell | None = None) -> _Step:
        init = arm.weights or "none"
        if start is not None:
            init = str((self.grid.folder / start.place).resolve())
        usual = dataclasses.replace(stage, share=1.0, steps=0, images=self.scale.few if tuning else 0)
        recipe, trial = (
            dataclasses.replace(self._recipe(arm, each, number, tuning), init=init)
            for each, number in ((stage, seed), (usual, 0))
        )
        title = f"{arm.label}, {'tuning' if tuning and init != 'none' else 'training'} on {stage.data}"
        return _Step(title, arm.model, recipe, trial, arm.origin if start is None else start.place)

    def _recipe(self, arm: Arm, stage: Stage, seed: int, tuning: bool) -> Recipe:
        """The recipe of a stage, at the rate of its preset."""
        key = f"{arm.model} {arm.weights} {arm.before or arm.after} {stage} {seed} {tuning}"
        if key not in self._recipes:
            self._recipes[key] = self._make_recipe(arm, stage, seed, tuning)
        return self._recipes[key]

    def _make_recipe(self, arm: Arm, stage: Stage, seed: int, tuning: bool) -> Recipe:
        scale = self.scale
        budget = part_of(scale.after if tuning else scale.before, stage.share)
        given = {name: value for name, value in dataclasses.asdict(budget).items() if value}
        side = stage.image_size or (scale.after_size if tuning else 0) or scale.image_size
        over: dict[str, Any] = {
            "data": stage.data,
            "model": self._architecture(arm),
            "image_size": [side, side],
            "seed": seed,
            "train_images": stage.images,
            "train_images_seed": seed if stage.images else 0,
            **QUIET,
        }
        if stage.steps or given:
            over["budget"] = {"steps": stage.steps} if stage.steps else given
        usual = scale.after_recipes.get(stage.data, scale.after_recipe) if tuning else scale.before_recipe
        name = stage.recipe or usual
        made = recipes.load(name, config.merge(over, {k: v for k, v in stage.changes.items() if k != "model"}))
        if "budget" not in over:
            made = dataclasses.replace(made, budget=part_of(made.budget, stage.share))
        return dataclasses.replace(made, batch_size=min(made.batch_size, stage.images or made.batch_size))

    def _architecture(self, arm: Arm) -> dict[str, Any]:
        """The `model` of all recipes of an arm: what the recipe for training from nothing wishes, and its first stage."""
        first = arm.before or arm.after
        assert first is not None
        if arm.weights:
            return dict(first.changes.get("model", {}))
        wishes = recipes.load(self.scale.before_recipe, {"model": {"name": arm.model}}).model
        return {**wishes, **first.changes.get("model", {})}

    def _cell(self, step: _Step) -> Cell:
        return step.cell(self._factors.get(step.kind, 1.0))

    # How it is run

    def ahead(self, arms: Sequence[Arm], seeds: Iterable[int]) -> tuple[dict[str, Cell], dict[str, Cell]]:
        """What will be run, as far as it is known by now, and cells that cost as much as the others; by names of their own,
        so that what several experiments share is found in each."""
        known: dict[str, Cell] = {}
        like: dict[str, Cell] = {}
        for seed in seeds:
            for arm in arms:
                for number in range(len(self.steps(arm, seed))):
                    step = self.steps(arm, seed)[number]
                    place = f"search/{step.kind}"
                    if self.scale.searched and step.kind not in self._factors and f"{place} 0" not in like:
                        cells, others, factor = ahead(self.grid, place, step.title, self._trial(step))
                        known |= {cell.place: cell for cell in cells}
                        like |= {f"{place} {count}": cell for count, cell in enumerate(others)}
                        if factor is not None:
                            self._factors[step.kind] = factor
                    settled = not self.scale.searched or step.kind in self._factors
                    cell = self._cell(self.steps(arm, seed)[number])
                    (known if settled else like)[cell.place] = cell
        return known, like

    def measure(self, arms: Sequence[Arm], seeds: Iterable[int]) -> list[Measured]:
        """All arms, seed by seed; what is not there is run now. Raises `OutOfTime`."""
        values: list[list[float | None]] = [[] for _ in arms]
        flops = [0.0] * len(arms)
        for seed in seeds:
            # The starts before what begins with them, and one data set after the other: decoding may cost more than tuning.
            for number in (0, 1):
                for arm in sorted(arms, key=lambda arm: arm.data_of(number)):
                    self._run(arm, seed, number)
            for place, arm in enumerate(arms):
                value, flops[place] = self.value(arm, seed)
                values[place].append(value)
        return [Measured(arm, tuple(each), spent) for arm, each, spent in zip(arms, values, flops, strict=True)]

    def spent(self, arms: Sequence[Arm], seeds: Iterable[int]) -> tuple[float, float]:
        """The seconds and FLOPs of training of all runs of these arms that are done, searches included."""
        known, _ = self.ahead(arms, seeds)
        done = [self.grid.outcome(cell).result for cell in known.values() if self.grid.finished(cell)]
        return sum(each["seconds"] for each in done), sum(each["train_flops"] for each in done)

    def value(self, arm: Arm, seed: int) -> tuple[float | None, float]:
        """What an arm came to with a seed, and the FLOPs of its pre-training; run now if it was not before."""
        outcomes = [self._run(arm, seed, number) for number in range(len(arm.stages))]
        first = outcomes[0]
        flops = first.result["train_flops"] if first is not None and not first.diverged and arm.before else 0.0
        last = outcomes[-1]
        if last is None or last.diverged:
            return None, flops
        if arm.few_shot:
            return self._few_shot(last, arm.few_shot), flops
        return (self._inside(last, arm, seed) if arm.inside else last.value), flops

    def _run(self, arm: Arm, seed: int, number: int) -> Outcome | None:
        """What became of a run of an arm; None where it has no such one, or what it begins with diverged."""
        if number >= len(arm.stages):
            return None
        if number and (start := self._run(arm, seed, number - 1)) is not None and start.diverged:
            return None
        step = self.steps(arm, seed)[number]
        if self.scale.searched and step.kind not in self._factors:
            found = search(self.grid, f"search/{step.kind}", f"{step.title}, search", self._trial(step))
            self._factors[step.kind] = found.factor
        [outcome] = self.grid.run([self._cell(step)])
        return outcome

    def _trial(self, step: _Step) -> Recipe:
        return tried(step.trial, self.grid.shelf.open(step.trial.data)[0])

    def _few_shot(self, outcome: Outcome, data: str) -> float:
        """The few-shot accuracy of a run's weights on a data set."""
        shots = self.scale.shots

        def measure() -> float:
            from patchword.evaluation.frozen import measure_features

            dataset, _ = self.grid.shelf.open(data)
            split = "test" if "test" in dataset.splits else "validation"
            figures = measure_features(load_model(outcome.folder), dataset, split, few_shot=(shots,))
            return figures["few_shot"]["shots"][0]["value"]

        return _once(self.grid.folder / FEW_SHOT, f"{outcome.cell.place} {data} {shots}", measure)

    def _inside(self, outcome: Outcome, arm: Arm, seed: int) -> float:
        """A figure of what a run's weights have inside, or the same network untrained."""

        def measure() -> float:
            dataset, _ = self.grid.shelf.open(outcome.cell.recipe.data)
            split = dataset.splits["test" if "test" in dataset.splits else "validation"]
            return inside.figure(
                arm.inside, load_model(outcome.folder), split, new_weights=seed if arm.untrained else None
            )

        key = f"{outcome.cell.place} {arm.inside}{' untrained' if arm.untrained else ''}"
        return _once(self.grid.folder / INSIDE, key, measure)


def _once(path: Path, key: str, measure: Callable[[], float]) -> float:
    """A figure that is in the file under its key, or is measured now and put there; a damaged file is made anew."""
    try:
        known: dict[str, float] = files.read_json(path)
    except DataError:
        known = {}
    if key not in known:
        known[key] = measure()
        files.write_json(path, known)
    return known[key]


def missing(arms: Sequence[Arm]) -> dict[str, str]:
    """Data set → why it cannot be had, of those that the arms need."""
    lacking = {}
    for data in sorted({data for arm in arms for data in arm.sets}):
        try:
            open_data(data)
        except (DataError, UsageError) as error:
            lacking[data] = str(error)
    return lacking


def flops_of(arms: Sequence[Arm], trials: Trials, seeds: int) -> float:
    """Training FLOPs of all distinct runs of the arms, searches aside, by shapes alone: no data set need be there."""
    counted: dict[str, tuple[Arm, Recipe]] = {}
    for seed in range(seeds):
        for arm in arms:
            for step in trials.steps(arm, seed):
                counted[step.cell(1.0).place] = (arm, step.recipe)
    total, known = 0.0, dict[str, float]()
    for arm, recipe in counted.values():
        budget = recipe.budget
        if budget.pflop:
            total += 1e15 * budget.pflop
            continue
        kind = f"{recipe.model} {recipe.image_size}"
        if kind not in known:
            known[kind] = arm.flops_per_image or _train_flops(recipe)
        pictures = recipe.train_images or PICTURES.get(recipe.data, 10_000)
        looks = budget.steps * recipe.batch_size if budget.steps else budget.epochs * pictures
        total += looks * known[kind]
    return total


def _train_flops(recipe: Recipe) -> float:
    options = {name: value for name, value in recipe.model.items() if name != "name"}
    with torch.device("meta"):
        return cost(create_model(recipe.model["name"], 1000, recipe.image_size, **options)).train_flops


def _sign(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_SIGNS]
