"""What convolutional networks share: a trunk that ends in a feature map, its average, one linear layer."""

from abc import abstractmethod
from collections.abc import Iterator

from torch import Tensor, nn

from patchword.core.errors import UsageError
from patchword.models.chance import Dropout
from patchword.models.contract import Model

ENCODED = "encoded"
"""The name of the trunk's last result, B×D×h×w."""


class ConvNet(Model):
    """A family states its `trunk`; the rest is here. Its constructor ends with `make_head`."""

    # oneDNN's convolutions use all cores well, and batch norm allows no second replica.
    replicates = False
    dropout: Dropout

    @abstractmethod
    def trunk(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """B×C×H×W → yield `stem`, each `stage1/unit1` and at last `encoded`, which is B×D×h×w."""

    def make_head(self, num_classes: int) -> None:
        """Dropout, and a linear layer for `num_classes`; 0: none."""
        self.dropout = Dropout()
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def walk(self, images: Tensor, *, attention: bool = False) -> Iterator[tuple[str, Tensor]]:
        """Yield what the trunk yields, and `pre_logits` B×D. There are no attention weights."""
        self.check_images(images)
        x = images
        for name, x in self.trunk(images):
            yield name, x
        yield "pre_logits", self.pool(x)

    def features(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """B×C×H×W → B×D."""
        if keep is not None:
            raise UsageError(f"{self.name} has no patches to choose from; a ViT or a hybrid has")
        return self.pool(self.feature_map(images))

    def feature_map(self, images: Tensor) -> Tensor:
        """B×C×H×W → B×D×h×w, before pooling."""
        self.check_images(images)
        x = images
        for _, x in self.trunk(images):  # noqa: B007 (the last one is wanted, and no other kept)
            pass
        return x

    def pool(self, encoded: Tensor) -> Tensor:
        """B×D×h×w → B×D."""
        return self.dropout(encoded.mean(dim=(2, 3)))
