"""Plain JPEGs by simplejpeg, where it is installed: the same bits as Pillow's (both are libjpeg-turbo), with less around them."""

import struct

import numpy as np

try:
    import simplejpeg as _simplejpeg
except ImportError:  # of the extra `data`; results do not depend on it
    _simplejpeg = None

_START, _END = b"\xff\xd8\xff", b"\xff\xd9"
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended, progressive: Huffman-coded all
_ADOBE, _EXIF = b"Adobe", b"Exif"


def plain_size(content: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG in which nothing is unusual; None for every other file, which Pillow shall judge.

    Plain is: whole to its end marker, 8 bits, grey or YCbCr, no Exif block that may turn it, no Adobe block that may mean
    other colours.
    """
    if not content.startswith(_START) or not content.endswith(_END):
        return None
    place = 2
    while place + 4 <= len(content) and content[place] == 0xFF:
        marker, length = content[place + 1], int.from_bytes(content[place + 2 : place + 4], "big")
        segment = content[place + 4 : place + 2 + length]
        if marker in _FRAMES:
            if len(segment) < 6:
                return None
            bits, height, width, components = struct.unpack(">BHHB", segment[:6])
            return (height, width) if bits == 8 and components in (1, 3) and height and width else None
        if segment.startswith((_ADOBE, _EXIF)) or not 0xC0 <= marker <= 0xFE or length < 2:
            return None
        place += 2 + length
    return None


def decode_plain(content: bytes, channels: int) -> np.ndarray | None:
    """uint8 H×W×C of a file that `plain_size` takes; None where the decoder finds the smallest fault, where grey is asked of
    colours (Pillow rounds it from RGB, and not from the luma that is stored), and without simplejpeg."""
    if _simplejpeg is None:
        return None
    try:
        _, _, colors, _ = _simplejpeg.decode_jpeg_header(content)
        if (colors == "Gray") != (channels == 1):
            return None
        return _simplejpeg.decode_jpeg(content, "GRAY" if channels == 1 else "RGB")
    except ValueError:
        return None
