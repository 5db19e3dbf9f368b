"""A run folder → its page. What the page says is decided here; how it looks is in `templates/`."""

import base64
import io
import json
import math
import re
import tomllib
from pathlib import Path
from statistics import median
from typing import Any

from markupsafe import Markup
from PIL import Image

from patchword.core.errors import DataError
from patchword.core.files import read_json, write_text
from patchword.evaluation.metrics import imbalanced
from patchword.reports import figures, page
from patchword.training.run_folder import EVALUATION, LOG, PAGE, RECIPE, RESULT

_MATRIX_CLASSES = 100  # beyond it a confusion matrix is a grey square; its largest cells are listed instead
_PICTURE = re.compile(r"data:image/(?:jpeg|png|webp);base64,([A-Za-z0-9+/]+=*)")


class Fields(dict[str, Any]):
    """A JSON table, its tables included, whose missing fields are None: a shorter file shortens the page."""

    def __init__(self, table: dict[str, Any]) -> None:
        super().__init__({key: _with_fields(value) for key, value in table.items()})

    def __missing__(self, key: str) -> None:
        return None


def write_report(run: Path) -> Path:
    """Write `report.html` into the run folder from the files in it, and return its path.

    A pure function of `result.json`, `recipe.toml`, `metrics.jsonl` and `evaluation.json`: the same files give the same
    bytes. Only `result.json` must exist (DataError otherwise); what the others would have told is left out with a word.
    """
    result = read_fields(run / RESULT)
    # Only a finished run has an evaluation of its own; a file from before would speak of other weights.
    evaluated = result["status"] == "finished" and (run / EVALUATION).exists()
    evaluation = read_fields(run / EVALUATION) if evaluated else Fields({})
    recipe = (run / RECIPE).read_text(encoding="utf-8") if (run / RECIPE).exists() else None
    records = read_metrics(run / LOG)

    data = result["data"] or Fields({})
    headline = _headline(result, data, evaluation, _planned_steps(recipe))
    content = page.render(
        "run.html.j2",
        title=f"{result['model'] or 'A model'} on {data['name'] or 'unnamed data'}",
        description=headline.striptags(),
        headline=headline,
        result=result,
        data=data,
        evaluation=evaluation,
        learning=_learning(records, result),
        classes=_classes(evaluation),
        balanced=evaluation["balanced"] if imbalanced(evaluation["classes"] or []) else None,
        labels=_best_first(evaluation["labels"] or [], "average_precision"),
        calibration=_calibration(evaluation["calibration"]),
        mistakes=[with_size(mistake) for mistake in evaluation["mistakes"] or []],
        hits=[with_size(hit) for hit in evaluation["hits"] or []],
        cost=_cost(records, result),
        recipe=recipe,
    )
    write_text(run / PAGE, content)
    return run / PAGE


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl` by kind and step; of a step done twice (a resumed run) the later record counts.

    Lines that are no JSON table are left out: a crash can tear the last one, and a resumed run writes on after it.
    """
    records: dict[tuple[str, int], dict[str, Any]] = {}
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records[str(record.get("kind")), record["step"]] = record
    return [records[key] for key in sorted(records)]


def read_fields(path: Path) -> Fields:
    table = read_json(path)
    if not isinstance(table, dict):
        raise DataError(f"{path} holds no JSON table; it must be the file that a training run wrote")
    return Fields(table)


def _with_fields(value: Any) -> Any:
    if isinstance(value, dict):
        return Fields(value)
    return [_with_fields(item) for item in value] if isinstance(value, list) else value


def _planned_steps(recipe: str | None) -> int | None:
    try:
        steps = tomllib.loads(recipe or "").get("budget", {}).get("steps")
    except (tomllib.TOMLDecodeError, AttributeError):
        return None  # the page shows the recipe as it is, sound or not
    return steps if isinstance(steps, int) else None


def _headline(result: Fields, data: Fields, evaluation: Fields, planned: int | None) -> Markup:
    """The run and its result in one sentence."""
    origin = result["init"] or "none"
    start = "trained from nothing" if origin == "none" else f"fine-tuned from {origin.split(' (')[0]}"
    subject = Markup("{}, {}").format(result["model"] or "A model", start)
    if result["train_images"]:
        subject += f" on {page.count(result['train_images'], 'picture')}"
    if result["status"] != "finished":
        verb = "failed" if result["status"] == "failed" else "was stopped"
        steps = result["steps"] or 0
        done = f"{steps:,} of {page.count(planned, 'step')}" if planned else page.count(steps, "step")
        return subject + Markup(", <strong>{}</strong> after {}, before it could be evaluated.").format(verb, done)

    subject += f" for {page.duration(result['seconds'] or 0)},"
    value, interval, majority = result["value"], result["value_ci95"], evaluation["majority"]
    if value is None:
        return subject + " has not been evaluated."
    tested = page.count(result["n"] or 0, f"{result['split'] or 'test'} picture")
    between = Markup("")
    if interval:
        low, high = page.percent(interval[0], unit=False), page.percent(interval[1])
        dash = "–" if interval[0] >= 0 else " to "
        between = Markup(" (95{}% interval <span>{}{}{}</span>)").format(page.THIN, low, dash, high)
    if result["metric"] not in (None, "accuracy"):
        precision = result["metric"] == "mean_average_precision"
        over = f" over {page.count(len(data['classes']), 'label')}" if precision and data["classes"] else ""
        sentence = Markup("{} reaches {} of <strong>{}</strong>{} on {}{}")
        reached = f"{'an' if result['metric'][0] in 'aeiou' else 'a'} {result['metric'].replace('_', ' ')}"
        sentence = sentence.format(subject, reached, page.percent(value), over, tested, between)
        thing = "colour of a patch"
    else:
        sentence = Markup("{} names <strong>{}</strong> of {} right{}")
        sentence = sentence.format(subject, page.percent(value), tested, between)
        thing = "class"
    if majority is None:
        return sentence + "."
    sentence += f"; naming always the {thing} that is most frequent among them would give {page.percent(majority)}."
    if interval and interval[1] < majority:
        sentence += " That is more, beyond chance."
    elif interval and interval[0] <= majority:
        sentence += " The interval does not exclude that it has learned nothing."
    return sentence


def _learning(records: list[dict[str, Any]], result: Fields) -> dict[str, Any]:
    """Curves and the few facts beside them."""

    def points(kind: str, field: str) -> list[tuple[float, float]]:
        return [(r["step"], r[field]) for r in records if r.get("kind") == kind and _finite(r.get(field))]

    looks = [record for record in records if record.get("kind") == "validation"]
    metric = (
        next((name for name in looks[-1] if name not in ("kind", "step", "loss")), "accuracy") if looks else "accuracy"
    )
    train, rate = points("train", "loss"), points("train", "images_per_second")
    validation, validation_loss = points("validation", metric), points("validation", "loss")
    test = None
    if validation and result["value_ci95"] and result["split"] != "validation":
        test = (result["value"], *result["value_ci95"])
    resumed = result["resumed_from"] or []
    return {
        "metric": metric.replace("_", " "),
        "loss": figures.loss_curve(train, validation_loss, points("train", "lr"), resumed) if train else None,
        "curve": figures.metric_curve(validation, rate, test, resumed) if validation else None,
        "best": max(validation, key=lambda point: (point[1], -point[0]), default=None),
        "last": validation[-1] if validation else None,
        "tested": test is not None,
        "validation_loss": bool(validation_loss),
        "not_finite": min((r["step"] for r in records if "loss" in r and not _finite(r["loss"])), default=None),
    }


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _best_first(rows: list[Fields], field: str) -> list[Fields]:
    """Rows from best to worst; those without the figure come last."""
    return sorted(rows, key=lambda row: (1 if row[field] is None else -row[field], row["name"]))


def _classes(evaluation: Fields) -> dict[str, Any]:
    """The table of classes, the confusion matrix and the largest cells off its diagonal."""
    rows, confusion = evaluation["classes"] or [], evaluation["confusion"] or []
    names = [row["name"] for row in rows]
    matrix = 2 <= len(names) == len(confusion) <= _MATRIX_CLASSES
    pairs = [
        {"true": names[true], "predicted": names[predicted], "n": n, "share": n / sum(line)}
        for true, line in enumerate(confusion)
        for predicted, n in enumerate(line)
        if n and true != predicted
    ]
    pairs.sort(key=lambda pair: (-pair["n"], -pair["share"], pair["true"], pair["predicted"]))
    return {
        "rows": _best_first(rows, "f1"),
        "matrix": figures.confusion_matrix(names, confusion) if matrix else None,
        "wide": matrix and len(names) > figures.NARROW_CLASSES,
        "pairs": pairs[: 10 if matrix else 30] if len(names) > 5 else [],
    }


def _calibration(calibration: Fields | None) -> dict[str, Any] | None:
    """The reliability diagram, the expected calibration error and which way confidence errs on balance."""
    filled = [b for b in calibration["bins"] or [] if b["n"]] if calibration else []
    if not calibration or not filled:
        return None
    excess = sum(b["n"] * (b["confidence"] - b["accuracy"]) for b in filled) / sum(b["n"] for b in filled)
    bins = [(b["low"], b["high"], b["n"], b["confidence"], b["accuracy"]) for b in filled]
    return {"ece": calibration["ece"], "excess": excess, "figure": figures.reliability_diagram(bins)}


def with_size(answer: Fields) -> Fields:
    """A mistake or a hit with the size of its thumbnail; what is no embedded picture is taken away."""
    size = picture_size(answer["thumbnail"])
    if size is None:
        return Fields(answer | {"thumbnail": None, "map": None})
    drawn = answer["map"] if picture_size(answer["map"]) else None
    return Fields(answer | {"width": size[0], "height": size[1], "map": drawn})


def picture_size(source: str | None) -> tuple[int, int] | None:
    """Width and height of an embedded picture; None for anything else."""
    match = _PICTURE.fullmatch(source or "")
    try:
        with Image.open(io.BytesIO(base64.b64decode(match[1]) if match else b"")) as picture:
            return picture.size
    except (OSError, ValueError, Image.DecompressionBombError):
        return None


def _cost(records: list[dict[str, Any]], result: Fields) -> dict[str, float | None]:
    rates = [
        r["images_per_second"] for r in records if r.get("kind") == "train" and _finite(r.get("images_per_second"))
    ]
    seconds, flops = result["seconds"], result["train_flops"]
    return {
        "images_per_second": median(rates) if rates else None,
        "sustained": flops / seconds if flops and seconds else None,
    }
