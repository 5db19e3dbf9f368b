"""Exact counts of what a model got right, with intervals; one dictionary that JSON holds and the report shows.

Letters: n pictures, K classes or labels.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from patchword.evaluation.intervals import wilson_interval

_IMBALANCED = 1.5
_BINS = 15
_LARGEST_CONFUSION = 1000
_RESAMPLES = 300


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a model said of every picture of a split, in order."""

    logits: np.ndarray
    """float32 n×K; rows of pictures that could not be decoded are zero and never read."""
    labels: np.ndarray
    """int64 n, or n×K of 0 and 1 for several labels a picture."""
    unreadable: dict[int, str]
    """Index → reason. These pictures stay in every denominator: a picture that cannot be read is not recognised."""

    @property
    def readable(self) -> np.ndarray:
        """bool n."""
        mask = np.ones(len(self.labels), dtype=bool)
        mask[list(self.unreadable)] = False
        return mask


def measure(
    predictions: Predictions, classes: tuple[str, ...], *, interval: bool = True, one_answer: bool = False
) -> dict[str, Any]:
    """All figures of a split: see `docs/architecture.md` for the fields of `evaluation.json`.

    Where pictures have several labels, each of them is a question of its own, unless `one_answer` says that the model gives
    one for each picture. Without `interval` the bootstrap of several questions, which takes most of the time, is left out.
    """
    if predictions.labels.ndim == 1:
        figures = _measure_one(predictions, classes)
    elif one_answer:
        figures = _measure_right_answers(predictions)
    else:
        figures = _measure_several(predictions, classes, interval)
    return {"n": len(predictions.labels), **figures}


def balanced_accuracy(correct: np.ndarray, n: np.ndarray) -> dict[str, Any]:
    """The mean of the classes' recalls, every class counting alike, with its 95 % interval: `value` and `ci95`.

    `correct` and `n` are K counts; a class without a picture does not count. The interval is put together of Wilson's for
    the classes (Zou and Donner 2008), which is right for classes with a handful of pictures, too.
    """
    there = np.flatnonzero(n)
    recalls = correct[there] / n[there]
    bounds = np.array([wilson_interval(int(correct[i]), int(n[i])) for i in there]).reshape(-1, 2)
    if not len(there):
        return {"value": 0.0, "ci95": [0.0, 1.0]}
    value = float(recalls.mean())
    down, up = (float(np.linalg.norm(bounds[:, side] - recalls)) / len(there) for side in (0, 1))
    return {"value": value, "ci95": [max(0.0, value - down), min(1.0, value + up)]}


def imbalanced(classes: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the largest class is so much larger than the smallest that accuracy alone says little of the small ones."""
    counts = [row["n"] for row in classes if row["n"]]
    return bool(counts) and max(counts) >= _IMBALANCED * min(counts)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities in float64, n×K."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def average_precision(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The area under precision against recall as a step function; ties are one step. NaN without a positive.

    `scores` and `truth` (0 and 1) have n entries; `weights` counts each picture so many times.
    """
    counts = np.ones(len(scores)) if weights is None else weights
    order = np.argsort(-scores, kind="stable")
    scores, hits, counts = scores[order], (truth * counts)[order], counts[order]
    positives = hits.sum()
    if positives == 0:
        return math.nan
    last_of_tie = np.append(np.diff(scores) != 0, True)
    found, seen = np.cumsum(hits)[last_of_tie], np.cumsum(counts)[last_of_tie]
    precision = found / np.maximum(seen, 1e-300)
    return float(np.sum(np.diff(found, prepend=0.0) * precision) / positives)


def _measure_one(predictions: Predictions, classes: tuple[str, ...]) -> dict[str, Any]:
    n, k = len(predictions.labels), len(classes)
    readable = predictions.readable
    labels, logits = predictions.labels[readable], predictions.logits[readable]
    probabilities = softmax(logits)
    predicted = logits.argmax(axis=1)
    confusion = np.zeros((k, k), dtype=np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    correct = int(np.trace(confusion))
    per_class = np.bincount(predictions.labels, minlength=k)
    figures: dict[str, Any] = {
        "metric": "accuracy",
        "correct": correct,
        "value": correct / n,
        "value_ci95": wilson_interval(correct, n),
        "loss": float(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-300)).mean())
        if len(labels)
        else None,
        "balanced": balanced_accuracy(confusion.diagonal(), per_class),
        "majority": int(per_class.max()) / n,
        "top5": None,
        "classes": _per_class(confusion, per_class, classes),
        "confusion": confusion.tolist() if k <= _LARGEST_CONFUSION else None,
        "calibration": calibration(probabilities.max(axis=1), predicted == labels),
    }
    if k > 5:
        # A label is among the five when fewer than five others come before it; of equals the first does, as in argmax.
        own = logits[np.arange(len(labels)), labels][:, None]
        before = (logits > own) | ((logits == own) & (np.arange(k) < labels[:, None]))
        within = int((before.sum(axis=1) < 5).sum())
        figures["top5"] = {"correct": within, "value": within / n, "ci95": wilson_interval(within, n)}
    return figures


def _measure_right_answers(predictions: Predictions) -> dict[str, Any]:
    """The share of pictures whose first answer is one of their labels (Beyer et al., arXiv 2006.07159: ReaL).

    Pictures without a label are left out, as there: nobody knows what would be right.
    """
    labelled = predictions.labels.max(axis=1) > 0
    n = int(labelled.sum())
    right = predictions.labels[np.arange(len(labelled)), predictions.logits.argmax(axis=1)] > 0
    correct = int((right & predictions.readable).sum())
    return {
        "metric": "real_accuracy",
        "n": n,
        "unlabelled": len(labelled) - n,
        "correct": correct,
        "value": correct / n if n else 0.0,
        "value_ci95": wilson_interval(correct, n),
    }


def _per_class(confusion: np.ndarray, per_class: np.ndarray, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    rows = []
    for i, name in enumerate(classes):
        correct, said, n = int(confusion[i, i]), int(confusion[:, i].sum()), int(per_class[i])
        rows.append({"name": name, "n": n, "correct": correct, "predicted": said, **_f1(correct, said, n)})
    return rows


def _f1(correct: int, said: int, n: int) -> dict[str, float | None]:
    """Precision, recall and their harmonic mean; None where nothing was said or nothing was there."""
    return {
        "precision": correct / said if said else None,
        "recall": correct / n if n else None,
        "f1": 2 * correct / (said + n) if said + n else None,
    }


def calibration(confidence: np.ndarray, right: np.ndarray, bins: int = _BINS) -> dict[str, Any]:
    """Expected calibration error over equal-width bins (Guo et al. 2017), and the bins of the reliability diagram."""
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    rows, error = [], 0.0
    for i in range(bins):
        members = place == i
        count = int(members.sum())
        mean_confidence = float(confidence[members].mean()) if count else None
        accuracy = float(right[members].mean()) if count else None
        if mean_confidence is not None and accuracy is not None:
            error += count / len(confidence) * abs(mean_confidence - accuracy)
        low, high = i / bins, (i + 1) / bins
        rows.append({"low": low, "high": high, "n": count, "confidence": mean_confidence, "accuracy": accuracy})
    return {"ece": error, "bins": rows}


def _measure_several(predictions: Predictions, classes: tuple[str, ...], interval: bool) -> dict[str, Any]:
    truth = predictions.labels.astype(np.float64)
    # An unreadable picture is ranked last everywhere: its labels are found last, and none is claimed for it.
    logits = np.where(predictions.readable[:, None], predictions.logits, -np.inf)
    claimed = logits > 0
    precisions = np.array([average_precision(logits[:, i], truth[:, i]) for i in range(len(classes))])
    rows = []
    for i, name in enumerate(classes):
        correct, said, n = int((claimed[:, i] * truth[:, i]).sum()), int(claimed[:, i].sum()), int(truth[:, i].sum())
        precision = None if math.isnan(precisions[i]) else float(precisions[i])
        rows.append({"name": name, "n": n, "average_precision": precision, **_f1(correct, said, n)})
    known = [row["f1"] for row in rows if row["f1"] is not None]
    total = (int((claimed * truth).sum()), int(claimed.sum()), int(truth.sum()))
    readable = predictions.readable
    z, t = predictions.logits[readable].astype(np.float64), truth[readable]
    loss = np.maximum(z, 0) - z * t + np.log1p(np.exp(-np.abs(z)))  # stable binary cross-entropy
    return {
        "metric": "mean_average_precision",
        "value": float(np.nanmean(precisions)) if not np.isnan(precisions).all() else 0.0,
        "value_ci95": _bootstrap(logits, truth) if interval else None,
        "loss": float(loss.sum(axis=1).mean()) if len(z) else None,
        "macro_f1": float(np.mean(known)) if known else None,
        "micro_f1": _f1(*total)["f1"],
        "labels": rows,
    }


def _bootstrap(logits: np.ndarray, truth: np.ndarray) -> list[float]:
    """The 95 % percentile interval of the mean average precision over resampled pictures, drawn from a fixed seed."""
    generator = np.random.default_rng(0)
    n = len(truth)
    values = []
    for _ in range(_RESAMPLES):
        weights = np.bincount(generator.integers(0, n, n), minlength=n).astype(np.float64)
        each = np.array([average_precision(logits[:, i], truth[:, i], weights) for i in range(truth.shape[1])])
        if not np.isnan(each).all():
            values.append(np.nanmean(each))
    return [float(bound) for bound in np.percentile(values, [2.5, 97.5])] if values else [0.0, 1.0]
