"""What the claims about the inside of a model are measured on."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from conftest import write_pictures
from patchword.data.sources import open_data
from patchword.models.names import create_model
from patchword.models.vit import ViT
from patchword.studies import inside


def test_a_figure_is_of_the_first_128_pictures_that_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 137 files, of which three of the first twelve are broken; what a figure gets is looked at, picture by picture."""
    folder = write_pictures(tmp_path / "data", ("ant", "bee"), 68, side=8)
    write_pictures(folder, ("cat",), 1, side=8)
    split = open_data(folder).whole()
    for place in (0, 5, 11):
        (folder / split.name(place)).write_bytes(b"\x89PNG\r\n\x1a\n")
    model = create_model("ViT-At/8", 3, 8, depth=1, embed_dim=8, num_heads=1, mlp_dim=8)
    expected = []
    for place in [*range(1, 5), *range(6, 11), *range(12, 131)]:
        with Image.open(folder / split.name(place)) as picture:
            expected.append(model.preprocess(picture))
    given: list[Tensor] = []

    def watch(model: ViT, images: Tensor) -> float:
        given.append(images)
        return 0.7

    monkeypatch.setitem(inside.FIGURES, "watched", watch)
    assert inside.figure("watched", model, split) == 0.7
    assert len(given[0]) == 128
    torch.testing.assert_close(given[0], torch.cat(expected), rtol=0, atol=0)
