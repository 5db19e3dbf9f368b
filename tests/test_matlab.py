"""Matlab's files as SciPy reads them, where they hold what data sets are published in; a sentence where not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from scipy.io import loadmat, savemat

from patchword.core.errors import DataError
from patchword.data.formats import matlab

THEIRS = sorted((Path(scipy.io.__file__).parent / "matlab/tests/data").glob("test*.mat"))


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, str):
        return np.size(theirs) == 0 if not ours else ours == str(np.squeeze(theirs))
    if isinstance(ours, dict):
        return all(same(value, theirs[field]) for field, value in ours.items())
    if ours.dtype == object:
        pairs = zip(ours.reshape(-1), np.asarray(theirs).reshape(-1), strict=True)
        return ours.shape == theirs.shape and all(same(mine, its) for mine, its in pairs)
    return ours.shape == np.shape(theirs) and np.array_equal(ours, theirs)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["u1", "i2", "u2", "i4", "f4", "f8", "i8"])
def test_numbers_of_every_kind(tmp_path: Path, kind: str, packed: bool) -> None:
    values = (np.random.default_rng(3).integers(-99, 100, (2, 3, 5, 7)) % 120).astype(kind)
    content = {
        "X": values,
        "y": values[:, :1, 0, 0].astype("u1"),
        "empty": np.zeros((0, 3), kind),
        "text": "pink primrose",
    }
    savemat(tmp_path / "a.mat", content, do_compression=packed)
    read = matlab.read(tmp_path / "a.mat")
    assert read.keys() == content.keys()
    assert read["text"] == "pink primrose"
    for name in ("X", "y", "empty"):
        assert read[name].dtype == content[name].dtype
        assert np.array_equal(read[name], content[name])


@pytest.mark.skipif(not THEIRS, reason="this SciPy came without its tests")
def test_what_matlab_itself_has_written() -> None:
    """Files of Matlab 5 to 7.4 on four machines, both byte orders: the same as by SciPy, or refused in one sentence."""
    read = refused = 0
    for path in THEIRS:
        try:
            ours = matlab.read(path)
        except DataError as error:
            assert str(path) in str(error)
            refused += 1
            continue
        theirs = loadmat(path, chars_as_strings=True)
        for name, value in ours.items():
            assert same(value, theirs[name]), (path, name)
        read += bool(ours)
    assert read > 40, (read, refused)


def test_every_end_and_every_flipped_byte_is_an_array_or_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    savemat(path, {"labels": np.array([[1, 2, 1]], np.uint8), "t": np.array([(5, "n1")], [("a", "O"), ("b", "O")])})
    content = path.read_bytes()
    for at in range(len(content)):
        for changed in (content[:at], content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]):
            path.write_bytes(changed)
            try:
                matlab.read(path)
            except DataError as error:
                assert str(error).startswith(f"{path} is not a Matlab file that can be read")
