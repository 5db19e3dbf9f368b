"""Pixels as the content of a picture file, and that as an address which holds it.

Letters: H×W pixels.
"""

import base64
import io

import numpy as np
from PIL import Image


def png(pixels: np.ndarray) -> bytes:
    """uint8 H×W×3 or H×W as the content of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def jpeg(pixels: np.ndarray, quality: int = 85) -> bytes:
    """uint8 H×W×3 as the content of a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def webp(pixels: np.ndarray, quality: int = 85) -> bytes:
    """uint8 H×W×4 as the content of a WebP file: a JPEG knows no transparency."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WebP", quality=quality)
    return buffer.getvalue()


def data_url(content: bytes) -> str:
    """A PNG, WebP or JPEG as an address that holds it."""
    kinds = {b"\x89PNG": "png", b"RIFF": "webp"}
    kind = kinds.get(content[:4], "jpeg")
    return f"data:image/{kind};base64," + base64.b64encode(content).decode("ascii")
