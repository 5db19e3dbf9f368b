"""The page of `patchword explain` as a person uses it: a browser is driven and asked for the pixels of its canvases."""

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import patchword
from browser import Browser, browser
from explaining import LABELS, page_of, photo
from patchword.explanation import overlay
from patchword.explanation.attention import attend
from patchword.explanation.maps import as_images
from patchword.models.contract import Model
from patchword.models.names import create_model
from test_families import small


def pixels_of(page: Browser, name: str, number: int = 0) -> np.ndarray:
    """uint8 H×W×3 of a canvas."""
    script = (
        f"(() => {{ const c = document.querySelectorAll('.{name}')[{number}]; const d = c.getContext('2d').getImageData(0, 0, "
        "c.width, c.height).data; let s = ''; for (let i = 0; i < d.length; i += 8192) s += String.fromCharCode(...d.subarray(i, "
        "i + 8192)); return JSON.stringify([c.height, c.width, btoa(s)]); })()"
    )
    height, width, text = json.loads(page.run(script))
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(height, width, 4)[..., :3]


def close(drawn: np.ndarray, expected: np.ndarray) -> bool:
    """Equal up to what rounding to bytes takes: a few steps of the palette on the worst pixels."""
    difference = np.abs(drawn.astype(int) - expected.astype(int))
    return drawn.shape == expected.shape and difference.max() <= 12 and difference.mean() < 1.5


def set_value(page: Browser, name: str, value: object, event: str = "change") -> None:
    page.run(
        f"(() => {{ const e = document.querySelector('.{name}'); e.value = {json.dumps(value)}; "
        f"e.dispatchEvent(new Event('{event}', {{bubbles: true}})); }})()"
    )


def test_the_page_shows_the_maps_and_answers_to_hand_and_keyboard(vit: Model, pair: list[Path], tmp_path: Path) -> None:
    rows = patchword.explain(vit, pair, out=tmp_path / "out")
    with np.load(rows[0]["arrays"]) as saved:
        arrays = dict(saved)
    exact = [each[0] for each in attend(vit, as_images(vit, arrays["pixels"][None])).between_patches()]

    def expected(values: np.ndarray) -> np.ndarray:
        return overlay.overlay(arrays["pixels"], values)

    def says(number: int = 0) -> str:
        return str(page.run(f"document.querySelectorAll('.says')[{number}].textContent"))

    with browser(tmp_path / "profile") as page:
        page.open(tmp_path / "out/report.html")
        page.wait("document.querySelectorAll('.scripted').length === 2")
        np.testing.assert_array_equal(pixels_of(page, "picture"), overlay.shown(arrays["pixels"]))
        assert close(pixels_of(page, "drawn"), expected(arrays["rollouts"][2]))
        assert says().startswith(
            "Rollout through layers 0 to 2: where the content of the class token came from. Highest in row "
        )
        row, column = np.unravel_index(arrays["rollouts"][2].argmax(), (11, 7))
        assert f"Highest in row {row}, column {column} of 11×7: {100 * arrays['rollouts'][2].max():.3g}" in says()

        # The slider, by the keyboard.
        page.run("document.querySelector('.layer').focus()")
        page.press("ArrowLeft")
        page.press("ArrowLeft")
        assert page.run("document.querySelector('.number').textContent") == "0"
        assert close(pixels_of(page, "drawn"), expected(arrays["rollouts"][0]))
        assert says().startswith("Rollout through layer 0:")
        page.press("ArrowRight")

        # One layer, the mean of its heads and one head.
        assert page.run("document.querySelector('.heads').disabled")
        set_value(page, "choice", "attention")
        assert not page.run("document.querySelector('.heads').disabled")
        assert close(pixels_of(page, "drawn"), expected(arrays["heads"][1].mean(0)))
        set_value(page, "heads", "2")
        assert close(pixels_of(page, "drawn"), expected(arrays["heads"][1, 2]))
        assert says().startswith("Layer 1, head 2: what the class token pays to each patch.")
        set_value(page, "choice", "class:1")
        assert close(pixels_of(page, "drawn"), expected(arrays["for_classes"][1]))
        assert f"What spoke for {LABELS[arrays['classes'][1]]}" in says()
        assert page.run("document.querySelector('.layer').disabled")

        # A patch, by a click: row 8 of 11, column 1 of 7. Its frame is on both pictures.
        page.click(".drawn", right=1.5 / 7, down=8.5 / 11)
        assert says().startswith("Layer 1, mean of the heads: what the patch in row 8, column 1 pays to the others.")
        asked = exact[1][8 * 7 + 1]
        times = re.search(r"of 11×7: ([0-9.]+) times the mean\.$", says())
        assert times is not None
        assert float(times[1]) == pytest.approx(float(asked.max() / asked.mean()), rel=0.05)
        inside = np.ones((220, 140), bool)
        inside[160:180, 20:40] = False
        asked = asked.reshape(11, 7).numpy()
        quantised = np.sqrt((asked - asked.min()) / np.ptp(asked))
        quantised = ((quantised * 15).round() / 15) ** 2
        assert close(pixels_of(page, "drawn")[inside], expected(quantised)[inside])
        assert (pixels_of(page, "picture")[161, 30] != overlay.shown(arrays["pixels"])[161, 30]).any()
        np.testing.assert_array_equal(pixels_of(page, "picture")[inside], overlay.shown(arrays["pixels"])[inside])

        # From there by arrow keys, no further than the edge, and back with Escape.
        before = pixels_of(page, "drawn")
        page.press("ArrowDown")
        assert "row 9, column 1" in says()
        assert (pixels_of(page, "drawn") != before).any()
        for _ in range(3):
            page.press("ArrowLeft")
        assert "row 9, column 0" in says()
        page.press("Escape")
        assert close(pixels_of(page, "drawn"), expected(arrays["for_classes"][1]))
        np.testing.assert_array_equal(pixels_of(page, "picture"), overlay.shown(arrays["pixels"]))
        page.press("ArrowUp")
        assert "row 5, column 3" in says()  # the middle
        page.click(".reset")
        assert "What spoke for" in says()
        assert page.run("document.activeElement.className") == "live picture"  # and not lost with the button

        # The other picture has stayed as it was; no fault was told; all can be reached by Tab.
        assert says(1).startswith("Rollout through layers 0 to 2")
        assert page.said == []
        page.run("document.activeElement.blur(); window.scrollTo(0, 0)")
        reached = set()
        for _ in range(14):
            page.press("Tab")
            reached.add(page.run("document.activeElement.className"))
        assert {"live picture", "choice", "layer"} <= reached


def test_the_controls_name_the_map_that_is_shown(vit: Model, pair: list[Path], tmp_path: Path) -> None:
    patchword.explain(vit, pair[0], out=tmp_path / "out", check=False)
    with browser(tmp_path / "profile") as page:
        page.open(tmp_path / "out/report.html")
        page.wait("document.querySelectorAll('.scripted').length === 1")

        def named() -> tuple[str, str]:
            chosen = "document.querySelector('.choice').selectedOptions[0].textContent"
            return page.run(chosen), page.run("document.querySelector('.drawn').getAttribute('aria-label')")

        assert named()[0] == "attention rollout"
        assert "Rollout through layers 0 to 2" in named()[1]
        page.click(".drawn", right=0.1, down=0.1)
        assert named()[0] == "attention of the patch"
        assert "what the patch in row 1, column 0 pays to the others" in named()[1]
        set_value(page, "choice", "rollout")  # which a person could not choose while it stood there
        assert "Rollout through layers 0 to 2" in named()[1]
        assert page.run("getComputedStyle(document.querySelector('.drawn')).cursor") == "crosshair"
        assert page.said == []


def test_a_model_of_one_layer_has_nothing_to_slide_and_no_chart_of_one_column(
    vit: Model, pair: list[Path], tmp_path: Path
) -> None:
    model = create_model("ViT-At/8", 2, 32, embed_dim=8, mlp_dim=8, depth=1, num_heads=1).eval()
    patchword.explain(model, pair[0], out=tmp_path / "out")
    page = page_of(tmp_path / "out")
    classes = {name for _, attrs in page.found for name in str(attrs.get("class")).split()}
    assert not {"layer", "heads", "plot"} & classes
    with np.load(tmp_path / "out/model.npz") as saved:
        distance, entropy = saved["attention_distance"].item(), saved["attention_entropy"].item()
    assert f"the only layer's 1 head looks {distance:.1f} pixels far (16.1 where" in page.text
    assert f"the entropy is {entropy:.1f} bits (4.1 where" in page.text  # log₂ 17
    # The map of its positions is no larger than 4×4 maps of 4×4 places are worth.
    assert "276" in page.values("width")
    with browser(tmp_path / "profile") as shown:
        shown.open(tmp_path / "out/report.html", width=390)
        shown.wait("document.querySelectorAll('.scripted').length === 1")
        shown.click(".drawn")
        assert shown.said == []
        # On a telephone the verdicts are in sight; what has to be scrolled elsewhere is reached by the keyboard.
        right = (
            "[...document.querySelectorAll('.truth td, .truth th')].map((cell) => cell.getBoundingClientRect().right)"
        )
        assert max(shown.run(right)) <= 390
        assert shown.run("document.documentElement.scrollWidth") <= 390
        assert shown.run("document.querySelector('.scroll').tabIndex") == 0
    patchword.explain(vit, pair[0], out=tmp_path / "three", check=False)
    classes = {name for _, attrs in page_of(tmp_path / "three").found for name in str(attrs.get("class")).split()}
    assert {"layer", "heads", "plot"} <= classes


def test_the_page_of_a_network_without_attention_in_the_browser(pair: list[Path], tmp_path: Path) -> None:
    model = small("efficientnet")
    model.labels = LABELS
    rows = patchword.explain(model, pair[:1], out=tmp_path / "out", check=False)
    with np.load(rows[0]["arrays"]) as saved:
        arrays = dict(saved)
    with browser(tmp_path / "profile") as page:
        page.open(tmp_path / "out/report.html", width=390)
        page.wait("document.querySelectorAll('.scripted').length === 1")
        assert close(pixels_of(page, "drawn"), overlay.overlay(arrays["pixels"], arrays["gradcam"][0]))
        set_value(page, "choice", "gradcam:2")
        assert close(pixels_of(page, "drawn"), overlay.overlay(arrays["pixels"], arrays["gradcam"][2]))
        assert page.run("document.documentElement.scrollWidth") <= 390  # nothing to scroll to on a telephone
        assert page.run("getComputedStyle(document.querySelector('.drawn')).cursor") == "auto"  # a click does nothing
        assert page.said == []


def test_attention_to_all_patches_alike_is_said_to_be_so(tmp_path: Path) -> None:
    """Such a map has no highest place, and is not nothing either."""
    model = create_model("ViT-At/8", 2, 32, embed_dim=8, mlp_dim=8, depth=2, num_heads=1).eval()
    for block in model.blocks:  # pyright: ignore[reportGeneralTypeIssues] (it is a ViT)
        torch.nn.init.zeros_(block.attention.qkv.weight)
    patchword.explain(model, photo(tmp_path / "a.png"), out=tmp_path / "out", check=False)
    with browser(tmp_path / "profile") as page:
        page.open(tmp_path / "out/report.html")
        page.wait("document.querySelectorAll('.scripted').length === 1")
        set_value(page, "choice", "attention")
        assert page.run("document.querySelector('.says').textContent").endswith("The same everywhere: 5.88 %.")
        page.click(".drawn")
        assert page.run("document.querySelector('.says').textContent").endswith(
            "pays to the others. The same everywhere."
        )
        assert page.said == []
