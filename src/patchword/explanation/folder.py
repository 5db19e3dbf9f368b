"""The folder that explanations are written to: the files of each picture, and those that tell of the model."""

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from patchword.core import files
from patchword.explanation import overlay
from patchword.explanation.facts import Facts
from patchword.explanation.maps import Choice
from patchword.explanation.picture import Look

_CHECK, _MODEL = "check.json", "model.npz"
_LONGEST_STEM = 40  # signs of up to four bytes: a name has 255, and one that is being written some more


def remove_older(folder: Path, pictures: Sequence[Path] = ()) -> None:
    """What would speak of other pictures or another model: all that an earlier call left.

    An overlay is known by the arrays beside it, so that no picture of somebody else's goes; nor do `pictures`, which are to be
    explained.
    """
    keep = {path.absolute() for path in pictures}
    older = [path for path in folder.glob("report-*.html") if re.fullmatch(r"report-[0-9]+\.html", path.name)]
    for arrays in folder.glob("*.npz"):
        drawn = arrays.with_suffix(".png")
        if re.match(r"[0-9]{3,}-", arrays.name) and drawn.exists() and drawn.absolute() not in keep:
            older += [drawn, arrays]
    for path in [*older, folder / _CHECK, folder / _MODEL]:
        path.unlink(missing_ok=True)


def write_look(
    folder: Path, number: int, picture: Path, seen: Look, chosen: np.ndarray, labels: tuple[str, ...]
) -> tuple[Path, Path]:
    """Write and return the overlay of a picture, by the map h×w that was chosen, and its arrays; `number` counts from 1."""
    stem = f"{number:03d}-{picture.stem[:_LONGEST_STEM]}"
    overlaid, arrays = folder / f"{stem}.png", folder / f"{stem}.npz"
    files.write_bytes(overlaid, overlay.png(overlay.overlay(seen.pixels, chosen)))
    named = np.array([labels[i] for i in seen.classes])
    _write_arrays(arrays, map=chosen, labels=named, **seen.arrays())
    return overlaid, arrays


def write_facts(folder: Path, facts: Facts, choice: Choice) -> None:
    """Write down the numbers of the model; and whether the maps of `choice` are true, if that was measured."""
    _write_arrays(folder / _MODEL, **facts.arrays())
    if facts.truth:
        figures = [figure.to_dict() for figure in facts.truth]
        files.write_json(folder / _CHECK, {"map": choice.words, "figures": figures})


def _write_arrays(path: Path, **arrays: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    files.write_bytes(path, buffer.getvalue())
