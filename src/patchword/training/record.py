"""The run's log, one JSON object a line, which always agrees with the weights."""

import json
import math
import os
from pathlib import Path
from typing import Any

from patchword.core import files
from patchword.core.errors import DivergedError

SMALLER_RATE = "a smaller optimizer.lr or a longer schedule.warmup would be right"


class Record:
    """`metrics.jsonl`: lines of kind `train` and `validation`, in the order of their steps."""

    def __init__(self, path: Path, step: int) -> None:
        """Open the log to go on after `step`: lines of later steps, and a torn last line, are cut off."""
        self.path = path
        kept = [line for line in _whole_lines(path) if line["step"] <= step]
        self.last_validation = max((line["step"] for line in kept if line.get("kind") == "validation"), default=0)
        """The newest step that has a line of validation."""
        files.write_text(path, "".join(_dump(line) for line in kept))

    def write(self, kind: str, step: int, **values: float) -> None:
        """Append one line."""
        with files.disk_faults(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(_dump({"kind": kind, "step": step, **values}))
            file.flush()
            os.fsync(file.fileno())


def check_finite(loss: float, gradient_norm: float, step: int, lr: float) -> None:
    """Stop before the update that would spoil the weights, and name the step."""
    if math.isfinite(loss) and math.isfinite(gradient_norm):
        return
    what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient norm is {gradient_norm}"
    raise DivergedError(
        f"training diverged in step {step}: the {what} at a learning rate of {lr:.3g}; "
        f"the checkpoint keeps the weights of the step before; {SMALLER_RATE}"
    )


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    if path.exists():
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                break
            if not isinstance(line, dict) or not isinstance(line.get("step"), int):
                break
            lines.append(line)
    return lines


def _dump(line: dict[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"
