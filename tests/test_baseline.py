from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mlsecd import baseline
from mlsecd.detectors.base import Section
from mlsecd.errors import BaselineError


def section() -> Section:
    return Section({"models": ["a"]}, {"mean": np.arange(4.0), "counts": np.arange(3, dtype=np.int32)})


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "b.npz"
    digest = baseline.write(path, {"mlsecd": "1"}, {"x": section()})
    loaded = baseline.read(path, digest)
    assert loaded.digest == digest
    assert loaded.header["mlsecd"] == "1"
    assert loaded.sections["x"].header == {"models": ["a"]}
    np.testing.assert_array_equal(loaded.sections["x"].arrays["mean"], np.arange(4.0))
    assert loaded.sections["x"].arrays["counts"].dtype == np.int32


def test_another_digest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "b.npz"
    baseline.write(path, {}, {"x": section()})
    with pytest.raises(BaselineError, match="the configuration pins"):
        baseline.read(path, "0" * 64)


def test_damage_at_any_place_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "b.npz"
    baseline.write(path, {}, {"x": section()})
    whole = path.read_bytes()
    for cut in range(0, len(whole), 37):
        path.write_bytes(whole[:cut])
        with pytest.raises(BaselineError) as caught:
            baseline.read(path)
        assert "\n" not in str(caught.value)


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "b.npz"
    np.savez(path, header=np.array([object()], dtype=object))
    with pytest.raises(BaselineError, match="damaged, or not a baseline"):
        baseline.read(path)
    with pytest.raises(BaselineError, match="object arrays"):
        baseline.write(path, {}, {"x": Section({}, {"o": np.array([object()])})})


def test_a_failed_write_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "b.npz"
    digest = baseline.write(path, {}, {"x": section()})
    with pytest.raises(BaselineError, match="cannot be written"):
        baseline.write(tmp_path / "none" / "b.npz", {}, {})
    assert baseline.read(path).digest == digest
    assert [entry.name for entry in tmp_path.iterdir()] == ["b.npz"]
