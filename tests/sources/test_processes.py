"""The process table, from a made-up /proc and from the real one."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakeproc import FakeProc, table_line

from mlsecd.detectors._gpu_processes import printable
from mlsecd.errors import SourceError
from mlsecd.meters import Meters
from mlsecd.records import Process, ProcessTable
from mlsecd.sources import procfs
from mlsecd.sources.base import Poll
from mlsecd.sources.processes import Processes, ProcessesParams
from mlsecd.sources.procfs import parse_stat

SOON = 30.0


@pytest.fixture
def fake(tmp_path: Path) -> FakeProc:
    return FakeProc(tmp_path / "proc")


def source(root: Path | str = "/proc", **params: object) -> Processes:
    return Processes(ProcessesParams(procfs=str(root), **params), Meters())  # type: ignore[arg-type]


def table(poll: Poll) -> ProcessTable:
    (record,) = poll.records
    assert isinstance(record, ProcessTable)
    return record


def sweep(one: Processes) -> dict[int, Process]:
    return {process.pid: process for process in table(one.poll(time.monotonic() + SOON)).processes}


def eventually(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


# What a made-up /proc shows


def test_reads_everything_about_a_process(fake: FakeProc) -> None:
    before = time.time()
    fake.add(
        42, name="vllm", exe="/opt/venv/bin/python3", cmdline=b"python3\0-m\0vllm\0--api-key\0s3cr3t-s3cr3t\0", uid=1001
    )
    one = source(fake.root)
    record = table(one.poll(time.monotonic() + SOON))
    assert before <= record.ts <= time.time()
    assert record.complete
    assert record.blind == ()
    assert record.processes[1] == Process(
        pid=42,
        start_ticks=1000,
        ppid=1,
        uid=1001,
        exe="/opt/venv/bin/python3",
        name="vllm",
        cmdline=("python3", "-m", "vllm", "--api-key", "[redacted]"),
        cgroup="/system.slice/server.service",
        unit="server.service",
        container=None,
        listen=(),
        cpu_seconds=300 / os.sysconf("SC_CLK_TCK"),
        rss_bytes=100 * os.sysconf("SC_PAGE_SIZE"),
    )


@pytest.mark.parametrize("exe", ["/usr/bin/x (deleted)", "/memfd:payload (deleted)", "/tmp/a b\n) S 1 ("])
def test_keeps_the_link_as_the_kernel_gives_it(fake: FakeProc, exe: str) -> None:
    fake.add(42, exe=exe)
    assert sweep(source(fake.root))[42].exe == exe


def test_names_that_try_to_break_the_parser(fake: FakeProc) -> None:
    names = ["a) R 1 (b", ") S 0 0 0", "a\nb", "", "((((", "))))", "\udcff\udcfe"]
    for number, name in enumerate(names):
        fake.add(100 + number, name=name)
    found = sweep(source(fake.root))
    assert [found[100 + number].name for number in range(len(names))] == [*names[:-1], "\\xff\\xfe"]
    assert {found[100 + number].start_ticks for number in range(len(names))} == {1000}


@pytest.mark.parametrize("line", [b"", b"1 (x", b"1 (x) S", b"1 (x) S " + b"0 " * 10, b"1 (x) S " + b"x " * 40])
def test_a_line_that_is_no_stat_line(line: bytes, fake: FakeProc) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any ValueError is a refusal
        parse_stat(line)
    fake.add(42)
    (fake.root / "42" / "stat").write_bytes(line)
    one = source(fake.root)
    assert 42 not in sweep(one)
    assert one.meters.value("mlsecd_dropped_total", where="processes", reason="malformed") == 1


def test_kernel_threads_have_no_program_and_are_not_a_blind_spot(fake: FakeProc) -> None:
    fake.add(2, name="kworker/0:1", exe=None, flags=0x00200000, ppid=0, cmdline=b"")
    one = source(fake.root)
    record = table(one.poll(time.monotonic() + SOON))
    assert record.processes[1].exe is None
    assert record.processes[1].cmdline == ()
    assert record.blind == ()


def test_a_process_may_vanish_at_any_read(fake: FakeProc, monkeypatch: pytest.MonkeyPatch) -> None:
    real = procfs.read
    gone: list[str] = []

    def read(path: str, limit: int, dir_fd: int | None = None) -> bytes:
        if dir_fd is not None and path == gone[0]:
            raise ProcessLookupError(3, "No such process")
        return real(path, limit, dir_fd)

    monkeypatch.setattr(procfs, "read", read)
    for at in ("stat", "cmdline", "status"):
        gone[:] = [at]
        with pytest.raises(SourceError):
            sweep(source(fake.root))  # nobody is left: that is no table
    gone[:] = ["none"]
    fake.add(42)
    one = source(fake.root)
    assert set(sweep(one)) == {1, 42}
    fake.remove(42)
    assert set(sweep(one)) == {1}


def test_an_entry_that_is_not_complete_is_no_process(fake: FakeProc) -> None:
    (fake.root / "77").mkdir()
    (fake.root / "self").mkdir()
    (fake.root / "4x").mkdir()
    assert set(sweep(source(fake.root))) == {1}


def test_the_command_line_is_cut_at_its_limit(fake: FakeProc) -> None:
    fake.add(42, cmdline=b"\0".join([b"python", *[b"x" * 100] * 50]) + b"\0")
    cut = sweep(source(fake.root, cmdline_bytes=256))[42].cmdline
    assert cut[:3] == ("python", "x" * 100, "x" * 100)
    assert cut[-1] == "[cut]"
    assert sum(map(len, cut)) <= 256 + len("[cut]")


def test_a_command_line_of_very_many_arguments(fake: FakeProc) -> None:
    fake.add(42, cmdline=b"a\0" * 1000)
    assert sweep(source(fake.root, cmdline_bytes=4096))[42].cmdline == (*["a"] * 256, "[cut]")


def test_four_megabytes_of_terminal_escapes(fake: FakeProc) -> None:
    fake.add(42, name="\x1b[2J", exe="/opt/\x1b]0;owned\x07", cmdline=b"\x1b[31m\0" * ((4 << 20) // 6))
    shown = sweep(source(fake.root))[42]
    assert sum(map(len, shown.cmdline)) <= 2048 + len("[cut]")
    assert shown.cmdline[-1] == "[cut]"
    text = "".join(map(printable, (shown.name or "", shown.exe or "", *shown.cmdline)))
    assert text.isprintable(), "what a person is shown holds no escape"


def test_of_a_hundred_thousand_processes_a_sweep_takes_its_share_in_turn(
    fake: FakeProc, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pid in (40_000, 70_000, 100_000):
        fake.add(pid)

    @contextlib.contextmanager
    def crowd(_: str) -> Iterator[Iterator[SimpleNamespace]]:
        yield (SimpleNamespace(name=str(pid)) for pid in range(100_000, 0, -1))

    one = source(fake.root, max_processes=40_000, depth_seconds=0, listen_seconds=0)
    monkeypatch.setattr(os, "scandir", crowd)
    polls = [one.poll(time.monotonic() + 30) for _ in range(3)]
    assert [{process.pid for process in table(poll).processes} for poll in polls] == [
        {1, 40_000},
        {70_000},
        {1, 100_000},
    ]
    assert [poll.expected for poll in polls] == [100_000] * 3


@pytest.mark.parametrize("raw", [b"", b"\0", b"nginx: master process\0\0\0\0", b"\xff\xfe\0a", b"no end"])
def test_command_lines_that_processes_rewrote(fake: FakeProc, raw: bytes) -> None:
    fake.add(42, cmdline=raw)
    expected = raw.decode("utf-8", "backslashreplace").rstrip("\0").split("\0") if raw else []
    assert sweep(source(fake.root))[42].cmdline == tuple(expected)


def test_what_may_not_be_read_is_not_known(fake: FakeProc, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.add(42)
    real = procfs.read

    def read(path: str, limit: int, dir_fd: int | None = None) -> bytes:
        if path in ("cmdline", "status"):
            raise PermissionError(13, "Permission denied")
        return real(path, limit, dir_fd)

    def read_lines(path: str, limit: int, dir_fd: int) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(procfs, "read", read)
    monkeypatch.setattr(procfs, "_read_lines", read_lines)
    found = sweep(source(fake.root))[42]
    assert (found.uid, found.cmdline, found.cgroup, found.unit) == (None, (), None, None)
    assert (found.exe, found.name) == ("/usr/bin/server", "server")


# What is read again, and when


def reads(one: Processes, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    read: list[int] = []
    real = one._read

    def spy(pid: int, directory: str, now: float) -> object:
        read.append(pid)
        return real(pid, directory, now)

    monkeypatch.setattr(one, "_read", spy)
    return read


def test_a_known_process_is_not_read_again(fake: FakeProc, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.add(42)
    one = source(fake.root)
    read = reads(one, monkeypatch)
    sweep(one)
    assert read == [1, 42]
    sweep(one)  # newcomers a second time: they may have changed their user since
    assert read == [1, 42, 1, 42]
    first = sweep(one)
    assert read == [1, 42, 1, 42]
    fake.stat(42, ticks=1250)
    second = sweep(one)
    assert read == [1, 42, 1, 42]
    assert second[42].cpu_seconds == first[42].cpu_seconds + 1000 / os.sysconf("SC_CLK_TCK")  # type: ignore[operator]
    assert second[1] is first[1]


@pytest.mark.parametrize("change", ["exe", "name", "stack", "start"])
def test_an_exec_is_noticed_at_once(fake: FakeProc, change: str) -> None:
    fake.add(42)
    one = source(fake.root)
    for _ in range(3):
        sweep(one)
    (fake.root / "42" / "cmdline").write_bytes(b"miner\0")
    assert sweep(one)[42].cmdline == ("server", "--port", "8000")
    match change:
        case "exe":
            fake.link(42, "/tmp/miner")
        case "name":
            fake.stat(42, name="miner")
        case "stack":
            fake.stat(42, stack=8192)
        case "start":
            fake.stat(42, start=2000)
    assert sweep(one)[42].cmdline == ("miner",)


def test_everything_is_read_again_now_and_then(fake: FakeProc) -> None:
    fake.add(42)
    one = source(fake.root, refresh_seconds=0)
    sweep(one)
    sweep(one)
    (fake.root / "42" / "cmdline").write_bytes(b"renamed\0")
    (fake.root / "42" / "cgroup").write_text("0::/system.slice/other.service\n")
    found = sweep(one)[42]
    assert (found.cmdline, found.unit) == (("renamed",), "other.service")


# Listening sockets


def test_listening_sockets(fake: FakeProc) -> None:
    fake.add(42)
    fake.net(
        42,
        "tcp",
        [
            table_line("00000000:1F40", "0A", 7001),
            table_line("0100007F:22B8", "0A", 7002),
            table_line("0100007F:1F40", "01", 7003),
        ],
    )
    fake.net(42, "tcp6", [table_line("00000000000000000000000000000000:1F41", "0A", 7004)])
    fake.net(42, "udp", [table_line("00000000:14E9", "07", 7005)])
    for number, inode in enumerate((7001, 7002, 7003, 7004, 7005, 9999)):
        fake.socket(42, inode, number)
    found = sweep(source(fake.root))
    assert found[42].listen == ("tcp:0.0.0.0:8000", "tcp:127.0.0.1:8888", "tcp:[::]:8001", "udp:0.0.0.0:5353")
    assert found[1].listen == ()


def test_listening_sockets_in_another_network_namespace(fake: FakeProc) -> None:
    for pid, namespace, address in ((42, "net:[1]", "00000000:1F40"), (43, "net:[2]", "00000000:0050")):
        fake.add(pid)
        link = fake.root / str(pid) / "ns" / "net"
        link.unlink()
        link.symlink_to(namespace)
        fake.net(pid, "tcp", [table_line(address, "0A", 7001)])
        fake.socket(pid, 7001)
    found = sweep(source(fake.root))
    assert found[42].listen == ("tcp:0.0.0.0:8000",)
    assert found[43].listen == ("tcp:0.0.0.0:80",)


def test_a_socket_that_is_closed_again_goes(fake: FakeProc, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.add(42)
    fake.net(42, "tcp", [table_line("00000000:1F40", "0A", 7001)])
    fake.socket(42, 7001)
    one = source(fake.root, listen_seconds=1e-9)
    assert sweep(one)[42].listen == ("tcp:0.0.0.0:8000",)
    (fake.root / "42" / "fd" / "3").unlink()
    assert sweep(one)[42].listen == ()


def test_between_two_scans_what_was_found_stays(fake: FakeProc) -> None:
    fake.add(42)
    fake.net(42, "tcp", [table_line("00000000:1F40", "0A", 7001)])
    fake.socket(42, 7001)
    one = source(fake.root, listen_seconds=3600)
    for _ in range(4):  # over full reads, too
        assert sweep(one)[42].listen == ("tcp:0.0.0.0:8000",)


def test_a_scan_goes_on_where_it_was_cut(fake: FakeProc, monkeypatch: pytest.MonkeyPatch) -> None:
    for pid in range(40, 44):
        fake.add(pid)
        fake.net(pid, "tcp", [table_line("00000000:1F40", "0A", 7000 + pid)])
        fake.socket(pid, 7000 + pid)
        link = fake.root / str(pid) / "ns" / "net"
        link.unlink()
        link.symlink_to(f"net:[{pid}]")
    monkeypatch.setattr("mlsecd.sources.listeners._MAX_SECONDS", -1.0)  # one process a scan
    one = source(fake.root, listen_seconds=1e-9)
    found = [{pid for pid, process in sweep(one).items() if process.listen} for _ in range(5)]
    assert found == [set(), {40}, {40, 41}, {40, 41, 42}, {40, 41, 42, 43}]
    assert "listen: the last scan was cut, the next one goes on" in table(one.poll(time.monotonic() + SOON)).blind


def test_listening_can_be_switched_off(fake: FakeProc) -> None:
    assert table(source(fake.root, listen_seconds=0).poll(time.monotonic() + SOON)).blind == (
        "listen: off (listen_seconds = 0)",
    )


# Limits


def test_a_table_that_a_limit_cut_says_so_and_the_rest_has_its_turn(fake: FakeProc) -> None:
    for pid in range(10, 19):
        fake.add(pid)
    one = source(fake.root, max_processes=4)
    seen: list[set[int]] = []
    for _ in range(3):
        poll = one.poll(time.monotonic() + SOON)
        record = table(poll)
        assert not record.complete
        assert poll.error == "the process table was cut: max_processes"
        assert (poll.seen, poll.expected) == (4, 10)
        assert "processes: cut (max_processes)" in record.blind
        seen.append({process.pid for process in record.processes})
    assert seen == [{1, 10, 11, 12}, {13, 14, 15, 16}, {17, 18, 1, 10}]
    assert one.meters.value("mlsecd_dropped_total", where="processes", reason="cut") == 18


def test_a_deadline_cuts_and_the_next_sweep_goes_on(fake: FakeProc, monkeypatch: pytest.MonkeyPatch) -> None:
    for pid in range(10, 15):
        fake.add(pid)
    one = source(fake.root, listen_seconds=0)
    ticking = iter(range(10**6))
    monkeypatch.setattr("mlsecd.sources.processes.time.monotonic", lambda: float(next(ticking)))
    record = table(one.poll(3.5))
    assert [process.pid for process in record.processes] == [1, 10, 11]
    assert not record.complete
    record = table(one.poll(1000.0))
    assert [process.pid for process in record.processes] == [1, 10, 11, 12, 13, 14]
    assert record.complete


def test_long_command_lines_cannot_fill_the_memory(fake: FakeProc) -> None:
    for pid in range(10, 60):
        fake.add(pid, cmdline=b"x" * 8000)
    one = source(fake.root, max_table_bytes=1 << 16, cmdline_bytes=8192)
    everyone: set[int] = set()
    for _ in range(20):
        poll = one.poll(time.monotonic() + SOON)
        assert poll.error == "the process table was cut: max_table_bytes"
        assert sum(len("".join(process.cmdline)) for process in table(poll).processes) < 1 << 16
        assert sum(known.weight for known in one._known.values()) <= 2 << 16
        everyone |= {process.pid for process in table(poll).processes}
    assert everyone == {1, *range(10, 60)}


def test_running_out_of_descriptors_is_not_an_empty_host(fake: FakeProc, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.add(42)
    one = source(fake.root)

    def fail(pid: int, now: float) -> object:
        if pid == 42:
            raise OSError(24, "Too many open files")
        return look(pid, now)

    look = one._look
    monkeypatch.setattr(one, "_look", fail)
    poll = one.poll(time.monotonic() + SOON)
    assert not table(poll).complete
    assert poll.error == "the process table was cut: Too many open files"


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no process can be read"):
        source(tmp_path).poll(time.monotonic() + SOON)
    with pytest.raises(SourceError, match="cannot list"):
        source(tmp_path / "none").poll(time.monotonic() + SOON)
    assert "needs Linux" in str(source(tmp_path / "none").supported())
    assert source().supported() is None


def test_a_namespace_of_its_own_and_hidden_processes_are_told(fake: FakeProc) -> None:
    fake.add(42)
    fake.remove(1)
    (fake.root / "self" / "ns").mkdir(parents=True)
    (fake.root / "self" / "ns" / "pid").symlink_to("pid:[4026532000]")
    assert table(source(fake.root).poll(time.monotonic() + SOON)).blind == (
        "processes: other users' are hidden (hidepid or ProtectProc)",
        "processes: those outside this PID namespace are hidden",
    )


UNPRIVILEGED = """
import json, os, sys, time
from mlsecd.meters import Meters
from mlsecd.sources.processes import Processes, ProcessesParams
os.setgroups([]); os.setgid(65534); os.setuid(65534)
table = Processes(ProcessesParams(procfs=sys.argv[1]), Meters()).poll(time.monotonic() + 30).records[0]
print(json.dumps([[p.pid, p.uid, p.exe, p.name, p.cmdline] for p in table.processes if p.pid in (1, os.getpid())]))
print(json.dumps([os.getpid(), len(table.processes), *table.blind]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_without_privileges_it_says_what_it_cannot_see() -> None:
    from_everywhere = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path), PYTHONDONTWRITEBYTECODE="1")
    done = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED, "/proc"], capture_output=True, text=True, check=True, env=from_everywhere
    )
    processes, told = done.stdout.splitlines()
    pid, count, *blind = json.loads(told)
    by_pid = {one[0]: one for one in json.loads(processes)}
    assert by_pid[1][1:4] == [0, None, by_pid[1][3]]  # root's: the user is seen, the program is not
    assert by_pid[pid][2] == os.path.realpath(sys.executable)
    assert any(one.startswith("exe: ") and one.endswith(f" of {count} not permitted (CAP_SYS_PTRACE)") for one in blind)
    assert any(one.startswith("listen: ") and "CAP_DAC_READ_SEARCH" in one for one in blind)


@pytest.mark.skipif(os.geteuid() != 0, reason="root is not kept out")
def test_hidden_directories_are_counted(fake: FakeProc, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.add(42)
    real = procfs.read_stat

    def read_stat(path: str, dir_fd: int | None = None) -> bytes:
        line = real(path, dir_fd)
        if line.startswith(b"42 "):
            raise PermissionError(1, "Operation not permitted")
        return line

    monkeypatch.setattr("mlsecd.sources.processes.read_stat", read_stat)
    assert "processes: 1 of 2 not permitted (hidepid)" in table(source(fake.root).poll(time.monotonic() + SOON)).blind


# The real /proc


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    running: list[subprocess.Popen[bytes]] = []
    yield running
    for one in running:
        with one:
            one.kill()


def test_sees_itself() -> None:
    found = sweep(source())
    own = found[os.getpid()]
    assert own.ppid == os.getppid()
    assert own.uid == os.geteuid()
    assert own.exe == os.path.realpath(f"/proc/{os.getpid()}/exe")
    assert own.rss_bytes is not None
    assert own.rss_bytes > 1 << 20
    assert own.start_ticks == int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])


def test_a_program_that_was_deleted_while_it_runs(tmp_path: Path, started: list[subprocess.Popen[bytes]]) -> None:
    program = tmp_path / "sleep"
    shutil.copy(shutil.which("sleep") or "", program)
    child = subprocess.Popen([program, "100"])
    started.append(child)
    one = source()
    eventually(lambda: sweep(one)[child.pid].exe == str(program))
    program.unlink()
    assert sweep(one)[child.pid].exe == f"{program} (deleted)"


def test_a_program_that_never_was_a_file(started: list[subprocess.Popen[bytes]]) -> None:
    fd = os.memfd_create("payload", 0)
    os.write(fd, Path(shutil.which("sleep") or "").read_bytes())
    child = subprocess.Popen([f"/proc/self/fd/{fd}", "100"], pass_fds=[fd])
    os.close(fd)
    started.append(child)
    one = source()
    eventually(lambda: sweep(one)[child.pid].exe == "/memfd:payload (deleted)")


def test_an_exec_of_the_same_program_with_other_arguments(started: list[subprocess.Popen[bytes]]) -> None:
    again = "import os, sys; sys.stdin.read(1); os.execv(sys.executable, [sys.executable, '-c', 'input()', 'second'])"
    child = subprocess.Popen([sys.executable, "-c", again, "first"], stdin=subprocess.PIPE)
    started.append(child)
    one = source()
    eventually(lambda: sweep(one)[child.pid].cmdline[-1:] == ("first",))
    sweep(one)
    assert child.stdin is not None
    child.stdin.write(b"x")
    child.stdin.flush()
    eventually(lambda: sweep(one)[child.pid].cmdline[-1:] == ("second",))


def test_finds_a_real_listener() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        listen = sweep(source())[os.getpid()].listen
        assert f"tcp:127.0.0.1:{server.getsockname()[1]}" in listen
        assert f"udp:127.0.0.1:{udp.getsockname()[1]}" in listen


def test_a_steady_sweep_reads_one_line_and_one_link_a_process(
    started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    started += [subprocess.Popen(["sleep", "100"]) for _ in range(120)]
    one = source(listen_seconds=0, refresh_seconds=3600)
    for _ in range(3):  # newcomers are read wholly twice
        sweep(one)
    for _ in range(100):  # and looked at closely once, as many in each sweep as its share of the CPU reaches
        if all(known.depth_due > time.monotonic() for known in one._known.values()):
            break
        sweep(one)
    calls: collections.Counter[str] = collections.Counter()
    for name in ("open", "readlink"):
        monkeypatch.setattr(os, name, _counted(getattr(os, name), name, calls))
    count = len(sweep(one))
    assert count > 120
    whole_reads = 10  # of strangers that began meanwhile, at six opens each
    assert calls["open"] <= count + 6 * whole_reads
    assert calls["readlink"] <= count + whole_reads


def _counted(real: Callable[..., Any], name: str, calls: collections.Counter[str]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        calls[name] += 1
        return real(*args, **kwargs)

    return call


def test_a_steady_sweep_costs_little_more_than_the_reads_that_it_needs(
    started: list[subprocess.Popen[bytes]],
) -> None:
    """The absolute figure is `make bench`'s: here both sides slow down alike on a busy machine, and under coverage."""
    started += [subprocess.Popen(["sleep", "100"]) for _ in range(120)]
    one = source(listen_seconds=0, refresh_seconds=3600)
    floors, costs = [], []
    for _ in range(8):
        pids = sorted(sweep(one))
        start = time.thread_time()
        for pid in pids:
            with contextlib.suppress(OSError):
                os.readlink(f"/proc/{pid}/exe")  # noqa: PTH115 - the bare call
                line = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
                os.read(line, 4096)
                os.close(line)
        floors.append((time.thread_time() - start) / len(pids))
        start = time.thread_time()
        count = len(sweep(one))
        costs.append((time.thread_time() - start) / count)
    ratio = min(costs[2:]) / min(floors[2:])
    print(f"\na sweep costs {ratio:.1f} times its bare reads")
    assert ratio < 5
