"""Convolutions whose maps are smaller than their kernels: torch's values, and the gradients that it has in float64."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from patchword.models import convolution
from patchword.models.convolution import conv2d
from patchword.models.names import create_model

SHAPES = [
    # channels in and out, groups, h×w, side, stride, padding
    (7, 7, 7, (4, 3), 5, 1, 2),
    (7, 7, 7, (4, 2), 5, 2, 2),
    (5, 5, 5, (2, 2), 3, 1, 1),
    (5, 5, 5, (1, 2), 3, 2, 1),
    (3, 7, 1, (2, 2), 3, 1, 1),
    (3, 7, 1, (2, 1), 3, 2, 1),
    (3, 7, 1, (1, 1), 3, 1, 1),
    # Left to torch: a map as large as the kernel, one place a kernel, groups of several channels.
    (5, 5, 5, (3, 2), 3, 1, 1),
    (3, 7, 1, (2, 2), 1, 1, 0),
    (6, 4, 2, (2, 2), 3, 1, 1),
]


def _results(x: Tensor, weight: Tensor, convolve: Any, way: Tensor) -> list[Tensor]:
    """Values, gradients, and gradients of what is made of gradients."""
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    output = convolve(x, weight)
    plain = torch.autograd.grad((output * way).sum(), (x, weight), retain_graph=True)
    first = torch.autograd.grad((output.sin() * way).sum(), (x, weight), create_graph=True)
    second = torch.autograd.grad(torch.stack([each.square().sum() for each in first]).sum(), (x, weight))
    return [output, *plain, *first, *second]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("channels", "out", "groups", "size", "side", "stride", "padding"), SHAPES)
def test_values_and_derivatives_are_those_of_float64(
    channels: int, out: int, groups: int, size: tuple[int, int], side: int, stride: int, padding: int, layout: Any
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(11, channels, *size, generator=generator).contiguous(memory_format=layout)
    weight = torch.randn(out, channels // groups, side, side, generator=generator)
    true = F.conv2d(x.double(), weight.double(), None, stride, padding, 1, groups)
    way = torch.randn(true.shape, generator=generator)
    mine = _results(x, weight, lambda x, w: conv2d(x, w, stride, padding, groups), way)
    exact = _results(
        x.double(), weight.double(), lambda x, w: F.conv2d(x, w, None, stride, padding, 1, groups), way.double()
    )
    for one, other in zip(mine, exact, strict=True):
        assert (one - other).abs().max() < 1e-5 * other.abs().max()


@pytest.mark.parametrize(("name", "side", "count"), [("EfficientNet-Na", 64, 5), ("BiT-R14x0.25", 32, 1)])
def test_models_take_it_where_a_map_is_smaller_than_a_kernel(
    name: str, side: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = create_model(name, num_classes=3, image_size=side).train()
    taken: list[int] = []
    of_kernels = convolution._of_kernels
    monkeypatch.setattr(convolution, "_of_kernels", lambda *given: taken.append(given[2]) or of_kernels(*given))
    model.features(torch.randn(2, 3, side, side)).square().sum().backward()
    assert len(taken) == count
    assert min(taken) > 1


SLOW = """
import torch
from patchword.models.names import create_model
for name, options in {NAMES}:
    model = create_model(name, num_classes=3, image_size=32, **options).train()
    model(torch.randn(16, 3, 32, 32)).square().sum().backward()
"""
NAMES = [("ViT-At/8", {"pool": pool}) for pool in ("token", "gap", "map")]
NAMES += [("C3+ViT-At/8", {}), ("ViT-At/8", {"hidden_head": True, "position": "rope"})]


def test_no_product_of_a_training_step_falls_to_the_reference() -> None:
    """oneDNN has plain loops for layouts that it has nothing better for: a hundred times as slow, and nobody is told."""
    done = subprocess.run(
        [sys.executable, "-c", SLOW.replace("{NAMES}", repr(NAMES))],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "ONEDNN_VERBOSE": "1"},
    )
    products = [line for line in done.stdout.splitlines() if ",exec," in line and ",inner_product," in line]
    if not products:
        pytest.skip("this build of torch has no oneDNN")
    assert not [line for line in products if ",ref" in line]
