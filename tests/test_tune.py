"""What is tuned: only that changes, all of that does; low-rank updates by PEFT, by hand, and without a trace at the end."""

import copy
import dataclasses
import hashlib
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from patchword import cli
from patchword.core import config
from patchword.core.errors import StoppedError, UsageError
from patchword.data.loader import Batch
from patchword.models import linear
from patchword.models.contract import Model
from patchword.models.cost import cost
from patchword.models.names import create_model
from patchword.models.vit import ViT
from patchword.training import loop
from patchword.training import recipe as recipes
from patchword.training.objectives import Softmax
from patchword.training.optimizer import Average, OptimizerConfig, build_optimizer
from patchword.training.passes import Passes
from patchword.training.run import run
from patchword.training.step import train_step
from patchword.training.tune import LowRank, merge, tune
from patchword.weights.io import load_model, save_model

# Which parameters each way lets learn, written down a second time. A model of two blocks.
LEARN = {
    "all": r".*",
    "head": r"head\..*",
    "attention": r"(blocks\.[01]\.attention\.(qkv|proj)\.(weight|bias)|head\..*)",
    "lora:3": r"(blocks\.[01]\.attention\.(qkv|proj)\.(down|up)|head\..*)",
}


def vit(**options: Any) -> ViT:
    torch.manual_seed(5)
    sizes = {"depth": 2, "embed_dim": 24, "num_heads": 3, "mlp_dim": 29}
    model = create_model("ViT-At/8", 3, (16, 24), **{**sizes, **options})
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.labels = ("ant", "bee", "cat")
    assert isinstance(model, ViT)
    return model


def disturb(model: Model) -> None:
    """Random numbers in the updates, which begin without effect."""
    for name, parameter in model.named_parameters():
        if name.endswith(".up"):
            nn.init.normal_(parameter, std=0.7)


def batch(count: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(5)
    return Batch(
        images=torch.randint(0, 256, (count, 3, 16, 24), generator=generator, dtype=torch.uint8),
        labels=torch.arange(count) % 3,
        weights=torch.ones(count),
        ids=np.arange(count),
        epochs=np.zeros(count, np.int64),
    )


def steps(model: Model, count: int, threads: int = 1, **optimizer: Any) -> tuple[torch.optim.Optimizer, float]:
    """Some steps with weight decay; the optimizer and the last norm."""
    settings = OptimizerConfig(**{"lr": 1e-2, "weight_decay": 0.1, **optimizer})
    recipe = dataclasses.replace(recipes.Recipe(micro_batch=2), optimizer=settings)
    made, norm = build_optimizer(recipe.optimizer, model), 0.0
    with Passes(model.train(), Softmax(3), threads=threads) as passes:
        for step in range(count):
            _, norm = train_step(passes, made, batch(), recipe, step)
    return made, norm


@pytest.mark.parametrize("what", LEARN)
@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_only_what_is_tuned_changes_and_all_of_it(what: str, name: str) -> None:
    model = vit()
    model.regularize(dropout=0.1, stochastic_depth=0.1)
    tune(model, what, 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    average = Average(model, 0.9)
    optimizer, norm = steps(model, 2, name=name)
    for step in range(3):
        average.update(model, step)
    held = {name for group in optimizer.param_groups for name in group["names"]}
    for name_of, parameter in model.named_parameters():
        learns = re.fullmatch(LEARN[what], name_of) is not None
        assert parameter.requires_grad == learns == (name_of in held), name_of
        assert (parameter.grad is not None and bool(parameter.grad.any())) == learns, name_of
        assert (parameter in optimizer.state) == learns, name_of
        assert torch.equal(parameter, before[name_of]) == (not learns), name_of
        assert torch.equal(average.weights[name_of], before[name_of]) == (not learns), name_of
    found = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm().item()
    assert min(norm, 1.0) == pytest.approx(found, rel=1e-5), "the norm, and the clipping, are of what learns alone"


def test_with_the_head_alone_the_body_is_as_in_evaluation() -> None:
    model = vit()
    model.regularize(dropout=0.5, stochastic_depth=0.5)
    images = torch.randn(4, 3, 16, 24)
    expected = model.eval()(images).detach()
    tune(model, "head", 0)
    for _ in range(2):
        assert model.train().training
        assert model.head.training
        features = model.features(images)
        assert not features.requires_grad
        torch.testing.assert_close(model(images), expected)
        model.eval()
    assert not copy.deepcopy(model).train().blocks[0].training
    merge(model)
    assert model.train().blocks[0].training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not torch.allclose(model(images), expected)


def test_with_the_head_alone_batch_norm_stands_still() -> None:
    model = create_model("EfficientNet-B0", 3, (32, 32))
    tune(model, "head", 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()(torch.randn(3, 3, 32, 32)).sum().backward()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {"head.weight", "head.bias"}


def test_the_tanh_layer_is_part_of_the_head() -> None:
    model = vit(hidden_head=True)
    tune(model, "head", 0)
    learn = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learn == {"pre_logits.weight", "pre_logits.bias", "head.weight", "head.bias"}


@pytest.mark.parametrize("position", ["1d", "relative"])
@pytest.mark.parametrize("pool", ["token", "gap", "map"])
def test_low_rank_updates_begin_as_the_identity_and_merge_without_a_trace(pool: str, position: str) -> None:
    model, images = vit(pool=pool, position=position).eval(), torch.randn(4, 3, 16, 24)
    expected, names = model(images).detach(), list(model.state_dict())
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    tune(model, "lora:3", 7)
    qkv = model.blocks[1].attention.qkv
    assert isinstance(qkv, LowRank)
    assert (qkv.down.shape, qkv.up.shape) == ((3, 3, 24), (3, 8 * 3, 3))
    assert 0.15 < qkv.down.abs().max() <= 24**-0.5
    torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-6)
    disturb(model)
    with torch.inference_mode():
        tuned = model(images)
        assert not linear.applies(model.blocks[0], torch.randn(1, 7, 24))
    assert (tuned - expected).abs().max() > 0.05
    by_hand = weights["blocks.1.attention.qkv.weight"].clone()
    for i in range(3):
        by_hand[24 * i : 24 * i + 24] += (qkv.up[i] @ qkv.down[i]).detach()
    merge(model)
    torch.testing.assert_close(model.blocks[1].attention.qkv.weight.detach(), by_hand, rtol=0, atol=1e-6)
    assert list(model.state_dict()) == names
    assert type(model.blocks[0].attention.proj) is linear.Linear
    scale = expected.abs().max().item()
    torch.testing.assert_close(model(images), tuned, rtol=0, atol=1e-6 * max(1.0, scale))
    with torch.inference_mode():
        assert linear.applies(model.blocks[0], torch.randn(1, 7, 24)) == (position != "relative")
        torch.testing.assert_close(model(images), tuned, rtol=0, atol=2e-6 * max(1.0, scale))
    for name in names:
        changed = re.search(r"attention\.(qkv|proj)\.weight", name) is not None
        assert torch.equal(model.state_dict()[name], weights[name]) == (not changed), name


def test_the_row_of_the_class_token_alone_sees_the_update() -> None:
    """`features` computes one row of the last block, `encode` all of them; also with some patches dropped."""
    model = vit().eval()
    tune(model, "lora:3", 7)
    disturb(model)
    images, keep = torch.randn(4, 3, 16, 24), torch.tensor([[0, 4, 5]] * 4)
    for kept in (None, keep):
        whole = model.pool(model.encode(model.embed(images), kept))
        torch.testing.assert_close(model.features(images, kept), whole)
    rows = dict(model.walk(images, attention=True))
    torch.testing.assert_close(rows["pre_logits"], model.features(images))


def test_the_seed_decides_the_updates() -> None:
    def downs(seed: int) -> Tensor:
        model = vit()
        torch.manual_seed(99)
        tune(model, "lora:2", seed)
        return torch.cat([p.flatten() for name, p in model.named_parameters() if name.endswith("down")])

    assert torch.equal(downs(1), downs(1))
    assert not torch.equal(downs(1), downs(2))


class Separate(nn.Module):
    """Queries, keys and values as layers of their own, where PEFT finds them."""

    def __init__(self, joined: nn.Linear) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(24, 24) for _ in range(3))
        for layer, weight, bias in zip(self.layers, joined.weight.chunk(3), joined.bias.chunk(3), strict=True):
            layer.load_state_dict({"weight": weight, "bias": bias})

    @property
    def layers(self) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        return self.query, self.key, self.value

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([layer(x) for layer in self.layers], dim=-1)


def test_low_rank_updates_equal_peft() -> None:
    """The same A and B in PEFT's LoRA on separate queries, keys, values and outputs: outputs, gradients and merged weights."""
    peft = pytest.importorskip("peft", reason="PEFT is not installed: pip install 'patchword[dev]'")
    model, images = vit().eval(), torch.randn(4, 3, 16, 24)
    twin: Any = copy.deepcopy(model)
    for block in twin.blocks:
        block.attention.qkv = Separate(block.attention.qkv)
    names = ["query", "key", "value", "proj"]
    theirs = peft.get_peft_model(twin, peft.LoraConfig(r=5, lora_alpha=5, target_modules=names))
    tune(model, "lora:5", 3)
    disturb(model)

    def pairs(ours: ViT, other: Any) -> list[tuple[Any, int, Any]]:
        found = []
        for mine, block in zip(ours.blocks, other.blocks, strict=True):
            found += [(mine.attention.qkv, i, layer) for i, layer in enumerate(block.attention.qkv.layers)]
            found.append((mine.attention.proj, 0, block.attention.proj))
        return found

    for layer, i, lora in pairs(model, twin):
        lora.lora_A["default"].load_state_dict({"weight": layer.down[i]})
        lora.lora_B["default"].load_state_dict({"weight": layer.up[i]})
    weights = torch.randn(4, 3)
    outputs = model(images), theirs(images)
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
    for output in outputs:
        (output * weights).sum().backward()
    for layer, i, lora in pairs(model, twin):
        for mine, other in ((layer.down, lora.lora_A), (layer.up, lora.lora_B)):
            expected = other["default"].weight.grad
            assert expected.abs().max() > 1e-3
            torch.testing.assert_close(mine.grad[i], expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    merge(model)
    plain = theirs.merge_and_unload()
    for block, other in zip(model.blocks, plain.blocks, strict=True):
        joined = torch.cat([layer.weight for layer in other.attention.qkv.layers])
        torch.testing.assert_close(block.attention.qkv.weight, joined, rtol=0, atol=1e-6)
        torch.testing.assert_close(block.attention.proj.weight, other.attention.proj.weight, rtol=0, atol=1e-6)


def test_an_adapter_of_another_library_is_not_passed_by() -> None:
    """PEFT's LoRA directly on our joined layer: the last block's single row sees it, too."""
    peft = pytest.importorskip("peft", reason="PEFT is not installed: pip install 'patchword[dev]'")
    model, images = vit().eval(), torch.randn(2, 3, 16, 24)
    settings = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["blocks.1.attention.qkv"], init_lora_weights=False)
    peft.get_peft_model(model, settings)
    torch.testing.assert_close(model.features(images), model.pool(model.encode(model.embed(images))))


@pytest.mark.parametrize("what", ["attention", "lora:3", "head"])
def test_replicas_share_what_stands_still_and_add_up_what_learns(what: str) -> None:
    found = []
    for threads in (1, 2, 2):
        model = vit()
        model.regularize(dropout=0.2)
        tune(model, what, 1)
        disturb(model)
        with Passes(model, Softmax(3), threads=threads) as passes:
            for mine, theirs in zip(model.named_parameters(), passes.losses[-1].named_parameters(), strict=True):
                assert f"model.{mine[0]}" == theirs[0]
                assert mine[1].data_ptr() == theirs[1].data_ptr(), mine[0]
                assert mine[1].requires_grad == theirs[1].requires_grad, mine[0]
        _, norm = steps(model, 2, threads, name="sgd")  # Adam would blow up the rounding of gradients that are zero
        found.append((norm, torch.cat([value.flatten() for value in model.state_dict().values()])))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-4)
    assert torch.equal(found[1][1], found[2][1])


def test_costs_count_the_model_and_less_memory_where_less_learns() -> None:
    costs = {}
    for what in LEARN:
        model = vit(depth=6)
        tune(model, what, 0)
        costs[what] = cost(model)
    assert len({(each.params, each.forward_flops) for each in costs.values()}) == 1
    assert costs["all"].params == sum(parameter.numel() for parameter in vit(depth=6).parameters())
    kept = {what: each.activation_bytes for what, each in costs.items()}
    assert kept["head"] < kept["attention"] == kept["lora:3"] < kept["all"]
    assert kept["head"] == 4 * 24, "the features alone"


@pytest.mark.parametrize("by_onednn", [False, True])
def test_what_stands_still_is_not_kept_for_the_backward_pass(by_onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if by_onednn and not torch.backends.mkldnn.is_available():
        pytest.skip("this build of torch has no oneDNN")
    monkeypatch.setattr(linear, "ONEDNN", by_onednn)
    x, layer = torch.randn(5, 24, requires_grad=True), linear.Linear(24, 29).requires_grad_(False)
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        layer(x).sum().backward()
    assert [sorted(shape) for shape in kept] == [[24, 29]], "the weight, and not what went in"
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(5, -1))


@pytest.mark.parametrize("name", ["BiT-R26x0.5", "EfficientNet-B0"])
@pytest.mark.parametrize("what", ["attention", "lora:2"])
def test_models_without_attention_refuse(name: str, what: str) -> None:
    model = create_model(name, 3, 32)
    with pytest.raises(UsageError, match=f"tune={what} needs a model with attention, which {name} does not have"):
        tune(model, what, 0)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_hybrid_is_tuned_as_a_vit() -> None:
    model = create_model("R5+ViT-Fe/4", 3, 16, depth=2)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    tune(model, "lora:2", 0)
    model(torch.randn(2, 3, 16, 16)).square().sum().backward()
    learn = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert all(re.fullmatch(LEARN["lora:3"], name) for name in learn)
    assert len(learn) == 2 * 2 * 2 + 2


def test_a_rank_beyond_the_width_is_refused() -> None:
    with pytest.raises(UsageError, match="tune=lora:25 asks for more than the width of ViT-At/8, 24"):
        tune(vit(), "lora:25", 0)
    tune(vit(), "lora:24", 0)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("lora:0", "tune='lora:0' needs a rank, a whole number of at least 1; lora:8 would be right"),
        ("lora:x", "tune='lora:x' needs a rank, a whole number of at least 1; lora:8 would be right"),
        ("lora:-3", "tune='lora:-3' needs a rank"),
        ("lora", "tune='lora' needs a rank"),
        ("lora:" + "9" * 5000, "needs a rank"),
        ("bias", "tune='bias' is not known; known: all, head, attention, lora:8"),
        ("heads", "tune='heads' is not known; did you mean 'head'?"),
        ("3", "tune=3 is not of the right type; it takes a word"),
    ],
)
def test_wrong_ways_to_tune_are_answered(
    what: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", str(tmp_path), "--model", "ViT-At/8", "--steps", "1", "--out", str(tmp_path / "out")]
    assert cli.run([*arguments, "--set", f"tune={what}"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def tuned(data: Path, init: Path, what: str, **changes: Any) -> recipes.Recipe:
    base: dict[str, Any] = {
        "data": str(data),
        "init": str(init),
        "tune": what,
        "batch_size": 10,
        "micro_batch": 4,
        "threads": 2,
        "budget": {"steps": 8},
        "checkpoint": {"every_steps": 2},
        "optimizer": {"lr": 1e-2},
        "augment": {"crop": "shift", "shift_pixels": 2, "mixup": 0.2},
        "regularization": {"dropout": 0.1, "patch_dropout": 0.25, "average_decay": 0.9},
    }
    return recipes.load("finetune", config.merge(base, changes))


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model/model.safetensors").read_bytes()).hexdigest()


@pytest.fixture
def init(tmp_path: Path) -> Path:
    save_model(vit(), tmp_path / "init")
    return tmp_path / "init"


@pytest.mark.parametrize("what", LEARN)
def test_a_run_saves_a_plain_model_in_which_the_rest_is_as_it_was(
    what: str, pictures: Path, init: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(tuned(pictures, init, what), tmp_path / "run")
    assert ("M learn)" in capsys.readouterr().err) == (what != "all")
    before, after = load_model(init), load_model(folder)
    assert after.state_dict().keys() == before.state_dict().keys()
    for name, value in after.state_dict().items():
        changes = re.fullmatch(LEARN["attention" if what == "lora:3" else what], name) is not None
        changes = changes and not (what == "lora:3" and name.startswith("blocks") and name.endswith("bias"))
        assert torch.equal(value, before.state_dict()[name]) == (not changes), name
    result = json.loads((folder / "result.json").read_text())
    assert result["params"] == sum(parameter.numel() for parameter in after.parameters())
    assert result["status"] == "finished"
    checkpoints = load_tensors(folder)
    assert any(name.endswith("qkv.up") for name in checkpoints) == (what == "lora:3")


def load_tensors(folder: Path) -> set[str]:
    from safetensors import safe_open

    with safe_open(max((folder / "checkpoints").iterdir()) / "model.safetensors", "np") as file:  # pyright: ignore
        return set(file.keys())


@pytest.mark.parametrize("what", ["lora:3", "head"])
def test_stop_and_resume_equals_an_uninterrupted_run(
    what: str, pictures: Path, init: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, folder, step = run(tuned(pictures, init, what), tmp_path / "done"), tmp_path / "stopped", loop.gradients

    def signalled(*arguments: Any) -> tuple[float, float]:
        if arguments[-1] == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    monkeypatch.setattr(loop, "gradients", signalled)
    with pytest.raises(StoppedError, match="after step 5 of 8; the same command goes on"):
        run(tuned(pictures, init, what), folder)
    monkeypatch.setattr(loop, "gradients", step)
    run(tuned(pictures, init, what), folder)
    assert json.loads((folder / "result.json").read_text())["resumed_from"] == [5]
    assert digest(folder) == digest(done)
    (folder / "result.json").unlink()
    run(tuned(pictures, init, what), folder)  # all steps are made: the last checkpoint alone is merged and saved
    assert digest(folder) == digest(done)
    with pytest.raises(UsageError, match=f"tune is 'all', not '{what}'"):
        run(tuned(pictures, init, "all"), folder)


def test_a_refused_way_to_tune_leaves_no_folder(pictures: Path, tmp_path: Path) -> None:
    save_model(create_model("BiT-R26x0.5", 3, 16), tmp_path / "bit")
    with pytest.raises(UsageError, match="tune=lora:2 needs a model with attention"):
        run(tuned(pictures, tmp_path / "bit", "lora:2", regularization={"patch_dropout": 0.0}), tmp_path / "out")
    assert not (tmp_path / "out").exists()
