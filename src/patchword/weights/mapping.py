"""Tables between our tensors and another library's: for each of ours, what holds it there and how it lies.

A dialect is a list of `Row`s made for one model; `read` and `write` do the same work in both directions, and are strict.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from patchword.core.errors import DataError, UsageError
from patchword.models.contract import Model
from patchword.models.layers import Gelu
from patchword.models.names import build_model
from patchword.models.position import Position
from patchword.models.vit import ViT


@dataclasses.dataclass(frozen=True)
class Row:
    """One tensor of ours and where it is in the other library, in one piece or in several."""

    ours: str
    theirs: tuple[str, ...]
    read: Callable[..., Tensor]
    """Their pieces, in order → ours."""
    write: Callable[[Tensor], Sequence[Tensor]]
    """Ours → their pieces, in order; the inverse of `read`, bit for bit."""


def same(ours: str, theirs: str) -> Row:
    """The very same tensor under another name."""
    return Row(ours, (theirs,), lambda tensor: tensor, lambda tensor: (tensor,))


def shaped(ours: str, theirs: str, mine: Sequence[int], other: Sequence[int]) -> Row:
    """The same numbers in the same order, in another shape."""
    return Row(ours, (theirs,), lambda tensor: tensor.reshape(mine), lambda tensor: (tensor.reshape(other),))


def stacked(ours: str, theirs: Sequence[str]) -> Row:
    """Ours is theirs, one below the other: queries, keys and values in one matrix."""
    # `stack` refuses pieces of different shapes, which `cat` would take where they add up to the right one.
    return Row(
        ours, tuple(theirs), lambda *pieces: torch.stack(pieces).flatten(0, 1), lambda tensor: tensor.chunk(len(theirs))
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hints:
    """What tensors alone cannot say, as far as the caller says it."""

    num_heads: int | None = None
    gelu: Gelu | None = None
    norm_eps: float | None = None
    position: Position | None = None
    image_size: tuple[int, int] | None = None
    """H×W; decides the grid where the number of positions fits it."""


@dataclasses.dataclass
class Foreign:
    """A model as another library's file describes it, and what there is to say about it."""

    model: Model
    assumed: list[str] = dataclasses.field(default_factory=list)
    """A sentence for each thing that the file does not say and no argument said."""
    dropped: dict[str, str] = dataclasses.field(default_factory=dict)
    """Name of a tensor → why the model is whole without it."""


def read(
    rows: Iterable[Row], tensors: Mapping[str, Tensor], model: Model, dropped: Mapping[str, str], where: str
) -> None:
    """Fill `model`, which is on the meta device, from another library's `tensors`, each of which is used exactly once.

    `dropped` are names that the dialect leaves out on purpose. Raises `DataError` that names the tensor for one that is
    missing, is left over, has another shape or holds values that are not finite.
    """
    rows = list(rows)
    state = {name: value.shape for name, value in model.state_dict().items()}
    found: dict[str, Tensor] = {}
    for row in rows:
        for name in row.theirs:
            if name not in tensors:
                raise DataError(f"{where} lacks the tensor {name}, which {model.name} needs for its {row.ours}")
        pieces = [_number(tensors[name], name, where) for name in row.theirs]
        try:
            value = row.read(*pieces)
        except RuntimeError as error:
            shapes = ", ".join(shape_of(piece) for piece in pieces)
            raise DataError(f"{where}: {row.theirs[0]} is {shapes}, which does not fit {model.name}") from error
        if value.shape != state[row.ours]:
            raise DataError(
                f"{where}: {row.theirs[0]} gives {shape_of(value)} for {row.ours}, of which {model.name} has "
                f"{'×'.join(map(str, state[row.ours]))}"
            )
        found[row.ours] = value
    used = {name for row in rows for name in row.theirs}
    if left := sorted(set(tensors) - used - set(dropped)):
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise DataError(f"{where} has the tensor {left[0]}{more}, which {model.name} has no place for")
    if lacking := sorted(set(state) - set(found)):
        raise DataError(f"{where} says nothing of {lacking[0]}, which {model.name} has")
    model.load_state_dict({name: value.contiguous() for name, value in found.items()}, assign=True)


def write(rows: Iterable[Row], model: Model) -> dict[str, Tensor]:
    """The model's tensors under the other library's names; every tensor of ours is written exactly once."""
    state = model.state_dict()
    written: dict[str, Tensor] = {}
    done = set()
    for row in rows:
        pieces = row.write(state[row.ours].detach().cpu())
        for name, piece in zip(row.theirs, pieces, strict=True):
            assert name not in written, f"two rows write {name}"
            written[name] = piece.contiguous()
        done.add(row.ours)
    if left := sorted(set(state) - done):
        raise UsageError(f"{model.name}: {left[0]} has no place in that format")
    return written


def with_table(model: ViT, patches: Tensor) -> ViT:
    """The same function of images with learned 1-D positions: `patches`, N×D, and zeros for the class token."""
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("position.")}
    slot = patches.new_zeros(int(model.config.pool == "token"), patches.shape[1])
    state["position.table"] = torch.cat([slot, patches.detach()])
    twin = build_model({**model.architecture, "position": "1d"}, model.preprocessing)
    twin.load_state_dict(state, assign=True)
    twin.labels, twin.multi_label = model.labels, model.multi_label
    assert isinstance(twin, ViT)
    return twin


def _number(tensor: Tensor, name: str, where: str) -> Tensor:
    """The tensor in float32, or in float64 where it is: what processors compute without detours. No value changes."""
    if not tensor.is_floating_point():
        raise DataError(f"{where}: {name} holds {str(tensor.dtype).removeprefix('torch.')}; weights are floating point")
    # A sum is finite where all of its terms are, unless they are huge: only then look at each.
    if not bool(tensor.sum().isfinite()) and not bool(tensor.isfinite().all()):
        raise DataError(f"{where}: {name} holds values that are not finite; the file is damaged, or was written so")
    return tensor if tensor.dtype == torch.float64 else tensor.float()


_WIDE_HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16}
"""Heads of the sizes so400m, H, g and G, whose channels are not 64 each."""


def usual_heads(embed_dim: int) -> tuple[int, str] | None:
    """The heads that a model of this width usually has, and why; None where there is no rule."""
    if embed_dim in _WIDE_HEADS:
        return _WIDE_HEADS[embed_dim], f"as usual at width {embed_dim}"
    return (embed_dim // 64, "64 channels a head") if embed_dim % 64 == 0 else None


def shape_of(tensor: Tensor) -> str:
    """`24×3×8`."""
    return "×".join(map(str, tensor.shape)) or "a single number"
