"""What a model looks at → its page. What the page says is decided here; how it looks and what it answers is in `templates/`."""

import base64
import dataclasses
import functools
import hashlib
import importlib.resources
import json
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from patchword.core import encoding
from patchword.core.files import write_text
from patchword.core.runtime import versions
from patchword.explanation import overlay
from patchword.explanation.facts import Facts
from patchword.explanation.known import Atlas, Neighbour
from patchword.explanation.maps import Choice
from patchword.explanation.picture import Look
from patchword.explanation.subject import Beside, Subject
from patchword.reports import figures, page
from patchword.reports.mosaics import filter_mosaic, position_mosaic
from patchword.reports.packing import as_base64, packed, packed_between, script_data
from patchword.reports.truth import truth_of

_LARGEST_SIDE = 448  # of a picture on the page; the files beside it have the model's own size
_ALIKE = {
    "relative": "the keys with which it meets all tokens are to those of all others",
    "rope": "its queries and keys are turned to those of all others",
}
"""What of two patches is compared where none has an embedding."""


@dataclasses.dataclass(frozen=True)
class Shown:
    """One picture of the page."""

    name: str
    look: Look
    beside: Beside | None = None
    neighbours: tuple[Neighbour, ...] = ()


def page_name(number: int) -> str:
    """Of the page with this number, from 0."""
    return "report.html" if number == 0 else f"report-{number + 1}.html"


def write_page(
    folder: Path,
    subject: Subject,
    shown: list[Shown],
    unreadable: list[tuple[str, str]],
    facts: Facts | None = None,
    *,
    number: int = 0,
    count: int = 1,
    command: list[str] | None = None,
) -> Path:
    """Write page `number` of `count` and return its path.

    `unreadable` are names of pictures with the reason; `command` are the words that repeat it all, told where
    there are `facts`.
    """
    headline = Markup("Where <strong>{}</strong> looks on {}: {}.")
    headline = headline.format(subject.model.name, page.count(len(shown), "picture"), subject.words)
    if not shown:
        headline = Markup("None of the pictures of this page can be explained.")
    script = _script()
    content = page.render(
        "explain.html.j2",
        title=f"{subject.source or subject.model.name} explained",
        description=headline.striptags(),
        headline=headline,
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        shades=Markup(", ".join(f"rgb({r} {g} {b})" for r, g, b in overlay.palette(7).tolist())),
        map_words=subject.words,
        asker=subject.asker,
        pictures=[_picture(each, subject) for each in shown],
        unreadable=[{"name": name, "reason": reason} for name, reason in unreadable],
        truth=truth_of(facts.truth, subject.choice) if facts is not None and facts.truth else None,
        facts=None if facts is None else _facts(facts),
        pages=[{"name": page_name(i), "number": i + 1, "here": i == number} for i in range(count)] if count > 1 else [],
        command=command,
        version=versions()["patchword"],
    )
    write_text(folder / page_name(number), content)
    return folder / page_name(number)


@functools.cache
def _script() -> str:
    """The page's program with its palette; its hash stands in the content policy, so that nothing else runs."""
    source = importlib.resources.files("patchword.reports").joinpath("templates/explain.js").read_text("utf-8")
    return source.replace("PALETTE", json.dumps(as_base64(overlay.palette()))).strip()


def _picture(shown: Shown, subject: Subject) -> dict[str, Any]:
    look, choice = shown.look, subject.choice
    place = look.place(subject.wanted)
    height, width = overlay.shown(look.pixels).shape[:2]
    scale = min(1.0, _LARGEST_SIDE / max(height, width))
    height, width = round(height * scale), round(width * scale)
    source = encoding.data_url(_source(look.pixels, (height, width)))
    drawn = np.asarray(
        Image.fromarray(overlay.overlay(look.pixels, look.chosen(choice, place))).resize((width, height))
    )
    names = [subject.labels[i] for i in look.classes]
    layers, depth = look.heads, 0 if look.heads is None else len(look.heads)
    if layers is not None and look.probe is not None:
        layers = np.concatenate([layers, look.probe[None]])
    attends = layers is not None
    grid = look.rollouts.shape[1:] if look.rollouts is not None else None
    data = {
        "width": width,
        "height": height,
        "grid": grid,
        "asker": subject.asker,
        "layer_asker": subject.layer_asker,
        "names": names,
        "start": {
            "map": f"{choice.kind}:{place}" if choice.for_class else choice.kind,
            "layer": _first_layer(choice, depth),
            "head": -1 if choice.head is None else choice.head,
        },
        "rollouts": packed(look.rollouts),
        "heads": packed(layers),
        "classes": packed(look.for_classes),
        "gradcam": packed(look.gradcam),
        "between": packed_between(look.between),
    }
    return {
        "name": shown.name,
        "says": subject.says(look.probabilities),
        "picture": source,
        "overlay": encoding.data_url(encoding.jpeg(drawn)),
        "width": width,
        "height": height,
        "data": script_data(data),
        "attends": attends,
        "layers": 0 if layers is None else len(layers),
        "heads": 0 if layers is None else layers.shape[1],
        "together": look.between is not None and grid is not None and look.between.shape[2:] != grid,
        "for_classes": names if look.for_classes is not None else [],
        "gradcam": names if look.gradcam is not None else [],
        "colours": None
        if look.colours is None or look.colours.shape[:2] == (1, 1)  # one place is like nothing
        else encoding.data_url(encoding.png((255 * look.colours).astype(np.uint8))),
        "beside": None if shown.beside is None else _beside(shown.beside),
        "neighbours": shown.neighbours,
    }


def _first_layer(choice: Choice, depth: int) -> int:
    """Where the slider begins; attention pooling comes after the layers."""
    if choice.kind != "attention":
        return max(depth - 1, 0)
    return depth if choice.layer == "pool" else choice.layer


def _beside(beside: Beside) -> dict[str, Any]:
    picture = encoding.data_url(encoding.jpeg(beside.overlay))
    return {**vars(beside), "overlay": picture}


def _source(pixels: np.ndarray, size: tuple[int, int]) -> bytes:
    """The picture as it is embedded: a small one exactly as the model gets it, a large one as a JPEG."""
    rgb = np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
    if max(size) > max(pixels.shape[:2]):
        return encoding.png(rgb)
    return encoding.jpeg(np.asarray(Image.fromarray(rgb).resize((size[1], size[0]))))


def _facts(facts: Facts) -> dict[str, Any]:
    heads = facts.heads
    one_layer = heads is not None and len(heads.distance) == 1
    distance, entropy = facts.even
    return {
        "one_layer": _one_layer(facts) if one_layer else None,
        "distance": None
        if heads is None or one_layer
        else figures.head_scatter(heads.distance.tolist(), "attention distance", distance),
        "entropy": None
        if heads is None or one_layer
        else figures.head_scatter(heads.entropy.tolist(), "attention entropy", entropy),
        "filters": None if facts.filters is None else filter_mosaic(facts.filters),
        "explained": None if facts.explained is None else float(facts.explained.sum()),
        "projection": facts.projection,
        "positions": None if facts.positions is None else position_mosaic(facts.positions),
        "alike": _ALIKE.get(facts.position, "its position embedding is to those of all others"),
        "atlas": None if facts.atlas is None else _atlas(facts.atlas),
    }


def _one_layer(facts: Facts) -> str:
    """What a chart of one column would show."""
    assert facts.heads is not None
    count, (distance, entropy) = facts.heads.distance.size, facts.even
    return (
        f"Averaged over the pictures of this page, the only layer's {page.count(count, 'head')} "
        f"{'looks' if count == 1 else 'look'} {_from_to(facts.heads.distance)} pixels far "
        f"({distance:.1f} where attention goes to all patches alike); the entropy is {_from_to(facts.heads.entropy)} bits "
        f"({entropy:.1f} where it goes to all tokens alike, 0 to one alone)."
    )


def _from_to(values: np.ndarray) -> str:
    low, high = f"{values.min():.1f}", f"{values.max():.1f}"
    return low if low == high else f"{low} to {high}"


def _atlas(atlas: Atlas) -> dict[str, Any]:
    return {"url": encoding.data_url(encoding.webp(atlas.picture)), "data": atlas.data, "explained": atlas.explained}
