"""Forward and backward passes of one batch on all that computes: threads of this process, and other processes.

One process uses replicas of the model, a thread each, on a CPU. Several use torch's DistributedDataParallel, whole weights on
every one of them, or FSDP2, where each holds a share of everything. In all cases the model's gradients end up as those of
the sum of the losses over the whole batch.
"""

import contextlib
import copy
import dataclasses
import functools
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Self

import torch
from torch import Tensor, nn

from patchword.core.errors import FaultError
from patchword.core.processes import Processes
from patchword.core.progress import say
from patchword.core.runtime import MOST_REPLICAS, Crew
from patchword.models.chance import Chance, drawing_from, uncompiled
from patchword.models.contract import Model
from patchword.training.objectives import Objective
from patchword.training.sharded import as_sharded, full_tensors

Precision = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class Part:
    """Images that pass through the model together, n of them."""

    images: Tensor
    """Normalised, n×C×H×W."""
    targets: Tensor
    """n×K."""
    weights: Tensor
    """What each image's loss is multiplied by, n."""
    keep: Tensor | None
    """The patches to look at, n×m; None: all."""
    chance: Chance
    """Where dropout and its kin draw from."""

    def split(self, most: int) -> "list[Part]":
        """The same images in parts of at most so many."""
        if len(self.images) <= most:
            return [self]
        keeps = itertools.repeat(None) if self.keep is None else self.keep.split(most)
        pieces = zip(self.images.split(most), self.targets.split(most), self.weights.split(most), keeps, strict=False)
        first, key = self.chance.first, self.chance.key
        return [Part(*piece, Chance(key, first + number * most)) for number, piece in enumerate(pieces)]


class Loss(nn.Module):
    """A model and what it minimises, as one module: so that whoever wraps it sees every pass begin and end."""

    def __init__(self, model: Model, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, images: Tensor, targets: Tensor, weights: Tensor, keep: Tensor | None) -> Tensor:
        """The weighted sum of the losses of n images."""
        return (self.objective(self.model, images, targets, keep) * weights).sum()


class Passes:
    """All that computes the gradients of one model; a context, which ends its threads.

    Parts are dealt out in turn and sums are made in a fixed order, so that the result repeats to the bit for the same number
    of threads and processes.
    """

    def __init__(
        self,
        model: Model,
        objective: Objective,
        world: Processes | None = None,
        *,
        threads: int = 1,
        precision: Precision = "float32",
        sharded: bool = False,
        compiled: bool = False,
    ) -> None:
        """`threads`: cores of this process to use on a CPU; elsewhere there is one replica, the model.

        So it is for models that do not replicate, with all cores on each part. And so it is with several processes.
        """
        self.model, self.objective, self.world = model, objective, world or Processes()
        device = next(model.parameters()).device
        alone = self.world.count == 1 and device.type == "cpu" and model.replicates and not compiled
        self.crew = Crew(threads if device.type == "cpu" else 1, most=MOST_REPLICAS if alone else 1)
        self.precision: Precision = precision
        self.sharded = sharded
        self._plain = copy.deepcopy(model).to("meta") if sharded else model
        if compiled:
            _compile(model)
        loss = Loss(model, objective)
        self.losses: list[nn.Module] = [loss, *(_sharing(loss) for _ in range(self.crew.size - 1))]
        self.most_at_once = 0
        """The most images that fit into memory at once, where a GPU has had no room for more; 0: no limit met."""
        self.exchanging = False
        """Whether other processes may already have gradients of the step."""
        if sharded:
            self._shard()
        elif self.world.count > 1:
            # Depthwise kernels of one channel have two spellings of the same strides.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            self.losses = [nn.parallel.DistributedDataParallel(self.losses[0], gradient_as_bucket_view=True)]
        self.learning = [value for part in (model, objective) for value in part.parameters() if value.requires_grad]
        """What has gradients, as the optimizer sees it."""

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def backward(self, parts: Sequence[Part]) -> float:
        """Give the model the gradients of the sum over all processes of all parts; this process's sum of losses is returned.

        A single part is computed on all cores together. Every process needs as many parts as the others, one at least.
        Parts for which the device has no memory are computed in halves, from then on.
        """
        while True:
            fitting = [piece for part in parts for piece in part.split(self.most_at_once or len(part.images))]
            try:
                shares = self._shares(fitting)
                losses = self.crew.run(shares)
                break
            except torch.OutOfMemoryError as error:
                self._shrink(fitting, error)
        self._gather(len(shares))
        return sum(losses)

    def whole(self, average: dict[str, Tensor] | None) -> Model:
        """The model in one piece with the average of its weights, or with its own, to look at or to keep.

        It is the model itself where nothing is sharded and there is no average.
        """
        if average is None and not self.sharded:
            return self.model
        whole = copy.deepcopy(self._plain)
        if self.sharded:
            whole.to_empty(device=self.device)
        whole.load_state_dict(full_tensors(self.model.state_dict() if average is None else average))
        return whole

    def fill(self, weights: dict[str, Tensor], objective: dict[str, Tensor]) -> None:
        """Put whole tensors into model and objective, in place: the optimizer holds their parameters."""
        with torch.no_grad():
            for part, tensors in ((self.model, weights), (self.objective, objective)):
                for name, value in part.state_dict().items():
                    value.copy_(as_sharded(tensors[name], value))

    def __enter__(self) -> Self:
        self.crew.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.crew.__exit__(*exception)

    def _shares(self, parts: Sequence[Part]) -> list[Callable[[], float]]:
        """One job a replica: of R of them, replica r has parts r, r + R, r + 2R, …"""

        def work(replica: int) -> float:
            return sum(
                self._pass(self.losses[replica], parts[number], last=number == len(parts) - 1)
                for number in range(replica, len(parts), len(self.losses))
            )

        return [functools.partial(work, replica) for replica in range(min(len(parts), len(self.losses)))]

    def _pass(self, loss: nn.Module, part: Part, *, last: bool) -> float:
        autocast = (
            torch.autocast(self.device.type, torch.bfloat16)
            if self.precision == "bfloat16"
            else contextlib.nullcontext()
        )
        with self._exchange(loss, last), drawing_from(part.chance):
            with autocast:
                value = loss(part.images, part.targets, part.weights, part.keep)
            (value * self.world.count).backward()  # torch takes the mean over processes; we want the sum
        return value.item()

    def _shrink(self, parts: Sequence[Part], error: torch.OutOfMemoryError) -> None:
        """Forget what the parts have given so far, and let them be smaller; the same images and draws are computed again."""
        largest = max(len(part.images) for part in parts)
        if largest == 1 or self.exchanging or self.sharded or self.model.has_batch_norm:
            raise FaultError(
                f"{self.device} has no memory for {largest} images at once; a smaller micro_batch, "
                "compute.recompute=true or compute.sharded=yes would be right"
            ) from error
        self.most_at_once = (largest + 1) // 2
        say(f"note: {largest} images at once do not fit into memory; from here on {self.most_at_once} have to")
        for loss in self.losses:
            loss.zero_grad()

    @contextlib.contextmanager
    def _exchange(self, loss: nn.Module, last: bool) -> Iterator[None]:
        """Only the last part's backward pass exchanges gradients with other processes."""
        self.exchanging = last and self.world.count > 1
        if self.sharded:
            loss.set_requires_gradient_sync(last)  # pyright: ignore[reportCallIssue] (fully_shard adds it)
            yield
        elif isinstance(loss, nn.parallel.DistributedDataParallel) and not last:
            with loss.no_sync():
                yield
        else:
            yield

    def _gather(self, worked: int) -> None:
        """Add up the gradients of the replicas; the running figures of batch norms are the mean of those that worked."""
        for replica in self.losses[1:]:
            for mine, theirs in zip(self.losses[0].parameters(), replica.parameters(), strict=True):
                if theirs.grad is not None and mine.grad is not None:
                    mine.grad.add_(theirs.grad)
                theirs.grad = None
        for everywhere in zip(*map(_running, self.losses), strict=True):
            mean = torch.stack(everywhere[:worked]).mean(0)
            for figures in everywhere:
                figures.copy_(mean)

    def _shard(self) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.world.count,))
        for block in blocks(self.model):
            fully_shard(block, mesh=mesh)
        fully_shard(self.losses[0], mesh=mesh)


def blocks(model: Model) -> list[nn.Module]:
    """The parts of a model that repeat, each of which is sharded or compiled by itself."""
    return list(getattr(model, "blocks", ()))


def _compile(model: Model) -> None:
    uncompiled()
    for block in blocks(model):
        block.compile()


def _running(loss: nn.Module) -> list[Tensor]:
    """The running means and variances of batch norms, which a pass changes."""
    norms = [module for module in loss.modules() if isinstance(module, nn.BatchNorm2d)]
    return [figures for norm in norms for figures in (norm.running_mean, norm.running_var) if figures is not None]


def _sharing(loss: Loss) -> Loss:
    """A copy whose parameters are the same memory with gradients of their own, and whose buffers are the very same, too.

    But for those of batch norms: each replica sees other images.
    """
    own = {id(figures) for figures in _running(loss)}
    memo: dict[int, Tensor] = {id(buffer): buffer for buffer in loss.buffers() if id(buffer) not in own}
    memo |= {id(value): nn.Parameter(value.detach(), value.requires_grad) for value in loss.parameters()}
    with torch.no_grad():
        return copy.deepcopy(loss, memo)
