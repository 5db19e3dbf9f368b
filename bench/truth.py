"""`make truth-study`: whether the maps of small models are true, on 64 drawn pictures with known objects and 64 test pictures.

The models are those that come with the package, one that has learned to name shapes, and four that are trained here on DATA=…
(a folder of photographs; $PATCHWORD_DATA/clothing if there is one), ordinary run folders below OUT=runs/truth: what is done is
not done again. All figures go to OUT/truth.json, the tables to docs/explain.md.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import patchword as pw
from bench.page import ROOT, last_day, put, table
from bench.transfer import sets
from bench.wishes import answered
from patchword.core import files
from patchword.core.errors import DataError
from patchword.data.dataset import Split
from patchword.data.decoding.decode import decode
from patchword.data.sources import open_data
from patchword.explanation.faithfulness import Figure, check, known_objects
from patchword.explanation.maps import Choice, Kind, as_images, named
from patchword.models.contract import Model
from patchword.reports.page import decimal
from patchword.weights.io import load_model

PAGE, MARK = ROOT / "docs/explain.md", "truth"
PICTURES = 64
TABLES = (("energy", "pointing"), ("deletion", "insertion"), ("flip", "shift"))
TRAINED = {
    "bit": {"model": "BiT-R14x0.5", "init": "none", "image_size": 64, "steps": 403},
    "efficientnet": {"model": "EfficientNet-B0", "init": "none", "image_size": 64, "steps": 116},
    "hybrid": {"init": "shipped:small-hybrid", "image_size": 64, "epochs": 15, "set": ["optimizer.lr=1e-3"]},
    "vit": {"image_size": 64, "epochs": 20, "set": ["model.patch_size=8", "optimizer.lr=1e-3"]},
}
"""What `train` is asked for, on photographs; `vit` begins with one that has learned on CIFAR-10."""
ROWS: tuple[tuple[str, str, tuple[Kind, ...]], ...] = (
    ("ViT of 70,000 parameters", str(ROOT / "tests/fixtures/shapes-vit"), ("rollout", "class")),
    ("`shipped:small-plain`", "shipped:small-plain", ("rollout", "class")),
    ("`shipped:small-hybrid`", "shipped:small-hybrid", ("rollout", "class", "gradcam")),
    ("ViT-At/8", "vit", ("rollout", "class")),
    ("C3+ViT-Fe/8", "hybrid", ("rollout", "class", "gradcam")),
    ("BiT-R14x0.5", "bit", ("gradcam",)),
    ("EfficientNet-B0", "efficientnet", ("gradcam",)),
)
"""Name, weights, and kinds of map."""


def main() -> None:
    """Train what is not there, measure, print and publish the tables."""
    out, photographs = Path(os.environ.get("OUT", "runs/truth")), sets().get("clothing")
    if photographs is None:
        raise DataError(
            "DATA names no folder of photographs, nor is there $PATCHWORD_DATA/clothing; one of them is needed"
        )
    rows: list[tuple[str, str, list[Figure]]] = []
    for name, source, kinds in ROWS:
        if source in TRAINED:
            folder = trained(out, source, photographs)
            model, data = load_model(folder), photographs
            name = f"{name}, {100 * files.read_json(folder / 'result.json')['accuracy']:.0f} %"
        else:
            model, data = load_model(source), "cifar10" if source.startswith("shipped:") else ""
        images = as_images(model, some_pictures(model, data))
        objects = known_objects(model.image_size, model.in_channels)
        for kind in kinds:
            figures = check(model, Choice(kind), images, named(model, images), objects)
            rows.append((name, Choice(kind).words, figures))
            print(name, *(f"{each.name} {each.value:.2f}" for each in figures), flush=True)
    files.write_json(out / "truth.json", [told(*row) for row in rows])
    publish(rows, last_day(out))


def trained(out: Path, name: str, data: str) -> Path:
    """The run folder of one of `TRAINED`."""
    asked = dict(TRAINED[name])
    if name == "vit":
        asked["init"] = pw.train(
            "cifar10",
            recipe="speedrun/plain-0.02",
            pflop=0.005,
            init="none",
            set=["model.pool=token"],
            out=out / "cifar",
        )
    return pw.train(data, out=out / name, **asked)


def some_pictures(model: Model, data: str) -> np.ndarray:
    """uint8 64×H×W×C: as many test pictures of a data set, evenly spread; drawn ones of 16 classes where it is none."""
    if not data:
        return known_objects(model.image_size, model.in_channels, classes=16, each=PICTURES // 16)[0]
    split: Split = open_data(data).splits["test"]
    places = np.linspace(0, len(split) - 1, PICTURES).round().astype(int)
    return np.stack([model.preprocessing.fit(decode(split.read(int(place)), model.in_channels)) for place in places])


def told(name: str, words: str, figures: Sequence[Figure]) -> dict[str, Any]:
    """A row with everything that was measured."""
    return {"model": name, "map": words, "figures": [figure.to_dict() for figure in figures]}


def publish(rows: Sequence[tuple[str, str, list[Figure]]], day: str) -> None:
    """Put the tables into the page."""
    text = f"`make truth-study` of {day}, n = {PICTURES}; bold is what beats every control:\n\n"
    for pair in TABLES:
        first = {figure.name: figure for figure in rows[0][2]}
        heads = [head for name in pair for head in (name, *first[name].rivals)]
        words = {"centre": "middle", "others": "another's"}
        columns = ("model", "map", *(words.get(head, head) for head in heads))
        text += table(columns, (line(*row, pair) for row in rows)) + "\n"
    put(PAGE, MARK, text.rstrip("\n") + "\n")


def line(name: str, words: str, figures: Sequence[Figure], pair: Sequence[str]) -> str:
    """A row of one table."""
    cells = [name, words]
    for figure in figures:
        if figure.name in pair:
            own = decimal(figure.value, 2)
            cells.append(f"**{own}**" if all(figure.beats(control) for control in figure.rivals) else own)
            cells.extend(decimal(figure.control(control), 2) for control in figure.rivals)
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    answered(main)
