"""Where the models of a comparison disagree: test pictures, with what each model says and where it looks."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from patchword.core.errors import DataError
from patchword.core.picture import DecodeError
from patchword.data.decoding.decode import decode
from patchword.evaluation.mistakes import thumbnail
from patchword.explanation.gallery import add_maps
from patchword.studies.cells import Cells
from patchword.studies.compare import Study
from patchword.weights.io import load_model

_SHOWN = 8


def disagreements(study: Study, cells: Cells) -> dict[str, Any] | None:
    """Test pictures that some model got right with every seed and some other with none: how many, and a few of the surest, with
    where each model looked on them.
    """
    split = study.dataset.splits[study.dataset.tested_on]
    given = {name: [each for each in cells.answers(name) if each is not None] for name in study.question.models}
    given = {name: answers for name, answers in given.items() if answers}
    if len(given) < 2:
        return None
    first = next(iter(given.values()))[0]
    if len(first.pictures) != len(split):
        raise DataError(f"{study.dataset.location} has another number of test pictures than the study was made with")
    right = {name: np.mean([each.right for each in answers], axis=0) for name, answers in given.items()}
    sure = {name: np.mean([each.confidence for each in answers], axis=0) for name, answers in given.items()}
    table, certainty = np.array(list(right.values())), np.array(list(sure.values()))
    spread = np.flatnonzero((table.max(axis=0) == 1) & (table.min(axis=0) == 0))
    # Both sides sure of themselves is what one wants to see.
    weight = np.where(table == 1, certainty, 0).max(axis=0) + np.where(table == 0, certainty, 0).max(axis=0)
    surest = spread[np.argsort(-weight[spread], kind="stable")].tolist()
    chosen = _varied(surest, [(first.labels[index], str(table[:, index] == 1)) for index in surest])[:_SHOWN]
    rows = []
    for index in chosen:
        try:
            picture = thumbnail(decode(split.read(index), 3))
        except DecodeError:
            picture = None
        said = {name: _most_often([each.predicted[index] for each in answers]) for name, answers in given.items()}
        label = first.labels[index]
        rows.append({"name": first.pictures[index], "label": label, "thumbnail": picture, "said": said, "maps": {}})
    words: dict[str, str | None] = {}
    for name in given:
        folder, seen = cells.trained(name), [{"index": index} for index in chosen]
        words[name] = None if folder is None or not seen else add_maps(load_model(folder), split, seen)
        for row, each in zip(rows, seen, strict=True):
            row["maps"][name] = each.get("map")
    return {"count": len(spread), "of": len(first.pictures), "maps": words, "pictures": rows}


def _varied(pictures: Sequence[int], kinds: Sequence[tuple[str | None, str]]) -> list[int]:
    """The pictures, of each label and with the same models right first two, then two more.

    Two of a kind tell as much as ten; the others are shown where there is room left.
    """
    seen: Counter[str | None] = Counter()
    rounds = []
    for kind in kinds:
        rounds.append(max(seen[each] for each in kind) // 2)
        seen.update(kind)
    return [pictures[place] for place in sorted(range(len(pictures)), key=rounds.__getitem__)]


def _most_often(said: Sequence[str | None]) -> str | None:
    return max(dict.fromkeys(said), key=said.count)
