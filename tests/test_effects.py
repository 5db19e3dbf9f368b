"""A recipe's fields take effect in a run: in the weights, in the log, and in what model and objective are given."""

import itertools
import json
import math
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import patchword
from conftest import write_pictures
from patchword.core import config
from patchword.core.errors import FaultError, UsageError
from patchword.data.augment import Augment
from patchword.data.dataset import Arrays, Dataset, Split
from patchword.data.decoding.decode import decode
from patchword.data.duplicates import Duplicates
from patchword.data.loader import Batch
from patchword.data.mixing import erase, mix
from patchword.data.sources import open_data
from patchword.evaluation.answers import read_answers
from patchword.evaluation.predict import Looking, evaluating, predict
from patchword.models.contract import Model
from patchword.models.layers import Dropout
from patchword.models.names import create_model
from patchword.training import loop, measuring, shelf
from patchword.training import recipe as recipes
from patchword.training.budget import fix_steps, steps_and_looks
from patchword.training.objectives import Objective, Softmax
from patchword.training.optimizer import OptimizerConfig, build_optimizer
from patchword.training.passes import Passes
from patchword.training.pictures import open_training_data
from patchword.training.recipe import Recipe, Regularization
from patchword.training.run import run
from patchword.training.step import train_step
from patchword.weights.folder import read_tensors
from patchword.weights.io import load_model, save_model

TINY = {"name": "ViT-At/2", "depth": 2, "embed_dim": 8, "num_heads": 2, "mlp_dim": 12}
SGD = {"optimizer": {"name": "sgd", "lr": 0.3}}
MUON = {"optimizer": {"name": "muon"}}
STEM: dict[str, Any] = {
    "model": {"name": "C2+ViT-At/4", "depth": 1, "stem_channels": [5, 7]},
    "optimizer": {"name": "muon", "kernel_lr": 0.02},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 8-px pictures: 16 in train, 4 in validation, 6 in test."""
    folder = tmp_path_factory.mktemp("effects")
    for split, count in (("train", 8), ("validation", 2), ("test", 3)):
        write_pictures(folder / split, ("ant", "bee"), count, side=8, seed=count)
    return folder


def plain(data: Path, **changes: Any) -> Recipe:
    """Three steps of a tiny model without any chance but the seed's, at a constant learning rate."""
    base: dict[str, Any] = {
        "data": str(data),
        "model": TINY,
        "image_size": [8, 8],
        "batch_size": 8,
        "micro_batch": 4,
        "threads": 1,
        "augment": {"crop": "resize", "flip": False},
        "optimizer": {"lr": 3e-3, "weight_decay": 0.0, "clip_norm": 0.0},
        "schedule": {"warmup": 0.0, "decay": "constant"},
        "regularization": {"label_smoothing": 0.0, "average_decay": 0.0},
        "loading": {"duplicates": "no", "workers": 0},
    }
    if "budget" not in changes:
        base["budget"] = {"steps": 3}
    return recipes.load("scratch", config.merge(base, changes))


def weights(folder: Path) -> dict[str, Tensor]:
    return read_tensors(folder / "model/model.safetensors")


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[name].shape == b[name].shape and torch.equal(a[name], b[name]) for name in a)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


Trained = Callable[[dict[str, Any]], dict[str, Tensor]]


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Changes of the plain recipe → the final weights; the same changes are trained once."""
    known: dict[str, dict[str, Tensor]] = {}

    def train(changes: dict[str, Any]) -> dict[str, Tensor]:
        key = json.dumps(changes, sort_keys=True)
        if key not in known:
            known[key] = weights(run(plain(data, **changes), tmp_path_factory.mktemp("run") / "out"))
        return known[key]

    return train


def nested(path: str, value: Any) -> dict[str, Any]:
    for name in reversed(path.split(".")):
        value = {name: value}
    return value


MATTERS: list[tuple[dict[str, Any], str, Any]] = [
    ({}, "seed", 1),
    ({}, "batch_size", 7),
    ({}, "objective", "sigmoid"),
    ({}, "tune", "head"),
    ({}, "budget.steps", 2),
    ({}, "model.pool", "token"),
    ({}, "preprocessing.std", [0.5, 0.5, 0.4]),
    ({}, "augment.crop", "random-resized"),
    ({"augment": {"crop": "random-resized"}}, "augment.crop_area", [0.9, 1.0]),
    ({}, "augment.crop", "shift"),
    ({"augment": {"crop": "shift"}}, "augment.shift_pixels", 1),
    ({}, "augment.flip", True),
    ({}, "augment.randaugment_layers", 2),
    ({"augment": {"randaugment_layers": 2}}, "augment.randaugment_magnitude", 20.0),
    ({}, "augment.erasing", 0.9),
    ({}, "augment.mixup", 0.8),
    ({}, "augment.cutmix", 0.8),
    ({}, "optimizer.name", "sgd"),
    ({}, "optimizer.lr", 4e-3),
    ({}, "optimizer.weight_decay", 0.1),
    ({}, "optimizer.betas", [0.5, 0.999]),
    ({}, "optimizer.betas", [0.9, 0.99]),
    ({}, "optimizer.layer_decay", 0.5),
    (SGD, "optimizer.momentum", 0.5),
    (SGD, "optimizer.clip_norm", 0.01),
    (MUON, "optimizer.matrix_lr", 0.03),
    (MUON, "optimizer.momentum", 0.5),
    (STEM, "optimizer.kernel_lr", 0.03),
    (STEM, "optimizer.kernel_lr", 0.0),
    (STEM, "model.stem_whitening", 24),
    (STEM, "model.stem_depth", 2),
    (STEM, "model.stem_activation", "silu"),
    ({}, "zero_init_residual", True),
    ({}, "model.position", "rope"),
    ({}, "schedule.warmup", 2.0),
    ({}, "schedule.decay", "linear"),
    ({}, "regularization.dropout", 0.3),
    ({}, "regularization.stochastic_depth", 0.9),
    ({}, "regularization.label_smoothing", 0.2),
    ({}, "regularization.patch_dropout", 0.5),
    ({}, "regularization.average_decay", 0.5),
]


@pytest.mark.parametrize(("start", "path", "value"), MATTERS, ids=[f"{path}={value}" for _, path, value in MATTERS])
def test_a_field_changes_what_is_learned(start: dict[str, Any], path: str, value: Any, trained: Trained) -> None:
    assert not same(trained(start), trained(config.merge(start, nested(path, value))))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("evaluation.every_steps", 3),
        ("evaluation.batch_size", 3),
        ("checkpoint.every_steps", 2),
        ("checkpoint.keep", 1),
        ("loading.in_memory", "no"),
    ],
)
def test_looking_saving_and_loading_change_nothing_of_it(path: str, value: Any, trained: Trained) -> None:
    assert same(trained({}), trained(nested(path, value)))


def handed_over(recipe: Recipe, out: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Model, Any, Recipe]:
    """Model, objective and recipe that a run gives to the loop; it ends there."""
    given: list[Any] = []

    def stopped(*arguments: Any, **_: Any) -> None:
        given.extend(arguments[:3])
        raise FaultError("enough")

    monkeypatch.setattr(loop, "Loop", stopped)
    with pytest.raises(FaultError, match="enough"):
        run(recipe, out)
    return given[0], given[1], given[2]


def test_regularization_reaches_model_and_objective(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {"dropout": 0.13, "stochastic_depth": 0.17, "label_smoothing": 0.19}
    recipe = plain(data, regularization=wanted, model={"depth": 3})
    model, objective, _ = handed_over(recipe, tmp_path / "out", monkeypatch)
    assert {module.p for module in model.modules() if isinstance(module, Dropout)} == {0.13}
    assert [module.p for module in model.branches()] == pytest.approx([0.0, 0.085, 0.17])
    assert isinstance(objective, Softmax)
    assert (objective.num_classes, objective.label_smoothing) == (2, 0.19)


@pytest.mark.parametrize(
    ("tune", "mirror", "seconds", "steps"),
    [
        # Ten looks at 4 pictures take 10 · 4/8 of a step each, at a third of a training step: 0.07 s · 5/3.
        ("all", False, 6.0, 84),  # ⌊(6 − 0.11667) / 0.07⌋
        ("all", True, 6.0, 82),  # ⌊(6 − 0.23333) / 0.07⌋: each picture and its mirror image
        ("head", False, 6.0, 80),  # ⌊(6 − 0.35) / 0.07⌋: only the forward pass is left of a step
        ("head", False, 0.6, 7),  # a fifth of 68.6 passes allows three looks: ⌊0.6 · (1 − 12 / 68.6) / 0.07⌋
    ],
)
def test_minutes_become_as_many_steps_as_fit(
    tune: str, mirror: bool, seconds: float, steps: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "seconds_per_step", lambda *_: 0.07)
    recipe = plain(data, tune=tune, budget={"minutes": seconds / 60}, evaluation={"mirror": mirror})
    _, _, fixed = handed_over(recipe, tmp_path / "out", monkeypatch)
    assert fixed.budget.steps == steps


def of_sizes(train: int, validation: int) -> Dataset:
    """A data set of so many pictures, which nobody looks at."""
    counts = {"train": train, "validation": validation}
    splits = {
        name: Split(Arrays(np.zeros((count, 1, 1), np.uint8), name), np.zeros(count, np.int64))
        for name, count in counts.items()
    }
    return Dataset("sizes", "sizes", ("one",), False, splits, "")


@pytest.mark.parametrize(
    ("changes", "takes", "enough", "steps"),
    [
        ({}, "6.5 s", 0.22, 66),  # 50,000 passes at a third of 0.1 s for 256 of them
        ({"evaluation": {"mirror": True}}, "13 s", 0.44, 133),
        (
            {"evaluation": {"mirror": True}, "objective": "masked-patch"},
            "6.5 s",
            0.22,
            66,
        ),  # it has no label to mirror for
        ({"tune": "head"}, "20 s", 0.66, 200),
    ],
)
def test_a_time_of_which_one_look_takes_most_is_refused(
    changes: dict[str, Any], takes: str, enough: float, steps: int
) -> None:
    tried: list[float] = []

    def fixed(minutes: float) -> Recipe:
        asked = {"batch_size": 256, "budget": {"minutes": minutes}, "schedule": {"warmup": 0.0}}
        recipe = recipes.load("scratch", config.merge(asked, changes))
        return fix_steps(recipe, of_sizes(1000, 50_000), "it", 1e9, lambda most: (tried.append(most), 0.1)[1])

    with pytest.raises(UsageError) as refused:
        fixed(0.05)
    assert str(refused.value) == (
        f"0.05 min is too little for one look at 50,000 validation pictures, which takes {takes}; {enough} min or more "
        "would be right"
    )
    with pytest.raises(UsageError, match="is too little"):
        fixed(enough - 0.02)
    assert fixed(enough).budget.steps == steps  # about half of the time is left for them
    assert tried == pytest.approx([0.05 * 3, (enough - 0.02) * 3, enough * 3])


@pytest.mark.parametrize(
    ("changes", "every", "passes"),
    [
        ({}, 5, 60),  # a fifth of 300 passes allows two looks at 30 pictures
        ({"evaluation": {"mirror": True}}, 10, 60),  # or one at them and their mirror images
        ({"evaluation": {"mirror": True}, "objective": "masked-patch"}, 5, 60),
        ({"evaluation": {"mirror": True, "every_steps": 5}}, 5, 120),
    ],
)
def test_a_look_at_mirror_images_too_takes_twice_the_time(changes: dict[str, Any], every: int, passes: int) -> None:
    asked = {"batch_size": 10, "budget": {"steps": 10}, "schedule": {"warmup": 0.0}}
    recipe = recipes.load("scratch", config.merge(asked, changes))
    fixed = fix_steps(recipe, of_sizes(100, 30), "it", 1e9, lambda _: pytest.fail("a step was tried"))
    assert fixed.evaluation.every_steps == every
    assert steps_and_looks(fixed, of_sizes(100, 30)) == pytest.approx(10 + passes / 30)


@pytest.mark.speed
def test_at_most_twenty_steps_are_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []

    class Endless:
        closed = False

        def __iter__(self) -> Iterator[None]:
            return itertools.repeat(None)

        def close(self) -> None:
            self.closed = True

    def no_step(*arguments: Any) -> tuple[float, float]:
        assert all(group["lr"] == 0.0 for group in arguments[1].param_groups)
        done.append(arguments[-1])
        return 0.0, 0.0

    monkeypatch.setattr(loop, "train_step", no_step)
    for most_seconds, steps in ((math.inf, 20), (0.0, 3)):
        loader = Endless()
        make: Any = lambda _, loader=loader: loader  # noqa: E731
        loop.seconds_per_step(tiny(), Softmax(3), Recipe(), make, most_seconds)
        assert done == list(range(steps))
        assert loader.closed
        done.clear()


def tiny() -> Model:
    """16 patches, and a head that is not zero."""
    torch.manual_seed(0)
    model = create_model("ViT-At/2", 3, 8, **{key: value for key, value in TINY.items() if key != "name"})
    torch.nn.init.normal_(model.get_parameter("head.weight"))
    return model.train()


def batch(count: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(5)
    return Batch(
        images=torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8),
        labels=torch.arange(count) % 3,
        weights=torch.ones(count),
        ids=np.arange(count) * 7,
        epochs=np.arange(count) % 2,
    )


class Watched(Objective):
    """Softmax that keeps what it was given, part by part."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[Tensor] = []
        self.targets_seen: list[Tensor] = []
        self.keep: list[Tensor | None] = []
        self.softmax = Softmax(3)

    def targets(self, labels: Tensor, ids: Any = None) -> Tensor:
        return self.softmax.targets(labels)

    def forward(self, model: Model, images: Tensor, targets: Tensor, keep: Tensor | None = None) -> Tensor:
        self.images.append(images)
        self.targets_seen.append(targets)
        self.keep.append(keep)
        return self.softmax(model, images, targets, keep)


def one_step(recipe: Recipe, step: int = 0, model: Model | None = None) -> tuple[Watched, float, float]:
    """What the objective was given, the loss and the norm of the gradient."""
    model, watched = model or tiny(), Watched()
    regularization = recipe.regularization
    model.regularize(dropout=regularization.dropout, stochastic_depth=regularization.stochastic_depth)
    optimizer = build_optimizer(recipe.optimizer, model)
    return (watched, *train_step(Passes(model, watched), optimizer, batch(), recipe, step))


@pytest.mark.parametrize("fields", [{"erasing": 0.7}, {"mixup": 0.6}, {"cutmix": 0.6}, {"erasing": 0.7, "mixup": 0.6}])
def test_the_model_sees_erased_and_mixed_pictures_and_the_objective_mixed_targets(fields: dict[str, float]) -> None:
    augment = Augment(**fields)  # pyright: ignore[reportArgumentType]
    watched, _, _ = one_step(Recipe(augment=augment, micro_batch=4, seed=3), step=5)
    one = batch()
    clean = tiny().preprocessing.normalize(one.images)
    images = erase(clean.clone(), augment, seed=3, epochs=one.epochs, ids=one.ids)
    images, targets = mix(images, torch.eye(3)[one.labels], augment, seed=3, step=5)
    assert not torch.equal(images, clean)
    assert torch.equal(torch.cat(watched.images), images)
    assert torch.equal(torch.cat(watched.targets_seen), targets)


@pytest.mark.parametrize(("share", "kept"), [(0.25, 12), (0.5, 8), (0.99, 1)])
def test_patch_dropout_keeps_the_rest_of_the_patches(share: float, kept: int) -> None:
    watched, _, _ = one_step(Recipe(regularization=Regularization(patch_dropout=share), micro_batch=6))
    (keep,) = watched.keep
    assert keep is not None
    assert keep.shape == (6, kept)
    assert (keep.diff(dim=1) > 0).all()  # in raster order, none twice
    assert 0 <= int(keep.min()) <= int(keep.max()) < 16
    assert len({tuple(row.tolist()) for row in keep}) > 1  # each image has its own


@pytest.mark.parametrize("kind", ["dropout", "stochastic_depth"])
def test_what_dropout_drops_is_decided_by_seed_and_step(kind: str) -> None:
    def loss(seed: int, step: int) -> float:
        regularization = Regularization(**{kind: 0.6})
        return one_step(Recipe(regularization=regularization, micro_batch=4, seed=seed), step)[1]

    assert loss(3, 4) == loss(3, 4)
    assert len({loss(3, 4), loss(3, 5), loss(4, 4)}) == 3


def test_the_patches_that_are_kept_are_decided_by_seed_step_and_place() -> None:
    recipe = Recipe(regularization=Regularization(patch_dropout=0.5), micro_batch=2)
    seen = set()
    for seed, step in itertools.product((0, 1), (0, 1)):
        watched, _, _ = one_step(replace(recipe, seed=seed), step)
        seen |= {tuple(keep.flatten().tolist()) for keep in watched.keep if keep is not None}
    assert len(seen) == 2 * 2 * 3


@pytest.mark.parametrize("clip_norm", [0.0, 0.02, 1e6])
def test_clipping_bounds_the_step_and_not_the_norm_that_is_told(clip_norm: float) -> None:
    """SGD moves the weights by the learning rate times the clipped gradient."""
    model = tiny()
    before = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    config = OptimizerConfig(name="sgd", lr=0.5, momentum=0.0, clip_norm=clip_norm)
    _, _, norm = one_step(Recipe(optimizer=config, micro_batch=6), model=model)
    moved = (torch.nn.utils.parameters_to_vector(model.parameters()) - before).norm().item()
    assert norm > 0.2
    assert moved == pytest.approx(0.5 * (clip_norm if 0 < clip_norm < norm else norm), rel=1e-3)


@pytest.mark.parametrize("clip_norm", [0.0, 0.02])
def test_each_step_moves_the_weights_by_the_learning_rate_of_the_log(
    clip_norm: float, data: Path, tmp_path: Path
) -> None:
    """SGD without momentum: checkpoint after checkpoint, ‖Δw‖ = peak · schedule · ‖gradient‖."""
    recipe = plain(
        data,
        budget={"steps": 4},
        optimizer={"name": "sgd", "lr": 0.5, "momentum": 0.0, "clip_norm": clip_norm},
        schedule={"warmup": 2.0, "decay": "linear"},
        checkpoint={"every_steps": 1, "keep": 9},
    )
    folder = run(recipe, tmp_path / "out")
    log = [line for line in lines(folder) if line["kind"] == "train"]
    rates = [0.5 * factor for factor in (1 / 3, 2 / 3, 1.0, 0.5)]
    assert [line["lr"] for line in log] == pytest.approx(rates)
    saved = [read_tensors(folder / f"checkpoints/step-{step:08d}/model.safetensors") for step in (1, 2, 3, 4)]
    for line, rate, old, new in zip(log[1:], rates[1:], saved, saved[1:], strict=False):
        moved = math.sqrt(sum((new[name] - old[name]).square().sum().item() for name in new))
        assert line["grad_norm"] > 0.05
        assert moved == pytest.approx(rate * (clip_norm or line["grad_norm"]), rel=1e-3)


def two_updates(config: OptimizerConfig, first: float, second: float) -> float:
    """A weight of the head that was 2, after two gradients."""
    model = create_model("ViT-At/8", 1, 8, depth=1)
    weight = model.get_parameter("head.weight")
    torch.nn.init.constant_(weight, 2.0)
    optimizer = build_optimizer(config, model)
    for gradient in (first, second):
        weight.grad = torch.full_like(weight, gradient)
        optimizer.step()
    return weight[0, 0].item()


def test_momentum_by_hand() -> None:
    config = OptimizerConfig(name="sgd", lr=0.1, momentum=0.7)
    assert two_updates(config, 3.0, -1.0) == pytest.approx(2 - 0.1 * 3 - 0.1 * (0.7 * 3 - 1), rel=1e-5)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adams_two_averages_by_hand(name: Any) -> None:
    """After gradients 3 and −1 both averages count: β₁ for the gradient, β₂ for its square, each divided by 1 − β²."""
    config = OptimizerConfig(name=name, lr=0.1, betas=(0.6, 0.9))
    mean = (0.6 * 0.4 * 3 + 0.4 * -1) / (1 - 0.6**2)
    square = (0.9 * 0.1 * 9 + 0.1 * 1) / (1 - 0.9**2)
    assert two_updates(config, 3.0, -1.0) == pytest.approx(2 - 0.1 - 0.1 * mean / math.sqrt(square), rel=1e-5)


def test_the_log_has_the_mean_loss_of_its_window(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses: list[float] = []
    step = loop.gradients

    def recorded(*arguments: Any) -> tuple[float, float]:
        loss, norm = step(*arguments)
        losses.append(loss)
        return loss, norm

    monkeypatch.setattr(loop, "gradients", recorded)
    monkeypatch.setattr(loop, "_LOG_LINES", 2)  # of 6 steps, every third
    folder = run(plain(data, budget={"steps": 6}, optimizer={"lr": 0.03}), tmp_path / "out")
    log = [line for line in lines(folder) if line["kind"] == "train"]
    assert [line["step"] for line in log] == [3, 6]
    assert len(set(losses)) == 6
    assert [line["loss"] for line in log] == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:]) / 3], abs=1e-6)


def test_the_average_is_what_is_measured_and_what_is_left(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On validation, on test and in `model/`; each checkpoint holds the raw weights, too."""
    measured: list[tuple[str, dict[str, Tensor]]] = []
    predict = measuring.predict

    def recorded(model: Model, split: Split, *how: Any, **options: Any) -> Any:
        held = {name: value.clone() for name, value in model.state_dict().items()}
        measured.append((split.name(0).split("/")[0], held))
        return predict(model, split, *how, **options)

    monkeypatch.setattr(measuring, "predict", recorded)
    recipe = plain(
        data,
        regularization={"average_decay": 0.9},
        checkpoint={"every_steps": 1, "keep": 9},
        evaluation={"every_steps": 1},
    )
    folder = run(recipe, tmp_path / "out")
    assert [split for split, _ in measured] == ["validation", "validation", "validation", "test"]
    for step, (_, held) in enumerate(measured[:3], 1):
        checkpoint = folder / f"checkpoints/step-{step:08d}"
        assert same(held, read_tensors(checkpoint / "average.safetensors"))
        assert not same(held, read_tensors(checkpoint / "model.safetensors"))
    assert same(measured[3][1], measured[2][1])
    assert same(weights(folder), measured[2][1])


def test_a_mirrored_look_is_the_mean_of_a_picture_and_its_mirror_image(data: Path, tmp_path: Path) -> None:
    """Left and right changed by Pillow, picture by picture: in `predict`, at the end of a run, and in `evaluate --mirror`."""
    torch.manual_seed(0)
    model = create_model(**plain(data).model, num_classes=2, image_size=8).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    model.labels = ("ant", "bee")
    model.preprocessing = replace(model.preprocessing, resize="stretch", crop_fraction=1.0)
    files = [data / f"test/{label}/{number:03d}.png" for label in ("ant", "bee") for number in range(3)]
    pictures: list[Image.Image] = [Image.open(file) for file in files]
    mirrored = [picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for picture in pictures]
    with torch.inference_mode():
        straight, turned = model(model.preprocess(pictures)), model(model.preprocess(mirrored))
    assert (straight - turned).abs().min() > 1e-3
    split, how = open_data(data).splits["test"], Looking(batch_size=5, threads=1)
    np.testing.assert_allclose(predict(model, split, how).logits, straight.numpy(), rtol=1e-4, atol=1e-5)
    expected = (straight + turned) / 2
    np.testing.assert_allclose(predict(model, split, how, mirror=True).logits, expected.numpy(), rtol=1e-4, atol=1e-5)

    save_model(model, tmp_path / "model")
    still = {"init": str(tmp_path / "model"), "optimizer": {"lr": 0.0}, "budget": {"steps": 1}}
    losses = {}
    for mirror, logits in ((False, straight), (True, expected)):
        folder = run(plain(data, **still, evaluation={"mirror": mirror}), tmp_path / f"run-{mirror}")
        confidence = read_answers(folder / "predictions.csv").confidence
        np.testing.assert_allclose(confidence, logits.softmax(1).max(1).values.numpy(), rtol=1e-3)
        losses[mirror] = patchword.evaluate(folder, data, mirror=mirror)["loss"]
        labels = torch.tensor([0, 0, 0, 1, 1, 1])
        assert losses[mirror] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-4)
    assert losses[True] != pytest.approx(losses[False], rel=1e-3)


@pytest.mark.parametrize(("keep", "left"), [(1, [5]), (3, [3, 4, 5])])
def test_the_newest_checkpoints_stay(keep: int, left: list[int], data: Path, tmp_path: Path) -> None:
    folder = run(
        plain(data, budget={"steps": 5}, checkpoint={"every_steps": 1, "keep": keep}, evaluation={"every_steps": 9}),
        tmp_path / "out",
    )
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [f"step-{step:08d}" for step in left]


def test_the_test_split_is_read_once_and_after_training(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a stream, where a look is a read. Without thumbnails of answers, which show what was looked at before."""
    reads: list[tuple[str, int]] = []
    steps: list[int] = []
    read, step = Split.read, loop.gradients

    def counted(self: Split, index: int) -> bytes | np.ndarray:
        reads.append((self.name(index), len(steps)))
        return read(self, index)

    def stepped(*arguments: Any) -> tuple[float, float]:
        steps.append(arguments[-1])
        return step(*arguments)

    monkeypatch.setattr(Split, "read", counted)
    monkeypatch.setattr(loop, "gradients", stepped)
    monkeypatch.setattr(measuring, "confident_mistakes", lambda *_: [])
    monkeypatch.setattr(measuring, "sure_hits", lambda *_: [])
    run(plain(data, loading={"in_memory": "no"}, evaluation={"every_steps": 1}), tmp_path / "out")
    tested = [(name, when) for name, when in reads if name.startswith("test/")]
    assert Counter(tested) == {(f"test/{label}/{i:03d}.png", 3): 1 for label in ("ant", "bee") for i in range(3)}
    looked = Counter(when for name, when in reads if name.startswith("validation/"))
    assert looked == {1: 4, 2: 4, 3: 4}


def test_evaluating_gives_the_mode_back() -> None:
    model = tiny()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert all(module.training for module in model.modules())
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError
    assert model.training
    with evaluating(model.eval()):
        pass
    assert not model.training


def test_whitening_is_fitted_to_training_pictures_as_evaluation_sees_them(data: Path, tmp_path: Path) -> None:
    model = load_model(run(plain(data, **config.merge(STEM, {"model": {"stem_whitening": 24}})), tmp_path / "run"))
    split = open_data(data).splits["train"]
    pixels = np.stack([model.preprocessing.fit(decode(split.read(row), 3)) for row in range(len(split))])
    fresh = create_model("C2+ViT-At/4", 2, 8, depth=1, stem_channels=(5, 7), stem_whitening=24)
    fresh.begin_with(model.preprocessing.normalize(torch.from_numpy(pixels).permute(0, 3, 1, 2)))
    name = "backbone.whitening.kernels"
    # An eigenvector has no sign of its own.
    torch.testing.assert_close(model.get_buffer(name).abs(), fresh.get_buffer(name).abs(), rtol=1e-3, atol=1e-4)


def test_blocks_that_begin_as_the_identity_need_blocks(data: Path, tmp_path: Path) -> None:
    recipe = replace(plain(data, zero_init_residual=True), model={"name": "BiT-R14x0.5"}, image_size=(32, 32))
    with pytest.raises(UsageError, match="zero_init_residual is for an encoder, which BiT-R14x0.5 does not have"):
        run(recipe, tmp_path / "run")


@pytest.mark.parametrize(
    ("wanted", "count", "looked"),
    [("auto", 99_999, True), ("auto", 100_000, False), ("yes", 100_000, True), ("no", 5, False)],
)
def test_duplicates_are_looked_for_below_a_hundred_thousand(
    wanted: str, count: int, looked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Many:
        def __len__(self) -> int:
            return count - 2

        def digest(self, rows: np.ndarray | None) -> bytes:
            return b""

    items: Any = Many()
    train, test = Split(items, np.zeros(count - 2, np.int64)), Split(items, np.zeros(2, np.int64), np.arange(2))
    dataset = Dataset("many", "many", ("a",), False, {"train": train, "test": test}, "given")
    calls: list[Dataset] = []
    monkeypatch.setattr(shelf, "open_data", lambda _, **__: dataset)
    monkeypatch.setattr(
        "patchword.training.pictures.find_duplicates", lambda given, **_: (calls.append(given), Duplicates(()))[1]
    )
    opened = open_training_data(recipes.load("scratch", {"data": "many", "loading": {"duplicates": wanted}}))
    assert calls == ([dataset] if looked else [])
    assert (opened.duplicates == "no exact duplicates") == looked


def test_killed_in_the_middle_the_same_run_ends_in_the_same_weights(data: Path, tmp_path: Path) -> None:
    """SIGKILL, as from a lack of memory: nothing is put in order, and the newest checkpoint is all there is."""
    recipe = plain(
        data, budget={"steps": 20}, checkpoint={"every_steps": 4}, regularization={"dropout": 0.1, "average_decay": 0.9}
    )
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    program = """
import os, signal, sys
from pathlib import Path
from patchword.training import loop, recipe, run
step = loop.gradients
def killed(*arguments):
    if arguments[-1] == 14:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(*arguments)
loop.gradients, loop.seconds_per_step = killed, lambda *_: 0.01
run.run(recipe.load(sys.argv[1]), Path(sys.argv[2]))
"""
    command = [sys.executable, "-c", program, str(tmp_path / "recipe.toml"), str(tmp_path / "killed")]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -signal.SIGKILL
    assert json.loads((tmp_path / "killed/result.json").read_text())["status"] == "running"
    assert lines(tmp_path / "killed")[-1]["step"] == 14
    run(recipe, tmp_path / "killed")
    result = json.loads((tmp_path / "killed/result.json").read_text())
    assert (result["status"], result["steps"], result["resumed_from"]) == ("finished", 20, [12])
    quiet = run(recipe, tmp_path / "quiet")
    assert same(weights(tmp_path / "killed"), weights(quiet))
    clock = {"seconds", "images_per_second"}
    logs = [
        [{k: v for k, v in line.items() if k not in clock} for line in lines(at)] for at in (tmp_path / "killed", quiet)
    ]
    assert logs[0] == logs[1]
