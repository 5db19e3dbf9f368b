"""THE loop: resume or begin, step, evaluate, save. Pre-training and fine-tuning differ in the recipe alone."""

import contextlib
import copy
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from patchword.core import files
from patchword.core.errors import DataError, DivergedError, FaultError, StoppedError
from patchword.core.processes import Processes
from patchword.core.progress import Progress, say
from patchword.core.runtime import versions
from patchword.data.dataset import Split
from patchword.data.loader import TrainLoader
from patchword.data.store import MOST_BAD
from patchword.models.contract import Model
from patchword.training import checkpoint
from patchword.training.checkpoint import State
from patchword.training.objectives import Objective
from patchword.training.optimizer import Average, build_optimizer, set_learning_rate
from patchword.training.passes import Passes
from patchword.training.recipe import Recipe
from patchword.training.record import Record
from patchword.training.run_folder import CHECKPOINTS, DIVERGED, LOG
from patchword.training.step import gradients, train_step, update

_SMALLER_RATE = "a smaller optimizer.lr or a longer schedule.warmup would be right"
_THROWAWAY_STEPS = 20
_LOG_LINES = 500
_REMEMBERED_LOSSES = 100


class _UnsavedError(FaultError):
    """The disk refuses the last checkpoint."""


MakeLoader = Callable[[int], TrainLoader]
Validate = Callable[[Model], dict[str, float]]


class Loop:
    """One training on its way. `run` is the loop; the other methods are what it does, in the order of their use."""

    def __init__(
        self,
        model: Model,
        objective: Objective,
        recipe: Recipe,
        make_loader: MakeLoader,
        *,
        folder: Path,
        state: State,
        validate: Validate | None = None,
        stop: Callable[[], bool] = bool,
        world: Processes | None = None,
        sharded: bool = False,
    ) -> None:
        """Train `model` in place for `recipe.budget.steps` steps, from the newest checkpoint in `folder` if there is one.

        `state` is a fresh one that knows recipe and data, and always says how far the weights are. `make_loader(step)`
        gives batches from that step on; `validate` measures a model in between; `stop` is asked after every step.
        """
        self.recipe, self.folder, self.state, self.make_loader = recipe, folder, state, make_loader
        self.validate, self.stop, self.world = validate, stop, world or Processes()
        self.total, self.rollbacks = recipe.budget.steps, recipe.guard.rollbacks
        self._loss = math.nan
        self._has_norms = model.has_batch_norm
        self._saved, self._due = 0.0, False  # when the newest checkpoint was made; whether the next is due by the clock
        saved = self._newest(model, objective)
        if saved is not None:
            model.load_state_dict(saved.weights())  # before they are shared out over processes
            objective.load_state_dict(saved.objective())
        self.passes = passes_for(model, objective, recipe, self.world, sharded=sharded)
        self.optimizer = build_optimizer(recipe.optimizer, model, objective)
        decay = recipe.regularization.average_decay
        self.average = Average(model, decay) if decay else None
        if saved is not None:
            self._fill(saved)
            state.resumed_from.append(saved.state.step)
        state.total_steps, state.processes, state.threads = self.total, self.world.count, torch.get_num_threads()
        state.versions = versions()
        if saved is not None:
            say(f"{folder} goes on after step {state.step:,} of {self.total:,}")
            if (saved.state.processes, saved.state.threads) != (self.world.count, torch.get_num_threads()):
                say("note: with another number of processes or threads sums round otherwise: not to the same bits")
        self.record = Record(folder / LOG, state.step, writes=self.world.first)
        self.world.decide(self.record.open)
        self._load(state.step)

    def run(self) -> Model:
        """The trained model, in one piece (the average where the recipe has one).

        Raises `StoppedError` after saving when told to stop, and `DivergedError` before an update that is not finite.
        """
        state, total = self.state, self.total
        log_every = max(1, total // _LOG_LINES)
        self._began = time.perf_counter() - state.seconds
        images, last_line = 0, time.perf_counter()
        self._saved = last_line
        self.passes.model.train()
        try:
            with self.passes, Progress("training", total, state.step) as progress:
                self.look()  # a signal may have come between a step and its look
                while state.step < total:
                    before, stopping = state.step, self.step()
                    images += self.recipe.batch_size
                    advanced = state.step > before  # or it has gone back
                    if advanced and (state.step % log_every == 0 or state.step == total):
                        now = time.perf_counter()
                        rate = images / (now - last_line)
                        self.log(rate)
                        progress.update(state.step, f"loss {self._loss:.3f}  {rate:,.0f} images/s")
                        images, last_line = 0, now
                    if stopping:
                        raise StoppedError(
                            f"stopped by a signal after step {state.step} of {total}; the same command goes on"
                        )
                    last_line += self.look()  # a look is no training: pictures a second leave it out
                    if state.step < total and (self._due or state.step % self.recipe.checkpoint.every_steps == 0):
                        self.save(insist=False)
                self.save(insist=True)
        except (StoppedError, DivergedError):
            self.save(insist=True)
            raise
        except (DataError, FaultError) as error:
            # Between two steps the state is whole; of several processes, the others may not be here to agree.
            if self.world.count == 1 and not isinstance(error, _UnsavedError):
                with contextlib.suppress(FaultError):
                    self.save(insist=True)
            raise
        finally:
            self.loader.close()
        return self._kept()

    def step(self) -> bool:
        """One update, or none where the training has gone wrong in this step before; whether to stop after it."""
        state, recipe = self.state, self.recipe
        batch = next(self._batches)
        if state.step in state.left_out:
            state.step += 1
            return bool(self.world.sum(self.stop())[0])
        factor = recipe.schedule.factor(state.step, self.total)
        set_learning_rate(self.optimizer, factor)
        lr = recipe.optimizer.lr * factor
        # A forward pass moves the figures of batch norms, and a step that goes wrong must leave nothing.
        norms = [(figures, figures.clone()) for figures in self.passes.model.buffers()] if self._has_norms else []
        loss, norm = gradients(self.passes, batch, recipe, state.step)
        late = time.perf_counter() - self._saved > 60 * recipe.checkpoint.every_minutes
        known = len(self.loader.bad.keys() - state.unreadable.keys()) + len(state.unreadable) * self.world.first
        loss, stopping, bad, due = self.world.sum(loss, self.stop(), known, late)
        self._due = bool(due)
        if bad > MOST_BAD * len(self.loader.split):
            check_bad(self._all_bad(), self.loader.split)
        if wrong := self._wrong(loss, norm):
            for figures, before in norms:
                figures.copy_(before)
            self.diverge(wrong, loss, norm, lr)
            return bool(stopping)
        update(self.passes, self.optimizer, norm, recipe.optimizer.clip_norm)
        if self.average is not None:
            self.average.update(self.passes.model, state.step)
        state.step += 1
        state.samples_seen += recipe.batch_size
        state.seconds = time.perf_counter() - self._began
        state.window.append(loss)
        self._loss = loss
        if recipe.guard.spike:
            state.losses = [*state.losses, loss][-_REMEMBERED_LOSSES:]
        state.lr, state.grad_norm = lr, norm
        return bool(stopping)

    def _wrong(self, loss: float, norm: float) -> str | None:
        """What is wrong with a step, in words, before its update is made."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(norm):
            return f"the gradient norm is {norm}"
        losses, spike = self.state.losses, self.recipe.guard.spike
        if spike and len(losses) == _REMEMBERED_LOSSES and loss > spike * statistics.median(losses):
            return f"the loss is {loss:.4g}, {loss / statistics.median(losses):.2g} times as high as usual"
        return None

    def diverge(self, wrong: str, loss: float, norm: float, lr: float) -> None:
        """Write down what the step has seen; then go back and leave it out, or stop: raises `DivergedError`."""
        state = self.state
        step, split = state.step, self.loader.split
        ids = self.loader.ids(step).tolist()
        story = {"step": step + 1, "reason": wrong, "loss": str(loss), "grad_norm": str(norm), "lr": lr}
        story["pictures"] = [{"id": index, "name": split.name(index)} for index in ids]
        try:
            self.world.decide(lambda: files.write_json(self.folder / DIVERGED, story))
        except FaultError as error:
            say(f"note: {error}; the training has something worse to tell")
        where = f"training diverged in step {step + 1}: {wrong} at a learning rate of {lr:.3g}"
        if len(state.left_out) >= self.rollbacks:
            raise DivergedError(
                f"{where}; the checkpoint keeps the weights of the step before, {self.folder / DIVERGED} names its "
                f"pictures; {_SMALLER_RATE}"
            )
        left_out, resumed = [*state.left_out, step], state.resumed_from
        if (saved := self._newest(self.passes.model, self.passes.objective)) is not None:
            self.passes.fill(saved.weights(), saved.objective())
            self._fill(saved)
        say(f"note: {where}; it is left out, and the training goes on from step {state.step}")
        state.left_out, state.resumed_from = left_out, resumed
        self.record.cut(state.step)
        self.loader.close()
        self._load(state.step)

    def log(self, rate: float) -> None:
        """One line about the steps since the last."""
        state = self.state
        if not state.window:  # all of them were left out
            return
        loss = statistics.fmean(state.window)
        numbers = {"loss": round(loss, 6), "lr": state.lr, "grad_norm": round(state.grad_norm, 6)}
        clock = {"images_per_second": round(rate, 1), "seconds": round(state.seconds, 3)}
        self.record.write("train", state.step, **numbers, **clock)
        state.window = []

    def look(self) -> float:
        """Measure the model on validation, where it is due and has not been done; the seconds that it took."""
        state, began = self.state, time.perf_counter()
        due = state.step % self.recipe.evaluation.every_steps == 0 or state.step == self.total
        if self.validate is None or not due or state.step <= self.record.last_validation:
            return 0.0
        try:
            figures = self.validate(self._kept())
        except DivergedError as error:
            raise DivergedError(f"training diverged before step {state.step + 1}: {error}; {_SMALLER_RATE}") from error
        self.record.write("validation", state.step, **figures)
        return time.perf_counter() - began

    def save(self, *, insist: bool) -> None:
        """A checkpoint of now. A disk that refuses is a note, and the next time is tried again; an error where we `insist`."""
        state = self.state
        self._due, self._saved = False, time.perf_counter()
        state.unreadable, state.most_at_once = self._all_bad(), self.passes.most_at_once
        tensors = checkpoint.tensors_of(
            self.passes.model, self.passes.objective, self.optimizer, self.average, keep=self.world.first
        )

        def write() -> None:
            self.record.flush()  # the log must never lack what the weights have
            checkpoint.save(self.folder / CHECKPOINTS, state, tensors, self.recipe.checkpoint.keep)

        try:
            self.world.decide(write)
        except FaultError as error:
            if insist:
                if (newest := checkpoint.newest_step(self.folder / CHECKPOINTS)) is None:
                    raise _UnsavedError(str(error)) from error
                raise _UnsavedError(
                    f"{error}; the checkpoint of step {newest:,} stands, and the same command goes on from it"
                ) from error
            say(f"note: no checkpoint at step {state.step}: {error}; the training goes on and tries again")

    def _kept(self) -> Model:
        """The model to look at and to keep, in one piece: with the average of its weights where the recipe has one."""
        model = self.passes.whole(None if self.average is None else self.average.weights)
        if model.has_batch_norm:  # each process has figures of its own; those of the first are kept
            self.world.spread(model.buffers())
        return model

    def _newest(self, model: Model, objective: Objective) -> checkpoint.Saved | None:
        """The newest whole checkpoint; one of other data or another recipe is an error."""
        folder = self.folder / CHECKPOINTS

        def find() -> str | None:
            files.remove_leftovers(folder, r"step-\d+")
            found = checkpoint.newest(folder, model, objective)
            return None if found is None else str(found.path)

        path = self.world.decide(find)
        if path is None:
            return None
        saved = checkpoint.at(Path(path))
        changed = None
        if self.state.recipe_hash != saved.state.recipe_hash:
            changed = f"the recipe has changed since {saved.path} was written"
        elif saved.state.teacher and self.state.teacher != saved.state.teacher:
            # Before the data, which another teacher may leave other pictures of.
            changed = f"the teacher has changed since {saved.path} was written: its weights or preprocessing are others"
        elif another := self.state.change_of_data(saved.state):
            changed = f"the data set has changed since {saved.path} was written: {another}"
        if changed:
            raise DataError(f"{changed}; --restart begins anew and keeps the old run")
        return saved

    def _fill(self, saved: checkpoint.Saved) -> None:
        saved.fill_optimizer(self.optimizer)
        if self.average is not None:
            saved.fill_average(self.average)
        vars(self.state).update(vars(saved.state))
        self.passes.most_at_once = saved.state.most_at_once

    def _load(self, step: int) -> None:
        self.loader = self.make_loader(step)
        self._batches = iter(self.loader)

    def _all_bad(self) -> dict[int, str]:
        """The unreadable pictures that any process has met, or that were known before."""
        return dict(sorted({**self.state.unreadable, **self.world.together(self.loader.bad)}.items()))


def passes_for(model: Model, objective: Objective, recipe: Recipe, world: Processes, *, sharded: bool) -> Passes:
    """All that computes, as the recipe says."""
    compute = recipe.compute
    model.recompute = compute.recompute
    return Passes(
        model,
        objective,
        world,
        threads=torch.get_num_threads(),
        precision="bfloat16" if compute.precision == "bfloat16" else "float32",
        sharded=sharded,
        compiled=compute.compile,
    )


def seconds_per_step(
    model: Model,
    objective: Objective,
    recipe: Recipe,
    make_loader: MakeLoader,
    most_seconds: float,
    world: Processes | None = None,
    sharded: bool = False,
) -> float:
    """The typical time of a step, from at most 20 throw-away steps on a copy: nothing of the run itself is touched."""
    world = world or Processes()
    trial, aim = copy.deepcopy(model).train(), copy.deepcopy(objective)
    passes = passes_for(trial, aim, recipe, world, sharded=sharded)
    optimizer = build_optimizer(recipe.optimizer, trial, aim)
    set_learning_rate(optimizer, 0.0)
    decay = recipe.regularization.average_decay
    average = Average(trial, decay) if decay else None
    loader = make_loader(0)
    times, began = [], time.perf_counter()
    try:
        with passes:
            for step, batch in enumerate(loader):
                train_step(passes, optimizer, batch, recipe, step)
                if average is not None:
                    average.update(trial, step)
                times.append(time.perf_counter() - began - sum(times))
                enough = step >= 2 and time.perf_counter() - began > most_seconds
                if step + 1 == _THROWAWAY_STEPS or world.sum(enough)[0]:
                    break
    finally:
        loader.close()
    [seconds] = world.sum(statistics.median(times[1:]))  # the first step pays for what is made once
    return seconds / world.count


def check_bad(bad: dict[int, str], split: Split) -> None:
    """Stop when more than one in a hundred training pictures cannot be read."""
    if len(bad) > MOST_BAD * len(split):
        index, reason = next(iter(bad.items()))
        labelled = split.labels.ndim > 1 or split.labels[index] >= 0
        right = "'patchword data check' lists them" if labelled else "teacher.unlabelled without them is right"
        raise DataError(
            f"{len(bad)} of {len(split)} training pictures cannot be read, more than {MOST_BAD:.0%} "
            f"({split.name(index)} {reason}); {right}"
        )
