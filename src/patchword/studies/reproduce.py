"""`patchword paper NAME`: run an experiment, or all claims, and write down what was expected and what came of it.

All experiments of a scale share a folder and, where they ask for the same, runs. `NAME.json` there holds every figure of one.
"""

import contextlib
import datetime
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from patchword.core import files
from patchword.core.errors import DataError
from patchword.core.progress import say
from patchword.core.runtime import describe_device, versions
from patchword.models.names import create_model
from patchword.models.vit import SIZES
from patchword.studies.claims import CLAIMS, Claim, Judged, judge
from patchword.studies.experiment import Arm, Experiment, Measured, Scale, Trials
from patchword.studies.grid import Grid, held, settle
from patchword.studies.paper import EXPERIMENTS, flops_of, missing
from patchword.studies.statistics import Estimate, mean_interval
from patchword.studies.vtab import group_means, sizes_of_groups

MOST_SEEDS = 12
"""Of an experiment, however undecided its claims are."""
FIRST_SEEDS = 2
"""Of every experiment before any gets more: one says nothing of its spread."""
_CORE_DAY = 2e18
"""FLOPs of a TPUv3 core in a day of the paper's training: 4,262 exaFLOPs in 2,500 core-days (tables 2 and 6)."""
TABLE1 = {
    "ViT-B/16": (12, 768, 3072, 12, 86),
    "ViT-L/16": (24, 1024, 4096, 16, 307),
    "ViT-H/14": (32, 1280, 5120, 16, 632),
}
"""Layers, width, MLP size, heads, and parameters in millions (Table 1)."""

Publish = Callable[[Path], object]


def run_one(
    asked: Experiment,
    scale: Scale,
    folder: Path,
    *,
    seeds: int | None = None,
    publish_run: Publish | None = None,
    publish: Publish = lambda _: None,
) -> Path:
    """Run an experiment, with so many seeds or the scale's; its JSON file is returned, which `publish` makes a page of."""
    count = scale.seeds if seeds is None else seeds
    with _held(folder, scale):
        trials = Trials(Grid(folder, publish_run), scale)
        arms = asked.arms(scale)
        lacking = _tell(asked, arms, trials, count)
        trials.begin([arm for arm in arms if not _needs(arm, lacking)], range(count))
        measured = _measure(trials, arms, lacking, range(count))
        path = write(folder, asked, scale, measured, lacking)
        publish(path)
    return path


def run_claims(
    scale: Scale,
    folder: Path,
    *,
    minutes: float | None = None,
    publish_run: Publish | None = None,
    publish: Publish = lambda _: None,
) -> Path:
    """Judge all claims: every experiment with the scale's seeds; with `minutes`, as far as these go, and on where it is widest.

    Two seeds of each experiment come first. Then the experiment of the widest undecided claim gets its next seed, until the
    scale's number is reached everywhere, or, with `minutes`, until they are over.
    """
    began = time.monotonic()
    with _held(folder, scale):
        trials = Trials(Grid(folder, publish_run), scale)
        names = list(dict.fromkeys(claim.experiment for claim in CLAIMS))
        found: dict[str, list[Measured]] = {}
        lacking: dict[str, dict[str, str]] = {}
        planned: list[Arm] = []
        for name in names:
            arms = EXPERIMENTS[name].arms(scale)
            lacking[name] = missing(arms)
            found[name] = [Measured(arm, ()) for arm in arms]
            planned += [] if lacking[name] else arms
        for data, why in {data: why for each in lacking.values() for data, why in each.items()}.items():
            say(f"note: {data} is missing, and so are the claims that need it ({why})")
        trials.begin(planned, range(scale.seeds))
        path = folder / "claims.json"
        while (name := _next(found, lacking, scale, more=minutes is not None)) is not None:
            if minutes is not None and time.monotonic() - began > 60 * minutes:
                say(f"the {minutes:g} minutes are over; the same command goes on")
                break
            arms, done = EXPERIMENTS[name].arms(scale), len(found[name][0].values)
            say(f"{name}: seed {done}")
            added = trials.measure(arms, [done])
            found[name] = [
                Measured(arm, (*old.values, *new.values), new.flops)
                for arm, old, new in zip(arms, found[name], added, strict=True)
            ]
            publish(write(folder, EXPERIMENTS[name], scale, found[name], lacking[name]))
            publish(write_claims(path, scale, found, lacking))
        publish(write_claims(path, scale, found, lacking))
    return path


def _next(
    found: Mapping[str, Sequence[Measured]], lacking: Mapping[str, dict[str, str]], scale: Scale, *, more: bool
) -> str | None:
    """The experiment that gets the next seed; None: all have what they are to have."""
    done = {name: len(measured[0].values) for name, measured in found.items() if not lacking[name]}
    for name, count in done.items():
        if count < min(FIRST_SEEDS, scale.seeds):
            return name
    widths = {name: _widest(name, found[name], scale) for name in done}
    waiting = [name for name, count in done.items() if count < scale.seeds]
    if waiting:
        return max(waiting, key=lambda name: widths[name])
    open_to_more = [name for name, count in done.items() if count < MOST_SEEDS and widths[name] > 0]
    return max(open_to_more, key=lambda name: widths[name]) if more and scale.verdicts and open_to_more else None


def _widest(name: str, measured: Sequence[Measured], scale: Scale) -> float:
    return max(judge(claim, measured, scale).width for claim in CLAIMS if claim.experiment == name)


@contextlib.contextmanager
def _held(folder: Path, scale: Scale) -> Iterator[None]:
    """Hold the folder of a scale until the context ends."""
    with held(folder) as stored:
        settle(folder, stored, {"paper": scale.name})
        yield


def _needs(arm: Arm, lacking: Mapping[str, str]) -> bool:
    return bool({stage.data for stage in (arm.before, arm.after) if stage is not None} & set(lacking)) or (
        arm.few_shot in lacking
    )


def _tell(asked: Experiment, arms: Sequence[Arm], trials: Trials, seeds: int) -> dict[str, str]:
    """Say what the experiment costs and what it lacks; raises `DataError` where nothing of it can be run."""
    flops = flops_of(arms, trials, seeds)
    times = "1 seed" if seeds == 1 else f"{seeds} seeds"
    much = f", {flops / 1e18:,.3g} exaFLOPs, about {flops / _CORE_DAY:,.3g} TPUv3-core-days" if flops > 1e17 else ""
    say(
        f"{asked.name} at the scale {trials.scale.name}: {len(arms)} arms × {times}, "
        f"{flops / 1e15:,.4g} PFLOP of training{much}"
    )
    lacking = missing(arms)
    for data, why in lacking.items():
        say(f"note: {data} is missing: {why}")
    if lacking and all(_needs(arm, lacking) for arm in arms):
        raise DataError(f"nothing of {asked.name} can be run here, for {' and '.join(lacking)} is missing")
    return lacking


def _measure(trials: Trials, arms: Sequence[Arm], lacking: Mapping[str, str], seeds: range) -> list[Measured]:
    """What the arms came to; those whose data is missing have no value, and are averaged over nowhere."""
    there = [arm for arm in arms if not _needs(arm, lacking)]
    found = {id(each.arm): each for each in trials.measure(there, seeds)}
    return [found.get(id(arm), Measured(arm, (None,) * len(seeds))) for arm in arms]


# What is written down


def write(
    folder: Path, asked: Experiment, scale: Scale, measured: Sequence[Measured], lacking: Mapping[str, str]
) -> Path:
    """Write the figures of an experiment, and return their file."""
    shown = asked.fold(list(measured))
    claims = [judge(claim, measured, scale) for claim in CLAIMS if claim.experiment == asked.name and not lacking]
    content = {
        "name": asked.name,
        "title": asked.title,
        "question": asked.question,
        "source": asked.source,
        "weights": asked.weights,
        "figure": asked.figure,
        "axis": asked.axis,
        "measures": asked.measures(scale),
        "arms": [_row(asked, each) for each in shown],
        "every_arm": [_row(asked, each) for each in measured] if shown != list(measured) else [],
        "groups": _groups(asked.name, measured),
        "published": [vars(each) for each in asked.published],
        "published_is": asked.published_is,
        "claims": [as_row(each) for each in claims],
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


def write_claims(
    path: Path,
    scale: Scale,
    found: Mapping[str, Sequence[Measured]],
    lacking: Mapping[str, Mapping[str, str]],
) -> Path:
    """Write all claims with their verdicts, and return the file."""
    rows = []
    for claim in CLAIMS:
        measured, lost = found[claim.experiment], lacking[claim.experiment]
        seeds = len(measured[0].values) if measured else 0
        if lost or not seeds:
            why = f"{' and '.join(lost)} is missing" if lost else "not run yet"
            rows.append(_unjudged(claim, why))
        else:
            rows.append({**as_row(judge(claim, measured, scale)), "seeds": seeds, "why": ""})
    files.write_json(path, {"name": "claims", "claims": rows, **_circumstances(scale)})
    return path


def as_row(judged: Judged) -> dict[str, Any]:
    """A judged claim as plain values."""
    claim = judged.claim
    parts = [{"what": p.what, "alike": p.alike, "verdict": p.verdict, **_plain(p.estimate)} for p in judged.parts]
    return {**_named(claim), "verdict": judged.verdict, "parts": parts, "note": judged.note}


def _unjudged(claim: Claim, why: str) -> dict[str, Any]:
    return {**_named(claim), "verdict": "not judged", "parts": [], "note": "", "seeds": 0, "why": why}


def _named(claim: Claim) -> dict[str, Any]:
    return {
        "key": claim.key,
        "statement": claim.statement,
        "source": claim.source,
        "experiment": claim.experiment,
        "statistic": claim.statistic,
    }


def _row(asked: Experiment, measured: Measured) -> dict[str, Any]:
    arm = measured.arm
    x = measured.flops / 1e15 if asked.over_compute else arm.x
    return {"label": arm.label, "series": arm.series, "x": x, "flops": measured.flops, **_mean(measured.known)}


def _mean(values: Sequence[float]) -> dict[str, Any]:
    if not values:
        return {"value": None, "low": None, "high": None, "deviation": None, "values": []}
    deviation = math.sqrt(sum((v - sum(values) / len(values)) ** 2 for v in values) / max(1, len(values) - 1))
    spread = deviation if len(values) > 1 else None
    return {**_plain(mean_interval(values)), "deviation": spread, "values": list(values)}


def _plain(estimate: Estimate) -> dict[str, float | None]:
    ends = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return {name: end if math.isfinite(end) else None for name, end in ends.items()}


def _circumstances(scale: Scale, *, models: bool = True) -> dict[str, Any]:
    return {
        "scale": scale.name,
        "verdicts": scale.verdicts,
        "models": dict(scale.models) if models else {},
        "sets": dict(scale.sets) if models else {},
        "versions": versions(),
        "device": describe_device(torch.device("cpu")),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def table1(folder: Path) -> Path:
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
