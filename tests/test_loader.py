import functools
import io
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from patchword.core.errors import DataError, FaultError
from patchword.core.picture import DecodeError
from patchword.core.preprocessing import Preprocessing
from patchword.data.augment import Augment
from patchword.data.dataset import Arrays, Split
from patchword.data.feed import Feed, Stop
from patchword.data.loader import Batch, TrainLoader, evaluation_batches
from patchword.data.plan import Plan
from patchword.data.store import Store

SEED, BATCH, COUNT = 31, 7, 23
FULL = Augment(crop="random-resized", randaugment_layers=2, randaugment_magnitude=10)


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    before = set(threading.enumerate())
    threads = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == threads
    assert not multiprocessing.active_children()
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name == "patchword-data"]


class Encoded:
    """Noise as PNG files of several sizes; some are broken, and one can be made to fail in its own way."""

    def __init__(self, broken: tuple[int, ...] = (), fails: dict[int, BaseException] | None = None) -> None:
        self.broken, self.fails = broken, fails or {}

    def __len__(self) -> int:
        return COUNT

    def read(self, row: int) -> bytes:
        if row in self.fails:
            raise self.fails[row]
        random = np.random.default_rng(row)
        content = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (13 + row, 41 - row, 3), dtype=np.uint8)).save(content, "png")
        return content.getvalue()[: 60 if row in self.broken else None]

    def key(self, row: int) -> bytes:
        return b"%d.png" % row

    def digest(self, rows: np.ndarray | None) -> bytes:
        return b""


class Photographs(Encoded):
    """Large JPEGs, of which the broken ones end in the middle of their pixels."""

    def read(self, row: int) -> bytes:
        random = np.random.default_rng(row)
        content = io.BytesIO()
        small = Image.fromarray(random.integers(0, 256, (9, 7 + row % 3, 3), dtype=np.uint8))
        small.resize((211 + row, 307 - row), Image.Resampling.BICUBIC).save(content, "jpeg", quality=90)
        return content.getvalue()[: len(content.getvalue()) * 2 // 3 if row in self.broken else None]


def _photographs(broken: tuple[int, ...] = ()) -> Split:
    return Split(Photographs(broken), np.arange(COUNT) % 5)


def _encoded(broken: tuple[int, ...] = (), fails: dict[int, BaseException] | None = None) -> Split:
    return Split(Encoded(broken, fails), np.arange(COUNT) % 5)


def _small() -> Split:
    pixels = np.random.default_rng(9).integers(0, 256, (COUNT, 8, 11), dtype=np.uint8)
    return Split(Arrays(pixels, "small"), np.eye(3, dtype=np.uint8)[np.arange(COUNT) % 3])


def _preprocessing(split: Split, image_size: tuple[int, int] = (12, 10)) -> Preprocessing:
    if isinstance(split.items, Arrays):
        return Preprocessing(image_size=(8, 11), resize="stretch", mean=(0.5,), std=(0.5,))
    return Preprocessing(image_size=image_size)


def _loader(
    split: Split,
    *,
    store: bool,
    augment: Augment = FULL,
    batch_size: int = BATCH,
    image_size: tuple[int, int] = (12, 10),
    workers: int = 0,
    first_step: int = 0,
) -> TrainLoader:
    preprocessing = _preprocessing(split, image_size)
    return TrainLoader(
        split,
        preprocessing=preprocessing,
        augment=augment,
        batch_size=batch_size,
        seed=SEED,
        store=Store.fill(split, preprocessing.channels, 1) if store else None,
        workers=workers,
        first_step=first_step,
    )


def _take(loader: TrainLoader, count: int) -> list[Batch]:
    with loader:
        return list(itertools.islice(loader, count))


def _assert_equal(ours: list[Batch], theirs: list[Batch]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.weights, other.weights)
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_array_equal(one.epochs, other.epochs)


def test_batches_follow_the_plan() -> None:
    split = _encoded()
    batches = _take(_loader(split, store=True), 7)  # more than two epochs
    for step, batch in enumerate(batches):
        ids, epochs = Plan(COUNT, BATCH, SEED).batch(step)
        np.testing.assert_array_equal(batch.ids, ids)
        np.testing.assert_array_equal(batch.epochs, epochs)
        assert batch.images.shape == (BATCH, 3, 12, 10)
        assert batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous()
        assert batch.labels.tolist() == (ids % 5).tolist()
        assert batch.labels.dtype == torch.int64
        assert batch.weights.tolist() == [1.0] * BATCH
    assert sorted(np.concatenate([batch.ids for batch in batches])[:COUNT]) == list(range(COUNT))
    assert {epoch for batch in batches for epoch in batch.epochs} == {0, 1, 2}


@pytest.mark.parametrize("make", [_encoded, _small])
def test_a_batch_depends_on_its_step_alone(make: Any) -> None:
    reference = _take(_loader(make(), store=True), 6)
    _assert_equal(_take(_loader(make(), store=True, first_step=4), 2), reference[4:])
    _assert_equal(_take(_loader(make(), store=False), 6), reference)
    state = torch.random.get_rng_state()
    for workers in (1, 2):
        _assert_equal(
            _take(_loader(make(), store=False, workers=workers, first_step=workers), 4), reference[workers:][:4]
        )
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("crop", ["random-resized", "resize"])
def test_a_batch_of_streamed_jpegs_depends_on_its_step_alone(crop: Any) -> None:
    augment = Augment(crop=crop, randaugment_layers=1)
    reference = _take(_loader(_photographs(), store=False, augment=augment), 6)
    for workers, first in ((0, 4), (1, 0), (2, 3)):
        loader = _loader(_photographs(), store=False, augment=augment, workers=workers, first_step=first)
        _assert_equal(_take(loader, 6 - first), reference[first:])


def test_large_jpegs_are_cropped_alike_from_store_and_stream() -> None:
    plain = Augment(crop="random-resized")
    stored = _take(_loader(_photographs(), store=True, augment=plain), 3)
    streamed = _take(_loader(_photographs(), store=False, augment=plain), 3)
    for one, other in zip(stored, streamed, strict=True):
        away = (one.images.float() - other.images.float()).abs().mean(dim=(1, 2, 3))
        assert away.max() < 4  # the same crops: others differ by 30 and more
        assert away.max() > 0  # of which some were shrunk on the way


@pytest.mark.parametrize("workers", [0, 2])
def test_a_jpeg_that_ends_early_has_no_weight_wherever_its_crop_is(workers: int) -> None:
    loader = _loader(_photographs(broken=(3, 17)), store=False, workers=workers)
    for batch in _take(loader, 20):  # six epochs, with crops at the top, too
        failed = np.isin(batch.ids, [3, 17])
        assert batch.weights.tolist() == (~failed).astype(float).tolist()
        assert (batch.images.flatten(1) == 0).all(dim=1).tolist() == failed.tolist()
    assert loader.bad == {3: "is truncated", 17: "is truncated"}


def test_closing_ends_a_batch_while_its_parts_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    from patchword.data.decoding.part import Part, Undecoded

    original, started, parts = Undecoded.part, threading.Event(), []

    def slow(self: Undecoded, *arguments: Any) -> Part:
        parts.append(self)
        started.set()
        time.sleep(0.01)
        return original(self, *arguments)

    monkeypatch.setattr(Undecoded, "part", slow)
    loader = _loader(_photographs(), store=False, batch_size=2000)
    assert started.wait(60)
    loader.close()
    assert len(parts) < 1000


@pytest.mark.parametrize("crop", ["shift", "resize"])
def test_small_pictures_are_cropped_alike_from_store_and_stream(crop: Any) -> None:
    augment = Augment(crop=crop, shift_pixels=2)
    _assert_equal(
        _take(_loader(_small(), store=True, augment=augment), 4),
        _take(_loader(_small(), store=False, augment=augment), 4),
    )


def test_several_labels_become_rows_of_floats() -> None:
    (batch,) = _take(_loader(_small(), store=True), 1)
    assert batch.labels.dtype == torch.float32
    assert batch.labels.tolist() == np.eye(3)[batch.ids % 3].tolist()


def test_a_store_leaves_bad_pictures_out_of_the_plan() -> None:
    loader = _loader(_encoded(broken=(3, 17)), store=True)
    assert loader.bad.keys() == {3, 17}
    ids = np.concatenate([batch.ids for batch in _take(loader, 3)])
    good = np.setdiff1d(np.arange(COUNT), [3, 17])
    assert sorted(ids) == good.tolist()
    positions, _ = Plan(len(good), BATCH, SEED).batch(0)
    np.testing.assert_array_equal(ids[:BATCH], good[positions])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_gives_bad_pictures_no_weight_and_lists_them(workers: int) -> None:
    loader = _loader(_encoded(broken=(3, 17)), store=False, workers=workers)
    assert loader.bad == {}
    for batch in _take(loader, 4):
        failed = np.isin(batch.ids, [3, 17])
        assert batch.weights.tolist() == (~failed).astype(float).tolist()
        assert (batch.images.flatten(1) == 0).all(dim=1).tolist() == failed.tolist()
    assert loader.bad.keys() == {3, 17}
    assert "truncated" in loader.bad[3] or "damaged" in loader.bad[3]


def test_a_split_without_a_good_picture_is_an_error() -> None:
    with pytest.raises(DataError, match="none of the training pictures"):
        _loader(_encoded(broken=tuple(range(COUNT))), store=True)


class OddError(Exception):
    """Cannot be pickled back: its arguments are not those of its initializer."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"odd {first} {second}")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("error", [ZeroDivisionError("seven"), FaultError("a sentence"), KeyError("k")])
def test_exceptions_arrive_as_they_were(error: Exception, workers: int) -> None:
    loader = _loader(_encoded(fails={11: error}), store=False, workers=workers)
    with pytest.raises(type(error)) as caught:
        _take(loader, 4)
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)
    with pytest.raises(StopIteration):
        next(iter(loader))


def test_an_exception_that_cannot_travel_is_told_in_words() -> None:
    with pytest.raises(FaultError, match="OddError: odd 1 2"):
        _take(_loader(_encoded(fails={11: OddError(1, 2)}), store=False, workers=1), 4)


def test_workers_leave_signals_to_the_parent() -> None:
    reference = _take(_loader(_encoded(), store=False), 40)
    loader = _loader(_encoded(), store=False, workers=1)
    batches = iter(loader)
    first = next(batches)
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker.pid or 0, number)
    _assert_equal([first, *itertools.islice(batches, 39)], reference)
    loader.close()


def test_a_killed_worker_is_a_fault() -> None:
    loader = _loader(_encoded(), store=False, workers=1)
    batches = iter(loader)
    next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid or 0, signal.SIGKILL)
    with pytest.raises(FaultError, match="worker process"):
        list(itertools.islice(batches, 40))


def _killed_at(call: int, step: int, stop: Stop) -> int:
    """From the second step on, the process dies at this call or return within a look at `stop`."""
    if step:
        counted = itertools.count(1)
        sys.setprofile(lambda *event: next(counted) == call and os.kill(os.getpid(), signal.SIGKILL))
        stop.is_set()
        sys.setprofile(None)
    return step


def test_more_workers_than_cores_begin_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many is the user's choice, who would read two lines of torch's."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert list(Feed(lambda step, _: 3 * step, range(5), workers=2)) == [0, 3, 6, 9, 12]


def test_a_worker_killed_while_it_looks_whether_to_stop_takes_nobody_along() -> None:
    feeds = [Feed(functools.partial(_killed_at, call), range(3), workers=1) for call in range(1, 13)]
    ends: list[object] = []
    for feed in feeds:
        try:
            ends.append(list(feed))
        except FaultError as error:
            ends.append("died" if "worker process" in str(error) else error)
        feed.close()
    deaths = ends.count("died")
    assert deaths >= 3
    assert ends == ["died"] * deaths + [[0, 1, 2]] * (12 - deaths)


class Slow(Encoded):
    """Counts what is read, and tells when it begins."""

    def __init__(self) -> None:
        super().__init__()
        self.started, self.reads = threading.Event(), 0

    def read(self, row: int) -> bytes:
        self.reads += 1
        self.started.set()
        time.sleep(0.01)
        return super().read(row)


def test_closing_ends_a_batch_halfway() -> None:
    items = Slow()
    loader = _loader(Split(items, np.zeros(COUNT, np.int64)), store=False, batch_size=10_000)
    assert items.started.wait(10)
    loader.close()
    loader.close()
    assert items.reads < 1000
    assert list(loader) == []


def test_the_thread_runs_ahead_but_not_away() -> None:
    items = Slow()
    with _loader(Split(items, np.zeros(COUNT, np.int64)), store=False, batch_size=3) as loader:
        next(iter(loader))
        assert loader.wait_seconds > 0
        waited = time.monotonic()
        while items.reads < 9 and time.monotonic() < waited + 10:
            time.sleep(0.01)
        time.sleep(0.1)
        assert items.reads == 9  # one batch taken, two ready


def test_a_forgotten_loader_ends_its_thread() -> None:
    loader = _loader(_encoded(), store=True)
    next(iter(loader))
    del loader


@pytest.mark.parametrize("batch_size", [5, COUNT, 100])
@pytest.mark.parametrize("store", [True, False])
def test_evaluation_sees_every_picture_once_as_it_is(store: bool, batch_size: int) -> None:
    for split in (_encoded(), _small()):
        preprocessing = _preprocessing(split)
        filled = Store.fill(split, preprocessing.channels, 1)
        batches = list(
            evaluation_batches(
                split, preprocessing=preprocessing, batch_size=batch_size, store=filled if store else None, workers=0
            )
        )
        assert [len(batch.ids) for batch in batches] == [batch_size] * (COUNT // batch_size) + (
            [COUNT % batch_size] if COUNT % batch_size else []
        )
        assert np.concatenate([batch.ids for batch in batches]).tolist() == list(range(COUNT))
        images = torch.cat([batch.images for batch in batches])
        assert images.is_contiguous()
        for index in range(COUNT):
            expected = preprocessing.fit(filled.pixels(index)).transpose(2, 0, 1)
            np.testing.assert_array_equal(images[index].numpy(), expected)
        assert torch.cat([batch.weights for batch in batches]).tolist() == [1.0] * COUNT
        assert torch.equal(
            torch.cat([batch.labels for batch in batches]), torch.from_numpy(split.labels).to(batches[0].labels.dtype)
        )


def test_evaluation_counts_bad_pictures() -> None:
    split = _encoded(broken=(2, 22))
    preprocessing = _preprocessing(split)
    store = Store.fill(split, 3, 1)
    for given, workers in [(store, 0), (None, 0), (None, 1)]:
        batches = evaluation_batches(split, preprocessing=preprocessing, batch_size=9, store=given, workers=workers)
        weights = torch.cat([batch.weights for batch in batches])
        assert (weights == 0).nonzero().flatten().tolist() == [2, 22]


def test_evaluation_can_be_left_early() -> None:
    split = _encoded()
    for workers in (0, 1):
        batches = evaluation_batches(
            split, preprocessing=_preprocessing(split), batch_size=3, store=None, workers=workers
        )
        assert next(batches).ids.tolist() == [0, 1, 2]
        batches.close()  # type: ignore[attr-defined]


def test_large_jpegs_are_shrunk_in_training_only() -> None:
    class Large(Encoded):
        def read(self, row: int) -> bytes:
            content = io.BytesIO()
            Image.linear_gradient("L").resize((640, 640)).convert("RGB").save(content, "jpeg")
            return content.getvalue()

    split = Split(Large(), np.zeros(COUNT, np.int64))
    seen: list[int] = []

    def decode(item: Any, channels: int, *, shrink_to: int | None = None) -> np.ndarray:
        pixels = original(item, channels, shrink_to=shrink_to)
        seen.append(pixels.shape[0])
        return pixels

    from patchword.data import loader as module

    original = module.decode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "decode", decode)
        _take(_loader(split, store=False, augment=Augment(crop="resize")), 1)
        assert set(seen) == {80}  # at least twice 12 / 0.875 = 28 pixels, at 1/8
        seen.clear()
        list(evaluation_batches(split, preprocessing=_preprocessing(split), batch_size=9, store=None, workers=0))
        assert set(seen) == {640}


def test_real_photographs_stream_as_they_are_stored() -> None:
    root = Path(os.environ.get("PATCHWORD_DATA") or Path(__file__).parents[2] / "shared" / "data") / "clothing"
    if not root.is_dir():
        pytest.skip(f"needs the photographs in {root}")
    from patchword.data.sources import open_data

    split = open_data(str(root)).splits["test"].subset(np.arange(0, 372, 9))
    large = (160, 120)  # more than half of their 224 pixels of width: no crop is shrunk on the way
    _assert_equal(
        _take(_loader(split, store=False, workers=2, image_size=large), 3),
        _take(_loader(split, store=True, image_size=large), 3),
    )


def test_decode_error_is_not_an_exception_of_the_loader() -> None:
    split = _encoded(fails={5: DecodeError("does not exist")})
    loader = _loader(split, store=False)
    _take(loader, 4)
    assert loader.bad == {5: "does not exist"}
