"""The units as systemd itself reads them, and the daemon within what they allow."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daemons import Daemon, until
from sandbox import Unit, call_sets, command
from support import free_row

from mlsecd import plugins
from mlsecd.sources.request_socket import RequestSocketParams
from mlsecd.sources.unix_sockets import inherited
from tests.fakenvml import FakeNvml, build

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "systemd"
SERVICE, SOCKET = UNITS / "mlsecd.service", UNITS / "mlsecd.socket"
EXAMPLES = sorted((UNITS / "mlsecd.service.d").glob("*.conf.example"))
README = (UNITS / "README.md").read_text("utf-8")
LIMIT = 2.2  # the exposure that the default unit promises
SCORED_BY = 252  # the systemd whose scores the files state; others weigh a little differently


@pytest.fixture(scope="module")
def tool(in_ci: bool) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs one of systemd's offline tools, and util-linux's setpriv."""

    def run(*args: str | Path) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "LC_ALL": "C", "SYSTEMD_LOG_LEVEL": "notice", "SYSTEMD_COLORS": "0"}
        return subprocess.run([*map(str, args)], capture_output=True, text=True, check=False, env=env, timeout=60)

    for name in ("systemd-analyze", "systemd-sysusers", "systemd-tmpfiles", "setpriv"):
        if shutil.which(name) is None:
            missing = f"{name} is not installed: apt-get install systemd util-linux"
            pytest.fail(missing) if in_ci else pytest.skip(missing)
    return run


@pytest.fixture
def units(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder with the units and some drop-ins; programs that this machine lacks become ``true``."""

    def make(*examples: Path) -> Path:
        folder = tmp_path / "units"
        folder.mkdir()
        for file in (SERVICE, SOCKET):
            text = re.sub(
                r"^(Exec\w+=)(/\S+)",
                lambda found: found[1] + (found[2] if Path(found[2]).exists() else "/usr/bin/true"),
                file.read_text("utf-8"),
                flags=re.MULTILINE,
            )
            (folder / file.name).write_text(text, "utf-8")
        drop_ins = folder / "mlsecd.service.d"
        drop_ins.mkdir()
        for example in examples:
            shutil.copy(example, drop_ins / example.name.removesuffix(".example"))
        return folder

    return make


def _score(tool: Callable[..., subprocess.CompletedProcess[str]], folder: Path) -> float:
    done = tool("systemd-analyze", "security", "--offline=true", "--no-pager", folder / "mlsecd.service")
    found = re.search(r"Overall exposure level for mlsecd\.service: ([0-9.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    return float(found[1])


@pytest.mark.parametrize("examples", [[], *[[one] for one in EXAMPLES], EXAMPLES], ids=len)
def test_systemd_has_nothing_to_say(tool, units, examples: list[Path]) -> None:
    folder = units(*examples)
    done = tool("systemd-analyze", "verify", "--man=no", folder / "mlsecd.service", folder / "mlsecd.socket")
    assert (done.returncode, done.stderr, done.stdout) == (0, "", ""), "an unknown key is a warning, and exits 0"


def test_a_misspelt_key_would_be_noticed(tool, units) -> None:
    folder = units()
    service = folder / "mlsecd.service"
    service.write_text(service.read_text("utf-8").replace("ProtectHome=", "ProtektHome="), "utf-8")
    assert "ProtektHome" in tool("systemd-analyze", "verify", "--man=no", service).stderr


def test_the_default_keeps_its_promise(tool, units) -> None:
    service = units() / "mlsecd.service"
    limit = f"--threshold={LIMIT * 10:.0f}"
    done = tool("systemd-analyze", "security", "--offline=true", "--no-pager", limit, service)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda one: one.name.split(".")[0])
def test_each_drop_in_states_its_price(tool, units, example: Path) -> None:
    stated = re.search(r"^# Exposure: ([0-9.]+) \(([0-9.]+) without\)\.$", example.read_text("utf-8"), re.MULTILINE)
    row = re.search(rf"^\| `{example.name.split('.')[0]}` \| ([0-9.]+) \|", README, re.MULTILINE)
    assert stated, "the drop-in says what it costs"
    assert row, "the README says what it costs"
    assert float(stated[2]) == LIMIT
    assert stated[1] == row[1]
    _agrees(tool, _score(tool, units(example)), float(row[1]))


def test_drop_ins_name_detectors_that_exist_and_docs_say_the_same() -> None:
    """Which detectors see more by which drop-in: in the file, in the README, and in docs/host.md."""
    host = (ROOT / "docs" / "host.md").read_text("utf-8")
    known, named = set(plugins.detectors()), {}
    for example in EXAMPLES:
        name = example.name.split(".")[0]
        words = set(re.findall(r"\b[a-z]+_[a-z_]+\b", example.read_text("utf-8")))
        threats = {one.partition("_")[0] for one in known}
        suspects = {one for one in words if one.partition("_")[0] in threats} - {"gpu_", "server_metrics"}
        assert suspects <= known, f"{name}: {suspects - known}"
        named[name] = words & known
    (row,) = re.findall(r"^\| `20-fd` .*$", README, re.MULTILINE)
    assert named["20-fd"] == {one for one in known if one in row} != set()
    wants_fd = {line.split("`")[1] for line in host.splitlines() if line.startswith("|") and "`fd`" in line}
    assert wants_fd <= named["20-fd"]
    (row,) = re.findall(r"^\| `10-home` .*$", README, re.MULTILINE)
    assert named["10-home"] == {one for one in known if one in row}


def test_the_price_of_none_and_of_all(tool, units) -> None:
    assert re.search(rf"^\| none \| {LIMIT} \|", README, re.MULTILINE)
    together = re.search(r"All six together score ([0-9]\.[0-9])", README)
    assert together
    assert len(EXAMPLES) == 6
    _agrees(tool, _score(tool, units(*EXAMPLES)), float(together[1]))


def _agrees(tool: Callable[..., subprocess.CompletedProcess[str]], score: float, stated: float) -> None:
    version = int(tool("systemd-analyze", "--version").stdout.split()[1])
    assert abs(score - stated) <= (0.0 if version == SCORED_BY else 0.3)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("Type", "notify"),
        ("NotifyAccess", "main"),
        ("Restart", "on-failure"),
        ("StartLimitIntervalSec", "0"),
        ("KillMode", "control-group"),
        ("User", "mlsecd"),
        ("Group", "mlsecd"),
        ("MemoryDenyWriteExecute", "no"),
        ("NoNewPrivileges", "yes"),
        ("PrivateUsers", "no"),
        ("PrivateNetwork", "no"),
        ("ProtectProc", "default"),
        ("ProcSubset", "all"),
        ("ProtectHome", "yes"),
        ("ProtectSystem", "strict"),
        ("RuntimeDirectoryPreserve", "yes"),
    ],
)
def test_what_the_daemon_needs(key: str, value: str) -> None:
    assert Unit(SERVICE).last(key) == value


def test_capabilities_and_address_families() -> None:
    unit = Unit(SERVICE)
    assert unit.words("CapabilityBoundingSet") == unit.words("AmbientCapabilities") == {"CAP_SYS_PTRACE"}
    assert unit.words("RestrictAddressFamilies") == {"AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK"}
    assert not unit.all("IPAddressDeny"), "Prometheus scrapes from elsewhere"
    both = Unit(SERVICE, UNITS / "mlsecd.service.d/20-fd.conf.example")
    assert both.words("AmbientCapabilities") == {"CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"}
    assert both.words("AmbientCapabilities") == both.words("CapabilityBoundingSet")


def test_the_clock_is_not_protected_at_the_price_of_the_gpus() -> None:
    unit = Unit(SERVICE)
    assert unit.last("ProtectClock") == "yes"
    assert unit.all("DeviceAllow") == ["char-* rw"]
    devices = Unit(SERVICE, UNITS / "mlsecd.service.d/40-devices.conf.example")
    assert devices.all("DeviceAllow") == ["char-nvidia* rw"], "the wider line is cleared, and the GPUs are named"


def test_a_capability_is_not_what_it_could_be(tool) -> None:
    allowed = Unit(SERVICE).calls(call_sets())
    for call in ("ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp", "open_by_handle_at"):
        assert call not in allowed
    for call in ("mount", "bpf", "perf_event_open", "kexec_load", "setuid", "chown", "clock_settime"):
        assert call not in allowed
    for call in ("execve", "clone3", "openat", "readlinkat", "mprotect", "sched_setaffinity", "flock", "accept4"):
        assert call in allowed


def test_timeouts_fit_the_daemon() -> None:
    unit = Unit(SERVICE)
    seconds = {key: float(unit.last(key).removesuffix("s")) for key in ("WatchdogSec", "TimeoutStopSec")}
    assert seconds["WatchdogSec"] >= 2 * 10, "daemon.tick_seconds may be 10, and the loop beats once a turn"
    assert seconds["TimeoutStopSec"] >= 5 + 5 + 2, "the daemon, and then the NVML process"


def test_commands_name_the_configuration_that_is_installed() -> None:
    unit = Unit(SERVICE)
    checked = "/opt/mlsecd/venv/bin/mlsecd check-config --config /etc/mlsecd/mlsecd.toml"
    assert unit.all("ExecStartPre") == [checked]
    assert unit.all("ExecStart") == ["/opt/mlsecd/venv/bin/mlsecd run --config /etc/mlsecd/mlsecd.toml"]
    assert unit.all("ExecReload") == [checked, "/bin/kill -HUP $MAINPID"]
    for path in re.findall(r"(?:systemd|config)/mlsecd\.[\w./-]+", README):
        assert (ROOT / path).exists(), path


def test_the_sockets_are_those_that_the_daemon_takes(tmp_path: Path) -> None:
    unit, params = Unit(SOCKET), RequestSocketParams()
    assert unit.all("ListenSequentialPacket") == [params.path]
    assert unit.all("ListenStream") == [params.stream_path]
    assert (unit.last("SocketUser"), unit.last("SocketGroup"), unit.last("SocketMode")) == (
        Unit(SERVICE).last("User"),
        "mlsecd-ingest",
        f"{params.mode:04o}",
    )
    assert int(unit.last("Backlog")) == params.max_connections
    # At other paths than the configured ones, so that the name alone decides.
    kinds = (socket.SOCK_SEQPACKET, socket.SOCK_STREAM)
    made = [socket.socket(socket.AF_UNIX, kind) for kind in kinds]
    first = free_row(2)
    try:
        for number, sock in enumerate(made):
            sock.bind(str(tmp_path / f"{number}"))
            sock.listen(1)
            os.dup2(sock.fileno(), first + number)
        environ = {
            "LISTEN_PID": str(os.getpid()),
            "LISTEN_FDS": "2",
            "LISTEN_FDNAMES": ":".join([unit.last("FileDescriptorName")] * 2),
        }
        taken = inherited({int(kind): "/elsewhere" for kind in kinds}, environ, os.getpid(), first)
        assert sorted(listener.kind for listener in taken) == sorted(kinds)
        for listener in taken:
            listener.close()
    finally:
        for number, sock in enumerate(made):
            sock.close()
            os.close(first + number)


@pytest.fixture
def host(tool, tmp_path: Path) -> Path:
    """The root of a host on which the users were made."""
    if os.geteuid() != 0:
        pytest.skip("users and owners are root's to make")
    root = tmp_path / "host"
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    done = tool("systemd-sysusers", f"--root={root}", UNITS / "mlsecd.sysusers")
    assert done.returncode == 0, done.stderr
    return root


def _numbers(file: Path) -> dict[str, int]:
    return {line.split(":")[0]: int(line.split(":")[2]) for line in file.read_text().splitlines()}


def test_users_and_groups(tool, host: Path) -> None:
    line = next(line for line in (host / "etc/passwd").read_text().splitlines() if line.startswith("mlsecd:"))
    assert line.endswith("/usr/sbin/nologin")
    groups = _numbers(host / "etc/group")
    assert groups["mlsecd"] != groups["mlsecd-ingest"], "who sends requests does not read findings"
    assert {Unit(SERVICE).last("Group"), Unit(SOCKET).last("SocketGroup")} <= set(groups)
    before = (host / "etc/passwd").read_text()
    assert tool("systemd-sysusers", f"--root={host}", UNITS / "mlsecd.sysusers").returncode == 0
    assert (host / "etc/passwd").read_text() == before


def test_directories(tool, host: Path) -> None:
    done = tool("systemd-tmpfiles", "--create", f"--root={host}", UNITS / "mlsecd.tmpfiles")
    assert (done.returncode, done.stderr) == (0, "")
    users, groups = _numbers(host / "etc/passwd"), _numbers(host / "etc/group")
    unit = Unit(SERVICE)
    for key, parent in (("State", "var/lib"), ("Logs", "var/log"), ("Runtime", "run")):
        status = (host / parent / unit.last(f"{key}Directory")).stat()
        assert stat.S_IMODE(status.st_mode) == int(unit.last(f"{key}DirectoryMode"), 8)
        assert (status.st_uid, status.st_gid) == (users["mlsecd"], groups["mlsecd"])
    made = Unit(SOCKET).last("ExecStartPre").split()
    assert made[1:] == ["-d", "-o", "mlsecd", "-g", "mlsecd", "-m", unit.last("RuntimeDirectoryMode"), "/run/mlsecd"]


# Within the sandbox. What systemd would do by seccomp, capabilities and limits is done here for real.


@pytest.fixture
def within(tool, in_ci: bool) -> Callable[..., list[str]]:
    """Gives the command line that runs something within the service and some drop-ins."""
    if os.geteuid() != 0:
        pytest.skip("capabilities are root's to take away")
    probe = subprocess.run(command(Unit(SERVICE), ["true"]), capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        why = f"this machine has no libseccomp or no seccomp: {probe.stderr.strip().splitlines()[-1:]}"
        pytest.fail(why) if in_ci else pytest.skip(why)

    def make(wanted: list[str], *more: Path) -> list[str]:
        return command(Unit(SERVICE, *more), wanted)

    return make


_REFUSED = """
import ctypes, errno, os, socket
libc = ctypes.CDLL(None, use_errno=True)
assert libc.ptrace(16, os.getppid(), 0, 0) == -1 and ctypes.get_errno() == errno.EPERM
assert libc.process_vm_readv(os.getpid(), None, 0, None, 0, 0) == -1 and ctypes.get_errno() == errno.EPERM
assert libc.setuid(0) == -1 and ctypes.get_errno() == errno.EPERM
for family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK):
    socket.socket(family, socket.SOCK_DGRAM if family != socket.AF_NETLINK else socket.SOCK_RAW).close()
try:
    socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
except OSError as error:
    assert error.errno == errno.EAFNOSUPPORT
else:
    raise AssertionError("a socket to the hypervisor")
"""


def test_the_sandbox_is_on(within) -> None:
    done = subprocess.run(within([sys.executable, "-c", _REFUSED]), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


_COMPILED = "import numba; print(numba.njit(lambda x: x + 1)(41))"


def test_kernels_compile_because_memory_may_be_executed(within, tmp_path: Path) -> None:
    python = [sys.executable, "-c", _COMPILED]
    assert subprocess.run(within(python), capture_output=True, text=True, check=True).stdout == "42\n"
    strict = tmp_path / "strict.conf"
    strict.write_text("[Service]\nMemoryDenyWriteExecute=yes\n")
    done = subprocess.run(within(python, strict), capture_output=True, text=True, check=False)
    if "the kernel cannot deny" in done.stderr:
        pytest.skip("this kernel cannot deny executable memory (6.3 can)")
    assert done.returncode != 0
    assert "executable memory" in done.stderr


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """Another user's process, with a listening socket."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        process = subprocess.Popen(
            ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sleep", "60"],
            pass_fds=[server.fileno()],
        )
        process.listens = f"tcp:127.0.0.1:{server.getsockname()[1]}"  # type: ignore[attr-defined]
        link = Path(f"/proc/{process.pid}/cmdline")
        until(lambda: link.read_bytes().startswith(b"sleep\0"))
        yield process
        process.kill()
        process.wait()


_LOOK = """
import json, sys, time
from mlsecd.meters import Meters
from mlsecd.sources.processes import Processes, ProcessesParams
table = Processes(ProcessesParams(), Meters()).poll(time.monotonic() + 30).records[0]
one = next(process for process in table.processes if process.pid == int(sys.argv[1]))
print(json.dumps({"exe": one.exe, "listen": one.listen, "blind": " ".join(table.blind)}))
"""


@pytest.mark.parametrize("drop_in", [None, "20-fd.conf.example"])
def test_what_is_seen_of_another_users_process(within, stranger, drop_in: str | None) -> None:
    more = [UNITS / "mlsecd.service.d" / drop_in] if drop_in else []
    look = within([sys.executable, "-c", _LOOK, str(stranger.pid)], *more)
    done = subprocess.run(look, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["exe"].endswith("/sleep"), "CAP_SYS_PTRACE"
    if drop_in:
        assert seen["listen"] == [stranger.listens]
        assert "listen:" not in seen["blind"]
    else:
        assert seen["listen"] == []
        assert "CAP_DAC_READ_SEARCH" in seen["blind"], "what is missing is told"


class Confined(Daemon):
    """A daemon within the unit, its first socket handed over by systemd's own tool."""

    def start_within(self, within: Callable[..., list[str]], ingest: Path) -> None:
        run = [sys.executable, "-m", "mlsecd", "run", "--config", str(self.file), "--log-format", "json"]
        name = Unit(SOCKET).last("FileDescriptorName")
        activate = ["systemd-socket-activate", "--seqpacket", f"--listen={ingest}", f"--fdname={name}"]
        activate += [f"--setenv={key}={value}" for key, value in self.env.items() if key != "PATH"]
        self.stderr = self.directory / "stderr"
        with self.stderr.open("ab") as stderr:
            self.process = subprocess.Popen([*activate, *within(run)], env=self.env, cwd=self.directory, stderr=stderr)

    def hears(self, sender: socket.socket, records: float) -> None:
        sender.send(json.dumps({"ts": time.time(), "model": "m", "client": "k-1"}).encode() + b"\n")
        until(lambda: self.metric('mlsecd_source_records_total{source="request_socket"}') == records)


def test_the_daemon_lives_within_the_unit(within, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    library = build(tmp_path_factory.mktemp("fakenvml"))
    state = FakeNvml(tmp_path / "gpus.json", profile="h100")
    env = {"LD_LIBRARY_PATH": str(library.parent), "FAKENVML_STATE": str(state.path)}
    daemon = Confined(tmp_path, env)
    ingest = tmp_path / "handed.seqpacket"
    try:
        daemon.start_within(within, ingest)
        until(ingest.exists)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sender:
            sender.connect(str(ingest))
            until(lambda: daemon.heard("READY=1"), 60)
            daemon.hears(sender, 1.0)
        for source in ("nvml", "processes", "request_socket"):
            until(lambda source=source: daemon.metric(f'mlsecd_source_up{{source="{source}"}}') == 1.0)
        daemon.signal(signal.SIGHUP)
        until(lambda: daemon.heard("READY=1"), 60)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sender:
            sender.connect(str(ingest))
            daemon.hears(sender, 2.0)
        status = Path(f"/proc/{daemon.process.pid}/status").read_text()
        assert re.search(r"^CapEff:\s+0000000000080000$", status, re.MULTILINE), "CAP_SYS_PTRACE and no other"
        assert daemon.stop() < 12
        assert not [line for line in daemon.log() if line["level"] in {"error", "critical"}]
    finally:
        daemon.close()
