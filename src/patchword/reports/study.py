"""A study folder → its page. What the page says is decided here and in `studies/telling.py`; how it looks is in `templates/`."""

import re
import shlex
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from patchword.core import config
from patchword.core.files import write_text
from patchword.reports import charts, page
from patchword.reports.run import picture_size, read_fields, with_size
from patchword.studies import telling
from patchword.studies.answer import STUDY
from patchword.training.run_folder import PAGE

_SURE = 0.05


def write_study(folder: Path) -> Path:
    """Write `report.html` into the study's folder from its `study.json`, and return its path; the same file, the same bytes."""
    answer = read_fields(folder / STUDY)
    places = {row["name"]: place for place, row in enumerate(answer["models"])}
    sentence = telling.headline(answer)
    content = page.render(
        "study.html.j2",
        title=f"{len(places)} models on {answer['data']['name']}",
        description=sentence.replace("**", ""),
        headline=marked(sentence),
        answer=answer,
        places=places,
        key=charts.key,
        called=lambda row: telling.called(row, answer["models"]),
        sizes=_sizes(answer, places),
        crossings=telling.crossings(answer),
        compute=_compute(answer, places),
        speed=_speed(answer, places),
        tests=_tests(answer),
        disagreements=_disagreements(answer),
        warnings=warnings(answer),
        budget=telling.budget(answer["question"]),
        pretrain_budget=telling.budget(answer["question"], "pretrain_budget") if answer["question"]["pretrain"] else "",
        command=command(answer, folder),
    )
    write_text(folder / PAGE, content)
    return folder / PAGE


def marked(sentence: str) -> Markup:
    """A sentence of ours, which may name what others named, with its `**…**` in bold."""
    parts = re.split(r"\*\*", sentence.replace(" %", f"{page.THIN}%"))
    return Markup("").join(
        Markup("<strong>{}</strong>").format(part) if place % 2 else escape(part) for place, part in enumerate(parts)
    )


def warnings(answer: dict[str, Any]) -> list[str]:
    """What a reader must know before believing it."""
    lines = []
    if answer["status"] != "finished":
        lines.append("The study is on its way: what is not there yet is missing below.")
    for row in answer["models"]:
        name = row["name"]
        if row["left_out"]:
            lines.append(f"{name} is left out: {row['left_out']}.")
        if lost := row["diverged"]:
            lines.append(
                f"{name}: training diverged in {len(lost)} of its runs ({lost[0]}); its means are without them."
            )
        for word, found in (("", row["rate"]), (" before pre-training", row["rate_before"])):
            if found and found["at_edge"]:
                lowest = found["rate"] == min(trial["rate"] for trial in found["trials"])
                edge = f"the {'lowest' if lowest else 'highest'} of those tried, {found['rate']:g}"
                beyond = "lower" if lowest else "higher"
                lines.append(f"{name}: the best learning rate{word} was {edge}; a {beyond} one may be better.")
        for point in row["points"]:
            if point["probe"] is not None and point["value"] is not None and point["value"] < point["probe"]:
                tuned, still = page.percent(point["value"]), page.percent(point["probe"])
                lines.append(
                    f"{name}: with {point['size']:,} pictures, tuning all of it ({tuned}) ends below a linear probe "
                    f"on weights that stand still ({still}): it has lost what it had."
                )
    return lines


def command(answer: dict[str, Any], folder: Path) -> list[str]:
    """The words that repeat the study, or go on with it, as a shell takes them."""
    asked = answer["question"]
    words = ["patchword", "compare", asked["data"], "--models", ",".join(row["name"] for row in answer["models"])]
    words += ["--sizes", ",".join(map(str, asked["sizes"])), "--seeds", str(asked["seeds"])]
    words += ["--image-size", "x".join(map(str, asked["image_size"]))]
    [(name, value)] = asked["budget"].items()
    words += [f"--{name}", _whole(value)]
    if asked["pretrain"]:
        words += ["--pretrain", asked["pretrain"]]
        if value := asked["pretrain_budget"]["pflop"]:
            words += ["--pretrain-pflop", _whole(value)]
    usual = "finetune" if asked["pretrain"] else "scratch"
    words += ["--recipe", asked["recipe"]] if asked["recipe"] != usual else []
    for field, value in _flat(asked["set"] or {}):
        words += ["--set", config.assignment(field, value)]
    return [shlex.quote(word) for word in [*words, "--out", str(folder)]]


def _whole(number: float) -> str:
    """With every figure that it has, for another budget is another study."""
    return repr(number).removesuffix(".0")


def _flat(table: dict[str, Any], before: str = "") -> list[tuple[str, Any]]:
    pairs = []
    for name, value in table.items():
        pairs += _flat(value, f"{before}{name}.") if isinstance(value, dict) else [(before + name, value)]
    return pairs


def _readings(points: list[dict[str, Any]], x: str, scale: float = 1.0) -> list[charts.Reading]:
    return [
        charts.Reading(point[x] / scale, point["value"], point["low"], point["high"])
        for point in points
        if point["value"] is not None
    ]


def _sizes(answer: dict[str, Any], places: dict[str, int]) -> Markup | None:
    series = [
        charts.Series(places[row["name"]], _readings(row["points"], "size"), _readings(row["curve"], "size"))
        for row in answer["models"]
    ]
    series = [each for each in series if each.points]
    if not series or len(answer["sizes"]) < 2:
        return None
    laws = {row["name"]: row["law"] for row in answer["models"]}
    met = []
    for row in answer["crossings"]:
        if row["size"] is not None:
            law = laws[row["before"]]
            met.append((row["size"], 1 - (law["a"] * row["size"] ** -law["b"] + law["c"])))
    return charts.accuracy_against_size(series, answer["sizes"][-1], met)


def _compute(answer: dict[str, Any], places: dict[str, int]) -> Markup | None:
    series = [charts.Series(places[row["name"]], _readings(row["compute"], "flops", 1e15)) for row in answer["models"]]
    series = [each for each in series if each.points]
    front = [(point["cost"] / 1e15, point["value"]) for point in answer["fronts"]["flops"]]
    return charts.accuracy_over(series, "training, PFLOP", "compute", front=front) if series else None


def _speed(answer: dict[str, Any], places: dict[str, int]) -> Markup | None:
    series = []
    for row in answer["models"]:
        rate, last = row["images_per_second"], row["points"][-1]
        if rate and last["value"] is not None:
            reading = charts.Reading(1000 / rate["32"], last["value"], last["low"], last["high"])
            series.append(charts.Series(places[row["name"]], [reading]))
    front = [(1000 * point["cost"], point["value"]) for point in answer["fronts"]["seconds"]]
    return charts.accuracy_over(series, "ms a picture, in batches of 32", "speed", front=front) if series else None


def _tests(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each pair: the means over seeds, and in how many seeds they differ for sure."""
    pairs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in answer["tests"]:
        pairs.setdefault(tuple(row["models"]), []).append(row)
    return [
        {
            "models": names,
            "only_first": sum(row["only_first"] for row in rows) / len(rows),
            "only_second": sum(row["only_second"] for row in rows) / len(rows),
            "difference": sum(row["difference"]["value"] for row in rows) / len(rows),
            "sure": sum(row["p_corrected"] < _SURE for row in rows),
            "seeds": len(rows),
            "rows": rows,
        }
        for names, rows in pairs.items()
    ]


def _disagreements(answer: dict[str, Any]) -> dict[str, Any] | None:
    found = answer["disagreements"]
    if found is None:
        return None
    pictures = []
    for each in found["pictures"]:
        drawn = each["maps"] or {}
        maps = {name: drawn.get(name) if picture_size(drawn.get(name)) else None for name in each["said"]}
        pictures.append({**with_size(each), "maps": maps})
    words = dict.fromkeys(word for word in (found["maps"] or {}).values() if word)
    return {**found, "pictures": pictures, "map_words": " or ".join(words)}
