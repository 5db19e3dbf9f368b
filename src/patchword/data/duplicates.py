"""Exact duplicates: the same bytes twice, above all once in train and once where the model is to be measured."""

import contextlib
import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from patchword.core import files
from patchword.core.errors import DataError, PatchwordError
from patchword.core.picture import DecodeError
from patchword.data.dataset import Dataset, Files, Notice, Split
from patchword.data.formats.named import cache
from patchword.data.formula import Drawn
from patchword.data.shards.find import Shards

_VERSION = 1
WITHOUT_LABELS = "unlabelled"
"""What pictures that nobody has labelled are called beside the splits of a data set."""
# Where a picture stays that lies in two splits: as far as possible from training, and in training with its label.
_KEEPING = ("test", "validation", "train", WITHOUT_LABELS)


@dataclass(frozen=True)
class Group:
    """Pictures with the same bytes (of arrays: the same pixels)."""

    members: tuple[tuple[str, int], ...]
    """(split, index in it) of each, two or more."""
    conflict: bool
    """Whether they are labelled differently."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that hold a member, each once, test first."""
        held = {split for split, _ in self.members}
        return tuple(split for split in _KEEPING if split in held)


@dataclass(frozen=True)
class Duplicates:
    """All groups of exact duplicates of a data set."""

    groups: tuple[Group, ...]

    @property
    def across(self) -> tuple[Group, ...]:
        """Groups with members in more than one split."""
        return tuple(group for group in self.groups if len(group.splits) > 1)

    @property
    def conflicts(self) -> tuple[Group, ...]:
        """Groups whose members are labelled differently: at most one of the labels is right."""
        return tuple(group for group in self.groups if group.conflict)

    def within(self, split: str) -> tuple[Group, ...]:
        """Groups with two or more members in `split`."""
        return tuple(group for group in self.groups if Counter(name for name, _ in group.members)[split] > 1)

    def leaked(self) -> dict[str, np.ndarray]:
        """For each split the indices, int64 ascending, of pictures that another split has a better claim to."""
        gone: dict[str, set[int]] = {}
        for group in self.across:
            keeper = group.splits[0]
            for split, index in group.members:
                if split != keeper:
                    gone.setdefault(split, set()).add(index)
        return {split: np.array(sorted(indices), np.int64) for split, indices in gone.items()}

    @property
    def sentence(self) -> str:
        """What a report says about them: how many there are, and what is done about those that matter."""
        if not self.groups:
            return "no exact duplicates"
        leaked = sum(map(len, self.leaked().values()))
        copies = sum(len(group.members) - 1 for group in self.groups)
        sentence = f"exact copies: {copies}, across splits: {leaked or 'none'}"
        if leaked:
            sentence += ", left out of train or validation"
        if self.conflicts:
            sentence += f", groups of copies with different labels: {len(self.conflicts)}"
        return sentence


def find_duplicates(
    dataset: Dataset, cache_dir: Path | None = None, on_progress: Callable[[int, int], None] | None = None
) -> Duplicates:
    """Exact duplicates within and across the splits of `dataset`, by size and then by hash.

    Files of a size that no other file has are not read. The answer is kept in `cache_dir` (by default beside downloaded
    data) and used again for as long as names, labels, sizes and times of change stay the same.
    """
    index = (cache_dir or cache().parent / "duplicates") / f"{dataset.name}-{_key(dataset)[:32]}.json"
    known = _load(index, dataset)
    if known is not None:
        return known
    duplicates = Duplicates(tuple(_groups(dataset, on_progress)))
    content = {"version": _VERSION, "groups": [dataclasses.astuple(group) for group in duplicates.groups]}
    with contextlib.suppress(OSError, PatchwordError):  # a cache that cannot be written costs time, not truth
        files.write_json(index, content)
    return duplicates


def without_leaks(dataset: Dataset, duplicates: Duplicates) -> Dataset:
    """`dataset` with each picture of several splits kept in one: in test, else in validation, else in train with its label.

    The evaluation side keeps it, because published splits are compared by their test pictures, all of them: taking one
    out of test would change the figure's meaning, taking it out of train only costs a training picture.
    """
    splits = dict(dataset.splits)
    notices = []
    for name, indices in duplicates.leaked().items():
        split = splits[name]
        splits[name] = split.subset(np.setdiff1d(np.arange(len(split)), indices))
        if not len(splits[name]):
            if name == "train":
                raise DataError(
                    f"{dataset.location}: every training picture is in validation or test, too; other ones belong there, or "
                    "loading.duplicates=no keeps them"
                )
            del splits[name]
        first = split.name(int(indices[0]))
        others = "train, validation or test" if name == WITHOUT_LABELS else "validation or test"
        sentence = f"{name}: left out, for {others} have them, too: {len(indices)} (first: {first})"
        notices.append(Notice("leak", first, sentence))
    return dataclasses.replace(dataset, splits=splits, notices=(*dataset.notices, *notices))


def _groups(dataset: Dataset, on_progress: Callable[[int, int], None] | None) -> Iterable[Group]:
    names = list(dataset.splits)
    ends = np.cumsum([len(split) for split in dataset.splits.values()])
    candidates = _candidates(dataset)
    same: dict[bytes, list[tuple[str, int]]] = {}
    for done, place in enumerate(candidates, 1):
        number = int(np.searchsorted(ends, place, side="right"))
        name = names[number]
        index = int(place) - int(ends[number]) + len(dataset.splits[name])
        try:
            content = dataset.splits[name].read(index)
        except DecodeError:
            continue
        same.setdefault(_hash(content), []).append((name, index))
        if on_progress is not None:
            on_progress(done, len(candidates))
    for members in same.values():
        if len(members) > 1:
            labels = [dataset.splits[name].labels[index] for name, index in members]
            yield Group(tuple(members), any((label != labels[0]).any() for label in map(np.atleast_1d, labels)))


def _candidates(dataset: Dataset) -> np.ndarray:
    """Pictures that may have a duplicate, counted through all splits: of files those whose size another one has, too; of
    others all. Of formulas none: no two of their pictures follow from the same random numbers, and drawing all took minutes.
    """
    if all(isinstance(split.items, Drawn) for split in dataset.splits.values()):
        return np.zeros(0, np.int64)
    sizes = [_sizes(split) for split in dataset.splits.values()]
    if any(size is None for size in sizes):
        return np.arange(sum(len(split) for split in dataset.splits.values()))
    every = np.concatenate([size for size in sizes if size is not None])
    values, counts = np.unique(every, return_counts=True)
    shared = np.isin(every, values[(counts > 1) & (values > 0)])  # empty files are no pictures, so no duplicates
    return np.flatnonzero(shared)


def _sizes(split: Split) -> np.ndarray | None:
    return split.items.sizes(split.rows) if isinstance(split.items, Files | Shards) else None


def _hash(content: bytes | np.ndarray) -> bytes:
    if isinstance(content, np.ndarray):
        content = repr(content.shape).encode() + content.tobytes()
    return hashlib.blake2b(content, digest_size=16).digest()


def _key(dataset: Dataset) -> str:
    """Names the cached answer: everything that it depends on, as far as that can be seen without reading the pictures."""
    digest = hashlib.sha256(f"{_VERSION} {dataset.location} {dataset.fingerprint()}".encode())
    for split in dataset.splits.values():
        if isinstance(split.items, Files):
            digest.update(split.items.times(split.rows).tobytes())
        elif isinstance(split.items, Shards):
            digest.update(split.items.stamps())
    return digest.hexdigest()


def _load(index: Path, dataset: Dataset) -> Duplicates | None:
    """The cached answer; None for one that is absent, damaged or of another version."""
    try:
        stored = json.loads(index.read_bytes())
        if stored["version"] != _VERSION:
            return None
        groups = [
            Group(tuple((str(name), int(member)) for name, member in members), bool(conflict))
            for members, conflict in stored["groups"]
        ]
        if all(0 <= member < len(dataset.splits[name]) for group in groups for name, member in group.members):
            return Duplicates(tuple(groups))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None
