"""What is measured: the models, their sizes and the jobs made of them."""

import dataclasses
from typing import Literal

THREADS = 2
"""Cores and threads of every system."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """A model as in the paper: a ViT has a class token, learned 1-D positions, one linear head."""

    title: str
    model: str
    image_size: int
    num_classes: int
    train_batch: int
    options: dict[str, str] = dataclasses.field(default_factory=lambda: {"gelu": "erf"})
    """What makes it the same function as the peers', whose GELU is exact and whose ResNets have epsilons of their own."""


SHAPES = {
    "128": Shape("32 px, patch 4, width 128, depth 6", "ViT-Pi/4", 32, 10, 256),
    "192": Shape("32 px, patch 4, width 192, depth 9", "ViT-Na/4", 32, 10, 128),
    "Ti": Shape("224 px, ViT-Ti/16", "ViT-Ti/16", 224, 1000, 32),
    "S": Shape("224 px, ViT-S/16", "ViT-S/16", 224, 1000, 16),
    "B": Shape("224 px, ViT-B/16", "ViT-B/16", 224, 1000, 8),
    "hybrid": Shape("224 px, R26+ViT-S/32", "R26+ViT-S/32", 224, 1000, 16, {"gelu": "erf", "stem_arithmetic": "timm"}),
    "BiT": Shape("224 px, BiT-R50x1", "BiT-R50x1", 224, 1000, 8, {"arithmetic": "timm"}),
}
PLAIN = ("128", "192", "Ti", "S", "B")
"""Plain ViTs, which every system has; the others only timm."""


@dataclasses.dataclass(frozen=True)
class Job:
    """One thing to repeat: a training step or a forward pass of a batch."""

    kind: Literal["train", "forward"]
    shape: str
    batch: int

    @property
    def title(self) -> str:
        what = "training step" if self.kind == "train" else "forward pass"
        return f"{what}: {SHAPES[self.shape].title}, batch {self.batch}"


TRAINING = [Job("train", name, SHAPES[name].train_batch) for name in ("128", "192", "Ti", "S")]
FORWARD = [Job("forward", name, batch) for name in PLAIN for batch in (1, 8)]
CONVOLUTIONS = [
    job
    for name in SHAPES
    if name not in PLAIN
    for job in (Job("train", name, SHAPES[name].train_batch), Job("forward", name, 1), Job("forward", name, 8))
]
