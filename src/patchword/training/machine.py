"""What of a machine a run uses: device, threads, micro-batch, and whether there is memory enough."""

import dataclasses

import torch

from patchword.core.errors import UsageError
from patchword.core.processes import Processes
from patchword.core.progress import size
from patchword.core.runtime import MOST_REPLICAS, available_memory, choose_device, usable_cores
from patchword.data.dataset import Dataset
from patchword.models.contract import Model
from patchword.models.cost import Cost
from patchword.training.recipe import Recipe

_ROWS, _NUMBERS = 1600, 2**18
"""Tokens of all images of a micro-batch together, and what they are when written out, where that is more: narrow models
take longer for each operation's call than for its work."""
_PIXELS = 1_000_000
"""Of all images of a micro-batch together, in a convolutional network."""
_NORM_BATCH = 16
"""The fewest images whose statistics batch norm takes together, however large they are."""
_ROOM = 0.8
"""The share of a device's free memory that may be planned with."""


def decide_machine(recipe: Recipe, model: Model, cost: Cost, dataset: Dataset, world: Processes) -> Recipe:
    """Device, precision, threads, batch and micro-batch where the recipe leaves them open."""
    device = choose_device(recipe.device)
    cores = usable_cores()
    # A launcher tells each process to use one thread; what all of them together may use is what the machine has.
    threads = recipe.threads or (cores if world.count > 1 else torch.get_num_threads())
    torch.set_num_threads(max(1, threads // world.local_count))
    batch_size = min(recipe.batch_size, len(dataset.splits["train"]))
    half = device.type == "cuda" and torch.cuda.is_bf16_supported()
    compute = recipe.compute
    if compute.precision == "auto":
        compute = dataclasses.replace(compute, precision="bfloat16" if half else "float32")
    if compute.recompute and model.has_batch_norm:
        raise UsageError(
            f"compute.recompute=true would count every picture of {model.name}'s batch norms twice; false is right"
        )
    micro_batch = recipe.micro_batch or (
        comfortable_micro_batch(model, batch_size, threads) if device.type == "cpu" else _room(device, cost, batch_size)
    )
    return dataclasses.replace(
        recipe,
        device=str(device),
        threads=threads,
        batch_size=batch_size,
        micro_batch=min(micro_batch, batch_size),
        compute=compute,
        loading=dataclasses.replace(
            recipe.loading, workers=cores - 1 if recipe.loading.workers < 0 else recipe.loading.workers
        ),
    )


def comfortable_micro_batch(model: Model, batch_size: int, threads: int) -> int:
    """Images whose activations fit in a core's caches, in parts that the threads share evenly (measured in `make bench`)."""
    fewest = _NORM_BATCH if model.has_batch_norm else 1
    if not model.replicates:
        height, width = model.image_size
        return min(batch_size, max(fewest, min(64, _PIXELS // (height * width))))
    tokens = 64 if model.grid is None else model.grid[0] * model.grid[1]
    rows = max(_ROWS, _NUMBERS // model.num_features)
    threads = min(threads, MOST_REPLICAS)  # more cores than replicas take no more parts
    parts = -(-batch_size // max(fewest, min(64, rows // tokens)))
    parts = min(max(1, batch_size // fewest), -(-parts // threads) * threads)
    return -(-batch_size // parts)


def shards(recipe: Recipe, cost: Cost, world: Processes) -> bool:
    """Whether the processes share out weights, gradients and moments: where asked, or where one has no room for them."""
    wanted = recipe.compute.sharded
    if world.count == 1 or wanted == "no":
        return False
    device = torch.device(recipe.device)
    free = available_memory() // world.local_count if device.type == "cpu" else torch.cuda.mem_get_info()[0]
    needed = _state_bytes(recipe, cost, cost.params)
    return bool(world.decide(lambda: wanted == "yes" or needed > _ROOM * free))


def memory_needed(recipe: Recipe, cost: Cost, learning: int, world: Processes, *, sharded: bool) -> int:
    """Bytes that training takes in each process beside the pictures; `learning` parameters have gradients and moments."""
    on_cpu = torch.device(recipe.device).type == "cpu"
    passes = min(torch.get_num_threads(), MOST_REPLICAS) if on_cpu and world.count == 1 else 1
    share = world.count if sharded else 1
    state = _state_bytes(recipe, cost, learning)
    return round(state / share + cost.activation_bytes * min(recipe.micro_batch, recipe.batch_size) * passes)


def check_memory(needed: int) -> None:
    """Raise `UsageError` where the machine has not so many bytes."""
    if needed > (free := available_memory()):
        raise UsageError(
            f"training would need about {size(needed)} of memory, of which {size(free)} are free; "
            "a smaller model, image size or micro_batch would be right"
        )


def _state_bytes(recipe: Recipe, cost: Cost, learning: int) -> int:
    """Weights and their average; gradient and two moments of what learns."""
    return 4 * (cost.params * (1 + bool(recipe.regularization.average_decay)) + 3 * learning)


def _room(device: torch.device, cost: Cost, batch_size: int) -> int:
    """Images whose activations the device has room for beside weights, average, gradients and moments."""
    if device.type != "cuda":
        return batch_size
    free = _ROOM * torch.cuda.mem_get_info(device)[0] - 5 * 4 * cost.params
    return max(1, min(batch_size, int(free / cost.activation_bytes)))
