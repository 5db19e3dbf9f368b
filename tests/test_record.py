"""The CNN of a speed record, with which `bench.record` asks what the compression of the pictures takes."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bench import record
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    drawn = np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32), np.uint8)
    return record.normalised(torch.from_numpy(drawn))


def test_the_net_is_the_published_one() -> None:
    """Widths 64, 256 and 256 at 31, 15 and 7 pixels; 0.35 PFLOP are 476 steps of 1,024 pictures, three passes each."""
    net = record.Net(pictures(7)).eval()
    with FlopCounterMode(display=False) as counter:
        logits = net(pictures(3))
    assert logits.shape == (3, 10)
    convolutions = ((12, 24, 31), (9 * 24, 64, 31), (9 * 64, 64, 15), (9 * 64, 256, 15), (9 * 256, 256, 7))
    convolutions = (*convolutions, (9 * 256, 256, 7), (9 * 256, 256, 3))
    a_picture = 2 * (sum(inside * outside * side**2 for inside, outside, side in convolutions) + 2560)
    assert counter.get_total_flops() == 3 * a_picture
    assert 3 * a_picture * 476 * 1024 / 1e15 == pytest.approx(0.3455, abs=1e-4)
    learned = 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256) + 2560 + 24 + 2 * (64 + 256 + 256)
    assert sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad) == learned


def test_patches_are_white_behind_the_first_layer() -> None:
    images = pictures(53)
    whitened = record.Net(images).whitening(images).detach()[:, :12].permute(1, 0, 2, 3).flatten(1)
    np.testing.assert_allclose((whitened @ whitened.T / whitened.shape[1]).numpy(), np.eye(12), atol=2e-3)


@torch.no_grad()
def test_the_net_by_hand() -> None:
    """Convolutions that begin by passing their input on, norms without a scale, and a ninth of what the last layer says."""
    torch.manual_seed(0)
    net, x = record.Net(pictures(7)), pictures(5, seed=1)
    groups: list[Any] = list(net.groups)
    for group in groups:
        for layer in (group.conv1, group.conv2):
            passed = F.conv2d(torch.eye(layer.in_channels)[:, :, None, None], layer.weight[:, :, 1:2, 1:2])
            assert torch.equal(passed[:, : layer.in_channels, 0, 0], torch.eye(layer.in_channels))
        for norm in (group.norm1, group.norm2):
            nn.init.normal_(norm.bias)
    mean, h = torch.empty(0), F.gelu(F.conv2d(x, net.whitening.weight, net.whitening.bias))
    for group in groups:
        for pooled, layer, norm in ((True, group.conv1, group.norm1), (False, group.conv2, group.norm2)):
            h = F.conv2d(h, layer.weight, padding=1)
            h = h.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5)) if pooled else h
            mean = h.mean((0, 2, 3))
            h = (h - mean[:, None, None]) / h.var((0, 2, 3), correction=0)[:, None, None].sqrt()
            h = F.gelu(h + norm.bias[:, None, None])
    torch.testing.assert_close(net(x), h.amax((2, 3)) @ net.head.weight.T / 9, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(groups[2].norm2.running_mean, 0.4 * mean, rtol=1e-3, atol=1e-5)


def test_slow_weights_keep_a_share_and_the_fast_ones_begin_from_there() -> None:
    net = nn.Linear(2, 1)
    nn.init.constant_(net.weight, 4.0)
    slow = {"weight": torch.full((1, 2), 8.0)}
    record.look_ahead(net, slow, 0.75)  # pyright: ignore[reportArgumentType]
    assert net.weight.tolist() == slow["weight"].tolist() == [[7.0, 7.0]]


class Watching(nn.Module):
    """What `fit` needs of a net, and the pictures that it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.whitening, self.norm, self.head = nn.Conv2d(3, 24, 2), record.Norm(24), nn.Linear(24, 10, bias=False)
        self.shown: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.shown.append(x.clone())
        return self.head(self.norm(self.whitening(x)).mean((2, 3)))


def test_pictures_are_moved_and_are_their_own_mirror_images_every_other_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them in each epoch, in another order; by two pixels at most, what is beyond the edge mirrored."""
    monkeypatch.setattr(record, "BATCH", 4)
    torch.manual_seed(0)
    images, net = pictures(4)[:, :, :11, :11].contiguous(), Watching()
    record.fit(net, images, torch.arange(4), 40)  # pyright: ignore[reportArgumentType]
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), "reflect")
    places = {
        padded[number, :, top : top + 11, left : left + 11][:, :, :: 1 - 2 * turned].tobytes(): (
            number,
            top,
            left,
            turned,
        )
        for number in range(4)
        for top in range(5)
        for left in range(5)
        for turned in (0, 1)
    }
    assert len(places) == 200
    epochs = [[places[picture.contiguous().numpy().tobytes()] for picture in shown] for shown in net.shown]
    assert len(epochs) == 40
    assert all(sorted(number for number, *_ in epoch) == [0, 1, 2, 3] for epoch in epochs)
    assert len({tuple(number for number, *_ in epoch) for epoch in epochs}) > 10
    turns = [[turned for *_, turned in sorted(epoch)] for epoch in epochs]
    assert turns[::2] == [turns[0]] * 20
    assert turns[1::2] == [[1 - turned for turned in turns[0]]] * 20
    for axis in (1, 2):
        assert {place[axis] for epoch in epochs for place in epoch} == {0, 1, 2, 3, 4}


def test_the_rates_and_the_loss_are_the_published_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate of 11.5 and a decay of 0.0153 for 1,024 pictures, 64 times that rate for the biases of norms."""
    monkeypatch.setattr(record, "BATCH", 4)
    told: list[dict[str, Any]] = []
    groups: list[dict[str, Any]] = []
    loss = F.cross_entropy
    monkeypatch.setattr(record.F, "cross_entropy", lambda *of, **how: (told.append(how), loss(*of, **how))[1])
    schedule = torch.optim.lr_scheduler.LambdaLR
    factors: list[float] = []

    def scheduled(optimizer: torch.optim.SGD, factor: Any) -> Any:
        groups.extend({**group} for group in optimizer.param_groups)
        factors.extend(factor(step) for step in (0, 23, 100))
        return schedule(optimizer, factor)

    monkeypatch.setattr(torch.optim.lr_scheduler, "LambdaLR", scheduled)
    net, images = Watching(), pictures(4)[:, :, :8, :8].contiguous()
    assert record.fit(net, images, torch.arange(4), 99.5) == 100  # pyright: ignore[reportArgumentType]
    assert factors == pytest.approx([0.2, 1.0, 0.07])
    assert told[0] == {"label_smoothing": 0.2, "reduction": "sum"}
    kilo = 1024 * (1 + 1 / 0.15)
    rate, decay = 11.5 / kilo, 0.0153 * 4 / kilo
    of_norms, others = groups
    assert [each is net.norm.bias for each in of_norms["params"]] == [True]
    assert (of_norms["lr"], of_norms["lr"] * of_norms["weight_decay"]) == pytest.approx((64 * rate, decay))
    assert (others["lr"], others["lr"] * others["weight_decay"]) == pytest.approx((rate, decay))
    assert {(group["momentum"], group["nesterov"]) for group in groups} == {(0.85, True)}


def test_training_moves_what_learns_and_ends_with_the_slow_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "BATCH", 4)
    asked: list[tuple[int, float]] = []
    plain, steps = record.look_ahead, []

    def looked(net: record.Net, slow: dict[str, torch.Tensor], keep: float) -> None:
        asked.append((len(steps), keep))
        plain(net, slow, keep)

    def stepped(self: torch.optim.SGD, *_: Any) -> None:
        steps.append([group["lr"] for group in self.param_groups])
        whitening.append(next(iter(self.param_groups[1]["params"])).requires_grad)
        plain_step(self)

    plain_step, whitening = torch.optim.SGD.step, []
    monkeypatch.setattr(torch.optim.SGD, "step", stepped)
    monkeypatch.setattr(record, "look_ahead", looked)
    torch.manual_seed(0)
    net = record.Net(pictures(11))
    before = {name: value.clone() for name, value in net.named_parameters()}
    assert record.fit(net, pictures(11), torch.arange(11) % 10, 4.5) == 9
    assert asked == [(5, pytest.approx(0.95**5 * (5 / 9) ** 3)), (9, 1.0)]
    assert whitening == [True] * 6 + [False] * 3
    rates = np.array(steps)
    np.testing.assert_allclose(rates[:, 0], 64 * rates[:, 1])
    first = 11.5 / (1024 * (1 + 1 / 0.15))
    np.testing.assert_allclose(rates[:3, 1], first * np.array([0.2, 0.2 + 0.8 / 9 / 0.23, 0.2 + 0.8 * 2 / 9 / 0.23]))
    still = {"whitening.weight", *(name for name in before if ".norm" in name and name.endswith("weight"))}
    for name, value in net.named_parameters():
        assert torch.equal(value, before[name]) == (name in still), name


def test_a_picture_is_judged_with_its_mirror_image_and_moved() -> None:
    """A net that looks at one pixel; what lies one to the upper left and lower right of it is seen by moved pictures alone."""

    class Left(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([x[:, 0, 5, 1], -x[:, 0, 5, 1] + 0.5], dim=1)

    images = torch.zeros(5, 3, 32, 32)
    images[:2, 0, 5, 1] = 1.0
    images[3, 0, 4, 0] = images[4, 0, 6, 2] = 4.0
    found = record.accuracies(Left(), images, torch.tensor([0, 0, 1, 1, 1]))  # pyright: ignore[reportArgumentType]
    assert found == {"alone": 1.0, "with mirror images": 1.0, "with moved ones, too": 0.6}
