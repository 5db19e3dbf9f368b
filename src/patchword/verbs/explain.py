"""`patchword explain`: a saved model, some pictures → where it looks on each, as pictures, arrays and a page."""

import dataclasses
import functools
import io
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from patchword.core.errors import UsageError, nearest
from patchword.verbs.options import Images, LayerName, ModelSource, Name, OtherData, OtherModel, Target, Whole, argument
from patchword.verbs.pictures import fitted, picture_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np

    from patchword.core.progress import Progress
    from patchword.explanation.attention import Layer
    from patchword.explanation.facts import Facts
    from patchword.explanation.known import KnownPictures
    from patchword.explanation.maps import Choice
    from patchword.explanation.picture import Look
    from patchword.models.contract import Model
    from patchword.reports.explain import Beside, Says, Shown, Subject

_CHECK = "check.json"
_PER_PAGE = 8
_SAID = 5
_LONGEST_STEM = 40  # signs of up to four bytes: a name has 255, and one that is being written some more


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

    For each picture `image`, `predictions`, `map` (h×w), `overlay`, `arrays` and `page` are returned. A picture that cannot be
    read gets an `error` and its `page`, which tells it, too; the others are explained all the same.

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
    from patchword.core.runtime import versions
    from patchword.explanation import faithfulness, maps
    from patchword.explanation.known import KnownPictures
    from patchword.reports import explain as pages
    from patchword.weights.io import as_model

    paths = picture_files(images)
    loaded = as_model(model)
    subject = _subject(loaded, maps.choose(loaded, map, _layer(layer), head, for_class=label is not None))
    wanted = None if label is None else _class_named(loaded, subject.labels, str(label))
    folder = Path(out) if out is not None else Path("explained") / _folder_name(model, loaded)
    _check_folder(folder)
    other = None if beside is None else _Other(beside, None if label is None else str(label))
    known = None if data is None else KnownPictures(loaded, str(data))
    asked = _Asked(loaded, subject, wanted, other, known, folder)
    _remove_older(folder)
    rows: list[dict[str, Any]] = [{"image": str(path)} for path in paths]
    count = -(-len(rows) // _PER_PAGE)
    checks = faithfulness.steps(min(_PER_PAGE, len(rows))) if check else 0
    with Progress("explaining", len(rows) + checks) as progress:
        for number in range(count):
            first, last = number * _PER_PAGE, min((number + 1) * _PER_PAGE, len(rows))
            for row in rows[first:last]:
                row["page"] = folder / pages.page_name(number)
            shown: list[Shown] = []
            for place, seen in asked.looks(rows[first:last]):
                shown.append(asked.answer(rows[first + place], first + place + 1, seen))
                progress.update(first + place + 1 + (checks if number else 0))
            facts = None
            if number == 0:
                tell = functools.partial(_tell_check, progress, last) if check else None
                facts = asked.facts([each.look for each in shown], tell)
            bad = [(_name(row), row["error"]) for row in rows[first:last] if "error" in row]
            pages.write_page(
                folder, subject, shown, bad, facts, number=number, count=count, version=versions()["patchword"]
            )
            progress.update(last + checks)
    return rows


def show(rows: list[dict[str, Any]]) -> str:
    """A line for each picture, and where the pages are."""
    lines = []
    for row in rows:
        if "error" in row:
            lines.append(f"{row['image']}: {row['error']}")
            continue
        answers = "  ".join(f"{each['label']} {100 * each['probability']:.1f} %" for each in row["predictions"][:_SAID])
        lines.append(f"{row['image']}: {answers or 'no head, no label'}  → {row['overlay']}")
    pages = dict.fromkeys(str(row["page"]) for row in rows if "page" in row)
    return "\n".join([*lines, *(f"page: {page}" for page in pages)])


def _check_folder(folder: Path) -> None:
    """Raises `UsageError` for one that cannot be written to without loss."""
    from patchword.studies.grid import SETTINGS
    from patchword.training.run_folder import RECIPE

    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {folder} is a file; a folder is right")
    for what, mark in (("run", RECIPE), ("study", SETTINGS)):
        if (folder / mark).exists():
            raise UsageError(
                f"--out {folder} holds a {what}, whose report.html would be lost; a folder of its own is right"
            )


def _remove_older(folder: Path) -> None:
    """What would speak of other pictures or another model: further pages and the check of an earlier call."""
    for path in [*folder.glob("report-*.html"), folder / _CHECK]:
        if path.name == _CHECK or re.fullmatch(r"report-[0-9]+\.html", path.name):
            path.unlink(missing_ok=True)


def _layer(layer: str | int | None) -> "Layer | None":
    """A number, or `pool`; what the command line gives is a word."""
    if layer is None or isinstance(layer, int) or layer == "pool":
        return layer  # pyright: ignore[reportReturnType] (a literal that has just been compared)
    if not re.fullmatch(r"[0-9]{1,9}", layer):
        raise UsageError(f"--layer {layer!r} is not a whole number from 0, or pool")
    return int(layer)


def _subject(model: "Model", choice: "Choice") -> "Subject":
    from patchword.explanation.attention import asker
    from patchword.models.vit import ViT
    from patchword.reports.explain import Subject

    labels = model.labels or tuple(str(i) for i in range(model.num_classes))
    if not isinstance(model, ViT):
        return Subject(model.name, labels, choice)
    who = asker(model)
    return Subject(model.name, labels, choice, who, who if model.config.pool == "token" else "the mean patch")


def _class_named(model: "Model", labels: tuple[str, ...], label: str) -> int:
    if not labels:
        raise UsageError(f"{model.name} has no head, so it knows no {label!r}")
    if label not in labels:
        raise UsageError(f"{model.name} knows no class {label!r}; {nearest(label, labels)}")
    return labels.index(label)


def _folder_name(source: ModelSource, model: "Model") -> str:
    """Of the folder or file that the model comes from, else its own name."""
    name = Path(str(source)).name if isinstance(source, str | Path) else model.name
    return re.sub(r"[^\w.+-]+", "-", name).strip(".-") or "model"


def _tell_check(progress: "Progress", explained: int, done: int, total: int) -> None:
    progress.update(explained + done, f"checking {done}/{total}")


def _name(row: dict[str, Any]) -> str:
    """Of the picture, for people; names on Linux may hold bytes of no alphabet."""
    return os.fsencode(Path(row["image"]).name).decode("utf-8", "backslashreplace")


@dataclasses.dataclass(frozen=True)
class _Asked:
    """What is asked about each picture, and the folder for the answers."""

    model: "Model"
    subject: "Subject"
    wanted: int | None
    """The class that maps are for; None: the likeliest."""
    other: "_Other | None"
    known: "KnownPictures | None"
    folder: Path

    def looks(self, rows: list[dict[str, Any]]) -> "Iterator[tuple[int, Look]]":
        """A look at each picture that can be read, with its place among the rows; the others get their `error`."""
        import numpy as np

        from patchword.core.picture import DecodeError
        from patchword.explanation.picture import look

        pixels: dict[int, np.ndarray] = {}
        for place, row in enumerate(rows):
            try:
                pixels[place] = fitted(Path(row["image"]), self.model)
            except DecodeError as error:
                row["error"] = error.reason
        if pixels:
            yield from zip(pixels, look(self.model, np.stack(list(pixels.values())), self.wanted), strict=True)

    def answer(self, row: dict[str, Any], number: int, seen: "Look") -> "Shown":
        """Write the files of a picture, complete its row, and give what its page shows."""
        import numpy as np

        from patchword.core import files
        from patchword.explanation import overlay
        from patchword.reports.explain import Shown

        labels, path, place = self.subject.labels, Path(row["image"]), seen.place(self.wanted)
        # A copy: a view would keep all maps of a picture for as long as its row.
        chosen = np.array(seen.chosen(self.subject.choice, place))
        stem = f"{number:03d}-{path.stem[:_LONGEST_STEM]}"
        overlaid, arrays = self.folder / f"{stem}.png", self.folder / f"{stem}.npz"
        files.write_bytes(overlaid, overlay.png(overlay.overlay(seen.pixels, chosen)))
        buffer = io.BytesIO()
        named = np.array([labels[i] for i in seen.classes])
        np.savez_compressed(buffer, allow_pickle=False, map=chosen, labels=named, **seen.arrays())
        files.write_bytes(arrays, buffer.getvalue())
        says = _says(seen.probabilities, labels)
        row |= {
            "predictions": [{"label": name, "probability": share} for name, share in says],
            "map": chosen,
            "overlay": overlaid,
            "arrays": arrays,
        }
        return Shown(
            name=_name(row),
            look=seen,
            map=chosen,
            place=place,
            says=says,
            beside=None if self.other is None else self.other.see(path),
            neighbours=() if self.known is None else self.known.near(seen),
        )

    def facts(self, looks: "list[Look]", tell: "Callable[[int, int], None] | None") -> "Facts":
        """What is true of the model; whether its maps are true is written down where there is somebody to `tell`."""
        from patchword.core import files
        from patchword.explanation.facts import facts_of

        facts = facts_of(self.model, self.subject.choice, looks, self.wanted, self.known, tell)
        if facts.truth:
            figures = [figure.to_dict() for figure in facts.truth]
            files.write_json(self.folder / _CHECK, {"map": self.subject.choice.words, "figures": figures})
        return facts


class _Other:
    """A second model beside the first."""

    def __init__(self, source: "str | Path | Model", label: str | None) -> None:
        from patchword.explanation.maps import choose
        from patchword.weights.io import as_model

        self.model = as_model(source)
        self.subject = _subject(self.model, choose(self.model))
        self.wanted = None
        if label is not None and label in self.subject.labels:
            self.subject = _subject(self.model, choose(self.model, for_class=True))
            self.wanted = self.subject.labels.index(label)

    def see(self, path: Path) -> "Beside | None":
        """What it makes of a picture."""
        import numpy as np
        import torch

        from patchword.core.picture import DecodeError
        from patchword.evaluation.predict import check_finite
        from patchword.explanation.maps import as_images
        from patchword.explanation.overlay import overlay
        from patchword.reports.explain import Beside

        model = self.model
        try:
            pixels = fitted(path, model)
        except DecodeError:
            return None  # it could be read a moment ago
        image = as_images(model, pixels[None])
        with torch.inference_mode():
            shares = model.probabilities(image)[0].float().cpu().numpy() if model.num_classes else np.zeros(0)
        check_finite(model, shares)
        says = _says(shares, self.subject.labels)
        words, classes = self.subject.choice.words, None
        if self.wanted is not None:
            words, classes = f"{words} for {self.subject.labels[self.wanted]}", torch.tensor([self.wanted])
        drawn = overlay(pixels, self.subject.choice.of(model, image, classes)[0].cpu().numpy())
        return Beside(model.name, words, says, drawn)


def _says(shares: "np.ndarray", labels: tuple[str, ...]) -> "Says":
    """The likeliest classes and their shares."""
    order = (-shares).argsort(kind="stable")[:_SAID]
    return [(labels[i], float(shares[i])) for i in order.tolist()]
