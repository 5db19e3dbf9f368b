"""Convolutions that have a faster way on a CPU than torch's: kernels of one place, and those larger than their map.

A kernel of one place is a linear layer of each place. For kernels larger than the map oneDNN takes a general product for each
group: for the gradient of the kernels, which was a third of a training step of an EfficientNet at 64 px, and where the map is a
single place, forward as well. As few as the places are, all pairs of a place of the input and one of the output can be
multiplied, and each pair added to the place of the kernel that joins the two.
Letters: B images, C channels in, O out, q and r places of the input and of the output, k places of the kernel.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchword.models import linear
from patchword.models.eager import again, eager

_WIDE = 64
"""Channels from which on kernels of one place are a product."""
_DENSE, _DEPTHWISE = 4, 16
"""Places of a map, at most: all pairs are then less than twice, or ten times, as many as the kernels' numbers."""


class DepthwiseConv(nn.Conv2d):
    """A kernel of its own for each channel, without bias, by `conv2d`."""

    def __init__(self, channels: int, side: int, stride: int) -> None:
        super().__init__(channels, channels, side, stride, padding=side // 2, groups=channels, bias=False)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002 (the name in torch)
        if bias is not None:  # a norm was folded into it
            return super()._conv_forward(input, weight, bias)
        return conv2d(input, weight, self.stride[0], self.kernel_size[0] // 2, self.groups)


def conv2d(x: Tensor, weight: Tensor, stride: int, padding: int, groups: int = 1) -> Tensor:
    """`torch.nn.functional.conv2d` of B×C×h×w with square kernels, differentiable as often."""
    if not eager(x, weight) or x.ndim < 4:
        return F.conv2d(x, weight, None, stride, padding, 1, groups)
    if _is_product(x, weight, stride, padding, groups):
        return linear.linear(x.permute(0, 2, 3, 1), weight.flatten(1), None).permute(0, 3, 1, 2)
    side, depthwise = weight.shape[-1], groups > 1
    if (
        max(x.shape[-2:]) >= side
        or (depthwise and not groups == x.shape[1] == len(weight))
        or x.shape[-2:].numel() > (_DEPTHWISE if depthwise else _DENSE)
    ):
        return F.conv2d(x, weight, None, stride, padding, 1, groups)
    if x.shape[-2:].numel() == 1 and side == 2 * padding + 1:
        middle = weight[..., padding, padding]  # the one place of the kernel that meets the map
        return x * middle[:, :, None] if depthwise else F.conv2d(x, middle[..., None, None])
    if torch.is_grad_enabled() and weight.requires_grad:
        return _Convolution.apply(x, weight, stride, padding, groups)  # pyright: ignore[reportReturnType]
    return F.conv2d(x, weight, None, stride, padding, 1, groups)


def _is_product(x: Tensor, weight: Tensor, stride: int, padding: int, groups: int) -> bool:
    """Whether it is one product of all places, and faster as that: by MKL, whose gradient of the input needs no copies."""
    return (
        not linear.ONEDNN
        and weight.shape[-1] == stride == groups == 1
        and padding == 0
        and min(weight.shape[:2]) >= _WIDE
        and x.is_contiguous(memory_format=torch.channels_last)
    )


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int, groups: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = (stride, padding, groups)
        return F.conv2d(x, weight, None, stride, padding, 1, groups)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (x, weight), (stride, padding, groups) = gradients, ctx.saved_tensors, ctx.how
        wants_x, torchs = ctx.needs_input_grad[0], again(gradient)
        of_x, of_weight, _ = torch.ops.aten.convolution_backward(
            gradient, x, weight, None, (stride, stride), (padding, padding), (1, 1), False, (0, 0), groups,
            (wants_x, torchs, False),
        )  # fmt: skip
        if not torchs:
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
