"""(seed, epoch, position) → sample: the order of the data and its randomness, with one integer as their whole state.

Nothing here is drawn from a generator that would have to be saved: the order is a keyed permutation that any position of
can be asked for alone, and the randomness of augmentation is a keyed hash of (seed, stream, epoch, sample). A resumed run,
another number of workers or another batch size therefore see the same pictures, changed in the same way.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np

# SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014), with Stafford's 13th finalizer.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLY_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLY_2 = np.uint64(0x94D049BB133111EB)
_ROUNDS = 8
# Below this side length the rounds of the cipher have too few values to mix well; cycle walking bridges the rest.
_SMALLEST_SIDE = 16


def shuffled(seed: int, epoch: int | np.ndarray, n: int, positions: np.ndarray, stream: str = "order") -> np.ndarray:
    """The samples at `positions` of the shuffled `epoch`: int64 in 0…n−1, of the shape of `positions`.

    For each (seed, epoch) a permutation of 0…n−1, in O(1) memory: a Feistel network over a² ≥ n values, in which a value
    that falls outside 0…n−1 is sent through again until it falls inside (cycle walking; Black and Rogaway, Ciphers with
    arbitrary finite domains, 2002). `epoch` is one number or one for each position; another `stream` is another order.
    """
    positions = np.asarray(positions, dtype=np.int64)
    if n < 1 or (positions.size and (positions.min() < 0 or positions.max() >= n)):
        raise ValueError(f"positions must lie in 0…{n - 1}")
    side = np.uint64(max(math.isqrt(n - 1) + 1, _SMALLEST_SIDE))
    flat = positions.reshape(-1).astype(np.uint64)
    keys = np.broadcast_to(_keys(seed, stream, epoch), positions.shape or (1,)).reshape(-1)
    outside = np.arange(flat.size)
    while outside.size:
        flat[outside] = _feistel(flat[outside], keys[outside], side)
        outside = outside[flat[outside] >= np.uint64(n)]
    return flat.astype(np.int64).reshape(positions.shape)


def uniform(seed: int, stream: str, epoch: int | np.ndarray, ids: np.ndarray, count: int = 1) -> np.ndarray:
    """Random numbers, float64 N×`count` in [0, 1): a pure function of (seed, stream, epoch, id, column).

    `stream` names the use, so that two uses never share their numbers; `epoch` is one number (an epoch or a step) or one
    for each of the N `ids`.
    """
    ids = np.asarray(ids, dtype=np.int64).reshape(-1)
    keys = np.broadcast_to(_keys(seed, stream, epoch), ids.shape)
    rows = _mix(keys + ids.astype(np.uint64) * _GOLDEN)[:, None]
    columns = (np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN)[None, :]
    return (_mix(rows + columns) >> np.uint64(11)) * 2.0**-53


@dataclass(frozen=True)
class Plan:
    """Which samples make up each step: positions run straight on across the ends of epochs, every batch is full."""

    n: int
    """Number of samples."""
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if self.n < 1 or self.batch_size < 1:
            raise ValueError(f"a plan needs at least one sample and one per batch, not {self.n} and {self.batch_size}")

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Samples and their epochs at `step` (from 0): two int64 arrays of `batch_size`, in O(batch_size)."""
        epochs, positions = np.divmod(np.arange(step * self.batch_size, (step + 1) * self.batch_size), self.n)
        return shuffled(self.seed, epochs, self.n, positions), epochs


def evened(counts: np.ndarray, evenness: float) -> np.ndarray:
    """The share of each class in what is drawn, float64 (K,), of how many samples each has: all shares as they are for an
    evenness of 0, all classes alike for 1, in between the counts to the power of 1 − evenness. Empty classes have none."""
    powers = np.where(counts > 0, np.maximum(counts, 1).astype(np.float64) ** (1 - evenness), 0.0)
    return powers / powers.sum()


class BalancedPlan:
    """A plan that draws the classes more evenly than they come, and within each class every sample as often as the others.

    An epoch is as long as in a `Plan`, n positions, and each class has its places in it, shuffled anew in each epoch. Behind
    them lie endless passes through the class's own samples, each in an order of its own: that of an epoch's j-th place of a
    class with m places is number epoch·m + j. So it is a function of (seed, epoch, position), too, in O(batch_size) a step.
    """

    def __init__(self, labels: np.ndarray, batch_size: int, seed: int, evenness: float) -> None:
        """`labels`: int64 (n,), the class of each sample."""
        self._plain = Plan(len(labels), batch_size, seed)
        self.n, self.batch_size, self.seed = len(labels), batch_size, seed
        counts = np.bincount(labels)
        self._rows = np.argsort(labels, kind="stable")
        self._counts, self._first_row = counts, np.cumsum(counts) - counts
        places = evened(counts, evenness) * self.n
        whole = np.floor(places).astype(np.int64)
        # What is left over goes to those who lost most in rounding; of equals, to the first.
        neediest = np.argsort(whole - places, kind="stable")[: self.n - int(whole.sum())]
        whole[neediest] += 1
        self._places, self._first_place = whole, np.cumsum(whole) - whole

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Samples at `step` (from 0), and how often the plan has gone through their classes before: two int64 arrays."""
        places, epochs = self._plain.batch(step)
        classes = np.searchsorted(self._first_place, places, side="right") - 1
        numbers = epochs * self._places[classes] + places - self._first_place[classes]
        passes, positions = np.divmod(numbers, self._counts[classes])
        samples = np.empty_like(places)
        for each in np.unique(classes).tolist():
            there, stream = classes == each, f"order of class {each}"
            order = shuffled(self.seed, passes[there], int(self._counts[each]), positions[there], stream)
            samples[there] = self._rows[self._first_row[each] + order]
        return samples, passes


def _feistel(values: np.ndarray, keys: np.ndarray, side: np.uint64) -> np.ndarray:
    """A keyed permutation of 0…side²−1."""
    left, right = np.divmod(values, side)
    for turn in range(1, _ROUNDS + 1):
        left, right = right, (left + _mix(keys + right * _GOLDEN + np.uint64(turn << 32)) % side) % side
    return left * side + right


def _keys(seed: int, stream: str, epoch: int | np.ndarray) -> np.ndarray:
    """One 64-bit key for each epoch, uint64 of the shape of `epoch` with at least one axis."""
    digest = hashlib.blake2b(f"{seed} {stream}".encode(), digest_size=8).digest()
    base = np.uint64(int.from_bytes(digest, "little"))
    # Arrays wrap around at 64 bits in silence, NumPy's scalars warn: hence at least one axis.
    return _mix(_mix(np.atleast_1d(np.asarray(epoch, dtype=np.int64)).astype(np.uint64) * _GOLDEN + base) + base)


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * _MULTIPLY_1
    x = (x ^ (x >> np.uint64(27))) * _MULTIPLY_2
    return x ^ (x >> np.uint64(31))
