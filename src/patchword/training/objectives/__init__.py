"""What training minimises: one file an objective."""

from patchword.training.objectives.distillation import Distillation
from patchword.training.objectives.masked_autoencoder import MaskedAutoencoder
from patchword.training.objectives.masked_patch import MaskedPatch
from patchword.training.objectives.objective import Objective, Unlabelled
from patchword.training.objectives.sigmoid import Sigmoid, start_at_prior
from patchword.training.objectives.softmax import Softmax

__all__ = [
    "UNLABELLED",
    "Distillation",
    "MaskedAutoencoder",
    "MaskedPatch",
    "Objective",
    "Sigmoid",
    "Softmax",
    "Unlabelled",
    "start_at_prior",
]

UNLABELLED: dict[str, type[MaskedPatch | MaskedAutoencoder]] = {
    "masked-patch": MaskedPatch,
    "masked-autoencoder": MaskedAutoencoder,
}
"""Those that learn from pictures alone, each of which is made for a model."""
