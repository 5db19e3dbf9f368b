"""What a reader found → a `Dataset`: the class list decided once, on train; splits checked or carved."""

import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from patchword.core.errors import DataError, nearest
from patchword.data import splits as splitting
from patchword.data.dataset import Dataset, Items, Notice, Split

_CHUNK = 65_536


@dataclass
class Part:
    """One split as found: pictures, and label codes that are positions in `Found.names`."""

    items: Items
    codes: np.ndarray
    """int64: one for each picture, or, with `owners`, one for each (picture, label) pair; or uint8 pictures × names, 1 for
    each label of a picture.
    """
    owners: np.ndarray | None = None
    """int64: the picture of each code where a picture may have several labels; None: one code each, in order."""
    rows: np.ndarray | None = None
    """Row numbers of the pictures in `items`; None: all in order."""

    def __len__(self) -> int:
        return len(self.items) if self.rows is None else len(self.rows)

    @property
    def several(self) -> bool:
        """Whether a picture may have several labels."""
        return self.owners is not None or self.codes.ndim == 2


@dataclass
class Found:
    """All that a reader found, before anything is decided about it."""

    name: str
    location: Path | str
    names: list[str]
    """Label names by code."""
    parts: dict[str, Part]
    """By the name of the split; `train` alone stands for a data set without splits."""
    ordered: bool = False
    """Whether `names` is the set's own class list, whose order is kept, or just what was met."""
    notices: list[Notice] = field(default_factory=list)
    carved: bool = False
    """Whether the reader has made the splits itself, by the rule of `splits.carve`, because there were none."""


def assemble(found: Found, classes: tuple[str, ...] | None, *, labelled: bool = True) -> Dataset:
    """The data set, with class list `classes` (a model's) or one decided on train; a single class will do where labels do
    not count.

    Raises `DataError` in one sentence for everything that would make training or evaluation wrong.
    """
    where = found.location
    parts = {split: part for split, part in found.parts.items() if len(part)}
    if not parts:
        raise DataError(f"{where} holds no pictures")
    used = {split: _used(part.codes) for split, part in parts.items()}
    _refuse_clashes(found, used)
    if classes is None:
        if "train" not in parts:
            raise DataError(
                f"{where} has {' and '.join(parts)} but no train; training pictures belong under the name train"
            )
        classes = _decide(found, used, labelled)
    else:
        _refuse_unknown(found, used, classes)
    multi_label = any(part.several for part in parts.values())
    splits = {
        split: Split(parts[split].items, _labels(parts[split], found.names, classes, multi_label), parts[split].rows)
        for split in ("train", "validation", "test")
        if split in parts
    }
    notices = found.notices + _without_pictures(found, used, classes)
    carved = found.carved or list(splits) == ["train"]
    rule = splitting.rule(splits)
    by_hash = splitting.CARVED if len(classes) > 1 else splitting.CARVED_UNSORTED
    if found.carved:
        rule = by_hash if len(splits) > 1 else splitting.TOO_FEW
    elif carved:
        whole = splits["train"]
        chosen = splitting.carve(whole.keys(), whole.labels)
        splits = {split: whole.subset(rows) for split, rows in chosen.items()}
        rule = by_hash if len(splits) > 1 else splitting.TOO_FEW
    return Dataset(found.name, str(where), classes, multi_label, splits, rule, tuple(notices), carved)


def in_order(names: set[str]) -> list[str]:
    """Class names in the order of a class list: numbers by value where all are numbers, otherwise by code point."""
    return sorted(names, key=int) if all(name.isascii() and name.isdigit() for name in names) else sorted(names)


def _decide(found: Found, used: dict[str, np.ndarray], labelled: bool) -> tuple[str, ...]:
    in_train = {found.names[code] for code in used["train"]}
    if labelled and len(in_train) < 2 and not any(part.several for part in found.parts.values()):
        raise DataError(
            f"{found.location} has pictures of one class only ({next(iter(in_train))}); "
            "a classifier needs at least two classes"
        )
    for split, codes in used.items():
        unknown = in_order({found.names[code] for code in codes} - in_train)
        if unknown:
            raise DataError(
                f"{found.location}: {_listed(unknown)} of {split} {'is' if len(unknown) == 1 else 'are'} missing from "
                "train, from where the class list is taken; add training pictures or remove the class"
            )
    if not in_train:
        raise DataError(f"{found.location}: no training picture has a label")
    return tuple(found.names) if found.ordered else tuple(in_order(in_train))


def _refuse_clashes(found: Found, used: dict[str, np.ndarray]) -> None:
    """Two classes that a person, or another file system, takes for one."""
    seen: dict[str, str] = {}
    for code in np.unique(np.concatenate(list(used.values()))):
        name = found.names[code]
        folded = unicodedata.normalize("NFC", name).casefold().strip()
        if folded in seen:
            raise DataError(
                f"{found.location} has the classes {seen[folded]!r} and {name!r}, which differ only by case or in the way "
                "they are written; rename one or join them"
            )
        seen[folded] = name


def _refuse_unknown(found: Found, used: dict[str, np.ndarray], classes: tuple[str, ...]) -> None:
    known = set(classes)
    for split, codes in used.items():
        unknown = in_order({found.names[code] for code in codes} - known)
        if unknown:
            several = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            raise DataError(
                f"{found.location}: the class {unknown[0]!r}{several} of {split} is not among the {len(classes)} classes of "
                f"the model; {nearest(unknown[0], classes)}"
            )


def _without_pictures(found: Found, used: dict[str, np.ndarray], classes: tuple[str, ...]) -> list[Notice]:
    """A set's own class list may name classes that its train split has no picture of."""
    if "train" not in used or not found.ordered:
        return []
    there = {found.names[code] for code in used["train"]}
    missing = [name for name in classes if name not in there]
    if not missing:
        return []
    return [Notice("empty-class", str(found.location), f"{_listed(missing)}: no training pictures")]


def _used(codes: np.ndarray) -> np.ndarray:
    """The codes that occur, ascending, found piece by piece: `codes` may be a mapped file of any length."""
    found = np.zeros(0, np.int64)
    for start in range(0, len(codes), _CHUNK):
        piece = codes[start : start + _CHUNK]
        found = np.union1d(found, piece if codes.ndim == 1 else np.flatnonzero(piece.any(axis=0)))
    return found


def _labels(part: Part, names: list[str], classes: tuple[str, ...], multi_label: bool) -> np.ndarray:
    position = {name: number for number, name in enumerate(classes)}
    place = np.array([position.get(name, -1) for name in names], dtype=np.int64)
    if names == [*classes] and (part.codes.ndim == 2 if multi_label else part.owners is None):
        return part.codes  # not copied: it may be a mapped file
    if not multi_label:
        return place[part.codes]
    labels = np.zeros((len(part), len(classes)), np.uint8)
    if part.codes.ndim == 2:
        known = np.flatnonzero(place >= 0)
        labels[:, place[known]] = part.codes[:, known]
        return labels
    owners = np.arange(len(part)) if part.owners is None else part.owners
    labels[owners, place[part.codes]] = 1
    return labels


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{'class' if len(names) == 1 else 'classes'} {shown}{more}"
