"""`tools/ship`: the model of a run in half precision, and a card that says how it came to be."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

from patchword.training.run import run
from patchword.weights import shipped
from patchword.weights.io import load_model
from tiny import tiny

SHIP = Path(__file__).resolve().parents[1] / "tools/ship"


def test_a_run_and_what_it_began_with_are_shipped(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(tiny(pictures), tmp_path / "first")
    second = run(tiny(pictures, init=str(first), evaluation={"mirror": True}), tmp_path / "second")
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "shipped")
    monkeypatch.setattr(sys, "argv", ["ship", "new", str(first), str(second)])
    capsys.readouterr()
    runpy.run_path(str(SHIP))
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{tmp_path / 'shipped/new'}: 0.0")
    assert shipped.names() == ["new"]
    model, whole = load_model("shipped:new").eval(), load_model(second).eval()
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-3, atol=1e-6)
    stages = [model.provenance["stage 1"], model.provenance["stage 2"]]
    assert stages == said[1:]
    assert all(stage.startswith("pictures: 72 pictures, 1.7e-08 PFLOP, ") for stage in stages)
    assert [stage.endswith(" of 21 test pictures, each with its mirror image") for stage in stages] == [False, True]
    card = (tmp_path / "shipped/new/README.md").read_text()
    assert stages[1] in card
    assert "Apache-2.0" in card


def test_a_name_and_a_run_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ship", "new"])
    with pytest.raises(SystemExit, match=r"tools/ship NAME RUN… needs a name and one run folder or more"):
        runpy.run_path(str(SHIP))
