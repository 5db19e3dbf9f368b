"""JPEG bytes → the upper rows of its pixels at 1/1, 1/2, 1/4 or 1/8, by libjpeg-turbo without Pillow around it.

Nothing here decides what a good picture is: whatever is unusual, or draws as much as a warning, is left to Pillow, whose
word counts. What comes out are Pillow's own pixels (tests/test_part.py): both run the same library.
"""

import numpy as np

__all__ = ["upper_rows"]

_BASELINE, _SCAN = 0xC0, 0xDA  # the markers of a baseline JPEG's frame and of its scan
_OTHER_FRAMES = frozenset(range(0xC1, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WORTH_CHECKING = 0.95  # to look through all codes and copy the file takes as long as decoding about 4 % of it


def upper_rows(content: bytes, size: tuple[int, int], rows: int, scale: int, channels: int) -> np.ndarray | None:
    """At least `rows` of a grey or colour JPEG as it is stored, from the top, as uint8 h×w×`channels`; None: ask Pillow.

    `size` (height, width) and `rows` count pixels of the full picture, of which `scale` become one in each direction;
    `channels` may be 1 only where the JPEG is grey. Safe in threads.

    Three quarters of the time goes into unpacking the Huffman codes, each of which begins where the one before ends.
    Those below `rows` need not be read: with a smaller height in its header the picture ends there. The decoder then
    complains about the bytes that follow, as it would about damage; so this is done only where Pillow would not mind any.
    """
    import simplejpeg

    height, width = size
    layout = _single_scan(content)
    if layout is not None:
        frame, scan = layout
        # The last rows of chroma are interpolated with those below them.
        below = 2 * scale * max((content[frame + 7 + 3 * part] & 15 for part in range(content[frame + 5])), default=1)
        if rows + below <= height * _WORTH_CHECKING and _is_harmless(content, scan):
            height = rows + below
            content = content[: frame + 1] + height.to_bytes(2, "big") + content[frame + 3 :]
    strict = height == size[0]
    least = {"min_height": -(-height // scale), "min_width": -(-width // scale), "min_factor": scale}
    try:
        # The decoder reads the header by itself: its size is not trusted before it is seen to be the one that was checked.
        if simplejpeg.decode_jpeg_header(content, strict=strict)[:2] != (height, width):
            return None
        pixels = simplejpeg.decode_jpeg(content, "GRAY" if channels == 1 else "RGB", strict=strict, **least)
    except Exception:
        # Of damaged files the decoder's wrapper raises several kinds (KeyError for an unknown colour space, to name one).
        return None
    return pixels if pixels.shape == (least["min_height"], least["min_width"], channels) else None


def _single_scan(content: bytes) -> tuple[int, int] | None:
    """Where the frame of a baseline JPEG of one scan begins (precision, height, width …) and where its codes do; or None."""
    place, frame = 2, None
    while place + 10 < len(content) and content[place] == 0xFF:
        marker, length = content[place + 1], int.from_bytes(content[place + 2 : place + 4], "big")
        if marker in _OTHER_FRAMES or (marker == _BASELINE and frame is not None):
            return None
        if marker == _BASELINE:
            frame = place + 4
            if length != 8 + 3 * content[frame + 5] or place + length + 2 > len(content):
                return None
        elif marker == _SCAN:
            if frame is None or content[place + 4] != content[frame + 5]:  # not a scan for all components
                return None
            return frame, place + 2 + length
        place += 2 + length
    return None


def _is_harmless(content: bytes, scan: int) -> bool:
    """Whether the file ends as it should, with no marker between `scan` and there.

    Whatever else the codes are, libjpeg reads them to the end and Pillow refuses nothing: damage in them shows as wrong
    colours. So nothing goes unnoticed when their end is not read.
    """
    codes = np.frombuffer(content, np.uint8)[scan:-2]
    marks = np.flatnonzero(codes == 0xFF)  # followed by a zero they are data
    return content.endswith(b"\xff\xd9") and not (
        len(marks) and (marks[-1] + 1 == len(codes) or codes[marks + 1].any())
    )
