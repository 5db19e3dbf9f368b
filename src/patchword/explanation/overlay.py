"""Maps made visible: colours for numbers, laid over the picture that they are of.

Letters: H×W pixels, h×w places of a map.
"""

import numpy as np
import torch

from patchword.explanation.maps import enlarge, unit

SMALLEST_SIDE = 224
"""Pictures whose longer side is shorter are shown enlarged by a whole factor, their pixels as squares."""
# Dark violet over red to pale yellow, lightness rising evenly, so that a map can be read in grey and by colour-blind eyes.
_ANCHORS = ((24, 12, 60), (88, 22, 110), (150, 40, 101), (206, 68, 70), (243, 119, 26), (251, 186, 35), (252, 245, 164))


def palette(count: int = 256) -> np.ndarray:
    """uint8 count×3: the colours from the lowest value to the highest."""
    places = np.linspace(0, 1, len(_ANCHORS))
    anchors = np.array(_ANCHORS, dtype=np.float64)
    return np.stack(
        [np.interp(np.linspace(0, 1, count), places, anchors[:, i]).round() for i in range(3)], axis=1
    ).astype(np.uint8)


def shown(pixels: np.ndarray) -> np.ndarray:
    """uint8 H×W×1 or H×W×3 → uint8 H'×W'×3 as it is shown: small pictures enlarged."""
    factor = max(1, SMALLEST_SIDE // max(pixels.shape[:2]))
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3)).repeat(factor, axis=0).repeat(factor, axis=1)


def overlay(pixels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """uint8 H×W×C and its map h×w → uint8 H'×W'×3: the picture in grey, coloured from the map's lowest value to its highest.

    Where the map is low the picture is dark.
    """
    picture = shown(pixels).astype(np.float64)
    grey = picture @ (0.299, 0.587, 0.114)
    share = unit(enlarge(torch.from_numpy(np.asarray(values, dtype=np.float32))[None], picture.shape[:2]))[0].numpy()
    colours = palette()[(255 * share).round().astype(int)]
    part = 0.5 + 0.25 * share[..., None]
    return (part * colours + (1 - part) * grey[..., None]).round().astype(np.uint8)
