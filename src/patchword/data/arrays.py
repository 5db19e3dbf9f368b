"""Public data sets published as arrays of pixels: MNIST and its kin, CIFAR, SVHN, STL-10. No pickle is ever loaded.

Each reader looks for its authors' files in a folder and answers None where they are not.
"""

import gzip
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from patchword.core.errors import DataError, UsageError
from patchword.data.assemble import Found, Part
from patchword.data.dataset import Arrays

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
        names: list[str] = files[names_file].decode("ascii").split() if names_file else [*CIFAR10]
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
        content = load_matlab(path)
        labels = content["y"].reshape(-1).astype(np.int64) % 10  # the authors write 10 for the digit 0
        parts[split] = _arrays(path, split, np.ascontiguousarray(content["X"].transpose(3, 0, 1, 2)), labels, 10)
    return Found(folder.name, folder, list(DIGITS), parts, ordered=True)


def find_stl10(folder: Path) -> Found | None:
    """STL-10's labelled part: `train_X.bin`, `test_X.bin` …; pixels stay on the disk until they are read."""
    place = place_of(folder, ("", "stl10_binary"), ("train_X.bin",))
    if place is None:
        return None
    names = (place / "class_names.txt").read_text(encoding="ascii").split()
    parts = {}
    for split in ("train", "test"):
        path = place / f"{split}_X.bin"
        if not path.stat().st_size or path.stat().st_size % (3 * 96 * 96):
            raise DataError(f"{path} is damaged; a whole number of pictures of {3 * 96 * 96} bytes is right")
        pixels = np.memmap(path, np.uint8, "r").reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)
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


def load_matlab(path: Path, **options: Any) -> dict[str, Any]:
    """The variables of a Matlab file, by name."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise UsageError(f"reading {path} takes scipy: pip install 'patchword[data]'") from error
    try:
        return loadmat(path, **options)
    except Exception as error:  # scipy's reader fails with any of a dozen kinds of exception
        raise DataError(f"{path} is not a Matlab file that can be read ({error})") from error


def _arrays(place: Path, split: str, pixels: np.ndarray, labels: np.ndarray, classes: int) -> Part:
    labels = labels.astype(np.int64)
    if len(pixels) != len(labels) or (labels.size and not 0 <= labels.min() <= labels.max() < classes):
        raise DataError(
            f"{place}: {split} has {len(pixels)} pictures and {len(labels)} labels; one label from 0 to {classes - 1} for "
            "each picture is right"
        )
    return Part(Arrays(pixels, split), labels)


def _idx(place: Path, name: str, axes: int) -> np.ndarray:
    """An array in the IDX format (http://yann.lecun.com/exdb/mnist): magic, one big-endian length per axis, bytes."""
    path = place / name if (place / name).exists() else place / f"{name}.gz"
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error})") from error
    start = 4 + 4 * axes
    shape = tuple(np.frombuffer(content[4:start], ">u4").tolist())
    if content[:4] != bytes([0, 0, 8, axes]) or len(content) - start != int(np.prod(shape, dtype=np.int64)):
        raise DataError(f"{path} is not a whole IDX file of bytes with {axes} axes")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _members(place: Path, inner: str, names: list[str]) -> dict[str, bytes]:
    """Files by name, from a folder or straight out of a .tar.gz, of which nothing is written to the disk."""
    try:
        if place.is_dir():
            return {name: (place / name).read_bytes() for name in names}
        with tarfile.open(place) as archive:
            return {name: archive.extractfile(f"{inner}/{name}").read() for name in names}  # pyright: ignore[reportOptionalMemberAccess]
    except (OSError, EOFError, KeyError, AttributeError, tarfile.TarError) as error:
        raise DataError(f"{place} is not whole ({error}); {', '.join(names)} are needed") from error
