"""What a model answered to each picture, as a table beside its figures: two models are compared picture by picture.

`picture, label, predicted, confidence`, a line a picture, in the order of the split. A picture that could not be read has no
prediction, and counts as wrong.
"""

import csv
import dataclasses
import io
from pathlib import Path

import numpy as np

from patchword.core import files
from patchword.core.errors import DataError
from patchword.data.dataset import Split
from patchword.evaluation.metrics import Predictions, softmax

_FIELDS = ("picture", "label", "predicted", "confidence")


@dataclasses.dataclass(frozen=True)
class Answers:
    """The table, n rows."""

    pictures: tuple[str, ...]
    labels: tuple[str, ...]
    predicted: tuple[str | None, ...]
    """None: the picture could not be read."""
    confidence: np.ndarray
    """float64 n: the share given to the predicted class."""

    @property
    def right(self) -> np.ndarray:
        """bool n."""
        return np.array([said == true for said, true in zip(self.predicted, self.labels, strict=True)], dtype=bool)


def answers_of(predictions: Predictions, split: Split, classes: tuple[str, ...]) -> Answers:
    """The answers to a split of one label a picture."""
    shares, readable = softmax(predictions.logits), predictions.readable
    best = shares.argmax(axis=1)
    return Answers(
        tuple(split.name(index) for index in range(len(split))),
        tuple(classes[label] for label in predictions.labels),
        tuple(classes[label] if there else None for label, there in zip(best, readable, strict=True)),
        np.where(readable, shares.max(axis=1), 0.0),
    )


def write_answers(path: Path, answers: Answers) -> None:
    """Write the table, whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_FIELDS)
    rows = zip(answers.pictures, answers.labels, answers.predicted, answers.confidence, strict=True)
    for picture, label, predicted, confidence in rows:
        said = ("", "") if predicted is None else (predicted, f"{confidence:.6f}")
        writer.writerow((picture, label, *said))
    files.write_text(path, text.getvalue())


def read_answers(path: Path) -> Answers:
    """The table again; a class without a name is no prediction. Raises `DataError` where it is none that we wrote."""
    files.check_regular(path)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file, strict=True)
        if tuple(header) != _FIELDS or not all(len(row) == len(_FIELDS) for row in rows):
            raise ValueError(f"its columns are not {', '.join(_FIELDS)}")
        confidence = np.array([float(row[3] or 0) for row in rows])
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} is no table of answers ({error})") from error
    pictures, labels, predicted = (tuple(row[place] for row in rows) for place in range(3))
    return Answers(pictures, labels, tuple(said or None for said in predicted), confidence)
