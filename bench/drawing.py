"""`python -m bench.drawing`: how many pictures of formulas one core draws in a second, as a row for docs/data.md.

CPU time of one process, so that other work beside it counts little; the systems of the fractals' classes are known already, as
they are after the first epoch. Median of three.
"""

import statistics
import time
from collections.abc import Callable

from patchword.data.sources import open_data

CLASSES, LEAST_SECONDS, SIDES = 100, 2.0, (32, 64, 224)


def main() -> None:
    print(f"| pictures/s on one core, one process | {' | '.join(f'{side} px' for side in SIDES)} |")
    print(f"|---|{'---|' * len(SIDES)}")
    for kind in ("fractals", "shapes"):
        print(f"| {kind} | {' | '.join(f'{speed(kind, side):,.0f}' for side in SIDES)} |", flush=True)


def speed(kind: str, side: int) -> float:
    """Pictures a second of CPU time."""
    split = open_data(f"formula:{kind}-{CLASSES}x100@{side}").splits["train"]
    for index in range(0, len(split), len(split) // CLASSES):  # one of each class
        split.read(index)
    return statistics.median(_once(split.read, len(split)) for _ in range(3))


def _once(read: Callable[[int], object], count: int) -> float:
    done, began = 0, time.process_time()
    while (spent := time.process_time() - began) < LEAST_SECONDS:
        read(done * 37 % count)  # classes mixed, as training has them
        done += 1
    return done / spent


if __name__ == "__main__":
    main()
