"""GELU, exact (`erf`) or as the paper's own code has it (`tanh`), without torch's slow way to a tanh.

0.5·x·(1 + tanh u) is x·σ(2u), and torch vectorises a sigmoid better than a tanh. All is done block by block, so that what stands
between input and output stays near and takes next to no memory.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from patchword.models.eager import again, eager

Gelu = Literal["tanh", "erf"]
_BLOCK = 1 << 18
"""Numbers at a time."""
_LINEAR = 2 * math.sqrt(2 / math.pi)
_CUBIC = 0.044715 * _LINEAR
"""2u = _LINEAR·x + _CUBIC·x³."""
_FIRST = torch.tensor(_LINEAR)


def gelu(x: Tensor, kind: Gelu) -> Tensor:
    """Differentiable as often."""
    if kind == "erf":
        return F.gelu(x)
    if not eager(x) or not x.is_contiguous():
        return F.gelu(x, approximate="tanh")
    if torch.is_grad_enabled() and x.requires_grad:
        return _Tanh.apply(x)  # pyright: ignore[reportReturnType]
    return _forward(x)


class _Tanh(torch.autograd.Function):
    """x alone is kept for the backward pass, as by torch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _forward(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,), (x,) = gradients, ctx.saved_tensors
        if again(gradient):
            return torch.ops.aten.gelu_backward(gradient, x, approximate="tanh")
        return _backward(gradient, x)


def _forward(x: Tensor) -> Tensor:
    output = torch.empty_like(x)
    for part, out in _blocks(x, output):
        torch.mul(part, part, out=out)
        torch.add(_FIRST, out, alpha=_CUBIC, out=out).mul_(part).sigmoid_().mul_(part)
    return output


def _backward(gradient: Tensor, x: Tensor) -> Tensor:
    """With s = σ(2u): the derivative is s + x·s·(1 − s)·(2u)′."""
    found = torch.empty_like(x)
    square, gate = x.new_empty(2, min(_BLOCK, x.numel()))
    for part, of_output, out in _blocks(x, gradient.contiguous(), found):
        squared, s = square[: len(part)], gate[: len(part)]
        torch.mul(part, part, out=squared)
        torch.add(_FIRST, squared, alpha=_CUBIC, out=s).mul_(part).sigmoid_()
        # x·s·(1 − s) first: it is 0 where x is large, before anything can overflow.
        torch.ops.aten.sigmoid_backward.grad_input(part, s, grad_input=out)
        out.mul_(squared.mul_(3 * _CUBIC).add_(_LINEAR)).add_(s).mul_(of_output)
    return found


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(each.view(-1).split(_BLOCK) for each in tensors), strict=True)
