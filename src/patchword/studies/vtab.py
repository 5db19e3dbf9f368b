"""VTAB-1k (arXiv 1910.04867): 19 tasks of 1,000 training pictures, in three groups, and what the paper published of them.

The protocol: 800 pictures to learn from and 200 to choose by; then all 1,000 for the run that is measured, once, on all test
pictures. The paper takes one rate for all tasks (2,500 steps at 384 px); at our smaller scale the rate is searched on the 200.
Pictures are stretched to the square. In structured tasks, whose answers a crop or a mirror would change, training sees
pictures as they are. A mean over tasks is given where none of them is missing.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from patchword.data.questions import QUESTIONS
from patchword.data.vtab import LITE, LITE_TASKS, PREFIX, TASKS
from patchword.evaluation.memory import identity
from patchword.models.contract import Model
from patchword.models.cost import cost
from patchword.studies.experiment import Arm, Experiment, Measured, Published, Scale, Stage

GROUPS = ("natural", "specialised", "structured")
PUBLISHED = ("ViT-H/14, JFT", "ViT-L/16, JFT", "ViT-L/16, I21k")
"""Whose figures the paper has for each task (Table 9)."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One of the nineteen."""

    group: str
    classes: int
    published: tuple[float, float, float]
    """Accuracy in %, in the order of `PUBLISHED`."""


FACTS: dict[str, Task] = {
    "caltech101": Task("natural", 102, (95.3, 95.4, 90.8)),
    "cifar100": Task("natural", 100, (85.5, 81.9, 84.1)),
    "dtd": Task("natural", 47, (75.2, 74.3, 74.1)),
    "flowers102": Task("natural", 102, (99.7, 99.7, 99.3)),
    "pets": Task("natural", 37, (97.2, 96.7, 92.7)),
    "sun397": Task("natural", 397, (65.0, 63.5, 61.0)),
    "svhn": Task("natural", 10, (88.9, 87.4, 80.9)),
    "camelyon": Task("specialised", 2, (83.3, 83.6, 82.5)),
    "eurosat": Task("specialised", 10, (96.7, 96.5, 95.6)),
    "resisc45": Task("specialised", 45, (91.4, 89.7, 85.2)),
    "retinopathy": Task("specialised", 5, (76.6, 77.1, 75.3)),
    "clevr-count": Task("structured", 8, (91.7, 86.4, 70.3)),
    "clevr-distance": Task("structured", 6, (63.8, 63.1, 56.1)),
    "dmlab": Task("structured", 6, (53.1, 49.7, 41.9)),
    "dsprites-location": Task("structured", 16, (79.4, 74.5, 74.7)),
    "dsprites-orientation": Task("structured", 16, (63.3, 60.5, 64.9)),
    "kitti-distance": Task("structured", 4, (84.5, 82.2, 79.9)),
    "smallnorb-azimuth": Task("structured", 18, (33.2, 36.2, 30.5)),
    "smallnorb-elevation": Task("structured", 9, (51.2, 51.1, 41.7)),
}
STEPS = {"smoke": 12, "laptop": 300, "full": 0}
"""Of a task, at each scale; 0: the 2,500 of the preset."""


def group_of(task: str) -> str:
    """The group of a task of either benchmark."""
    if task in FACTS:
        return FACTS[task].group
    return "structured" if task in QUESTIONS else "natural"


def stage(address: str, scale: Scale, **changes: Any) -> Stage:
    """The run of a task that is measured: on all 1,000 pictures, which a structured task shows as they are."""
    task = address.partition(":")[2].partition("=")[0]
    wishes: dict[str, Any] = {"learn_validation": True, "preprocessing": {"resize": "stretch"}, **changes}
    if group_of(task) == "structured":
        wishes["augment"] = {"crop": "resize", "flip": False}
    recipe = "paper-finetune/vtab" if scale.name == "full" else "finetune"
    return Stage(data=address, steps=STEPS[scale.name], recipe=recipe, changes=wishes)


def experiment(model: Model, weights: str, *, lite: bool, data: Mapping[str, str]) -> Experiment:
    """The benchmark for somebody's weights; `data` says where the data of some tasks is."""
    name = "vtab-lite" if lite else "vtab"
    origin = identity(model)

    def arms(scale: Scale) -> list[Arm]:
        size = [384, 384] if scale.name == "full" else list(model.image_size)
        flops = cost(model.with_image_size((size[0], size[1]))).train_flops
        return [
            Arm(
                label=task,
                series=group_of(task),
                published="" if lite else f"{task}, {PUBLISHED[-1]}",
                model=model.name,
                weights=weights,
                origin=origin,
                flops_per_image=flops,
                after=stage(_address(task, lite, data), scale, image_size=size),
            )
            for task in sorted(LITE_TASKS if lite else TASKS, key=lambda task: GROUPS.index(group_of(task)))
        ]

    published = (
        ()
        if lite
        else tuple(
            Published(f"{task}, {who}", who, value)
            for task, facts in FACTS.items()
            for who, value in zip(PUBLISHED, facts.published, strict=True)
        )
    )
    return Experiment(
        name=name,
        weights=weights,
        places=dict(data),
        title="VTAB-lite" if lite else "VTAB-1k",
        question=f"How well does {model.name} adapt to tasks of 1,000 pictures?",
        source="section 4.2, Table 9; nine tasks that every machine can have" if lite else "section 4.2, Table 9",
        arms=arms,
        measures=lambda scale: "accuracy in % on all test pictures of each task",
        published=published,
        published_is="" if lite else "accuracy in % of " + "; ".join(PUBLISHED),
    )


def _address(task: str, lite: bool, data: Mapping[str, str]) -> str:
    return f"{LITE}{task}" if lite else f"{PREFIX}{task}" + (f"={data[task]}" if task in data else "")


def group_means(measured: Sequence[Measured], wanted: Mapping[str, int]) -> dict[str, list[float] | None]:
    """Group → the mean of its tasks for each seed; None where fewer than `wanted` of them have a value with every seed."""
    means: dict[str, list[float] | None] = {}
    for group, count in wanted.items():
        rows = [each.known for each in measured if each.arm.series == group and None not in each.values and each.values]
        means[group] = [float(np.mean(row)) for row in zip(*rows, strict=True)] if len(rows) == count else None
    return means


def sizes_of_groups(*, lite: bool) -> dict[str, int]:
    """Group → how many tasks it has."""
    tasks = LITE_TASKS if lite else TASKS
    counts = {group: sum(group_of(task) == group for task in tasks) for group in GROUPS}
    return {group: count for group, count in counts.items() if count}
