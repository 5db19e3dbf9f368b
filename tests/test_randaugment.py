import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops, ImageEnhance, ImageOps

from patchword.data import randaugment
from patchword.data.plan import uniform
from patchword.data.randaugment import OPERATIONS, rand_augment

BATCH, HEIGHT, WIDTH = 7, 19, 23
PLUS = np.full((BATCH, 3), 0.25)  # a first draw below one half is a positive sign
MINUS = np.full((BATCH, 3), 0.75)


def _pictures(channels: int) -> torch.Tensor:
    """Noise of several contrasts, a smooth ramp, one flat picture, one of two values."""
    random = np.random.default_rng(5)
    pictures = random.integers(0, 256, (BATCH, channels, HEIGHT, WIDTH), dtype=np.uint8)
    pictures[1] = pictures[1] // 3 + 70
    pictures[2] = (np.arange(HEIGHT)[:, None] * 5 + np.arange(WIDTH) * 3).astype(np.uint8)
    pictures[3] = 77
    pictures[4] = np.where(pictures[4] < 200, 13, 240)
    pictures[5] = pictures[5] // 8
    return torch.from_numpy(pictures)


def _pillow(picture: torch.Tensor) -> Image.Image:
    return Image.fromarray(picture[0].numpy() if len(picture) == 1 else picture.permute(1, 2, 0).contiguous().numpy())


def _moved(picture: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    """Pillow's nearest-pixel transform; PERSPECTIVE, since its AFFINE rounds coordinates to 1/65536."""
    grey = (128,) * len(picture.getbands())
    return picture.transform(
        picture.size, Image.Transform.PERSPECTIVE, (*matrix, 0, 0), Image.Resampling.NEAREST, fillcolor=grey
    )


def _solarize_add(picture: Image.Image, addition: int) -> Image.Image:
    brighter = ImageChops.add(picture, Image.new(picture.mode, picture.size, (addition,) * len(picture.getbands())))
    dark = [band.point([255] * 128 + [0] * 128) for band in picture.split()]
    bands = zip(brighter.split(), picture.split(), dark, strict=True)
    return Image.merge(picture.mode, [Image.composite(bright, plain, mask) for bright, plain, mask in bands])


# What Pillow does for each operation, given the magnitude: written from the original's table, not from ours.
INDEPENDENT = {
    "AutoContrast": lambda p, m: ImageOps.autocontrast(p),
    "Equalize": lambda p, m: ImageOps.equalize(p),
    "Invert": lambda p, m: ImageOps.invert(p),
    "Posterize": lambda p, m: ImageOps.posterize(p, min(8, max(1, math.floor(m * 0.4)))),
    "Solarize": lambda p, m: ImageOps.solarize(p, math.floor(m * 25.6)),
    "SolarizeAdd": lambda p, m: _solarize_add(p, math.floor(m * 11)),
    "Color": lambda p, m: ImageEnhance.Color(p).enhance(m / 10 * 1.8 + 0.1),
    "Contrast": lambda p, m: ImageEnhance.Contrast(p).enhance(m / 10 * 1.8 + 0.1),
    "Brightness": lambda p, m: ImageEnhance.Brightness(p).enhance(m / 10 * 1.8 + 0.1),
    "Sharpness": lambda p, m: ImageEnhance.Sharpness(p).enhance(m / 10 * 1.8 + 0.1),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("magnitude", [0, 3.5, 10, 15, 20, 30])
@pytest.mark.parametrize("name", INDEPENDENT)
def test_colour_operation_is_pillows(name: str, magnitude: float, channels: int) -> None:
    pictures = _pictures(channels)
    before = pictures.clone()
    ours = OPERATIONS[name](pictures, magnitude, PLUS)
    assert ours.dtype == torch.uint8
    assert torch.equal(pictures, before)
    for picture, result in zip(pictures, ours, strict=True):
        theirs = np.asarray(INDEPENDENT[name](_pillow(picture), magnitude)).reshape(HEIGHT, WIDTH, channels)
        np.testing.assert_array_equal(result.permute(1, 2, 0).numpy(), theirs)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("magnitude", [0, 7.3, 15.1, 29.9])
@pytest.mark.parametrize("name", ["Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"])
def test_geometric_operation_is_pillows(name: str, magnitude: float, channels: int) -> None:
    pictures = _pictures(channels)
    for draws, sign in [(PLUS, 1), (MINUS, -1)]:
        ours = OPERATIONS[name](pictures, magnitude, draws)
        slope, share = sign * 0.03 * magnitude, sign * magnitude * 10 / 224
        angle = math.radians(sign * 3 * magnitude)
        cosine, sine, x, y = math.cos(angle), math.sin(angle), WIDTH / 2, HEIGHT / 2
        # Pillow measures from the corner of the first pixel, the original's shears from its middle.
        matrix = {
            "Rotate": (cosine, -sine, x - cosine * x + sine * y, sine, cosine, y - sine * x - cosine * y),
            "ShearX": (1, slope, -slope / 2, 0, 1, 0),
            "ShearY": (1, 0, 0, slope, 1, -slope / 2),
            "TranslateX": (1, 0, share * WIDTH, 0, 1, 0),
            "TranslateY": (1, 0, 0, 0, 1, share * HEIGHT),
        }[name]
        for picture, result in zip(pictures, ours, strict=True):
            theirs = np.asarray(_moved(_pillow(picture), matrix)).reshape(HEIGHT, WIDTH, channels)
            np.testing.assert_array_equal(result.permute(1, 2, 0).numpy(), theirs)


def test_rotation_by_a_quarter_and_none() -> None:
    squares = _pictures(3)[:, :, :, :HEIGHT]
    assert torch.equal(randaugment.rotate(squares, np.full(BATCH, 90.0)), squares.rot90(1, (2, 3)))
    assert torch.equal(randaugment.rotate(squares, np.zeros(BATCH)), squares)


def test_each_picture_moves_by_its_own_amount() -> None:
    pictures = _pictures(3)
    moved = randaugment.translate_x(pictures, np.arange(BATCH, dtype=float) - 2)
    for index, picture in enumerate(pictures):
        expected = torch.full_like(picture, 128)
        for x in range(WIDTH):
            if 0 <= x + index - 2 < WIDTH:
                expected[:, :, x] = picture[:, :, x + index - 2]
        assert torch.equal(moved[index], expected)


def test_distances_are_pixels_at_224() -> None:
    row = torch.arange(224, dtype=torch.uint8).expand(1, 1, 224, 224).contiguous()
    moved = OPERATIONS["TranslateX"](row, 10, PLUS[:1])
    assert torch.equal(moved[0, 0, 0, :124], row[0, 0, 0, 100:])
    assert (moved[0, 0, 0, 124:] == 128).all()
    covered = OPERATIONS["Cutout"](torch.zeros_like(row), 10, np.array([[0.25, 0.5, 0.5]]))
    assert (covered == 128).sum() == 80 * 80


def test_cutout_covers_a_rectangle_and_stops_at_the_border() -> None:
    pictures = torch.zeros(3, 2, HEIGHT, WIDTH, dtype=torch.uint8)
    covered = randaugment.cutout(pictures, (3, 5), np.array([[0.5, 0.5], [0.0, 0.999], [0.99, 0.0]]))
    expected = torch.zeros_like(pictures)
    expected[0, :, 9 - 3 : 9 + 3, 11 - 5 : 11 + 5] = 128
    expected[1, :, :3, 22 - 5 :] = 128
    expected[2, :, 18 - 3 :, :5] = 128
    assert torch.equal(covered, expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (2, 2), (3, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_tiny_pictures_survive_every_operation(channels: int, shape: tuple[int, int]) -> None:
    pictures = _pictures(channels)[:, :, : shape[0], : shape[1]].contiguous()
    for operation in OPERATIONS.values():
        for magnitude in (0, 10, 30):
            assert operation(pictures, magnitude, PLUS).shape == pictures.shape


def test_operations_are_the_originals_in_its_order() -> None:
    assert list(OPERATIONS) == [
        *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "Color", "Contrast"),
        *("Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY", "Cutout", "SolarizeAdd"),
    ]


def test_layers_apply_the_drawn_operations_in_turn() -> None:
    ids, epochs = np.arange(11, 11 + BATCH), np.array([0, 0, 0, 1, 1, 1, 1])
    pictures = _pictures(3)
    ours = rand_augment(pictures.clone(), layers=3, magnitude=9, seed=17, epochs=epochs, ids=ids)
    used = set()
    for index in range(BATCH):
        picture = pictures[index : index + 1]
        for layer in range(3):
            draws = uniform(17, f"randaugment/{layer}", int(epochs[index]), ids[index : index + 1], count=4)
            name = list(OPERATIONS)[int(draws[0, 0] * 16)]
            used.add(name)
            picture = OPERATIONS[name](picture, 9, draws[:, 1:])
        assert torch.equal(ours[index], picture[0])
    assert len(used) > 8


def test_every_operation_is_about_equally_likely() -> None:
    draws = uniform(3, "randaugment/0", 0, np.arange(16_000), count=4)
    counts = np.bincount((draws[:, 0] * 16).astype(int), minlength=16)
    assert len(counts) == 16
    assert np.abs(counts - 1000).max() < 150


def test_no_layers_change_nothing() -> None:
    pictures = _pictures(3)
    ids = np.arange(BATCH)
    assert torch.equal(rand_augment(pictures.clone(), layers=0, magnitude=30, seed=1, epochs=ids, ids=ids), pictures)
