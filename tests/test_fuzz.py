"""Damaged and hostile files at every entry: a result or one sentence. `fuzz_soak.py` does the same ten thousand times."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import fuzz_soak
import fuzz_targets
import mutations
from fuzz_targets import TARGETS, Cases, Target, tiny_recipe
from patchword.core import files
from patchword.core.errors import DataError, PatchwordError, UsageError, one_line
from patchword.data.decoding.decode import decode, header
from patchword.data.formats import matlab
from patchword.data.sources import open_data
from patchword.models.contract import Model
from patchword.models.names import create_model
from patchword.training import checkpoint
from patchword.training import recipe as recipes
from patchword.training.objectives import Softmax
from patchword.training.record import Record
from patchword.training.run import run
from patchword.weights import folder as model_folder
from patchword.weights.source import open_source

SEEDS = {name: range(1000, 1004 if name.startswith(("resume", "evaluate", "data check")) else 1010) for name in TARGETS}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    return Cases(tmp_path_factory.mktemp("cases"))


@pytest.mark.parametrize("name", TARGETS)
def test_damage_gives_a_result_or_one_sentence(cases: Cases, name: str) -> None:
    outcomes = [cases.run(name, seed) for seed in SEEDS[name]]
    failures = [str(outcome) for outcome in outcomes if outcome.ending == "failure"]
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("name", TARGETS)
def test_the_valid_files_give_a_result(cases: Cases, name: str) -> None:
    """Otherwise a sentence would be no news."""
    target = dataclasses.replace(TARGETS[name], change=lambda folder, random: "nothing", seal=None)
    if name.startswith("decode"):
        for content in fuzz_targets.pictures_of(name.removeprefix("decode ")):
            assert decode(content, 3).size
        return
    outcome = cases.run_target(target, 0)
    assert outcome.ending == "result", str(outcome)


def test_there_are_enough_cases_and_the_same_seed_does_the_same(tmp_path: Path) -> None:
    assert 300 <= sum(map(len, SEEDS.values())) <= 400
    first, second = (Cases(tmp_path / name).run("table csv", 5) for name in "ab")
    assert first.done == second.done
    assert first.text.replace("/a/", "/b/") == second.text


# The judge itself


def _answer(error: BaseException | None) -> Callable[[Path, Path], object]:
    def answer(case: Path, _: Path) -> object:
        if error is None:
            return [0] * 30_000_000
        raise error

    return answer


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        (_answer(KeyError("x")), "KeyError"),
        (_answer(DataError("a.json is not valid")), ""),
        (_answer(DataError("something is not valid")), "names no file"),
        (_answer(DataError("a.json: Traceback (most recent call last)")), "no sentence"),
        (_answer(None), "MiB"),
        (lambda case, _: (case / "executed").touch(), "code of the file was run"),
        (lambda case, _: __import__("warnings").warn("odd", stacklevel=1), "a warning: odd"),
        (lambda case, _: iter(int, 1).__next__() if [None for _ in iter(int, 1)] else None, "not done after"),
    ],
)
def test_what_is_neither_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Callable[[Path, Path], object], wrong: str
) -> None:
    def build(folder: Path) -> None:
        folder.mkdir()
        (folder / "a.json").write_text("{}")

    monkeypatch.setitem(TARGETS, "judged", Target("judged", build, answer, mebibytes=100))
    outcome = Cases(tmp_path, seconds=0.3 if wrong.startswith("not done") else 20).run("judged", 3)
    assert (outcome.ending == "failure") == bool(wrong)
    assert wrong in outcome.text
    assert "seed 3" in str(outcome)


def test_a_sentence_is_one_line_whatever_is_in_it() -> None:
    assert str(DataError("the class 'a\nb\x1b[31m\u202e' of x")) == "the class 'a\\nb\\x1b[31m\\u202e' of x"
    assert len(one_line("x" * 100_000)) < 2100
    assert not any(error("a\nb").args[0].count("\n") for error in (PatchwordError, DataError))


# Checkpoints


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unfinished") / "here"
    fuzz_targets.unfinished_run(folder)
    return folder


def trained(folder: Path) -> Model:
    recipe = tiny_recipe(folder)
    return create_model(**recipe.model, num_classes=3, image_size=16)


FILES = (
    *("average.safetensors", "manifest.json", "model.safetensors", "optimizer-exp_avg.safetensors"),
    *("optimizer-exp_avg_sq.safetensors", "optimizer-step.safetensors", "state.json"),
)


def flip(file: Path, at: float) -> None:
    content = bytearray(file.read_bytes())
    place = min(int(at * 8 * len(content)), 8 * len(content) - 1)
    content[place // 8] ^= 1 << place % 8
    file.write_bytes(content)


def zero(file: Path, at: float) -> None:
    content = file.read_bytes()
    place = min(int(at * len(content)), len(content) - 8)
    # Where zeros stood already nothing is damaged.
    place = next(each for each in [*range(place, len(content)), *range(place)] if content[each])
    file.write_bytes(content[:place] + b"\0" + content[place + 1 :])


def cut(file: Path, at: float) -> None:
    file.write_bytes(file.read_bytes()[: int(at * file.stat().st_size)])


def delete(file: Path, at: float) -> None:
    file.unlink()


def exchange(file: Path, at: float) -> None:
    """With the same file of the other checkpoint, or with another of the same."""
    other = file.parent.with_name("step-00000002") / file.name if at < 0.5 else file.with_name("state.json")
    if other == file:
        other = file.with_name("manifest.json")
    mine, theirs = file.read_bytes(), other.read_bytes()
    if mine == theirs:  # the manifest of equal files
        theirs = b"{}"
    file.write_bytes(theirs)


@pytest.mark.parametrize("harm", [flip, zero, cut, delete, exchange])
@pytest.mark.parametrize("name", FILES)
def test_every_file_of_a_checkpoint_is_guarded(
    unfinished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, harm: Callable[[Path, float], None]
) -> None:
    """The file is named, the checkpoint before is used, and what was damaged stays for whoever wants to look at it."""
    assert {path.name for path in (unfinished / "run/checkpoints/step-00000004").iterdir()} == set(FILES)
    model = trained(unfinished)
    for number, at in enumerate((0.0, 0.13, 0.5, 0.77, 0.999)):
        folder = tmp_path / str(number)
        shutil.copytree(unfinished / "run/checkpoints", folder)
        newest = folder / "step-00000004"
        harm(newest / name, at)
        if name == "manifest.json" and (newest / name).exists() and json_equal(unfinished, newest):
            continue
        damaged = {path.name: path.read_bytes() for path in newest.iterdir()}
        saved = checkpoint.newest(folder, model, Softmax(2))
        said = capsys.readouterr().err
        assert saved is not None
        assert saved.path.name == "step-00000002"
        assert said.startswith("checkpoint step-00000004 is passed over: ")
        assert said.count("\n") == 1
        named = {"manifest.json"} if name == "manifest.json" and harm is not exchange else {name}
        if name == "manifest.json":
            named |= set(FILES)  # a manifest that tells another hash names the file that it tells it of
        assert any(str(newest / each) in said for each in named), said
        assert {path.name: path.read_bytes() for path in newest.iterdir()} == damaged


def json_equal(unfinished: Path, newest: Path) -> bool:
    """Whether a flipped bit changed nothing that JSON tells, such as one blank for another."""
    try:
        mine, theirs = (
            json.loads((folder / "manifest.json").read_text())
            for folder in (newest, unfinished / "run/checkpoints/step-00000004")
        )
    except ValueError:
        return False
    return mine == theirs


def seal(folder: Path) -> None:
    """A manifest that agrees with the files, as an enemy would write it."""
    entries = {path.name: path for path in folder.iterdir() if path.name != "manifest.json"}
    sealed = {name: [path.stat().st_size, fuzz_targets._sha(path)] for name, path in entries.items()}
    (folder / "manifest.json").write_text(json.dumps(sealed))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"step": "4"}, "state.step='4' is not of the right type"),
        ({"step": 3}, "is of step 3, and not of this checkpoint's"),
        ({"window": {"a": 1}}, "state.window"),
        ({"losses": ["x"]}, "state.losses='x'"),
        ({"seconds": 10**400}, "state.seconds"),
        ({"surprise": 1}, "unknown field state.surprise"),
        ({"unreadable": {"x": "y"}}, "is not the state of a run"),
    ],
)
def test_a_state_of_other_kinds_is_passed_over_though_its_hash_holds(
    unfinished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fields: dict[str, object], message: str
) -> None:
    shutil.copytree(unfinished / "run/checkpoints", tmp_path / "c")
    newest = tmp_path / "c/step-00000004"
    state = json.loads((newest / "state.json").read_text())
    (newest / "state.json").write_text(json.dumps({**state, **fields}))
    seal(newest)
    saved = checkpoint.newest(tmp_path / "c", trained(unfinished), Softmax(2))
    assert saved is not None
    assert saved.state.step == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".safetensors")])
@pytest.mark.parametrize("other", ["optimizer-step.safetensors", "another model"])
def test_tensors_of_another_model_are_passed_over_though_their_hash_holds(
    unfinished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, other: str
) -> None:
    shutil.copytree(unfinished / "run/checkpoints", tmp_path / "c")
    newest = tmp_path / "c/step-00000004"
    if other == "another model":
        fuzz_targets.save_model(fuzz_targets.model(), tmp_path / "model")
        content = (tmp_path / "model/model.safetensors").read_bytes()
    else:
        content = (newest / other).read_bytes()
    if content == (newest / name).read_bytes():
        return
    (newest / name).write_bytes(content)
    seal(newest)
    saved = checkpoint.newest(tmp_path / "c", trained(unfinished), Softmax(2))
    assert saved is not None
    assert saved.state.step == 2
    assert name in capsys.readouterr().err


def test_a_file_that_the_manifest_does_not_know_is_not_read(
    unfinished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(unfinished / "run/checkpoints", tmp_path / "c")
    newest = tmp_path / "c/step-00000004"
    shutil.copy(newest / "optimizer-step.safetensors", newest / "optimizer-more.safetensors")
    saved = checkpoint.newest(tmp_path / "c", trained(unfinished), Softmax(2))
    assert saved is not None
    assert saved.state.step == 2
    assert "optimizer-more.safetensors is not in its manifest" in capsys.readouterr().err


def test_one_flipped_bit_of_a_weight_and_the_run_ends_as_it_would_have(unfinished: Path, tmp_path: Path) -> None:
    """The last step is made again from the checkpoint before: the same weights."""
    shutil.copytree(unfinished, tmp_path / "here")
    recipe = tiny_recipe(unfinished / "data")
    expected = (unfinished / "run/model/model.safetensors").read_bytes()
    weights = tmp_path / "here/run/checkpoints/step-00000004/model.safetensors"
    flip(weights, 0.9)
    shutil.rmtree(tmp_path / "here/run/model")
    run(recipe, tmp_path / "here/run")
    assert (tmp_path / "here/run/model/model.safetensors").read_bytes() == expected
    assert json.loads((tmp_path / "here/run/result.json").read_text())["resumed_from"][-1] == 2


def test_a_damaged_log_keeps_its_other_lines_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.dumps({"kind": "train", "step": step, "loss": 1.5}) for step in range(1, 7)]
    damaged = [lines[0], '{"kind": "train", "st', lines[2], '{"kind": "train", "step": 4, "loss": NaN}', lines[4]]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*damaged, lines[1], lines[5], '{"torn']))
    Record(tmp_path / "metrics.jsonl", 9).open()
    kept = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert kept == [1, 3, 5, 6]
    assert "metrics.jsonl is damaged in line 2 (3 in all)" in capsys.readouterr().err
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, '{"torn']))
    Record(tmp_path / "metrics.jsonl", 9).open()
    assert capsys.readouterr().err == ""  # as after any crash


# Single faults that the soak has found


def test_what_is_no_file_is_never_read(tmp_path: Path) -> None:
    """A pipe would wait for ever, a device has no end."""
    for kind in ("pipe", "endless"):
        for name in ("a.csv", "a.parquet", "a.toml", "model.safetensors", "a.npz", "a.json", "a.mat"):
            path = tmp_path / kind / name
            path.parent.mkdir(exist_ok=True)
            mutations.os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
            readers: dict[str, Callable[[Path], object]] = {
                ".csv": open_data,
                ".parquet": open_data,
                ".toml": lambda path: recipes.load(str(path)),
                ".safetensors": model_folder.read_tensors,
                ".npz": open_source,
                ".json": files.read_json,
                ".mat": matlab.read,
            }
            with pytest.raises(DataError, match="is a pipe or a device"):
                readers[path.suffix](path)


def test_a_file_of_gzip_that_promises_less_than_it_unpacks_to_is_not_unpacked(tmp_path: Path) -> None:
    fuzz_targets._idx(tmp_path / "mnist", mutations.gzip.compress, ".gz")
    path = tmp_path / "mnist/train-images-idx3-ubyte.gz"
    path.write_bytes(mutations.gzip.compress(mutations.gzip.decompress(path.read_bytes()) + bytes(2**28), 1))
    before = fuzz_targets._memory(reset=True)
    with pytest.raises(DataError, match="is not a whole IDX file"):
        open_data(tmp_path / "mnist")
    assert fuzz_targets._memory() - before < 60


def test_cells_of_separators_alone_have_no_label(tmp_path: Path) -> None:
    fuzz_targets._table(tmp_path / "t")
    path = tmp_path / "t/pictures.csv"
    path.write_text(path.read_text().replace("0.png,ant", "0.png,;;"))
    with pytest.raises(DataError, match="line 2 has no label"):
        open_data(path)


def test_an_orientation_that_there_is_not_means_the_same_to_the_header_and_to_the_pixels() -> None:
    exif = fuzz_targets.Image.Exif()
    exif[0x0112] = 4102
    content = fuzz_targets.picture("WEBP", exif=exif)
    assert header(content)[:2] == decode(content, 3).shape[:2] == (16, 17)


def test_pickles_that_torch_would_take_for_something_else(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04" + bytes(40))
    with pytest.raises(DataError, match="holds more than tensors, or is damaged"):
        open_source(tmp_path / "model.safetensors", trust_pickle=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = " + "[" * 100_000, "cannot be read: maximum recursion"),
        (f"seed = {'9' * 5000}", "cannot be read: Exceeds the limit"),
        ("seed = 99999999999999999999", r"seed is too large a number; whole ones have to lie between ±2\^63"),
        (f"[optimizer]\nlr = {'9' * 400}", "optimizer.lr is too large a number"),
        ("[augment]\nlevel = [1]", "augment.level"),
        ("stepps = 3", "unknown field stepps"),
    ],
)
def test_a_recipe_that_cannot_be_names_its_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.toml").write_text(text)
    for read in (
        lambda: recipes.load(str(tmp_path / "mine.toml")),
        lambda: recipes.loads(text, str(tmp_path / "mine.toml")),
    ):
        with pytest.raises((DataError, UsageError), match=message) as caught:
            read()
        assert "mine.toml" in str(caught.value)
    with pytest.raises(UsageError, match=r"^unknown field seeed"):
        recipes.load("scratch", {"seeed": 3})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depth": 10**7}, "describes a larger model than there are tensors"),
        ({"embed_dim": 10**30}, "model.json: architecture of ViT-At/8: model.embed_dim is too large a number"),
        ({"family": "x"}, "model.json: unknown architecture"),
    ],
)
def test_a_description_that_cannot_be_is_refused_before_it_is_built(
    tmp_path: Path, fields: dict[str, object], message: str
) -> None:
    fuzz_targets.save_model(fuzz_targets.model(), tmp_path / "m")
    description = json.loads((tmp_path / "m/model.json").read_text())
    description["architecture"] |= fields
    del description["sha256"]["model.json"]
    (tmp_path / "m/model.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match=message):
        fuzz_targets.load_model(tmp_path / "m")


def test_names_of_files_that_are_too_long_are_files_that_are_not_there(
    unfinished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fuzz_targets._sharded(tmp_path / "m")
    index = tmp_path / "m/model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] = dict.fromkeys(content["weight_map"], "é" * 150)
    index.write_text(json.dumps(content))
    with pytest.raises(DataError, match="does not exist, though"):
        open_source(tmp_path / "m")
    shutil.copytree(unfinished / "run/checkpoints", tmp_path / "c")
    manifest = tmp_path / "c/step-00000004/manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "é" * 150: [1, "x"]}))
    saved = checkpoint.newest(tmp_path / "c", trained(unfinished), Softmax(2))
    assert saved is not None
    assert saved.state.step == 2
    assert "is missing or not what its manifest says" in capsys.readouterr().err


def test_half_a_character_in_json_is_refused(tmp_path: Path) -> None:
    """It could be neither written nor printed."""
    (tmp_path / "a.json").write_text('{"label": "\\ud800"}')
    with pytest.raises(DataError, match="surrogates not allowed"):
        files.read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"label": "\\ud83d\\ude00"}')
    assert files.read_json(tmp_path / "a.json") == {"label": "😀"}


# What mutations do


@pytest.mark.parametrize(
    "name", ["a.json", "a.jsonl", "a.toml", "a.csv", "a.png", "a.npz", "a.safetensors", "a.gz", "a.txt"]
)
def test_mutations_change_something_and_repeat(tmp_path: Path, name: str) -> None:
    contents = {
        ".json": b'{"a": {"b": [1, 2.5, "x"]}, "c": null}',
        ".jsonl": b'{"step": 1, "kind": "train"}\n{"step": 2, "kind": "train"}\n',
        ".toml": b'a = 1\n[b]\nc = "x"\nd = [1, 2]\n',
        ".csv": b"image,label\na.png,ant\nb.png,bee\n",
        ".png": fuzz_targets.picture("PNG"),
        ".gz": mutations.gzip.compress(b"content " * 9),
        ".txt": b"one\ntwo\nthree\n",
    }
    if name.endswith((".npz", ".safetensors")):
        kind = "google" if name.endswith("z") else "patchword"
        where = tmp_path / ("m.npz" if kind == "google" else "m")
        fuzz_targets.save_model(fuzz_targets.usual_model(), where, format=kind)
        content = (where if where.is_file() else where / "model.safetensors").read_bytes()
    else:
        content = contents[Path(name).suffix]
    seeds = range(60)
    done = [mutations.damage(name, content, mutations.Random(seed), [b"other"]) for seed in seeds]
    assert done == [mutations.damage(name, content, mutations.Random(seed), [b"other"]) for seed in seeds]
    assert sum(changed != content for changed, _ in done) > 45
    assert len({said for _, said in done}) > 25


def test_the_soak_gives_every_target_its_share_and_writes_its_table(tmp_path: Path) -> None:
    cases = fuzz_soak.plan(1000)
    assert abs(len(cases) - 1000) < len(TARGETS)
    assert {name for name, _ in cases} == set(TARGETS)
    assert len(set(cases)) == len(cases)
    row = fuzz_soak.Row("table csv")
    for ending in ("result", "sentence", "failure"):
        row.add(fuzz_targets.Outcome("table csv", 7, ending, "x", "y", 1.5, 3.25))
    fuzz_soak.write([row], tmp_path / "soak", 4.0)
    assert "| table csv | 3 | 1 | 1 | 1 | 1.50 | 3 |" in (tmp_path / "soak.md").read_text()
    assert "- failure of table csv, seed 7 (x): y" in (tmp_path / "soak.md").read_text()
    assert json.loads((tmp_path / "soak.json").read_text())["rows"][-1]["cases"] == 3
