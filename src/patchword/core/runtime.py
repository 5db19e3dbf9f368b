"""The machine under the work: device, threads, memory, signals, one writer a folder."""

import ctypes
import datetime
import fcntl
import os
import platform
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from patchword.core.errors import UsageError
from patchword.core.files import disk_faults

if TYPE_CHECKING:
    import torch


T = TypeVar("T")

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
# From Linux's prctl.h.
_PR_SET_PDEATHSIG = 1

_LOCK_TRIES, _LOCK_PAUSE = 10, 0.1
"""How often to ask for a folder's lock, and the seconds between: a process that was just killed takes its own down with it."""


def usable_cores() -> int:
    """How many cores this process may run on: fewer than there are where it was pinned to some."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_device(name: str = "auto") -> "torch.device":
    """`auto` is the first CUDA device, then Apple's, then the CPU; any of torch's names is taken as it is."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {name!r} cannot be used here; 'auto' or 'cpu' would work") from error
    return device


def describe_device(device: "torch.device") -> str:
    """The device as a report names it."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type}, {threads} thread{'s' if threads > 1 else ''}"


def keep_memory() -> None:
    """Let glibc keep freed memory for the next tensor instead of giving it back page by page; elsewhere this does nothing.

    A training step makes and frees the same large tensors over and over. By default each comes fresh from the kernel, which
    clears every page of it: 145,000 page faults in a step of 256 pictures at width 128, and 5 to 10 % of its time.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    for option, value in ((_M_MMAP_THRESHOLD, 1 << 30), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 << 20)):
        mallopt(option, value)


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends, however it ends; only Linux can."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):
        return


def versions() -> dict[str, str]:
    """Of patchword, torch and Python: what a run's bits depend on beside the machine."""
    import torch

    return {"patchword": version("patchword"), "torch": torch.__version__, "python": platform.python_version()}


def circumstances(device: "torch.device") -> dict[str, Any]:
    """What every file of figures says of how they came about: versions, device, and the time, which is now."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"versions": versions(), "device": describe_device(device), "date": now}


def peak_memory(device: "torch.device") -> int:
    """The most memory this process has held so far, in bytes: the GPU's on a GPU, else the resident set."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available_memory() -> int:
    """Bytes of main memory that new work may take, by the kernel's own estimate where it gives one."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


MOST_REPLICAS = 4
"""The most threads of a crew; with more cores each gets several. Each takes memory of its own."""


class Crew:
    """Threads that work side by side, each with torch operations on its own share of the cores; a context.

    Operations that use all cores wait for each other about a thousand times in a training step of a small model, and for
    whatever else the machine does; threads with a core each wait once. Two on two cores make a step of a ViT of width 128
    1.2 times as fast on a quiet machine, and 1.5 to 2 times beside other work. Until the context ends, operations of the
    calling thread stay on its share, too.
    """

    def __init__(self, threads: int, *, most: int = MOST_REPLICAS) -> None:
        """`threads` cores, shared among as many members, but no more than `most`."""
        self.size = max(1, min(threads, most))
        self._all, self._each = max(1, threads), max(1, threads // self.size)
        self._pool = (
            ThreadPoolExecutor(self.size - 1, initializer=_use_threads, initargs=(self._each,))
            if self.size > 1
            else None
        )

    def __enter__(self) -> Self:
        import torch

        self._before = torch.get_num_threads()
        _use_threads(self._each)
        return self

    def __exit__(self, *exception: object) -> None:
        _use_threads(self._before)
        if self._pool is not None:
            self._pool.shutdown()

    def run(self, jobs: Sequence[Callable[[], T]]) -> list[T]:
        """The results of at most `size` jobs, in their order; the first runs in the calling thread, a single one on all cores."""
        if self._pool is None:
            return [job() for job in jobs]
        if len(jobs) == 1:
            _use_threads(self._all)
            try:
                return [jobs[0]()]
            finally:
                _use_threads(self._each)
        others = [self._pool.submit(job) for job in jobs[1:]]
        try:
            return [jobs[0](), *(other.result() for other in others)]
        finally:
            wait(others)


def _use_threads(count: int) -> None:
    """Give the calling thread's torch operations `count` cores; other threads keep what they have."""
    import torch

    torch.set_num_threads(count)


SAME_SIGNAL = 1.0
"""Seconds within which two signals are one: who signals a whole group reaches torchrun, too, which passes it on."""


class StopFlag:
    """Turns the first SIGTERM, SIGINT or SIGHUP into a flag that the work looks at between steps; the second ends it at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._at = 0.0

    def __bool__(self) -> bool:
        return self.received is not None

    def raise_it(self) -> None:
        """As if a SIGTERM had come."""
        self.received = signal.SIGTERM

    @contextmanager
    def listening(self) -> Iterator["StopFlag"]:
        """Listen for as long as the context lasts (in the main thread; elsewhere signals never arrive)."""
        before = {}

        def handle(number: int, frame: FrameType | None) -> None:
            now = time.monotonic()
            if self.received is not None and now - self._at > SAME_SIGNAL:
                for each, handler in before.items():
                    signal.signal(each, handler)
                os.kill(os.getpid(), number)
                return
            if self.received is not None:
                return
            self.received, self._at = number, now
            # As bytes: whoever is interrupted may hold the locks of all that prints.
            os.write(2, b"\nstopping after this step; a second signal ends at once\n")

        try:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                    before[number] = signal.signal(number, handle)
        except ValueError:  # not the main thread
            pass
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _lies_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; a second process that wants it is told so. The lock ends with the process, however it ends."""
    for tries in range(1, _LOCK_TRIES + 1):
        with disk_faults(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = (folder / ".lock").open("a")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if tries == _LOCK_TRIES:
                    raise UsageError(
                        f"{folder} is being written by another process; wait for it or choose another folder"
                    ) from error
            except OSError as error:
                raise UsageError(
                    f"{folder} lies on a file system without locks ({error.strerror}); a local one would be right"
                ) from error
            else:
                # While we waited, who held it may have moved the folder away: then the lock is no longer this folder's.
                if _lies_at(lock.fileno(), folder / ".lock"):
                    yield
                    return
        time.sleep(_LOCK_PAUSE)
    raise UsageError(f"{folder} is being moved by another process; wait for it or choose another folder")
