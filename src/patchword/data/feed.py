"""Work done ahead of its consumer, in a thread or in worker processes, with nothing left behind when it ends."""

import ctypes
import multiprocessing
import queue
import signal
import threading
import time
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.context import DefaultContext
from multiprocessing.sharedctypes import RawValue
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from patchword.core.errors import FaultError, PatchwordError
from patchword.core.runtime import die_with_parent

AHEAD = 2
"""Results that the thread, or each worker, prepares before the consumer asks for them."""

T = TypeVar("T")


class Stop(Protocol):
    """What tells long work that it is no longer wanted: an event of a thread or of processes."""

    def is_set(self) -> bool: ...


class _Flag:
    """An event of processes that a killed one cannot take along.

    The event of `multiprocessing` looks at itself under a lock: who is killed while looking keeps it, and everybody else
    waits forever. This is one byte of shared memory.
    """

    def __init__(self) -> None:
        self._byte = RawValue(ctypes.c_bool, False)

    def is_set(self) -> bool:
        return self._byte.value

    def set(self) -> None:
        self._byte.value = True


class _Raised:
    """An exception as a value: raised where it happened, it would end the worker and never reach the consumer."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Feed(Generic[T]):
    """build(step, stop) for each of `steps`, in order: built in a thread, or with `workers` > 0 in as many processes.

    What `build` raises, `next` raises, the same type with the same message, and the feed has ended. For processes `build`
    and its results have to be picklable.
    """

    def __init__(self, build: Callable[[int, Stop], T], steps: Iterable[int], workers: int) -> None:
        self.wait_seconds = 0.0
        """How long the consumer has waited so far."""
        self._ready: queue.SimpleQueue[T | _Raised] = queue.SimpleQueue()
        self._places = threading.Semaphore(AHEAD)
        stop, begun = (_Flag() if workers else threading.Event()), threading.Event()
        thread = threading.Thread(
            target=_produce,
            args=(build, steps, workers, stop, begun, self._places, self._ready),
            name="patchword-data",
            daemon=True,
        )
        thread.start()
        begun.wait()  # processes are forked while nothing else happens in this one
        # Also when the feed is forgotten, or at the end of the program: a thread inside torch must not outlive either.
        self._end = weakref.finalize(self, _end, thread, stop, self._places)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if not self._end.alive:
            raise StopIteration
        began = time.perf_counter()
        result = self._ready.get()
        self._places.release()
        self.wait_seconds += time.perf_counter() - began
        if isinstance(result, _Raised):
            self.close()
            raise result.error
        return result

    def close(self) -> None:
        """End the thread and the processes, as soon as `build` looks at its `stop`. Closing twice is fine."""
        self._end()


def _produce(
    build: Callable[[int, Stop], Any],
    steps: Iterable[int],
    workers: int,
    stop: Stop,
    begun: threading.Event,
    places: threading.Semaphore,
    ready: queue.SimpleQueue[Any],
) -> None:
    """The thread: fills `ready` as long as there are `places`."""
    # A second OpenMP team would fight the model's for the cores. The setting holds for this thread and those started
    # later, not for those that run (torch's own pinning thread does the same).
    torch.set_num_threads(1)
    try:
        results = _Processes(build, steps, workers, stop) if workers else _Here(build, steps, stop)
    except BaseException as error:
        ready.put(_Raised(error))
        return
    finally:
        begun.set()
    try:
        while True:
            places.acquire()
            if stop.is_set():
                return
            result = results.take()
            ready.put(result)
            if isinstance(result, _Raised):
                return
    finally:
        results.end()


def _end(thread: threading.Thread, stop: Any, places: threading.Semaphore) -> None:
    stop.set()
    places.release()
    if threading.current_thread() is not thread:  # the collector may find a forgotten feed anywhere
        thread.join()


def _attempt(build: Callable[[int, Stop], Any], step: int, stop: Stop) -> Any:
    try:
        return build(step, stop)
    except BaseException as error:
        return _Raised(error)


class _Here:
    """Results built in the thread that takes them."""

    def __init__(self, build: Callable[[int, Stop], Any], steps: Iterable[int], stop: Stop) -> None:
        self.results = (_attempt(build, step, stop) for step in steps)

    def take(self) -> Any:
        return next(self.results, _Raised(StopIteration()))

    def end(self) -> None:
        self.results.close()


class _Processes:
    """Results built in processes, by torch's DataLoader.

    It is made outside the main thread: made there, it would answer the death of a process by raising in the middle of
    whatever the main thread is doing, the saving of a checkpoint included.
    """

    def __init__(self, build: Callable[[int, Stop], Any], steps: Iterable[int], workers: int, stop: Stop) -> None:
        before = multiprocessing.active_children()
        with warnings.catch_warnings():
            # The number is the user's choice, and processes that wait for a disk need no core.
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            loader = DataLoader(
                _Results(build, stop),
                batch_size=None,
                sampler=steps,
                num_workers=workers,
                prefetch_factor=AHEAD,
                collate_fn=_as_it_is,
                worker_init_fn=_leave_signals_to_the_parent,
                multiprocessing_context=_Context(multiprocessing.get_context()),
                generator=torch.Generator(),  # else starting processes would advance the model's random numbers
            )
            self.results: Iterator[Any] | None = iter(loader)
        self.processes = [process for process in multiprocessing.active_children() if process not in before]

    def take(self) -> Any:
        assert self.results is not None
        try:
            return next(self.results, _Raised(StopIteration()))
        except (RuntimeError, OSError, EOFError) as error:  # of the DataLoader's own, since `build`'s arrive as values
            return _Raised(
                FaultError(
                    f"a worker process that reads pictures died ({error}); the usual cause is too little memory, and "
                    "fewer workers or smaller batches need less"
                )
            )

    def end(self) -> None:
        self.results = None  # the DataLoader ends its processes when its iterator goes
        for process in self.processes:
            if process.is_alive():
                process.kill()  # they ignore SIGTERM, and one may hang in a dead network drive
            process.join()


class _Results(Dataset):
    """Results by step, as the DataLoader wants them."""

    def __init__(self, build: Callable[[int, Stop], Any], stop: Stop) -> None:
        self.build = build
        self.stop = stop

    def __getitem__(self, step: int) -> Any:
        result = _attempt(self.build, step, self.stop)
        return _Raised(_portable(result.error)) if isinstance(result, _Raised) else result


class _Context(DefaultContext):
    """The usual way of starting processes, with a flag where the DataLoader wants an event."""

    def Event(self) -> Any:
        return _Flag()


def _as_it_is(result: Any) -> Any:
    return result


def _leave_signals_to_the_parent(worker: int) -> None:
    """Ctrl-C reaches the whole process group: the parent must be able to finish its step and save.

    When the parent is killed, so is the worker (on Linux): it would hold the lock of the run's folder for some seconds more.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    die_with_parent()


def _portable(error: BaseException) -> BaseException:
    """The same exception with its traceback as a note; one that cannot travel between processes is told in words."""
    error.add_note("".join(traceback.format_exception(error)))
    if isinstance(error, PatchwordError) or type(error).__module__ == "builtins":
        return error
    return FaultError(f"reading pictures failed: {type(error).__name__}: {error}")
