"""Pictures that a model was surest of, wrongly and rightly, small enough to show."""

from typing import Any

import numpy as np
from PIL import Image

from patchword.core import encoding
from patchword.core.picture import DecodeError
from patchword.data.dataset import Split
from patchword.data.decoding.decode import decode
from patchword.evaluation.metrics import Predictions, softmax

_SIDE = 112
_SMALLEST_SIDE = 56


def confident_mistakes(
    predictions: Predictions, split: Split, classes: tuple[str, ...], most: int = 12
) -> list[dict[str, Any]]:
    """The worst mistakes, the most confident first.

    Of each its index in the split, `name`, `label`, `predicted`, `confidence` and `thumbnail` (a data URL; None for a picture
    that can no longer be read).
    """
    probabilities = softmax(predictions.logits)
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero((predicted != predictions.labels) & predictions.readable)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:most]
    return [_row(split, classes, i, predictions.labels[i], predicted[i], confidence[i]) for i in map(int, worst)]


def sure_hits(predictions: Predictions, split: Split, classes: tuple[str, ...], most: int = 6) -> list[dict[str, Any]]:
    """The most confident right answer of each class, the most confident first: rows as of `confident_mistakes`."""
    probabilities = softmax(predictions.logits)
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    right = np.flatnonzero((predicted == predictions.labels) & predictions.readable)
    right = right[np.argsort(-confidence[right], kind="stable")]
    _, first = np.unique(predicted[right], return_index=True)
    best = right[np.sort(first)][:most]
    return [_row(split, classes, i, predictions.labels[i], predicted[i], confidence[i]) for i in map(int, best)]


def _row(
    split: Split, classes: tuple[str, ...], index: int, label: int, predicted: int, confidence: float
) -> dict[str, Any]:
    try:
        shown = thumbnail(decode(split.read(index), 3))
    except DecodeError:
        shown = None
    return {
        "index": index,
        "name": split.name(index),
        "label": classes[label],
        "predicted": classes[predicted],
        "confidence": float(confidence),
        "thumbnail": shown,
    }


def thumbnail(pixels: np.ndarray) -> str:
    """uint8 h×w×3 → a JPEG of at most 112 pixels as a data URL; tiny pictures are enlarged with their pixels visible."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((_SIDE, _SIDE))
    if max(picture.size) < _SMALLEST_SIDE:
        factor = _SIDE // max(picture.size)
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    return encoding.data_url(encoding.jpeg(np.asarray(picture)))
