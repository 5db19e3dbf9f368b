"""`python -m bench.record`: what the CNN of a speed record comes to on the CIFAR-10 that is here, whose pictures are JPEGs.

airbench94 (arXiv 2404.00498) reaches 94.0 % on the lossless pictures with 0.36 PFLOP, and is what a small budget of FLOPs buys
there. Our own rendering of its published architecture and hyper-parameters, with nothing of this library's models or training in
it: EPOCHS=9.9, about an hour on one core. As far as it is right, what it lacks to 94.0 % is what the compression takes.
"""

import itertools
import math
import time
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench.wishes import answered, number
from patchword.core.progress import Progress
from patchword.data.sources import open_data
from patchword.data.store import Store

BATCH, LR, MOMENTUM, WEIGHT_DECAY, SMOOTHING = 1024, 11.5, 0.85, 0.0153, 0.2
"""The rate and the decay are those of 1,024 pictures, divided by what momentum multiplies them by."""
NORM_RATE = 64.0
"""How many times as fast the biases of norms learn."""
WHITENING_EPOCHS = 3
"""For so long the whitening's bias learns."""
SHIFT, EVERY = 2, 5
"""Pixels that pictures are moved by at most; steps between two looks ahead."""
TRIANGLE = ((0.0, 0.23, 1.0), (0.2, 1.0, 0.07))
"""Shares of the steps, and of the rate."""
MEAN, STD = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])


class Norm(nn.BatchNorm2d):
    """Batch norm whose scale stays 1."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-12, momentum=0.4)
        self.weight.requires_grad = False


class Conv(nn.Conv2d):
    """3×3, without a bias, that begins by passing its input on."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__(inside, outside, 3, padding="same", bias=False)
        nn.init.dirac_(self.weight.data[:inside])


class Group(nn.Module):
    """Two convolutions; the first one's output is halved in height and width by its maxima."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = Conv(inside, outside), Conv(outside, outside)
        self.norm1, self.norm2 = Norm(outside), Norm(outside)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))


class Net(nn.Module):
    """2×2 patches whitened, three groups, the maximum of what is left, a linear layer. `pictures`: to whiten, N×3×H×W."""

    def __init__(self, pictures: Tensor) -> None:
        super().__init__()
        self.whitening = nn.Conv2d(3, 24, 2)
        self.groups = nn.Sequential(Group(24, 64), Group(64, 256), Group(256, 256))
        self.head = nn.Linear(256, 10, bias=False)
        patches = pictures.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12)
        values, vectors = torch.linalg.eigh((patches.T @ patches / len(patches)).double())
        kernels = (vectors.T.flip(0) / (values.flip(0) + 5e-4).sqrt()[:, None]).float().reshape(12, 3, 2, 2)
        self.whitening.weight.data = torch.cat([kernels, -kernels])
        self.whitening.weight.requires_grad = False
        nn.init.zeros_(self.whitening.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.max_pool2d(self.groups(F.gelu(self.whitening(x))), 3).flatten(1)) / 9


def main() -> None:
    """Train, and print what it took and what it came to."""
    epochs = number("EPOCHS", 9.9)
    torch.manual_seed(0)
    dataset = open_data("cifar10")
    (train, train_labels), (test, test_labels) = (
        (
            normalised(torch.from_numpy(Store.fill(split, 3, 1).stacked()).permute(0, 3, 1, 2)),
            torch.from_numpy(np.array(split.labels)),
        )
        for split in (dataset.splits["train"], dataset.splits["test"])
    )
    net = Net(train[:5000]).to(memory_format=torch.channels_last)
    with FlopCounterMode(display=False) as counter:
        net.eval()(train[:1])
    began = time.perf_counter()
    steps = fit(net, train, train_labels, epochs)
    seconds = time.perf_counter() - began
    flops = 3 * counter.get_total_flops() * steps * BATCH
    shares = accuracies(net, test, test_labels)
    print(f"{steps} steps of {BATCH}, {flops / 1e15:.3f} PFLOP, {seconds:,.0f} s on {torch.get_num_threads()} threads")
    print(", ".join(f"{100 * share:.2f} % {how}" for how, share in shares.items()))


def normalised(pictures: Tensor) -> Tensor:
    """uint8 N×3×H×W → float32, the channels last in memory."""
    scaled = (pictures.float() / 255 - MEAN[:, None, None]) / STD[:, None, None]
    return scaled.contiguous(memory_format=torch.channels_last)


def fit(net: Net, images: Tensor, labels: Tensor, epochs: float) -> int:
    """Train in place; the number of steps."""
    kilo = 1024 * (1 + 1 / (1 - MOMENTUM))
    lr, decay = LR / kilo, WEIGHT_DECAY * BATCH / kilo
    biases = [each.bias for each in net.modules() if isinstance(each, Norm)]
    others = [net.whitening.bias, *(each.weight for each in net.modules() if isinstance(each, Conv)), net.head.weight]
    groups = [
        {"params": biases, "lr": lr * NORM_RATE, "weight_decay": decay / (lr * NORM_RATE)},
        {"params": others, "lr": lr, "weight_decay": decay / lr},
    ]
    optimizer = torch.optim.SGD(groups, momentum=MOMENTUM, nesterov=True)
    total = math.ceil(len(images) // BATCH * epochs)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(np.interp(step / total, *TRIANGLE)))
    slow = {name: value.clone() for name, value in net.state_dict().items() if value.is_floating_point()}
    mirrored = torch.rand(len(images)) < 0.5
    padded = F.pad(images, (SHIFT,) * 4, "reflect")
    side = images.shape[-1]
    net.train()
    with Progress("training", total) as progress:
        for step, (epoch, ids) in zip(range(total), _batches(len(images)), strict=False):
            net.whitening.bias.requires_grad = epoch < WHITENING_EPOCHS  # pyright: ignore[reportOptionalMemberAccess]
            across, down = torch.randint(0, 2 * SHIFT + 1, (2, len(ids)))
            x = torch.stack(
                [
                    padded[each, :, top : top + side, left : left + side]
                    for each, top, left in zip(ids.tolist(), down.tolist(), across.tolist(), strict=True)
                ]
            )
            turn = mirrored[ids] ^ bool(epoch % 2)  # each picture is seen as its own mirror image every other epoch
            x = torch.where(turn[:, None, None, None], x.flip(-1), x).contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(net(x), labels[ids], label_smoothing=SMOOTHING, reduction="sum")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if (step + 1) % EVERY == 0:
                look_ahead(net, slow, 0.95**EVERY * ((step + 1) / total) ** 3)
            progress.update(step + 1, f"loss {loss.item() / len(ids):.4f}")
    look_ahead(net, slow, 1.0)
    return total


def _batches(count: int) -> Iterator[tuple[int, Tensor]]:
    """Epochs, and the pictures of whole batches in a new order in each."""
    for epoch in itertools.count():
        for ids in torch.randperm(count)[: count // BATCH * BATCH].split(BATCH):
            yield epoch, ids


def look_ahead(net: Net, slow: dict[str, Tensor], keep: float) -> None:
    """Let slow weights go towards the fast ones but for the share that they keep, and these begin from there."""
    for name, value in net.state_dict().items():
        if name in slow:
            slow[name].lerp_(value, 1 - keep)
            value.copy_(slow[name])


@torch.no_grad()
def accuracies(net: Net, images: Tensor, labels: Tensor) -> dict[str, float]:
    """On test: of the pictures, with their mirror images, and with these moved by a pixel, too, as the record has it."""
    net.eval()
    right = {"alone": 0, "with mirror images": 0, "with moved ones, too": 0}

    def both(x: Tensor) -> Tensor:
        return net(x) / 2 + net(x.flip(-1)) / 2

    for first in range(0, len(images), 500):
        x, y = images[first : first + 500], labels[first : first + 500]
        padded, side = F.pad(x, (1,) * 4, "reflect"), x.shape[-1]
        moved = (both(padded[:, :, at : at + side, at : at + side]) for at in (0, 2))
        mirror = both(x)
        for how, logits in zip(right, (net(x), mirror, mirror / 2 + sum(moved) / 4), strict=True):
            right[how] += int((logits.argmax(1) == y).sum())
    return {how: count / len(images) for how, count in right.items()}


if __name__ == "__main__":
    answered(main)
