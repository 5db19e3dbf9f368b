"""`patchword evaluate`: a saved model, a data set → exact figures."""

import os
from pathlib import Path
from typing import Any, Literal

from patchword.core.errors import UsageError
from patchword.verbs.options import Data, ModelSource, Target


def evaluate(
    model: ModelSource,
    data: Data,
    *,
    split: Literal["auto", "train", "validation", "test", "all"] = "auto",
    mirror: bool = False,
    out: Target = None,
) -> dict[str, Any]:
    """Measure a model on a split of a data set: accuracy with its 95 % interval, per class, calibration.

    The classes are the model's own; a class of the data that the model does not know is an error.

    Args:
        model: A run folder, a model folder or other weights (in Python also a model).
        data: As for train.
        split: auto takes test, else validation, else train; and all pictures of a set without splits of which the model
            has seen none in training.
        mirror: Take the mean of what the model says of each picture and of its mirror image: twice the time.
        out: Write all figures to this JSON file.
    """
    from patchword.core import files
    from patchword.core.progress import say
    from patchword.data.sources import open_data
    from patchword.evaluation.metrics import measure
    from patchword.evaluation.predict import predict
    from patchword.weights.io import as_model

    loaded = as_model(model)
    dataset = open_data(data, classes=loaded.labels)
    if loaded.labels is None:
        if len(dataset.classes) != loaded.num_classes:
            raise UsageError(
                f"{loaded.name} does not name its {loaded.num_classes} classes, and {data} has {len(dataset.classes)}: its "
                "answers cannot be compared with labels"
            )
        order = ", ".join(dataset.classes[:3])
        say(
            f"note: {loaded.name} does not name its classes; they are taken for the data set's, in its order ({order}, …)"
        )
    chosen: str = split
    if split == "auto":
        chosen = next(name for name in ("test", "validation", "train") if name in dataset.splits)
        if dataset.carved and not dataset.whole().meets(loaded.provenance.get("pictures_seen", [])):
            chosen = "all"  # pictures that the model was not trained on, and that nobody has split: all of them count
    elif split == "all":
        if not dataset.carved:
            raise UsageError(f"{data} came with its splits ({', '.join(dataset.splits)}); one of them is right")
    elif split not in dataset.splits:
        raise UsageError(f"{data} has no {split} split; it has {', '.join(dataset.splits)}")
    pictures = dataset.whole() if chosen == "all" else dataset.splits[chosen]
    predictions = predict(loaded, pictures, workers=max(0, (os.cpu_count() or 1) - 1), mirror=mirror)
    figures: dict[str, Any] = {
        "model": loaded.name if loaded is model else str(model),
        "data": dataset.location,
        "split": chosen,
    }
    figures |= measure(predictions, dataset.classes)
    figures["unreadable"] = [
        {"name": pictures.name(index), "reason": reason} for index, reason in sorted(predictions.unreadable.items())
    ]
    if out is not None:
        files.write_json(Path(out), figures)
    return figures


def show(figures: dict[str, Any]) -> str:
    """The figures as a person reads them at a terminal."""
    low, high = (100 * bound for bound in figures["value_ci95"])
    head = f"{100 * figures['value']:.2f} % (95 % interval {low:.2f}–{high:.2f})"
    where = f"of {figures['n']:,} {'' if figures['split'] == 'all' else figures['split'] + ' '}pictures"
    lines = []
    if figures["metric"] == "accuracy":
        lines.append(f"accuracy    {head}: {figures['correct']:,} {where}")
        if figures["top5"] is not None:
            lines.append(f"top-5       {100 * figures['top5']['value']:.2f} %")
        error, majority = 100 * figures["calibration"]["ece"], 100 * figures["majority"]
        lines.append(
            f"calibration error {error:.2f} %; naming always the class most frequent there gives {majority:.2f} %"
        )
        lines.append(f"{'class':<24}{'n':>7}{'recall':>9}{'precision':>11}{'F1':>8}")
        lines += [_row(row, ("recall", "precision", "f1"), (9, 11, 8)) for row in figures["classes"]]
    else:
        lines.append(f"mean average precision {head} {where}")
        lines.append(f"{'label':<24}{'n':>7}{'AP':>9}{'precision':>11}{'recall':>9}{'F1':>8}")
        lines += [
            _row(row, ("average_precision", "precision", "recall", "f1"), (9, 11, 9, 8)) for row in figures["labels"]
        ]
    lines += [f"could not be read, counted as wrong: {bad['name']} {bad['reason']}" for bad in figures["unreadable"]]
    return "\n".join(lines)


def _row(row: dict[str, Any], keys: tuple[str, ...], widths: tuple[int, ...]) -> str:
    cells = ["–" if row[key] is None else f"{100 * row[key]:.1f}" for key in keys]
    return f"{row['name']:<24}{row['n']:>7,}" + "".join(
        f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)
    )
