"""What was published of each experiment, in percent: by the paper (arXiv 2010.11929), table by table, and where it has no numbers
by whoever measured its weights.
"""

from patchword.studies import vtab
from patchword.studies.experiment import Published

TABLE1 = {
    "ViT-B/16": (12, 768, 3072, 12, 86),
    "ViT-L/16": (24, 1024, 4096, 16, 307),
    "ViT-H/14": (32, 1280, 5120, 16, 632),
}
"""Layers, width, MLP size, heads, and parameters in millions."""

_TABLE2: dict[str, dict[str, tuple[float, float | None]]] = {
    "ViT-H/14, JFT": {
        "ImageNet": (88.55, 0.04),
        "ReaL": (90.72, 0.05),
        "CIFAR-10": (99.50, 0.06),
        "CIFAR-100": (94.55, 0.04),
        "Pets": (97.56, 0.03),
        "Flowers-102": (99.68, 0.02),
        "VTAB": (77.63, 0.23),
    },
    "ViT-L/16, JFT": {
        "ImageNet": (87.76, 0.03),
        "ReaL": (90.54, 0.03),
        "CIFAR-10": (99.42, 0.03),
        "CIFAR-100": (93.90, 0.05),
        "Pets": (97.32, 0.11),
        "Flowers-102": (99.74, 0.00),
        "VTAB": (76.28, 0.46),
    },
    "ViT-L/16, I21k": {
        "ImageNet": (85.30, 0.02),
        "ReaL": (88.62, 0.05),
        "CIFAR-10": (99.15, 0.03),
        "CIFAR-100": (93.25, 0.05),
        "Pets": (94.67, 0.15),
        "Flowers-102": (99.61, 0.02),
        "VTAB": (72.72, 0.21),
    },
    "BiT-L, R152x4": {
        "ImageNet": (87.54, 0.02),
        "ReaL": (90.54, None),
        "CIFAR-10": (99.37, 0.06),
        "CIFAR-100": (93.51, 0.08),
        "Pets": (96.62, 0.23),
        "Flowers-102": (99.63, 0.03),
        "VTAB": (76.29, 1.70),
    },
    "Noisy Student, EfficientNet-L2": {"ImageNet": (88.4, None), "ReaL": (90.55, None)},
}
TABLE2 = tuple(
    Published(f"{model} on {data}", data, values[data][0], spread=values[data][1])
    for data in _TABLE2["ViT-H/14, JFT"]
    for model, values in _TABLE2.items()
    if data in values
)

_SETS = ("ImageNet", "ImageNet-21k", "JFT-300M")
_TABLE5 = {
    "ViT-B/16": (77.91, 83.97, 84.15),
    "ViT-B/32": (73.38, 81.28, 80.73),
    "ViT-L/16": (76.53, 85.15, 87.12),
    "ViT-L/32": (71.16, 80.99, 84.37),
}
"""Accuracy on ImageNet, by the set of pre-training."""
TABLE5 = tuple(
    Published(f"{model}, {data}", model, value, float(place))
    for model, values in _TABLE5.items()
    for place, (data, value) in enumerate(zip(_SETS, values, strict=True), start=1)
)
TABLE5_PATCHES = tuple(
    Published(name, name[4], _TABLE5[name][1]) for name in ("ViT-B/32", "ViT-B/16", "ViT-L/32", "ViT-L/16")
)

_TABLE6 = (
    ("ViT-B/32", 80.73, 55),
    ("ViT-B/16", 84.15, 224),
    ("ViT-L/32", 84.37, 196),
    ("ViT-L/16", 86.30, 783),
    ("ViT-L/16", 87.12, 1567),
    ("ViT-H/14", 88.08, 4262),
    ("R50x1", 77.54, 50),
    ("R50x2", 82.12, 199),
    ("R101x1", 80.67, 96),
    ("R152x1", 81.88, 141),
    ("R152x2", 84.97, 563),
    ("R152x2", 85.56, 1126),
    ("R200x3", 87.22, 3306),
    ("R50+B/32", 84.90, 106),
    ("R50+B/16", 85.58, 274),
    ("R50+L/32", 85.68, 246),
    ("R50+L/16", 86.60, 859),
    ("R50+L/16", 87.12, 1668),
)
"""Accuracy on ImageNet and exaFLOPs of pre-training on JFT."""
TABLE6 = tuple(
    Published(
        f"{name}, {flops} exaFLOPs",
        "ViT" if name.startswith("ViT") else "hybrid" if "+" in name else "ResNet",
        value,
        float(flops),
    )
    for name, value, flops in _TABLE6
)

TABLE7 = (
    Published("R50x1, Adam", "R50x1", 89.33),
    Published("R50x1, SGD", "R50x1", 88.79),
    Published("R152x2, Adam", "R152x2", 94.01),
    Published("R152x2, SGD", "R152x2", 93.72),
)

TABLE8 = (
    Published("no positions", "positions", 61.382),
    Published("1-D", "positions", 64.206),
    Published("2-D", "positions", 64.001),
    Published("relative", "positions", 64.032),
)

TABLE9 = tuple(
    Published(
        f"{model}, {group}",
        group,
        round(sum(task.published[place] for task in tasks) / len(tasks), 2),
    )
    for group in vtab.GROUPS
    for tasks in [[task for task in vtab.FACTS.values() if task.group == group]]
    for place, model in enumerate(vtab.PUBLISHED)
)
"""The means over the tasks of each group."""

MASKED = (
    Published("from nothing", "starts", _TABLE5["ViT-B/16"][0]),
    Published("masked patches", "starts", 79.9),
    Published("supervised", "starts", _TABLE5["ViT-B/16"][2]),
)
"""Section 4.6 and Table 5."""

AUGREG = (
    Published("Ti/16 at 224", "Ti/16", 75.45),
    Published("Ti/16 at 384", "Ti/16", 78.44),
    Published("S/16 at 224", "S/16", 81.40),
    Published("S/16 at 384", "S/16", 83.81),
    Published("B/16 at 224", "B/16", 84.53),
    Published("B/16 at 384", "B/16", 86.01),
    Published("L/16 at 224", "L/16", 85.86),
    Published("L/16 at 384", "L/16", 87.10),
)
"""The weights of "How to train your ViT" (arXiv 2106.10270) from ImageNet-21k, as timm measured them."""
