"""EfficientNet (arXiv 1905.11946) by torchvision, under our contract: the convolutional network that Table 2 compares with."""

import dataclasses
import functools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

from torch import Tensor, nn

from patchword.core.errors import UsageError
from patchword.core.preprocessing import Preprocessing
from patchword.models.contract import Model, last
from patchword.models.layers import Dropout, StochasticDepth


class Scale(NamedTuple):
    """How a member is scaled up from B0."""

    width: float
    depth: float
    norm_eps: float


SCALES: dict[str, Scale] = {
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


class EfficientNet(Model):
    """Inverted bottlenecks with squeeze-and-excitation and batch norm."""

    family = "efficientnet"
    has_batch_norm = True
    config: EfficientNetConfig

    def __init__(self, name: str, config: EfficientNetConfig, preprocessing: Preprocessing, num_classes: int) -> None:
        super().__init__(name, config, preprocessing)
        try:
            from torchvision.models import efficientnet
        except ImportError as error:
            raise UsageError(f"{name} takes torchvision: pip install 'patchword[data]'") from error
        rows = [efficientnet.MBConvConfig(*row, width_mult=config.width, depth_mult=config.depth) for row in _B0]
        norm = functools.partial(nn.BatchNorm2d, eps=config.norm_eps, momentum=0.01 if config.norm_eps > 1e-4 else 0.1)
        network = efficientnet.EfficientNet(rows, dropout=0.0, norm_layer=norm)
        self.layers: nn.Sequential = network.features
        if preprocessing.channels != 3:
            stem = self.layers[0]
            assert isinstance(stem, nn.Sequential)
            stem[0] = nn.Conv2d(preprocessing.channels, rows[0].input_channels, 3, 2, padding=1, bias=False)
        for module in self.layers.modules():
            if hasattr(module, "stochastic_depth"):
                module.stochastic_depth = StochasticDepth()  # whose random numbers can be chosen
        self._num_features: int = 4 * rows[-1].out_channels
        self.dropout = Dropout()
        self.head = nn.Linear(self._num_features, num_classes) if num_classes else nn.Identity()

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

    def walk(self, images: Tensor, *, attention: bool = False) -> Iterator[tuple[str, Tensor]]:
        """Yield `stem` and each `stage1/unit1` B×C×h×w, `norm_pre_head` B×D×h×w and `pre_logits` B×D."""
        self.check_images(images)
        stem, *stages, last = self.layers
        x = stem(images)
        yield "stem", x
        for i, stage in enumerate(stages, 1):
            assert isinstance(stage, nn.Sequential)
            for j, unit in enumerate(stage, 1):
                x = unit(x)
                yield f"stage{i}/unit{j}", x
        x = last(x)
        yield "norm_pre_head", x
        yield "pre_logits", self.dropout(x.mean(dim=(2, 3)))

    def features(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """B×C×H×W → B×D."""
        self.refuse_keep(keep)
        return last(self.walk(images))

    def feature_map(self, images: Tensor) -> Tensor:
        """B×C×H×W → B×D×h×w before pooling."""
        return next(x for name, x in self.walk(images) if name == "norm_pre_head")

    def stages(self) -> list[list[str]]:
        """The stem, each unit, and what comes after them."""
        last = str(len(self.layers) - 1)
        groups: dict[str, list[str]] = {}
        for name, _ in self.named_parameters():
            first, *rest = name.split(".")
            ends = first == "head" or rest[0] == last
            groups.setdefault("ends" if ends else ".".join(rest[: 1 if rest[0] == "0" else 2]), []).append(name)
        return list(groups.values())

    def regularize(self, *, dropout: float = 0.0, stochastic_depth: float = 0.0) -> None:
        """Dropout before the head; stochastic depth grows linearly from 0 in the first unit to its full rate in the last."""
        self.dropout.p = dropout
        self.set_stochastic_depth(stochastic_depth)

    @property
    def num_features(self) -> int:
        return self._num_features
