"""Pages that name tests and files name some that exist."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from patchword.core import errors

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]


def test_every_promise_names_a_test_that_exists() -> None:
    page = (ROOT / "docs/reliability.md").read_text("utf-8")
    code = "".join(file.read_text("utf-8") for file in (ROOT / "tests").glob("test_*.py"))
    rows = [line for line in page.splitlines() if re.match(r"\| \d+ \|", line)]
    assert [int(row.split("|")[1]) for row in rows] == list(range(1, 12))
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row)
        assert named, row
        for name in named:
            assert f"def {name}(" in code, name


def test_the_table_of_rooms_names_files_that_exist() -> None:
    page = (ROOT / "docs/architecture.md").read_text("utf-8")
    for path in set(
        re.findall(r"`((?:core|models|data|weights|evaluation|explanation|training|reports|verbs)/\w+\.py)`", page)
    ):
        assert (ROOT / "src/patchword" / path).is_file(), path
    for path in set(re.findall(r"`((?:tests|tools|bench)/[\w.]+)`", page)):
        assert (ROOT / path).exists(), path


def test_every_tool_and_every_bench_has_its_place_in_the_architecture() -> None:
    page = (ROOT / "docs/architecture.md").read_text("utf-8")
    benches = {file.name for file in (ROOT / "bench").glob("*.py")} - {"__init__.py"}
    tools = {f"tools/{file.name}" for file in (ROOT / "tools").iterdir() if file.is_file()}
    assert [name for name in sorted(benches | tools) if f"`{name}`" not in page] == []


def test_the_loop_that_restarts_goes_on_after_signals_alone(tmp_path: Path) -> None:
    page = (ROOT / "docs/reliability.md").read_text("utf-8")
    [loop] = re.findall(r"```sh\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "sleep").write_text("#!/bin/sh\n")
    # Ends as the first line of `ends` says, and takes that line away.
    stub = "#!/bin/sh\nend=$(head -n 1 ends)\nsed -i 1d ends\ncase $end in -*) kill $end $$ ;; *) exit $end ;; esac\n"
    (tmp_path / "patchword").write_text(stub)
    for name in ("sleep", "patchword"):
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    for ends, code, left in (
        (["143", "-KILL", "-TERM", "0", "9"], 0, "9\n"),
        (["143", "2", "0"], 2, "0\n"),
        (["3", "0"], 3, "0\n"),
        (["4", "0"], 4, "0\n"),
        (["130", "0"], 130, "0\n"),
    ):
        (tmp_path / "ends").write_text("\n".join(ends) + "\n")
        ended = subprocess.run(["sh", "-c", loop], cwd=tmp_path, env={"PATH": path}, capture_output=True, check=False)
        assert (ended.returncode, (tmp_path / "ends").read_text()) == (code, left), ends


def test_the_codes_of_errors_are_those_of_the_page() -> None:
    page = (ROOT / "docs/reliability.md").read_text("utf-8")
    codes = re.findall(r"^\| `(\d+)` \|", page, flags=re.MULTILINE)
    for kind in (errors.UsageError, errors.DataError, errors.FaultError, errors.DivergedError, errors.StoppedError):
        assert str(kind.exit_code) in codes, kind
    assert codes == ["0", "2", "3", "4", "130", "143", "137", "1"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """To a file beside the page, and where a heading is named, to one that it has."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if "://" in target:
            continue
        name, _, heading = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{page.name}: {target}"
        if heading:
            titles = re.findall(r"^#+ (.+)$", file.read_text("utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in slugs, f"{page.name}: {target}"
