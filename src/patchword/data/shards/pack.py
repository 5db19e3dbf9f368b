"""A data set of any kind → tar shards that are read by index: verified as they are written, and resumable at each shard."""

import contextlib
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

import numpy as np
from PIL import Image

from patchword.core import files
from patchword.core.errors import DataError, FaultError, UsageError
from patchword.core.picture import DecodeError
from patchword.core.progress import say
from patchword.core.runtime import only_writer, usable_cores
from patchword.data.dataset import Dataset, Split
from patchword.data.decoding.decode import decode, format_of, header
from patchword.data.shards import tar
from patchword.data.shards.find import INDEX
from patchword.data.shards.manifest import FORMAT, MANIFEST, Manifest, check_shards, read_manifest
from patchword.data.shards.places import Entry, Folder, is_address
from patchword.data.shards.samples import make_index
from patchword.data.sources import open_data
from patchword.data.store import in_order, worthwhile_threads

SHARD_BYTES = 256_000_000

_UNFINISHED = "unfinished.json"
_TASK = 16
_STEP = 2**16
_PIECE = 2**23
_ENDINGS = {"JPEG": "jpg", "TIFF": "tif"}
_LONGEST_JPEG = 65_500  # pixels a side, of libjpeg

Item = tuple[bytes, bool]
"""The content of a picture's file, and whether it was encoded here."""


def pack(
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    side: int | None = None,
    quality: int = 90,
    shard_bytes: int = SHARD_BYTES,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write `data` into the folder `out` as tar shards in the WebDataset layout, with their index and `dataset.json`.

    Every picture is decoded once; one that cannot be is left out and listed. Files of pictures are copied byte for byte,
    and pixels of sets without files become PNG. With `side`, pictures whose shorter side is longer are resized to it
    (bicubic) and stored as JPEG of `quality`, grey ones as grey. Splits are those that training would use.

    Equal data and settings give equal bytes. Each shard is read again before it is published; a run that was ended goes
    on after the last one that was. Raises `UsageError` where `out` holds anything else, other settings included.
    """
    if side is not None and side < 2:
        raise UsageError(f"side {side} must be at least 2 pixels")
    if not 1 <= quality <= 100:
        raise UsageError(f"quality {quality} must lie in 1 to 100, as JPEG has it")
    if shard_bytes < 1:
        raise UsageError(f"a shard of {shard_bytes} bytes holds nothing; 256 MB are usual")
    if is_address(out):
        raise UsageError(f"{out} is an address; pack into a folder of this machine and copy that")
    out = files.at_home(out)
    dataset = open_data(data)
    settings = {"side": side, "quality": quality if side else None, "shard_bytes": shard_bytes}
    lock = out / ".lock"
    lock_is_ours = not lock.exists()
    with only_writer(out):
        work = _Work(dataset, out, settings, on_progress)
        try:
            finished = work.finished()
        except UsageError:
            if lock_is_ours:
                lock.unlink()  # the folder is somebody else's
            raise
        return finished or work.run()


class _Work:
    """What is written so far, and what is left to do."""

    def __init__(
        self,
        dataset: Dataset,
        out: Path,
        settings: dict[str, Any],
        on_progress: Callable[[int, int], None] | None,
    ) -> None:
        self.dataset, self.out, self.settings = dataset, out, settings
        self.source = dataset.fingerprint()
        self.total = sum(len(split) for split in dataset.splits.values())
        self.on_progress = on_progress
        self.shards: list[dict[str, Any]] = []
        self.number = 0
        """Of the next picture, counted through all splits."""

    def finished(self) -> dict[str, Any] | None:
        """The set that stands there already, made from the same data with the same settings; else None."""
        self._refuse_strangers()
        manifest = read_manifest(Folder(self.out))
        if not manifest.packed:
            return None
        self._refuse_others(manifest.content, MANIFEST)
        check_shards(Folder(self.out), manifest)
        (self.out / _UNFINISHED).unlink(missing_ok=True)
        return self._summary(manifest.content)

    def run(self) -> dict[str, Any]:
        self._continue()
        first = 0
        for name, split in self.dataset.splits.items():
            if self.number < first + len(split):
                self._split(name, split, first)
            first += len(split)
            if not any(shard["name"] and shard["split"] == name for shard in self.shards):
                raise DataError(f"{self.dataset.location}: none of the {len(split)} pictures of {name} can be decoded")
        return self._publish()

    def _split(self, name: str, split: Split, first: int) -> None:
        with contextlib.closing(self._encoded(split, self.number - first)) as stream:
            held = next(stream, None)
            while held is not None:
                held = self._shard(name, split, first, held, stream)

    def _shard(
        self, name: str, split: Split, first: int, held: "_Encoded | None", stream: "Generator[_Encoded, None, None]"
    ) -> "_Encoded | None":
        """Write the next shard of a split, from `held` on; the picture that did not fit into it is returned."""
        path = (
            self.out / f"{name}-{sum(bool(shard['name']) and shard['split'] == name for shard in self.shards):06d}.tar"
        )
        left_out: list[dict[str, str]] = []
        expected: dict[bytes, tuple[int, bytes, bool]] = {}
        digest, size, samples = hashlib.sha256(), 0, 0
        try:
            with files.new_file(path) as file:
                while held is not None:
                    place, result = held
                    if isinstance(result, str):
                        left_out.append({"split": name, "name": split.name(place), "reason": result})
                    else:
                        members = self._members(split, place, result[0])
                        content = b"".join(tar.header(key, len(each)) + tar.padded(each) for key, each in members)
                        if samples and size + len(content) + len(tar.END) > self.settings["shard_bytes"]:
                            break
                        for (key, each), encoded in zip(members, (result[1], False), strict=True):
                            expected[key] = (len(each), _short_hash(each), encoded)
                        file.write(content)
                        digest.update(content)
                        size, samples = size + len(content), samples + 1
                    if self.on_progress is not None:
                        self.on_progress(first + place + 1, self.total)
                    held = next(stream, None)
                if not samples:
                    raise _NothingLeftError
                file.write(tar.END)
                digest.update(tar.END)
                size += len(tar.END)
                file.flush()
                _verify(file.fileno(), size, digest.hexdigest(), expected, path)
        except _NothingLeftError:
            self._record(name, None, 0, 0, "", first + len(split), left_out)
            return None
        self._record(
            name,
            path.name,
            samples,
            size,
            digest.hexdigest(),
            first + (len(split) if held is None else held[0]),
            left_out,
        )
        return held

    def _encoded(self, split: Split, start: int) -> "Generator[_Encoded, None, None]":
        """(index, content or fault) of the pictures of a split from `start` on, some worked on ahead."""

        def work(place: int) -> Item | str:
            try:
                return _encode(split.read(start + place), self.settings["side"], self.settings["quality"])
            except DecodeError as error:
                return error.reason

        threads = worthwhile_threads(split, usable_cores())
        for first, results in in_order(len(split) - start, work, threads, _TASK):
            yield from enumerate(results, start + first)

    def _members(self, split: Split, place: int, content: bytes) -> list[tuple[bytes, bytes]]:
        """The two files of a sample: its picture and its label."""
        key = f"{place:09d}/{escaped(split.key(place))}"
        kind = format_of(content)
        picture = f"{key}.{_ENDINGS.get(kind, kind.lower())}".encode()
        label = split.labels[place]
        if self.dataset.multi_label:
            names = [self.dataset.classes[code] for code in np.flatnonzero(label)]
            return [
                (picture, content),
                (f"{key}.json".encode(), json.dumps({"labels": names}, ensure_ascii=False).encode()),
            ]
        return [(picture, content), (f"{key}.cls".encode(), b"%d" % int(label))]

    # What is known of the work, on the disk

    def _refuse_strangers(self) -> None:
        """Leftovers of a run that was killed go; anything that no run has written is somebody's, and an error."""
        names = sorted(os.listdir(self.out))
        for name in names:
            if re.fullmatch(
                r"\.((train|validation|test)-\d{6}\.tar|shards\.index|dataset\.json|unfinished\.json)"
                rf"{re.escape(files.MARK)}.{{8}}",
                name,
            ):
                (self.out / name).unlink()
        known = {_UNFINISHED, MANIFEST} & set(names)
        strange = [
            name
            for name in names
            if not name.startswith(".")
            and not (known and (name in (_UNFINISHED, MANIFEST, INDEX) or re.fullmatch(r"[a-z]+-\d{6}\.tar", name)))
        ]
        if strange:
            raise UsageError(
                f"{self.out} holds {strange[0]}, which is not of this work; an empty or new folder is right"
            )

    def _refuse_others(self, told: dict[str, Any], where: str) -> None:
        if told["source"] != self.source:
            raise UsageError(
                f"{self.out} holds shards of other data, or of this data as it was before ({where}); another folder is right"
            )
        for name, value in self.settings.items():
            if told["settings"].get(name) != value:
                raise UsageError(
                    f"{self.out} holds shards made with {name}={told['settings'].get(name)}, not {value}; the same "
                    "setting or another folder is right"
                )

    def _continue(self) -> None:
        """Take up what an earlier run has recorded, as far as its shards are still what was written."""
        path = self.out / _UNFINISHED
        if path.exists():
            told = files.read_json(path)
            try:
                self._refuse_others(told, _UNFINISHED)
                for shard in told["shards"]:
                    name = shard["name"]
                    if name is not None and _hash_of(self.out / str(name)) != (shard["bytes"], shard["sha256"]):
                        say(f"{self.out / str(name)} is not what was written; packing goes on from there")
                        break
                    self.number = int(shard["next"])
                    self.shards.append(shard)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise DataError(f"{path} is damaged; remove {self.out} and pack again") from error
            if self.number:
                say(f"{self.out}: goes on after {self.number:,} of {self.total:,} pictures")
        self._write_unfinished()

    def _record(
        self, split: str, name: str | None, samples: int, size: int, digest: str, following: int, left_out: list[Any]
    ) -> None:
        self.shards.append(
            {"name": name, "split": split, "samples": samples, "bytes": size, "sha256": digest}
            | {"next": following, "left_out": left_out}
        )
        self.number = following
        self._write_unfinished()

    def _write_unfinished(self) -> None:
        told = {"source": self.source, "settings": self.settings, "shards": self.shards}
        files.write_json(self.out / _UNFINISHED, told)

    def _publish(self) -> dict[str, Any]:
        left_out = [each for shard in self.shards for each in shard["left_out"]]
        shards = [{key: shard[key] for key in _SHARD_FIELDS} for shard in self.shards if shard["name"]]
        entries: list[tuple[Entry, str | None]] = [
            (Entry(shard["name"], shard["bytes"], ""), shard["split"]) for shard in shards
        ]
        index = self.out / INDEX
        make_index(Folder(self.out), Manifest(self.dataset.classes, packed=True), entries, index, quiet=True)
        told = {
            "format": FORMAT,
            "name": self.dataset.name,
            "classes": list(self.dataset.classes),
            "several_labels": self.dataset.multi_label,
            "split_rule": self.dataset.split_rule,
            "source": self.source,
            "settings": self.settings,
            "shards": shards,
            "index": {"bytes": index.stat().st_size, "sha256": files.sha256(index)},
            "left_out": left_out,
        }
        files.write_json(self.out / MANIFEST, told)
        (self.out / _UNFINISHED).unlink()
        return self._summary(told)

    def _summary(self, told: dict[str, Any]) -> dict[str, Any]:
        pictures = dict.fromkeys(self.dataset.splits, 0)
        for shard in told["shards"]:
            pictures[shard["split"]] += shard["samples"]
        return {
            "out": str(self.out),
            "pictures": pictures,
            "shards": len(told["shards"]),
            "bytes": sum(shard["bytes"] for shard in told["shards"]),
            "left_out": told["left_out"],
        }


_Encoded = tuple[int, Item | str]
_SHARD_FIELDS = ("name", "split", "samples", "bytes", "sha256")


class _NothingLeftError(Exception):
    """The rest of a split cannot be decoded: there is no shard to write."""


def escaped(name: bytes) -> str:
    """A picture's name as a key may hold it: without dots, where a key would end, and safe for every reader of archives."""
    key = quote_from_bytes(name, safe="/ ()+,=@~")
    folder, slash, base = key.rpartition("/")
    if "" in key.split("/"):
        return key.replace("/", "%2F").replace(".", "%2E")
    return re.sub(r"(^|/)\.", r"\1%2E", folder) + slash + base.replace(".", "%2E")


def _encode(item: bytes | np.ndarray, side: int | None, quality: int | None) -> Item:
    height, width, grey = header(item)
    resized = side is not None and min(height, width) > side
    if isinstance(item, np.ndarray):
        picture = _image(item)
        content = io.BytesIO()
        (_smaller(picture, side) if resized and side else picture).save(content, "PNG")
        return content.getvalue(), True
    if not resized or side is None or quality is None:
        decode(item, 3)  # proves that it can be
        return item, False
    picture = _smaller(_image(decode(item, 1 if grey else 3)), side)
    if max(picture.size) > _LONGEST_JPEG:
        raise DecodeError(f"would be {picture.width}x{picture.height} pixels, longer than a JPEG can be")
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=quality)
    return content.getvalue(), True


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(
        np.ascontiguousarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)
    )


def _smaller(picture: Image.Image, side: int) -> Image.Image:
    """With a shorter side of `side` pixels."""
    scale = side / min(picture.size)
    width, height = (max(side, round(length * scale)) for length in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def _verify(number: int, size: int, digest: str, expected: dict[bytes, tuple[int, bytes, bool]], path: Path) -> None:
    """Read what was written: from the disk, as far as the system can be asked to forget its own copy."""
    os.fsync(number)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
    found = hashlib.sha256()
    for start in range(0, size, _PIECE):
        found.update(os.pread(number, min(_PIECE, size - start), start))
    met = {}
    if found.hexdigest() == digest:
        for member in tar.members(lambda start, length: os.pread(number, length, start), size, str(path), _STEP):
            content = os.pread(number, member.size, member.offset)
            encoded = expected.get(member.name, (0, b"", False))[2]
            if encoded:
                decode(content, 3)
            met[member.name] = (member.size, _short_hash(content), encoded)
    if met != expected:
        raise FaultError(f"{path} is not what was written when it is read again; the disk, or its driver, is at fault")


def _short_hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _hash_of(path: Path) -> tuple[int, str]:
    try:
        return path.stat().st_size, files.sha256(path)
    except OSError:
        return -1, ""
