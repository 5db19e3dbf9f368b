"""Hybrids: the feature map of a ResNet in place of raw pixels, then the ViT (section 3.1, "Hybrid Architecture")."""

import dataclasses
import re
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, Self

from torch import Tensor

from patchword.core.errors import UsageError, nearest
from patchword.core.preprocessing import Preprocessing
from patchword.models.chance import StochasticDepth
from patchword.models.resnet import GROUPS, NUMERICS_V1, UNITS, Arithmetic, StemV1, stem_channels, stem_stride
from patchword.models.stem import Stem
from patchword.models.vit import SIZES, ViT, ViTConfig, encoder

STEMS: dict[str, tuple[tuple[int, ...], int]] = {
    # For small pictures and small budgets: ours.
    "R5": ((1,), 32),
    "R8": ((1, 1), 32),
    # "How to train your ViT" (arXiv 2106.10270), section 3.2; plain R is the root alone.
    "R": ((), 64),
    "R26": (UNITS["R26"], 64),
    # The paper's appendix B.1.
    "R50": (UNITS["R50"], 64),
}
"""Units of each stage, and channels after the root; the number counts three convolutions a unit, the root and the head."""
NAMED = ("R5+ViT-Fe/4", "R8+ViT-Pi/8", "R+ViT-Ti/16", "R26+ViT-S/32", "R50+ViT-B/16", "R50+ViT-B/32", "R50+ViT-L/16")
NAMED = (*NAMED, "R50+ViT-L/32")
"""Hybrids that `list_models` names; any other pair works too."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HybridConfig(ViTConfig):
    """A ViT's, and its stem's; `patch_size` is the total down-sampling, as the number in the name."""

    stem_units: tuple[int, ...]
    """Units of each stage."""
    stem_width: int = 64
    """Channels after the root."""
    stem_arithmetic: Arithmetic = "google"
    """Whose epsilons: they differ between Google's code and timm's, too little to matter but in a comparison of outputs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        stride = stem_stride(self.stem_units)
        if self.patch_size % stride:
            raise UsageError(
                f"model.patch_size={self.patch_size} must be a multiple of {stride}, the stem's own stride"
            )
        if self.stem_width < GROUPS or self.stem_width % GROUPS:
            raise UsageError(
                f"model.stem_width={self.stem_width} must be a multiple of the {GROUPS} groups of its norms"
            )
        if self.stem_arithmetic not in NUMERICS_V1:
            raise UsageError(
                f"model.stem_arithmetic is {self.stem_arithmetic!r}; {nearest(self.stem_arithmetic, NUMERICS_V1)}"
            )


class StemmedViT(ViT):
    """A ViT whose patches are places of the feature map of a convolutional stem, its `backbone`."""

    backbone: Stem

    @property
    @abstractmethod
    def stem_shape(self) -> tuple[int, int]:
        """Channels of the stem's feature map, and pixels between its neighbouring places."""

    def reset(self) -> Self:
        """Initial values as in the original code."""
        self.backbone.reset()
        return super().reset()

    @property
    def word_size(self) -> int:
        """Numbers in one patch: the channels of the feature map times the places that make a patch."""
        channels, stride = self.stem_shape
        return channels * (self.config.patch_size // stride) ** 2

    def project(self, images: Tensor) -> Tensor:
        """B×C×H×W → B×N×D: the patches of the feature map, projected."""
        return super().project(self.backbone(images, self.run))

    def walk(self, images: Tensor, *, attention: bool = False) -> Iterator[tuple[str, Tensor]]:
        """Yield `backbone/…` B×C×h×w as the stem makes them, then as a ViT."""
        self.check_images(images)
        x = images
        for name, x in self.backbone.walk(images, self.run):
            yield f"backbone/{name}", x
        yield from self._walk_encoder(super().project(x), attention)

    def branches(self) -> list[StochasticDepth]:
        """Those of the stem, then those of the encoder."""
        first = [module for module in self.backbone.modules() if isinstance(module, StochasticDepth)]
        return [*first, *(module for module in super().branches() if module not in first)]

    def stages(self) -> list[list[str]]:
        """The stem, the embedding, each block, and what comes after them."""
        first, *others = super().stages()
        backbone = [name for name in first if name.startswith("backbone.")]
        return [backbone, [name for name in first if name not in backbone], *others]


class Hybrid(StemmedViT):
    """A ViT whose patches are places of a ResNet's feature map."""

    family = "hybrid"
    config: HybridConfig  # pyright: ignore[reportIncompatibleVariableOverride] (it is a ViTConfig, and never replaced)

    def __init__(self, name: str, config: HybridConfig, preprocessing: Preprocessing, num_classes: int) -> None:
        super().__init__(name, config, preprocessing, num_classes)
        self.backbone = StemV1(preprocessing.channels, config.stem_units, config.stem_width, config.stem_arithmetic)

    @property
    def stem_shape(self) -> tuple[int, int]:
        """Channels and stride of the ResNet's feature map."""
        units = self.config.stem_units
        return stem_channels(units, self.config.stem_width), stem_stride(units)

    @classmethod
    def parse(cls, name: str) -> dict[str, Any] | None:
        """`R50+ViT-B/16` → the fields of the configuration; None for a name of another kind.

        A stem that would go below the number after the slash loses its last stages, and their units move to the last one
        that is left, as in the paper.
        """
        match = re.fullmatch(r"(R\d*)\+ViT-(\w+)/(\d+)", name)
        if match is None or match[1] not in STEMS or match[2] not in SIZES:
            return None
        (units, width), patch_size = STEMS[match[1]], int(match[3])
        while len(units) > 1 and stem_stride(units) > patch_size:
            units = (*units[:-2], units[-2] + units[-1])
        if name == "R+ViT-Ti/16":
            # Its patches are 8×8 places of the root's map. AugReg calls that 16, though the root alone has a stride of 4.
            patch_size = 32
        return {"patch_size": patch_size, **encoder(match[2]), "stem_units": units, "stem_width": width}

    @classmethod
    def names(cls) -> list[str]:
        """The paper's hybrids, AugReg's and two small ones."""
        return list(NAMED)

    @classmethod
    def likely_names(cls, fields: dict[str, Any]) -> list[str]:
        """Every stem with every size and the configuration's own down-sampling."""
        return [*NAMED, *(f"{stem}+{name}" for stem in STEMS for name in ViT.likely_names(fields))]
