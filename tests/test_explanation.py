"""Attention, rollout, Grad-CAM and their figures: by hand, in plain NumPy, and by other ways to the same numbers."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from patchword.core.errors import UsageError
from patchword.explanation import attention as attending
from patchword.explanation import gradcam as cams
from patchword.explanation.attention import (
    Attended,
    asker,
    attend,
    attention,
    attention_distance,
    attention_entropy,
    class_rollout,
    head_figures,
    patch_distances,
    rollout,
)
from patchword.explanation.gradcam import gradcam
from patchword.explanation.maps import Choice, Kind, choose, enlarge, kinds, named, unit
from patchword.models.contract import Model
from patchword.models.hybrid import StemmedViT
from patchword.models.vit import ViT
from test_families import SMALL, images, small

ATTENTIVE = ("vit", "hybrid", "early-conv")


def model_of(family: str = "vit", **options: Any) -> ViT:
    """Three layers, no parameter at zero, 5 classes; images of 44×28."""
    from patchword.models.names import create_model

    name, fields = SMALL[family]
    torch.manual_seed(0)
    model = create_model(name, 5, (44, 28), **{**fields, "depth": 3, **options})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.2)
    assert isinstance(model, ViT)
    return model.eval()


def test_rollout_of_two_layers_by_hand() -> None:
    """A class token and two patches; ½ A + ½ 1 in both layers."""
    first = torch.tensor([[[0.2, 0.5, 0.3], [0.1, 0.6, 0.3], [0.4, 0.4, 0.2]]])
    second = torch.tensor([[[0.6, 0.2, 0.2], [0.3, 0.3, 0.4], [0.5, 0.1, 0.4]]])
    token = torch.tensor([[1.0, 0.0, 0.0]])
    seen = Attended(1, (1, 2), torch.zeros(1), [first, second], token, None)
    # 0.8 (0.6, 0.25, 0.15) + 0.1 (0.05, 0.8, 0.15) + 0.1 (0.2, 0.2, 0.6), without what the class token keeps
    torch.testing.assert_close(seen.rollout(), torch.tensor([[[0.30, 0.195]]]))
    torch.testing.assert_close(seen.rollouts(), torch.tensor([[[[0.25, 0.15]], [[0.30, 0.195]]]]))
    # The second patch: 0.25 (0.6, 0.25, 0.15) + 0.05 (0.05, 0.8, 0.15) + 0.7 (0.2, 0.2, 0.6)
    torch.testing.assert_close(seen.rollout((0, 1)), torch.tensor([[[0.2425, 0.465]]]))
    mean = Attended(1, (1, 2), torch.zeros(1), [first, second], torch.tensor([[0.0, 0.5, 0.5]]), None)
    # The first patch: 0.15 (0.6, …) + 0.65 (0.05, …) + 0.2 (0.2, …) = (…, 0.5975, 0.24)
    torch.testing.assert_close(mean.rollout(), torch.tensor([[[(0.5975 + 0.2425) / 2, (0.24 + 0.465) / 2]]]))


def numpy_attention(model: ViT, image: np.ndarray) -> list[np.ndarray]:
    """The attention weights H×M×M of each layer for one image C×H×W, from the parameters alone."""
    weights = {name: value.detach().double().numpy() for name, value in model.state_dict().items()}
    side, heads = model.config.patch_size, model.config.num_heads
    (h, w), c = model.grid, image.shape[0]
    patches = image.reshape(c, h, side, w, side).transpose(1, 3, 0, 2, 4).reshape(h * w, -1)
    words = patches @ weights["patch_embed.weight"].T + weights["patch_embed.bias"]
    table = weights["position.table"]
    before = [weights["class_token"] + table[0], *weights.get("registers", [])]
    x = np.concatenate([np.stack(before), words + table[1:]])

    def norm(rows: np.ndarray, name: str) -> np.ndarray:
        centred = rows - rows.mean(1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(1, keepdims=True) + model.config.norm_eps)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(rows: np.ndarray, name: str) -> np.ndarray:
        return rows @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    found = []
    for block in (f"blocks.{i}" for i in range(model.config.depth)):
        q, k, v = (
            linear(norm(x, f"{block}.norm1"), f"{block}.attention.qkv")
            .reshape(len(x), 3, heads, -1)
            .transpose(1, 2, 0, 3)
        )
        logits = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1])
        each = np.exp(logits - logits.max(-1, keepdims=True))
        each /= each.sum(-1, keepdims=True)
        found.append(each)
        x = x + linear((each @ v).transpose(1, 0, 2).reshape(len(x), -1), f"{block}.attention.proj")
        inner = linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")
        inner = 0.5 * inner * (1 + np.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
        x = x + linear(inner, f"{block}.mlp.fc2")
    return found


@pytest.mark.parametrize("registers", [0, 2])
def test_rollout_and_attention_equal_those_of_plain_numpy(registers: int) -> None:
    model = model_of(registers=registers)
    batch = images(model, 2)
    theirs = [numpy_attention(model, image.double().numpy()) for image in batch]
    expected = []
    for layers in theirs:
        product = np.eye(layers[0].shape[-1])
        for each in layers:
            product = (0.5 * each.mean(0) + 0.5 * np.eye(len(product))) @ product
        expected.append(product[0, 1 + registers :].reshape(model.grid))
    np.testing.assert_allclose(rollout(model, batch).numpy(), np.stack(expected), atol=1e-5)
    ours = attention(model, batch, 1, head=2, query=(4, 3))
    asking = 1 + registers + 4 * 7 + 3
    row = np.stack([layers[1][2, asking, 1 + registers :].reshape(11, 7) for layers in theirs])
    np.testing.assert_allclose(ours.numpy(), row, atol=1e-5)


@pytest.mark.parametrize("family", ATTENTIVE)
@pytest.mark.parametrize("pool", ["token", "gap", "gap-norm", "map"])
@pytest.mark.parametrize("position", ["1d", "relative"])
def test_the_explicit_path_equals_the_fused_one(family: str, pool: str, position: str) -> None:
    """Whose output it is that the attention is shown of; in inference mode, where products are fused, as well."""
    model = model_of(family, pool=pool, position=position)
    batch = images(model, 2)
    with torch.inference_mode():
        fused = model.features(batch)
        explicit = dict(model.walk(batch, attention=True))["pre_logits"]
    scale = fused.abs().max()
    assert (fused - explicit).abs().max() < 1e-5 * scale
    with torch.no_grad():
        explicit = dict(model.walk(batch, attention=True))["pre_logits"]
    assert (fused - explicit).abs().max() < 1e-5 * scale


@pytest.mark.parametrize("pool", ["token", "gap", "map"])
def test_rollout_multiplies_what_the_model_walks_through(pool: str) -> None:
    """Whole matrices in float64; registers are tokens like others, and the query is what the head reads."""
    model = model_of(pool=pool, registers=2, position="relative")
    batch = images(model, 2)
    steps = {name: value.double().detach().numpy() for name, value in model.walk(batch, attention=True)}
    product = np.eye(model.prefix + 77)[None].repeat(2, 0)
    for i in range(3):
        product = (0.5 * steps[f"block_{i:02d}/attention"].mean(1) + 0.5 * np.eye(product.shape[1])) @ product
    if pool == "token":
        rows = product[:, 0]
    elif pool == "gap":
        rows = product[:, 2:].mean(1)
    else:
        rows = np.einsum("bn,bnm->bm", steps["pool/attention"].mean(1)[:, 0], product[:, 2:])
    expected = rows[:, model.prefix :].reshape(2, 11, 7)
    np.testing.assert_allclose(rollout(model, batch).numpy(), expected, atol=1e-6)
    seen = attend(model, batch)
    np.testing.assert_allclose(seen.rollouts()[:, -1].numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(
        rollout(model, batch, (10, 6)).numpy(), product[:, -1, model.prefix :].reshape(2, 11, 7), atol=1e-6
    )
    between = list(seen.between_patches())[1]
    np.testing.assert_allclose(
        between.numpy(), steps["block_01/attention"].mean(1)[:, model.prefix :, model.prefix :], atol=1e-6
    )


def test_of_a_layer_the_class_token_asks_else_the_mean_patch() -> None:
    for pool, words in (("token", "the class token"), ("gap", "the mean over all patches"), ("map", "the probe")):
        model = model_of(pool=pool)
        batch = images(model, 2)
        steps = dict(model.walk(batch, attention=True))
        weights = steps["block_02/attention"].detach()
        rows = weights[:, :, 0] if pool == "token" else weights.mean(2)
        rows = rows[:, :, model.prefix :].unflatten(2, (11, 7))
        torch.testing.assert_close(attention(model, batch, 2), rows.mean(1))
        torch.testing.assert_close(attention(model, batch, 2, head=1), rows[:, 1])
        torch.testing.assert_close(attend(model, batch).heads[:, 2].clone(), rows)
        assert asker(model) == words
        if pool == "map":
            probe = steps["pool/attention"].detach()[:, :, 0].unflatten(2, (11, 7))
            torch.testing.assert_close(attention(model, batch, "pool"), probe.mean(1))
            torch.testing.assert_close(attention(model, batch, "pool", head=2), probe[:, 2])
            assert torch.allclose(probe.sum((2, 3)), torch.ones(()))


def whole_graph(model: ViT, batch: Tensor, classes: Tensor) -> Tensor:
    """R for each class by the definition: every layer's weights in one graph, whole matrices."""
    kept = []
    tokens = model.embed(batch)
    for block in model.blocks:
        tokens, weights = block.explicit(tokens)
        kept.append(weights)
    encoded = model.final_norm(tokens)
    if model.attention_pool is None:
        pooled, probe = model.pool(encoded), None
    else:
        pooled, probe = model.attention_pool.explicit(encoded[:, model.prefix :])
        pooled = model.hidden(pooled)
    logits = model.head(pooled)
    found = []
    for k in range(classes.shape[1]):
        score = logits[torch.arange(len(batch)), classes[:, k]].sum()
        gradients = torch.autograd.grad(score, [*kept, *([] if probe is None else [probe])], retain_graph=True)
        relevance = torch.eye(tokens.shape[1]).expand(len(batch), -1, -1)
        for weights, gradient in zip(kept, gradients, strict=False):
            relevance = relevance + (weights * gradient).clamp_min(0).mean(1) @ relevance
        if probe is not None:
            rows = (probe * gradients[-1]).clamp_min(0).mean(1) @ relevance[:, model.prefix :]
        elif model.config.pool == "token":
            rows = relevance[:, :1]
        else:
            rows = relevance[:, model.prefix :].mean(1, keepdim=True)
        found.append(rows[:, 0, model.prefix :].unflatten(1, model.grid).detach())
    return torch.stack(found, dim=1)


@pytest.mark.parametrize("family", ATTENTIVE)
@pytest.mark.parametrize("pool", ["token", "gap", "gap-norm", "map"])
def test_class_rollout_equals_its_definition(family: str, pool: str) -> None:
    """Block by block with no gradient of a weight, against the whole graph at once."""
    model = model_of(family, pool=pool, registers=1, hidden_head=True)
    batch = images(model, 3)
    classes = torch.tensor([[0, 3], [4, 1], [2, 2]])
    expected = whole_graph(model, batch, classes)
    ours = class_rollout(model, batch, classes)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=float(1e-5 * expected.max()))
    assert not torch.allclose(ours[0, 0], ours[0, 1])
    torch.testing.assert_close(ours[2, 0], ours[2, 1])
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_what_does_not_learn_stays_so_and_a_model_in_training_goes_on() -> None:
    model = model_of().train()
    model.patch_embed.weight.requires_grad_(False)
    class_rollout(model, images(model, 1), torch.zeros(1, 1, dtype=torch.int64))
    rollout(model, images(model, 1))
    assert model.training
    assert not model.patch_embed.weight.requires_grad
    assert model.blocks[0].mlp.fc1.weight.requires_grad


def test_few_images_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what comes out can be learned from: it is no tensor of inference mode."""
    model = model_of()
    batch = images(model, 5)
    classes = torch.tensor([[0], [1], [2], [3], [4]])
    whole = rollout(model, batch), class_rollout(model, batch, classes), head_figures(model, batch)
    monkeypatch.setattr(attending, "_BYTES_AT_ONCE", 1)
    parts = rollout(model, batch), class_rollout(model, batch, classes), head_figures(model, batch)
    torch.testing.assert_close(parts[:2], whole[:2])
    np.testing.assert_allclose(parts[2].distance, whole[2].distance, rtol=1e-6)
    np.testing.assert_allclose(parts[2].entropy, whole[2].entropy, rtol=1e-6)
    assert not any(each.is_inference() for each in (*parts[:2], *whole[:2]))


class Held(TorchDispatchMode):
    """The most bytes that lived at one time in tensors …×M×M: each storage once, for as long as anything keeps it."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens, self.most = tokens, 0
        self.living: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.living = {key: each for key, each in self.living.items() if not each[0].expired()}
        for each in out if isinstance(out, tuple | list) else [out]:
            if isinstance(each, Tensor) and each.shape[-2:] == (self.tokens, self.tokens):
                storage = each.untyped_storage()
                self.living[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.most = max(self.most, sum(count for _, count in self.living.values()))
        return out


@pytest.mark.parametrize(("depth", "heads"), [(2, 12), (7, 1)])
def test_what_is_held_of_attention_is_bounded(depth: int, heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what lives while it is made; the bound is made use of, and one image is looked at whatever it takes."""
    model = model_of(depth=depth, num_heads=heads, registers=11).with_image_size((20, 28))
    batch, classes = images(model, 13), torch.zeros(13, 1, dtype=torch.int64)

    def held(look: Callable[[ViT, Tensor], object], pictures: Tensor, bound: int) -> int:
        monkeypatch.setattr(attending, "_BYTES_AT_ONCE", bound)
        with Held(1 + 11 + 5 * 7) as found:
            look(model, pictures)
        return found.most

    assert 350_000 < held(rollout, batch, 700_000) <= 700_000
    assert 0 < held(head_figures, batch, 700_000) <= 700_000
    assert 0 < held(lambda model, those: class_rollout(model, those, classes), batch, 700_000) <= 700_000
    for head in (None, 0):
        assert 0 < held(lambda model, those, head=head: attention(model, those, 0, head), batch, 700_000) <= 700_000
    assert held(rollout, batch, 1) == held(rollout, batch[:1], 700_000) >= 4 * heads * 47**2


def test_attention_distance_by_hand() -> None:
    model = model_of()
    between = patch_distances(model)
    assert between.shape == (77, 77)
    assert between[0, 76] == pytest.approx(math.hypot(10 * 4, 6 * 4))  # from corner to corner, patches of 4 px
    assert between[1, 8] == 4  # one row down
    own = torch.eye(78)[None]
    assert attention_distance(own, between).item() == 0
    even = torch.full((1, 78, 78), 1 / 78)
    assert attention_distance(even, between).item() == pytest.approx(between.mean().item(), rel=1e-6)
    # Each patch pays a third to the class token, and of the rest a quarter to itself and three quarters 8 px to the right.
    rightwards = torch.zeros(1, 78, 78)
    for row in range(11):
        for column in range(5):
            place = 1 + 7 * row + column
            rightwards[0, place, [0, place, place + 2]] = torch.tensor([1 / 3, 1 / 6, 1 / 2])
    among = torch.tensor([column < 5 for _ in range(11) for column in range(7)])
    expected = 0.75 * 8 * among.sum().item() / 77  # the others pay nothing to anybody, and count as 0
    assert attention_distance(rightwards, between).item() == pytest.approx(expected, rel=1e-6)


def test_attention_distance_does_not_ask_how_much_goes_to_other_tokens() -> None:
    """Three heads of two images, whose patches keep between 1 and 1/100,000 of their attention for patches: NumPy's averages."""
    between = patch_distances(model_of())
    draw = np.random.default_rng(7)
    among = draw.exponential(size=(2, 3, 77, 77)) * 10.0 ** -draw.uniform(0, 5, (2, 3, 77, 1)) / 77
    weights = np.concatenate([np.maximum(0, 1 - among.sum(-1, keepdims=True)), among], axis=-1)
    whole = np.concatenate([np.full((2, 3, 1, 78), 1 / 78), weights], axis=2)
    ways = [[np.average(between.numpy(), axis=1, weights=head) for head in image] for image in among]
    found = attention_distance(torch.from_numpy(whole), between)
    np.testing.assert_allclose(found.numpy(), np.mean(ways, axis=2), rtol=1e-6)


def test_attention_entropy_by_hand() -> None:
    assert attention_entropy(torch.eye(8)[None]).item() == 0
    assert attention_entropy(torch.full((1, 8, 8), 1 / 8)).item() == pytest.approx(3)
    halves = torch.zeros(1, 2, 4)
    halves[0, 0, :2], halves[0, 1, 3] = 0.5, 1
    assert attention_entropy(halves).item() == pytest.approx(0.5)


def test_figures_of_heads_are_means_over_images_and_queries() -> None:
    model = model_of(pool="map")
    batch = images(model, 3)
    found = head_figures(model, batch)
    assert found.distance.shape == found.entropy.shape == (3, 3)
    between = patch_distances(model).numpy()
    for layer in range(3):
        weights = model.intermediates(batch, [f"block_{layer:02d}/attention"])[f"block_{layer:02d}/attention"]
        weights = weights.detach().double().numpy()
        np.testing.assert_allclose(found.distance[layer], (weights * between).sum(-1).mean((0, 2)), rtol=1e-5)
        np.testing.assert_allclose(found.entropy[layer], -(weights * np.log2(weights)).sum(-1).mean((0, 2)), rtol=1e-5)


@pytest.mark.parametrize("family", ["bit", "efficientnet"])
def test_gradcam_of_an_average_and_a_linear_layer_is_in_closed_form(family: str) -> None:
    """∂ logit / ∂A is the class's weight over the number of places (Zhou et al. 2016, equation 2)."""
    model = small(family)
    batch = images(model)
    features = model.feature_map(batch).detach()
    classes = torch.tensor([4, 0, 2])
    assert isinstance(model.head, torch.nn.Linear)
    weight = model.head.weight.detach()[classes][:, :, None, None]
    places = features.shape[2] * features.shape[3]
    expected = (weight * features).sum(1).clamp_min(0) / places
    assert expected.any()
    torch.testing.assert_close(gradcam(model, batch, classes, "encoded"), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradcam(model, batch), gradcam(model, batch, model(batch).argmax(1)))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_gradcam_of_few_images_at_a_time_is_for_the_class_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small("bit")
    batch, classes = images(model, 5), torch.tensor([4, 0, 2, 1, 3])
    whole = gradcam(model, batch, classes)
    assert not torch.allclose(whole[2:4], gradcam(model, batch[2:4], classes[:2]))
    monkeypatch.setattr(cams, "comfortable_batch", lambda _: 2 * cams._SMALLER)
    torch.testing.assert_close(gradcam(model, batch, classes), whole)


def test_gradcam_takes_the_last_map_that_has_places_enough() -> None:
    """At 44×28 stage 2 has 6×4 places, too few; at 64×64 it has 8×8; at 16×16 the stem has the most, 4×4, as stage 1 has."""
    for size, layer, shape in (
        ((44, 28), "stage1/unit1", (11, 7)),
        ((64, 64), "encoded", (8, 8)),
        ((16, 16), "stage1/unit1", (4, 4)),
    ):
        model = small("bit", image_size=size)
        batch = images(model)
        found = gradcam(model, batch)
        assert found.shape[1:] == shape
        torch.testing.assert_close(found, gradcam(model, batch, layer=layer))


@pytest.mark.parametrize("family", ["hybrid", "early-conv"])
def test_gradcam_of_a_stem_goes_through_the_encoder(family: str) -> None:
    model = model_of(family)
    assert isinstance(model, StemmedViT)
    batch = images(model, 2)
    classes = torch.tensor([3, 1])
    stem = model.backbone(batch, model.run).detach().requires_grad_()
    logits = model.head(model.pool(model.encode(model.place(model.patch_embed(model.patchify(stem))))))
    (gradient,) = torch.autograd.grad(logits[[0, 1], classes].sum(), stem)
    expected = (gradient.mean((2, 3), keepdim=True) * stem.detach()).sum(1).clamp_min(0)
    assert expected.any()
    torch.testing.assert_close(gradcam(model, batch, classes), expected, rtol=1e-4, atol=float(1e-5 * expected.max()))


def test_every_family_has_its_maps() -> None:
    expected = {
        "vit": ("rollout", "class", "attention"),
        "hybrid": ("rollout", "class", "attention", "gradcam"),
        "early-conv": ("rollout", "class", "attention", "gradcam"),
        "bit": ("gradcam",),
        "efficientnet": ("gradcam",),
    }
    assert set(expected) == set(SMALL)
    for family, offered in expected.items():
        model = small(family)
        assert kinds(model) == offered
        assert choose(model).kind == offered[0]
        batch = images(model, 2)
        for kind in offered:
            found = choose(model, kind).of(model, batch)
            assert found.ndim == 3
            assert len(found) == 2
            assert found.min() >= 0
            assert found.shape[1] > found.shape[2]  # as the picture is: taller than wide
        model.replace_head(0)
        assert set(kinds(model)) == set(offered) & {"rollout", "attention"}


def test_maps_for_a_class_are_for_the_one_that_is_asked_for() -> None:
    model = model_of("hybrid")
    batch = images(model, 2)
    for kind in ("class", "gradcam"):
        by_itself = Choice(kind).of(model, batch)
        torch.testing.assert_close(Choice(kind).of(model, batch, named(model, batch)), by_itself)
        assert not torch.allclose(Choice(kind).of(model, batch, (named(model, batch) + 1) % 5), by_itself)


def test_maps_come_to_the_size_of_a_picture() -> None:
    maps = torch.tensor([[[0.0, 1.0], [2.0, 3.0]], [[5.0, 5.0], [5.0, 5.0]]])
    large = enlarge(maps, (6, 6))
    torch.testing.assert_close(large[0, [1, 1, 4, 4], [1, 4, 1, 4]], torch.tensor([0.0, 1.0, 2.0, 3.0]))
    torch.testing.assert_close(large[0, 1, 2], torch.tensor(1 / 3))
    torch.testing.assert_close(unit(maps), torch.tensor([[[0, 1 / 3], [2 / 3, 1]], [[0, 0], [0, 0]]]))


def wrong(sentence: str) -> Any:
    return pytest.raises(UsageError, match=sentence)


def test_what_there_is_not_is_one_sentence() -> None:
    vit, bit = model_of(), small("bit")
    batch, others = images(vit, 1), images(bit, 1)
    for call in (lambda: attention(bit, others, 0), lambda: rollout(bit, others), lambda: head_figures(bit, others)):
        with wrong("BiT-R14x0.5 has no attention to show; Grad-CAM shows where it looks"):
            call()
    with wrong("has no layer 3; its layers are 0 to 2$"):
        attention(vit, batch, 3)
    with wrong("has no layer -1; its layers are 0 to 2$"):
        attention(vit, batch, -1)
    with wrong("has no layer pool; its layers are 0 to 2$"):
        attention(vit, batch, "pool")
    with wrong("has no layer 7; its layers are 0 to 2 and pool$"):
        attention(model_of(pool="map"), batch, 7)
    with wrong("has no head 3; its heads are 0 to 2"):
        attention(vit, batch, 0, head=3)
    for pool, layers in (("token", "its only layer is 0$"), ("map", "its layers are 0 and pool$")):
        single = model_of(depth=1, num_heads=1, pool=pool)
        with wrong(layers):
            attention(single, batch, 1)
        with wrong("its only head is 0$"):
            attention(single, batch, 0, head=1)
    with wrong(r"has no patch \(11, 0\) \(row, column\); its grid is 11×7, from \(0, 0\)"):
        rollout(vit, batch, (11, 0))
    with wrong("the probe alone asks; no patch does"):
        attention(model_of(pool="map"), batch, "pool", query=(0, 0))
    with wrong("has no convolutions for Grad-CAM to look at; attention rollout"):
        gradcam(vit, batch)
    with wrong("has no feature map 'stage1/unit9'; did you mean 'stage1/unit1'"):
        gradcam(bit, others, layer="stage1/unit9")
    with wrong("takes images of B×3×44×28, not 1×3×28×44"):
        rollout(vit, batch.transpose(2, 3))
    with pytest.raises(ValueError, match="1 images and classes for 2"):
        class_rollout(vit, batch, torch.zeros(2, 1, dtype=torch.int64))


def test_a_choice_that_cannot_be_is_one_sentence() -> None:
    vit, bit, hybrid = model_of(), small("bit"), model_of("hybrid")
    assert choose(vit, layer=1) == Choice("attention", 1, None)
    assert choose(vit, head=2) == Choice("attention", 2, 2)
    assert choose(vit, head=2).words == "attention of layer 2, head 2"
    assert choose(model_of(pool="map"), layer="pool").words == "attention of the attention pooling"
    assert choose(vit, for_class=True) == choose(hybrid, for_class=True) == Choice("class")
    assert choose(bit, for_class=True) == Choice("gradcam")
    assert choose(vit, layer=1, for_class=True) == Choice("attention", 1)
    with wrong("a layer and a head are chosen for the map attention, not for rollout"):
        choose(vit, "rollout", layer=1)
    with wrong("there is no map 'rolout'; did you mean 'rollout'?"):
        choose(vit, "rolout")  # pyright: ignore[reportArgumentType] (as somebody might)
    asking: tuple[Kind, ...] = ("rollout", "class", "attention")
    for kind in asking:
        with wrong("has no attention to show; Grad-CAM"):
            choose(bit, kind)
    with wrong("has no convolutions for Grad-CAM to look at; rollout"):
        choose(vit, "gradcam")
    for model in (vit, bit, hybrid):
        model.replace_head(0)
    with wrong("has no head, so Grad-CAM has no class to look for"):
        choose(bit)
    headless: tuple[tuple[Model, Kind], ...] = ((vit, "class"), (hybrid, "gradcam"), (bit, "gradcam"))
    for model, kind in headless:
        with wrong("has no head, so nothing in it speaks for a class"):
            choose(model, kind)
    for call in (lambda: gradcam(bit, images(bit, 1)), lambda: class_rollout(vit, images(vit, 1), torch.zeros(1, 1))):
        with wrong("has no head, so"):
            call()
    with wrong("has no head, so it names no class"):
        named(vit, images(vit, 1))
