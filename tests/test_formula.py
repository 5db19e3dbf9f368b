"""Pictures from formulas are pure, nested and learnable, and what is said of them is what is to be seen."""

import hashlib
import io
import itertools
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import patchword as pw
from patchword import cli
from patchword.core.errors import DataError, UsageError
from patchword.data import formula as formulas
from patchword.data.drawing import fractals, shapes
from patchword.data.drawing.shapes import Object, class_parts
from patchword.data.drawing.textures import PATTERNS, Dice, clouds, direction
from patchword.data.duplicates import find_duplicates
from patchword.data.formula import KINDS, Drawn, Formula, parse_formula
from patchword.data.sources import open_data

PINNED = {
    ("fractals", 0, 0, 0, (32, 32)): "9a8924b8de0baddb",
    ("fractals", 3, 99_999, 2**34, (224, 224)): "f8bff56d7afbd764",
    ("fractals", 3, 7, 5, (37, 53)): "8e8209fa1c0aa03e",
    ("shapes", 0, 0, 0, (32, 32)): "85059b0189f32db6",
    ("shapes", 3, 4095, 2**34, (224, 224)): "94cc43fb6e741fdb",
    ("shapes", 3, 7, 5, (53, 37)): "0c6e9a85c2b07197",
}
"""Whoever changes one of them on purpose raises the drawing's VERSION."""


def digest(kind: str, seed: int, label: int, instance: int, size: tuple[int, int]) -> str:
    return hashlib.sha256(KINDS[kind].picture(seed, label, instance, size).tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("of", PINNED, ids=str)
def test_the_bytes_of_pictures_are_pinned(of: tuple[str, int, int, int, tuple[int, int]]) -> None:
    assert digest(*of) == PINNED[of]


@pytest.mark.parametrize(
    ("kind", "step", "expected"), [("fractals", 331, "90c5062608f2c1de"), ("shapes", 13, "db572e01e23517fc")]
)
def test_the_bytes_of_many_classes_are_pinned(kind: str, step: int, expected: str) -> None:
    """What few pictures do not come to: which systems are fit for a picture, each shape, pattern and number of objects."""
    drawn = hashlib.sha256()
    for label in range(0, KINDS[kind].most_classes, step):
        drawn.update(KINDS[kind].picture(2, label, label % 7, (16, 16)).tobytes())
    assert drawn.hexdigest()[:16] == expected


def test_another_process_and_another_order_give_the_same_bytes() -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests'); from test_formula import PINNED, digest; "
        "print(*[digest(*of) for of in reversed(PINNED)])"
    )
    root = Path(__file__).parents[1]
    said = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    assert said.split() == [digest(*of) for of in reversed(PINNED)]


@pytest.mark.parametrize("kind", KINDS)
def test_seed_class_and_instance_matter(kind: str) -> None:
    every = {digest(kind, *of, (16, 16)) for of in itertools.product(range(3), range(3), range(3))}
    assert len(every) == 27


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(8, 8), (8, 1024), (1024, 8), (41, 67)])
def test_any_height_and_width(kind: str, size: tuple[int, int]) -> None:
    pixels = KINDS[kind].picture(1, 2, 3, size)
    assert pixels.shape == (*size, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.std() > 5


@pytest.mark.parametrize("kind", KINDS)
def test_a_set_contains_the_smaller_ones(kind: str) -> None:
    large, few, small = (open_data(f"formula:{kind}-{count}@16,seed=5") for count in ("7x13", "7x3", "3x13"))
    assert large.classes[:3] == small.classes
    assert large.classes == few.classes
    rows = {large.splits["train"].key(row): row for row in range(7 * 13)}
    for part in (few.splits["train"], small.splits["train"]):
        for row in range(len(part)):
            there = rows[part.key(row)]
            assert np.array_equal(part.read(row), large.splits["train"].read(there))
            assert part.labels[row] == large.splits["train"].labels[there]


def test_splits_never_share_a_picture_and_take_none_from_train() -> None:
    dataset = open_data("formula:fractals-11x37")
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 407, "validation": 44, "test": 44}
    keys = list(itertools.chain.from_iterable(split.keys() for split in dataset.splits.values()))
    assert len(set(keys)) == 407 + 44 + 44
    for split in dataset.splits.values():
        assert np.unique(split.counts()).tolist() == [len(split) // 11]
    largest = Drawn(Formula("fractals", 2, formulas.MOST_PICTURES // 2), 0, formulas.MOST_PICTURES // 2)
    last = [int(largest.key(len(largest) - 1).split(b"@")[0].split(b":")[-1])]
    first = [int(dataset.splits[name].key(0).split(b"@")[0].split(b":")[-1]) for name in ("validation", "test")]
    assert last[0] < first[0] < first[0] + formulas.MOST_PICTURES < first[1]


@pytest.mark.parametrize(
    ("address", "held_out"), [("2x1", 2), ("10x14", 10), ("10x15", 20), ("100x100000", 10_000), ("3000x90", 9000)]
)
def test_how_much_is_held_out(address: str, held_out: int) -> None:
    dataset = open_data(f"formula:shapes-{address}")
    assert len(dataset.splits["validation"]) == len(dataset.splits["test"]) == held_out


# --- what is said of shapes ---


def scenes(size: tuple[int, int]) -> list[tuple[int, shapes.Scene]]:
    """Every kind of shape in its usual and in other proportions."""
    chosen = [*range(16), *range(16 * 19, 16 * 20), *range(16 * 71, 16 * 72)]
    return [(label, shapes.scene(9, label, instance, size)) for label in chosen for instance in range(3)]


def angle(y: float, x: float) -> float:
    """Degrees anticlockwise of a direction in rows and columns."""
    return float(np.degrees(np.arctan2(-y, x)))


def apart(first: float, second: float, period: float) -> float:
    return abs((first - second + period / 2) % period - period / 2)


def test_centre_area_radius_and_count_are_those_of_the_mask() -> None:
    counts = set()
    for label, scene in scenes((151, 211)):
        regions = np.asarray(ndimage.label(scene.mask, structure=np.ones((3, 3)))[0])  # pyright: ignore[reportIndexIssue]
        count = np.count_nonzero(np.bincount(regions[scene.mask]) > 3)  # pixels of a thin tip may lie apart
        assert count == scene.count == len(scene.objects), label
        counts.add(count)
        for number, thing in enumerate(scene.objects):
            y, x = np.nonzero(scene.owner == number)
            assert np.bincount(regions[y, x]).max() > 0.97 * len(y)
            y, x = y + 0.5, x + 0.5
            assert abs(y.mean() - thing.y) < 0.5, (label, thing)
            assert abs(x.mean() - thing.x) < 0.5, (label, thing)
            assert len(y) == pytest.approx(thing.area, rel=0.04, abs=6), (label, thing)
            reach = np.hypot(y - thing.y, x - thing.x).max()
            # The tip of a star or wedge may lie between the middles of pixels.
            assert thing.radius - 4.5 < reach < thing.radius + 0.01, (label, thing)
    assert counts == {1, 2, 3, 4, 5, 6}


def test_orientation_is_that_of_the_mask() -> None:
    seen = set()
    for _, scene in scenes((401, 401)):
        for number, thing in enumerate(scene.objects):
            y, x = np.nonzero(scene.owner == number)
            y, x = y + 0.5 - thing.y, x + 0.5 - thing.x
            if thing.symmetry == 2:
                _, axes = np.linalg.eigh(np.cov(y, x))
                found = angle(axes[0, 1], axes[1, 1])
            elif thing.kind in ("triangle", "square", "pentagon", "hexagon", "star", "wedge"):
                tip = np.hypot(y, x).argmax()
                found = angle(y[tip], x[tip])
            else:
                continue
            seen.add(thing.kind)
            assert apart(found, thing.orientation, 360 / thing.symmetry) < 4, thing
    assert len(seen) == 9


def test_orientation_is_below_the_angle_of_symmetry() -> None:
    things = [thing for _, scene in scenes((32, 32)) for thing in scene.objects]
    assert {thing.kind for thing in things} == set(shapes.KINDS)
    for thing in things:
        assert 0 <= thing.orientation < (360 / thing.symmetry if thing.symmetry else 1e-9)
    assert max(thing.orientation for thing in things) > 270


def test_shapes_lie_whole_in_the_picture_and_apart() -> None:
    for size in ((37, 97), (97, 37), (64, 64)):
        for _, scene in scenes(size):
            for thing in scene.objects:
                assert thing.radius <= thing.y <= size[0] - thing.radius
                assert thing.radius <= thing.x <= size[1] - thing.radius
            for first, second in itertools.combinations(scene.objects, 2):
                assert np.hypot(first.y - second.y, first.x - second.x) > first.radius + second.radius + 2


def test_the_picture_shows_what_the_mask_says() -> None:
    label = next(label for label in range(256) if class_parts(label)[:2] == ("hexagon", "plain"))
    for instance in range(20):
        picture = shapes.picture(2, label, instance, (64, 64)).astype(float)
        scene = shapes.scene(2, label, instance, (64, 64))
        inner = np.asarray(ndimage.binary_erosion(scene.mask))
        outer = np.asarray(ndimage.binary_dilation(scene.mask))
        for number in range(scene.count):
            own = picture[inner & (scene.owner == number)].mean(axis=0)
            assert np.abs(own - picture[np.logical_not(outer)].mean(axis=0)).max() > 25, instance


def test_mask_and_facts_are_the_same_scene_at_another_size() -> None:
    for label in (0, 9, 300):
        small, large = (shapes.scene(0, label, 4, size) for size in ((32, 48), (96, 144)))
        for one, other in zip(small.objects, large.objects, strict=True):
            scaled = (3 * one.y, 3 * one.x, 3 * one.radius, one.orientation, 9 * one.area)
            assert (other.y, other.x, other.radius, other.orientation, other.area) == pytest.approx(scaled)


def test_facts_are_asked_for_by_row() -> None:
    part = open_data("formula:shapes-5x7@40x24").splits["train"]
    assert isinstance(part.items, Drawn)
    scene = part.items.scene(17)
    assert scene.owner.shape == (40, 24)
    assert (scene.owner == shapes.scene(0, 2, 3, (40, 24)).owner).all()
    assert isinstance(scene.objects[0], Object)
    with pytest.raises(UsageError, match=r"formula:fractals-2x1 has no objects"):
        Drawn(Formula("fractals", 2, 1), 0, 1).scene(0)
    for row in (-1, 35):
        with pytest.raises(IndexError, match=f"picture {row} of 35"):
            part.items.read(row)


# --- what can be learnt ---


def pooled(picture: np.ndarray, times: int) -> np.ndarray:
    height, width = picture.shape[0] // times, picture.shape[1] // times
    return picture.reshape(height, times, width, times, 3).mean(axis=(1, 3))


@pytest.mark.parametrize(("kind", "mean", "least"), [("fractals", 0.93, 0.8), ("shapes", 0.99, 0.95)])
def test_another_resolution_shows_the_same_scene(kind: str, mean: float, least: float) -> None:
    alike = []
    for label, instance in itertools.product(range(12), range(4)):
        small, large = (KINDS[kind].picture(0, label, instance, (side, side)) for side in (32, 64))
        alike.append(np.corrcoef(pooled(large, 2).ravel(), small.ravel())[0, 1])
    assert np.mean(alike) > mean
    assert min(alike) > least


def features(picture: np.ndarray) -> np.ndarray:
    """What does not change when a picture is turned: its spectrum by frequency, its edges, its local binary patterns."""
    grey = picture @ np.array([0.3, 0.59, 0.11])
    side = len(grey)
    window = np.hanning(side)
    spectrum = np.log1p(np.abs(np.fft.fftshift(np.fft.fft2((grey - grey.mean()) * window[:, None] * window))))
    y, x = np.mgrid[:side, :side] - side // 2
    radius = np.hypot(y, x)
    rings = np.array([spectrum[(radius >= each) & (radius < each + 1)].mean() for each in range(1, side // 2)])
    steep = np.hypot(*np.gradient(grey))
    edges = np.histogram(steep / steep.mean(), bins=12, range=(0, 5))[0] / steep.size
    around = [(0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1)]
    brighter = [np.roll(grey, shift, (0, 1)) > grey for shift in around]
    changes = sum((brighter[place] != brighter[place - 1]).astype(int) for place in range(8))
    local = np.bincount((np.minimum(changes, 4) // 2 * 9 + sum(map(np.int64, brighter))).ravel(), minlength=27)
    return np.concatenate([rings - rings.mean(), edges, local / grey.size])


@pytest.mark.parametrize("kind", KINDS)
def test_classes_differ_more_than_pictures_of_one(kind: str) -> None:
    """Five neighbours by a few simple features: more than twice chance, and chance where labels mean nothing."""
    dataset = open_data(f"formula:{kind}-10x30@64")
    part = dataset.splits["train"]
    known = np.stack([features(np.asarray(part.read(row))) for row in range(len(part))])
    other = Drawn(Formula(kind, 10, 10, (64, 64)), formulas._FIRST["test"], 10)
    asked, truth = np.stack([features(other.read(row)) for row in range(100)]), np.arange(100) // 10
    neighbours = make_pipeline(StandardScaler(), KNeighborsClassifier(5))
    assert neighbours.fit(known, part.labels).score(asked, truth) > 0.22
    mixed = np.random.default_rng(0).permutation(part.labels)
    assert neighbours.fit(known, mixed).score(asked, truth) < 0.2


def test_every_system_shrinks_and_its_pictures_do_so_too() -> None:
    counts = set()
    for label in range(60):
        maps = fractals.system(4, label)
        counts.add(len(maps.offsets))
        assert np.linalg.svd(maps.matrices, compute_uv=False).max() <= 0.93 + 1e-9
        assert maps.shares.sum() == pytest.approx(1)
        varied = fractals._varied(maps, Dice(4, "fractals:picture", label, 0, 99))
        assert np.linalg.svd(varied.matrices, compute_uv=False).max() < 0.98
    assert counts == set(range(2, 9))


def test_fractals_are_seen_in_their_pictures() -> None:
    """The share of a picture that the fractal covers: neither a speck nor all of it."""
    for label in range(30):
        maps = fractals.system(0, label)
        x, y, _ = fractals._chains(maps, 4096, 30)
        extent = max(np.ptp(x), np.ptp(y))
        corner = 32 - 60 / extent * np.array([x.min() + x.max(), y.min() + y.max()]) / 2
        density, tint = fractals._density(maps, (x, y, x * 0 + 0.5), 60 / extent, corner, (64, 64))
        assert 0.08 < (density > 0).mean() < 0.8, label
        assert density.sum() > 0.99 * (8192 + 4 * 64 * 64)
        assert 0 <= tint.min() <= tint.max() <= 1


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns_stay_in_range_and_fade_where_they_are_too_fine(name: str) -> None:
    generator = np.random.default_rng(1)
    u, v = generator.uniform(-4, 4, (2, 5000))
    lattice = generator.random(256)
    values = PATTERNS[name](u, v, 0.01, lattice)
    assert values.shape == u.shape
    assert values.min() >= 0
    assert values.max() <= 1.01
    assert (name == "plain") == (values.std() == 0)
    grid = PATTERNS[name](u[None, :50], v[:40, None], 0.01, lattice)
    x, y = (each.ravel() for each in np.broadcast_arrays(u[None, :50], v[:40, None]))
    alone = PATTERNS[name](x, y, 0.01, lattice)
    assert np.allclose(np.broadcast_to(grid, (40, 50)).ravel(), alone)


def test_directions_are_cosine_and_sine() -> None:
    for turns in np.linspace(-2, 2, 173):
        expected = np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)
        assert direction(float(turns)) == pytest.approx(expected, abs=2e-9)


def test_noise_repeats_after_sixteen_and_has_no_steps() -> None:
    lattice = np.random.default_rng(2).random(256)
    u, v = np.random.default_rng(3).uniform(-20, 20, (2, 1000))
    assert np.allclose(clouds(u, v, lattice), clouds(u + 160, v - 320, lattice))
    assert np.abs(clouds(u + 1e-6, v, lattice) - clouds(u, v, lattice)).max() < 1e-4


# --- addresses ---


@pytest.mark.parametrize(
    ("address", "formula"),
    [
        ("fractals-1000x100", Formula("fractals", 1000, 100)),
        ("shapes-100x50@64", Formula("shapes", 100, 50, (64, 64))),
        ("shapes-2x1@8x1024,seed=3", Formula("shapes", 2, 1, (8, 1024), 3)),
        ("fractals-2x1,seed=9223372036854775807", Formula("fractals", 2, 1, seed=2**63 - 1)),
    ],
)
def test_addresses(address: str, formula: Formula) -> None:
    assert parse_formula(f"formula:{address}") == formula
    assert formula.name == address
    assert open_data(f"formula:{address.replace('1000x100', '10x100')}").classes


REFUSED = {
    "": "does not say KIND-CLASSESxPICTURES",
    "fractals": "does not say KIND-CLASSESxPICTURES",
    "fractal-10x10": "there is no formula for fractal; did you mean 'fractals'?",
    "Shapes-10x10": "did you mean 'shapes'?",
    "photos": "there is no formula for photos; known: fractals, shapes",
    "-10x10": "does not say KIND-CLASSESxPICTURES",
    "fractals-0x10": "the number of classes is 0; 2 to 100,000 would be right",
    "fractals-1x10": "the number of classes is 1; 2 to 100,000 would be right",
    "fractals-100001x10": "the number of classes is 100001; 2 to 100,000 would be right",
    "shapes-4097x10": "the number of classes is 4097; 2 to 4,096 would be right",
    "fractals-10x0": "the number of pictures is 0; 1 to 100,000,000 would be right",
    "fractals-10x": "the number of pictures is missing",
    "fractals-x10": "the number of classes is missing",
    "fractals--10x10": "the number of classes is -10",
    "fractals-10x-10": "the number of pictures is -10",
    "fractals-+10x10": "the number of classes is +10",
    "fractals-1_0x10": "the number of classes is 1_0",
    "fractals- 10x10": "the number of classes is  10",
    "fractals-١٠x10": "the number of classes is ١٠",
    "fractals-10x1²": "the number of pictures is 1²",
    "fractals-1e3x10": "the number of classes is 1e3",
    "fractals-10x10x10": "the number of pictures is 10x10",
    "fractals-1000x1000000": "asks for 1,000,000,000 pictures; at most 100,000,000 are possible",
    "fractals-10x10@": "the side is missing",
    "fractals-10x10@0": "the side is 0; 8 to 1,024 would be right",
    "fractals-10x10@1025": "the side is 1025; 8 to 1,024 would be right",
    "fractals-10x10@32x0": "the side is 0",
    "fractals-10x10@32x32x32": "the side is 32x32",
    "fractals-10x10@32@32": "the side is 32@32",
    "fractals-10x10,sed=3": "there is no option sed=3; seed=N is the only one",
    "fractals-10x10,seed": "there is no option seed; seed=N is the only one",
    "fractals-10x10,": "there is no option without a name",
    "fractals-10x10,seed=": "the seed is missing",
    "fractals-10x10,seed=-1": "the seed is -1",
    "fractals-10x10,seed=9223372036854775808": "the seed is 9223372036854775808",
    "fractals-10x10,seed=1,seed=1": "says its seed twice",
    "fractals-10x10\n": "the number of pictures is 10\\n",
    "fractals-10x10\0": "the number of pictures is 10\\x00",
    "fractals-" + "9" * 5000 + "x10": "the number of classes is 99999999999999999999…; 2 to 100,000 would be right",
    "f" * 100_000: "there is no formula for f",
    "fractals-10x10" + ",seed=1" * 10_000: "says its seed twice",
    "fractals 10x10": "there is no formula for fractals 10x10; did you mean 'fractals'?",
    "fractals-10×10": "does not say KIND-CLASSESxPICTURES",
    "../../etc-2x2": "there is no formula for ../../etc",
    "//host/fractals-10x10": "there is no formula for //host/fractals",
}


@pytest.mark.parametrize("address", REFUSED, ids=lambda address: repr(address[:40]))
def test_what_is_no_address_is_refused_in_a_sentence(address: str) -> None:
    began = time.perf_counter()
    with pytest.raises(DataError) as caught:
        open_data(f"formula:{address}")
    assert REFUSED[address] in str(caught.value)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)
    assert time.perf_counter() - began < 2


def test_an_address_may_be_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_data(Path("formula:shapes-3x2@8")).classes == ("disc-stripes", "triangle-dots", "star-checks")


def test_a_million_pictures_open_at_once_and_take_their_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fractals, "system", lambda *_: pytest.fail("a picture was drawn"))
    tracemalloc.start()
    try:
        began = time.perf_counter()
        dataset = open_data("formula:fractals-1000x1000@224")
        dataset.fingerprint()
        seconds = time.perf_counter() - began
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(dataset.splits["train"]) == 1_000_000
    assert dataset.classes[999] == "fractal-0999"
    assert held < 10e6
    assert peak < 40e6
    assert seconds < 5


def test_many_classes_open_at_once() -> None:
    began = time.perf_counter()
    assert len(open_data("formula:fractals-100000x1").splits["test"]) == 100_000
    assert time.perf_counter() - began < 10


def test_every_class_has_a_name_of_its_own() -> None:
    assert len({shapes.class_name(label) for label in range(shapes.MOST_CLASSES)}) == shapes.MOST_CLASSES
    assert shapes.class_name(256) == "disc-stripes-2"
    for label in range(0, 256, 16):  # any 16 in a row have 16 kinds and 16 patterns
        kinds, patterns, _ = zip(*map(class_parts, range(label, label + 16)), strict=True)
        assert len(set(kinds)) == len(set(patterns)) == 16
    assert fractals.class_name(7) == "fractal-0007"
    assert fractals.class_name(99_999) == "fractal-99999"


def test_fingerprints_tell_sets_and_drawings_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = [
        "fractals-4x3",
        "fractals-4x4",
        "fractals-5x3",
        "fractals-4x3@16",
        "fractals-4x3@16x8",
        "fractals-4x3@8x16",
        "fractals-4x3,seed=1",
        "shapes-4x3",
    ]
    prints = [open_data(f"formula:{address}").fingerprint() for address in addresses]
    assert len(set(prints)) == len(addresses)
    assert open_data("formula:fractals-4x3@32x32,seed=0").fingerprint() == prints[0]
    part = open_data("formula:fractals-4x3").splits["train"]
    assert part.subset(np.array([0, 1])).fingerprint() != part.subset(np.array([1, 0])).fingerprint()
    later = formulas.Kind(2, fractals.MOST_CLASSES, fractals.class_name, fractals.picture)
    monkeypatch.setitem(KINDS, "fractals", later)
    assert open_data("formula:fractals-4x3").fingerprint() != prints[0]


def test_nothing_is_drawn_to_look_for_duplicates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_data("formula:shapes-9x20@8")
    pictures = [split.read(row) for split in dataset.splits.values() for row in range(len(split))]
    assert len({bytes(picture) for picture in pictures}) == len(pictures)
    monkeypatch.setattr(Drawn, "read", lambda *_: pytest.fail("a picture was drawn"))
    assert find_duplicates(dataset, tmp_path).groups == ()


def test_verbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    data = "formula:shapes-3x8@16"
    assert cli.run(["data", "check", data]) == 0
    assert "nothing stands in the way of training" in capsys.readouterr().out
    assert cli.run(["data", "pack", data, "packed"]) == 0
    drawn, packed = open_data(data), open_data("packed")
    assert drawn.classes == packed.classes
    for name, split in drawn.splits.items():
        assert (split.labels == packed.splits[name].labels).all()
        with Image.open(io.BytesIO(bytes(packed.splits[name].read(5 % len(split))))) as picture:
            assert (np.asarray(picture) == split.read(5 % len(split))).all()
    command = ["train", data, "--init", "none", "--model", "ViT-Ti/8", "--steps", "2", "--out", "run"]
    assert cli.run([*command, "--set", "loading.in_memory=no", "loading.workers=1"]) == 0
    assert pw.evaluate("run", data)["n"] == 3
    assert pw.evaluate("run", "formula:shapes-2x40@16")["n"] == 8
    Image.fromarray(np.asarray(drawn.splits["test"].read(0))).save("one.png")
    assert pw.predict("run", ["one.png"])[0]["predictions"][0]["label"] in drawn.classes
