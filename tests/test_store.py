"""A store holds exactly the decoded pictures, under their indices, and says which ones it could not have."""

import io
import multiprocessing
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchword.data import store as module
from patchword.data.dataset import Arrays, Files, Names, Split
from patchword.data.decoding.decode import DecodeError, decode
from patchword.data.formula import Drawn
from patchword.data.sources import open_data
from patchword.data.store import Store, estimated_bytes, in_order, worthwhile_threads


def jpeg(height: int, width: int, seed: int) -> bytes:
    content = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, "JPEG")
    return content.getvalue()


def split_of(folder: Path, contents: list[bytes]) -> Split:
    for number, content in enumerate(contents):
        (folder / f"{number}.jpg").write_bytes(content)
    names = Names(f"{number}.jpg".encode() for number in range(len(contents)))
    return Split(Files(folder, names), np.zeros(len(contents), np.int64))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("workers", [1, 3])
def test_every_picture_in_its_own_size(
    tmp_path: Path, workers: int, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WORTH_THREADS", 0)
    split = split_of(tmp_path, [jpeg(5 + number % 7, 3 + number % 5, number) for number in range(83)])
    store = Store.fill(split, channels, workers)
    assert len(store) == 83
    assert store.bad == {}
    assert store.same_shape is None
    for index in range(83):
        assert (store.pixels(index) == decode(split.read(index), channels)).all()
    assert store.nbytes == sum(store.pixels(index).size for index in range(83))
    with pytest.raises(ValueError, match="several shapes"):
        store.stacked()


def test_pictures_of_formulas_are_drawn_in_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as in one, in order; what drawing raises arrives here."""
    split = open_data("formula:shapes-3x47@11x17").splits["train"]
    few = Store.fill(split, 1, 2)
    monkeypatch.setattr(module, "_WORTH_PROCESSES", 3 * 47)
    store = Store.fill(split, 1, 2)
    assert store.same_shape == (11, 17, 1)
    assert (store.stacked() == few.stacked()).all()
    assert store.content == few.content
    by_whom = [os.getpid()]
    monkeypatch.setattr(Drawn, "read", lambda *_: np.frombuffer(os.getpid().to_bytes(24), np.uint8).reshape(2, 4, 3))
    for workers, drawers in ((1, 1), (2, 2)):
        pixels = Store.fill(split, 3, workers).stacked()
        found = {int.from_bytes(each.tobytes()) for each in pixels}
        assert (len(found), by_whom[0] in found) == (drawers, workers == 1)
    monkeypatch.setattr(Drawn, "read", lambda _, row: (_ for _ in ()).throw(DecodeError(f"is number {row}")))
    assert Store.fill(split, 3, 2).bad == {row: f"is number {row}" for row in range(3 * 47)}
    monkeypatch.setattr(Drawn, "read", lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        Store.fill(split, 3, 2)
    assert multiprocessing.active_children() == []


def test_equal_shapes_are_one_array_without_a_copy(tmp_path: Path) -> None:
    split = split_of(tmp_path, [jpeg(7, 5, number) for number in range(11)])
    store = Store.fill(split, 3, 2)
    assert store.same_shape == (7, 5, 3)
    stacked = store.stacked()
    assert stacked.shape == (11, 7, 5, 3)
    assert np.shares_memory(stacked, store.pixels(4))
    assert (stacked[10] == decode(split.read(10), 3)).all()
    assert stacked.flags.writeable


@pytest.mark.parametrize("same", [True, False])
def test_a_part_of_a_store_is_the_store_of_the_part(tmp_path: Path, same: bool) -> None:
    contents = [jpeg(5 if same else 5 + number % 7, 3, number) for number in range(23)]
    contents[11] = b"no picture"
    split = split_of(tmp_path, contents)
    whole = Store.fill(split, 3, 1)
    for chosen in ([19, 2, 7], [2, 11, 5]):
        part, alone = whole.subset(np.array(chosen)), Store.fill(split.subset(np.array(chosen)), 3, 1)
        assert len(part) == 3
        assert (part.bad, part.content, part.same_shape) == (alone.bad, alone.content, alone.same_shape)
        good = [place for place, index in enumerate(chosen) if index != 11]
        assert all((part.pixels(place) == alone.pixels(place)).all() for place in good)
        if same and 11 not in chosen:
            assert (part.stacked() == alone.stacked()).all()


def test_bad_pictures_are_left_out_and_told(tmp_path: Path) -> None:
    good = jpeg(7, 5, 0)
    split = split_of(tmp_path, [good, b"", good, good[: len(good) // 2], good])
    (tmp_path / "4.jpg").unlink()
    store = Store.fill(split, 3, 2)
    assert store.bad == {1: "is empty (0 bytes)", 3: "is truncated", 4: "does not exist"}
    assert store.same_shape == (7, 5, 3)
    assert store.nbytes == 2 * 7 * 5 * 3
    assert (store.pixels(2) == decode(good, 3)).all()
    with pytest.raises(DecodeError, match="the picture is truncated"):
        store.pixels(3)
    with pytest.raises(ValueError, match="without some"):
        store.stacked()


def test_nothing_but_bad_pictures(tmp_path: Path) -> None:
    store = Store.fill(split_of(tmp_path, [b"x", b""]), 3, 1)
    assert sorted(store.bad) == [0, 1]
    assert (store.nbytes, store.same_shape) == (0, None)


def test_arrays_are_stored_as_they_are() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (13, 5, 3), dtype=np.uint8)
    split = Split(Arrays(pixels, "a"), np.zeros(13, np.int64)).subset(np.array([12, 0, 7]))
    assert (Store.fill(split, 1, 2).stacked()[..., 0] == pixels[[12, 0, 7]]).all()


def test_a_wrong_guess_of_the_size_is_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = split_of(tmp_path, [jpeg(5, 3, number) for number in range(9)] + [jpeg(97, 101, 9)])
    for guess in (0, 1, 10**6):
        monkeypatch.setattr(module, "estimated_bytes", lambda *_, guess=guess, **__: guess)
        store = Store.fill(split, 3, 1)
        assert store.nbytes == 9 * 5 * 3 * 3 + 97 * 101 * 3
        assert (store.pixels(9) == decode(split.read(9), 3)).all()
        assert (store.pixels(8) == decode(split.read(8), 3)).all()


def test_the_estimate_comes_from_headers_of_an_even_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = split_of(tmp_path, [jpeg(7, 5, number) for number in range(20)] + [b""])
    read = []
    original = split.read
    monkeypatch.setattr(split, "read", lambda index: read.append(index) or original(index))
    assert estimated_bytes(split) == 21 * 7 * 5 * 3
    assert read == list(range(21))
    read.clear()
    assert estimated_bytes(split, 5, channels=1) == 21 * 7 * 5
    assert read == [0, 5, 10, 15, 20]
    assert estimated_bytes(split.subset(np.array([20]))) == 0


def test_progress_ends_at_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    Store.fill(
        split_of(tmp_path, [jpeg(7, 5, 0)] * 130), 3, 1, on_progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(64, 130), (128, 130), (130, 130)]


def test_small_pictures_are_decoded_in_one_thread(tmp_path: Path) -> None:
    assert worthwhile_threads(split_of(tmp_path, [jpeg(7, 5, 0)]), 4) == 1
    assert worthwhile_threads(split_of(tmp_path, [jpeg(200, 200, 0)]), 4) == 4


@pytest.mark.parametrize("threads", [1, 3])
def test_work_is_done_in_order_and_never_far_ahead(threads: int) -> None:
    begun: list[int] = []
    lock = threading.Lock()

    def work(index: int) -> int:
        with lock:
            begun.append(index)
        return index * index

    farthest = 0
    results = []
    for first, values in in_order(100, work, threads, task=4):
        assert first == len(results)
        results += values
        farthest = max(farthest, max(begun) - len(results))
    assert results == [index * index for index in range(100)]
    assert farthest <= 4 * (2 * threads + 1)


def test_an_error_of_the_program_is_not_swallowed() -> None:
    def work(index: int) -> int:
        return 1 // (5 - index)

    for threads in (1, 2):
        with pytest.raises(ZeroDivisionError):
            list(in_order(10, work, threads, task=2))
