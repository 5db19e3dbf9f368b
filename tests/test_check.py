"""`data check` counts what is there, names what is bad, and says what training would do."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchword.core.errors import DataError
from patchword.data import check as module
from patchword.data.check import check


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(
    path: Path, width: int = 8, height: int = 6, value: int | tuple[int, int, int] = 0, mode: str = "RGB"
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (width, height), value).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for number in range(11):
        write(root / "train" / "ant" / f"{number}.png", 10 + number, 20, (number, 2 * number, 0))
    write(root / "train" / "bee" / "0.png", 40, 10, (255, 255, 255))
    write(root / "test" / "ant" / "0.png", 10, 20, (0, 0, 0))  # as train/ant/0.png
    write(root / "test" / "bee" / "0.png", 7, 5, 128, "L")
    (root / "test" / "bee" / "1.png").write_bytes(b"")
    (root / "train" / "bee" / "1.png").write_bytes(b"GIF8 it is not")
    (root / ".ipynb_checkpoints").mkdir()
    return root


def test_counts_sizes_and_colours(photos: Path) -> None:
    report = check(photos)
    train, test = report.splits["train"], report.splits["test"]
    assert train.count == 13
    assert train.per_class == {"ant": 11, "bee": 2}
    assert (train.widths, train.heights) == ((10, 16, 40), (10, 20, 20))
    assert train.aspects == (0.5, 16 / 20, 4.0)
    assert (train.shapes, train.grey, train.looked_at) == (12, 0, 12)
    assert train.pixels == sum(10 + number for number in range(11)) * 20 + 400
    assert (test.shapes, test.grey, test.looked_at) == (2, 1, 2)
    assert train.bad == {"train/bee/1.png": "is not a picture (it starts with 'GIF8 it is not')"}
    assert test.bad == {"test/bee/1.png": "is empty (0 bytes)"}
    assert report.channels == 3
    assert report.in_memory


def test_every_picture_weighs_the_same_in_mean_and_deviation(photos: Path) -> None:
    report = check(photos)
    values = np.array([[number, 2 * number, 0] for number in range(11)] + [[255, 255, 255]]) / 255
    assert report.mean == pytest.approx(values.mean(axis=0).tolist())
    assert report.std == pytest.approx(values.std(axis=0).tolist())


def test_warnings_say_what_follows(photos: Path) -> None:
    report = check(photos)
    assert report.warnings == [
        "leakage: 1 of train also in a split that is kept for measuring; training leaves them out",
        "bad pictures of train: 1 of 13; more than 1 %, so training would stop; mend or remove them",
        "bad pictures of test: 1 of 3; evaluation counts them as wrong",
    ]
    for number in range(1, 10):
        write(photos / "train" / "ant" / f"more{number}.png", 3, 3 + number)
    warning = check(photos).warnings[-1]
    assert warning.startswith("imbalance: ant has 20 training pictures, bee has 2;")
    assert warning.endswith("--set balance.sampling=1 draws all classes alike in training")


def test_conflicting_labels(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        write(tmp_path / "set" / name / "0.png")
    assert check(tmp_path / "set").warnings == [
        "the same picture under different labels: 1, the first as ant/0.png and bee/0.png"
    ]


def test_the_text_holds_it_all(photos: Path) -> None:
    text = check(photos).to_text()
    for part in (
        f"{photos}: 2 classes, one label a picture",
        "Train and test are used as they come",
        "ant          11           1",
        "all          13           3",
        "width 10–40, height 10–20 px (median 16×20), width : height 0.50–4.00, 12 different sizes; 0 grey, 12 in colour",
        "  test/bee/1.png is empty (0 bytes)",
        "duplicates  exact copies: 1, across splits: 1, left out of train or validation",
        "would take the pictures as RGB (3 channels) and keep them decoded in memory",
        "warning: leakage",
        "notice: .ipynb_checkpoints: hidden folder or picture is left out",
    ):
        assert part in text
    assert "nothing stands in the way" not in text
    assert max(map(len, text.splitlines())) < 200


def test_a_sound_set_of_grey_pictures(tmp_path: Path) -> None:
    for number in range(10):
        for name, value in (("ant", 10), ("bee", 200)):
            write(tmp_path / "set" / name / f"{number}.png", 5, 7 + number, value + number, "L")
    report = check(tmp_path / "set")
    assert report.channels == 1
    assert report.warnings == []
    assert report.memory == pytest.approx(2 * sum(5 * (7 + number) for number in range(10)), rel=0.1)
    assert len(report.mean) == len(report.std) == 1
    text = report.to_text()
    assert "all 5" not in text
    assert text.endswith("nothing stands in the way of training")
    assert "grey (1 channel)" in text


@pytest.mark.parametrize(("side", "told"), [(7, "all 7×7 px; "), (5, "all 5 px wide, 7 px high; ")])
def test_one_size_of_all_is_told_without_a_doubt_which_side_is_which(side: int, told: str, tmp_path: Path) -> None:
    for number in range(10):
        for name in ("ant", "bee"):
            write(tmp_path / "set" / name / f"{number}.png", side, 7, number)
    assert told in check(tmp_path / "set").to_text()


def test_without_decoding_only_headers_are_read(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_COLOUR_SAMPLE", 2)
    decoded = []
    original = module.decode
    monkeypatch.setattr(module, "decode", lambda item, channels: decoded.append(item) or original(item, channels))
    report = check(photos, decode_all=False)
    assert len(decoded) == 2
    assert not report.decoded
    assert report.splits["train"].widths == (10, 16, 40)
    assert set(report.splits["test"].bad) == {"test/bee/1.png"}


def test_large_sets_are_sampled_without_decoding(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HEADERS", 5)
    report = check(photos, decode_all=False)
    assert report.splits["train"].looked_at + len(report.splits["train"].bad) == 5
    assert "(of 4 looked at)" in report.to_text()


def test_many_bad_pictures_are_counted_and_the_first_named(photos: Path) -> None:
    for number in range(30):
        (photos / "test" / "ant" / f"bad{number:02d}.png").write_bytes(b"")
    text = check(photos).to_text()
    assert "test        bad: 31" in text
    assert text.count("is empty (0 bytes)") == 10
    assert "  and 21 more" in text


def test_progress_counts_every_picture(photos: Path) -> None:
    seen: list[tuple[int, int]] = []
    check(photos, on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (16, 16)
    assert seen == sorted(seen)


def test_pictures_without_labels(photos: Path, tmp_path: Path) -> None:
    for number in range(7):
        write(tmp_path / "loose" / "deep" / f"{number}.png", 9, 9, (30 * number, 0, 0))
    with pytest.raises(DataError, match="--no-labels"):
        check(tmp_path / "loose" / "deep")
    report = check(tmp_path / "loose" / "deep", labelled=False)
    text = report.to_text()
    assert "deep: pictures whose labels do not count\n" in text
    assert "10 % test, chosen by a hash" in text  # and not within every class: there is none
    assert "\npictures " not in text  # the name of their one class
    assert sum(split.count for split in report.splits.values()) == 7
    assert report.warnings == []

    told = check(photos, labelled=False).warnings
    assert [sentence.split(":")[0] for sentence in told] == ["leakage", "bad pictures of train", "bad pictures of test"]


def test_a_set_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is empty"):
        check(tmp_path)


def test_many_classes_are_shortened(tmp_path: Path) -> None:
    for number in range(25):
        write(tmp_path / "set" / f"class{number}" / "0.png", 5 + number, 5)
    text = check(tmp_path / "set").to_text()
    assert "class9 " in text
    assert "\nclass18" not in text
    assert "…" in text
