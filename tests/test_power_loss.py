"""Power loss: whatever part of what was written had reached the disk, a whole checkpoint is found.

A `kill -9` leaves everything that was written in the cache of the system; a loss of power does not. Here the order of all
file operations of a few savings is recorded, and for every prefix of it the disk is rebuilt as a crash may leave it: with all
of it, or with only what was brought to the disk by `fsync` (names by that of their folder, contents by that of their file).
"""

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from patchword.models.names import create_model
from patchword.training import checkpoint
from patchword.training.checkpoint import State
from patchword.training.objectives import Softmax
from patchword.training.optimizer import OptimizerConfig, build_optimizer


@dataclasses.dataclass
class Disk:
    """What a crash would leave below `root` now, if all that is not brought to the disk were lost."""

    root: Path
    folders: dict[int, dict[str, int]] = dataclasses.field(default_factory=dict)
    """Durable: number of a folder → its entries, by the number of the file or folder that they are."""
    contents: dict[int, bytes] = dataclasses.field(default_factory=dict)
    """Durable: number of a file → its content."""
    moments: list[tuple[str, dict[Path, bytes], dict[Path, bytes]]] = dataclasses.field(default_factory=list)
    """After each operation: its name, all files as they are in the cache, and all files as they are on the disk."""
    held: list[int] = dataclasses.field(default_factory=list)
    """Open files and folders, whose numbers are then not given to others."""

    def sync(self, handle: int) -> None:
        self.held.append(os.dup(handle))
        status, path = os.fstat(handle), Path(os.readlink(f"/proc/self/fd/{handle}"))
        if path.is_dir():
            self.folders[status.st_ino] = {entry.name: entry.inode() for entry in os.scandir(path)}
        else:
            self.contents[status.st_ino] = path.read_bytes()

    def now(self, operation: str) -> None:
        cached = {path.relative_to(self.root): path.read_bytes() for path in self.root.rglob("*") if path.is_file()}
        durable: dict[Path, bytes] = {}

        def walk(folder: Path, number: int) -> None:
            for name, entry in self.folders.get(number, {}).items():
                if entry in self.folders:
                    walk(folder / name, entry)
                else:
                    durable[folder / name] = self.contents.get(entry, b"")  # a name whose content never got there

        walk(Path(), self.root.stat().st_ino)
        self.moments.append((operation, cached, durable))


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    root = tmp_path / "run"
    root.mkdir()
    recorder = Disk(root)
    fsync = os.fsync

    def synced(handle: int) -> None:
        fsync(handle)
        recorder.sync(handle)
        recorder.now("fsync")

    monkeypatch.setattr(os, "fsync", synced)
    writing = (checkpoint, "write_tensors")
    for module, name in (
        (os, "replace"),
        (tempfile, "mkdtemp"),
        (tempfile, "mkstemp"),
        (shutil, "rmtree"),
        writing,
    ):
        real = getattr(module, name)

        def recorded(*arguments: Any, real: Any = real, name: str = name, **options: Any) -> Any:
            found = real(*arguments, **options)
            recorder.now(name)
            return found

        monkeypatch.setattr(module, name, recorded)
    yield recorder
    for handle in recorder.held:
        os.close(handle)


def rebuild(files: dict[Path, bytes], where: Path) -> Path:
    for path, content in files.items():
        (where / path).parent.mkdir(parents=True, exist_ok=True)
        (where / path).write_bytes(content)
    return where / "checkpoints"


def test_every_moment_of_saving_leaves_a_whole_checkpoint(disk: Disk, tmp_path: Path) -> None:
    """Four savings of which two are kept, the third step twice, as after a damaged one: its folder is replaced."""
    model = create_model("ViT-At/8", 3, 16, depth=1, embed_dim=16, num_heads=2, mlp_dim=24)
    optimizer = build_optimizer(OptimizerConfig(), model)
    folder = disk.root / "checkpoints"
    saved: dict[int, torch.Tensor] = {}
    done: list[tuple[int, int]] = []
    for step in (1, 2, 3, 3, 4):
        with torch.no_grad():
            model.get_parameter("head.bias").fill_(step)
        saved[step] = model.get_parameter("head.bias").detach().clone()
        checkpoint.save(folder, State(step=step), checkpoint.tensors_of(model, Softmax(3), optimizer, None), keep=2)
        done.append((len(disk.moments), step))
    assert len(disk.moments) > 60
    for number, (operation, *states) in enumerate(disk.moments, 1):
        published = max((step for moment, step in done if moment <= number), default=0)
        for kind, files in zip(("cache", "disk"), states, strict=True):
            there = rebuild(files, tmp_path / f"{number}-{kind}")
            found = checkpoint.newest(there, model, Softmax(3))
            where = f"{operation} {number} ({kind})"
            # Replacing a checkpoint of the same step may cost that one, never the one before.
            assert (0 if found is None else found.state.step) >= published - (number > done[2][0]), where
            if found is not None:
                assert torch.equal(found.weights()["head.bias"], saved[found.state.step]), where


def test_the_recorder_would_find_a_missing_fsync(disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without bringing files to the disk before the rename, some moment has a folder of empty files."""
    from patchword.core import files

    monkeypatch.setattr(files, "sync_file", lambda path: None)
    model = create_model("ViT-At/8", 3, 16, depth=1, embed_dim=16, num_heads=2, mlp_dim=24)
    tensors = checkpoint.tensors_of(model, Softmax(3), build_optimizer(OptimizerConfig(), model), None)
    checkpoint.save(disk.root / "checkpoints", State(step=1), tensors, keep=2)
    assert checkpoint.newest(disk.root / "checkpoints", model, Softmax(3)) is not None
    assert checkpoint.newest(rebuild(disk.moments[-1][2], tmp_path / "after"), model, Softmax(3)) is None
