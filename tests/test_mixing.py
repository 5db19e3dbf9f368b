import math

import numpy as np
import pytest
import torch

from patchword.data.augment import Augment
from patchword.data.mixing import erase, mix

BATCH, HEIGHT, WIDTH = 5, 11, 13
NEIGHBOUR = [1, 0, 3, 2, 4]
"""The last of an odd number has none but itself."""


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures, and targets from which every picture's shares can be read: picture i has class i."""
    return torch.randn(BATCH, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(7)), torch.eye(BATCH)


def test_without_mixing_nothing_is_touched() -> None:
    images, targets = _batch()
    mixed, shares = mix(images, targets, Augment(), seed=3, step=2)
    assert mixed is images
    assert shares is targets
    assert torch.equal(images, _batch()[0])


@pytest.mark.parametrize("step", range(10))
def test_mixup_blends_each_picture_with_its_neighbour(step: int) -> None:
    images, targets = _batch()
    before = images.clone()
    mixed, shares = mix(images, targets, Augment(mixup=0.8), seed=3, step=step)
    assert mixed is images
    assert torch.equal(targets, torch.eye(BATCH))
    keep = shares[0, 0].item()
    assert 0.5 <= keep <= 1
    for index in range(BATCH):
        expected = torch.zeros(BATCH)
        expected[index] += keep
        expected[NEIGHBOUR[index]] += 1 - keep
        torch.testing.assert_close(shares[index], expected)
        torch.testing.assert_close(mixed[index], keep * before[index] + (1 - keep) * before[NEIGHBOUR[index]])


@pytest.mark.parametrize("step", range(10))
def test_cutmix_pastes_one_rectangle_and_counts_its_pixels(step: int) -> None:
    images, targets = _batch()
    before = images.clone()
    mixed, shares = mix(images, targets, Augment(cutmix=1.0), seed=3, step=step)
    pasted = (mixed != before).any(dim=1)
    assert (pasted[:4] == pasted[0]).all()
    assert not pasted[4].any()
    rows, columns = pasted[0].any(dim=1), pasted[0].any(dim=0)
    assert torch.equal(pasted[0], rows[:, None] & columns)
    assert max(rows.int().diff().abs().sum().item(), columns.int().diff().abs().sum().item()) <= 2
    keep = 1 - pasted[0].sum().item() / (HEIGHT * WIDTH)
    for index in range(BATCH):
        assert torch.equal(mixed[index, :, pasted[0]], before[NEIGHBOUR[index]][:, pasted[0]])
        expected = torch.zeros(BATCH)
        expected[index] += keep
        expected[NEIGHBOUR[index]] += 1 - keep
        torch.testing.assert_close(shares[index], expected)


@pytest.mark.parametrize("parameter", [0.2, 1.0, 50.0])
def test_lambda_is_beta_distributed_above_one_half(parameter: float) -> None:
    """The mean of |λ − ½| under Beta(a, a) is Γ(a + ½) / (2 √π Γ(a + 1)): ¼ for a = 1."""
    mean = 0.5 + math.exp(math.lgamma(parameter + 0.5) - math.lgamma(parameter + 1)) / (2 * math.sqrt(math.pi))
    augment = Augment(mixup=parameter)
    keeps = [
        mix(torch.zeros(2, 1, 1, 1), torch.eye(2), augment, seed=5, step=step)[1][0, 0].item() for step in range(800)
    ]
    assert min(keeps) >= 0.5
    assert np.mean(keeps) == pytest.approx(mean, abs=4 * np.std(keeps) / np.sqrt(800))


def test_cutmixs_rectangles_have_the_area_that_lambda_leaves() -> None:
    """Side √u of a square, u = 1 − λ uniform, loses u/4 at the borders on average: ∫ (√u − u/4)² du = 77/240."""
    pasted = [
        1 - mix(torch.zeros(2, 1, 40, 40), torch.eye(2), Augment(cutmix=1.0), seed=5, step=step)[1][0, 0].item()
        for step in range(800)
    ]
    assert np.mean(pasted) == pytest.approx(77 / 240, abs=4 * np.std(pasted) / np.sqrt(800))
    assert max(pasted) > 0.85


def test_with_both_a_coin_decides() -> None:
    cut = 0
    for step in range(200):
        images, targets = _batch()
        mixed, _ = mix(images, targets, Augment(mixup=0.8, cutmix=1.0), seed=11, step=step)
        whole = (mixed == _batch()[0]).all(dim=1)[0]
        cut += bool(whole.any()) and not bool(whole.all())
    assert 75 < cut < 125


def test_mixing_is_keyed_by_seed_and_step() -> None:
    def mixed(seed: int, step: int) -> torch.Tensor:
        return mix(*_batch(), Augment(mixup=0.8), seed=seed, step=step)[0]

    assert torch.equal(mixed(1, 4), mixed(1, 4))
    assert not torch.equal(mixed(1, 4), mixed(1, 5))
    assert not torch.equal(mixed(1, 4), mixed(2, 4))


@pytest.mark.parametrize("augment", [Augment(mixup=0.8), Augment(cutmix=0.8)])
def test_a_single_picture_stays_itself(augment: Augment) -> None:
    images, targets = _batch()
    mixed, shares = mix(images[:1].clone(), targets[:1], augment, seed=3, step=0)
    assert torch.equal(mixed, images[:1])
    assert torch.equal(shares, targets[:1])


def _keys(count: int) -> dict[str, np.ndarray]:
    return {"epochs": np.arange(count) // 2, "ids": np.arange(count) * 3}


def test_erasing_covers_one_rectangle_of_every_picture() -> None:
    count, height, width = 97, 31, 41
    images = torch.ones(count, 3, height, width)
    erased = erase(images, Augment(erasing=1.0), seed=2, **_keys(count))
    assert erased is images
    holes = (erased == 0).all(dim=1)
    assert torch.equal(holes, (erased == 0).any(dim=1))
    for hole in holes:
        rows, columns = hole.any(dim=1), hole.any(dim=0)
        assert torch.equal(hole, rows[:, None] & columns)
        tall, wide = rows.sum().item(), columns.sum().item()
        assert tall == rows.nonzero().max() - rows.nonzero().min() + 1
        assert wide == columns.nonzero().max() - columns.nonzero().min() + 1
        # Half a pixel of rounding at each side.
        assert (tall - 0.5) * (wide - 0.5) <= height * width / 3
        assert (tall + 0.5) * (wide + 0.5) >= height * width * 0.02
        assert (wide - 0.5) / (tall + 0.5) <= 1 / 0.3
        assert (wide + 0.5) / (tall - 0.5) >= 0.3
    assert len({hole.sum().item() for hole in holes}) > 40


def test_erased_areas_are_spread_over_the_whole_range() -> None:
    """Uniform from 0.02 to ⅓ of the picture, of which the longest do not always fit: about half are above a sixth."""
    count = 400
    erased = erase(torch.ones(count, 1, 37, 37), Augment(erasing=1.0), seed=2, **_keys(count))
    areas = (erased == 0).float().mean(dim=(1, 2, 3))
    assert 0.42 < (areas > 1 / 6).float().mean() < 0.58
    assert 0.18 < (areas < 0.1).float().mean() < 0.33
    assert areas.max() > 0.32
    assert areas.min() < 0.03


def test_erasing_chooses_its_share_of_pictures_whatever_the_batch() -> None:
    count = 600
    erased = erase(torch.ones(count, 1, 9, 7), Augment(erasing=0.25), seed=2, **_keys(count))
    chosen = (erased == 0).flatten(1).any(dim=1)
    assert 110 < chosen.sum() < 190
    keys = {name: values[100:130] for name, values in _keys(count).items()}
    assert torch.equal(erase(torch.ones(30, 1, 9, 7), Augment(erasing=0.25), seed=2, **keys), erased[100:130])
    untouched = torch.ones(count, 1, 9, 7)
    assert torch.equal(erase(untouched, Augment(), seed=2, **_keys(count)), torch.ones(count, 1, 9, 7))


@pytest.mark.parametrize("augment", [Augment(mixup=0.8), Augment(cutmix=0.8)])
@pytest.mark.parametrize("first", [2, 4])
def test_a_part_that_begins_at_an_even_place_is_mixed_as_in_the_whole(augment: Augment, first: int) -> None:
    whole, shares = mix(*_batch(), augment, seed=3, step=1)
    images, targets = _batch()
    part, its_shares = mix(images[first:], targets[first:], augment, seed=3, step=1)
    assert torch.equal(part, whole[first:])
    assert torch.equal(its_shares, shares[first:])
