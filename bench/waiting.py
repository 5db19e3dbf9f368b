"""How much of a training run is spent waiting for data: the loop's own step on a cached set of 32-px pictures."""

import json
import sys
import time

import numpy as np
import torch

from bench.shapes import SHAPES, THREADS, Job
from bench.systems import ours
from patchword.core.runtime import keep_memory
from patchword.data.dataset import Arrays, Split
from patchword.data.loader import TrainLoader
from patchword.data.store import Store
from patchword.training import recipe as recipes
from patchword.training.machine import comfortable_micro_batch
from patchword.training.objectives import Softmax
from patchword.training.optimizer import build_optimizer
from patchword.training.passes import Passes
from patchword.training.step import train_step

_PICTURES = 4096
_STEPS = 12


def share() -> dict[str, float]:
    """The share of the steps' time, with the default recipe's augmentation (shift, flip, RandAugment) and batch of 128."""
    torch.set_num_threads(THREADS)
    keep_memory()
    model = ours(Job("train", "128", 128))
    chance = np.random.default_rng(0)
    pixels = chance.integers(256, size=(_PICTURES, 32, 32, 3), dtype=np.uint8)
    split = Split(Arrays(pixels, "generated"), chance.integers(SHAPES["128"].num_classes, size=_PICTURES))
    recipe = recipes.load(
        "scratch",
        {
            "batch_size": 128,
            "threads": THREADS,
            "micro_batch": comfortable_micro_batch(model, 128, THREADS),
            "augment": {"crop": "shift"},
        },
    )
    optimizer = build_optimizer(recipe.optimizer, model)
    loader = TrainLoader(
        split,
        preprocessing=model.preprocessing,
        augment=recipe.augment,
        batch_size=recipe.batch_size,
        seed=0,
        store=Store.fill(split, 3, 1),
        workers=0,
    )
    with loader, Passes(model.train(), Softmax(model.num_classes), threads=THREADS) as passes:
        began, waited = 0.0, 0.0
        for step, batch in enumerate(loader):
            if step == 2:  # the first batches wait for the loader to begin
                began, waited = time.perf_counter(), loader.wait_seconds
            train_step(passes, optimizer, batch, recipe, step)
            if step == 2 + _STEPS:
                break
        seconds = time.perf_counter() - began
        return {"share": (loader.wait_seconds - waited) / seconds, "seconds_per_step": seconds / (_STEPS + 1)}


if __name__ == "__main__":
    json.dump(share(), sys.stdout)
