"""What the size of a data set costs: the making of its index, and the memory of a process that trains on it.

Sets of 10 thousand, 100 thousand and a million samples are written as tar shards, indexed and read, each step in a process of
its own. The files are dropped from the system's cache before they are indexed.
"""

import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

COUNTS = (10_000, 100_000, 1_000_000)
CLASSES = 1000
SAMPLES_A_SHARD = 10_000
DIFFERENT = 64
"""Pictures that are really made; the samples repeat them."""

_MEMORY = """
import json, sys, time
from pathlib import Path
def memory():
    # What is the process's own and cannot be dropped; and the pages of indices, which are the system's cache.
    told = dict(line.split()[:2] for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    mapped, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if not line.split()[0].endswith(":"):
            inside = line.endswith("shards.index")
        elif inside and line.startswith("Rss:"):
            mapped += int(line.split()[1])
    return int(told["Private_Dirty:"]) * 1024, mapped * 1024
"""

_INDEX = (
    _MEMORY
    + """
import os, threading
import patchword.data.loader
from patchword.data.sources import open_data
open_data(sys.argv[2])  # what libraries take once is no matter of size
before, most, done = memory()[0], 0, threading.Event()
def watch():
    global most
    while not done.wait(0.05):
        most = max(most, memory()[0])
watcher = threading.Thread(target=watch)
watcher.start()
began, cpu = time.perf_counter(), time.thread_time()
dataset = open_data(sys.argv[1])
seconds, cpu = time.perf_counter() - began, time.thread_time() - cpu
done.set()
watcher.join()
print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "growth_at_peak": max(0, most - before),
                  "load": os.getloadavg()[0], "samples": sum(len(split) for split in dataset.splits.values())}))
"""
)

_TRAIN = (
    _MEMORY
    + """
import itertools
import torch
from patchword.core.preprocessing import Preprocessing
from patchword.data.augment import Augment
from patchword.data.loader import TrainLoader
from patchword.data.sources import open_data
torch.set_num_threads(1)
def take(split, steps):
    with TrainLoader(split, preprocessing=Preprocessing(image_size=(32, 32)), augment=Augment(), batch_size=128, seed=1,
                     store=None, workers=0) as loader:
        began = time.perf_counter()
        for batch in itertools.islice(loader, steps):
            assert batch.weights.min() == 1
        return time.perf_counter() - began
# First on the smallest set: what torch and Pillow take once is no matter of size.
warm = open_data(sys.argv[2])
warm.fingerprint(), warm.splits["train"].sketch(), take(warm.splits["train"], 30)
del warm
before = memory()
began = time.perf_counter()
dataset = open_data(sys.argv[1])
opened, seconds = memory(), time.perf_counter() - began
dataset.fingerprint(), dataset.splits["train"].sketch()
known = time.perf_counter() - began - seconds
taking = take(dataset.splits["train"], 100)
after = memory()
print(json.dumps({"open_seconds": seconds, "fingerprint_seconds": known, "pictures_per_second": 12_800 / taking,
                  "private": after[0], "growth_open": opened[0] - before[0], "growth": after[0] - before[0],
                  "mapped": after[1]}))
"""
)


def measure(counts: tuple[int, ...] = COUNTS) -> list[dict[str, Any]]:
    """One row of figures for each number of samples, printed as they come."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        smallest = _write(Path(folder) / "smallest", 2_000)
        _run(_INDEX, smallest, smallest)
        for count in counts:
            data = _write(Path(folder) / str(count), count)
            row: dict[str, Any] = {"count": count, "bytes": sum(path.stat().st_size for path in data.glob("*.tar"))}
            _forget(data)
            row["index"] = _run(_INDEX, data, smallest)
            row["index_bytes"] = (data / "shards.index").stat().st_size
            row["training"] = _run(_TRAIN, data, smallest)
            rows.append(row)
            _show(row)
            for path in data.iterdir():
                path.unlink()
    return rows


def _write(folder: Path, count: int) -> Path:
    from PIL import Image

    from patchword.data.shards import tar

    folder.mkdir()
    chance = np.random.default_rng(0)
    pictures = []
    for _ in range(DIFFERENT):
        content = io.BytesIO()
        Image.fromarray(chance.integers(256, size=(32, 32, 3), dtype=np.uint8)).resize((40, 40)).save(content, "JPEG")
        pictures.append(content.getvalue())
    for split, first, last in (("train", 0, count - count // 50), ("validation", count - count // 50, count)):
        for number, start in enumerate(range(first, last, SAMPLES_A_SHARD)):
            with (folder / f"{split}-{number:06d}.tar").open("wb") as file:
                for sample in range(start, min(start + SAMPLES_A_SHARD, last)):
                    label = int.from_bytes(hashlib.blake2b(b"%d" % sample, digest_size=4).digest()) % CLASSES
                    label = sample if sample < CLASSES else label
                    key = b"class-%04d/picture-%08d" % (label, sample)
                    for ending, content in ((b".jpg", pictures[sample % DIFFERENT]), (b".cls", b"%d" % label)):
                        file.write(tar.header(key + ending, len(content)) + tar.padded(content))
                file.write(tar.END)
    return folder


def _forget(folder: Path) -> None:
    """Have the system drop its copies of the files, so that they are read from the disk."""
    for path in folder.iterdir():
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def _run(script: str, *arguments: Path) -> dict[str, Any]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"a measurement failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def _show(row: dict[str, Any]) -> None:
    index, training = row["index"], row["training"]
    mib = {name: training[name] / 2**20 for name in ("private", "growth", "mapped")}
    print(f"\n{row['count']:,} samples, {row['bytes'] / 1e9:.2f} GB, load {index['load']:.1f}")
    print(f"  index made in {index['seconds']:.1f} s, {index['cpu_seconds']:.1f} s of them CPU (a million: below 60 s)")
    print(
        f"  private memory grown by {index['growth_at_peak'] / 2**20:.1f} MiB while it is made; {row['index_bytes'] / 1e6:.1f} MB"
    )
    print(
        f"  opened again in {training['open_seconds']:.2f} s; fingerprint, sketch {training['fingerprint_seconds']:.1f} s"
    )
    print(
        f"  private memory of training {mib['private']:.0f} MiB, grown by {mib['growth']:.1f} MiB since before opening"
    )
    print(
        f"  pages of the index mapped {mib['mapped']:.1f} MiB; {training['pictures_per_second']:.0f} pictures/s",
        flush=True,
    )
