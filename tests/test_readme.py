"""Every command and every line of Python that the README shows, run on a small folder of pictures."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from conftest import write_pictures
from patchword import cli

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [
    shlex.split(line, comments=True)
    for kind, block in BLOCKS
    if not kind
    for line in block.splitlines()
    if line.startswith("patchword ")
]
PYTHON = [block for kind, block in BLOCKS if kind == "python"]


@pytest.fixture
def beside_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_pictures(tmp_path / "photos", ("cat", "dog"), 12, side=32)
    (tmp_path / "new-picture.jpg").write_bytes((tmp_path / "photos/cat/000.png").read_bytes())
    torch.manual_seed(0)
    other = VisionTransformer(img_size=32, patch_size=8, embed_dim=64, depth=1, num_heads=1, num_classes=2)
    save_file(other.state_dict(), tmp_path / "checkpoint.safetensors")
    return tmp_path


def quick(text: str) -> str:
    """The same for a second instead of five minutes, and two models, once, on all pictures instead of a whole study."""
    text = re.sub(r"(--models [^,]+,[^,]+),\S+ --sizes \S+", r"\g<1> --seeds 1", text)
    text = text.replace("--pflop 0.004", "--minutes 0.005")
    return re.sub(r"(minutes[ =])5\b", r"\g<1>0.005", text)


def test_commands(beside_photos: Path) -> None:
    assert len(COMMANDS) >= 5
    for command in COMMANDS:
        arguments = shlex.split(quick(shlex.join(command)))
        assert cli.run(arguments[1:]) == 0, shlex.join(arguments)
    assert (beside_photos / "runs/photos/report.html").is_file()
    assert (beside_photos / "runs/photos-128/report.html").is_file()
    assert (beside_photos / "runs/tuned/report.html").is_file()
    assert (beside_photos / "studies/photos/report.html").is_file()
    assert (beside_photos / "tuned-for-timm/config.json").is_file()


def test_python(beside_photos: Path) -> None:
    assert len(PYTHON) == 1
    for block in PYTHON:
        exec(compile(quick(block), "README.md", "exec"), {})
    assert (beside_photos / "my-model/model.safetensors").is_file()


def test_the_two_commands_are_targets() -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_files_that_the_readme_names_exist() -> None:
    for name in set(re.findall(r"`((?:tests|src|docs)/[\w/.]+)`|`(CONTRIBUTING\.md)`", README)):
        path = "".join(name)
        assert (Path(__file__).parents[1] / path).exists(), path
