"""No file is trusted: nothing in the package can run what a file says, and hostile files at every verb leave no trace."""

import ast
import io
import pickle
import stat
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import fuzz_targets
import patchword
from patchword import cli

PACKAGE = Path(patchword.__file__).parent
_READERS = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle"}
_CALLS = {"eval", "exec", "compile", "__import__", "execfile"}
_COMPUTED_IMPORTS = {
    # Whose argument is a constant table of the module's own.
    "__init__.py": "the public names",
    "cli.py": "the verbs",
    "weights/io.py": "the dialects",
}


def faults(source: str, where: str = "") -> list[str]:
    """What in `source`, the module at `where` in the package, could run code that a file holds."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for name in names:
                if name.split(".")[0] in (*_READERS, "subprocess", "pty", "code", "runpy"):
                    found.append(f"{where}:{node.lineno} imports {name}")
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        last = called.rpartition(".")[2]
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        wrong = (
            (called in _CALLS or called in {f"builtins.{name}" for name in _CALLS})
            or (called.split(".")[0] == "yaml" and not last.startswith("safe_"))
            or (last in ("load", "read_array") and given.get("allow_pickle", "False") != "False")
            or (called == "torch.load" and given.get("weights_only") != "True")
            or called.startswith(("pickle.", "os.exec", "os.spawn"))
            or (last in ("system", "popen") and called.startswith("os."))
            or given.get("shell", "False") != "False"
            or given.get("trust_remote_code", "False") != "False"
            or (last in ("extractall", "unpack_archive"))
        )
        if last == "import_module" and where not in _COMPUTED_IMPORTS:
            wrong = wrong or not (node.args and isinstance(node.args[0], ast.Constant))
        if wrong:
            found.append(f"{where}:{node.lineno} calls {called}")
    return found


def test_nothing_in_the_package_runs_code_of_a_file() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 60
    found = [each for file in files for each in faults(file.read_text(), file.relative_to(PACKAGE).as_posix())]
    assert found == []


def test_the_one_reader_of_pickles_makes_tensors_alone() -> None:
    source = (PACKAGE / "weights/source.py").read_text()
    assert source.count("torch.load(") == 1
    assert "weights_only=True" in source
    used = {ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
    assert not {name for name in used if name.startswith("pickle.")}


def test_imports_that_are_computed_come_from_constant_tables() -> None:
    for name in _COMPUTED_IMPORTS:
        assert "import_module(" in (PACKAGE / name).read_text(), f"{name} needs no exception"
    with pytest.raises(patchword.UsageError, match="unknown format"):
        patchword.save_model(fuzz_targets.model(), "x", format="os")  # pyright: ignore[reportArgumentType]
    assert cli.run(["os.path"]) == 2


@pytest.mark.parametrize(
    "snippet",
    [
        "import pickle",
        "from pickle import loads",
        "import marshal, json",
        "import shelve",
        "from dill import load",
        "import subprocess",
        "eval('1')",
        "exec(text)",
        "builtins.eval(text)",
        "compile(text, 'x', 'exec')",
        "__import__(name)",
        "yaml.load(text)",
        "yaml.unsafe_load(text)",
        "np.load(path, allow_pickle=True)",
        "numpy.load(path, allow_pickle=flag)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
        "os.popen(text)",
        "os.execv(path, [])",
        "importlib.import_module(name)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "archive.extractall(folder)",
        "def f():\n    if x:\n        return [eval(y) for y in z]",
    ],
)
def test_the_search_finds_what_it_looks_for(snippet: str) -> None:
    assert faults(snippet, "data/x.py")


@pytest.mark.parametrize(
    "snippet",
    [
        "np.load(path)",
        "torch.load(path, weights_only=True)",
        "importlib.import_module('json')",
        "model.eval()",
        "re.compile(x)",
    ],
)
def test_the_search_lets_the_harmless_pass(snippet: str) -> None:
    assert faults(snippet, "data/x.py") == []


# Payloads


class Payload:
    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (Path("executed"),))


def _torch_file() -> bytes:
    content = io.BytesIO()
    torch.save({"state_dict": {"a": Payload()}}, content)
    return content.getvalue()


def _npz(**arrays: object) -> bytes:
    content = io.BytesIO()
    np.savez(content, **arrays)  # pyright: ignore[reportArgumentType]
    return content.getvalue()


def _zip(name: str, body: bytes = b"stolen", link: bool = False) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        entry = zipfile.ZipInfo(name)
        if link:
            entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, body)
    return content.getvalue()


def _tar(name: str, link: str = "") -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.size = 0 if link else 6
        member.type, member.linkname = (tarfile.SYMTYPE, link) if link else (tarfile.REGTYPE, "")
        archive.addfile(member, None if link else io.BytesIO(b"stolen"))
    return content.getvalue()


PAYLOADS: dict[str, bytes] = {
    "a pickle": pickle.dumps(Payload()),
    "a pickle of protocol 0": pickle.dumps(Payload(), protocol=0),
    "a pickle in torch's archive": _torch_file(),
    "a pickle in an array": _npz(cls=np.array([Payload()], dtype=object)),
    "an archive that leads out": _zip("../executed"),
    "an array that leads out": _zip("../executed.npy", _npz()[:0] + b"\x93NUMPY"),
    "a link in an archive": _zip("executed.npy", b"/etc/passwd", link=True),
    "a link in a tar": _tar("cifar-10-batches-bin/data_batch_1.bin", "/etc/passwd"),
    "a tar that leads out": _tar("../executed"),
    "JSON nested deeply": b'{"a":' * 100_000,
    "TOML nested deeply": b"a = " + b"[" * 100_000,
    "YAML that grows": b"a: &a [x,x,x]\nb: &b [*a,*a,*a]\nc: !!python/object/apply:os.system ['touch executed']\n",
    "Python": b"__import__('pathlib').Path('executed').touch()\n",
    "a shell script": b"#!/bin/sh\ntouch executed\n",
    "names for a shell": b"image,label\n$(touch executed).png,`touch executed`\nb.png,;touch executed\n",
}

_FILES = (
    *(
        "data.csv",
        "data.tsv",
        "data.parquet",
        "recipe.toml",
        "model.npz",
        "model.safetensors",
        "model.pt",
        "picture.png",
    ),
    *("folder/model.json", "folder/model.safetensors", "folder/config.json", "folder/pytorch_model.bin"),
    *("folder/model.safetensors.index.json", "folder/train-images-idx3-ubyte.gz", "folder/cifar-10-binary.tar.gz"),
    *("run/recipe.toml", "run/result.json", "run/metrics.jsonl", "run/checkpoints/step-00000001/manifest.json"),
    *("run/checkpoints/step-00000001/state.json", "run/checkpoints/step-00000001/model.safetensors"),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and pictures that are sound, for the other argument of a verb."""
    folder = tmp_path_factory.mktemp("whole")
    fuzz_targets.save_model(fuzz_targets.model(), folder / "model")
    fuzz_targets.write_classes(folder / "data")
    return folder


@pytest.mark.parametrize("kind", PAYLOADS)
def test_hostile_files_at_every_verb_do_nothing(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    here = tmp_path / "here"  # so that what leads out of it is seen, too
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in _FILES:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(PAYLOADS[kind])
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*") if path.is_file()}
    model, data = str(whole / "model"), str(whole / "data")
    hostile = ("data.csv", "data.tsv", "data.parquet", "folder", "run", "picture.png")
    weights = ("model.npz", "model.safetensors", "model.pt", "folder", "run", "folder/pytorch_model.bin", "data.csv")
    tiny = ("--model", "ViT-At/8", "--image-size", "16", "--steps", "1", "--out", "out")
    calls = [
        *(["train", name, *tiny] for name in hostile),
        *(["train", data, "--init", name, "--steps", "1", "--out", "out"] for name in weights),
        *(["train", data, "--recipe", name, "--out", "out"] for name in ("recipe.toml", "run/recipe.toml")),
        ["train", data, *tiny[:-1], "run"],
        *(["evaluate", name, data] for name in weights),
        *(["evaluate", model, name] for name in hostile),
        *(["predict", name, str(whole / "data/ant/0.png")] for name in weights),
        *(["predict", model, name] for name in (*_FILES, "folder")),
        *(["weights", "check", name] for name in weights),
        *(["weights", "convert", name, "target", "--to", "patchword"] for name in weights),
        *(["weights", "convert", name, "target", "--to", "patchword", "--trust-pickle"] for name in weights),
        *(["data", "check", name] for name in hostile),
    ]
    for call in calls:
        code = cli.run(call)
        out, err = capfd.readouterr()
        what = f"{kind}: patchword {' '.join(call)}: {code}\n{out}{err}"
        assert code in (2, 3, 4) or call[0] == "predict", what
        assert "Traceback" not in out + err, what
        assert len([line for line in err.splitlines() if line.startswith("patchword: ")]) == (code != 0 and not out), (
            what
        )
        assert not list(tmp_path.rglob("executed*")), what
    after = {path: path.stat().st_mtime_ns for path in here.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before, "nothing is written, and nothing removed"
