"""The systems side by side: one plain ViT with the same weights and the same GELU (erf, the peers' default) in each.

A system is a context: entering builds a job, and gives what to repeat and the logits of a few fixed images.
Letters: B images, C channels, D width, P patch side.
"""

import functools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.limit import gemm
from bench.shapes import SHAPES, THREADS, Job
from patchword.core.runtime import keep_memory
from patchword.data.loader import Batch
from patchword.models.contract import Model
from patchword.models.names import create_model
from patchword.models.vit import ViT
from patchword.training.machine import comfortable_micro_batch
from patchword.training.objectives import Softmax
from patchword.training.optimizer import OptimizerConfig, build_optimizer
from patchword.training.passes import Passes
from patchword.training.recipe import Recipe
from patchword.training.step import train_step
from patchword.weights.io import save_model

LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 1e-5, 0.05, 1.0

Make = Callable[[Model], nn.Module]


class Built(NamedTuple):
    step: Callable[[], object]
    logits: Tensor


System = Callable[[Job], AbstractContextManager[Built]]


def ours(job: Job, **options: Any) -> Model:
    """The model whose weights all systems get, with a head that is not zero, so that logits tell something."""
    shape = SHAPES[job.shape]
    torch.manual_seed(0)
    merged: dict[str, Any] = {**shape.options, **options}
    model = create_model(shape.model, shape.num_classes, shape.image_size, **merged)
    if isinstance(model, ViT) and model.class_token is not None:
        nn.init.normal_(model.class_token, std=0.02)
    assert isinstance(model.head, nn.Linear)
    nn.init.normal_(model.head.weight, std=0.05)
    return model


def pictures(job: Job) -> tuple[Tensor, Tensor]:
    """uint8 B×C×H×W and their labels."""
    shape = SHAPES[job.shape]
    generator = torch.Generator().manual_seed(1)
    size = (job.batch, 3, shape.image_size, shape.image_size)
    images = torch.randint(256, size, generator=generator, dtype=torch.uint8)
    return images, torch.randint(shape.num_classes, (job.batch,), generator=generator)


@contextmanager
def patchword(job: Job, **options: Any) -> Iterator[Built]:
    """The training loop's own step, normalisation of uint8 pictures included; or the model as a user calls it."""
    keep_memory()  # as the verbs do
    model = ours(job, **options)
    images, labels = pictures(job)
    with torch.inference_mode():
        normalised = model.preprocessing.normalize(images)
        logits = model.eval()(normalised[:2])
    if job.kind == "forward":
        yield Built(functools.partial(_infer, model, normalised), logits)
        return
    micro_batch = comfortable_micro_batch(model, job.batch, THREADS)
    recipe = Recipe(
        batch_size=job.batch,
        micro_batch=micro_batch,
        threads=THREADS,
        optimizer=OptimizerConfig(lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, clip_norm=CLIP_NORM),
    )
    optimizer = build_optimizer(recipe.optimizer, model)
    ids = np.arange(job.batch)
    batch = Batch(images, labels, torch.ones(job.batch), ids, np.zeros_like(ids))
    with Passes(model.train(), Softmax(model.num_classes), threads=THREADS) as passes:
        yield Built(lambda: train_step(passes, optimizer, batch, recipe, 0), logits)


@contextmanager
def peer(make: Make, job: Job, compiled: bool = False) -> Iterator[Built]:
    """A peer's model in the usual loop: cross-entropy, backward, clipping, fused AdamW; pictures normalised before."""
    source = ours(job)
    images, labels = pictures(job)
    normalised = source.preprocessing.normalize(images)
    model = make(source).eval()
    with torch.inference_mode():
        logits = model(normalised[:2])
    run: Callable[[Tensor], Tensor] = torch.compile(model) if compiled else model
    if job.kind == "forward":
        yield Built(functools.partial(_infer, run, normalised), logits)
        return
    model.train()
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(run(normalised), labels).backward()
        nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()

    yield Built(step, logits)


@contextmanager
def onnxruntime(job: Job) -> Iterator[Built]:
    """timm's model, exported by PyTorch and run with all of ONNX Runtime's graph optimisations."""
    import onnxruntime as ort

    source = ours(job)
    images = source.preprocessing.normalize(pictures(job)[0])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(timm(source).eval(), (images,), path, dynamo=True, verbose=False)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = THREADS, 3
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: images.numpy()}
    yield Built(lambda: session.run(None, feed), torch.from_numpy(session.run(None, feed)[0])[:2])


@contextmanager
def roofline(job: Job) -> Iterator[Built]:
    """The machine's limit: `GEMM_FLOPS` a step."""
    yield Built(gemm(), torch.zeros(0))


def _infer(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(images)


def timm(source: Model) -> nn.Module:
    import timm as library

    with tempfile.TemporaryDirectory() as folder:
        save_model(source, folder, format="timm")
        return library.create_model(f"local-dir:{folder}", pretrained=True)


def transformers(source: Model) -> nn.Module:
    from transformers import ViTForImageClassification

    with tempfile.TemporaryDirectory() as folder:
        save_model(source, folder, format="huggingface")
        return _Logits(ViTForImageClassification.from_pretrained(folder))


def torchvision(source: Model) -> nn.Module:
    from torchvision.models import VisionTransformer

    assert isinstance(source, ViT)
    config = source.config
    model = VisionTransformer(
        image_size=source.image_size[0],
        patch_size=config.patch_size,
        num_layers=config.depth,
        num_heads=config.num_heads,
        hidden_dim=config.embed_dim,
        mlp_dim=config.mlp_dim,
        num_classes=source.num_classes,
    )
    names = {
        "blocks.": "encoder.layers.encoder_layer_",
        ".norm1.": ".ln_1.",
        ".norm2.": ".ln_2.",
        ".attention.qkv.": ".self_attention.in_proj_",
        ".attention.proj.": ".self_attention.out_proj.",
        ".mlp.fc1.": ".mlp.0.",
        ".mlp.fc2.": ".mlp.3.",
    }
    state = _renamed(source, names, patch="conv_proj", token="class_token", table="encoder.pos_embedding")
    for old, new in (("norm.", "encoder.ln."), ("head.", "heads.head.")):
        for kind in ("weight", "bias"):
            state[new + kind] = state.pop(old + kind)
    model.load_state_dict(state)
    return model


class _Logits(nn.Module):
    """The logits alone, as the others give them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits


def _renamed(source: ViT, names: dict[str, str], *, patch: str, token: str, table: str) -> dict[str, Tensor]:
    """Our weights under another library's names; the patch projection becomes its convolution D×C×P×P."""
    state: dict[str, Any] = {name: value.clone() for name, value in source.state_dict().items()}
    weight = state.pop("patch_embed.weight")
    side = source.config.patch_size
    renamed = {
        f"{patch}.weight": weight.view(len(weight), -1, side, side),
        f"{patch}.bias": state.pop("patch_embed.bias"),
        token: state.pop("class_token")[None, None],
        table: state.pop("position.table")[None],
    }
    for name, value in state.items():
        new = name
        for old, other in names.items():
            new = new.replace(old, other)
        renamed[new] = value
    return renamed


EAGER: dict[str, System] = {
    "patchword": patchword,
    "timm": functools.partial(peer, timm),
    "transformers": functools.partial(peer, transformers),
    "torchvision": functools.partial(peer, torchvision),
}
OTHERS: dict[str, System] = {
    "patchword, tanh GELU": functools.partial(patchword, gelu="tanh"),
    "timm compiled": functools.partial(peer, timm, compiled=True),
    "transformers compiled": functools.partial(peer, transformers, compiled=True),
    "torchvision compiled": functools.partial(peer, torchvision, compiled=True),
    "ONNX Runtime": onnxruntime,
    "roofline": roofline,
}
SYSTEMS = EAGER | OTHERS
