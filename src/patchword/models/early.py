"""A few plain convolutions before the encoder: the hybrid for small pictures and small budgets (docs/pretraining.md)."""

import dataclasses
import re
from typing import Any, ClassVar, cast

from torch import Tensor

from patchword.core.config import coerce
from patchword.core.errors import UsageError
from patchword.core.preprocessing import Preprocessing
from patchword.models.hybrid import StemmedViT
from patchword.models.stem import Activation, EarlyConvolutions
from patchword.models.vit import SIZES, ViT, ViTConfig, encoder

CHANNELS: dict[str, tuple[int, ...]] = {
    "C2": (24, 64),
    "C3": (16, 48, 96),
    "C4x0.5": (8, 16, 32, 64),
    "C4": (16, 32, 64, 128),
}
"""After each halving of the side. The factor says how wide they are, as in BiT's names."""
NAMED = ("C4x0.5+ViT-At/16", "C3+ViT-Fe/8", "C3+ViT-Pi/8")
"""Those that `list_models` names; any other pair works too."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EarlyConvConfig(ViTConfig):
    """A ViT's, and its stem's; `patch_size` is the total down-sampling, as the number in the name."""

    stem_channels: tuple[int, ...]
    """After each halving of the side."""
    stem_depth: int = 1
    """Convolutions at each of them."""
    stem_whitening: int = 0
    """Channels of a fixed convolution before all others, which whitens the training pictures (`stem.Whitening`); 0 has none."""
    stem_activation: Activation = "relu"
    """After each convolution that learns."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stem_depth < 1:
            raise UsageError(f"model.stem_depth={self.stem_depth} must be at least 1")
        if self.stem_whitening < 0 or self.stem_whitening % 2:
            raise UsageError(f"model.stem_whitening={self.stem_whitening} must be an even number, or 0")
        coerce(self.stem_activation, Activation, "model.stem_activation")
        if not self.stem_channels or min(self.stem_channels) < 1:
            raise UsageError(
                f"model.stem_channels={self.stem_channels} must have a width of at least 1 for each halving"
            )
        if self.patch_size % (stride := 2 ** len(self.stem_channels)):
            raise UsageError(
                f"model.patch_size={self.patch_size} must be a multiple of {stride}, which {len(self.stem_channels)} "
                "halvings make of one pixel"
            )


class EarlyConvViT(StemmedViT):
    """A ViT whose patches are places of the map that a few convolutions give."""

    family = "early-conv"
    has_batch_norm: ClassVar[bool] = True
    config: EarlyConvConfig  # pyright: ignore[reportIncompatibleVariableOverride] (it is a ViTConfig, and never replaced)

    def __init__(self, name: str, config: EarlyConvConfig, preprocessing: Preprocessing, num_classes: int) -> None:
        super().__init__(name, config, preprocessing, num_classes)
        self.backbone = EarlyConvolutions(
            preprocessing.channels,
            config.stem_channels,
            config.stem_depth,
            config.stem_whitening,
            config.stem_activation,
        )

    @property
    def wants_images(self) -> bool:
        """Whether it has whitening."""
        return bool(self.config.stem_whitening)

    def begin_with(self, images: Tensor) -> None:
        """Whiten pictures such as these, normalised B×C×H×W."""
        stem = cast("EarlyConvolutions", self.backbone)
        if stem.whitening is not None:
            stem.whitening.fit(images)

    @property
    def stem_shape(self) -> tuple[int, int]:
        """Channels and stride of the last convolution's map."""
        return self.config.stem_channels[-1], 2 ** len(self.config.stem_channels)

    @classmethod
    def parse(cls, name: str) -> dict[str, Any] | None:
        """`C3+ViT-Fe/8` → the fields of the configuration; None for a name of another kind."""
        match = re.fullmatch(r"(C\d(?:x0\.5)?)\+ViT-(\w+)/(\d+)", name, re.ASCII)
        if match is None or match[1] not in CHANNELS or match[2] not in SIZES:
            return None
        return {"patch_size": int(match[3]), **encoder(match[2]), "stem_channels": CHANNELS[match[1]]}

    @classmethod
    def names(cls) -> list[str]:
        """Three small ones."""
        return list(NAMED)

    @classmethod
    def likely_names(cls, fields: dict[str, Any]) -> list[str]:
        """Every stem with every size and the configuration's own down-sampling."""
        return [f"{stem}+{name}" for stem in CHANNELS for name in ViT.likely_names(fields)]
