"""A recipe → a run folder (`run_folder.py` says what it holds): everything but its page."""

import contextlib
import dataclasses
import datetime
import functools
import json
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from patchword.core import files
from patchword.core.errors import DataError, DivergedError, FaultError, PatchwordError, StoppedError, UsageError
from patchword.core.processes import Processes, joined
from patchword.core.progress import duration, say, size
from patchword.core.runtime import (
    StopFlag,
    describe_device,
    keep_memory,
    peak_memory,
    versions,
)
from patchword.data.augment import Augment
from patchword.data.dataset import Dataset
from patchword.data.loader import TrainLoader
from patchword.data.store import Store
from patchword.evaluation.answers import answers_of, write_answers
from patchword.evaluation.metrics import measure
from patchword.evaluation.mistakes import confident_mistakes, sure_hits
from patchword.evaluation.predict import predict
from patchword.explanation.gallery import add_maps
from patchword.models.contract import Model
from patchword.models.cost import Cost, cost
from patchword.training import loop, machine, run_folder, start, unlabelled
from patchword.training.checkpoint import State
from patchword.training.objectives import UNLABELLED, Objective, choose
from patchword.training.pictures import (
    Opened,
    fetch,
    fill_stores,
    held_in_memory,
    open_training_data,
    with_unlabelled,
)
from patchword.training.recipe import Budget, Recipe, loads
from patchword.training.run_folder import ANSWERS, EVALUATION, FINISHED, MODEL, PAGE, RECIPE, RESULT, RUNNING
from patchword.training.shelf import Shelf
from patchword.training.teacher import answers, confident
from patchword.training.tune import merge
from patchword.weights import folder as model_folder

_TIMES_LOOKED = 10
_LOOKING = 0.2
_NOTICES = 5


def run(
    recipe: Recipe,
    out: Path | None = None,
    *,
    restart: bool = False,
    publish: Callable[[Path], object] | None = None,
    with_weights: Recipe | None = None,
    shelf: Shelf | None = None,
) -> Path:
    """Train as `recipe` says and leave everything in a run folder, whose path is returned.

    A folder that holds the same run, unfinished, is resumed; finished, it is left as it is; another recipe in it is a
    `UsageError`. `restart` moves what is there aside. On a fault or a signal, `result.json` says so before the error is
    raised. `publish` is called with the folder whenever it has a new result: it writes the page. `with_weights` is what is
    asked for in the place of `recipe` where `init=auto` finds weights. `shelf` is what the runs of a study share, which
    has told then what there is to tell before a run.
    """
    keep_memory()
    flag = StopFlag()
    with joined(recipe.compute.timeout, on_orphaned=flag.raise_it) as world:
        return _run(recipe, out, restart, publish, flag, world, with_weights, shelf)


def _run(
    recipe: Recipe,
    out: Path | None,
    restart: bool,
    publish: Callable[[Path], object] | None,
    flag: StopFlag,
    world: Processes,
    with_weights: Recipe | None,
    shelf: Shelf | None,
) -> Path:
    if out is not None:
        world.decide(functools.partial(run_folder.check, out))  # before the data is looked through
    recipe, opened, prepared, note = settle(recipe, with_weights, shelf, world, out, restart=restart)
    dataset = opened.dataset
    out = out or run_folder.default_out(recipe, dataset, prepared.model.name)
    if shelf is None:
        tell_notices(dataset)
    with contextlib.ExitStack() as held:
        stored = world.decide(lambda: run_folder.take(out, recipe, restart, held))
        if stored == FINISHED:
            say(f"{out} holds this run, finished; --restart trains again")
            if publish is not None and world.first and not (out / PAGE).exists():  # killed just before
                publish(out)
            return out
        with flag.listening():
            of_before = None if stored is None else loads(stored, str(out / RECIPE)).going_on(recipe)
            Run(out, opened, prepared, of_before, flag, publish, world, note, shelf).go(resuming=stored is not None)
    return out


def settle(
    recipe: Recipe,
    with_weights: Recipe | None,
    shelf: Shelf | None,
    world: Processes,
    out: Path | None = None,
    *,
    restart: bool = False,
) -> tuple[Recipe, Opened, start.Prepared, str]:
    """A request as far as it concerns data and start, its data set, its model, and a note on the start.

    What a run in its folder, `out` or the usual one, began with stands, unless it is begun again.
    """
    there = files.at_home(recipe.data)
    if world.count > 1 and not there.exists():
        world.decide(lambda: fetch(recipe))  # one downloads, the others find it
    opened = open_training_data(recipe, shelf)
    dataset = opened.dataset

    def published(model: str) -> str | None:
        folder = out or run_folder.default_out(recipe, dataset, model)
        return world.decide(lambda: start.published_weights(model, None if restart else folder / RECIPE))

    recipe, note = start.decide_start(recipe, with_weights, dataset, published)
    if there.exists():  # a named set keeps its name, a path works from anywhere
        recipe = dataclasses.replace(recipe, data=str(there.resolve()))
    if recipe.batch_size > (there_are := len(dataset.splits["train"])):
        say(
            f"note: a batch of {recipe.batch_size:,} would hold pictures twice; it is {there_are:,}, as many as there are"
        )
        recipe = dataclasses.replace(recipe, batch_size=there_are)
    if recipe.batch_size < 2 * world.count:
        raise UsageError(
            f"batch_size={recipe.batch_size} is too small "
            f"{'to learn from' if world.count == 1 else f'to be shared by {world.count} processes'}; "
            f"{2 * world.count} or more would be right"
        )
    prepared = start.prepare_model(recipe, dataset)
    return recipe, dataclasses.replace(opened, dataset=with_unlabelled(dataset, recipe)), prepared, note


def steps_for(budget: Budget, pictures: int, batch_size: int, flops_per_image: float) -> int | None:
    """How many steps a budget comes to, rounded down, where it is in FLOPs, else up; None where it is a time."""
    if budget.steps:
        return budget.steps
    if budget.epochs:
        return math.ceil(budget.epochs * pictures / batch_size)
    return int(budget.pflop * 1e15 / (flops_per_image * batch_size)) if budget.pflop else None


def rounded_up(value: float) -> float:
    """To two digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(value / unit) * unit


def tell_notices(dataset: Dataset) -> None:
    """A line for each of the first few things that the owner of the data should know."""
    for notice in dataset.notices[:_NOTICES]:
        say(f"note: {notice.sentence}")
    if len(dataset.notices) > _NOTICES:
        say(f"note: and {len(dataset.notices) - _NOTICES} more; 'patchword data check' lists them")


class Run:
    """One run on its way; the methods are its stages, in order."""

    def __init__(
        self,
        out: Path,
        opened: Opened,
        prepared: start.Prepared,
        stored: Recipe | None,
        flag: StopFlag,
        publish: Callable[[Path], object] | None,
        world: Processes,
        note: str,
        shelf: Shelf | None,
    ) -> None:
        self.note, self.shelf = note, shelf
        self.out, self.opened, self.prepared, self.flag, self.publish = out, opened, prepared, flag, publish
        self.world = world
        self.dataset = dataset = opened.dataset
        model = prepared.model
        self.objective: Objective = choose.make_objective(prepared.recipe, model, dataset, None)
        model.recompute = prepared.recipe.compute.recompute
        self.cost: Cost = cost(model, self.objective.on_meta() if self.objective.metric else None)
        self.recipe = machine.decide_machine(stored or prepared.recipe, model, self.cost, dataset, world)
        self.sharded = machine.shards(self.recipe, self.cost, world)
        self.model = model if self.sharded else model.to(self.recipe.device)
        self.objective.to(self.recipe.device)
        self.stores: dict[str, Store] = {}
        self.state = State()

    def go(self, *, resuming: bool) -> None:
        try:
            with self.world.naming_the_missing():
                self.ask_teacher()
                self.load_pictures()
                self.check_memory()
                if not resuming:
                    self.recipe = self.fix_steps()
                    if self.shelf is None:
                        self.announce()
                self.world.decide(self.open_books)
                self.train()
                self.evaluate()
        except PatchwordError as error:
            status = "stopped" if isinstance(error, StoppedError) else "failed"
            if self.world.first:
                self.write_result(status, reason=str(error), diverged=isinstance(error, DivergedError))
            raise

    def ask_teacher(self) -> None:
        """What the recipe's teacher says of the training pictures; those that it is unsure of are left out."""
        teacher, dataset = self.recipe.teacher, self.dataset
        if not teacher.weights:
            return
        train = dataset.splits["train"]
        said = answers(
            teacher,
            train,
            dataset.classes,
            device=self.recipe.device,
            workers=self.recipe.loading.workers,
            stop=lambda: bool(self.flag),
            world=self.world,
        )
        sure = confident(train, said, teacher.confidence)
        if len(sure) < len(train):
            labelled = int((train.labels >= 0).sum())
            say(
                f"the teacher is sure of the class of {len(sure) - labelled:,} of {len(train) - labelled:,} pictures without "
                f"labels (teacher.confidence={teacher.confidence:g}); the others are left out"
            )
            splits = {**dataset.splits, "train": train.subset(sure)}
            self.dataset, said = dataclasses.replace(dataset, splits=splits), said[sure]
        self.objective = choose.make_objective(self.recipe, self.model, self.dataset, said)

    @property
    def content(self) -> dict[str, str]:
        """A hash of what the files of each split held, where they are in memory."""
        return {name: store.content for name, store in self.stores.items()}

    def open_books(self) -> None:
        """Write the recipe, and that the run is on its way: what was said of it before no longer holds."""
        files.write_text(self.out / RECIPE, self.recipe.to_toml())
        (self.out / PAGE).unlink(missing_ok=True)
        self.write_result(RUNNING)

    def load_pictures(self) -> None:
        """Decode what is held in memory, and write down whether it is: a later run must see the same pixels."""
        recipe, channels = self.recipe, self.model.in_channels
        fits = self.world.decide(lambda: held_in_memory(recipe, self.dataset, channels, self.world, self.shelf))
        if fits:
            self.stores = fill_stores(self.dataset, channels, self.shelf)
            loop.check_bad(self.stores["train"].bad, self.dataset.splits["train"])
            if len({json.dumps(seen) for seen in self.world.gather(self.content)}) > 1:
                raise DataError(
                    f"{self.dataset.location} was read differently by two processes; all must see the same files"
                )
        held = dataclasses.replace(recipe.loading, in_memory="yes" if fits else "no")
        self.recipe = dataclasses.replace(recipe, loading=held)

    def fix_steps(self) -> Recipe:
        """The number of steps that the budget comes to, and the intervals that follow from it."""
        budget, batch_size = self.recipe.budget, self.recipe.batch_size
        num_pictures = len(self.dataset.splits["train"])
        steps = steps_for(budget, num_pictures, batch_size, self.train_flops_per_image)
        if steps == 0:
            step = self.train_flops_per_image * batch_size / 1e15
            raise UsageError(
                f"a budget of {budget.pflop:g} PFLOP is less than one step of {self.model.name} on {batch_size} pictures; "
                f"{rounded_up(step):.2g} or more, a smaller model or a smaller batch_size would be right"
            )
        if steps is None:
            if not budget.minutes:
                raise UsageError("the recipe has no budget; --steps, --epochs, --minutes or --pflop gives it one")
            steps = self.steps_in(budget.minutes * 60)
            if steps == 0:
                say(f"note: {budget.minutes:g} min is less than a step takes; one step is made")
        steps = max(1, steps)
        warmup = self.recipe.schedule.warmup
        if warmup >= max(2, steps):
            say(
                f"note: schedule.warmup={warmup:g} is no less than the {steps} steps, so the rate never reaches its peak"
            )
        every = math.ceil(steps / self.looks(self.passes_per_picture * steps * batch_size))
        return dataclasses.replace(
            self.recipe,
            budget=dataclasses.replace(budget, steps=steps),
            augment=self.augment(steps * batch_size / num_pictures),
            evaluation=dataclasses.replace(
                self.recipe.evaluation,
                every_steps=self.recipe.evaluation.every_steps or every,
                batch_size=self.recipe.evaluation.batch_size or 2 * self.recipe.micro_batch,
            ),
            checkpoint=dataclasses.replace(
                self.recipe.checkpoint, every_steps=self.recipe.checkpoint.every_steps or max(1, steps // _TIMES_LOOKED)
            ),
        )

    def steps_in(self, seconds: float) -> int:
        """How many steps, with the looks at validation between them, fit in `seconds`."""
        step = self.seconds_per_step(min(20.0, seconds / 20))
        passes = self.passes_per_picture * seconds / step * self.recipe.batch_size
        looking = self.looks(passes) * len(self.dataset.splits.get("validation", ())) / passes
        return int(seconds * max(1 - looking, 0.5) / step)

    @property
    def passes_per_picture(self) -> int:
        """Forward passes that take as long as training on a picture: all of it where only the head learns."""
        return 1 if self.recipe.tune == "head" else 3

    def looks(self, passes: float) -> int:
        """How often to look at validation in a training of so many forward passes: ten times, but for a fifth of it at most."""
        validation = len(self.dataset.splits.get("validation", ()))
        return max(1, min(_TIMES_LOOKED, int(_LOOKING * passes / validation))) if validation else _TIMES_LOOKED

    @property
    def train_flops_per_image(self) -> float:
        return self.cost.train_flops * (1 - self.recipe.regularization.patch_dropout)

    def announce(self) -> None:
        """One line before the run: what, on what, how long, how much memory."""
        if self.note:
            say(self.note)
        recipe, total = self.recipe, self.recipe.budget.steps
        learning = self.learning
        memory = self.memory_needed + sum(store.nbytes for store in self.stores.values())
        flops = total * recipe.batch_size * self.train_flops_per_image
        time_needed = f"about {recipe.budget.minutes:g} min" if recipe.budget.minutes else self.estimate(total)
        height, width = self.model.image_size
        tuned = "" if recipe.tune == "all" else f", {learning / 1e6:.3g} M learn"
        each = "" if self.world.count == 1 else f" in each of {self.world.count} processes"
        classes = "" if recipe.objective in UNLABELLED else f" of {len(self.dataset.classes)} classes"
        say(
            f"{self.model.name} ({self.cost.params / 1e6:.2f} M parameters{tuned}) at {height}×{width} on "
            f"{len(self.dataset.splits['train']):,} pictures{classes}: {total:,} {'step' if total == 1 else 'steps'} of "
            f"{recipe.batch_size}, {flops / 1e15:.3g} PFLOP, {time_needed} and about {size(memory)} beside Python and torch{each}"
        )
        if self.world.count > 1 and self.model.has_batch_norm:
            say(
                f"note: the statistics of {self.model.name}'s batch norms depend on the pictures that each process sees, so "
                "another number of processes trains another model; those of the first process are saved"
            )

    def check_memory(self) -> None:
        """Refuse what would not fit before any of it is tried: on a CPU nothing can be caught afterwards."""
        if self.recipe.device == "cpu":
            self.world.decide(lambda: machine.check_memory(self.memory_needed * self.world.local_count))

    @property
    def memory_needed(self) -> int:
        return machine.memory_needed(self.recipe, self.cost, self.learning, self.world, sharded=self.sharded)

    @property
    def learning(self) -> int:
        """How many parameters have gradients."""
        return sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)

    def estimate(self, total: int) -> str:
        """The time for `total` steps and the looks at validation between them, from a few throw-away steps."""
        looks = math.ceil(total / self.recipe.evaluation.every_steps) * len(self.dataset.splits.get("validation", ()))
        steps = total + looks / (self.passes_per_picture * self.recipe.batch_size)
        seconds = steps * self.seconds_per_step(1.0)
        return "under 1 s" if seconds < 0.95 else f"about {duration(seconds)}"

    def seconds_per_step(self, most_seconds: float) -> float:
        return loop.seconds_per_step(
            self.model, self.objective, self.recipe, self.make_loader, most_seconds, self.world, self.sharded
        )

    def augment(self, looks: float) -> Augment:
        """The recipe's augmentation with nothing left open, for training that sees each picture so often."""
        return self.recipe.augment.settle(self.prepared.small, min(self.model.image_size), looks)

    def make_loader(self, first_step: int) -> TrainLoader:
        return TrainLoader(
            self.dataset.splits["train"],
            preprocessing=self.model.preprocessing,
            augment=self.augment(math.inf),  # when trying out speed; the run's own recipe has it decided
            batch_size=self.recipe.batch_size,
            seed=self.recipe.seed,
            store=self.stores.get("train"),
            workers=self.recipe.loading.workers,
            first_step=first_step,
            places=self.world.share(self.recipe.batch_size),
            evenness=self.recipe.balance.sampling,
        )

    def train(self) -> None:
        validate: Callable[[Model], dict[str, float]] | None = (
            self.validate if "validation" in self.dataset.splits else None
        )
        self.state.recipe_hash = self.recipe.identity()
        self.state.data_fingerprint, self.state.classes = self.opened.fingerprint, list(self.dataset.classes)
        self.state.content = self.content
        self.state.pictures = {name: len(split) for name, split in self.dataset.splits.items()}
        training = loop.Loop(
            self.model,
            self.objective,
            self.recipe,
            self.make_loader,
            folder=self.out,
            state=self.state,
            validate=validate,
            stop=lambda: bool(self.flag),
            world=self.world,
            sharded=self.sharded,
        )
        self.model = training.run()
        self.model.multi_label = self.recipe.objective == "sigmoid"
        merge(self.model)
        seen = set(self.model.provenance.get("pictures_seen", [])) | set(self.dataset.splits["train"].sketch())
        self.model.provenance = {
            "recipe": self.recipe.name,
            "init": self.prepared.origin,
            "data": self.dataset.name,
            "data_fingerprint": self.state.data_fingerprint,
            "steps": self.state.step,
            "pictures_seen": sorted(seen),
        }
        self.world.decide(lambda: model_folder.save(self.model, self.out / MODEL))

    def validate(self, model: Model) -> dict[str, float]:
        if self.objective.metric:
            figures = self.measure_unlabelled(model, "validation")
        else:
            figures = measure(self.predict(model, "validation"), self.dataset.classes, interval=False)
        return {"loss": round(figures["loss"], 6), figures["metric"]: round(figures["value"], 6)}

    def predict(self, model: Model, split: str) -> Any:
        pictures, mirror = self.dataset.splits[split], self.recipe.evaluation.mirror
        return predict(model, pictures, **self.looking(split), mirror=mirror)

    def measure_unlabelled(self, model: Model, split: str) -> dict[str, Any]:
        """The objective's own figure, where there is no label to predict."""
        return unlabelled.measure(self.objective, model, self.dataset.splits[split], **self.looking(split))

    def looking(self, split: str) -> dict[str, Any]:
        """How a model looks at a split: the arguments of `look_at_all`."""
        return {
            "store": self.stores.get(split),
            "batch_size": self.recipe.evaluation.batch_size,
            "workers": self.recipe.loading.workers,
            "stop": lambda: bool(self.flag),
            "world": self.world,
            "threads": max(1, self.recipe.threads // self.world.local_count),
        }

    def evaluate(self) -> None:
        """The test split is looked at once, here."""
        split = self.recipe.evaluation.final if "test" in self.dataset.splits else "validation"
        if split not in self.dataset.splits:
            say("the data set has neither test nor validation pictures: the model is not evaluated")
            self.world.decide(lambda: self.write_result(FINISHED))
            return
        figures = {"split": split, **self.measure(split)}
        self.world.decide(lambda: files.write_json(self.out / EVALUATION, figures))
        measured = {"split": split, **{key: figures[key] for key in ("n", "metric", "value", "value_ci95")}}
        if figures["metric"] == "accuracy":
            measured |= {"accuracy": figures["value"], "accuracy_ci95": figures["value_ci95"]}
            balanced = figures["balanced"]
            measured |= {"balanced_accuracy": balanced["value"], "balanced_accuracy_ci95": balanced["ci95"]}
        self.world.decide(lambda: self.write_result(FINISHED, **measured))

    def measure(self, split: str) -> dict[str, Any]:
        """All figures of the final model on a split."""
        if self.objective.metric:
            return self.measure_unlabelled(self.model, split)
        predictions = self.predict(self.model, split)
        pictures, classes = self.dataset.splits[split], self.dataset.classes
        figures = measure(predictions, classes)
        if not self.dataset.multi_label:
            given = answers_of(predictions, pictures, classes)
            self.world.decide(lambda: write_answers(self.out / ANSWERS, given))
        figures["unreadable"] = [
            {"name": pictures.name(index), "reason": reason} for index, reason in sorted(predictions.unreadable.items())
        ]
        if not self.dataset.multi_label:
            figures["mistakes"] = confident_mistakes(predictions, pictures, classes)
            figures["hits"] = sure_hits(predictions, pictures, classes)
            figures["map"] = add_maps(self.model, pictures, [*figures["mistakes"], *figures["hits"]])
        return figures

    def command(self) -> str:
        """What repeats the run, bit for bit on the same machine."""
        recipe, again = self.out / RECIPE, f"{self.out}-again"
        return shlex.join(["patchword", "train", self.recipe.data, "--recipe", str(recipe), "--out", again])

    def write_result(self, status: str, reason: str | None = None, **measured: Any) -> None:
        recipe, dataset = self.recipe, self.dataset
        train_images = len(dataset.splits["train"]) - len(self.state.unreadable)
        result = {
            "status": status,
            "reason": reason,
            "diverged": False,
            "model": self.model.name,
            "params": self.cost.params,
            "init": self.prepared.origin,
            "train_images": train_images,
            "steps": self.state.step,
            "seconds": round(self.state.seconds, 3),
            "train_flops": self.state.step * recipe.batch_size * self.train_flops_per_image,
            "peak_memory": peak_memory(torch.device(recipe.device)),
            "resumed_from": self.state.resumed_from,
            "left_out_steps": self.state.left_out,
            "processes": self.world.count,
            **measured,
            "seed": recipe.seed,
            "image_size": list(self.model.image_size),
            "command": self.command(),
            "data": {
                "name": dataset.name,
                "location": dataset.location,
                "classes": [] if recipe.objective in UNLABELLED else list(dataset.classes),
                "multi_label": dataset.multi_label,
                "splits": {name: len(split) for name, split in dataset.splits.items()},
                "split_rule": dataset.split_rule,
                "notices": [dataclasses.asdict(notice) for notice in dataset.notices],
                "duplicates": self.opened.duplicates,
                "unreadable": [
                    {"name": dataset.splits["train"].name(index), "reason": why}
                    for index, why in sorted(self.state.unreadable.items())
                ],
            },
            "versions": versions(),
            "device": describe_device(torch.device(recipe.device)),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        try:
            files.write_json(self.out / RESULT, result)
            if self.publish is not None and status != RUNNING and (self.out / RECIPE).is_file():
                self.publish(self.out)
        except FaultError:
            if status == FINISHED:
                raise
            # The disk that stopped the run cannot take its story either; the error itself is about to be shown.


def result_sentence(folder: Path) -> str:
    """What a run came to, in one line; empty where nothing was measured."""
    result = files.read_json(folder / RESULT)
    if result.get("value") is None:
        return ""
    (height, width), (low, high) = result["image_size"], (100 * bound for bound in result["value_ci95"])
    what = (
        f"{100 * result['value']:.2f} % of {result['n']:,} {result['split']} pictures"
        if result["metric"] == "accuracy"
        else f"{result['metric'].replace('_', ' ')} {100 * result['value']:.2f} % on {result['n']:,} {result['split']} pictures"
    )
    return (
        f"{result['model']} at {height}×{width}: {what} (95 % interval {low:.2f}–{high:.2f}), "
        f"{result['seconds']:.0f} s of training"
    )
