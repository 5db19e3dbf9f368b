"""A masked auto-encoder: three quarters of the patches are left out, and a small decoder paints them (arXiv 2111.06377).

The encoder sees the visible patches alone, which makes it four times as cheap as on the whole picture. A convolutional stem
would see the whole, and its words hold pixels of hidden neighbours: models that have one are refused.
Letters: B images, N patches, n visible ones, D width of the encoder, E of the decoder, P² · C numbers a patch.
"""

import torch
from torch import Tensor, nn

from patchword.core.errors import UsageError
from patchword.models.chance import HIDDEN_PATCHES, Chance, current
from patchword.models.contract import Model
from patchword.models.hybrid import StemmedViT
from patchword.models.layers import Block
from patchword.models.position import sincos
from patchword.models.vit import ViT
from patchword.training.objectives.objective import Unlabelled, with_patches

MASKED = 0.75
"""The share of patches that are left out, as in the source."""
_DEPTH, _HEAD_WIDTH = 2, 32
"""Of the decoder, which is half as wide as the encoder; the source's has 8 blocks of width 512."""
_LEAST_VARIANCE = 1e-6
"""Pictures with less in what is hidden of them are of one colour there, and nothing can be explained."""


class MaskedAutoencoder(Unlabelled):
    """The loss of each image is the mean squared error over the hidden patches, each of which has mean 0 and variance 1."""

    metric = "explained_variance"
    positions: Tensor

    def __init__(self, model: Model) -> None:
        super().__init__()
        model = with_patches(model, "masked-autoencoder")
        if isinstance(model, StemmedViT):
            raise UsageError(
                f"objective=masked-autoencoder hides pixels, which the convolutions of {model.name} would show; a plain ViT, "
                "or objective=masked-patch, would be right"
            )
        h, w = model.grid
        if visible_patches(h * w) == h * w:
            raise UsageError(
                f"objective=masked-autoencoder hides three of four patches, and {model.name} at {model.image_size[0]}×"
                f"{model.image_size[1]} has {h * w}; a smaller patch or a larger image_size would be right"
            )
        heads = max(1, model.num_features // 2 // _HEAD_WIDTH)
        width = heads * _HEAD_WIDTH
        self.entrance = nn.Linear(model.num_features, width)
        self.word = nn.Parameter(torch.empty(width))
        self.register_buffer("positions", sincos((h, w), width))
        self.blocks = nn.ModuleList(Block(width, heads, 4 * width) for _ in range(_DEPTH))
        self.norm = nn.LayerNorm(width)
        self.paint = nn.Linear(width, model.word_size)
        nn.init.normal_(self.word, std=0.02)
        for block in self.blocks:
            block.reset()  # pyright: ignore[reportCallIssue] (ModuleList does not say what it holds)
        for layer in (self.entrance, self.paint):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def measure(self, model: Model, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images B×C×H×W → losses B, and the share of the hidden patches' variance that is explained, B."""
        assert isinstance(model, ViT)
        B, N = len(images), model.grid[0] * model.grid[1]
        draws = (current() or Chance(0)).uniform(HIDDEN_PATCHES, (B, N), images.detach().float())
        order = draws.argsort(1)
        visible, hidden = order[:, : visible_patches(N)].sort().values, order[:, visible_patches(N) :]
        encoded = self.entrance(model.encode(model.embed(images), visible)[:, model.prefix :])  # B×n×E
        words = self.word.to(encoded.dtype).expand(B, N, -1)
        words = words.scatter(1, visible[:, :, None].expand_as(encoded), encoded)
        tokens = words + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        chosen = hidden[:, :, None]
        tokens = self.norm(tokens.gather(1, chosen.expand(-1, -1, tokens.shape[2])))
        truth = model.patchify(images)  # B×N×(C · P²)
        truth = truth.gather(1, chosen.expand(-1, -1, truth.shape[2]))
        variance, mean = torch.var_mean(truth, dim=2, keepdim=True)
        aims = (truth - mean) / (variance + 1e-6).sqrt()
        losses = ((self.paint(tokens).float() - aims) ** 2).mean((1, 2))
        # Patches of one colour have no variance: where there are any, what there is to explain is less than 1.
        there = (aims**2).mean((1, 2))
        return losses, torch.where(there > _LEAST_VARIANCE, 1 - losses.detach() / there.clamp(min=_LEAST_VARIANCE), 0.0)


def visible_patches(count: int) -> int:
    """How many of so many patches the encoder sees."""
    return max(1, round((1 - MASKED) * count))
