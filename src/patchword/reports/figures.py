"""Figures as pure functions: numbers in, one inline SVG out, the same bytes every time.

Colours are the page's CSS variables, so that one figure serves light, dark and print. Text that comes from outside
(class names) never passes through matplotlib, which would read `$` as mathematics and warn of glyphs it lacks.
"""

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = Sequence[tuple[float, float]]

# Matplotlib takes only real colours: these stand for the page's variables and are replaced in the finished SVG.
INK, MUTED, RULE, ACCENT, WARM = "#000001", "#000002", "#000003", "#000004", "#000005"
SERIES = tuple(f"#0000{number:02x}" for number in range(17, 25))
_VARIABLES = {INK: "ink", MUTED: "muted", RULE: "rule", ACCENT: "accent", WARM: "warm"}
_VARIABLES |= {colour: f"series-{place}" for place, colour in enumerate(SERIES)}
WIDTH, HEIGHT = 400, 300  # user units; at this width the text is as large as the page's small print
LEFT, RIGHT = 46, 8
_PANEL = (78, 300 - 78 - 12)  # bottom and height of the main panel
_STRIP = (36, 26)  # bottom and height of the strip under it
_MOST_POINTS = 250
NARROW_CLASSES = 36  # up to here a confusion matrix fits beside a section's heading; a larger one takes the full width


def loss_curve(train: Points, validation: Points, learning_rate: Points, resumed: Sequence[int] = ()) -> Markup:
    """Loss over steps (train as a line, validation as dots), with the learning rate in a strip below."""
    with drawing("loss", "Loss over the steps of training, with the learning rate below") as (figure, svg):
        panel, strip = _panel_and_strip(figure)
        _resumptions(panel, resumed)
        _line(panel, _thin(train), ACCENT)
        _line(panel, validation, WARM, dots=True)
        _line(strip, _thin(learning_rate), MUTED)
        _fill(strip, _thin(learning_rate))
        _share_steps(panel, strip, [*train, *validation])
    return svg[0]


def metric_curve(
    validation: Points,
    throughput: Points,
    test: tuple[float, float, float] | None = None,
    resumed: Sequence[int] = (),
) -> Markup:
    """A metric in 0…1 over steps on validation, pictures a second in a strip below.

    `test` is (value, low, high), drawn at the last step with its interval.
    """
    with drawing("metric", "The metric on validation over the steps, with pictures a second below") as (figure, svg):
        panel, strip = _panel_and_strip(figure)
        _resumptions(panel, resumed)
        _line(panel, validation, WARM, dots=True)
        last = max((step for step, _ in [*validation, *throughput]), default=0)
        if test is not None:
            value, low, high = test
            panel.plot([last, last], [low, high], color=INK, linewidth=1.4, solid_capstyle="butt")
            panel.plot([last], [value], "D", color=INK, markersize=5)
        percent_axis(panel)
        _line(strip, _thin(throughput), MUTED)
        _fill(strip, _thin(throughput))
        _share_steps(panel, strip, [*validation, *throughput])
    return svg[0]


def reliability_diagram(bins: Sequence[tuple[float, float, int, float, float]]) -> Markup:
    """Accuracy against confidence, one dot a bin (low, high, n, mean confidence, accuracy); pictures a bin below."""
    filled = [(low, high, n, confidence, accuracy) for low, high, n, confidence, accuracy in bins if n]
    most = max((n for _, _, n, _, _ in filled), default=1)
    with drawing("reliability", "Accuracy against confidence, with the pictures in each bin below") as (figure, svg):
        panel, strip = _panel_and_strip(figure)
        panel.plot([0, 1], [0, 1], color=MUTED, linewidth=1, dashes=(3, 3))
        confidence, accuracy = [b[3] for b in filled], [b[4] for b in filled]
        panel.vlines(confidence, confidence, accuracy, color=WARM, linewidth=1.4)
        panel.plot(confidence, accuracy, color=ACCENT, linewidth=1, alpha=0.5)
        panel.scatter(confidence, accuracy, [12 + 60 * n / most for _, _, n, _, _ in filled], color=ACCENT, linewidth=0)
        panel.set_ylim(-0.03, 1.03)
        percent_axis(panel)
        strip.bar(
            [low for low, *_ in filled],
            [n for _, _, n, _, _ in filled],
            [0.92 * (high - low) for low, high, *_ in filled],
            align="edge",
            color=MUTED,
        )
        strip.set_ylim(0, most)
        strip.set_yticks([most], [compact(most)])
        for axes in (panel, strip):
            axes.set_xlim(-0.02, 1.02)
            axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1], ["0", "20", "40", "60", "80", "100"])
        strip.set_xlabel("confidence in %", labelpad=2)
    return svg[0]


def confusion_matrix(names: Sequence[str], counts: Sequence[Sequence[int]]) -> Markup:
    """A K×K heat map, row = true class: the diagonal in one colour, mistakes in another, shaded by share.

    Counts are written in the cells up to 25 classes. Shades are ten levels and one path each, so that 100 classes stay
    small.
    """
    classes = len(names)
    cell = min(56, max(9, (680 if classes <= NARROW_CLASSES else 880) // classes))
    size = min(12.5, max(8, cell * 0.8))
    labels = [name if len(name) <= 20 else name[:19] + "…" for name in names]
    margin = math.ceil(max(map(len, labels)) * size * 0.56) + 26
    slanted = cell >= 18
    top = math.ceil(margin * 0.76) + 14 if slanted else margin
    width = margin + classes * cell + (math.ceil(margin * 0.66) if slanted else 4)
    height = top + classes * cell + 4
    gap = 1 if cell >= 14 else 0

    paths: dict[tuple[str, int], list[str]] = {}
    numbers: list[Markup] = []
    for row, line in enumerate(counts):
        total = sum(line)
        for column, value in enumerate(line):
            if not value:
                continue
            x, y = margin + column * cell, top + row * cell
            middle_x, middle_y = x + (cell - gap) / 2, round(y + (cell - gap) / 2 + size * 0.36, 1)
            kind = "hit" if row == column else "miss"
            level = math.ceil(10 * math.sqrt(value / total))  # the root lifts rare mistakes above the page's white
            paths.setdefault((kind, level), []).append(f"M{x} {y}h{cell - gap}v{cell - gap}h-{cell - gap}z")
            if classes <= 25:
                numbers.append(Markup('<text x="{}" y="{}">{}</text>').format(middle_x, middle_y, value))
    end = cell * classes - gap
    parts = [
        Markup(
            '<svg class="confusion" viewBox="0 0 {0} {1}" style="--natural:{0}px" role="img">'
            "<title>Confusion matrix of {2} classes: rows are true, columns predicted</title>"
            '<rect class="field" x="{3}" y="{4}" width="{5}" height="{5}"/>'
        ).format(width, height, classes, margin, top, end)
    ]
    for (kind, level), shapes in sorted(paths.items()):
        opacity = round(0.06 + 0.085 * level, 3)
        parts.append(Markup('<path class="{}" fill-opacity="{}" d="{}"/>').format(kind, opacity, "".join(shapes)))
    parts.append(Markup('<g class="rows" font-size="{}">').format(round(size, 1)))
    for row, label in enumerate(labels):
        y = round(top + row * cell + (cell - gap) / 2 + size * 0.36, 1)
        parts.append(Markup('<text x="{}" y="{}">{}</text>').format(margin - 6, y, label))
    parts.append(Markup('</g><g class="columns" font-size="{}">').format(round(size, 1)))
    for column, label in enumerate(labels):
        x, y = round(margin + column * cell + (cell - gap) / 2 + size * (-0.2 if slanted else 0.36), 1), top - 6
        turn = Markup("rotate({} {} {})").format(-45 if slanted else -90, x, y)
        parts.append(Markup('<text x="{}" y="{}" transform="{}">{}</text>').format(x, y, turn, label))
    parts.append(Markup('</g><g class="counts" font-size="{}">').format(round(min(size, cell * 0.42), 1)))
    parts += [*numbers, Markup("</g></svg>")]
    return Markup("").join(parts)


def head_scatter(values: Sequence[Sequence[float]], label: str, most: float | None = None) -> Markup:
    """One dot for each head (columns) over its layer (rows), and a line through the means of the layers; `most` is a bound."""
    means = [sum(row) / len(row) for row in values]
    with drawing(label, f"{label.capitalize()} of every head, by layer") as (figure, svg):
        panel = figure.add_axes((LEFT / WIDTH, 40 / HEIGHT, (WIDTH - LEFT - RIGHT) / WIDTH, (HEIGHT - 52) / HEIGHT))
        if most is not None:
            panel.axhline(most, color=MUTED, linewidth=1, dashes=(2, 3))
        panel.plot(range(len(means)), means, color=ACCENT, linewidth=1.5, alpha=0.6)
        places = [layer for layer, row in enumerate(values) for _ in row]
        panel.scatter(places, [value for row in values for value in row], 16, color=ACCENT, alpha=0.75, linewidth=0)
        panel.set_ylim(0, 1.06 * max(most or 0, *(value for row in values for value in row), 1e-9))
        panel.set_xlim(-0.5, len(values) - 0.5)
        _whole_ticks(panel, len(values) - 1)
        panel.set_xlabel("layer", labelpad=2)
    return svg[0]


@contextmanager
def drawing(name: str, title: str) -> Iterator[tuple["Figure", list[Markup]]]:
    """A matplotlib figure in the page's style; on leaving, its SVG is in the list."""
    import matplotlib  # half a second: only a page with figures pays for it
    from matplotlib.figure import Figure

    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": f"patchword {name}",  # also keeps the ids of two figures on one page apart
        "font.size": 11.5,
        "text.color": INK,
        "axes.edgecolor": RULE,
        "axes.labelcolor": MUTED,
        "axes.linewidth": 1,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "savefig.facecolor": "none",
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "axes.unicode_minus": True,
        "grid.color": RULE,
        "grid.linewidth": 0.8,
        "xtick.color": RULE,
        "ytick.color": RULE,
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": MUTED,
        "xtick.major.size": 3,
        "ytick.major.size": 0,
        "path.simplify": True,
    }
    svg: list[Markup] = []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a person's matplotlibrc must not change the page
        matplotlib.rcParams.update(style)
        figure = Figure((WIDTH / 72, HEIGHT / 72))
        yield figure, svg
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg.append(_inline(file.getvalue(), title))


def _inline(document: str, title: str) -> Markup:
    """A standalone SVG document → an element of the page: its variables and font, no ids of groups, no styles."""
    body = document[document.index("<svg") : document.rindex("</svg>")]
    body = body[body.index(">") + 1 :]
    body = re.sub(r"<!--.*?-->|<style.*?</style>|<metadata.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'(<g) id="[^"]*"', r"\1", body)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    body = re.sub(r' (d|x|y|transform|width|height)="[^"]*"', lambda m: re.sub(r"\d+\.\d{2,}", _shorter, m[0]), body)
    body = re.sub(r' transform="rotate\(-0 [^"]*"', "", body)
    body = re.sub(r"\s+", " ", body.replace("xlink:href", "href")).replace("> <", "><").replace(' "', '"').strip()
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var(--{variable})")
    head = Markup('<svg class="plot" viewBox="0 0 {} {}" role="img"><title>{}</title>').format(WIDTH, HEIGHT, title)
    return head + Markup(body) + Markup("</svg>")


def _shorter(match: re.Match[str]) -> str:
    return f"{float(match[0]):.1f}".removesuffix(".0")


def _panel_and_strip(figure: "Figure") -> tuple["Axes", "Axes"]:
    width = (WIDTH - LEFT - RIGHT) / WIDTH
    panel, strip = (
        figure.add_axes((LEFT / WIDTH, bottom / HEIGHT, width, height / HEIGHT)) for bottom, height in (_PANEL, _STRIP)
    )
    panel.tick_params(labelbottom=False, bottom=False)
    panel.spines["bottom"].set_visible(False)
    strip.grid(False)
    return panel, strip


def _share_steps(panel: "Axes", strip: "Axes", points: Points) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    last = max((step for step, _ in points), default=1) or 1
    for axes in (panel, strip):
        axes.set_xlim(-0.01 * last, 1.02 * last)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    panel.yaxis.set_major_locator(MaxNLocator(nbins=5))
    strip.set_xlabel("step", labelpad=2)


def _whole_ticks(panel: "Axes", last: int) -> None:
    """Ticks at whole numbers from 0 to `last`, and at a few of them where they are many."""
    step = max(1, math.ceil((last + 1) / 13))
    panel.set_xticks(range(0, last + 1, step))


def percent_axis(panel: "Axes") -> None:
    from matplotlib.ticker import FuncFormatter

    panel.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{round(100 * share, 6):g} %".replace("-", "−")))


def _line(axes: "Axes", points: Points, colour: str, dots: bool = False) -> None:
    marker = "o" if len(points) == 1 or (dots and len(points) <= 40) else ""
    axes.plot(
        [x for x, _ in points],
        [y for _, y in points],
        color=colour,
        linewidth=1.5,
        marker=marker,
        markersize=4,
        solid_joinstyle="round",
    )


def _fill(strip: "Axes", points: Points) -> None:
    """Shade a strip under its line; its one tick is its highest value."""
    highest = max((y for _, y in points), default=0)
    if highest <= 0:
        strip.set_yticks([])
        return
    strip.fill_between([x for x, _ in points], [y for _, y in points], color=MUTED, alpha=0.15, linewidth=0)
    strip.set_ylim(0, highest * 1.05)
    strip.set_yticks([highest], [compact(highest)])


def compact(value: float) -> str:
    """A positive figure in the seven signs that there is room for at the left edge: 0.00012, 1,921, 554k, 1.11M."""
    if value < 99_999.5:
        return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"
    rounded = float(f"{value:.3g}")
    for scale, letter in ((1e3, "k"), (1e6, "M"), (1e9, "G")):
        if rounded < 1000 * scale:
            return f"{rounded / scale:.3g}{letter}"
    return f"{rounded:.0e}"


def _resumptions(panel: "Axes", steps: Sequence[int]) -> None:
    for step in steps:
        panel.axvline(step, color=MUTED, linewidth=1, dashes=(2, 3))


def _thin(points: Points) -> Points:
    """At most 250 points: beyond that, the mean of each run of neighbours."""
    if len(points) <= _MOST_POINTS:
        return points
    run = math.ceil(len(points) / _MOST_POINTS)
    groups = [points[start : start + run] for start in range(0, len(points), run)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]
