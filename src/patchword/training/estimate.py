"""How long a recipe will take on this machine, before it runs: a few throw-away steps and looks on a few of its pictures.

Nothing of a run is written. Steps, looks, decoding and saving are measured and multiplied by how often the run does each.
"""

import dataclasses
import math
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from patchword.core.processes import Processes
from patchword.core.runtime import StopFlag, keep_memory
from patchword.data.dataset import Dataset
from patchword.evaluation.speed import seconds_per_image
from patchword.models.cost import exaflops, tpu_core_days
from patchword.training import checkpoint, loop
from patchword.training.checkpoint import State
from patchword.training.objectives import choose
from patchword.training.pictures import fill_stores
from patchword.training.recipe import Recipe
from patchword.training.run import Run, settle
from patchword.training.shelf import Shelf
from patchword.training.teacher import has_answered, load_teacher

SECONDS = 3.0
"""Of throw-away steps, at most."""
_LOOKED_AT = 256
"""Pictures that looks are measured on, at most."""
_WRITTEN = 2**25
"""Bytes that saving is measured with, at most."""
_PAGE = 2.0
"""Seconds that it takes to write down what came of it and to draw the page, on two cores."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a run will take. With other `steps`, `looks` or numbers of pictures (`dataclasses.replace`) it is another run's."""

    steps: int
    batch_size: int
    seconds_per_step: float
    looks: int
    """At the validation pictures, in training."""
    validation: int
    """How many there are."""
    evaluated: int
    """Pictures that the model is measured on at the end."""
    seconds_per_look: float
    """At one picture."""
    saves: int
    seconds_per_save: float
    decoded: int
    """Pictures that are decoded before the first step, to be held in memory."""
    seconds_per_decoding: float
    opening: float
    """Seconds until data and model are there, as it was now."""
    asking: float
    """Seconds that the teacher takes to answer, where the recipe has one that has not been asked before."""
    flops_per_image: float
    """Of training."""
    memory: int
    """Bytes beside Python and torch, as `machine.memory_needed` counts them, and the decoded pictures."""

    @property
    def training(self) -> float:
        """Seconds from the first step to the last checkpoint: what `result.json` calls `seconds`."""
        looking = self.looks * self.validation * self.seconds_per_look
        return self.steps * self.seconds_per_step + looking + self.saves * self.seconds_per_save

    @property
    def seconds(self) -> float:
        """Of all that the run does, from the opening of its data to its page; Python's own start comes before."""
        loading = self.decoded * self.seconds_per_decoding
        return self.opening + self.asking + loading + self.training + self.evaluated * self.seconds_per_look + _PAGE

    @property
    def train_flops(self) -> float:
        return self.steps * self.batch_size * self.flops_per_image

    @property
    def exaflops(self) -> float:
        return exaflops(self.train_flops)

    @property
    def tpu_core_days(self) -> float:
        """TPUv3 core-days, as in the paper's table 2."""
        return tpu_core_days(self.train_flops)


def estimate(recipe: Recipe, shelf: Shelf | None = None) -> Estimate:
    """What the run of a recipe will take on this machine, in one process; takes a few seconds itself.

    `shelf` is as for `run`. Raises what the run would raise before its first step.
    """
    keep_memory()
    began = time.perf_counter()
    world = Processes()
    _, opened, prepared, note = settle(recipe, None, shelf, world)
    trial = _Trial(Path(), opened, prepared, None, StopFlag(), None, world, note, shelf)
    return trial.estimated(opening=time.perf_counter() - began)


class _Trial(Run):
    """A run that is never made: it tries each thing on a few pictures, and decides as the run would."""

    step_seconds = math.nan

    def seconds_per_step(self, most_seconds: float) -> float:
        return self.step_seconds

    def estimated(self, opening: float) -> Estimate:
        whole = self.dataset
        fits = self.fits_memory()
        held = dataclasses.replace(self.recipe.loading, in_memory="yes" if fits else "no")
        self.recipe = dataclasses.replace(self.recipe, loading=held)
        asking = self.pretend_to_ask()
        self.check_memory()
        timed = bool(self.recipe.budget.minutes and not self.recipe.budget.steps)
        if not timed:
            self.recipe = self.fix_steps()  # which decides the augmentation, too
        self.dataset = few = _few(whole, 2 * self.recipe.batch_size)
        decoding = self.decode() if fits else 0.0
        self.step_seconds = loop.seconds_per_step(
            self.model, self.objective, self.recipe, self.make_loader, SECONDS, self.world, self.sharded
        )
        if timed:
            self.dataset = whole
            self.recipe = self.fix_steps()
            self.dataset = few
        looking = self.look("train")  # nothing is to be seen in the others before its time
        memory = self.memory_needed + sum(
            store.nbytes * len(whole.splits[name]) // len(few.splits[name]) for name, store in self.stores.items()
        )
        fixed, steps, splits = self.recipe, self.recipe.budget.steps, whole.splits
        return Estimate(
            steps=steps,
            batch_size=fixed.batch_size,
            seconds_per_step=self.step_seconds,
            looks=math.ceil(steps / fixed.evaluation.every_steps) if "validation" in splits else 0,
            validation=len(splits.get("validation", ())),
            evaluated=len(splits.get(self.measuring.final, ())),
            seconds_per_look=looking,
            saves=math.ceil(steps / fixed.checkpoint.every_steps),
            seconds_per_save=self.save(),
            decoded=sum(map(len, splits.values())) if fits else 0,
            seconds_per_decoding=decoding,
            opening=opening,
            asking=asking,
            flops_per_image=self.train_flops_per_image,
            memory=memory,
        )

    def pretend_to_ask(self) -> float:
        """Seconds that the teacher would take, none where it has answered before; here it is as unsure as can be."""
        train, classes = self.dataset.splits["train"], self.dataset.classes
        if not self.recipe.teacher.weights:
            return 0.0
        teacher = load_teacher(self.recipe.teacher, classes).to(self.recipe.device)
        unsure = torch.full((len(train), len(classes)), 1 / len(classes))
        self.objective = choose.make_objective(self.recipe, self.model, self.dataset, unsure)
        return 0.0 if has_answered(teacher, train) else len(train) * seconds_per_image(teacher, seconds=1.0)

    def decode(self) -> float:
        """Seconds a picture, on all cores; they are held from here on."""
        began = time.perf_counter()
        self.stores = fill_stores(self.dataset, self.model.in_channels, None)  # a shelf would decode all of them
        return (time.perf_counter() - began) / sum(map(len, self.dataset.splits.values()))

    def look(self, name: str) -> float:
        """Seconds a picture; the second look counts."""
        times = []
        for _ in range(2):
            began = time.perf_counter()
            if self.objective.metric:
                self.measuring.without_labels(self.model, name)
            else:
                self.measuring.predictions(self.model, name)
            times.append(time.perf_counter() - began)
        return times[-1] / len(self.dataset.splits[name])

    def save(self) -> float:
        """Seconds that a checkpoint takes: the weights, their average and two moments of what learns."""
        average = bool(self.recipe.regularization.average_decay)
        total = 4 * (self.cost.params * (1 + average) + 2 * self.learning)
        written = min(total, _WRITTEN)
        tensors = {f"{part}.safetensors": {"part": torch.ones(max(1, written // 16))} for part in range(4)}
        with tempfile.TemporaryDirectory(prefix="patchword-") as folder:
            began = time.perf_counter()
            checkpoint.save(Path(folder), State(), tensors, keep=1)
            seconds = time.perf_counter() - began
        return seconds * total / written


def _few(dataset: Dataset, most: int) -> Dataset:
    """A few pictures of each split, evenly spread."""
    splits = {}
    for name, split in dataset.splits.items():
        count = min(len(split), most if name == "train" else _LOOKED_AT)
        splits[name] = split.subset(np.linspace(0, len(split) - 1, count).astype(np.int64))
    return dataclasses.replace(dataset, splits=splits)
