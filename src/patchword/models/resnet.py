"""ResNets with group norm and weight standardisation: v1, the stem of hybrids, and v2, which is BiT.

BiT ("Big Transfer", arXiv 1912.11370) is the convolutional network that the paper compares with; its units put norm and
ReLU before each convolution (arXiv 1603.05027). The stem of the hybrids (section 3.1) has them after it, as ResNets first
had (arXiv 1512.03385). Letters: B images, C channels, h×w places.
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchword.core.errors import UsageError, nearest
from patchword.core.preprocessing import Preprocessing
from patchword.models.chance import StochasticDepth
from patchword.models.convnet import ENCODED, ConvNet
from patchword.models.convolution import conv2d
from patchword.models.norm import group_norm
from patchword.models.stem import Run, Stem

UNITS: dict[str, tuple[int, ...]] = {
    # For small pictures and small budgets: ours.
    "R14": (1, 1, 1, 1),
    "R26": (2, 2, 2, 2),
    # "Deep Residual Learning" (arXiv 1512.03385), Table 1.
    "R50": (3, 4, 6, 3),
    "R101": (3, 4, 23, 3),
    "R152": (3, 8, 36, 3),
}
"""Units of each stage; the number counts three convolutions a unit, the root and the head."""
WIDTHS: dict[str, tuple[float, ...]] = {
    "R14": (0.25, 0.5),
    "R26": (0.5, 1),
    "R50": (1, 3),
    "R101": (1, 3),
    "R152": (2, 4),
}
"""Width factors that `list_models` names; any other multiple of a half works too, and a quarter."""
GROUPS = 32
"""Of every norm; one for each channel where there are fewer."""
NARROWEST = 16
"""Channels after the root of a quarter, where each has a group of its own; all other widths are multiples of 32."""

Arithmetic = Literal["google", "timm"]


class Numerics(NamedTuple):
    """Where the code that trained the released weights differs in arithmetic."""

    weight_eps: float
    eps_outside_sqrt: bool
    """Whether a kernel is divided by √variance + eps, else by √(variance + eps)."""
    norm_eps: float
    zero_padded_pool: bool = True
    """Whether the zeros around BiT's first feature map take part in its maximum (in v1 no number is below them)."""


NUMERICS_V1: dict[Arithmetic, Numerics] = {
    "google": Numerics(weight_eps=1e-5, eps_outside_sqrt=True, norm_eps=1e-6),
    "timm": Numerics(weight_eps=1e-8, eps_outside_sqrt=False, norm_eps=1e-5),
}
NUMERICS_V2: dict[Arithmetic, Numerics] = {
    "google": Numerics(weight_eps=1e-10, eps_outside_sqrt=False, norm_eps=1e-5, zero_padded_pool=False),
    "timm": Numerics(weight_eps=1e-8, eps_outside_sqrt=False, norm_eps=1e-5),
}
"""Google's JAX code (big_vision, models/bit_paper.py) takes the maximum of what is in the map; its TensorFlow code, which
trained the released files, and timm count the zeros in. They differ by a little at the border alone."""


class StandardizedConv(nn.Conv2d):
    """A convolution whose kernels have mean 0 and variance 1, each on its own (arXiv 1903.10520)."""

    def __init__(self, in_channels: int, out_channels: int, side: int, numerics: Numerics, *, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, side, stride, padding=side // 2, bias=False)
        self.numerics = numerics
        self._standardized: tuple[Tensor, int, int, Tensor] | None = None
        """The weights, their address and version, and the kernels made of them: a second copy, held for inference."""

    def reset_parameters(self) -> None:
        """LeCun-normal; only the direction of a kernel matters."""
        fan_in = self.in_channels * self.kernel_size[0] * self.kernel_size[1]
        nn.init.trunc_normal_(self.weight, std=fan_in**-0.5, a=-2 * fan_in**-0.5, b=2 * fan_in**-0.5)

    def kernel(self) -> Tensor:
        """The standardised kernels; in `torch.inference_mode()` they are made once and kept until the weights change."""
        if not torch.is_inference_mode_enabled() or self.weight.is_inference():
            self._standardized = None
            return self._standardize()
        weight, held = self.weight, self._standardized
        # Held itself, so that no other tensor can take its place in memory and be taken for it.
        same = held is not None and held[0] is weight and held[1:3] == (weight.data_ptr(), weight._version)
        if held is None or not same:
            self._standardized = held = (weight, weight.data_ptr(), weight._version, self._standardize())
        return held[3]

    def _standardize(self) -> Tensor:
        weight, numerics = self.weight, self.numerics
        if numerics.eps_outside_sqrt:
            variance, mean = torch.var_mean(weight, dim=(1, 2, 3), correction=0, keepdim=True)
            return (weight - mean) / (variance.sqrt() + numerics.weight_eps)
        rows = weight.flatten(1)
        return F.layer_norm(rows, rows.shape[1:], eps=numerics.weight_eps).view_as(weight)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (the name in torch)
        """B×C×h×w → B×C'×h'×w'."""
        return conv2d(input, self.kernel(), self.stride[0], self.kernel_size[0] // 2)


class SameConv(StandardizedConv):
    """The same, padded as TensorFlow's SAME: what a stride leaves over falls on the right and the bottom."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return F.conv2d(pad_same(input, self.kernel_size[0], self.stride[0]), self.kernel(), None, self.stride)


def pad_same(x: Tensor, side: int, stride: int) -> Tensor:
    """Zeros around B×C×h×w, so that a window of `side` fits ⌈h / stride⌉ × ⌈w / stride⌉ times."""
    height, width = (max(0, (-(-n // stride) - 1) * stride + side - n) for n in x.shape[2:])
    return F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2)) if height or width else x


class Norm(nn.GroupNorm):
    """Group norm, then ReLU where `relu`."""

    def __init__(self, channels: int, numerics: Numerics, *, relu: bool = True) -> None:
        super().__init__(min(GROUPS, channels), channels, eps=numerics.norm_eps)
        self.relu = relu

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        normed = group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
        return normed.relu_() if self.relu else normed


class UnitV1(nn.Module):
    """A bottleneck unit with norm and ReLU after each convolution."""

    def __init__(self, in_channels: int, width: int, stride: int, numerics: Numerics) -> None:
        super().__init__()
        self.conv1 = SameConv(in_channels, width, 1, numerics)
        self.norm1 = Norm(width, numerics)
        self.conv2 = SameConv(width, width, 3, numerics, stride=stride)
        self.norm2 = Norm(width, numerics)
        self.conv3 = SameConv(width, 4 * width, 1, numerics)
        self.norm3 = Norm(4 * width, numerics, relu=False)
        changes = stride > 1 or in_channels != 4 * width
        self.conv_proj = SameConv(in_channels, 4 * width, 1, numerics, stride=stride) if changes else None
        self.norm_proj = Norm(4 * width, numerics, relu=False) if changes else None
        self.stochastic_depth = StochasticDepth()

    def reset(self) -> None:
        """A unit begins as its residual: the last norm's scale is zero, as in the original code."""
        nn.init.zeros_(self.norm3.weight)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.norm2(self.conv2(self.norm1(self.conv1(x))))
        branch = self.stochastic_depth(self.norm3(self.conv3(branch)))
        if self.conv_proj is not None and self.norm_proj is not None:
            x = self.norm_proj(self.conv_proj(x))
        return (x + branch).relu_()


class UnitV2(nn.Module):
    """A bottleneck unit with norm and ReLU before each convolution."""

    def __init__(self, in_channels: int, width: int, stride: int, numerics: Numerics) -> None:
        super().__init__()
        self.norm1 = Norm(in_channels, numerics)
        self.conv1 = StandardizedConv(in_channels, width, 1, numerics)
        self.norm2 = Norm(width, numerics)
        self.conv2 = StandardizedConv(width, width, 3, numerics, stride=stride)
        self.norm3 = Norm(width, numerics)
        self.conv3 = StandardizedConv(width, 4 * width, 1, numerics)
        changes = stride > 1 or in_channels != 4 * width
        self.conv_proj = StandardizedConv(in_channels, 4 * width, 1, numerics, stride=stride) if changes else None
        self.stochastic_depth = StochasticDepth()

    def reset(self) -> None:
        """Nothing beyond its layers' own."""

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        residual = x if self.conv_proj is None else self.conv_proj(normed)
        branch = self.conv3(self.norm3(self.conv2(self.norm2(self.conv1(normed)))))
        return residual + self.stochastic_depth(branch)


Unit = UnitV1 | UnitV2


def make_stages(kind: type[Unit], units: tuple[int, ...], width: int, numerics: Numerics) -> nn.ModuleList:
    """Stages of units, each stage twice as wide as the one before and, but for the first, at half its resolution."""
    stages, in_channels = [], width
    for i, count in enumerate(units):
        stage = nn.ModuleList()
        for j in range(count):
            stage.append(kind(in_channels, width * 2**i, 2 if i and not j else 1, numerics))
            in_channels = 4 * width * 2**i
        stages.append(stage)
    return nn.ModuleList(stages)


def walk_stages(stages: nn.ModuleList, x: Tensor, run: Run) -> Iterator[tuple[str, Tensor]]:
    """Yield `stage1/unit1` … as they are made."""
    for i, stage in enumerate(stages, 1):
        assert isinstance(stage, nn.ModuleList)
        for j, unit in enumerate(stage, 1):
            x = run(unit, x)
            yield f"stage{i}/unit{j}", x


class StemV1(Stem):
    """Images → feature map for the patches of a hybrid: the ResNet without its head, at 1/4 of the side and less."""

    def __init__(self, in_channels: int, units: tuple[int, ...], width: int, arithmetic: Arithmetic) -> None:
        super().__init__()
        numerics = NUMERICS_V1[arithmetic]
        self.conv_root = SameConv(in_channels, width, 7, numerics, stride=2)
        self.norm_root = Norm(width, numerics)
        self.units = make_stages(UnitV1, units, width, numerics)

    def reset(self) -> None:
        """Initial values as in the original code."""
        reset_layers(self)

    def walk(self, images: Tensor, run: Run) -> Iterator[tuple[str, Tensor]]:
        """Yield `root`, `stage1/unit1` …, each B×C×h×w; units by `run(unit, x)`."""
        # Zeros are no greater than what a ReLU gives, so they may pad a maximum.
        images = images.contiguous(memory_format=torch.channels_last)  # 5 % faster on a CPU, more on GPUs
        x = F.max_pool2d(pad_same(self.norm_root(self.conv_root(images)), 3, 2), 3, 2)
        yield "root", x
        yield from walk_stages(self.units, x, run)


def stem_channels(units: tuple[int, ...], width: int) -> int:
    """Channels of the feature map that `StemV1` gives."""
    return 4 * width * 2 ** (len(units) - 1) if units else width


def stem_stride(units: tuple[int, ...]) -> int:
    """Pixels between its neighbouring places."""
    return 4 * 2 ** max(0, len(units) - 1)


def reset_layers(module: nn.Module) -> None:
    """Initial values of every convolution, norm and unit inside."""
    for each in module.modules():
        if isinstance(each, StandardizedConv | nn.GroupNorm):
            each.reset_parameters()
    for each in module.modules():
        if isinstance(each, UnitV1 | UnitV2):
            each.reset()


def _fits_groups(width: float) -> bool:
    """Whether the norms of a BiT of this width have whole groups."""
    return width == NARROWEST or (width >= GROUPS and not width % GROUPS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """Everything that makes a BiT ResNet what it is."""

    units: tuple[int, ...]
    """Of each stage."""
    width: int
    """Channels after the root; the narrow layers of stage i have width · 2ⁱ⁻¹, its output four times that."""
    arithmetic: Arithmetic = "google"
    """Whose epsilons and border: Google's code and timm's differ, too little to matter but in a comparison of outputs."""

    def __post_init__(self) -> None:
        if self.arithmetic not in NUMERICS_V2:
            raise UsageError(
                f"model.arithmetic={self.arithmetic!r} is not known; {nearest(self.arithmetic, NUMERICS_V2)}"
            )
        if not self.units or min(self.units) < 1:
            raise UsageError(f"model.units={self.units} must be at least 1 in at least one stage")
        if not _fits_groups(self.width):
            raise UsageError(
                f"model.width={self.width} must be {NARROWEST} or a multiple of the {GROUPS} groups of its norms"
            )

    @property
    def stride(self) -> int:
        """Sides of images must be multiples of it."""
        return 1


class ResNet(ConvNet):
    """BiT: a ResNet-v2 with group norm and standardised convolutions, average pooling and one linear layer."""

    family = "bit"
    config: ResNetConfig

    def __init__(self, name: str, config: ResNetConfig, preprocessing: Preprocessing, num_classes: int) -> None:
        super().__init__(name, config, preprocessing)
        numerics = NUMERICS_V2[config.arithmetic]
        self.conv_root = StandardizedConv(preprocessing.channels, config.width, 7, numerics, stride=2)
        self.units = make_stages(UnitV2, config.units, config.width, numerics)
        self.norm = Norm(self.num_features, numerics)
        self.make_head(num_classes)

    @classmethod
    def parse(cls, name: str) -> dict[str, Any] | None:
        """`BiT-R50x1` → the fields of the configuration; None for a name of another kind."""
        match = re.fullmatch(r"BiT-(R\d+)x(\d+(?:\.\d+)?)", name)
        if match is None or match[1] not in UNITS:
            return None
        width = 64 * float(match[2])
        if not _fits_groups(width):
            raise UsageError(
                f"{name!r}: the width factor {match[2]} is neither 0.25 nor a multiple of 0.5, which its norms need"
            )
        return {"units": UNITS[match[1]], "width": int(width)}

    @classmethod
    def names(cls) -> list[str]:
        """The usual models, smallest first."""
        return [f"BiT-{size}x{factor:g}" for size, factors in WIDTHS.items() for factor in factors]

    @classmethod
    def likely_names(cls, fields: dict[str, Any]) -> list[str]:
        """Every depth with the configuration's own width."""
        return [f"BiT-{size}x{fields['width'] / 64:g}" for size in UNITS]

    def reset(self) -> Self:
        """Initial values as in the original code; the head begins with zeros."""
        reset_layers(self)
        self.reset_head()
        return self

    def trunk(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield `stem` and each `stage1/unit1` B×C×h×w, and `encoded` B×D×h×w."""
        root = self.conv_root(images.contiguous(memory_format=torch.channels_last))  # 5 % faster on a CPU, more on GPUs
        if NUMERICS_V2[self.config.arithmetic].zero_padded_pool:
            stem = F.max_pool2d(F.pad(root, (1, 1, 1, 1)), 3, 2)
        else:
            stem = F.max_pool2d(root, 3, 2, padding=1)
        yield "stem", stem
        x = stem
        for name, x in walk_stages(self.units, stem, self.run):
            yield name, x
        yield ENCODED, self.norm(x)

    def stages(self) -> list[list[str]]:
        """The root, each unit, and what comes after them."""
        groups: dict[str, list[str]] = {}
        for name, _ in self.named_parameters():
            place = name.split(".")
            groups.setdefault(".".join(place[1:3]) if place[0] == "units" else place[0], []).append(name)
        ends = [*groups.pop("norm"), *groups.pop("head", [])]
        return [*groups.values(), ends]

    @property
    def num_features(self) -> int:
        return 4 * self.config.width * 2 ** (len(self.config.units) - 1)
