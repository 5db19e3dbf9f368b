"""Maps that are right by construction, maps that are wrong, and those of a model that has learned where to look."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from patchword.data.formula import Drawn, parse_formula
from patchword.explanation.facts import facts_of
from patchword.explanation.faithfulness import (
    FEWEST,
    Figure,
    agreement,
    blurred,
    centre_maps,
    check,
    correlations,
    deletion_and_insertion,
    known_objects,
    localisation,
    mean_interval,
    random_maps,
    shifted,
)
from patchword.explanation.maps import Choice, as_images, choose, kinds, named
from patchword.explanation.untrained import untrained
from patchword.models.names import create_model
from patchword.reports.truth import truth_of
from patchword.weights.io import load_model
from test_explanation import model_of
from test_families import SMALL, images, small


class Sees:
    """The probability of class 1 is the mean of the pixels in the left half; that of class 0 the rest."""

    image_size = (8, 16)
    training = False

    def parameters(self) -> Any:
        return iter([torch.zeros(1)])

    def eval(self) -> None: ...

    def train(self, mode: bool) -> None: ...

    def probabilities(self, images: Tensor) -> Tensor:
        said = images[:, :, :, :8].mean((1, 2, 3))
        return torch.stack([1 - said, said], dim=1)


LEFT = torch.zeros(1, 1, 8, 16)
LEFT[..., :8] = 1
LOOKS_LEFT = torch.tensor([[[1.0] * 8 + [0.0] * 8] * 8])  # at pixel resolution, so that no step of the curve is cut


def curves(maps: Tensor, image: Tensor = LEFT) -> tuple[Figure, Figure]:
    model: Any = Sees()
    return deletion_and_insertion(model, image, maps, torch.tensor([1]))


def test_deletion_and_insertion_by_hand() -> None:
    """Grey is ½: deleted from the left, the probability falls as 1 − f until half is gone, and stays at ½."""
    deletion, insertion = curves(LOOKS_LEFT)
    assert deletion.value == pytest.approx(0.5 * (1 + 0.5) / 2 + 0.5 * 0.5)
    wrong, late = curves(1 - LOOKS_LEFT)
    assert wrong.value == pytest.approx(0.5 * 1 + 0.5 * (1 + 0.5) / 2)
    assert (deletion.high_is_good, insertion.high_is_good) == (False, True)
    start = blurred(LEFT)[..., :8].mean().item()
    # Equal pixels come in an order that is drawn, and the blurred ones are not equal: the way up is straight to a thousandth.
    assert insertion.value == pytest.approx(0.5 * (start + 1) / 2 + 0.5, abs=1e-3)
    assert late.value == pytest.approx(0.5 * start + 0.5 * (start + 1) / 2, abs=1e-3)
    # The middle and random pixels lie between, and are the same for either map.
    for control in ("random", "centre"):
        assert deletion.value < deletion.control(control) < wrong.value
        assert insertion.value > insertion.control(control) > late.value
        assert deletion.control(control) == wrong.control(control)
        assert deletion.gain(control)[0] > 0 > wrong.gain(control)[0]


def test_equal_pixels_are_taken_in_no_order_of_their_own() -> None:
    """In raster order the upper half would go first, whatever the map means."""
    even = torch.ones(1, 8, 16)
    upper: Any = Sees()
    upper.probabilities = lambda images: torch.stack([images[:, 0, :4].mean((1, 2))] * 2, dim=1)
    top = torch.zeros(1, 1, 8, 16)
    top[..., :4, :] = 1
    deletion, _ = deletion_and_insertion(upper, top, even, torch.tensor([1]))
    assert deletion.value == pytest.approx(0.75, abs=0.02)  # from 1 to ½ evenly


def test_a_blur_keeps_the_mean_and_loses_the_detail() -> None:
    noise = torch.rand(2, 3, 44, 28, generator=torch.Generator().manual_seed(0))
    soft = blurred(noise)
    assert soft.shape == noise.shape
    torch.testing.assert_close(soft.mean((2, 3)), noise.mean((2, 3)), atol=0.02, rtol=0)
    assert soft.std() < 0.15 * noise.std()
    torch.testing.assert_close(blurred(torch.full((1, 1, 9, 11), 0.3)), torch.full((1, 1, 9, 11), 0.3))
    point = torch.zeros(1, 1, 41, 61)
    point[0, 0, 20, 30] = 1
    spread = blurred(point)[0, 0]
    expected = [math.exp(-(d**2) / (2 * 4.1**2)) for d in range(9)]  # a tenth of the shorter side
    for away in (spread[20, 30:39], spread[20:29, 30]):
        torch.testing.assert_close(away / spread[20, 30], torch.tensor(expected), rtol=1e-4, atol=1e-6)


def test_localisation_by_hand() -> None:
    masks = np.zeros((3, 4, 6), bool)
    masks[0, 1:3, 1:3] = True  # a sixth of the area
    masks[1, :, 3:] = True  # half
    masks[2, 0, 0] = True
    maps = torch.zeros(3, 4, 6)
    maps[0, 1:3, 1:3] = 2
    maps[0, 0, 0] = 2  # a fifth of it elsewhere
    maps[1] = 1  # equal everywhere
    maps[2, 3, 5] = 1
    energy, pointing = localisation(maps, masks)
    np.testing.assert_allclose(energy.values, [0.8, 0.5, 0])
    assert pointing.values[2] == 0
    maps[0, 2, 2] = 3
    assert localisation(maps, masks)[1].values[0] == 1
    nothing, _ = localisation(torch.zeros(3, 2, 3), masks)
    np.testing.assert_allclose(nothing.values, masks.mean((1, 2)))  # a map without any value has chance's share


def test_an_exact_map_is_perfect_and_a_random_one_has_the_share_of_the_area() -> None:
    _, masks = known_objects((32, 48), 3, classes=40)
    exact = torch.from_numpy(masks).float()
    energy, pointing = localisation(exact, masks)
    np.testing.assert_allclose(energy.values, 1)
    np.testing.assert_allclose(pointing.values, 1)
    for control in ("random", "centre"):
        assert energy.beats(control)
        assert pointing.beats(control)
    coarse = torch.nn.functional.avg_pool2d(exact, 8)
    assert 0.3 < localisation(coarse, masks)[0].value < 1
    by_chance, _ = localisation(random_maps(torch.zeros(40, 32, 48)), masks)
    assert by_chance.value == pytest.approx(masks.mean(), abs=0.01)
    other = torch.rand(40, 4, 6, generator=torch.Generator().manual_seed(9))
    for figure, most in zip(localisation(other, masks), (0.02, 0.2), strict=True):
        assert abs(figure.gain("random")[0]) < most
        assert figure.beats("centre") is False


def test_known_objects_are_test_pictures_with_their_masks() -> None:
    pixels, masks = known_objects((16, 24), 3, classes=5, each=2, seed=3)
    assert pixels.shape == (10, 16, 24, 3)
    assert masks.shape == (10, 16, 24)
    assert masks.dtype == bool
    drawn = Drawn(parse_formula("formula:shapes-5x20@16x24,seed=3"), 2**34, 2)
    for row in range(10):
        np.testing.assert_array_equal(pixels[row], drawn.read(row))
        np.testing.assert_array_equal(masks[row], drawn.scene(row).mask)
    grey, same = known_objects((16, 24), 1, classes=5, each=2, seed=3)
    assert grey.shape == (10, 16, 24, 1)
    np.testing.assert_array_equal(same, masks)


def test_a_map_that_moves_with_the_picture_agrees_and_one_that_never_moves_is_told() -> None:
    batch = torch.rand(9, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    bright = torch.nn.functional.interpolate(torch.rand(9, 1, 4, 4), size=(28, 28), mode="bilinear")
    flip, shift = agreement(lambda images: images.mean(1), batch * 0.1 + bright)
    assert flip.value == pytest.approx(1)
    assert shift.value == pytest.approx(1)
    assert flip.beats("others")
    assert shift.beats("others")
    for figure in (flip, shift):  # a map that never changes agrees as its shape has it
        assert figure.control("random") == pytest.approx(0, abs=0.1)
    assert flip.control("centre") == pytest.approx(1)
    assert shift.control("centre") > 0.9
    blob = centre_maps(torch.zeros(9, 7, 7))
    for figure in agreement(lambda images: blob, batch):
        assert figure.value > 0.8
        assert figure.beats("others") is False
    corner = torch.zeros(9, 7, 7)
    corner[:, 0, 0] = 1
    assert agreement(lambda images: corner, batch)[0].value < 0.1


def test_agreement_is_with_a_mirror_and_with_a_move_by_a_28th_of_the_shorter_side() -> None:
    batch, seen = torch.rand(2, 3, 56, 112, generator=torch.Generator().manual_seed(0)), list[Tensor]()
    agreement(lambda those: (seen.append(those), those.mean(1))[1], batch)
    for given, expected in zip(seen, (batch, batch.flip(3), shifted(batch, 2)), strict=True):
        torch.testing.assert_close(given, expected, rtol=0, atol=0)


def test_a_shift_moves_right_and_down_and_repeats_the_edge() -> None:
    image = torch.arange(12.0).view(1, 1, 3, 4)
    expected = torch.tensor([[0.0, 0, 1, 2], [0, 0, 1, 2], [4, 4, 5, 6]])
    torch.testing.assert_close(shifted(image, 1)[0, 0], expected)


def test_correlations_are_numpys() -> None:
    draw = np.random.default_rng(0)
    first, second = draw.normal(size=(5, 7, 3)), draw.normal(size=(5, 7, 3))
    expected = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(correlations(first, second), expected)
    assert correlations(np.ones((1, 2, 2)), second[:1, :2, :2]).tolist() == [0]


def test_an_interval_is_that_of_a_mean_and_few_pictures_have_none() -> None:
    values = np.random.default_rng(1).normal(loc=3, scale=2, size=400)
    for n in (FEWEST, 400):
        expected = stats.t.interval(0.95, n - 1, loc=values[:n].mean(), scale=stats.sem(values[:n]))
        assert mean_interval(values[:n]) == pytest.approx(list(expected))
    assert mean_interval(values[: FEWEST - 1]) is None
    figure = Figure("energy", True, values[:5], {"random": values[:5] - 1})
    assert figure.gain("random") == (pytest.approx(1), None)
    assert figure.beats("random") is None


def test_a_gain_over_new_weights_is_as_unsure_as_their_draws() -> None:
    """Of eleven pictures and three draws; of one draw only the pictures count."""
    draw = np.random.default_rng(2)
    values, theirs = draw.normal(size=11), draw.normal([2, 3, 7], size=(11, 3))
    gains = theirs - values[:, None]
    gain, interval = Figure("deletion", False, values, {"untrained": theirs}).gain("untrained")
    half = math.hypot(
        stats.t.ppf(0.975, 10) * stats.sem(gains.mean(axis=1)), stats.t.ppf(0.975, 2) * stats.sem(gains.mean(axis=0))
    )
    assert gain == pytest.approx(gains.mean())
    assert interval == pytest.approx([gain - half, gain + half])
    told = Figure("deletion", False, values, {"untrained": theirs}).to_dict()["controls"]["untrained"]
    assert told["draws"] == pytest.approx(list(theirs.mean(axis=0)))
    assert half > 6  # the draws are 2.6 apart: nothing is known, though each draw by itself is beaten
    for column in range(3):
        one = Figure("deletion", False, values, {"untrained": theirs[:, column]})
        assert one.beats("untrained")
        expected = stats.t.interval(0.95, 10, gains[:, column].mean(), stats.sem(gains[:, column]))
        assert one.gain("untrained")[1] == pytest.approx(list(expected))


def test_the_middle_is_the_middle_of_any_shape() -> None:
    blob = centre_maps(torch.zeros(2, 5, 9))
    assert blob.shape == (2, 5, 9)
    assert blob[0].argmax() == 2 * 9 + 4
    torch.testing.assert_close(blob[0], blob[0].flip(0, 1))
    assert not torch.equal(*random_maps(blob))
    torch.testing.assert_close(random_maps(blob), random_maps(blob), rtol=0, atol=0)


def test_the_middle_is_a_quarter_of_each_side_wide() -> None:
    """The logarithm of a Gaussian curves by −1/σ² for a step of 1: here of 1/11 and 1/7 of the sides."""
    blob = centre_maps(torch.zeros(1, 11, 7))[0].double().log()
    torch.testing.assert_close(blob.diff(n=2, dim=0), torch.full((9, 7), -16 / 121).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(blob.diff(n=2, dim=1), torch.full((11, 5), -16 / 49).double(), rtol=0, atol=1e-5)
    assert blob.max() == 0  # 1 in the middle


@pytest.mark.parametrize("family", ["vit", "bit"])
def test_all_figures_of_a_model(family: str) -> None:
    model = model_of() if family == "vit" else small("bit")
    choice = Choice("rollout" if family == "vit" else "gradcam")

    known = known_objects(model.image_size, 3, classes=11)
    classes = torch.tensor([0, 1, 2])
    names = [figure.name for figure in check(model, choice, images(model), classes, known)]
    assert names == ["energy", "pointing", "deletion", "insertion", "flip", "shift"]
    assert [figure.name for figure in check(model, choice, images(model)[:1], classes[:1], known)] == names[:4]
    assert [figure.name for figure in check(model, choice, images(model)[:0], None, known)] == names[:2]
    if family == "vit":
        assert [figure.name for figure in check(model, choice, images(model), None, known)] == [*names[:2], *names[4:]]


def test_a_check_measures_the_models_own_maps_for_the_classes_beside_those_of_an_untrained_one() -> None:
    """Each figure by itself: none has the maps of the other network, or those for another class."""
    model, choice = model_of(), Choice("class")
    batch, classes = images(model), (named(model, images(model)) + 1) % 5
    pixels, masks = known_objects(model.image_size, 3, classes=11)
    drawn = as_images(model, pixels)
    new = [untrained(model, torch.cat([drawn, batch]), seed) for seed in range(5)]
    theirs = named(model, drawn)
    expected = [
        *localisation(choice.of(model, drawn, theirs), masks, [choice.of(each, drawn, theirs) for each in new]),
        *deletion_and_insertion(
            model, batch, choice.of(model, batch, classes), classes, [choice.of(each, batch, classes) for each in new]
        ),
        *agreement(lambda those: choice.of(model, those, classes), batch),
    ]
    found = check(model, choice, batch, classes, (pixels, masks))
    assert [figure.to_dict() for figure in found] == [figure.to_dict() for figure in expected]
    for figure in found[2:]:  # so that another class, or another network, would be seen
        assert figure.values.std() > 0


def test_a_trained_models_rollout_finds_objects_and_a_new_ones_does_not() -> None:
    """On pictures that training never had; with 95 % intervals, picture by picture.

    `fixtures/shapes-vit` was trained for 395 steps by the command in its card: 70,000 parameters, 44 % of 16 classes.
    """
    model = load_model(Path(__file__).parent / "fixtures/shapes-vit")
    pixels, masks = known_objects(model.image_size, 3, classes=16, each=6)
    drawn, rollout = as_images(model, pixels), Choice("rollout")
    first, *new = (rollout.of(untrained(model, drawn, seed), drawn) for seed in range(6))
    energy, pointing = localisation(rollout.of(model, drawn), masks, new)
    for control in ("random", "centre", "untrained"):
        assert energy.beats(control)
        assert pointing.beats(control)
    assert pointing.value > 0.8
    said = truth_of((energy, pointing), rollout)
    assert [row["verdict"] for row in said["rows"]] == ["better than each"] * 2
    assert f"points at an object in {100 * pointing.value:.0f}" in said["sentence"]
    assert not said["fails"]
    # What stands out is looked at even before training, which is why beating a random map alone would prove nothing.
    before = localisation(first, masks, new)
    assert before[1].beats("random")
    said = truth_of(before, rollout)
    assert said["fails"]
    assert "no better than before training: these maps show what stands out, not what was learned." in said["sentence"]


def test_an_untrained_network_is_the_same_each_time_and_speaks_for_classes() -> None:
    for family in SMALL:
        model = small(family)
        state = torch.random.get_rng_state()
        batch = images(model)
        new, again = untrained(model, batch), untrained(model, batch)
        assert torch.equal(torch.random.get_rng_state(), state)
        assert not torch.allclose(new(batch), untrained(model, batch, 1)(batch))
        torch.testing.assert_close(new(batch), again(batch), rtol=0, atol=0)
        assert new(batch).std() > 0
        assert not torch.allclose(new(batch), model(batch))
        for kind in kinds(model):
            assert choose(new, kind).of(new, batch).any()


@pytest.mark.parametrize("part", [24, 8])
def test_what_an_untrained_network_measures_is_that_of_its_pictures(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signals do not fade on the way: whitened pictures, and what comes out of each norm, are spread by about one."""
    monkeypatch.setattr("patchword.explanation.untrained.comfortable_batch", lambda model: part)
    model = create_model("C3+ViT-Fe/8", 3, 32, stem_whitening=24)
    batch = 5 + 3 * torch.rand(24, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    new, spreads = untrained(model, batch), []
    patches = nn.functional.unfold(batch, 2).transpose(1, 2).flatten(0, 1)
    kernels = new.state_dict()["backbone.whitening.kernels"][:12].flatten(1)
    np.testing.assert_allclose((patches @ kernels.T).square().mean(0), 1, atol=0.02)
    for module in new.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda _, inputs, output: spreads.append((output.mean(), output.std())))
    with torch.no_grad():
        new(batch)
    assert len(spreads) == 3
    np.testing.assert_allclose(torch.tensor(spreads), [[0, 1]] * 3, atol=0.03)
    assert not new.training
    blind = dict(untrained(model, batch[:0]).named_buffers())
    assert blind["backbone.norms.0.running_mean"].abs().max() == 0


def test_a_map_no_better_than_chance_is_called_so() -> None:
    """In the table, and in the first sentence of the page."""
    draw = np.random.default_rng(0)
    same = {"random": draw.random(20), "centre": draw.random(20), "untrained": draw.random(20)}
    others = {"others": draw.random(20)}
    worse = {name: draw.random(20) - 1 for name in ("energy", "pointing", "insertion", "flip", "shift")}
    figures = [
        Figure(name, True, values, others if name in ("flip", "shift") else same) for name, values in worse.items()
    ]
    figures.append(Figure("deletion", False, draw.random(20) + 1, same))
    said = truth_of(tuple(figures), Choice("rollout"))
    assert said["fails"]
    assert "That is no better than chance: these maps do not show where objects are." in said["sentence"]
    assert (
        "On the 20 pictures here, what it points to did not decide the answer more than random pixels."
        in said["sentence"]
    )
    assert "say little of it." in said["sentence"]
    verdicts = {row["name"]: row["verdict"] for row in said["rows"]}
    assert verdicts["Deletion"] == verdicts["Points at the object"]
    assert verdicts["Deletion"] == "no better than chance, the middle or an untrained network"
    assert verdicts["Follows a mirror"] == "no more than any map"
    assert all(row["fails"] for row in said["rows"])

    follows = Figure("shift", True, draw.random(20) + 2, others)
    said = truth_of((*(figure for figure in figures if figure.name != "shift"), follows), Choice("rollout"))
    assert "say little of it." not in said["sentence"]
    assert said["sentence"].endswith("The map of the mirrored picture is no more like it than that of another picture.")

    # A blob or noise that follows better is no fault: it follows whatever the picture shows.
    above = {"random": follows.values + 1, "centre": follows.values + 1}
    stiff = Figure("shift", True, follows.values, {**above, **others})
    assert (stiff.rivals, follows.rivals, figures[0].rivals) == (("others",), ("others",), tuple(same))
    row = truth_of((figures[0], figures[1], stiff), Choice("rollout"))["rows"][-1]
    assert (row["fails"], row["verdict"]) == (False, "follows the picture")

    # The middle is beaten in energy and not in pointing: the shares in the first sentence are not left to speak alone.
    energy = Figure("energy", True, draw.random(20) + 2, same)
    half = Figure(
        "pointing", True, draw.random(20) + 2, {**same, "centre": draw.random(20) + 3, "untrained": draw.random(20) + 2}
    )
    said = truth_of((energy, half), Choice("rollout"))
    assert said["sentence"].endswith(
        " In pointing it is no better than the middle or an untrained network, within the interval."
    )
    assert said["fails"]

    few = [first_of(figure, 5) for figure in figures]
    said = truth_of(tuple(few), Choice("rollout"))
    assert {row["verdict"] for row in said["rows"]} == {"too few pictures to say"}
    assert not said["fails"]


@pytest.mark.parametrize("lost", [(), ("deletion",), ("insertion",), ("deletion", "insertion")])
def test_that_a_map_decides_no_more_than_an_untrained_one_is_told_where_both_curves_say_so(
    lost: tuple[str, ...],
) -> None:
    values = np.random.default_rng(4).random(20)
    figures = []
    for name, high in (("energy", True), ("pointing", True), ("deletion", False), ("insertion", True)):
        worse, better = (values - 9, values + 9) if high else (values + 9, values - 9)
        controls = {"random": worse, "centre": worse, "untrained": better if name in lost else worse}
        figures.append(Figure(name, high, values, controls))
    said = truth_of(tuple(figures), Choice("rollout"))
    sentence = " What it points to did not decide the answer more than what an untrained network points to."
    assert said["sentence"].endswith(sentence) is (len(lost) == 2)
    assert said["fails"] is (len(lost) == 2)
    assert [row["fails"] for row in said["rows"]] == [row["name"].lower() in lost for row in said["rows"]]


def first_of(figure: Figure, count: int) -> Figure:
    controls = {name: values[:count] for name, values in figure.controls.items()}
    return Figure(figure.name, figure.high_is_good, figure.values[:count], controls)


def test_a_model_for_whose_size_no_objects_are_drawn_is_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    model = create_model("ViT-At/3", 2, 6, depth=1)
    facts = facts_of(model, Choice("rollout"), [], tell=lambda done, total: None)
    assert facts.truth == ()
    said = "whether the maps are true is not measured at 6×6: the objects for it are drawn in pictures of 8 to 1,024 pixels"
    assert said in " ".join(capsys.readouterr().err.split())
