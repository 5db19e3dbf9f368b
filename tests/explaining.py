"""What the tests of `explain` have in common: a model with labels, two pictures, and what a page holds."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from patchword.models.contract import Model
from test_explanation import model_of
from test_report import Elements

LABELS = ("ant", "bee", "cat", "<b>dog</b>", "a&b")


def photo(path: Path, size: tuple[int, int] = (50, 40), seed: int = 0, mode: str = "RGB") -> Path:
    """A picture of noise, width × height."""
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path)
    return path


def two_photos(folder: Path) -> list[Path]:
    return [photo(folder / "wide.png"), photo(folder / "tall.jpg", (30, 70), 1)]


def labelled_vit() -> Model:
    model = model_of(pool="token")
    model.labels = LABELS
    return model


def page_of(folder: Path, name: str = "report.html") -> Elements:
    return Elements((folder / name).read_text("utf-8"))


def data_of(folder: Path, name: str = "report.html") -> list[dict[str, Any]]:
    source = (folder / name).read_text("utf-8")
    return [json.loads(each) for each in re.findall(r'<script type="application/json">(.*?)</script>', source)]
