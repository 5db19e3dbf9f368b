"""Pages that name tests and files name some that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


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
    for path in set(re.findall(r"`((?:core|models|data|weights|evaluation|training|reports|verbs)/\w+\.py)`", page)):
        assert (ROOT / "src/patchword" / path).is_file(), path
    for path in set(re.findall(r"`((?:tests|tools|bench)/[\w.]+)`", page)):
        assert (ROOT / path).exists(), path
