"""The smallest run that has everything in it, which several tests disturb."""

from pathlib import Path
from typing import Any

from patchword.core import config
from patchword.training import recipe as recipes
from patchword.training.recipe import Recipe

TINY = {"name": "ViT-At/8", "depth": 2, "embed_dim": 16, "num_heads": 2, "mlp_dim": 24}


def tiny(data: Path, **changes: Any) -> Recipe:
    """Twelve steps of the smallest model on 16-px pictures, with every kind of chance that training has."""
    base: dict[str, Any] = {
        "data": str(data),
        "model": TINY,
        "image_size": [16, 16],
        "batch_size": 10,
        "micro_batch": 4,
        "threads": 2,
        "budget": {"steps": 12},
        "augment": {"crop": "shift", "shift_pixels": 2, "mixup": 0.2, "cutmix": 0.5, "erasing": 0.2},
        "optimizer": {"lr": 3e-3},
        "regularization": {"dropout": 0.1, "stochastic_depth": 0.1, "patch_dropout": 0.25, "average_decay": 0.9},
    }
    if "budget" in changes:
        del base["budget"]
    return recipes.load("scratch", config.merge(base, changes))
