"""Runs the arms of the paper's experiments in a grid, and says before what they cost.

Runs that several arms or experiments ask for are made once: their folder is named by what they are.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from patchword.core import config, files
from patchword.core.errors import DataError, DivergedError, UsageError
from patchword.core.progress import say
from patchword.data.sources import open_data
from patchword.evaluation.fewshot import SEEDS
from patchword.models.cost import cost
from patchword.models.names import create_model
from patchword.studies import inside
from patchword.studies.experiment import Arm, Measured, Scale, Stage
from patchword.studies.grid import QUIET, Cell, Extra, Grid, Outcome, figures_in, plain
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
    """The place of the cell whose weights it begins with, or a hash of weights that were given; empty: it begins with nothing."""
    tried_from: "_Step | None" = None
    """The start of the search, where it begins with a run's weights: with the whole budget, all pictures and seed 0."""

    @property
    def kind(self) -> str:
        """What shares a search: all that differ in seed, budget and number of pictures alone, their start's as well as theirs."""
        start = self.origin if self.tried_from is None else self.tried_from.kind
        return _sign(f"{dataclasses.replace(self.trial, init='none').identity()} {start}")

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
        self._seen: dict[str, int] = {}
        """Data set → how many of its pictures few shots are drawn from or measured on."""

    # What is run

    def steps(self, arm: Arm, seed: int) -> list[_Step]:
        """The runs of an arm in order. What the second begins with lies where the first does by the rates that are known."""
        steps: list[_Step] = []
        if arm.before is not None:
            steps.append(self._training(arm, arm.before, 0 if arm.one_start else seed))
        if arm.after is not None:
            steps.append(self._tuning(arm, arm.after, seed, steps[0] if steps else None))
        return steps

    def _training(self, arm: Arm, stage: Stage, seed: int) -> _Step:
        recipe, trial = (
            self._recipe(arm, each, number, tuning=False) for each, number in ((stage, seed), (self._usual(stage), 0))
        )
        return _Step(f"{arm.label}, training on {stage.data}", arm.model, recipe, trial)

    def _tuning(self, arm: Arm, stage: Stage, seed: int, start: _Step | None) -> _Step:
        """What begins with a run's weights, with those that were given, or with nothing."""
        recipe = self._recipe(arm, stage, seed, tuning=True)
        trial = self._recipe(arm, self._usual(stage, tuning=True), 0, tuning=True)
        word = "training" if start is None and not arm.weights else "tuning"
        title = f"{arm.label}, {word} on {stage.data}"
        if start is None or arm.before is None:
            init = arm.weights or "none"
            recipe, trial = (dataclasses.replace(each, init=init) for each in (recipe, trial))
            return _Step(title, arm.model, recipe, trial, arm.origin)
        # Whichever experiment comes first, the rate is that of one and the same start.
        tried_from = self._training(arm, self._usual(arm.before), 0)
        recipe, trial = (
            dataclasses.replace(each, init=str((self.grid.folder / self._cell(begun).place).resolve()))
            for each, begun in ((recipe, start), (trial, tried_from))
        )
        return _Step(title, arm.model, recipe, trial, self._cell(start).place, tried_from)

    def _usual(self, stage: Stage, tuning: bool = False) -> Stage:
        """A stage with the whole budget and the pictures that a search for its rate has: all, but few of what is tuned on."""
        few = tuning or stage.data == self.scale.sets["tune"]
        return dataclasses.replace(stage, share=1.0, steps=0, images=self.scale.few if few else 0)

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
        asked: set[str] = set()

        def need(step: _Step) -> None:
            if self.scale.searched and step.kind not in asked:
                asked.add(step.kind)
                if step.tried_from is not None:
                    need(step.tried_from)
                if self._diverged(step.tried_from):
                    self._factors[step.kind] = 1.0
                else:
                    place = f"search/{step.kind}"
                    found = ahead(self.grid, place, step.title, self._trial(step))
                    known.update({cell.place: cell for cell in found.known})
                    like.update({f"{place} {count}": cell for count, cell in enumerate(found.like)})
                    if found.factor is not None or found.lost:
                        self._factors[step.kind] = found.factor or 1.0
            settled = not self.scale.searched or step.kind in self._factors
            cell = self._cell(step)
            (known if settled else like)[cell.place] = cell

        for seed in seeds:
            for arm in arms:
                for number in range(len(arm.stages)):
                    # By then the rate of the first is known, and with it where the second begins.
                    steps = self.steps(arm, seed)
                    if number and self._diverged(steps[0]):
                        break
                    need(steps[number])
        return known, like

    def extras(self, arms: Sequence[Arm], seeds: Iterable[int]) -> dict[str, Extra]:
        """What will be measured beside the runs, by names of their own."""
        found: dict[str, Extra] = {}
        for seed in seeds:
            for arm in arms:
                if not arm.few_shot and not arm.inside:
                    continue
                steps = self.steps(arm, seed)
                cell = self._cell(steps[-1])
                path, key = self._figure(arm, cell)
                if key not in figures_in(path) and not any(map(self._diverged, steps)):
                    found[key] = self._extra(arm, cell)
        return found

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
                value, spent = self.value(arm, seed)
                values[place].append(value)
                flops[place] = max(flops[place], spent)  # a seed that diverged says nothing of them
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
        if not arm.few_shot and not arm.inside:
            return last.value, flops
        path, key = self._figure(arm, last.cell)
        known = figures_in(path)
        if key not in known:
            with self.grid.measuring(self._extra(arm, last.cell)):
                known[key] = self._few_shot(last, arm.few_shot) if arm.few_shot else self._inside(last, arm, seed)
            files.write_json(path, known)
        return known[key], flops

    def _run(self, arm: Arm, seed: int, number: int) -> Outcome | None:
        """What became of a run of an arm; None where it has no such one, or what it begins with diverged."""
        if number >= len(arm.stages):
            return None
        if number and (start := self._run(arm, seed, number - 1)) is not None and start.diverged:
            return None
        step = self.steps(arm, seed)[number]
        if self.scale.searched and step.kind not in self._factors:
            self._factors[step.kind] = self._search(step)
        [outcome] = self.grid.run([self._cell(step)])
        return outcome

    def _search(self, step: _Step) -> float:
        """The factor on the rate of a kind of runs; that of the preset where the start of the search diverged, or all of it."""
        if step.tried_from is not None:
            self.grid.run([self._cell(step.tried_from)])
        if self._diverged(step.tried_from):
            return 1.0
        try:
            return search(self.grid, f"search/{step.kind}", f"{step.title}, search", self._trial(step)).factor
        except DivergedError as error:  # the runs will say so, too, and the other arms have something to say
            say(f"note: {error}")
            return 1.0

    def _diverged(self, step: _Step | None) -> bool:
        """Whether a run is known to leave no weights."""
        cell = None if step is None else self._cell(step)
        return cell is not None and self.grid.finished(cell) and bool(self.grid.outcome(cell).diverged)

    def _trial(self, step: _Step) -> Recipe:
        return tried(step.trial, self.grid.shelf.open(step.trial.data)[0])

    # What is measured beside the runs

    def _figure(self, arm: Arm, cell: Cell) -> tuple[Path, str]:
        """Where a figure of a cell's weights is kept, and under which key."""
        if arm.few_shot:
            return self.grid.folder / FEW_SHOT, f"{cell.place} {arm.few_shot} {self.scale.shots}"
        return (
            self.grid.folder / INSIDE,
            f"{cell.place} {arm.inside}{f', {inside.DRAWS} untrained' if arm.untrained else ''}",
        )

    def _extra(self, arm: Arm, cell: Cell) -> Extra:
        if not arm.few_shot:
            return Extra(cell, inside.PICTURES)
        if arm.few_shot not in self._seen:
            dataset = open_data(arm.few_shot)
            drawn = self.scale.shots * len(dataset.classes) * SEEDS
            self._seen[arm.few_shot] = len(dataset.splits[dataset.tested_on]) + drawn
        return Extra(cell, self._seen[arm.few_shot])

    def _few_shot(self, outcome: Outcome, data: str) -> float:
        """The few-shot accuracy of a run's weights on a data set."""
        from patchword.evaluation.frozen import measure_features

        dataset, _ = self.grid.shelf.open(data)
        shots = (self.scale.shots,)
        figures = measure_features(load_model(outcome.folder), dataset, dataset.tested_on, few_shot=shots)
        return figures["few_shot"]["shots"][0]["value"]

    def _inside(self, outcome: Outcome, arm: Arm, seed: int) -> float:
        """A figure of what a run's weights have inside, or the same network untrained."""
        dataset, _ = self.grid.shelf.open(outcome.cell.recipe.data)
        split = dataset.splits[dataset.tested_on]
        return inside.figure(arm.inside, load_model(outcome.folder), split, new_weights=seed if arm.untrained else None)


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
