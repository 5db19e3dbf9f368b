"""A grid of runs: killed anywhere it ends as if nobody had been there, and what is finished is never done again."""

import contextlib
import dataclasses
import json
import signal
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import write_pictures
from patchword.core.errors import DataError, FaultError, UsageError
from patchword.core.runtime import only_writer
from patchword.reports.run import write_report
from patchword.reports.study import write_study
from patchword.studies import compare as studies
from patchword.studies import grid as grids
from patchword.studies.answer import write_answer
from patchword.studies.grid import Cell, Grid, Outcome, held, settle
from patchword.studies.search import COST, FACTORS, ROUNDS, ahead, part_of, search, with_rate
from patchword.training import loop, measuring
from patchword.training.recipe import Budget
from patchword.training.recipe import load as loaded
from tiny import tiny
from victims import CONTEXT, LONG, _killer, before_file_operations, weights_hash

MODELS = ("ViT-At/8", "BiT-R14x0.25")
SMALL: dict[str, Any] = {
    "model": {"depth": 1, "embed_dim": 16, "num_heads": 2, "mlp_dim": 16, "units": [1]},
    "batch_size": 8,
    "micro_batch": 4,
    "threads": 1,
    "loading": {"duplicates": "no"},
}


def study(data: Path, out: Path, kill_before: int = 0) -> studies.Study:
    """Two models at two sizes with one seed; in a process of its own it may kill itself before a file operation."""
    loop.seconds_per_step = lambda *_: 0.01
    if kill_before:
        before_file_operations(_killer(kill_before))
    return studies.compare(
        str(data),
        MODELS,
        ("12", "all"),
        out,
        seeds=1,
        image_size=(16, 16),
        budget=Budget(steps=8),
        changes=SMALL,
        publish_run=write_report if kill_before else None,
        publish=lambda each: write_study(write_answer(each)),
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes: 72 pictures in train, 15 in validation, 21 in test."""
    folder = tmp_path_factory.mktemp("grid")
    for split, count in (("train", 24), ("validation", 5), ("test", 7)):
        write_pictures(folder / split, ("ant", "bee", "cat"), count, seed=count)
    return folder


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[studies.Study, list[int]]:
    """The study, and the sizes of the splits that models were measured on, in order."""
    seen: list[int] = []
    look = measuring.predict
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "seconds_per_step", lambda *_: 0.01)
        patch.setattr(
            measuring, "predict", lambda m, split, *a, **k: (seen.append(len(split)), look(m, split, *a, **k))[1]
        )
        return study(data, tmp_path_factory.mktemp("quiet") / "study"), seen


def test_a_study_that_is_killed_three_times_ends_as_if_nobody_had_been_there(
    undisturbed: tuple[studies.Study, list[int]],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    quiet, _ = undisturbed
    for operation in (600, 911, 702):
        process = CONTEXT.Process(target=study, args=(data, tmp_path / "killed", operation))
        process.start()
        process.join(LONG)
        assert process.exitcode == -signal.SIGKILL
    finished = [path for path in (tmp_path / "killed").rglob("result.json") if "finished" in path.read_text()]
    assert 5 < len(finished) < 20
    before = {path: path.stat().st_mtime_ns for path in finished}
    killed = study(data, tmp_path / "killed")
    assert {path: path.stat().st_mtime_ns for path in finished} == before, "finished cells are left alone"
    assert list(killed.outcomes) == list(quiet.outcomes)
    for place, outcome in quiet.outcomes.items():
        assert weights_hash(outcome.folder) == weights_hash(tmp_path / "killed" / place), place
    tables = [json.loads((each.grid.folder / "study.json").read_text()) for each in (quiet, killed)]
    for table in tables:
        for row in table["models"]:
            del row["seconds"], row["images_per_second"]
            for trial in row["rate"]["trials"]:
                del trial["seconds"]
        del table["seconds"], table["date"], table["fronts"]["seconds"]
    assert tables[0] == tables[1]
    # Once more: nothing is run.
    monkeypatch.setattr(grids, "run", lambda *_, **__: pytest.fail("a finished cell was run again"))
    capsys.readouterr()
    study(data, tmp_path / "killed")
    runs = len(list((tmp_path / "killed").rglob("result.json")))
    assert 20 <= runs < 30  # more than 20 where the best rate lies at an end
    assert f"{runs} runs, {runs} of them finished\n" in capsys.readouterr().err


def test_test_is_looked_at_once_a_cell_and_not_to_choose(undisturbed: tuple[studies.Study, list[int]]) -> None:
    done, seen = undisturbed
    assert set(seen) == {15, 16, 21}  # 16 pictures of train tell how long a look takes
    assert seen.count(21) == len(done.outcomes) == 8
    splits: dict[str, set[str]] = {}
    for path in done.grid.folder.rglob("result.json"):
        room = path.parent.relative_to(done.grid.folder).parts[0]
        splits.setdefault(room, set()).add(json.loads(path.read_text())["split"])
    assert splits == {"search": {"validation"}, "runs": {"test"}, "compute": {"test"}}


def test_a_busy_machine_is_named_beside_what_was_measured_on_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = Grid(tmp_path)
    monkeypatch.setattr(grid, "seconds", lambda cell: 100.0)
    monkeypatch.setattr(grids.os, "cpu_count", lambda: 4)
    cell = Cell("runs/a", "a", loaded("scratch", {"data": str(data), "model": {"name": "ViT-At/8"}}))
    for load, said in ((8.0, False), (18.0, True)):
        monkeypatch.setattr(grids.os, "getloadavg", lambda load=load: (load, 0.0, 0.0), raising=False)
        grid.begin([cell], [cell])
        heard = capsys.readouterr().err
        assert f"{tmp_path}: 2 runs; about 3 min 20 s on this machine\n" in heard
        assert ("keeps this machine busy (4.5 processes for each core)" in heard) is said


def test_a_cell_that_was_only_brought_to_its_end_says_nothing_of_the_pace(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three cells of 100 s: one that was cut off takes 7 s, one from nothing 150."""
    clock = iter([0.0, 7.0, 10.0, 160.0])
    monkeypatch.setattr(grids, "time", SimpleNamespace(perf_counter=lambda: next(clock), monotonic=lambda: 0.0))
    monkeypatch.setattr(Grid, "seconds", lambda *_: 100.0)
    monkeypatch.setattr(Grid, "finished", lambda *_: False)
    monkeypatch.setattr(Grid, "outcome", lambda self, cell: Outcome(cell, self.folder, {"value": 0.5}))
    monkeypatch.setattr(grids, "run", lambda *_, **__: None)
    grid, cells = Grid(tmp_path), [Cell(name, name, tiny(pictures)) for name in ("cut", "new", "other")]
    (tmp_path / "cut").mkdir()
    grid.begin(cells)
    grid.run(cells[:2])
    said = capsys.readouterr().err
    assert "[1/3] cut: 50.00 % in 7.0 s; about 3 min 20 s left\n" in said
    assert "[2/3] new: 50.00 % in 2 min 30 s; about 2 min 30 s left\n" in said


def test_a_folder_holds_one_study_and_one_writer(tmp_path: Path) -> None:
    settings = {"sizes": [100, "all"], "seeds": 3, "budget": {"pflop": 0.1}}
    with held(tmp_path / "new") as stored:
        assert stored == {}
        settle(tmp_path / "new", stored, settings, free=("seeds",))
        with pytest.raises(UsageError, match="is being written by another process"), held(tmp_path / "new"):
            pass
    with held(tmp_path / "new") as stored:
        assert stored == settings
        settle(tmp_path / "new", stored, {**settings, "seeds": 5}, free=("seeds",))
        with pytest.raises(
            UsageError, match=r"holds another study \(sizes: 100,all there, 100 asked for\); choose anot"
        ):
            settle(tmp_path / "new", stored, {**settings, "sizes": [100]}, free=("seeds",))
        tables = {**settings, "budget": {"pflop": 0.1, "model": {"pool": "gap"}}}
        with pytest.raises(UsageError, match=r"\(budget: pflop=0.1 there, pflop=0.1 model.pool=gap asked for\)"):
            settle(tmp_path / "new", stored, tables, free=("seeds",))
    with held(tmp_path / "new") as stored:
        assert stored["seeds"] == 5
    (tmp_path / "new/study.toml").write_text("[[[")
    with pytest.raises(DataError, match="study.toml cannot be read"), held(tmp_path / "new"):
        pass
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/photo.jpg").touch()
    for name, sentence in (("foreign", r"holds other things \(photo.jpg"), ("foreign/photo.jpg", "is a file; a study")):
        with pytest.raises(UsageError, match=sentence), held(tmp_path / name):
            pass
    with contextlib.suppress(ZeroDivisionError), held(tmp_path / "refused"):
        raise ZeroDivisionError
    assert not (tmp_path / "refused").exists()


def test_another_run_in_a_cells_folder_is_refused(pictures: Path, tmp_path: Path) -> None:
    grid = Grid(tmp_path)
    grid.run([Cell("one", "one", tiny(pictures))])
    with pytest.raises(UsageError, match=r"one holds another run \(optimizer.lr is 0.1, not 0.003\)"):
        grid.finished(Cell("one", "one", tiny(pictures, optimizer={"lr": 0.1})))
    # Data and weights of the start may lie elsewhere by now; a batch is at most what there is.
    moved = dataclasses.replace(tiny(pictures), data="elsewhere", init="there")
    assert grid.finished(Cell("one", "one", moved))


def test_a_cell_that_was_cut_off_goes_on_where_its_data_and_start_have_moved(pictures: Path, tmp_path: Path) -> None:
    recipe = tiny(pictures)
    Grid(tmp_path / "start").run([Cell("first", "first", recipe)])
    begun = dataclasses.replace(recipe, init=str(tmp_path / "start/first"), seed=1)
    grid = Grid(tmp_path / "study")
    [whole] = grid.run([Cell("one", "one", begun)])
    expected = weights_hash(whole.folder)
    for path in ("result.json", "model"):
        (whole.folder / path).rename(tmp_path / path)
    moved = pictures.rename(tmp_path / "moved")
    (tmp_path / "start").rename(tmp_path / "elsewhere")
    later = dataclasses.replace(begun, data=str(moved), init=str(tmp_path / "elsewhere/first"))
    [outcome] = Grid(tmp_path / "study").run([Cell("one", "one", later)])
    assert outcome.result["resumed_from"] == [12]
    assert weights_hash(outcome.folder) == expected


def test_a_cell_that_diverges_is_told_and_not_tried_again(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wild = {"optimizer": {"lr": 1e30, "clip_norm": 0.0, "name": "sgd"}, "schedule": {"warmup": 0.0}}
    cell, grid = Cell("wild", "a wild one", tiny(pictures, **wild)), Grid(tmp_path)
    grid.begin([cell, Cell("tame", "tame", tiny(pictures))])
    [outcome] = grid.run([cell])
    assert outcome.value is None
    assert "diverged in step 2" in outcome.diverged
    said = capsys.readouterr().err
    assert f"{tmp_path}: 2 runs; about " in said
    assert "[1/2] a wild one: training diverged in step 2" in said
    assert "left" in said
    monkeypatch.setattr(grids, "run", lambda *_, **__: pytest.fail("it was tried again"))
    assert grid.run([cell]) == [outcome]


class Pretended(Grid):
    """A grid whose cells reach what a function of rate and share of the budget says; None: it diverges."""

    def __init__(self, folder: Path, reached: Mapping[tuple[float, float], float | None], losses: float = 1.0) -> None:
        super().__init__(folder)
        self.reached, self.losses, self.ran = reached, losses, list[tuple[float, float]]()

    def finished(self, cell: Cell) -> bool:
        return self._key(cell) in self.ran

    def _key(self, cell: Cell) -> tuple[float, float]:
        return cell.recipe.optimizer.lr, cell.recipe.budget.pflop

    def outcome(self, cell: Cell) -> Outcome:
        value, folder = self.reached[self._key(cell)], self.folder / cell.place
        folder.mkdir(parents=True, exist_ok=True)
        loss = self.losses * cell.recipe.optimizer.lr
        (folder / "evaluation.json").write_text(json.dumps({"loss": loss}))
        return Outcome(cell, folder, {"value": value, "seconds": 3.0}, "" if value is not None else "diverged")

    def run(self, cells: Any) -> list[Outcome]:
        for cell in cells:
            assert cell.recipe.evaluation.final == "validation"
            self.ran.append(self._key(cell))
        return [self.outcome(cell) for cell in cells]


def test_the_search_halves(tmp_path: Path) -> None:
    """Of 0.0015, 0.005, 0.015 and 0.05 the middle two go on, and the one that was second wins."""
    recipe = tiny(tmp_path, budget={"pflop": 0.4}, optimizer={"lr": 0.01})
    first = {(0.0015, 0.1): 0.4, (0.005, 0.1): 0.7, (0.015, 0.1): 0.6, (0.05, 0.1): None}
    grid = Pretended(tmp_path, {**first, (0.005, 0.2): 0.75, (0.015, 0.2): 0.8})
    first_of_all = ahead(grid, "search", "it", recipe)
    assert [cell.recipe.optimizer.lr for cell in first_of_all.known] == [0.0015, 0.005, 0.015, 0.05]
    assert (len(first_of_all.like), first_of_all.factor, first_of_all.lost) == (2, None, False)
    found = search(grid, "search", "it", recipe)
    assert (found.factor, found.rate, found.at_edge) == (1.5, 0.015, False)
    assert grid.ran == [*first, (0.005, 0.2), (0.015, 0.2)]
    assert found.trials[3] == {"rate": 0.05, "share": 0.25, "accuracy": None, "seconds": 3.0}
    assert sum(budget for _, budget in grid.ran) == pytest.approx(COST * 0.4)
    ended = ahead(grid, "search", "it", recipe)
    assert (len(ended.known), ended.like, ended.factor, ended.lost) == (6, [], 1.5, False)


def test_what_is_equal_in_the_search_is_decided_by_the_loss_and_the_lower_rate(tmp_path: Path) -> None:
    recipe = tiny(tmp_path, budget={"pflop": 0.4}, optimizer={"lr": 0.01})
    same = {(rate, share): 0.5 for rate in (0.0015, 0.005, 0.015, 0.05) for share in (0.1, 0.2)}
    beyond = {(rate, 0.2): 0.49 for rate in (0.0005, 0.15)}
    assert search(Pretended(tmp_path, {**same, **beyond}), "a", "it", recipe).rate == 0.0015
    lower = search(Pretended(tmp_path, {**same, **beyond}, losses=-1.0), "b", "it", recipe)
    assert (lower.rate, lower.at_edge) == (0.05, False)
    assert search(Pretended(tmp_path, {**same, (0.0005, 0.2): 0.5}, losses=0.0), "c", "it", recipe).rate == 0.0015
    grid = Pretended(tmp_path, dict.fromkeys(same))
    with pytest.raises(FaultError, match="it: training diverges at every rate tried"):
        search(grid, "d", "it", recipe)
    nothing = ahead(grid, "d", "it", recipe)
    assert (len(nothing.known), nothing.like, nothing.factor, nothing.lost) == (4, [], None, True)


def test_a_rate_at_an_end_is_followed_as_far_as_it_gets_better(tmp_path: Path) -> None:
    """Upwards once and no further, downwards to the last one that is looked at; a rate beyond that diverges is no winner."""
    recipe = tiny(tmp_path, budget={"pflop": 0.4}, optimizer={"lr": 0.01})
    up = {
        (0.0015, 0.1): 0.1,
        (0.005, 0.1): 0.2,
        (0.015, 0.1): 0.4,
        (0.05, 0.1): 0.3,
        (0.015, 0.2): 0.4,
        (0.05, 0.2): 0.5,
    }
    grid = Pretended(tmp_path, {**up, (0.15, 0.2): 0.6, (0.5, 0.2): 0.6})
    found = search(grid, "up", "it", recipe)
    assert (found.factor, found.rate, found.at_edge) == (15.0, 0.15, False)
    assert grid.ran == [*up, (0.15, 0.2), (0.5, 0.2)]
    assert [trial["rate"] for trial in found.trials[-2:]] == [0.15, 0.5]

    for factor in (15.0, None):
        seen = ahead(grid, "up", "it", recipe)
        assert [cell.recipe.optimizer.lr for cell in seen.known[6:]] == [0.15, 0.5]
        assert (seen.like, seen.factor, seen.lost) == ([], factor, False)
        grid.ran.pop()
    assert search(Pretended(tmp_path, {**up, (0.15, 0.2): None}), "dear", "it", recipe).rate == 0.05

    down = {(0.0015, 0.1): 0.4, (0.005, 0.1): 0.3, (0.015, 0.1): 0.2, (0.05, 0.1): None}
    down |= {(0.0015, 0.2): 0.5, (0.005, 0.2): 0.4, (0.0005, 0.2): 0.6, (0.00015, 0.2): 0.7, (5e-5, 0.2): 0.8}
    found = search(Pretended(tmp_path, down), "down", "it", recipe)
    assert (found.factor, found.rate, found.at_edge) == (0.005, 5e-5, True)


def test_parts_of_budgets_and_multiples_of_rates() -> None:
    assert part_of(Budget(steps=10), 0.25) == Budget(steps=2)
    assert part_of(Budget(steps=1), 0.25) == Budget(steps=1)
    assert part_of(Budget(pflop=0.3), 0.5) == Budget(pflop=0.15)
    assert part_of(Budget(minutes=4), 0.25) == Budget(minutes=1)
    rated = with_rate(tiny(Path("x"), optimizer={"lr": 0.002, "matrix_lr": 0.02}), 5.0).optimizer
    assert (rated.lr, rated.matrix_lr) == (0.01, 0.1)
    assert (len(FACTORS), ROUNDS, COST) == (4, (0.25, 0.5), 2.0)


def test_two_processes_do_not_write_one_study(data: Path, tmp_path: Path) -> None:
    with only_writer(tmp_path / "out"), pytest.raises(UsageError, match="is being written by another process"):
        study(data, tmp_path / "out")
