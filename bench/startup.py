"""What a user waits for before anything is computed: help, the first prediction, opening a million names."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.shapes import Job
from bench.systems import ours

_COLD_STARTS = {
    "patchword": """
import patchword as pw
from PIL import Image
import torch
model = pw.load_model("{folder}/patchword")
with torch.inference_mode():
    print(model(model.preprocess(Image.open("{folder}/picture.png"))).argmax().item())
""",
    "timm": """
import timm, torch
from PIL import Image
model = timm.create_model("local-dir:{folder}/timm", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
with torch.inference_mode():
    print(model(transform(Image.open("{folder}/picture.png"))[None]).argmax().item())
""",
    "transformers": """
import torch
from PIL import Image
from transformers import ViTForImageClassification, ViTImageProcessor
model = ViTForImageClassification.from_pretrained("{folder}/transformers").eval()
processor = ViTImageProcessor.from_pretrained("{folder}/transformers")
with torch.inference_mode():
    print(model(**processor(Image.open("{folder}/picture.png"), return_tensors="pt")).logits.argmax().item())
""",
}

_OPEN = """
import json, pathlib, sys, time
from patchword.data.sources import open_data
began = time.perf_counter()
count = sum(len(split) for split in open_data(sys.argv[1]).splits.values())
own = [line.split()[1] for line in pathlib.Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line]
peak = int(own[0]) * 1024  # ru_maxrss would be at least that of the process that started this one
print(json.dumps({"pictures": count, "seconds": time.perf_counter() - began, "peak_bytes": peak}))
"""


_SAVE_LARGE = """
import sys, patchword as pw
pw.save_model(pw.create_model("ViT-L/16"), sys.argv[1])
"""
_LOAD_LARGE = """
import json, pathlib, sys, time
from patchword.core.files import sha256
import patchword.models.names
from patchword.weights.io import load_model
def peak():
    status = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in status if "VmHWM" in line)) * 1024
weights = pathlib.Path(sys.argv[1]) / "model.safetensors"
sha256(weights)  # once for the page cache
before, began = peak(), time.perf_counter()
sha256(weights)
hashed = time.perf_counter()
load_model(sys.argv[1])
loaded = time.perf_counter()
print(json.dumps({"load": loaded - hashed, "hash": hashed - began, "peak_bytes": peak() - before,
                  "file_bytes": weights.stat().st_size}))
"""


def help_seconds(rounds: int) -> list[float]:
    """From the start of `patchword --help` to its end."""
    return [_run([str(Path(sys.executable).with_name("patchword")), "--help"])[0] for _ in range(rounds)]


def cold_start(rounds: int) -> dict[str, list[float]]:
    """Process start to the first prediction of a saved ViT-S/16 on one picture, the systems in turn."""
    with tempfile.TemporaryDirectory() as folder:
        _save(Path(folder))
        scripts = {name: script.format(folder=folder) for name, script in _COLD_STARTS.items()}
        for script in scripts.values():  # once for the page cache and the compiled modules
            _run([sys.executable, "-c", script])
        seconds: dict[str, list[float]] = {name: [] for name in scripts}
        for number in range(rounds):
            order = list(scripts) if number % 2 == 0 else list(reversed(scripts))
            for name in order:
                seconds[name].append(_run([sys.executable, "-c", scripts[name]])[0])
    return seconds


def large_model(rounds: int) -> dict[str, list[float]]:
    """Loading ViT-L/16 (1.2 GB) from a folder, beside reading and hashing its file; seconds, and bytes at the peak."""
    with tempfile.TemporaryDirectory() as folder:
        _run([sys.executable, "-c", _SAVE_LARGE, folder])
        figures: dict[str, list[float]] = {"load": [], "hash": [], "peak_bytes": [], "file_bytes": []}
        for _ in range(rounds):
            for name, value in json.loads(_run([sys.executable, "-c", _LOAD_LARGE, folder])[1]).items():
                figures[name].append(value)
    return figures


def million_names(count: int = 1_000_000, classes: int = 1000) -> dict[str, dict[str, float]]:
    """Open a folder and a table that name `count` (empty) files; nothing is decoded, so nothing needs to be in them."""
    found = {}
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        pictures, table = Path(folder) / "pictures", Path(folder) / "table.csv"
        with table.open("w") as rows:
            rows.write("path,label\n")
            for label in range(classes):
                (pictures / f"class-{label:04d}").mkdir(parents=True)
                for number in range(count // classes):
                    name = f"class-{label:04d}/picture-{number:06d}.jpg"
                    os.mknod(pictures / name)
                    rows.write(f"pictures/{name},class-{label:04d}\n")
        for kind, path in (("folder", pictures), ("table", table)):
            found[kind] = json.loads(_run([sys.executable, "-c", _OPEN, str(path)])[1])
    return found


def _save(folder: Path) -> None:
    import torch
    from PIL import Image

    from patchword.weights.io import save_model

    model = ours(Job("forward", "S", 1))
    save_model(model, folder / "patchword")
    save_model(model, folder / "timm", format="timm")
    save_model(model, folder / "transformers", format="huggingface")
    pixels = torch.randint(256, (300, 400, 3), dtype=torch.uint8).numpy()
    Image.fromarray(pixels).save(folder / "picture.png")


def _run(command: list[str]) -> tuple[float, str]:
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{command[:3]} failed: {done.stderr[-2000:]}")
    return seconds, done.stdout
