"""patchword: the Vision Transformer, whole. The public names are loaded on first use: importing patchword imports no torch."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patchword.core.errors import DataError, FaultError, PatchwordError, StoppedError, UsageError
    from patchword.core.preprocessing import Preprocessing
    from patchword.data.sources import open_data
    from patchword.models.names import create_model, list_models
    from patchword.verbs.compare import compare
    from patchword.verbs.evaluate import evaluate
    from patchword.verbs.explain import explain
    from patchword.verbs.predict import predict
    from patchword.verbs.train import train
    from patchword.weights.io import load_model, save_model

_WHERE = {
    "DataError": "core.errors",
    "FaultError": "core.errors",
    "PatchwordError": "core.errors",
    "Preprocessing": "core.preprocessing",
    "StoppedError": "core.errors",
    "UsageError": "core.errors",
    "compare": "verbs.compare",
    "create_model": "models.names",
    "evaluate": "verbs.evaluate",
    "explain": "verbs.explain",
    "list_models": "models.names",
    "load_model": "weights.io",
    "open_data": "data.sources",
    "predict": "verbs.predict",
    "save_model": "weights.io",
    "train": "verbs.train",
}

__all__ = [
    "DataError",
    "FaultError",
    "PatchwordError",
    "Preprocessing",
    "StoppedError",
    "UsageError",
    "compare",
    "create_model",
    "evaluate",
    "explain",
    "list_models",
    "load_model",
    "open_data",
    "predict",
    "save_model",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'patchword' has no attribute {name!r}")
    return getattr(importlib.import_module(f"patchword.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
