"""A model over a split or over a few pictures: every picture exactly once, in order."""

import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import numpy as np
import torch
from torch import Tensor

from patchword.core.errors import DivergedError, StoppedError
from patchword.core.picture import DecodeError
from patchword.core.processes import Processes
from patchword.core.progress import Progress
from patchword.core.runtime import MOST_REPLICAS, Crew
from patchword.data.dataset import Split
from patchword.data.decoding.decode import decode
from patchword.data.loader import Batch, evaluation_batches
from patchword.data.store import Store
from patchword.evaluation.metrics import Predictions
from patchword.models.contract import Model


def predict(
    model: Model,
    split: Split,
    *,
    store: Store | None = None,
    batch_size: int = 0,
    workers: int = 0,
    what: str = "evaluating",
    stop: Callable[[], bool] = bool,
    world: Processes | None = None,
    threads: int = 0,
    mirror: bool = False,
) -> Predictions:
    """Logits for each picture of a split, in evaluation mode; the processes of `world` share the work and know it all.

    With `mirror` they are the mean of those of the picture and of its mirror image, which takes twice the time. The other
    arguments are those of `look_at_all`.
    """
    logits = np.zeros((len(split), model.num_classes), dtype=np.float32)

    def look(batch: Batch, images: Tensor) -> None:
        said = model(images)
        if mirror:
            said = (said + model(images.flip(3))) / 2
        logits[batch.ids] = said.float().cpu().numpy()

    world = world or Processes()
    unreadable = look_at_all(
        model,
        split,
        look,
        store=store,
        batch_size=batch_size,
        workers=workers,
        what=what,
        stop=stop,
        world=world,
        threads=threads,
    )
    logits = world.add(logits)  # each row is zeros everywhere but in one process
    check_finite(model, logits)
    return Predictions(logits, split.labels, unreadable)


def check_finite(model: Model, values: np.ndarray, what: str = "outputs") -> None:
    """Raise `DivergedError` where a number that the model gave is none to work with."""
    if not np.isfinite(values).all():
        raise DivergedError(f"{model.name} gives {what} that are not finite: its weights have been spoiled")


def look_at_all(
    model: Model,
    split: Split,
    look: Callable[[Batch, Tensor], None],
    *,
    store: Store | None = None,
    batch_size: int = 0,
    workers: int = 0,
    what: str = "evaluating",
    stop: Callable[[], bool] = bool,
    world: Processes | None = None,
    threads: int = 0,
) -> dict[int, str]:
    """Give `look` each picture of a split once, in batches and normalised; why some could not be read, by index.

    The model is in evaluation mode, and nothing is kept for gradients. Each process of `world` looks at its share; batches
    go side by side through the threads of a process. `store` holds the split's decoded pictures where they are in memory;
    `batch_size` 0 takes what suits the caches; `threads` are this process's on a CPU, 0 for torch's number; `stop` is asked
    between batches; when it says so to any process, all raise `StoppedError`.
    """
    world = world or Processes()
    device = next(model.parameters()).device
    threads = (threads or torch.get_num_threads()) if device.type == "cpu" else 1
    crew = Crew(threads, most=MOST_REPLICAS if model.replicates else 1)
    batches = evaluation_batches(
        split,
        preprocessing=model.preprocessing,
        batch_size=batch_size or comfortable_batch(model),
        store=store,
        workers=workers,
        rank=world.rank,
        count=world.count,
    )
    unreadable: dict[int, str] = {}

    def work(batch: Batch) -> None:
        with torch.inference_mode():
            look(batch, model.preprocessing.normalize(batch.images.to(device)))

    with evaluating(model), crew, closing(batches), Progress(what, len(split)) as progress:
        while group := list(itertools.islice(batches, crew.size)):
            if stop():
                break
            crew.run([functools.partial(work, batch) for batch in group])
            for batch in group:
                for index in batch.ids[batch.weights.numpy() == 0].tolist():
                    unreadable[index] = why_unreadable(split, store, index)
            progress.update(int(group[-1].ids[-1]) + 1)
    if world.sum(stop())[0]:
        raise StoppedError(f"stopped by a signal while {what}; the same command goes on")
    return world.together(unreadable)


def why_unreadable(split: Split, store: Store | None, index: int) -> str:
    """Why a picture that came without pixels has none."""
    if store is not None and index in store.bad:
        return store.bad[index]
    try:
        decode(split.read(index), 3)
    except DecodeError as error:
        return error.reason
    return "could not be read at first, but can now"


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Evaluation mode for as long as the context lasts, and the mode before it afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def comfortable_batch(model: Model) -> int:
    """Images that pass through the model at once: what a core's caches hold on a CPU, more on other devices."""
    height, width = model.image_size
    most = 2_000_000 if next(model.parameters()).device.type == "cpu" else 20_000_000
    return max(1, min(256, most // (height * width)))
