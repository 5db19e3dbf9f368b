"""Parameter groups, optimizers, and schedules as pure functions of the step."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import nn

from patchword.core.errors import UsageError, nearest
from patchword.models.contract import Model
from patchword.training.muon import Muon
from patchword.training.sharded import here

Decay = Literal["cosine", "linear", "constant"]
KERNEL_MOMENTUM = 0.6
"""Muon's for kernels with a rate of their own, which turn too fast for a longer memory (as in Jordan's airbench94_muon)."""
OBJECTIVE = "objective."
"""Before the names of the objective's own parameters."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How the gradient becomes an update."""

    name: Literal["adamw", "adam", "sgd", "muon"] = "adamw"
    """`adam` adds the weight decay to the gradient, `adamw` takes it from the weights; `sgd` has Nesterov-free momentum;
    `muon` makes the updates of matrices orthogonal and leaves the rest to `adamw`."""
    lr: float = 1e-3
    """The peak learning rate, for the batch size as it is: nothing is scaled behind the scenes."""
    matrix_lr: float = 0.02
    """Muon's peak learning rate, for hidden matrices and kernels; `lr` is then that of all else."""
    kernel_lr: float = 0.0
    """Muon's for kernels that a norm follows, which then keep their length, so that it stays the share of them that a step
    replaces, and have a momentum of 0.6; 0 takes them for other matrices."""
    weight_decay: float = 0.0
    """In torch's convention, multiplied by the learning rate. Biases, norms, tokens and positions are never decayed."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's averages of the gradient and of its square."""
    momentum: float = 0.9
    """SGD's and Muon's."""
    clip_norm: float = 1.0
    """The largest global gradient norm; 0 does not clip."""
    layer_decay: float = 1.0
    """Each stage below the head learns by this factor slower than the one above it."""

    def __post_init__(self) -> None:
        for field, low, high in (
            ("lr", 0.0, math.inf),
            ("matrix_lr", 0.0, math.inf),
            ("kernel_lr", 0.0, math.inf),
            ("weight_decay", 0.0, math.inf),
            ("momentum", 0.0, 0.9999),
            ("clip_norm", 0.0, math.inf),
            ("layer_decay", 1e-3, 1.0),
        ):
            if not low <= getattr(self, field) <= high:
                right = f"lie in {low:g}…{high:g}" if high < math.inf else f"be at least {low:g}"
                raise UsageError(f"optimizer.{field}={getattr(self, field)} must {right}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UsageError(f"optimizer.betas={self.betas} must lie in 0…1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How the learning rate goes over the steps."""

    warmup: float = 0.05
    """Steps of linear warm-up; below 1, a share of all steps."""
    decay: Decay = "cosine"
    """From the peak at the end of the warm-up to zero at the last step; or constant."""

    def __post_init__(self) -> None:
        if self.warmup < 0 or (self.warmup >= 1 and self.warmup != int(self.warmup)):
            raise UsageError(f"schedule.warmup={self.warmup} must be a share below 1 or a whole number of steps")
        if self.decay not in get_args(Decay):
            raise UsageError(f"schedule.decay={self.decay!r} is not known; {nearest(self.decay, get_args(Decay))}")

    def factor(self, step: int, total: int) -> float:
        """What the peak learning rate is multiplied by in step 0 … total − 1. It is never zero in a step that is made."""
        warmup = self.warmup if self.warmup >= 1 else self.warmup * total
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if self.decay == "constant":
            return 1.0
        left = (total - step) / max(1.0, total - warmup)
        return left if self.decay == "linear" else 0.5 - 0.5 * math.cos(math.pi * left)


def build_optimizer(config: OptimizerConfig, model: Model, objective: nn.Module | None = None) -> torch.optim.Optimizer:
    """One group for every stage and kind of what learns, each with its `peak_lr`.

    Kinds are Muon's kernels and its matrices, what else decays, and what does not. What the objective
    has learns like the last stage; its vectors do not decay, and none of it is Muon's.
    """
    own = {} if objective is None else {OBJECTIVE + name: value for name, value in objective.named_parameters()}
    parameters = {name: value for name, value in (*model.named_parameters(), *own.items()) if value.requires_grad}
    undecayed = model.no_weight_decay() | {name for name, value in own.items() if value.ndim < 2}
    matrices = model.matrices() if config.name == "muon" else {}
    kernels = model.normed_kernels() & matrices.keys() if config.kernel_lr else set[str]()
    kinds: tuple[tuple[Callable[[str], bool], dict[str, Any]], ...] = (
        (
            kernels.__contains__,
            {"peak_lr": config.kernel_lr, "weight_decay": 0.0, "normed": True, "momentum": KERNEL_MOMENTUM},
        ),
        (matrices.__contains__, {"peak_lr": config.matrix_lr, "weight_decay": config.weight_decay, "normed": False}),
        (lambda name: name not in undecayed, {"peak_lr": config.lr, "weight_decay": config.weight_decay}),
        (lambda _: True, {"peak_lr": config.lr, "weight_decay": 0.0}),
    )
    *stages, last = model.stages()
    stages = [*stages, [*last, *own]]
    groups: list[dict[str, Any]] = []
    for depth, names in enumerate(stages):
        share = config.layer_decay ** (len(stages) - 1 - depth)
        left = [name for name in names if name in parameters]
        for belongs, settings in kinds:
            if members := [name for name in left if belongs(name)]:
                left = [name for name in left if name not in members]
                group = {"params": [parameters[name] for name in members], "names": members, **settings}
                group["peak_lr"] *= share
                if "normed" in settings:
                    group["stacked"] = [matrices[name] for name in members]
                groups.append(group)
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)
    if config.name == "muon":
        return Muon(groups, betas=config.betas, momentum=config.momentum)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.lr, betas=config.betas, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every group `factor` times its peak learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


class Average:
    """An exponential moving average of the weights (Polyak; section 4.1 uses 0.9999), kept beside the model.

    In a short run the decay warms up as (1 + step) / (10 + step), so that the initial weights are forgotten in time.
    """

    def __init__(self, model: Model, decay: float) -> None:
        self.decay = decay
        self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: Model, step: int) -> None:
        """Fold in the weights after step 0, 1, …"""
        decay = min(self.decay, (1 + step) / (10 + step))
        mine, theirs = [], []
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                mine.append(here(self.weights[name]))
                theirs.append(here(value))
            else:
                self.weights[name].copy_(value)
        torch._foreach_lerp_(mine, theirs, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
