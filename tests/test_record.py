"""The CNN of a speed record, with which `bench.record` asks what the compression of the pictures takes."""

from typing import Any

import numpy as np
import pytest
import torch
from bench import record
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
