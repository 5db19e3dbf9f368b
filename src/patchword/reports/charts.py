"""Figures of studies: several models, each with a colour and a marker of its own, over pictures, FLOPs or time.

A model's place in the study decides both, so that it looks the same in every figure; `key` is the marker for the text beside.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup

from patchword.reports.figures import (
    HEIGHT,
    INK,
    LEFT,
    MUTED,
    RIGHT,
    SERIES,
    WIDTH,
    Points,
    compact,
    drawing,
    percent_axis,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Matplotlib's marker, and the same as a path in 10×10 units.
_MARKERS = (
    ("o", "M5 1a4 4 0 1 0 .01 0z"),
    ("s", "M1.5 1.5h7v7h-7z"),
    ("^", "M5 1l4.3 7.5H.7z"),
    ("D", "M5 .7L9.3 5 5 9.3.7 5z"),
    ("v", "M5 9L.7 1.5h8.6z"),
    ("p", "M5 .8l4.2 3-1.6 5H2.4L.8 3.8z"),
    ("X", "M1 3l2-2 2 2 2-2 2 2-2 2 2 2-2 2-2-2-2 2-2-2 2-2z"),
    ("P", "M3.4.9h3.2v2.5h2.5v3.2H6.6v2.5H3.4V6.6H.9V3.4h2.5z"),
)
_BOTTOM, _TOP = 40, 12
# Of a figure of dots, in its units: a row's height, where the dots begin at most, and the signs that there is room for before.
_ROW, _LABELS, _LONGEST = 21, 200, 27
_DOTS = (
    ".dots text { fill: var(--ink); font-size: 11.5px } .dots .label { text-anchor: end } "
    ".dots .tick { fill: var(--muted); text-anchor: middle } .dots .none { fill: var(--muted) }"
)


class Reading(NamedTuple):
    """A measured point, or one of a fitted curve; the interval may be missing."""

    x: float
    value: float
    low: float | None
    high: float | None


class Series(NamedTuple):
    """What a figure shows of one model."""

    place: int
    """Of the model in the study: its colour and marker."""
    points: Sequence[Reading]
    curve: Sequence[Reading] = ()
    """Drawn through or beyond the points, with its band."""


def colour(place: int) -> str:
    """The page's variable for a model's colour."""
    return f"--series-{place % len(SERIES)}"


def key(place: int) -> Markup:
    """A model's marker for the text."""
    return Markup(
        '<svg class="marker" viewBox="0 0 10 10" aria-hidden="true" style="fill:var({})"><path d="{}"/></svg>'
    ).format(colour(place), _MARKERS[place % len(_MARKERS)][1])


def accuracy_against_size(series: Sequence[Series], measured: float, crossings: Points = ()) -> Markup:
    """Accuracy in 0…1 over training pictures, both axes' intervals at 95 %: points, fitted curves with bands, dotted beyond what
    was `measured`; a ring where two curves cross."""
    with drawing("sizes", "Accuracy over the number of training pictures") as (figure, svg):
        panel = _panel(figure)
        panel.set_xscale("log")
        for each in series:
            tint = SERIES[each.place % len(SERIES)]
            inside = [point for point in each.curve if point.x <= measured * 1.001]
            beyond = [point for point in each.curve if point.x >= measured * 0.999]
            for part, dashes in ((inside, None), (beyond, (2, 2))):
                line = panel.plot([p.x for p in part], [p.value for p in part], color=tint, linewidth=1.4)[0]
                if dashes:
                    line.set_dashes(dashes)
            banded = [(p.x, p.low, p.high) for p in each.curve if p.low is not None and p.high is not None]
            if banded:
                x, low, high = zip(*banded, strict=True)
                panel.fill_between(x, low, high, color=tint, alpha=0.12, linewidth=0)
            # A little beside one another, or intervals hide intervals.
            _points(panel, each, spread=1.025 ** (2 * each.place - len(series) + 1))
        for x, y in crossings:
            panel.plot([x], [y], "o", color=INK, markersize=9, markerfacecolor="none", markeredgewidth=1.2)
        panel.axvline(measured, color=MUTED, linewidth=0.8, dashes=(1, 3))
        _share_heights(panel, series)
        _number_axis(panel, "training pictures")
    return svg[0]


def accuracy_over(
    series: Sequence[Series],
    label: str,
    name: str,
    *,
    front: Points = (),
    logarithmic: bool = True,
    named: Mapping[float, str] | None = None,
) -> Markup:
    """Accuracy in 0…1 over a cost or a number; each series' points are joined, and a step line is the front of those that
    nobody beats. Places of an axis that is not logarithmic may be `named`."""
    with drawing(name, f"Accuracy over {label}") as (figure, svg):
        panel = _panel(figure)
        if logarithmic:
            panel.set_xscale("log")
        if len(front) > 1:
            panel.step([x for x, _ in front], [y for _, y in front], where="post", color=MUTED, linewidth=6, alpha=0.2)
        for each in series:
            points = [(point.x, point.value) for point in each.points]
            panel.plot(*zip(*points, strict=True), color=SERIES[each.place % len(SERIES)], linewidth=1.2, alpha=0.7)
            _points(panel, each)
        _share_heights(panel, series)
        if logarithmic:
            _number_axis(panel, label)
        else:
            _whole_axis(panel, label, named or {})
    return svg[0]


class Row(NamedTuple):
    """A line of a figure of dots."""

    label: str
    place: int
    """Of its series: the colour."""
    value: float | None
    low: float | None
    high: float | None
    why: str = "missing"
    """What stands in the place of a value that is None."""


def dots(rows: Sequence[Row], title: str, *, percent: bool = True) -> Markup:
    """A dot with its interval for each row: shares 0…1 on an axis of percent, or numbers −1…1. Labels are other people's text,
    and are escaped."""
    least, factor, sign = (0.0, 100, " %") if percent else (-1.0, 1, "")
    known = [row for row in rows if row.value is not None]
    ends = [end for row in known for end in (row.low, row.value, row.high) if end is not None and least <= end <= 1]
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    low, high = max(least, low - 0.08 * (high - low) - 0.005), min(1.0, high + 0.08 * (high - low) + 0.005)
    height = _ROW * len(rows) + 34
    left = min(_LABELS, 24 + 7 * max((min(len(row.label), _LONGEST) for row in rows), default=0))
    parts = [
        Markup('<svg class="plot dots" viewBox="0 0 {} {}" role="img"><title>{}</title>').format(WIDTH, height, title)
    ]

    def across(value: float) -> float:
        return round(left + (min(max(value, low), high) - low) / (high - low) * (WIDTH - left - 24), 1)

    for tick in _ticks(low, high):
        x = across(tick)
        parts.append(
            Markup(
                '<path d="M{0} 6V{1}" stroke="var(--rule)"/><text x="{0}" y="{2}" class="tick">{3:g}{4}</text>'
            ).format(x, height - 22, height - 8, round(factor * tick, 6), sign)
        )
    for number, row in enumerate(rows):
        y = 6 + _ROW * number + _ROW / 2
        label = row.label if len(row.label) <= _LONGEST else row.label[: _LONGEST - 1] + "…"
        parts.append(Markup('<text x="{}" y="{}" class="label">{}</text>').format(left - 10, y + 4, label))
        if row.value is None:
            parts.append(Markup('<text x="{}" y="{}" class="none">{}</text>').format(left + 6, y + 4, row.why))
            continue
        tint = colour(row.place)
        if row.low is not None and row.high is not None:
            ends = f"M{across(row.low)} {y}H{across(row.high)}"
            # One that goes on beyond the axis says so by an arrow.
            ends += f"M{across(low) + 4} {y - 3}l-4 3l4 3" if row.low < low and low > least else ""
            ends += f"M{across(high) - 4} {y - 3}l4 3l-4 3" if row.high > high and high < 1 else ""
            parts.append(Markup('<path d="{}" stroke="var({})" stroke-width="1.4" fill="none"/>').format(ends, tint))
        parts.append(Markup('<circle cx="{}" cy="{}" r="4" fill="var({})"/>').format(across(row.value), y, tint))
    return Markup("").join([*parts, Markup("</svg>")])


def _ticks(low: float, high: float) -> list[float]:
    """Round shares, three to seven of them."""
    step = next(step for step in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if (high - low) / step <= 6)
    return [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def standalone(svg: Markup, style: str) -> str:
    """A figure of a page as a file of its own: with the page's colours, for light and dark, and a font."""
    roots = re.findall(r":root \{[^}]*\}", style)
    dark = f"@media (prefers-color-scheme: dark) {{ {roots[1]} }}" if len(roots) > 1 else ""
    own = f"{roots[0]} {dark} svg {{ background: var(--paper); font: 11.5px sans-serif }} {_DOTS}"
    head, rest = str(svg).split(">", 1)
    return f'{head} xmlns="http://www.w3.org/2000/svg"><style>{own}</style>{rest}\n'


def _panel(figure: "Figure") -> "Axes":
    box = (LEFT / WIDTH, _BOTTOM / HEIGHT, (WIDTH - LEFT - RIGHT) / WIDTH, (HEIGHT - _BOTTOM - _TOP) / HEIGHT)
    return figure.add_axes(box)


def _points(panel: "Axes", series: Series, spread: float = 1.0) -> None:
    tint, marker = SERIES[series.place % len(SERIES)], _MARKERS[series.place % len(_MARKERS)][0]
    for point in series.points:
        x = point.x * spread
        if point.low is not None and point.high is not None:
            panel.plot([x, x], [point.low, point.high], color=tint, linewidth=1.1, alpha=0.75, solid_capstyle="butt")
        panel.plot([x], [point.value], marker, color=tint, markersize=5.5)


def _share_heights(panel: "Axes", series: Sequence[Series]) -> None:
    """All points and most of every interval: three seeds may leave intervals that say nothing, and must not flatten the rest."""
    from matplotlib.ticker import MaxNLocator

    values = [point.value for each in series for point in (*each.points, *each.curve)]
    low, high = min(values), max(values)
    room = max(0.03, 0.15 * (high - low))
    panel.set_ylim(max(0.0, low - room), min(1.0, high + room))
    panel.yaxis.set_major_locator(MaxNLocator(nbins=6))
    percent_axis(panel)


def _number_axis(panel: "Axes", label: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = panel.get_xlim()
    steps = (1,) if high / low > 300 else (1, 3) if high / low > 12 else (1, 2, 3, 5, 7)
    panel.xaxis.set_major_locator(LogLocator(base=10, subs=steps))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.xaxis.set_minor_locator(LogLocator(base=10, subs=()))
    panel.set_xlabel(label, labelpad=3)


def _whole_axis(panel: "Axes", label: str, named: Mapping[float, str]) -> None:
    from matplotlib.ticker import MaxNLocator

    if named:
        panel.set_xticks(list(named), list(named.values()))
    else:
        panel.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    low, high = panel.get_xlim()
    panel.set_xlim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    panel.set_xlabel(label, labelpad=3)
