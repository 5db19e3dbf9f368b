"""Where train, validation and test come from: as given, or carved once by the names of the pictures, never by a seed."""

import hashlib
from collections.abc import Iterable

import numpy as np

SPLITS = ("train", "validation", "test")
"""In their order."""

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""What folders, tables and files call the splits, in lower case → what they are called here."""

ALONE = "The data set comes without train and is used as it comes."
GIVEN = "Train, validation and test are used as they come with the data set."
TRAIN_AND_TEST = (
    "Train and test are used as they come with the data set; there is no validation, nothing is carved from train."
)
TRAIN_AND_VALIDATION = "Train and validation are used as they come with the data set; there is no test."
CARVED = (
    "The data set comes without splits: 80 % train, 10 % validation, 10 % test within every class, "
    "chosen by a hash of each picture's name, so always the same."
)
CARVED_UNSORTED = (
    "The data set comes without splits: 80 % train, 10 % validation, 10 % test, "
    "chosen by a hash of each picture's name, so always the same."
)
"""Of pictures without labels."""
TOO_FEW = (
    "The data set comes without splits and no class has the 5 pictures that holding some out takes: all are train."
)


def rule(present: Iterable[str]) -> str:
    """The sentence for splits that came with the data set."""
    present = set(present)
    if "train" not in present:
        return ALONE
    if "validation" in present:
        return GIVEN if "test" in present else TRAIN_AND_VALIDATION
    return TRAIN_AND_TEST


def carve(keys: Iterable[bytes], labels: np.ndarray) -> dict[str, np.ndarray]:
    """Row numbers, ascending, of train, validation and test: a tenth of each class each for the last two.

    `labels` as in `Split`; with several labels a picture counts for its rarest one. The choice is made by the order of
    hashes of the names, so that it survives the adding of pictures nearly unchanged and no training seed can shift it.
    A class of fewer than 5 goes to train as a whole; a split that would be empty is left away.
    """
    strata = labels if labels.ndim == 1 else _rarest(labels)
    order = np.lexsort((_hashes(keys, len(labels)), strata))
    counts = np.bincount(strata)
    first = np.cumsum(counts) - counts
    sorted_strata = strata[order]
    rank = np.arange(len(order)) - first[sorted_strata]
    held_out = ((counts + 5) // 10)[sorted_strata]
    test, validation = rank < held_out, (rank >= held_out) & (rank < 2 * held_out)
    chosen = {"train": order[~test & ~validation], "validation": order[validation], "test": order[test]}
    return {name: np.sort(rows) for name, rows in chosen.items() if len(rows)}


def first_of(keys: Iterable[bytes], labels: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Row numbers, ascending, of `count` pictures, of each class its share: a smaller number takes a part of a larger one's.

    That is how the paper's subsets of JFT lie in one another (section 4.3). As in `carve`, hashes of the names decide, here
    with a `seed` in them: another one takes other pictures.
    """
    strata = labels if labels.ndim == 1 else _rarest(labels)
    hashes = _hashes(keys, len(labels), seed)
    order = np.lexsort((hashes, strata))
    sizes = np.bincount(strata)
    rank = np.arange(len(order)) - (np.cumsum(sizes) - sizes)[strata[order]]
    share = np.empty(len(order))
    share[order] = (rank + 0.5) / sizes[strata[order]]
    return np.sort(np.lexsort((hashes, share))[:count])


def _hashes(keys: Iterable[bytes], count: int, seed: int = 0) -> np.ndarray:
    salt = seed.to_bytes(hashlib.blake2b.SALT_SIZE, "little")
    return np.fromiter(
        (int.from_bytes(hashlib.blake2b(key, digest_size=8, salt=salt).digest(), "little") for key in keys),
        np.uint64,
        count,
    )


def _rarest(labels: np.ndarray) -> np.ndarray:
    """For each row of N×K labels its rarest one; K where it has none."""
    counts = labels.sum(axis=0, dtype=np.int64)
    frequency = np.append(counts, len(labels) + 1)
    stratum = np.full(len(labels), labels.shape[1])
    for label in range(labels.shape[1]):
        rarer = (labels[:, label] > 0) & (counts[label] < frequency[stratum])
        stratum[rarer] = label
    return stratum
