"""Public data sets in their published layouts, as small copies written here from the authors' descriptions."""

import gzip
import io
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from patchword.core.errors import DataError
from patchword.data.dataset import Dataset
from patchword.data.formats import named
from patchword.data.formats.published import FLOWERS
from patchword.data.sources import open_data
from patchword.data.splits import CARVED, TRAIN_AND_TEST, TRAIN_AND_VALIDATION


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where named sets are looked for; nothing else is found, nothing is downloaded."""
    monkeypatch.setenv("PATCHWORD_DATA", str(tmp_path / "sets"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(named, "_SYSTEM", ())
    return tmp_path / "sets"


def write(path: Path, content: bytes | str = b"picture") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def pictures(n: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, *shape), dtype=np.uint8)


def listed(dataset: Dataset) -> dict[str, list[tuple[str, str]]]:
    return {
        split: [(part.name(index), dataset.classes[part.labels[index]]) for index in range(len(part))]
        for split, part in dataset.splits.items()
    }


def write_idx(folder: Path, pack: Callable[[bytes], bytes] = bytes, ending: str = "") -> tuple[np.ndarray, np.ndarray]:
    train, test = pictures(11, 5, 7), pictures(3, 5, 7)
    for prefix, images, labels in (("train", train, np.arange(11) % 10), ("t10k", test, np.arange(3))):
        write(folder / f"{prefix}-images-idx3-ubyte{ending}", pack(idx(images)))
        write(folder / f"{prefix}-labels-idx1-ubyte{ending}", pack(idx(labels.astype(np.uint8))))
    return train, test


@pytest.mark.parametrize(
    ("name", "below", "first", "packed"),
    [
        ("mnist", "", "0", False),
        ("fashion-mnist", "FashionMNIST/raw", "T-shirt/top", True),
        ("kmnist", "raw", "o", False),
    ],
)
def test_idx(sets: Path, name: str, below: str, first: str, packed: bool) -> None:
    train, test = write_idx(sets / name / below, gzip.compress if packed else bytes, ".gz" if packed else "")
    dataset = open_data(name)
    assert (dataset.name, dataset.classes[0], dataset.split_rule) == (name, first, TRAIN_AND_TEST)
    assert (dataset.splits["train"].read(10) == train[10]).all()
    assert (dataset.splits["test"].read(2) == test[2]).all()
    assert dataset.splits["train"].labels.tolist() == [*range(10), 0]
    assert open_data(sets / name).classes == dataset.classes


def test_other_spellings_of_a_name(sets: Path) -> None:
    write_idx(sets / "fashion-mnist")
    assert open_data("Fashion_MNIST").name == "fashion-mnist"


def test_damaged_idx(sets: Path) -> None:
    write_idx(sets / "mnist")
    write(sets / "mnist" / "t10k-labels-idx1-ubyte", idx(np.arange(4, dtype=np.uint8)))
    with pytest.raises(DataError, match="test has 3 pictures and 4 labels"):
        open_data("mnist")
    write(sets / "mnist" / "t10k-labels-idx1-ubyte", idx(np.full(3, 10, np.uint8)))
    with pytest.raises(DataError, match="one label from 0 to 9"):
        open_data("mnist")
    write(sets / "mnist" / "t10k-images-idx3-ubyte", idx(pictures(3, 5, 7))[:-1])
    with pytest.raises(DataError, match="not a whole IDX file"):
        open_data("mnist")
    (sets / "mnist" / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(DataError, match="cannot be read"):
        open_data("mnist")


def cifar_record(labels: list[int], picture: np.ndarray) -> bytes:
    return bytes(labels) + picture.transpose(2, 0, 1).tobytes()


@pytest.mark.parametrize("form", ["folder", "archive"])
def test_cifar(sets: Path, form: str) -> None:
    images = pictures(6, 32, 32, 3)
    files = {f"cifar-10-batches-bin/data_batch_{n}.bin": cifar_record([n], images[n - 1]) for n in range(1, 6)}
    files["cifar-10-batches-bin/test_batch.bin"] = cifar_record([5], images[5]) + cifar_record([3], images[4])
    fine = [f"thing_{n}" for n in range(100)]
    hundred = {"cifar-100-binary/train.bin": cifar_record([7, 41], images[0]) + cifar_record([7, 99], images[1])}
    hundred["cifar-100-binary/test.bin"] = cifar_record([1, 99], images[2])
    hundred["cifar-100-binary/fine_label_names.txt"] = "\n".join(fine).encode()
    for name, content, archive in (
        ("cifar10", files, "cifar-10-binary.tar.gz"),
        ("cifar100", hundred, "cifar-100-binary.tar.gz"),
    ):
        if form == "folder":
            for path, data in content.items():
                write(sets / name / path, data)
        else:
            (sets / name).mkdir(parents=True)
            with tarfile.open(sets / name / archive, "w:gz") as packed:
                for path, data in content.items():
                    member = tarfile.TarInfo(path)
                    member.size = len(data)
                    packed.addfile(member, io.BytesIO(data))
    ten = open_data("cifar10")
    assert (ten.classes[1], ten.classes[9]) == ("automobile", "truck")
    assert ten.splits["train"].labels.tolist() == [1, 2, 3, 4, 5]
    assert (ten.splits["train"].read(3) == images[3]).all()
    assert ten.splits["test"].labels.tolist() == [5, 3]
    assert (ten.splits["test"].read(1) == images[4]).all()
    assert open_data("cifar100").splits["train"].labels.tolist() == [41, 99]
    assert open_data("cifar100").classes[99] == "thing_99"


def test_pickles_are_refused(sets: Path) -> None:
    write(sets / "cifar10" / "cifar-10-batches-py" / "data_batch_1", b"\x80\x04.")
    with pytest.raises(DataError, match="as pickles, which can run any code"):
        open_data("cifar10")


def test_damaged_cifar(sets: Path) -> None:
    write(sets / "cifar10" / "cifar-10-binary.tar.gz", b"no archive")
    with pytest.raises(DataError, match=r"cifar-10-binary.tar.gz is not whole"):
        open_data("cifar10")


def test_svhn(sets: Path) -> None:
    images = pictures(4, 32, 32, 3)
    for split, labels in (("train", [1, 10, 2, 9]), ("test", [10, 1, 2, 9])):
        (sets / "svhn").mkdir(parents=True, exist_ok=True)
        savemat(
            sets / "svhn" / f"{split}_32x32.mat", {"X": images.transpose(1, 2, 3, 0), "y": np.array(labels)[:, None]}
        )
    train = open_data("svhn").splits["train"]
    assert train.labels.tolist() == [1, 0, 2, 9]
    assert (train.read(3) == images[3]).all()


def test_stl10(sets: Path) -> None:
    images = pictures(3, 96, 96, 3)
    for split in ("train", "test"):
        write(sets / "stl10" / "stl10_binary" / f"{split}_X.bin", images.transpose(0, 3, 2, 1).tobytes())
        write(sets / "stl10" / "stl10_binary" / f"{split}_y.bin", bytes([1, 10, 2]))
    write(sets / "stl10" / "stl10_binary" / "class_names.txt", "\n".join(f"kind{n}" for n in range(10)))
    dataset = open_data("stl10")
    assert dataset.splits["test"].labels.tolist() == [0, 9, 1]
    assert (dataset.splits["test"].read(2) == images[2]).all()
    write(sets / "stl10" / "stl10_binary" / "train_X.bin", b"short")
    with pytest.raises(DataError, match="whole number of pictures"):
        open_data("stl10")


def test_pets(sets: Path) -> None:
    place = sets / "pets" / "oxford-iiit-pet"
    write(place / "annotations" / "trainval.txt", "Bengal_7 6 1 2\namerican_bulldog_12 2 2 1\nAbyssinian_1 1 1 1\n")
    write(place / "annotations" / "test.txt", "# a comment\nBengal_9 6 1 2\n")
    dataset = open_data("pets")
    assert dataset.classes == ("Abyssinian", "american bulldog", "Bengal")
    assert listed(dataset)["train"] == [
        ("images/Bengal_7.jpg", "Bengal"),
        ("images/american_bulldog_12.jpg", "american bulldog"),
        ("images/Abyssinian_1.jpg", "Abyssinian"),
    ]
    write(place / "images" / "Bengal_9.jpg", b"meow")
    assert dataset.splits["test"].read(0) == b"meow"


def test_flowers(sets: Path) -> None:
    assert len(set(FLOWERS)) == 102
    assert (FLOWERS[0], FLOWERS[50], FLOWERS[101]) == ("pink primrose", "petunia", "blackberry lily")
    (sets / "flowers102").mkdir(parents=True)
    savemat(sets / "flowers102" / "imagelabels.mat", {"labels": np.array([[51, 102, 51, 102]])})
    savemat(sets / "flowers102" / "setid.mat", {"trnid": [[2, 1]], "valid": [[3]], "tstid": [[4]]})
    assert listed(open_data("flowers102")) == {
        "train": [("jpg/image_00002.jpg", "blackberry lily"), ("jpg/image_00001.jpg", "petunia")],
        "validation": [("jpg/image_00003.jpg", "petunia")],
        "test": [("jpg/image_00004.jpg", "blackberry lily")],
    }


def test_flower_names_are_torchvisions() -> None:
    from torchvision.datasets import Flowers102

    assert [name.rstrip("?") for name in Flowers102.classes] == list(FLOWERS)


def test_food_textures_and_aircraft(sets: Path) -> None:
    write(sets / "food101" / "meta" / "train.txt", "pho/1\napple_pie/2\n")
    write(sets / "food101" / "meta" / "test.txt", "pho/3\n")
    assert listed(open_data("food101"))["train"] == [
        ("images/pho/1.jpg", "pho"),
        ("images/apple_pie/2.jpg", "apple_pie"),
    ]

    for short in ("train", "val", "test"):
        write(sets / "dtd" / "labels" / f"{short}1.txt", f"lined/{short}.jpg\nbanded/{short}.jpg\n")
    assert listed(open_data("dtd"))["validation"] == [
        ("images/lined/val.jpg", "lined"),
        ("images/banded/val.jpg", "banded"),
    ]

    place = sets / "aircraft" / "fgvc-aircraft-2013b" / "data"
    write(place / "variants.txt", "A 300\n707\n")
    for short in ("train", "val", "test"):
        write(place / f"images_variant_{short}.txt", "0034309 707\n1025794 A 300\n")
    assert listed(open_data("aircraft"))["test"] == [("images/0034309.jpg", "707"), ("images/1025794.jpg", "A 300")]
    assert open_data("aircraft").classes == ("A 300", "707")
    write(place / "images_variant_val.txt", "0034309 747\n")
    with pytest.raises(DataError, match="name '747', which is not among its 2 classes"):
        open_data("aircraft")


def test_eurosat(sets: Path) -> None:
    for name in ("AnnualCrop", "Forest"):
        write(sets / "eurosat" / "2750" / name / f"{name}_1.jpg")
    dataset = open_data("eurosat")
    assert (dataset.name, dataset.classes) == ("eurosat", ("AnnualCrop", "Forest"))


@pytest.mark.parametrize("truth", ["kaggle", "devkit"])
def test_imagenet(sets: Path, truth: str) -> None:
    root = sets / "imagenet"
    place = root / "ILSVRC" / "Data" / "CLS-LOC" if truth == "kaggle" else root
    write(place / "train" / "n01440764" / "n01440764_10026.JPEG")
    write(place / "train" / "n01443537" / "n01443537_2.JPEG")
    write(place / "val" / "ILSVRC2012_val_00000001.JPEG")
    write(place / "val" / "ILSVRC2012_val_00000002.JPEG")
    write(place / "test" / "ILSVRC2012_test_00000001.JPEG")
    with pytest.raises(DataError, match=r"put LOC_val_solution.csv or ILSVRC2012_devkit_t12 into"):
        open_data("imagenet")
    if truth == "kaggle":
        rows = "ILSVRC2012_val_00000002,n01440764 85 1 499 272 \nILSVRC2012_val_00000001,n01443537 1 2 3 4 n01443537 5 6 7 8\n"
        write(root / "LOC_val_solution.csv", "ImageId,PredictionString\n" + rows)
    else:
        kit = root / "ILSVRC2012_devkit_t12" / "data"
        write(kit / "ILSVRC2012_validation_ground_truth.txt", "7\n5\n")
        synsets = np.array([(5, "n01440764"), (7, "n01443537")], [("ILSVRC2012_ID", "O"), ("WNID", "O")])
        savemat(kit / "meta.mat", {"synsets": synsets[:, None]})
    dataset = open_data("imagenet")
    assert dataset.split_rule == TRAIN_AND_VALIDATION
    assert [notice.kind for notice in dataset.notices] == ["unlabelled"]
    assert listed(dataset) == {
        "train": [
            ("train/n01440764/n01440764_10026.JPEG", "n01440764"),
            ("train/n01443537/n01443537_2.JPEG", "n01443537"),
        ],
        "validation": [
            ("val/ILSVRC2012_val_00000001.JPEG", "n01443537"),
            ("val/ILSVRC2012_val_00000002.JPEG", "n01440764"),
        ],
    }
    write(place / "val" / "ILSVRC2012_val_00000003.JPEG")
    with pytest.raises(DataError, match="ILSVRC2012_val_00000003 has no label"):
        open_data("imagenet")


def test_digits(sets: Path) -> None:
    dataset = open_data("digits")
    assert dataset.split_rule == CARVED
    assert sum(map(len, dataset.splits.values())) == 1797
    assert np.sum([part.counts() for part in dataset.splits.values()], axis=0).tolist() == [
        178,
        182,
        177,
        183,
        181,
        182,
        181,
        179,
        174,
        180,
    ]
    picture = dataset.splits["train"].read(0)
    assert isinstance(picture, np.ndarray)
    assert (picture.shape, picture.dtype, picture.max()) == ((8, 8), np.uint8, 255)


def test_a_download_that_fails_is_one_sentence_and_leaves_nothing(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path) -> None:
        write(folder / "half", b"a part")
        raise OSError("no route\nto host")

    monkeypatch.setitem(named._SETS, "cifar100", (fail, "cifar-100-binary.tar.gz"))
    with pytest.raises(DataError) as caught:
        open_data("cifar100")
    folder = named.cache() / "cifar100"
    assert str(caught.value) == (
        "cifar100 is not on this machine and could not be downloaded (no route to host); "
        f"put cifar-100-binary.tar.gz into {folder} or into $PATCHWORD_DATA/cifar100"
    )
    assert list(named.cache().iterdir()) == []
    with pytest.raises(
        DataError, match=r"imagenet21k cannot be downloaded .*; put a folder for each class, or tar shards, into"
    ):
        open_data("imagenet21k")
    with pytest.raises(DataError, match="imagenet cannot be downloaded without an account"):
        open_data("imagenet")


def test_a_download_is_kept(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def download(folder: Path) -> None:
        calls.append(folder)
        write_idx(folder / "MNIST" / "raw")

    monkeypatch.setitem(named._SETS, "mnist", (download, ""))
    assert open_data("mnist").name == open_data("mnist").name == "mnist"
    assert len(calls) == 1
    assert (named.cache() / "mnist" / "MNIST" / "raw").is_dir()
