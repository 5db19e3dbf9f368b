"""FLOPs by the shapes of layers and against the paper's table; what is measured, by a clock that the test holds."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from patchword.evaluation import speed
from patchword.evaluation.predict import comfortable_batch
from patchword.evaluation.speed import seconds_per_image
from patchword.models.contract import Model
from patchword.models.cost import cost, exaflops, tpu_core_days
from patchword.models.names import create_model

LIGHT = [
    ("ViT-At/8", 32, {}),
    ("ViT-Ti/16", 224, {}),
    ("ViT-S/32", 224, {"pool": "gap"}),
    ("ViT-Na/16", (32, 80), {"pool": "map", "registers": 3}),
    ("ViT-Fe/4", 32, {"position": "sincos", "pool": "gap"}),
    ("R5+ViT-Fe/4", 32, {}),
    ("R8+ViT-Pi/8", (48, 64), {}),
    ("C3+ViT-Fe/8", 32, {}),
    ("BiT-R14x0.5", 64, {}),
    ("BiT-R26x1", (96, 64), {}),
    ("EfficientNet-B0", 224, {}),
]


def by_shapes(model: Model) -> int:
    """Two FLOPs for each multiply-add of linear layers, kernels and attention, by the shapes of what they are given."""
    total = 0

    def linear(x: Tensor, weight: Tensor, bias: Any = None) -> Tensor:
        nonlocal total
        total += 2 * x.numel() * weight.shape[0]
        return real["linear"](x, weight, bias)

    def convolve(x: Tensor, weight: Tensor, *rest: Any, **named: Any) -> Tensor:
        nonlocal total
        out = real["conv2d"](x, weight, *rest, **named)
        total += 2 * out.numel() * weight[0].numel()
        return out

    def attend(q: Tensor, k: Tensor, v: Tensor, *rest: Any, **named: Any) -> Tensor:
        nonlocal total
        rows = q.numel() // q.shape[-1]
        total += 2 * rows * k.shape[-2] * (q.shape[-1] + v.shape[-1])
        return real["scaled_dot_product_attention"](q, k, v, *rest, **named)

    ours = {"linear": linear, "conv2d": convolve, "scaled_dot_product_attention": attend}
    real: dict[str, Callable[..., Tensor]] = {name: getattr(F, name) for name in ours}
    with mock.patch.multiple(F, **ours):
        model(torch.empty(1, model.in_channels, *model.image_size, device="meta"))
    return total


@pytest.mark.parametrize(("name", "size", "options"), LIGHT, ids=[name for name, _, _ in LIGHT])
def test_flops_are_those_of_the_layers(name: str, size: Any, options: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = create_model(name, 7, size, **options).eval()
    assert cost(model).forward_flops == by_shapes(model)


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("ViT-At/4", 96, {"depth": 4}),
        ("ViT-At/8", 32, {"pool": "map"}),
        ("ViT-At/8", 32, {"position": "relative"}),
        ("R5+ViT-Fe/4", 32, {}),
        ("EfficientNet-Na", 64, {}),
    ],
)
def test_activation_memory_is_what_a_pass_on_a_cpu_keeps(name: str, size: int, options: dict[str, Any]) -> None:
    """Fused attention keeps no M×M weights, which would be more than half of the first; what is kept twice counts once."""
    model = create_model(name, 7, size, **options).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.zeros(1, 3, size, size))
    expected = sum(each.untyped_storage().nbytes() for place, each in kept.items() if place not in own)
    assert cost(model).activation_bytes == pytest.approx(expected, rel=0.02)


TABLE_6 = [("ViT-B/32", 7, 55), ("ViT-B/16", 7, 224), ("BiT-R50x1", 7, 50), ("R50+ViT-B/32", 7, 106)]


@pytest.mark.parametrize(("name", "epochs", "published"), TABLE_6)
def test_pre_training_costs_what_the_paper_says(name: str, epochs: int, published: float) -> None:
    """On the 303 million pictures of JFT (appendix table 6). Ours of a ViT is a little less: its last block computes one row."""
    with torch.device("meta"):
        model = create_model(name, 0, 224)
    found = exaflops(cost(model).train_flops * epochs * 303e6)
    assert 0.92 < found / published < 1.05


def test_core_days_lie_between_the_papers_two_models() -> None:
    """4,262 exaFLOPs took 2,500 days of a core, 1,567 took 680."""
    assert 0.85 < tpu_core_days(4262e18) / 2500 < 1.2
    assert 0.85 < tpu_core_days(1567e18) / 680 < 1.2
    assert exaflops(3e18) == 3


def test_time_is_the_median_round_over_its_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds of 5, 1 and 3 seconds with two batches of 7 side by side."""
    model = create_model("ViT-At/8", 3, 16, depth=1).train()
    clock = iter([0.0, 0.0, 5.0, 5.0, 6.0, 6.0, 9.0, 9.0])
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(clock))
    seen: list[tuple[int, bool]] = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append((len(inputs[0]), module.training)))
    assert seconds_per_image(model, batch_size=7, threads=2, seconds=8.0) == pytest.approx(3 / 14)
    assert seen == [(7, False)] * 8  # the first round is not measured
    assert model.training


def test_a_single_image_has_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """What somebody waits for: two images side by side would each take longer, and count half."""
    model = create_model("ViT-At/8", 3, 16, depth=1)
    clock = iter([0.0, 0.0, 5.0, 5.0, 6.0, 6.0, 9.0, 9.0])
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(clock))
    seen: list[tuple[int, int]] = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append((len(inputs[0]), torch.get_num_threads())))
    assert seconds_per_image(model, batch_size=1, threads=2, seconds=8.0) == pytest.approx(3)
    assert seen == [(1, 2)] * 4


def test_the_comfortable_batch_is_measured_where_none_is_given() -> None:
    model = create_model("ViT-At/8", 3, 16, depth=1)
    assert comfortable_batch(model) == 256
    seen: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    assert seconds_per_image(model, threads=1, seconds=0.0) > 0
    assert seen == [256] * 4
