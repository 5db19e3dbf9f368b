"""Whether maps are true, in words: what the figures of `explanation/faithfulness.py` come to."""

from typing import Any

from patchword.explanation.faithfulness import Figure, mean_interval
from patchword.explanation.maps import Choice
from patchword.reports import page

_FIGURES = {
    "energy": ("Energy on the object", "the share of the map that lies on it; drawn shapes"),
    "pointing": ("Points at the object", "the highest pixel lies on it; drawn shapes"),
    "deletion": ("Deletion", "probability left while its highest pixels are taken away: low is good"),
    "insertion": ("Insertion", "probability while they come first: high is good"),
    "flip": ("Follows a mirror", "correlation with the map of the mirrored picture; another picture's is to be beaten"),
    "shift": ("Follows a shift", "correlation with the map of the picture moved a little; likewise"),
}
_CONTROLS = {"random": "chance", "centre": "the middle", "untrained": "an untrained network"}


def truth_of(truth: tuple[Figure, ...], choice: Choice) -> dict[str, Any]:
    """What the page says of figures: `rows` of its table, a `sentence`, and whether something `fails`."""
    rows = []
    for figure in truth:
        name, what = _FIGURES[figure.name]
        beaten = {control: figure.beats(control) for control in figure.controls}
        rows.append(
            {
                "name": name,
                "what": what,
                "n": len(figure.values),
                "value": figure.value,
                "interval": mean_interval(figure.values),
                **dict.fromkeys(("random", "centre", "untrained", "others")),
                **{control: figure.control(control) for control in figure.controls},
                "verdict": _verdict(beaten),
                "fails": any(beaten[control] is False for control in figure.rivals if control != "centre"),
            }
        )
    sentence, fails = _sentence({figure.name: figure for figure in truth}, choice)
    return {"rows": rows, "sentence": sentence, "fails": fails}


def _verdict(beaten: dict[str, bool | None]) -> str:
    if None in beaten.values():
        return "too few pictures to say"
    if "others" in beaten:
        return "follows the picture" if beaten["others"] else "no more than any map"
    lost = [words for control, words in _CONTROLS.items() if beaten.get(control) is False]
    if not lost:
        return "better than each"
    return f"no better than {_either(lost)}"


def _either(words: list[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last


def _sentence(truth: dict[str, Figure], choice: Choice) -> tuple[str, bool]:
    """What the figures come to; that a map is no better than chance is never left unsaid. And whether something is wrong."""
    pointing = truth["pointing"]
    shares = {name: page.percent(pointing.control(name), 0) for name in pointing.controls}
    before = f", the same network untrained in {shares['untrained']}" if "untrained" in shares else ""
    said = [
        f"On {len(pointing.values)} drawn pictures whose objects are known, {choice.words} points at an object in "
        f"{page.percent(pointing.value, 0)}; a random map in {shares['random']}, a blob in the middle in "
        f"{shares['centre']}{before}."
    ]
    lost = {
        control: [name for name, each in truth.items() if control in each.controls and each.beats(control) is False]
        for control in ("random", "centre", "untrained", "others")
    }
    if {"pointing", "energy"} <= {*lost["random"]}:
        said.append("That is no better than chance: these maps do not show where objects are.")
    elif {"pointing", "energy"} <= {*lost["untrained"]}:
        said.append("That is no better than before training: these maps show what stands out, not what was learned.")
    elif {"pointing", "energy"} <= {*lost["centre"]}:
        said.append("It does not beat the blob: an object is often in the middle anyway.")
    elif blind := [words for control, words in _CONTROLS.items() if "pointing" in lost[control]]:
        said.append(f"In pointing it is no better than {_either(blind)}, within the interval.")
    if {"deletion", "insertion"} <= {*lost["random"]}:
        pictures = page.count(len(truth["deletion"].values), "picture")
        said.append(f"On the {pictures} here, what it points to did not decide the answer more than random pixels.")
    elif {"deletion", "insertion"} <= {*lost["untrained"]}:
        said.append("What it points to did not decide the answer more than what an untrained network points to.")
    if {"flip", "shift"} <= {*lost["others"]}:
        said.append(
            "Maps of different pictures are as alike as those of a picture and its copy, so they say little of it."
        )
    elif lost["others"]:
        copy = "mirrored picture" if "flip" in lost["others"] else "picture moved a little"
        said.append(f"The map of the {copy} is no more like it than that of another picture.")
    return " ".join(said), len(said) > 1
