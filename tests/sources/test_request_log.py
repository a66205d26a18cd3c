"""Logs that grow, rotate, are truncated, vanish, and try to do harm."""

from __future__ import annotations

import json
import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlsecd.errors import StateError
from mlsecd.meters import Meters
from mlsecd.records import RequestBatch
from mlsecd.sources.base import Poll
from mlsecd.sources.request_log import RequestLog, RequestLogParams
from mlsecd.sources.tail import Tail


def line(number: int, **more: object) -> bytes:
    return json.dumps({"ts": float(number), "model": "m", **more}).encode() + b"\n"


def lines(*numbers: int) -> bytes:
    return b"".join(line(number) for number in numbers)


def append(path: Path, data: bytes) -> None:
    with path.open("ab", buffering=0) as file:
        file.write(data)


class Log:
    """A source under test, and what it brought."""

    def __init__(self, *paths: Path | str, state: dict[str, object] | None = None, **params: object) -> None:
        self.meters = Meters()
        made = RequestLogParams(paths=tuple(map(str, paths)), **params)  # type: ignore[arg-type]
        self.source = RequestLog(made, self.meters)
        if state is not None:
            self.source.resume(json.loads(json.dumps(state)))  # as it comes back from a file
        self.poll = Poll()

    def look(self) -> list[int]:
        """The requests that one poll brings, by their ts."""
        self.source._search_due = 0.0
        self.poll = self.source.poll(time.monotonic() + 30)
        return [int(ts) for batch in self.poll.records if isinstance(batch, RequestBatch) for ts in batch.ts.tolist()]

    def dropped(self, reason: str) -> float:
        return self.meters.value("mlsecd_dropped_total", where="request_log", reason=reason)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "requests.jsonl"


@pytest.fixture
def settle(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Nobody writes to a renamed file any more."""
    return lambda: monkeypatch.setattr("mlsecd.sources.request_log._LINGER_SECONDS", -1.0)


def test_reads_what_is_added_and_nothing_twice(path: Path) -> None:
    path.write_bytes(lines(1, 2))
    log = Log(path)
    assert log.look() == []
    append(path, lines(3))
    assert log.look() == [3]
    append(path, lines(4, 5))
    assert log.look() == [4, 5]
    assert log.look() == []
    assert (log.poll.seen, log.poll.expected, log.poll.error) == (1, 1, None)


def test_reads_what_was_there_where_told_to(path: Path) -> None:
    path.write_bytes(lines(1, 2))
    assert Log(path, from_start=True).look() == [1, 2]


def test_a_line_that_is_being_written_when_we_come(path: Path) -> None:
    path.write_bytes(lines(1) + line(2)[:10])
    log = Log(path)
    assert log.look() == []
    append(path, line(2)[10:] + lines(3))
    assert log.look() == [2, 3]


def test_a_line_waits_for_its_newline(path: Path) -> None:
    path.touch()
    log = Log(path)
    log.look()
    for byte in line(1)[:-1]:
        append(path, bytes([byte]))
        assert log.look() == []
    append(path, b"\n")
    assert log.look() == [1]
    assert log.dropped("json") == 0


def test_rotation_by_rename(path: Path, settle: Callable[[], None]) -> None:
    path.touch()
    log = Log(path)
    log.look()
    append(path, lines(1))
    path.rename(f"{path}.1")
    append(Path(f"{path}.1"), lines(2))  # a server writes on until it is told to reopen
    path.write_bytes(lines(4))
    assert log.look() == [1, 2, 4]  # the old one first
    append(Path(f"{path}.1"), lines(3))
    append(path, lines(5))
    assert log.look() == [3, 5]
    settle()
    log.look()
    assert len(log.source._leaving) == 0
    append(path, lines(6))
    assert log.look() == [6]


def test_a_long_old_file_is_read_to_its_end_before_the_new_one(path: Path) -> None:
    path.touch()
    log = Log(path)
    log.look()
    append(path, lines(*range(20_000)))
    path.rename(f"{path}.1")
    path.write_bytes(lines(20_000))
    assert log.look() == list(range(20_001))


def test_rotation_twice_between_two_looks(path: Path) -> None:
    path.touch()
    log = Log(path)
    log.look()
    append(path, lines(1))
    path.rename(f"{path}.1")
    path.write_bytes(b"")
    log.look()
    Path(f"{path}.1").rename(f"{path}.2")
    append(path, lines(2))
    path.rename(f"{path}.1")
    path.write_bytes(lines(3))
    assert log.look() == [2, 3]


def test_the_last_line_of_a_rotated_file_may_lack_its_newline(path: Path, settle: Callable[[], None]) -> None:
    path.touch()
    log = Log(path)
    log.look()
    append(path, lines(1) + line(2)[:-1])
    path.rename(f"{path}.1")
    assert log.look() == [1]
    settle()
    assert log.look() == [2]


@pytest.mark.parametrize("again", [lines(11), lines(11, 12, 13, 14)])  # shorter, and longer than before
def test_truncation(path: Path, again: bytes) -> None:
    path.write_bytes(lines(1))
    log = Log(path)
    log.look()
    append(path, lines(2, 3)[:-5])
    assert log.look() == [2]
    path.write_bytes(again)
    assert log.look() == [int(json.loads(one)["ts"]) for one in again.splitlines()]
    assert log.meters.value("mlsecd_log_truncations_total", source="request_log") == 1


def test_vanishing_and_coming_back(path: Path, settle: Callable[[], None]) -> None:
    path.touch()
    log = Log(path)
    log.look()
    append(path, lines(1))
    path.unlink()
    assert log.look() == [1]  # what was written before
    assert log.poll.error == f"{path}: no such file or directory"
    assert log.poll.seen == 0
    assert log.poll.expected == 1
    settle()
    assert log.look() == []
    path.write_bytes(lines(2))
    assert log.look() == [2]
    assert log.poll.error is None


def test_a_file_that_appears_later_is_read_whole(path: Path) -> None:
    log = Log(path)
    assert log.look() == []
    path.write_bytes(lines(1, 2))
    assert log.look() == [1, 2]


def test_one_bad_path_does_not_keep_the_others(tmp_path: Path, path: Path) -> None:
    path.write_bytes(lines(1))
    (tmp_path / "secret").write_bytes(lines(66))
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "fifo")
    bad = {
        "dir": tmp_path,
        "none": tmp_path / "none",
        "link": tmp_path / "link",
        "fifo": tmp_path / "fifo",
        "null": Path("/dev/null"),
    }
    for name, one in bad.items():
        log = Log(one, path, from_start=True)
        assert log.look() == [1], name
        assert log.poll.error is not None
        assert log.poll.error.startswith(f"{one}: ")
    assert Log(tmp_path / "link", from_start=True, follow_symlinks=True).look() == [66]


def test_patterns(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(1))
    log = Log(tmp_path / "*.jsonl*", from_start=True)
    assert log.look() == [1]
    (tmp_path / "b.jsonl").write_bytes(lines(2))
    (tmp_path / "b.jsonl.gz").write_bytes(b"\x1f\x8b")
    (tmp_path / "sub.jsonl").mkdir()
    assert log.look() == [2]
    assert log.poll.error is None
    assert log.poll.seen == 2


def test_a_pattern_that_finds_rotated_files_again(tmp_path: Path, settle: Callable[[], None]) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"")
    log = Log(tmp_path / "*")
    log.look()
    append(path, lines(1))
    path.rename(tmp_path / "a.log.1")
    path.write_bytes(lines(2))
    assert log.look() == [1, 2]
    settle()
    for _ in range(3):
        assert log.look() == []
    append(tmp_path / "a.log.1", lines(3))
    assert log.look() == [3]


def test_no_more_files_than_told(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.jsonl").write_bytes(lines(number))
    log = Log(tmp_path / "*.jsonl", from_start=True, max_files=3)
    assert log.look() == [0, 1, 2]
    assert "more than 3 files match" in str(log.poll.error)
    assert (log.poll.seen, log.poll.expected) == (3, 5)
    log.look()
    assert "more than 3 files match" in str(log.poll.error)


# Restarts


def test_goes_on_after_a_restart(path: Path) -> None:
    path.write_bytes(lines(1))
    first = Log(path)
    first.look()
    append(path, lines(2) + line(3)[:7])
    assert first.look() == [2]
    first.source.close()
    append(path, line(3)[7:] + lines(4))
    assert Log(path, state=first.source.state()).look() == [3, 4]


def test_a_state_that_is_kept_before_the_first_poll_is_not_lost(path: Path) -> None:
    path.write_bytes(lines(1))
    first = Log(path)
    first.look()
    state = first.source.state()
    assert json.dumps(Log(path, state=state).source.state()) == json.dumps(state)


def test_a_file_that_was_rotated_while_we_were_away(path: Path) -> None:
    path.write_bytes(lines(1))
    first = Log(path)
    first.look()
    append(path, lines(2))
    path.rename(f"{path}.1")
    path.write_bytes(lines(3))
    second = Log(path, state=first.source.state())
    assert second.look() == [2, 3]
    assert second.look() == []


def test_an_inode_that_was_given_to_another_file(path: Path) -> None:
    path.write_bytes(lines(1, 2))
    first = Log(path)
    first.look()
    path.write_bytes(lines(8, 9, 10))  # the same inode, as after removing and making anew
    second = Log(path, state=first.source.state())
    assert second.look() == [8, 9, 10]
    assert second.dropped("lost_place") == 1


def test_a_file_that_is_gone_for_good(path: Path) -> None:
    path.write_bytes(lines(1))
    first = Log(path)
    first.look()
    state = first.source.state()
    first.source.close()
    path.unlink()
    (path.parent / "other").write_bytes(b"")  # may get the inode
    path.write_bytes(lines(2))
    second = Log(path, state=state)
    assert second.look() == [2]  # made while we were away: read whole


def test_a_restart_inside_a_line_that_is_too_long(path: Path) -> None:
    path.touch()
    first = Log(path, max_line_bytes=1024)
    first.look()
    append(path, b"x" * 300_000)
    assert first.look() == []
    assert first.dropped("too_long") == 1
    append(path, b"x" * 3000 + b"\n" + lines(1))
    second = Log(path, max_line_bytes=1024, state=first.source.state())
    assert second.look() == [1]
    assert sum(second.meters.counters().get("mlsecd_dropped_total", {}).values()) == 0


def test_a_name_that_is_no_text_goes_on_after_a_restart(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jsonl"))
    path.write_bytes(lines(1))
    first = Log(tmp_path / "*.jsonl", from_start=True)
    assert first.look() == [1]
    append(path, lines(2))
    state = first.source.state()
    json.dumps(state).encode()  # no lone surrogate
    assert Log(tmp_path / "*.jsonl", state=state).look() == [2]
    path.unlink()
    first.look()
    gone = Log(path)
    gone.look()
    assert (gone.poll.error or "").encode().startswith(os.fsencode(tmp_path) + b"/caf\\xe9.jsonl: ")


@pytest.mark.parametrize("path", ["", "/var/log/x", "2F", "2f 78", "2f00", "2", 3])
def test_a_state_with_a_damaged_path_is_refused(path: object) -> None:
    with pytest.raises(StateError):
        Log("/x", state={"patterns": [path]})


def test_a_state_that_makes_no_sense(path: Path) -> None:
    with pytest.raises(StateError, match="request_log"):
        Log(path, state={"places": [["a", "b"]]})


def test_a_path_that_is_no_longer_configured_is_not_read(path: Path, tmp_path: Path) -> None:
    path.write_bytes(lines(1))
    first = Log(path)
    first.look()
    append(path, lines(2))
    assert Log(tmp_path / "other", state=first.source.state()).look() == []


class Writer:
    """A server that writes a log, line by line and in parts, and has it rotated."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.touch()
        self.number = 0
        self.held = b""
        self.rotated = 0

    def whole(self) -> None:
        self.number += 1
        append(self.path, self.held + line(self.number))
        self.held = b""

    def busy(self) -> None:
        for _ in range(50):
            self.whole()

    def part(self) -> None:
        if not self.held:
            self.number += 1
            append(self.path, line(self.number)[:9])
            self.held = line(self.number)[9:]

    def rotate(self) -> None:
        append(self.path, self.held)
        self.held = b""
        self.rotated += 1
        self.path.rename(f"{self.path}.{self.rotated}")
        self.path.touch()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(steps=st.lists(st.sampled_from(["whole", "busy", "part", "rotate", "look", "restart"]), min_size=5, max_size=40))
def test_nothing_is_lost_or_read_twice(tmp_path_factory: pytest.TempPathFactory, steps: list[str]) -> None:
    writer = Writer(tmp_path_factory.mktemp("log") / "a.log")
    log = Log(writer.path)
    got = log.look()
    for step in steps:
        if step == "restart":
            state = log.source.state()
            log.source.close()
            log = Log(writer.path, state=state)
        elif step == "look":
            got += log.look()
        else:
            if step == "rotate":
                got += log.look()  # two rotations between two looks lose the file between
            getattr(writer, step)()
    append(writer.path, writer.held)
    got += log.look()
    log.source.close()
    assert got == list(range(1, writer.number + 1))


# Harm


def test_a_line_of_a_hundred_megabytes(path: Path) -> None:
    path.touch()
    log = Log(path)
    log.look()
    with path.open("ab") as file:
        file.write(lines(1))
        for _ in range(100):
            file.write(b"x" * (1 << 20))
        file.write(b"\n" + lines(2))
    tracemalloc.start()
    got = [ts for _ in range(8) for ts in log.look()]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert got == [1, 2]
    assert log.dropped("too_long") == 1
    assert peak < 16 << 20


def test_a_terabyte_of_nothing(path: Path) -> None:
    path.write_bytes(lines(1))
    log = Log(path)
    log.look()
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    append(path, b"\n" + lines(2))
    got: list[int] = []
    for _ in range(5):
        got += log.look()
    assert got == [2]


def test_a_busy_log_does_not_starve_another(tmp_path: Path) -> None:
    busy, quiet = tmp_path / "a", tmp_path / "b"
    busy.touch()
    quiet.touch()
    log = Log(busy, quiet, max_bytes_per_poll=1 << 19)
    log.look()
    append(busy, lines(*range(100, 60_100)))
    append(quiet, lines(1))
    first = log.look()
    assert 1 in first
    assert len(first) < 30_000
    lag = log.meters.value("mlsecd_source_lag_bytes", source="request_log")
    assert lag > 500_000
    while log.meters.value("mlsecd_source_lag_bytes", source="request_log"):
        first += log.look()
    assert sorted(first) == [1, *range(100, 60_100)]


def test_a_log_cannot_forge_other_kinds_or_a_place_in_the_order(path: Path) -> None:
    path.touch()
    log = Log(path)
    log.look()
    append(path, b'{"kind": "gpu", "ts": 1, "gpu": "GPU-1"}\n{"kind": "source", "ts": 1, "source": "x", "ok": true}\n')
    append(path, line(2, seq=2**62) + line(3))
    assert log.look() == [2, 3]
    assert log.dropped("kind") == 2
    (batch,) = log.poll.records
    assert isinstance(batch, RequestBatch)
    assert batch.seq.tolist() == [-1, -1]


def test_descriptors_are_given_back(tmp_path: Path, settle: Callable[[], None]) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    path = tmp_path / "a.log"
    path.touch()
    log = Log(path, tmp_path / "none")
    log.look()
    settle()
    for number in range(20):
        path.rename(f"{path}.{number}")
        path.touch()
        log.look()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 3
    log.source.close()
    log.source.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_rotations_faster_than_we_let_go(path: Path) -> None:
    path.touch()
    log = Log(path, max_files=3)
    log.look()
    got = []
    for number in range(1, 8):
        append(path, lines(number))
        path.rename(f"{path}.{number}")
        path.touch()
        got += log.look()
        assert len(log.source._leaving) <= 3
    assert got == list(range(1, 8))
    assert log.dropped("rotated_away") == 0  # all were read to their end
    append(path, lines(*range(60_000)))
    log.source._params = RequestLogParams(paths=(str(path),), max_files=3, max_bytes_per_poll=1 << 16)
    for number in range(8, 12):
        path.rename(f"{path}.{number}")
        path.touch()
        log.look()
    assert log.dropped("rotated_away") == 1


def test_a_disk_that_fails(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other"
    path.touch()
    other.touch()
    log = Log(path, other)
    log.look()
    append(path, lines(1))
    append(other, lines(2))
    for name in ("read", "check"):
        real = getattr(Tail, name)

        def fail(self: Tail, real: Callable[[Tail], object] = real) -> object:
            if self.path == str(path):
                raise OSError(5, "Input/output error")
            return real(self)

        with monkeypatch.context() as patch:
            patch.setattr(Tail, name, fail)
            assert log.look() == ([2] if name == "read" else [])
            assert log.poll.error == f"{path}: input/output error"
    assert log.look() == [1]


def test_what_it_remembers_of_finished_files_is_bounded(
    path: Path, settle: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlsecd.sources.request_log._MAX_FINISHED", 5)
    settle()
    path.touch()
    log = Log(path)
    log.look()
    for number in range(20):
        path.rename(f"{path}.{number}")
        path.touch()
        log.look()
    state = log.source.state()
    assert len(state["finished"]) == 5
    assert len(Log(path, state=state).source._finished) == 0
    again = Log(path, state=state)
    again.look()
    assert len(again.source._finished) == 5


def test_it_needs_paths() -> None:
    assert Log().source.supported() == "sources.request_log.paths is empty"
    assert Log("/x").source.supported() is None
    assert RequestLogParams().enabled is False
