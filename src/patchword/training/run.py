"""A recipe → a run folder (`run_folder.py` says what it holds): everything but its page."""

import contextlib
import dataclasses
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from patchword.core import files
from patchword.core.errors import DataError, DivergedError, FaultError, PatchwordError, StoppedError, UsageError
from patchword.core.processes import Processes, joined
from patchword.core.progress import duration, say, size
from patchword.core.runtime import StopFlag, keep_memory
from patchword.data.augment import Augment
from patchword.data.loader import TrainLoader
from patchword.data.store import Store
from patchword.evaluation.predict import Looking
from patchword.models.contract import Model
from patchword.models.cost import Cost, cost
from patchword.training import budget, loop, machine, run_folder, start
from patchword.training.checkpoint import State
from patchword.training.measuring import Measuring
from patchword.training.objectives import UNLABELLED, Objective, choose
from patchword.training.pictures import (
    Opened,
    fetch,
    fill_stores,
    held_in_memory,
    open_training_data,
    tell_notices,
    tell_unreadable,
    with_unlabelled,
)
from patchword.training.recipe import Recipe, loads
from patchword.training.result import result_of
from patchword.training.run_folder import ANSWERS, EVALUATION, FINISHED, MODEL, PAGE, RECIPE, RESULT, RUNNING
from patchword.training.shelf import Shelf
from patchword.training.step import kept_patches
from patchword.training.teacher import ask, load_teacher
from patchword.training.tune import merge
from patchword.weights import folder as model_folder


def run(
    recipe: Recipe,
    out: Path | None = None,
    *,
    restart: bool = False,
    publish: Callable[[Path], object] | None = None,
    with_weights: Callable[[str], Recipe] | None = None,
    shelf: Shelf | None = None,
) -> Path:
    """Train as `recipe` says and leave everything in a run folder, whose path is returned.

    A folder that holds the same run, unfinished, is resumed; finished, it is left as it is; another recipe in it is a
    `UsageError`. `restart` moves what is there aside. On a fault or a signal, `result.json` says so before the error is
    raised. `publish` is called with the folder whenever it has a new result: it writes the page. `with_weights` gives what
    is asked for in the place of `recipe` where `init=auto` finds weights, for their address. `shelf` is what the runs of a
    study share, which has told then what there is to tell before a run.
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
    with_weights: Callable[[str], Recipe] | None,
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
        stored = world.decide(lambda: run_folder.take(out, recipe, restart, held, of_study=shelf is not None))
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
    with_weights: Callable[[str], Recipe] | None,
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
    recipe = from_anywhere(recipe)
    if (there_are := len(dataset.splits["train"])) < 2 * world.count:
        raise DataError(
            f"{dataset.location} has {there_are} training {'picture' if there_are == 1 else 'pictures'}, too few to learn from"
            f"{'' if world.count == 1 else f' in {world.count} processes'}; {2 * world.count} or more would be right"
        )
    if recipe.batch_size < 2 * world.count:
        raise UsageError(
            f"batch_size={recipe.batch_size} is too small "
            f"{'to learn from' if world.count == 1 else f'to be shared by {world.count} processes'}; "
            f"{2 * world.count} or more would be right"
        )
    prepared = start.prepare_model(recipe, dataset)
    if recipe.teacher.weights:

        def check_teacher() -> None:
            load_teacher(recipe.teacher, dataset.classes)

        world.decide(check_teacher)  # now, so that one which cannot be taken leaves no folder
    opened = with_unlabelled(opened, recipe)
    if recipe.batch_size > (there_are := len(opened.dataset.splits["train"])):
        say(
            f"note: a batch of {recipe.batch_size:,} would hold pictures twice; it is {there_are:,}, as many as there are"
        )
        recipe, decided = (dataclasses.replace(each, batch_size=there_are) for each in (recipe, prepared.recipe))
        prepared = dataclasses.replace(prepared, recipe=decided)
    return recipe, opened, prepared, note


def from_anywhere(recipe: Recipe) -> Recipe:
    """The recipe with whole paths, so that it means the same in any folder; what is named and lies nowhere keeps its name."""

    def whole(place: str) -> str:
        there = files.at_home(place)
        return str(there.resolve()) if place and there.exists() else place

    teacher = dataclasses.replace(
        recipe.teacher, weights=whole(recipe.teacher.weights), unlabelled=whole(recipe.teacher.unlabelled)
    )
    init = recipe.init if recipe.init in ("none", "auto") else whole(recipe.init)
    return dataclasses.replace(recipe, data=whole(recipe.data), init=init, teacher=teacher)


def counted(recipe: Recipe, model: Model, objective: Objective) -> Cost:
    """What an image costs in training: all of the stem and what stands for the picture, of the patches those that are kept."""
    if objective.metric:
        return cost(model, objective.on_meta())
    share = recipe.regularization.patch_dropout
    if not share or model.grid is None:
        return cost(model)
    keep = torch.arange(kept_patches(model.grid, share), device="meta")[None]
    return cost(model, lambda model, images: model.head(model.features(images, keep)))


class Run:
    """One run on its way; the methods are its stages, in order, and then what several of them ask for."""

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
        self.cost = counted(prepared.recipe, model, self.objective)
        self.recipe = machine.decide_machine(stored or prepared.recipe, model, self.cost, dataset, world)
        if stored is None:  # now, so that what is refused decodes nothing and leaves no folder
            budget.check_a_step(self.recipe, model.name, self.train_flops_per_image)
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
                self.keep()
                self.evaluate()
        except PatchwordError as error:
            status = "stopped" if isinstance(error, StoppedError) else "failed"
            if self.world.first:
                self.write_result(status, reason=str(error), diverged=isinstance(error, DivergedError))
            raise

    def ask_teacher(self) -> None:
        """Have the recipe's teacher, where it has one, say what the training pictures are."""
        recipe = self.recipe
        if not recipe.teacher.weights:
            return
        how = Looking(workers=recipe.loading.workers, world=self.world, stop=self.stop, what="asking the teacher")
        self.dataset, said, self.state.teacher = ask(recipe.teacher, self.dataset, recipe.device, how)
        self.objective = choose.make_objective(recipe, self.model, self.dataset, said)

    def load_pictures(self) -> None:
        """Decode what is held in memory, and write down whether it is: a later run must see the same pixels."""
        recipe, channels = self.recipe, self.model.in_channels
        fits = self.world.decide(self.fits_memory)
        if fits:
            stopped = None
            try:
                self.stores = fill_stores(self.dataset, channels, self.shelf, self.stop)
            except StoppedError as error:
                stopped = error
            if self.world.sum(stopped is not None)[0]:  # of several processes one may have been told alone
                raise stopped or StoppedError("stopped by a signal while decoding; the same command goes on")
            loop.check_bad(self.stores["train"].bad, self.dataset.splits["train"])
            if self.shelf is None:
                for name, store in self.stores.items():
                    fate = "left out" if name == "train" or self.objective.metric else "counted as wrong"
                    tell_unreadable(name, self.dataset.splits[name], store.bad, fate)
            if len({json.dumps(seen) for seen in self.world.gather(self.content)}) > 1:
                raise DataError(
                    f"{self.dataset.location} was read differently by two processes; all must see the same files"
                )
        held = dataclasses.replace(recipe.loading, in_memory="yes" if fits else "no")
        self.recipe = dataclasses.replace(recipe, loading=held)

    def fits_memory(self) -> bool:
        """Whether the pictures are to be held decoded."""
        recipe, train = self.recipe, self.dataset.splits["train"]
        steps = budget.steps_for(recipe.budget, len(train), recipe.batch_size, self.train_flops_per_image)
        looked_at = math.inf if steps is None else steps * recipe.batch_size
        return held_in_memory(recipe, self.dataset, self.model.in_channels, self.world, self.shelf, looked_at)

    def check_memory(self) -> None:
        """Refuse what would not fit before any of it is tried: on a CPU nothing can be caught afterwards."""
        if self.recipe.device == "cpu":
            self.world.decide(lambda: machine.check_memory(self.memory_needed * self.world.local_count))

    def fix_steps(self) -> Recipe:
        """The recipe with the number of steps that the budget comes to, and all that follows from it."""
        fixed = budget.fix_steps(
            self.recipe, self.dataset, self.model.name, self.train_flops_per_image, self.seconds_per_step
        )
        looks = fixed.budget.steps * fixed.batch_size / len(self.dataset.splits["train"])
        return dataclasses.replace(fixed, augment=self.augment(looks))

    def announce(self) -> None:
        """One line before the run: what, on what, how long, how much memory."""
        if self.note:
            say(self.note)
        recipe, total = self.recipe, self.recipe.budget.steps
        learning = self.learning
        memory = self.memory_needed + sum(store.nbytes for store in self.stores.values())
        flops, takes = total * recipe.batch_size * self.train_flops_per_image, self.time_needed()
        height, width = self.model.image_size
        tuned = "" if recipe.tune == "all" else f", {learning / 1e6:.3g} M learn"
        each = "" if self.world.count == 1 else f" in each of {self.world.count} processes"
        classes = "" if recipe.objective in UNLABELLED else f" of {len(self.dataset.classes)} classes"
        say(
            f"{self.model.name} ({self.cost.params / 1e6:.2f} M parameters{tuned}) at {height}×{width} on "
            f"{len(self.dataset.splits['train']):,} pictures{classes}: {total:,} {'step' if total == 1 else 'steps'} of "
            f"{recipe.batch_size}, {flops / 1e15:.3g} PFLOP, {takes} and about {size(memory)} beside Python and torch{each}"
        )
        if self.world.count > 1 and self.model.has_batch_norm:
            say(
                f"note: the statistics of {self.model.name}'s batch norms depend on the pictures that each process sees, so "
                "another number of processes trains another model; those of the first process are saved"
            )

    def open_books(self) -> None:
        """Write the recipe, and that the run is on its way: what was said of it before no longer holds."""
        files.write_text(self.out / RECIPE, self.recipe.to_toml())
        (self.out / PAGE).unlink(missing_ok=True)
        self.write_result(RUNNING)

    def train(self) -> None:
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
            validate=self.measuring.between if "validation" in self.dataset.splits else None,
            stop=self.stop,
            world=self.world,
            sharded=self.sharded,
        )
        self.model = training.run()

    def keep(self) -> None:
        """Save the model, with what it was made of."""
        self.model.multi_label = self.recipe.objective == "sigmoid"
        merge(self.model)
        teacher = self.recipe.teacher.weights
        seen = set(self.model.provenance.get("pictures_seen", [])) | set(self.dataset.splits["train"].sketch())
        self.model.provenance = {
            "recipe": self.recipe.name,
            "optimizer": self.recipe.optimizer.name,
            "init": self.prepared.origin,
            "data": self.dataset.name,
            "data_fingerprint": self.state.data_fingerprint,
            **({"teacher": teacher} if teacher else {}),
            "steps": self.state.step,
            "pictures_seen": sorted(seen),
        }
        self.world.decide(lambda: model_folder.save(self.model, self.out / MODEL))

    def evaluate(self) -> None:
        """The test split is looked at once, here."""
        figures = self.measuring.at_the_end(self.model, self.out / ANSWERS)
        if figures:
            self.world.decide(lambda: files.write_json(self.out / EVALUATION, figures))
        else:
            say("the data set has neither test nor validation pictures: the model is not evaluated")
        self.world.decide(lambda: self.write_result(FINISHED, figures=figures))

    def write_result(self, status: str, **told: Any) -> None:
        """Write `result.json`, and publish it; `told` is what `result_of` takes beside the status."""
        try:
            files.write_json(self.out / RESULT, result_of(self, status, **told))
            if self.publish is not None and status != RUNNING and (self.out / RECIPE).is_file():
                self.publish(self.out)
        except FaultError:
            if status == FINISHED:
                raise
            # The disk that stopped the run cannot take its story either; the error itself is about to be shown.

    def stop(self) -> bool:
        """Whether a signal has come."""
        return bool(self.flag)

    @property
    def content(self) -> dict[str, str]:
        """A hash of what the files of each split held, where they are in memory."""
        return {name: store.content for name, store in self.stores.items()}

    @property
    def learning(self) -> int:
        """How many parameters have gradients."""
        return sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)

    @property
    def train_flops_per_image(self) -> int:
        return self.cost.train_flops

    @property
    def memory_needed(self) -> int:
        return machine.memory_needed(self.recipe, self.cost, self.learning, self.world, sharded=self.sharded)

    def time_needed(self) -> str:
        """By the clock where the budget is a time, else by a few throw-away steps."""
        if self.recipe.budget.minutes:
            return f"about {self.recipe.budget.minutes:g} min"
        seconds = budget.steps_and_looks(self.recipe, self.dataset) * self.seconds_per_step(1.0)
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

    @property
    def measuring(self) -> Measuring:
        return Measuring(self.recipe, self.objective, self.dataset, self.stores, self.world, self.stop)
