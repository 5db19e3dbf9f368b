"""What every reader of another library's files asks: how large the tensors are, how often a name repeats, what the file or the
caller says and what has to be assumed; and the model that the answers make. Letters: D width.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from patchword.core.config import coerce
from patchword.core.errors import DataError, UsageError
from patchword.core.preprocessing import Preprocessing
from patchword.models.contract import Model
from patchword.models.names import build_model, config_type, name_of
from patchword.models.resnet import ResNet
from patchword.models.vit import ViT
from patchword.weights import mapping
from patchword.weights.labels import imagenet_labels
from patchword.weights.mapping import Foreign, Hints, Row, by, shape_of
from patchword.weights.source import CONFIG

T = TypeVar("T")
M = TypeVar("M", ViT, ResNet)

_IMAGE_SIDE = 224
"""Where nothing in a file depends on it, and nobody says it."""
_WIDE_HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16}
"""Heads of the sizes so400m, H, g and G, whose channels are not 64 each."""


@dataclasses.dataclass
class Reading:
    """A file on its way to a model. What is wrong with the file is a `DataError`, what contradicts it a `UsageError`."""

    where: str
    """The file or folder, for sentences."""
    tensors: dict[str, Tensor]
    hints: Hints
    assumed: list[str] = dataclasses.field(default_factory=list)
    """A sentence for each thing that neither the file nor the caller says."""
    dropped: dict[str, str] = dataclasses.field(default_factory=dict)
    """Name of a tensor → why the model is whole without it."""

    # What is no model of ours

    def refuse_parts(self, parts: Iterable[tuple[str, str]]) -> None:
        """Refuse a file with a tensor of a part that none of our models has; `parts` are patterns of names, and what it is."""
        for pattern, what in parts:
            if name := next((name for name in self.tensors if re.search(pattern, name)), None):
                raise self.stranger(name, what)

    def stranger(self, which: str, what: str) -> DataError:
        """The error for `which` tensor or word, that shows `what`."""
        return DataError(f"{self.where} ({which}) has {what}, which none of our models has")

    def refuse_hints(self, kind: str) -> None:
        """Refuse hints of everything but the image size, for a kind of model that has no such thing."""
        if given := self.hints.given():
            raise UsageError(f"{self.where} holds {kind}, which has nothing that {given[0]} could say")

    # What the tensors say

    def widen(self) -> None:
        """Bring all tensors to one type, float32 at least: what processors compute without detours, and no number changes."""
        known = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
        for name, tensor in self.tensors.items():
            if tensor.dtype not in known:
                kind = mapping.type_of(tensor)
                raise DataError(f"{self.where}: {name} holds {kind}; weights of 16, 32 or 64 bits are right")
        kinds = {tensor.dtype: mapping.type_of(tensor) for tensor in self.tensors.values()}
        widest = functools.reduce(torch.promote_types, kinds, torch.float32)
        wide = str(widest).removeprefix("torch.")
        if narrow := sorted(set(kinds.values()) - {wide}):
            self.assumed.append(f"{' and '.join(narrow)} tensors are widened to {wide}, which is exact")
        self.tensors = {name: tensor.to(widest) for name, tensor in self.tensors.items()}

    def shape(self, name: str, axes: int) -> tuple[int, ...]:
        """The shape of a tensor that must be there, with so many axes and none of them empty."""
        if name not in self.tensors:
            raise DataError(f"{self.where} lacks the tensor {name}, which every such model has")
        tensor = self.tensors[name]
        if tensor.ndim != axes or not tensor.numel():
            right = f"{axes} axes are right" if tensor.ndim != axes else "no axis may be empty"
            raise DataError(f"{self.where}: {name} is {shape_of(tensor)}; {right}")
        return tuple(tensor.shape)

    def count(self, before: str) -> int:
        """How many numbers stand behind `before`; a gap among them, or a number that no memory holds, leaves a tensor over."""
        pattern = re.compile(rf"{re.escape(before)}([0-9]+)[./]")
        return len({match[1] for name in self.tensors if (match := pattern.match(name))})

    def units(self, names: str, first: int) -> tuple[int, ...]:
        """Units of each stage of a ResNet, whose stages count from `first`: `stages.{}.blocks.` → (3, 4, 6, 3)."""
        stages = range(first, first + self.count(names.partition("{}")[0]))
        return tuple(self.count(names.format(stage)) for stage in stages)

    def check_channels(self, channels: int) -> None:
        """Images are grey or RGB."""
        if channels not in (1, 3):
            raise DataError(f"{self.where} takes images of {channels} channels; 1 (grey) or 3 (RGB) are right")

    # What they cannot say

    def says(self, name: str, told: T) -> T:
        """What the file says itself, which no hint may contradict."""
        hint = getattr(self.hints, name)
        if hint not in (None, told):
            raise UsageError(f"{self.where} says itself that {name} is {told}; {name}={hint} is wrong")
        return told

    def settle(self, name: str, told: T | None, default: T, why: str) -> T:
        """What the file says, else the caller, else `default`, which is said."""
        if told is not None:
            return self.says(name, told)
        if (hint := getattr(self.hints, name)) is not None:
            return hint
        self.assumed.append(f"{name}={default} is assumed, {why}")
        return default

    def num_heads(self, told: int | None, embed_dim: int, usual: tuple[int, str] | None) -> int:
        """The heads of attention; `usual` is what they are assumed to be, and why."""
        if told is None and self.hints.num_heads is None and usual is None:
            raise UsageError(
                f"{self.where} does not say its number of heads, and its width of {embed_dim} is no multiple of 64; "
                "give num_heads"
            )
        heads = self.settle("num_heads", told, *(usual or (0, "")))
        if heads < 1 or embed_dim % heads:
            if told is None:
                raise UsageError(f"{self.where}: num_heads={heads} does not divide the width of {embed_dim}")
            raise DataError(f"{self.where}: {CONFIG} says {heads} heads, which do not divide the width of {embed_dim}")
        return heads

    def any_size(self, stride: int, told: tuple[int, int] | None = None) -> tuple[int, int]:
        """H×W of the images of a model that takes any, as the file has `told` or the caller says."""
        size = told or self.hints.image_size
        if size is None:
            size = (_IMAGE_SIDE, _IMAGE_SIDE)
            self.assumed.append(f"image_size={by(size)} is assumed, for nothing in the file depends on it")
        return self._whole(size, stride)

    def grid_size(
        self, table: str, stride: int, embed_dim: int, slots: Sequence[int], told: tuple[int, int] | None = None
    ) -> tuple[tuple[int, int], int]:
        """H×W of the images that a position embedding is for, and how many of its first rows belong to other tokens.

        `slots` are how many there may be, the likeliest first. What the file has `told` must fit. A hint of the caller's that
        does not is a size to go to later; then the patches are a square.
        """
        one, rows, width = self.shape(table, 3)
        if (one, width) != (1, embed_dim):
            shape = shape_of(self.tensors[table])
            raise DataError(f"{self.where}: {table} is {shape}; 1×positions×{embed_dim} is right")
        fits = {rows - count: count for count in slots}
        if told is not None:
            grid = [side // stride for side in told]
            if math.prod(grid) not in fits:
                raise DataError(
                    f"{self.where}: {CONFIG} says image_size {by(told)}, which is {by(grid)} patches, but {table} has "
                    f"{rows} positions"
                )
            return self._whole(told, stride), fits[math.prod(grid)]
        hint = self.hints.image_size
        if hint is not None and not any(side % stride for side in hint):
            count = math.prod(side // stride for side in hint)
            if count in fits:
                return hint, fits[count]
        for count in slots:
            side = math.isqrt(max(0, rows - count))
            if side and side * side == rows - count:
                size, grid = (side * stride, side * stride), (side, side)
                self.assumed.append(
                    f"image_size={by(size)} is assumed: {by(grid)} of its {rows} positions are patches'"
                )
                return size, count
        raise DataError(
            f"{self.where} has {rows} positions, which are no square grid; image_size=HEIGHT×WIDTH of its training would be right"
        )

    def _whole(self, size: tuple[int, int], stride: int) -> tuple[int, int]:
        """A size of whole patches: all libraries drop the pixels beyond, on the right and at the bottom."""
        height, width = (max(1, side // stride) * stride for side in size)
        if (height, width) != size:
            self.assumed.append(f"image_size={height}×{width} is taken for {by(size)}, which {stride} does not divide")
        return height, width

    def unnamed(self, num_classes: int) -> tuple[str, ...] | None:
        """The labels of a file that has none: ImageNet-1k's for a thousand classes."""
        labels = imagenet_labels(num_classes)
        if num_classes:
            what = "have no names" if labels is None else "are taken for ImageNet-1k's"
            self.assumed.append(f"the file has no labels: its {num_classes} classes {what}")
        return labels

    # The model

    def build(self, family: type[M], fields: dict[str, Any], num_classes: int, preprocessing: Preprocessing) -> M:
        """The model on the meta device, under the name that its sizes have with us."""
        try:
            config = config_type(family)(**fields)
            head = {"family": family.family, "name": name_of(family, config), "num_classes": num_classes}
            return cast("M", build_model({**head, **dataclasses.asdict(config)}, preprocessing))
        except UsageError as error:
            raise DataError(f"{self.where} holds sizes that make no model: {error}") from error

    def fill(self, model: Model, rows: Iterable[Row]) -> Foreign:
        """Give the model its tensors, each of which is used exactly once or dropped."""
        mapping.read(rows, self.tensors, model, self.dropped, self.where)
        return Foreign(model, self.assumed, self.dropped)


class Fields:
    """The fields of a JSON file, each checked as it is asked for; a null says nothing."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def get(self, name: str, kind: Any = Any, default: Any = None) -> Any:
        """The field as `kind`, or the default where the file says nothing; `DataError` for another type."""
        value = self.values.get(name)
        if value is None:
            return default
        try:
            return coerce(value, kind, name)
        except UsageError as error:
            raise DataError(f"{self.where}: {error}") from error

    def number(self, name: str, default: float | None = None) -> float | None:
        """A finite number that is not negative."""
        value = self.get(name, float, default)
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise DataError(f"{self.where}: {name}={value} is out of range; a finite number from 0 is right")
        return value

    def pair(self, name: str) -> tuple[int, int] | None:
        """A side or (height, width), as whole numbers from 1."""
        value = self.get(name, int | tuple[int, int])
        pair = (value, value) if isinstance(value, int) else value
        if pair is not None and min(pair) < 1:
            raise DataError(f"{self.where}: {name}={value} is out of range; whole numbers from 1 are right")
        return pair


def usual_heads(embed_dim: int) -> tuple[int, str] | None:
    """The heads that a model of this width usually has, and why; None where there is no rule."""
    if embed_dim in _WIDE_HEADS:
        return _WIDE_HEADS[embed_dim], f"as usual at width {embed_dim}"
    return (embed_dim // 64, "64 channels a head") if embed_dim % 64 == 0 else None
