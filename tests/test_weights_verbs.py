"""`weights check` and `weights convert`, the model card, and everything bad that `load_model` may be given."""

import io
import json
import pickle
import re
import shlex
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import constants, errors
from safetensors.torch import save_file
from torch import nn

from patchword import cli
from patchword.core.errors import DataError, FaultError, UsageError
from patchword.models.contract import Model
from patchword.models.names import build_model, create_model
from patchword.verbs.weights import check, convert, show
from patchword.weights import mapping, npz, original
from patchword.weights.card import card, code
from patchword.weights.io import load_model, read, refusal, save_model
from patchword.weights.mapping import Foreign, Hints
from patchword.weights.source import Dialect, Source, open_source


def small(num_classes: int = 5) -> Model:
    torch.manual_seed(3)
    model = create_model("ViT-At/2", num_classes, (14, 22), depth=2, embed_dim=32)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.labels = ("ä", "b", "c", "d", "<e>")[:num_classes] if num_classes else None
    return model.eval()


class Converter(types.ModuleType):
    """In place of `weights/google.py`: our names behind `x/`, a grid that must be said, and one tensor too many."""

    spoiled = False

    def rows(self, model: Model) -> list[mapping.Row]:
        return [mapping.same(name, f"x/{name}") for name in model.state_dict()]

    def read(self, source: Source, hints: Hints) -> Foreign:
        if hints.image_size is None:
            raise DataError(f"{source.where} has no square grid; image_size=HEIGHT×WIDTH would be right")
        ours = small()
        model = build_model(ours.architecture, ours.preprocessing.with_image_size(hints.image_size))
        dropped = {name: "nobody needs it" for name in source.tensors if name.startswith("y/")}
        mapping.read(self.rows(model), source.tensors, model, dropped, str(source.where))
        return Foreign(model, ["tanh GELU is taken"], dropped)

    def write(self, model: Model, target: Path) -> None:
        if model.num_classes == 0:
            raise UsageError("that format cannot hold a model without a head")
        tensors = mapping.write(self.rows(model), model)
        tensors["y/1"] = tensors["y/2"] = torch.ones(3)
        if self.spoiled:
            tensors["x/head.bias"] = tensors["x/head.bias"] + 1
        npz.write(target, tensors)


@pytest.fixture
def converter(monkeypatch: pytest.MonkeyPatch) -> Converter:
    stand_in = Converter("patchword.weights.google")
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    for other in ("timm", "huggingface"):
        refuses = types.ModuleType(f"patchword.weights.{other}")

        def write(model: Model, target: Path) -> None:
            raise UsageError(f"{model.name} has no place there")

        refuses.write = write  # pyright: ignore[reportAttributeAccessIssue]
        monkeypatch.setitem(sys.modules, refuses.__name__, refuses)
    return stand_in


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    exit_code = cli.run([str(argument) for argument in arguments])
    shown = capsys.readouterr()
    return exit_code, shown.out, shown.err


def test_check_of_a_foreign_file(converter: Converter, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.npz"
    converter.write(small(), file)
    exit_code, out, _ = run(capsys, "weights", "check", file)
    assert (exit_code, out) == (3, "")
    exit_code, out, _ = run(capsys, "weights", "check", file, "--set", "image_size=14x22")
    assert exit_code == 0
    rows = [(line[:15].strip(), line[15:]) for line in out.splitlines()]
    said = dict(rows)
    assert said["format"] == "Google's format"
    assert re.fullmatch(rf"{file}, [\d.]+ kB, SHA-256 [0-9a-f]{{64}}", said["file"])
    assert said["model"] == "vit-custom" or said["model"].startswith("ViT-At/2")
    assert "patch_size 2, embed_dim 32, depth 2, mlp_dim 256, num_heads 2" in said["architecture"]
    assert said["input"] == "3 channels of 14×22 pixels"
    assert said["output"] == "5 logits"
    count = sum(parameter.numel() for parameter in small().parameters())
    assert said["parameters"] == f"{count:,}"
    assert said["labels"] == "none: the outputs have no names"
    assert said["assumed"] == "tanh GELU is taken"
    assert said["dropped"] == "y/1 and 1 more left out: nobody needs it"
    values = torch.cat([tensor.flatten() for tensor in small().state_dict().values()] + [torch.ones(6)])
    assert said["values"] == f"{len(values):,} of float32; {values.min():.4g} … {values.max():.4g}"
    assert said["checked"] == "every array agrees with its CRC-32 in the archive"
    assert said["can become"] == "patchword, google"
    assert [text for head, text in rows if head == "cannot become"] == [
        "timm: ViT-At/2 has no place there",
        "huggingface: ViT-At/2 has no place there",
    ]
    assert "original code, which needs JAX" in said["compared"]


def test_check_of_a_folder_of_ours(converter: Converter, tmp_path: Path) -> None:
    save_model(small(), tmp_path / "m")
    report = check(tmp_path / "m")
    assert [Path(file["path"]).name for file in report["files"]] == ["model.safetensors", "model.json"]
    assert report["labels"] == ["ä", "b", "c", "d", "<e>"]
    assert report["checked"] == "its SHA-256 is the one in model.json"
    assert report["assumed"] == []
    assert report["writes"]["patchword"] is None
    assert report["preprocessing"]["image_size"] == (14, 22)
    assert "error" not in report
    assert "5: ä, b, c, d, <e>" in show(report)


def test_a_refusal_costs_no_file(converter: Converter, tmp_path: Path) -> None:
    """What a writer says of a model without values is what it says of the model."""
    assert refusal(small(), "google") is None
    assert refusal(small(0), "google") == "that format cannot hold a model without a head"
    assert refusal(small(0), "patchword") is None


def test_convert_there_and_back(converter: Converter, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = small()
    save_model(model, tmp_path / "m")
    exit_code, out, err = run(capsys, "weights", "convert", tmp_path / "m", tmp_path / "a.npz", "--to", "google")
    assert exit_code == 0
    assert f"{tmp_path}/a.npz: ViT-At/2 in Google's format" in out
    assert "what was read back agrees: 5 logits of 2 random images differ by 0 at most" in out
    assert err.splitlines() == [
        f"{tmp_path}/a.npz: the format does not say the image size; give image_size=14x22 to read it",
        f"{tmp_path}/a.npz: the format does not keep the labels",
    ]
    facts = ("image_size=14x22",)
    report = convert(tmp_path / "a.npz", tmp_path / "back", to="patchword", set=facts)
    assert report["largest_difference"] == 0
    assert report["assumed"] == ["tanh GELU is taken"]
    assert report["dropped"] == {"y/1": "nobody needs it", "y/2": "nobody needs it"}
    err = capsys.readouterr().err
    assert f"{tmp_path}/a.npz: tanh GELU is taken\n" in err
    assert "y/1 and 1 more left out: nobody needs it\n" in err
    again = load_model(tmp_path / "back")
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert convert(tmp_path / "back", tmp_path / "back", to="patchword")["changed"] == []  # over itself


def test_a_file_that_answers_differently_is_a_fault(converter: Converter, tmp_path: Path) -> None:
    save_model(small(), tmp_path / "m")
    converter.spoiled = True
    with pytest.raises(
        FaultError, match=r"does not answer as .*/m does: what was read back DIFFERS.*differ by 1 at most"
    ):
        convert(tmp_path / "m", tmp_path / "a.npz", to="google")


def _state(path: Path) -> tuple[int, ...] | None:
    """What changes when something is written there; looking at a folder changes when it was last looked at."""
    if not path.exists():
        return None
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def test_only_a_model_of_the_format_is_replaced(converter: Converter, tmp_path: Path) -> None:
    save_model(small(), tmp_path / "m")
    converter.write(small(), tmp_path / "a.npz")
    np.savez(tmp_path / "mine.npz", numbers=np.arange(3))
    for target, to, message in (
        ("mine.npz", "google", "mine.npz exists and holds no model"),
        ("m", "timm", "m holds a model of another format .patchword."),
        ("a.npz", "patchword", "a.npz holds a model of another format"),
        ("mine.txt", "google", "one file whose name ends in .npz"),
    ):
        before = _state(tmp_path / target)
        with pytest.raises(UsageError, match=message):
            convert(tmp_path / "m", tmp_path / target, to=to)  # pyright: ignore[reportArgumentType]
        assert _state(tmp_path / target) == before
    (tmp_path / "empty").mkdir()
    convert(tmp_path / "m", tmp_path / "empty", to="patchword")
    converter.write(small(), tmp_path / "a.npz")
    convert(tmp_path / "m", tmp_path / "a.npz", to="google")


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ("num_head=3", "unknown field num_head; did you mean 'num_heads'"),
        ("gelu=tahn", "gelu='tahn' is not"),
        ("num_heads=many", "num_heads='many' is not of the right type"),
        ("image_size=0", "is not a side or height×width"),
        ("heads", "is not of the form field=value"),
        ("num_heads=2", "says itself what it is; num_heads is for bare tensors"),
    ],
)
def test_facts_are_checked(facts: str, message: str, tmp_path: Path) -> None:
    save_model(small(), tmp_path / "m")
    with pytest.raises(UsageError, match=message):
        check(tmp_path / "m", set=(facts,))


def test_a_pickle_is_read_on_request_alone(
    converter: Converter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {f"module.x/{name}": tensor for name, tensor in small().state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "a.pt")
    command = (
        "weights",
        "convert",
        tmp_path / "a.pt",
        tmp_path / "m",
        "--to",
        "patchword",
        "--set",
        "image_size=14x22",
    )
    exit_code, _, err = run(capsys, *command)
    assert exit_code == 3
    assert "is a pickle, which can run any code when it is loaded" in err
    assert not (tmp_path / "m").exists()
    exit_code, _, _ = run(capsys, *command, "--trust-pickle")
    assert exit_code == 0
    assert torch.equal(load_model(tmp_path / "m").state_dict()["head.weight"], small().state_dict()["head.weight"])
    exit_code, _, _ = run(capsys, "weights", "check", tmp_path / "a.pt")
    assert exit_code == 3


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return (Path.touch, (Path("executed"),))  # type: ignore[return-value]


def test_not_even_a_trusted_pickle_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a": Payload()}}, tmp_path / "a.pt")
    with pytest.raises(DataError, match=r"holds more than tensors, or is damaged; it was not opened \(\w") as caught:
        convert(tmp_path / "a.pt", tmp_path / "m", to="patchword", trust_pickle=True)
    # Torch warns of a pickle of another protocol, and here warnings are errors.
    (tmp_path / "b.pt").write_bytes(pickle.dumps({"a": Payload()}, protocol=4))
    with pytest.raises(DataError, match=r"it was not opened \(Unsupported operand 149\)"):
        convert(tmp_path / "b.pt", tmp_path / "m", to="patchword", trust_pickle=True)
    assert str(caught.value).isprintable()
    assert "weights_only" not in str(caught.value)  # torch's advice how to open it all the same
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "m").exists()


# The card


def test_the_card_says_what_the_model_is(tmp_path: Path) -> None:
    model = small()
    model.provenance = {"recipe": "scratch", "steps": 7}
    save_model(model, tmp_path / "m")
    page = (tmp_path / "m/README.md").read_text(encoding="utf-8")
    count = sum(parameter.numel() for parameter in model.parameters())
    for line in (
        "# `ViT-At/2`",
        "- family: `vit`",
        f"- parameters: {count:,}",
        "- input: RGB images, 14×22 pixels",
        "- output: 5 logits",
        "- embed_dim: `32`",
        "- interpolation: `bilinear`",
        "`ä`, `b`, `c`, `d`, `<e>`",
        "- `recipe`: `scratch`",
        "- `steps`: `7`",
    ):
        assert line in page.splitlines(), line
    assert page == card(load_model(tmp_path / "m"))
    assert {path.name for path in (tmp_path / "m").iterdir()} == {"model.safetensors", "model.json", "README.md"}
    again = load_model(tmp_path / "m")
    again.provenance = {}
    save_model(again, tmp_path / "n")
    assert (tmp_path / "m/model.safetensors").read_bytes() == (tmp_path / "n/model.safetensors").read_bytes()
    assert "Nothing is known of it." in (tmp_path / "n/README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("value", "span"),
    [
        ("a", "`a`"),
        ("<script>|x|</script>", "`<script>|x|</script>`"),
        ("a`b", "``a`b``"),
        ("``", "``` `` ```"),
        ("a\n# b\t\x1b[31mc", "`a # b \ufffd[31mc`"),
        ("\u202egpj", "`\ufffdgpj`"),
        ("", "` `"),
        ((0.5, "ü"), '`[0.5, "ü"]`'),
    ],
)
def test_nothing_from_outside_is_markup(value: object, span: str) -> None:
    if value == "":
        assert code(value).strip("`").strip() == ""
    else:
        assert code(value) == span


def test_many_labels_are_not_all_on_the_card() -> None:
    model = create_model("ViT-At/2", 61, 14, depth=1)
    model.labels = tuple(f"class {i}" for i in range(61))
    page = card(model)
    assert "`class 49`, and 11 more in `model.json`" in page
    assert "class 50" not in page


# Bad input


def _npz(path: Path, **arrays: np.ndarray) -> None:
    np.savez(path, allow_pickle=False, **arrays)


def _bad(name: str, folder: Path) -> Path:
    """One bad thing in `folder`."""
    folder.mkdir()
    tensors = {"cls": np.ones((1, 1, 4), np.float32), "embedding/kernel": np.ones((2, 2, 3, 4), np.float32)}
    match name:
        case "truncated npz":
            _npz(folder / "a.npz", **tensors)
            content = (folder / "a.npz").read_bytes()
            (folder / "a.npz").write_bytes(content[: len(content) * 2 // 3])
            return folder / "a.npz"
        case "flipped bit in npz":
            _npz(folder / "a.npz", **tensors)
            content = bytearray((folder / "a.npz").read_bytes())
            content[200] ^= 1
            (folder / "a.npz").write_bytes(content)
            return folder / "a.npz"
        case "truncated safetensors":
            save_file({"patch_embed.proj.weight": torch.ones(9)}, folder / "model.safetensors")
            content = (folder / "model.safetensors").read_bytes()
            (folder / "model.safetensors").write_bytes(content[:-5])
            return folder
        case "pickle as npz":
            (folder / "a.npz").write_bytes(pickle.dumps(Payload()))
            return folder / "a.npz"
        case "pickle as safetensors":
            (folder / "model.safetensors").write_bytes(pickle.dumps(Payload()))
            return folder / "model.safetensors"
        case "torch archive as npz":
            torch.save({"a": Payload()}, folder / "a.npz")
            return folder / "a.npz"
        case "objects in npz":
            content = io.BytesIO()
            np.lib.format.write_array(content, np.array([Payload()], dtype=object), allow_pickle=True)
            with zipfile.ZipFile(folder / "a.npz", "w") as archive:
                archive.writestr("embedding/kernel.npy", content.getvalue())
            return folder / "a.npz"
        case "zip bomb":
            # Two entries that share the same bytes would be one way; a directory that lies about sizes is another.
            _npz(folder / "a.npz", **tensors)
            content = bytearray((folder / "a.npz").read_bytes())
            place = content.rindex(b"PK\x01\x02")
            content[place + 24 : place + 28] = (2**31).to_bytes(4, "little")
            (folder / "a.npz").write_bytes(content)
            return folder / "a.npz"
        case "text in npz":
            with zipfile.ZipFile(folder / "a.npz", "w") as archive:
                archive.writestr("../../evil.py", "1")
            return folder / "a.npz"
        case "flipped bit in ours":
            save_model(small(), folder / "m")
            content = bytearray((folder / "m/model.safetensors").read_bytes())
            content[-9] ^= 16
            (folder / "m/model.safetensors").write_bytes(content)
            return folder / "m"
        case "another architecture":
            save_file({"transformer.h.0.attn.c_attn.weight": torch.ones(3, 5)}, folder / "model.safetensors")
            return folder
        case "index that escapes":
            save_file({"patch_embed.proj.weight": torch.ones(9)}, folder / "other.safetensors")
            (folder / "m").mkdir()
            index = {"weight_map": {"patch_embed.proj.weight": "../other.safetensors"}}
            (folder / "m/model.safetensors.index.json").write_text(json.dumps(index))
            return folder / "m"
        case "index of a missing file":
            index = {"weight_map": {"patch_embed.proj.weight": "model-00001-of-00002.safetensors"}}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
            return folder
        case "only a pickle":
            (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
            return folder
        case "empty file":
            (folder / "a.npz").write_bytes(b"")
            return folder / "a.npz"
        case "damaged description":
            save_file({"patch_embed.proj.weight": torch.ones(9)}, folder / "model.safetensors")
            (folder / "config.json").write_text('{"model_type": ')
            return folder
    raise AssertionError(name)


BAD = {
    "truncated npz": "is not a whole",
    "flipped bit in npz": "is not a whole .npz archive|is not an array of plain numbers",
    "truncated safetensors": "is not a whole safetensors file",
    "pickle as npz": "is a pickle, which can run any code",
    "pickle as safetensors": "is a pickle, which can run any code",
    "torch archive as npz": "is a pickle, which can run any code",
    "objects in npz": "is not an array of plain numbers",
    "zip bomb": "claims 2,147,483,648 bytes from .*: a bomb",
    "text in npz": "which is no array",
    "flipped bit in ours": "is damaged: its SHA-256",
    "another architecture": "holds weights of no kind that is known",
    "index that escapes": "leads out of the folder",
    "index of a missing file": "does not exist, though model.safetensors.index.json names it",
    "only a pickle": "is a pickle, which can run any code",
    "empty file": "is neither safetensors nor .npz",
    "damaged description": "is not valid JSON",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    source = _bad(name, tmp_path / "bad")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=BAD[name]) as caught:
        load_model(source)
    assert str(tmp_path / "bad") in str(caught.value)
    assert "\n" not in str(caught.value)
    for command in (["check", source], ["convert", source, "new", "--to", "patchword"]):
        exit_code, out, err = run(capsys, "weights", *command)
        assert (exit_code, out) == (3, "")
        assert err == f"patchword: {caught.value}\n"
    assert sorted(tmp_path.rglob("*")) == before  # nothing was executed, nothing half-written


def test_a_hub_name_that_does_not_exist_and_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def answer(error: Exception) -> None:
        def snapshot_download(*_: object, **__: object) -> str:
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    answer(errors.RepositoryNotFoundError.__new__(errors.RepositoryNotFoundError, "404", None))
    with pytest.raises(UsageError, match="hf://org/nmae does not exist, or is private"):
        load_model("hf://org/nmae")
    answer(errors.LocalEntryNotFoundError("Name or service not known"))
    with pytest.raises(DataError, match=r"hf://org/name cannot be fetched.*\(Name or service not known\)"):
        load_model("hf://org/name")


def test_an_unfinished_reading_leaves_no_model(converter: Converter, tmp_path: Path) -> None:
    """Values that are not finite, a tensor too many, one too few, one of another shape: named, never half-loaded."""
    for change, message in (
        ({"x/head.bias": np.full(5, np.nan, np.float32)}, "head.bias holds values that are not finite"),
        ({"x/more": np.ones(2, np.float32)}, "has the tensor x/more, which ViT-At/2 has no place for"),
        ({"x/head.bias": None}, "lacks the tensor x/head.bias"),
        ({"x/head.bias": np.ones(7, np.float32)}, "x/head.bias gives 7 for head.bias, of which ViT-At/2 has 5"),
    ):
        converter.write(small(), tmp_path / "a.npz")
        arrays = {name: tensor.numpy() for name, tensor in npz.read(tmp_path / "a.npz").items()}
        kept = {name: array for name, array in {**arrays, **change}.items() if array is not None}
        _npz(tmp_path / "a.npz", **kept)
        with pytest.raises(DataError, match=message):
            read(open_source(tmp_path / "a.npz"), Hints(image_size=(14, 22)))


# The real converters and the original libraries


def random_values(net: Any) -> Any:
    torch.manual_seed(7)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net.eval()


def timm_folder(folder: Path) -> Path:
    timm = pytest.importorskip("timm")
    options = {"img_size": (32, 48), "embed_dim": 64, "depth": 2, "num_heads": 2, "global_pool": "avg"}
    net = random_values(timm.create_model("vit_tiny_patch16_224", num_classes=7, **options))
    timm.models.save_for_hf(net, folder, model_args=options, safe_serialization=True)
    return folder


def transformers_folder(folder: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 72}
    config = transformers.ViTConfig(image_size=(32, 48), patch_size=16, num_labels=5, layer_norm_eps=1e-6, **sizes)
    random_values(transformers.ViTForImageClassification(config)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("make", "library", "facts"),
    [
        (timm_folder, "timm", ("num_heads=2", "image_size=32x48")),
        (transformers_folder, "transformers", ("num_heads=2", "image_size=32x48", "norm_eps=1e-6")),
    ],
)
def test_check_asks_the_original_library(
    make: Callable[[Path], Path], library: str, facts: tuple[str, ...], tmp_path: Path
) -> None:
    folder = make(tmp_path / "theirs")
    report = check(folder)
    assert re.match(rf"{library} [\d.]+ agrees: \d logits of 2 random images differ by ", report["compared"])
    assert "error" not in report
    assert report["image_size"] == [32, 48]
    bare = tmp_path / "bare.safetensors"
    bare.write_bytes((folder / "model.safetensors").read_bytes())
    report = check(bare, set=facts)
    assert " agrees: " in report["compared"]
    # What the folder says counts, on both sides: the other GELU is another answer, and theirs as well as ours.
    before = original.random_images(load_model(folder)), load_model(folder)
    description = json.loads((folder / "config.json").read_text())
    if library == "timm":
        description["model_args"]["act_layer"] = "gelu_tanh"
    else:
        description["hidden_act"] = "gelu_pytorch_tanh"
    (folder / "config.json").write_text(json.dumps(description))
    report = check(folder)
    assert report["architecture"]["gelu"] == "tanh"
    assert " agrees: " in report["compared"]
    images, erf = before
    assert not torch.allclose(load_model(folder)(images), erf(images), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "pool"),
    [
        ("vit_small_patch14_reg4_dinov2", "token"),
        ("vit_small_patch14_reg4_dinov2", "avg"),
        ("vit_tiny_patch16_224", "token"),
        ("vit_tiny_patch16_224", "avg"),
        ("vit_base_patch16_siglip_224", "map"),
    ],
)
def test_bare_tensors_of_timm_in_every_layout_of_tokens(name: str, pool: str, tmp_path: Path) -> None:
    """Registers without slots, a class token that nobody reads, none at all: timm takes the tensors as they are."""
    timm = pytest.importorskip("timm")
    sides = {"img_size": (28, 42) if "14" in name else (32, 48), "embed_dim": 128, "num_heads": 2, "depth": 2}
    net = random_values(timm.create_model(name, num_classes=5, global_pool=pool, **sides))
    save_file({key: value.contiguous() for key, value in net.state_dict().items()}, tmp_path / "a.safetensors")
    report = check(tmp_path / "a.safetensors", set=(f"image_size={sides['img_size'][0]}x{sides['img_size'][1]}",))
    assert " agrees: 5 logits" in report["compared"], report["compared"]


def test_another_answer_than_the_original_librarys_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = timm_folder(tmp_path / "theirs")
    ours = original.outputs
    monkeypatch.setattr(original, "outputs", lambda model, images: ours(model, images) + 0.01)
    exit_code, out, _ = run(capsys, "weights", "check", folder)
    assert exit_code == 3
    assert re.search(r"DIFFERS: 7 logits of 2 random images differ by 0\.01 at most", out)
    monkeypatch.setattr(original, "outputs", lambda model, images: ours(model, images)[:, :3])
    assert "7 logits, of which it gives 7, of 2 random images differ by inf at most" in check(folder)["compared"]


FIXTURES = Path(__file__).parents[1] / "tests/fixtures/google"


@pytest.mark.parametrize("to", ["timm", "huggingface", "patchword", "google"])
def test_googles_file_becomes_every_format_and_itself_again(to: Dialect, tmp_path: Path) -> None:
    target = tmp_path / ("a.npz" if to == "google" else "a")
    report = convert(FIXTURES / "vit_token.npz", target, to=to)
    assert report["largest_difference"] == 0
    assert report["changed"] == []
    assert "agrees" in check(target)["compared"] or to in ("google", "patchword")
    convert(target, tmp_path / "back.npz", to="google")
    first, second = npz.read(FIXTURES / "vit_token.npz"), npz.read(tmp_path / "back.npz")
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


DOCS = (Path(__file__).parents[1] / "docs/weights.md").read_text(encoding="utf-8")


def test_the_page_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command and every line of Python of docs/weights.md, on small files of the names that it gives."""
    monkeypatch.chdir(tmp_path)
    timm = pytest.importorskip("timm")
    kind = timm.models.vision_transformer.VisionTransformer
    options = {"num_classes": 5, "patch_size": 16, "depth": 2}
    save_model(create_model("ViT-At/16", 5, 64, depth=1), tmp_path / "runs/photos/model")
    for name, side in (("state-dict", (32, 48)), ("checkpoint", 32)):
        net = random_values(kind(img_size=side, embed_dim=128, num_heads=2, **options))
        save_file({key: value.contiguous() for key, value in net.state_dict().items()}, f"{name}.safetensors")
        torch.save({"state_dict": net.state_dict()}, "old-checkpoint.pth")
    blocks = re.findall(r"```(\w*)\n(.*?)```", DOCS, flags=re.DOTALL)
    commands = [line for kind, block in blocks if not kind for line in block.splitlines()]
    assert len(commands) == 8
    for command in commands:
        arguments = shlex.split(command)
        assert arguments[0] == "patchword"
        assert cli.run(arguments[1:]) == 0, command
    for kind, block in blocks:
        if kind == "python":
            exec(compile(block, "weights.md", "exec"), {})
    assert (tmp_path / "adapted/config.json").is_file()
