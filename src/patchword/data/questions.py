"""Tasks about pictures of shapes whose answers are known exactly: how many, how far apart, where, which way, how large.

They stand in for VTAB's structured tasks where its data is not: the pictures are drawn, and each answer is as frequent as any
other. A picture is one of `formula:shapes` at 64×64 (`data/drawing/shapes.py`); one that a question does not fit is passed over.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable

import numpy as np

from patchword.core.errors import DataError, nearest
from patchword.data.assemble import Found, Part
from patchword.data.drawing import shapes
from patchword.data.drawing.outlines import KINDS

SIZE = (64, 64)
COUNTS = {"train": 800, "validation": 200, "test": 1000}
"""Pictures of each split; train and validation as in VTAB-1k."""
_CLASSES = 256
_MOST = 4
"""Objects that are counted: five or more are rare."""
_HALF = SIZE[0] / 2
_DEAD = 0.05
"""How far from the border between two answers a picture has to be, in halves of its side (of orientation: in eighths)."""

Objects = tuple[shapes.Object, ...]


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked, and what may be answered."""

    answers: tuple[str, ...]
    ask: Callable[[Objects], int | None]
    """The objects of a picture → the place of the answer; None: the picture is passed over."""


def _count(objects: Objects) -> int | None:
    return len(objects) - 1 if len(objects) <= _MOST else None


def _distance(objects: Objects) -> int | None:
    """Between the middles of two objects, in halves of the picture's side: quarters of how far apart they happen to be."""
    if len(objects) != 2:
        return None
    one, other = objects
    return _bin(math.hypot(one.x - other.x, one.y - other.y) / _HALF, (0.93, 1.02, 1.11), 0.01)


def _location(objects: Objects) -> int | None:
    """Of a single object's middle: the quarter of the picture."""
    if len(objects) != 1:
        return None
    row, column = (_bin(each / _HALF - 1, (0.0,), _DEAD) for each in (objects[0].y, objects[0].x))
    return None if row is None or column is None else 2 * row + column


def _orientation(objects: Objects) -> int | None:
    """Of a single object that looks alike only after a whole turn: the eighth of it, anticlockwise."""
    if len(objects) != 1 or objects[0].symmetry != 1:
        return None
    place = objects[0].orientation / 45
    return None if min(place % 1, 1 - place % 1) < _DEAD else int(place)


def _size(objects: Objects) -> int | None:
    """Of a single object: its radius, in halves of the picture's side."""
    return None if len(objects) != 1 else _bin(objects[0].radius / _HALF, (0.5, 0.65, 0.76), 0.01)


def _bin(value: float, edges: tuple[float, ...], dead: float) -> int | None:
    return None if any(abs(value - edge) < dead for edge in edges) else sum(value >= edge for edge in edges)


QUESTIONS: dict[str, Question] = {
    "count": Question(("one", "two", "three", "four"), _count),
    "distance": Question(("touching", "near", "apart", "far"), _distance),
    "location": Question(("upper left", "upper right", "lower left", "lower right"), _location),
    "orientation": Question(tuple(f"{45 * eighth}°" for eighth in range(8)), _orientation),
    "size": Question(("small", "middling", "large", "huge"), _size),
}


class Asked:
    """Pictures of shapes by (class, instance), drawn when they are read."""

    def __init__(self, question: str, labels: np.ndarray, instances: np.ndarray) -> None:
        self.question, self.labels, self.instances = question, labels, instances

    def __len__(self) -> int:
        return len(self.labels)

    def _place(self, row: int) -> tuple[int, int]:
        if not 0 <= row < len(self):
            raise IndexError(f"picture {row} of {len(self)}")
        return int(self.labels[row]), int(self.instances[row])

    def read(self, row: int) -> np.ndarray:
        """uint8 64×64×3."""
        return shapes.picture(0, *self._place(row), SIZE)

    def objects(self, row: int) -> Objects:
        """What is to be seen in it."""
        return shapes.objects(0, *self._place(row), SIZE)

    def key(self, row: int) -> bytes:
        """`count:17:4`: question, class, instance."""
        return ":".join([self.question, *map(str, self._place(row))]).encode()

    def digest(self, rows: np.ndarray | None) -> bytes:
        """A hash over what the pictures follow from; none of them is drawn."""
        chosen = np.arange(len(self)) if rows is None else rows
        digest = hashlib.sha256(f"{shapes.VERSION} {self.question} {SIZE}".encode())
        digest.update(np.stack([self.labels[chosen], self.instances[chosen]]).astype(np.int64).tobytes())
        return digest.digest()


def find_question(name: str) -> Found:
    """The task of a name, as a data set of 800, 200 and 1,000 pictures."""
    if name not in QUESTIONS:
        raise DataError(f"there is no question {name!r} about shapes; {nearest(name, QUESTIONS)}")
    labels, instances, codes = _chosen(name)
    items = Asked(name, labels, instances)
    parts, first = {}, 0
    for split, count in COUNTS.items():
        rows = np.arange(first, first + count)
        parts[split] = Part(items, codes[rows], rows=rows)
        first += count
    return Found(f"vtab-lite-{name}", f"vtab-lite:{name}", list(QUESTIONS[name].answers), parts, ordered=True)


@functools.lru_cache(maxsize=len(QUESTIONS))
def _chosen(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Class, instance and answer of all pictures, split by split, in which every answer has its equal share."""
    question = QUESTIONS[name]
    wanted = [_shares(count, len(question.answers)) for count in COUNTS.values()]
    rows: list[list[tuple[int, int, int]]] = [[] for _ in wanted]
    for number in range(100 * sum(COUNTS.values())):
        # Every class in turn: neighbours differ in kind and in pattern.
        instance, label = divmod(number, _CLASSES)
        if name == "orientation" and KINDS[shapes.class_parts(label)[0]].symmetry != 1:
            continue
        answer = question.ask(shapes.objects(0, label, instance, SIZE))
        if answer is None:
            continue
        # The first that has room for it: pictures of a split have no others before them.
        place = next((place for place, left in enumerate(wanted) if left[answer]), None)
        if place is not None:
            wanted[place][answer] -= 1
            rows[place].append((label, instance, answer))
        if not any(map(sum, wanted)):
            break
    labels, instances, codes = np.array([row for part in rows for row in part], np.int64).T
    return labels, instances, codes


def _shares(count: int, answers: int) -> list[int]:
    return [(count + answers - 1 - place) // answers for place in range(answers)]
