"""Filters, positions, feature maps and neighbours against scikit-learn, SciPy and what is known by construction."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestNeighbors
from torch import nn

from patchword.core.errors import UsageError
from patchword.explanation.embeddings import (
    feature_colours,
    first_filters,
    nearest,
    picture_map,
    position_similarity,
    position_table,
    principal_components,
    principal_filters,
)
from patchword.explanation.structure import average_ranks, depth_trend, grid_structure
from patchword.models.early import EarlyConvViT
from patchword.models.names import create_model
from patchword.models.position import RelativeKeys
from test_explanation import model_of
from test_families import SMALL, images, small


def test_principal_components_are_scikit_learns() -> None:
    rows = np.random.default_rng(0).normal(size=(53, 17)) @ np.diag(np.arange(1, 18.0)) + 5
    ours, theirs = principal_components(rows, 5), PCA(5, svd_solver="full").fit(rows)
    signs = np.sign((ours.components * theirs.components_).sum(1))
    np.testing.assert_allclose(ours.components, signs[:, None] * theirs.components_, atol=1e-9)
    np.testing.assert_allclose(ours.explained, theirs.explained_variance_ratio_, atol=1e-12)
    np.testing.assert_allclose(ours.project(rows), signs * theirs.transform(rows), atol=1e-9)
    largest = np.abs(ours.components).argmax(1)
    assert (ours.components[np.arange(5), largest] > 0).all()
    assert principal_components(rows[:3], 28).components.shape == (3, 17)
    assert principal_components(np.ones((4, 3)), 2).explained.tolist() == [0, 0]


def test_first_filters_are_what_pixels_meet() -> None:
    """A filter's answer to an image that is itself is its own square; so axes are where they should be."""
    model = small("vit")
    filters = first_filters(model)
    assert filters.shape == (24, 3, 4, 4)
    image = torch.zeros(1, 3, *model.image_size)
    image[0, :, 8:12, 20:24] = filters[7]  # patch (2, 5) of 11×7
    word = model.intermediates(image, ["stem"])["stem"][0, 2 * 7 + 5]  # pyright: ignore[reportIndexIssue]
    expected = filters[7].square().sum() + model.get_parameter("patch_embed.bias")[7]  # pyright: ignore[reportIndexIssue]
    torch.testing.assert_close(word[7], expected)
    assert first_filters(small("hybrid")).shape == (32, 3, 7, 7)
    assert first_filters(small("early-conv")).shape == (11, 3, 3, 3)
    standardised = first_filters(small("bit"))
    assert standardised.shape[1:] == (3, 7, 7)
    torch.testing.assert_close(standardised.mean((1, 2, 3)), torch.zeros(len(standardised)), atol=1e-5, rtol=0)
    assert first_filters(small("efficientnet")).shape[1:] == (3, 3, 3)


@pytest.mark.parametrize(("channels", "components"), [(1, 4), (3, 12)])
def test_behind_whitening_pixels_meet_its_kernels(channels: int, components: int) -> None:
    """Which are as many directions as 2×2 pixels have, each with its negative."""
    options: dict[str, Any] = {"stem_channels": (11, 13), "stem_whitening": 2 * components}
    model = create_model("C2+ViT-At/4", 5, (44, 28), channels, **options)
    assert isinstance(model, EarlyConvViT)
    model.begin_with(images(model))
    kernels = dict(model.named_buffers())["backbone.whitening.kernels"]
    torch.testing.assert_close(first_filters(model), kernels)
    filters, explained = principal_filters(model)
    assert filters.shape == (components, 2, 2, channels)
    strengths = kernels[:components].square().sum((1, 2, 3)).sort(descending=True).values
    np.testing.assert_allclose(explained, (strengths / strengths.sum()).numpy(), rtol=1e-4)


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("channels", [1, 3])
def test_principal_filters_are_pictures(family: str, channels: int) -> None:
    model = small(family, in_channels=channels)
    filters, explained = principal_filters(model, 5)
    side = first_filters(model).shape[2]
    assert filters.shape == (5, side, side, channels)
    flat = filters.transpose(0, 3, 1, 2).reshape(5, -1)
    np.testing.assert_allclose(flat @ flat.T, np.eye(5), atol=1e-9)
    theirs = PCA(5, svd_solver="full").fit(first_filters(model).flatten(1).double().numpy())
    np.testing.assert_allclose(np.abs((flat * theirs.components_).sum(1)), 1, atol=1e-4)
    np.testing.assert_allclose(explained, theirs.explained_variance_ratio_, atol=1e-5)


def test_position_similarity_of_turns_is_the_mean_cosine_between_their_angles() -> None:
    """By NumPy, from the formula: cos(π k Δ / side) for k = 1 … K/4, over rows and columns."""
    model = model_of(position="rope")
    found = position_similarity(model).numpy()
    count = model.config.embed_dim // model.config.num_heads // 4
    steps = np.pi * np.arange(1, count + 1)
    for (row, column), (other_row, other_column) in [((0, 0), (0, 0)), ((0, 3), (5, 3)), ((2, 1), (10, 6))]:
        angles = [*steps * (row - other_row) / 11, *steps * (column - other_column) / 7]
        assert found[row, column, other_row, other_column] == pytest.approx(np.cos(angles).mean(), abs=1e-6)


@pytest.mark.parametrize("position", ["1d", "2d", "sincos"])
@pytest.mark.parametrize("pool", ["token", "gap"])
def test_position_similarity_is_the_cosine_of_what_is_added(position: str, pool: str) -> None:
    model = model_of(position=position, pool=pool, registers=2)
    zero = torch.zeros(1, 3, 44, 28)
    steps = model.intermediates(zero, ["stem", "with_position"])
    added = (steps["with_position"][:, model.prefix :] - steps["stem"])[0].detach().numpy()
    np.testing.assert_allclose(position_table(model).numpy(), added, atol=1e-5)
    found = position_similarity(model).reshape(77, 77).numpy()
    np.testing.assert_allclose(found, cosine_similarity(added), atol=1e-5)


def test_relative_positions_are_alike_where_all_tokens_are_met_alike() -> None:
    """The keys are what the module itself gives for queries that are 1 in one of their numbers and 0 in all others."""
    model = model_of(position="relative", registers=1)
    tokens, width = model.prefix + 77, 8
    queries = torch.eye(width)[:, None].expand(width, tokens, width)
    known = []
    for block in model.blocks:
        assert isinstance(block.attention.relative, RelativeKeys)
        met = block.attention.relative(queries[None])[0, :, model.prefix :].detach()
        known.append(met.transpose(0, 1).flatten(1).double().numpy())
    expected = cosine_similarity(np.concatenate(known, axis=1))
    np.testing.assert_allclose(position_similarity(model).reshape(77, 77).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("position", ["1d", "2d"])
def test_learned_positions_that_rise_evenly_do_so_on_another_grid(position: str) -> None:
    """From corner to corner: 11×7 places become 13×9, which are 10/12 and 6/8 of the old ones apart."""
    model = model_of(position=position, pool="gap")
    draw = np.random.default_rng(6)
    rise, slope = draw.normal(size=24), draw.normal(size=24)
    if position == "2d":  # the first half knows the column, the second the row
        rise[:12] = slope[12:] = 0

    def plane(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return rows[:, None, None] * rise + (columns[:, None] - 2) * slope

    with torch.no_grad():
        table = torch.from_numpy(plane(np.arange(11), np.arange(7))).float()
        if position == "1d":
            model.position.table.copy_(table.flatten(0, 1))
        else:
            model.position.rows.copy_(table[:, 0, 12:])
            model.position.columns.copy_(table[0, :, :12])
    found = position_similarity(model.with_image_size((52, 36)))
    expected = cosine_similarity(plane(np.arange(13) * 10 / 12, np.arange(9) * 6 / 8).reshape(117, 24))
    assert found.shape == (13, 9, 13, 9)
    np.testing.assert_allclose(found.reshape(117, 117).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("position", "mirrors"),
    [
        ("1d", {"columns"}),
        ("2d", {"columns"}),
        ("sincos", {"rows", "columns", "both"}),
        ("relative", {"both"}),
        ("rope", {"rows", "columns", "both"}),
    ],
)
def test_a_similarity_that_is_the_same_in_a_mirror_stays_so_on_another_grid(position: str, mirrors: set[str]) -> None:
    """Learned ones are made the same from left to right, not upside down, so that swapped axes would be seen; keys of offsets
    the same forwards and backwards; those of a formula depend on the way between two places alone."""
    model = model_of(position=position, pool="gap")
    with torch.no_grad():
        if position == "1d":
            table = model.position.table.view(11, 7, 24)
            table.copy_((table + table.flip(1)) / 2)
        elif position == "2d":
            model.position.columns.copy_((model.position.columns + model.position.columns.flip(0)) / 2)
        for block in model.blocks:
            if (relative := block.attention.relative) is not None:
                relative.table.copy_((relative.table + relative.table.flip(0)) / 2)
    axes = {"rows": (0, 2), "columns": (1, 3), "both": (0, 1, 2, 3)}
    for now in (model, model.with_image_size((52, 36))):
        found = position_similarity(now)
        assert found.shape == (*now.grid, *now.grid)
        assert found.std() > 0.05
        same = {name for name, each in axes.items() if torch.allclose(found, found.flip(each), rtol=0, atol=1e-5)}
        assert same == mirrors


def test_a_model_that_is_told_no_positions_has_none_to_compare() -> None:
    with pytest.raises(UsageError, match="was made with position=none: there is no embedding to compare"):
        position_similarity(model_of(position="none"))
    with pytest.raises(UsageError, match="made with position=relative: nothing is added to its patches"):
        position_table(model_of(position="relative"))
    with pytest.raises(UsageError, match="has no attention"):
        position_similarity(small("bit"))


@pytest.mark.parametrize("family", SMALL)
def test_feature_colours_are_the_first_three_components_of_all_images_together(family: str) -> None:
    model = small(family)
    batch = images(model)
    colours = feature_colours(model, batch)
    maps = model.feature_map(batch).detach().permute(0, 2, 3, 1)
    assert colours.shape == (*maps.shape[:3], 3)
    assert colours.min() == 0
    assert colours.max() == 1
    rows = maps.flatten(0, 2).double().numpy()
    theirs = PCA(3, svd_solver="full").fit_transform(rows)
    low, high = np.percentile(theirs, [1, 99], axis=0)
    theirs = ((theirs - low) / (high - low)).clip(0, 1)
    for ours, each in zip(colours.reshape(-1, 3).T, theirs.T, strict=True):  # up to the sign of a component
        assert min(np.abs(ours - each).max(), np.abs(ours - (1 - each)).max()) < 1e-3


def test_nearest_are_those_of_scikit_learn() -> None:
    draw = np.random.default_rng(1)
    known, asked = draw.normal(size=(41, 13)).astype(np.float32), draw.normal(size=(7, 13)).astype(np.float32)
    order, cosines = nearest(known, asked, 5)
    distances, theirs = NearestNeighbors(n_neighbors=5, metric="cosine").fit(known).kneighbors(asked)
    np.testing.assert_array_equal(order, theirs)
    np.testing.assert_allclose(cosines, 1 - distances, atol=1e-6)
    assert nearest(known[:3], 5 * known[1:2], 9)[0].tolist()[0][0] == 1
    assert nearest(np.zeros((2, 3)), np.ones((1, 3)), 2)[1].tolist() == [[0, 0]]


def test_a_map_of_pictures_has_one_in_each_cell_and_neighbours_near() -> None:
    draw = np.random.default_rng(2)
    groups = np.repeat(np.eye(3), 20, axis=0) * 10
    features = np.concatenate([groups, np.zeros((60, 8))], axis=1) + draw.normal(scale=0.1, size=(60, 11))
    cells, explained = picture_map(features)
    assert len({tuple(cell) for cell in cells.tolist()}) == 60
    assert cells.min() >= 0
    assert cells.max() < 10  # ⌈1.2 √60⌉
    assert explained.shape == (2,)
    assert explained.sum() > 0.95
    centres = np.stack([cells[20 * i : 20 * i + 20].mean(0) for i in range(3)])
    within = np.mean([np.linalg.norm(cells[20 * i : 20 * i + 20] - centres[i], axis=1).mean() for i in range(3)])
    between = np.mean([np.linalg.norm(centres[i] - centres[j]) for i in range(3) for j in range(i)])
    assert within < 0.7 * between
    again, _ = picture_map(features)
    np.testing.assert_array_equal(cells, again)
    assert picture_map(features[:1])[0].tolist() == [[0, 0]]
    with pytest.raises(ValueError, match="60 pictures do not fit in 7×7 cells"):
        picture_map(features, 7)


def test_a_map_of_pictures_has_the_first_component_across_and_the_second_down() -> None:
    """A square of 7×7 pictures, three times as wide as high, in any order: each comes to its own cell."""
    order = np.random.default_rng(8).permutation(49)
    rows, columns = np.divmod(order, 7)
    places = np.stack([rows, 3 * columns], axis=1) @ np.linalg.qr(np.random.default_rng(9).normal(size=(5, 5)))[0][:2]
    cells, explained = picture_map(places, 7)
    for found, expected in ((cells[:, 0], rows), (cells[:, 1], columns)):
        assert found.tolist() in (expected.tolist(), (6 - expected).tolist())  # either end of a component is the first
    np.testing.assert_allclose(explained, [0.9, 0.1])


def test_ranks_and_the_trend_with_depth_are_spearmans() -> None:
    values = np.array([3.0, 1.0, 3.0, 2.0, 3.0, 1.0])
    np.testing.assert_array_equal(average_ranks(values), stats.rankdata(values))
    distance = np.random.default_rng(3).normal(size=(5, 3)) + np.arange(5)[:, None] * 0.7
    depth = np.repeat(np.arange(5), 3)
    found = depth_trend(distance)
    assert found.correlation == pytest.approx(stats.spearmanr(depth, distance.ravel())[0])
    np.testing.assert_allclose(found.layers, distance.mean(1))


def test_the_trend_is_compared_with_every_order_of_the_layers() -> None:
    rising = depth_trend(np.array([[1.0, 2], [3, 4], [5, 6], [7, 8]]))
    assert rising.correlation == pytest.approx(stats.spearmanr([0, 0, 1, 1, 2, 2, 3, 3], range(8))[0])
    assert rising.p_value == pytest.approx(1 / 24)
    falling = depth_trend(-np.array([[1.0, 2], [3, 4], [5, 6], [7, 8]]))
    assert falling.p_value == 1
    flat = depth_trend(np.ones((4, 2)))
    assert (flat.correlation, flat.p_value) == (0, 1)
    deep = depth_trend(np.arange(24.0).reshape(12, 2))  # orders are drawn
    assert deep.p_value == pytest.approx(1 / 10_001)
    assert 0.1 < depth_trend(np.random.default_rng(4).normal(size=(12, 3))).p_value < 0.999
    with pytest.raises(ValueError, match="1 layer has no trend"):
        depth_trend(np.ones((1, 3)))


def test_rows_and_columns_are_found_where_they_are() -> None:
    """Additive by construction, without order, and with nearness alone, whose round blobs know no row."""
    draw = np.random.default_rng(5)
    rows, columns = draw.normal(size=(7, 1, 11)), draw.normal(size=(1, 5, 11))
    both = grid_structure((rows + columns).reshape(35, 11), (7, 5), draws=99)
    assert both.additive == pytest.approx(1)
    assert both.additive_p == both.aligned_p == pytest.approx(1 / 100)
    assert both.aligned > 0.1
    nothing = grid_structure(draw.normal(size=(35, 300)), (7, 5), draws=99)
    assert nothing.additive == pytest.approx((7 + 5 - 2) / 34, abs=0.02)
    assert nothing.additive_by_chance == pytest.approx((7 + 5 - 2) / 34, abs=0.02)
    assert nothing.additive_p > 0.02
    assert abs(nothing.aligned) < 0.02
    y, x = np.divmod(np.arange(64), 8)
    near = np.exp(-((y[:, None] - y) ** 2 + (x[:, None] - x) ** 2) / 8)
    blobs = grid_structure(np.linalg.cholesky(near + 1e-9 * np.eye(64)), (8, 8), draws=99)
    assert blobs.additive_p == pytest.approx(1 / 100)
    assert blobs.aligned < 0
    assert blobs.aligned_p > 0.9


def test_likeness_within_lines_by_its_definition() -> None:
    """Pair by pair on a grid of 3×6: in one line d apart, against off both lines and more than d − 1, at most d apart."""
    table = np.random.default_rng(6).normal(size=(18, 4))
    alike, places = cosine_similarity(table), [divmod(place, 6) for place in range(18)]
    gains = []
    for d in range(2, 6):
        on, off = [], []
        for i, j in itertools.product(range(18), repeat=2):
            down, across = (abs(one - other) for one, other in zip(places[i], places[j], strict=True))
            if down == 0 or across == 0:
                on += [alike[i, j]] * (down + across == d)
            elif d - 1 < math.hypot(down, across) <= d:
                off.append(alike[i, j])
        gains.append(np.mean(on) - np.mean(off))
    assert grid_structure(table, (3, 6), draws=1).aligned == pytest.approx(np.mean(gains))


@pytest.mark.parametrize(("position", "exact"), [("2d", True), ("sincos", True), ("1d", False)])
def test_positions_of_models_have_the_structure_that_they_are_made_of(position: str, exact: bool) -> None:
    model = model_of(position=position)
    if position == "1d":
        nn.init.normal_(model.position.table)
    found = grid_structure(position_table(model).numpy(), model.grid, draws=49)
    assert (found.additive == pytest.approx(1, abs=1e-5)) is exact
    assert (found.additive_p <= 0.02) is exact


def test_a_grid_too_small_for_rows_and_columns() -> None:
    with pytest.raises(ValueError, match="a grid of 2×5 is too small"):
        grid_structure(np.ones((10, 3)), (2, 5))
    with pytest.raises(ValueError, match="12 embeddings do not make a grid of 3×5"):
        grid_structure(np.ones((12, 3)), (3, 5))
