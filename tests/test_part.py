"""Parts of a JPEG are the pixels that Pillow gives for the whole of it; damage is refused as Pillow refuses it, at any part."""

import io
import itertools
import struct
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from patchword.data.decoding import jpeg
from patchword.data.decoding.decode import DecodeError, decode
from patchword.data.decoding.part import Part, Undecoded, open_picture
from patchword.data.decoding.resize import resized

HEIGHT, WIDTH = 149, 211  # primes: no multiple of a JPEG's blocks
LAYOUTS: dict[str, dict[str, Any]] = {
    "4:4:4": {"subsampling": "4:4:4"},
    "4:2:2": {"subsampling": "4:2:2"},
    "4:2:0": {"subsampling": "4:2:0"},
    "4:1:1": {"subsampling": "4:1:1"},
    "progressive": {"progressive": True},
    "optimised": {"optimize": True, "quality": 98},
    "restarts": {"restart_marker_rows": 1},
    "stored as RGB": {"keep_rgb": True},
    "coarse": {"quality": 5},
}
Size = tuple[int, int]


def scene(height: int = HEIGHT, width: int = WIDTH, seed: int = 3, stretch: float = 1) -> np.ndarray:
    """Waves of colours with edges and some noise; `stretch` makes the waves longer."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / stretch
    waves = [128 + 90 * np.sin(x / (5 + 3 * c) + seed) * np.cos(y / (9 - 2 * c)) for c in range(3)]
    pixels = np.stack(waves, axis=2) + random.normal(0, 6, (height, width, 3))
    pixels[height // 3 : height // 2, width // 4 : width // 2] += 60
    return pixels.clip(0, 255).astype(np.uint8)


def encoded(pixels: np.ndarray, mode: str | None = None, **options: Any) -> bytes:
    picture = Image.fromarray(pixels)
    content = io.BytesIO()
    (picture if mode is None else picture.convert(mode)).save(content, "JPEG", **{"quality": 90, **options})
    return content.getvalue()


def upright(content: bytes, mode: str = "RGB", scale: int = 1) -> np.ndarray:
    """The whole picture by Pillow alone."""
    picture = Image.open(io.BytesIO(content))
    if scale > 1:
        picture.draft(None, (picture.width // scale, picture.height // scale))  # type: ignore[attr-defined]
    pixels = np.asarray(ImageOps.exif_transpose(picture).convert(mode))
    return pixels.reshape(*pixels.shape[:2], -1)


def pillows(crop: np.ndarray, size: Size, channels: int = 3) -> np.ndarray:
    """Pillow's resize, C×H×W."""
    picture = Image.fromarray(crop).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(picture).reshape(*size, channels).transpose(2, 0, 1).astype(int)


def undecoded(content: bytes, channels: int = 3) -> Undecoded:
    picture = open_picture(content, channels)
    assert isinstance(picture, Undecoded)
    return picture


def boxes(height: int, width: int) -> list[tuple[int, int, int, int]]:
    """The whole picture, its corners, its borders, single pixels, and some at random."""
    random = np.random.default_rng(7)
    rows = [(0, height), (0, 1), (height - 1, height), (0, 17), (height - 19, height), (31, 64), (32, 33)]
    columns = [(0, width), (0, 1), (width - 1, width), (0, 23), (width - 13, width), (15, 16), (40, 80)]
    rows += [tuple(sorted(random.choice(height + 1, 2, replace=False).tolist())) for _ in range(12)]
    columns += [tuple(sorted(random.choice(width + 1, 2, replace=False).tolist())) for _ in range(12)]
    every = list(itertools.product(rows[:7], columns[:7])) + list(zip(rows[7:], columns[7:], strict=True))
    return [(top, left, bottom, right) for (top, bottom), (left, right) in every]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_part_is_pillows_cut(layout: str) -> None:
    content = encoded(scene(), **LAYOUTS[layout])
    picture, whole = undecoded(content), upright(content)
    assert picture.shape == (HEIGHT, WIDTH, 3)
    for top, left, bottom, right in boxes(HEIGHT, WIDTH):
        part = picture.part((top, left, bottom, right), (HEIGHT, WIDTH))
        assert part.box == (0, 0, bottom - top, right - left)
        np.testing.assert_array_equal(part.pixels, whole[top:bottom, left:right])


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_shrunken_part_is_pillows_draft(layout: str, scale: int) -> None:
    content = encoded(scene(), **LAYOUTS[layout])
    picture, whole = undecoded(content), upright(content, scale=scale)
    assert whole.shape[:2] == (-(-HEIGHT // scale), -(-WIDTH // scale))
    for top, left, bottom, right in boxes(HEIGHT, WIDTH):
        least = ((bottom - top) // scale, (right - left) // scale)
        if min(least) < 1 or min((bottom - top) // (2 * scale), (right - left) // (2 * scale)) >= min(least):
            continue
        part = picture.part((top, left, bottom, right), least)
        first_row, first_column = top // scale, left // scale
        last_row, last_column = -(-bottom // scale), -(-right // scale)
        np.testing.assert_array_equal(part.pixels, whole[first_row:last_row, first_column:last_column])
        expected = np.array([top, left, bottom, right]) / scale - [first_row, first_column, first_row, first_column]
        np.testing.assert_allclose(part.box, expected, atol=1e-9)


@pytest.mark.parametrize(
    ("side", "least", "scale"),
    [(64, 64, 1), (64, 33, 1), (64, 32, 2), (63, 32, 1), (64, 17, 2), (64, 16, 4), (64, 9, 4), (64, 8, 8), (64, 1, 8)],
)
def test_a_part_is_shrunk_only_while_it_is_large_enough(side: int, least: int, scale: int) -> None:
    picture = undecoded(encoded(scene()))
    for size in ((least, least), (least, 1), (1, least)):
        tall, wide = (side if each == least else 120 for each in size)
        part = picture.part((24, 16, 24 + tall, 16 + wide), size)
        assert part.box[2] - part.box[0] == tall / scale
        assert part.box[3] - part.box[1] == wide / scale


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_parts_of_turned_pictures(orientation: int, scale: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(scene(stretch=4), exif=exif, subsampling="4:2:0")
    picture, whole = undecoded(content), upright(content)
    height, width = whole.shape[:2]
    assert picture.shape == (height, width, 3)
    assert (height, width) == ((WIDTH, HEIGHT) if orientation >= 5 else (HEIGHT, WIDTH))
    if scale == 1:
        for top, left, bottom, right in boxes(height, width):
            part = picture.part((top, left, bottom, right), (height, width))
            np.testing.assert_array_equal(part.pixels, whole[top:bottom, left:right])
            assert part.box == (0, 0, bottom - top, right - left)
        return
    for top, left in ((0, 8), (11, 13), (height - 112, width - 112)):
        box = (top, left, top + 104, left + 104)
        part = picture.part(box, (104 // scale, 104 // scale))
        assert (part.box[2] - part.box[0], part.box[3] - part.box[1]) == (104 / scale, 104 / scale)
        ours = resized(part, (13, 13), "bilinear").astype(int)
        away = {
            (y, x): np.abs(ours - pillows(whole[top + y : top + y + 104, left + x : left + x + 104], (13, 13))).mean()
            for y, x in ((0, 0), (0, 4), (0, -4), (4, 0))
        }
        assert away[0, 0] < 2
        assert min(away, key=lambda place: away[place]) == (0, 0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_grey_and_cmyk_are_what_decode_makes_of_them(mode: str, channels: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(scene(), mode, exif=exif)
    picture, whole = undecoded(content, channels), decode(content, channels)
    for top, left, bottom, right in boxes(WIDTH, HEIGHT):
        part = picture.part((top, left, bottom, right), (WIDTH, HEIGHT))
        np.testing.assert_array_equal(part.pixels, whole[top:bottom, left:right])
    shrunken, box = picture.part((0, 0, 208, 144), (26, 18))  # from the last stored row, 149 = 18⅝ · 8, up
    assert (box[2] - box[0], box[3] - box[1]) == (26, 18)
    assert box[1] == 3 / 8
    assert shrunken.shape == (26, 19, channels)


def test_other_formats_and_arrays_are_decoded_at_once() -> None:
    pixels = scene()
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    np.testing.assert_array_equal(open_picture(content.getvalue(), 3), pixels)
    np.testing.assert_array_equal(open_picture(pixels, 3), pixels)
    with pytest.raises(DecodeError, match="is empty"):
        open_picture(b"", 3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_below_the_part_are_left_where_that_is_safe(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import simplejpeg

    rows: list[int] = []
    original = simplejpeg.decode_jpeg

    def watched(*arguments: Any, **options: Any) -> np.ndarray:
        pixels = original(*arguments, **options)
        rows.append(len(pixels))
        return pixels

    monkeypatch.setattr(simplejpeg, "decode_jpeg", watched)
    undecoded(encoded(scene(), **LAYOUTS[layout])).part((3, 5, 40, 60), (37, 55))
    assert rows == [HEIGHT] if layout in ("progressive", "restarts") else 40 <= rows[0] <= 44


# Damage.


def outcome(content: bytes, box: tuple[int, int, int, int], least: Size) -> str | np.ndarray:
    try:
        picture = open_picture(content, 3)
        if isinstance(picture, np.ndarray):
            return picture
        height, width = picture.shape[:2]
        top, left, bottom, right = box
        cut = (min(top, height - 1), min(left, width - 1), min(bottom, height), min(right, width))
        return picture.part(cut, least).pixels
    except DecodeError as error:
        return error.reason


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_truncated_picture_is_refused_at_every_part(layout: str) -> None:
    content = encoded(scene(), **LAYOUTS[layout])
    for end in range(len(content) // 3, len(content) - 2, 97):
        for box in ((0, 0, 9, 9), (0, 0, HEIGHT, WIDTH), (100, 150, HEIGHT, WIDTH)):
            try:
                whole = decode(content[:end], 3)
            except DecodeError as error:
                assert outcome(content[:end], box, (9, 9)) == error.reason == "is truncated"
            else:  # the last codes were only filling
                assert whole.shape == (HEIGHT, WIDTH, 3)
                assert isinstance(outcome(content[:end], box, (9, 9)), np.ndarray)
                assert end > len(content) - 100


@pytest.mark.parametrize("tail", [b"", b"\0" * 40, b"\xff\xd9", b"text", b"\xff\xd8\xff\xe0"])
@pytest.mark.parametrize("layout", ["4:4:4", "4:2:0", "progressive"])
def test_what_follows_the_picture_does_not_matter(layout: str, tail: bytes) -> None:
    content = encoded(scene(), **LAYOUTS[layout]) + tail
    np.testing.assert_array_equal(outcome(content, (3, 4, 30, 40), (27, 36)), upright(content)[3:30, 4:40])


CONTENTS = {layout: encoded(scene(61, 83), **options) for layout, options in LAYOUTS.items()}
CONTENTS["grey"] = encoded(scene(61, 83), "L")
CONTENTS["exif"] = encoded(
    scene(61, 83), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(CONTENTS)), st.data())
def test_damage_is_what_it_is_for_pillow(layout: str, data: st.DataObject) -> None:
    content = bytearray(CONTENTS[layout])
    whole_file, scan = st.integers(0, len(content) - 1), st.integers(content.rfind(b"\xff\xda"), len(content) - 1)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(whole_file | scan)
        content[place] = data.draw(st.integers(0, 255) | st.sampled_from([0xFF, 0xD9, 0xDA, 0xC0, 0xD8, 0xD0]))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
        content += data.draw(st.sampled_from([b"", b"\xff\xd9"]))
    top, left = data.draw(st.integers(0, 60)), data.draw(st.integers(0, 60))
    box = (top, left, top + data.draw(st.integers(1, 23)), left + data.draw(st.integers(1, 23)))
    found = outcome(bytes(content), box, (23, 23))
    try:
        whole = decode(bytes(content), 3)
    except DecodeError as error:
        assert isinstance(found, str)
        assert found == error.reason
    else:
        assert not isinstance(found, str)
        if content.startswith(b"\xff\xd8\xff"):
            height, width = whole.shape[:2]
            cut = whole[min(top, height - 1) : box[2], min(left, width - 1) : box[3]]
            np.testing.assert_array_equal(found, cut)


def test_nothing_is_printed_about_damage(capfd: pytest.CaptureFixture[str]) -> None:
    content = bytearray(CONTENTS["4:2:0"])
    for place in range(content.rfind(b"\xff\xda") + 40, len(content) - 2, 50):
        content[place] = 0x11
    for box in ((0, 0, 9, 9), (0, 0, 61, 83)):
        outcome(bytes(content), box, (9, 9))
    outcome(bytes(content[:-300]), (0, 0, 61, 83), (61, 83))
    assert capfd.readouterr() == ("", "")


def test_a_second_frame_is_not_believed() -> None:
    # Pillow takes the size from the last frame header it meets, libjpeg allows only one.
    content = CONTENTS["4:4:4"]
    start = content.index(b"\xff\xc0")
    frame = content[start : start + 19]
    large = frame[:5] + struct.pack(">HH", 60000, 60000) + frame[9:]
    for changed in (
        content[:start] + large + content[start:],
        content[: start + 19] + large + content[start + 19 :],
        content[:start] + large + content[start + 19 :],
    ):
        found = outcome(changed, (0, 0, 9, 9), (9, 9))
        assert isinstance(found, str)
        assert "megapixels" in found or "damaged" in found


def test_a_frame_without_components_is_refused() -> None:
    content = bytearray(CONTENTS["4:4:4"])
    content[content.index(b"\xff\xc0") + 9] = 0
    assert isinstance(outcome(bytes(content), (0, 0, 9, 9), (9, 9)), str)
    assert jpeg.upper_rows(bytes(content), (61, 83), 9, 1, 3) is None


def test_parts_are_safe_in_threads() -> None:
    pictures = [undecoded(encoded(scene(seed=seed))) for seed in range(4)]
    wholes = [picture.part((0, 0, HEIGHT, WIDTH), (HEIGHT, WIDTH)).pixels for picture in pictures]
    wrong: list[int] = []

    def work(index: int) -> None:
        for row in range(0, 100, 3):
            part = pictures[index].part((row, 7, row + 40, 99), (40, 92))
            if (part.pixels != wholes[index][row : row + 40, 7:99]).any():
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# How far training's pixels are from decoding the whole, cutting, and Pillow's resize.
#
# At full size only the resize differs: torch's kernel rounds its weights to 16 bits, Pillow's to 22, which moves a value
# over the border to the next level now and then, twice where both passes do. Where the DCT shrinks, a mean over 2×2 (4×4,
# 8×8) pixels comes before the triangular filter, which is then narrower: on photographs 1 to 2 levels on average, 5.3 in
# the worst of 300 crops. Bounds are somewhat above what was seen; a crop misplaced by one pixel of the result is at 7.


def difference(content: bytes, box: tuple[int, int, int, int], size: Size) -> np.ndarray:
    top, left, bottom, right = box
    ours = resized(undecoded(content).part(box, size), size, "bilinear")
    return np.abs(ours - pillows(upright(content)[top:bottom, left:right], size))


@pytest.mark.parametrize("layout", ["4:4:4", "4:2:0", "progressive"])
def test_at_full_size_training_sees_pillows_resize(layout: str) -> None:
    content = encoded(scene(), **LAYOUTS[layout])
    for box in boxes(HEIGHT, WIDTH)[::3]:
        found = difference(content, box, (101, 97))  # nothing is large enough to be shrunk
        assert found.max() <= 2
        assert found.mean() < 0.3


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("tall", "wide"), [(1, 1), (1, 997), (1201, 3), (1201, 997), (17, 13), (5, 31)])
def test_any_part_is_resized_as_pillow_does(
    tall: int, wide: int, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(2).choice(np.array([0, 255], np.uint8), (tall, wide, channels))
    whole = Part(pixels, (0, 0, tall, wide))
    expected = pillows(pixels[..., 0] if channels == 1 else pixels, (17, 13), channels)
    assert np.abs(resized(whole, (17, 13), "bilinear") - expected).max() <= 2
    mirrored = Part(pixels[::-1, ::-1], (0, 0, tall, wide))
    np.testing.assert_array_equal(
        resized(mirrored, (17, 13), "bilinear"),
        resized(Part(np.ascontiguousarray(mirrored.pixels), mirrored.box), (17, 13), "bilinear"),
    )
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    np.testing.assert_array_equal(resized(whole, (17, 13), "bilinear"), expected)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_shrinking_changes_little(scale: int) -> None:
    content = encoded(scene(307, 401, stretch=4), subsampling="4:2:0")
    random = np.random.default_rng(11)
    means = []
    for _ in range(30):
        tall, wide = random.integers(scale * 23, min(2 * scale * 23, 300), 2).tolist()
        top, left = random.integers(0, 307 - tall + 1), random.integers(0, 401 - wide + 1)
        means.append(difference(content, (int(top), int(left), int(top) + tall, int(left) + wide), (23, 23)).mean())
    assert np.mean(means) < 3
    assert max(means) < 6


def test_agreement_on_real_photographs(real_data: Path) -> None:
    random = np.random.default_rng(5)
    full, shrunken = [], []
    for path in sorted((real_data / "imagenet-sample").iterdir())[::10]:
        content = path.read_bytes()
        height, width, _ = open_picture(content, 3).shape
        for side in (32, 96, 224):
            tall, wide = random.integers(height // 4, height + 1), random.integers(width // 4, width + 1)
            top, left = random.integers(0, height - tall + 1), random.integers(0, width - wide + 1)
            found = difference(content, (int(top), int(left), int(top + tall), int(left + wide)), (side, side))
            if min(tall, wide) < 2 * side:
                assert found.max() <= 2
                full.append(found.mean())
            else:
                shrunken.append(found.mean())
    assert len(full) > 20
    assert len(shrunken) > 10
    assert max(full) < 0.3
    assert np.mean(shrunken) < 2.5
    assert max(shrunken) < 6
