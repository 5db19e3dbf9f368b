"""`patchword paper`: the paper's tables and figures as experiments, at three scales, and verdicts on its claims."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from patchword.core.errors import UsageError, nearest
from patchword.verbs.options import Number, Target, Whole, argument, assignments

if TYPE_CHECKING:
    from patchword.studies.experiment import Experiment

    ExperimentName = str
    Weights = str | Path | None
    Places = str | Sequence[str] | Mapping[str, str]
else:
    ExperimentName = Annotated[str, tyro.conf.Positional, argument("NAME")]
    Weights = Annotated[str | None, tyro.conf.Positional, argument("[MODEL]", constructor=str)]
    Places = Annotated[tuple[str, ...], argument("TASK=DATA")]


def paper(
    name: ExperimentName,
    model: Weights = None,
    *,
    scale: Literal["smoke", "laptop", "full"] = "laptop",
    seeds: Whole = None,
    minutes: Number = None,
    data: Places = (),
    out: Target = None,
) -> Path:
    """Run an experiment of the paper, and set what comes of it beside what was published; its page is returned.

    Every run is an ordinary run folder, and is made once for all experiments of a scale; the same command goes on where it was
    ended. What it costs is said first.

    Args:
        name: table1, table2, fig2, fig3, fig4, fig5, fig7, position, patch, resolution, adam-vs-sgd, masked, vtab, vtab-lite, or
            claims, all twelve of them with verdicts, the cheapest first.
        model: For vtab and vtab-lite, whose weights: a run or model folder, or weights of others.
        scale: smoke proves the machinery in minutes, laptop asks small models within hours, full is the paper's own protocol.
        seeds: How often each arm is run; the scale's number if not given.
        minutes: For claims, begin no run after so long; what is left of it gives more seeds where a verdict is least certain.
        data: For vtab, where the data of a task is, such as dmlab=photos/dmlab; may be given several times.
        out: The folder; studies/paper-SCALE if not given.
    """
    from patchword.core.progress import say
    from patchword.reports.paper import write_paper
    from patchword.reports.run import write_report
    from patchword.studies import paper as papers
    from patchword.studies import reproduce
    from patchword.studies.scales import SCALES

    _check(name, model, seeds, minutes, data)
    folder = Path(out) if out is not None else Path("studies") / f"paper-{scale}"
    if name == "table1":
        page = write_paper(reproduce.show_table1(SCALES[scale], folder))
    elif name == "claims":
        path = reproduce.run_claims(
            SCALES[scale], folder, minutes=minutes, publish_run=write_report, publish=write_paper
        )
        page = path.with_suffix(".html")
    else:
        asked = papers.EXPERIMENTS[name] if model is None else _vtab(name, model, data)
        path = reproduce.run_one(
            asked, SCALES[scale], folder, seeds=seeds, publish_run=write_report, publish=write_paper
        )
        page = path.with_suffix(".html")
    say(f"the page is {page}")
    return page


def _check(name: ExperimentName, model: Weights, seeds: Whole, minutes: Number, data: Places) -> None:
    """Raise `UsageError` for a name that is none and for what does not go with it."""
    from patchword.studies import paper as papers

    known = (*papers.EXPERIMENTS, *papers.OTHERS)
    if name not in known:
        raise UsageError(f"the paper has no {name!r}; {nearest(name, known)}")
    of_weights = name in ("vtab", "vtab-lite")
    for wrong, sentence in (
        (of_weights and model is None, f"{name} measures somebody's weights; patchword paper {name} MODEL is right"),
        (not of_weights and model is not None, f"{name} trains its own models; vtab and vtab-lite take a MODEL"),
        (minutes is not None and name != "claims", "--minutes is for claims; the other experiments have their seeds"),
        (seeds is not None and name in ("claims", "table1"), f"--seeds is not for {name}"),
        (minutes is not None and not minutes > 0, f"--minutes {minutes} must be greater than 0"),
        (seeds is not None and seeds < 1, f"--seeds {seeds} must be 1 or more"),
        (bool(data) and name != "vtab", f"--data says where tasks of vtab are, and is not for {name}"),
    ):
        if wrong:
            raise UsageError(sentence)


def _vtab(name: str, model: str | Path, data: Places) -> "Experiment":
    """The benchmark of this name for somebody's weights."""
    from patchword.studies import vtab
    from patchword.weights.io import load_model

    places = _places(data)
    source = Path(model)
    weights = str(source.resolve()) if source.exists() else str(model)
    return vtab.experiment(load_model(weights), weights, lite=name == "vtab-lite", data=places)


def _places(data: Places) -> dict[str, str]:
    """Task → where its data is, letter for letter: a folder may be called 2024_10."""
    from patchword.studies import vtab

    places = {}
    for each in assignments(data):
        task, _, place = each.partition("=")
        if not place:
            raise UsageError(f"--data {each!r} is not of the form TASK=DATA, such as dmlab=photos/dmlab")
        if task not in vtab.FACTS:
            raise UsageError(f"--data {task}=…: VTAB has no such task; {nearest(task, vtab.FACTS)}")
        places[task] = place
    return places
