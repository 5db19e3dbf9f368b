"""When arithmetic of our own may stand in for torch's: in plain float32 on a CPU, done now and seen by nobody else."""

import torch
from torch import Tensor, nn
from torch._C._functorch import is_legacy_batchedtensor
from torch.autograd import forward_ad


def eager(*tensors: Tensor) -> bool:
    """Whether these are numbers of float32 on a CPU, and what is done with them is done now and to them alone.

    Nothing traces, compiles, casts or transforms it (`torch.func`), and no derivative is carried forward.
    """
    return (
        # First, for a compiler that comes to what it cannot trace leaves off there, and goes on after it.
        not torch.compiler.is_compiling()
        and all(
            type(each) in (Tensor, nn.Parameter)
            and each.device.type == "cpu"
            and each.dtype == torch.float32
            and each.numel() > 0
            and not is_legacy_batchedtensor(each)  # of `is_grads_batched`
            for each in tensors
        )
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )


def again(gradient: Tensor) -> bool:
    """Whether a backward pass is itself to be differentiated, or is for many gradients at once: then it has to be torch's own."""
    return torch.is_grad_enabled() or not eager(gradient)
