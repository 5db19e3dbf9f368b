"""The faster arithmetic on a CPU: values and derivatives are those that torch has in float64."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from patchword.models import convolution, norm, onednn
from patchword.models.convolution import conv2d
from patchword.models.gelu import Gelu, gelu
from patchword.models.names import create_model
from patchword.models.norm import group_norm


def derivatives(function: Callable[..., Tensor], given: list[Tensor], way: Tensor) -> list[Tensor]:
    """Values, gradients, and gradients of what is made of gradients."""
    leaves = [each.clone().requires_grad_() for each in given]
    output = function(*leaves)
    plain = torch.autograd.grad((output * way).sum(), leaves, retain_graph=True)
    first = torch.autograd.grad((output.sin() * way).sum(), leaves, create_graph=True)
    second = torch.autograd.grad(torch.stack([each.square().sum() for each in first]).sum(), leaves)
    return [output, *plain, *first, *second]


def assert_as_in_float64(
    function: Callable[..., Tensor], true: Callable[..., Tensor], given: list[Tensor], tolerance: float = 1e-5
) -> None:
    exact = [each.double() for each in given]
    way = torch.randn(true(*exact).shape, generator=torch.Generator().manual_seed(7))
    mine, theirs = derivatives(function, given, way), derivatives(true, exact, way.double())
    for place, (one, other) in enumerate(zip(mine, theirs, strict=True)):
        assert (one - other).abs().max() <= tolerance * other.abs().max(), place


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 5, 7)])
def test_onednn_linear_has_torchs_values_and_derivatives(shape: tuple[int, ...]) -> None:
    """In training, too, and differentiated twice; float64 stays with torch, so the check is against it."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*size, generator=generator) for size in (shape, (11, 7), (11,)))
    given = [each.clone().requires_grad_() for each in (x, weight, bias)]
    exact = [each.double().requires_grad_() for each in (x, weight, bias)]
    results = []
    for inputs in (given, exact):
        output = onednn.linear(*inputs).sin()
        first = torch.autograd.grad(output.sum(), inputs, create_graph=True)
        second = torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), inputs)
        results.append([output, *first, *second])
    for mine, true in zip(*results, strict=True):
        torch.testing.assert_close(mine, true.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["tanh", "erf"])
def test_gelu_has_torchs_values_and_derivatives(kind: Gelu) -> None:
    """Of large inputs and zero, too, and differentiated twice; the check is torch's own in float64."""
    x = torch.cat([torch.linspace(-11, 11, 997), torch.tensor([0.0, 1e-30, -1e4, 1e4, -1e13, 1e13])])
    weights = torch.randn(len(x), generator=torch.Generator().manual_seed(0))
    given, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    true = F.gelu(exact, approximate="tanh" if kind == "tanh" else "none")
    torch.testing.assert_close(gelu(x, kind), true.float(), rtol=1e-6, atol=1e-6)
    results = []
    for inputs, output in ((given, gelu(given, kind)), (exact, true)):
        plain = torch.autograd.grad((output * weights).sum(), inputs, retain_graph=True)
        first = torch.autograd.grad((output * weights).sum(), inputs, create_graph=True)
        torch.testing.assert_close(plain[0], first[0], rtol=1e-5, atol=1e-5)
        second = torch.autograd.grad(first[0][:997].square().sum(), inputs)
        results.append([output, *plain, *second])
    for mine, exactly in zip(*results, strict=True):
        torch.testing.assert_close(mine, exactly.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x, given.detach(), rtol=0, atol=0)


SHAPES = [
    # channels in and out, groups, h×w, side, stride, padding
    (7, 7, 7, (4, 3), 5, 1, 2),
    (7, 7, 7, (4, 2), 5, 2, 2),
    (5, 5, 5, (2, 2), 3, 1, 1),
    (5, 5, 5, (1, 2), 3, 2, 1),
    (3, 7, 1, (2, 2), 3, 1, 1),
    (3, 7, 1, (2, 1), 3, 2, 1),
    (3, 7, 1, (1, 1), 3, 2, 1),
    (7, 7, 7, (1, 1), 5, 1, 2),
    (3, 1, 1, (1, 1), 3, 1, 1),
    (6, 4, 2, (1, 1), 3, 1, 1),
    # Left to torch: a map as large as the kernel, one place a kernel, groups of several channels.
    (5, 5, 5, (3, 2), 3, 1, 1),
    (3, 7, 1, (2, 2), 1, 1, 0),
    (6, 4, 2, (2, 2), 3, 1, 1),
]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("channels", "out", "groups", "size", "side", "stride", "padding"), SHAPES)
def test_convolution_has_torchs_values_and_derivatives(
    channels: int, out: int, groups: int, size: tuple[int, int], side: int, stride: int, padding: int, layout: Any
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(11, channels, *size, generator=generator).contiguous(memory_format=layout)
    weight = torch.randn(out, channels // groups, side, side, generator=generator)
    assert_as_in_float64(
        lambda x, w: conv2d(x, w, stride, padding, groups),
        lambda x, w: F.conv2d(x, w, None, stride, padding, 1, groups),
        [x, weight],
    )


@pytest.mark.parametrize(("channels", "groups"), [(7, 7), (10, 5), (21, 3), (5, 1), (16, 2)])
def test_group_norm_has_torchs_values_and_derivatives(
    channels: int, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of eight are left to torch."""
    taken: list[int] = []
    forward = norm._forward
    monkeypatch.setattr(norm, "_forward", lambda *given: taken.append(1) or forward(*given))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, channels, 5, 11, generator=generator).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(2, channels, generator=generator)

    def true(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.group_norm(x, groups, weight, bias, 1e-5)

    def mine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return group_norm(x, groups, weight, bias, 1e-5)

    assert_as_in_float64(mine, true, [x, weight, bias])
    torch.testing.assert_close(mine(x, weight, bias), true(x, weight, bias), rtol=1e-5, atol=1e-5)
    assert bool(taken) is (channels < 8 * groups)
    assert mine(x, weight, bias).is_contiguous(memory_format=torch.channels_last)


def test_group_norm_of_numbers_far_from_zero_is_that_of_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    x = (100 + torch.randn(3, 21, 5, 11, generator=generator)).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(2, 21, generator=generator)
    way = torch.randn(x.shape, generator=generator)
    results = []
    for kind in (torch.float32, torch.float64):
        leaves = [each.to(kind).requires_grad_() for each in (x, weight, bias)]
        output = group_norm(leaves[0], 3, leaves[1], leaves[2], 1e-5)
        results.append([output, *torch.autograd.grad((output * way).sum(), leaves)])
    for one, other in zip(*results, strict=True):
        assert (one - other).abs().max() <= 1e-4 * other.abs().max()


def test_group_norm_of_a_picture_of_one_colour_is_its_bias() -> None:
    x = torch.full((2, 6, 5, 3), 1234.567).contiguous(memory_format=torch.channels_last)
    bias = torch.arange(6.0)
    found = group_norm(x, 3, torch.ones(6), bias, 1e-5)
    torch.testing.assert_close(found, bias[:, None, None].expand_as(x), rtol=0, atol=0.1)


def test_a_narrow_bit_norms_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model = create_model("BiT-R14x0.25", num_classes=3, image_size=32).train()
    taken: list[int] = []
    backward = norm._backward
    monkeypatch.setattr(norm, "_backward", lambda *given: taken.append(1) or backward(*given))
    model.features(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert len(taken) == 10


@pytest.mark.parametrize(
    ("name", "side", "count"), [("EfficientNet-Na", 64, 5), ("BiT-R14x0.25", 32, 1), ("EfficientNet-Na", 32, 4)]
)
def test_models_convolve_so_where_a_map_is_smaller_than_a_kernel(
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
