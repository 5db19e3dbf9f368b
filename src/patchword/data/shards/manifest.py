"""What lies beside shards and says what they are: `dataset.json`, which `data pack` writes, or `classes.txt`."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from patchword.core.errors import DataError
from patchword.data.shards.places import Entry, Place, copy, safe_name, whole
from patchword.data.splits import SPLITS

MANIFEST = "dataset.json"
FORMAT = "patchword shards 1"

_CLASSES = "classes.txt"
_LARGEST = 2**28


@dataclass(frozen=True)
class Manifest:
    """What `dataset.json` beside shards says: of those written by `data pack` everything, of others perhaps the classes."""

    classes: tuple[str, ...] = ()
    packed: bool = False
    """Whether `data pack` wrote the shards; then all of the following is known."""
    name: str = ""
    shards: tuple[tuple[Entry, str, int], ...] = ()
    """Each file with its split and its number of samples; stamps are SHA-256."""
    index_hash: str = ""
    index_size: int = 0
    left_out: tuple[tuple[str, str, str], ...] = ()
    """Split, name and fault of pictures that could not be decoded when the set was packed."""
    content: dict[str, Any] = field(default_factory=dict)


def read_manifest(place: Place, *, classes_only: bool = False) -> Manifest:
    """What lies beside the shards; an empty `Manifest` where nothing does."""
    content = whole(place, MANIFEST, _LARGEST)
    if content is not None:
        where = f"{place.location}/{MANIFEST}"
        try:
            told = json.loads(content)
            if isinstance(told, dict) and told.get("format") == FORMAT and not classes_only:
                return _packed(told)
            classes = told.get("classes") if isinstance(told, dict) else None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise DataError(f"{where} is damaged ({' '.join(str(error).split())[:100]}); copy it again") from error
        if isinstance(classes, list) and classes and all(isinstance(name, str) for name in classes):
            return Manifest(_class_list(classes, where))
    content = whole(place, _CLASSES, _LARGEST)
    if content is None:
        return Manifest()
    where = f"{place.location}/{_CLASSES}"
    try:
        lines = [line.strip() for line in content.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 text; one class name a line is right") from error
    return Manifest(_class_list([line for line in lines if line], where))


def _packed(told: dict[str, Any]) -> Manifest:
    shards = tuple(
        (Entry(each["name"], each["bytes"], each["sha256"]), each["split"], each["samples"]) for each in told["shards"]
    )
    left_out = tuple((each["split"], each["name"], each["reason"]) for each in told["left_out"])
    words = [*told["classes"], *(word for each in left_out for word in each), told["name"], told["index"]["sha256"]]
    numbers = [number for file, _, samples in shards for number in (file.size, samples)] + [told["index"]["bytes"]]
    if not all(isinstance(word, str) for word in words) or not all(type(n) is int and 0 <= n < 2**62 for n in numbers):
        raise ValueError("a word or number of the wrong kind")
    if not all(safe_name(file.name) and split in SPLITS for file, split, _ in shards):
        raise ValueError("a shard that cannot be")
    if not re.fullmatch("[0-9a-f]{64}", told["index"]["sha256"]):
        raise ValueError("no hash of the index")
    index = told["index"]
    return Manifest(
        _class_list(told["classes"], MANIFEST),
        True,
        told["name"],
        shards,
        index["sha256"],
        index["bytes"],
        left_out,
        told,
    )


def _class_list(names: list[str], where: str) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise DataError(f"{where} names the class {twice!r} twice")
    return tuple(names)


def check_shards(place: Place, manifest: Manifest) -> None:
    """Refuse a place that lacks one of its shards, or has one of another size."""
    for file, _, _ in manifest.shards:
        entry = place.entry(file.name)
        if entry is None or entry.size != file.size:
            has = "does not exist" if entry is None else f"has {entry.size:,} bytes"
            raise DataError(
                f"{place.location}/{file.name} {has}; {file.size:,} bytes, as {MANIFEST} says, are right: copy it again"
            )


def verify(place: Place, names: Collection[str]) -> Iterator[tuple[str, str]]:
    """Those of the shards called `names` that `data pack` wrote and that are no longer what it wrote: (name, fault)."""
    for file, _, _ in read_manifest(place).shards:
        if file.name not in names:
            continue
        digest = hashlib.sha256()
        try:
            copy(place, file.name, file.size, digest.update)
        except DataError as error:
            yield file.name, str(error)
            continue
        if digest.hexdigest() != file.stamp:
            yield file.name, "its SHA-256 is not the one that was written"
