"""The answer of a comparison in sentences, from the figures of `study.json` alone. `**…**` stands around what matters most."""

import math
from typing import Any

_POINTS = 100
_LEAST_PFLOP = 1e-3
_SURE = 0.975
"""A crossing in fewer of the resamples is doubtful, and none at all where more than the rest of them have one."""


def headline(answer: dict[str, Any]) -> str:
    """Who leads, by how much, how sure that is, and what the plain ViT (or the next) would need to catch up if that is sure."""
    lead, tested = answer["lead"], answer["data"]["splits"][answer["data"]["tested_on"]]
    if lead is None:
        return "Nothing can be compared yet: fewer than two models have an accuracy."
    names = {row["name"]: called(row, answer["models"]) for row in answer["models"]}
    first, second = lead["first"], lead["second"]
    reached = {name: f"{_POINTS * value:.1f} %" for name, value in lead["values"].items()}
    sentence = f"With your {answer['sizes'][-1]:,} training pictures and {budget(answer['question'])} a model, "
    difference = lead["difference"]
    named = f"{reached[first]} of {tested:,} test pictures right"
    if difference["value"] is None:
        sentence += f"{names[first]} names {named}, {names[second]} {reached[second]}, but no seed has both: **nothing is sure**"
        return f"{sentence}."
    if difference["low"] > 0:
        sentence += (
            f"**{names[first]} leads by {_points(difference)}**: it names {named}, {names[second]} {reached[second]}"
        )
    else:
        sentence += (
            f"**no model leads for sure**: {names[first]} names {named}, {names[second]} {reached[second]}, "
            f"a difference of {_points(difference)}"
        )
    if difference["seeds"] == 1:
        sentence += " (of a single seed: the chance of training is not in the interval)"
    elif (need := _plain(answer)) is not None:
        behind, name = need["behind"], names[need["name"]]
        if difference["low"] > 0:
            sentence += f"; {name} {_need(answer, need)}"
        elif need["name"] != second and behind["value"] is not None and behind["low"] > 0:
            sentence += f"; {name} is behind by {_points(behind)}, and {_need(answer, need)}"
    return f"{sentence}."


def called(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """A model as a sentence names it: by its kind where no other is of that kind."""
    alone = sum(other["kind"] == row["kind"] for other in rows) == 1
    return f"the {row['kind']} ({row['name']})" if alone else row["name"]


def budget(question: dict[str, Any], which: str = "budget") -> str:
    """What each model may cost, in words; or what its pre-training may."""
    [(name, value)] = question[which].items()
    if name != "pflop":
        return f"{value:g} {name}"
    return f"{value:g} PFLOP" if value >= _LEAST_PFLOP else f"{1e6 * value:g} GFLOP"


def _points(difference: dict[str, Any]) -> str:
    """A difference with what stands behind ±."""
    return f"{_POINTS * difference['value']:.1f} ± {_POINTS * (difference['high'] - difference['value']):.1f} points"


def _plain(answer: dict[str, Any]) -> dict[str, Any] | None:
    """What the plain ViT would need to be as good as the leader, or where it leads or has no curve, the second."""
    needs = {row["name"]: row for row in answer["lead"]["needs"]}
    plain = [row["name"] for row in answer["models"] if row["kind"] == "plain ViT" and row["name"] in needs]
    return needs.get(plain[0] if plain else answer["lead"]["second"])


def _need(answer: dict[str, Any], need: dict[str, Any]) -> str:
    """How many pictures that is."""
    reach = answer["reach"]
    if need["never"]:
        ends = between(need["low"], None, reach) if 0 < (need["low"] or 0) <= reach else ""
        return f"would not come so far with any number of pictures, by its fitted curve{ends}"
    if need["value"] > reach:
        return f"would need more than {reach / answer['sizes'][-1]:.0f} times as many"
    return f"would need about {about(need['value'])}{between(need['low'], need['high'], reach)}"


def crossings(answer: dict[str, Any]) -> list[str]:
    """A sentence for each pair of models."""
    names = {row["name"]: called(row, answer["models"]) for row in answer["models"]}
    return [crossing_in_words(row, names, answer["sizes"][0], answer["reach"]) for row in answer["crossings"]]


def crossing_in_words(row: dict[str, Any], names: dict[str, str], low: int, reach: float) -> str:
    """A crossing between `low` and `reach` pictures as a sentence; `names` are what its two models are called in it."""
    before, after = names[row["before"]], names[row["after"]]
    share = row["share"]
    if row["alike"]:
        return f"{_upper(before)} and {names[row['models'][1]]} are alike at every size."
    if row["size"] is None:
        other = names[next(name for name in row["models"] if name != row["before"])]
        doubt = f", though in {_POINTS * share:.0f} % of the resamples they cross" if (share or 0) > 1 - _SURE else ""
        return (
            f"{_upper(before)} is ahead of {other} from {low:,} to {reach:,.0f} pictures: no crossing in reach{doubt}."
        )
    ends = between(row["low"], row["high"], reach)
    doubt = f", in {_POINTS * share:.0f} % of the resamples" if share is not None and share < _SURE else ""
    return f"{_upper(after)} overtakes {before} at about {about(row['size'])} pictures{ends}{doubt}."


def about(number: float) -> str:
    """Two figures are all that a fitted curve can tell: 8,431 → 8,400."""
    if number <= 0:
        return "0"
    unit = 10 ** max(0, math.floor(math.log10(number)) - 1)
    return f"{round(number / unit) * unit:,.0f}"


def between(low: float | None, high: float | None, reach: float) -> str:
    """The interval of a number of pictures in brackets; open where it leaves the reach; nothing where nothing is known."""
    if not low:
        return "" if high is None else f" [{about(high)} or fewer]"
    if high is None or high > reach:
        return f" [{about(low)} or more]"
    return f" [{about(low)}–{about(high)}]"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
