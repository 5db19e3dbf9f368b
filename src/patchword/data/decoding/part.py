"""A picture file whose header is read → the pixels of one of its parts, with no more of a JPEG decoded than they need."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from PIL import Image

from patchword.core.picture import orientation
from patchword.data.decoding.decode import decode, opened, shrunk
from patchword.data.decoding.jpeg import upper_rows

__all__ = ["Box", "Part", "Undecoded", "open_picture"]

Box = tuple[float, float, float, float]
"""Top, left, bottom, right, in pixels; right and bottom are the first that do not belong to it."""

_SCALES = (8, 4, 2)
# EXIF orientation → how the stored pixels become upright: rows turned round, columns turned round, then both exchanged.
_TURNS = {
    2: (False, True, False),
    3: (True, True, False),
    4: (True, False, False),
    5: (False, False, True),
    6: (True, False, True),
    7: (True, True, True),
    8: (False, True, True),
}


class Part(NamedTuple):
    """What was asked for, and where it lies in what was decoded."""

    pixels: np.ndarray
    """uint8 h×w×C, upright."""
    box: Box
    """The part in `pixels`, at most one pixel smaller on every side; where a JPEG was shrunk, between the pixels."""


class Undecoded:
    """A JPEG that looks good from its header. Its pixels are decoded, and damage is met, when a part is asked for."""

    def __init__(self, content: bytes, image: Image.Image, channels: int) -> None:
        """`image` is `content` as `opened` gives it."""
        self._content, self._channels = content, channels
        self._stored = (image.height, image.width)
        self._turn = _TURNS.get(orientation(image), (False, False, False))
        self._plain = image.mode == "L" or (image.mode == "RGB" and channels == 3)
        height, width = reversed(self._stored) if self._turn[2] else self._stored
        self.shape = (height, width, channels)
        """Height, width and channels, upright."""

    def part(self, box: tuple[int, int, int, int], least: tuple[int, int]) -> Part:
        """The pixels in `box` (top, left, bottom, right, upright), at the smallest size that is at least `least`.

        A JPEG shrinks to 1/2, 1/4 or 1/8 on the way, by its DCT. Raises `DecodeError` for a damaged picture; the rows
        below the box may stay unread, but whether a picture is refused does not depend on the box.
        """
        tall, wide = box[2] - box[0], box[3] - box[1]
        scale = next((s for s in _SCALES if tall >= s * least[0] and wide >= s * least[1]), 1)
        top, left, bottom, right = _back(box, self._turn, self._stored)
        shrunken: Box = (top / scale, left / scale, bottom / scale, right / scale)
        pixels = None
        if self._plain:
            pixels = upper_rows(self._content, self._stored, int(bottom), scale, self._channels)
        if pixels is None:
            pixels = shrunk(self._content, self._channels, scale)
            height, width = reversed(pixels.shape[:2]) if self._turn[2] else pixels.shape[:2]
            return _cut(pixels, _upright(shrunken, self._turn, (height, width)))
        # Only what is needed is turned.
        stored = _cut(pixels, shrunken)
        rows, columns, exchanged = self._turn
        turned = stored.pixels[:: -1 if rows else 1, :: -1 if columns else 1]
        turned = turned.transpose(1, 0, 2) if exchanged else turned
        return Part(turned, _upright(stored.box, self._turn, stored.pixels.shape[:2]))


def open_picture(item: bytes | np.ndarray, channels: int) -> np.ndarray | Undecoded:
    """A JPEG as `Undecoded`, anything else as `decode` gives it: uint8 H×W×`channels`. Raises `DecodeError`."""
    if isinstance(item, np.ndarray) or not item.startswith(b"\xff\xd8\xff"):
        return decode(item, channels)
    return Undecoded(item, opened(item), channels)


def _cut(pixels: np.ndarray, box: Box) -> Part:
    """The whole pixels that `box` touches, a view, and the box in them."""
    top, left = math.floor(box[0]), math.floor(box[1])
    bottom, right = math.ceil(box[2]), math.ceil(box[3])
    return Part(pixels[top:bottom, left:right], (box[0] - top, box[1] - left, box[2] - top, box[3] - left))


def _upright(box: Box, turn: tuple[bool, bool, bool], size: tuple[int, ...]) -> Box:
    """A box in stored pixels of `size` (height, width) → the same in the upright picture."""
    top, left, bottom, right = _mirrored(box, turn, size)
    return (left, top, right, bottom) if turn[2] else (top, left, bottom, right)


def _back(box: Box, turn: tuple[bool, bool, bool], size: tuple[int, int]) -> Box:
    """The inverse of `_upright`."""
    top, left, bottom, right = box
    return _mirrored((left, top, right, bottom) if turn[2] else box, turn, size)


def _mirrored(box: Box, turn: tuple[bool, bool, bool], size: tuple[int, ...]) -> Box:
    top, left, bottom, right = box
    if turn[0]:
        top, bottom = size[0] - bottom, size[0] - top
    if turn[1]:
        left, right = size[1] - right, size[1] - left
    return top, left, bottom, right
