"""Linear layers on a CPU by oneDNN: the same functions as torch's own, which leaves them to MKL.

oneDNN's products are as fast as MKL's on AVX2 and more than twice as fast on AMD's AVX-512, where MKL does without it.
In inference a whole block is made of them, each residual, and GELU, within the product before it.
Letters: B images, M tokens, Q tokens that ask, D width, H heads, K = D/H head width.
"""

import functools
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from patchword.models.layers import Block


class Linear(nn.Linear):
    """A linear layer by the faster library."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name in torch)
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`torch.nn.functional.linear`, differentiable as often: …×I by weight O×I and bias O → …×O."""
    if not _fits(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        return _Linear.apply(x, weight, bias)  # pyright: ignore[reportReturnType]
    return _linear(x, weight, bias)


class _Linear(torch.autograd.Function):
    """The backward pass is two products of the same kind; what neither needs is not kept for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        wants_x, wants_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if wants_weight else None, weight if wants_x else None)
        return _linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        return (
            linear(gradient, weight.t(), None) if wants_x else None,
            linear(rows.t(), x.reshape(-1, x.shape[-1]).t(), None) if wants_weight else None,
            rows.sum(0) if wants_bias else None,
        )


def _fits(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        and type(x) in (Tensor, nn.Parameter)
        and type(weight) in (Tensor, nn.Parameter)
        and _available()
    )


def applies(block: "Block", x: Tensor) -> bool:
    """Whether `infer` may stand in for the plain path: in `torch.inference_mode()`, with nobody listening inside."""
    return (
        torch.is_inference_mode_enabled()
        and not block.training
        and _fits(x, block.norm1.weight)
        and block.attention.relative is None
        and block.scale1 is None
        and all(type(layer) is Linear for layer in _linears(block))  # an adapter in its place wants to be called
        and not any(module._forward_hooks or module._forward_pre_hooks for module in block.modules())
    )


@functools.cache
def _available() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _linears(block: "Block") -> tuple[nn.Module, ...]:
    return block.attention.qkv, block.attention.proj, block.mlp.fc1, block.mlp.fc2


def infer(block: "Block", x: Tensor, rows: int | None) -> Tensor:
    """B×M×D → B×Q×D, as `Block.forward`."""
    B, M, D = x.shape
    H, qkv = block.attention.num_heads, block.attention.qkv
    asked = M if rows is None else rows
    normed = block.norm1(x)
    if rows is None:
        q, k, v = _linear(normed, qkv.weight, qkv.bias).view(B, M, 3, H, D // H).permute(2, 0, 3, 1, 4).unbind(0)
    else:
        q = _linear(normed[:, :rows], qkv.weight[:D], qkv.bias[:D]).view(B, rows, H, D // H).transpose(1, 2)
        k, v = _linear(normed, qkv.weight[D:], qkv.bias[D:]).view(B, M, 2, H, D // H).permute(2, 0, 3, 1, 4).unbind(0)
    attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, asked, D)
    x = _linear_plus(attended, block.attention.proj, x[:, :asked])
    fc1 = block.mlp.fc1
    hidden = _linear(block.norm2(x), fc1.weight, fc1.bias, gelu="tanh" if block.mlp.gelu == "tanh" else "none")
    return _linear_plus(hidden, block.mlp.fc2, x)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: str | None = None) -> Tensor:
    if gelu is None:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu", [], gelu)


def _linear_plus(x: Tensor, layer: nn.Linear, residual: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.binary(x, residual.contiguous(), layer.weight, layer.bias, "add")
