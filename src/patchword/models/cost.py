"""What a model costs: parameters, FLOPs and the memory of a training step, counted by shapes; `evaluation/speed.py` measures."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from patchword.models.contract import Model
from patchword.models.names import build_model

TRAINING_FACTOR = 3
"""A training step costs one forward pass and a backward pass of twice its FLOPs."""
EXA = 1e18
"""The paper's unit of pre-training, of FLOPs counted as here (appendix table 6: a ViT-B/16 for 7 epochs of JFT takes 224)."""
TPU_CORE_DAY = 2e18
"""FLOPs that a TPUv3 core did in a day of the paper's training (tables 2 and 6): 4,262 exaFLOPs in 2,500 core-days with a
ViT-H/14, 1,567 in 680 with a ViT-L/16, hence 1.7 and 2.3 exaFLOPs a core-day, about four tenths of its peak."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Counts for one image. A FLOP is one addition or one multiplication: a multiply-add counts twice."""

    params: int
    forward_flops: int
    """FLOPs of matrix products and convolutions, which are all but a few per cent; without what an adapter adds."""
    activation_bytes: int
    """What the forward pass keeps for the backward pass, in torch's default dtype; less where not everything learns."""

    @property
    def train_flops(self) -> int:
        """FLOPs of one image in a training step in which everything learns; an upper bound where less does."""
        return TRAINING_FACTOR * self.forward_flops


def cost(model: Model, work: Callable[[Model, Tensor], object] | None = None) -> Cost:
    """Count on the meta device: exact for the shapes at hand, and free of arithmetic.

    What is counted is the forward pass, or what `work` does with the model and an image 1×C×H×W in its place.
    """
    on_meta = all(parameter.is_meta for parameter in model.parameters())
    skeleton = model if on_meta else build_model(model.architecture, model.preprocessing)
    was_training = skeleton.training
    skeleton.train()
    for module in skeleton.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # one image may have too few places for statistics; it keeps the same tensors either way
    for name, module in skeleton.named_modules():
        learns = any(parameter.requires_grad for parameter in model.get_submodule(name).parameters(recurse=False))
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(learns)
    recompute, skeleton.recompute = model.recompute, False
    flops, kept = _count(skeleton, work)
    if recompute:
        # The outputs of the blocks, and what is in between of one of them: in a network of stages about a quarter of all.
        skeleton.recompute = recompute
        _, outputs = _count(skeleton, work)
        kept = outputs + (kept - outputs) // len(getattr(model, "blocks", range(4)))
    skeleton.train(was_training)
    return Cost(
        params=sum(parameter.numel() for parameter in skeleton.parameters()),
        forward_flops=flops,
        activation_bytes=kept,
    )


def exaflops(flops: float) -> float:
    """Training FLOPs in the paper's unit."""
    return flops / EXA


def tpu_core_days(flops: float) -> float:
    """How many days a TPUv3 core would train for so many FLOPs, at the rate of the paper's ViTs: to compare with its table 2."""
    return flops / TPU_CORE_DAY


def _count(skeleton: Model, work: Callable[[Model, Tensor], object] | None) -> tuple[int, int]:
    """FLOPs of the work on one image, and the bytes that it keeps."""
    images = torch.empty(1, skeleton.in_channels, *skeleton.image_size, device="meta")
    known = {_storage(tensor) for tensor in (*skeleton.parameters(), *skeleton.buffers())}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        # By its storage: what an operation keeps of its result is another tensor than what the next keeps of the same.
        if _storage(tensor) not in known:
            kept[_storage(tensor)] = tensor.untyped_storage().nbytes()
            alive.append(tensor)  # a storage is only told from others while it lives
        return tensor

    counter = FlopCounterMode(display=False)
    with counter, _FusedAttention(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        skeleton(images) if work is None else work(skeleton, images)
    return counter.get_total_flops(), sum(kept.values())


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class _FusedAttention(TorchFunctionMode):
    """Attention that keeps what fused kernels keep. The meta device has none, and would keep all weights, M×M for each head."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # With a mask that learns, which relative positions are, no kernel of a CPU is fused.
        if func is F.scaled_dot_product_attention and kwargs.get("attn_mask") is None:
            return _Attend.apply(*args)
        return func(*args, **kwargs)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).contiguous().transpose(1, 2)
        ctx.save_for_backward(q, k, v, heads, q.new_empty(q.shape[:-1]))  # the last is the logarithm of each row's sum
        return heads
