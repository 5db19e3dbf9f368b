"""Picture files that a verb is given: which they are, and what a model sees of each."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from patchword.core.errors import DataError, UsageError

if TYPE_CHECKING:
    import numpy as np

    from patchword.models.contract import Model


def picture_files(images: "str | Path | Sequence[str | Path]") -> list[Path]:
    """The files themselves, and those in folders in order; raises for an empty folder and for none at all."""
    from patchword.data.decoding.decode import SUFFIXES

    paths: list[Path] = []
    for image in [images] if isinstance(images, str | Path) else images:
        path = Path(image)
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            if not found:
                raise DataError(f"{path} holds no pictures ({', '.join(sorted(SUFFIXES))})")
            paths += found
        else:
            paths.append(path)  # one that is not there gets its error beside the others' answers
    if not paths:
        raise UsageError("no picture given; a file or a folder of them is right")
    return paths


def fitted(path: Path, model: "Model") -> "np.ndarray":
    """The file as the model's input, uint8 H×W×C; raises `DecodeError`."""
    from patchword.data.dataset import read_file
    from patchword.data.decoding.decode import decode

    return model.preprocessing.fit(decode(read_file(path), model.in_channels))
