"""The processes that train one model together: who they are, what they tell each other, and who of them is missing.

`torchrun` starts them and says so in the environment; without it there is one, and nothing here does anything. Small things
travel over gloo as numbers and text, so that no process unpickles what another says. Gradients are torch's own affair
(`training/passes.py`).
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from patchword.core import errors, progress
from patchword.core.errors import FaultError, PatchwordError

if TYPE_CHECKING:
    import numpy as np
    import torch

TIMEOUT = 600.0
"""Seconds that a process waits for the others, unless the recipe says otherwise."""
_BEAT = 1.0
"""Seconds between two signs of life."""
_SILENT_BEATS = 3


class Processes:
    """The group, as one of its members sees it; a group of one unless `joined` made it."""

    def __init__(self, rank: int = 0, count: int = 1, local_rank: int = 0, local_count: int = 1) -> None:
        self.rank, self.count = rank, count
        self.local_rank, self.local_count = local_rank, local_count
        """Among those on this machine."""
        self._store: Any = None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and talks to people."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """The sums over all processes, in float64; every process gets the same bits."""
        if self.count == 1:
            return list(values)
        import torch
        import torch.distributed as dist

        numbers = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(numbers)
        return numbers.tolist()

    def add(self, array: "np.ndarray") -> "np.ndarray":
        """The sum of everyone's array of this shape; exact where all but one of them have a zero."""
        if self.count == 1:
            return array
        import torch
        import torch.distributed as dist

        numbers = torch.from_numpy(array)
        dist.all_reduce(numbers)
        return numbers.numpy()

    def gather(self, value: Any) -> list[Any]:
        """What each process says, in the order of their ranks; what JSON can hold."""
        if self.count == 1:
            return [value]
        import torch
        import torch.distributed as dist

        text = torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
        dist.all_gather(lengths, torch.tensor([len(text)]))
        longest = int(max(length.item() for length in lengths))
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(text)] = text
        texts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.count)]
        dist.all_gather(texts, padded)
        return [
            json.loads(bytes(each[: int(length.item())].tolist())) for each, length in zip(texts, lengths, strict=True)
        ]

    def together(self, found: dict[int, str]) -> dict[int, str]:
        """What any process has found, by number."""
        return {int(number): what for each in self.gather(found) for number, what in each.items()}

    def decide(self, decision: Callable[[], Any]) -> Any:
        """What the first process finds, which JSON can hold: found by it alone and known to all; so are its errors."""
        if self.count == 1:
            return decision()
        said: dict[str, Any] = {}
        raised: PatchwordError | None = None
        if self.first:
            try:
                said = {"value": decision()}
            except PatchwordError as error:
                raised, said = error, {"error": type(error).__name__, "sentence": str(error)}
        said = self.gather(said)[0]
        if raised is not None:
            raise raised
        if "error" in said:
            error = getattr(errors, said["error"], FaultError)(said["sentence"])
            error.told = True
            raise error
        return said["value"]

    def spread(self, tensors: "Iterable[torch.Tensor]") -> None:
        """Give everyone the first process's values, in place."""
        if self.count > 1:
            import torch.distributed as dist

            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def share(self, count: int) -> range:
        """This process's part of `count` things, as even as pairs allow: things 2k and 2k + 1 stay together."""
        return self._share(count, self.rank)

    def shares(self, count: int) -> list[int]:
        """How many of `count` things each process has."""
        return [len(self._share(count, rank)) for rank in range(self.count)]

    def _share(self, count: int, rank: int) -> range:
        pairs = -(-count // 2)
        low, high = (2 * (pairs * each // self.count) for each in (rank, rank + 1))
        return range(low, min(high, count))

    def missing(self) -> list[int]:
        """The ranks that give no sign of life: ended, or stopped; takes a few seconds."""
        if self._store is None:
            return []
        try:
            before = [self._store.get(f"alive/{rank}") for rank in range(self.count)]
            time.sleep(_SILENT_BEATS * _BEAT)
            after = [self._store.get(f"alive/{rank}") for rank in range(self.count)]
        except RuntimeError:
            return []  # the store itself has gone, with the machine or the launcher that held it
        return [rank for rank in range(self.count) if before[rank] == after[rank]]

    @contextmanager
    def naming_the_missing(self) -> Iterator[None]:
        """Turn a broken connection or a time-out into a sentence that says which process is missing."""
        try:
            yield
        except RuntimeError as error:
            text = str(error)
            if self.count == 1 or not any(sign in text for sign in _SIGNS):
                raise
            missing = self.missing()
            who = (
                f"process {' and '.join(map(str, missing))} of {self.count} (counted from 0) has ended or hangs"
                if missing
                else f"one of the {self.count} processes has left, or the network between them failed"
            )
            raise FaultError(f"{who}; the same command resumes from the newest checkpoint") from error


_SIGNS = ("gloo", "NCCL", "Connection", "connection", "Timed out", "timed out", "Broken pipe", "TCPStore", "Socket")
"""What torch's messages hold when another process does not answer."""


@contextmanager
def joined(timeout: float = TIMEOUT, on_orphaned: Callable[[], object] = lambda: None) -> Iterator[Processes]:
    """The group that the environment describes, for as long as the context lasts; a group of one without a launcher.

    `timeout` is how many seconds a process waits for the others; `on_orphaned` is called, in a thread, when the launcher
    no longer answers.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_count = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    patience = timedelta(seconds=timeout)
    try:
        store, rank, count = next(rendezvous("env://", timeout=patience))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=patience)
    except (RuntimeError, ValueError) as error:
        raise FaultError(f"the processes do not find each other: {str(error).splitlines()[0]}") from error
    world = Processes(rank, count, local_rank, local_count)
    world._store = PrefixStore("patchword", store)
    stop = threading.Event()
    beating = threading.Thread(target=_beat, args=(world, stop, on_orphaned), name="patchword-alive", daemon=True)
    world._store.set(f"alive/{rank}", "0")
    beating.start()
    progress.quiet(not world.first)  # for good: what comes after is said once, too
    try:
        with world.naming_the_missing():
            yield world
    finally:
        stop.set()
        beating.join()
        dist.destroy_process_group()


def _beat(world: Processes, stop: threading.Event, on_orphaned: Callable[[], object]) -> None:
    for number in range(1, 1 << 62):
        if stop.wait(_BEAT):
            return
        try:
            world._store.set(f"alive/{world.rank}", str(number))
        except RuntimeError:
            on_orphaned()
            return
