"""The names of ImageNet-1k's classes, for files that have the outputs and not the names."""

import functools
from pathlib import Path

_IMAGENET = "imagenet1k.txt"
"""One name a line, in the order of the outputs: that of the sorted WordNet ids (n01440764 is the first)."""


def imagenet_labels(num_classes: int) -> tuple[str, ...] | None:
    """The 1,000 names where there are as many classes, else None: other numbers say nothing of what the classes are."""
    return _names() if num_classes == 1000 else None


@functools.cache
def _names() -> tuple[str, ...]:
    return tuple(Path(__file__).with_name(_IMAGENET).read_text(encoding="utf-8").splitlines())
