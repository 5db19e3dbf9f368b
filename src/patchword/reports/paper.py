"""What an experiment of the paper, or all its claims, came to → a page, an SVG, and for the claims a table in Markdown."""

import importlib.resources
import shlex
from pathlib import Path
from typing import Any

from markupsafe import Markup

from patchword.core.files import write_text
from patchword.reports import charts, page
from patchword.reports.run import Fields, read_fields
from patchword.studies.scales import SCALES

_WORDS = {"holds": "holds", "does not hold": "against", "undecided": "open", "not judged": "open"}


def write_paper(path: Path) -> Path:
    """Write the page of a `NAME.json` beside it, with its figure and the published one where there are such.

    The same file gives the same bytes.
    """
    answer = read_fields(path)
    if answer["name"] == "claims":
        return _write_claims(path, answer)
    if answer["name"] == "table1":
        content = page.render("table1.html.j2", title=answer["title"], description=answer["source"], answer=answer)
        write_text(path.with_suffix(".html"), content)
        return path.with_suffix(".html")
    places = {name: place for place, name in enumerate(dict.fromkeys(row["series"] for row in answer["arms"]))}
    ours = _figure(answer, answer["arms"], places, "ours")
    their_places = {
        name: place for place, name in enumerate(dict.fromkeys(row["series"] for row in answer["published"]))
    }
    theirs = _figure(answer, [_published(row) for row in answer["published"]], their_places, "theirs")
    content = page.render(
        "paper.html.j2",
        title=answer["title"],
        description=answer["question"],
        answer=answer,
        places=places,
        their_places=their_places,
        key=charts.key,
        ours=ours,
        theirs=theirs,
        command=command(answer, path.parent),
        verdict_class=_WORDS,
    )
    write_text(path.with_suffix(".html"), content)
    style = importlib.resources.files("patchword.reports").joinpath("templates/style.css").read_text("utf-8")
    for figure, end in ((ours, ".svg"), (theirs, "-published.svg")):
        if figure is not None:
            write_text(path.with_name(path.stem + end), charts.standalone(figure, style))
    return path.with_suffix(".html")


def command(answer: Fields, folder: Path) -> list[str]:
    """The words that repeat it, or go on with it, as a shell takes them."""
    words = ["patchword", "paper", answer["name"], *([answer["weights"]] if answer["weights"] else [])]
    words += ["--scale", answer["scale"]]
    if answer["seeds"] not in (None, SCALES[answer["scale"]].seeds):
        words += ["--seeds", str(answer["seeds"])]
    if answer["minutes"] is not None:
        words += ["--minutes", f"{answer['minutes']:g}"]
    for task, place in (answer["places"] or {}).items():
        words += ["--data", f"{task}={place}"]
    return [shlex.quote(word) for word in [*words, "--out", str(folder)]]


def _published(row: dict[str, Any]) -> dict[str, Any]:
    """A published figure as an arm has it, in 0…1."""
    value, spread = row["value"] / 100, row["spread"]
    ends = (None, None) if spread is None else (value - spread / 100, value + spread / 100)
    return {**row, "value": value, "low": ends[0], "high": ends[1]}


def _figure(answer: dict[str, Any], rows: list[dict[str, Any]], places: dict[str, int], name: str) -> Markup | None:
    if not rows:
        return None
    if answer["figure"] == "bars":
        lines = [
            charts.Row(r["label"], places[r["series"]], r["value"], r["low"], r["high"], r.get("why") or "missing")
            for r in rows
        ]
        return charts.dots(lines, f"{answer['title']}: {answer['measures']}", percent=answer["percent"])
    series = []
    for label, place in places.items():
        points = [
            charts.Reading(row["x"], row["value"], row["low"], row["high"])
            for row in rows
            if row["series"] == label and row["value"] is not None and row["x"] is not None
        ]
        if points:
            series.append(charts.Series(place, sorted(points)))
    xs = [point.x for each in series for point in each.points]
    if not xs:
        return None
    axis = answer["axis"] if name == "ours" else answer["axis"].replace("PFLOP", "exaFLOP")
    wide = min(xs) > 0 and max(xs) / min(xs) > 5
    return charts.accuracy_over(series, axis, f"{answer['name']} {name}", logarithmic=wide, named=_named(rows))


def _named(rows: list[dict[str, Any]]) -> dict[float, str]:
    """What the places of an axis are called, where all series have the same names for them: `ViT-B/16, JFT` stands at JFT."""
    given = {(row["x"], row["label"].removeprefix(f"{row['series']}, ")) for row in rows if row["x"] is not None}
    names = dict(given)
    return names if len(names) == len(given) else {}


def _write_claims(path: Path, answer: Fields) -> Path:
    told = _told([row["verdict"] for row in answer["claims"]])
    content = page.render(
        "claims.html.j2",
        title=f"{len(answer['claims'])} claims of the paper",
        description=told,
        answer=answer,
        headline=_headline(answer, told),
        command=command(answer, path.parent),
        first=answer["first_look"],
        verdict_class=_WORDS,
    )
    write_text(path.with_suffix(".html"), content)
    write_text(path.with_suffix(".md"), claims_table(answer))
    return path.with_suffix(".html")


def _told(verdicts: list[str]) -> str:
    """How many claims came to each verdict, in words."""
    words = {
        "holds": ("holds", "hold"),
        "does not hold": ("does not hold", "do not hold"),
        "undecided": ("is undecided", "are undecided"),
        "not judged": ("is not judged", "are not judged"),
    }
    counts = {each: verdicts.count(each) for each in words}
    return ", ".join(f"{count} {words[each][count > 1]}" for each, count in counts.items() if count)


def _headline(answer: dict[str, Any], told: str) -> Markup:
    if not answer["verdicts"]:
        return Markup("At this scale nothing is judged: it shows that every experiment runs.")
    return Markup("Of {} claims: <strong>{}</strong>.").format(len(answer["claims"]), told)


def claims_table(answer: dict[str, Any]) -> str:
    """The claims as a table in Markdown, with every verdict as it came out."""
    lines = ["| claim | verdict | differences [interval] | seeds | cost | measured |", "|---|---|---|---|---|---|"]
    for row in answer["claims"]:
        parts = "; ".join(f"{part['what']}: {difference(part)}" for part in row["parts"])
        level = f" ({round(100 * row['level'])} %)" if row["parts"] else row["why"]
        note = f". {row['note']}" if row["note"] else ""
        measured = f"{row['statistic']}; `patchword paper {row['experiment']}`"
        cost = "–" if row["seconds"] is None else f"{page.duration(row['seconds'])}, {page.flops(row['flops'])}"
        lines.append(
            f"| {row['statement']} ({row['source']}) | **{row['verdict']}** | {parts}{level}{note} | {row['seeds']} | {cost} | "
            f"{measured} |"
        )
    return "\n".join(lines) + "\n"


def difference(part: dict[str, Any]) -> str:
    """A difference with its interval, in its unit."""
    if part["value"] is None:
        return "none"
    ends = [page.gained(part[end], part["unit"]) for end in ("low", "high")]
    return page.gained(part["value"], part["unit"]) + ("" if part["high"] is None else f" [{', '.join(ends)}]")
