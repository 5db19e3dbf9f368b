"""Convolutions with a kernel larger than their map: torch's, but for the gradient of the kernels on a CPU.

oneDNN has no fast gradient for them and takes a general product for each group: of an EfficientNet at 64 px that was a third of a
training step. As few as the places are, all pairs of a place of the input and one of the output can be multiplied, and each
pair added to the place of the kernel that joins the two.
Letters: B images, C channels in, O out, q and r places of the input and of the output, k places of the kernel.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchword.models.onednn import eager

_PLACES = 4
"""Of a map, at most, where kernels go from all channels to all: all pairs are then less than twice the kernels' numbers."""


class Conv2d(nn.Conv2d):
    """torch's layer by `conv2d`."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002 (the name in torch)
        assert bias is None
        assert isinstance(self.padding, tuple)
        return conv2d(input, weight, self.stride[0], self.padding[0], self.groups)


def conv2d(x: Tensor, weight: Tensor, stride: int, padding: int, groups: int = 1) -> Tensor:
    """`torch.nn.functional.conv2d` of B×C×h×w with square kernels, differentiable as often."""
    if x.shape[-2:].numel() == 1 and weight.shape[-1] == 2 * padding + 1 and eager(x, weight):
        middle = weight[..., padding, padding]  # the one place of the kernel that meets the map
        each_by_itself = groups == x.shape[1] == len(middle)
        return x * middle[:, :, None] if each_by_itself else F.conv2d(x, middle[..., None, None], groups=groups)
    if torch.is_grad_enabled() and weight.requires_grad and _suits(x, weight, stride, padding, groups):
        return _Convolution.apply(x, weight, stride, padding, groups)  # pyright: ignore[reportReturnType]
    return F.conv2d(x, weight, None, stride, padding, 1, groups)


def _suits(x: Tensor, weight: Tensor, stride: int, padding: int, groups: int) -> bool:
    side, places = weight.shape[-1], x.shape[-2:].numel()
    if max(x.shape[-2:]) >= side or side == 1 or not eager(x, weight):
        return False
    return groups == x.shape[1] == weight.shape[0] or (groups == 1 and places <= _PLACES)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int, groups: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = (stride, padding, groups)
        return F.conv2d(x, weight, None, stride, padding, 1, groups)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (x, weight), (stride, padding, groups) = gradients, ctx.saved_tensors, ctx.how
        wants_x, wants_weight, *_ = ctx.needs_input_grad
        again = torch.is_grad_enabled()  # it is to be differentiated again
        of_x, of_weight, _ = torch.ops.aten.convolution_backward(
            gradient, x, weight, None, (stride, stride), (padding, padding), (1, 1), False, (0, 0), groups,
            (wants_x, wants_weight and again, False),
        )  # fmt: skip
        if wants_weight and not again:
            of_weight = _of_kernels(x, gradient, weight.shape[-1], stride, padding, groups)
        return of_x, of_weight, None, None, None


def _of_kernels(x: Tensor, gradient: Tensor, side: int, stride: int, padding: int, groups: int) -> Tensor:
    """The gradient of the kernels, O×C×side×side or, where each channel has its own, C×1×side×side."""
    joins = _joins(tuple(x.shape[-2:]), tuple(gradient.shape[-2:]), side, stride, padding)
    x, gradient = x.flatten(2), gradient.flatten(2)
    if groups > 1:
        # einsum would copy each channel by itself, which takes three times as long.
        pairs = x.transpose(0, 1).contiguous().transpose(1, 2) @ gradient.transpose(0, 1).contiguous()
        found = torch.einsum("cqr,qrk->ck", pairs, joins)
    else:
        found = torch.einsum("cqor,qrk->ock", torch.einsum("bcq,bor->cqor", x, gradient), joins)
    return found.reshape(gradient.shape[1], -1, side, side)


@functools.lru_cache(maxsize=64)
def _joins(before: tuple[int, int], after: tuple[int, int], side: int, stride: int, padding: int) -> Tensor:
    """q×r×k: 1 where a place of the kernel joins one of the input to one of the output."""

    def along(axis: int) -> Tensor:
        q, r, k = torch.arange(before[axis]), torch.arange(after[axis]), torch.arange(side)
        return q[:, None, None] - r[None, :, None] * stride + padding == k

    down, across = along(0), along(1)
    both = torch.einsum("abc,def->adbecf", down.float(), across.float())
    return both.reshape(before[0] * before[1], after[0] * after[1], side**2)
