"""The members of tar shards in the WebDataset layout → samples, gathered once for the index.

The files of one sample share a key, its name up to the first dot after the last slash: `n01/7.jpg` and `n01/7.cls` are one
sample. Its label is in `.cls` (a class number or name), in `.json` (`label` or `labels`) or in `.txt` (one line).
"""

import contextlib
import json
from array import array
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np

from patchword.core.errors import DataError
from patchword.core.progress import Progress
from patchword.data.assemble import in_order
from patchword.data.decoding.decode import SUFFIXES
from patchword.data.shards import tar
from patchword.data.shards.index import IndexWriter, Shard
from patchword.data.shards.manifest import Manifest
from patchword.data.shards.places import Entry, Place

_PICTURE_ENDINGS = frozenset(suffix[1:].encode() for suffix in SUFFIXES)
_LABELS = {b"cls": 3, b"json": 2, b"txt": 1}
"""Endings of files of labels; where a sample has several, the highest number counts."""
_LABEL_BYTES = 2**20
_LABEL_LETTERS = 1000
_MOST_CLASSES = 1_000_000
_KNOWN = 65_536  # labels that are remembered as they are written
_STEP, _REMOTE_STEP = 2**12, 2**23
"""Bytes read at a time while an index is made: locally headers only, remotely whatever lies there."""


def make_index(
    place: Place, manifest: Manifest, shards: list[tuple[Entry, str | None]], path: Path, *, quiet: bool = False
) -> None:
    """Read the headers and labels of all shards once, in memory that does not grow with their number.

    Raises `DataError` in one sentence for an archive that is damaged, a sample without a label or with two pictures.
    """
    with IndexWriter() as writer, contextlib.ExitStack() as stack:
        progress = (
            None if quiet else stack.enter_context(Progress("making the index", sum(file.size for file, _ in shards)))
        )
        reader = _Reader(place, manifest, writer)
        done, described = 0, []
        for file, split in shards:
            before = writer.samples
            reader.read(file, split)
            described.append(Shard(file, split, writer.samples - before))
            done += file.size
            if progress is not None:
                progress.update(done)
        names, classes, notices = reader.finished()
        writer.write(
            path, described, names, classes, ordered=bool(manifest.classes), several=reader.several, notices=notices
        )


@dataclass
class _Sample:
    """What has been met of the sample whose files are being read."""

    key: bytes
    picture: tar.Member | None = None
    ending: bytes = b""
    label: bytes | None = None
    rank: int = 0


class _Reader:
    """Members of shards → samples for the index."""

    def __init__(self, place: Place, manifest: Manifest, writer: IndexWriter) -> None:
        self.place, self.manifest, self.writer = place, manifest, writer
        self.several = False
        self._codes: dict[str, int] = {name: code for code, name in enumerate(manifest.classes)}
        self._known: dict[tuple[int, bytes], tuple[int, ...]] = {}
        self._met: dict[tuple[str, str], tuple[str, int]] = {}
        self._labelled: Counter[str | None] = Counter()
        self._unlabelled: dict[str | None, tuple[str, int]] = {}

    def finished(self) -> tuple[list[str], list[str], list[tuple[str, str, str]]]:
        """Names by code, the class list, notices; a split of which only some samples have labels is an error."""
        if not self.writer.samples:
            raise DataError(f"{self.place.location}: its shards hold no pictures")
        for split, (first, count) in self._unlabelled.items():
            if self._labelled[split] or not self._labelled:
                raise DataError(
                    f"{first} has no label; a file .cls, .json or .txt with the same key, next to it in the archive, is right"
                )
            self._met["unlabelled", f"none of its {count} samples has a label; the split is left out"] = (str(split), 1)
        notices = []
        for (kind, sentence), (first, count) in self._met.items():
            more = f" (and {count - 1} more)" if count > 1 else ""
            notices.append((kind, first, f"{first}: {sentence}{more}"))
        names = list(self._codes)
        return names, names if self.manifest.classes else in_order(set(names)), notices

    def read(self, file: Entry, split: str | None) -> None:
        where = f"{self.place.location}/{file.name}"
        keys = array("q")
        sample = _Sample(b"")

        def fetch(start: int, length: int) -> bytes:
            nonlocal window, window_start
            window, window_start = self.place.read(file.name, start, length), start
            return window

        def content(member: tar.Member) -> bytes:
            at = member.offset - window_start
            if at >= 0 and at + member.size <= len(window):
                return window[at : at + member.size]
            return self.place.read(file.name, member.offset, member.size)

        window, window_start = b"", 0
        for member in tar.members(fetch, file.size, where, _REMOTE_STEP if self.place.remote else _STEP):
            name = member.name[2:] if member.name.startswith(b"./") else member.name
            base = name[name.rfind(b"/") + 1 :]
            if not member.regular or not _is_safe(name):
                kind = "unsafe-name" if member.regular else "not-a-file"
                sentence = "has a name that leads elsewhere" if member.regular else "is a link or a device"
                self._note(kind, f"{file.name}: {_shown(name)}", f"{sentence}, and is left out")
                continue
            stem, dot, ending = base.partition(b".")
            if not stem or not dot:
                continue
            key = name[: len(name) - len(ending) - 1]
            if key != sample.key:
                self._add(sample, keys, file, split)
                sample = _Sample(key)
            ending = ending.lower()
            if ending.rpartition(b".")[2] in _PICTURE_ENDINGS:
                # Beside a picture its masks and the like may lie, as key.seg.png; the plain one is meant.
                plain, before = b"." not in ending, sample.picture is not None and b"." not in sample.ending
                if plain and before:
                    raise DataError(
                        f"{where} has two pictures under the key {_shown(key)!r}; each sample needs a key of its own"
                    )
                if plain or sample.picture is None:
                    sample.picture, sample.ending = member._replace(name=name), ending
            elif (rank := _LABELS.get(ending, 0)) > sample.rank and member.size <= _LABEL_BYTES:
                label = content(member)
                if ending != b"json" or _tells_label(label):
                    sample.label, sample.rank = label, rank
        self._add(sample, keys, file, split)
        hashes = np.sort(np.frombuffer(keys, np.int64)) if keys else np.zeros(0)
        if (hashes[1:] == hashes[:-1]).any():
            place = np.flatnonzero(np.isin(np.frombuffer(keys, np.int64), hashes[1:][hashes[1:] == hashes[:-1]]))
            raise DataError(
                f"{where} has the same key for its samples {place[0]} and {place[1]}, counted from 0; "
                "each sample needs a key of its own, and its files next to each other"
            )

    def _add(self, sample: _Sample, keys: "array[int]", file: Entry, split: str | None) -> None:
        picture = sample.picture
        if picture is None:
            if sample.label is not None:
                self._note("no-picture", f"{file.name}: {_shown(sample.key)}", "a label without a picture is left out")
            return
        keys.append(hash(sample.key))
        name = picture.name
        if self.manifest.packed:
            name = unquote_to_bytes(sample.key.partition(b"/")[2]).replace(b"\0", b"")
        codes = None
        if sample.label is not None:
            codes = self._known.get((sample.rank, sample.label))
            if codes is None:
                codes = self._code(sample, file)
        if codes is None:
            first, count = self._unlabelled.get(
                split, (f"{self.place.location}/{file.name}: {_shown(picture.name)}", 0)
            )
            self._unlabelled[split] = (first, count + 1)
        else:
            self._labelled[split] += 1
        self.writer.add(picture.offset, picture.size, name, codes)

    def _code(self, sample: _Sample, file: Entry) -> tuple[int, ...] | None:
        assert sample.label is not None
        where = f"{self.place.location}/{file.name}: {_shown(sample.key)}"
        try:
            label = _label_of(sample.label, sample.rank)
        except ValueError as error:
            raise DataError(f"{where} has a label that cannot be read ({error})") from error
        if label is None:
            return None
        if isinstance(label, list):
            self.several = True
        codes = tuple(dict.fromkeys(self._one(each, where) for each in (label if isinstance(label, list) else [label])))
        if len(self._known) < _KNOWN and len(sample.label) < 256:
            self._known[sample.rank, sample.label] = codes
        return codes

    def _one(self, label: str | int, where: str) -> int:
        classes = self.manifest.classes
        if isinstance(label, int) and classes:
            if not 0 <= label < len(classes):
                raise DataError(
                    f"{where} has the class number {label}; 0 to {len(classes) - 1} are right for {len(classes)} classes"
                )
            return label
        name = str(label)
        if name not in self._codes:
            if classes:
                raise DataError(f"{where} has the label {name[:100]!r}, which is not among its {len(classes)} classes")
            if len(self._codes) >= _MOST_CLASSES:
                raise DataError(f"{where}: more than {_MOST_CLASSES:,} different labels; these are no classes")
            self._codes[name] = len(self._codes)
        return self._codes[name]

    def _note(self, kind: str, where: str, sentence: str) -> None:
        first, count = self._met.get((kind, sentence), (where, 0))
        self._met[kind, sentence] = (first, count + 1)


def _label_of(content: bytes, rank: int) -> str | int | list[str | int] | None:
    """A label, or a list of them, as a file tells it; None where it tells none. Raises `ValueError`."""
    if rank != _LABELS[b"json"]:
        text = content.decode("utf-8-sig").strip()
        if not text:
            return None
        if text.isascii() and text.isdigit() and len(text) < 10:
            return int(text)
        return _word(text)
    try:
        told = json.loads(content)
    except RecursionError as error:
        raise ValueError("brackets in brackets in brackets") from error
    value = (
        told
        if not isinstance(told, dict)
        else next((told[key] for key in ("labels", "label", "cls") if key in told), None)
    )
    if isinstance(value, list):
        return [_word(each) for each in value]
    return None if value is None else _word(value)


def _tells_label(content: bytes) -> bool:
    """Whether a `.json` is about the label, be it readable or not, and not metadata of another kind."""
    try:
        return _label_of(content, _LABELS[b"json"]) is not None
    except ValueError:
        return True


def _word(value: Any) -> str | int:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int) or (isinstance(value, int) and abs(value) >= 2**53):
        raise ValueError(f"{str(value)[:40]!r} is neither a number nor a name")
    if isinstance(value, str) and (not 0 < len(value) <= _LABEL_LETTERS or "\n" in value or "\0" in value):
        raise ValueError(f"one line of at most {_LABEL_LETTERS} letters is right")
    return value


def _is_safe(name: bytes) -> bool:
    if b"\0" in name or name.startswith(b"/") or not name:
        return False
    return b".." not in name or b".." not in name.split(b"/")


def _shown(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")[:300]
