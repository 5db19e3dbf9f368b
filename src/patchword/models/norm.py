"""Group norm on a CPU, for maps whose channels lie side by side (channels-last), as those of our convolutions do.

torch's own goes number by number there where a group has few channels: forward and backward up to twenty times as long as the
same on other maps, and a third of a training step of a narrow BiT. Here all is done with whole rows of channels, in two passes:
the mean first, then the variance around it.
Letters: B images, N places, C channels, G groups of K channels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from patchword.models.onednn import eager

_FEW = 8
"""Channels of a group from which on torch takes whole vectors, too."""


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`torch.nn.functional.group_norm` of B×C×h×w, differentiable as often."""
    beside = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    if not beside or x.shape[1] >= _FEW * groups or not eager(x, weight, bias):
        return F.group_norm(x, groups, weight, bias, eps)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or bias.requires_grad):
        return _GroupNorm.apply(x, groups, weight, bias, eps)  # pyright: ignore[reportReturnType]
    return _forward(x, groups, weight, bias, eps)[0]


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        output, mean, scale = _forward(x, groups, weight, bias, eps)
        ctx.save_for_backward(x, weight, bias, mean, scale)
        ctx.how = (groups, eps)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (x, weight, bias, mean, scale), (groups, eps) = gradients, ctx.saved_tensors, ctx.how
        if torch.is_grad_enabled():  # it is to be differentiated again
            asked = [each for each in (x, weight, bias) if each.requires_grad]
            found = iter(
                torch.autograd.grad(F.group_norm(x, groups, weight, bias, eps), asked, gradient, create_graph=True)
            )
            of_x, of_weight, of_bias = (next(found) if each.requires_grad else None for each in (x, weight, bias))
        else:
            of_x, of_weight, of_bias = _backward(gradient, x, weight, mean, scale)
        return of_x, None, of_weight, of_bias, None


def _forward(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The output, and the mean and 1/σ of each group, B×G."""
    rows = _rows(x)
    (B, N, _), K = rows.shape, x.shape[1] // groups
    output = torch.empty_like(x)  # a tensor of its own, and no view, so that it may be changed in place
    mean = rows.sum(1).view(B, groups, K).sum(2) / (N * K)
    centred = rows - _each(mean, K)
    variance = (centred * centred).sum(1).view(B, groups, K).sum(2) / (N * K)
    scale = (variance + eps).rsqrt()
    torch.addcmul(bias, centred, _each(scale, K) * weight, out=_rows(output))
    return output, mean, scale


def _backward(
    gradient: Tensor, x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """With n the normed input and g the gradient times the weight: (g − mean g − n · mean g·n) / σ."""
    rows = _rows(gradient.contiguous(memory_format=torch.channels_last))
    (B, N, C), G = rows.shape, mean.shape[1]
    K = C // G
    normed = (_rows(x) - _each(mean, K)).mul_(_each(scale, K))
    along, alone = (rows * normed).sum(1), rows.sum(1)  # B×C
    of_both, of_gradient = ((each * weight).view(B, G, K).sum(2) / (N * K) for each in (along, alone))
    found = rows * (_each(scale, K) * weight)
    found.addcmul_(normed, _each(of_both * scale, K), value=-1).sub_(_each(of_gradient * scale, K))
    return found.view(B, *x.shape[2:], C).permute(0, 3, 1, 2), along.sum(0), alone.sum(0)


def _rows(x: Tensor) -> Tensor:
    """B×C×h×w → B×N×C, the same memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _each(of_groups: Tensor, channels: int) -> Tensor:
    """B×G → B×1×C: what each channel's group has."""
    return of_groups.repeat_interleave(channels, 1)[:, None]
