"""Schedules at their corners, groups by name, averages by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from patchword.core.errors import UsageError
from patchword.models.names import create_model
from patchword.training.muon import Muon, orthogonals
from patchword.training.objectives import MaskedPatch
from patchword.training.optimizer import Average, OptimizerConfig, ScheduleConfig, build_optimizer, set_learning_rate


def test_cosine_after_linear_warmup() -> None:
    schedule = ScheduleConfig(warmup=4.0, decay="cosine")
    factors = [schedule.factor(step, 14) for step in range(14)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[9] == pytest.approx(0.5)
    assert factors[13] == pytest.approx(0.5 - 0.5 * math.cos(math.pi / 10))
    assert min(factors) > 0


def test_linear_and_constant() -> None:
    linear = ScheduleConfig(warmup=0.2, decay="linear")
    assert [linear.factor(step, 10) for step in (0, 1, 2, 6, 9)] == pytest.approx([1 / 3, 2 / 3, 1.0, 0.5, 0.125])
    constant = ScheduleConfig(warmup=0.0, decay="constant")
    assert {constant.factor(step, 7) for step in range(7)} == {1.0}


@pytest.mark.parametrize("fields", [{"warmup": -1.0}, {"warmup": 1.5}, {"decay": "cosin"}])
def test_schedule_is_checked(fields: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"schedule\."):
        ScheduleConfig(**fields)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "fields",
    [
        {"lr": -1.0},
        {"lr": math.nan},
        {"matrix_lr": -1e-9},
        {"kernel_lr": -1e-9},
        {"weight_decay": -1e-9},
        {"momentum": -0.1},
        {"momentum": 1.0},
        {"clip_norm": -1e-9},
        {"betas": (0.9, 1.0)},
        {"layer_decay": 0.0},
        {"layer_decay": 1.1},
    ],
)
def test_optimizer_is_checked(fields: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"optimizer\."):
        OptimizerConfig(**fields)  # pyright: ignore[reportArgumentType]


def test_every_parameter_is_in_one_group_with_its_decay_and_rate() -> None:
    model = create_model("ViT-At/8", 3, 16, depth=2)
    optimizer = build_optimizer(OptimizerConfig(weight_decay=0.3, layer_decay=0.5), model)
    rows = {name: group for group in optimizer.param_groups for name in group["names"]}
    assert rows.keys() == dict(model.named_parameters()).keys()
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(rows)
    assert rows["blocks.1.mlp.fc1.weight"]["weight_decay"] == 0.3
    for name in ("blocks.1.mlp.fc1.bias", "norm.weight", "class_token", "position.table"):
        assert rows[name]["weight_decay"] == 0.0
    assert [
        rows[name]["peak_lr"] / 1e-3
        for name in ("head.weight", "blocks.1.norm1.bias", "blocks.0.norm1.bias", "class_token")
    ] == [
        1.0,
        0.5,
        0.25,
        0.125,
    ]
    set_learning_rate(optimizer, 100)
    assert rows["blocks.0.norm1.bias"]["lr"] == pytest.approx(0.025)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_optimizers_follow_their_formula(name: str) -> None:
    """One step from zero state on one weight: the textbook update."""
    model = create_model("ViT-At/8", 1, 8, depth=1)
    assert isinstance(model.head, nn.Linear)
    with torch.no_grad():
        model.head.weight.fill_(2.0)
    optimizer = build_optimizer(OptimizerConfig(name=name, lr=0.1, weight_decay=0.5, betas=(0.8, 0.9)), model)  # pyright: ignore[reportArgumentType]
    model.head.weight.grad = torch.full_like(model.head.weight, 3.0)
    optimizer.step()
    expected = {"adamw": 2 - 0.1 * 0.5 * 2 - 0.1, "adam": 2 - 0.1, "sgd": 2 - 0.1 * (3 + 0.5 * 2)}[name]
    assert model.head.weight[0, 0].item() == pytest.approx(expected, rel=1e-5)


def test_adam_decays_by_the_gradient() -> None:
    """Two steps, in which the decay changes the ratio of the averages, as the first step from zero does not show."""
    model = create_model("ViT-At/8", 1, 8, depth=1)
    optimizer = build_optimizer(OptimizerConfig(name="adam", lr=0.1, weight_decay=0.5, betas=(0.8, 0.9)), model)
    weight = model.get_parameter("head.weight")
    torch.nn.init.constant_(weight, 2.0)
    value, average, square = 2.0, 0.0, 0.0
    for step, gradient in ((1, 3.0), (2, -0.5)):
        weight.grad = torch.full_like(weight, gradient)
        optimizer.step()
        decayed = gradient + 0.5 * value
        average, square = 0.8 * average + 0.2 * decayed, 0.9 * square + 0.1 * decayed**2
        value -= 0.1 * (average / (1 - 0.8**step)) / (math.sqrt(square / (1 - 0.9**step)) + 1e-8)
    assert weight[0, 0].item() == pytest.approx(value, rel=1e-5)


def test_average_warms_up_and_then_decays() -> None:
    model = create_model("ViT-At/8", 1, 8, depth=1)
    assert isinstance(model.head, nn.Linear)
    average = Average(model, 0.5)
    with torch.no_grad():
        model.head.weight.fill_(1.0)
    average.update(model, 0)  # decay (1 + 0) / (10 + 0)
    assert average.weights["head.weight"][0, 0].item() == pytest.approx(0.9)
    average.update(model, 1000)  # decay 0.5
    assert average.weights["head.weight"][0, 0].item() == pytest.approx(0.95)


def test_muon_moves_matrices_orthogonally_and_the_rest_as_adamw() -> None:
    """Two steps with Nesterov's momentum, against what they do to NumPy's singular values, matrix by matrix."""
    model = create_model("ViT-At/8", 5, 16, depth=1)
    config = OptimizerConfig(name="muon", lr=0.01, matrix_lr=0.1, weight_decay=0.5, momentum=0.9, betas=(0.8, 0.9))
    optimizer = build_optimizer(config, model)
    assert isinstance(optimizer, Muon)
    orthogonals = {name for group in optimizer.matrices for name in group["names"]}
    assert orthogonals == {
        "patch_embed.weight",
        "blocks.0.attention.qkv.weight",
        "blocks.0.attention.proj.weight",
        "blocks.0.mlp.fc1.weight",
        "blocks.0.mlp.fc2.weight",
    }
    set_learning_rate(optimizer, 0.5)
    generator = torch.Generator().manual_seed(7)
    expected = {name: value.detach().double().numpy().copy() for name, value in model.named_parameters()}
    momentum = {name: np.zeros_like(value) for name, value in expected.items()}
    others = {name: value.detach().clone() for name, value in model.named_parameters() if name not in orthogonals}
    undecayed = model.no_weight_decay()
    assert others.keys() - undecayed == {"head.weight"}
    adamw = torch.optim.AdamW(
        [
            {"params": [others["head.weight"]], "weight_decay": 0.5},
            {"params": [value for name, value in others.items() if name in undecayed], "weight_decay": 0.0},
        ],
        lr=0.5 * 0.01,
        betas=(0.8, 0.9),
    )
    for _ in range(2):
        for name, parameter in model.named_parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            if name not in orthogonals:
                others[name].grad = parameter.grad.clone()
                continue
            gradient = parameter.grad.double().numpy()
            momentum[name] = 0.9 * momentum[name] + gradient
            ahead = gradient + 0.9 * momentum[name]
            rows = ahead.shape[0] // (3 if "qkv" in name else 1)
            for first in range(0, ahead.shape[0], rows):
                part = slice(first, first + rows)
                u, lengths, v = np.linalg.svd(ahead[part], full_matrices=False)
                lengths /= np.linalg.norm(lengths)
                for _ in range(5):
                    lengths = 3.4445 * lengths - 4.7750 * lengths**3 + 2.0315 * lengths**5
                scale = max(1.0, rows / ahead.shape[1]) ** 0.5
                expected[name][part] = (1 - 0.05 * 0.5) * expected[name][part] - 0.05 * scale * (u * lengths) @ v
        optimizer.step()
        adamw.step()
    for name, parameter in model.named_parameters():
        if name in orthogonals:
            np.testing.assert_allclose(parameter.detach().numpy(), expected[name], atol=2e-5, err_msg=name)
        else:
            torch.testing.assert_close(parameter.detach(), others[name], rtol=1e-5, atol=1e-7, msg=name)
    head = optimizer.state[model.get_parameter("head.weight")]
    assert set(head) == {"step", "exp_avg", "exp_avg_sq"}
    assert head["step"] == 2
    assert set(optimizer.state[model.get_parameter("patch_embed.weight")]) == {"momentum_buffer"}


def test_muons_kernels_keep_their_length_where_a_norm_follows() -> None:
    """Each of O rows has length 1 in the quadratic mean before a step; η times an orthogonal matrix is then taken away."""
    model = create_model("C2+ViT-At/4", 5, 16, depth=1, stem_channels=(5, 7))
    config = OptimizerConfig(name="muon", matrix_lr=0.1, kernel_lr=0.3, weight_decay=0.5, momentum=0.9, layer_decay=0.5)
    optimizer = build_optimizer(config, model)
    kernels = {name: group for group in optimizer.param_groups for name in group["names"] if group.get("normed")}
    assert set(kernels) == {"backbone.convs.0.weight", "backbone.convs.1.weight"}
    group = kernels["backbone.convs.0.weight"]
    assert group["peak_lr"] == pytest.approx(0.3 * 0.5**3)
    assert group["weight_decay"] == 0.0
    set_learning_rate(optimizer, 0.5)
    parameter = model.get_parameter("backbone.convs.1.weight")
    parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7))
    before, gradient = (
        parameter.detach().double().numpy().reshape(7, 45),
        parameter.grad.double().numpy().reshape(7, 45),
    )
    u, lengths, v = np.linalg.svd(gradient, full_matrices=False)
    lengths /= np.linalg.norm(lengths)
    for _ in range(5):
        lengths = 3.4445 * lengths - 4.7750 * lengths**3 + 2.0315 * lengths**5
    expected = before * 7**0.5 / np.linalg.norm(before) - 0.5 * 0.3 * 0.125 * (u * lengths) @ v
    optimizer.step()
    np.testing.assert_allclose(parameter.detach().numpy().reshape(7, 45), expected, atol=2e-5)


def test_muons_kernels_forget_faster_than_other_matrices() -> None:
    """Two steps on one kernel: what the first gradient leaves behind is 0.6 of it, whatever `momentum` says."""
    model = create_model("C2+ViT-At/4", 5, 16, depth=1, stem_channels=(5, 7))
    optimizer = build_optimizer(OptimizerConfig(name="muon", kernel_lr=0.3, momentum=0.95), model)
    set_learning_rate(optimizer, 1.0)
    kernel = model.get_parameter("backbone.convs.1.weight")
    first, second = torch.randn((2, *kernel.shape), generator=torch.Generator().manual_seed(7))
    kernel.grad = first
    optimizer.step()
    before = kernel.detach().clone()
    kernel.grad = second
    optimizer.step()
    ahead = second + 0.6 * (0.6 * first + second)
    expected = before * 7**0.5 / before.norm() - 0.3 * next(orthogonals([ahead.flatten(1)])).view_as(before)
    torch.testing.assert_close(kernel.detach(), expected, rtol=1e-4, atol=1e-6)


def test_what_an_objective_has_learns_like_the_head_and_is_never_muons() -> None:
    model = create_model("ViT-At/8", 0, 16, depth=1)
    config = OptimizerConfig(name="muon", lr=0.01, weight_decay=0.5, layer_decay=0.5)
    groups = build_optimizer(config, model, MaskedPatch(model)).param_groups
    rows = {name: group for group in groups for name in group["names"]}
    own = {name: (row["peak_lr"], row["weight_decay"]) for name, row in rows.items() if name.startswith("objective.")}
    assert own == {
        "objective.word": (0.01, 0.0),
        "objective.head.weight": (0.01, 0.5),
        "objective.head.bias": (0.01, 0.0),
    }
    assert not any("stacked" in rows[name] for name in own)


def test_without_a_rate_of_their_own_kernels_are_matrices_and_those_with_a_bias_always_are() -> None:
    model = create_model("EfficientNet-B0", 5, 32)
    plain = build_optimizer(OptimizerConfig(name="muon"), model)
    assert not any(group.get("normed") for group in plain.param_groups)
    normed = build_optimizer(OptimizerConfig(name="muon", kernel_lr=0.1), model)
    names = {name for group in normed.param_groups if group.get("normed") for name in group["names"]}
    convolutions = {name: part for name, part in model.named_modules() if isinstance(part, torch.nn.Conv2d)}
    assert names == {f"{name}.weight" for name, part in convolutions.items() if part.bias is None}
    assert {f"{name}.weight" for name in convolutions} - names  # squeeze-and-excitation has biases
    others = {name for group in normed.param_groups if group.get("normed") is False for name in group["names"]}
    assert {f"{name}.weight" for name, part in convolutions.items() if part.bias is not None} <= others


def test_muons_groups_and_state_are_those_of_its_adamw() -> None:
    optimizer = build_optimizer(OptimizerConfig(name="muon"), create_model("ViT-At/8", 5, 16, depth=1))
    assert isinstance(optimizer, Muon)
    assert optimizer.adamw is not None
    assert optimizer.adamw.state is optimizer.state
    for group in optimizer.adamw.param_groups:
        assert any(group is mine for mine in optimizer.param_groups)


def test_orthogonal_keeps_directions_and_evens_out_lengths() -> None:
    """Wide, tall and square ones among each other, two of one shape, and one that is too large to be computed with others."""
    shapes = [(7, 31), (31, 7), (13, 13), (7, 31), (191, 173), (31, 7)]
    generator = torch.Generator().manual_seed(3)
    matrices = [torch.randn(shape, generator=generator) * 10**number for number, shape in enumerate(shapes)]
    found = list(orthogonals(matrices))
    assert [tuple(each.shape) for each in found] == shapes
    for matrix, each in zip(matrices, found, strict=True):
        u, s, v = torch.linalg.svd(each, full_matrices=False)
        assert (
            s.min() > 0.05 if min(matrix.shape) > 100 else s.min() > 0.5
        )  # the smallest of many is a tiny share of all
        assert s.max() < 1.3
        wanted_u, _, wanted_v = torch.linalg.svd(matrix, full_matrices=False)
        projected = wanted_u.T @ (u * s) @ v @ wanted_v.T
        assert (projected - projected.diag().diag()).abs().max() < 2e-4
