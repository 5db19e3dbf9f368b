"""`patchword explain`: files that hold the maps, and a page that shows them."""

import base64
import hashlib
import html
import io
import json
import math
import os
import re
import shlex
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import patchword
from conftest import write_pictures
from explaining import LABELS, data_of, page_of, photo
from patchword import cli
from patchword.core import encoding
from patchword.core.errors import DivergedError, UsageError
from patchword.core.progress import Progress
from patchword.data.decoding.decode import decode
from patchword.explanation import overlay
from patchword.explanation.attention import attend, class_rollout, head_figures
from patchword.explanation.embeddings import position_similarity, principal_filters
from patchword.explanation.gradcam import gradcam
from patchword.explanation.maps import as_images
from patchword.explanation.picture import Look, coarser, look
from patchword.models.contract import Model
from patchword.models.names import create_model
from patchword.reports.page import decimal
from patchword.weights import shipped
from patchword.weights.io import save_model
from test_explanation import model_of
from test_families import SMALL, small
from test_report import HOSTILE


def test_files_hold_what_the_functions_give(vit: Model, pair: list[Path], tmp_path: Path) -> None:
    rows = patchword.explain(vit, pair, out=tmp_path / "out", check=False)
    assert [row["image"] for row in rows] == [str(path) for path in pair]
    predicted = patchword.predict(vit, pair)
    for row, other in zip(rows, predicted, strict=True):
        assert row["predictions"] == [
            {"label": each["label"], "probability": pytest.approx(each["probability"])} for each in other["predictions"]
        ]
        with Image.open(row["image"]) as picture:
            image = vit.preprocess(picture)
        seen = attend(vit, image)
        with np.load(row["arrays"]) as saved:
            assert set(saved) == {
                "pixels",
                "probabilities",
                "classes",
                "labels",
                "for_classes",
                "rollouts",
                "heads",
                "colours",
                "map",
            }
            np.testing.assert_allclose(saved["rollouts"], seen.rollouts()[0].numpy(), atol=1e-6)
            np.testing.assert_allclose(saved["heads"], seen.heads[0].numpy(), atol=1e-6)
            np.testing.assert_array_equal(saved["map"], saved["rollouts"][-1])
            np.testing.assert_array_equal(saved["map"], row["map"])
            classes = torch.from_numpy(saved["classes"])[None]
            assert (
                [LABELS[i] for i in classes[0]]
                == saved["labels"].tolist()
                == [p["label"] for p in row["predictions"]][:3]
            )
            np.testing.assert_allclose(
                saved["for_classes"], class_rollout(vit, image, classes)[0].numpy(), rtol=1e-4, atol=1e-6
            )
            drawn = overlay.overlay(saved["pixels"], saved["map"])
        with Image.open(row["overlay"]) as picture:
            np.testing.assert_array_equal(np.asarray(picture), drawn)
        assert drawn.shape == (44 * 5, 28 * 5, 3)  # enlarged by a whole factor: 224 // 44
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "001-wide.npz",
        "001-wide.png",
        "002-tall.npz",
        "002-tall.png",
        "model.npz",
        "report.html",
    ]


@pytest.mark.parametrize("family", SMALL)
def test_every_family_is_explained(family: str, pair: list[Path], tmp_path: Path) -> None:
    model = small(family)
    model.labels = LABELS
    save_model(model, tmp_path / "model")
    rows = patchword.explain(tmp_path / "model", pair, out=tmp_path / "out")
    page = page_of(tmp_path / "out")
    assert "Is it true?" in page.text
    told = json.loads((tmp_path / "out/check.json").read_text())
    assert told["map"] in page.text
    assert [each["figure"] for each in told["figures"]] == [
        "energy",
        "pointing",
        "deletion",
        "insertion",
        "flip",
        "shift",
    ]
    energy, deletion = told["figures"][0], told["figures"][2]
    assert (energy["n"], deletion["n"]) == (64, 2)
    assert set(energy["controls"]) == {"random", "centre", "untrained"}
    for control in energy["controls"].values():
        assert control["gain"] == pytest.approx(energy["value"] - control["value"])
        assert control["beaten"] == (control["gain_ci95"][0] > 0)
        low, high = control["gain_ci95"]
        assert low < control["gain"] < high
    assert deletion["controls"]["random"]["beaten"] is None
    assert "Filters" in page.text
    attends = model.has_attention
    assert ("Positions" in page.text) == ("Attention by layer" in page.text) == attends
    options = [attrs["value"] for tag, attrs in page.found if tag == "option"]
    assert ("rollout" in options, "class:0" in options, "gradcam:0" in options) == (attends, attends, family != "vit")
    assert [tag for tag, _ in page.found].count("canvas") == 4
    for row in rows:
        with np.load(row["arrays"]) as saved:
            expected = "rollouts" if attends else "gradcam"
            np.testing.assert_array_equal(saved["map"], saved[expected][-1 if attends else 0])
            if family != "vit":
                classes = torch.from_numpy(saved["classes"])
                image = as_images(model, saved["pixels"][None].repeat(len(classes), 0))
                np.testing.assert_allclose(
                    saved["gradcam"], gradcam(model, image, classes).numpy(), rtol=1e-3, atol=1e-5
                )


@pytest.mark.parametrize("name", shipped.names())
def test_what_is_shipped_is_explained(name: str, pair: list[Path], tmp_path: Path) -> None:
    patchword.explain(f"shipped:{name}", pair, out=tmp_path / "out", check=False)
    assert "Filters" in page_of(tmp_path / "out").text


def test_the_chosen_map_is_the_one_of_the_files_and_of_the_page(pair: list[Path], tmp_path: Path) -> None:
    model = model_of("hybrid", pool="map")
    model.labels = LABELS
    starts: dict[str, dict[str, Any]] = {
        "rollout": {"map": "rollout"},
        "attention": {"map": "attention", "layer": 1, "head": 2},
        "pool": {"layer": "pool"},
        "class": {"map": "class", "label": "a&b"},
        "gradcam": {"map": "gradcam", "label": "a&b"},
    }
    for name, options in starts.items():
        [row] = patchword.explain(model, pair[0], out=tmp_path / name, check=False, **options)
        [data] = data_of(tmp_path / name)
        with np.load(row["arrays"]) as saved:
            place = saved["labels"].tolist().index("a&b") if "a&b" in saved["labels"] else 0
            expected = {
                "rollout": saved["rollouts"][-1],
                "attention": saved["heads"][1, 2],
                "pool": saved["probe"].mean(0),
                "class": saved["for_classes"][place],
                "gradcam": saved["gradcam"][place],
            }[name]
            np.testing.assert_array_equal(row["map"], expected)
            if "label" in options:
                assert data["start"]["map"] == f"{name}:{place}"
                assert data["names"][place] == "a&b"
        if name == "attention":
            assert data["start"] == {"map": "attention", "layer": 1, "head": 2}
        if name == "pool":
            assert data["start"] == {"map": "attention", "layer": 3, "head": -1}
            assert data["heads"]["shape"] == [4, 3, 11, 7]  # the probe comes last


def test_a_label_is_what_maps_are_for(pair: list[Path], tmp_path: Path) -> None:
    """Of both models, though no map is named; a second one that does not know it shows what it says itself."""
    model, other, stranger = model_of(), small("bit"), small("efficientnet")
    model.labels = other.labels = LABELS
    stranger.labels = ("a", "b", "c", "d", "e")
    for beside in (other, stranger):
        out = tmp_path / beside.name
        [row] = patchword.explain(model, pair[0], out=out, label="a&b", beside=beside, check=False)
        with np.load(row["arrays"]) as saved:
            np.testing.assert_array_equal(row["map"], saved["for_classes"][saved["labels"].tolist().index("a&b")])
        page = page_of(out)
        assert (f"{beside.name} Grad-CAM for a&b" in page.text) == (beside is other)
    pixels = other.preprocessing.fit(decode(pair[0].read_bytes(), 3))
    values = gradcam(other, as_images(other, pixels[None]), torch.tensor([4]))[0].numpy()
    sources = [attrs["src"] for tag, attrs in page_of(tmp_path / other.name).found if tag == "img"]
    assert encoding.data_url(encoding.jpeg(overlay.overlay(pixels, values))) in sources


def test_a_label_that_the_model_finds_unlikely_gets_its_maps_too(vit: Model, pair: list[Path], tmp_path: Path) -> None:
    """Beside those of the likeliest three; it is the last of them, and what is shown first."""
    least = patchword.predict(vit, pair[0])[0]["predictions"][-1]["label"]
    [row] = patchword.explain(vit, pair[0], out=tmp_path / "out", label=least, check=False)
    with np.load(row["arrays"]) as saved:
        assert saved["labels"].tolist()[3:] == [least]
        assert saved["for_classes"].shape == (4, 11, 7)
        np.testing.assert_array_equal(row["map"], saved["for_classes"][3])
    [data] = data_of(tmp_path / "out")
    assert data["start"]["map"] == "class:3"


def test_what_the_page_draws_of_the_model_is_there_as_numbers(pair: list[Path], tmp_path: Path) -> None:
    model = model_of(position="2d")
    rows = patchword.explain(model, pair, out=tmp_path / "out", check=False)
    images = []
    for row in rows:
        with np.load(row["arrays"]) as saved:
            images.append(saved["pixels"])
    figures = head_figures(model, as_images(model, np.stack(images)))
    filters, explained = principal_filters(model)
    expected = {
        "attention_distance": figures.distance,
        "attention_entropy": figures.entropy,
        "filters": filters,
        "filters_explained": explained,
        "position_similarity": position_similarity(model).numpy(),
    }
    with np.load(tmp_path / "out/model.npz") as saved:
        assert set(saved) == set(expected)
        for name, values in expected.items():
            np.testing.assert_allclose(saved[name], values, atol=1e-9, err_msg=name)
    patchword.explain(small("bit"), pair, out=tmp_path / "out", check=False)
    with np.load(tmp_path / "out/model.npz") as saved:
        assert set(saved) == {"filters", "filters_explained"}


def test_features_of_a_single_place_are_not_shown(pair: list[Path], tmp_path: Path) -> None:
    """One square of one colour is like nothing; small pictures in a network of stride 32 come to that."""
    for size, shown in (((32, 32), False), ((32, 64), True)):
        model = create_model("BiT-R14x0.25", 3, size)
        patchword.explain(model, pair, out=tmp_path / "out", check=False)
        assert ("like colours, like features" in page_of(tmp_path / "out").text) == shown


def test_the_page_says_which_weights_and_which_class_it_shows(
    pair: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs of one architecture are told apart; the command on the page makes the same page."""
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        model = model_of()
        model.labels = LABELS
        save_model(model, name)
    words = [
        "explain",
        "one",
        "wide.png",
        "tall.jpg",
        "--beside",
        "two",
        "--label",
        "a&b",
        "--out",
        "a page",
        "--no-check",
    ]
    assert cli.run(words) == 0
    page = page_of(Path("a page"))
    assert "looks on 2 pictures: gradient-weighted rollout for a&b." in page.text
    assert page.text.count(f"{model_of().name} two gradient-weighted rollout for a&b") == 2
    assert "one explained" in page.text
    [shown] = re.findall(r'<pre class="command"><code>(.*?)</code>', Path("a page/report.html").read_text("utf-8"))
    command = shlex.split(html.unescape(re.sub("<[^>]*>", "", shown)))
    assert command[:5] == ["patchword", *words[:4]]
    assert sorted(command[5:]) == sorted(words[4:])
    before = Path("a page/report.html").read_bytes()
    assert cli.run(command[1:]) == 0
    assert Path("a page/report.html").read_bytes() == before
    patchword.explain(model_of(), pair, out="other", map="rollout", check=False)
    assert "Repeat it" not in page_of(Path("other")).text


def test_filters_are_framed_so_that_a_white_one_is_seen(tmp_path: Path) -> None:
    model = create_model("ViT-At/2", 2, 8, embed_dim=8, mlp_dim=8, depth=1, num_heads=1).eval()
    patchword.explain(model, photo(tmp_path / "a.png"), out=tmp_path / "out", check=False)
    page = page_of(tmp_path / "out")
    source = next(a["src"] for tag, a in page.found if tag == "img" and str(a.get("alt")).startswith("Principal"))
    with Image.open(io.BytesIO(base64.b64decode(str(source).partition(",")[2]))) as picture:
        mosaic = np.asarray(picture)
    # Eight filters of 2×2 in rows of seven, each pixel eight times; one line around each, and nothing where there is none.
    assert mosaic.shape == (2 * 17 + 1, 7 * 17 + 1, 4)
    assert (mosaic[::17, : 1 * 17 + 1] == (128, 128, 128, 80)).all()
    assert (mosaic[:18, ::17] == (128, 128, 128, 80)).all()
    assert (mosaic[18:, 18:] == 0).all()
    assert (mosaic[1:9, 1:9] == mosaic[1, 1]).all()
    assert mosaic[1, 1, 3] == 255


def test_where_patches_are_many_the_middle_one_of_each_square_has_its_map(pair: list[Path], tmp_path: Path) -> None:
    """37×5 of them are shown by threes, on one scale: the darkest is the least of all, the lightest the patch itself."""
    model = create_model("ViT-At/2", 2, (74, 10), embed_dim=16, mlp_dim=8, depth=1, num_heads=1, position="1d").eval()
    table = model.get_parameter("position.table")
    with torch.no_grad():
        table.copy_(torch.from_numpy(np.random.default_rng(3).normal(loc=0.5, size=table.shape)))
    patchword.explain(model, pair[0], out=tmp_path / "out", check=False)
    found = page_of(tmp_path / "out").found
    source = next(a["src"] for tag, a in found if tag == "img" and str(a.get("alt")).startswith("Cosine similarity"))
    with Image.open(io.BytesIO(base64.b64decode(str(source).partition(",")[2]))) as picture:
        mosaic = np.asarray(picture.convert("RGB")).astype(int)
    rows, columns = range(1, 37, 3), range(1, 5, 3)
    height, width = ((side - 1) // count for side, count in zip(mosaic.shape, (len(rows), len(columns)), strict=False))
    patches = table[-37 * 5 :].detach().double().numpy()
    patches /= np.linalg.norm(patches, axis=1, keepdims=True)
    alike = (patches @ patches.T).reshape(37, 5, 37, 5)[np.ix_(rows, columns)]
    side = (height - 1) // 37
    assert (height, width) == (37 * side + 1, 5 * side + 1)  # a tile, and the line beside it
    for i in range(len(rows)):
        for j in range(len(columns)):
            tile = mosaic[i * height + 1 :, j * width + 1 :][: 37 * side : side, : 5 * side : side]
            share = (alike[i, j] - alike.min()) / (1 - alike.min())
            expected = overlay.palette().astype(int)[(255 * share).round().astype(int)]
            assert np.abs(tile - expected).max() <= 4  # a step or two of the palette
            light = tile @ (0.299, 0.587, 0.114)
            assert np.unravel_index(light.argmax(), light.shape) == (rows[i], columns[j])


def unpack(packed: dict[str, Any]) -> np.ndarray:
    """The page's numbers, as its script reads them."""
    raw = np.frombuffer(base64.b64decode(packed["data"]), np.uint8)
    if packed.get("bits") == 4:
        raw = np.stack([raw >> 4, raw & 15], axis=1).ravel()[: int(np.prod(packed["shape"]))]
        return ((raw / 15) ** 2).reshape(packed["shape"])
    count = packed["shape"][-1] * packed["shape"][-2]
    low, high = (np.array(packed[name])[:, None] for name in ("low", "high"))
    return (low + raw.reshape(-1, count) / 255 * (high - low)).reshape(packed["shape"])


def test_the_pages_numbers_are_those_of_the_arrays(vit: Model, pair: list[Path], tmp_path: Path) -> None:
    rows = patchword.explain(vit, pair, out=tmp_path / "out", check=False)
    for row, data in zip(rows, data_of(tmp_path / "out"), strict=True):
        with np.load(row["arrays"]) as saved:
            for name, there in (("rollouts", "rollouts"), ("heads", "heads"), ("for_classes", "classes")):
                reach = saved[name].max((-1, -2), keepdims=True) - saved[name].min((-1, -2), keepdims=True)
                assert (np.abs(unpack(data[there]) - saved[name]) <= 0.003 * reach + 2e-4 * saved[name].max()).all()
            image = as_images(vit, saved["pixels"][None])
        between = unpack(data["between"])
        assert between.shape == (3, 77, 11, 7)
        for layer, exact in enumerate(attend(vit, image).between_patches()):
            maps = exact[0].unflatten(1, (11, 7)).numpy()
            low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
            assert np.abs(np.sqrt(between[layer]) - np.sqrt((maps - low) / (high - low))).max() < 0.5 / 15 + 1e-4


def test_on_a_fine_grid_patches_ask_together() -> None:
    assert coarser((14, 14), 12) == (14, 14)  # ViT-B/16 at 224 px: each patch by itself
    assert coarser((24, 24), 12) == (14, 14)
    assert coarser((1, 700), 12) == (1, 374)  # to two hundred patches, whatever the shape
    model = create_model("ViT-At/4", 2, (64, 48), embed_dim=8, mlp_dim=8, depth=11, num_heads=1).eval()
    torch.nn.init.normal_(model.get_parameter("blocks.10.attention.qkv.weight"))
    pixels = np.random.default_rng(0).integers(0, 255, (1, 64, 48, 3), dtype=np.uint8)
    [seen] = list(look(model, pixels))
    assert seen.between is not None
    assert seen.between.shape == (11, 192, 16, 12)
    exact = list(attend(model, as_images(model, pixels)).between_patches())[10][0]
    np.testing.assert_allclose(seen.between[10].reshape(192, 192), exact.numpy(), atol=1e-6)
    large = create_model("ViT-At/4", 2, (96, 64), embed_dim=8, mlp_dim=8, depth=11, num_heads=1).eval()
    torch.nn.init.normal_(large.get_parameter("blocks.10.attention.qkv.weight"))
    pixels = np.random.default_rng(0).integers(0, 255, (1, 96, 64, 3), dtype=np.uint8)
    [seen] = look(large, pixels)
    assert seen.between is not None
    (h, w), (height, width) = (24, 16), seen.between.shape[2:]
    assert (height, width) == (17, 11)
    exact = list(attend(large, as_images(large, pixels)).between_patches())[10][0].reshape(h, w, h, w).numpy()
    # Cell (2, 3) covers the rows 2·24/17 … 3·24/17, rounded outwards, and columns alike.
    rows, columns = slice(2, 5), slice(4, 6)
    asked = exact[rows, columns].mean((0, 1))
    expected = asked[0:2, 0:2].mean()
    assert seen.between[10][2 * width + 3][0, 0] == pytest.approx(expected, rel=1e-4)


def test_four_pictures_of_vit_b_stay_below_two_megabytes(tmp_path: Path) -> None:
    """The shapes of ViT-B/16 at 224 px in a narrow model, and pictures of noise, which no JPEG makes small."""
    model = create_model("ViT-B/16", 1000, 224, embed_dim=24, mlp_dim=24).eval()
    torch.nn.init.normal_(model.position.get_parameter("table"))  # pyright: ignore[reportAttributeAccessIssue]
    pictures = [photo(tmp_path / f"{i}.png", (260, 240), i) for i in range(4)]
    patchword.explain(model, pictures, out=tmp_path / "out", check=False)
    size = (tmp_path / "out/report.html").stat().st_size
    assert 1_000_000 < size < 2_000_000
    [data, *_] = data_of(tmp_path / "out")
    assert data["heads"]["shape"] == [12, 12, 14, 14]
    assert data["between"]["shape"] == [12, 196, 14, 14]


def test_the_page_holds_itself_and_runs_its_own_script_alone(vit: Model, pair: list[Path], tmp_path: Path) -> None:
    patchword.explain(vit, pair, out=tmp_path / "out")
    source = (tmp_path / "out/report.html").read_text("utf-8")
    page = page_of(tmp_path / "out")
    assert "http:" not in source
    assert "https:" not in source
    for value in [*page.values("src"), *page.values("href")]:
        assert value.startswith(("data:", "#"))
    policy = next(attrs["content"] for _, attrs in page.found if attrs.get("http-equiv") == "Content-Security-Policy")
    scripts = re.findall(r"<script>(.*?)</script>", source, flags=re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    ids = page.values("id")
    assert len(ids) == len(set(ids))


def test_text_from_outside_is_only_text(tmp_path: Path) -> None:
    model = model_of("hybrid")
    model.labels = (HOSTILE, "</script><script>alert(2)</script>", "<!--", "{{ 7 * 7 }}", "\u2028猫")
    model.name = HOSTILE
    picture = photo(tmp_path / "<img src=x onerror=alert(3)>&.png")
    patchword.explain(
        model, [picture, tmp_path / f"{HOSTILE.replace('/', '_')}.png"], out=tmp_path / "out", check=False
    )
    page = page_of(tmp_path / "out")
    assert [tag for tag, _ in page.found].count("script") == 2  # the data of one picture, and the program
    assert not [name for _, attrs in page.found for name in attrs if name.startswith("on")]
    assert HOSTILE in page.text
    assert "{{ 7 * 7 }}" in page.text
    [data] = data_of(tmp_path / "out")
    assert set(data["names"]) <= set(model.labels)


def test_what_can_be_explained_is(
    vit: Model, pair: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(vit, tmp_path / "model")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    os.mkfifo(tmp_path / "pipe.png")  # nobody writes to it
    grey = photo(tmp_path / "grey.png", (31, 47), 5, "L")
    files = (pair[0], tmp_path / "broken.png", tmp_path / "none.jpg", grey, tmp_path / "pipe.png")
    arguments = [str(path) for path in files]
    assert cli.run(["explain", str(tmp_path / "model"), *arguments, "--out", str(tmp_path / "out"), "--no-check"]) == 3
    shown = capsys.readouterr().out
    assert f"{tmp_path / 'broken.png'}: is" in shown
    assert f"{tmp_path / 'none.jpg'}: does not exist" in shown
    assert f"{tmp_path / 'pipe.png'}: is no regular file" in shown
    assert f"page: {tmp_path / 'out' / 'report.html'}" in shown
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["001-wide.png", "004-grey.png"]
    page = page_of(tmp_path / "out")
    assert "Not explained" in page.text
    assert "none.jpg does not exist" in page.text
    assert "looks on 2 pictures" in page.text
    rows = patchword.explain(vit, [tmp_path / "none.jpg"], out=tmp_path / "other")
    page = tmp_path / "other/report.html"
    told = {"error": "does not exist", "page": page}
    assert rows == [{"image": str(tmp_path / "none.jpg"), **told}]
    assert "None of the pictures of this page can be explained." in page_of(tmp_path / "other").text


def test_names_of_any_bytes_and_any_length(vit: Model, tmp_path: Path) -> None:
    made = photo(tmp_path / "a.png").read_bytes()
    names = [b"\xff\xfe.png", "🦜".encode() * 62 + b".png", b"-.png", b"a\nb.png"]
    paths = [Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)) for name in names]
    for path in paths:
        path.write_bytes(made)
    rows = patchword.explain(vit, paths, out=tmp_path / "out", check=False)
    assert all("error" not in row for row in rows)
    assert len(list((tmp_path / "out").glob("0*.npz"))) == 4
    text = page_of(tmp_path / "out").text
    assert "\\xff\\xfe.png" in text
    assert "🦜🦜" in text


def test_spoiled_weights_are_one_sentence(vit: Model, pair: list[Path], tmp_path: Path) -> None:
    for name in ("head.bias", "blocks.1.mlp.fc1.bias"):
        with torch.no_grad():
            vit.get_parameter(name)[0] = math.nan
        with pytest.raises(DivergedError, match="gives outputs that are not finite: its weights have been spoiled"):
            patchword.explain(vit, pair, out=tmp_path / "out")
        with pytest.raises(DivergedError, match="gives outputs that are not finite: its weights have been spoiled"):
            patchword.explain(small("bit"), pair, out=tmp_path / "out", beside=vit, check=False)


def test_many_pictures_come_page_by_page(tmp_path: Path) -> None:
    model = create_model("ViT-At/8", 2, 16, embed_dim=8, mlp_dim=8, depth=1, num_heads=1).eval()
    write_pictures(tmp_path / "many", ("a",), 17)
    rows = patchword.explain(model, tmp_path / "many", out=tmp_path / "out", check=False)
    assert [row["page"].name for row in rows] == ["report.html"] * 8 + ["report-2.html"] * 8 + ["report-3.html"]
    first, last = page_of(tmp_path / "out"), page_of(tmp_path / "out", "report-3.html")
    links = [attrs["href"] for tag, attrs in first.found if tag == "a"]
    assert links == ["report-2.html", "report-3.html"] * 2
    assert "Filters" in first.text
    assert "Filters" not in last.text
    assert [attrs["aria-current"] for _, attrs in last.found if "aria-current" in attrs] == ["page"] * 2


def test_of_many_pictures_eight_are_kept_and_of_those_before_their_maps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: weakref.WeakSet[Look] = weakref.WeakSet()
    counts = []

    def watched(*arguments: Any) -> Iterator[Look]:
        for seen in look(*arguments):
            alive.add(seen)
            counts.append(len(alive))
            yield seen

    monkeypatch.setattr("patchword.explanation.picture.look", watched)
    model = model_of("hybrid")
    write_pictures(tmp_path / "many", ("a",), 20)
    patchword.explain(model, tmp_path / "many", out=tmp_path / "out", check=False)
    assert len(counts) == 20
    assert max(counts) <= 9  # a page, and the last one of the page before
    asked: tuple[dict[str, Any], ...] = (
        {"map": "rollout"},
        {"map": "class"},
        {"layer": 1},
        {"layer": 1, "head": 2},
        {"map": "gradcam"},
    )
    for options in asked:
        [row] = patchword.explain(model, photo(tmp_path / "a.png"), out=tmp_path / "out", check=False, **options)
        assert row["map"].base is None, options  # a view would keep the maps of all layers and heads


def test_progress_counts_the_check(
    vit: Model, pair: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that what is left is not "under 1 s" while the check goes on."""
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(Progress, "update", lambda self, done, detail="": told.append((done, self.total)))
    patchword.explain(vit, pair, out=tmp_path / "out")
    assert [done for done, _ in told] == [1, 2, *range(3, 20), 19]  # one for the drawn pictures, eight for each of two
    assert {total for _, total in told} == {19}
    told.clear()
    patchword.explain(vit, pair, out=tmp_path / "out", check=False)
    assert told == [(1, 2), (2, 2), (2, 2)]


def test_of_answers_that_are_equal_the_first_class_comes_first(pair: list[Path], tmp_path: Path) -> None:
    """In the list as in the maps; a new model gives all classes the same."""
    model = model_of()
    model.replace_head(5)
    model.labels = LABELS
    [row] = patchword.explain(model, pair[0], out=tmp_path / "out", check=False)
    assert [each["label"] for each in row["predictions"]] == list(LABELS)
    with np.load(row["arrays"]) as saved:
        assert saved["labels"].tolist() == list(LABELS[:3])


@pytest.mark.parametrize(
    ("position", "words"),
    [
        ("1d", "how alike its position embedding is to those of all others"),
        ("relative", "how alike the keys with which it meets all tokens are to those of all others"),
        ("rope", "how alike its queries and keys are turned to those of all others"),
        ("none", None),
    ],
)
def test_the_page_says_what_of_positions_is_alike(
    position: str, words: str | None, pair: list[Path], tmp_path: Path
) -> None:
    model = model_of(position=position)
    patchword.explain(model, pair[0], out=tmp_path / "out", check=False)
    text = page_of(tmp_path / "out").text
    assert ("Positions" in text) == (words is not None)
    assert words is None or f"One small map for each patch: {words}." in text
    if words is not None:
        least = position_similarity(model).numpy().min()
        assert f"cosine {decimal(float(least), 2)} 1" in text


def test_what_an_earlier_call_left_does_not_speak_for_this_one(vit: Model, tmp_path: Path) -> None:
    write_pictures(tmp_path / "many", ("a",), 17)
    out = tmp_path / "out"
    patchword.explain(vit, tmp_path / "many", out=out)
    mine = {"report-2024-plan.html", "notes.txt", "004-holiday.png", "005-data.npz", "holiday.png", "holiday.npz"}
    for name in mine:
        (out / name).write_text("mine")
    overlaid = out / "017-016.png"
    patchword.explain(vit, [photo(tmp_path / "b.png"), overlaid], out=out, check=False)
    made = {f"{stem}.{kind}" for stem in ("001-b", "002-017-016") for kind in ("png", "npz")}
    # What is to be explained is not taken away before it is read.
    assert {path.name for path in out.iterdir()} == mine | made | {
        "report.html",
        "model.npz",
        "017-016.png",
        "017-016.npz",
    }


def test_overlays_among_the_pictures_are_not_explained_in_turn(vit: Model, tmp_path: Path) -> None:
    """As where the folder to write to lies in that of the pictures, or is the same."""
    photo(tmp_path / "a.png")
    for out in (tmp_path, tmp_path / "out", tmp_path):
        [row] = patchword.explain(vit, tmp_path, out=out, check=False)
        assert Path(row["image"]) == tmp_path / "a.png"
    [row] = patchword.explain(vit, tmp_path / "out", out=tmp_path / "third", check=False)
    assert Path(row["image"]) == tmp_path / "out/001-a.png", "who asks for nothing else gets them"


def test_pictures_of_one_name_are_told_apart_by_their_folders(vit: Model, tmp_path: Path) -> None:
    for folder in ("a", "b/c"):
        (tmp_path / folder).mkdir(parents=True)
        photo(tmp_path / folder / "000.png")
    (tmp_path / "b/broken.png").write_bytes(b"")
    patchword.explain(vit, [tmp_path / "a", tmp_path / "b"], out=tmp_path / "out", check=False)
    titles = [attrs["title"] for tag, attrs in page_of(tmp_path / "out").found if tag == "h2" and "title" in attrs]
    assert titles == ["a/000.png", "b/c/000.png"]
    assert "b/broken.png is" in page_of(tmp_path / "out").text
    patchword.explain(vit, tmp_path / "a/000.png", out=tmp_path / "out", check=False)
    titles = [attrs["title"] for tag, attrs in page_of(tmp_path / "out").found if tag == "h2" and "title" in attrs]
    assert titles == ["000.png"]


@pytest.mark.parametrize(("mark", "what"), [("recipe.toml", "run"), ("study.toml", "study")])
def test_the_page_of_a_run_or_study_is_not_written_over(mark: str, what: str, vit: Model, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    for name in (mark, "report.html"):
        (tmp_path / "runs" / name).write_text("of a run")
    with pytest.raises(
        UsageError, match=rf"holds a {what}, whose report.html would be lost; a folder of its own is right"
    ):
        patchword.explain(vit, photo(tmp_path / "a.png"), out=tmp_path / "runs")
    assert (tmp_path / "runs/report.html").read_text() == "of a run"


@pytest.mark.parametrize("name", ["model.npz", "weights", "check.json", "other.json", "report.html", "report-2.html"])
def test_files_of_somebody_else_are_not_lost(name: str, vit: Model, tmp_path: Path) -> None:
    """Weights are called `model.npz`, too, and lie in the folder that a careless person names."""
    picture, out = photo(tmp_path / "a.png"), tmp_path / "out"
    out.mkdir()
    if name == "weights":
        np.savez(out / "model.npz", kernel=np.zeros((2, 3)))
    else:
        (out / name.replace("other", "check")).write_text('{"mine": 1}' if name == "other.json" else "mine")
    [mine] = out.iterdir()
    before = mine.read_bytes()
    with pytest.raises(
        UsageError, match=rf"holds a {re.escape(mine.name)} of another kind, which would be lost; a fold"
    ):
        patchword.explain(vit, picture, out=out, check=False)
    assert [(path, path.read_bytes()) for path in out.iterdir()] == [(mine, before)]


def test_a_grey_model_and_one_without_a_head(tmp_path: Path) -> None:
    picture = photo(tmp_path / "a.png")
    grey = small("early-conv", in_channels=1)
    [row] = patchword.explain(grey, picture, out=tmp_path / "grey")
    with np.load(row["arrays"]) as saved:
        assert saved["pixels"].shape == (44, 28, 1)
    assert [each["label"] for each in row["predictions"]] != []
    headless = model_of()
    headless.replace_head(0)
    [row] = patchword.explain(headless, picture, out=tmp_path / "headless")
    assert row["predictions"] == []
    with np.load(row["arrays"]) as saved:
        assert set(saved) == {"pixels", "probabilities", "classes", "labels", "rollouts", "heads", "colours", "map"}
    assert "Deletion" not in page_of(tmp_path / "headless").text


def test_a_second_model_and_a_data_set_stand_beside(tmp_path: Path) -> None:
    model, other = model_of(), small("bit")
    model.labels = other.labels = LABELS
    data = write_pictures(tmp_path / "data", ("bee", "wasp"), 10, side=20)
    picture = data / "bee" / "000.png"
    [row] = patchword.explain(model, picture, out=tmp_path / "out", beside=other, data=data, check=False)
    page = page_of(tmp_path / "out")
    assert "BiT-R14x0.5 Grad-CAM" in page.text
    for each in patchword.predict(other, picture)[0]["predictions"]:
        assert f"{each['label']} {100 * each['probability']:.1f} %" in page.text
    assert "Nearest in the data" in page.text
    assert re.search(r"Nearest in the data (bee|wasp) 1\.00", page.text)  # itself, or the like of it
    assert "Map of pictures" in page.text
    source = next(a["src"] for tag, a in page.found if tag == "img" and a.get("alt", "").startswith("Thumbnails"))  # pyright: ignore
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as atlas:  # pyright: ignore
        assert atlas.size[0] == atlas.size[1]
        assert atlas.size[0] % 36 == 0
        covered = np.asarray(atlas.convert("RGBA"))[18::36, 18::36, 3]  # on black paper as on white
        assert [(covered == 255).sum(), (covered == 0).sum()] == [16, 9]
    assert len(row["predictions"]) == 5


WRONG = [
    (["--layer", "3"], "has no layer 3; its layers are 0 to 2"),
    (["--layer", "first"], "--layer 'first' is not a whole number from 0, or pool"),
    (["--layer", "pool"], "has no layer pool; its layers are 0 to 2"),
    (["--head", "9"], "has no head 9; its heads are 0 to 2"),
    (["--map", "gradcam"], "has no convolutions for Grad-CAM to look at; rollout shows where it looks"),
    (["--map", "rollout", "--head", "1"], "a layer and a head are chosen for the map attention, not for rollout"),
    (["--map", "rolout"], "--map 'rolout' is not known; did you mean 'rollout'?"),
    (["--label", "beee"], "knows no class 'beee'; did you mean 'bee'?"),
    (["--beside", "nowhere"], "nowhere holds no model"),
    (["--data", "nowhere"], "nowhere is neither a path that exists nor a named data set"),
]


@pytest.mark.parametrize(("options", "sentence"), WRONG)
def test_wrong_input_is_one_sentence(
    options: list[str], sentence: str, vit: Model, pair: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(vit, tmp_path / "model")
    arguments = ["explain", str(tmp_path / "model"), str(pair[0]), "--out", str(tmp_path / "out"), *options]
    assert cli.run(arguments) in (2, 3)
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    assert said.startswith("patchword: ")
    assert sentence in said
    assert not (tmp_path / "out").exists()


def test_a_model_without_attention_asked_for_it_is_offered_gradcam(pair: list[Path], tmp_path: Path) -> None:
    attempts: tuple[dict[str, Any], ...] = ({"map": "rollout"}, {"map": "attention"}, {"layer": 0}, {"head": 1})
    for options in attempts:
        with pytest.raises(UsageError, match="BiT-R14x0.5 has no attention to show; Grad-CAM shows where it looks"):
            patchword.explain(small("bit"), pair, out=tmp_path / "out", **options)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file; a folder is right"):
        patchword.explain(small("bit"), pair, out=tmp_path / "file")


def test_a_look_keeps_what_the_model_has() -> None:
    bare = Look(np.zeros((2, 2, 3), np.uint8), np.zeros(0), ())
    assert set(bare.arrays()) == {"pixels", "probabilities", "classes"}
    from patchword.explanation.maps import Choice

    with pytest.raises(ValueError, match="the model gives no such map"):
        bare.chosen(Choice("rollout"))


def test_an_overlay_is_dark_where_the_map_is_low() -> None:
    pixels = np.full((2, 4, 1), 128, np.uint8)
    drawn = overlay.overlay(pixels, np.array([[0.0, 1.0], [0.0, 1.0]]))
    assert drawn.shape == (2 * 56, 4 * 56, 3)
    low, high = overlay.palette()[0].astype(float), overlay.palette()[-1].astype(float)
    np.testing.assert_allclose(drawn[0, 0], 0.5 * low + 0.5 * 128, atol=1)
    np.testing.assert_allclose(drawn[0, -1], 0.75 * high + 0.25 * 128, atol=1)
    lightness = overlay.palette().astype(float) @ (0.299, 0.587, 0.114)
    assert (np.diff(lightness) > 0).all()
    assert overlay.overlay(pixels, np.ones((2, 2))).std() < 40  # a map of equal values is all of the lowest colour
