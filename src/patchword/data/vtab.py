"""`vtab:TASK` and `vtab-lite:TASK`: any task in VTAB-1k's form, 800 training pictures, 200 to choose by, all of test.

    vtab:cifar100        vtab:dmlab=hf://datasets/somebody/dmlab        vtab-lite:count

VTAB (arXiv 1910.04867) measures how well weights adapt to 19 tasks of 1,000 pictures. A task is looked for in `vtab-1k/` of the
data folders, where the 800/200 lists that are passed around are taken as they are; else it is the public set of its name; or
what stands behind the equals sign, any data set that `open_data` takes. From a whole set, 800 and 200 pictures are drawn by a
hash of their names, of each class its share: not the published ones, which the split rule says.

`vtab-lite` is what every machine has: five questions about drawn shapes (`questions.py`) and four small sets of photographs.
"""

import dataclasses
import os
from pathlib import Path

import numpy as np

from patchword.core.errors import DataError, nearest
from patchword.data.assemble import assemble
from patchword.data.dataset import Dataset, Split
from patchword.data.formats import named
from patchword.data.questions import QUESTIONS, find_question
from patchword.data.splits import first_of

PREFIX, LITE = "vtab:", "vtab-lite:"
TRAIN, VALIDATION = 800, 200
FOLDER = "vtab-1k"

TASKS: dict[str, tuple[str, str]] = {
    "caltech101": ("caltech101", "caltech101"),
    "cifar100": ("cifar", "cifar100"),
    "dtd": ("dtd", "dtd"),
    "flowers102": ("oxford_flowers102", "flowers102"),
    "pets": ("oxford_iiit_pet", "pets"),
    "sun397": ("sun397", "sun397"),
    "svhn": ("svhn", "svhn"),
    "camelyon": ("patch_camelyon", "patch_camelyon"),
    "eurosat": ("eurosat", "eurosat"),
    "resisc45": ("resisc45", "resisc45"),
    "retinopathy": ("diabetic_retinopathy", "diabetic_retinopathy"),
    "clevr-count": ("clevr_count", "clevr_count"),
    "clevr-distance": ("clevr_dist", "clevr_dist"),
    "dmlab": ("dmlab", "dmlab"),
    "dsprites-location": ("dsprites_loc", "dsprites_loc"),
    "dsprites-orientation": ("dsprites_ori", "dsprites_ori"),
    "kitti-distance": ("kitti", "kitti"),
    "smallnorb-azimuth": ("smallnorb_azi", "smallnorb_azi"),
    "smallnorb-elevation": ("smallnorb_ele", "smallnorb_ele"),
}
"""Name here → the folder in `vtab-1k/` as it is passed around, and the named set."""
LITE_SETS = ("digits", "fashion-mnist", "clothing", "cifar10")
LITE_TASKS = (*QUESTIONS, *LITE_SETS)


def is_vtab(data: str | os.PathLike[str]) -> bool:
    """Whether `data` is an address of this kind."""
    return os.fspath(data).startswith((PREFIX, LITE))


def open_vtab(address: str, classes: tuple[str, ...] | None = None) -> Dataset:
    """The task of an address; raises `DataError` where there is no such task, or its data is nowhere."""
    from patchword.data.sources import open_data

    if address.startswith(LITE):
        task = address.removeprefix(LITE)
        if task in QUESTIONS:
            return assemble(find_question(task), classes)
        if task not in LITE_SETS:
            raise DataError(f"{address}: there is no such task; {nearest(task, LITE_TASKS)}")
        return _in_form(open_data(task, classes=classes), address)
    task, _, data = address.removeprefix(PREFIX).partition("=")
    if task not in TASKS:
        raise DataError(f"{address}: there is no such task; {nearest(task, TASKS)}")
    if data:
        return _in_form(open_data(data, classes=classes), address)
    if folder := _beside(task):
        return _in_form(open_data(folder, classes=classes), address)
    try:
        return _in_form(open_data(TASKS[task][1], classes=classes), address)
    except DataError as error:
        place = f"$PATCHWORD_DATA/{FOLDER}/{TASKS[task][0]}"
        raise DataError(
            f"{address} is not on this machine ({error}); put it into {place}, or say {address}=DATA"
        ) from error


def _beside(task: str) -> Path | None:
    """Where the task lies in the form of VTAB-1k."""
    places = [
        place / FOLDER / name for place in (*named.data_folders(), named.cache()) for name in (TASKS[task][0], task)
    ]
    return next((place for place in places if place.is_dir()), None)


def _in_form(dataset: Dataset, address: str) -> Dataset:
    """The data set with 800 pictures in train, 200 in validation and test as it is."""
    if dataset.multi_label:
        raise DataError(f"{dataset.location} has several labels a picture; the tasks of VTAB have one")
    splits = dict(dataset.splits)
    train, held_out = splits["train"], splits.get("validation")
    if "test" not in splits and held_out is not None:
        splits["test"], held_out = held_out, None
    if "test" not in splits:
        raise DataError(f"{dataset.location} has no pictures to test on, which the task {address} needs")
    if held_out is not None and (len(train), len(held_out)) == (TRAIN, VALIDATION):
        rule = "Train and validation are the 800 and 200 pictures that come with the data set."
    else:
        needed = TRAIN if held_out is not None and len(held_out) >= VALIDATION else TRAIN + VALIDATION
        if len(train) < needed:
            raise DataError(
                f"{dataset.location} has {len(train):,} training pictures; the task {address} needs {needed:,}"
            )
        rule = "800 and 200 pictures, of each class its share, chosen by a hash of each picture's name: not the published ones."
        if needed == TRAIN:
            assert held_out is not None
            splits["validation"] = _some(held_out, VALIDATION)
            splits["train"] = _some(train, TRAIN)
        else:
            both = _some(train, needed)
            chosen = first_of(both.keys(), both.labels, VALIDATION, seed=1)
            splits["validation"] = both.subset(chosen)
            splits["train"] = both.subset(np.setdiff1d(np.arange(len(both)), chosen))
    name = address.replace(":", "-").partition("=")[0]
    return dataclasses.replace(dataset, name=name, location=address, splits=splits, split_rule=rule, carved=False)


def _some(split: Split, count: int) -> Split:
    return split.subset(first_of(split.keys(), split.labels, count))
