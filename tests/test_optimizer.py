"""Schedules at their corners, groups by name, averages by hand."""

import math

import pytest
import torch
from torch import nn

from patchword.core.errors import UsageError
from patchword.models.names import create_model
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


@pytest.mark.parametrize("fields", [{"lr": -1.0}, {"lr": math.nan}, {"betas": (0.9, 1.0)}, {"layer_decay": 0.0}])
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
        rows[name]["lr_scale"] for name in ("head.weight", "blocks.1.norm1.bias", "blocks.0.norm1.bias", "class_token")
    ] == [
        1.0,
        0.5,
        0.25,
        0.125,
    ]
    set_learning_rate(optimizer, 0.1)
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
