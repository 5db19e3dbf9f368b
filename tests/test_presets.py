"""Every preset, field by field, against a second copy that was entered by hand from the sources."""

import dataclasses
from typing import Any

import pytest

from patchword.training import recipe as recipes

DEFAULTS: dict[str, Any] = {
    "name": "",
    "data": "",
    "train_images": 0,
    "train_images_seed": 0,
    "validation_share": 0.0,
    "learn_validation": False,
    "init": "none",
    "zero_init_residual": False,
    "resampling": "official",
    "tune": "all",
    "image_size": (0, 0),
    "objective": "",
    "seed": 0,
    "batch_size": 256,
    "micro_batch": 0,
    "device": "auto",
    "threads": 0,
    "budget.steps": 0,
    "budget.epochs": 0.0,
    "budget.minutes": 0.0,
    "budget.pflop": 0.0,
    "augment.crop": "random-resized",
    "augment.crop_area": (0.05, 1.0),
    "augment.shift_pixels": 4,
    "augment.flip": True,
    "augment.randaugment_layers": 0,
    "augment.randaugment_magnitude": 0.0,
    "augment.erasing": 0.0,
    "augment.mixup": 0.0,
    "augment.cutmix": 0.0,
    "optimizer.name": "adamw",
    "optimizer.lr": 0.001,
    "optimizer.matrix_lr": 0.02,
    "optimizer.kernel_lr": 0.0,
    "optimizer.weight_decay": 0.0,
    "optimizer.betas": (0.9, 0.999),
    "optimizer.momentum": 0.9,
    "optimizer.clip_norm": 1.0,
    "optimizer.layer_decay": 1.0,
    "schedule.warmup": 0.05,
    "schedule.decay": "cosine",
    "regularization.dropout": 0.0,
    "regularization.stochastic_depth": 0.0,
    "regularization.label_smoothing": 0.0,
    "regularization.patch_dropout": 0.0,
    "regularization.average_decay": 0.0,
    "balance.sampling": 0.0,
    "balance.class_weights": 0.0,
    "teacher.weights": "",
    "teacher.share": 0.5,
    "teacher.temperature": 1.0,
    "teacher.unlabelled": "",
    "teacher.confidence": 0.0,
    "evaluation.every_steps": 0,
    "evaluation.batch_size": 0,
    "evaluation.final": "test",
    "evaluation.mirror": False,
    "checkpoint.every_steps": 0,
    "checkpoint.every_minutes": 15.0,
    "checkpoint.keep": 2,
    "compute.precision": "auto",
    "compute.recompute": False,
    "compute.compile": False,
    "compute.sharded": "auto",
    "compute.timeout": 600.0,
    "guard.spike": 0.0,
    "guard.rollbacks": 0,
    "loading.in_memory": "auto",
    "loading.memory_share": 0.25,
    "loading.workers": -1,
    "loading.duplicates": "auto",
}
"""A recipe that says nothing."""

SCRATCH = {
    "batch_size": 64,
    "model.pool": "gap",
    "model.position": "sincos",
    "budget.epochs": 60.0,
    "augment.crop": "auto",
    "augment.crop_area": (0.3, 1.0),
    "optimizer.lr": 0.002,
    "optimizer.weight_decay": 0.05,
    "regularization.label_smoothing": 0.1,
    "regularization.average_decay": 0.998,
}
FINETUNE = {
    "batch_size": 128,
    "budget.epochs": 15.0,
    "augment.crop": "auto",
    "augment.crop_area": (0.5, 1.0),
    "optimizer.lr": 0.0003,
    "optimizer.weight_decay": 0.05,
    "optimizer.layer_decay": 0.8,
    "schedule.warmup": 0.1,
    "regularization.label_smoothing": 0.1,
    "regularization.average_decay": 0.998,
}
# "Better plain ViT baselines" (arXiv 2205.01580): its own head is one tanh layer before the linear one, as big_vision's
# `rep_size=True` says; RandAugment(2, 10) and MixUp 0.2; weight decay 1e-4 beside the learning rate of 1e-3.
PLAIN_VIT = {
    "batch_size": 1024,
    "image_size": (224, 224),
    "model.name": "ViT-S/16",
    "model.pool": "gap",
    "model.position": "sincos",
    "model.hidden_head": True,
    "budget.epochs": 90.0,
    "augment.randaugment_layers": 2,
    "augment.randaugment_magnitude": 10.0,
    "augment.mixup": 0.2,
    "optimizer.weight_decay": 0.1,
    "schedule.warmup": 10_000.0,
}
# Table 3 and its caption; section 4.1 has Adam's averages, appendix B.1 the clipping on ImageNet alone.
PAPER_IMAGENET = {
    "batch_size": 4096,
    "image_size": (224, 224),
    "model.pool": "token",
    "model.position": "1d",
    "model.hidden_head": True,
    "budget.epochs": 300.0,
    "optimizer.lr": 0.003,
    "optimizer.weight_decay": 0.3,
    "schedule.warmup": 10_000.0,
    "regularization.dropout": 0.1,
}


def _table_3(epochs: float, lr: float, weight_decay: float, dropout: float) -> dict[str, Any]:
    return {
        **PAPER_IMAGENET,
        "budget.epochs": epochs,
        "optimizer.lr": lr,
        "optimizer.weight_decay": weight_decay,
        "optimizer.clip_norm": 0.0,
        "schedule.decay": "linear",
        "regularization.dropout": dropout,
    }


# Table 4; the warm-up is the original code's 500 steps, where these are at most a fifth of the run.
PAPER_FINETUNE = {
    "batch_size": 512,
    "image_size": (384, 384),
    "preprocessing.resize": "stretch",
    "budget.steps": 10_000,
    "optimizer.name": "sgd",
    "optimizer.lr": 0.01,
    "schedule.warmup": 500.0,
}
# Ours: docs/pretraining.md has the trials.
SPEEDRUN = {
    "model.name": "C3+ViT-Fe/8",
    "model.pool": "gap",
    "model.depth": 1,
    "zero_init_residual": True,
    "budget.pflop": 0.02,
    "augment.crop": "shift",
    "augment.shift_pixels": 2,
    "optimizer.name": "muon",
    "optimizer.lr": 1e-2,
    "optimizer.weight_decay": 0.02,
    "optimizer.betas": (0.9, 0.95),
    "optimizer.momentum": 0.6,
    "optimizer.kernel_lr": 0.1,
    "optimizer.clip_norm": 0.0,
    "schedule.warmup": 0.1,
    "schedule.decay": "linear",
    "regularization.label_smoothing": 0.1,
    "evaluation.mirror": True,
}


def _hybrid(pflop: float, channels: list[int]) -> dict[str, Any]:
    """Width, twice that in the MLP and heads of 32 follow from the last stage of the stem."""
    return {
        **SPEEDRUN,
        "budget.pflop": pflop,
        "model.stem_channels": channels,
        "model.stem_depth": 2,
        "model.stem_whitening": 24,
        "model.stem_activation": "silu",
        "model.embed_dim": channels[-1],
        "model.num_heads": channels[-1] // 32,
        "model.mlp_dim": 2 * channels[-1],
    }


def _plain(pflop: float, name: str, depth: int, heads: int, mlp_dim: int) -> dict[str, Any]:
    return {
        **SPEEDRUN,
        "budget.pflop": pflop,
        "model.name": name,
        "model.position": "rope",
        "model.gelu": "erf",
        "model.depth": depth,
        "model.num_heads": heads,
        "model.mlp_dim": mlp_dim,
        "optimizer.lr": 3e-3,
        "optimizer.momentum": 0.95,
    }


# "Self-training with Noisy Student" (arXiv 1911.04252), section 3.1; the rest is `scratch`.
# The optimizer of `speedrun` at half its rate of matrices.
FINETUNE_MUON = {
    **FINETUNE,
    "batch_size": 64,
    "augment.crop_area": (0.3, 1.0),
    "optimizer.name": "muon",
    "optimizer.lr": 1e-2,
    "optimizer.matrix_lr": 0.01,
    "optimizer.kernel_lr": 0.1,
    "optimizer.weight_decay": 0.02,
    "optimizer.betas": (0.9, 0.95),
    "optimizer.momentum": 0.95,
    "optimizer.clip_norm": 0.0,
    "optimizer.layer_decay": 1.0,
    "schedule.decay": "linear",
    "regularization.average_decay": 0.0,
}
# `speedrun` with the crops and the batches of `scratch`, its width left open.
HYBRID = {
    **{field: value for field, value in SPEEDRUN.items() if not field.startswith(("model.", "budget."))},
    "model.pool": "gap",
    "model.depth": 1,
    "model.stem_depth": 2,
    "model.stem_whitening": 24,
    "model.stem_activation": "silu",
    "batch_size": 64,
    "budget.epochs": 20.0,
    "augment.crop": "auto",
    "augment.shift_pixels": 4,
    "augment.crop_area": (0.3, 1.0),
    "evaluation.mirror": False,
}
# That, for the hybrid's model, and the noise.
NOISY_STUDENT = {
    **{field: value for field, value in HYBRID.items() if field.startswith("model.")},
    **FINETUNE_MUON,
    "budget.epochs": 20.0,
    "augment.randaugment_layers": 2,
    "augment.randaugment_magnitude": 10.0,
    "regularization.dropout": 0.1,
    "regularization.stochastic_depth": 0.2,
    "regularization.label_smoothing": 0.0,
    "teacher.share": 0.0,
    "teacher.confidence": 0.3,
}
PRESETS: dict[str, dict[str, Any]] = {
    "hybrid": HYBRID,
    "scratch": SCRATCH,
    "finetune": FINETUNE,
    "finetune/muon": FINETUNE_MUON,
    "plain-vit": PLAIN_VIT,
    "noisy-student": NOISY_STUDENT,
    "speedrun/hybrid-0.02": _hybrid(0.02, [16, 64, 64]),
    "speedrun/hybrid-0.1": _hybrid(0.1, [32, 128, 128]),
    "speedrun/hybrid-0.4": _hybrid(0.4, [64, 256, 256]),
    "speedrun/plain-0.02": _plain(0.02, "ViT-At/4", 4, 4, 128),
    "speedrun/plain-0.1": _plain(0.1, "ViT-Fe/4", 6, 6, 192),
    "speedrun/plain-0.4": _plain(0.4, "ViT-Pi/4", 8, 8, 384),
    "paper-imagenet": PAPER_IMAGENET,
    "paper-imagenet/i21k-B": _table_3(90.0, 0.001, 0.03, 0.1),
    "paper-imagenet/i21k-L": _table_3(30.0, 0.001, 0.03, 0.1),
    "paper-imagenet/jft-B": _table_3(7.0, 0.0008, 0.1, 0.0),
    "paper-imagenet/jft-L32": _table_3(7.0, 0.0006, 0.1, 0.0),
    "paper-imagenet/jft-L16": _table_3(14.0, 0.0004, 0.1, 0.0),
    "paper-imagenet/jft-H": _table_3(14.0, 0.0003, 0.1, 0.0),
    "paper-finetune": PAPER_FINETUNE,
    "paper-finetune/cifar": PAPER_FINETUNE,
    "paper-finetune/imagenet": {**PAPER_FINETUNE, "budget.steps": 20_000, "regularization.average_decay": 0.9999},
    "paper-finetune/pets": {**PAPER_FINETUNE, "budget.steps": 500, "schedule.warmup": 0.2},
    "paper-finetune/flowers": {**PAPER_FINETUNE, "budget.steps": 500, "schedule.warmup": 0.2},
    "paper-finetune/vtab": {**PAPER_FINETUNE, "budget.steps": 2500},
}
"""What each says beyond the defaults, under dotted names; what is not here is the default."""


def flat(values: dict[str, Any], where: str = "") -> dict[str, Any]:
    """Nested tables → dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{where}{name}.") if isinstance(value, dict) else {where + name: value}
    return found


def test_no_preset_is_missing_from_the_copy() -> None:
    assert set(PRESETS) == set(recipes.presets())


def test_a_recipe_that_says_nothing_is_the_defaults() -> None:
    assert flat(dataclasses.asdict(recipes.Recipe())) == DEFAULTS


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_its_copy_in_every_field(name: str) -> None:
    assert flat(dataclasses.asdict(recipes.load(name))) == {**DEFAULTS, "name": name, **PRESETS[name]}
