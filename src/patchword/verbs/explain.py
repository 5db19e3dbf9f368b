"""`patchword explain`: a saved model, some pictures → where it looks on each, as pictures, arrays and a page."""

import functools
import os
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from patchword.core.errors import UsageError
from patchword.verbs.options import Images, LayerName, ModelSource, Name, OtherData, OtherModel, Target, Whole, argument
from patchword.verbs.pictures import fitted, picture_files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from patchword.core.progress import Progress
    from patchword.explanation.attention import Layer
    from patchword.explanation.picture import Look
    from patchword.explanation.subject import Beside, Subject
    from patchword.models.contract import Model

_PER_PAGE = 8


def explain(
    model: ModelSource,
    images: Images,
    *,
    out: Target = None,
    map: Annotated[  # noqa: A002 (the command line's word)
        Literal["auto", "rollout", "class", "attention", "gradcam"], argument("auto|rollout|class|attention|gradcam")
    ] = "auto",
    layer: LayerName = None,
    head: Whole = None,
    label: Name = None,
    beside: OtherModel = None,
    data: OtherData = None,
    check: bool = True,
) -> list[dict[str, Any]]:
    """Show where a model looks: an overlay (.png) and arrays (.npz) for each picture, and a page (report.html) for all.

    What is true of the model whatever the picture (attention distance and entropy of each head, filters, how alike positions
    are) is in model.npz. For each picture `image`, `predictions`, `map` (h×w), `overlay`, `arrays` and `page` are returned. A
    picture that cannot be read gets an `error` and its `page`, which tells it, too; the others are explained all the same.

    Args:
        model: A run folder, a model folder or other weights (in Python also a model).
        images: Picture files, or folders whose pictures are taken; a page holds eight.
        out: The folder to write to; explained/MODEL if not given.
        map: What the overlays show: rollout (attention through all layers), class (what spoke for the class), attention
            (of one layer), gradcam (of convolutions); auto takes rollout where there is attention (class with a label,
            attention with a layer or head), else gradcam.
        layer: The layer whose attention is shown, from 0; the last if not given. pool is that of attention pooling.
        head: The head whose attention is shown, from 0; the mean of all if not given.
        label: The class that maps are for; what the model says of each picture if not given.
        beside: A second model (as the first), whose map of each picture is put beside, for the same label if it knows it.
        data: Pictures as for train, among which the nearest neighbours are looked for; 1,000 of them at most.
        check: Measure whether the maps are true, on the first eight pictures and on 64 drawn ones whose objects are known, and
            write the figures to check.json; --no-check saves that time.
    """
    from patchword.core.progress import Progress
    from patchword.explanation import faithfulness
    from patchword.explanation.facts import facts_of
    from patchword.explanation.folder import remove_older, write_facts
    from patchword.explanation.known import KnownPictures
    from patchword.explanation.subject import subject_of
    from patchword.reports import explain as pages
    from patchword.weights.io import as_model

    paths = _without_overlays(picture_files(images), images)
    names = _names(paths)
    loaded, label = as_model(model), None if label is None else str(label)
    subject = subject_of(loaded, map, _layer(layer), head, label, _source(model))
    folder = Path(out) if out is not None else Path("explained") / _folder_name(model, loaded)
    _check_folder(folder)
    other = None if beside is None else _second(beside, label)
    options = {"map": None if map == "auto" else map, "layer": layer, "head": head, "label": label}
    command = _command(model, images, {**options, "beside": beside, "data": data, "out": out}, check)
    known = None if data is None else KnownPictures(loaded, str(data))
    remove_older(folder, paths)
    rows: list[dict[str, Any]] = [
        {"image": str(path), "page": folder / pages.page_name(place // _PER_PAGE)} for place, path in enumerate(paths)
    ]
    count = -(-len(rows) // _PER_PAGE)
    checks = faithfulness.steps(min(_PER_PAGE, len(rows))) if check else 0
    with Progress("explaining", len(rows) + checks) as progress:
        for number in range(count):
            first = number * _PER_PAGE
            part = rows[first : first + _PER_PAGE]
            shown: list[pages.Shown] = []
            for place, seen in _looks(part, subject):
                path = paths[first + place]
                _answer(part[place], first + place + 1, seen, subject, folder)
                beside_it = None if other is None else _glance(other, path)
                shown.append(pages.Shown(names[path], seen, beside_it, known.near(seen) if known else ()))
                progress.update(first + place + 1 + (checks if number else 0))
            facts = None
            if number == 0:
                tell = functools.partial(_tell_check, progress, len(part)) if check else None
                facts = facts_of(loaded, subject.choice, [each.look for each in shown], subject.wanted, known, tell)
                write_facts(folder, facts, subject.choice)
            bad = [(names[Path(row["image"])], row["error"]) for row in part if "error" in row]
            pages.write_page(folder, subject, shown, bad, facts, number=number, count=count, command=command)
            progress.update(first + len(part) + checks)
    return rows


def show(rows: list[dict[str, Any]]) -> str:
    """A line for each picture, and where the pages are."""
    lines = []
    for row in rows:
        if "error" in row:
            lines.append(f"{row['image']}: {row['error']}")
            continue
        answers = "  ".join(f"{each['label']} {100 * each['probability']:.1f} %" for each in row["predictions"])
        lines.append(f"{row['image']}: {answers or 'no head, no label'}  → {row['overlay']}")
    pages = dict.fromkeys(str(row["page"]) for row in rows if "page" in row)
    return "\n".join([*lines, *(f"page: {page}" for page in pages)])


def _without_overlays(paths: list[Path], images: Images) -> list[Path]:
    """Without what explanations drew in folders that are to be explained; one that is named itself stays, or all if alone."""
    from patchword.explanation.folder import is_overlay

    named = {Path(each) for each in ([images] if isinstance(images, str | Path) else images)}
    return [path for path in paths if path in named or not is_overlay(path)] or paths


def _check_folder(folder: Path) -> None:
    """Raises `UsageError` for one that cannot be written to without loss."""
    from patchword.explanation.folder import somebody_elses
    from patchword.studies.grid import SETTINGS
    from patchword.training.run_folder import RECIPE

    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {folder} is a file; a folder is right")
    for what, mark in (("run", RECIPE), ("study", SETTINGS)):
        if (folder / mark).exists():
            raise UsageError(
                f"--out {folder} holds a {what}, whose report.html would be lost; a folder of its own is right"
            )
    if lost := somebody_elses(folder):
        raise UsageError(
            f"--out {folder} holds a {lost} of another kind, which would be lost; a folder of its own is right"
        )


def _layer(layer: str | int | None) -> "Layer | None":
    """A number, or `pool`; what the command line gives is a word."""
    if layer is None or isinstance(layer, int) or layer == "pool":
        return layer  # pyright: ignore[reportReturnType] (a literal that has just been compared)
    if not re.fullmatch(r"[0-9]{1,9}", layer):
        raise UsageError(f"--layer {layer!r} is not a whole number from 0, or pool")
    return int(layer)


def _second(source: ModelSource, label: str | None) -> "Subject":
    """The model beside; it is not asked for a class that it does not know."""
    from patchword.explanation.subject import labels_of, subject_of
    from patchword.weights.io import as_model

    model = as_model(source)
    return subject_of(model, label=label if label in labels_of(model) else None, source=_source(source))


def _source(model: ModelSource) -> str:
    return _printable(model) if isinstance(model, str | Path) else ""


def _command(model: ModelSource, images: Images, options: dict[str, Any], check: bool) -> list[str] | None:
    """The words that repeat the call, as a shell takes them; None where a model itself was given."""
    if not all(isinstance(each, str | Path) for each in (model, options["beside"] or "")):
        return None
    words = ["explain", model, *([images] if isinstance(images, str | Path) else images)]
    for name, value in options.items():
        words += [f"--{name}", value] if value is not None else []
    words += [] if check else ["--no-check"]
    return ["patchword", *(shlex.quote(_printable(str(word))) for word in words)]


def _folder_name(source: ModelSource, model: "Model") -> str:
    """Of the folder or file that the model comes from, else its own name."""
    name = Path(str(source)).name if isinstance(source, str | Path) else model.name
    return re.sub(r"[^\w.+-]+", "-", name).strip(".-") or "model"


def _tell_check(progress: "Progress", explained: int, done: int, total: int) -> None:
    progress.update(explained + done, f"checking {done}/{total}")


def _names(paths: list[Path]) -> dict[Path, str]:
    """For people: what is below the folder that holds them all."""
    whole = {path: os.path.abspath(path) for path in paths}
    above = os.path.commonpath([os.path.dirname(path) for path in whole.values()])
    return {path: _printable(os.path.relpath(each, above)) for path, each in whole.items()}


def _printable(name: str | Path) -> str:
    """For people: names on Linux may hold bytes of no alphabet."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _looks(rows: list[dict[str, Any]], subject: "Subject") -> "Iterator[tuple[int, Look]]":
    """A look at each picture that can be read, with its place among the rows; the others get their `error`."""
    import numpy as np

    from patchword.core.picture import DecodeError
    from patchword.explanation.picture import look

    pixels: dict[int, np.ndarray] = {}
    for place, row in enumerate(rows):
        try:
            pixels[place] = fitted(Path(row["image"]), subject.model)
        except DecodeError as error:
            row["error"] = error.reason
    if pixels:
        yield from zip(pixels, look(subject.model, np.stack(list(pixels.values())), subject.wanted), strict=True)


def _answer(row: dict[str, Any], number: int, seen: "Look", subject: "Subject", folder: Path) -> None:
    """Write the files of a picture and complete its row."""
    import numpy as np

    from patchword.explanation.folder import write_look

    # A copy: a view would keep all maps of a picture for as long as its row.
    row["map"] = np.array(seen.chosen(subject.choice, seen.place(subject.wanted)))
    row["predictions"] = [{"label": name, "probability": share} for name, share in subject.says(seen.probabilities)]
    row["overlay"], row["arrays"] = write_look(folder, number, Path(row["image"]), seen, row["map"], subject.labels)


def _glance(other: "Subject", path: Path) -> "Beside | None":
    from patchword.core.picture import DecodeError

    try:
        return other.glance(fitted(path, other.model))
    except DecodeError:
        return None  # it could be read a moment ago
