"""`patchword paper NAME`: run an experiment, or all claims, and write down what was expected and what came of it.

All experiments of a scale share a folder and, where they ask for the same, runs. `NAME.json` there holds every figure of one.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from patchword.core.errors import DataError
from patchword.core.progress import duration, say
from patchword.models.cost import exaflops, tpu_core_days
from patchword.studies.claims import CLAIMS
from patchword.studies.experiment import Arm, Experiment, Measured, Scale
from patchword.studies.grid import Cell, Extra, Grid, OutOfTime, held, settle
from patchword.studies.judging import LOOKS, Claim, Judged, judge, judge_by_looks
from patchword.studies.paper import EXPERIMENTS
from patchword.studies.results import missing_words, write_claims, write_experiment, write_table1
from patchword.studies.trials import Trials, flops_of, missing

Publish = Callable[[Path], object]
Found = dict[str, list[Measured]]
"""Experiment → its arms, with the seeds that are done."""
Lacking = Mapping[str, Mapping[str, str]]
"""Experiment → data set that it needs and that is not here → why."""


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
        there = _here(arms, lacking)
        known, like = trials.ahead(there, range(count))
        trials.grid.begin(list(known.values()), list(like.values()), list(trials.extras(there, range(count)).values()))
        measured = _measure(trials, arms, lacking, range(count))
        judged: list[Judged] = []
        if not lacking and count < LOOKS[0][0] * scale.seeds:  # fewer than a look has, as asked for
            judged = [judge(claim, measured, scale) for claim in _claims_of(asked.name)]
        elif not lacking:
            judged = _judged(asked.name, measured, scale)
        path = write_experiment(folder, asked, scale, measured, lacking, judged)
        publish(path)
    return path


def show_table1(scale: Scale, folder: Path) -> Path:
    """Count the sizes of Table 1, in the folder of the other experiments; the JSON file is returned."""
    with _held(folder, scale):
        return write_table1(folder)


def run_claims(
    scale: Scale,
    folder: Path,
    *,
    minutes: float | None = None,
    publish_run: Publish | None = None,
    publish: Publish = lambda _: None,
) -> Path:
    """Judge all claims: every experiment with the scale's seeds, and more where their runs are there, the cheapest first.

    With `minutes`, no run is begun after them; and where some are left then, the experiment of the widest undecided claim gets
    more seeds, up to its last look.
    """
    until = math.inf if minutes is None else time.monotonic() + 60 * minutes
    with _held(folder, scale):
        trials = Trials(Grid(folder, publish_run, until=until), scale)
        arms = {name: EXPERIMENTS[name].arms(scale) for name in dict.fromkeys(claim.experiment for claim in CLAIMS)}
        gone = missing([arm for each in arms.values() for arm in each])
        lacking = {
            name: {data: why for data, why in gone.items() if any(data in arm.sets for arm in each)}
            for name, each in arms.items()
        }
        for data, why in gone.items():
            say(f"note: {data} is missing, and so are the claims that need it ({why})")
        order = _begin(trials, {name: each for name, each in arms.items() if not lacking[name]})
        least = {name: _seeds_there(trials, arms[name]) for name in order}
        order += [name for name in arms if lacking[name]]
        found = {name: [Measured(arm, ()) for arm in arms[name]] for name in order}
        spent: dict[str, tuple[float, float]] = {}
        path = folder / "claims.json"
        try:
            while (name := _next(found, least, scale, more=minutes is not None)) is not None:
                seed = len(found[name][0].values)
                say(f"{name}: seed {seed}")
                added = trials.measure(arms[name], [seed])
                found[name] = [
                    Measured(old.arm, (*old.values, *new.values), max(old.flops, new.flops))
                    for old, new in zip(found[name], added, strict=True)
                ]
                spent[name] = trials.spent(arms[name], range(seed + 1))
                judged = _judged(name, found[name], scale)
                publish(write_experiment(folder, EXPERIMENTS[name], scale, found[name], lacking[name], judged))
                publish(write_claims(path, scale, found, lacking, spent, minutes))
        except OutOfTime:
            say(f"the {minutes:g} minutes are over; the same command goes on")
        publish(write_claims(path, scale, found, lacking, spent, minutes))
    return path


def _begin(trials: Trials, arms: Mapping[str, Sequence[Arm]]) -> list[str]:
    """Say what each claim costs, what several need counted once; the experiments are returned, the cheapest first."""
    seeds = trials.scale.seeds
    needed: dict[str, dict[str, Cell | Extra]] = {}
    total: dict[str, Cell] = {}
    like: dict[str, Cell] = {}
    extras: dict[str, Extra] = {}
    for name, each in arms.items():
        known, others = trials.ahead(each, range(seeds))
        beside = trials.extras(each, range(seeds))
        waiting = {place: cell for place, cell in known.items() if not trials.grid.finished(cell)}
        needed[name] = {**waiting, **others, **beside}
        total, like, extras = total | known, like | others, extras | beside
    cost = {name: trials.grid.expected(work.values()) for name, work in needed.items()}
    order = sorted(cost, key=lambda name: cost[name])
    counted: set[str] = set()
    for name in order:
        rest = {place: work for place, work in needed[name].items() if place not in counted}
        counted |= set(rest)
        runs = sum(isinstance(work, Cell) for work in rest.values())
        statements = " ".join(claim.statement for claim in _claims_of(name))
        time_needed = f"about {duration(trials.grid.expected(rest.values()))}" if rest else "nothing more"
        say(f"{name}, {len(arms[name])} arms × {_seeds(seeds)}, {runs:,} runs: {time_needed}. {statements}")
    trials.grid.begin(list(total.values()), list(like.values()), list(extras.values()))
    return order


def _seeds_there(trials: Trials, arms: Sequence[Arm]) -> int:
    """The seeds of the last look whose runs are all finished; those of the first where not even they are."""
    found = LOOKS[0][0] * trials.scale.seeds
    for times, _ in LOOKS:
        known, like = trials.ahead(arms, range(times * trials.scale.seeds))
        if like or not all(trials.grid.finished(cell) for cell in known.values()):
            break
        found = times * trials.scale.seeds
    return found


def _next(found: Found, least: Mapping[str, int], scale: Scale, *, more: bool) -> str | None:
    """The experiment that gets the next seed, where each that can be run is to have the `least` ones; None: all have theirs."""
    done = {name: len(found[name][0].values) for name in least}
    for name, count in done.items():
        if count < least[name]:
            return name
    if not more or not scale.verdicts:
        return None
    last = LOOKS[-1][0] * scale.seeds
    widths = {name: _widest(name, found[name], scale) for name, count in done.items() if count < last}
    undecided = [name for name, width in widths.items() if width > 0]
    return max(undecided, key=lambda name: widths[name], default=None)


def _widest(name: str, measured: Sequence[Measured], scale: Scale) -> float:
    """The widest interval of what is undecided of an experiment's claims; of claims that are decided 0."""
    judged = _judged(name, measured, scale)
    return max((each.width for each in judged if each.verdict == "undecided"), default=0.0)


def _judged(name: str, measured: Sequence[Measured], scale: Scale) -> list[Judged]:
    """The claims of an experiment by the last look that there are seeds for; none before the first."""
    looks = (judge_by_looks(claim, measured, scale) for claim in _claims_of(name))
    return [judged for judged in looks if judged is not None]


def _claims_of(name: str) -> list[Claim]:
    return [claim for claim in CLAIMS if claim.experiment == name]


@contextlib.contextmanager
def _held(folder: Path, scale: Scale) -> Iterator[None]:
    """Hold the folder of a scale until the context ends."""
    with held(folder) as stored:
        settle(folder, stored, {"paper": scale.name})
        yield


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def _figures(value: float, count: int) -> str:
    """So many figures of a number, large ones in full: 3,580 and not 3.58e+03."""
    return f"{float(f'{value:.{count}g}'):,.15g}"


def _here(arms: Sequence[Arm], lacking: Mapping[str, str]) -> list[Arm]:
    """The arms that need none of the data that is missing."""
    return [arm for arm in arms if arm.sets.isdisjoint(lacking)]


def _tell(asked: Experiment, arms: Sequence[Arm], trials: Trials, seeds: int) -> dict[str, str]:
    """Say what the experiment costs and what it lacks; raises `DataError` where nothing of it can be run."""
    flops = flops_of(arms, trials, seeds)
    much = (
        f", {_figures(exaflops(flops), 3)} exaFLOPs, about {_figures(tpu_core_days(flops), 3)} TPUv3-core-days"
        if flops > 1e17
        else ""
    )
    say(
        f"{asked.name} at the scale {trials.scale.name}: {len(arms)} arms × {_seeds(seeds)}, "
        f"{_figures(flops / 1e15, 4)} PFLOP of training{much}"
    )
    lacking = missing(arms)
    for data, why in lacking.items():
        say(f"note: {data} is missing: {why}")
    if lacking and not _here(arms, lacking):
        raise DataError(f"nothing of {asked.name} can be run here, for {missing_words(lacking)}")
    return lacking


def _measure(trials: Trials, arms: Sequence[Arm], lacking: Mapping[str, str], seeds: range) -> list[Measured]:
    """What the arms came to; those whose data is missing have no value, and are averaged over nowhere."""
    found = {id(each.arm): each for each in trials.measure(_here(arms, lacking), seeds)}
    return [found.get(id(arm), Measured(arm, (None,) * len(seeds))) for arm in arms]
