"""Named public data sets: where they are looked for, and how they are had where they are not."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from patchword.core import files
from patchword.core.errors import DataError, UsageError, nearest
from patchword.core.files import at_home, new_directory
from patchword.data.arrays import DIGITS
from patchword.data.assemble import Found, Part
from patchword.data.dataset import Arrays
from patchword.data.formula import PREFIX, parse_formula

_SYSTEM = (Path("/usr/share/datasets"), Path("/usr/local/share/datasets"))
_CIFAR = "https://www.cs.toronto.edu/~kriz/"


def _torchvision(kind: str, **options: str) -> Callable[[Path], None]:
    def download(folder: Path) -> None:
        from torchvision import datasets

        getattr(datasets, kind)(folder, download=True, **options)

    return download


def _svhn(folder: Path) -> None:
    _torchvision("SVHN", split="train")(folder)
    _torchvision("SVHN", split="test")(folder)


def _archive(url: str, md5: str) -> Callable[[Path], None]:
    def download(folder: Path) -> None:
        from torchvision.datasets.utils import download_url

        download_url(url, str(folder), md5=md5)

    return download


# Name → how to download it, and the files that stand for it in the folder of its name. CIFAR comes in its binary version,
# for torchvision's is pickled.
_SETS: dict[str, tuple[Callable[[Path], None] | None, str]] = {
    "digits": (None, ""),
    "mnist": (_torchvision("MNIST"), "train-images-idx3-ubyte.gz and its three kin"),
    "fashion-mnist": (_torchvision("FashionMNIST"), "train-images-idx3-ubyte.gz and its three kin"),
    "kmnist": (_torchvision("KMNIST"), "train-images-idx3-ubyte.gz and its three kin"),
    "cifar10": (
        _archive(_CIFAR + "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),
        "cifar-10-binary.tar.gz",
    ),
    "cifar100": (
        _archive(_CIFAR + "cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),
        "cifar-100-binary.tar.gz",
    ),
    "svhn": (_svhn, "train_32x32.mat and test_32x32.mat"),
    "stl10": (_torchvision("STL10"), "stl10_binary/"),
    "pets": (_torchvision("OxfordIIITPet"), "images/ and annotations/"),
    "flowers102": (_torchvision("Flowers102"), "jpg/, imagelabels.mat and setid.mat"),
    "food101": (_torchvision("Food101"), "images/ and meta/"),
    "dtd": (_torchvision("DTD"), "images/ and labels/"),
    "aircraft": (_torchvision("FGVCAircraft"), "the content of fgvc-aircraft-2013b/data"),
    "eurosat": (_torchvision("EuroSAT"), "2750/"),
    "imagenet": (None, "train/, val/ and LOC_val_solution.csv"),
    "imagenet21k": (None, "a folder for each class, or tar shards,"),
}

NAMES = tuple(_SETS)


def find(name: str, open_path: Callable[[Path], Found]) -> Found:
    """The data set of that name, opened by `open_path` where it lies in a folder; downloaded where it is nowhere."""
    plain = _plain(name)
    canonical = next((known for known in NAMES if _plain(known) == plain), name)
    if re.fullmatch(r"[\w.-]+", name) and not name.startswith("."):
        for place in (*data_folders(), cache()):
            folder = next((place / spelling for spelling in (canonical, name) if (place / spelling).is_dir()), None)
            if folder is not None:
                return _renamed(open_path(folder), canonical)
    if canonical == "digits":
        return _digits()
    if canonical not in _SETS:
        raise DataError(_unknown(name))
    return _renamed(open_path(_download(canonical)), canonical)


def cache() -> Path:
    """Where downloaded data sets are kept: `$XDG_CACHE_HOME/patchword/data`, by default in `~/.cache`."""
    return files.cache("data")


def _unknown(name: str) -> str:
    """The sentence for a name or path that stands for nothing; suggestions are what lies beside it, and the named sets."""
    path = at_home(name)
    beside = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
    if os.sep in name or path.suffix:
        guess = nearest(path.name, beside)
        return f"{name} does not exist" + (f"; {guess}" if guess.startswith("did") else "")
    local = [
        entry.name for place in data_folders() if place.is_dir() for entry in sorted(place.iterdir()) if entry.is_dir()
    ]
    try:
        parse_formula(f"{PREFIX}{name}")
        guess = f"did you mean '{PREFIX}{name}'?"
    except (DataError, UsageError):
        guess = nearest(name, dict.fromkeys([*NAMES, *local, *beside]))
    known = guess if guess.startswith("did") else "named sets are " + ", ".join(dict.fromkeys([*NAMES, *local]))
    return f"{name} is neither a path that exists nor a named data set; {known}"


def data_folders() -> list[Path]:
    """The data folders of this machine: `$PATCHWORD_DATA`, then the system's."""
    own = os.environ.get("PATCHWORD_DATA")
    return [at_home(own), *_SYSTEM] if own else list(_SYSTEM)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _renamed(found: Found, name: str) -> Found:
    found.name = name
    return found


def _download(name: str) -> Path:
    download, contents = _SETS[name]
    folder = cache() / name
    put = f"put {contents} into {folder} or into $PATCHWORD_DATA/{name}"
    if download is None:
        raise DataError(f"{name} cannot be downloaded without an account; {put}")
    try:
        with new_directory(folder) as aside:
            download(aside)
    except ImportError as error:
        raise UsageError(
            f"{name} is not on this machine, and downloading it takes torchvision: pip install 'patchword[data]'; or {put}"
        ) from error
    except Exception as error:
        # Whatever the network, the server or the archive did; a full disk has its own sentence already.
        if isinstance(error, DataError | UsageError) or type(error).__module__.startswith("patchword"):
            raise
        raise DataError(
            f"{name} is not on this machine and could not be downloaded ({' '.join(str(error).split())[:200]}); {put}"
        ) from error
    return folder


def _digits() -> Found:
    """The 1,797 handwritten digits of scikit-learn, 8×8, values 0…16 scaled to 0…255."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UsageError("the data set digits takes scikit-learn: pip install 'patchword[data]'") from error
    values, targets = load_digits(return_X_y=True)
    pixels = np.rint(np.asarray(values).reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    part = Part(Arrays(pixels, "digits"), np.asarray(targets, np.int64))
    return Found("digits", Path("scikit-learn"), list(DIGITS), {"train": part}, ordered=True)
