"""Every kind of picture comes out as the pixels a person sees."""

import io

import numpy as np
import pytest
from PIL import Image

from patchword.core.errors import DataError
from patchword.core.picture import DecodeError, to_pixels

HEIGHT, WIDTH = 5, 7


@pytest.fixture
def colours() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def luma(rgb: np.ndarray) -> np.ndarray:
    return rgb @ np.array([0.299, 0.587, 0.114])


def test_rgb_is_kept_and_grey_is_its_luma(colours: np.ndarray) -> None:
    pixels = to_pixels(Image.fromarray(colours), 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    assert (pixels == colours).all()
    grey = to_pixels(Image.fromarray(colours), 1)
    assert grey.shape == (HEIGHT, WIDTH, 1)
    assert np.abs(grey[..., 0] - luma(colours)).max() <= 0.51


def test_grey_becomes_three_equal_channels(colours: np.ndarray) -> None:
    grey = colours[..., 0]
    assert (to_pixels(Image.fromarray(grey), 3) == grey[..., None]).all()
    assert (to_pixels(Image.fromarray(grey), 1)[..., 0] == grey).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_exif_orientation_is_applied_once(kind: str, orientation: int, colours: np.ndarray) -> None:
    # What the standard says about where row 0 and column 0 of the stored picture belong, written without Pillow.
    upright = {
        1: colours,
        2: colours[:, ::-1],
        3: colours[::-1, ::-1],
        4: colours[::-1],
        5: colours.transpose(1, 0, 2),
        6: colours[::-1].transpose(1, 0, 2),
        7: colours[::-1, ::-1].transpose(1, 0, 2),
        8: colours[:, ::-1].transpose(1, 0, 2),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = io.BytesIO()
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    Image.fromarray(colours).save(content, kind, exif=exif, **options)
    pixels = to_pixels(Image.open(content), 3)
    assert pixels.shape == upright.shape
    assert np.abs(pixels.astype(int) - upright).max() <= (0 if kind != "JPEG" else 4)


def test_a_damaged_exif_block_leaves_the_picture_as_stored(colours: np.ndarray) -> None:
    content = io.BytesIO()
    Image.fromarray(colours).save(content, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff broken")
    assert (to_pixels(Image.open(content), 3) == colours).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_transparency_lies_on_white(channels: int, colours: np.ndarray) -> None:
    alpha = np.random.default_rng(5).integers(0, 256, (HEIGHT, WIDTH, 1), dtype=np.uint8)
    share = alpha / 255
    expected = colours * share + 255 * (1 - share)
    pixels = to_pixels(Image.fromarray(np.concatenate([colours, alpha], axis=2)), channels)
    if channels == 1:
        assert np.abs(pixels[..., 0] - luma(expected)).max() <= 1.5
    else:
        assert np.abs(pixels - expected).max() <= 1


def test_grey_with_alpha_lies_on_white() -> None:
    picture = Image.fromarray(np.array([[[0, 0], [0, 255]], [[100, 0], [100, 255]]], np.uint8), "LA")
    assert to_pixels(picture, 1)[..., 0].tolist() == [[255, 0], [255, 100]]
    assert to_pixels(picture, 3)[1, 1].tolist() == [100, 100, 100]


def test_a_palette_with_a_transparent_colour_lies_on_white() -> None:
    picture = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    content = io.BytesIO()
    picture.save(content, "PNG", transparency=1)
    assert to_pixels(Image.open(content), 3).tolist() == [
        [[10, 20, 30], [255, 255, 255]],
        [[70, 80, 90], [255, 255, 255]],
    ]
    content = io.BytesIO()
    picture.save(content, "PNG", transparency=bytes([255, 128, 0]))
    pixels = to_pixels(Image.open(content), 3)
    assert pixels[0, 0].tolist() == [10, 20, 30]
    assert np.abs(pixels[0, 1].astype(int) - [147, 152, 157]).max() <= 1
    assert pixels[1, 0].tolist() == [255, 255, 255]


def test_one_bit_is_black_and_white() -> None:
    picture = Image.fromarray(np.array([[True, False, True]]))
    assert picture.mode == "1"
    assert to_pixels(picture, 1)[..., 0].tolist() == [[255, 0, 255]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_not_clipped(kind: str) -> None:
    values = np.array([[0, 128, 129], [32768, 65535, 257]], np.uint16)
    content = io.BytesIO()
    Image.fromarray(values).save(content, kind)
    picture = Image.open(content)
    assert picture.mode.startswith("I")
    assert to_pixels(picture, 1)[..., 0].tolist() == [[0, 0, 1], [128, 255, 1]]
    assert to_pixels(picture, 3)[1, 0].tolist() == [128, 128, 128]


def test_sixteen_bits_big_endian_are_scaled() -> None:
    content = io.BytesIO()
    Image.fromarray(np.array([[0, 65535], [32768, 257]], np.dtype(">u2"))).save(content, "TIFF")
    assert to_pixels(Image.open(content), 1)[..., 0].tolist() == [[0, 255], [128, 1]]


def test_pixels_without_a_defined_white_are_refused() -> None:
    with pytest.raises(DecodeError, match="floating-point pixels") as caught:
        to_pixels(Image.fromarray(np.zeros((2, 2), np.float32)), 3)
    assert isinstance(caught.value, DataError)
    assert caught.value.reason.startswith("has floating-point")
    with pytest.raises(DecodeError, match="32-bit pixels from 0 to 70000"):
        to_pixels(Image.fromarray(np.array([[0, 70000]], np.int32)), 3)
    with pytest.raises(DecodeError, match="from -1 to 0"):
        to_pixels(Image.fromarray(np.array([[0, -1]], np.int32)), 1)


def test_cmyk_is_shown_as_rgb() -> None:
    picture = Image.fromarray(np.array([[[0, 0, 0, 0], [0, 0, 0, 255], [255, 0, 0, 0]]], np.uint8), "CMYK")
    assert to_pixels(picture, 3).tolist() == [[[255, 255, 255], [0, 0, 0], [0, 255, 255]]]


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "LAB", "RGBX", "RGBa", "La", "PA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_rare_kinds_come_through(mode: str, channels: int) -> None:
    assert to_pixels(Image.new(mode, (WIDTH, HEIGHT)), channels).shape == (HEIGHT, WIDTH, channels)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "lime", "blue")]
    content = io.BytesIO()
    options = {"WEBP": {"lossless": True}}.get(kind, {})
    frames[0].save(content, kind, save_all=True, append_images=frames[1:], **options)
    picture = Image.open(content)
    assert getattr(picture, "n_frames", 1) == 3
    assert (to_pixels(picture, 3) == [255, 0, 0]).all()


def test_two_channels_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="channels is 2"):
        to_pixels(Image.new("RGB", (2, 2)), 2)
