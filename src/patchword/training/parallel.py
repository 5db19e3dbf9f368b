"""Forward and backward passes on all cores at once: replicas of one model, each with a thread of its own."""

import copy
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from patchword.core.runtime import MOST_REPLICAS, Crew
from patchword.models.contract import Model


class Replicas:
    """A model and replicas that share its weights; each has gradients of its own, and the model gets their sum.

    Parts are dealt out in turn and sums are made in a fixed order, so that the result repeats to the bit for the same
    number of threads. A context: it ends its threads.
    """

    def __init__(self, model: Model, threads: int = 1) -> None:
        """`threads`: cores to use on a CPU; on other devices there is one replica, the model.

        So it is for convolutional networks, with all cores on each part: those of batch norm must follow one another, as
        each changes the running statistics.
        """
        on_cpu = next(model.parameters()).device.type == "cpu"
        self.model = model
        self.crew = Crew(threads if on_cpu else 1, most=MOST_REPLICAS if model.replicates else 1)
        self.models = [model, *(_sharing(model) for _ in range(self.crew.size - 1))]

    def backward(self, count: int, loss_of: Callable[[Model, int], Tensor]) -> float:
        """Add the gradients of parts 0 … count − 1 to the model's; `loss_of(model, part)` gives the scalar to differentiate.

        Returns the sum of the losses. A single part is computed on all cores together.
        """

        def work(replica: int) -> list[float]:
            losses = []
            for part in range(replica, count, len(self.models)):
                loss = loss_of(self.models[replica], part)
                loss.backward()
                losses.append(loss.item())
            return losses

        done = self.crew.run([lambda replica=replica: work(replica) for replica in range(min(count, len(self.models)))])
        self._gather()
        return sum(sum(losses) for losses in done)

    def __enter__(self) -> Self:
        self.crew.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.crew.__exit__(*exception)

    def _gather(self) -> None:
        for replica in self.models[1:]:
            pairs = zip(self.model.parameters(), replica.parameters(), strict=True)
            for mine, theirs in pairs:
                if theirs.grad is not None and mine.grad is not None:
                    mine.grad.add_(theirs.grad)
                theirs.grad = None


def _sharing(model: Model) -> Model:
    """A copy whose parameters are the same memory with gradients of their own, and whose buffers are the very same."""
    memo: dict[int, Tensor] = {id(buffer): buffer for buffer in model.buffers()}
    memo |= {
        id(parameter): nn.Parameter(parameter.detach(), parameter.requires_grad) for parameter in model.parameters()
    }
    with torch.no_grad():
        return copy.deepcopy(model, memo)
