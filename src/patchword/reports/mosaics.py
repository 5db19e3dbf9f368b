"""Many small pictures in one: the filters of a model, and how alike its positions are."""

from typing import Any

import numpy as np

from patchword.core import encoding
from patchword.explanation import overlay

_FILTERS_ACROSS = 7
_MAPS_ACROSS = 16  # of position similarities, at most
_MOSAIC = 640  # pixels across, at most, when enlarged; and no pixel more than so many times
_LARGEST_FACTOR = 4
_TILE = 16  # pixels of a tile's side, about, beside which a line of one is thin
_LINE = (128, 128, 128, 80)  # on white and on black paper: a white filter is to be seen, too


def filter_mosaic(filters: np.ndarray) -> dict[str, Any]:
    """Grey is 0; of each filter the largest number is white or a full colour."""
    scaled = 0.5 + filters / (2 * np.maximum(np.abs(filters).max(axis=(1, 2, 3), keepdims=True), 1e-12))
    tiles = (255 * scaled).round().astype(np.uint8)
    return _mosaic(np.broadcast_to(tiles, (*tiles.shape[:3], 3)), _FILTERS_ACROSS)


def position_mosaic(similarity: np.ndarray) -> dict[str, Any]:
    """Every patch's map, or every second and so on where they are many; its colours go from `low` to 1."""
    step = max(1, -(-max(similarity.shape[:2]) // _MAPS_ACROSS))
    chosen = similarity[step // 2 :: step, step // 2 :: step]
    low = chosen.min()
    share = (chosen - low) / max(1 - low, 1e-12)
    tiles = overlay.palette()[(255 * share.clip(0, 1)).round().astype(int)]
    return {**_mosaic(tiles.reshape(-1, *tiles.shape[2:]), chosen.shape[1]), "low": float(low)}


def _mosaic(tiles: np.ndarray, across: int) -> dict[str, Any]:
    """uint8 k×h×w×3 in rows of so many, a thin line around each; and the size to show it in, its pixels as squares."""
    larger = max(1, _TILE // min(tiles.shape[1:3]))
    tiles = tiles.repeat(larger, axis=1).repeat(larger, axis=2)
    k, h, w, _ = tiles.shape
    down = -(-k // across)
    picture = np.zeros((down * (h + 1) + 1, across * (w + 1) + 1, 4), np.uint8)
    for i in range(k):
        y, x = i // across * (h + 1), i % across * (w + 1)
        picture[y : y + h + 2, x : x + w + 2] = _LINE
    for i, tile in enumerate(tiles):
        y, x = i // across * (h + 1) + 1, i % across * (w + 1) + 1
        picture[y : y + h, x : x + w] = np.dstack([tile, np.full((h, w), 255, np.uint8)])
    factor = min(max(1, _MOSAIC // picture.shape[1]), _LARGEST_FACTOR)
    height, width = picture.shape[0] * factor, picture.shape[1] * factor
    return {"url": encoding.data_url(encoding.png(picture)), "width": width, "height": height}
