"""Stems: what stands before the encoder of a hybrid, and gives the feature map that its patches are places of.

Letters: B images, C channels, H×W pixels, h×w places.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Run = Callable[[nn.Module, Tensor], Tensor]
"""How a part is computed: plainly, or so that it is computed again in the backward pass (`Model.run`)."""


class Stem(nn.Module, ABC):
    """Images → a feature map, step by step."""

    @abstractmethod
    def reset(self) -> None:
        """Initial values."""

    @abstractmethod
    def walk(self, images: Tensor, run: Run) -> Iterator[tuple[str, Tensor]]:
        """Yield every result B×C×h×w by its name; parts that may be computed twice by `run(part, x)`."""

    def forward(self, images: Tensor, run: Run) -> Tensor:
        """B×C×H×W → B×C'×h×w."""
        x = images
        for _, x in self.walk(images, run):  # noqa: B007 (the last one is wanted, and no other kept)
            pass
        return x


class EarlyConvolutions(Stem):
    """3×3 convolutions, each followed by a 2×2 maximum, batch norm and ReLU ("Early convolutions", arXiv 2106.14881).

    The maximum comes before norm and ReLU, which gives the same and costs a quarter of it.
    """

    def __init__(self, in_channels: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        widths = (in_channels, *channels)
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1, bias=False) for before, after in zip(widths, channels, strict=False)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in channels)

    def reset(self) -> None:
        """As torch has them: kernels uniform in ±1/√fan-in."""
        for module in (*self.convs, *self.norms):
            module.reset_parameters()  # pyright: ignore[reportCallIssue] (ModuleList does not say what it holds)

    def walk(self, images: Tensor, run: Run) -> Iterator[tuple[str, Tensor]]:
        """Yield `conv1`, `conv2`, …, each B×C×h×w at half the side of the one before."""
        x = images.contiguous(memory_format=torch.channels_last)
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True), 1):
            x = norm(F.max_pool2d(conv(x), 2)).relu_()
            yield f"conv{number}", x
