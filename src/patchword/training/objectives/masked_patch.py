"""Masked patch prediction: self-supervision as in BERT (appendix B.1.2).

Half of the patches are corrupted: 80 % of these become a learned word, 10 % another patch of the picture, 10 % stay as they
are. From each corrupted patch's place the encoder's output predicts the patch's mean colour, three bits a channel, which are
512 classes for pictures of three channels.
Letters: B images, N patches, n corrupted ones, D width, C channels, V colours.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchword.core.errors import UsageError
from patchword.models.chance import CORRUPTED_PATCHES, Chance, current
from patchword.models.contract import Model
from patchword.models.vit import ViT
from patchword.training.objectives.objective import Unlabelled, with_patches

CORRUPTED, WORD, OTHER = 0.5, 0.8, 0.1
"""The share of patches that are corrupted, and of these those that become the word, and another patch."""
_BITS = 3


class MaskedPatch(Unlabelled):
    """The loss of each image is the mean cross-entropy over its corrupted patches."""

    metric = "masked_accuracy"
    least = 0.0

    def __init__(self, model: Model) -> None:
        super().__init__()
        model = with_patches(model, "masked-patch")
        if model.grid[0] * model.grid[1] < 2:
            raise UsageError(
                f"objective=masked-patch needs two patches or more, and {model.name} at {model.image_size[0]}×"
                f"{model.image_size[1]} has one; a smaller patch or a larger image_size would be right"
            )
        self.word = nn.Parameter(torch.empty(model.num_features))
        self.choices = 2 ** (_BITS * model.in_channels)
        self.head = nn.Linear(model.num_features, self.choices)
        nn.init.normal_(self.word, std=0.02)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def measure(self, model: Model, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images B×C×H×W → losses B, and the share of each one's corrupted patches whose colour is found, B."""
        assert isinstance(model, ViT)
        colours = mean_colours(model, images)
        words = model.project(images)
        corrupted, fates, others = _draw(words)
        another = words.gather(1, others.expand_as(words))  # of the whole picture, before any of it is hidden
        words = torch.where(fates == 1, self.word.to(words.dtype), words)
        words = torch.where(fates == 2, another, words)
        encoded = model.encode(model.place(words))[:, model.prefix :]
        asked = encoded.gather(1, corrupted[:, :, None].expand(-1, -1, encoded.shape[2]))  # B×n×D
        logits, answers = self.head(asked), colours.gather(1, corrupted)
        losses = F.cross_entropy(logits.flatten(0, 1), answers.flatten(), reduction="none").view(answers.shape)
        return losses.mean(1), (logits.argmax(2) == answers).float().mean(1)

    def answers(self, model: Model, images: Tensor) -> Tensor:
        """The colours of all patches, int64 B×N."""
        assert isinstance(model, ViT)
        return mean_colours(model, images)


def mean_colours(model: ViT, images: Tensor) -> Tensor:
    """Normalised images B×C×H×W → int64 B×N: each patch's mean colour in three bits a channel, the first channel's highest."""
    colours = F.adaptive_avg_pool2d(model.preprocessing.denormalize(images), model.grid)  # 0…1
    levels = (colours * 2**_BITS).long().clamp(0, 2**_BITS - 1)
    powers = 2 ** (_BITS * torch.arange(images.shape[1] - 1, -1, -1, device=images.device))
    return (levels * powers[:, None, None]).sum(1).flatten(1)


def _draw(words: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For words B×N×D: the corrupted places B×n; what becomes of each place, B×N×1 (1 the word, 2 another); which other."""
    B, N = words.shape[:2]
    draws = (current() or Chance(0)).uniform(CORRUPTED_PATCHES, (B, N, 3), words.detach().float())
    corrupted = draws[:, :, 0].topk(max(1, round(CORRUPTED * N))).indices.sort().values
    chosen = torch.zeros(B, N, dtype=torch.bool, device=words.device).scatter_(1, corrupted, True)
    fate = draws[:, :, 1]
    fates = chosen * ((fate < WORD).long() + 2 * ((fate >= WORD) & (fate < WORD + OTHER)).long())
    steps = 1 + (draws[:, :, 2] * (N - 1)).long().clamp(max=N - 2)  # never the patch itself
    others = (torch.arange(N, device=words.device) + steps) % N
    return corrupted, fates[:, :, None], others[:, :, None]
