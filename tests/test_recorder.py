"""Recordings on a disk that fills."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from mlsecd.errors import RecordError
from mlsecd.recorder import Recorder


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_disk_that_fills_at_the_end_is_one_line(name: str, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / name)
    recorder.close()
    full = Path("/dev/full").open("wb")  # noqa: SIM115 - the recorder closes it
    recorder._raw = full
    recorder._file = gzip.GzipFile(fileobj=full, mode="wb") if name.endswith(".gz") else full  # type: ignore[assignment]
    recorder._file.write(b"x")
    with pytest.raises(RecordError, match=r"^[^\n]*cannot be finished: No space left on device$"):
        recorder.close()
    assert full.closed
