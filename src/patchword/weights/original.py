"""The same images through the library that weights come from, where it is installed, and through ours."""

import contextlib
import dataclasses
import importlib.util
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchword.core.errors import UsageError, brief
from patchword.models.contract import Model
from patchword.weights import io
from patchword.weights.source import Source

TOLERANCE = 1e-4
"""The largest difference that counts as none, for outputs up to 1, and in proportion beyond."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two answers to the same images."""

    other: str
    """Who gave the other answer."""
    outputs: str
    """What was compared: logits or features."""
    images: int
    largest_difference: float
    largest_output: float

    @property
    def agrees(self) -> bool:
        return self.largest_difference <= TOLERANCE * max(1.0, self.largest_output)

    def __str__(self) -> str:
        return (
            f"{self.other} {'agrees' if self.agrees else 'DIFFERS'}: {self.outputs} of {self.images} random images differ by "
            f"{self.largest_difference:.2g} at most, and are {self.largest_output:.3g} at most"
        )


def compare(source: Source, model: Model) -> Comparison | str:
    """Our `model`, as read from `source`, beside the original library with the tensors of `source`; or why there is nothing
    to compare.

    timm and transformers are asked as their users ask them, with the folder's own description; for bare tensors the
    description is ours, so that a wrong assumption of ours would be theirs as well.
    """
    if source.dialect == "patchword":
        return "these are patchword's own weights: there is no other library to compare with"
    if source.dialect == "google":
        return "the original code, which needs JAX, has no part in this; patchword's tests hold its recorded outputs"
    library, answer = _LIBRARIES[source.dialect]
    if importlib.util.find_spec(library) is None:
        return f"{library} is not installed, so that there is nothing to compare with"
    images = random_images(model)
    ours = outputs(model, images)
    try:
        with _description(source, model) as folder, torch.inference_mode():
            theirs = answer(source, folder, model, images)
    except UsageError as error:
        return f"without a description of its own, {library} needs one from here ({error})"
    except Exception as error:  # whatever the library raises is what there is to say of it
        alone = "" if source.description else ", bare as it is, with the description that is made for it here"
        fault = f"{type(error).__name__}: {brief(error)}"
        return f"{library} {version(library)} does not load it{alone} ({fault})"
    return _compared(f"{library} {version(library)}", model, ours, theirs)


def compare_models(name: str, model: Model, other: Model) -> Comparison:
    """The outputs of two models of ours for the same images; `name` is the other."""
    images = random_images(model)
    return _compared(name, model, outputs(model, images), outputs(other, images))


def random_images(model: Model, count: int = 2) -> Tensor:
    """Normalised images B×C×H×W, always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, model.in_channels, *model.image_size, generator=generator)


def outputs(model: Model, images: Tensor) -> Tensor:
    """Logits, or features where there is no head."""
    with torch.inference_mode():
        return model.eval()(images.to(next(model.parameters())))


def _compared(other: str, model: Model, ours: Tensor, theirs: Tensor) -> Comparison:
    kind = f"{model.num_classes:,} logits" if model.num_classes else f"{model.num_features:,} features"
    largest = theirs.abs().max().item()
    if ours.shape != theirs.shape:
        return Comparison(other, f"{kind}, of which it gives {theirs[0].numel():,},", len(ours), math.inf, largest)
    return Comparison(other, kind, len(ours), (ours - theirs).abs().max().item(), largest)


@contextlib.contextmanager
def _description(source: Source, model: Model) -> Iterator[Path]:
    """A folder with a `config.json`: the source's own, else one that we write for the model."""
    if source.description:
        yield source.where if source.where.is_dir() else source.where.parent
        return
    with tempfile.TemporaryDirectory() as aside:
        io.save_model(model, Path(aside) / "model", source.dialect)
        yield Path(aside) / "model"


def _timm(source: Source, folder: Path, model: Model, images: Tensor) -> Tensor:
    import timm

    layout = {} if source.description else _tokens(source.tensors, model)
    net = timm.create_model(f"local-dir:{folder}", pretrained=False, **layout)
    net.load_state_dict(dict(source.tensors))
    return net.eval()(images)


def _tokens(tensors: Mapping[str, Tensor], model: Model) -> dict[str, Any]:
    """timm's arguments for the tokens before the patches: our description may lay the same model out in another way."""
    if "patch_embed.proj.weight" not in tensors or model.grid is None:
        return {}
    registers = tensors["reg_token"].shape[1] if "reg_token" in tensors else 0
    slots = tensors["pos_embed"].shape[1] - math.prod(model.grid) if "pos_embed" in tensors else 0
    token = "cls_token" in tensors
    return {"class_token": token, "reg_tokens": registers, "no_embed_class": bool(token or registers) and slots == 0}


def _transformers(source: Source, folder: Path, model: Model, images: Tensor) -> Tensor:
    import transformers

    config = transformers.ViTConfig.from_pretrained(folder)
    hidden = bool(getattr(model.config, "hidden_head", False))
    options: dict[str, Any] = {} if model.num_classes else {"add_pooling_layer": hidden}
    kind: Any = transformers.ViTForImageClassification if model.num_classes else transformers.ViTModel
    with _without_progress_bar():
        net, report = kind.from_pretrained(
            None, config=config, state_dict=dict(source.tensors), output_loading_info=True, **options
        )
    if report["missing_keys"] or report["mismatched_keys"]:
        raise ValueError(f"it misses {sorted(report['missing_keys']) or sorted(report['mismatched_keys'])}")
    answer = net.float().eval()(images)  # widened as ours is
    if model.num_classes:
        return answer.logits
    return answer.pooler_output if hidden else answer.last_hidden_state[:, 0]


@contextlib.contextmanager
def _without_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


_LIBRARIES: dict[str, tuple[str, Callable[[Source, Path, Model, Tensor], Tensor]]] = {
    "timm": ("timm", _timm),
    "huggingface": ("transformers", _transformers),
}
