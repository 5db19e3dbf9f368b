"""Bytes → uint8 pixels: every limit and every failure has a name, and nothing is guessed or repaired."""

import io
import logging
import struct
import warnings
import zlib

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from patchword.core.picture import DecodeError, orientation, to_pixels

__all__ = ["PIXEL_LIMIT", "SUFFIXES", "DecodeError", "decode", "format_of", "header", "opened", "shrunk"]

PIXEL_LIMIT = 128_000_000
"""Larger pictures are refused from their header: the largest phone photographs in use have 108 million pixels."""

SUFFIXES = frozenset(
    {".avif", ".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm"}
    | {".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
"""The endings of file names, in lower case, that a folder's pictures may have."""

_SMALLEST_SIDE = 2
_GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N"})
# Their complaints about metadata that we do not use.
_CHATTY = r"PIL\.(Gif|Png|Tiff)ImagePlugin"
# The TIFF plugin also logs the errors that it raises, and the logging module prints what nobody handles.
logging.getLogger("PIL.TiffImagePlugin").addHandler(logging.NullHandler())
# What Pillow's plugins are known to raise on damaged files (DecompressionBombError and Warning come from the GIF plugin,
# whose frames may be larger than its header says).
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    ArithmeticError,
    LookupError,
    TypeError,
    EOFError,
    AttributeError,
    AssertionError,
    RuntimeError,
    NotImplementedError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Warning,
)


def decode(item: bytes | np.ndarray, channels: int, *, shrink_to: int | None = None) -> np.ndarray:
    """One picture as uint8 H×W×C, upright, on white (see `core.picture.to_pixels`); C = `channels` is 1 or 3.

    `item` is the content of a picture file, or pixels already: uint8 H×W or H×W×C, of which only the channels change.
    `shrink_to` lets a JPEG be decoded at 1/2, 1/4 or 1/8 of its size (the DCT does it almost for free) as long as its
    short side keeps at least that many pixels; other pictures ignore it.

    Raises `DecodeError` with a `reason`. Safe in threads.
    """
    if isinstance(item, np.ndarray):
        return _adapt(item, channels)
    image = opened(item)
    if shrink_to is not None and isinstance(image, JpegImagePlugin.JpegImageFile):
        image.draft(None, (shrink_to, shrink_to))
    return _pixels(image, item, channels)


def shrunk(content: bytes, channels: int, scale: int) -> np.ndarray:
    """A JPEG as `decode` gives it, with sides of 1/`scale`, rounded up; `scale` is 1, 2, 4 or 8."""
    image = opened(content)
    image.draft(None, (image.width // scale, image.height // scale))  # never less, and never half of it
    return _pixels(image, content, channels)


def header(item: bytes | np.ndarray) -> tuple[int, int, bool]:
    """Height and width in pixels, upright, and whether the picture is stored as grey, without decoding a pixel.

    Raises `DecodeError` as `decode` does, for what the header shows.
    """
    if isinstance(item, np.ndarray):
        _check_array(item)
        return item.shape[0], item.shape[1], item.ndim == 2 or item.shape[2] == 1
    image = opened(item)
    turned = orientation(image) >= 5
    height, width = (image.width, image.height) if turned else (image.height, image.width)
    return height, width, image.mode in _GREY_MODES


def format_of(content: bytes) -> str:
    """Pillow's name of the format of a picture's file, by its first bytes; raises `DecodeError` for no picture."""
    plugin = _plugin(content)
    if plugin is None:
        raise DecodeError(f"is not a picture (it starts with {_start(content)})")
    return plugin.format or ""


def opened(content: bytes) -> ImageFile.ImageFile:
    """The picture with its header read and its size checked; raises `DecodeError`.

    The plugin is chosen here, by the first bytes, and not by `Image.open`: so that only the formats below are ever
    parsed, whatever plugins the process has loaded, and so that Pillow's process-wide limit neither warns nor matters.
    """
    if not content:
        raise DecodeError("is empty (0 bytes)")
    plugin = _plugin(content)
    if plugin is None:
        raise DecodeError(f"is not a picture (it starts with {_start(content)})")
    _silence()
    try:
        image = plugin(io.BytesIO(content))
    except _DAMAGE as error:
        raise DecodeError(_damage(error, content)) from error
    if image.width * image.height > PIXEL_LIMIT:
        raise DecodeError(
            f"has {image.width}x{image.height} pixels, more than the limit of {PIXEL_LIMIT // 10**6} megapixels"
        )
    if min(image.size) < _SMALLEST_SIDE:
        raise DecodeError(f"is {image.width}x{image.height} pixels, too small")
    return image


def _pixels(image: ImageFile.ImageFile, content: bytes, channels: int) -> np.ndarray:
    """`to_pixels` of what `opened` made of `content`, with every failure a `DecodeError`."""
    try:
        return to_pixels(image, channels)
    except DecodeError:
        raise
    except _DAMAGE as error:
        raise DecodeError(_damage(error, content)) from error


def _plugin(content: bytes) -> type[ImageFile.ImageFile] | None:
    if content.startswith(b"\xff\xd8\xff"):
        return JpegImagePlugin.JpegImageFile
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImagePlugin.PngImageFile
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile
    if content.startswith((b"GIF87a", b"GIF89a")):
        return GifImagePlugin.GifImageFile
    if content.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return TiffImagePlugin.TiffImageFile
    if content[:1] == b"P" and content[1:2] in b"123456" and content[2:3].isspace():
        return PpmImagePlugin.PpmImageFile
    if content[4:8] == b"ftyp" and content[8:12] in (b"avif", b"avis", b"mif1", b"msf1"):
        return AvifImagePlugin.AvifImageFile
    if content.startswith(b"BM") and content[6:10] == b"\0\0\0\0":
        return BmpImagePlugin.BmpImageFile
    return None


def _start(content: bytes) -> str:
    """The first bytes for a sentence: as text where they are text, otherwise in hexadecimal."""
    first = content[:16]
    if all(32 <= byte < 127 for byte in first.rstrip(b"\r\n\t ")):
        return repr(first.decode("ascii").strip() or " ")
    return "the bytes " + first[:8].hex(" ")


def _damage(error: BaseException, content: bytes) -> str:
    """What one of `_DAMAGE`, raised on `content`, means in words."""
    text = " ".join(str(error).split())
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"has more pixels than the limit of {PIXEL_LIMIT // 10**6} megapixels"
    if isinstance(error, MemoryError):
        return "needs more memory than there is"
    if "runcated" in text or "not enough image data" in text or "no more images" in text or _ends_early(content):
        return "is truncated"
    return f"is damaged ({text or type(error).__name__})"


def _ends_early(content: bytes) -> bool:
    """Whether a container whose header tells its length is shorter than that."""
    if content.startswith(b"RIFF"):
        return len(content) < 8 + int.from_bytes(content[4:8], "little")
    if content.startswith(b"II*\0"):
        return len(content) <= int.from_bytes(content[4:8], "little")
    if content.startswith(b"MM\0*"):
        return len(content) <= int.from_bytes(content[4:8], "big")
    return False


def _silence() -> None:
    """Keep the plugins' warnings about unused metadata from the user, in every thread.

    `warnings.catch_warnings` swaps a process-wide list and would undo the work of other threads; one filter that stays,
    narrow enough to touch nothing else, is safe. It is put back in front when somebody restored the filters of before, or
    put others before it.
    """
    if not any(getattr(entry[3], "pattern", None) == _CHATTY for entry in tuple(warnings.filters)[:1]):
        warnings.filterwarnings("ignore", module=_CHATTY)


def _check_array(pixels: np.ndarray) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)):
        raise DecodeError(f"has shape {pixels.shape} of {pixels.dtype}; uint8 H×W, H×W×1 or H×W×3 is right")
    if min(pixels.shape[:2]) < _SMALLEST_SIDE:
        raise DecodeError(f"is {pixels.shape[1]}x{pixels.shape[0]} pixels, too small")


def _adapt(pixels: np.ndarray, channels: int) -> np.ndarray:
    _check_array(pixels)
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if pixels.shape[2] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=2)
    return np.array(Image.fromarray(pixels).convert("L"))[..., None]
