"""What is told of a model, beside the model itself: what even attention comes to, and for which class maps are checked."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import patchword
from patchword.explanation.attention import class_rollout
from patchword.explanation.facts import facts_of
from patchword.explanation.faithfulness import deletion_and_insertion
from patchword.explanation.maps import Choice, as_images
from patchword.explanation.picture import look
from patchword.models.names import create_model
from test_explanation import model_of


@pytest.mark.parametrize(("pool", "registers", "tokens"), [("token", 0, 78), ("token", 5, 83), ("gap", 0, 77)])
def test_even_attention_is_that_of_a_model_that_looks_at_all_alike(pool: str, registers: int, tokens: int) -> None:
    """Its queries and keys are 0, so each of 77 patches and the tokens before them gets the same."""
    model = model_of(pool=pool, registers=registers)
    for block in model.blocks:
        torch.nn.init.zeros_(block.attention.qkv.weight)
        torch.nn.init.zeros_(block.attention.qkv.bias)
    pixels = np.random.default_rng(0).integers(0, 255, (2, 44, 28, 3), dtype=np.uint8)
    facts = facts_of(model, Choice("rollout"), list(look(model, pixels)))
    assert facts.heads is not None
    np.testing.assert_allclose(facts.heads.distance, facts.even[0], rtol=1e-5)
    np.testing.assert_allclose(facts.heads.entropy, facts.even[1], rtol=1e-5)
    assert 2 ** facts.even[1] == pytest.approx(tokens)
    # The ways between two of 11 rows and two of 7 columns, 4 pixels each.
    ways = [np.hypot(4 * down, 4 * across) for down in range(-10, 11) for across in range(-6, 7)]
    times = [(11 - abs(down)) * (7 - abs(across)) for down in range(-10, 11) for across in range(-6, 7)]
    assert facts.even[0] == pytest.approx(np.average(ways, weights=times), rel=1e-6)


def test_a_check_is_of_the_maps_for_the_label_that_was_asked_for(tmp_path: Path) -> None:
    """Which is the likeliest of neither picture: in deletion and insertion the probability of that class is followed."""
    torch.manual_seed(0)
    model = create_model("ViT-At/8", 5, (16, 24), depth=2, embed_dim=24, num_heads=3, mlp_dim=16).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.2)
    model.labels = ("ant", "bee", "cat", "dog", "elk")
    paths = [tmp_path / "0.png", tmp_path / "1.png"]
    for path, pixels in zip(paths, np.random.default_rng(0).integers(0, 255, (2, 16, 24, 3), np.uint8), strict=True):
        Image.fromarray(pixels).save(path)
    likeliest = {row["predictions"][0]["label"] for row in patchword.predict(model, paths)}
    label = next(each for each in model.labels if each not in likeliest)
    rows = patchword.explain(model, paths, out=tmp_path / "out", map="class", label=label)
    told = {each["figure"]: each for each in json.loads((tmp_path / "out/check.json").read_text())["figures"]}
    kept = []
    for row in rows:
        with np.load(row["arrays"]) as saved:
            kept.append(saved["pixels"])
    batch = as_images(model, np.stack(kept))
    classes = torch.tensor([model.labels.index(label)] * 2)
    maps = class_rollout(model, batch, classes[:, None])[:, 0]
    for figure in deletion_and_insertion(model, batch, maps, classes):
        assert told[figure.name]["value"] == pytest.approx(figure.value, rel=1e-4)
        assert told[figure.name]["controls"]["centre"]["value"] == pytest.approx(figure.control("centre"), rel=1e-4)
