"""Every entry that takes a path or bytes, the valid files it is given before they are damaged, and what it may answer.

A *case* is a target and a seed: the target's files are copied, damaged, and opened. The answer is a result or one sentence;
`run_case("table", 17)` repeats a case exactly.
"""

import contextlib
import ctypes
import dataclasses
import gzip
import hashlib
import io
import json
import shutil
import signal
import sys
import tarfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, Literal
from unittest import mock

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from PIL import Image
from torch import nn

import mutations
from patchword.core.errors import PatchwordError
from patchword.core.picture import DecodeError
from patchword.data import check as checks
from patchword.data.decoding.decode import decode, header
from patchword.data.sources import open_data
from patchword.models.contract import Model
from patchword.models.names import create_model
from patchword.training import recipe as recipes
from patchword.training.record import Record
from patchword.training.run import run
from patchword.weights import folder as model_folder
from patchword.weights.io import load_model, save_model
from patchword.weights.source import open_source

SECONDS, MEBIBYTES = 20.0, 400
"""What a case may take. A picture may take as much as one of the largest allowed takes (`PIXEL_LIMIT`)."""
_LONGEST = 2500
"""Characters of a sentence."""
_MARKER = "executed"
"""A file of this name appears where a payload was run."""
CLASSES = ("ant", "bee", "cat")
KINDS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


class TooSlowError(BaseException):
    """Not an `Exception`: nobody may take it for a damaged file."""


@dataclasses.dataclass(frozen=True)
class Target:
    """One entry."""

    name: str
    build: Callable[[Path], object]
    """Write the valid files into an empty folder."""
    open: Callable[[Path, Path], object]
    """Give the entry the folder of the case; the second folder is that of the valid files."""
    files: tuple[str, ...] = ("**/*",)
    """Patterns of what is damaged."""
    seal: Callable[[Path, Random], str] | None = None
    """Make hashes right again after the damage, as an enemy would, in some of the cases."""
    change: Callable[[Path, Random], str] | None = None
    """Damage the folder otherwise than by `mutations.damage_folder`."""
    named: bool = True
    """Whether the sentence must name the file: an entry that takes bytes cannot."""
    or_says: str = "\0"
    """What a sentence may say instead: a model of finite weights whose outputs are not is of no one file."""
    mebibytes: int = MEBIBYTES
    share: int = 10
    """Of the soak's cases, in parts."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    target: str
    seed: int
    ending: Literal["result", "sentence", "failure"]
    done: str
    """What was done to the files."""
    text: str
    """The sentence, or what is wrong with the answer."""
    seconds: float = 0.0
    mebibytes: float = 0.0

    def __str__(self) -> str:
        return f"{self.ending} of {self.target}, seed {self.seed} ({self.done}): {self.text}"


class Cases:
    """Runs cases below one folder; the valid files of a target are made once."""

    def __init__(self, home: Path, seconds: float = SECONDS) -> None:
        self.home, self.seconds = home, seconds
        home.mkdir(parents=True, exist_ok=True)

    def run(self, name: str, seed: int) -> Outcome:
        return self.run_target(TARGETS[name], seed)

    def run_target(self, target: Target, seed: int) -> Outcome:
        name = target.name
        valid, case = self.home / f"valid-{_plain(name)}", self.home / f"case-{_plain(name)}"
        if not valid.exists():
            with contextlib.redirect_stderr(io.StringIO()):
                target.build(valid)
        shutil.rmtree(case, ignore_errors=True)
        shutil.copytree(valid, case)
        random = Random(f"{name}:{seed}")
        if target.change is None:
            done = mutations.damage_folder(case, target.files, random, _other_files())
        else:
            done = target.change(case, random)
        if target.seal is not None and random.random() < 0.6:
            done += target.seal(case, random)
        return self._observe(target, seed, done, case, valid)

    def _observe(self, target: Target, seed: int, done: str, case: Path, valid: Path) -> Outcome:
        said, wrong = io.StringIO(), ""
        ending: Literal["result", "sentence", "failure"] = "result"
        text = ""
        before, began = _memory(reset=True), time.perf_counter()
        with (
            warnings.catch_warnings(record=True) as caught,
            contextlib.redirect_stderr(said),
            contextlib.redirect_stdout(said),
        ):
            warnings.simplefilter("always")
            try:
                with _time_limit(self.seconds):
                    target.open(case, valid)
            except PatchwordError as error:
                ending, text = "sentence", str(error)
                wrong = _wrong_sentence(error, case if target.named and target.or_says not in text else None)
            except TooSlowError as error:
                wrong = f"not done after {self.seconds:g} s: {_where(error)}"
            except Exception as error:
                wrong = f"{type(error).__name__}: {error} {_where(error)}"[:1500]
        seconds = time.perf_counter() - began
        mebibytes = max(0.0, _memory() - before)
        if caught and not wrong:
            wrong = f"a warning: {caught[0].message} ({caught[0].filename}:{caught[0].lineno})"
        if "Traceback" in said.getvalue() and not wrong:
            wrong = f"a trace was printed: {said.getvalue()[-400:]}"
        if mebibytes > target.mebibytes and not wrong:
            wrong = f"took {mebibytes:.0f} MiB"
        if (case / _MARKER).exists() or Path(_MARKER).exists():
            wrong = "code of the file was run"
        return Outcome(target.name, seed, "failure" if wrong else ending, done, wrong or text, seconds, mebibytes)


def _wrong_sentence(error: PatchwordError, case: Path | None) -> str:
    text = str(error)
    if "\n" in text or not text.isprintable():
        return f"more than a line, or not to be printed: {text!r} {_where(error)}"
    if not text or len(text) > _LONGEST or "Traceback" in text:
        return f"no sentence: {text[:300]!r}"
    names = [] if case is None else [str(case), *(path.name for path in case.rglob("*") if path.suffix)]
    if names and not any(name in text for name in names):
        return f"names no file: {text} {_where(error)}"
    return ""


def _where(error: BaseException) -> str:
    """The innermost lines, ours first: where to look."""
    frames = traceback.extract_tb(error.__traceback__)[-12:]
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))


def _memory(*, reset: bool = False) -> float:
    """MiB of this process now (after `reset`), or at most since then."""
    if reset:
        # What the allocator keeps of earlier cases would hide what this one takes.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    field = "VmRSS:" if reset else "VmHWM:"
    status = Path("/proc/self/status").read_text()
    return int(status.partition(field)[2].split()[0]) / 1024


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    def late(*_: object) -> None:
        raise TooSlowError

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)


# Valid files


def pixels(side: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side + 1, 3), dtype=np.uint8)


def picture(kind: str, seed: int = 0, **options: Any) -> bytes:
    content = io.BytesIO()
    image = Image.fromarray(pixels(seed=seed))
    if options.pop("palette", False):
        image = image.quantize(16)
    image.save(content, kind, **options)
    return content.getvalue()


def pictures_of(kind: str) -> list[bytes]:
    """Files of one format in its usual kinds."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    more: dict[str, list[dict[str, Any]]] = {
        "JPEG": [{"progressive": True}, {"exif": exif}, {"quality": 20, "subsampling": 2}],
        "PNG": [{"palette": True, "transparency": 1}, {"exif": exif}, {"dpi": (72, 72)}],
        "GIF": [{"save_all": True, "append_images": [Image.fromarray(pixels(seed=3))]}, {"interlace": 1}],
        "WEBP": [
            {"lossless": True},
            {"exif": exif},
            {"save_all": True, "append_images": [Image.fromarray(pixels(seed=3))]},
        ],
        "TIFF": [{"compression": each} for each in ("tiff_deflate", "tiff_lzw", "jpeg", "packbits")],
        "AVIF": [{"exif": exif}],
        "BMP": [{"palette": True}],
    }
    return [picture(kind, **options) for options in ({}, *more.get(kind, []))]


def model(seed: int = 3) -> Model:
    torch.manual_seed(seed)
    made = create_model("ViT-At/8", len(CLASSES), 16, depth=2, embed_dim=16, num_heads=2, mlp_dim=24)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    made.labels = CLASSES
    return made.eval()


def usual_model(name: str = "ViT-Ti/16", side: int = 32) -> Model:
    """Of a size that other libraries have, and small."""
    torch.manual_seed(5)
    made = create_model(name, len(CLASSES), side, depth=1, embed_dim=24, num_heads=2, mlp_dim=32)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    made.labels = CLASSES
    return made.eval()


def write_classes(folder: Path, per_class: int = 4, seed: int = 0) -> Path:
    for place, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            (folder / name / f"{number}.png").write_bytes(picture("PNG", seed=seed + 10 * place + number))
    return folder


def _table(folder: Path) -> None:
    write_classes(folder)
    separator = "\t" if folder.name.endswith("tsv") else ","
    rows = [("image", "label", "split")]
    for name in CLASSES:
        rows += [(f"{name}/{n}.png", name, "train" if n < 3 else "test") for n in range(4)]
    table = folder / ("pictures.tsv" if separator == "\t" else "pictures.csv")
    table.write_text("".join(separator.join(row) + "\n" for row in rows))


def _parquet(folder: Path) -> None:
    folder.mkdir()
    contents = [picture("PNG", seed=n) for n in range(12)]
    columns = {
        "image": [{"bytes": content, "path": f"{n}.png"} for n, content in enumerate(contents)],
        "label": [n % 3 for n in range(12)],
        "split": ["train" if n < 9 else "test" for n in range(12)],
    }
    features = {"info": {"features": {"label": {"names": CLASSES, "_type": "ClassLabel"}}}}
    table = pyarrow.table(columns).replace_schema_metadata({"huggingface": json.dumps(features)})
    pyarrow.parquet.write_table(table, folder / "pictures.parquet", row_group_size=5)


def _idx(folder: Path, pack: Callable[[bytes], bytes] = bytes, ending: str = "") -> None:
    folder.mkdir()
    for prefix, count in (("train", 12), ("t10k", 5)):
        images = np.random.default_rng(count).integers(0, 256, (count, 5, 7), dtype=np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", np.arange(count, dtype=np.uint8) % 10)):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
            (folder / f"{prefix}-{name}-ubyte{ending}").write_bytes(pack(head + array.tobytes()))


def _cifar(folder: Path) -> None:
    folder.mkdir()
    for name in [f"data_batch_{n}.bin" for n in range(1, 6)] + ["test_batch.bin"]:
        record = np.random.default_rng(len(name)).integers(0, 256, (3, 3073), dtype=np.uint8)
        record[:, 0] = range(3)
        (folder / name).write_bytes(record.tobytes())


def _cifar_archive(folder: Path) -> None:
    folder.mkdir()
    with tarfile.open(folder / "cifar-100-binary.tar.gz", "w:gz") as archive:
        for name, content in (
            ("train.bin", b"".join(bytes([1, label]) + bytes(range(256)) * 12 for label in (0, 1, 99))),
            ("test.bin", bytes([1, 1]) + bytes(3072)),
            ("fine_label_names.txt", "\n".join(f"thing_{n}" for n in range(100)).encode()),
        ):
            member = tarfile.TarInfo(f"cifar-100-binary/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _stl10(folder: Path) -> None:
    folder.mkdir()
    (folder / "class_names.txt").write_text("\n".join(f"c{n}" for n in range(10)))
    for split, count in (("train", 3), ("test", 2)):
        (folder / f"{split}_X.bin").write_bytes(bytes(count * 3 * 96 * 96))
        (folder / f"{split}_y.bin").write_bytes(bytes(range(1, count + 1)))


def _svhn(folder: Path) -> None:
    from scipy.io import savemat

    folder.mkdir()
    for split, count in (("train", 4), ("test", 3)):
        images = np.random.default_rng(count).integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        content = {"X": images, "y": np.arange(1, count + 1, dtype=np.uint8)[:, None]}
        savemat(folder / f"{split}_32x32.mat", content, do_compression=split == "test")


def _pets(folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    for name in ("Cat_1", "Cat_2", "dog_1", "dog_2"):
        (folder / "images" / f"{name}.jpg").write_bytes(picture("JPEG"))
    (folder / "annotations" / "trainval.txt").write_text("# comment\nCat_1 1 1 1\ndog_1 2 2 1\n")
    (folder / "annotations" / "test.txt").write_text("Cat_2 1 1 1\ndog_2 2 2 1\n")


def _flowers(folder: Path) -> None:
    from scipy.io import savemat

    (folder / "jpg").mkdir(parents=True)
    for number in range(1, 7):
        (folder / "jpg" / f"image_{number:05d}.jpg").write_bytes(picture("JPEG"))
    savemat(folder / "imagelabels.mat", {"labels": np.array([[1, 2, 1, 2, 1, 2]], np.uint8)})
    sets = {key: np.array([[n, n + 1]], np.uint16) for key, n in (("trnid", 1), ("valid", 3), ("tstid", 5))}
    savemat(folder / "setid.mat", sets)


def _lists(folder: Path) -> None:
    """Food-101, textures, aircraft and ImageNet, each below its own name."""
    for place, files in (
        ("food", {"meta/train.txt": "pie/1\ncake/2\n", "meta/test.txt": "pie/3\n"}),
        ("dtd", {f"labels/{split}1.txt": "banded/b1.jpg\ndotted/d1.jpg\n" for split in ("train", "val", "test")}),
        (
            "air",
            {f"images_variant_{split}.txt": "0001 707\n0002 A3\n" for split in ("train", "val", "test")}
            | {"variants.txt": "707\nA3\n"},
        ),
        ("inet", {"LOC_val_solution.csv": "ImageId,PredictionString\nILSVRC2012_val_00000001,n00000001 1 1 2 2\n"}),
    ):
        for name, text in files.items():
            path = folder / place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    for synset in ("n00000001", "n00000002"):
        (folder / "inet/train" / synset).mkdir(parents=True)
        (folder / "inet/train" / synset / "a.JPEG").write_bytes(picture("JPEG"))
    (folder / "inet/val").mkdir()
    (folder / "inet/val/ILSVRC2012_val_00000001.JPEG").write_bytes(picture("JPEG"))


def _sharded(folder: Path) -> None:
    """As transformers cuts a large model into several files."""
    save_model(usual_model(), folder, format="huggingface")
    tensors = model_folder.read_tensors(folder / "model.safetensors")
    names = sorted(tensors)
    index: dict[str, str] = {}
    for number, part in enumerate((names[:9], names[9:]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        model_folder.write_tensors(folder / file, {name: tensors[name].clone() for name in part}, {"format": "pt"})
        index |= dict.fromkeys(part, file)
    del tensors
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def tiny_recipe(data: Path) -> recipes.Recipe:
    return recipes.load(
        "scratch",
        {
            "data": str(data),
            "model": {"name": "ViT-At/8", "depth": 1, "embed_dim": 16, "num_heads": 2, "mlp_dim": 24},
            "image_size": [16, 16],
            "batch_size": 5,
            "micro_batch": 5,
            "threads": 1,
            "budget": {"steps": 4},
            "regularization": {"average_decay": 0.9},
            "evaluation": {"every_steps": 2},
            "checkpoint": {"every_steps": 2},
            "loading": {"in_memory": "yes", "workers": 0},
        },
    )


def unfinished_run(folder: Path) -> None:
    """A run of four steps that was killed while it wrote its result; checkpoints of steps 2 and 4."""
    from patchword.training import loop

    data = write_classes(folder / "data/train", 4).parent
    write_classes(folder / "data/test", 1, seed=100)
    write_classes(folder / "data/validation", 1, seed=200)
    with mock.patch.object(loop, "seconds_per_step", return_value=0.01):
        run(tiny_recipe(data), folder / "run")
    result = json.loads((folder / "run/result.json").read_text())
    (folder / "run/result.json").write_text(json.dumps({**result, "status": "stopped"}))


_others: list[bytes] = []


def _other_files() -> list[bytes]:
    """Whole files of other kinds, to be mixed in."""
    if not _others:
        _others.extend([picture("PNG"), picture("JPEG"), b"{}", b"PK\x05\x06" + bytes(18), gzip.compress(b"x" * 50)])
    return _others


# Making hashes right again


def _reseal_model(folder: Path, random: Random) -> str:
    """The description tells the hash of whatever the weights are now, and none of its own."""
    path = folder / "model.json"
    if not path.is_file():
        return ""
    try:
        description = json.loads(path.read_text())
        description["sha256"] = {"model.safetensors": _sha(folder / "model.safetensors")}
        path.write_text(json.dumps(description))
    except (ValueError, TypeError, OSError, RecursionError):
        return ""
    return ", with hashes made right"


def _reseal_checkpoints(folder: Path, random: Random) -> str:
    for checkpoint in sorted((folder / "run/checkpoints").iterdir()):
        path = checkpoint / "manifest.json"
        if not path.is_file():
            continue
        files = {each.name: each for each in checkpoint.iterdir() if each.is_file() and each != path and each.suffix}
        # A link may be to something without an end.
        entries = {name: [each.stat().st_size, _sha(each)] for name, each in sorted(files.items())}
        if random.random() < 0.7:
            path.write_text(json.dumps(entries))
    return ", with manifests made right"


def _sha(path: Path) -> str:
    if not path.is_file():
        return ""
    return hashlib.sha256(path.read_bytes()).hexdigest()


# Entries


def _decode_target(kind: str) -> Target:
    def build(folder: Path) -> None:
        folder.mkdir()
        for number, content in enumerate(pictures_of(kind)):
            (folder / f"{number}.{kind.lower()}").write_bytes(content)

    def change(folder: Path, random: Random) -> str:
        """One of the kinds is damaged and the others are taken away."""
        files = sorted(folder.iterdir())
        chosen = random.choice(files)
        content, said = mutations.damage(
            chosen.name, chosen.read_bytes(), random, [each.read_bytes() for each in files]
        )
        for each in files:
            each.unlink()
        chosen.write_bytes(content)
        return f"{chosen.name}: {said}"

    def look(folder: Path, _: Path) -> None:
        [file] = folder.iterdir()
        content = file.read_bytes()
        size = None
        with contextlib.suppress(DecodeError):
            size = header(content)
        for channels, shrink_to in ((3, None), (1, 8)):
            array = decode(content, channels, shrink_to=shrink_to)
            assert array.dtype == np.uint8
            assert array.shape[2] == channels
            assert size is not None, "decode reads what header does not"
            assert shrink_to or array.shape[:2] == size[:2], f"{array.shape} is not what the header says, {size}"

    return Target(f"decode {kind}", build, look, change=change, named=False, mebibytes=2000, share=20)


def _look_at_data(where: Path) -> None:
    dataset = open_data(where)
    dataset.fingerprint()
    for split in dataset.splits.values():
        for index in range(len(split)):
            name = split.name(index)
            assert name
            with contextlib.suppress(DecodeError):
                decode(split.read(index), 3)


def _data_target(name: str, build: Callable[[Path], object], where: str = "", **options: Any) -> Target:
    return Target(name, build, lambda case, _: _look_at_data(case / where), **options)


def _look_at_lists(case: Path, _: Path) -> None:
    errors = []
    for place in ("food", "dtd", "air", "inet"):
        try:
            _look_at_data(case / place)
        except PatchwordError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _load(where: Path) -> None:
    loaded = load_model(where)
    with torch.inference_mode():
        if max(loaded.image_size) <= 64:
            loaded(torch.zeros(1, loaded.in_channels, *loaded.image_size, dtype=next(loaded.parameters()).dtype))


def _model_target(name: str, build: Callable[[Path], object], where: str = "", **options: Any) -> Target:
    return Target(name, build, lambda case, _: _load(case / where), **options)


def _npz(folder: Path) -> None:
    folder.mkdir()
    save_model(usual_model(), folder / "model.npz", format="google")


def _pickle(folder: Path) -> None:
    folder.mkdir()
    save_model(usual_model(), folder / "timm", format="timm")
    tensors = model_folder.read_tensors(folder / "timm/model.safetensors")
    torch.save({"state_dict": {name: value.clone() for name, value in tensors.items()}}, folder / "model.pt")


def _recipe(folder: Path) -> None:
    folder.mkdir()
    recipe = tiny_recipe(Path("pictures"))
    (folder / "recipe.toml").write_text(recipe.to_toml())


def _load_recipe(case: Path, _: Path) -> None:
    recipes.load(str(case / "recipe.toml"), {"budget": {"steps": 7}}).to_toml()
    stored = (case / "recipe.toml").read_bytes().decode("utf-8", "replace")
    recipes.loads(stored, str(case / "recipe.toml"))


def _resume(case: Path, valid: Path) -> None:
    from patchword.reports.run import write_report

    run(tiny_recipe(valid / "data"), case / "run", publish=write_report if (case / "run/with-page").exists() else None)


def _run_data(folder: Path) -> None:
    unfinished_run(folder)


def _log(folder: Path) -> None:
    folder.mkdir()
    lines = [{"kind": "train", "step": step, "loss": 1.5 / step, "lr": 1e-3, "seconds": 0.5} for step in range(1, 9)]
    lines.insert(4, {"kind": "validation", "step": 4, "loss": 0.5, "accuracy": 0.25})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _read_log(case: Path, _: Path) -> None:
    record = Record(case / "metrics.jsonl", 6)
    record.open()
    record.write("train", 7, loss=0.25, lr=1e-3, seconds=1.0)
    steps = [json.loads(line)["step"] for line in (case / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps), steps
    assert steps[-1] == 7


def _model_and_picture(folder: Path) -> None:
    save_model(model(), folder / "model")
    write_classes(folder / "data")


def _predict(case: Path, _: Path) -> None:
    from patchword.verbs.predict import predict, show

    rows = predict(str(case / "model"), [str(case / "data")])
    show(rows)
    assert all("\n" not in row.get("error", "") for row in rows)


def _evaluate(case: Path, _: Path) -> None:
    from patchword.verbs.evaluate import evaluate, show

    show(evaluate(str(case / "model"), str(case / "data"), out=case / "figures.json"))


def _check_weights(case: Path, _: Path) -> None:
    from patchword.verbs.weights import check, show

    for place in sorted(case.iterdir()):
        show(check(str(place)))


def _check_data(case: Path, _: Path) -> None:
    checks.check(str(case)).to_text()


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        *(_decode_target(kind) for kind in KINDS),
        _data_target("table csv", _table, "pictures.csv", files=("*.csv",), share=40),
        _data_target("table tsv", _table, "pictures.tsv", files=("*.tsv",)),
        _data_target("parquet", _parquet, "pictures.parquet", share=40),
        _data_target("parquet folder", _parquet),
        _data_target("class folder", lambda folder: write_classes(folder), change=mutations.odd_tree, share=25),
        _data_target("pictures in a folder", lambda folder: write_classes(folder)),
        _data_target("IDX", _idx),
        _data_target("IDX gzip", lambda folder: _idx(folder, gzip.compress, ".gz")),
        _data_target("CIFAR binary", _cifar, share=5),
        _data_target("CIFAR archive", _cifar_archive),
        _data_target("STL-10", _stl10, share=5),
        _data_target("SVHN", _svhn),
        _data_target("pets", _pets, files=("annotations/*",), share=5),
        _data_target("flowers", _flowers, files=("*.mat",)),
        Target("lists", _lists, _look_at_lists, files=("**/*.txt", "**/*.csv"), share=5),
        Target("data check", lambda folder: write_classes(folder), _check_data, share=5),
        _model_target("model folder", lambda folder: save_model(model(), folder), seal=_reseal_model, share=50),
        _model_target("Google npz", _npz, "model.npz", share=50),
        _model_target("timm folder", lambda folder: save_model(usual_model(), folder, format="timm"), share=30),
        _model_target(
            "transformers folder", lambda folder: save_model(usual_model(), folder, format="huggingface"), share=30
        ),
        _model_target("transformers shards", _sharded, share=30),
        Target(
            "pickle",
            _pickle,
            lambda case, _: open_source(case / "model.pt", trust_pickle=True),
            files=("model.pt",),
            mebibytes=700,
            share=10,
        ),
        Target("recipe", _recipe, _load_recipe, share=40),
        Target(
            "resume",
            _run_data,
            _resume,
            files=("run/checkpoints/*/*",),
            seal=_reseal_checkpoints,
            or_says="outputs that are not finite",
            share=30,
        ),
        Target("resume record", _run_data, _resume, files=("run/*.json", "run/*.jsonl", "run/*.toml"), share=10),
        Target("log", _log, _read_log, share=15),
        Target(
            "predict",
            _model_and_picture,
            _predict,
            files=("model/*", "data/*/0.png"),
            seal=lambda folder, random: _reseal_model(folder / "model", random),
            share=15,
        ),
        Target("evaluate", _model_and_picture, _evaluate, files=("model/*", "data/*/*.png"), share=5),
    )
}


if __name__ == "__main__":  # one case again: python tests/fuzz_targets.py TARGET SEED FOLDER
    print(Cases(Path(sys.argv[3])).run(sys.argv[1], int(sys.argv[2])))
