"""Public data sets published as picture files and lists, in the layout of their authors → what `assemble` needs.

Each reader looks for its own files in a folder and answers None where they are not: opening a path tries them all, and
those of `arrays`.
"""

import csv
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from patchword.core.errors import DataError
from patchword.core.files import check_regular
from patchword.data.arrays import as_published, find_cifar, find_idx, find_stl10, find_svhn, place_of
from patchword.data.assemble import Found, Part
from patchword.data.dataset import Files, Names, Notice
from patchword.data.formats import matlab
from patchword.data.formats.folder import find_folders, list_folder

# The authors number their classes and name them on the data set's page, in this order.
FLOWERS = tuple(
    """pink primrose, hard-leaved pocket orchid, canterbury bells, sweet pea, english marigold, tiger lily, moon orchid,
    bird of paradise, monkshood, globe thistle, snapdragon, colt's foot, king protea, spear thistle, yellow iris, globe-flower,
    purple coneflower, peruvian lily, balloon flower, giant white arum lily, fire lily, pincushion flower, fritillary,
    red ginger, grape hyacinth, corn poppy, prince of wales feathers, stemless gentian, artichoke, sweet william, carnation,
    garden phlox, love in the mist, mexican aster, alpine sea holly, ruby-lipped cattleya, cape flower, great masterwort,
    siam tulip, lenten rose, barbeton daisy, daffodil, sword lily, poinsettia, bolero deep blue, wallflower, marigold,
    buttercup, oxeye daisy, common dandelion, petunia, wild pansy, primula, sunflower, pelargonium, bishop of llandaff, gaura,
    geranium, orange dahlia, pink-yellow dahlia, cautleya spicata, japanese anemone, black-eyed susan, silverbush,
    californian poppy, osteospermum, spring crocus, bearded iris, windflower, tree poppy, gazania, azalea, water lily, rose,
    thorn apple, morning glory, passion flower, lotus, toad lily, anthurium, frangipani, clematis, hibiscus, columbine,
    desert-rose, tree mallow, magnolia, cyclamen, watercress, canna lily, hippeastrum, bee balm, ball moss, foxglove,
    bougainvillea, camellia, mallow, mexican petunia, bromelia, blanket flower, trumpet creeper, blackberry lily""".replace(
        "\n    ", " "
    ).split(", ")
)

_SYNSET = re.compile(r"n\d{8}")


def find_pets(folder: Path) -> Found | None:
    """The Oxford-IIIT Pet data set: `images/`, `annotations/trainval.txt`, `annotations/test.txt`."""
    place = place_of(folder, ("", "oxford-iiit-pet"), ("annotations/trainval.txt",))
    if place is None:
        return None

    def read(list_name: str) -> Iterable[tuple[str, str]]:
        for line in _lines(place / "annotations" / list_name):
            image = line.split()[0]
            yield f"images/{image}.jpg", image.rpartition("_")[0].replace("_", " ")

    return _from_lists(folder, place, {"train": read("trainval.txt"), "test": read("test.txt")})


def find_flowers(folder: Path) -> Found | None:
    """Oxford Flowers 102: `jpg/`, `imagelabels.mat`, `setid.mat`."""
    place = place_of(folder, ("", "flowers-102"), ("setid.mat",))
    if place is None:
        return None
    with as_published(place / "imagelabels.mat"):
        labels = _from_one(matlab.read(place / "imagelabels.mat")["labels"])
        names = [FLOWERS[label - 1] for label in labels]
    with as_published(place / "setid.mat"):
        sets = matlab.read(place / "setid.mat")
        lists = {
            split: [(f"jpg/image_{number:05d}.jpg", names[number - 1]) for number in _from_one(sets[key])]
            for split, key in (("train", "trnid"), ("validation", "valid"), ("test", "tstid"))
        }
    return _from_lists(folder, place, lists, FLOWERS)


def _from_one(numbers: np.ndarray) -> list[int]:
    """Matlab counts from 1."""
    found = numbers.reshape(-1).astype(np.int64).tolist()
    if min(found, default=1) < 1:
        raise ValueError(f"{min(found)} is the number of nothing")
    return found


def find_food(folder: Path) -> Found | None:
    """Food-101: `images/`, `meta/train.txt`, `meta/test.txt`."""
    place = place_of(folder, ("", "food-101"), ("meta/train.txt",))
    if place is None:
        return None
    lists = {
        split: [(f"images/{line}.jpg", line.partition("/")[0]) for line in _lines(place / "meta" / f"{split}.txt")]
        for split in ("train", "test")
    }
    return _from_lists(folder, place, lists)


def find_textures(folder: Path) -> Found | None:
    """Describable Textures (DTD): `images/`, `labels/train1.txt` …; the first of its ten partitions."""
    place = place_of(folder, ("", "dtd", "dtd/dtd"), ("labels/train1.txt",))
    if place is None:
        return None
    lists = {
        split: [(f"images/{line}", line.partition("/")[0]) for line in _lines(place / "labels" / f"{short}1.txt")]
        for split, short in (("train", "train"), ("validation", "val"), ("test", "test"))
    }
    return _from_lists(folder, place, lists)


def find_aircraft(folder: Path) -> Found | None:
    """FGVC-Aircraft, by variant: `images/`, `variants.txt`, `images_variant_train.txt` …."""
    place = place_of(folder, ("", "data", "fgvc-aircraft-2013b/data"), ("images_variant_train.txt",))
    if place is None:
        return None

    def read(short: str) -> Iterable[tuple[str, str]]:
        for line in _lines(place / f"images_variant_{short}.txt"):
            number, _, variant = line.partition(" ")
            yield f"images/{number}.jpg", variant

    lists = {"train": read("train"), "validation": read("val"), "test": read("test")}
    return _from_lists(folder, place, lists, _lines(place / "variants.txt"))


def find_eurosat(folder: Path) -> Found | None:
    """EuroSAT (RGB): class folders below `2750`, without splits."""
    place = place_of(folder, ("", "eurosat"), ("2750/AnnualCrop",))
    if place is None:
        return None
    found = find_folders(place / "2750")
    found.name = folder.name
    return found


def find_vtab(folder: Path) -> Found | None:
    """A task of VTAB-1k as it is passed around: `train800.txt`, `val200.txt` and `test.txt`, a path and a number on each line."""
    place = place_of(folder, ("",), ("train800.txt", "val200.txt"))
    if place is None:
        return None

    def read(list_name: str) -> list[tuple[str, str]]:
        pairs = [line.rsplit(maxsplit=1) for line in _lines(place / list_name)]
        wrong = next((pair for pair in pairs if len(pair) != 2 or not re.fullmatch(r"[0-9]{1,6}", pair[1])), None)
        if wrong is not None:
            raise DataError(f"{place / list_name}: {' '.join(wrong)!r} is not a path and the number of a class")
        return [(path, number.lstrip("0") or "0") for path, number in pairs]

    lists = {"train": read("train800.txt"), "validation": read("val200.txt"), "test": read("test.txt")}
    last = max((int(number) for pairs in lists.values() for _, number in pairs), default=0)
    return _from_lists(folder, place, lists, [str(number) for number in range(last + 1)])


def find_imagenet(folder: Path) -> Found | None:
    """ImageNet (ILSVRC 2012) as published: folders of synsets in `train`, and a flat `val` whose labels lie beside it.

    The labels are `LOC_val_solution.csv` (Kaggle) or the folder `ILSVRC2012_devkit_t12`; a `val` of synset folders is an
    ordinary folder and not read here.
    """
    place = place_of(folder, ("", "ILSVRC/Data/CLS-LOC"), ("val/ILSVRC2012_val_00000001.JPEG",))
    if place is None or not (place / "train").is_dir():
        return None
    synsets = [name for name in list_folder(place / "train").folders if _SYNSET.fullmatch(name)]
    truth = _imagenet_truth(folder)
    train, counts = Names(), []
    for synset in synsets:
        pictures = list_folder(place / "train" / synset).pictures
        train.extend(pictures, f"train/{synset}/".encode())
        counts.append(len(pictures))
    code = {synset: number for number, synset in enumerate(synsets)}
    validation = list_folder(place / "val").pictures
    try:
        codes = np.array([code[truth[name.decode().partition(".")[0]]] for name in validation], np.int64)
    except KeyError as error:
        raise DataError(
            f"{place / 'val'}: {error.args[0]} has no label, or one that train has no folder for"
        ) from error
    parts = {
        "train": Part(Files(place, train), np.repeat(np.arange(len(synsets)), counts)),
        "validation": Part(Files(place, Names(b"val/" + name for name in validation)), codes),
    }
    notices = [Notice("unlabelled", "test", "test: has no labels and is left out")] if (place / "test").is_dir() else []
    return Found(folder.name, folder, synsets, parts, ordered=True, notices=notices)


def _imagenet_truth(folder: Path) -> dict[str, str]:
    """The synset of each validation picture, by its name without ending."""
    table, kit = folder / "LOC_val_solution.csv", folder / "ILSVRC2012_devkit_t12" / "data"
    if table.is_file():
        rows = csv.DictReader(_lines(table))
        with as_published(table):
            return {row["ImageId"]: row["PredictionString"].split()[0] for row in rows}
    if (kit / "meta.mat").is_file():
        with as_published(kit / "meta.mat"):
            described = matlab.read(kit / "meta.mat")["synsets"].reshape(-1)
            synset = {int(entry["ILSVRC2012_ID"].item()): entry["WNID"] for entry in described}
        numbers = _lines(kit / "ILSVRC2012_validation_ground_truth.txt")
        with as_published(kit / "ILSVRC2012_validation_ground_truth.txt"):
            return {f"ILSVRC2012_val_{place:08d}": synset[int(number)] for place, number in enumerate(numbers, 1)}
    raise DataError(
        f"{folder}: its val is not sorted into classes; put LOC_val_solution.csv or ILSVRC2012_devkit_t12 into {folder}"
    )


FINDERS: tuple[Callable[[Path], Found | None], ...] = (
    find_idx,
    find_cifar,
    find_svhn,
    find_stl10,
    find_pets,
    find_flowers,
    find_food,
    find_textures,
    find_aircraft,
    find_eurosat,
    find_vtab,
    find_imagenet,
)


def find_published(folder: Path) -> Found | None:
    """The public data set that `folder` holds in its published layout; None where it holds none."""
    return next((found for find in FINDERS if (found := find(folder))), None)


def _lines(path: Path) -> list[str]:
    check_regular(path)
    try:
        text = path.read_text(encoding="utf-8").replace("\0", "\n")  # no name of a file holds a NUL
        return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error})") from error


def _from_lists(
    folder: Path, place: Path, lists: Mapping[str, Iterable[tuple[str, str]]], classes: Iterable[str] = ()
) -> Found:
    """A data set whose splits are lists of (path, class name); the class list is sorted where the authors give none."""
    known = {split: list(pairs) for split, pairs in lists.items()}
    for path, _ in (pair for pairs in known.values() for pair in pairs):
        if ".." in path.split("/"):
            raise DataError(
                f"{place}: the lists name {path!r}, which leads out of the folder; paths below it are right"
            )
    names = list(classes) or sorted({name for pairs in known.values() for _, name in pairs}, key=str.casefold)
    code = {name: number for number, name in enumerate(names)}
    try:
        parts = {
            split: Part(
                Files(place, Names(path.encode() for path, _ in pairs)),
                np.array([code[name] for _, name in pairs], np.int64),
            )
            for split, pairs in known.items()
        }
    except KeyError as error:
        raise DataError(
            f"{place}: the lists name {error.args[0]!r}, which is not among its {len(names)} classes"
        ) from error
    return Found(folder.name, folder, names, parts, ordered=True)
