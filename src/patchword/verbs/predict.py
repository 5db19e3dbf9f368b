"""`patchword predict`: a saved model, some pictures → their labels with probabilities, or their features."""

import csv
import io
from pathlib import Path
from typing import Any

from patchword.core.errors import UsageError
from patchword.verbs.options import Images, ModelSource, Target
from patchword.verbs.pictures import fitted, picture_files

_BATCH = 8


def predict(
    model: ModelSource,
    images: Images,
    *,
    top: int = 5,
    features: bool = False,
    out: Target = None,
) -> list[dict[str, Any]]:
    """Name what is on pictures: for each one `image` and `predictions` (label and probability, the likeliest first).

    A picture that cannot be read gets an `error` instead; the others are predicted all the same.

    Args:
        model: A run folder, a model folder or other weights (in Python also a model).
        images: Picture files, or folders whose pictures are taken.
        top: How many labels to give for each picture.
        features: Give the features before the head instead of labels (needs --out FILE.npz at the command line).
        out: Write the result to this file: .csv for labels, .npz for features.
    """
    import numpy as np
    import torch

    from patchword.core.picture import DecodeError
    from patchword.weights.io import as_model

    target = None if out is None else Path(out)
    if target is not None and target.suffix != (".npz" if features else ".csv"):
        raise UsageError(
            f"--out {target}: {'features are written as .npz' if features else 'labels are written as .csv'}"
        )
    if top < 1:
        raise UsageError(f"--top {top} must be at least 1")
    paths = picture_files(images)
    loaded = as_model(model)
    device = next(loaded.parameters()).device
    names = loaded.labels or tuple(str(i) for i in range(loaded.num_classes))
    if not features and not loaded.num_classes:
        raise UsageError(f"{loaded.name} has no head, so it names nothing; --features gives what it sees")
    rows: list[dict[str, Any]] = []
    for start in range(0, len(paths), _BATCH):
        pixels, readable = [], []
        for path in paths[start : start + _BATCH]:
            row: dict[str, Any] = {"image": str(path)}
            rows.append(row)
            try:
                pixels.append(fitted(path, loaded))
                readable.append(row)
            except DecodeError as error:
                row["error"] = error.reason
        if not pixels:
            continue
        batch = loaded.preprocessing.normalize(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2))
        with torch.inference_mode():
            outputs = loaded.features(batch.to(device)) if features else loaded.probabilities(batch.to(device))
        for row, output in zip(readable, outputs.cpu(), strict=True):
            if features:
                row["features"] = output.numpy()
            else:
                best = output.topk(min(top, len(names)))
                pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
                row["predictions"] = [{"label": names[i], "probability": p} for i, p in pairs]
    if target is not None:
        _write(target, rows, features)
    return rows


def show(rows: list[dict[str, Any]]) -> str:
    """One block a picture, as a person reads it at a terminal."""
    lines = []
    for row in rows:
        if "error" in row:
            lines.append(f"{row['image']}: {row['error']}")
        elif "features" in row:
            lines.append(f"{row['image']}: {len(row['features'])} features, which --out FILE.npz keeps")
        else:
            answers = "  ".join(f"{each['label']} {100 * each['probability']:.1f} %" for each in row["predictions"])
            lines.append(f"{row['image']}: {answers}")
    return "\n".join(lines)


def _write(target: Path, rows: list[dict[str, Any]], features: bool) -> None:
    from patchword.core import files

    if features:
        import numpy as np

        kept = [row for row in rows if "features" in row]
        buffer = io.BytesIO()
        arrays = {
            "images": np.array([row["image"] for row in kept]),
            "features": np.array([row["features"] for row in kept]),
        }
        np.savez(buffer, allow_pickle=False, **arrays)
        files.write_bytes(target, buffer.getvalue())
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "rank", "label", "probability", "error"])
    for row in rows:
        if "error" in row:
            writer.writerow([row["image"], "", "", "", row["error"]])
        for rank, answer in enumerate(row.get("predictions", []), 1):
            writer.writerow([row["image"], rank, answer["label"], f"{answer['probability']:.6f}", ""])
    files.write_text(target, text.getvalue())
