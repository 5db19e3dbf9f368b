"""Stems: what stands before the encoder of a hybrid, and gives the feature map that its patches are places of.

Letters: B images, C channels, H×W pixels, h×w places.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Literal, cast

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


Activation = Literal["relu", "silu"]
"""x where it is positive, or x·sigmoid(x), which is smooth (arXiv 1702.03118)."""


class EarlyConvolutions(Stem):
    """3×3 convolutions, each followed by batch norm and activation, the first at each size by a 2×2 maximum too ("Early
    convolutions", arXiv 2106.14881, have a stride of 2 in its place).

    The maximum comes before norm and activation, which then cost a quarter; the norm's statistics are those of the maxima.
    """

    def __init__(
        self,
        in_channels: int,
        channels: tuple[int, ...],
        depth: int = 1,
        whitening: int = 0,
        activation: Activation = "relu",
    ) -> None:
        """`channels` after each halving of the side, `depth` convolutions at each; before them, `whitening` channels or none."""
        super().__init__()
        self.depth, self.activation = depth, activation
        self.whitening = Whitening(in_channels, whitening) if whitening else None
        widths = (whitening or in_channels, *(width for width in channels for _ in range(depth)))
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1, bias=False) for before, after in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[1:])

    @torch.no_grad()
    def reset(self) -> None:
        """Kernels uniform in ±1/√fan-in, as torch has them, and the identity of as many channels as there are on both sides."""
        if self.whitening is not None:
            self.whitening.reset()
        for module in (*self.convs, *self.norms):
            module.reset_parameters()  # pyright: ignore[reportCallIssue] (ModuleList does not say what it holds)
        for conv in self.convs:
            kernel = cast("nn.Conv2d", conv).weight
            kernel.diagonal(dim1=0, dim2=1)[1, 1].add_(1.0)

    def walk(self, images: Tensor, run: Run) -> Iterator[tuple[str, Tensor]]:
        """Yield `white` where there is whitening, then `conv1`, `conv2`, …, each B×C×h×w."""
        x = images.contiguous(memory_format=torch.channels_last)
        if self.whitening is not None:
            x = self.whitening(x)
            yield "white", x
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = conv(x)
            x = norm(x if number % self.depth else F.max_pool2d(x, 2))
            x = F.silu(x) if self.activation == "silu" else x.relu_()
            yield f"conv{number + 1}", x


_MOST_PATCHES = 2**21
"""Written out together: 0.2 GB. Those of 2,000 images are fewer at 32 px; at 224 px they would take 10 GB, and a copy as much."""
_LEAST_VARIANCE = 1e-2
"""Added to the eigenvalues: what hardly ever varies is mostly noise."""


class Whitening(nn.Module):
    """A fixed 2×2 convolution into what is independent and equally strong in training pictures, and into its negative; a bias
    that learns, and ReLU.

    Its kernels are eigenvectors of the pictures' 2×2 patches, divided by the root of their eigenvalues, the strongest first
    ("94% on CIFAR-10 in 3.29 seconds on a single GPU", arXiv 2404.00498, section 3.2).
    """

    kernels: Tensor

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("kernels", torch.empty(channels, in_channels, 2, 2))
        self.bias = nn.Parameter(torch.empty(channels))

    def reset(self) -> None:
        """Pixels as they are, until `fit` has seen pictures."""
        half = len(self.kernels) // 2
        self._set(torch.eye(self.kernels[0].numel())[:half])
        nn.init.zeros_(self.bias)

    def fit(self, images: Tensor) -> None:
        """Take the eigenvectors of normalised images B×C×H×W."""
        places, width = (images.shape[2] - 1) * (images.shape[3] - 1), self.kernels[0].numel()
        moments = images.new_zeros(width, width, dtype=torch.float64)
        for part in images.split(max(1, _MOST_PATCHES // places)):
            patches = F.unfold(part.double(), 2).transpose(1, 2).flatten(0, 1)
            moments += patches.T @ patches
        values, vectors = torch.linalg.eigh(moments / (len(images) * places))
        self._set((vectors / (values + _LEAST_VARIANCE).sqrt()).T.flip(0)[: len(self.kernels) // 2])

    @torch.no_grad()
    def _set(self, rows: Tensor) -> None:
        """Rows n×(C·2·2) → the first n kernels of each half; what is left of them stays zero."""
        self.kernels.zero_()
        for first, sign in ((0, 1.0), (len(self.kernels) // 2, -1.0)):
            self.kernels[first : first + len(rows)] = sign * rows.reshape(-1, *self.kernels.shape[1:])

    def forward(self, images: Tensor) -> Tensor:
        """B×C×H×W → B×C'×H×W; right and below of the picture is the mean colour."""
        return F.conv2d(F.pad(images, (0, 1, 0, 1)), self.kernels, self.bias).relu_()
