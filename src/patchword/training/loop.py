"""THE loop: resume or begin, step, evaluate, save. Pre-training and fine-tuning differ in the recipe alone.

Letters: B images of a batch, K classes, N patches, n patches that are kept.
"""

import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from patchword.core.errors import DataError, DivergedError, FaultError, StoppedError
from patchword.core.progress import Progress
from patchword.data.dataset import Split
from patchword.data.loader import Batch, TrainLoader
from patchword.data.mixing import erase, mix
from patchword.data.plan import uniform
from patchword.data.store import MOST_BAD
from patchword.models.contract import Model
from patchword.models.layers import random_numbers
from patchword.training import checkpoint
from patchword.training.checkpoint import State
from patchword.training.objectives import Objective
from patchword.training.optimizer import Average, build_optimizer, set_learning_rate
from patchword.training.parallel import Replicas
from patchword.training.recipe import Recipe
from patchword.training.record import SMALLER_RATE, Record, check_finite

_THROWAWAY_STEPS = 20
_LOG_LINES = 500

MakeLoader = Callable[[int], TrainLoader]
Validate = Callable[[Model], dict[str, float]]


def train(
    model: Model,
    objective: Objective,
    recipe: Recipe,
    make_loader: MakeLoader,
    *,
    folder: Path,
    state: State,
    validate: Validate | None,
    stop: Callable[[], bool],
) -> None:
    """Train `model` in place for `recipe.budget.steps` steps, from the newest checkpoint in `folder` if there is one.

    `state` is a fresh one, and always says how far the weights are. `make_loader(step)` gives batches from that step on;
    `validate` measures the model in between; `stop` is asked after every step. At the end the model holds the weights to
    keep (the average where the recipe has one). Raises `StoppedError` after saving when told to stop, and `FaultError`
    before an update that is not finite.
    """
    total = recipe.budget.steps
    decay = recipe.regularization.average_decay
    average = Average(model, decay) if decay else None
    optimizer = build_optimizer(recipe.optimizer, model)
    _resume(folder / "checkpoints", state, model, optimizer, average)
    record = Record(folder / "metrics.jsonl", state.step)
    log_every = max(1, total // _LOG_LINES)
    loader = make_loader(state.step)
    model.train()

    def save() -> None:
        state.unreadable = dict(loader.bad)
        checkpoint.save(folder / "checkpoints", state, model, optimizer, average, recipe.checkpoint.keep)

    def look() -> float:
        """Measure the model on validation, where it is due and has not been done; the seconds that it took."""
        began = time.perf_counter()
        due = state.step % recipe.evaluation.every_steps == 0 or state.step == total
        if validate is None or not due or state.step <= record.last_validation:
            return 0.0
        try:
            figures = validate(kept_weights(model, average))
        except FaultError as error:
            raise FaultError(f"training diverged before step {state.step + 1}: {error}; {SMALLER_RATE}") from error
        record.write("validation", state.step, **figures)
        return time.perf_counter() - began

    began, images_since = time.perf_counter() - state.seconds, 0
    last_line = time.perf_counter()
    try:
        with Replicas(model, recipe.threads) as replicas, Progress("training", total, state.step) as progress:
            look()  # a signal may have come between a step and its look
            for batch in loader if state.step < total else ():
                factor = recipe.schedule.factor(state.step, total)
                set_learning_rate(optimizer, recipe.optimizer.lr * factor)
                loss, norm = train_step(replicas, objective, optimizer, batch, recipe, state.step)
                if average is not None:
                    average.update(model, state.step)
                state.step += 1
                state.seconds = time.perf_counter() - began
                state.window.append(loss)
                images_since += len(batch.ids)
                check_bad(loader.bad, loader.split)
                if state.step % log_every == 0 or state.step == total:
                    now = time.perf_counter()
                    mean_loss, rate = statistics.fmean(state.window), images_since / (now - last_line)
                    record.write(
                        "train",
                        state.step,
                        loss=round(mean_loss, 6),
                        lr=recipe.optimizer.lr * factor,
                        grad_norm=round(norm, 6),
                        images_per_second=round(rate, 1),
                        seconds=round(state.seconds, 3),
                    )
                    progress.update(state.step, f"loss {mean_loss:.3f}  {rate:,.0f} images/s")
                    state.window, images_since, last_line = [], 0, now
                if stop():
                    raise StoppedError(
                        f"stopped by a signal after step {state.step} of {total}; the same command goes on"
                    )
                last_line += look()  # a look is no training: pictures a second leave it out
                if state.step == total:
                    break
                if state.step % recipe.checkpoint.every_steps == 0:
                    save()
        save()
    except (StoppedError, DivergedError):
        save()
        raise
    finally:
        loader.close()
    if average is not None:
        model.load_state_dict(average.weights)


def train_step(
    replicas: Replicas, objective: Objective, optimizer: torch.optim.Optimizer, batch: Batch, recipe: Recipe, step: int
) -> tuple[float, float]:
    """One update: the mean loss of the batch before it, and the norm of its gradient before clipping.

    The batch passes through the model in parts of `recipe.micro_batch` images whose gradients add up: the caches hold the
    activations of a part, and the update is the same. A loss or norm that is not finite raises before anything changes.
    """
    model = replicas.model
    device = next(model.parameters()).device
    augment, seed = recipe.augment, recipe.seed
    images = model.preprocessing.normalize(batch.images.to(device))
    images = erase(images, augment, seed=seed, epochs=batch.epochs, ids=batch.ids)
    weights = batch.weights.to(device)
    # A bad picture has no label either: none of it is mixed into another's.
    targets = objective.targets(batch.labels.to(device)) * weights[:, None]
    images, targets = mix(images, targets, augment, seed=seed, step=step)
    total_weight = weights.sum().clamp(min=1)

    parts = list(zip(*(each.split(recipe.micro_batch) for each in (images, targets, weights)), strict=True))

    def loss_of(replica: Model, part: int) -> Tensor:
        image, target, weight = parts[part]
        # Dropout and its kin are pure functions of these three, whichever replica the part falls to.
        key = uniform(seed, "regularization", step, np.array([part])).item()
        generator = torch.Generator(device).manual_seed(int(key * 2**53))
        keep = _kept_patches(model, len(image), recipe.regularization.patch_dropout, generator)
        with random_numbers(generator):
            return (objective(replica, image, target, keep) * weight).sum() / total_weight

    optimizer.zero_grad(set_to_none=True)
    loss = replicas.backward(len(parts), loss_of)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    check_finite(loss, norm.item(), step + 1, optimizer.param_groups[-1]["lr"])
    if recipe.optimizer.clip_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, recipe.optimizer.clip_norm, norm)
    optimizer.step()
    return loss, norm.item()


def seconds_per_step(
    model: Model, objective: Objective, recipe: Recipe, make_loader: MakeLoader, most_seconds: float
) -> float:
    """The typical time of a step, from at most 20 throw-away steps on a copy: nothing of the run itself is touched."""
    trial = copy.deepcopy(model).train()
    optimizer = build_optimizer(recipe.optimizer, trial)
    set_learning_rate(optimizer, 0.0)
    loader = make_loader(0)
    times, began = [], time.perf_counter()
    try:
        with Replicas(trial, recipe.threads) as replicas:
            for step, batch in enumerate(loader):
                train_step(replicas, objective, optimizer, batch, recipe, step)
                times.append(time.perf_counter() - began - sum(times))
                if step + 1 == _THROWAWAY_STEPS or (step >= 2 and time.perf_counter() - began > most_seconds):
                    break
    finally:
        loader.close()
    return statistics.median(times[1:])  # the first step pays for what is made once


def kept_weights(model: Model, average: Average | None) -> Model:
    """The model to evaluate: itself, or a copy that holds the average."""
    if average is None:
        return model
    averaged = copy.deepcopy(model)
    averaged.load_state_dict(average.weights)
    return averaged


def check_bad(bad: dict[int, str], split: Split) -> None:
    """Stop when more than one in a hundred training pictures cannot be read."""
    if len(bad) > MOST_BAD * len(split):
        index, reason = next(iter(bad.items()))
        raise DataError(
            f"{len(bad)} of {len(split)} training pictures cannot be read, more than {MOST_BAD:.0%} "
            f"({split.name(index)} {reason}); 'patchword data check' lists them"
        )


def _resume(
    checkpoints: Path, state: State, model: Model, optimizer: torch.optim.Optimizer, average: Average | None
) -> None:
    """Go on from the newest checkpoint, if there is one; one of other data or another recipe is an error."""
    saved = checkpoint.restore(checkpoints, model, optimizer, average)
    if saved is None:
        return
    for what, mine, theirs in (
        ("recipe", state.recipe_hash, saved.recipe_hash),
        ("data set", state.data_fingerprint, saved.data_fingerprint),
    ):
        if mine != theirs:
            raise DataError(
                f"the {what} has changed since {checkpoints} was written; --restart begins anew and keeps the old run"
            )
    vars(state).update(vars(saved))
    state.resumed_from.append(saved.step)


def _kept_patches(model: Model, num_images: int, patch_dropout: float, generator: torch.Generator) -> Tensor | None:
    """For each image a random choice of patches, int64 B×n in raster order; None to keep all."""
    if not patch_dropout or model.grid is None:
        return None
    num_patches = model.grid[0] * model.grid[1]
    kept = max(1, round(num_patches * (1 - patch_dropout)))
    draws = torch.rand(num_images, num_patches, generator=generator, device=generator.device)
    return draws.topk(kept).indices.sort().values
