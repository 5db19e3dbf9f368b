"""Tar shards, local or remote → what `assemble` needs: samples that are read by their number.

Nothing is ever extracted: a sample is read as one range of bytes, which the index tells.
"""

import bisect
import contextlib
import hashlib
import itertools
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from patchword.core.errors import DataError, FaultError
from patchword.core.files import new_file
from patchword.core.picture import DecodeError
from patchword.core.progress import say
from patchword.data.assemble import Found, Part
from patchword.data.dataset import FILE_LIMIT, Notice
from patchword.data.formats.folder import list_folder
from patchword.data.formats.named import cache
from patchword.data.shards import tar
from patchword.data.shards.index import Index, map_array, open_index
from patchword.data.shards.manifest import MANIFEST, Manifest, check_shards, read_manifest
from patchword.data.shards.places import Entry, Folder, Place, Remote, copy
from patchword.data.shards.samples import make_index
from patchword.data.splits import SPLIT_NAMES, SPLITS

INDEX = "shards.index"

_CHUNK = 4096


class Shards:
    """The samples of one split, or of all where there are no splits."""

    def __init__(self, place: Place, index: Index, first: int, count: int) -> None:
        """Samples `first` to `first` + `count` of `index`, whose shards lie in `place`."""
        self.place, self.index, self.first, self._count = place, index, first, count
        self._starts = list(itertools.accumulate((shard.samples for shard in index.shards), initial=0))
        # Views without the bookkeeping of mapped arrays, which costs more than the look itself.
        self._offsets, self._sizes, self._name_ends, self._names = (
            array.view(np.ndarray) for array in (index.offsets, index.sizes, index.name_ends, index.names)
        )

    def __len__(self) -> int:
        return self._count

    def read(self, row: int) -> bytes:
        sample = self.first + row
        offset, size = int(self._offsets[sample]), int(self._sizes[sample])
        if size > FILE_LIMIT:
            raise DecodeError(f"has {size:,} bytes, more than the limit of {FILE_LIMIT >> 20} MiB")
        shard = self.index.shards[bisect.bisect_right(self._starts, sample) - 1].file
        if not tar.BLOCK <= offset <= shard.size - size:
            raise self._changed(shard.name)
        content = self.place.read(shard.name, offset - tar.BLOCK, size + tar.BLOCK)
        # Its header lies before a picture: an archive that was written anew is noticed whatever its size and date.
        if not tar.is_header_of(content[: tar.BLOCK], size):
            raise self._changed(shard.name)
        return content[tar.BLOCK :]

    def key(self, row: int) -> bytes:
        sample = self.first + row
        start = int(self._name_ends[sample - 1]) if sample else 0
        return self._names[start : int(self._name_ends[sample]) - 1].tobytes()

    def sizes(self, rows: np.ndarray | None = None) -> np.ndarray:
        """File sizes in bytes, int64."""
        sizes = self._sizes[self.first : self.first + self._count]
        return sizes if rows is None else sizes[rows]

    def digest(self, rows: np.ndarray | None) -> bytes:
        """That of a folder that holds the same files: neither names nor sizes tell where they lie."""
        names, sizes = hashlib.sha256(), hashlib.sha256()
        for start in range(0, self._count if rows is None else len(rows), _CHUNK):
            some = np.arange(start, min(start + _CHUNK, self._count)) if rows is None else rows[start : start + _CHUNK]
            names.update(b"".join(self.key(row) + b"\0" for row in some.tolist()))
            sizes.update(self.sizes(some).tobytes())
        return names.digest() + sizes.digest()

    def stamps(self) -> bytes:
        """Changes when a shard is written again, as far as that is known."""
        return repr([(shard.file, shard.samples) for shard in self.index.shards]).encode()

    def _changed(self, shard: str) -> DataError:
        return DataError(
            f"{self.place.location}/{shard} is not the shard that {self.index.path} was made from; "
            "copy it again, or remove the index to have it made anew"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened_again, (self.place, self.index.path, self.first, self._count)


def _opened_again(place: Place, index: Path, first: int, count: int) -> Shards:
    return Shards(place, open_index(index), first, count)


def find_tars(folder: Path) -> Found | None:
    """The shards in a folder of this machine; None where it holds none.

    `train-000000.tar` …, or `train/000000.tar` …. Archives beside other folders are taken for shards only if their names
    tell a split: data sets of class folders often have one lying beside them.
    """
    place = Folder(folder)
    tars = place.entries(".tar")
    if not tars:
        _refuse_compressed(place)
        return None
    manifest = read_manifest(place)
    if not manifest.packed and list_folder(folder).folders and not any(_split(entry.name) for entry in tars):
        return None
    return open_shards(place, manifest)


def find_tar(path: Path) -> Found:
    """One archive, whose samples come without splits."""
    place = Folder(path.parent)
    entries = [entry for entry in place.entries(".tar") if entry.name == path.name]
    found = _open(
        place, read_manifest(place, classes_only=True), [(entry, None) for entry in entries], None, _cached(path)
    )
    found.name, found.location = path.stem, path
    return found


def find_address(address: str) -> Found | None:
    """The shards at an address; None where there is none."""
    if address.rstrip("/").endswith(".tar"):
        folder, _, name = address.rstrip("/").rpartition("/")
        place = Remote(folder)
        entry = place.entry(name)
        if entry is None:
            raise DataError(f"{address} does not exist")
        found = _open(place, Manifest(), [(entry, None)], None, _cached(address))
        found.name, found.location = name.removesuffix(".tar"), address
        return found
    place = Remote(address)
    manifest = read_manifest(place)
    if not manifest.packed and not place.entries(".tar"):
        _refuse_compressed(place)
        return None
    return open_shards(place, manifest)


def open_shards(place: Place, manifest: Manifest) -> Found:
    """All shards of a place."""
    own = place.path / INDEX if isinstance(place, Folder) else None
    if manifest.packed:
        shards: list[tuple[Entry, str | None]] = [(file, split) for file, split, _ in manifest.shards]
        if not place.remote:
            check_shards(place, manifest)
        # What lies beside them is not trusted to be theirs: dates do not survive copying, hashes do.
        shards = [(Entry(file.name, file.size, ""), split) for file, split in shards]
        beside = [] if place.remote else [entry.name for entry in place.entries(".tar")]
        left = sorted(set(beside) - {file.name for file, _ in shards})
        found = _open(place, manifest, shards, own, _cached(manifest.index_hash))
        found.name = manifest.name or place.name
        if left:
            found.notices.append(Notice("not-a-shard", left[0], f"{left[0]}: not in {MANIFEST} and left out"))
        for split, pictures in itertools.groupby(manifest.left_out, key=lambda each: each[0]):
            named = list(pictures)
            sentence = f"{split}: could not be decoded when the set was packed, and left out: {len(named)} (first: {named[0][1]})"
            found.notices.append(Notice("left-out", named[0][1], sentence))
        return found
    entries = place.entries(".tar")
    splits = {entry.name: _split(entry.name) for entry in entries}
    given = any(splits.values())
    shards = [(entry, splits[entry.name]) for entry in entries if splits[entry.name] or not given]
    shards.sort(key=lambda shard: (SPLITS.index(shard[1]) if shard[1] else 0, shard[0].name))
    found = _open(place, manifest, shards, own, _cached(place.location))
    left = [entry.name for entry in entries if given and not splits[entry.name]]
    if left:
        sentence = f"{left[0]}: neither of train, validation nor test, and left out"
        found.notices.append(
            Notice("not-a-split", left[0], sentence + (f" (and {len(left) - 1} more)" if left[1:] else ""))
        )
    return found


def _refuse_compressed(place: Place) -> None:
    packed = [entry for ending in (".tar.gz", ".tgz", ".tar.zst", ".tar.xz") for entry in place.entries(ending)]
    named = next((entry.name for entry in packed if _split(entry.name)), None)
    if named:
        raise DataError(
            f"{place.location}/{named} is compressed, so that no sample in it can be read alone; plain .tar shards are right"
        )


def _split(name: str) -> str | None:
    """The split that a shard's name tells: `train-000000.tar`, `imagenet-val-000.tar`, `test/000.tar`."""
    folder, _, file = name.rpartition("/")
    known = SPLIT_NAMES.get(folder.rpartition("/")[2].lower())
    words = [
        SPLIT_NAMES[word] for word in re.split(r"[^a-z]+", file.lower().removesuffix(".tar")) if word in SPLIT_NAMES
    ]
    return known or (words[0] if len(set(words)) == 1 else None)


# The index: found, fetched or made


def _cached(key: str | os.PathLike[str]) -> Path:
    """Where the index of shards is kept that lie where nothing can be written."""
    name = os.fspath(key)
    if not re.fullmatch("[0-9a-f]{64}", name):
        name = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
    return cache().parent / "index" / f"{name}.index"


def _open(
    place: Place, manifest: Manifest, shards: list[tuple[Entry, str | None]], own: Path | None, cached: Path
) -> Found:
    """`own` is the index's place beside the shards, where there can be one; `cached` the one in the cache."""
    index = _index(place, manifest, shards, [cached] if own is None else [own, cached])
    unlabelled = {where for kind, where, _ in index.notices if kind == "unlabelled"}
    parts: dict[str, Part] = {}
    notices = [Notice(*notice) for notice in index.notices]
    carved = index.carved
    if carved is not None:
        first = 0
        for split, count in carved.items():
            rows, labels = (_mapped(index, name, first, count) for name in ("rows", "row_labels"))
            parts[split] = Part(Shards(place, index, 0, len(index)), labels, rows=rows)
            first += count
    else:
        first = 0
        for split, group in itertools.groupby(index.shards, key=lambda shard: shard.split):
            count = sum(shard.samples for shard in group)
            if split is not None and split not in unlabelled:
                parts[split] = Part(Shards(place, index, first, count), _mapped(index, "labels", first, count))
            first += count
    location = place.path if isinstance(place, Folder) else place.location
    return Found(place.name, location, list(index.classes), parts, index.ordered, notices, carved is not None)


def _mapped(index: Index, name: str, first: int, count: int) -> np.ndarray:
    """Rows of one of its arrays, as an array of their own, which can go to another process without being copied."""
    whole_array = getattr(index, name)
    if not count:
        return whole_array[:0]
    skipped = first * whole_array.itemsize * int(np.prod(whole_array.shape[1:]))
    return map_array(index.path, whole_array.offset + skipped, whole_array.dtype.str, (count, *whole_array.shape[1:]))


def _index(place: Place, manifest: Manifest, shards: list[tuple[Entry, str | None]], paths: list[Path]) -> Index:
    """The index that fits the shards as they are: one that lies at one of `paths`, or a new one."""
    if manifest.packed and place.remote and not paths[-1].exists():
        _fetch(place, manifest, paths[-1])
    for path in paths:
        if not path.is_file():
            continue
        try:
            index = open_index(path)
        except DataError as error:
            say(f"{error}; the index is made anew")
            continue
        misfit = _misfit(index, manifest, shards)
        if not misfit:
            return index
        say(f"{place.location}: {misfit}; the index is made anew")
    for path in paths[:-1]:
        with contextlib.suppress(FaultError):  # a folder that cannot be written
            make_index(place, manifest, shards, path)
            return open_index(path)
    make_index(place, manifest, shards, paths[-1])
    return open_index(paths[-1])


def _misfit(index: Index, manifest: Manifest, shards: list[tuple[Entry, str | None]]) -> str:
    """What has changed since the index was made, as the beginning of a sentence; empty if nothing."""
    then = {shard.file.name: shard for shard in index.shards}
    if gone := sorted(then.keys() - {file.name for file, _ in shards}):
        return f"{gone[0]} is gone since its index was made"
    for file, split in shards:
        if file.name not in then:
            return f"{file.name} is new since the index was made"
        if then[file.name].file != file or then[file.name].split != split:
            return f"{file.name} has changed since its index was made"
    if [shard.file for shard in index.shards] != [file for file, _ in shards]:
        return "the order of the shards has changed"
    if manifest.classes != (index.classes if index.ordered else ()):
        return "the class list has changed since the index was made"
    return ""


def _fetch(place: Place, manifest: Manifest, target: Path) -> None:
    """The index that lies beside packed shards, into the cache; what cannot be had is made instead."""
    with contextlib.suppress(DataError), new_file(target) as file:
        digest = hashlib.sha256()

        def write(content: bytes) -> None:
            file.write(content)
            digest.update(content)

        entry = place.entry(INDEX)
        if entry is None or entry.size != manifest.index_size:
            raise DataError(f"{place.location}/{INDEX} is not the one that {MANIFEST} names")
        copy(place, INDEX, manifest.index_size, write)
        if digest.hexdigest() != manifest.index_hash:
            raise DataError(f"{place.location}/{INDEX} is not the one that {MANIFEST} names")
