"""The gallery of a run: its right and wrong answers with the maps that show where it looked."""

import json
from pathlib import Path

import pytest
import torch

import patchword
from conftest import write_pictures
from explaining import page_of
from patchword.core.errors import UsageError
from patchword.data.decoding.decode import decode
from patchword.data.sources import open_data
from patchword.evaluation.mistakes import thumbnail
from patchword.explanation import attention as attending
from patchword.explanation import overlay
from patchword.explanation.attention import attend, rollout
from patchword.explanation.gallery import add_maps
from patchword.explanation.maps import as_images
from patchword.models.names import create_model
from test_families import small


def test_a_runs_answers_get_maps_and_those_that_are_gone_do_not(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "data", ("ant", "bee"), 3)
    split = open_data(folder).whole()
    model = small("hybrid", image_size=(16, 24))
    gone = next(i for i in range(len(split)) if split.name(i) == "ant/001.png")
    (folder / "ant/001.png").unlink()
    rows = [{"index": i} for i in range(3)]
    assert add_maps(model, split, rows) == "attention rollout"
    for row in rows:
        if row["index"] == gone:
            assert row["map"] is None
            continue
        pixels = model.preprocessing.fit(decode(split.read(row["index"]), 3))
        values = rollout(model, as_images(model, pixels[None]))[0].numpy()
        assert row["map"] == thumbnail(overlay.overlay(pixels, values))
    assert add_maps(small("bit", image_size=(16, 24)), split, rows) == "Grad-CAM"
    headless = small("bit", num_classes=0, image_size=(16, 24))
    rows = [{"index": 0}]
    assert add_maps(headless, split, rows) is None
    assert "map" not in rows[0]


def test_attention_that_no_memory_holds_is_refused_and_costs_a_run_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = create_model("ViT-At/4", 2, 64, embed_dim=8, mlp_dim=8, depth=2, num_heads=1).eval()
    monkeypatch.setattr(attending, "_BYTES_AT_ONCE", 1000)
    monkeypatch.setattr(attending, "available_memory", lambda: 300_000)
    with pytest.raises(
        UsageError, match="the attention weights of 256 patches take 1.32 MB for one image of ViT-At/4, more than"
    ):
        rollout(model, torch.zeros(1, 3, 64, 64))
    with pytest.raises(UsageError, match="a smaller image or a larger patch would be right"):
        attend(model, torch.zeros(1, 3, 64, 64))
    split = open_data(write_pictures(tmp_path / "data", ("ant", "bee"), 3)).whole()
    assert add_maps(model, split, [{"index": 0}]) is None


def test_the_page_of_a_run_shows_where_it_looked(pictures: Path, tmp_path: Path) -> None:
    tiny = ["model.depth=1", "model.embed_dim=16", "model.mlp_dim=16", "batch_size=8"]
    run = patchword.train(pictures, model="ViT-At/8", image_size=16, steps=3, out=tmp_path / "run", set=tiny)
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert evaluation["map"] == "attention rollout"
    answers = [*evaluation["mistakes"], *evaluation["hits"]]
    assert len(answers) >= 8
    assert all(row["label"] == row["predicted"] for row in evaluation["hits"])
    page = page_of(run)
    sources = [attrs["src"] for tag, attrs in page.found if tag == "img"]
    assert sources == [row[field] for row in answers for field in ("thumbnail", "map")]
    assert "bright where it looked (attention rollout)" in page.text
    assert ("Right answers" in page.text) == bool(evaluation["hits"])
