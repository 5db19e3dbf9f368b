"""`patchword compare`: models × training-set sizes × seeds, with an equal start, equal budgets and an equal search.

The stages, each a list of cells (`grid.py`): the search for each model's learning rate at the middle size; where asked,
pre-training before it, with a search of its own; the grid itself, seed by seed; and runs with smaller budgets at the largest
size, for accuracy against compute. Every seed draws pictures of its own, which lie in one another from size to size and are the
same for all models. Test is looked at once, at the end of each cell of the grid; what is chosen is chosen on validation, or on
a tenth of train.

Letters: M models, S sizes, k seeds.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from patchword.core import config, files
from patchword.core.errors import DivergedError, UsageError
from patchword.core.processes import Processes
from patchword.core.progress import say
from patchword.data.dataset import Dataset
from patchword.models.cost import cost
from patchword.studies import floor
from patchword.studies.grid import QUIET, Cell, Grid, Outcome, held, plain, settle
from patchword.studies.question import Question, architecture, ask, sentence, skeleton
from patchword.studies.search import ROUNDS, Found, ahead, part_of, search, tried, with_rate
from patchword.training import recipe as recipes
from patchword.training.budget import rounded_up
from patchword.training.loop import check_bad
from patchword.training.objectives import UNLABELLED
from patchword.training.pictures import chosen, held_in_memory, tell_notices
from patchword.training.recipe import Budget, Recipe

LADDER = (0.25, 0.5)
"""Shares of the budget that are tried at the largest size beside the whole, for accuracy against compute."""


class Study:
    """The cells of a question, and the order in which they are run."""

    def __init__(self, question: Question, grid: Grid, dataset: Dataset) -> None:
        self.question, self.grid, self.dataset = question, grid, dataset
        self.found: dict[str, Found] = {}
        """Model → the rate of its runs."""
        self.found_before: dict[str, Found] = {}
        """Model → the rate of its pre-training."""
        self.left_out: dict[str, str] = {}
        """Model → why it has no runs: its training diverges, whatever the rate."""
        self.outcomes: dict[str, Outcome] = {}
        """Place of a cell → what became of it."""

    @property
    def models(self) -> list[str]:
        """Those that have runs."""
        return [model for model in self.question.models if model not in self.left_out]

    @property
    def middle(self) -> int:
        """The size at which rates are searched: the upper one of two in the middle."""
        return self.question.sizes[len(self.question.sizes) // 2]

    # Cells

    def recipe(self, model: str, data: str, budget: Budget, **changes: Any) -> Recipe:
        """The recipe of a cell: the study's, for a model, with what makes the cell what it is."""
        question = self.question
        over = {name: value for name, value in question.changes.items() if name != "model"}
        base = {
            "data": data,
            "model": architecture(model, question.first_recipe, question.changes),
            "image_size": question.image_size,
            "budget": {name: value for name, value in dataclasses.asdict(budget).items() if value},
            **QUIET,
        }
        name = changes.pop("recipe", question.recipe)
        return recipes.load(name, config.merge(config.merge(over, base), changes))

    def pretraining(self, model: str) -> Cell:
        """The run that all others of a model begin with."""
        recipe = self.recipe(model, self.question.pretrain, self.question.pretrain_budget, recipe="scratch")
        return Cell(f"pretrain/{plain(model)}", f"{model}, pre-training on {self.question.pretrain}", recipe)

    def start(self, model: str) -> str:
        """The `init` of a model's runs."""
        if not self.question.pretrain:
            return "none"
        return str((self.grid.folder / self.pretraining(model).place).resolve())

    def cell(self, model: str, size: int, seed: int, share: float = 1.0) -> Cell:
        """A cell of the grid; with a share of the budget below 1, one of the ladder."""
        budget = self.question.budget if share == 1 else part_of(self.question.budget, share)
        recipe = self.recipe(
            model,
            self.question.data,
            budget,
            init=self.start(model),
            seed=seed,
            train_images=size,
            # All pictures are all pictures.
            train_images_seed=seed if size else 0,
        )
        if size:
            recipe = dataclasses.replace(recipe, batch_size=min(recipe.batch_size, size))
        title = f"{model}, {f'{size:,}' if size else 'all'} pictures, seed {seed}"
        what = title if share == 1 else f"{title}, {share:g} of the budget"
        return Cell(self.place(model, size, seed, share), what, recipe)

    def place(self, model: str, size: int, seed: int, share: float = 1.0) -> str:
        """The folder of such a cell."""
        name = f"{plain(model)}-{size or 'all'}-{seed}"
        return f"runs/{name}" if share == 1 else f"compute/{name}-{share:g}"

    def tried(self, model: str) -> Recipe:
        """What the search tries, but for its rate: the middle size, and validation."""
        return tried(self.cell(model, self.middle, 0).recipe, self.dataset)

    def tried_before(self, model: str) -> Recipe:
        """The same of pre-training."""
        return tried(self.pretraining(model).recipe, self.grid.shelf.open(self.question.pretrain)[0])

    def rounds(self, factors: dict[str, float]) -> Iterator[list[Cell]]:
        """The cells of the grid and of the ladder, seed by seed, so that whoever stops early has whole rounds.

        `factors` are those of the models' rates; a model without one is left out.
        """
        question = self.question
        models = [model for model in question.models if model in factors]

        def rated(model: str, *which: Any) -> Cell:
            cell = self.cell(model, *which)
            return dataclasses.replace(cell, recipe=with_rate(cell.recipe, factors[model]))

        for seed in range(question.seeds):
            grid = [rated(model, size, seed) for size in question.sizes for model in models]
            ladder = [rated(model, question.sizes[-1], seed, share) for share in LADDER for model in models]
            yield [*grid, *ladder]

    def ahead(self) -> tuple[list[Cell], list[Cell]]:
        """What will be run, as far as it is known by now, and cells that cost as much as the others."""
        known: list[Cell] = []
        like: list[Cell] = []
        factors: dict[str, float] = {}
        lost: set[str] = set()
        for model in self.models if self.question.pretrain else ():
            found = ahead(self.grid, f"search-pretrain/{plain(model)}", model, self.tried_before(model))
            known, like, pretraining = known + found.known, like + found.like, self.pretraining(model)
            if found.lost:
                lost.add(model)
            elif found.factor is None:
                like.append(pretraining)
            else:
                known.append(dataclasses.replace(pretraining, recipe=with_rate(pretraining.recipe, found.factor)))
        for model in (model for model in self.models if model not in lost):
            found = ahead(self.grid, f"search/{plain(model)}", model, self.tried(model))
            known, like = known + found.known, like + found.like
            if found.lost:
                lost.add(model)
            elif found.factor is not None:
                factors[model] = found.factor
        unknown = {model: 1.0 for model in self.models if model not in {*factors, *lost}}
        known += [cell for cells in self.rounds(factors) for cell in cells]
        return known, [*like, *(cell for cells in self.rounds(unknown) for cell in cells)]

    def check_budgets(self) -> None:
        """Raise `UsageError` where a part of a budget is less than a step: what the search for a rate has, or the ladder."""
        question, classes, part = self.question, len(self.dataset.classes), min(*ROUNDS, *LADDER)
        for model in question.models:
            bones = skeleton(model, question.first_recipe, question.changes, question.image_size, classes)
            runs = {"--pflop": self.cell(model, question.sizes[-1], 0).recipe}
            if question.pretrain:
                runs["--pretrain-pflop"] = self.pretraining(model).recipe
            for option, recipe in runs.items():
                least = cost(bones).train_flops * recipe.batch_size / part / 1e15
                if 0 < recipe.budget.pflop < least:
                    raise UsageError(
                        f"{option} {recipe.budget.pflop:g} is too little for {model}: {part:g} of it, which some runs have, "
                        f"is less than a step; {rounded_up(least):.2g} or more, or a smaller batch_size would be right"
                    )

    def check_recipe(self) -> None:
        """Raise `UsageError` where the recipe measures something else than accuracy on test."""
        recipe = self.cell(self.question.models[0], self.question.sizes[-1], 0).recipe
        if recipe.objective in UNLABELLED:
            raise UsageError(f"objective={recipe.objective} has no accuracy to compare; softmax would be right")
        if recipe.evaluation.final != "test":
            raise UsageError(
                f"evaluation.final={recipe.evaluation.final} measures on the pictures that choose the rates; test would be right"
            )

    def check_pictures(self) -> None:
        """Raise `UsageError` where a size leaves a class without a picture, in a run or in the search at the middle size."""
        question, model = self.question, self.question.models[0]
        runs = [
            (size, self.cell(model, size, seed).recipe) for size in question.sizes for seed in range(question.seeds)
        ]
        for size, recipe in [*runs, (self.middle, self.tried(model))]:
            try:
                chosen(self.dataset, recipe)
            except UsageError as error:
                raise UsageError(f"--sizes {size or 'all'}: {error}") from error

    def check_readable(self) -> None:
        """Raise `DataError` where too many training pictures cannot be read: now, and not in the first run.

        They are decoded for it, as the runs need them; what memory does not hold is left to the runs.
        """
        question, dataset = self.question, self.dataset
        recipe = self.cell(question.models[0], question.sizes[-1], 0).recipe
        bones = skeleton(
            question.models[0], question.first_recipe, question.changes, question.image_size, len(dataset.classes)
        )
        if held_in_memory(recipe, dataset, bones.in_channels, Processes(), self.grid.shelf):
            train = dataset.splits["train"]
            check_bad(self.grid.shelf.fill("train", train, bones.in_channels).bad, train)

    # Stages

    def begin(self) -> None:
        """Say how many runs there are, and how long those that are left will take."""
        self.grid.begin(*self.ahead(), floor.ahead(self))

    def run(self, publish: Callable[["Study"], object]) -> None:
        """Run what is not there; `publish` is called whenever a seed is complete.

        A model whose training diverges at every rate is left out, and said to be; raises `DivergedError` where all are.
        """
        for model in self.models if self.question.pretrain else ():
            with self._or_left_out(model):
                self._pretrain(model)
        for model in self.models:
            with self._or_left_out(model):
                self.found[model] = search(self.grid, f"search/{plain(model)}", f"{model}, search", self.tried(model))
        for cells in self.rounds({model: found.factor for model, found in self.found.items()}):
            for outcome in self.grid.run(cells):
                self.outcomes[outcome.cell.place] = outcome
            publish(self)

    def _pretrain(self, model: str) -> None:
        where, title = f"search-pretrain/{plain(model)}", f"{model}, search before pre-training"
        self.found_before[model] = found = search(self.grid, where, title, self.tried_before(model))
        cell = self.pretraining(model)
        [outcome] = self.grid.run([dataclasses.replace(cell, recipe=with_rate(cell.recipe, found.factor))])
        if outcome.diverged:
            raise DivergedError(f"{model} cannot be pre-trained: {outcome.diverged}")
        self.outcomes[cell.place] = outcome

    @contextlib.contextmanager
    def _or_left_out(self, model: str) -> Iterator[None]:
        try:
            yield
        except DivergedError as error:
            self.left_out[model] = str(error)
            if not self.models:
                raise DivergedError(self.left_out[self.question.models[0]]) from error
            say(f"note: {error}; the study goes on without it")
            self.begin()


def compare(
    data: str,
    models: tuple[str, ...],
    sizes: tuple[str | int, ...],
    out: Path,
    *,
    seeds: int = 3,
    publish_run: Callable[[Path], object] | None = None,
    publish: Callable[[Study], object] = lambda _: None,
    **asked: Any,
) -> Study:
    """Run the study in `out`, or what is missing of it; the other arguments are those of `ask`.

    `publish_run` writes the page of a run folder; `publish` that of the study.
    """
    grid = Grid(out, publish_run)
    place = str(files.at_home(data).resolve()) if files.at_home(data).exists() else data
    dataset, fingerprint = grid.shelf.open(place)
    with held(out) as stored:
        question = ask(data, models, sizes, seeds=seeds, dataset=dataset, stored=stored, **asked)
        settings = question.settings(fingerprint)
        if stored and stored["data_fingerprint"] != fingerprint:
            raise UsageError(
                f"{out} holds a study of other data ({stored['data']}), or {data} has changed since; choose another --out"
            )
        if question.pretrain:
            _, settings["pretrain_fingerprint"] = grid.shelf.open(question.pretrain)
            if settings["pretrain_fingerprint"] != stored.get("pretrain_fingerprint", settings["pretrain_fingerprint"]):
                raise UsageError(
                    f"models of {out} were pre-trained on {stored['pretrain']}; {question.pretrain} is another data set, or has "
                    "changed since; choose another --out"
                )
        study = Study(question, grid, dataset)
        study.check_recipe()
        study.check_budgets()
        study.check_pictures()
        if not stored:
            study.check_readable()
        # What has the same fingerprint is the same, wherever it lies.
        moved = ("pretrain",) if question.pretrain and stored.get("pretrain_fingerprint") else ()
        settle(out, stored, settings, free=("data", "models", "seeds", "pretrain_fingerprint", *moved))
        tell_notices(dataset)
        say(sentence(question))
        study.begin()
        study.run(publish)
    return study
