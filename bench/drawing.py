"""`python -m bench.drawing`: how many pictures of formulas are drawn in a second, as rows for docs/data.md.

On one core by the CPU time of one process, so that other work beside it counts little; the systems of the fractals' classes are
known already, as they are after the first epoch. Median of three. On all cores by the clock, as a run that begins fills its
memory, with all that it has to find out.
"""

import statistics
import time
from collections.abc import Callable

from patchword.core.runtime import usable_cores
from patchword.data.sources import open_data
from patchword.data.store import Store

CLASSES, LEAST_SECONDS, SIDES = 100, 2.0, (32, 64, 224)


def main() -> None:
    print(f"| pictures/s | {' | '.join(f'{side} px' for side in SIDES)} |")
    print(f"|---|{'---|' * len(SIDES)}")
    for where, how in (("one core", speed), (f"{usable_cores()} cores, a run's beginning", filling)):
        for kind in ("fractals", "shapes"):
            print(f"| {kind}, {where} | {' | '.join(f'{how(kind, side):,.0f}' for side in SIDES)} |", flush=True)


def speed(kind: str, side: int) -> float:
    """Pictures a second of CPU time."""
    split = open_data(f"formula:{kind}-{CLASSES}x100@{side}").splits["train"]
    for index in range(0, len(split), len(split) // CLASSES):  # one of each class
        split.read(index)
    return statistics.median(_once(split.read, len(split)) for _ in range(3))


def filling(kind: str, side: int) -> float:
    """Pictures a second of the clock, of thirty of each class."""
    split = open_data(f"formula:{kind}-{CLASSES if side > 100 else 10 * CLASSES}x30@{side}").splits["train"]
    began = time.perf_counter()
    Store.fill(split, 3, usable_cores())
    return len(split) / (time.perf_counter() - began)


def _once(read: Callable[[int], object], count: int) -> float:
    done, began = 0, time.process_time()
    while (spent := time.process_time() - began) < LEAST_SECONDS:
        read(done * 37 % count)  # classes mixed, as training has them
        done += 1
    return done / spent


if __name__ == "__main__":
    main()
