"""Pictures of a data set beside those that are explained: the nearest, by scikit-learn, and a map of pictures of one colour."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from patchword.data.decoding.decode import decode
from patchword.evaluation.mistakes import thumbnail
from patchword.explanation.known import KnownPictures
from patchword.explanation.maps import as_images
from patchword.explanation.picture import look
from test_families import small


def test_the_nearest_training_pictures_come_first(pictures: Path) -> None:
    """With the label, the cosine and the thumbnail of each, in that order; nearest is the picture itself."""
    model = small("hybrid")
    known = KnownPictures(model, str(pictures))
    contents = {file: file.read_bytes() for file in sorted((pictures / "train").rglob("*.png"))}
    files = list(contents)
    pixels = np.stack([model.preprocessing.fit(decode(content, 3)) for content in contents.values()])
    with torch.inference_mode():
        features = model.features(as_images(model, pixels)).double().numpy()
    distances, order = NearestNeighbors(n_neighbors=6, metric="cosine").fit(features).kneighbors(features[[31, 7]])
    assert order[:, 0].tolist() == [31, 7]
    for seen, expected, apart in zip(look(model, pixels[[31, 7]]), order, distances, strict=True):
        found = known.near(seen)
        assert [each.label for each in found] == [files[i].parent.name for i in expected]
        assert [each.thumbnail for each in found] == [thumbnail(decode(contents[files[i]], 3)) for i in expected]
        assert [each.cosine for each in found] == pytest.approx(1 - apart, abs=1e-5)


def test_the_map_shows_each_picture_where_its_features_are(tmp_path: Path) -> None:
    """25 pictures of a colour each, whose features are made up: three parts of the way are across, one is down."""
    rows, columns = np.divmod(np.random.default_rng(0).permutation(25), 5)
    for split in ("train", "validation", "test"):
        for i, (row, column) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
            file = tmp_path / f"data/{split}/{'odd' if i % 2 else 'even'}/{i:02d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (7, 5), (50 * column, 50 * row, 11)).save(file)
    known = KnownPictures(small("hybrid", image_size=(16, 24)), str(tmp_path / "data"))
    colours = np.stack([decode(known.split.read(i), 3)[0, 0] for i in range(25)]).astype(np.float32)
    known.features = colours[:, :2] * (3, 1)
    atlas = known.atlas()
    assert atlas.explained == pytest.approx(1)
    tiles = atlas.picture[18::36, 18::36, :3].astype(int)  # the middle of each
    y, x = np.nonzero(tiles[..., 2] == 11)
    assert len(x) == 25
    for where, colour in ((x, tiles[y, x, 0]), (y, tiles[y, x, 1])):
        assert abs(np.corrcoef(where, colour)[0, 1]) > 0.95
