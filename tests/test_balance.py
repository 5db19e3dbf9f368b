"""Classes of different sizes: drawn more evenly as a pure function of (seed, epoch, position), or weighed in the loss."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conftest import write_pictures
from patchword.core.errors import StoppedError, UsageError
from patchword.core.preprocessing import Preprocessing
from patchword.data.augment import Augment
from patchword.data.dataset import Arrays, Split
from patchword.data.loader import Batch, TrainLoader
from patchword.data.mixing import mix
from patchword.data.plan import BalancedPlan, Plan, evened, shuffled
from patchword.data.sources import open_data
from patchword.data.store import Store
from patchword.models.names import create_model
from patchword.training import recipe as recipes
from patchword.training import start
from patchword.training.objectives import Distillation, Softmax, choose
from patchword.training.passes import Passes
from patchword.training.recipe import Balance, Recipe
from patchword.training.run import run
from patchword.training.step import gradients
from patchword.weights.io import save_model
from test_training import stop_after
from tiny import tiny
from victims import log_lines, weights_hash

SIZES = np.array([31, 7, 0, 2])
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), SIZES))


# The plan


def test_shares_are_evened_out_by_a_power() -> None:
    assert evened(SIZES, 0).tolist() == (SIZES / 40).tolist()
    assert evened(SIZES, 1).tolist() == [1 / 3, 1 / 3, 0, 1 / 3]
    roots = np.sqrt(SIZES)
    np.testing.assert_allclose(evened(SIZES, 0.5), roots / roots.sum())


@pytest.mark.parametrize(("evenness", "places"), [(1.0, [14, 13, 0, 13]), (0.5, [23, 11, 0, 6]), (0.25, [27, 9, 0, 4])])
def test_every_epoch_has_each_classs_places_and_each_sample_its_turn(evenness: float, places: list[int]) -> None:
    """40 · 31^½ / (31^½ + 7^½ + 2^½) = 23.1, and so on; what is left over goes to those who lost most."""
    plan = BalancedPlan(LABELS, 40, 5, evenness)
    seen: Counter[Any] = Counter()
    for epoch in range(9):
        ids, _ = plan.batch(epoch)
        assert np.bincount(LABELS[ids], minlength=4).tolist() == places
        seen.update(ids.tolist())
        for each in np.flatnonzero(SIZES):
            turns = [seen[sample] for sample in np.flatnonzero(each == LABELS)]
            assert max(turns) - min(turns) <= 1


def test_a_step_is_a_function_of_its_number_alone() -> None:
    whole = [
        np.concatenate(parts) for parts in zip(*map(BalancedPlan(LABELS, 1, 5, 0.7).batch, range(200)), strict=True)
    ]
    for batch_size in (3, 40, 97):
        plan = BalancedPlan(LABELS, batch_size, 5, 0.7)
        for step in (1, 0, 200 // batch_size - 1):
            rows = slice(step * batch_size, (step + 1) * batch_size)
            for ours, theirs in zip(plan.batch(step), whole, strict=True):
                assert ours.tolist() == theirs[rows].tolist()
    other = BalancedPlan(LABELS, 200, 6, 0.7).batch(0)[0]
    assert (other != whole[0]).mean() > 0.8


def test_the_same_picture_is_never_varied_twice_alike() -> None:
    """Of a class of two that is drawn 13 times an epoch, every turn has a number of its own, which chance is keyed by."""
    ids, passes = BalancedPlan(LABELS, 400, 5, 1.0).batch(0)
    assert len(set(zip(ids.tolist(), passes.tolist(), strict=True))) == 400
    rare = np.flatnonzero(LABELS == 3)
    assert sorted(passes[ids == rare[0]].tolist()) == list(range(65))


def test_classes_and_epochs_have_orders_of_their_own() -> None:
    labels = np.repeat([0, 1], 50)
    orders = []
    for each in (0, 1):
        for turn in (0, 1):
            ids, passes = BalancedPlan(labels, 200, 1, 1.0).batch(0)
            chosen = (labels[ids] == each) & (passes == turn)
            assert sorted(ids[chosen] - 50 * each) == list(range(50))
            orders.append(tuple(shuffled(1, turn, 50, np.arange(50), f"order of class {each}")))
    assert len(set(orders)) == 4
    assert tuple(shuffled(1, 0, 50, np.arange(50))) not in orders


def test_the_order_stays_the_same_for_ever() -> None:
    ids, passes = BalancedPlan(np.array([0, 0, 0, 0, 1, 1, 1, 2]), 12, 0, 1.0).batch(0)
    assert ids.tolist() == [1, 3, 5, 6, 7, 7, 2, 4, 0, 7, 4, 2]
    assert passes.tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0, 3, 1, 1]


def test_the_loader_draws_by_the_plan_and_leaves_out_what_cannot_be_read() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 6, 6, 3), dtype=np.uint8)
    split = Split(Arrays(pixels, "p"), LABELS)
    store = Store.fill(split, 3, 1)
    bad = int(np.flatnonzero(LABELS == 0)[4])
    store.bad[bad] = "is empty"
    good = np.setdiff1d(np.arange(40), [bad])
    arguments: dict[str, Any] = {
        "preprocessing": Preprocessing(image_size=(6, 6)),
        "augment": Augment(crop="resize", flip=False),
        "batch_size": 13,
        "seed": 5,
        "store": store,
        "workers": 0,
    }
    plan = BalancedPlan(LABELS[good], 13, 5, 0.6)
    with TrainLoader(split, evenness=0.6, first_step=2, **arguments) as loader:
        batch = next(iter(loader))
        assert batch.ids.tolist() == good[plan.batch(2)[0]].tolist() == loader.ids(2).tolist()
        assert batch.epochs.tolist() == plan.batch(2)[1].tolist()
        assert batch.labels.tolist() == LABELS[batch.ids].tolist()
    with TrainLoader(split, first_step=2, **arguments) as loader:
        assert next(iter(loader)).ids.tolist() == good[Plan(39, 13, 5).batch(2)[0]].tolist()


# The weights


def test_weights_are_powers_of_the_sizes_and_one_on_average() -> None:
    counts = torch.tensor([8, 2, 0])
    assert choose.class_weights(counts, Balance(class_weights=1.0)).tolist() == pytest.approx([0.625, 2.5, 5.0])
    halved = choose.class_weights(counts, Balance(class_weights=0.5))
    assert (halved[1] / halved[0]).item() == pytest.approx(2)
    assert ((8 * halved[0] + 2 * halved[1]) / 10).item() == pytest.approx(1)
    # Where pictures are drawn evenly to the half, what is left of the imbalance is weighed.
    both = choose.class_weights(counts, Balance(class_weights=0.5, sampling=0.5))
    assert ((2 * both[0] + both[1]) / 3).item() == pytest.approx(1)
    assert (both[1] / both[0]).item() == pytest.approx(2)


def gradient(augment: Augment, weights: Tensor | None) -> tuple[float, Tensor, list[Tensor]]:
    """Loss, gradient of the head's bias and what goes in, for a batch of six in parts of four."""
    torch.manual_seed(0)
    model = create_model("ViT-At/4", 3, 8, embed_dim=8, depth=1, num_heads=2, mlp_dim=8)
    torch.nn.init.normal_(model.get_parameter("head.weight"))
    objective = Softmax(3)
    objective.class_weights = weights
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (6, 3, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.tensor([0, 0, 2, 1, 0, 1])
    readable = torch.tensor([1.0, 1, 1, 1, 0, 1])
    batch = Batch(images, labels, readable, np.arange(6), np.zeros(6, np.int64))
    loss, _ = gradients(Passes(model, objective), batch, Recipe(augment=augment, micro_batch=4, seed=3), 5)
    grad = model.get_parameter("head.bias").grad
    assert grad is not None
    pixels, targets = model.preprocessing.normalize(images), F.one_hot(labels, 3).float() * readable[:, None]
    with torch.no_grad():
        pixels, targets = mix(pixels, targets, augment, seed=3, step=5)
        return loss, grad, [model(pixels), targets]


@pytest.mark.parametrize("augment", [Augment(), Augment(mixup=0.7), Augment(cutmix=0.7)])
def test_each_loss_is_multiplied_by_the_mixture_of_its_labels_weights(augment: Augment) -> None:
    weights = torch.tensor([0.5, 2.0, 3.0])
    loss, grad, [logits, targets] = gradient(augment, weights)
    importance = torch.tensor([0.5, 0.5, 3.0, 2.0, 0.5, 2.0])[:, None]
    _, mixed = mix(torch.zeros(6, 3, 8, 8), importance, augment, seed=3, step=5)
    readable = torch.tensor([1.0, 1, 1, 1, 0, 1])
    each = F.cross_entropy(logits, targets, reduction="none") * readable * mixed[:, 0] / 5
    assert loss == pytest.approx(each.sum().item(), rel=1e-5)
    share = targets.sum(1, keepdim=True) * logits.softmax(1) - targets
    expected = (share * (readable * mixed[:, 0] / 5)[:, None]).sum(0)
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-6)


def test_weights_of_one_are_none() -> None:
    loss, grad, _ = gradient(Augment(mixup=0.7), torch.ones(3))
    plain, expected, _ = gradient(Augment(mixup=0.7), None)
    assert loss == plain
    assert torch.equal(grad, expected)


def test_a_picture_that_nobody_has_labelled_counts_as_one() -> None:
    objective = Distillation(2, 0.0, torch.full((3, 2), 0.5), share=0.5)
    assert objective.weigh(torch.tensor([0, -1])) is None
    objective.class_weights = torch.tensor([0.25, 4.0])
    assert objective.weigh(torch.tensor([0, -1, 1])).tolist() == [0.25, 1.0, 4.0]  # pyright: ignore[reportOptionalMemberAccess]
    assert "class_weights" not in objective.state_dict()


# Runs


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    """23 ants, 7 bees and 3 cats in train."""
    for split, counts in (("train", (23, 7, 3)), ("test", (5, 4, 2))):
        for place, (name, count) in enumerate(zip(("ant", "bee", "cat"), counts, strict=True)):
            write_pictures(tmp_path / "uneven" / split, (name,), count, seed=10 * len(split) + place)
    return tmp_path / "uneven"


def test_runs_learn_otherwise_repeat_and_resume_to_the_bit(
    uneven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(name: str, **balance: float) -> Path:
        return run(tiny(uneven, balance=balance, budget={"steps": 4}), tmp_path / name)

    wanted = {"sampling": 0.75, "class_weights": 0.25}
    whole = trained("whole", **wanted)
    stop_after(2, monkeypatch)
    with pytest.raises(StoppedError):
        trained("stopped", **wanted)
    monkeypatch.undo()
    resumed = trained("stopped", **wanted)
    assert weights_hash(resumed) == weights_hash(whole)
    assert log_lines(resumed) == log_lines(whole)
    others = (trained("plain"), trained("drawn", sampling=0.75), trained("weighed", class_weights=0.25))
    assert len({weights_hash(folder) for folder in (whole, *others)}) == 4
    result = json.loads((whole / "result.json").read_text())
    rows = json.loads((whole / "evaluation.json").read_text())["classes"]
    assert result["balanced_accuracy"] == pytest.approx(sum(row["correct"] / row["n"] for row in rows) / 3)
    low, high = result["balanced_accuracy_ci95"]
    assert low <= result["balanced_accuracy"] <= high


def test_the_head_of_a_sigmoid_begins_at_what_is_drawn(uneven: Path) -> None:
    dataset = open_data(uneven)
    for sampling, expected in ((0.0, 3 / 33), (1.0, 1 / 3)):
        recipe = tiny(uneven, objective="sigmoid", balance={"sampling": sampling})
        prepared = start.prepare_model(recipe, dataset)
        assert torch.sigmoid(prepared.model.get_parameter("head.bias"))[2].item() == pytest.approx(expected, rel=1e-5)


def test_the_head_of_a_sigmoid_that_has_learned_keeps_its_bias(uneven: Path, tmp_path: Path) -> None:
    """The prior is for a head that says nothing yet, and not for that of a model which knew these labels before."""
    dataset = open_data(uneven)
    model = start.prepare_model(tiny(uneven, objective="sigmoid"), dataset).model
    bias = model.get_parameter("head.bias")
    torch.nn.init.normal_(bias)
    save_model(model, tmp_path / "before")
    tuned = dataclasses.replace(tiny(uneven, objective="sigmoid"), init=str(tmp_path / "before"), model={})
    torch.testing.assert_close(start.prepare_model(tuned, dataset).model.get_parameter("head.bias"), bias)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"balance": {"sampling": 1.5}}, "balance.sampling=1.5 must lie in 0…1"),
        ({"balance": {"sampling": 0.75, "class_weights": 0.5}}, "a sum of 1 or less would be right"),
        (
            {"balance": {"class_weights": 1.0}, "objective": "masked-patch", "regularization": {"patch_dropout": 0.0}},
            "without labels .masked-patch.; balance needs",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any], sentence: str, uneven: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=sentence):
        run(tiny(uneven, **fields), tmp_path / "out")


def test_several_labels_and_none_are_refused(uneven: Path) -> None:
    several = dataclasses.replace(open_data(uneven), multi_label=True)
    recipe = recipes.load("scratch", {"balance": {"sampling": 1.0}})
    with pytest.raises(UsageError, match="several labels a picture; balance needs one label"):
        choose.check_objective(recipe, "sigmoid", several)
    teacher = {"weights": "x", "unlabelled": "y"}
    recipe = recipes.load("scratch", {"balance": {"sampling": 1.0}, "teacher": teacher})
    with pytest.raises(UsageError, match=r"needs a label for every picture; teacher.unlabelled has none"):
        choose.check_objective(recipe, "softmax", open_data(uneven))
