"""Bytes → pixels: exact where they can be, and for hostile input always a `DecodeError` with a clause, never another."""

import io
import struct
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from patchword.core.preprocessing import Preprocessing
from patchword.data.decoding import decode as module
from patchword.data.decoding.decode import PIXEL_LIMIT, DecodeError, decode, header

KINDS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


def encoded(kind: str, height: int = 11, width: int = 13, **options: object) -> bytes:
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows * 20, columns * 18, rows * columns], axis=2).astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind, **options)
    return content.getvalue()


CONTENTS = {kind: encoded(kind) for kind in KINDS} | {
    "TIFF packed": encoded("TIFF", compression="tiff_deflate"),
    "JPEG progressive": encoded("JPEG", progressive=True),
}


def png(width: int, height: int, data: bytes = b"") -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def reason(content: bytes) -> str:
    with pytest.raises(DecodeError) as of_decode:
        decode(content, 3)
    return of_decode.value.reason


@pytest.mark.parametrize("kind", CONTENTS)
def test_pixels_and_header_agree_with_pillow(kind: str) -> None:
    content = CONTENTS[kind]
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert (decode(content, 3) == expected).all()
    assert header(content) == (11, 13, False)


def test_header_gives_the_upright_size_and_whether_grey() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert header(encoded("JPEG", exif=exif)) == (13, 11, False)
    content = io.BytesIO()
    Image.new("L", (3, 2)).save(content, "PNG")
    assert header(content.getvalue()) == (2, 3, True)
    assert header(np.zeros((5, 7), np.uint8)) == (5, 7, True)
    assert header(np.zeros((5, 7, 3), np.uint8)) == (5, 7, False)


def test_arrays_only_get_their_channels_adapted() -> None:
    grey = np.arange(35, dtype=np.uint8).reshape(5, 7)
    assert (decode(grey, 1) == grey[..., None]).all()
    assert (decode(grey[..., None], 3) == grey[..., None]).all()
    assert decode(grey, 3).shape == (5, 7, 3)
    red = np.zeros((2, 3, 3), np.uint8)
    red[..., 0] = 255
    assert decode(red, 1)[..., 0].tolist() == [[76, 76, 76], [76, 76, 76]]
    assert decode(red, 3) is red or (decode(red, 3) == red).all()


@pytest.mark.parametrize(
    "array", [np.zeros((2, 2), np.float32), np.zeros((2, 2, 4), np.uint8), np.zeros((2, 2, 2, 3), np.uint8)]
)
def test_other_arrays_are_refused(array: np.ndarray) -> None:
    with pytest.raises(DecodeError, match="uint8 H×W"):
        decode(array, 3)


@pytest.mark.parametrize(
    ("shrink_to", "size"), [(200, (200, 300)), (101, (200, 300)), (100, (100, 150)), (25, (25, 38))]
)
def test_shrink_to_keeps_the_short_side(shrink_to: int, size: tuple[int, int]) -> None:
    assert decode(encoded("JPEG", 200, 300), 3, shrink_to=shrink_to).shape[:2] == size


def test_shrink_to_leaves_other_formats_alone() -> None:
    assert decode(encoded("PNG", 200, 300), 3, shrink_to=10).shape == (200, 300, 3)


def test_reasons() -> None:
    assert reason(b"") == "is empty (0 bytes)"
    assert reason(b"<!DOCTYPE html><html>") == "is not a picture (it starts with '<!DOCTYPE html><')"
    assert (
        reason(b"\x00\x01\x02\x03\xff\xfe\x00\x00\x00")
        == "is not a picture (it starts with the bytes 00 01 02 03 ff fe 00 00)"
    )
    assert reason(encoded("PNG", 1, 1)) == "is 1x1 pixels, too small"
    assert reason(encoded("PNG", 1, 9)) == "is 9x1 pixels, too small"
    assert "65535x65535 pixels, more than the limit of 128 megapixels" in reason(png(65535, 65535))
    assert reason(encoded("JPEG", 100, 100)[:600]) == "is truncated"
    with pytest.raises(DecodeError, match="^the picture is empty"):
        header(b"")


@pytest.mark.parametrize("kind", ["GIF", "JPEG", "PNG", "PPM", "TIFF", "TIFF packed", "WEBP"])
def test_half_a_file_is_truncated(kind: str) -> None:
    content = CONTENTS[kind]
    assert reason(content[: len(content) // 2]) == "is truncated"


def test_limits_are_checked_before_any_pixel_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a pixel was asked for")

    side = int(PIXEL_LIMIT**0.5) + 1
    monkeypatch.setattr(module, "to_pixels", fail)
    assert "megapixels" in reason(png(side, side))
    bomb = encoded("BMP")
    assert "megapixels" in reason(bomb[:18] + struct.pack("<ii", 65535, 65535) + bomb[26:])
    gif = encoded("GIF")
    assert "megapixels" in reason(gif[:6] + struct.pack("<HH", 65535, 65535) + gif[10:])
    assert "megapixels" in reason(b"P6 65535 65535 255\n")


def test_the_ending_of_a_name_means_nothing_and_only_listed_formats_are_read() -> None:
    for content in (
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"8BPS\0\1" + bytes(40),
        b"SIMPLE  =                    T",
        b"/* XPM */",
    ):
        assert reason(content).startswith("is not a picture")


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(CONTENTS)), st.data())
def test_damage_gives_pixels_or_a_reason(kind: str, data: st.DataObject) -> None:
    content = bytearray(CONTENTS[kind])
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    for _ in range(data.draw(st.integers(0, 4))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    for look in (lambda: decode(bytes(content), 1), lambda: header(bytes(content))):
        try:
            result = look()
        except DecodeError as error:
            assert error.reason.split()[0] in ("is", "has", "needs")
            assert "\n" not in error.reason
        else:
            assert isinstance(result, tuple) or result.dtype == np.uint8


@given(st.binary(max_size=60))
def test_noise_is_no_picture(content: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(content, 3)


def test_no_warning_of_pillow_leaks_from_threads() -> None:
    # A TIFF whose metadata point beyond its end makes Pillow warn; a warning is an error in these tests.
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x0f\0\x02\0\0\xff\xff\0\0\xff\xff\x01\x10\0\x02\0\0\xff\xff\0\0\xff\xff"
    content = encoded("JPEG", exif=exif)
    with warnings.catch_warnings(record=True) as caught, pytest.raises(Exception, match="EXIF|Tag|Truncated"):
        warnings.simplefilter("error")
        Image.open(io.BytesIO(content)).getexif()
    assert not caught
    outcomes: list[object] = []

    def work() -> None:
        try:
            outcomes.append(decode(content, 3).shape)
        except BaseException as error:
            outcomes.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [(11, 13, 3)] * 4


def test_one_filter_is_enough() -> None:
    decode(CONTENTS["PNG"], 3)
    before = len(warnings.filters)
    decode(CONTENTS["PNG"], 3)
    assert len(warnings.filters) == before


def as_pillow_evaluates(content: bytes, side: int) -> np.ndarray:
    """The middle, 7/8 of the short side, resized to `side`: by Pillow alone."""
    picture = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    width, height = picture.size
    kept = min(width, height) * 0.875
    box = ((width - kept) / 2, (height - kept) / 2, (width + kept) / 2, (height + kept) / 2)
    return np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR, box=box)).astype(int)


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}, {"quality": 30}])
@pytest.mark.parametrize("orientation", [1, 6])
def test_evaluation_sees_pillows_pixels(orientation: int, options: dict[str, Any]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for height, width in ((307, 401), (97, 31), (23, 29)):
        content = encoded("JPEG", height, width, exif=exif, **options)
        for side in (37, 224):
            ours = Preprocessing(image_size=(side, side)).fit(decode(content, 3))
            assert np.abs(ours - as_pillow_evaluates(content, side)).max() <= 1


def test_evaluation_sees_pillows_pixels_of_photographs(real_data: Path) -> None:
    for path in sorted((real_data / "imagenet-sample").iterdir())[::9]:
        ours = Preprocessing().fit(decode(path.read_bytes(), 3))
        assert np.abs(ours - as_pillow_evaluates(path.read_bytes(), 224)).max() <= 1


def test_real_photographs_as_pillow_shows_them(real_data: Path) -> None:
    for path in sorted((real_data / "imagenet-sample").iterdir())[:12]:
        content = path.read_bytes()
        with Image.open(path) as picture:
            assert (decode(content, 3) == np.asarray(picture.convert("RGB"))).all()
