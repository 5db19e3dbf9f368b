"""What the cells of a comparison say, with how sure it is: the content of `study.json`, figure by figure.

Letters: M models, S sizes, k seeds, n test pictures.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from patchword.core import files
from patchword.core.errors import DataError
from patchword.core.runtime import choose_device, circumstances
from patchword.evaluation.answers import Answers
from patchword.models.cost import cost
from patchword.models.names import parse_name
from patchword.studies import floor, speed
from patchword.studies.cells import Cells
from patchword.studies.compare import LADDER, Study
from patchword.studies.curves import REACH, PowerLaw, crossing
from patchword.studies.disagreements import disagreements
from patchword.studies.question import Question, skeleton
from patchword.studies.search import Found, has_validation
from patchword.studies.statistics import (
    Estimate,
    half_of_pairs,
    holm,
    mcnemar,
    mean_row,
    pareto_front,
    range_quantile,
)
from patchword.weights.io import load_model

KINDS = {
    "vit": "plain ViT",
    "hybrid": "hybrid",
    "early-conv": "hybrid",
    "bit": "ResNet",
    "efficientnet": "EfficientNet",
}
STUDY = "study.json"
_CURVE = 41


def answer(study: Study) -> dict[str, Any]:
    """All figures of a study, as plain values; of one that is not complete, those of the seeds that are."""
    question, cells = study.question, Cells(study)
    rows = [_model(study, cells, name) for name in question.models]
    laws = {name: cells.law(name) for name in question.models}
    for row in rows:
        row["curve"] = _curve(laws[row["name"]], cells.sizes)
        row["law"] = None if (law := laws[row["name"]]) is None else {"a": law.a, "b": law.b, "c": law.c}
    lead = _lead(study, cells, laws)
    return {
        "status": "finished" if cells.complete else "on its way",
        "data": _data(study),
        "question": _asked(question),
        "sizes": cells.sizes,
        "reach": REACH * cells.sizes[-1],
        "models": rows,
        "lead": lead,
        "crossings": _crossings(question.models, laws),
        "fronts": _fronts(rows),
        "tests": _tests(question.models, cells),
        "disagreements": disagreements(study, cells),
        "seconds": _seconds(study),
        **circumstances(choose_device()),
    }


def write_answer(study: Study) -> Path:
    """Write `study.json`, and return the study's folder; speeds and probes that were not measured before are measured first."""
    folder, cells = study.grid.folder, Cells(study)
    known = speed.stored(folder)
    trained = {name: cells.trained(name) for name in study.question.models if name not in known}
    speed.measure(folder, {name: load_model(place) for name, place in trained.items() if place is not None})
    if study.question.pretrain:
        floor.measure(study)
    files.write_json(folder / STUDY, answer(study))
    return folder


def _seconds(study: Study) -> float:
    """Of all training, searches included."""
    searches = [found for each in (study.found, study.found_before) for found in each.values()]
    tried = [row["seconds"] for found in searches for row in found.trials]
    return sum((outcome.result["seconds"] for outcome in study.outcomes.values()), start=sum(tried))


def _asked(question: Question) -> dict[str, Any]:
    settings = question.settings("")
    return {name: value for name, value in settings.items() if name not in ("data_fingerprint", "models")}


def _data(study: Study) -> dict[str, Any]:
    dataset = study.dataset
    return {
        "name": dataset.name,
        "location": dataset.location,
        "classes": len(dataset.classes),
        "splits": {name: len(split) for name, split in dataset.splits.items()},
        "tested_on": dataset.tested_on,
        "chosen_on": "validation" if has_validation(dataset) else "a tenth of train",
    }


def _model(study: Study, cells: Cells, name: str) -> dict[str, Any]:
    """A model: what it is, what it costs, what it reached."""
    question = study.question
    bones = skeleton(name, question.first_recipe, question.changes, question.image_size, len(study.dataset.classes))
    count = cost(bones)
    outcomes = [cells.outcome(name, question.sizes[-1], seed) for seed in range(question.seeds)]
    seconds = [outcome.result["seconds"] for outcome in outcomes if outcome is not None]
    points = []
    for place, size in zip(cells.sizes, question.sizes, strict=True):
        points.append({"size": place, **mean_row(cells.values(name, size)), "probe": cells.probe(name, size)})
    compute = []
    for share in (*LADDER, 1.0):
        done = [cells.outcome(name, question.sizes[-1], seed, share) for seed in range(question.seeds)]
        flops = [outcome.result["train_flops"] for outcome in done if outcome is not None]
        if flops:
            compute.append(
                {"share": share, "flops": max(flops), **mean_row(cells.values(name, question.sizes[-1], share))}
            )
    everything = [outcome for outcome in study.outcomes.values() if outcome.cell.recipe.model["name"] == name]
    return {
        "name": name,
        "kind": KINDS[parse_name(name, {})[0].family],
        "params": count.params,
        "flops": count.forward_flops,
        "activation_bytes": count.activation_bytes,
        "seconds": float(np.mean(seconds)) if seconds else None,
        "images_per_second": speed.stored(study.grid.folder).get(name),
        "rate": _rate(study.found.get(name)),
        "rate_before": _rate(study.found_before.get(name)),
        "points": points,
        "compute": compute,
        "left_out": study.left_out.get(name, ""),
        "diverged": [outcome.cell.title for outcome in everything if outcome.diverged],
    }


def _rate(found: Found | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {"rate": found.rate, "at_edge": found.at_edge, "trials": [dict(row) for row in found.trials]}


def _curve(law: PowerLaw | None, sizes: Sequence[int]) -> list[dict[str, float | None]]:
    """The fitted accuracy and its band, from the smallest size to the end of the reach."""
    if law is None:
        return []
    places = np.geomspace(sizes[0], REACH * sizes[-1], _CURVE)
    low, high = law.band(places)
    curve = zip(places, law.error(places), low, high, strict=True)
    return [
        {"size": float(place), **Estimate(1 - float(error), 1 - float(b), 1 - float(a)).plain()}
        for place, error, a, b in curve
    ]


def _lead(study: Study, cells: Cells, laws: dict[str, PowerLaw | None]) -> dict[str, Any] | None:
    """Who leads at the largest size, by how much over the next, and what the others would need to be as good."""
    last = study.question.sizes[-1]
    means = {name: float(np.mean(values)) for name in study.question.models if (values := cells.values(name, last))}
    if len(means) < 2:
        return None
    first, second, *_ = sorted(means, key=lambda name: -means[name])
    needs = []
    for name in means:
        law = laws[name]
        if name != first and law is not None:
            size = law.size_for(1 - means[first], _as_moved(1 - means[first], laws[first], law, cells.sizes[-1]))
            behind = _difference(cells, list(means), first, name)
            needs.append({"name": name, **size.plain(), "never": not math.isfinite(size.value), "behind": behind})
    return {
        "first": first,
        "second": second,
        "values": means,
        "difference": _difference(cells, list(means), first, second),
        "needs": needs,
    }


def _as_moved(error: float, leader: PowerLaw | None, law: PowerLaw, size: int) -> np.ndarray | None:
    """The error that the leader was measured to have, moved as its curve is in the resamples of both; None where it has none.

    To be as good as a leader is a question of its seeds, too: taken as known, they would make an interval too narrow.
    """
    if leader is None or len(leader.resampled) != len(law.resampled):
        return None
    return error + leader.errors([size])[:, 0] - float(leader.error(size))


def _difference(cells: Cells, models: Sequence[str], first: str, second: str) -> dict[str, Any]:
    """Accuracy of the first less the second's at the largest size, with the chance of seeds and of test pictures in it.

    The two are independent, and each is an interval of its own; their halves are added as squares. Both hold for all pairs of
    `models` at once (Tukey), since it was seen in the same runs which are first and second. That of the seeds takes what is left
    of every model's accuracies when the means of models and of seeds are taken out; that of the pictures, their mean
    differences. One seed has no spread: then the interval is that of the pictures alone, which `seeds` says.
    """
    given = {name: cells.answers(name) for name in models}
    pairs = {
        seed: (one.right.astype(float), other.right.astype(float))
        for seed, (one, other) in enumerate(zip(given[first], given[second], strict=True))
        if one is not None and other is not None and _same_pictures(one, other)
    }
    if not pairs:
        return {"value": None, "low": None, "high": None, "seeds": 0}
    differences = np.array([one - other for one, other in pairs.values()])  # k×n
    value = float(differences.mean())
    error = float(differences.mean(axis=0).std(ddof=1)) / math.sqrt(differences.shape[1])
    pictures = range_quantile(len(models), math.inf) / math.sqrt(2) * error
    seeds = 0.0
    if len(pairs) > 1:
        rows = [
            [each.right.mean() for seed in pairs if (each := answers[seed]) is not None] for answers in given.values()
        ]
        seeds = half_of_pairs([row for row in rows if len(row) == len(pairs)], len(models))
    half = math.hypot(pictures, seeds)
    return {"value": value, "low": value - half, "high": value + half, "seeds": len(pairs)}


def _same_pictures(one: Answers, other: Answers) -> bool:
    if (one.pictures, one.labels) != (other.pictures, other.labels):
        raise DataError("two models of the study were tested on other pictures; the data set has changed between")
    return True


def _crossings(models: Sequence[str], laws: dict[str, PowerLaw | None]) -> list[dict[str, Any]]:
    """Where the order of each pair of models changes with the number of training pictures, if it does in reach."""
    rows = []
    for place, one in enumerate(models):
        for other in models[place + 1 :]:
            first, second = laws[one], laws[other]
            if first is None or second is None:
                continue
            alike = bool(np.allclose(first.error(first.sizes), second.error(first.sizes), rtol=0, atol=1e-6))
            rows.append({**crossing(first, second).row(one, other), "alike": alike})
    return rows


def _fronts(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Who is beaten by nobody, by training FLOPs and by time a picture: model, cost and value, from the cheapest."""
    trained = [
        {"name": row["name"], "cost": point["flops"], "value": point["value"]}
        for row in rows
        for point in row["compute"]
        if point["value"] is not None
    ]
    fast = [
        {"name": row["name"], "cost": 1 / row["images_per_second"]["32"], "value": row["points"][-1]["value"]}
        for row in rows
        if row["images_per_second"] and row["points"][-1]["value"] is not None
    ]
    fronts = {}
    for name, points in (("flops", trained), ("seconds", fast)):
        best = pareto_front([p["cost"] for p in points], [p["value"] for p in points]) if points else []
        fronts[name] = [points[place] for place in best]
    return fronts


def _tests(models: Sequence[str], cells: Cells) -> list[dict[str, Any]]:
    """McNemar's test of each pair at the largest size, seed by seed on the same test pictures; of a seed, p-values are Holm's."""
    rows = []
    for place, one in enumerate(models):
        for other in models[place + 1 :]:
            pairs = zip(cells.answers(one), cells.answers(other), strict=True)
            for seed, (first, second) in enumerate(pairs):
                if first is None or second is None:
                    continue
                found = mcnemar(first.right, second.right)
                rows.append(
                    {
                        "models": (one, other),
                        "seed": seed,
                        "only_first": found.only_first,
                        "only_second": found.only_second,
                        "difference": found.difference.plain(),
                        "p": found.p_value,
                    }
                )
    for seed in {row["seed"] for row in rows}:
        asked = [row for row in rows if row["seed"] == seed]
        for row, corrected in zip(asked, holm([row["p"] for row in asked]), strict=True):
            row["p_corrected"] = corrected
    return rows
