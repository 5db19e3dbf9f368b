"""EfficientNet (arXiv 1905.11946) by torchvision, under our contract: the convolutional network that Table 2 compares with."""

import dataclasses
import functools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from patchword.core.errors import UsageError
from patchword.core.preprocessing import Preprocessing
from patchword.models.chance import StochasticDepth
from patchword.models.convnet import ENCODED, ConvNet
from patchword.models.convolution import DepthwiseConv


class Scale(NamedTuple):
    """How a member is scaled from B0, and the epsilon of its batch norms."""

    width: float
    depth: float
    norm_eps: float


SCALES: dict[str, Scale] = {
    # For small pictures and small budgets: ours, by the paper's own rule, 1.1 and 1.2 to the power of −4.
    "Na": Scale(0.68, 0.48, 1e-5),
    "B0": Scale(1.0, 1.0, 1e-5),
    "B1": Scale(1.0, 1.1, 1e-5),
    "B2": Scale(1.1, 1.2, 1e-5),
    "B3": Scale(1.2, 1.4, 1e-5),
    "B4": Scale(1.4, 1.8, 1e-5),
    "B5": Scale(1.6, 2.2, 1e-3),
    "B6": Scale(1.8, 2.6, 1e-3),
    "B7": Scale(2.0, 3.1, 1e-3),
    "L2": Scale(4.3, 5.3, 1e-3),  # Noisy Student (arXiv 1911.04252), Table 7
}
# torchvision's two settings for its batch norms: those of the original code from B5 on, its own defaults below.
_MOMENTUM = {1e-3: 0.01, 1e-5: 0.1}
# B0 (Table 1): expansion, kernel side, stride, channels in and out, layers.
_B0 = (
    (1, 3, 1, 32, 16, 1),
    (6, 3, 2, 16, 24, 2),
    (6, 5, 2, 24, 40, 2),
    (6, 3, 2, 40, 80, 3),
    (6, 5, 1, 80, 112, 3),
    (6, 5, 2, 112, 192, 4),
    (6, 3, 1, 192, 320, 1),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EfficientNetConfig:
    """Everything that makes an EfficientNet what it is."""

    width: float
    """The factor on B0's channels."""
    depth: float
    """The factor on its layers."""
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.width <= 0 or self.depth <= 0:
            raise UsageError(f"model.width={self.width} and model.depth={self.depth} must be greater than 0")

    @property
    def stride(self) -> int:
        """Sides of images must be multiples of it."""
        return 1


class EfficientNet(ConvNet):
    """Inverted bottlenecks with squeeze-and-excitation and batch norm."""

    family = "efficientnet"
    has_batch_norm = True
    config: EfficientNetConfig

    def __init__(self, name: str, config: EfficientNetConfig, preprocessing: Preprocessing, num_classes: int) -> None:
        super().__init__(name, config, preprocessing)
        try:
            from torchvision.models import efficientnet
            from torchvision.ops import Conv2dNormActivation
        except ImportError as error:
            raise UsageError(f"{name} needs torchvision: pip install torchvision") from error
        rows = [efficientnet.MBConvConfig(*row, width_mult=config.width, depth_mult=config.depth) for row in _B0]
        norm = functools.partial(nn.BatchNorm2d, eps=config.norm_eps, momentum=_MOMENTUM.get(config.norm_eps, 0.1))
        network = efficientnet.EfficientNet(rows, dropout=0.0, norm_layer=norm)
        self.layers: nn.Sequential = network.features
        if preprocessing.channels != 3:
            stem = self.layers[0]
            assert isinstance(stem, nn.Sequential)
            stem[0] = nn.Conv2d(preprocessing.channels, rows[0].input_channels, 3, 2, padding=1, bias=False)
        for module in self.layers.modules():
            if (
                isinstance(module, Conv2dNormActivation)
                and isinstance(conv := module[0], nn.Conv2d)
                and conv.groups > 1
            ):
                module[0] = DepthwiseConv(conv.out_channels, conv.kernel_size[0], conv.stride[0])
            if isinstance(module, efficientnet.MBConv):
                # Ours draws random numbers that can be chosen; where there is no residual, nothing is dropped.
                branch = StochasticDepth() if module.use_res_connect else nn.Identity()
                setattr(module, "stochastic_depth", branch)  # noqa: B010 (torchvision's type would forbid it)
        self._num_features: int = 4 * rows[-1].out_channels
        self.make_head(num_classes)

    @classmethod
    def parse(cls, name: str) -> dict[str, Any] | None:
        """`EfficientNet-B0` → the fields of the configuration; None for a name of another kind."""
        match = re.fullmatch(r"EfficientNet-(\w+)", name)
        return SCALES[match[1]]._asdict() if match is not None and match[1] in SCALES else None

    @classmethod
    def names(cls) -> list[str]:
        """All of them, smallest first."""
        return [f"EfficientNet-{size}" for size in SCALES]

    def reset(self) -> Self:
        """Kaiming-normal convolutions, as in torchvision; the head begins with zeros."""
        for module in self.layers.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
        self.reset_head()
        return self

    def trunk(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield `stem` and each `stage1/unit1` B×C×h×w, and `encoded` B×D×h×w."""
        stem, *stages, top = self.layers
        x = stem(images.contiguous(memory_format=torch.channels_last))
        yield "stem", x
        for i, stage in enumerate(stages, 1):
            assert isinstance(stage, nn.Sequential)
            for j, unit in enumerate(stage, 1):
                x = self.run(unit, x)
                yield f"stage{i}/unit{j}", x
        yield ENCODED, top(x)

    def stages(self) -> list[list[str]]:
        """The stem, each unit, and what comes after them."""
        top = str(len(self.layers) - 1)
        groups: dict[str, list[str]] = {}
        for name, _ in self.named_parameters():
            first, *rest = name.split(".")
            ends = first == "head" or rest[0] == top
            groups.setdefault("ends" if ends else ".".join(rest[: 1 if rest[0] == "0" else 2]), []).append(name)
        return list(groups.values())

    @property
    def num_features(self) -> int:
        return self._num_features
