"""Class folders, with or without train, validation and test above them → what `assemble` needs."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from patchword.core.errors import DataError
from patchword.data.assemble import Found, Part
from patchword.data.dataset import Files, Names, Notice
from patchword.data.decoding.decode import SUFFIXES
from patchword.data.splits import SPLIT_NAMES

_WITHOUT_LABELS = (
    "train --set objective=masked-patch learns from pictures without labels (data check --no-labels looks at them)"
)
LOOSE = "pictures"
"""The one class of pictures that do not lie in class folders, where labels do not count."""
_SUFFIXES = frozenset(suffix.encode() for suffix in SUFFIXES)


@dataclass
class Listing:
    """What one folder holds; nothing in it has been opened."""

    folders: list[str] = field(default_factory=list)
    pictures: list[bytes] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    unusual: list[str] = field(default_factory=list)
    """Pipes, sockets and devices that are named like pictures."""


def list_folder(path: Path) -> Listing:
    """The entries of `path`, sorted, told apart by their names' endings and the kind that the directory records."""
    listing = Listing()
    pictures = listing.pictures
    try:
        with os.scandir(os.fsencode(path)) as entries:
            for entry in entries:
                name = entry.name
                is_picture = name[name.rfind(b".") :].lower() in _SUFFIXES
                if name.startswith(b"."):
                    if is_picture or entry.is_dir():
                        listing.hidden.append(os.fsdecode(name))
                elif is_picture and entry.is_file():
                    pictures.append(name)
                elif entry.is_dir():
                    listing.folders.append(os.fsdecode(name))
                elif entry.is_symlink() and not os.path.exists(entry.path):
                    listing.broken.append(os.fsdecode(name))
                elif is_picture:
                    listing.unusual.append(os.fsdecode(name))
                else:
                    listing.others.append(os.fsdecode(name))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    for entries in (listing.folders, pictures, listing.hidden, listing.others, listing.broken, listing.unusual):
        entries.sort()
    return listing


def find_folders(root: Path, *, loose: bool = False) -> Found:
    """The class folders at `root`, or at `root`/train, … ; raises `DataError` where the tree has another form.

    With `loose` any tree of pictures is right; where it has another form all of them are of the one class `LOOSE`.
    """
    top = list_folder(root)
    splits = {name: SPLIT_NAMES[name.lower()] for name in top.folders if name.lower() in SPLIT_NAMES}
    # "train" may also be a class, beside "car": it is a split when it holds folders and no pictures of its own.
    if any(_holds_folders(root / name) for name in splits) or (splits and len(splits) == len(top.folders)):
        return _find_splits(root, top, splits, loose)
    tally = _Tally(root)
    tally.add(root, top)
    if not (part := _classes(root, "", top, tally, loose)):
        raise _no_classes(root, top, root, top.others, loose)
    return Found(root.name, root, tally.classes, {"train": part}, notices=tally.notices())


def _find_splits(root: Path, top: Listing, splits: dict[str, str], loose: bool) -> Found:
    tally = _Tally(root)
    tally.add(root, top)
    parts: dict[str, Part] = {}
    for folder, split in splits.items():
        if split in parts:
            raise DataError(f"{root} has two folders for {split}, {folder!r} is one of them; join them or rename one")
        listing = list_folder(root / folder)
        tally.add(root / folder, listing)
        part = _classes(root, folder, listing, tally, loose)
        if part is None:
            raise _no_classes(root / folder, listing, root, top.others, loose)
        parts[split] = part
    beside = [name for name in top.folders if name not in splits]
    if beside:
        tally.note("not-a-split", root, beside, "folder is neither train, validation nor test and is left out")
    return Found(root.name, root, tally.classes, parts, notices=tally.notices())


def _classes(root: Path, below: str, listing: Listing, tally: "_Tally", loose: bool) -> Part | None:
    """The class folders in `root`/`below`, whose `listing` this is, or its `loose` pictures; None where there are none."""
    if loose and not _holds_classes(root / below, listing):
        return _all_below(root, below, listing, tally)
    names = Names()
    codes: list[int] = []
    counts: list[int] = []
    empty: list[str] = []
    for folder in listing.folders:
        inside = list_folder(root / below / folder)
        tally.add(root / below / folder, inside)
        if inside.pictures:
            names.extend(inside.pictures, os.fsencode(os.path.join(below, folder, "")))
            codes.append(tally.code(_shown(folder)))
            counts.append(len(inside.pictures))
            if inside.folders:
                sentence = (
                    "folder inside a class folder is not read; the class's pictures belong directly into its folder"
                )
                tally.note("nested", root / below / folder, inside.folders, sentence)
        elif deeper := next(
            (name for name in inside.folders if list_folder(root / below / folder / name).pictures), None
        ):
            raise _too_deep(root / below, listing, folder, deeper)
        else:
            empty.append(folder)
    if listing.pictures and codes:
        beside = [os.fsdecode(name) for name in listing.pictures]
        tally.note("not-in-a-class", root / below, beside, "picture is in no class folder and is left out")
    if empty and codes:
        tally.note("empty-class", root / below, empty, "class folder holds no picture and is left out")
    if not codes:
        return None
    return Part(Files(root, names), np.repeat(np.array(codes, np.int64), counts))


def _all_below(root: Path, below: str, listing: Listing, tally: "_Tally") -> Part | None:
    """Every picture of the tree at `root`/`below`, whose `listing` this is, without classes; None where there are none."""
    names, seen, left = Names(), {os.path.realpath(root / below)}, [(below, listing)]
    while left:
        place, inside = left.pop()
        if inside.pictures:
            names.extend(inside.pictures, os.fsencode(os.path.join(place, "")))
        for folder in reversed(inside.folders):
            deeper = os.path.join(place, folder)
            if (real := os.path.realpath(root / deeper)) not in seen:  # a link may lead back
                seen.add(real)
                found = list_folder(root / deeper)
                tally.add(root / deeper, found)
                left.append((deeper, found))
    if not len(names):
        return None
    return Part(Files(root, names), np.full(len(names), tally.code(LOOSE), np.int64))


class _Tally:
    """Class codes across splits, and notices gathered so that a thousand folders with the same flaw give one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.classes: list[str] = []
        self._codes: dict[str, int] = {}
        self._first: dict[tuple[str, str], str] = {}
        self._counts: Counter[tuple[str, str]] = Counter()

    def code(self, name: str) -> int:
        if name not in self._codes:
            self._codes[name] = len(self.classes)
            self.classes.append(name)
        return self._codes[name]

    def add(self, path: Path, listing: Listing) -> None:
        self.note("hidden", path, listing.hidden, "hidden folder or picture is left out")
        self.note("broken-link", path, listing.broken, "broken symbolic link is left out")
        self.note("not-a-file", path, listing.unusual, "pipe, socket or device is no regular file and is left out")
        self.note("not-a-picture", path, listing.others, "file is no picture by the ending of its name and is left out")

    def note(self, kind: str, path: Path, names: list[str], sentence: str) -> None:
        if names:
            self._first.setdefault((kind, sentence), _shown(str((path / names[0]).relative_to(self.root))))
            self._counts[kind, sentence] += len(names)

    def notices(self) -> list[Notice]:
        notices = []
        for (kind, sentence), first in self._first.items():
            more = self._counts[kind, sentence] - 1
            notices.append(Notice(kind, first, f"{first}: {sentence}" + (f" (and {more} more)" if more else "")))
        return notices


def _holds_folders(path: Path) -> bool:
    listing = list_folder(path)
    return bool(listing.folders) and not listing.pictures


def _holds_classes(path: Path, listing: Listing) -> bool:
    """Whether some of the folders hold pictures, and none another folder."""
    inside = (list_folder(path / name) for name in listing.folders)
    kinds = {(bool(each.pictures), bool(each.folders)) for each in inside}
    return (True, False) in kinds and not any(deeper for _, deeper in kinds)


def _no_classes(path: Path, listing: Listing, root: Path, beside: list[str], loose: bool) -> DataError:
    """The error for `path` without class folders, or, `loose`, without a picture in its whole tree.

    `beside` are the files of `root`, among which may be a table.
    """
    want = (
        "a folder of pictures, in whatever folders, is right"
        if loose
        else "one folder for each class, holding its pictures, is right"
    )
    tables = [name for name in beside if name.lower().endswith((".csv", ".tsv", ".parquet"))]
    if tables:
        want = f"to use the table, give {root / tables[0]}"
    if listing.pictures:
        away = "" if tables else f", and {_WITHOUT_LABELS}"
        if path != root:
            away = ", or move it away if its pictures have no labels"
        return DataError(f"{path} holds pictures ({len(listing.pictures)}) but no class folders; {want}{away}")
    if listing.folders:
        shown = ", ".join(listing.folders[:3]) + (", …" if len(listing.folders) > 3 else "")
        return DataError(
            f"{path}: none of its {len(listing.folders)} folders ({shown}) holds a picture "
            f"whose name ends in .jpg, .png or another known ending; {want}"
        )
    holds = "holds no pictures" if listing.others or listing.unusual else "is empty"
    return DataError(f"{path} {holds}; {want}")


def _too_deep(path: Path, listing: Listing, folder: str, deeper: str) -> DataError:
    if len(listing.folders) == 1:
        return DataError(f"{path} has its class folders one level deeper; give {path / folder}")
    return DataError(
        f"the pictures of {path / folder / deeper} lie one level too deep; class folders hold their pictures directly, so "
        f"move them up into {path / folder}, or give {path / folder} if its folders are the classes"
    )


def _shown(name: str) -> str:
    """`name` with bytes that are not UTF-8 spelled out: the file system allows them, a report does not."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
