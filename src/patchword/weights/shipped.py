"""Weights that come with the package: small models for small pictures, in half precision, each a model folder with its card.

`shipped/NAME/` has `model.safetensors`, `model.json` and `README.md`; docs/pretraining.md says how they were made.
"""

from pathlib import Path
from typing import Any

from patchword.core import files
from patchword.core.errors import UsageError, nearest
from patchword.weights.folder import DESCRIPTION

FOLDER = Path(__file__).parent / "shipped"
PREFIX = "shipped:"
"""Before a name, in `--init` and `load_model`."""
LARGEST_SIDE = 128
"""Images are at most so large where the weights are taken without being asked for: they were trained on 32 px, and are worth
more than none at 128 (docs/pretraining.md)."""


def names() -> list[str]:
    """What is there."""
    return sorted(path.name for path in FOLDER.iterdir() if path.is_dir()) if FOLDER.is_dir() else []


def locate(name: str) -> Path:
    """The model folder of `shipped:NAME`'s name."""
    if name not in names():
        raise UsageError(f"no weights called {name!r} come with patchword; {nearest(name, names())}")
    return FOLDER / name


def fitting(wanted: dict[str, Any], image_size: tuple[int, int]) -> str | None:
    """The name of those whose architecture has all the `wanted` fields, for images of H×W; None where there are none.

    Of several the first by name: the hybrid before the plain ViT, which learns less from as many pictures.
    """
    if max(image_size) > LARGEST_SIDE:
        return None
    for name in names():
        there = files.read_json(FOLDER / name / DESCRIPTION)["architecture"]
        if all(there.get(field) == _plain(value) for field, value in wanted.items()):
            return name
    return None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value  # JSON knows no tuples
