"""The faster arithmetic on a CPU: values and derivatives are those that torch has in float64."""

import itertools
import math
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from patchword.models import convolution, linear, norm
from patchword.models import gelu as gelus
from patchword.models.convolution import conv2d
from patchword.models.gelu import Gelu, gelu
from patchword.models.names import create_model
from patchword.models.norm import group_norm

APPROXIMATE = {"tanh": "tanh", "erf": "none"}


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


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 5, 7)])
def test_linear_by_onednn_has_torchs_values_and_derivatives(
    shape: tuple[int, ...], backward: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "ONEDNN", True)
    monkeypatch.setattr(linear, "ONEDNN_BACKWARD", backward)
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(*size, generator=generator) for size in (shape, (11, 7), (11,))]
    assert_as_in_float64(linear.linear, F.linear, given)


@pytest.mark.parametrize("kind", ["tanh", "erf"])
def test_gelu_has_torchs_values_and_derivatives(kind: Gelu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gelus, "_BLOCK", 101)  # the last block is smaller than the others
    x = torch.cat([torch.linspace(-11, 11, 997), torch.tensor([0.0, 1e-30])])
    before = x.clone()
    assert_as_in_float64(partial(gelu, kind=kind), partial(F.gelu, approximate=APPROXIMATE[kind]), [x])
    torch.testing.assert_close(gelu(x, kind), F.gelu(x, approximate=APPROXIMATE[kind]), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(x, before, rtol=0, atol=0)


@pytest.mark.parametrize("x", [30.0, -30.0, 1e4, -1e4, 1e13, -1e13, 1e14, -1e14, 1e18, -1e18, math.inf, math.nan])
@pytest.mark.parametrize("gradient", [1.0, 1e36])
def test_gelu_of_wild_numbers_is_torchs(x: float, gradient: float) -> None:
    for kind in ("tanh", "erf"):
        given = [torch.tensor([x], requires_grad=True) for _ in range(2)]
        outputs = [gelu(given[0], kind), F.gelu(given[1], approximate=APPROXIMATE[kind])]
        ways = (torch.tensor([gradient]),)
        slopes = [torch.autograd.grad(output, leaf, ways)[0] for output, leaf in zip(outputs, given, strict=True)]
        for mine, theirs in (outputs, slopes):
            torch.testing.assert_close(mine, theirs, equal_nan=True)


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


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize(("channels", "stride"), [(5, 1), (3, 1), (5, 2)])
def test_kernels_of_one_place_are_a_product_for_many_channels(
    channels: int, stride: int, onednn: bool, layout: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of maps whose channels lie beside each other, where products go to MKL."""
    monkeypatch.setattr(convolution, "_WIDE", 5)
    monkeypatch.setattr(linear, "ONEDNN", onednn)
    taken: list[int] = []
    product = linear.linear
    monkeypatch.setattr(convolution.linear, "linear", lambda *given: taken.append(1) or product(*given))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, channels, 3, 11, generator=generator).contiguous(memory_format=layout)
    weight = torch.randn(7, channels, 1, 1, generator=generator)
    assert_as_in_float64(lambda x, w: conv2d(x, w, stride, 0), lambda x, w: F.conv2d(x, w, None, stride), [x, weight])
    before = len(taken)
    assert conv2d(x, weight, stride, 0).is_contiguous(memory_format=layout)
    assert len(taken) - before == (channels == 5 and stride == 1 and not onednn and layout == torch.channels_last)


@pytest.mark.parametrize(("channels", "groups"), [(7, 7), (10, 5), (21, 7), (3, 1), (8, 2)])
@pytest.mark.parametrize("many", [1024, 55])
def test_group_norm_has_torchs_values_and_derivatives(
    channels: int, groups: int, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of four are left to torch, and the values of maps of many places."""
    monkeypatch.setattr(norm, "_MANY", many)
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
    assert bool(taken) is (channels < 4 * groups)
    assert mine(x, weight, bias).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("learning", list(itertools.product([True, False], repeat=3))[:-1])
def test_what_is_frozen_gets_no_gradient_and_the_others_theirs(learning: tuple[bool, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 7, 2, 3, generator=generator).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(2, 7, generator=generator)
    kernels = torch.randn(7, 1, 5, 5, generator=generator)
    for mine, true, given in (
        (
            lambda x, w, b: group_norm(x, 7, w, b, 1e-5),
            lambda x, w, b: F.group_norm(x, 7, w, b, 1e-5),
            [x, weight, bias],
        ),
        (lambda x, w: conv2d(x, w, 2, 2, 7), lambda x, w: F.conv2d(x, w, None, 2, 2, 1, 7), [x, kernels]),
    ):
        results = []
        for function in (mine, true):
            leaves = [each.clone().requires_grad_(learns) for each, learns in zip(given, learning, strict=False)]
            if any(learns for learns, _ in zip(learning, given, strict=False)):
                function(*leaves).relu_().square().sum().backward()
            results.append([leaf.grad for leaf in leaves])
        for one, other in zip(*results, strict=True):
            assert (one is None) is (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_group_norm_in_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 10, 3, 5, generator=generator).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(2, 10, generator=generator)
    function = partial(group_norm, groups=5, eps=1e-5)
    whole = derivatives(lambda x, w, b: function(x, weight=w, bias=b), [x, weight, bias], x)
    monkeypatch.setattr(norm, "_BLOCK", 2 * 150 + 7)
    parts = derivatives(lambda x, w, b: function(x, weight=w, bias=b), [x, weight, bias], x)
    for one, other in zip(parts, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # by torch's own forward derivatives
@pytest.mark.parametrize(("name", "side"), [("ViT-At/8", 16), ("BiT-R14x0.25", 32), ("EfficientNet-Na", 32)])
def test_transforms_of_torch_see_torchs_own(name: str, side: int) -> None:
    """`torch.func`, forward derivatives, and many gradients at once."""
    model = create_model(name, num_classes=3, image_size=side).eval()
    assert isinstance(model.head, nn.Linear)
    nn.init.normal_(model.head.weight)
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0), requires_grad=True)
    [plain] = torch.autograd.grad(model(images).square().sum(), images)
    found = torch.func.grad(lambda images: model(images).square().sum())(images.detach())
    scale = float(plain.abs().max())
    torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-4 * scale)
    ways = torch.eye(3)[:, None].expand(3, 2, 3)
    [many] = torch.autograd.grad(model(images), images, ways, is_grads_batched=True)
    [one] = torch.autograd.grad(model(images), images, ways[1])
    torch.testing.assert_close(many[1], one, rtol=1e-3, atol=1e-4 * float(one.abs().max()))
    if name.startswith("ViT"):
        return  # torch's fused attention carries no derivative forward
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(images.detach(), plain)
        _, slope = torch.autograd.forward_ad.unpack_dual(model(dual).square().sum())
    torch.testing.assert_close(slope, plain.square().sum(), rtol=1e-3, atol=0)


def test_a_depthwise_layer_is_torchs_where_it_is_traced_or_has_a_bias() -> None:
    layer = convolution.DepthwiseConv(5, 3, 2)
    traced = torch.fx.symbolic_trace(nn.Sequential(layer))
    images = torch.randn(2, 5, 2, 2)
    torch.testing.assert_close(traced(images), layer(images))
    fused = fuse_conv_bn_eval(layer.eval(), nn.BatchNorm2d(5).eval())
    torch.testing.assert_close(fused(images), layer(images), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer(images[0]), layer(images)[0])


def test_group_norm_of_numbers_far_from_zero_is_that_of_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    x = (1000 + torch.randn(3, 21, 5, 11, generator=generator)).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(2, 21, generator=generator)
    way = torch.randn(x.shape, generator=generator)
    results = []
    for kind in (torch.float32, torch.float64):
        leaves = [each.to(kind).requires_grad_() for each in (x, weight, bias)]
        output = group_norm(leaves[0], 7, leaves[1], leaves[2], 1e-5)
        results.append([output, *torch.autograd.grad((output * way).sum(), leaves)])
    for one, other in zip(*results, strict=True):
        assert (one - other).abs().max() <= 1e-4 * other.abs().max()


@pytest.mark.parametrize("colour", [-1.0, 1234.567, 10000.3])
def test_group_norm_of_a_picture_of_one_colour_is_its_bias(colour: float) -> None:
    x = torch.full((2, 6, 5, 3), colour).contiguous(memory_format=torch.channels_last)
    bias = torch.arange(6.0)
    found = group_norm(x, 3, torch.ones(6), bias, 1e-5)
    torch.testing.assert_close(found, bias[:, None, None].expand_as(x), rtol=0, atol=0.02)


def test_a_narrow_bit_norms_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model = create_model("BiT-R14x0.25", num_classes=3, image_size=32).train()
    taken: list[int] = []
    backward = norm._backward
    monkeypatch.setattr(norm, "_backward", lambda *given: taken.append(1) or backward(*given))
    model.features(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert len(taken) == 8


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
