"""Model folders: the same bytes for the same weights, damage found, hostile files refused, adaptation said aloud."""

import hashlib
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import patchword
from patchword.core.errors import DataError, UsageError
from patchword.models.contract import Model
from patchword.models.names import create_model
from patchword.weights import npz, source
from patchword.weights.adapt import adapt
from patchword.weights.io import load_model, save_model


def small() -> Model:
    torch.manual_seed(3)
    model = create_model("ViT-At/2", 5, (14, 22), depth=2, position="1d")
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.labels = ("ä", "b", "c", "d", "<e>")
    return model.eval()


def test_round_trip_is_exact_and_bytes_repeat(tmp_path: Path) -> None:
    model = small()
    save_model(model, tmp_path / "a")
    save_model(model, tmp_path / "b")
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    again = load_model(tmp_path / "a")
    assert again.labels == model.labels
    assert again.preprocessing == model.preprocessing
    assert again.architecture == model.architecture
    assert not again.training
    batch = torch.randn(2, 3, 14, 22)
    assert torch.equal(again(batch), model(batch))
    save_model(again, tmp_path / "a")  # over itself, while its weights are mapped from there
    assert torch.equal(load_model(tmp_path / "a")(batch), model(batch))


def test_others_may_read_a_model_where_they_may_read_new_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_model(create_model("ViT-At/8", 3, 16, depth=1), tmp_path / "model")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()} == {0o640}


def test_resampled_sincos_positions_are_saved(tmp_path: Path) -> None:
    model = create_model("ViT-At/2", 3, (14, 22), position="sincos", pool="gap", depth=1).with_image_size((18, 26))
    nn.init.normal_(model.head.weight)  # pyright: ignore[reportArgumentType]
    save_model(model, tmp_path / "m")
    batch = torch.randn(1, 3, 18, 26)
    torch.testing.assert_close(load_model(tmp_path / "m")(batch), model.eval()(batch))


def test_load_adapts_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(small(), tmp_path / "m")
    model = load_model(tmp_path / "m", num_classes=3, image_size=(22, 14))
    assert model(torch.randn(1, 3, 22, 14)).tolist() == [[0, 0, 0]]
    said = capsys.readouterr().err
    assert "image size 14×22 → 22×14, position embedding resampled in 2-D from 7×11 to 11×7 patches" in said
    assert "new zero-initialised head for 3 classes (it had 5)" in said


def test_the_same_labels_keep_their_head() -> None:
    model = small()
    same, changes = adapt(model, labels=("ä", "b", "c", "d", "<e>"))
    assert changes == []
    assert same.head.weight.any()  # pyright: ignore[reportCallIssue, reportOptionalCall]
    _, changes = adapt(model, labels=("b", "ä", "c", "d", "<e>"))
    assert changes == ["new zero-initialised head for 5 classes (it had 5)"]


def test_flipped_bit_is_found(tmp_path: Path) -> None:
    save_model(small(), tmp_path / "m")
    file = tmp_path / "m/model.safetensors"
    content = bytearray(file.read_bytes())
    content[-7] ^= 4
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"model\.safetensors is damaged: its SHA-256"):
        load_model(tmp_path / "m")


def _describe(folder: Path, **changes: object) -> None:
    description = json.loads((folder / "model.json").read_text())
    for path, value in changes.items():
        table = description
        *names, last = path.split("__")
        for name in names:
            table = table[name]
        table[last] = value
    description.get("sha256", {}).pop("model.json", None)
    (folder / "model.json").write_text(json.dumps(description))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture__depth": 3}, r"lacks blocks\.2\.[\w.]+ for ViT-At/2"),
        ({"architecture__mlp_dim": 24}, r"mlp\.fc1\.\w+ is \(.*\), ViT-At/2 needs"),
        ({"architecture__family": "gpt"}, "unknown architecture"),
        ({"architecture__surprise": 1}, "unknown field model.surprise"),
        ({"preprocessing": {}}, "must have exactly the fields"),
        ({"format": 2}, "not a model description of format 1"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    save_model(small(), tmp_path / "m")
    _describe(tmp_path / "m", **changes)
    with pytest.raises((DataError, UsageError), match=message):
        load_model(tmp_path / "m")


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return (Path.touch, (Path("executed"),))  # type: ignore[return-value]


def test_a_pickle_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_model(small(), tmp_path / "m")
    content = pickle.dumps(Payload())
    (tmp_path / "m/model.safetensors").write_bytes(content)
    with pytest.raises(DataError):
        load_model(tmp_path / "m")
    description = json.loads((tmp_path / "m/model.json").read_text())
    description["sha256"] = {"model.safetensors": hashlib.sha256(content).hexdigest()}
    (tmp_path / "m/model.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match="not a whole safetensors file"):
        load_model(tmp_path / "m")
    assert not (tmp_path / "executed").exists()


def test_checkpoints_are_no_models(tmp_path: Path) -> None:
    run = tmp_path / "run"
    checkpoint = run / "checkpoints/step-00000003"
    save_model(small(), checkpoint)
    (checkpoint / "model.json").unlink()
    (run / "recipe.toml").touch()
    for place in (run, checkpoint, checkpoint / "model.safetensors"):
        with pytest.raises(
            UsageError, match=rf"^{place} holds no model, for the run {run} is not finished; its command"
        ):
            load_model(place)
    save_model(small(), run / "model")
    load_model(run)
    for place in (checkpoint.parent, checkpoint, checkpoint / "model.safetensors"):
        with pytest.raises(UsageError, match=rf"^{place} belongs to .* the run's folder, {run}, would be right$"):
            load_model(place)


def test_places_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no model"):
        load_model(tmp_path)
    (tmp_path / "thing.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds no model; a new name"):
        save_model(small(), tmp_path)
    assert (tmp_path / "thing.txt").read_text() == "mine"
    with pytest.raises(UsageError, match="unknown format 'tim'"):
        save_model(small(), tmp_path / "x", format="tim")  # pyright: ignore[reportArgumentType]


def test_front_door_names_resolve() -> None:
    for name in patchword.__all__:
        assert getattr(patchword, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = patchword.trian  # pyright: ignore[reportAttributeAccessIssue]


def test_only_a_model_of_the_same_format_is_replaced(tmp_path: Path) -> None:
    model = small()
    np.savez(tmp_path / "data.npz", pictures=np.zeros(3))
    with pytest.raises(UsageError, match="exists and holds no model"):
        save_model(model, tmp_path / "data.npz", format="google")
    save_model(model, tmp_path / "ours")
    with pytest.raises(UsageError, match="holds a model of another format"):
        save_model(model, tmp_path / "ours", format="huggingface")
    save_model(model, tmp_path / "ours")


def test_several_labels_are_kept_where_the_format_can_say_it(tmp_path: Path) -> None:
    model = small()
    model.multi_label = True
    save_model(model, tmp_path / "theirs", format="huggingface")
    assert load_model(tmp_path / "theirs").multi_label


def test_an_edited_description_is_found(tmp_path: Path) -> None:
    """Unless its hash is taken out, which says that it was meant."""
    save_model(small(), tmp_path / "m")
    path = tmp_path / "m" / "model.json"
    description = json.loads(path.read_text())
    path.write_text(json.dumps(description))  # other spaces are no edit
    assert load_model(tmp_path / "m").num_classes == 5
    description["labels"][1] = "x"
    path.write_text(json.dumps(description))
    with pytest.raises(DataError, match=r"model\.json is damaged or was edited"):
        load_model(tmp_path / "m")
    del description["sha256"]["model.json"]
    path.write_text(json.dumps(description))
    assert load_model(tmp_path / "m").labels == ("ä", "x", "c", "d", "<e>")
    for labels in (["a"], "abcde", [1, 2, 3, 4, 5]):
        path.write_text(json.dumps({**description, "labels": labels}))
        with pytest.raises(DataError, match="labels must name each of the 5 classes"):
            load_model(tmp_path / "m")


def test_labels_in_another_order_get_a_new_head() -> None:
    model = small()
    changed, said = adapt(model, labels=("b", "ä", "c", "d", "<e>"))
    assert not changed.head.weight.any()  # pyright: ignore[reportCallIssue]
    assert "new zero-initialised head" in said[-1]


def test_npz_of_another_byte_order_is_read_and_one_with_more_behind_an_array_is_not(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3) - 2
    np.savez(tmp_path / "big.npz", a=values.astype(">f4"))
    assert torch.equal(npz.read(tmp_path / "big.npz")["a"], torch.from_numpy(values))
    with zipfile.ZipFile(tmp_path / "more.npz", "w") as archive, archive.open("a.npy", "w") as entry:
        np.lib.format.write_array(entry, values)
        entry.write(b"more")
    with pytest.raises(DataError, match="there is more behind the array"):
        npz.read(tmp_path / "more.npz")


def test_of_several_state_dicts_in_a_pickle_the_average_is_taken(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1)}, "state_dict_ema": {"module.a": torch.ones(1)}}, tmp_path / "x.pth")
    assert source._file(tmp_path / "x.pth", trust_pickle=True)["a"].item() == 1
