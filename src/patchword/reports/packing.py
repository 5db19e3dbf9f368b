"""The maps of a page as text; its script (`templates/explain.js`) makes numbers of them again."""

import base64
import json
from typing import Any

import numpy as np
from markupsafe import Markup

_LEVELS = 15  # four bits for each number of what patches pay to each other


def script_data(data: dict[str, Any]) -> Markup:
    """For a script element of data: no sign in it can end the element or begin a comment."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def as_base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")


def packed(maps: np.ndarray | None) -> dict[str, Any] | None:
    """…×h×w → a byte for each number between the lowest and the highest of its map, and what these two are."""
    if maps is None:
        return None
    share, low, high = _shares(maps)
    values = (255 * share).round().astype(np.uint8)
    bounds = {"low": [float(f"{each:.4g}") for each in low], "high": [float(f"{each:.4g}") for each in high]}
    return {"shape": maps.shape, "data": as_base64(values), **bounds}


def packed_between(between: np.ndarray | None) -> dict[str, Any] | None:
    """L×N×h×w → four bits for the square root of each number's place between the bounds of its map, two in a byte; of the
    bounds themselves, a byte for how many times the mean of its map the highest is, in sixteenths of a doubling.
    """
    if between is None:
        return None
    share, _, high = _shares(between)
    means = between.reshape(len(high), -1).mean(axis=1, dtype=np.float64)
    peaks = (16 * np.log2(np.maximum(high / np.maximum(means, 1e-300), 1))).round().clip(0, 255).astype(np.uint8)
    values = (_LEVELS * np.sqrt(share)).round().astype(np.uint8)
    values = np.append(values.ravel(), np.zeros(values.size % 2, np.uint8))
    return {
        "shape": between.shape,
        "bits": 4,
        "data": as_base64(values[::2] << 4 | values[1::2]),
        "peaks": as_base64(peaks),
    }


def _shares(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """…×h×w → k×(h·w) between 0 and 1 in each map, and the lowest and highest of each, k."""
    flat = maps.reshape(-1, maps.shape[-2] * maps.shape[-1]).astype(np.float64)
    low, high = flat.min(axis=1), flat.max(axis=1)
    return (flat - low[:, None]) / np.maximum(high - low, 1e-300)[:, None], low, high
