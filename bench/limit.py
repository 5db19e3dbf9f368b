"""The machine's limit that figures are shares of: one large matrix product, on as many threads as PyTorch has."""

import time
from collections.abc import Callable

import torch

from patchword.models.linear import by_onednn

_SIDE = 1536
GEMM_FLOPS = 2 * _SIDE**3
"""Of one step of `gemm`."""


def gemm() -> Callable[[], object]:
    """A square matrix product by the faster of PyTorch's two libraries, MKL and oneDNN."""
    left, right = torch.rand(2, _SIDE, _SIDE)
    ways = [lambda: torch.mm(left, right)]
    if torch.backends.mkldnn.is_available():
        ways.append(lambda: by_onednn(left, right, None))
    return min(ways, key=_seconds)


def roofline() -> float:
    """FLOPs a second, now: it depends on what else the machine does."""
    return GEMM_FLOPS / _seconds(gemm())


def _seconds(step: Callable[[], object]) -> float:
    times = []
    for _ in range(8):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return min(times)
