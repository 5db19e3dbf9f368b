"""The shell of every page: one self-contained HTML file, its typography, and how numbers are written on it."""

import functools
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import jinja2

THIN = "\u202f"  # a narrow space before %, a full one before units; neither breaks a line
_SPACE = "\u00a0"


def render(template: str, *, title: str, description: str, **content: Any) -> str:
    """Fill `templates/<template>` with `content`, inside the shared head, header and footer.

    Everything is escaped unless it is `Markup`; a name that a template uses and nobody gives is an error. The result
    needs no network and no other file: a content policy in its head forbids both.
    """
    return _environment().get_template(template).render(title=title, description=description, **content)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("patchword.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for write in (
        number,
        percent,
        decimal,
        interval,
        duration,
        flops,
        storage,
        count,
        moment,
        middle_cut,
        points,
        gained,
        reached,
    ):
        environment.filters[write.__name__] = write
    environment.globals["thin"] = THIN
    return environment


def number(value: float | None) -> str:
    """A count with thousands marked: 5,526,346."""
    return "–" if value is None else f"{value:,.0f}"


def percent(value: float | None, decimals: int = 1, unit: bool = True) -> str:
    """A share, or what may be less than nothing, in percent: 61.3 %, −2.1 %; a dash where there is none."""
    if value is None:
        return "–"
    # Adding zero makes 0.0 of what rounds to −0.0.
    return f"{round(100 * value, decimals) + 0.0:.{decimals}f}".replace("-", "−") + (f"{THIN}%" if unit else "")


def points(value: float | None, decimals: int = 1) -> str:
    """A difference of shares in percentage points, with its sign: +2.1, −0.3."""
    # Adding zero makes +0.0 of what rounds to −0.0.
    return "–" if value is None else f"{round(100 * value, decimals) + 0.0:+.{decimals}f}".replace("-", "−")


def gained(value: float | None, unit: str) -> str:
    """A difference: of shares in `points`, with its sign; of other numbers as their `value`; of amounts how many `times`."""
    if unit == "points" or value is None:
        return points(value)
    if unit == "times":
        return f"{value:.2g}{THIN}×"
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "−")


def reached(value: float | None, share: bool = True) -> str:
    """A value in a column: of shares in percent, without the sign; of other numbers as it is."""
    return percent(value, 2, unit=False) if share else decimal(value)


def decimal(value: float | None, decimals: int = 3) -> str:
    """A plain figure: 0.042, −0.300; a dash where there is none."""
    return "–" if value is None else f"{round(value, decimals) + 0.0:.{decimals}f}".replace("-", "−")


def interval(bounds: Sequence[float], decimals: int = 2) -> str:
    """From the one to the other: 0.17–0.30; in words where a dash would stand beside a minus, −0.05 to 0.30."""
    return (" to " if min(bounds) < 0 else "–").join(decimal(each, decimals) for each in bounds)


def duration(seconds: float) -> str:
    """A time as a person would say it: 12 seconds, 5 minutes, 2 h 13 min."""
    if seconds < 90:
        return _unit(seconds, "second")
    if seconds < 90 * 60:
        return _unit(seconds / 60, "minute")
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours}{_SPACE}h" + (f" {minutes}{_SPACE}min" if minutes else "")


def flops(value: float, unit: str = "FLOP") -> str:
    """Floating-point operations with three figures and a fitting prefix: 0.12 PFLOP; 400 GFLOP/s."""
    # PFLOP is the budget's unit, so it is kept down to a hundredth before a smaller prefix takes over.
    steps = [(1e13, 1e15, "P"), (1e12, 1e12, "T"), (0, 1e9, "G")] if unit == "FLOP" else []
    steps = steps or [(1e15, 1e15, "P"), (1e12, 1e12, "T"), (0, 1e9, "G")]
    scale, prefix = next((scale, prefix) for low, scale, prefix in steps if value >= low)
    return f"{_three_figures(value / scale)}{_SPACE}{prefix}{unit}"


def storage(size: float) -> str:
    """Bytes in decimal units: 123 MB."""
    scale, prefix = next((scale, prefix) for scale, prefix in [(1e9, "GB"), (1e6, "MB"), (0, "kB")] if size >= scale)
    return f"{_three_figures(size / (scale or 1e3))}{_SPACE}{prefix}"


def count(value: int, noun: str, plural: str | None = None) -> str:
    """A number and its noun: 1 picture, 3,068 pictures."""
    return f"{value:,} {noun if value == 1 else plural or noun + 's'}"


def moment(date: str) -> str:
    """An ISO 8601 date with time, to the minute: 2026-11-22 10:00 UTC; anything else as it is."""
    try:
        time = datetime.fromisoformat(date)
    except ValueError:
        return date
    # A time without a zone is taken as UTC: the reader's own zone must not change the page.
    return time.replace(tzinfo=time.tzinfo or UTC).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def middle_cut(name: str) -> str:
    """A name that fits on a line below a picture: what is cut out of a longer one is its middle, so that the ending stays."""
    return name if len(name) <= 28 else f"{name[:13]}…{name[-14:]}"


def _three_figures(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 0.001 or value == 0 else f"{value:.1e}"


def _unit(value: float, noun: str) -> str:
    text = f"{value:.0f}" if abs(value - round(value)) < 0.05 or value >= 20 else f"{value:.1f}"
    return f"{text} {noun}" if text == "1" else f"{text} {noun}s"
