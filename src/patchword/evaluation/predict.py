"""A model over a split or over a few pictures: every picture exactly once, in order."""

import dataclasses
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Looking:
    """How a model looks at all pictures of a split: for speed and company, not for what it finds there."""

    store: Store | None = None
    """The split's decoded pictures where they are in memory; else they are decoded as they come."""
    batch_size: int = 0
    """Images at once; 0 takes what suits the caches."""
    workers: int = 0
    """Processes that decode; 0 decodes in a thread."""
    threads: int = 0
    """This process's on a CPU, through which batches go side by side; 0 takes torch's number."""
    world: Processes = dataclasses.field(default_factory=Processes)
    """The processes that share the pictures out, each of which knows all in the end."""
    stop: Callable[[], bool] = bool
    """Asked between batches; when it says so to any process, all raise `StoppedError`."""
    what: str = "evaluating"
    """What is done, for the progress bar and that error."""


def predict(model: Model, split: Split, how: Looking = Looking(), *, mirror: bool = False) -> Predictions:
    """Logits for each picture of a split, in evaluation mode.

    With `mirror` they are the mean of those of the picture and of its mirror image, which takes twice the time.
    """
    logits = np.zeros((len(split), model.num_classes), dtype=np.float32)

    def look(batch: Batch, images: Tensor) -> None:
        said = model(images)
        if mirror:
            said = (said + model(images.flip(3))) / 2
        logits[batch.ids] = said.float().cpu().numpy()

    unreadable = look_at_all(model, split, look, how)
    logits = how.world.add(logits)  # each row is zeros everywhere but in one process
    check_finite(model, logits)
    return Predictions(logits, split.labels, unreadable)


def check_finite(model: Model, values: np.ndarray, what: str = "outputs") -> None:
    """Raise `DivergedError` where a number that the model gave is none to work with."""
    if not np.isfinite(values).all():
        raise DivergedError(f"{model.name} gives {what} that are not finite: its weights have been spoiled")


def look_at_all(
    model: Model, split: Split, look: Callable[[Batch, Tensor], None], how: Looking = Looking()
) -> dict[int, str]:
    """Give `look` each picture of a split once, in batches and normalised; why some could not be read, by index.

    The model is in evaluation mode, and nothing is kept for gradients. Each process looks at its share.
    """
    device = next(model.parameters()).device
    threads = (how.threads or torch.get_num_threads()) if device.type == "cpu" else 1
    crew = Crew(threads, most=MOST_REPLICAS if model.replicates else 1)
    batches = evaluation_batches(
        split,
        preprocessing=model.preprocessing,
        batch_size=how.batch_size or comfortable_batch(model),
        store=how.store,
        workers=how.workers,
        rank=how.world.rank,
        count=how.world.count,
    )
    unreadable: dict[int, str] = {}

    def work(batch: Batch) -> None:
        with torch.inference_mode():
            look(batch, model.preprocessing.normalize(batch.images.to(device)))

    with evaluating(model), crew, closing(batches), Progress(how.what, len(split)) as progress:
        while group := list(itertools.islice(batches, crew.size)):
            if how.stop():
                break
            crew.run([functools.partial(work, batch) for batch in group])
            for batch in group:
                for index in batch.ids[batch.weights.numpy() == 0].tolist():
                    unreadable[index] = why_unreadable(split, how.store, index)
            progress.update(int(group[-1].ids[-1]) + 1)
    if how.world.sum(how.stop())[0]:
        raise StoppedError(f"stopped by a signal while {how.what}; the same command goes on")
    return how.world.together(unreadable)


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
