"""Few shots against the original code, the probe and neighbours against scikit-learn, and what is remembered of features."""

import copy
import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

import patchword
from conftest import write_pictures
from patchword import cli
from patchword.core.errors import DataError, UsageError
from patchword.data.dataset import Arrays, Split
from patchword.data.sources import open_data
from patchword.data.splits import first_of
from patchword.evaluation import features, memory
from patchword.evaluation.features import features_of
from patchword.evaluation.fewshot import Ridge, draw, few_shot_accuracies, few_shot_accuracy
from patchword.evaluation.frozen import measure_features
from patchword.evaluation.memory import remembered
from patchword.evaluation.neighbours import TEMPERATURE, votes
from patchword.evaluation.probe import FITS, STRENGTHS, linear_probe
from patchword.models.contract import Model
from patchword.models.names import create_model

FIXTURE = Path(__file__).parent / "fixtures/google/fewshot.npz"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place of our own for what is remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/patchword/features"


def clusters(n: int, width: int, classes: int, seed: int, apart: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Features around a centre for each class."""
    centres = np.random.default_rng(0).standard_normal((classes, width)) * apart
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    return (centres[labels] + generator.standard_normal((n, width))).astype(np.float32), labels


# Few shots


@pytest.mark.parametrize("shots", [1, 5, 10, 25])
def test_few_shots_are_the_original_codes(shots: int) -> None:
    """To one picture of 1,000: on one of them two classes are equally likely to 4·10⁻⁸, and rounding decides."""
    found = np.load(FIXTURE)
    train, test = (found["train_features"], found["train_labels"]), (found["test_features"], found["test_labels"])
    [row] = few_shot_accuracies(*train, *test, shots=[shots])
    for seed in range(3):
        theirs = round(1000 * float(found[f"accuracy/shots{shots}/seed{seed}"]))
        assert abs(round(1000 * row[seed]) - theirs) <= (shots == 5)
        assert few_shot_accuracy(*train, *test, shots=shots, seed=seed) == row[seed]


@pytest.mark.parametrize(("n", "width"), [(37, 11), (12, 11), (11, 11), (7, 29)])
@pytest.mark.parametrize("strength", [1024.0, 0.5])
def test_both_factorisations_solve_the_normal_equations(n: int, width: int, strength: float) -> None:
    values, labels = clusters(n, width, 3, 1)
    others, _ = clusters(13, width, 3, 2)
    ridge = Ridge(torch.from_numpy(values), torch.from_numpy(labels), 3)
    ridge.scores(torch.from_numpy(others), 7.0)  # another strength before leaves nothing behind

    x, y = values.astype(np.float64), 2 * np.eye(3)[labels] - 1
    mean, std = x.mean(0), x.std(0) + 1e-5
    a = np.hstack([(x - mean) / std, np.full((n, 1), 100.0)])
    weights = np.linalg.solve(a.T @ a + strength * np.eye(width + 1), a.T @ y)
    expected = np.hstack([(others - mean) / std, np.full((13, 1), 100.0)]) @ weights
    np.testing.assert_allclose(ridge.scores(torch.from_numpy(others), strength).numpy(), expected, rtol=1e-7, atol=1e-9)


def test_fewer_shots_are_a_part_of_more_and_other_seeds_draw_others() -> None:
    labels = np.random.default_rng(0).integers(0, 3, 67)
    many = draw(labels, 3, 7, seed=4)
    assert len(np.unique(many)) == 21
    assert labels[many].tolist() == [0] * 7 + [1] * 7 + [2] * 7
    assert draw(labels, 3, 2, seed=4).tolist() == [*many[0:2], *many[7:9], *many[14:16]]
    assert set(draw(labels, 3, 7, seed=5)) != set(many)


def test_shots_that_a_class_does_not_have_are_refused() -> None:
    values, labels = clusters(8, 5, 3, 1)
    with pytest.raises(
        DataError, match="class 2 has 2 training pictures, fewer than 3 shots; 2 or fewer would be right"
    ):
        few_shot_accuracy(values, labels, values, labels, shots=3)
    with pytest.raises(UsageError, match="must be 1 or more"):
        few_shot_accuracies(values, labels, values, labels, shots=[1, 0])


# The probe


def test_the_probe_is_logistic_regression() -> None:
    train, labels = clusters(90, 7, 3, 1, apart=0.7)
    others, truth = clusters(61, 7, 3, 2, apart=0.7)
    ticks: list[int] = []
    probe = linear_probe(train, labels, (others, truth), 3, tick=ticks.append)
    assert ticks == list(range(1, FITS))
    mean, std = train.mean(0), train.std(0) + 1e-5

    def theirs(strength: float) -> LogisticRegression:
        return LogisticRegression(C=1 / (strength * 90), tol=1e-8, max_iter=2000).fit((train - mean) / std, labels)

    shares = {strength: theirs(strength).score((others - mean) / std, truth) for strength in STRENGTHS}
    best = max(shares, key=lambda strength: (shares[strength], strength))
    assert best / 4 < probe.strength < best * 4
    assert probe.chosen_at >= shares[best]
    scores = probe.logits(others)
    likely = np.exp(scores - scores.max(1, keepdims=True))
    expected = theirs(probe.strength).predict_proba((others - mean) / std)
    np.testing.assert_allclose(likely / likely.sum(1, keepdims=True), expected, atol=2e-4)


def test_a_part_of_train_chooses_the_penalty_and_is_then_learned_from() -> None:
    train, labels = clusters(60, 5, 3, 1, apart=0.5)
    chosen = linear_probe(train, labels, np.arange(0, 60, 5), 3)
    rest = np.setdiff1d(np.arange(60), np.arange(0, 60, 5))
    by_others = linear_probe(train[rest], labels[rest], (train[::5], labels[::5]), 3)
    assert (chosen.strength, chosen.chosen_at) == (by_others.strength, by_others.chosen_at)
    x = (train - train.mean(0)) / (train.std(0) + 1e-5)
    theirs = LogisticRegression(C=1 / (chosen.strength * 60), tol=1e-8, max_iter=2000).fit(x, labels)
    assert (chosen.logits(train).argmax(1) == theirs.predict(x)).all()
    assert not np.allclose(chosen.weight, by_others.weight)
    with pytest.raises(DataError, match="others to choose"):
        linear_probe(train, labels, np.arange(0), 3)


def test_a_feature_that_never_changes_in_train_means_nothing() -> None:
    train, labels = clusters(40, 5, 2, 1)
    train[:, 3] = 0.25
    others, truth = clusters(21, 5, 2, 2)
    probe = linear_probe(train, labels, (others, truth), 2)
    assert not probe.weight[3].any()
    others[:, 3] = 1e6
    assert np.isfinite(probe.logits(others)).all()


# Neighbours


def test_neighbours_vote_as_scikit_learns_do() -> None:
    train, labels = clusters(53, 7, 3, 1)
    others, _ = clusters(19, 7, 3, 2)
    weigh: Any = lambda distance: np.exp((1 - distance) / TEMPERATURE)  # noqa: E731
    theirs = KNeighborsClassifier(11, metric="cosine", algorithm="brute", weights=weigh).fit(train, labels)
    np.testing.assert_allclose(votes(train, labels, others, 3, neighbours=11), theirs.predict_proba(others), atol=2e-5)
    # All of them where there are fewer.
    few = votes(train[:5], labels[:5], others, 3)
    np.testing.assert_allclose(few, votes(train[:5], labels[:5], others, 3, neighbours=5))
    np.testing.assert_allclose(few.sum(1), 1, rtol=1e-6)


# Features


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    built = create_model("ViT-At/8", 3, 16, embed_dim=16, depth=1, num_heads=2, mlp_dim=16)
    torch.nn.init.normal_(built.head.weight)  # pyright: ignore[reportArgumentType]
    built.labels = ("ant", "bee", "cat")
    return built.eval()


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures are looked at, call by call."""
    looked: list[int] = []
    look = features.look_at_all
    monkeypatch.setattr(
        features,
        "look_at_all",
        lambda model, split, *a, **k: (looked.append(len(split)), look(model, split, *a, **k))[1],
    )
    return looked


def test_features_are_what_the_head_sees_and_are_computed_once(
    model: Model, pictures: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looked = counted(monkeypatch)
    split = open_data(pictures).splits["test"]
    first = features_of(model, split)
    assert first.values.shape == (21, 16)
    again = features_of(model, split)
    assert looked == [21]
    np.testing.assert_array_equal(again.values, first.values)
    assert again.labels.tolist() == [0] * 7 + [1] * 7 + [2] * 7
    # Another resolution, other weights, other pictures and a picture painted over are asked about anew.
    features_of(model.with_image_size((24, 24)), split)
    with torch.no_grad():
        model.get_parameter("patch_embed.weight").mul_(2)
    other = features_of(model, split)
    assert not np.allclose(other.values, first.values)
    features_of(model, split.subset(np.arange(3)))
    painted = pictures / "test/bee/000.png"
    os.utime(painted, ns=(1, 1))
    features_of(model, split)
    assert looked == [21, 21, 21, 3, 21]
    assert len(list(cache.iterdir())) == 5
    for file in cache.iterdir():
        file.write_bytes(file.read_bytes()[:-3])
    np.testing.assert_array_equal(features_of(model, split).values, other.values)
    assert looked[5:] == [21]
    assert "is damaged; what it held is computed again" in capsys.readouterr().err


def test_a_flipped_byte_in_what_is_remembered_is_damage(
    model: Model, pictures: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a file without a digest, as there were once, is none."""
    looked = counted(monkeypatch)
    split = open_data(pictures).splits["test"]
    first = features_of(model, split)
    [kept] = cache.iterdir()
    content = bytearray(kept.read_bytes())
    content[-7] ^= 1
    kept.write_bytes(content)
    np.testing.assert_array_equal(features_of(model, split).values, first.values)
    assert "is damaged; what it held is computed again" in capsys.readouterr().err
    assert looked == [21, 21]
    save_file(load_file(kept), kept)
    features_of(model, split)
    assert "damaged" not in capsys.readouterr().err
    features_of(model, split)
    assert looked == [21, 21, 21]


def test_what_killed_writes_have_left_of_a_cache_goes_and_what_is_being_written_stays(
    model: Model, pictures: Path, cache: Path
) -> None:
    cache.mkdir(parents=True)
    killed, living, foreign = (
        cache / name
        for name in (
            ".0f.safetensors.patchword-abcd_123",
            ".1f.safetensors.patchword-abcd_123",
            ".notes.patchword-abcd_123",
        )
    )
    for place in (killed, living, foreign):
        place.write_bytes(b"part")
    for place in (killed, foreign):
        os.utime(place, (time.time() - 4000, time.time() - 4000))
    features_of(model, open_data(pictures).splits["test"])
    assert [place.exists() for place in (killed, living, foreign)] == [False, True, True]


def test_the_head_of_the_features_is_the_models_answer(model: Model, pictures: Path) -> None:
    from patchword.evaluation.predict import predict

    split = open_data(pictures).splits["test"]
    with torch.inference_mode():
        answers = model.head(torch.from_numpy(features_of(model, split).values))
    np.testing.assert_allclose(answers.numpy(), predict(model, split).logits, rtol=1e-5, atol=1e-6)


def test_a_cache_that_cannot_be_written_is_a_note(
    model: Model, pictures: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("in the way")
    assert len(features_of(model, open_data(pictures).splits["test"]).values) == 21
    assert "next time it is computed again" in capsys.readouterr().err


def test_identity_knows_the_head_the_preprocessing_and_the_labels(model: Model, pictures: Path) -> None:
    split = open_data(pictures).splits["test"]
    before = memory.identity(model, split)
    assert before == memory.identity(model, open_data(pictures).splits["test"])
    relabelled = split.subset(np.arange(21))
    relabelled.labels[0] = 2
    assert memory.identity(model, relabelled) != before
    seen = {before}
    for change in (
        {"image_size": (16, 24)},
        {"resize": "stretch"},
        {"crop_fraction": 0.5},
        {"interpolation": "bicubic"},
        {"mean": (0.5, 0.5, 0.4)},
        {"std": (0.5, 0.5, 0.4)},
    ):
        other = copy.copy(model)
        other.preprocessing = dataclasses.replace(model.preprocessing, **change)
        seen.add(memory.identity(other, split))
    assert len(seen) == 1 + 6
    with torch.no_grad():
        model.get_parameter("patch_embed.weight")[0, 0] += 1e-3
    assert memory.identity(model, split) not in seen
    seen.add(memory.identity(model, split))
    model.replace_head(5)
    assert memory.identity(model, split) not in seen


def test_identity_knows_what_the_same_weights_are_used_for() -> None:
    """Another number of heads, another GELU and turned queries have the same tensors, and say something else."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"embed_dim": 24, "depth": 1, "mlp_dim": 20, "pool": "gap", "position": "none"}
    changes: list[dict[str, Any]] = [{"num_heads": 2}, {"num_heads": 3}, {"gelu": "erf"}, {"position": "rope"}]
    models = [create_model("ViT-At/8", 3, 16, **{**sizes, "num_heads": 2, **change}) for change in changes]
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())
    assert len({memory.identity(model) for model in models}) == 4
    assert memory.identity(copy.deepcopy(models[0])) == memory.identity(models[0])


# All of them on a data set


def test_what_features_are_worth(model: Model, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (pictures / "test/bee/001.png").write_bytes(b"broken")
    (pictures / "train/cat/003.png").write_bytes(b"broken")
    dataset = open_data(pictures)
    looked = counted(monkeypatch)
    found = measure_features(model, dataset, "test", few_shot=(1, 3), probe=True, neighbours=True)
    assert looked == [72, 21, 15]
    assert (found["split"], found["n"]) == ("test", 21)
    assert [row["name"] for row in found["unreadable"]] == ["test/bee/001.png"]
    assert found["probe"]["chosen_on"] == "validation"
    assert found["neighbours"]["neighbours"] == 20

    train, test = features_of(model, dataset.splits["train"]), features_of(model, dataset.splits["test"])
    read = train.readable()
    assert len(read.labels) == 71
    others = features_of(model, dataset.splits["validation"])
    fitted = linear_probe(read.values, read.labels, (others.values, others.labels), 3)
    right = fitted.logits(test.values).argmax(1) == test.labels
    right[8] = False
    assert (found["probe"]["correct"], found["probe"]["strength"]) == (right.sum(), fitted.strength)
    assert found["probe"]["chosen_at"] == fitted.chosen_at
    right = votes(read.values, read.labels, test.values, 3).argmax(1) == test.labels
    right[8] = False
    assert found["neighbours"]["correct"] == right.sum()
    assert found["neighbours"]["value"] == right.sum() / 21
    for row in found["few_shot"]["shots"]:
        for seed, value in enumerate(row["values"]):
            drawn = draw(train.labels, 3, row["shots"], seed)
            drawn = torch.from_numpy(drawn[train.mask[drawn]])
            scores = Ridge(torch.from_numpy(train.values)[drawn], torch.from_numpy(train.labels)[drawn], 3).scores(
                torch.from_numpy(test.values)
            )
            right = scores.argmax(1).numpy() == test.labels
            right[8] = False
            assert value == pytest.approx(right.mean())
        assert row["value"] == pytest.approx(np.mean(row["values"]))


def test_few_shots_alone_look_at_what_is_drawn(model: Model, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_data(pictures)
    whole = measure_features(model, dataset, "test", few_shot=(2, 5), neighbours=True)
    looked = counted(monkeypatch)
    alone = measure_features(model, dataset, "test", few_shot=(2, 5))
    assert alone["few_shot"] == whole["few_shot"]
    assert looked == [len(np.unique(np.concatenate([draw(dataset.splits["train"].labels, 3, 5, s) for s in range(3)])))]
    assert looked[0] <= 45


def test_without_validation_a_fifth_of_train_chooses(model: Model, tmp_path: Path) -> None:
    for split, count in (("train", 11), ("test", 5)):
        write_pictures(tmp_path / "set" / split, ("ant", "bee", "cat"), count, seed=count)
    (tmp_path / "set/train/bee/004.png").write_bytes(
        b"broken"
    )  # so that places among those that can be read are others
    dataset = open_data(tmp_path / "set")
    found = measure_features(model, dataset, "test", probe=True)
    assert found["probe"]["chosen_on"] == "a fifth of train"
    whole, train = dataset.splits["train"], features_of(model, dataset.splits["train"])
    held_out = np.isin(np.arange(33), first_of(whole.keys(), whole.labels, 7))[train.mask]
    read = train.readable()
    fitted = linear_probe(read.values, read.labels, np.flatnonzero(held_out), 3)
    assert (found["probe"]["strength"], found["probe"]["chosen_at"]) == (fitted.strength, fitted.chosen_at)
    assert 0 <= found["probe"]["value_ci95"][0] <= found["probe"]["value"] <= found["probe"]["value_ci95"][1] <= 1


def test_what_is_measured_on_validation_is_not_chosen_there(model: Model, pictures: Path) -> None:
    found = measure_features(model, open_data(pictures), "validation", probe=True)
    assert (found["n"], found["probe"]["chosen_on"]) == (15, "a fifth of train")


def test_a_class_of_which_train_has_nothing_is_never_named(model: Model, pictures: Path) -> None:
    """Its test pictures are wrong, whatever is said, and the others have their own classes still."""
    whole = open_data(pictures)
    bees = np.flatnonzero(whole.splits["train"].labels != 0)
    dataset = dataclasses.replace(whole, splits={**whole.splits, "train": whole.splits["train"].subset(bees)})
    found = measure_features(model, dataset, "test", few_shot=(5,), neighbours=True)
    train, test = features_of(model, dataset.splits["train"]), features_of(model, whole.splits["test"])
    right = votes(train.values, train.labels - 1, test.values, 2).argmax(1) == test.labels - 1
    assert not right[:7].any()
    assert found["neighbours"]["correct"] == right.sum()
    shares = few_shot_accuracies(train.values, train.labels - 1, test.values, test.labels - 1, shots=[5])
    assert found["few_shot"]["shots"][0]["values"] == pytest.approx(shares[0])


def call(*arguments: object) -> int:
    return cli.run([str(argument) for argument in arguments])


@pytest.fixture
def saved(model: Model, tmp_path: Path) -> Path:
    patchword.save_model(model, tmp_path / "model")
    return tmp_path / "model"


def test_the_verb_measures_the_model_and_its_features(
    saved: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures.json"
    assert call("evaluate", saved, pictures, "--few-shot", "5,1", "--probe", "--neighbours", "--out", out) == 0
    shown = capsys.readouterr().out.splitlines()
    figures: dict[str, Any] = json.loads(out.read_text())
    assert figures == patchword.evaluate(saved, pictures, few_shot=(1, 5), probe=True, neighbours=True)
    assert figures["metric"] == "accuracy"
    assert [row["shots"] for row in figures["features"]["few_shot"]["shots"]] == [1, 5]
    [line] = [line for line in shown if line.startswith("linear probe")]
    assert f"{100 * figures['features']['probe']['value']:.2f} %" in line
    assert any(line.startswith("   5 a class  ") for line in shown)
    assert any(line.startswith("20 neighbours ") for line in shown)
    plain = patchword.evaluate(saved, pictures)
    assert "features" not in plain
    assert plain["correct"] == figures["correct"]


def test_features_can_be_measured_where_the_classes_are_others(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As weights of ImageNet on one's own pictures, or a body without a head."""
    for split, count in (("train", 7), ("test", 5)):
        write_pictures(tmp_path / "set" / split, ("oak", "fir"), count, seed=count)
    assert call("evaluate", saved, tmp_path / "set") == 3
    assert "is not among the 3 classes of the model" in capsys.readouterr().err
    assert call("evaluate", saved, tmp_path / "set", "--few-shot", 2) == 0
    said = capsys.readouterr()
    assert "only its features are measured" in said.err
    assert said.out.startswith("features, measured on 10 test pictures\n   2 a class")
    body = patchword.load_model(saved, num_classes=0)
    assert "metric" not in patchword.evaluate(body, tmp_path / "set", neighbours=True)


def test_two_pictures_are_enough_for_a_probe(model: Model, tmp_path: Path) -> None:
    """A fifth of them is none: one of the two chooses, as in a comparison of 2 pictures of 2 classes."""
    for split, count in (("train", 1), ("test", 3)):
        write_pictures(tmp_path / "set" / split, ("oak", "fir"), count, seed=count)
    assert patchword.evaluate(model, tmp_path / "set", probe=True)["features"]["probe"]["chosen_at"] in (0, 1)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--few-shot", "some"], 2, "few-shot 'some' is no list of whole numbers from 1 on, such as 1,5,10"),
        (["--few-shot", "0,5"], 2, "few-shot '0,5' is no list"),
        (
            ["--few-shot", "25"],
            3,
            "class 'ant' has 24 training pictures, fewer than 25 shots; 24 shots or fewer are right",
        ),
        (["--probe", "--split", "train"], 2, "are measured on another split; "),
    ],
)
def test_wrong_wishes_are_one_sentence(
    saved: Path, pictures: Path, arguments: list[str], code: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("evaluate", saved, pictures, *arguments) == code
    said = capsys.readouterr()
    assert sentence in said.err.strip().splitlines()[-1]
    assert said.out == ""


def test_a_set_without_another_split_or_with_several_labels_is_refused(
    model: Model, pictures: Path, tmp_path: Path
) -> None:
    alone = write_pictures(tmp_path / "alone", ("ant", "bee", "cat"), 3)  # too few to hold some out
    with pytest.raises(UsageError, match="has no other"):
        patchword.evaluate(model, alone, probe=True)
    rows = ["image,label,split"]
    rows += [
        f"{split}/{name}/000.png,{name}|ant,{split}" for split in ("train", "test") for name in ("ant", "bee", "cat")
    ]
    (pictures / "table.csv").write_text("\n".join(rows))
    with pytest.raises(UsageError, match="several labels a picture; few shots, a probe and neighbours need one"):
        patchword.evaluate(model, pictures / "table.csv", few_shot=1)


def test_a_room_of_the_cache_forgets_what_was_asked_for_longest_ago(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = Split(Arrays(np.zeros((3, 2, 2, 3), np.uint8), "three"), np.zeros(3, np.int64))
    shapes = {"x": (100,)}
    asked: list[int] = []

    def of(number: int) -> dict[str, torch.Tensor]:
        asked.append(number)
        return {"x": torch.full((100,), float(number))}

    models = [create_model("ViT-At/8", number + 2, 8, depth=1) for number in range(4)]
    for number in range(3):
        remembered("features", models[number], split, shapes, lambda number=number: of(number))
    for age, file in enumerate(sorted(cache.iterdir(), key=lambda file: file.stat().st_mtime_ns)):
        os.utime(file, (1000 + age, 1000 + age))
    (size,) = {file.stat().st_size for file in cache.iterdir()}
    (cache / "notes.txt").write_text("not ours")
    remembered("features", models[0], split, shapes, lambda: of(0))  # asked for again, so that it is the newest now
    monkeypatch.setattr(memory, "ROOM", 3 * size)
    remembered("features", models[3], split, shapes, lambda: of(3))
    assert asked == [0, 1, 2, 3]
    assert len(list(cache.glob("*.safetensors"))) == 3
    for number in (0, 2, 3, 1):
        found = remembered("features", models[number], split, shapes, lambda number=number: of(number))
        assert found["x"][0] == number
    assert asked == [0, 1, 2, 3, 1]
    assert (cache / "notes.txt").read_text() == "not ours"
