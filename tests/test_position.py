"""Position embeddings: their values and their way to another grid, against SciPy and by hand."""

import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image

from patchword.models.position import PositionEmbedding, RelativeKeys, Resampling, Rotation, resample_grid, sincos


@pytest.mark.parametrize(("old", "new"), [(7, 12), (14, 24), (12, 7), (3, 16)])
def test_official_resampling_equals_scipy_zoom(old: int, new: int) -> None:
    table = np.random.default_rng(0).normal(size=(old, old, 5))
    expected = np.asarray(scipy.ndimage.zoom(table, (new / old, new / old, 1), order=1))
    ours = resample_grid(torch.from_numpy(table).reshape(-1, 5), (old, old), (new, new), "official")
    np.testing.assert_allclose(ours.numpy(), expected.reshape(-1, 5), atol=1e-6)


@pytest.mark.parametrize("mode", ["official", "bicubic"])
def test_resampling_keeps_orientation_on_grids_that_are_not_square(mode: Resampling) -> None:
    rows = torch.arange(5.0)[:, None, None].expand(5, 7, 1)
    columns = torch.arange(7.0)[None, :, None].expand(5, 7, 1)
    table = torch.cat([rows, columns], dim=2).reshape(35, 2)
    moved = resample_grid(table, (5, 7), (11, 13), mode).reshape(11, 13, 2)
    assert (moved[:, :, 0].diff(dim=0) >= -1e-4).all()
    assert (moved[:, :, 1].diff(dim=1) >= -1e-4).all()
    torch.testing.assert_close(moved[:, :, 0], moved[:, :1, 0].expand(-1, 13))
    torch.testing.assert_close(moved[:, :, 1], moved[:1, :, 1].expand(11, -1))


@pytest.mark.parametrize(("old", "new"), [((12, 17), (7, 5)), ((3, 5), (11, 13)), ((13, 4), (5, 9))])
def test_bicubic_resampling_is_pillows(old: tuple[int, int], new: tuple[int, int]) -> None:
    """Pillow, too, widens its kernel where the grid shrinks; without that, cells between the samples would not count."""
    table = np.random.default_rng(0).normal(size=old).astype(np.float32)
    expected = np.asarray(Image.fromarray(table).resize((new[1], new[0]), Image.Resampling.BICUBIC))
    ours = resample_grid(torch.from_numpy(table).reshape(-1, 1), old, new, "bicubic")
    np.testing.assert_allclose(ours.numpy().reshape(new), expected, atol=1e-5)


def test_equal_grids_are_the_identity() -> None:
    table = torch.randn(35, 3)
    assert resample_grid(table, (5, 7), (5, 7), "bicubic") is table


def test_linear_resampling_by_hand() -> None:
    """Corners stay, the middle of two cells is their mean."""
    moved = resample_grid(torch.tensor([[0.0], [2.0], [4.0], [6.0]]), (2, 2), (3, 3), "official")
    torch.testing.assert_close(moved.reshape(3, 3), torch.tensor([[0.0, 1.0, 2.0], [2.0, 3.0, 4.0], [4.0, 5.0, 6.0]]))


def test_class_token_slot_survives_resampling() -> None:
    old, new = PositionEmbedding("1d", (3, 5), 8, 1), PositionEmbedding("1d", (7, 2), 8, 1)
    for embedding in (old, new):
        embedding.reset()
    new.resample_from(old)
    torch.testing.assert_close(new.table[0], old.table[0])
    corners_new = new.table[1:].reshape(7, 2, 8)[[0, 0, -1, -1], [0, -1, 0, -1]]
    corners_old = old.table[1:].reshape(3, 5, 8)[[0, 0, -1, -1], [0, -1, 0, -1]]
    torch.testing.assert_close(corners_new, corners_old)


def test_sincos_by_hand() -> None:
    """x first, then y, frequencies from 1 to 1/10000 (width 8: two of them)."""
    table = sincos((2, 3), 8).reshape(2, 3, 8)
    y, x = 1.0, 2.0
    expected = [
        np.sin(x),
        np.sin(x / 1e4),
        np.cos(x),
        np.cos(x / 1e4),
        np.sin(y),
        np.sin(y / 1e4),
        np.cos(y),
        np.cos(y / 1e4),
    ]
    np.testing.assert_allclose(table[1, 2].numpy(), expected, rtol=1e-6)


def test_2d_is_columns_then_rows() -> None:
    embedding = PositionEmbedding("2d", (2, 3), 5, 0)
    embedding.reset()
    patches = embedding.patches()
    assert patches is not None
    torch.testing.assert_close(patches[5], torch.cat([embedding.columns[2], embedding.rows[1]]))


@pytest.mark.parametrize("number", range(10))
@pytest.mark.parametrize("head_dim", [4, 12, 32])
def test_the_logit_of_the_neighbour_that_a_head_begins_with_is_16(number: int, head_dim: int) -> None:
    """The attention logit, (turned query) · (turned key) / √K, from a patch in the middle to that neighbour, by NumPy."""
    rotation = Rotation((5, 7), head_dim, prefix=2)
    queries, keys = torch.empty(head_dim), torch.empty(head_dim)
    rotation.look_beside(number, queries, keys)
    down, right = [(0, 0), (0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1)][number % 9]
    words = torch.stack([queries, keys])[:, None].expand(1, 37, 2, 1, head_dim)
    turned = rotation(words).double().numpy()[0, :, :, 0]
    here, there = 2 + 7 * 2 + 3, 2 + 7 * (2 + down) + 3 + right
    logits = turned[here, 0] @ turned[:, 1].T / np.sqrt(head_dim)
    assert logits[there] == pytest.approx(16.0, rel=1e-5)
    assert (np.delete(logits[2:], there - 2) < 15.9).all()


def test_relative_keys_begin_as_small_as_positions() -> None:
    keys = RelativeKeys(301, 17)
    torch.nn.init.constant_(keys.table, 9.0)
    torch.manual_seed(0)
    keys.reset()
    assert keys.table.std().item() == pytest.approx(0.02, rel=0.03)
    assert abs(keys.table.mean().item()) < 0.001


def test_relative_table_is_stretched_about_its_centre() -> None:
    old, new = RelativeKeys(5, 2), RelativeKeys(9, 2)
    with torch.no_grad():
        old.table.copy_(torch.arange(-4.0, 5.0)[:, None].expand(-1, 2))
    new.resample_from(old)
    assert new.table[8].tolist() == [0.0, 0.0]
    torch.testing.assert_close(new.table[:, 0], torch.arange(-8.0, 9.0) / 2)


def test_sincos_on_another_grid_keeps_its_corners() -> None:
    """What was learned to be the last row must stay the last row; the formula on the new grid would go beyond it."""
    old, new = PositionEmbedding("sincos", (3, 5), 8, 0), PositionEmbedding("sincos", (5, 7), 8, 0)
    beyond = new.fixed.clone()
    new.resample_from(old)
    corners = new.fixed.reshape(5, 7, 8)[[0, 0, -1, -1], [0, -1, 0, -1]]
    torch.testing.assert_close(corners, old.fixed.reshape(3, 5, 8)[[0, 0, -1, -1], [0, -1, 0, -1]])
    # Row 1 of 5 lies half-way between rows 0 and 1 of 3.
    between = (sincos((3, 5), 8).reshape(3, 5, 8)[0, 0] + sincos((3, 5), 8).reshape(3, 5, 8)[1, 0]) / 2
    torch.testing.assert_close(new.fixed.reshape(5, 7, 8)[1, 0], between)
    assert not torch.equal(new.fixed, beyond)
