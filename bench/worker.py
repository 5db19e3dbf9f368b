"""One system in a process of its own: `python -m bench.worker SYSTEM`, told by JSON lines what to build and repeat."""

import json
import resource
import sys
import time
import warnings
from contextlib import ExitStack
from typing import Any

import torch

from bench.shapes import THREADS, Job
from bench.systems import SYSTEMS, Built

_WARM_UP = 1  # beside the step that says how many fill a slice


def serve(name: str) -> None:
    warnings.filterwarnings("ignore")  # the exporters' and compilers' own
    torch.set_num_threads(THREADS)
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    with ExitStack() as stack:
        built: Built | None = None
        for line in sys.stdin:
            request = json.loads(line)
            if "job" in request:
                stack.close()
                began = time.perf_counter()
                built = stack.enter_context(SYSTEMS[name](Job(**request["job"])))
                for _ in range(_WARM_UP):
                    built.step()
                reply = {"logits": built.logits.tolist(), "ready": time.perf_counter() - began}
            else:
                assert built is not None
                reply = _measure(built, request["steps"])
            print(json.dumps(reply), file=answers, flush=True)


def _measure(built: Built, steps: int) -> dict[str, Any]:
    """Wall and processor seconds of one step."""
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    for _ in range(steps):
        built.step()
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds / steps, "cpu": processor / steps}


if __name__ == "__main__":
    serve(sys.argv[1])
