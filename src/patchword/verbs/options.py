"""How the arguments of verbs look: what Python callers may pass, and what the command line makes of its words."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro


def argument(metavar: str, **settings: Any) -> Any:
    """Shown as METAVAR, without a note on its type or default: the sentence beside it says what is needed."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="", **settings)


if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from patchword.models.contract import Model

    Data = str | Path
    ModelSource = str | Path | Model
    Images = str | Path | Sequence[str | Path]
    Assignments = str | Sequence[str] | Mapping[str, Any]
    ImageSize = int | str | tuple[int, int] | None
    Target = str | Path | None
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
    Name = Annotated[str | None, argument("NAME", constructor=str)]
    Number = Annotated[float | None, argument("N", constructor=float)]
    Shots = Annotated[str | None, argument("1,5,10", constructor=str)]
    Shards = Annotated[str, tyro.conf.Positional, argument("SHARDS")]
    Whole = Annotated[int | None, argument("N", constructor=int)]
    LayerName = Annotated[str | None, argument("N|pool", constructor=str)]
    OtherModel = Annotated[str | None, argument("MODEL", constructor=str)]
    OtherData = Annotated[str | None, argument("DATA", constructor=str)]
