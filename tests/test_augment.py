import dataclasses
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as tv

from patchword.core.errors import UsageError
from patchword.core.preprocessing import Preprocessing
from patchword.data.augment import AUGREG_LEVELS, CROP_ASPECT, Augment, fit_all, sample_boxes
from patchword.data.plan import uniform

SEED = 29


def _photos(channels: int, count: int = 11) -> list[np.ndarray]:
    random = np.random.default_rng(3)
    sizes = random.integers(20, 90, (count, 2))
    return [random.integers(0, 256, (height, width, channels), dtype=np.uint8) for height, width in sizes]


def _preprocessing(channels: int, image_size: tuple[int, int], **settings: Any) -> Preprocessing:
    return Preprocessing(image_size=image_size, mean=(0.5,) * channels, std=(0.5,) * channels, **settings)


def _keys(count: int) -> dict[str, np.ndarray]:
    return {"epochs": np.arange(count) % 2 + 4, "ids": np.arange(count) * 7 + 1}


def _pillow(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _pixels(picture: Image.Image) -> np.ndarray:
    """C×H×W."""
    return np.asarray(picture).reshape(picture.height, picture.width, -1).transpose(2, 0, 1)


@pytest.mark.parametrize(("interpolation", "tolerance"), [("bicubic", 0), ("bilinear", 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_random_resized_crop_is_pillows_crop_and_resize(channels: int, interpolation: Any, tolerance: int) -> None:
    photos, keys = _photos(channels), _keys(11)
    preprocessing = _preprocessing(channels, (17, 13), interpolation=interpolation)
    ours = Augment(crop="random-resized", flip=False)(photos, preprocessing, seed=SEED, **keys)
    assert ours.shape == (11, channels, 17, 13)
    assert ours.dtype == torch.uint8
    assert ours.is_contiguous()
    heights, widths = np.array([photo.shape[:2] for photo in photos]).T
    draws = uniform(SEED, "crop", keys["epochs"], keys["ids"], count=40).reshape(11, 10, 4)
    boxes, found = sample_boxes(heights, widths, (0.05, 1), CROP_ASPECT, draws)
    assert found.all()
    for photo, (top, left, bottom, right), result in zip(photos, boxes.tolist(), ours, strict=True):
        crop = (
            _pillow(photo)
            .crop((left, top, right, bottom))
            .resize((13, 17), getattr(Image.Resampling, interpolation.upper()))
        )
        assert np.abs(result.numpy().astype(int) - _pixels(crop)).max() <= tolerance


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("stacked", [True, False])
def test_shift_is_a_crop_of_the_padded_picture(stacked: bool, channels: int) -> None:
    count, pixels = 53, 3
    pictures = np.random.default_rng(1).integers(1, 256, (count, 19, 23, channels), dtype=np.uint8)
    pictures.flags.writeable = False
    keys = _keys(count)
    preprocessing = _preprocessing(channels, (19, 23), resize="stretch")
    ours = Augment(crop="shift", shift_pixels=pixels, flip=False)(
        pictures if stacked else list(pictures), preprocessing, seed=SEED, **keys
    )
    assert ours.is_contiguous()
    shifts = np.floor(uniform(SEED, "shift", keys["epochs"], keys["ids"], count=2) * 7).astype(int)
    assert set(shifts.flatten()) == set(range(7))
    for picture, (top, left), result in zip(pictures, shifts.tolist(), ours, strict=True):
        padded: Any = tv.pad(cast("Any", _pillow(picture)), [pixels], padding_mode="reflect")  # it takes pictures, too
        np.testing.assert_array_equal(result.numpy(), _pixels(padded.crop((left, top, left + 23, top + 19))))


@pytest.mark.parametrize("resize", ["crop", "stretch"])
def test_resize_is_what_evaluation_sees_and_shift_moves_that(resize: Any) -> None:
    photos, keys = _photos(3), _keys(11)
    preprocessing = _preprocessing(3, (17, 13), resize=resize)
    resized = Augment(crop="resize", flip=False)(photos, preprocessing, seed=SEED, **keys)
    assert resized.shape == (11, 3, 17, 13)
    for photo, result in zip(photos, resized, strict=True):
        np.testing.assert_array_equal(result.permute(1, 2, 0).numpy(), preprocessing.fit(photo))
    fitted = fit_all(photos, preprocessing)
    shift = Augment(crop="shift", flip=False)
    assert torch.equal(
        shift(photos, preprocessing, seed=SEED, **keys),
        shift(fitted, dataclasses.replace(preprocessing, resize="stretch"), seed=SEED, **keys),
    )


def test_flip_mirrors_every_second_picture() -> None:
    pictures = np.random.default_rng(1).integers(0, 256, (1000, 2, 3, 1), dtype=np.uint8)
    keys = _keys(1000)
    preprocessing = _preprocessing(1, (2, 3), resize="stretch")
    plain = Augment(crop="resize", flip=False)(pictures, preprocessing, seed=SEED, **keys)
    flipped = Augment(crop="resize", flip=True)(pictures, preprocessing, seed=SEED, **keys)
    mirrored = torch.from_numpy((uniform(SEED, "flip", 0, keys["ids"])[:, 0] < 0.5) ^ (keys["epochs"] % 2 == 1))
    assert 450 < mirrored.sum() < 550
    assert torch.equal(flipped[~mirrored], plain[~mirrored])
    assert torch.equal(flipped[mirrored], plain[mirrored].flip(3))
    again = Augment(crop="resize", flip=True)(
        pictures, preprocessing, seed=SEED, **{**keys, "epochs": keys["epochs"] + 1}
    )
    assert torch.equal(again, flipped.flip(3))  # the next time, the other side


@pytest.mark.parametrize("crop", ["random-resized", "shift", "resize"])
def test_a_picture_is_changed_alike_in_any_batch(crop: Any) -> None:
    photos, keys = _photos(3), _keys(11)
    augment = Augment(crop=crop, randaugment_layers=2, randaugment_magnitude=10)
    preprocessing = _preprocessing(3, (17, 13))
    together = augment(photos, preprocessing, seed=SEED, **keys)
    for index in range(11):
        one = {name: values[index : index + 1] for name, values in keys.items()}
        assert torch.equal(augment(photos[index : index + 1], preprocessing, seed=SEED, **one)[0], together[index])
    later = augment(photos, preprocessing, seed=SEED, epochs=keys["epochs"] + 2, ids=keys["ids"])
    assert (later != together).flatten(1).any(dim=1).sum() > 8
    other = augment(photos, preprocessing, seed=SEED + 1, **keys)
    assert (other != together).flatten(1).any(dim=1).sum() > 8


def test_boxes_are_distributed_as_torchvisions() -> None:
    from torchvision.transforms import RandomResizedCrop

    count, height, width, area, aspect = 4000, 61, 97, (0.08, 1.0), (3 / 4, 4 / 3)
    draws = uniform(SEED, "boxes", 0, np.arange(count), count=40).reshape(count, 10, 4)
    boxes, found = sample_boxes(np.full(count, height), np.full(count, width), area, aspect, draws)
    assert found.mean() > 0.998
    top, left, bottom, right = boxes[found].T
    assert top.min() == 0
    assert left.min() == 0
    assert bottom.max() == height
    assert right.max() == width
    tall, wide = bottom - top, right - left
    torch.manual_seed(SEED)
    blank = torch.zeros(1, height, width)
    theirs = np.array([RandomResizedCrop.get_params(blank, list(area), list(aspect)) for _ in range(count)])
    for ours, their in [(top, theirs[:, 0]), (left, theirs[:, 1]), (tall, theirs[:, 2]), (wide, theirs[:, 3])]:
        error = np.hypot(ours.std(), their.std()) / np.sqrt(count)
        assert abs(ours.mean() - their.mean()) < 4 * error
        np.testing.assert_allclose(np.percentile(ours, [10, 50, 90]), np.percentile(their, [10, 50, 90]), atol=2.5)
    assert (tall * wide).min() > 0.07 * height * width


@pytest.mark.parametrize(
    ("size", "box"), [((1, 500), (0, 249, 1, 250)), ((500, 1), (249, 0, 250, 1)), ((1, 1), (0, 0, 1, 1))]
)
def test_where_no_box_fits_the_middle_is_taken(size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    picture = np.random.default_rng(2).integers(0, 256, (*size, 3), dtype=np.uint8)
    top, left, bottom, right = box
    ours = Augment(crop_area=(0.9, 1.0), flip=False)(
        [picture], _preprocessing(3, (5, 7)), seed=SEED, epochs=np.zeros(1, int), ids=np.zeros(1, int)
    )
    expected = _pillow(picture).crop((left, top, right, bottom)).resize((7, 5), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(ours[0].numpy(), _pixels(expected))


@pytest.mark.parametrize(
    ("small", "side", "looks", "crop", "pixels"),
    [
        (True, 32, 4.99, "resize", 4),
        (True, 32, 5.0, "shift", 4),
        (True, 64, 60.0, "shift", 4),
        (True, 28, 5.0, "shift", 3),
        (True, 16, 5.0, "shift", 2),
        (True, 7, 5.0, "shift", 1),
        (False, 224, 4.99, "resize", 4),
        (False, 224, 5.0, "random-resized", 4),
    ],
)
def test_auto_is_settled_by_looks_and_size(small: bool, side: int, looks: float, crop: Any, pixels: int) -> None:
    open_one = Augment(crop="auto", crop_area=(0.3, 0.9), flip=False)
    settled = open_one.settle(small, side, looks)
    assert settled == Augment(crop=crop, shift_pixels=pixels, crop_area=(0.3, 0.9), flip=False)


@pytest.mark.parametrize("crop", ["random-resized", "shift", "resize"])
def test_a_crop_that_was_asked_for_stays(crop: Any) -> None:
    asked = Augment(crop=crop, shift_pixels=7)
    assert asked.settle(True, 16, 1.0) == asked.settle(False, 224, 99.0) == asked


def test_source_side_is_twice_what_evaluation_scales_to() -> None:
    for crop in ("resize", "shift"):
        assert Augment(crop=crop).source_side(_preprocessing(3, (31, 37), crop_fraction=0.5)) == 148


def test_levels_are_augregs() -> None:
    assert list(AUGREG_LEVELS) == ["none", "light1", "light2", "medium1", "medium2", "strong1", "strong2"]
    rows = [(row["randaugment_layers"], row["randaugment_magnitude"], row["mixup"]) for row in AUGREG_LEVELS.values()]
    assert rows == [(0, 0, 0), (2, 0, 0), (2, 10, 0.2), (2, 15, 0.2), (2, 15, 0.5), (2, 20, 0.5), (2, 20, 0.8)]
    for row in AUGREG_LEVELS.values():
        assert dataclasses.asdict(dataclasses.replace(Augment(), **row)) == {**dataclasses.asdict(Augment()), **row}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("crop", "random"),
        ("crop_area", (0.0, 1.0)),
        ("crop_area", (0.5,)),
        ("crop_area", (0.5, 0.4)),
        ("crop_area", (0.5, 1.1)),
        ("crop_area", (0.5, float("nan"))),
        ("shift_pixels", -1),
        ("randaugment_layers", -1),
        ("randaugment_magnitude", 30.5),
        ("randaugment_magnitude", float("nan")),
        ("erasing", 1.5),
        ("mixup", -0.1),
        ("mixup", float("inf")),
        ("cutmix", float("nan")),
    ],
)
def test_wrong_settings_are_named(field: str, value: Any) -> None:
    with pytest.raises(UsageError, match=field):
        Augment(**{field: value})
