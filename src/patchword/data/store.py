"""A whole split decoded once: flat uint8 memory with offsets, every picture in its own size."""

import functools
import hashlib
import multiprocessing
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from patchword.core.errors import FaultError
from patchword.core.picture import DecodeError
from patchword.data.dataset import Split
from patchword.data.decoding.decode import decode, header
from patchword.data.formula import Drawn

if TYPE_CHECKING:
    from patchword.data.feed import Stop

MEMORY_SHARE = 0.25
"""Decoded pictures are kept in memory when all splits take at most this share of what is free."""
MOST_BAD = 0.01
"""A larger share of bad pictures stops a training run."""

Result = TypeVar("Result")
_Picture = tuple[int, np.ndarray | str]
"""The checksum of a picture's file, 0 if there is none, and uint8 H×W×C, or why it could not be had."""

_TASK_BYTES = 2**22  # decoded at a time by one thread: far above the cost of handing it over, far below memory
_TASK_PICTURES = 64
# Decoding smaller pictures (about 150 px a side) is mostly Python, where threads only get in each other's way (measured:
# 2 threads decode JPEGs of 32 px at 0.5 to 0.9 times the speed of one, of 224 px at 1.1 to 2.1 times).
_WORTH_THREADS = 2**16
# Drawing is Python, too, where two threads have half the speed of one and two processes twice; they take a second to begin.
_WORTH_PROCESSES = 2**11


class Store:
    """The decoded pictures of a split, under their indices in the split; made by `fill`."""

    def __init__(
        self,
        memory: np.ndarray,
        offsets: np.ndarray,
        sizes: np.ndarray,
        channels: int,
        bad: dict[int, str],
        checksums: np.ndarray,
    ) -> None:
        """`memory`: uint8, all pictures end to end; `offsets`: int64 (N,); `sizes`: int64 (N, 2), height and width;
        `checksums`: uint32 (N,), of the files."""
        self._memory = memory
        self._offsets = offsets
        self._sizes = sizes
        self.channels = channels
        self._checksums = checksums
        self.bad = bad
        """Index in the split → why the picture could not be had. It has no pixels, and nothing stands in for it."""

    @classmethod
    def fill(
        cls, split: Split, channels: int, workers: int, *, on_progress: Callable[[int, int], None] | None = None
    ) -> "Store":
        """Decode every picture of `split` in up to `workers` threads (Pillow decodes outside the interpreter's lock).

        Pictures of formulas are drawn in as many processes. Takes the memory of the pictures and some 10 MB more for each
        thread. `on_progress` gets (done, total).
        """
        n = len(split)
        expected = estimated_bytes(split, channels=channels)
        task = max(1, min(_TASK_PICTURES, _TASK_BYTES * n // max(1, expected)))
        checksums = np.zeros(n, np.uint32)
        offsets = np.zeros(n, np.int64)
        sizes = np.zeros((n, 2), np.int64)
        bad: dict[int, str] = {}
        try:
            # Pages are taken only when they are written: a generous guess costs nothing.
            memory = np.empty(expected + expected // 4 + 1, np.uint8)
            end = 0
            for start, pictures in _decoded(split, channels, workers, task):
                for index, (checksum, pixels) in enumerate(pictures, start):
                    checksums[index] = checksum
                    if isinstance(pixels, str):
                        bad[index] = pixels
                        continue
                    if end + pixels.size > len(memory):
                        memory.resize(end + end // 8 + pixels.size, refcheck=False)
                    memory[end : end + pixels.size] = pixels.reshape(-1)
                    offsets[index], sizes[index] = end, pixels.shape[:2]
                    end += pixels.size
                if on_progress is not None:
                    on_progress(start + len(pictures), n)
            memory.resize(end, refcheck=False)
        except MemoryError as error:
            raise FaultError(
                f"the decoded pictures do not fit into memory (about {expected >> 20} MiB); stream them"
            ) from error
        return cls(memory, offsets, sizes, channels, bad, checksums)

    def subset(self, indices: np.ndarray) -> "Store":
        """The pictures at `indices`, in that order, in the same memory; those of one shape in memory of their own, end to end."""
        bad = {place: self.bad[index] for place, index in enumerate(indices.tolist()) if index in self.bad}
        sizes, checksums = self._sizes[indices], self._checksums[indices]
        part = Store(self._memory, self._offsets[indices], sizes, self.channels, bad, checksums)
        if part.same_shape is None or bad:
            return part
        pixels = np.stack([part.pixels(index) for index in range(len(part))])
        offsets = np.arange(len(part)) * pixels[0].size
        return Store(pixels.reshape(-1), offsets, sizes, self.channels, bad, checksums)

    def __len__(self) -> int:
        """Pictures of the split, bad ones included."""
        return len(self._offsets)

    @property
    def content(self) -> str:
        """A hash of what all files held, which changes with any byte of them."""
        return hashlib.sha256(self._checksums.tobytes()).hexdigest()

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the pixels take."""
        return self._memory.nbytes

    @property
    def same_shape(self) -> tuple[int, int, int] | None:
        """(H, W, C) if all good pictures have it; else None."""
        good = self._sizes[self._sizes[:, 0] > 0] if self.bad else self._sizes
        if not len(good) or (good != good[0]).any():
            return None
        return int(good[0, 0]), int(good[0, 1]), self.channels

    def pixels(self, index: int) -> np.ndarray:
        """uint8 H×W×C, a view; raises `DecodeError` for a bad picture."""
        if index in self.bad:
            raise DecodeError(self.bad[index])
        height, width = self._sizes[index]
        start = self._offsets[index]
        return self._memory[start : start + height * width * self.channels].reshape(height, width, self.channels)

    def stacked(self) -> np.ndarray:
        """All pictures, uint8 N×H×W×C, a view; only where all have one shape and none is bad."""
        if self.same_shape is None or self.bad:
            raise ValueError("pictures of several shapes, or without some, are no single array")
        return self._memory.reshape(len(self), *self.same_shape)


def _decoded(split: Split, channels: int, workers: int, task: int) -> Iterator[tuple[int, list[_Picture]]]:
    """The pictures of a split in order, `task` of them at a time: (first index, pictures)."""
    picture = functools.partial(_picture, split, channels)
    if (
        workers == 1
        or len(split) < _WORTH_PROCESSES
        or not isinstance(split.items, Drawn)
        or multiprocessing.get_start_method() != "fork"  # others would run the user's script again
    ):
        yield from in_order(len(split), picture, worthwhile_threads(split, workers), task)
        return
    from patchword.data.feed import Feed

    def draw(start: int, stop: "Stop") -> list[_Picture]:
        return [picture(index) for index in range(start, min(start + task, len(split))) if not stop.is_set()]

    starts = range(0, len(split), task)
    feed = Feed(draw, starts, workers)
    try:
        yield from zip(starts, feed, strict=True)
    finally:
        feed.close()


def _picture(split: Split, channels: int, index: int) -> _Picture:
    checksum = 0
    try:
        content = split.read(index)
        checksum = zlib.crc32(content if isinstance(content, bytes) else content.tobytes())
        return checksum, decode(content, channels)
    except DecodeError as error:
        return checksum, error.reason


def estimated_bytes(split: Split, sample: int = 256, *, channels: int = 3) -> int:
    """About how many bytes the decoded split takes, from the headers of an evenly spaced sample."""
    areas = []
    for index in np.unique(np.linspace(0, len(split) - 1, min(sample, len(split))).astype(np.int64)):
        try:
            height, width, _ = header(split.read(int(index)))
        except DecodeError:
            continue
        areas.append(height * width)
    return int(np.mean(areas) * len(split) * channels) if areas else 0


def in_order(count: int, work: Callable[[int], Result], threads: int, task: int) -> Iterator[tuple[int, list[Result]]]:
    """`work(0)`, `work(1)` … of `count` calls, `task` of them at a time in one of `threads`: (first index, results).

    Results come in order, and only a few tasks are worked on ahead of their use.
    """

    def run(start: int) -> list[Result]:
        return [work(index) for index in range(start, min(start + task, count))]

    starts = range(0, count, task)
    if threads == 1:
        for start in starts:
            yield start, run(start)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        ahead: deque[tuple[int, Future[list[Result]]]] = deque()
        try:
            for start in starts:
                ahead.append((start, pool.submit(run, start)))
                if len(ahead) > 2 * threads:
                    first, future = ahead.popleft()
                    yield first, future.result()
            for first, future in ahead:
                yield first, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def worthwhile_threads(split: Split, workers: int) -> int:
    """How many of `workers` threads to decode `split` in: one, where its pictures are small."""
    return max(1, workers) if estimated_bytes(split) >= len(split) * _WORTH_THREADS else 1
