"""`patchword evaluate`: a saved model, a data set → exact figures."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from patchword.core.errors import UsageError
from patchword.verbs.options import Data, ModelSource, Shots, Target

if TYPE_CHECKING:
    from patchword.data.dataset import Dataset, Split
    from patchword.models.contract import Model


def parse_shots(value: "str | int | Sequence[int] | None") -> tuple[int, ...]:
    """`"1,5,10"`, `5` or `(1, 5, 10)` → numbers of pictures of each class, ascending."""
    if value is None:
        return ()
    parts = value.split(",") if isinstance(value, str) else [value] if isinstance(value, int) else value
    try:
        shots = sorted({int(part) for part in parts})
    except ValueError:
        shots = []
    if not shots or shots[0] < 1:
        raise UsageError(f"few-shot {value!r} is no list of whole numbers from 1 on, such as 1,5,10")
    return tuple(shots)


def evaluate(
    model: ModelSource,
    data: Data,
    *,
    split: Literal["auto", "train", "validation", "test", "all"] = "auto",
    few_shot: Shots = None,
    probe: bool = False,
    neighbours: bool = False,
    mirror: bool = False,
    out: Target = None,
) -> dict[str, Any]:
    """Measure a model on a split of a data set: accuracy with its 95 % interval, per class, calibration.

    The classes are the model's own; a class of the data that the model does not know is an error, unless its features alone
    are asked about. Where pictures have several labels, a model that gives one answer is right if it is among them.

    Args:
        model: A run folder, a model folder or other weights (in Python also a model).
        data: As for train.
        split: auto takes test, else validation, else train; and all pictures of a set without splits of which the model
            has seen none in training.
        few_shot: Also fit a linear classifier to the features of so many training pictures of each class, as in the paper.
        probe: Also fit one to the features of all training pictures (logistic regression).
        neighbours: Also name each picture as the 20 training pictures with the most similar features are.
        mirror: Take the mean of what the model says of each picture and of its mirror image: twice the time.
        out: Write all figures to this JSON file.
    """
    from patchword.core import files
    from patchword.core.runtime import usable_cores
    from patchword.evaluation.frozen import check, measure_features
    from patchword.weights.io import as_model

    shots = parse_shots(few_shot)
    asked = bool(shots) or probe or neighbours
    loaded = as_model(model)
    dataset, fits = _open(loaded, data, asked)
    chosen = _choose(split, dataset, loaded)
    held_out = next((name for name in ("test", "validation") if name in dataset.splits), "train")
    of_features = held_out if split == "auto" else chosen
    if asked:
        check(dataset, of_features, shots)  # before an hour of predictions
    workers = max(0, usable_cores() - 1)
    figures: dict[str, Any] = {"model": loaded.name if loaded is model else str(model), "data": dataset.location}
    if fits:
        figures |= _measure(loaded, dataset, chosen, workers, mirror)
    if asked:
        figures["features"] = measure_features(
            loaded, dataset, of_features, few_shot=shots, probe=probe, neighbours=neighbours, workers=workers
        )
    if out is not None:
        files.write_json(Path(out), figures)
    return figures


def _open(model: "Model", data: "Data", asked: bool) -> "tuple[Dataset, bool]":
    """The data set, and whether its classes are the model's; if not, that is an error where nothing else is asked about."""
    from patchword.core.progress import say
    from patchword.data.sources import open_data

    if asked:
        dataset = open_data(data)
        if model.labels is not None and set(dataset.classes) <= set(model.labels):
            return open_data(data, classes=model.labels), True
        if model.labels is not None or model.num_classes != len(dataset.classes):
            say(f"note: the classes of {data} are not those of {model.name}: only its features are measured")
            return dataset, False
    elif model.num_classes == 0:
        raise UsageError(f"{model.name} has no head, so it names nothing; --probe or --few-shot measures its features")
    else:
        dataset = open_data(data, classes=model.labels)
    if model.labels is None:
        if len(dataset.classes) != model.num_classes:
            raise UsageError(
                f"{model.name} does not name its {model.num_classes} classes, and {data} has {len(dataset.classes)}: its "
                "answers cannot be compared with labels"
            )
        order = ", ".join(dataset.classes[:3])
        say(
            f"note: {model.name} does not name its classes; they are taken for the data set's, in its order ({order}, …)"
        )
    return dataset, True


def _choose(split: str, dataset: "Dataset", model: "Model") -> str:
    if split == "auto":
        if dataset.carved and not dataset.whole().meets(model.provenance.get("pictures_seen", [])):
            return "all"  # pictures that the model was not trained on, and that nobody has split: all of them count
        return next(name for name in ("test", "validation", "train") if name in dataset.splits)
    if split == "all":
        if not dataset.carved:
            raise UsageError(
                f"{dataset.location} came with its splits ({', '.join(dataset.splits)}); one of them is right"
            )
    elif split not in dataset.splits:
        raise UsageError(f"{dataset.location} has no {split} split; it has {', '.join(dataset.splits)}")
    return split


def _measure(model: "Model", dataset: "Dataset", chosen: str, workers: int, mirror: bool) -> dict[str, Any]:
    """What the model itself says."""
    from patchword.evaluation.metrics import measure
    from patchword.evaluation.predict import Looking, predict

    pictures: Split = dataset.whole() if chosen == "all" else dataset.splits[chosen]
    predictions = predict(model, pictures, Looking(workers=workers), mirror=mirror)
    figures = measure(predictions, dataset.classes, one_answer=not model.multi_label)
    unreadable = [
        {"name": pictures.name(index), "reason": reason} for index, reason in sorted(predictions.unreadable.items())
    ]
    return {"split": chosen, **figures, "unreadable": unreadable}


def show(figures: dict[str, Any]) -> str:
    """The figures as a person reads them at a terminal."""
    lines = _own(figures) if "metric" in figures else []
    if "features" in figures:
        lines += _of_features(figures["features"])
    bad = figures.get("unreadable", figures.get("features", {}).get("unreadable", []))
    lines += [f"could not be read, counted as wrong: {each['name']} {each['reason']}" for each in bad]
    return "\n".join(lines)


def _own(figures: dict[str, Any]) -> list[str]:
    from patchword.evaluation.metrics import imbalanced

    head = _with_interval(figures)
    where = f"of {figures['n']:,} {'' if figures['split'] == 'all' else figures['split'] + ' '}pictures"
    lines = []
    if figures["metric"] == "accuracy":
        lines.append(f"accuracy    {head}: {figures['correct']:,} {where}")
        if imbalanced(figures["classes"]):
            balanced = figures["balanced"]
            between = _between(balanced["ci95"])
            lines.append(f"balanced    {100 * balanced['value']:.2f} % ({between}): every class counting alike")
        if figures["top5"] is not None:
            lines.append(f"top-5       {100 * figures['top5']['value']:.2f} %")
        error, majority = 100 * figures["calibration"]["ece"], 100 * figures["majority"]
        lines.append(
            f"calibration error {error:.2f} %; naming always the class most frequent there gives {majority:.2f} %"
        )
        lines.append(f"{'class':<24}{'n':>7}{'recall':>9}{'precision':>11}{'F1':>8}")
        lines += [_row(row, ("recall", "precision", "f1"), (9, 11, 8)) for row in figures["classes"]]
    elif figures["metric"] == "real_accuracy":
        lines.append(f"accuracy    {head}: {figures['correct']:,} {where} are given one of their labels")
        if figures["unlabelled"]:
            lines.append(f"{figures['unlabelled']:,} more have no label and do not count")
    else:
        lines.append(f"mean average precision {head} {where}")
        lines.append(f"{'label':<24}{'n':>7}{'AP':>9}{'precision':>11}{'recall':>9}{'F1':>8}")
        lines += [
            _row(row, ("average_precision", "precision", "recall", "f1"), (9, 11, 9, 8)) for row in figures["labels"]
        ]
    return lines


def _of_features(figures: dict[str, Any]) -> list[str]:
    lines = [f"features, measured on {figures['n']:,} {figures['split']} pictures"]
    if few := figures.get("few_shot"):
        for row in few["shots"]:
            values = [100 * value for value in row["values"]]
            spread = f"mean of {len(values)} draws, {min(values):.2f}–{max(values):.2f}"
            lines.append(f"{row['shots']:>4} a class  {100 * row['value']:.2f} % ({spread})")
    if probe := figures.get("probe"):
        lines.append(
            f"linear probe  {_with_interval(probe)}; penalty {probe['strength']:.2g}, chosen on {probe['chosen_on']}"
        )
    if near := figures.get("neighbours"):
        lines.append(f"{near['neighbours']:>2} neighbours {_with_interval(near)}")
    return lines


def _with_interval(figures: dict[str, Any]) -> str:
    return f"{100 * figures['value']:.2f} % ({_between(figures['value_ci95'])})"


def _between(interval: Sequence[float]) -> str:
    return f"95 % interval {100 * interval[0]:.2f}–{100 * interval[1]:.2f}"


def _row(row: dict[str, Any], keys: tuple[str, ...], widths: tuple[int, ...]) -> str:
    cells = ["–" if row[key] is None else f"{100 * row[key]:.1f}" for key in keys]
    return f"{row['name']:<24}{row['n']:>7,}" + "".join(
        f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)
    )
