"""What an experiment of the paper is made of.

An *arm* is a bar or a point of a figure: a model that is pre-trained (`before`), then tuned (`after`), or measured as it stands.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from patchword.training.recipe import Budget

ScaleName = Literal["smoke", "laptop", "full"]


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
    after_size: int = 0
    """Of tuning; 0: as before."""
    before: Budget
    """Of pre-training; empty: the recipe's own."""
    after: Budget
    """Of tuning; empty: the recipe's own."""
    before_recipe: str = "scratch"
    after_recipe: str = "finetune"
    after_recipes: dict[str, str] = dataclasses.field(default_factory=dict)
    """Of tuning on some data sets, in its place."""
    alone_recipe: str = "scratch"
    """By which a model that begins with nothing learns the pictures before it is tuned on them."""
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
    inside: str = ""
    """The figure of `inside.FIGURES` that is measured of the weights, in the place of accuracy."""
    untrained: bool = False
    """Whether it is measured of the same network with new weights: the control."""
    published: str = ""
    """The label of what the paper has for it, where that is another than its own."""
    one_start: bool = False
    """Whether all seeds of `after` begin with the same weights, as the fine-tunings of Table 2 do."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Its runs, in order."""
        return tuple(stage for stage in (self.before, self.after) if stage is not None)

    @property
    def sets(self) -> set[str]:
        """The data sets that it needs."""
        return {stage.data for stage in self.stages} | ({self.few_shot} if self.few_shot else set())

    def data_of(self, number: int) -> str:
        """The data set of a run; empty where it has no such one."""
        return self.stages[number].data if number < len(self.stages) else ""


@dataclasses.dataclass(frozen=True)
class Measured:
    """What an arm came to."""

    arm: Arm
    values: tuple[float | None, ...]
    """Of each seed; None: diverged, or not run."""
    flops: float = 0.0
    """Of pre-training, of one seed."""

    @property
    def known(self) -> list[float]:
        """The values that there are."""
        return [value for value in self.values if value is not None]


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
    places: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Task → where its data is, of those that were told."""
    axis: str = ""
    """What stands under a figure of lines."""
    over_compute: bool = False
    """Whether arms stand at the PFLOP of their pre-training, and not at their `x`."""
    figure: Literal["bars", "lines"] = "bars"
    percent: bool = True
    """Whether values are shares; else they are numbers in −1…1."""


def grouped(measured: Sequence[Measured]) -> dict[str, list[Measured]]:
    """By series, in their order."""
    groups: dict[str, list[Measured]] = {}
    for each in measured:
        groups.setdefault(each.arm.series, []).append(each)
    return groups
