"""The paper's experiments as data: arms of a model, what it begins with and what it learns then; and what runs them.

An *arm* is a bar or a point of a figure: a model that is pre-trained (`before`), then tuned (`after`), or measured as it stands.
Runs that several arms or experiments ask for are made once: their folder is named by what they are.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from patchword.core import config, files
from patchword.core.errors import DataError
from patchword.studies.grid import Cell, Grid, Outcome
from patchword.studies.search import ahead, part_of, search, with_rate
from patchword.training import recipe as recipes
from patchword.training.recipe import Budget, Recipe
from patchword.weights.io import load_model

ScaleName = Literal["smoke", "laptop", "full"]
FEW_SHOT = "few-shot.json"
DEVELOPMENT = 0.1
"""The share of train that rates are searched by, where a data set has no validation."""
_NO_LOOKS = 10**9
_SIGNS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is spent on an experiment, on which models and data."""

    name: ScaleName
    seeds: int
    models: dict[str, str]
    """Role (`plain`, `large`, `hybrid`, `resnet`, `resnet-large`) → name."""
    sets: dict[str, str]
    """Role (`pretrain`, `tune`) → data set."""
    others: tuple[str, ...] = ()
    """Data sets to tune on beside the first."""
    image_size: int
    before: Budget
    """Of pre-training; empty: the recipe's own."""
    after: Budget
    """Of tuning; empty: the recipe's own."""
    before_recipe: str = "scratch"
    after_recipe: str = "finetune"
    subsets: tuple[int, ...] = ()
    """Ascending numbers of pictures to pre-train on; 0 for all."""
    few: int = 0
    """Pictures to tune on; 0: all."""
    shots: int = 5
    searched: bool = True
    """Whether each kind of run has its learning rate searched."""
    steps: int = 0
    """Of pre-training and of tuning where arms are to look at as many pictures, whatever they cost; 0: the recipe's own."""
    verdicts: bool = True
    """Whether it is enough to judge by."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """A run of an arm."""

    data: str
    share: float = 1.0
    """Of the scale's budget for it."""
    steps: int = 0
    """In the place of the budget."""
    image_size: int = 0
    """0: the scale's."""
    images: int = 0
    """Pictures to train on; 0: all."""
    recipe: str = ""
    """Empty: the scale's."""
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Of the recipe, nested tables."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """A model and what happens to it."""

    label: str
    """As a reader of the figure calls it."""
    series: str
    """What it belongs to: a line of the figure, or a group of bars."""
    x: float | None = None
    """Where it stands on the line."""
    model: str
    weights: str = ""
    """What it begins with where that is neither nothing nor its own pre-training: weights as `load_model` takes them."""
    origin: str = ""
    """A hash of these weights: others at the same place are another start."""
    flops_per_image: float = 0.0
    """Of training, where `weights` and not the name say what the model is."""
    before: Stage | None = None
    after: Stage | None = None
    few_shot: str = ""
    """The data set on which the features after `before` are measured, in the place of `after`."""
    one_start: bool = False
    """Whether all seeds of `after` begin with the same weights, as the fine-tunings of Table 2 do."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """What an arm came to."""

    arm: Arm
    values: tuple[float | None, ...]
    """Of each seed, 0…1; None: diverged, or not run."""
    flops: float = 0.0
    """Of pre-training, of one seed."""

    @property
    def known(self) -> list[float]:
        """The values that there are."""
        return [value for value in self.values if value is not None]


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
        name = f"{self.model.replace('/', '-')}-{'tuning' if self.origin else 'training'}-{sign}"
        return Cell(f"cells/{name}", f"{self.title}, seed {recipe.seed}", recipe)


@dataclasses.dataclass(frozen=True)
class Published:
    """A figure of the paper, or of what it is compared with."""

    label: str
    series: str
    value: float
    """In percent."""
    x: float | None = None
    spread: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A table or figure of the paper."""

    name: str
    title: str
    question: str
    source: str
    """Where it stands in the paper."""
    arms: Callable[[Scale], list[Arm]]
    measures: Callable[[Scale], str]
    """What a value is, in words."""
    published: tuple[Published, ...]
    published_is: str
    """What the published values are, in words."""
    fold: Callable[[list[Measured]], list[Measured]] = lambda measured: measured
    """What is shown of what was measured."""
    weights: str = ""
    """Whose they are that it is about, where it trains no models of its own."""
    axis: str = ""
    """What stands under a figure of lines."""
    over_compute: bool = False
    """Whether arms stand at the PFLOP of their pre-training, and not at their `x`."""
    figure: Literal["bars", "lines"] = "bars"


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
        side = stage.image_size or scale.image_size
        over: dict[str, Any] = {
            "data": stage.data,
            "model": self._architecture(arm),
            "image_size": [side, side],
            "seed": seed,
            "train_images": stage.images,
            "train_images_seed": seed if stage.images else 0,
            "evaluation": {"every_steps": _NO_LOOKS},
            "checkpoint": {"keep": 1},
        }
        if stage.steps or given:
            over["budget"] = {"steps": stage.steps} if stage.steps else given
        name = stage.recipe or (scale.after_recipe if tuning else scale.before_recipe)
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

    def _trial(self, step: _Step) -> Recipe:
        """What is tried for the rate: with validation, or with a tenth of train in its place."""
        splits = self.grid.shelf.open(step.trial.data)[0].splits
        if {"validation", "test"} <= set(splits):
            return dataclasses.replace(step.trial, learn_validation=False)
        left = len(splits["train"]) - round(DEVELOPMENT * len(splits["train"]))
        few = step.trial.train_images if step.trial.train_images < left else 0
        return dataclasses.replace(step.trial, validation_share=DEVELOPMENT, train_images=few)

    # How it is run

    def begin(self, arms: Sequence[Arm], seeds: Iterable[int]) -> None:
        """Say how many runs there are, and how long those will take that are not there."""
        known: dict[str, Cell] = {}
        like: dict[str, Cell] = {}
        for seed in seeds:
            for arm in arms:
                for number in range(len(self.steps(arm, seed))):
                    step = self.steps(arm, seed)[number]
                    place = f"search/{step.kind}"
                    if self.scale.searched and step.kind not in self._factors and place not in like:
                        cells, others, factor = ahead(self.grid, place, step.title, self._trial(step))
                        known |= {cell.place: cell for cell in cells}
                        like |= {f"{place} {count}": cell for count, cell in enumerate(others)}
                        if factor is not None:
                            self._factors[step.kind] = factor
                    settled = not self.scale.searched or step.kind in self._factors
                    cell = self._cell(self.steps(arm, seed)[number])
                    (known if settled else like)[cell.place] = cell
        self.grid.begin(list(known.values()), list(like.values()))

    def value(self, arm: Arm, seed: int) -> tuple[float | None, float]:
        """What an arm came to with a seed, 0…1, and the FLOPs of its pre-training; run now if it was not before."""
        outcome, flops = None, 0.0
        for number in range(len(self.steps(arm, seed))):
            step = self.steps(arm, seed)[number]
            if self.scale.searched and step.kind not in self._factors:
                found = search(self.grid, f"search/{step.kind}", f"{step.title}, search", self._trial(step))
                self._factors[step.kind] = found.factor
            [outcome] = self.grid.run([self._cell(step)])
            if outcome.diverged:
                return None, flops
            flops = flops if step.origin else outcome.result["train_flops"]
        assert outcome is not None
        return (self._few_shot(outcome, arm.few_shot) if arm.few_shot else outcome.value), flops

    def _few_shot(self, outcome: Outcome, data: str) -> float:
        """The few-shot accuracy of a run's weights on a data set; measured once."""
        from patchword.evaluation.frozen import measure_features

        path, shots = self.grid.folder / FEW_SHOT, self.scale.shots
        try:
            known: dict[str, float] = files.read_json(path)
        except DataError:
            known = {}
        key = f"{outcome.cell.place} {data} {shots}"
        if key not in known:
            dataset, _ = self.grid.shelf.open(data)
            split = "test" if "test" in dataset.splits else "validation"
            figures = measure_features(load_model(outcome.folder), dataset, split, few_shot=(shots,))
            known[key] = figures["few_shot"]["shots"][0]["value"]
            files.write_json(path, known)
        return known[key]

    def measure(self, arms: Sequence[Arm], seeds: Iterable[int]) -> list[Measured]:
        """All arms, seed by seed."""
        values: list[list[float | None]] = [[] for _ in arms]
        flops = [0.0] * len(arms)
        for seed in seeds:
            for place, arm in enumerate(arms):
                value, flops[place] = self.value(arm, seed)
                values[place].append(value)
        return [Measured(arm, tuple(each), spent) for arm, each, spent in zip(arms, values, flops, strict=True)]


def _sign(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_SIGNS]


def grouped(measured: Sequence[Measured]) -> dict[str, list[Measured]]:
    """By series, in their order."""
    groups: dict[str, list[Measured]] = {}
    for each in measured:
        groups.setdefault(each.arm.series, []).append(each)
    return groups
