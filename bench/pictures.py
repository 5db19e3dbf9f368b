"""Pictures a second from JPEG bytes to a training batch, on one core: `python -m bench.pictures`, and a part of `make bench`.

Everybody gets the same bytes, takes a random-resized crop of 224 px with the same bounds and flips every second picture.
timm and torchvision, as their documentation has it, end with normalised floats for each picture; ours leaves that to the
device, for a whole batch, and it is counted here. The processor's time is measured, in turns: a busy machine hits all alike.
"""

import io
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_SIDE, _AREA, _BATCH = 224, (0.08, 1.0), 64
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def lines(rounds: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """One sentence with its figures; nothing where the photographs are not there."""
    if not _photographs():
        yield "pictures a second: no photographs here (PATCHWORD_DATA names a folder with imagenet-sample)", {}
        return
    command = [sys.executable, "-m", "bench.pictures", str(rounds)]
    rates: dict[str, list[float]] = json.loads(subprocess.check_output(command, text=True))
    ours = rates["patchword"]
    others = "; ".join(
        f"{name} {statistics.median(rate):.0f}, ours is {_spread([a / b for a, b in zip(ours, rate, strict=True)])} times as fast"
        for name, rate in rates.items()
        if name != "patchword"
    )
    yield (
        f"pictures a second from JPEG to batch on one core at {_SIDE} px: patchword {statistics.median(ours):.0f}; {others}",
        rates,
    )


def _spread(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def _photographs() -> list[Path]:
    beside = Path(__file__).parents[2] / "shared" / "data"
    return sorted((Path(os.environ.get("PATCHWORD_DATA", beside)) / "imagenet-sample").glob("*.JPEG"))[:_BATCH]


def _systems(contents: list[bytes]) -> dict[str, Callable[[], object]]:
    import warnings

    import numpy as np
    import torch
    from PIL import Image
    from timm.data.transforms_factory import create_transform
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms import v2

    from patchword.core.preprocessing import Preprocessing
    from patchword.data.augment import Augment
    from patchword.data.dataset import Split
    from patchword.data.loader import TrainLoader

    class Contents:
        prefix = "photographs"

        def __len__(self) -> int:
            return len(contents)

        def read(self, row: int) -> bytes:
            return contents[row]

        def key(self, row: int) -> bytes:
            return str(row).encode()

        def digest(self, rows: np.ndarray | None) -> bytes:
            return b""

    warnings.simplefilter("ignore")  # torchvision's decoder is on its way out
    preprocessing = Preprocessing(image_size=(_SIDE, _SIDE), interpolation="bilinear", mean=_MEAN, std=_STD)
    loader = TrainLoader(
        Split(Contents(), np.zeros(len(contents), np.int64)),
        preprocessing=preprocessing,
        augment=Augment(crop="random-resized", crop_area=_AREA),
        batch_size=len(contents),
        seed=0,
        store=None,
        workers=0,
    )
    loader.close()  # nothing is to run ahead of the clock
    build, steps = loader.build, iter(range(10**6))

    class Never:
        def is_set(self) -> bool:
            return False

    def ours() -> object:
        batch, _ = build(next(steps), Never())
        return preprocessing.normalize(batch.images)

    crop = [v2.RandomResizedCrop(_SIDE, scale=_AREA, antialias=True), v2.RandomHorizontalFlip()]
    tensors = v2.Compose([*crop, v2.ToDtype(torch.float32, scale=True), v2.Normalize(_MEAN, _STD)])
    pillow = v2.Compose([*crop, v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(_MEAN, _STD)])
    plain = create_transform(_SIDE, is_training=True, scale=_AREA, color_jitter=0.0, interpolation="bilinear")

    def opened(content: bytes) -> Image.Image:
        return Image.open(io.BytesIO(content)).convert("RGB")

    def as_tensor(content: bytes) -> torch.Tensor:
        return decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), mode=ImageReadMode.RGB)  # type: ignore

    return {
        "patchword": ours,
        "torchvision v2 (tensors)": lambda: torch.stack([tensors(as_tensor(content)) for content in contents]),
        "torchvision v2 (Pillow)": lambda: torch.stack([pillow(opened(content)) for content in contents]),
        "timm": lambda: torch.stack([plain(opened(content)) for content in contents]),  # type: ignore
        "decoding alone (Pillow)": lambda: [opened(content) for content in contents],
    }


def _measure(rounds: int) -> dict[str, list[float]]:
    import torch

    torch.set_num_threads(1)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    systems = _systems([path.read_bytes() for path in _photographs()])
    rates: dict[str, list[float]] = {name: [] for name in systems}
    for turn in range(-1, rounds):
        for name, run in systems.items() if turn % 2 else reversed(systems.items()):
            began = time.process_time()
            run()
            if turn >= 0:
                rates[name].append(_BATCH / (time.process_time() - began))
    return rates


if __name__ == "__main__":
    print(json.dumps(_measure(int(sys.argv[1]))))
