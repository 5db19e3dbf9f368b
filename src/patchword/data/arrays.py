"""Public data sets published as arrays of pixels: MNIST and its kin, CIFAR, SVHN, STL-10. No pickle is ever loaded.

Each reader looks for its authors' files in a folder and answers None where they are not.
"""

import contextlib
import gzip
import math
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, cast

import numpy as np

from patchword.core.errors import DataError
from patchword.core.files import check_regular
from patchword.data.assemble import Found, Part
from patchword.data.dataset import Arrays
from patchword.data.formats import matlab

_MOST_BYTES = 2**31
"""None of these sets has a file of 2 GiB, so what would unpack to more is a bomb."""
_CHUNK = 2**20

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
DIGITS = tuple("0123456789")
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
KUZUSHIJI = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")


def find_idx(folder: Path) -> Found | None:
    """MNIST and its kin: `train-images-idx3-ubyte`, `t10k-labels-idx1-ubyte` …, plain or gzipped."""
    place = place_of(folder, ("", "raw", "*/raw"), ("train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"))
    if place is None:
        return None
    name = folder.name.lower()
    names = FASHION if "fashion" in name else KUZUSHIJI if "kmnist" in name or "kuzushiji" in name else DIGITS
    parts = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        pixels = _idx(place, f"{prefix}-images-idx3-ubyte", axes=3)
        labels = _idx(place, f"{prefix}-labels-idx1-ubyte", axes=1)
        parts[split] = _arrays(place, split, pixels, labels, len(names))
    return Found(folder.name, folder, list(names), parts, ordered=True)


def find_cifar(folder: Path) -> Found | None:
    """CIFAR-10 and CIFAR-100 in their binary version, unpacked or as the published archive."""
    for archive, inner, train, test, label_bytes, names_file in (
        (
            "cifar-10-binary.tar.gz",
            "cifar-10-batches-bin",
            [f"data_batch_{n}.bin" for n in range(1, 6)],
            "test_batch.bin",
            1,
            "",
        ),
        ("cifar-100-binary.tar.gz", "cifar-100-binary", ["train.bin"], "test.bin", 2, "fine_label_names.txt"),
    ):
        place = place_of(folder, ("", inner), (train[0],)) or (
            folder / archive if (folder / archive).is_file() else None
        )
        if place is None:
            continue
        files = _members(place, inner, [*train, test, *([names_file] if names_file else [])])
        names: list[str] = files[names_file].decode("ascii", "replace").split() if names_file else [*CIFAR10]
        parts = {}
        for split, batches in (("train", train), ("test", [test])):
            try:
                rows = np.frombuffer(b"".join(files[batch] for batch in batches), np.uint8).reshape(
                    -1, label_bytes + 3072
                )
            except ValueError as error:
                raise DataError(
                    f"{place}: the files of {split} are damaged; records of {label_bytes + 3072} bytes are right"
                ) from error
            pixels = np.ascontiguousarray(rows[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            parts[split] = _arrays(place, split, pixels, rows[:, label_bytes - 1], len(names))
        return Found(folder.name, folder, names, parts, ordered=True)
    if place_of(folder, ("",), ("cifar-10-batches-py", "cifar-100-python", "batches.meta")):
        raise DataError(
            f"{folder} holds CIFAR as pickles, which can run any code when they are loaded; "
            "put cifar-10-binary.tar.gz or cifar-100-binary.tar.gz (the binary version) there"
        )
    return None


def find_svhn(folder: Path) -> Found | None:
    """Street View House Numbers, cropped: `train_32x32.mat`, `test_32x32.mat`."""
    if not (folder / "train_32x32.mat").is_file():
        return None
    parts = {}
    for split in ("train", "test"):
        path = folder / f"{split}_32x32.mat"
        with as_published(path):
            content = matlab.read(path)
            labels = content["y"].reshape(-1).astype(np.int64) % 10  # the authors write 10 for the digit 0
            pixels = np.ascontiguousarray(content["X"].transpose(3, 0, 1, 2))
        parts[split] = _arrays(path, split, pixels, labels, 10)
    return Found(folder.name, folder, list(DIGITS), parts, ordered=True)


def find_stl10(folder: Path) -> Found | None:
    """STL-10's labelled part: `train_X.bin`, `test_X.bin` …; pixels stay on the disk until they are read."""
    place = place_of(folder, ("", "stl10_binary"), ("train_X.bin",))
    if place is None:
        return None
    with as_published(place / "class_names.txt"):
        check_regular(place / "class_names.txt")
        names = (place / "class_names.txt").read_text(encoding="ascii").split()
    parts = {}
    for split in ("train", "test"):
        path = place / f"{split}_X.bin"
        if not path.is_file() or not path.stat().st_size or path.stat().st_size % (3 * 96 * 96):
            raise DataError(f"{path} is damaged; a whole number of pictures of {3 * 96 * 96} bytes is right")
        pixels = np.memmap(path, np.uint8, "r").reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)
        with as_published(place / f"{split}_y.bin"):
            check_regular(place / f"{split}_y.bin")
            labels = np.frombuffer((place / f"{split}_y.bin").read_bytes(), np.uint8).astype(np.int64) - 1
        parts[split] = _arrays(path, split, pixels, labels, len(names))
    return Found(folder.name, folder, names, parts, ordered=True)


def place_of(folder: Path, below: Iterable[str], markers: Iterable[str]) -> Path | None:
    """The first of the folders `below` (patterns; "" for `folder` itself) that holds one of the files `markers`."""
    for pattern in below:
        for place in sorted(folder.glob(pattern)) if pattern else [folder]:
            if any((place / marker).exists() for marker in markers):
                return place
    return None


@contextlib.contextmanager
def as_published(path: Path) -> Iterator[None]:
    """Say that `path` is not what its authors published where it lacks something, or has it in another form."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise DataError(f"{path} is not what was published under its name ({error})") from error


def _arrays(place: Path, split: str, pixels: np.ndarray, labels: np.ndarray, classes: int) -> Part:
    labels = labels.astype(np.int64)
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or (pixels.ndim == 4 and pixels.shape[3] not in (1, 3)):
        raise DataError(
            f"{place}: {split} has pixels of {pixels.dtype} in the shape {pixels.shape}; bytes, N×H×W×3, are right"
        )
    if len(pixels) != len(labels) or (labels.size and not 0 <= labels.min() <= labels.max() < classes):
        raise DataError(
            f"{place}: {split} has {len(pixels)} pictures and {len(labels)} labels; one label from 0 to {classes - 1} for "
            "each picture is right"
        )
    return Part(Arrays(pixels, split), labels)


def _idx(place: Path, name: str, axes: int) -> np.ndarray:
    """An array in the IDX format (http://yann.lecun.com/exdb/mnist): magic, one big-endian length per axis, bytes."""
    path = place / name if (place / name).exists() else place / f"{name}.gz"
    check_regular(path)
    start = 4 + 4 * axes
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(start)
            shape = [int.from_bytes(head[at : at + 4], "big") for at in range(4, start, 4)]
            # No more is unpacked than the file promises.
            content = _read_at_most(cast(IO[bytes], file), min(math.prod(shape), _MOST_BYTES) + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error})") from error
    if head[:4] != bytes([0, 0, 8, axes]) or len(head) < start or len(content) != math.prod(shape):
        raise DataError(f"{path} is not a whole IDX file of bytes with {axes} axes")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _read_at_most(file: IO[bytes], most: int) -> bytearray:
    content = bytearray()
    while chunk := file.read(min(_CHUNK, most - len(content))):
        content += chunk
    return content


def _members(place: Path, inner: str, names: list[str]) -> dict[str, bytes]:
    """Files by name, from a folder or straight out of a .tar.gz, of which nothing is written to the disk."""
    try:
        if place.is_dir():
            for name in names:
                check_regular(place / name)
            return {name: (place / name).read_bytes() for name in names}
        with tarfile.open(place) as archive:
            return {name: _member(archive, f"{inner}/{name}") for name in names}
    except (OSError, EOFError, KeyError, ValueError, tarfile.TarError, zlib.error) as error:
        raise DataError(f"{place} is not whole ({error}); {', '.join(names)} are needed") from error


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.getmember(name)
    opened = archive.extractfile(member) if member.isreg() else None
    if opened is None or member.size > _MOST_BYTES:
        raise ValueError(f"{name} is no file, or larger than any of them is")
    return bytes(_read_at_most(opened, member.size))
