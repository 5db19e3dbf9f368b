"""How the arguments of verbs look in their help."""

from pathlib import Path
from typing import Annotated, Any

import tyro


def argument(metavar: str, **settings: Any) -> Any:
    """Shown as METAVAR, without a note on its type or default: the sentence beside it says what is needed."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="", **settings)


Data = Annotated[str, tyro.conf.Positional, argument("DATA")]
ModelSource = Annotated[str | Path, tyro.conf.Positional, argument("MODEL", constructor=str)]
Target = Annotated[str | Path | None, argument("PATH", constructor=str)]
Name = Annotated[str | None, argument("NAME", constructor=str)]
Number = Annotated[float | None, argument("N", constructor=float)]
Whole = Annotated[int | None, argument("N", constructor=int)]
