"""The short way to a plain JPEG's pixels gives the same bits as the long one, and leaves everything else to it."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from patchword.core.picture import DecodeError
from patchword.data import jpeg
from patchword.data.decode import decode
from patchword.data.jpeg import decode_plain, plain_size

SIZES = [(83, 61), (8, 8), (2, 97), (127, 131)]


def photo(height: int, width: int, mode: str = "RGB", **options: Any) -> bytes:
    """Smooth colours with some noise: what makes rounding differ if anything does."""
    generator = np.random.default_rng(height)
    rows, columns = np.mgrid[:height, :width]
    waves = [127 + 90 * np.sin(rows / (5 + 3 * i) + columns / (9 - 2 * i)) for i in range(4)]
    pixels = np.stack(waves, axis=2) + generator.normal(0, 12, (height, width, 4))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)[..., :3]).convert(mode)
    content = io.BytesIO()
    image.save(content, "JPEG", **options)
    return content.getvalue()


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_the_same_bits(height: int, width: int, subsampling: int, progressive: bool) -> None:
    content = photo(height, width, quality=83, subsampling=subsampling, progressive=progressive)
    assert plain_size(content) == (height, width)
    np.testing.assert_array_equal(decode_plain(content, 3), decode(content, 3))


def test_grey_ones_too() -> None:
    content = photo(83, 61, "L")
    np.testing.assert_array_equal(decode_plain(content, 1), decode(content, 1))
    assert decode_plain(content, 3) is None


def test_without_simplejpeg_nothing_is_decoded_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg, "_simplejpeg", None)
    assert decode_plain(photo(83, 61), 3) is None


def test_what_is_not_plain_is_left_to_pillow() -> None:
    whole = photo(83, 61)
    exif = Image.Exif()
    exif[0x0112] = 6
    others = {
        "turned": photo(83, 61, exif=exif),
        "four colours": photo(83, 61, "CMYK"),
        "cut off": whole[:-40],
        "something behind": whole + b"\0",
        "nothing": b"",
        "head alone": whole[:20],
        "no frame": whole[:2] + whole[-2:],
        "a lying length": whole[:4] + b"\xff\xff" + whole[6:],
    }
    for name, content in others.items():
        assert plain_size(content) is None, name
    content = io.BytesIO()
    Image.new("RGB", (9, 9)).save(content, "PNG")
    assert plain_size(content.getvalue()) is None
    assert decode_plain(whole, 1) is None


def test_a_damaged_file_has_the_same_pixels_either_way() -> None:
    """600 files with changed bytes: whenever the short way gives a picture, the long one gives the same."""
    whole, generator = photo(83, 61, progressive=False), np.random.default_rng(0)
    both = 0
    for _ in range(600):
        content = bytearray(whole)
        for place in generator.integers(2, len(whole) - 2, generator.integers(1, 4)):
            content[place] = generator.integers(0, 256)
        damaged = bytes(content)
        size = plain_size(damaged)
        if size is None or size[0] * size[1] > 10**6 or (pixels := decode_plain(damaged, 3)) is None:
            continue
        try:
            expected = decode(damaged, 3)
        except DecodeError as error:
            assert "too small" in error.reason, error  # that the short way does not look at is looked at by the loader
            continue
        np.testing.assert_array_equal(pixels, expected)
        both += 1
    assert both > 20  # most changes are faults that the short way refuses
