"""Linear layers on a CPU by the faster of torch's two libraries, MKL and oneDNN: the same functions as torch's own.

torch leaves them to MKL. On AMD's processors with AVX-512, which MKL does not use there, oneDNN is more than twice as fast; on
Intel's, where MKL does, it is ahead by what it adds to products forward (bias, GELU) and behind by up to half in the gradients of
weights; without AVX-512 it is behind in all. In inference each residual goes into the product before it by either.
Letters: B images, M tokens, Q tokens that ask, D width, I numbers in, O numbers out.
"""

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchword.models.eager import eager

if TYPE_CHECKING:
    from patchword.models.layers import Block

# By what the processor can do, and not by the clock: the same machine computes the same bits.
ONEDNN = (
    torch.backends.cpu.get_cpu_capability() == "AVX512"
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
"""Whether products go to oneDNN, by a private door of torch."""


def _is_intels() -> bool:
    try:
        with Path("/proc/cpuinfo").open() as lines:
            return any("GenuineIntel" in line for line in lines if line.startswith("vendor_id"))
    except OSError:  # Windows, where this names the maker
        return "GenuineIntel" in platform.processor()


ONEDNN_BACKWARD = ONEDNN and not _is_intels()
"""Whether those of the backward pass go there, too."""


class Linear(nn.Linear):
    """A linear layer by the faster library."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name in torch)
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`torch.nn.functional.linear`, differentiable as often: …×I by weight O×I and bias O → …×O."""
    if not ONEDNN or not eager(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        return _Product.apply(x, weight, bias)  # pyright: ignore[reportReturnType]
    return by_onednn(x, weight, bias)


class _Product(torch.autograd.Function):
    """The backward pass is two products; what neither needs is not kept for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        wants_x, wants_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if wants_weight else None, weight if wants_x else None)
        return by_onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        return (
            _backward_product(gradient, weight.t()) if wants_x else None,
            _weight_gradient(rows, x.reshape(-1, x.shape[-1])) if wants_weight else None,
            rows.sum(0) if wants_bias else None,
        )


def _weight_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """N×O and N×I → O×I, by the product whose first factor is the narrower: up to a third faster for a few hundred columns."""
    if gradient.shape[1] > x.shape[1]:
        return _backward_product(x.t(), gradient.t()).t()
    return _backward_product(gradient.t(), x.t())


def _backward_product(x: Tensor, weight: Tensor) -> Tensor:
    """A product of the backward pass, by the library that is the faster there; itself differentiable."""
    return linear(x, weight, None) if ONEDNN_BACKWARD else F.linear(x, weight)


def by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product by oneDNN, whatever the machine; float32 on a CPU, and no gradient."""
    # For weights with gaps between their numbers it has nothing but its reference, a hundred times as slow.
    dense = weight if weight.is_contiguous() or weight.t().is_contiguous() else weight.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, dense, bias, "none", [], "")


def applies(block: "Block", x: Tensor) -> bool:
    """Whether `infer` may stand in for the plain path: in `torch.inference_mode()`, with nobody listening inside."""
    return (
        torch.is_inference_mode_enabled()
        and not block.training
        and eager(x, block.norm1.weight)
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
    x = _plus(x, block.attention.proj, heads.transpose(1, 2).flatten(2))
    normed = block.norm2(x)
    if ONEDNN:
        kind = "tanh" if mlp.gelu == "tanh" else "none"
        hidden = torch.ops.mkldnn._linear_pointwise(normed, mlp.fc1.weight, mlp.fc1.bias, "gelu", [], kind)
    else:
        hidden = mlp.activate(mlp.fc1(normed))
    return _plus(x, mlp.fc2, hidden)


def _plus(residual: Tensor, layer: nn.Linear, x: Tensor) -> Tensor:
    """What a layer makes of x, …×I, added to …×O."""
    if ONEDNN:
        return torch.ops.mkldnn._linear_pointwise.binary(x, residual.contiguous(), layer.weight, layer.bias, "add")
    # MKL adds a product to what is there, and is given the bias there in any case.
    sum_ = residual + layer.bias
    return sum_.flatten(0, -2).addmm_(x.flatten(0, -2), layer.weight.t()).view_as(sum_)
