"""What every model offers, whatever its family: ViT, hybrid, ResNet, EfficientNet."""

import copy
import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from patchword.core.errors import UsageError, nearest
from patchword.core.preprocessing import Preprocessing
from patchword.models.chance import Chance, Dropout, StochasticDepth, current, drawing_from

if TYPE_CHECKING:
    from PIL import Image


class Model(nn.Module, ABC):
    """Normalised images B×C×H×W → logits B×K, and everything one may want to see or change on the way.

    `labels` names the K outputs where they are known; `preprocessing` says what images the model expects. Both travel in
    every file that the model is saved to.
    """

    family: ClassVar[str]
    """The word for it in every file."""
    name: str
    config: Any
    """A frozen dataclass of the family's own, with a `stride`: both sides of an image are multiples of it."""
    head: nn.Linear | nn.Identity
    labels: tuple[str, ...] | None
    multi_label: bool = False
    """Whether an image may have several labels: then an output is a label's own log-odds, else one class's share."""
    provenance: dict[str, Any]
    """Where the weights come from, as the file they were read from says; empty for a new model."""
    preprocessing: Preprocessing
    has_attention: ClassVar[bool] = False
    replicates: ClassVar[bool] = True
    """Whether a replica on every core trains it faster than all cores do together on one."""
    has_batch_norm: ClassVar[bool] = False
    """Whether an image's activations in training depend on the others that pass through the model with it."""
    constant_body: bool = False
    """Whether all but the head is in training as in evaluation: no dropout, batch norm by its running figures."""
    recompute: bool = False
    """Whether training keeps the outputs of its blocks alone and computes what is in between twice: slower, in less memory."""

    def __init__(self, name: str, config: Any, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.name, self.config, self.preprocessing = name, config, preprocessing
        self.labels, self.provenance = None, {}

    @classmethod
    @abstractmethod
    def parse(cls, name: str) -> dict[str, Any] | None:
        """A model's name → the fields of its configuration; None for a name of another family."""

    @classmethod
    @abstractmethod
    def names(cls) -> list[str]:
        """Names of the usual models of the family, smallest first."""

    @classmethod
    def likely_names(cls, fields: dict[str, Any]) -> list[str]:
        """Names among which one for a configuration with these fields may be."""
        return cls.names()

    @abstractmethod
    def reset(self) -> Self:
        """Give every parameter its initial value, as in the original code."""

    @abstractmethod
    def features(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """B×C×H×W → B×D, what the last linear layer sees; where there is a grid, `keep` (B×n) are the patches to look at."""

    @abstractmethod
    def feature_map(self, images: Tensor) -> Tensor:
        """B×C×H×W → B×C'×h×w, the last features that still know where they are."""

    @abstractmethod
    def walk(self, images: Tensor, *, attention: bool = False) -> Iterator[tuple[str, Tensor]]:
        """Yield every intermediate result as it is made, so that memory stays flat; with the attention weights if asked."""

    @abstractmethod
    def stages(self) -> list[list[str]]:
        """Parameter names from the input to the output in groups, for layer-wise learning-rate decay."""

    def with_image_size(self, image_size: tuple[int, int]) -> Self:
        """The same weights for images of another H×W, as a model of its own."""
        other = copy.deepcopy(self)
        other.preprocessing = self.preprocessing.with_image_size(image_size)
        return other

    def regularize(self, *, dropout: float = 0.0, stochastic_depth: float = 0.0) -> None:
        """Set the regularisation that acts in training; a new or loaded model has none.

        `dropout` of a ViT is after every dense layer but queries, keys and values, and after adding positions (Table 3), of
        a convolutional network before the head. Branches are dropped more and more often from the first, never, to the
        last, at the rate of `stochastic_depth`; a single one is the first.
        """
        dropping = [module for module in self.modules() if isinstance(module, Dropout | StochasticDepth)]
        for stream, module in enumerate(dropping):
            module.stream = stream
            if isinstance(module, Dropout):
                module.p = dropout
        branches = self.branches()
        for i, branch in enumerate(branches):
            branch.p = stochastic_depth * i / max(1, len(branches) - 1)

    def run(self, part: nn.Module, *inputs: Any) -> Any:
        """`part(*inputs)`; where the model recomputes, what happens in between is forgotten and computed again backwards."""
        if not (self.recompute and self.training and torch.is_grad_enabled()):
            return part(*inputs)
        # The backward pass may run in a thread of its own, which must draw as this one did.
        contexts = functools.partial(_same_draws, current())
        return checkpoint(part, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)

    def train(self, mode: bool = True) -> Self:
        """As in torch, but for a constant body, which stays in evaluation mode."""
        super().train(mode)
        if self.constant_body:
            for part in self.children():
                part.train(mode and part is self.head)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """B×C×H×W → logits B×K (features B×D where the head was removed)."""
        return self.head(self.features(images))

    def probabilities(self, images: Tensor) -> Tensor:
        """B×C×H×W → B×K: each image's share for each class, or the probability of each label where several may hold."""
        logits = self(images)
        return logits.sigmoid() if self.multi_label else logits.softmax(dim=1)

    def intermediates(self, images: Tensor, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """The named results of `walk` (all but the attention weights when no names are given)."""
        if names is None:
            return dict(self.walk(images))
        wanted, found, offered = set(names), {}, []
        for name, value in self.walk(images, attention=any(name.endswith("/attention") for name in wanted)):
            offered.append(name)
            if name in wanted:
                found[name] = value
            if len(found) == len(wanted):
                return found
        missing = min(wanted - set(found))
        raise UsageError(f"{self.name} has no intermediate {missing!r}; {nearest(missing, offered)}")

    def replace_head(self, num_classes: int, labels: tuple[str, ...] | None = None) -> None:
        """A new zero-initialised linear layer for `num_classes` (0: none, the model gives features).

        Zeros make every class equally likely at the start, so that the first gradients do not disturb the body (section 3.2).
        """
        if labels is not None and len(labels) != num_classes:
            raise UsageError(f"{len(labels)} labels cannot name {num_classes} classes")
        self.labels = labels
        if num_classes == 0:
            self.head = nn.Identity()
            return
        reference = next(self.parameters())
        self.head = nn.Linear(self.num_features, num_classes, device=reference.device, dtype=reference.dtype)
        self.reset_head()

    def reset_head(self) -> None:
        """Zeros in the linear layer, if there is one."""
        if isinstance(self.head, nn.Linear):
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    @property
    def architecture(self) -> dict[str, Any]:
        """Plain values, enough to build the same model again (`patchword.models.names.build_model`)."""
        head = {"family": self.family, "name": self.name, "num_classes": self.num_classes}
        return {**head, **dataclasses.asdict(self.config)}

    @property
    @abstractmethod
    def num_features(self) -> int:
        """D, the width of `features`."""

    @property
    def grid(self) -> tuple[int, int] | None:
        """h×w patches where the encoder sees patches (ViT and hybrid), which then also have `embed`, `encode` and `pool`."""
        return None

    @property
    def num_classes(self) -> int:
        """K, or 0 where the head was removed."""
        return self.head.out_features if isinstance(self.head, nn.Linear) else 0

    @property
    def in_channels(self) -> int:
        """C, the channels of the images."""
        return self.preprocessing.channels

    @property
    def image_size(self) -> tuple[int, int]:
        """H×W of the images, in pixels."""
        return self.preprocessing.image_size

    def no_weight_decay(self) -> set[str]:
        """Parameters that decay never touches: biases, norms, tokens and positions."""
        return {name for name, parameter in self.named_parameters() if parameter.ndim < 2}

    def matrices(self) -> dict[str, int]:
        """The matrices and kernels, O×…, and how many matrices lie one below the other in each: what Muon is for.

        That is all that decays but the last linear layer.
        """
        spared = self.no_weight_decay()
        return {name: 1 for name, _ in self.named_parameters() if name not in spared and not name.startswith("head.")}

    @property
    def wants_images(self) -> bool:
        """Whether a new model begins with a look at training pictures."""
        return False

    def begin_with(self, images: Tensor) -> None:
        """Fit what training does not learn to some normalised training pictures B×C×H×W, once, after `reset`."""

    def normed_kernels(self) -> set[str]:
        """The kernels whose length means nothing, as a norm follows them or is in them: those without a bias."""
        return {
            f"{name}.weight"
            for name, module in self.named_modules()
            if isinstance(module, nn.Conv2d) and module.bias is None
        }

    def preprocess(self, pictures: "Image.Image | list[Image.Image]") -> Tensor:
        """A Pillow picture or a list of them → the batch that this model expects, float B×C×H×W, on its device."""
        reference = next(self.parameters())
        return self.preprocessing(pictures).to(reference)

    def check_images(self, images: Tensor) -> None:
        """One sentence instead of a shape error from deep inside."""
        expected = (self.in_channels, *self.image_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            c, h, w = expected
            raise UsageError(
                f"{self.name} takes images of B×{c}×{h}×{w}, not {'×'.join(map(str, images.shape))}; "
                "model.preprocess makes them and model.with_image_size changes the size"
            )

    def branches(self) -> list[StochasticDepth]:
        """What may be dropped in training, from the input to the output."""
        return [module for module in self.modules() if isinstance(module, StochasticDepth)]


def _same_draws(chance: Chance | None) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), drawing_from(chance)
