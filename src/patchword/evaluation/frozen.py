"""What the features of a model are worth as they stand: few shots, a linear probe, nearest neighbours."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from patchword.core.errors import DataError, UsageError
from patchword.core.progress import Progress, say
from patchword.data.dataset import Dataset
from patchword.data.splits import first_of
from patchword.evaluation.features import Features, features_of
from patchword.evaluation.fewshot import SEEDS, STRENGTH, draw, few_shot_accuracies
from patchword.evaluation.intervals import wilson_interval
from patchword.evaluation.neighbours import NEIGHBOURS, votes
from patchword.evaluation.predict import Looking
from patchword.evaluation.probe import FITS, linear_probe
from patchword.models.contract import Model

_HELD_OUT = 0.2
"""The share of train that chooses a probe's penalty where there is no validation."""


def measure_features(
    model: Model,
    dataset: Dataset,
    split: str,
    *,
    few_shot: Sequence[int] = (),
    probe: bool = False,
    neighbours: bool = False,
    workers: int = 0,
    stop: Callable[[], bool] = bool,
) -> dict[str, Any]:
    """The figures of what is asked for, learned from train and measured on `split`; a picture that cannot be read is wrong there.

    `few_shot`: a list of rows with `shots`, the `value` (the mean over seeds) and all `values`. `probe` and `neighbours`:
    `correct`, `value` and `value_ci95`, with what they were made by. Classes are those of the data set's training pictures.

    Raises `UsageError` where the data set has several labels a picture or no such split beside train, and `DataError` where a
    class has fewer pictures than shots.
    """
    check(dataset, split, few_shot)
    known = np.unique(dataset.splits["train"].labels)

    def seen(name: str, rows: np.ndarray | None = None) -> Features:
        """The features of a split, or of some of its pictures, with labels that are positions in `known`."""
        whole = dataset.splits[name]
        part = whole if rows is None else whole.subset(rows)
        found = features_of(model, part, Looking(workers=workers, stop=stop, what=f"computing features of {name}"))
        place = np.minimum(np.searchsorted(known, whole.labels), len(known) - 1)
        labels = np.where(known[place] == whole.labels, place, -1)  # −1: a class of which train has nothing
        if rows is None:
            return Features(found.values, labels, found.unreadable)
        values = np.zeros((len(whole), model.num_features), np.float32)  # pages that nobody writes to take no memory
        values[rows] = found.values
        return Features(values, labels, {int(rows[index]): why for index, why in found.unreadable.items()})

    # What is never drawn need not be looked at.
    few = None if probe or neighbours or not few_shot else _drawn(dataset.splits["train"].labels, known, few_shot)
    train, test = seen("train", few), seen(split)
    test.labels[list(test.unreadable)] = -1
    if train.unreadable:
        say(f"note: {len(train.unreadable):,} training pictures cannot be read; they are not learned from")
    figures: dict[str, Any] = {"split": split, "n": len(test.labels)}
    if few_shot:
        figures["few_shot"] = _few_shot(train, test, few_shot)
    if probe:
        figures["probe"] = _probe(train, test, len(known), dataset, split, seen)
    if neighbours:
        learned = train.readable()
        said = votes(learned.values, learned.labels, test.values, len(known))
        figures["neighbours"] = {**_score(said, test), "neighbours": min(NEIGHBOURS, len(learned.labels))}
    names = dataset.splits[split].name
    figures["unreadable"] = [{"name": names(i), "reason": why} for i, why in sorted(test.unreadable.items())]
    return figures


def check(dataset: Dataset, split: str, few_shot: Sequence[int]) -> None:
    """Refuse what cannot be measured, before anything is computed."""
    if dataset.multi_label:
        raise UsageError(
            f"{dataset.location} has several labels a picture; few shots, a probe and neighbours need one a picture"
        )
    if split == "train" or split not in dataset.splits:
        others = [name for name in dataset.splits if name != "train"]
        raise UsageError(
            f"few shots, a probe and neighbours learn from train and are measured on another split; {dataset.location} has "
            f"{' and '.join(others) or 'no other'}"
        )
    if few_shot and min(few_shot) < 1:
        raise UsageError(f"shots={min(few_shot)} must be 1 or more")
    for number, count in zip(*np.unique(dataset.splits["train"].labels, return_counts=True), strict=True):
        if few_shot and count < max(few_shot):
            raise DataError(
                f"{dataset.location}: class {dataset.classes[number]!r} has {count:,} training pictures, fewer than "
                f"{max(few_shot):,} shots; {count:,} shots or fewer are right"
            )


def _drawn(labels: np.ndarray, known: np.ndarray, few_shot: Sequence[int]) -> np.ndarray:
    """The training pictures that any seed draws, ascending."""
    places = np.searchsorted(known, labels)
    return np.unique(np.concatenate([draw(places, len(known), max(few_shot), seed) for seed in range(SEEDS)]))


def _few_shot(train: Features, test: Features, few_shot: Sequence[int]) -> dict[str, Any]:
    shares = few_shot_accuracies(
        train.values, train.labels, test.values, test.labels, shots=few_shot, unreadable=train.unreadable
    )
    rows = [
        {"shots": shots, "value": statistics.fmean(values), "values": values}
        for shots, values in zip(few_shot, shares, strict=True)
    ]
    return {"shots": rows, "seeds": SEEDS, "strength": STRENGTH}


def _probe(
    train: Features,
    test: Features,
    num_classes: int,
    dataset: Dataset,
    split: str,
    seen: Callable[[str], Features],
) -> dict[str, Any]:
    learned = train.readable()
    if split != "validation" and "validation" in dataset.splits:
        others, chosen_on = seen("validation").readable(), "validation"
        held_out = (others.values, others.labels)
    else:
        whole = dataset.splits["train"]
        first = first_of(whole.keys(), whole.labels, max(1, round(_HELD_OUT * len(whole))))
        mask = np.isin(np.arange(len(whole)), first)
        held_out, chosen_on = np.flatnonzero(mask[train.mask]), "a fifth of train"
    with Progress("fitting the probe", FITS) as progress:
        fitted = linear_probe(learned.values, learned.labels, held_out, num_classes, tick=progress.update)
    score = _score(fitted.logits(test.values), test)
    return {**score, "strength": fitted.strength, "chosen_on": chosen_on, "chosen_at": fitted.chosen_at}


def _score(scores: np.ndarray, test: Features) -> dict[str, Any]:
    correct, n = int((scores.argmax(axis=1) == test.labels).sum()), len(test.labels)
    return {"correct": correct, "value": correct / n, "value_ci95": wilson_interval(correct, n)}
