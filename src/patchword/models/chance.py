"""The random numbers of dropout and its kin, as pure functions of who asks.

Images are drawn for in grains of eight, counted over the whole batch: what an image gets depends on (key, its place in the
batch, the module, the use), and not on the images that pass through the model beside it, on other processes, or on whether
a block is computed twice (activation checkpointing).
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

GRAIN = 8
"""Images that one generator draws for. Parts of a batch that are multiples of it draw nothing in vain."""

PATCH_DROPOUT, CORRUPTED_PATCHES, HIDDEN_PATCHES = 2**40, 2**41, 2**42
"""Streams of what draws and is no module of a model; those of modules are small numbers. No two may draw alike."""

_MASK = 2**64 - 1


class Chance:
    """The random numbers for images `first`, `first` + 1, … of the batch that `key` stands for."""

    def __init__(self, key: int, first: int = 0) -> None:
        self.key, self.first = key, first

    def fill(
        self,
        stream: int,
        shape: tuple[int, ...],
        like: Tensor,
        draw: Callable[[Tensor, torch.Generator], object],
    ) -> Tensor:
        """A tensor of `shape`, one row an image, on the device and of the type of `like`; `draw(rows, generator)` fills it."""
        if like.is_meta:  # who only counts draws nothing
            return torch.empty(shape, dtype=like.dtype, device=like.device)
        low, high = self.first // GRAIN, -(-(self.first + shape[0]) // GRAIN)
        rows = torch.empty((high - low) * GRAIN, *shape[1:], dtype=like.dtype, device=like.device)
        generator = torch.Generator(like.device)
        for grain, part in enumerate(rows.split(GRAIN), low):
            generator.manual_seed(_mixed(_mixed(self.key + stream) + grain) >> 1)
            draw(part, generator)
        return rows[self.first - low * GRAIN :][: shape[0]]

    def uniform(self, stream: int, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """As `fill`, with numbers in [0, 1)."""
        return self.fill(stream, shape, like, lambda rows, source: rows.uniform_(generator=source))


class _Current(threading.local):
    chance: Chance | None = None


_current = _Current()


def current() -> Chance | None:
    """What this thread draws from; None: torch's global generator."""
    return _current.chance


@contextmanager
def drawing_from(chance: Chance | None) -> Iterator[None]:
    """Let the modules below draw from `chance` in this thread, for as long as the context lasts."""
    before, _current.chance = _current.chance, chance
    try:
        yield
    finally:
        _current.chance = before


class _Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.p = 0.0
        self.stream = 0
        """The number of this module among those of its model that drop something."""

    def drop(self, x: Tensor, shape: tuple[int, ...], use: int) -> Tensor:
        """x with a share p of zeros, drawn in `shape` and broadcast, and the rest scaled up to keep the expectation."""
        keep = 1 - self.p
        if _current.chance is None:
            kept = torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(keep)
        else:
            stream = 2 * self.stream + use
            kept = _current.chance.fill(stream, shape, x, lambda part, source: part.bernoulli_(keep, generator=source))
        return x * kept.div_(keep)


class Dropout(_Dropping):
    """Dropout of single numbers."""

    def forward(self, x: Tensor, use: int = 0) -> Tensor:
        """B×… → B×…; `use` is 0 or 1 where the module works in two places, which must not draw alike."""
        return self.drop(x, tuple(x.shape), use) if self.training and self.p else x


class StochasticDepth(_Dropping):
    """In training, drop the whole branch of an image and scale the others up (arXiv 1603.09382)."""

    def forward(self, x: Tensor, use: int = 0) -> Tensor:
        """B×… → B×…; `use` as in `Dropout`."""
        return self.drop(x, (len(x),) + (1,) * (x.ndim - 1), use) if self.training and self.p else x


def uncompiled() -> None:
    """Keep `torch.compile` away from what drops: it seeds generators, which the compiler does not follow."""
    # In the class: a copy of a model must not drop by a method of the module that it was copied from.
    setattr(_Dropping, "drop", torch.compiler.disable(_Dropping.drop))  # noqa: B010 (the type would forbid it)


def _mixed(x: int) -> int:
    """SplitMix64's finalizer: generators take their seed's low half only, so every bit must reach it."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
