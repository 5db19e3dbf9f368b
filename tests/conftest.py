"""What several tests share: real pictures where they are, tiny data sets made on the spot, one small trained run."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

if TYPE_CHECKING:
    from patchword.models.contract import Model

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # `--init auto` would ask the hub, and wait where there is none


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real pictures: `$PATCHWORD_DATA`, or `../shared/data` beside the repository."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("PATCHWORD_DATA", beside))
    if not (folder / "clothing").is_dir():
        pytest.skip("no real pictures here: PATCHWORD_DATA does not name a folder with 'clothing'")
    return folder


torch.set_num_threads(1)  # tests are many and small: a second thread only waits for the first


@pytest.fixture(autouse=True)
def known_speed(request: pytest.FixtureRequest) -> Iterator[None]:
    """No run of a test tries out how fast it is, which takes up to 20 steps; those marked `speed` do."""
    with pytest.MonkeyPatch.context() as patch:
        if request.node.get_closest_marker("speed") is None:
            patch.setattr("patchword.training.loop.seconds_per_step", lambda *_: 0.01)
        yield


def write_pictures(folder: Path, classes: tuple[str, ...], per_class: int, side: int = 16, seed: int = 0) -> Path:
    """Class folders of noisy PNGs; the class shows as the brightness of one quarter of the picture."""
    generator = np.random.default_rng(seed)
    for place, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(per_class):
            pixels = generator.integers(0, 90, (side, side, 3), dtype=np.uint8)
            half = side // 2
            top, left = divmod(place % 4, 2)
            pixels[top * half : (top + 1) * half, left * half : (left + 1) * half] += 150
            Image.fromarray(pixels).save(folder / name / f"{i:03d}.png")
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three classes in train, validation and test folders."""
    for split, count in (("train", 24), ("validation", 5), ("test", 7)):
        write_pictures(tmp_path / "pictures" / split, ("ant", "bee", "cat"), count, seed=count)
    return tmp_path / "pictures"


@pytest.fixture
def vit() -> "Model":
    """A small ViT that names what it sees, for the tests of `explain`."""
    from explaining import labelled_vit

    return labelled_vit()


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    """Two pictures for it."""
    from explaining import two_photos

    return two_photos(tmp_path)
