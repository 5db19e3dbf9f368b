"""transformers' ViT: their models read by us and ours by them, with equal outputs; contradictions and damage refused."""

import dataclasses
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from patchword.core.errors import DataError, UsageError
from patchword.core.preprocessing import Preprocessing
from patchword.models.contract import Model
from patchword.models.names import create_model
from patchword.weights import io
from patchword.weights.io import load_model, save_model
from patchword.weights.mapping import Foreign, Hints
from patchword.weights.source import open_source

os.environ["HF_HUB_OFFLINE"] = "1"  # before the import: nothing here may reach for the network
transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()

# Widths, depths and counts that no other one divides or equals by chance; 7×11 patches.
SIZES = {
    "hidden_size": 33,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 37,
    "image_size": [14, 22],
    "patch_size": 2,
}


def randomize(model: nn.Module) -> Any:
    """A normal value in every parameter, at which activations keep a scale near 1, so that 1e-5 is a bound on rounding."""
    torch.manual_seed(zlib.crc32(str(sorted(name for name, _ in model.named_parameters())).encode()))
    for name, parameter in model.named_parameters():
        fan_in = parameter[0].numel() if parameter.ndim in (2, 4) else 16
        nn.init.normal_(parameter, mean=float("norm" in name and name.endswith("weight")), std=fan_in**-0.5)
    return model.eval()


def theirs(kind: str = "ViTForImageClassification", options: dict[str, Any] | None = None, **fields: Any) -> Any:
    """A random model of transformers."""
    config = transformers.ViTConfig(**{"num_labels": 5, **SIZES, **fields})
    return randomize(getattr(transformers, kind)(config, **(options or {})))


def batch(model: Any) -> Tensor:
    config = model.config
    size = config.image_size if isinstance(config.image_size, list | tuple) else [config.image_size] * 2
    return torch.randn(3, config.num_channels, *size, generator=torch.Generator().manual_seed(1))


def read(path: Path, **hints: Any) -> Foreign:
    return io.read(open_source(path), Hints(**hints))


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def compare(foreign: Any, ours: Model) -> None:
    """Every hidden state, what comes after the last norm, and the output, by the plain path and by the fused one."""
    images = batch(foreign)
    encoder = getattr(foreign, "vit", foreign)
    expected = encoder(images, output_hidden_states=True)
    found = ours.intermediates(images)
    names = ["with_position", *(f"block_{i:02d}" for i in range(ours.config.depth))]
    assert len(expected.hidden_states) == len(names)
    for name, state in zip(names, expected.hidden_states, strict=True):
        close(found[name], state)
    close(found["encoded"], expected.last_hidden_state)
    if ours.num_classes:
        output = foreign(images).logits
    else:
        output = expected.last_hidden_state[:, 0] if expected.pooler_output is None else expected.pooler_output
    assert output.std() > 0.1
    close(ours(images), output)
    with torch.inference_mode():
        close(ours(images), output)


CLASSIFIERS: dict[str, dict[str, Any]] = {
    "grey": {"num_channels": 1},
    "colour": {"num_channels": 3},
    "no qkv bias": {"qkv_bias": False},
    "tanh": {"hidden_act": "gelu_pytorch_tanh"},
    "new": {"hidden_act": "gelu_new", "layer_norm_eps": 1e-2},
    "square": {"image_size": 26, "num_labels": 1},
    "list of patch sides": {"patch_size": [2, 2], "num_labels": 13},
}


@pytest.mark.parametrize("fields", CLASSIFIERS.values(), ids=CLASSIFIERS)
def test_their_classifier_becomes_ours(tmp_path: Path, fields: dict[str, Any]) -> None:
    model = theirs(**fields)
    model.save_pretrained(tmp_path / "m")
    ours = load_model(tmp_path / "m")
    compare(model, ours)
    assert ours.config.norm_eps == model.config.layer_norm_eps
    assert not ours.training


def test_shards(tmp_path: Path) -> None:
    model = theirs()
    model.save_pretrained(tmp_path / "m", max_shard_size="6KB")
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 3
    compare(model, load_model(tmp_path / "m"))


@pytest.mark.parametrize("pooling", [False, True])
def test_their_encoder_becomes_ours(tmp_path: Path, pooling: bool) -> None:
    model = theirs("ViTModel", {"add_pooling_layer": pooling})
    model.save_pretrained(tmp_path / "m")
    ours = load_model(tmp_path / "m")
    assert ours.config.hidden_head == pooling
    assert ours.num_classes == 0
    compare(model, ours)


def test_what_takes_no_part_is_dropped_with_a_reason(tmp_path: Path) -> None:
    model = theirs("ViTModel", {"use_mask_token": True})
    model.save_pretrained(tmp_path / "m")
    found = read(tmp_path / "m")
    assert list(found.dropped) == ["embeddings.mask_token"]
    compare(model, found.model)

    model = theirs("ViTForMaskedImageModeling", encoder_stride=2)
    model.save_pretrained(tmp_path / "masked")
    found = read(tmp_path / "masked")
    assert sorted(found.dropped) == ["decoder.0.bias", "decoder.0.weight", "vit.embeddings.mask_token"]
    compare(model.vit, found.model)

    model = theirs()
    model.save_pretrained(tmp_path / "c")
    tensors = load_file(tmp_path / "c/model.safetensors")
    tensors |= {"vit.pooler.dense.weight": torch.randn(33, 33), "vit.pooler.dense.bias": torch.randn(33)}
    save_file(tensors, tmp_path / "c/model.safetensors")
    found = read(tmp_path / "c")
    assert set(found.dropped.values()) == {"the classifier of transformers does not read the pooler"}
    assert len(found.dropped) == 2
    compare(model, found.model)


@pytest.mark.parametrize("prefix", ["", "vit."])
@pytest.mark.parametrize("spelling", ["memory", "disk"])
def test_bare_tensors_in_both_spellings(tmp_path: Path, prefix: str, spelling: str) -> None:
    model = theirs(hidden_size=66, num_attention_heads=11)
    if spelling == "disk":
        model.save_pretrained(tmp_path)
        tensors = load_file(tmp_path / "model.safetensors")
    else:
        tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
        assert "vit.layers.1.attention.q_proj.weight" in tensors
    named = {prefix + name.removeprefix("vit."): value for name, value in tensors.items() if "classifier" not in name}
    classifier = {name: value for name, value in tensors.items() if "classifier" in name}
    save_file({**named, **classifier}, tmp_path / "weights.safetensors")
    found = read(tmp_path / "weights.safetensors", num_heads=11, image_size=(14, 22))
    compare(model, found.model)
    assert [sentence for sentence in found.assumed if "gelu" in sentence or "norm_eps" in sentence] == [
        "gelu=erf is assumed, as transformers has it where nothing is said",
        "norm_eps=1e-12 is assumed, as transformers has it where nothing is said",
    ]
    with pytest.raises(UsageError, match="its width of 66 is no multiple of 64; give num_heads"):
        read(tmp_path / "weights.safetensors", image_size=(14, 22))
    with pytest.raises(DataError, match="has 78 positions, which are no square grid; image_size=HEIGHT×WIDTH"):
        read(tmp_path / "weights.safetensors", num_heads=11)
    with pytest.raises(UsageError, match="num_heads=5 does not divide"):
        read(tmp_path / "weights.safetensors", num_heads=5, image_size=(14, 22))


def test_defaults_and_hints_of_bare_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = theirs("ViTModel", hidden_size=128, num_attention_heads=2, image_size=26, hidden_act="gelu_new")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, tmp_path / "w.safetensors")
    compare(model, load_model(tmp_path / "w.safetensors", gelu="tanh"))
    said = capsys.readouterr().err
    assert "num_heads=2 is assumed, 64 channels a head" in said
    assert "image_size=26×26 is assumed: 13×13 of its 170 positions are patches'" in said
    assert "tanh is taken for the pooler" in said
    assert "gelu" not in said
    assert load_model(tmp_path / "w.safetensors", norm_eps=1e-6, position="1d").config.norm_eps == 1e-6
    with pytest.raises(UsageError, match="says itself that position is 1d; position=2d is wrong"):
        load_model(tmp_path / "w.safetensors", position="2d")
    assert load_model(tmp_path / "w.safetensors", image_size=(6, 10)).grid == (3, 5)  # read as a square, then resampled


def test_a_hint_may_repeat_the_file_and_not_contradict_it(tmp_path: Path) -> None:
    theirs().save_pretrained(tmp_path)
    assert read(tmp_path, num_heads=3, gelu="erf", norm_eps=1e-12).model.config.num_heads == 3
    contradictions: list[dict[str, Any]] = [{"num_heads": 11}, {"gelu": "tanh"}, {"norm_eps": 1e-6}]
    for hint in contradictions:
        with pytest.raises(UsageError, match=r"says itself that .*; .* is wrong"):
            read(tmp_path, **hint)


def test_narrow_tensors_are_widened(tmp_path: Path) -> None:
    model = theirs().to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    found = read(tmp_path)
    assert "bfloat16 tensors are widened to float32, which is exact" in found.assumed
    compare(model.float(), found.model)


def test_labels(tmp_path: Path) -> None:
    labels = {0: "ä", 1: "crane", 2: "crane", 3: "LABEL_3", 4: "<e>"}
    theirs(id2label=labels, label2id={label: i for i, label in labels.items()}).save_pretrained(tmp_path / "a")
    assert load_model(tmp_path / "a").labels == ("ä", "crane", "crane", "LABEL_3", "<e>")
    theirs().save_pretrained(tmp_path / "b")
    found = read(tmp_path / "b")
    assert found.model.labels is None
    assert "its 5 classes have no names but placeholders (LABEL_0, …)" in found.assumed


def ours(num_classes: int = 5, channels: int = 3, size: tuple[int, int] = (14, 22), **options: Any) -> Model:
    options = {"embed_dim": 44, "depth": 2, "mlp_dim": 37, "num_heads": 11, **options}
    model = randomize(create_model("ViT-At/2", num_classes, size, channels, **options))
    model.labels = tuple("äbcd<"[:num_classes]) or None
    return model


def loaded_by_them(folder: Path, kind: str, **options: Any) -> Any:
    model, info = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True, **options)
    for name in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not info[name], f"{name}: {info[name]}"
    return model.eval()


WRITTEN: dict[str, dict[str, Any]] = {
    "colour": {"position": "1d"},
    "grey": {"channels": 1},
    "erf": {"gelu": "erf", "norm_eps": 1e-3},
    "2d": {"position": "2d"},
    "sincos": {"position": "sincos"},
    "none": {"position": "none"},
    "square": {"size": (26, 26), "num_classes": 1},
}


@pytest.mark.parametrize("options", WRITTEN.values(), ids=WRITTEN)
def test_our_classifier_becomes_theirs(tmp_path: Path, options: dict[str, Any]) -> None:
    model = ours(**options)
    save_model(model, tmp_path / "m", format="huggingface")
    foreign = loaded_by_them(tmp_path / "m", "AutoModelForImageClassification")
    assert type(foreign).__name__ == "ViTForImageClassification"
    assert list(foreign.config.id2label.values()) == list(model.labels or ())
    compare(foreign, model)
    again = load_model(tmp_path / "m")
    assert again.labels == model.labels
    assert again.preprocessing == model.preprocessing
    images = batch(foreign)
    if model.config.position == "1d":
        assert again.config == model.config
        assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())
        assert again.state_dict().keys() == model.state_dict().keys()
    close(again(images), model(images))  # equal weights elsewhere in memory may round differently


def test_our_encoder_becomes_theirs(tmp_path: Path) -> None:
    model = ours(0, hidden_head=True)
    save_model(model, tmp_path / "pooler", format="huggingface")
    compare(loaded_by_them(tmp_path / "pooler", "ViTModel"), model)
    compare(loaded_by_them(tmp_path / "pooler", "AutoModel"), load_model(tmp_path / "pooler"))
    model = ours(0)
    save_model(model, tmp_path / "plain", format="huggingface")
    compare(loaded_by_them(tmp_path / "plain", "ViTModel", add_pooling_layer=False), model)
    compare(loaded_by_them(tmp_path / "plain", "ViTModel", add_pooling_layer=False), load_model(tmp_path / "plain"))


def test_resampled_sincos_positions_are_written_as_they_are(tmp_path: Path) -> None:
    model = ours(position="sincos").with_image_size((10, 34))
    save_model(model, tmp_path, format="huggingface")
    compare(loaded_by_them(tmp_path, "AutoModelForImageClassification"), model)


def test_bytes_repeat_and_a_folder_is_replaced(tmp_path: Path) -> None:
    save_model(ours(), tmp_path / "a", format="huggingface")
    save_model(load_model(tmp_path / "a"), tmp_path / "b", format="huggingface")
    names = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert names == ["config.json", "model.safetensors", "preprocessor_config.json"]
    first = {name: (tmp_path / "a" / name).read_bytes() for name in names}
    assert first == {name: (tmp_path / "b" / name).read_bytes() for name in names}
    save_model(
        load_model(tmp_path / "a"), tmp_path / "a", format="huggingface"
    )  # while its weights are mapped from there
    assert first == {name: (tmp_path / "a" / name).read_bytes() for name in names}


UNHELD: dict[str, tuple[Callable[[], Model], str]] = {
    "gap": (lambda: ours(pool="gap"), "pool=gap"),
    "gap-norm": (lambda: ours(pool="gap-norm"), "pool=gap-norm"),
    "map": (lambda: ours(pool="map"), "pool=map"),
    "relative": (lambda: ours(position="relative"), "position=relative"),
    "registers": (lambda: ours(registers=3), "registers=3"),
    "layer scale": (lambda: ours(layer_scale=True), "layer_scale"),
    "hidden head": (lambda: ours(hidden_head=True), "hidden_head together with a classifier"),
    "hybrid": (lambda: create_model("R5+ViT-Fe/4", 3, (20, 28)), "a ResNet as its stem"),
    "BiT": (lambda: create_model("BiT-R26x0.5", 3, 32), "is not a plain ViT"),
    "EfficientNet": (lambda: create_model("EfficientNet-B0", 3, 32), "is not a plain ViT"),
}


@pytest.mark.parametrize(("make", "message"), UNHELD.values(), ids=UNHELD)
def test_what_the_format_cannot_hold_is_refused(tmp_path: Path, make: Callable[[], Model], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        save_model(make(), tmp_path / "m", format="huggingface")
    assert list(tmp_path.iterdir()) == []


# ---- preprocessing


def smooth(height: int, width: int, channels: int) -> Image.Image:
    """A picture of waves, without edges at which half a pixel would tell."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    waves = [np.sin(x / (19 + 4 * c)) + np.cos(y / (23 - 5 * c)) for c in range(channels)]
    pixels = np.stack([(wave + 2) * 63 for wave in waves], axis=-1).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def half_a_pixel(preprocessing: Preprocessing, images: Tensor) -> float:
    """By how many levels of 255 an image can change when it is moved by half a pixel, as a crop from a resized picture is,
    with its side rounded on top."""
    levels = images * 255 * torch.tensor(preprocessing.std).view(-1, 1, 1)
    return 1.5 + 0.6 * float(levels.diff(dim=2).abs().max() + levels.diff(dim=3).abs().max())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("backend", ["pil", "torchvision"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("resize", ["stretch", "crop"])
def test_their_processor_makes_our_pixels(
    tmp_path: Path, channels: int, backend: str, interpolation: Any, resize: Any
) -> None:
    model = ours(channels=channels, size=(14, 22) if resize == "stretch" else (38, 38))
    model.preprocessing = Preprocessing(
        image_size=model.image_size,
        resize=resize,
        crop_fraction=0.8 if resize == "crop" else 0.875,
        interpolation=interpolation,
        mean=(0.485, 0.456, 0.406)[:channels],
        std=(0.229, 0.224, 0.225)[:channels],
    )
    save_model(model, tmp_path, format="huggingface")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
    for shape in ((131, 211), (211, 131), (97, 97), model.image_size):
        picture = smooth(*shape, channels)
        pixels = processor(picture, return_tensors="pt")["pixel_values"]
        expected = model.preprocess(picture)
        levels = (pixels - expected).abs() * 255 * torch.tensor(model.preprocessing.std).view(-1, 1, 1)
        if resize == "stretch":
            assert levels.max() < (1e-4 if backend == "pil" else 1.01)
        else:
            assert levels.max() < half_a_pixel(model.preprocessing, expected)
    assert load_model(tmp_path).preprocessing == model.preprocessing


def test_colours_come_as_here(tmp_path: Path) -> None:
    model = ours()
    model.preprocessing = dataclasses.replace(model.preprocessing, resize="stretch")
    save_model(model, tmp_path, format="huggingface")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    for picture in (smooth(41, 43, 1), smooth(41, 43, 3).convert("RGBA"), smooth(41, 43, 3).convert("P")):
        expected = model.preprocess(picture)
        pixels = processor(picture, return_tensors="pt")["pixel_values"].to(expected)
        torch.testing.assert_close(pixels, expected, rtol=0, atol=2e-6)


def test_a_crop_that_is_no_square_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ours()
    save_model(model, tmp_path, format="huggingface")
    assert "its crop is the same as here for square pictures alone" in capsys.readouterr().err
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    picture = smooth(101, 101, 3)
    expected = model.preprocess(picture)
    levels = (processor(picture, return_tensors="pt")["pixel_values"] - expected).abs() * 127.5
    assert levels.max() < half_a_pixel(model.preprocessing, expected)
    assert load_model(tmp_path).preprocessing == model.preprocessing
    assert "here the crop is as large as the picture allows" in capsys.readouterr().err


VIT = {"image_processor_type": "ViTImageProcessor", "resample": 2, "size": {"height": 14, "width": 22}}
FIT = {"resize": "stretch", "crop_fraction": 0.875}
# Fields of a processor → what differs from stretching to 14×22, and a part of what is said.
PROCESSORS: list[tuple[dict[str, Any], dict[str, Any], str | None]] = [
    (VIT, FIT, None),
    ({"size": [14, 22], "feature_extractor_type": "ViTFeatureExtractor"}, FIT, None),
    ({**VIT, "size": 22}, FIT, "makes images of 22×22, which the model does not take; 14×22 are made"),
    ({**VIT, "resample": 3}, {"interpolation": "bicubic"}, None),
    ({**VIT, "resample": 1}, {"interpolation": "bicubic"}, "resample 1, which is neither"),
    ({**VIT, "image_mean": [0.1, 0.2, 0.3]}, {"mean": (0.1, 0.2, 0.3)}, None),
    ({**VIT, "image_std": 0.25}, {"std": (0.25,) * 3}, None),
    ({**VIT, "do_normalize": False}, {"mean": (0.0,) * 3, "std": (1.0,) * 3}, None),
    ({**VIT, "rescale_factor": 1 / 127.5}, {"mean": (0.25,) * 3, "std": (0.25,) * 3}, None),
    (
        {**VIT, "do_rescale": False, "image_mean": 51.0, "image_std": 102.0},
        {"mean": (0.2,) * 3, "std": (0.4,) * 3},
        None,
    ),
    ({**VIT, "do_resize": False}, FIT, "does not resize pictures"),
    ({**VIT, "do_pad": True}, FIT, "pads pictures"),
    ({**VIT, "image_processor_type": "OddImageProcessor"}, FIT, "is for OddImageProcessor"),
    ({**VIT, "size": {"longest_edge": 30}}, FIT, "says no size with height and width or shortest_edge"),
    ({**VIT, "size": {"shortest_edge": 14}}, {"resize": "crop", "crop_fraction": 1.0}, "keeps the shape of a picture"),
    ({**VIT, "do_center_crop": True, "crop_size": VIT["size"]}, FIT, None),
    (
        {**VIT, "size": {"height": 20, "width": 25}, "do_center_crop": True, "crop_size": [14, 22]},
        {"resize": "crop", "crop_fraction": 0.88},
        "stretches pictures to 20×25 before the crop",
    ),
    (
        {**VIT, "size": {"shortest_edge": 25}, "do_center_crop": True, "crop_size": [14, 22]},
        {"resize": "crop", "crop_fraction": 0.88},
        "cuts 14×22 out of a short side of 25",
    ),
    (
        {**VIT, "size": {"shortest_edge": 11}, "do_center_crop": True, "crop_size": [14, 22]},
        {"resize": "crop", "crop_fraction": 1.0},
        "pads pictures up to the crop",
    ),
]


@pytest.mark.parametrize(("fields", "expected", "said"), PROCESSORS)
def test_their_preprocessing_becomes_ours(
    tmp_path: Path, fields: dict[str, Any], expected: dict[str, Any], said: str | None
) -> None:
    theirs().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
    found = read(tmp_path)
    got = found.model.preprocessing.to_dict()
    want = {
        "image_size": (14, 22),
        "interpolation": "bilinear",
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        **FIT,
        **expected,
    }
    assert {name: pytest.approx(value) if name in ("mean", "std") else value for name, value in want.items()} == got
    sentences = [sentence for sentence in found.assumed if "preprocessor_config" in sentence]
    assert any(said in sentence for sentence in sentences) if said else not sentences


@pytest.mark.parametrize("factor", [1 / 255, 1 / 127.5, 2.0])
def test_normalisation_of_any_factor(tmp_path: Path, factor: float) -> None:
    model = theirs()
    model.save_pretrained(tmp_path)
    size = {"height": 14, "width": 22}
    processor = transformers.ViTImageProcessor(
        size=size, rescale_factor=factor, image_mean=[0.1, 0.2, 0.3], image_std=[0.7, 0.11, 0.13]
    )
    processor.save_pretrained(tmp_path)
    picture = smooth(14, 22, 3)
    expected = processor(picture, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(load_model(tmp_path).preprocess(picture), expected, rtol=1e-5, atol=1e-5)


def test_no_processor_is_said(tmp_path: Path) -> None:
    theirs(num_channels=1).save_pretrained(tmp_path)
    found = read(tmp_path)
    assert found.model.preprocessing == Preprocessing(image_size=(14, 22), resize="stretch", mean=(0.5,), std=(0.5,))
    assert any(sentence.startswith("no preprocessor_config.json: pictures are stretched") for sentence in found.assumed)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": {"height": 0, "width": 22}}, "height=0 is out of range"),
        ({"size": "big"}, "size='big' is not of the right type"),
        ({"image_mean": [0.5, 0.4]}, "image_mean=.* is out of range; a number for each of 3 channels"),
        ({"image_std": [0.5, 0.5, 0.0]}, "must be above 0"),
        ({"image_mean": float("nan")}, "image_mean=nan is no number"),
        ({"rescale_factor": 0}, "must be above 0"),
        ({"rescale_factor": -1.0}, "rescale_factor=-1.0 is out of range"),
        ({"do_center_crop": True}, "do_center_crop needs a crop_size"),
        ({"do_resize": "yes"}, "do_resize='yes' is not of the right type"),
    ],
)
def test_processors_out_of_range(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    theirs().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
    with pytest.raises(DataError, match=rf"preprocessor_config\.json.*{message}"):
        load_model(tmp_path)


# ---- contradictions and damage


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 34}, r"hidden_size 34, .*projection\.weight\) have 33"),
        ({"num_hidden_layers": 3}, r"num_hidden_layers 3, .*vit\.encoder\.layer\.\*\) have 2"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000, "),
        ({"intermediate_size": 41}, r"intermediate_size 41, .*intermediate\.dense\.weight\) have 37"),
        ({"num_channels": 1}, r"num_channels 1, .*projection\.weight\) have 3"),
        ({"patch_size": 3}, "patch_size 3×3, .* has 2×2"),
        ({"image_size": 14}, r"image_size 14×14, which is 7×7 patches, but .*position_embeddings has 78 positions"),
        ({"image_size": [22, 15]}, "image_size 22×15, which patches of 2×2 do not divide"),
        ({"image_size": [14, 22, 3]}, r"image_size=\[14, 22, 3\] is not of the right type"),
        ({"image_size": -14}, "image_size=-14 is out of range"),
        ({"num_attention_heads": 5}, "5 heads, which do not divide the width of 33"),
        ({"num_attention_heads": 0}, "0 heads, which do not divide"),
        ({"num_attention_heads": "3"}, "num_attention_heads='3' is not of the right type"),
        ({"qkv_bias": False}, r"qkv_bias false, and the file has the tensor vit\.encoder.*query\.bias"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'; a GELU is right"),
        ({"hidden_act": "quick_gelu"}, "hidden_act 'quick_gelu'; a GELU is right"),
        ({"layer_norm_eps": -1e-6}, "layer_norm_eps=-1e-06 is out of range"),
        ({"num_labels": 7}, r"num_labels 7, .*classifier\.weight\) have 5"),
        ({"id2label": {"0": "a", "1": "b", "2": "c", "4": "e", "5": "f"}}, "id2label lacks the id '3'; .* has 5 rows"),
        ({"id2label": {str(i): "x" for i in range(6)}}, "id2label has the id '5'; classifier.weight has 5 rows"),
        ({"id2label": {str(i): i for i in range(5)}}, "id2label must name every id with a text"),
        ({"id2label": ["a", "b", "c", "d", "e"]}, "id2label=.* is not of the right type"),
        ({"model_type": "deit"}, "model_type 'deit', whose architecture is not the ViT's"),
        ({"model_type": "vit_mae"}, "model_type 'vit_mae'"),
        ({"model_type": "dinov2"}, "model_type 'dinov2'"),
        ({"model_type": "beit"}, "model_type 'beit'"),
        ({"model_type": "swin"}, "model_type 'swin'"),
    ],
)
def test_a_config_that_contradicts_the_tensors(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    theirs().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **fields}))
    with pytest.raises(DataError, match=rf"config\.json(:| says) .*{message}") as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


def test_fields_of_the_pooler(tmp_path: Path) -> None:
    theirs("ViTModel", pooler_act="relu").save_pretrained(tmp_path / "a")
    with pytest.raises(DataError, match="pooler_act 'relu'; 'tanh' is right"):
        load_model(tmp_path / "a")
    theirs("ViTModel", pooler_output_size=11).save_pretrained(tmp_path / "b")
    with pytest.raises(DataError, match="pooler_output_size 11; the hidden size, 33, is right"):
        load_model(tmp_path / "b")
    theirs(pooler_act="relu", pooler_output_size=11).save_pretrained(tmp_path / "c")
    assert load_model(tmp_path / "c").num_classes == 5  # nothing reads that pooler


def test_a_config_that_says_little(tmp_path: Path) -> None:
    model = theirs(hidden_size=36, num_attention_heads=12, image_size=26)
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit", "hidden_act": null}')
    found = read(tmp_path)
    compare(model, found.model)
    assert found.assumed[:4] == [
        "num_heads=12 is assumed, as transformers has it where nothing is said",
        "gelu=erf is assumed, as transformers has it where nothing is said",
        "norm_eps=1e-12 is assumed, as transformers has it where nothing is said",
        "image_size=26×26 is assumed: 13×13 of its 170 positions are patches'",
    ]
    assert "its 5 classes have no names" in found.assumed


QUERY = "vit.encoder.layer.1.attention.attention.query.weight"


def _spoil(tensors: dict[str, Tensor], change: str) -> None:
    token, positions = "vit.embeddings.cls_token", "vit.embeddings.position_embeddings"
    projection = "vit.embeddings.patch_embeddings.projection.weight"
    changes: dict[str, Callable[[], object]] = {
        "missing": lambda: tensors.pop(QUERY),
        "missing classifier": lambda: (tensors.pop("classifier.weight"), tensors.pop("classifier.bias")),
        "missing head bias": lambda: tensors.pop("classifier.bias"),
        "missing one bias": lambda: tensors.pop("vit.encoder.layer.0.attention.attention.query.bias"),
        "extra": lambda: tensors.update({"vit.extra.weight": torch.ones(3)}),
        "extra layer": lambda: tensors.update({"vit.encoder.layer.7.extra": torch.ones(3)}),
        "both spellings": lambda: tensors.update({"vit.layers.0.mlp.fc1.bias": torch.ones(37)}),
        "another prefix": lambda: tensors.update({f"model.{name}": tensors.pop(name) for name in list(tensors)}),
        "transposed": lambda: tensors.update({QUERY: tensors[QUERY].reshape(11, 99)}),
        "uneven": lambda: tensors.update(
            {QUERY: torch.ones(34, 33), QUERY.replace("query", "key"): torch.ones(32, 33)}
        ),
        "token": lambda: tensors.update({token: tensors[token].reshape(33)}),
        "positions": lambda: tensors.update({positions: tensors[positions][0]}),
        "patch": lambda: tensors.update({projection: tensors[projection].reshape(33, 3, 4, 1)}),
        "channels": lambda: tensors.update({projection: torch.ones(33, 2, 2, 2)}),
        "nan": lambda: tensors[QUERY].index_fill_(0, torch.tensor([5]), torch.nan),
        "inf": lambda: tensors["vit.layernorm.bias"].fill_(torch.inf),
        "integers": lambda: tensors.update({QUERY: torch.ones(33, 33, dtype=torch.int8)}),
        "distilled": lambda: tensors.update({"vit.embeddings.distillation_token": torch.ones(1, 1, 33)}),
        "relative": lambda: tensors.update({"vit.encoder.layer.0.lambda_1": torch.ones(33)}),
    }
    changes[change]()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", rf"lacks the tensor {re.escape(QUERY)}"),
        ("missing classifier", r"ViTForImageClassification with 5 classes, and there is no tensor classifier\.weight"),
        ("missing head bias", r"lacks the tensor classifier\.bias"),
        ("missing one bias", r"lacks the tensor vit\.encoder\.layer\.0\.attention\.attention\.query\.bias"),
        ("extra", r"has the tensor vit\.extra\.weight, which vit-custom has no place for"),
        ("extra layer", r"num_hidden_layers 2, and the tensors \(vit\.encoder\.layer\.\*\) have 3"),
        ("both spellings", r"has the tensor vit\.layers\.0\.mlp\.fc1\.bias, which"),
        ("another prefix", r"under 'model\.vit\.'; no prefix or 'vit\.' is right"),
        ("transposed", r"query\.weight is 11×99, 33×33, 33×33, which does not fit"),
        ("uneven", r"query\.weight is 34×33, 32×33, 33×33, which does not fit"),
        ("token", "cls_token is 33; 3 axes are right"),
        ("positions", "position_embeddings is 78×33; 3 axes are right"),
        ("patch", r"projection\.weight is 33×3×4×1; a square patch"),
        ("channels", "takes images of 2 channels; 1 (grey) or 3 (RGB) are right"),
        ("nan", "values that are not finite"),
        ("inf", "values that are not finite"),
        ("integers", "holds int8"),
        ("distilled", "has DeiT's distillation token, which none of our models has"),
        ("relative", "has BEiT's layer scale, which none of our models has"),
    ],
)
def test_tensors_that_are_no_vit(tmp_path: Path, change: str, message: str) -> None:
    theirs().save_pretrained(tmp_path)
    tensors = {name: value.clone() for name, value in load_file(tmp_path / "model.safetensors").items()}
    _spoil(tensors, change)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match=message.replace("(grey)", r"\(grey\)").replace("(RGB)", r"\(RGB\)")) as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


def _truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _pickle_only(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _reindex(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    shards = folder / "model.safetensors.index.json"
    index = json.loads(shards.read_text())
    change(index["weight_map"])
    shards.write_text(json.dumps(index))


FOLDERS: dict[str, tuple[bool, Callable[[Path], object], str]] = {
    "truncated": (False, _truncate, "is not a whole safetensors file"),
    "pickle alone": (False, _pickle_only, r"pytorch_model\.bin is a pickle, which can run any code"),
    "broken config": (False, lambda p: (p / "config.json").write_text("{"), r"config\.json is not valid JSON"),
    "missing shard": (True, lambda p: min(p.glob("model-*")).unlink(), "does not exist, though .*index.json names it"),
    "shard that leads out": (
        True,
        lambda p: _reindex(p, lambda names: names.update({QUERY: "../outside.safetensors"})),
        r"names '\.\./outside\.safetensors', which leads out of the folder",
    ),
    "name in no shard": (
        True,
        lambda p: _reindex(p, lambda names: names.update({"vit.more": next(iter(names.values()))})),
        r"vit\.more is in .*index\.json or in its files, but not in both",
    ),
}


@pytest.mark.parametrize(("shards", "spoil", "message"), FOLDERS.values(), ids=FOLDERS)
def test_folders_that_are_damaged(tmp_path: Path, shards: bool, spoil: Callable[[Path], object], message: str) -> None:
    model = theirs()
    model.save_pretrained(tmp_path / "m", max_shard_size="6KB" if shards else "1GB")
    shutil.copytree(tmp_path / "m", tmp_path / "whole")
    if not shards:
        shutil.copy(tmp_path / "m/model.safetensors", tmp_path / "outside.safetensors")
    spoil(tmp_path / "m")
    with pytest.raises(DataError, match=message) as caught:
        load_model(tmp_path / "m")
    assert "\n" not in str(caught.value)
    compare(model, load_model(tmp_path / "whole"))


@pytest.mark.parametrize(
    "act", ["gelu", "gelu_python", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_new", "gelu_fast", "gelu_accurate"]
)
def test_every_gelu_of_theirs_is_the_one_of_ours(act: str, tmp_path: Path) -> None:
    """At weights that tell the two kinds apart."""
    other = theirs(hidden_act=act)
    other.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    with torch.no_grad():
        assert (model(batch(other)) - other(batch(other)).logits).abs().max() < 2e-6
