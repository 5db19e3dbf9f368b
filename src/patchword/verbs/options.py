"""How the arguments of verbs look: what Python callers may pass, and what the command line makes of its words."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from patchword.core import config
from patchword.core.errors import UsageError


def argument(metavar: str, **settings: Any) -> Any:
    """Shown as METAVAR, without a note on its type or default: the sentence beside it says what is needed."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="", **settings)


if TYPE_CHECKING:
    from patchword.models.contract import Model

    Data = str | Path
    ModelSource = str | Path | Model
    Images = str | Path | Sequence[str | Path]
    Assignments = str | Sequence[str] | Mapping[str, Any]
    ImageSize = int | str | tuple[int, int] | None
    Target = str | Path | None
    Start = str | Path | None
    Name = str | Path | None
    Number = float | None
    Whole = int | None
    LayerName = int | str | None
    OtherModel = str | Path | Model | None
    OtherData = str | Path | None
    Shots = int | str | Sequence[int] | None
    Shards = str | Path
else:
    Data = Annotated[str, tyro.conf.Positional, argument("DATA")]
    ModelSource = Annotated[str, tyro.conf.Positional, argument("MODEL")]
    Images = Annotated[list[str], tyro.conf.Positional, argument("IMAGE [IMAGE ...]")]
    Assignments = Annotated[tuple[str, ...], argument("FIELD=VALUE")]
    ImageSize = Annotated[str | None, argument("224|224x320", constructor=str)]
    Target = Annotated[str | None, argument("PATH", constructor=str)]
    Start = Annotated[str | None, argument("auto|none|WEIGHTS", constructor=str)]
    Name = Annotated[str | None, argument("NAME", constructor=str)]
    Number = Annotated[float | None, argument("N", constructor=float)]
    Shots = Annotated[str | None, argument("1,5,10", constructor=str)]
    Shards = Annotated[str, tyro.conf.Positional, argument("SHARDS")]
    Whole = Annotated[int | None, argument("N", constructor=int)]
    LayerName = Annotated[str | None, argument("N|pool", constructor=str)]
    OtherModel = Annotated[str | None, argument("MODEL", constructor=str)]
    OtherData = Annotated[str | None, argument("DATA", constructor=str)]


def parse_image_size(value: "int | str | tuple[int, int]") -> tuple[int, int]:
    """`224`, `"224x320"` or `(224, 320)` → (height, width) in pixels."""
    parts = value.lower().replace("×", "x").split("x") if isinstance(value, str) else value
    try:
        sides = [int(parts)] * 2 if isinstance(parts, int) else [int(part) for part in parts]
    except ValueError:
        sides = []
    if len(sides) == 1:
        sides *= 2
    if len(sides) != 2 or min(sides) < 1:
        raise UsageError(f"image size {value!r} is not a side or height×width in pixels, such as 224 or 224x320")
    return (sides[0], sides[1])


def assignments(given: "str | Mapping[str, Any] | Sequence[str]") -> list[str]:
    """What `set` may be in Python: one assignment, several, or a mapping of fields to values."""
    if isinstance(given, Mapping):
        # A word means what it would on the command line: "1e-3" is a number.
        return [
            f"{field}={value}" if isinstance(value, str) else config.assignment(field, value)
            for field, value in given.items()
        ]
    return [given] if isinstance(given, str) else list(given)


def one_budget(**asked: float | None) -> dict[str, float]:
    """Of several budgets the one that is given, if any; raises `UsageError` for two, and for one of nothing."""
    given = {name: value for name, value in asked.items() if value is not None}
    if len(given) > 1:
        raise UsageError(f"--{' and --'.join(given)} exclude each other: one budget is right")
    for name, value in given.items():
        if not value > 0:
            raise UsageError(f"{name}={value} must be greater than 0")
    return given
