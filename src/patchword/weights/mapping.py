"""Tables between our tensors and another library's: for each of ours, what holds it there and how it lies.

A dialect is a list of `Row`s made for one model; `read` and `write` do the same work in both directions, and are strict.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from patchword.core.errors import DataError, UsageError
from patchword.models.contract import Model
from patchword.models.layers import Gelu
from patchword.models.names import build_model
from patchword.models.position import Position
from patchword.models.vit import ViT
from patchword.weights.folder import is_finite


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

    def given(self) -> list[str]:
        """The names of what is said of the model itself, which its image size is not."""
        names = ("num_heads", "gelu", "norm_eps", "position")
        return [name for name in names if getattr(self, name) is not None]


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
                f"{by(state[row.ours])}"
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


def _number(tensor: Tensor, name: str, where: str) -> Tensor:
    """The tensor in float32, or in float64 where it is: what processors compute without detours. No value changes."""
    if not tensor.is_floating_point():
        raise DataError(f"{where}: {name} holds {type_of(tensor)}; weights are floating point")
    if not is_finite(tensor):
        raise DataError(f"{where}: {name} holds values that are not finite; the file is damaged, or was written so")
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def tabled(model: ViT, keep: Collection[Position] = ("1d",)) -> ViT:
    """The same function of images with its positions as one learned table, unless they are of a kind to `keep`.

    The class token's row is zero, and all rows are where there are no positions.
    """
    if model.config.position in keep:
        return model
    token, patches = int(model.config.pool == "token"), model.position.patches()
    table = model.patch_embed.weight.new_zeros(token + math.prod(model.grid), model.config.embed_dim)
    if patches is not None:
        table[token:] = patches.detach()
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("position.")}
    twin = build_model({**model.architecture, "position": "1d"}, model.preprocessing)
    twin.load_state_dict({**state, "position.table": table}, assign=True)
    twin.labels = model.labels
    return cast("ViT", twin)


def refuse(whose: str, model: Model, reasons: Mapping[str, bool]) -> None:
    """Raise `UsageError` for the first of `reasons` that holds: what of the model their format has no place for."""
    if reason := next((reason for reason, holds in reasons.items() if holds), None):
        raise UsageError(f"{whose} format cannot hold {reason} of {model.name}; format='patchword' would be right")


def by(sides: Iterable[int]) -> str:
    """`14×22`."""
    return "×".join(map(str, sides))


def shape_of(tensor: Tensor) -> str:
    """`24×3×8`."""
    return by(tensor.shape) or "a single number"


def type_of(tensor: Tensor) -> str:
    """`float32`."""
    return str(tensor.dtype).removeprefix("torch.")
