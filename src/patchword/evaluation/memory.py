"""What a model makes of a split's pictures, computed once: kept in the cache, whole or not at all, as long as there is room."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from patchword.core import files
from patchword.core.errors import DataError, FaultError
from patchword.core.processes import Processes
from patchword.core.progress import say
from patchword.data.dataset import Files, Split
from patchword.data.join import Joined
from patchword.models.contract import Model
from patchword.weights.folder import read_described

ROOM = 10_000_000_000
"""Bytes that a room of the cache may hold; what was asked for longest ago goes first."""
_DIGEST = "sha256"
"""In a file's metadata: a hash of its tensors."""
_IDLE = 3600.0
"""Seconds without a byte after which a write is taken for one that was killed; one lives for seconds."""


def remembered(
    room: str,
    model: Model,
    split: Split,
    shapes: dict[str, tuple[int, ...]],
    compute: Callable[[], dict[str, Tensor]],
    world: Processes | None = None,
) -> dict[str, Tensor]:
    """What `compute` gives for this model and this split, or what it gave before; tensors of these names and shapes.

    It is looked for in the cache's `room` by the weights, the architecture, the preprocessing (with the resolution) and the
    pictures. What is damaged there is computed again; a cache that cannot be written is a note. `compute` is called in all
    processes of `world` or in none.
    """
    world = world or Processes()
    place = place_of(room, model, split)
    found = _read(place, shapes) if world.decide(place.is_file) else None
    if world.sum(found is None)[0]:
        found = compute()
        world.decide(lambda: _keep(place, found))
    assert found is not None
    return found


def place_of(room: str, model: Model, split: Split) -> Path:
    """The file that it is kept in, if it is."""
    return files.cache(room) / f"{identity(model, split)}.safetensors"


def identity(model: Model, split: Split | None = None) -> str:
    """A hash of all that decides what the model makes of the split's pictures; without a split, of any."""
    digest = hashlib.sha256(json.dumps([model.architecture, model.preprocessing.to_dict()], sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    if split is not None:
        digest.update(split.fingerprint().encode())
    if split is not None and isinstance(split.items, Files | Joined):  # a picture may be painted over at the same size
        digest.update(split.items.times(split.rows).tobytes())
    return digest.hexdigest()[:32]


def _read(place: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor] | None:
    try:
        tensors, described = read_described(place)
        kept = described.get(_DIGEST)
    except DataError:
        kept, tensors = "", {}
    if kept is None:  # from before there were digests: it counts as absent
        return None
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} == shapes and kept == _digest(tensors):
        with contextlib.suppress(OSError):
            os.utime(place)
        return tensors
    say(f"note: {place} is damaged; what it held is computed again")
    return None


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _keep(place: Path, tensors: dict[str, Tensor]) -> None:
    try:
        with files.new_file(place) as file:
            whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
            file.write(save(whole, metadata={_DIGEST: _digest(whole)}))
        with contextlib.suppress(OSError):  # another process may have removed it before
            _make_room(place)
    except FaultError as error:
        say(f"note: {error}; next time it is computed again")


def _make_room(newest: Path) -> None:
    """Remove what was asked for longest ago as far as the room holds too much; who reads it at the moment reads on.

    What killed writes have left goes, too.
    """
    files.remove_leftovers(newest.parent, r"[0-9a-f]+\.safetensors", idle=_IDLE)
    there = [(file.stat(), file) for file in newest.parent.glob("*.safetensors") if file != newest]
    left = ROOM - newest.stat().st_size
    for known, file in sorted(there, key=lambda pair: pair[0].st_mtime_ns, reverse=True):
        left -= known.st_size
        if left < 0:
            file.unlink(missing_ok=True)
