"""Linear layers on a CPU by oneDNN: the same functions as torch's own, which leaves them to MKL.

oneDNN's products are as fast as MKL's on AVX2 and more than twice as fast on AMD's AVX-512, which MKL does not use there.
In inference it also takes each residual into the product before it, and GELU where there is little of it.
Letters: B images, M tokens, Q tokens that ask, D width.
"""

import functools
import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchword.models.eager import eager

if TYPE_CHECKING:
    from patchword.models.layers import Block


_LITTLE = math.inf if torch.backends.cpu.get_cpu_capability() == "AVX512" else 1 << 15
"""Numbers up to which GELU goes into the product: for more of them that takes several times as long on AVX2."""


class Linear(nn.Linear):
    """A linear layer by the faster library."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name in torch)
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`torch.nn.functional.linear`, differentiable as often: …×I by weight O×I and bias O → …×O."""
    if not _fits(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        return _Product.apply(x, weight, bias)  # pyright: ignore[reportReturnType]
    return _product(x, weight, bias)


class _Product(torch.autograd.Function):
    """The backward pass is two products of the same kind; what neither needs is not kept for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        wants_x, wants_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if wants_weight else None, weight if wants_x else None)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        return (
            linear(gradient, weight.t(), None) if wants_x else None,
            _weight_gradient(rows, x.reshape(-1, x.shape[-1])) if wants_weight else None,
            rows.sum(0) if wants_bias else None,
        )


def _weight_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """N×O and N×I → O×I, by the product whose first factor is the narrower: up to a third faster for a few hundred columns."""
    if gradient.shape[1] > x.shape[1]:
        return linear(x.t(), gradient.t(), None).t()
    return linear(gradient.t(), x.t(), None)


def applies(block: "Block", x: Tensor) -> bool:
    """Whether `infer` may stand in for the plain path: in `torch.inference_mode()`, with nobody listening inside."""
    return (
        torch.is_inference_mode_enabled()
        and not block.training
        and _fits(x, block.norm1.weight)
        and block.attention.relative is None
        and block.scale1 is None
        # An adapter in the place of a layer wants to be called.
        and all(type(layer) is Linear for layer in (block.attention.proj, block.mlp.fc1, block.mlp.fc2))
        and not any(module._forward_hooks or module._forward_pre_hooks for module in block.modules())
    )


def infer(block: "Block", x: Tensor, rows: int | None, places: Tensor | None = None) -> Tensor:
    """B×M×D → B×Q×D, as `Block.forward`."""
    heads = F.scaled_dot_product_attention(*block.attention.heads(block.norm1(x), rows, places))
    return after_attention(block, x[:, :rows], heads)


def after_attention(block: "Block", x: Tensor, heads: Tensor) -> Tensor:
    """The input of a block B×Q×D and what its heads took from the values B×H×Q×K → its output B×Q×D."""
    mlp = block.mlp
    x = _product_plus(heads.transpose(1, 2).flatten(2), block.attention.proj, x)
    normed = block.norm2(x)
    if normed.shape[:-1].numel() * mlp.fc1.out_features <= _LITTLE:
        kind = "tanh" if mlp.gelu == "tanh" else "none"
        hidden = torch.ops.mkldnn._linear_pointwise(normed, mlp.fc1.weight, mlp.fc1.bias, "gelu", [], kind)
    else:
        hidden = mlp.activate(_product(normed, mlp.fc1.weight, mlp.fc1.bias))
    return _product_plus(hidden, mlp.fc2, x)


def _fits(x: Tensor, weight: Tensor) -> bool:
    return eager(x, weight) and _available()


@functools.cache
def _available() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # For weights with gaps between their numbers oneDNN has nothing but its reference, a hundred times as slow.
    dense = weight if weight.is_contiguous() or weight.t().is_contiguous() else weight.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, dense, bias, "none", [], "")


def _product_plus(x: Tensor, layer: nn.Linear, residual: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.binary(x, residual.contiguous(), layer.weight, layer.bias, "add")
