"""Group norm on a CPU, for maps whose channels lie side by side (channels-last), as those of our convolutions do.

torch's own goes number by number there where a group has few channels: backward, and forward for small maps, up to twenty times
as long as for other maps, and a sixth of a training step of a narrow BiT. Here all is done with whole rows of channels, a few
pictures at a time, and in two passes: the mean first, then the variance around it.
Letters: B images, N places, C channels, G groups of K channels.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from patchword.models.eager import again, eager

_FEW = 4
"""Channels of a group from which on torch is as fast."""
_MANY = 1024
"""Places of a map from which on torch is faster forward."""
_BLOCK = 1 << 21
"""Numbers at a time, about, so that what stands between input and output takes no more than a few times 8 MB."""


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`torch.nn.functional.group_norm` of B×C×h×w, differentiable as often."""
    if (
        not eager(x, weight, bias)
        or x.shape[1] >= _FEW * groups
        or x.is_contiguous()
        or not x.is_contiguous(memory_format=torch.channels_last)
    ):
        return F.group_norm(x, groups, weight, bias, eps)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or bias.requires_grad):
        return _GroupNorm.apply(x, groups, weight, bias, eps)  # pyright: ignore[reportReturnType]
    return _forward(x, groups, weight, bias, eps)[0]


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        output, *statistics = _forward(x, groups, weight, bias, eps)
        ctx.save_for_backward(x, weight, bias, *statistics)
        ctx.how = (groups, eps)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (x, weight, bias, *statistics), (groups, eps) = gradients, ctx.saved_tensors, ctx.how
        if again(gradient):
            leaves = (x, weight, bias)
            asked = [each for each in leaves if each.requires_grad]
            with torch.enable_grad():
                output = F.group_norm(x, groups, weight, bias, eps)
            found = iter(torch.autograd.grad(output, asked, gradient, create_graph=torch.is_grad_enabled()))
            of_x, of_weight, of_bias = (next(found) if each.requires_grad else None for each in leaves)
        else:
            of_x, of_weight, of_bias = _backward(gradient, x, weight, *statistics)
        return of_x, None, of_weight, of_bias, None


def _forward(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The output, and of each group B×G the mean, what its rounding left of it, and 1/σ."""
    if x[0, 0].numel() >= _MANY:
        B, C, h, w = x.shape
        output, mean, scale = torch.native_group_norm(x, weight, bias, B, C, h * w, groups, eps)
        return output, mean, torch.zeros_like(mean), scale
    output = torch.empty_like(x)  # a tensor of its own, and no view, so that it may be changed in place
    mean, rest, scale = x.new_empty(3, len(x), groups)
    count = x[0].numel() // groups
    for picture, (rows, out) in _blocks(x, output):
        K = rows.shape[2] // groups
        torch.div(_of_groups(rows.sum(1), groups), count, out=mean[picture])
        centred = rows - _each(mean[picture], K)
        torch.div(_of_groups(centred.sum(1), groups), count, out=rest[picture])
        variance = _of_groups((centred * centred).sum(1), groups) / count - rest[picture].square()
        torch.rsqrt(variance.clamp_(min=0) + eps, out=scale[picture])
        slope = _each(scale[picture], K) * weight
        torch.addcmul(bias - _each(rest[picture], K) * slope, centred, slope, out=out)
    return output, mean, rest, scale


def _backward(
    gradient: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rest: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """With n the normed input and g the gradient times the weight: (g − mean g − n · mean g·n) / σ."""
    found, groups = torch.empty_like(x), mean.shape[1]
    count = x[0].numel() // groups
    of_weight, of_bias = torch.zeros_like(weight), torch.zeros_like(weight)
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    for picture, (rows, of_output, out) in _blocks(x, gradient, found):
        K = rows.shape[2] // groups
        of_sigma = _each(scale[picture], K)
        normed = (rows - _each(mean[picture], K)).sub_(_each(rest[picture], K)).mul_(of_sigma)
        along, alone = torch.mul(of_output, normed, out=out).sum(1), of_output.sum(1)  # B×C
        of_weight += along.sum(0)
        of_bias += alone.sum(0)
        both, one = (_each(_of_groups(each * weight, groups) / count, K) * of_sigma for each in (along, alone))
        torch.mul(of_output, of_sigma * weight, out=out).addcmul_(normed, both, value=-1).sub_(one)
    return found, of_weight, of_bias


def _blocks(*maps: Tensor) -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
    """A few pictures at a time: which, and of each map B×C×h×w the rows B×N×C, the same memory."""
    step = max(1, _BLOCK // max(1, maps[0][:1].numel()))
    rows = [each.permute(0, 2, 3, 1).flatten(1, 2) for each in maps]
    for first in range(0, len(maps[0]), step):
        picture = slice(first, first + step)
        yield picture, tuple(each[picture] for each in rows)


def _of_groups(of_channels: Tensor, groups: int) -> Tensor:
    """B×C → B×G: the sum over each group."""
    return of_channels.view(len(of_channels), groups, -1).sum(2)


def _each(of_groups: Tensor, channels: int) -> Tensor:
    """B×G → B×1×C: what each channel's group has."""
    return of_groups.repeat_interleave(channels, 1)[:, None]
