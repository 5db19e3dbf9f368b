"""A Pillow picture of any kind → the pixels a person sees, uint8 H×W×C."""

import numpy as np
from PIL import Image

from patchword.core.errors import DataError

_ORIENTATION_TAG = 0x0112
# EXIF orientation → what brings the picture upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class DecodeError(DataError):
    """One picture cannot be had. `reason` is the end of a sentence that begins with the picture's name."""

    def __init__(self, reason: str, name: str = "the picture") -> None:
        super().__init__(f"{name} {reason}")
        self.reason = reason


def to_pixels(image: Image.Image, channels: int) -> np.ndarray:
    """The pixels that a person sees, uint8 H×W×C; C = `channels` is 1 (grey, ITU-R 601 luma) or 3 (RGB).

    The EXIF orientation is applied, transparency lies on white, 16 bits are scaled to 8, and of an animation the current
    frame is taken, which is the first one of a picture just opened. Colour profiles are not applied, as in the field's
    published pipelines.

    Raises `DecodeError` for pixels without a defined white (floating point, 32-bit) and for what the file makes fail.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels is {channels}; 1 (grey) or 3 (RGB) is right")
    image.load()  # before the orientation is read: a TIFF is turned by loading it, and a PNG may tell it last
    turn = _UPRIGHT.get(orientation(image))
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    elif image.mode == "F":
        raise DecodeError("has floating-point pixels, whose white is not defined; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = _on_white(image)
    elif image.mode == "LAB":
        image = image.convert("RGB")  # Pillow knows no direct way from LAB to grey
    image = image.convert("L" if channels == 1 else "RGB")
    if turn is not None:
        image = image.transpose(turn)
    return np.array(image).reshape(image.height, image.width, channels)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8; a damaged EXIF block says nothing, and the picture stays as stored."""
    try:
        number = int(image.getexif().get(_ORIENTATION_TAG, 1))
        return number if number in _UPRIGHT else 1
    except Exception:
        # Pillow's reader of this untrusted block fails with any of a dozen kinds of exception.
        return 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey, stored as one of the modes I;16… or as I, scaled so that 65,535 becomes 255."""
    values = np.asarray(image)
    if image.mode == "I" and values.size and (values.min() < 0 or values.max() > 65535):
        raise DecodeError(
            f"has 32-bit pixels from {values.min()} to {values.max()}, whose white is not defined; "
            "save it with 8 or 16 bits"
        )
    values = values.astype(np.uint32)
    grey = ((values * 255 + 32767) // 65535).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey)


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")  # premultiplied grey has no direct way to RGBA
    picture = image.convert("RGBA")
    white = Image.new("RGB", picture.size, (255, 255, 255))
    white.paste(picture, mask=picture)
    return white
