"""Recordings: plain, packed, cut off, damaged, and not recordings at all."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlsecd.errors import RecordError
from mlsecd.sources.files import read_chunks

LINES = b"".join(b'{"ts": %d, "model": "m"}\n' % number for number in range(5000))


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def delivered(path: Path, **options: int) -> tuple[bytes, str]:
    """What was read, and what was complained of."""
    pieces: list[bytes] = []
    complaint = ""
    try:
        pieces.extend(read_chunks(path, **options))  # type: ignore[arg-type]
    except RecordError as error:
        complaint = str(error)
    assert all(piece.endswith(b"\n") for piece in pieces)
    assert "\n" not in complaint
    return b"".join(pieces), complaint


@pytest.mark.parametrize("chunk", [1, 7, 100, 1 << 20])
def test_plain_and_packed_are_the_same(tmp_path: Path, chunk: int) -> None:
    some = LINES[: 40 * chunk] if chunk < 100 else LINES
    some = some[: some.rfind(b"\n") + 1]
    plain = written(tmp_path / "a.jsonl", some)
    packed = written(tmp_path / "b.whatever", gzip.compress(some))
    assert delivered(plain, chunk_bytes=chunk) == (some, "")
    assert delivered(packed, chunk_bytes=chunk) == (some, "")


def test_the_last_newline_may_be_missing(tmp_path: Path) -> None:
    assert delivered(written(tmp_path / "a", b'{"a": 1}\n{"b": 2}')) == (b'{"a": 1}\n{"b": 2}\n', "")


def test_an_empty_file_is_an_empty_recording(tmp_path: Path) -> None:
    assert delivered(written(tmp_path / "a", b"")) == (b"", "")
    assert delivered(written(tmp_path / "b", gzip.compress(b""))) == (b"", "")


def test_a_byte_order_mark_is_no_part_of_a_record(tmp_path: Path) -> None:
    assert delivered(written(tmp_path / "a", b"\xef\xbb\xbf{}\n")) == (b"{}\n", "")


def test_members_one_after_the_other_and_padding(tmp_path: Path) -> None:
    packed = gzip.compress(b"one\n") + gzip.compress(b"two\n") + b"\0" * 512
    for chunk in (1, 10, 1 << 20):
        assert delivered(written(tmp_path / "a.gz", packed), chunk_bytes=chunk) == (b"one\ntwo\n", "")


def test_garbage_behind_gzip_data_is_told(tmp_path: Path) -> None:
    got, complaint = delivered(written(tmp_path / "a.gz", gzip.compress(b"one\n") + b"garbage"))
    assert got == b"one\n"
    assert "damaged gzip data after 4 unpacked bytes" in complaint


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(at=st.integers(2, len(gzip.compress(LINES, mtime=0)) - 1))
def test_gzip_data_that_was_cut_off_anywhere(tmp_path: Path, at: int) -> None:
    got, complaint = delivered(written(tmp_path / "a.gz", gzip.compress(LINES, mtime=0)[:at]), chunk_bytes=4096)
    assert LINES.startswith(got)
    assert got == b"" or got.endswith(b"\n")
    assert "the gzip data ends early" in complaint
    if at > 3000:
        assert got


def test_gzip_data_that_was_damaged(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(LINES))
    packed[-6] ^= 0xFF  # the checksum, at the very end
    got, complaint = delivered(written(tmp_path / "a.gz", bytes(packed)), chunk_bytes=4096)
    assert LINES.startswith(got)
    assert len(got) > len(LINES) - 8192
    assert "damaged gzip data" in complaint


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"\x28\xb5\x2f\xfd" + b"x" * 50, "zstd -dc"),
        (b"\xfd7zXZ\0" + b"x" * 50, "xz -dc"),
        (b"BZh91AY", "bzip2 -dc"),
        (b"PK\x03\x04" + b"x" * 50, "zip archive"),
        (b"PAR1" + b"x" * 50, "Parquet"),
        (b"\x93NUMPY" + b"x" * 50, "numpy"),
        (b"\x7fELF\x02\x01\x01\0\0", "binary data at byte 7"),
        ("{}\n".encode("utf-16"), "binary data at byte 3"),
    ],
)
def test_what_is_no_recording_is_told_by_its_first_bytes(tmp_path: Path, data: bytes, complaint: str) -> None:
    for packed in (data, gzip.compress(data)):
        got, told = delivered(written(tmp_path / "a", packed))
        assert got == b""
        assert "not JSON lines" in told
        assert complaint in told


def test_lines_before_binary_data_are_delivered(tmp_path: Path) -> None:
    got, complaint = delivered(written(tmp_path / "a", b"one\ntwo\nthr\0\0\0\nfour\n"))
    assert got == b"one\ntwo\n"
    assert complaint.endswith("binary data at byte 11")


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    assert delivered(tmp_path / "none")[1].endswith("none: no such file or directory")
    assert delivered(tmp_path)[1].endswith("is a directory")


def test_progress_is_of_the_file_on_disk(tmp_path: Path) -> None:
    path = written(tmp_path / "a.gz", gzip.compress(LINES))
    told: list[tuple[int, int]] = []
    for _ in read_chunks(path, chunk_bytes=4096, progress=lambda done, total: told.append((done, total))):
        pass
    size = path.stat().st_size
    assert [total for _, total in told] == [size] * len(told)
    assert told[-1][0] == size
    assert [done for done, _ in told] == sorted({done for done, _ in told})


def test_standard_input_and_a_pipe(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom mlsecd.sources.files import read_chunks\n"
        "told = []\n"
        "for piece in read_chunks('-', progress=lambda *one: told.append(one)): sys.stdout.buffer.write(piece)\n"
        "assert {total for _, total in told} == {0}, told\n"
    )
    for data in (LINES, gzip.compress(LINES)):
        done = subprocess.run([sys.executable, "-c", script], input=data, capture_output=True, check=True)
        assert done.stdout == LINES
    reading, writing = os.pipe()
    os.write(writing, b"{}\n")
    os.close(writing)
    assert delivered(Path(f"/proc/self/fd/{reading}")) == (b"{}\n", "")
    os.close(reading)


def peak_of(path: Path, **options: int) -> tuple[int, int]:
    """Bytes delivered, and the most memory that it took."""
    tracemalloc.start()
    try:
        size = sum(len(piece) for piece in read_chunks(path, **options))  # type: ignore[arg-type]
        return size, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_small_file_that_unpacks_to_very_much(tmp_path: Path) -> None:
    packer = zlib.compressobj(9, wbits=31)
    line = packer.compress(b'{"a": 1}\n')
    bomb = line + b"".join(packer.compress(b" " * (1 << 20)) for _ in range(100)) + packer.flush()
    path = written(tmp_path / "bomb.gz", bomb)
    assert path.stat().st_size < 300_000
    size, peak = peak_of(path, chunk_bytes=1 << 18, max_line_bytes=1 << 18)
    assert size == len(b'{"a": 1}\n') + (1 << 18) + 2  # the record, and the beginning of a line that is refused
    assert peak < 4 << 20


def test_a_line_of_a_hundred_megabytes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with path.open("wb") as file:
        for _ in range(100):
            file.write(b"x" * (1 << 20))
        file.write(b"\n{}\n")
    size, peak = peak_of(path)
    assert size == (1 << 20) + 2 + 3
    assert peak < 8 << 20
