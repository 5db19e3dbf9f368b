"""Maps of a few pictures of a split, as thumbnails for the page of a run."""

from typing import Any

import numpy as np

from patchword.core.errors import UsageError
from patchword.core.picture import DecodeError
from patchword.data.dataset import Split
from patchword.data.decoding.decode import decode
from patchword.evaluation.mistakes import thumbnail
from patchword.explanation.maps import as_images, choose
from patchword.explanation.overlay import overlay
from patchword.models.contract import Model


def add_maps(model: Model, split: Split, rows: list[dict[str, Any]]) -> str | None:
    """Give rows that name a picture by its `index` a `map`: what the model saw of it, with where it looked, as a data URL.

    What the maps are of is returned in words; None, and no map, where the model gives none. A picture that can no longer be
    read gets None.
    """
    try:
        choice = choose(model)
        for row in rows:
            row["map"] = None
            try:
                pixels = model.preprocessing.fit(decode(split.read(row["index"]), model.in_channels))
            except DecodeError:
                continue
            values = choice.of(model, as_images(model, pixels[None]))[0]
            row["map"] = thumbnail(np.ascontiguousarray(overlay(pixels, values.float().cpu().numpy())))
    except UsageError:  # no head, or more patches than memory has room for
        return None
    return choice.words
