"""`python -m bench.arithmetic`: what our GELU, group norm and gradients of kernels are worth on this machine.

A training step, or a forward pass, of a model with torch's own and with ours, turn about in one process; THREADS=1. Milliseconds
are medians, and the ratio is that of steps beside each other, with its quartiles.
"""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F

from bench.wishes import answered, whole
from patchword.core.runtime import keep_memory
from patchword.models import layers, resnet
from patchword.models.contract import Model
from patchword.models.convolution import DepthwiseConv
from patchword.models.names import create_model

ROUNDS, LEAST_SECONDS = 9, 6.0


class Job(NamedTuple):
    model: str
    side: int
    batch: int
    training: bool


JOBS = (
    Job("ViT-At/8", 32, 64, True),
    Job("ViT-Ti/16", 224, 8, True),
    Job("ViT-S/16", 224, 4, True),
    Job("BiT-R14x0.25", 64, 64, True),
    Job("BiT-R26x0.5", 32, 64, True),
    Job("BiT-R50x1", 224, 4, True),
    Job("EfficientNet-Na", 64, 64, True),
    Job("EfficientNet-Na", 32, 64, True),
    Job("ViT-S/16", 224, 8, False),
    Job("ViT-B/16", 224, 8, False),
    Job("BiT-R50x1", 224, 8, False),
)


def main() -> None:
    """A row for each job."""
    keep_memory()
    torch.set_num_threads(whole("THREADS", 1))
    print("| | torch's, ms | ours, ms | ours is faster by |\n|---|---|---|---|")
    for job in JOBS:
        model, images = create_model(job.model, 10, job.side), torch.randn(job.batch, 3, job.side, job.side)
        step = _training(model.train(), images) if job.training else _forward(model.eval(), images)
        theirs, ours = _turn_about(step)
        low, middle, high = statistics.quantiles([one / other for one, other in zip(theirs, ours, strict=True)], n=4)
        what = "training" if job.training else "forward"
        print(
            f"| {what}, {job.model}, {job.side} px, batch {job.batch} | {1e3 * statistics.median(theirs):.1f} | "
            f"{1e3 * statistics.median(ours):.1f} | {middle:.2f} [{low:.2f}, {high:.2f}] |",
            flush=True,
        )


@contextlib.contextmanager
def torchs_own() -> Iterator[None]:
    """GELU, group norm and convolutions as torch has them."""

    def gelu(x: torch.Tensor, kind: str) -> torch.Tensor:
        return F.gelu(x, approximate="tanh" if kind == "tanh" else "none")

    def conv2d(x: torch.Tensor, weight: torch.Tensor, stride: int, padding: int) -> torch.Tensor:
        return F.conv2d(x, weight, None, stride, padding)

    with (
        mock.patch.object(layers, "gelu", gelu),
        mock.patch.object(resnet, "group_norm", F.group_norm),
        mock.patch.object(resnet, "conv2d", conv2d),
        mock.patch.object(DepthwiseConv, "_conv_forward", torch.nn.Conv2d._conv_forward),
    ):
        yield


def _turn_about(step: Callable[[], Any]) -> tuple[list[float], list[float]]:
    theirs: list[float] = []
    ours: list[float] = []
    began = time.perf_counter()
    while len(ours) < ROUNDS or time.perf_counter() - began < LEAST_SECONDS:
        with torchs_own():
            theirs.append(_seconds(step))
        ours.append(_seconds(step))
    return theirs[1:], ours[1:]


def _seconds(step: Callable[[], Any]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def _training(model: Model, images: torch.Tensor) -> Callable[[], Any]:
    def step() -> None:
        model(images).square().sum().backward()
        model.zero_grad()

    return step


def _forward(model: Model, images: torch.Tensor) -> Callable[[], Any]:
    def step() -> None:
        with torch.inference_mode():
            model(images)

    return step


if __name__ == "__main__":
    answered(main)
