"""What an experiment of the paper, or all its claims, came to, as plain values: the content of `NAME.json`."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from patchword.core import files
from patchword.core.runtime import choose_device, circumstances, versions
from patchword.models.names import create_model
from patchword.models.vit import SIZES
from patchword.studies.claims import CLAIMS
from patchword.studies.experiment import Experiment, Measured, Scale
from patchword.studies.judging import Claim, Judged, judge_by_looks
from patchword.studies.paper import EXPERIMENTS
from patchword.studies.published import TABLE1
from patchword.studies.statistics import mean_row
from patchword.studies.vtab import group_means, sizes_of_groups


def write_experiment(
    folder: Path,
    asked: Experiment,
    scale: Scale,
    measured: Sequence[Measured],
    lacking: Mapping[str, str],
    judged: Sequence[Judged],
) -> Path:
    """Write the figures of an experiment with what its claims came to, and return their file."""
    shown = asked.fold(list(measured))
    content = {
        "name": asked.name,
        "title": asked.title,
        "question": asked.question,
        "source": asked.source,
        "weights": asked.weights,
        "places": dict(asked.places),
        "seeds": len(measured[0].values),
        "figure": asked.figure,
        "axis": asked.axis,
        "percent": asked.percent,
        "measures": asked.measures(scale),
        "arms": [_row(asked, each, lacking) for each in shown],
        "every_arm": [_row(asked, each, lacking) for each in measured] if shown != list(measured) else [],
        "groups": _groups(asked.name, measured),
        "published": [vars(each) for each in asked.published],
        "published_is": asked.published_is,
        "claims": [as_row(each) for each in judged],
        "missing": dict(lacking),
        **_circumstances(scale, models=not asked.weights),
    }
    path = folder / f"{asked.name}.json"
    files.write_json(path, content)
    return path


def _groups(name: str, measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """The means of VTAB's groups, and over all tasks where none is missing."""
    if name not in ("vtab", "vtab-lite"):
        return []
    wanted = sizes_of_groups(lite=name == "vtab-lite")
    means = group_means(measured, wanted)
    rows = []
    for group, values in means.items():
        lost = [each.arm.label for each in measured if each.arm.series == group and None in each.values]
        rows.append({"group": group, "missing": lost, "of": wanted[group], **_mean(values or [])})
    complete = all(values is not None for values in means.values())
    everything = [each.known for each in measured] if complete else []
    overall = [sum(row) / len(row) for row in zip(*everything, strict=True)]
    return [*rows, {"group": "all tasks", "missing": [], "of": sum(wanted.values()), **_mean(overall)}]


def missing_words(data: Mapping[str, str]) -> str:
    """Which data sets are missing."""
    return f"{' and '.join(data)} {'is' if len(data) == 1 else 'are'} missing"


def write_claims(
    path: Path,
    scale: Scale,
    found: Mapping[str, Sequence[Measured]],
    lacking: Mapping[str, Mapping[str, str]],
    spent: Mapping[str, tuple[float, float]],
    minutes: float | None = None,
) -> Path:
    """Write all claims with their verdicts and what they took (`Trials.spent`, by experiment), and return the file.

    `minutes` are those that were given for it.
    """
    rows: list[dict[str, Any]] = []
    for claim in CLAIMS:
        measured, lost = found[claim.experiment], lacking[claim.experiment]
        seeds = len(measured[0].values) if measured else 0
        judged = None if lost else judge_by_looks(claim, measured, scale)
        if judged is not None:
            rows.append(as_row(judged))
        elif lost:
            rows.append(_unjudged(claim, missing_words(lost)))
        else:
            rows.append(_unjudged(claim, f"{seeds} of {scale.seeds} seeds are done" if seeds else "not run yet"))
    for row in rows:
        row["seconds"], row["flops"] = spent.get(row["experiment"], (None, None))
    content = {"name": "claims", "claims": rows, "first_look": scale.seeds, "minutes": minutes, **_circumstances(scale)}
    files.write_json(path, content)
    return path


def as_row(judged: Judged) -> dict[str, Any]:
    """A judged claim as plain values."""
    share = EXPERIMENTS[judged.claim.experiment].percent
    parts = [
        {
            "what": part.what,
            "alike": part.alike,
            "verdict": part.verdict,
            "unit": "times" if part.ratio else "points" if share else "value",
            **(part.estimate.powers() if part.ratio else part.estimate).plain(),
        }
        for part in judged.parts
    ]
    found = {"verdict": judged.verdict, "parts": parts, "note": judged.note}
    return {**_named(judged.claim), **found, "seeds": judged.seeds, "level": judged.level, "why": ""}


def _unjudged(claim: Claim, why: str) -> dict[str, Any]:
    found = {"verdict": "not judged", "parts": [], "note": ""}
    return {**_named(claim), **found, "seeds": 0, "level": None, "why": why}


def _named(claim: Claim) -> dict[str, Any]:
    return {
        "key": claim.key,
        "statement": claim.statement,
        "source": claim.source,
        "experiment": claim.experiment,
        "statistic": claim.statistic,
    }


def _row(asked: Experiment, measured: Measured, lacking: Mapping[str, str]) -> dict[str, Any]:
    """An arm: what the paper has for it, what it came to, and why it came to nothing."""
    arm = measured.arm
    x = measured.flops / 1e15 if asked.over_compute else arm.x
    theirs = next((each for each in asked.published if each.label == (arm.published or arm.label)), None)
    why = "" if measured.known else "diverged" if arm.sets and not arm.sets & set(lacking) else "missing"
    row = {"label": arm.label, "series": arm.series, "x": x, "flops": measured.flops, **_mean(measured.known)}
    return {**row, "expected": None if theirs is None else theirs.value, "why": why}


def _mean(values: Sequence[float]) -> dict[str, Any]:
    return {**mean_row(values), "deviation": statistics.stdev(values) if len(values) > 1 else None}


def _circumstances(scale: Scale, *, models: bool = True) -> dict[str, Any]:
    return {
        "scale": scale.name,
        "verdicts": scale.verdicts,
        "models": dict(scale.models) if models else {},
        "sets": dict(scale.sets) if models else {},
        **circumstances(choose_device()),
    }


def write_table1(folder: Path) -> Path:
    """The sizes of Table 1 beside those here, with parameters counted."""
    rows = []
    for name, (layers, width, mlp, heads, millions) in TABLE1.items():
        with torch.device("meta"):
            params = sum(p.numel() for p in create_model(name, 1000, 224, pool="token").parameters())
        size = SIZES[name[4]]
        ours = (size.depth, size.embed_dim, size.mlp_dim, size.num_heads)
        expected = [layers, width, mlp, heads]
        rows.append(
            {"name": name, "expected": expected, "obtained": list(ours), "params": params, "published": millions}
        )
    path = folder / "table1.json"
    content = {"name": "table1", "title": "Table 1: the models", "source": "section 4.1, Table 1", "rows": rows}
    files.write_json(path, {**content, "versions": versions()})
    return path
