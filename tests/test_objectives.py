"""Objectives that learn from pictures alone or from a teacher: their targets by hand, their draws by count, and whole runs."""

import contextlib
import copy
import dataclasses
import itertools
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from conftest import write_pictures
from patchword.core import files
from patchword.core.errors import DataError, PatchwordError, StoppedError, UsageError
from patchword.data.dataset import Arrays, Dataset, Split
from patchword.data.decoding.decode import decode
from patchword.data.sources import open_data
from patchword.evaluation import memory
from patchword.evaluation.predict import Looking
from patchword.models.chance import HIDDEN_PATCHES, Chance, current, drawing_from
from patchword.models.contract import Model
from patchword.models.names import create_model
from patchword.models.position import sincos
from patchword.models.vit import ViT
from patchword.reports.run import write_report
from patchword.training import loop, start, teacher, unlabelled
from patchword.training import recipe as recipes
from patchword.training.objectives import (
    UNLABELLED,
    Distillation,
    MaskedAutoencoder,
    MaskedPatch,
    Objective,
    Unlabelled,
    choose,
    masked_patch,
    start_at_prior,
)
from patchword.training.passes import Loss, Part, Passes
from patchword.training.recipe import Loading, Recipe, Teacher
from patchword.training.run import run
from patchword.weights.io import load_model, save_model
from test_training import stop_after
from tiny import tiny
from victims import log_lines, weights_hash

SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_dim": 40}


def small(name: str = "ViT-At/4", image_size: tuple[int, int] = (20, 28), channels: int = 3) -> ViT:
    torch.manual_seed(0)
    model = create_model(name, 0, image_size, channels, pool="gap", **SMALL)
    assert isinstance(model, ViT)
    return model


def pictures_of(model: ViT, count: int) -> Tensor:
    height, width = model.image_size
    shape = (count, model.in_channels, height, width)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_mean_colours_by_hand() -> None:
    """Three bits a channel of each patch's mean, red highest: NumPy on the bytes themselves."""
    model = small()
    pixels = pictures_of(model, 3)
    pixels[0, :, :4, :4] = torch.tensor([255, 0, 129])[:, None, None]
    found = masked_patch.mean_colours(model, model.preprocessing.normalize(pixels))
    means = pixels.numpy().reshape(3, 3, 5, 4, 7, 4).mean(axis=(3, 5)) / 255
    levels = np.minimum((means * 8).astype(int), 7)
    expected = levels[:, 0] * 64 + levels[:, 1] * 8 + levels[:, 2]
    np.testing.assert_array_equal(found.numpy(), expected.reshape(3, 35))
    assert found[0, 0] == 7 * 64 + 0 * 8 + 4


def test_half_of_the_patches_are_corrupted_as_in_bert() -> None:
    words = torch.zeros(400, 36, 5)
    with drawing_from(Chance(11)):
        corrupted, fates, others = masked_patch._draw(words)
    assert corrupted.shape == (400, 18)
    assert all(len(set(row)) == 18 for row in corrupted.tolist())
    fate = fates[:, :, 0].gather(1, corrupted)
    assert (fate == 1).float().mean().item() == pytest.approx(0.8, abs=0.02)
    assert (fate == 2).float().mean().item() == pytest.approx(0.1, abs=0.015)
    untouched = torch.ones(400, 36, dtype=torch.bool).scatter_(1, corrupted, False)
    assert not fates[:, :, 0][untouched].any()
    places = torch.arange(36)
    assert not (others[:, :, 0] == places).any()
    assert torch.bincount(others.flatten(), minlength=36).min() > 250
    # No place is spared, and which other patch it is has nothing to do with what else becomes of the patch.
    assert torch.bincount(corrupted.flatten(), minlength=36).min() > 150
    another = fates[:, :, 0] == 2
    steps = (others[:, :, 0] - places) % 36
    assert torch.bincount(steps[another], minlength=36)[1:].min() > 5


def test_a_head_that_knows_nothing_has_the_loss_of_chance_and_one_that_knows_is_right() -> None:
    model = small().eval()
    objective = MaskedPatch(model)
    images = model.preprocessing.normalize(pictures_of(model, 5))
    losses, right = objective.measure(model, images)
    torch.testing.assert_close(losses, torch.full((5,), float(np.log(512))))
    assert right.max() <= 0.2

    class Knowing(torch.nn.Module):
        """Says the colour that `encode` was made to hand through."""

        def forward(self, encoded: Tensor) -> Tensor:
            return torch.nn.functional.one_hot(encoded[:, :, 0].long(), 512).float() * 50

    colours = masked_patch.mean_colours(model, images).float()
    objective.head = Knowing()  # pyright: ignore[reportAttributeAccessIssue]
    model.encode = lambda tokens, keep=None: colours[:, :, None].expand(-1, -1, 24)  # pyright: ignore
    losses, right = objective.measure(model, images)
    assert losses.max() < 1e-6
    assert right.tolist() == [1.0] * 5


def test_the_auto_encoder_sees_a_quarter_and_paints_the_rest() -> None:
    model = small()
    seen: list[Tensor] = []
    encode = model.encode

    def watched(tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        assert keep is not None
        seen.append(keep)
        return encode(tokens, keep)

    model.encode = watched  # pyright: ignore[reportAttributeAccessIssue]
    objective = MaskedAutoencoder(model)
    images = model.preprocessing.normalize(pictures_of(model, 16))
    with drawing_from(Chance(3)):
        losses, figures = objective.measure(model, images)
    [keep] = seen
    assert keep.shape == (16, 9)  # a quarter of 35 patches
    assert (keep.diff(dim=1) > 0).all()
    # The loss by hand: paint zeros, and each hidden patch has the variance 1 that it was given.
    with torch.no_grad():
        objective.paint.weight.zero_()
        objective.paint.bias.zero_()
    patches = images.reshape(16, 3, 5, 4, 7, 4).permute(0, 2, 4, 1, 3, 5).reshape(16, 35, 48)
    normed = (patches - patches.mean(2, keepdim=True)) / patches.var(2, keepdim=True).add(1e-6).sqrt()
    hidden = torch.ones(16, 35, dtype=torch.bool).scatter_(1, keep, False)
    expected = (normed**2).mean(2)[hidden].view(16, 26).mean(1)
    torch.testing.assert_close(figures, 1 - losses.detach() / expected)
    with drawing_from(Chance(3)):
        torch.testing.assert_close(objective.measure(model, images)[0], expected)


@torch.no_grad()
def test_who_paints_nothing_explains_nothing() -> None:
    """Not in pictures with an empty border either, nor in those of one colour."""
    model = small().eval()
    pixels = pictures_of(model, 7)
    pixels[1:, :, :8], pixels[1:, :, :, :12] = 255, 255
    pixels[6] = 31
    images = model.preprocessing.normalize(pixels)
    objective = MaskedAutoencoder(model)
    objective.paint.weight.zero_()
    losses, figures = objective.measure(model, images)
    assert losses[1:6].max() < 0.7 < losses[0]
    assert figures.tolist() == [0.0] * 7
    objective.paint.bias.fill_(0.5)
    losses, figures = objective.measure(model, images)
    assert losses[6].item() == pytest.approx(0.25, rel=1e-3)
    assert figures[6] == 0.0
    assert figures[:6].max() < -0.2


def by_places(model: ViT, words: Tensor) -> Tensor:
    """Words of the patches N×D of one picture → tokens M×D with class token and registers, as the paper adds positions."""
    table, token, registers = model.position.table, model.class_token, model.registers
    assert token is not None
    assert registers is not None
    return torch.cat([(token + table[0])[None], registers, words + table[1:]])


def with_tokens() -> ViT:
    """A model whose patches stand behind a class token and three registers, none of whose values are usual ones."""
    torch.manual_seed(0)
    model = create_model("ViT-At/4", 0, (20, 28), 3, pool="token", registers=3, **SMALL)
    assert isinstance(model, ViT)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def test_masked_patches_are_predicted_as_the_paper_says_picture_by_picture() -> None:
    """Each corrupted patch in its turn: the learned word, the other patch or itself goes in, and its own colour is asked for."""
    model = with_tokens()
    torch.manual_seed(1)
    objective = MaskedPatch(model)
    for parameter in objective.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    images = model.preprocessing.normalize(pictures_of(model, 5))
    with drawing_from(Chance(11)):
        losses, right = objective.measure(model, images)
    clean, colours = model.project(images), masked_patch.mean_colours(model, images)
    with drawing_from(Chance(11)):
        corrupted, fates, others = masked_patch._draw(clean)
    assert {1, 2} <= set(fates.unique().tolist())
    assert corrupted.shape == (5, 18)  # half of 35, rounded
    for picture in range(5):
        words = clean[picture].clone()
        for place in corrupted[picture].tolist():
            fate = int(fates[picture, place])
            if fate == 1:
                words[place] = objective.word
            elif fate == 2:
                words[place] = clean[picture, int(others[picture, place])]
        tokens = by_places(model, words)[None]
        for block in model.blocks:
            tokens = block(tokens)
        shares = objective.head(model.norm(tokens[0, 4:])).log_softmax(1)
        own = [float(shares[place, colours[picture, place]].detach()) for place in corrupted[picture].tolist()]
        found = [bool(shares[place].argmax() == colours[picture, place]) for place in corrupted[picture].tolist()]
        assert losses[picture].item() == pytest.approx(-np.mean(own), rel=1e-4)
        assert right[picture].item() == pytest.approx(np.mean(found))


def test_the_auto_encoder_paints_each_hidden_patch_at_its_place() -> None:
    """Picture by picture: the encoder on the visible patches alone, the learned word elsewhere, all of them with places."""
    model = with_tokens()
    torch.manual_seed(1)
    objective = MaskedAutoencoder(model).eval()
    for parameter in objective.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    images = model.preprocessing.normalize(pictures_of(model, 5))
    with drawing_from(Chance(3)):
        losses, _ = objective.measure(model, images)
    draws = Chance(3).uniform(HIDDEN_PATCHES, (5, 35), images)
    clean = model.project(images)
    for picture in range(5):
        order = draws[picture].argsort().tolist()
        visible, hidden = sorted(order[:9]), order[9:]
        tokens = by_places(model, clean[picture])[[0, 1, 2, 3, *(4 + place for place in visible)]][None]
        for block in model.blocks:
            tokens = block(tokens)
        encoded = objective.entrance(model.norm(tokens[0, 4:]))
        words: list[Tensor] = []
        for place in range(35):
            words.append(encoded[visible.index(place)] if place in visible else objective.word)
        decoded = (torch.stack(words) + sincos((5, 7), 32))[None]
        for block in objective.blocks:
            decoded = block(decoded)
        painted = objective.paint(objective.norm(decoded[0])).detach().numpy()
        errors = []
        for place in hidden:
            top, left = 4 * (place // 7), 4 * (place % 7)
            patch = images[picture, :, top : top + 4, left : left + 4].numpy().ravel()
            errors.append(np.mean((painted[place] - (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)) ** 2))
        assert losses[picture].item() == pytest.approx(np.mean(errors), rel=1e-4)


def test_no_hidden_pixel_reaches_the_encoder_of_an_auto_encoder() -> None:
    model = with_tokens()
    images = model.preprocessing.normalize(pictures_of(model, 1)).requires_grad_()
    visible = torch.tensor([[0, 8, 16, 24, 32]])
    model.encode(model.embed(images), visible).square().sum().backward()
    assert images.grad is not None
    reached = model.patchify(images.grad).any(2)[0].nonzero()[:, 0]
    assert reached.tolist() == visible[0].tolist()


@pytest.mark.parametrize("name", ["R5+ViT-At/4", "C2+ViT-At/4"])
def test_an_auto_encoder_refuses_convolutions_that_would_show_what_is_hidden(name: str) -> None:
    sentence = (
        f"hides pixels, which the convolutions of {name} would show; a plain ViT, or objective=masked-patch, would"
    )
    with pytest.raises(UsageError, match=re.escape(sentence)):
        MaskedAutoencoder(small(name, (16, 24)))


def test_what_objectives_begin_with() -> None:
    """The decoder is two blocks of half the width, in heads of 32; words are as small as positions, and nothing is known."""
    torch.manual_seed(0)
    model = create_model("ViT-Ti/4", 0, 16)
    painter = MaskedAutoencoder(model)
    blocks: list[Any] = list(painter.blocks)
    sizes = [(block.attention.num_heads, block.norm1.normalized_shape, block.mlp.fc1.out_features) for block in blocks]
    assert sizes == [(3, (96,), 384)] * 2
    assert painter.paint.out_features == 48
    for word in (painter.word, MaskedPatch(model).word):
        assert word.std().item() == pytest.approx(0.02, rel=0.2)
    for layer, limit in ((painter.entrance, (6 / 288) ** 0.5), (painter.paint, (6 / 144) ** 0.5)):
        assert 0.98 * limit < layer.weight.abs().max() <= limit
        assert not layer.bias.any()


@pytest.mark.parametrize("kind", UNLABELLED.values())
@pytest.mark.parametrize("channels", [1, 3])
def test_every_parameter_of_model_and_objective_learns(kind: type[Any], channels: int) -> None:
    model = small(channels=channels).train()
    torch.manual_seed(1)
    objective = kind(model)
    for parameter in objective.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    images = model.preprocessing.normalize(pictures_of(model, 8))
    with drawing_from(Chance(5)):
        objective(model, images, objective.targets(torch.zeros(8, dtype=torch.int64))).sum().backward()
    for part in (model, objective):
        without = [name for name, p in part.named_parameters() if p.grad is None or not p.grad.any()]
        assert without == []


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (MaskedAutoencoder, "ViT-At/4"),
        (MaskedPatch, "ViT-At/4"),
        (MaskedPatch, "R5+ViT-At/4"),
        (MaskedPatch, "C2+ViT-At/4"),
    ],
)
def test_what_is_hidden_depends_on_the_picture_alone(kind: type[Any], name: str) -> None:
    """Parts of 3, 5 and 13 give the gradients of the whole, by any stem that the objective takes."""

    def gradients(size: int) -> list[Tensor]:
        model = small(name, (16, 24)).double().eval()  # batch norm looks at the batch in training
        torch.manual_seed(2)
        objective: Objective = kind(model).double()
        for parameter in objective.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        images = model.preprocessing.normalize(pictures_of(model, 13), torch.float64)
        ones = torch.ones(13, dtype=torch.float64)
        parts = [
            Part(images[i : i + size], ones[i : i + size, None], ones[i : i + size], None, Chance(7, i))
            for i in range(0, 13, size)
        ]
        with Passes(model, objective, threads=2) as passes:
            passes.backward(parts)
        return [p.grad for p in (*model.parameters(), *objective.parameters()) if p.grad is not None]

    whole = gradients(13)
    for size in (3, 5):
        for one, two in zip(gradients(size), whole, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("objective", UNLABELLED)
def test_a_run_without_labels_learns_resumes_and_can_be_built_upon(
    objective: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny(pictures, objective=objective, model={"patch_size": 4}, regularization={"patch_dropout": 0.0})
    whole = run(recipe, tmp_path / "whole")
    result = json.loads((whole / "result.json").read_text())
    metric = {"masked-patch": "masked_accuracy", "masked-autoencoder": "explained_variance"}[objective]
    assert (result["metric"], result["n"], result["split"]) == (metric, 21, "test")
    low, high = result["value_ci95"]
    assert low < result["value"] < high
    assert "accuracy" not in result
    assert {metric, "loss"} <= log_lines(whole)[-1].keys()
    page = write_report(whole).read_text("utf-8")
    assert f"reaches a{'n' if metric[0] == 'e' else ''} {metric.replace('_', ' ')} of <strong>" in page
    assert "names <strong>" not in page
    guessing = "naming always the colour of a patch that is most frequent among them would give"
    assert (guessing in page, ">guessing</span>" in page) == (objective == "masked-patch",) * 2
    model = load_model(whole)
    assert (model.num_classes, model.labels) == (0, None)
    stop_after(5, monkeypatch)
    with pytest.raises(StoppedError):
        run(recipe, tmp_path / "stopped")
    monkeypatch.undo()
    run(recipe, tmp_path / "stopped")
    assert weights_hash(tmp_path / "stopped") == weights_hash(whole)
    own = sorted((tmp_path / "stopped/checkpoints").iterdir())[-1] / "objective.safetensors"
    assert own.is_file()
    tuned = run(tiny(pictures, init=str(whole), model={"patch_size": 4}), tmp_path / "tuned")
    assert load_model(tuned).num_classes == 3


def test_a_folder_of_pictures_is_enough_to_learn_from_without_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    rng = np.random.default_rng(0)
    for number in range(31):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(flat / f"{number}.png")
    folder = run(tiny(flat, objective="masked-autoencoder", regularization={"patch_dropout": 0.0}), tmp_path / "run")
    told = json.loads((folder / "result.json").read_text())
    assert (told["train_images"], told["n"], told["data"]["classes"]) == (25, 3, [])
    said = capsys.readouterr().err
    assert "on 25 pictures: 12 steps of 10" in said
    page = write_report(folder).read_text("utf-8")
    assert "classes" not in page.partition("<h2>Data</h2>")[2].partition("<h2>")[0]
    with pytest.raises(DataError, match=r"holds pictures \(31\) but no class folders"):
        run(tiny(flat), tmp_path / "labels")


def test_the_flops_of_an_auto_encoder_are_those_of_what_it_sees(pictures: Path, tmp_path: Path) -> None:
    sizes = {"patch_size": 2, "embed_dim": 64, "depth": 6, "mlp_dim": 256, "num_heads": 2}
    flops = {}
    for objective in ("masked-autoencoder", "masked-patch", "softmax"):
        recipe = tiny(
            pictures, objective=objective, model=sizes, regularization={"patch_dropout": 0.0}, budget={"steps": 1}
        )
        result = json.loads((run(recipe, tmp_path / objective) / "result.json").read_text())
        flops[objective] = result["train_flops"]
    assert flops["softmax"] < flops["masked-patch"] < 1.3 * flops["softmax"]
    assert flops["masked-autoencoder"] < 0.6 * flops["softmax"]


@pytest.mark.parametrize(
    ("objective", "changes", "sentence"),
    [
        (
            "masked-patch",
            {"model": {"patch_size": 16}, "regularization": {"patch_dropout": 0.0}},
            "objective=masked-patch needs two patches or more, and ViT-At/8 at 16×16 has one",
        ),
        (
            "masked-autoencoder",
            {"model": {"patch_size": 16}, "regularization": {"patch_dropout": 0.0}},
            "objective=masked-autoencoder hides three of four patches, and ViT-At/8 at 16×16 has 1",
        ),
        ("masked-patch", {}, "objective=masked-patch hides patches itself; regularization.patch_dropout=0 is right"),
    ],
)
def test_what_does_not_go_with_a_masked_objective_is_refused(
    objective: str, changes: dict[str, Any], sentence: str, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=sentence):
        run(tiny(pictures, objective=objective, **changes), tmp_path / "out")


def test_one_picture_teaches_nothing(tmp_path: Path) -> None:
    write_pictures(tmp_path / "loose", ("ant",), 1)
    sentence = "loose has 1 training picture, too few to learn from; 2 or more would be right"
    with pytest.raises(DataError, match=sentence):
        run(tiny(tmp_path / "loose", objective="masked-patch", regularization={"patch_dropout": 0.0}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Drawing(Unlabelled):
    """Its figures are what is drawn for each picture, to the `power`-th, or 1 less that; its losses are told from them."""

    def __init__(self, power: int, turned: bool, least: float) -> None:
        super().__init__()
        self.power, self.turned = power, turned
        self.least = least  # pyright: ignore[reportAttributeAccessIssue]

    def measure(self, model: Model, images: Tensor) -> tuple[Tensor, Tensor]:
        chance = current()
        assert chance is not None
        figures = chance.uniform(5, (len(images),), images) ** self.power
        figures = 1 - figures if self.turned else figures
        return 2 + 3 * figures, figures


@pytest.mark.parametrize("batch_size", [3, 7])
@pytest.mark.parametrize(("power", "turned"), [(1, False), (40, False), (40, True)])
@pytest.mark.parametrize("least", [0.0, -np.inf])
def test_what_is_measured_without_labels_by_hand(
    batch_size: int, power: int, turned: bool, least: float, tmp_path: Path
) -> None:
    """A picture has its draws by its place in the split, one that cannot be read counts for nothing, shares stay shares."""
    write_pictures(tmp_path / "test", ("ant", "bee"), 5)
    write_pictures(tmp_path / "train", ("ant", "bee"), 1, seed=1)
    (tmp_path / "test/ant/002.png").write_bytes(b"broken")
    split = open_data(tmp_path).splits["test"]
    found = unlabelled.measure(Drawing(power, turned, least), small(), split, Looking(batch_size=batch_size, threads=1))
    draws = Chance(0).uniform(5, (10,), torch.empty(())).numpy().astype(np.float64) ** power
    figures = np.delete(1 - draws if turned else draws, 2)
    half = 1.959964 * np.sqrt(((figures - figures.mean()) ** 2).sum() / 8) / 3
    assert (found["n"], [row["name"] for row in found["unreadable"]]) == (9, ["test/ant/002.png"])
    assert found["value"] == pytest.approx(figures.mean(), rel=1e-4)
    assert found["loss"] == pytest.approx(2 + 3 * figures.mean(), rel=1e-4)
    low, high = figures.mean() - half, figures.mean() + half
    assert found["value_ci95"] == pytest.approx([max(least, low), min(1.0, high)], rel=1e-5, abs=1e-6)
    assert (low < 0, high > 1) == (power == 40 and not turned, turned)


@pytest.mark.parametrize("batch_size", [3, 7])
def test_what_guessing_finds_is_the_share_of_the_commonest_colour(batch_size: int, tmp_path: Path) -> None:
    """Of all patches of the pictures that can be read, counted one by one."""
    write_pictures(tmp_path / "test", ("ant", "bee"), 5)
    write_pictures(tmp_path / "train", ("ant", "bee"), 1, seed=1)
    (tmp_path / "test/ant/002.png").write_bytes(b"broken")
    split, model = open_data(tmp_path).splits["test"], small()
    found = unlabelled.measure(MaskedPatch(model), model, split, Looking(batch_size=batch_size, threads=1))
    counts: Counter[tuple[int, ...]] = Counter()
    for index in set(range(10)) - {2}:
        picture = model.preprocessing.fit(decode(split.read(index), 3)).astype(np.float64) / 255
        height, width = (side // cells for side, cells in zip(picture.shape[:2], model.grid, strict=True))
        for row, column in itertools.product(*map(range, model.grid)):
            patch = picture[row * height : (row + 1) * height, column * width : (column + 1) * width]
            counts[tuple((patch.mean(axis=(0, 1)) * 8).astype(int).clip(max=7))] += 1
    assert counts.total() == 9 * model.grid[0] * model.grid[1]
    # A patch may stand on the border of two colours.
    assert found["majority"] == pytest.approx(max(counts.values()) / counts.total(), abs=1.5 / counts.total())
    assert "majority" not in unlabelled.measure(Drawing(1, False, 0.0), model, split, Looking(threads=1))


def test_a_share_has_an_interval_of_shares() -> None:
    assert (MaskedPatch.least, MaskedAutoencoder.least) == (0.0, -np.inf)


def test_a_head_alone_has_nothing_to_learn_without_labels(pictures: Path, tmp_path: Path) -> None:
    first = run(tiny(pictures, budget={"steps": 1}), tmp_path / "first")
    whole = {"regularization": {"patch_dropout": 0.0}}
    with pytest.raises(UsageError, match="objective=masked-patch has no use for a head"):
        run(tiny(pictures, objective="masked-patch", tune="head", init=str(first), **whole), tmp_path / "out")


def test_what_does_not_go_with_the_objective_is_said_before_the_weights_are_looked_at(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="objective=masked-patch hides patches itself"):
        run(tiny(pictures, objective="masked-patch", init="nowhere"), tmp_path / "out")
    assert "head" not in capsys.readouterr().err


def test_weights_lose_their_head_where_nothing_is_named(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(tiny(pictures, budget={"steps": 1}), tmp_path / "first")
    whole = {"objective": "masked-patch", "regularization": {"patch_dropout": 0.0}, "budget": {"steps": 1}}
    second = run(tiny(pictures, init=str(first), **whole), tmp_path / "second")
    run(tiny(pictures, init=str(second), **whole), tmp_path / "third")
    heads = [line for line in capsys.readouterr().err.splitlines() if "head" in line]
    assert heads == [f"{first}: the head for 3 classes is left out"]


@pytest.mark.parametrize("objective", UNLABELLED)
def test_a_model_without_patches_has_none_to_hide(objective: str, pictures: Path, tmp_path: Path) -> None:
    wanted = {"data": str(pictures), "objective": objective, "image_size": [32, 32], "budget": {"steps": 1}}
    sentence = f"objective={objective} needs a model with patches, which BiT-R14x0.5 does not have"
    with pytest.raises(UsageError, match=sentence):
        run(recipes.load("scratch", {**wanted, "model": {"name": "BiT-R14x0.5"}}), tmp_path / "out")


def test_a_new_head_for_several_labels_begins_at_the_prior() -> None:
    model = create_model("ViT-At/8", 3, 16, depth=1)
    start_at_prior(model, torch.tensor([25, 0, 100]), 100)
    shares = model(torch.randn(2, 3, 16, 16)).sigmoid()
    torch.testing.assert_close(shares, torch.tensor([[0.25, 0.005, 0.995]]).expand(2, 3), rtol=1e-4, atol=1e-5)


def test_the_targets_of_a_teacher_by_hand() -> None:
    answers = torch.tensor([[0.7, 0.3], [0.1, 0.9], [0.5, 0.5]])
    objective = Distillation(2, 0.2, answers, share=0.25)
    targets = objective.targets(torch.tensor([1, -1]), np.array([0, 1]))
    torch.testing.assert_close(targets, torch.tensor([[0.75 * 0.1 + 0.25 * 0.7, 0.75 * 0.9 + 0.25 * 0.3], [0.1, 0.9]]))


def test_the_answers_of_a_teacher_are_neither_exchanged_nor_copied() -> None:
    """They are no tensor that `DistributedDataParallel` or a checkpoint sees; replicas read the same memory."""
    answers = torch.rand(50, 3, generator=torch.Generator().manual_seed(0))
    objective = Distillation(3, 0.0, answers, share=1.0)
    loss = Loss(small(), objective)
    assert [tensor.shape for tensor in (*loss.buffers(), *loss.parameters()) if tensor.shape == answers.shape] == []
    assert not objective.state_dict()
    copied = copy.deepcopy(loss).objective
    answers[7] = torch.tensor([0.5, 0.25, 0.25])
    for each in (objective, copied):
        assert each.targets(torch.tensor([2]), np.array([7])).tolist() == [[0.5, 0.25, 0.25]]


def test_a_teachers_answers_are_in_the_order_of_the_data_sets_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Probabilities at the recipe's temperature, by NumPy; which pictures it is sure of, by hand."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = create_model("ViT-At/8", 3, 16, depth=1)
    model.labels = ("cat", "ant", "bee")
    logits = np.array([[0.0, 1.0, 2.0], [4.0, 0.0, -1.0]], np.float32)
    monkeypatch.setattr(teacher, "predict", lambda *_, **__: SimpleNamespace(logits=logits))
    split = Split(Arrays(np.zeros((2, 16, 16, 3), np.uint8), "x"), np.array([0, -1]))
    said = teacher.answers(Teacher(weights="x", temperature=4.0), model, split, ("ant", "bee", "cat"), Looking())
    powers = np.exp(logits[:, [1, 2, 0]] / 4)
    np.testing.assert_allclose(said.numpy(), powers / powers.sum(1, keepdims=True), rtol=1e-6)
    sure = torch.tensor([[0.6, 0.4], [0.4, 0.6], [0.5, 0.5], [0.9, 0.1]])
    some = Split(Arrays(np.zeros((4, 2, 2), np.uint8), "y"), np.array([-1, -1, 1, -1]))
    assert teacher.confident(some, sure, 0.75).tolist() == [2, 3]
    assert teacher.confident(some, sure, 0.6).tolist() == [0, 1, 2, 3]
    assert teacher.confident(some, sure, 1.0).tolist() == [2]


def test_who_is_left_out_takes_their_answers_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sure and unsure pictures in turn: each that stays has what the teacher said of that very one. How many is always said."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = create_model("ViT-At/8", 2, 16, depth=1)
    model.labels = ("ant", "bee")
    save_model(model, tmp_path / "teacher")
    logits = np.array([[0.1, 0.0], [5.0, 0.0], [0.2, 0.0], [0.0, 6.0], [0.0, 0.3], [7.0, 0.0]], np.float32)
    monkeypatch.setattr(teacher, "predict", lambda *_, **__: SimpleNamespace(logits=logits))
    train = Split(Arrays(np.zeros((6, 16, 16, 3), np.uint8), "x"), np.full(6, -1))
    dataset = Dataset("x", "x", model.labels, False, {"train": train}, "")
    asking = Teacher(weights=str(tmp_path / "teacher"), confidence=0.9)
    left, said, _ = teacher.ask(asking, dataset, "cpu", Looking())
    np.testing.assert_array_equal(left.splits["train"].rows, [1, 3, 5])  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(said, torch.from_numpy(logits[[1, 3, 5]]).softmax(1))
    assert (
        "of 3 of 6 pictures without labels (teacher.confidence=0.9); the others are left out\n"
        in capsys.readouterr().err
    )
    assert teacher.ask(dataclasses.replace(asking, confidence=0.5), dataset, "cpu", Looking())[0] is dataset
    assert "of 6 of 6 pictures without labels (teacher.confidence=0.5)\n" in capsys.readouterr().err
    teacher.ask(dataclasses.replace(asking, confidence=0.0), dataset, "cpu", Looking())
    assert "the teacher is sure" not in capsys.readouterr().err


@pytest.fixture
def taught(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A teacher, and a place of our own for what it says."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return run(tiny(pictures), tmp_path / "teacher")


def test_a_teacher_is_asked_once_and_its_answers_are_whole_or_absent(
    taught: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []
    predict = teacher.predict
    monkeypatch.setattr(teacher, "predict", lambda *a, **k: (asked.append(1), predict(*a, **k))[1])
    recipe = tiny(pictures, teacher={"weights": str(taught), "temperature": 2.0}, seed=5)
    first = run(recipe, tmp_path / "first")
    again = run(recipe, tmp_path / "again")
    assert len(asked) == 1
    assert weights_hash(first) == weights_hash(again) != weights_hash(run(tiny(pictures, seed=5), tmp_path / "alone"))
    [kept] = (tmp_path / "cache/patchword/answers").iterdir()
    kept.write_bytes(kept.read_bytes()[:-5])
    third = run(recipe, tmp_path / "third")
    assert "is damaged; what it held is computed again" in capsys.readouterr().err
    assert weights_hash(third) == weights_hash(first)
    kept.unlink()
    monkeypatch.setattr(memory, "save", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "fourth")
    assert not list(kept.parent.iterdir())


def test_a_noisy_student_learns_from_pictures_that_nobody_has_labelled(
    taught: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of them are seen, or those of which the teacher is sure; a flat folder will do. None that is measured on is, and none
    that has a label is there a second time.
    """
    flat = tmp_path / "flat"
    flat.mkdir()
    rng = np.random.default_rng(0)
    for number in range(7):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(flat / f"{number}.png")
    known = [sorted((pictures / split).rglob("*.*"))[0] for split in ("test", "validation", "train")]
    for picture, name in zip(known, ("copy", "other", "labelled"), strict=True):
        (flat / f"{name}.png").write_bytes(picture.read_bytes())
    folders = write_pictures(tmp_path / "folders/train", ("ant", "bee"), 4, seed=100).parent
    write_pictures(folders / "test", ("ant", "bee"), 2, seed=101)
    (folders / "train/bee/labelled.png").write_bytes(known[2].read_bytes())
    seen: dict[str, int] = {}
    for name, fields in (
        ("flat", {"unlabelled": str(flat)}),
        ("sure", {"unlabelled": str(flat), "confidence": 1.0}),
        ("folders", {"unlabelled": str(folders)}),
    ):
        folder = run(tiny(pictures, teacher={"weights": str(taught), **fields}), tmp_path / f"run-{name}")
        seen[name] = json.loads((folder / "result.json").read_text())["train_images"]
    said = "the teacher is sure of the class of 0 of 7 pictures without labels (teacher.confidence=1); the others are left out"
    assert said in capsys.readouterr().err
    assert seen == {"flat": 72 + 7, "sure": 72, "folders": 72 + 8}
    told = json.loads((tmp_path / "run-flat/result.json").read_text())
    assert told["teacher"] == {"weights": str(taught), "unlabelled": str(flat), "pictures": 7, "unsure": 0}
    sure = json.loads((tmp_path / "run-sure/result.json").read_text())["teacher"]
    assert (sure["pictures"], sure["unsure"]) == (0, 7)
    notices = told["data"]["notices"]
    assert [notice["sentence"] for notice in notices if notice["kind"] == "leak"] == [
        "unlabelled: left out, for train, validation or test have them, too: 3 (first: copy.png)"
    ]


def test_a_batch_is_of_all_pictures_that_a_student_learns_from(
    taught: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six have a label and seven have none: twelve fit into a batch, sixteen do not."""
    flat = write_pictures(tmp_path / "flat", ("any",), 7, seed=100)
    teaching = {"weights": str(taught), "unlabelled": str(flat)}
    for asked, batch_size in ((12, 12), (16, 13)):
        capsys.readouterr()
        recipe = tiny(pictures, teacher=teaching, train_images=6, batch_size=asked, budget={"steps": 1})
        folder = run(recipe, tmp_path / f"run-{asked}")
        assert recipes.load(str(folder / "recipe.toml")).batch_size == batch_size
        note = "note: a batch of 16 would hold pictures twice; it is 13, as many as there are"
        assert (note in capsys.readouterr().err) == (asked > batch_size)


def test_unlabelled_pictures_that_all_have_labels_are_refused_unless_copies_are_wanted(
    taught: Path, pictures: Path, tmp_path: Path
) -> None:
    recipe = tiny(pictures, teacher={"weights": str(taught), "unlabelled": str(pictures)}, budget={"steps": 1})
    with pytest.raises(DataError, match="every picture is in train, validation or test of .*, too; other ones belong"):
        run(recipe, tmp_path / "refused")
    whole = run(dataclasses.replace(recipe, loading=Loading(duplicates="no")), tmp_path / "whole")
    assert json.loads((whole / "result.json").read_text())["train_images"] == 72 + 72


def test_what_is_measured_on_is_left_out_though_the_labelled_pictures_are_too_many_to_look_through(
    taught: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for split in ("train", "test"):
        [first, *_] = sorted((pictures / split).rglob("*.*"))
        (flat / f"{split}.png").write_bytes(first.read_bytes())
    monkeypatch.setattr("patchword.training.pictures._CHECK_DUPLICATES_BELOW", 60)
    recipe = tiny(pictures, teacher={"weights": str(taught), "unlabelled": str(flat)}, budget={"steps": 1})
    folder = run(recipe, tmp_path / "run")
    assert json.loads((folder / "result.json").read_text())["train_images"] == 72 + 1


def forget_teacher(run_folder: Path) -> None:
    """Turn the checkpoints into those of before teachers were remembered."""
    for checkpoint in (run_folder / "checkpoints").iterdir():
        state = json.loads((checkpoint / "state.json").read_text())
        del state["teacher"]
        (checkpoint / "state.json").write_text(json.dumps(state))
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        manifest["state.json"] = [(checkpoint / "state.json").stat().st_size, files.sha256(checkpoint / "state.json")]
        (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def stopped(recipe: Recipe, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run until a signal comes after its fifth step."""
    with monkeypatch.context() as patch:
        stop_after(5, patch)
        with pytest.raises(StoppedError):
            run(recipe, out)


def test_a_student_goes_on_with_its_own_teacher_only(
    taught: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny(pictures, teacher={"weights": str(taught)})
    whole = run(recipe, tmp_path / "whole")
    assert load_model(whole).provenance["teacher"] == str(taught)
    assert "teacher" not in load_model(taught).provenance
    stopped(recipe, tmp_path / "out", monkeypatch)
    right = tmp_path / "right"
    taught.rename(right)
    save_model(load_model(run(tiny(pictures, seed=1), tmp_path / "other")), taught)
    with pytest.raises(
        DataError, match=r"the teacher has changed since .*step-\d+ was written.*; --restart begins anew"
    ):
        run(recipe, tmp_path / "out")
    shutil.rmtree(taught)
    right.rename(taught)
    assert weights_hash(run(recipe, tmp_path / "out")) == weights_hash(whole)


@pytest.mark.parametrize("with_teacher", [True, False])
def test_a_checkpoint_that_does_not_say_who_taught_is_gone_on_with(
    with_teacher: bool, taught: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny(pictures, **({"teacher": {"weights": str(taught)}} if with_teacher else {}))
    stopped(recipe, tmp_path / "out", monkeypatch)
    forget_teacher(tmp_path / "out")
    run(recipe, tmp_path / "out")
    assert json.loads((tmp_path / "out/result.json").read_text())["resumed_from"] == [5]


def test_a_student_goes_on_with_the_same_unlabelled_pictures_only(
    taught: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where pictures are streamed, too, and another has come for one that is gone."""
    flat = write_pictures(tmp_path, ("flat",), 4, seed=100) / "flat"
    recipe = tiny(
        pictures,
        teacher={"weights": str(taught), "unlabelled": str(flat)},
        loading={"in_memory": "no", "workers": 0},
    )
    stopped(recipe, tmp_path / "out", monkeypatch)
    gone = (flat / "000.png").rename(tmp_path / "gone.png")
    new = flat / "new.png"
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(new)
    with pytest.raises(DataError, match="the data set has changed since .*: the name, size or label of a picture is"):
        run(recipe, tmp_path / "out")
    new.unlink()
    gone.rename(flat / "000.png")
    run(recipe, tmp_path / "out")
    assert json.loads((tmp_path / "out/result.json").read_text())["resumed_from"] == [5]


def test_pictures_without_labels_that_cannot_be_read_are_looked_for_where_they_came_from(pictures: Path) -> None:
    """'data check' of the labelled ones would find nothing wrong."""
    train = open_data(pictures).splits["train"]
    for labels, right in (
        (train.labels, "'patchword data check' lists them"),
        (np.full(len(train), -1), "teacher.unlabelled without them is right"),
    ):
        with pytest.raises(DataError, match=rf"{train.name(1)} is empty\); {right}$"):
            loop.check_bad({1: "is empty"}, Split(train.items, labels, train.rows))


def test_a_recipe_means_the_same_in_any_folder(
    taught: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights, teacher and pictures lie where they lay when it was written."""
    places = {"taught": taught, "photos": pictures, "loose": pictures / "test"}
    for name, place in places.items():
        (tmp_path / name).symlink_to(place)
    monkeypatch.chdir(tmp_path)
    teacher = {"weights": "taught", "unlabelled": "loose"}
    keep = {"budget": {"steps": 1}, "loading": {"duplicates": "no"}}
    first = run(tiny(Path("photos"), init="./taught", teacher=teacher, **keep), tmp_path / "first")
    again = recipes.load(str(first / "recipe.toml"))
    said = (again.data, again.init, again.teacher.weights, again.teacher.unlabelled)
    assert said == tuple(str(places[name]) for name in ("photos", "taught", "taught", "loose"))
    (tmp_path / "none").mkdir()
    second = run(tiny(Path("photos"), init="none", budget={"steps": 1}), tmp_path / "second")
    assert recipes.load(str(second / "recipe.toml")).init == "none"


def test_a_teacher_that_does_not_fit_is_refused(taught: Path, pictures: Path, tmp_path: Path) -> None:
    others, rng = tmp_path / "others", np.random.default_rng(0)
    for folder in (others / split / name for split in ("train", "test") for name in ("oak", "fir")):
        folder.mkdir(parents=True)
        for number in range(8):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{number}.png")
    with pytest.raises(
        DataError, match=r"has other classes \(ant, .* 3 in all\) than the data set \(fir, oak, 2 in all\)"
    ):
        run(tiny(others, teacher={"weights": str(taught)}), tmp_path / "out")
    several = load_model(taught)
    several.multi_label = True
    save_model(several, tmp_path / "several")
    with pytest.raises(
        DataError, match=r"says yes or no to each label \(objective=sigmoid\); one that names a single class"
    ):
        run(tiny(pictures, teacher={"weights": str(tmp_path / "several")}), tmp_path / "out3")
    with pytest.raises(
        UsageError, match="a teacher answers with one class a picture, for objective=softmax, not sigmoid"
    ):
        run(tiny(pictures, objective="sigmoid", teacher={"weights": str(taught)}), tmp_path / "out2")
    with pytest.raises(UsageError, match=r"teacher.unlabelled needs somebody who labels them; teacher.weights names"):
        tiny(pictures, teacher={"unlabelled": "x"})
    for fields, sentence in (
        ({"weights": "nowhere"}, "teacher.weights=nowhere: nowhere holds no model: it does not exist"),
        ({"weights": str(pictures)}, f"teacher.weights={pictures}: {pictures} holds no model: a finished run's folder"),
        ({"weights": str(taught), "unlabelled": "nowhere"}, "teacher.unlabelled=nowhere: nowhere is neither a path"),
    ):
        with pytest.raises(PatchwordError, match=f"^{re.escape(sentence)}"):
            run(tiny(pictures, teacher=fields), tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_what_does_not_go_with_the_labels_is_refused_before_weights_are_looked_for(pictures: Path) -> None:
    several = dataclasses.replace(open_data(pictures), multi_label=True)
    with pytest.raises(UsageError, match="has several labels a picture; objective=sigmoid would be right"):
        start.prepare_model(tiny(pictures, objective="softmax", init="nowhere"), several)


@pytest.mark.parametrize("objective", ["sigmoid", "softmax"])
def test_no_objective_brings_a_teacher_and_several_labels_together(objective: str, pictures: Path) -> None:
    several = dataclasses.replace(open_data(pictures), multi_label=True)
    with pytest.raises(
        UsageError, match="has several labels a picture, and a teacher .*; training without it is right"
    ):
        choose.check_objective(tiny(pictures, teacher={"weights": "x"}), objective, several)


@pytest.mark.parametrize(
    ("preset", "fields", "sentence"),
    [
        (
            "noisy-student",
            {},
            "recipe noisy-student with teacher.share=0.0 needs a teacher; --set teacher.weights=RUN (and teacher.",
        ),
        ("scratch", {"confidence": 0.9}, "recipe scratch with teacher.confidence=0.9 needs a teacher"),
        ("noisy-student", {"weights": "x"}, "asked about nothing that counts; teacher.unlabelled=PICTURES or"),
        ("noisy-student", {"weights": "x", "share": 0.5}, ""),
        ("noisy-student", {"weights": "x", "unlabelled": "y"}, ""),
        ("scratch", {"weights": "x"}, ""),
    ],
)
def test_a_student_without_a_teacher_that_counts_is_refused(
    preset: str, fields: dict[str, Any], sentence: str, pictures: Path
) -> None:
    recipe = recipes.load(preset, {"teacher": fields})
    with pytest.raises(UsageError, match=re.escape(sentence)) if sentence else contextlib.nullcontext():
        choose.check_objective(recipe, "softmax", open_data(pictures))
