"""The folder that explanations are written to: the files of each picture, and those that tell of the model."""

import io
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from patchword.core import encoding, files
from patchword.core.errors import DataError
from patchword.explanation import overlay
from patchword.explanation.facts import ARRAYS, Facts
from patchword.explanation.maps import Choice
from patchword.explanation.picture import Look

_CHECK, _MODEL = "check.json", "model.npz"
_LONGEST_STEM = 40  # signs of up to four bytes: a name has 255, and one that is being written some more


def somebody_elses(folder: Path) -> str:
    """The name of a file that explanations would take the place of and that is none of theirs; empty where there is none."""
    for page in (folder / "report.html", *_numbered_pages(folder)):
        if page.exists() and b" explained \xe2\x80\x93 patchword</title>" not in page.read_bytes()[:8192]:
            return page.name
    if (folder / _CHECK).exists():
        try:
            figures = files.read_json(folder / _CHECK)
        except DataError:
            return _CHECK
        if not isinstance(figures, dict) or set(figures) != {"map", "figures"}:
            return _CHECK
    if (folder / _MODEL).exists():
        # Of weights, which have this name elsewhere, only the list of contents is read.
        try:
            with zipfile.ZipFile(folder / _MODEL) as archive:
                names = {name.removesuffix(".npy") for name in archive.namelist()}
        except (zipfile.BadZipFile, OSError):
            return _MODEL
        if not names <= set(ARRAYS):
            return _MODEL
    return ""


def is_overlay(picture: Path) -> bool:
    """Whether an explanation drew this: its arrays lie beside it."""
    return bool(re.match(r"[0-9]{3,}-.*\.png$", picture.name)) and picture.with_suffix(".npz").exists()


def remove_older(folder: Path, pictures: Sequence[Path] = ()) -> None:
    """What would speak of other pictures or another model: all that an earlier call left.

    An overlay is known by the arrays beside it, so that no picture of somebody else's goes; nor do `pictures`, which are to be
    explained.
    """
    keep = {path.absolute() for path in pictures}
    older = _numbered_pages(folder)
    for arrays in folder.glob("*.npz"):
        drawn = arrays.with_suffix(".png")
        if is_overlay(drawn) and drawn.exists() and drawn.absolute() not in keep:
            older += [drawn, arrays]
    for path in [*older, folder / _CHECK, folder / _MODEL]:
        path.unlink(missing_ok=True)


def _numbered_pages(folder: Path) -> list[Path]:
    """The second page of an explanation and those after it."""
    return [path for path in folder.glob("report-*.html") if re.fullmatch(r"report-[0-9]+\.html", path.name)]


def write_look(
    folder: Path, number: int, picture: Path, seen: Look, chosen: np.ndarray, labels: tuple[str, ...]
) -> tuple[Path, Path]:
    """Write and return the overlay of a picture, by the map h×w that was chosen, and its arrays; `number` counts from 1."""
    stem = f"{number:03d}-{picture.stem[:_LONGEST_STEM]}"
    overlaid, arrays = folder / f"{stem}.png", folder / f"{stem}.npz"
    files.write_bytes(overlaid, encoding.png(overlay.overlay(seen.pixels, chosen)))
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
