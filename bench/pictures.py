"""From JPEG bytes to a training batch on one core: random-resized crop to 224 px, flip, normalised float32 B×3×224×224.

Everyone gets the same bytes, batch by batch, in one process without workers; who is next turns round (ABBA). Crops are
8 to 100 % of the picture's area, bilinear with antialiasing. Decoding alone is shown beside them, as it bounds them all.
"""

import io
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

BATCH = 40
SIDE = 224
AREA = (0.08, 1.0)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FOLDER = Path(os.environ.get("PATCHWORD_DATA") or Path(__file__).parents[2] / "shared" / "data") / "imagenet-sample"
"""200 photographs of ImageNet, of mostly 500×375 pixels."""

Pass = Callable[[list[bytes]], Iterator[object]]
"""All pictures once: one result a batch."""


def patchword(contents: list[bytes]) -> Iterator[Tensor]:
    """What `TrainLoader` does for a batch that it streams."""
    from patchword.core.preprocessing import Preprocessing
    from patchword.data.augment import Augment
    from patchword.data.decoding.part import open_picture

    preprocessing = Preprocessing(image_size=(SIDE, SIDE), mean=MEAN, std=STD)
    augment = Augment(crop="random-resized", crop_area=AREA)
    for start in range(0, len(contents), BATCH):
        ids = np.arange(start, min(start + BATCH, len(contents)))
        pictures = [open_picture(contents[index], 3) for index in ids]
        images = augment(pictures, preprocessing, seed=0, epochs=np.zeros_like(ids), ids=ids)
        yield preprocessing.normalize(images)


def torchvision_pil(contents: list[bytes]) -> Iterator[Tensor]:
    """torchvision's v2 transforms on Pillow pictures, as its data sets give them."""
    from torchvision.transforms import v2

    steps = [v2.RandomResizedCrop((SIDE, SIDE), antialias=True), v2.RandomHorizontalFlip(0.5), v2.ToImage()]
    transform = v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(MEAN), list(STD))])
    return _stacked(contents, lambda content: transform(_pillow(content)))


def torchvision_tensors(contents: list[bytes]) -> Iterator[Tensor]:
    """torchvision's v2 transforms on tensors of its own decoder, as its documentation advises for speed."""
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import v2

    steps = [v2.RandomResizedCrop((SIDE, SIDE), antialias=True), v2.RandomHorizontalFlip(0.5)]
    transform = v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(MEAN), list(STD))])
    return _stacked(
        contents,
        lambda content: transform(decode_image(torch.frombuffer(content, dtype=torch.uint8), ImageReadMode.RGB)),
    )


def timm(contents: list[bytes], **options: Any) -> Iterator[Tensor]:
    """timm's transform for training; without `color_jitter=None` it jitters colours, too."""
    from timm.data.transforms_factory import create_transform

    transform: Any = create_transform(SIDE, is_training=True, mean=MEAN, std=STD, **options)
    return _stacked(contents, lambda content: transform(_pillow(content)))


def decoding(contents: list[bytes]) -> Iterator[Image.Image]:
    """Pillow's decoder alone."""
    return map(_pillow, contents)


SYSTEMS: dict[str, Pass] = {
    "patchword": patchword,
    "torchvision v2 on PIL": torchvision_pil,
    "torchvision v2 on tensors": torchvision_tensors,
    "timm": lambda contents: timm(contents, color_jitter=None),
    "timm with its colour jitter": timm,
    "Pillow's decoder alone": decoding,
}


def measure(rounds: int) -> dict[str, Any]:
    """Pictures, and for each system wall and processor seconds for all of them, one figure a round."""
    from patchword.core.runtime import keep_memory

    warnings.filterwarnings("ignore")  # that a tensor of bytes must not be written to
    torch.set_num_threads(1)
    keep_memory()  # as in training; it serves everyone
    contents = [path.read_bytes() for path in sorted(FOLDER.iterdir())]
    seconds: dict[str, list[float]] = {name: [] for name in SYSTEMS}
    cpu: dict[str, list[float]] = {name: [] for name in SYSTEMS}
    for number in range(-1, rounds):  # the first one warms up
        for name in list(SYSTEMS) if number % 2 == 0 else reversed(SYSTEMS):
            began, used = time.perf_counter(), time.process_time()
            for _ in SYSTEMS[name](contents):
                pass
            if number >= 0:
                seconds[name].append(time.perf_counter() - began)
                cpu[name].append(time.process_time() - used)
    versions = {name: version(name) for name in ("pillow", "simplejpeg", "torchvision", "timm")}
    return {"pictures": len(contents), "versions": versions, "seconds": seconds, "cpu": cpu}


def show(found: dict[str, Any]) -> None:
    """One line a system: pictures a second, the median and the extremes, and how many times as long it takes."""
    from bench.timing import ratio

    print(f"\nJPEG bytes → augmented batch at {SIDE} px, one core, {found['pictures']} photographs of ImageNet")
    print(f"  {'':28}{'pictures/s':>11}{'least':>8}{'most':>8}   ours is faster by   by CPU time")
    for name, seconds in found["seconds"].items():
        speeds = [found["pictures"] / each for each in seconds]
        middle, low, high = ratio(found["seconds"]["patchword"], seconds)
        by_cpu = ratio(found["cpu"]["patchword"], found["cpu"][name])[0]
        faster = "" if name == "patchword" else f"{middle:6.2f}× [{low:.2f}, {high:.2f}]{by_cpu:10.2f}×"
        print(
            f"  {name:28}{statistics.median(speeds):11.0f}{min(speeds):8.0f}{max(speeds):8.0f}   {faster}", flush=True
        )


def _stacked(contents: list[bytes], transform: Callable[[bytes], Tensor]) -> Iterator[Tensor]:
    for start in range(0, len(contents), BATCH):
        yield torch.stack([transform(content) for content in contents[start : start + BATCH]])


def _pillow(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content)).convert("RGB")


if __name__ == "__main__":
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])
    json.dump(measure(int(sys.argv[1])), sys.stdout)
