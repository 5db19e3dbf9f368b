"""Muon: momentum whose matrices are made orthogonal, and AdamW for all that is no hidden matrix.

"Muon: An optimizer for hidden layers in neural networks" (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).
torch's own does the orthogonalisation in bfloat16, which most CPUs emulate, takes no kernels, and takes queries, keys and
values, which lie in one weight, for one matrix.
"""

from typing import Any

import torch
from torch import Tensor

from patchword.models.onednn import linear
from patchword.training.sharded import as_sharded, full

_STEPS = 5
_POLYNOMIAL = (3.4445, -4.7750, 2.0315)
"""Jordan's coefficients: after five steps every singular value lies in about 0.7…1.2."""


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
        for group in self.matrices:
            for parameter, stacked in zip(group["params"], group["stacked"], strict=True):
                if parameter.grad is not None:
                    self._move(parameter, stacked, group)
        if self.adamw is not None:
            self.adamw.step()

    def _move(self, parameter: Tensor, stacked: int, group: dict[str, Any]) -> None:
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum = state["momentum_buffer"]
        momentum.mul_(group["momentum"]).add_(gradient)
        ahead = full(gradient.add(momentum, alpha=group["momentum"]))  # Nesterov's
        parts = ahead.flatten(1).chunk(stacked)
        update = torch.cat([orthogonal(part) * max(1.0, part.shape[0] / part.shape[1]) ** 0.5 for part in parts])
        if group["normed"]:
            parameter.mul_(len(ahead) ** 0.5 / (full(parameter).norm() + 1e-7))
        else:
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(as_sharded(update.view(ahead.shape), parameter), alpha=group["lr"])


def orthogonal(matrix: Tensor) -> Tensor:
    """O×I → about U·Vᵀ of its singular value decomposition U·S·Vᵀ, by Newton and Schulz's iteration."""
    a, b, c = _POLYNOMIAL
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.t().contiguous() if tall else x
    if x.device.type == "cuda":
        x = x.bfloat16()
    for _ in range(_STEPS):
        gram = linear(x, x, None)  # x·xᵀ, symmetric
        x = a * x + linear(b * gram + c * linear(gram, gram, None), x.t().contiguous(), None)
    x = x.to(matrix.dtype)
    return x.t() if tall else x
