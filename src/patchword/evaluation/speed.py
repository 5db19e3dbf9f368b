"""How long a model takes for a picture on this machine: measured, as evaluation computes."""

import statistics
import time

import torch

from patchword.core.runtime import MOST_REPLICAS, Crew
from patchword.evaluation.predict import comfortable_batch, evaluating
from patchword.models.contract import Model

_ROUNDS = 3
"""At least so many are measured, whatever they take."""


def seconds_per_image(model: Model, *, batch_size: int = 0, threads: int = 0, seconds: float = 1.0) -> float:
    """What an image takes in evaluation on the model's device, as `evaluation.predict` computes; measured for `seconds`.

    Images are there already: neither decoding nor preprocessing counts. `batch_size` 0 takes `comfortable_batch`, 1 is what
    a single image takes with all threads; these are those of a CPU, 0 for torch's number. The median of the rounds is taken.
    """
    reference = next(model.parameters())
    on_cpu = reference.device.type == "cpu"
    beside = MOST_REPLICAS if model.replicates and batch_size != 1 else 1
    crew = Crew((threads or torch.get_num_threads()) if on_cpu else 1, most=beside)
    count = batch_size or comfortable_batch(model)
    images = torch.zeros(count, model.in_channels, *model.image_size, device=reference.device, dtype=reference.dtype)

    def work() -> None:
        with torch.inference_mode():
            model(images).sum().item()  # which waits for the device

    rounds: list[float] = []
    jobs = [work] * crew.size
    with evaluating(model), crew:
        crew.run(jobs)  # what is made once
        began = time.perf_counter()
        while len(rounds) < _ROUNDS or time.perf_counter() - began < seconds:
            start = time.perf_counter()
            crew.run(jobs)
            rounds.append(time.perf_counter() - start)
    return statistics.median(rounds) / (count * crew.size)
