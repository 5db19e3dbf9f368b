"""Tensors that may be shared out over processes (FSDP2): in one piece, the share of this process, and back."""

from typing import Any

from torch import Tensor


def full_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same in one piece each; where they are sharded every process must ask, in the same order."""
    return {name: full(tensor) for name, tensor in tensors.items()}


def full(tensor: Tensor) -> Tensor:
    """A tensor in one piece."""
    gather: Any = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def as_sharded(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, laid out over devices and processes as `like` is."""
    if not hasattr(like, "full_tensor"):
        return tensor.to(like.device)
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def here(tensor: Tensor) -> Tensor:
    """What this process has of a tensor."""
    local: Any = getattr(tensor, "to_local", None)
    return tensor if local is None else local()
