"""The page beside a model's weights: what the model is, what it takes and gives, where it comes from, how to load it."""

import json
import re
from typing import Any

from patchword.models.contract import Model

_MOST_LABELS = 50


def card(model: Model) -> str:
    """Plain Markdown, the same for the same model. What came from outside stands in code spans, where nothing is markup."""
    height, width = model.image_size
    colours = "grey" if model.in_channels == 1 else "RGB"
    outputs = (
        f"{model.num_classes:,} logits" if model.num_classes else f"{model.num_features:,} features; it has no head"
    )
    lines = [
        f"# {code(model.name)}",
        "",
        "This page says what the files beside it say, and no more.",
        "",
        "## Architecture",
        "",
        f"- family: {code(model.family)}",
        f"- parameters: {parameters(model):,}",
        f"- input: {colours} images, {height}×{width} pixels",
        f"- output: {outputs}",
        *(f"- {name}: {code(value)}" for name, value in fields(model).items()),
        "",
        "## Labels",
        "",
        *_labels(model),
        "",
        "## Preprocessing",
        "",
        *(f"- {name}: {code(value)}" for name, value in model.preprocessing.to_dict().items()),
        "",
        "## Where the weights come from",
        "",
        *_provenance(model.provenance),
        "",
        "## Loading",
        "",
        "```python",
        "import patchword as pw",
        "from PIL import Image",
        "",
        'model = pw.load_model("path/to/this/folder")',
        'logits = model(model.preprocess(Image.open("picture.jpg")))',
        "```",
    ]
    return "\n".join(lines) + "\n"


def parameters(model: Model) -> int:
    """How many numbers training changes."""
    return sum(parameter.numel() for parameter in model.parameters())


def fields(model: Model) -> dict[str, Any]:
    """The configuration, by the names of its fields: what `name`, `family` and the number of classes leave open."""
    left_out = ("family", "name", "num_classes")
    return {field: value for field, value in model.architecture.items() if field not in left_out}


def code(value: Any) -> str:
    """`value` as a Markdown code span on one line, whatever is in it."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = "".join(sign if sign.isprintable() else "\ufffd" for sign in " ".join(text.split()))
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    space = " " if not text or text[0] in "` " or text[-1] in "` " else ""
    return f"{fence}{space}{text}{space}{fence}"


def _labels(model: Model) -> list[str]:
    if model.labels is None:
        return ["The outputs have no names." if model.num_classes else "The model gives features, not classes."]
    shown = ", ".join(code(label) for label in model.labels[:_MOST_LABELS])
    left = len(model.labels) - _MOST_LABELS
    return [shown + (f", and {left:,} more in `model.json`" if left > 0 else "")]


def _provenance(provenance: dict[str, Any]) -> list[str]:
    lines = [f"- {code(name)}: {code(value)}" for name, value in provenance.items() if name != "pictures_seen"]
    if seen := provenance.get("pictures_seen"):
        lines.append(
            f"- `pictures_seen`: {len(seen):,} hashes in `model.json`, by which `evaluate` knows pictures that it learned from"
        )
    return lines or ["Nothing is known of it."]
