"""The pictures that a model got wrong with the greatest confidence, small enough to show."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from patchword.data.dataset import Split
from patchword.data.decode import decode
from patchword.evaluation.metrics import Predictions, softmax

_SIDE = 112
_SMALLEST_SIDE = 56


def confident_mistakes(
    predictions: Predictions, split: Split, classes: tuple[str, ...], most: int = 12
) -> list[dict[str, Any]]:
    """Name, label, prediction, confidence and thumbnail (a data URL) of the worst mistakes, the most confident first."""
    probabilities = softmax(predictions.logits)
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero((predicted != predictions.labels) & predictions.readable)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:most]
    return [
        {
            "name": split.name(i),
            "label": classes[predictions.labels[i]],
            "predicted": classes[predicted[i]],
            "confidence": float(confidence[i]),
            "thumbnail": thumbnail(decode(split.read(i), 3)),
        }
        for i in map(int, worst)
    ]


def thumbnail(pixels: np.ndarray) -> str:
    """uint8 h×w×3 → a JPEG of at most 112 pixels as a data URL; tiny pictures are enlarged with their pixels visible."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((_SIDE, _SIDE))
    if max(picture.size) < _SMALLEST_SIDE:
        factor = _SIDE // max(picture.size)
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
