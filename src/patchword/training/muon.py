"""Muon: momentum whose matrices are made orthogonal, and AdamW for all that is no matrix, and for the last layer.

"Muon: An optimizer for hidden layers in neural networks" (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon), which
leaves the first layer to AdamW, too; here the projection of patches and a stem's first learned kernel are Muon's.
torch's own does the orthogonalisation in bfloat16, which most CPUs emulate, takes no kernels, and takes queries, keys and
values, which lie in one weight, for one matrix.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from patchword.models.linear import linear
from patchword.training.sharded import as_sharded, full

_STEPS = 5
_POLYNOMIAL = (3.4445, -4.7750, 2.0315)
"""Jordan's coefficients: after five steps every singular value lies in about 0.7…1.2."""
_SMALL = 2**15
"""Elements of a matrix that is made orthogonal together with others of its shape: its products are too short for the cores
alone, and take a tenth of a step of a ViT of width 64."""

_Moving = tuple[Tensor, int, dict[str, Any]]
"""A parameter, the number of matrices in it, and its group."""


class Muon(torch.optim.Optimizer):
    """Groups that have `stacked`, the number of matrices in each parameter, are Muon's; AdamW has the others.

    Those that are `normed` keep their length: each of the O rows of a kernel has 1 in the quadratic mean, before each step.
    """

    def __init__(self, groups: list[dict[str, Any]], *, betas: tuple[float, float], momentum: float) -> None:
        """The groups come with their `peak_lr` and `weight_decay`; nothing moves before they are given their `lr`."""
        super().__init__(groups, {"lr": 0.0, "momentum": momentum, "weight_decay": 0.0})
        self.matrices = [group for group in self.param_groups if "stacked" in group]
        others = [group for group in self.param_groups if "stacked" not in group]
        self.adamw = torch.optim.AdamW(others, lr=0.0, betas=betas, fused=True) if others else None
        if self.adamw is not None:
            self.adamw.state = self.state  # the groups are the same objects already

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """W ← (1 − η λ) W − η √max(1, O/I) · orthogonal(g + μ m), with m ← μ m + g, for each matrix O×I.

        Of a normed kernel, √O / ‖W‖ stands in the place of 1 − η λ.
        """
        small: list[_Moving] = []
        for group in self.matrices:
            for parameter, stacked in zip(group["params"], group["stacked"], strict=True):
                if parameter.grad is None:
                    continue
                if parameter.numel() // stacked > _SMALL:  # one after the other, so that no more is held than of one
                    self._move([(parameter, stacked, group)])
                else:
                    small.append((parameter, stacked, group))
        self._move(small)
        if self.adamw is not None:
            self.adamw.step()

    def _move(self, moving: Sequence[_Moving]) -> None:
        parts = [
            self._ahead(parameter, group["momentum"]).flatten(1).chunk(stacked) for parameter, stacked, group in moving
        ]
        updates = orthogonals([matrix for matrices in parts for matrix in matrices])
        for (parameter, stacked, group), (first, *_) in zip(moving, parts, strict=True):
            scale = max(1.0, first.shape[0] / first.shape[1]) ** 0.5
            _take(parameter, torch.cat([next(updates) for _ in range(stacked)]).mul_(scale), group)

    def _ahead(self, parameter: Tensor, momentum: float) -> Tensor:
        """The gradient and what is remembered of those before it (Nesterov's), in one piece."""
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        remembered = state["momentum_buffer"].mul_(momentum).add_(gradient)
        return full(gradient.add(remembered, alpha=momentum))


def _take(parameter: Tensor, update: Tensor, group: dict[str, Any]) -> None:
    if group["normed"]:
        parameter.mul_(len(parameter) ** 0.5 / (full(parameter).norm() + 1e-7))
    else:
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
    parameter.sub_(as_sharded(update.view(parameter.shape), parameter), alpha=group["lr"])


def orthogonals(matrices: Sequence[Tensor]) -> Iterator[Tensor]:
    """Each O×I → about U·Vᵀ of its singular value decomposition U·S·Vᵀ; small ones of one shape are computed together."""
    together: dict[tuple[int, ...], list[int]] = {}
    for number, matrix in enumerate(matrices):
        together.setdefault((number,) if matrix.numel() > _SMALL else tuple(sorted(matrix.shape)), []).append(number)
    found: dict[int, Tensor] = {}
    for numbers in together.values():
        wide = torch.stack([_turned(matrices[number], as_is=matrices[number]) for number in numbers])
        found |= zip(numbers, orthogonal(wide), strict=True)
    for number, matrix in enumerate(matrices):
        yield _turned(found[number], as_is=matrix)


def _turned(matrix: Tensor, *, as_is: Tensor) -> Tensor:
    """The transpose where the matrix, as it is in the model, is taller than wide: the products are then the smaller ones."""
    return matrix.t() if as_is.shape[0] > as_is.shape[1] else matrix


def orthogonal(matrices: Tensor) -> Tensor:
    """n×O×I, O ≤ I → about the nearest matrices of orthogonal rows, by Newton and Schulz's iteration."""
    a, b, c = _POLYNOMIAL
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    if x.device.type == "cuda":
        x = x.bfloat16()
    for _ in range(_STEPS):
        gram = _product(x, x.mT)
        x = a * x + _product(b * gram + c * _product(gram, gram), x)
    return x.to(matrices.dtype)


def _product(x: Tensor, y: Tensor) -> Tensor:
    """n×A×B by n×B×C → n×A×C; a single one by the library that is faster for it."""
    return linear(x[0], y[0].t(), None)[None] if len(x) == 1 else x @ y
