"""Real Jupyter servers, with and without a token: from the process to the finding, and no token on the way."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlsecd import kernels
from mlsecd.detectors.exposure_services import DETECTOR, Params
from mlsecd.jsonlines import encode
from mlsecd.meters import Meters
from mlsecd.records import Finding, Process, ProcessTable, Severity
from mlsecd.sources.jupyter import is_jupyter, unauthenticated
from mlsecd.sources.processes import Processes, ProcessesParams

TOKEN = "5e3c4f9a0b7d4c21"
Server = Callable[..., "subprocess.Popen[bytes]"]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    pytest.importorskip("jupyter_server")
    started: list[subprocess.Popen[bytes]] = []

    def start(*flags: str, ip: str = "127.0.0.1") -> subprocess.Popen[bytes]:
        runtime = tmp_path / "runtime"
        keep = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        environ = {**keep, "HOME": str(tmp_path), "JUPYTER_RUNTIME_DIR": str(runtime)}
        command = [sys.executable, "-m", "jupyter_server", f"--port={free_port()}", f"--ip={ip}", "--no-browser"]
        log = (tmp_path / "log").open("wb")
        one = subprocess.Popen(
            [*command, "--allow-root", *flags], env=environ, cwd=tmp_path, stdout=log, stderr=log, close_fds=True
        )
        log.close()
        started.append(one)
        end = time.monotonic() + 60
        while not (runtime / f"jpserver-{one.pid}.json").exists():
            assert one.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < end, "it did not start"
            time.sleep(0.05)
        return one

    yield start
    for one in started:
        one.terminate()
        try:
            one.wait(20)
        except subprocess.TimeoutExpired:
            one.kill()
            one.wait()


def look(pid: int, **params: object) -> tuple[ProcessTable, Process]:
    """The table once the server's socket and depth are in it."""
    source = Processes(ProcessesParams(listen_seconds=0.01, depth_seconds=0.01, **params), Meters())  # type: ignore[arg-type]
    end = time.monotonic() + 20
    while True:
        (found,) = source.poll(time.monotonic() + 30).records
        assert isinstance(found, ProcessTable)
        one = next((one for one in found.processes if one.pid == pid), None)
        if one is not None and one.listen and one.depth is not None:
            return found, one
        assert time.monotonic() < end, "it is not seen"


def findings(found: ProcessTable) -> list[Finding]:
    detector = DETECTOR(Params(after_tables=1), kernels)
    return [one for one in detector.observe(found) if one.evidence["product"] == "Jupyter"]


def test_without_a_token(server: Server, tmp_path: Path) -> None:
    one = server("--IdentityProvider.token=", ip="0.0.0.0")
    found, process = look(one.pid)
    assert process.depth is not None
    assert process.depth.unauthenticated is True
    mine = [finding for finding in findings(found) if finding.evidence["pid"] == one.pid]
    assert [finding.severity for finding in mine] == [Severity.CRITICAL]
    (tmp_path / "runtime" / f"jpserver-{one.pid}.json").unlink()
    assert unauthenticated(f"/proc/{one.pid}", process, probe=False) is None, "the file is gone, and nobody was asked"
    assert unauthenticated(f"/proc/{one.pid}", process, probe=True) is True


def test_with_a_token_it_is_safe_and_the_token_stays_where_it_is(server: Server, tmp_path: Path) -> None:
    one = server(f"--IdentityProvider.token={TOKEN}")
    found, process = look(one.pid, probe_jupyter=True)
    assert process.depth is not None
    assert process.depth.unauthenticated is False
    assert [finding for finding in findings(found) if finding.evidence["pid"] == one.pid] == []
    assert TOKEN.encode() not in encode(found)
    assert TOKEN not in repr(DETECTOR(Params(after_tables=1), kernels).observe(found))
    (tmp_path / "runtime" / f"jpserver-{one.pid}.json").unlink()
    assert unauthenticated(f"/proc/{one.pid}", process, probe=True) is False


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"token": "", "password": false}', True),
        ('{"token": "", "password": true}', False),
        ('{"token": "x", "password": false}', False),
        ('{"password": false}', None),
        ('{"token": 7}', None),
        ("[" * 50_000, None),
        ("", None),
        ("\xff", None),
    ],
)
def test_runtime_files_of_any_content(tmp_path: Path, text: str, said: bool | None) -> None:
    base = tmp_path / "proc" / "7"
    (base / "root" / "run").mkdir(parents=True)
    (base / "environ").write_bytes(b"A=1\0JUPYTER_RUNTIME_DIR=/run\0")
    (base / "root" / "run" / "jpserver-7.json").write_text(text, encoding="latin-1")
    process = Process(pid=7, start_ticks=1, uid=4_000_000, cmdline=("jupyter-lab",))
    assert unauthenticated(str(base), process, probe=False) is said


def test_a_runtime_file_that_is_a_link_or_a_pipe_is_not_read(tmp_path: Path) -> None:
    base = tmp_path / "proc" / "7"
    (base / "root" / "run").mkdir(parents=True)
    (base / "environ").write_bytes(b"JUPYTER_RUNTIME_DIR=/run\0")
    process = Process(pid=7, start_ticks=1, cmdline=("jupyter-lab",))
    target = base / "root" / "run" / "jpserver-7.json"
    (tmp_path / "secret").write_text(json.dumps({"token": ""}))
    target.symlink_to(tmp_path / "secret")
    assert unauthenticated(str(base), process, probe=False) is None
    target.unlink()
    os.mkfifo(target)
    assert unauthenticated(str(base), process, probe=False) is None


@pytest.mark.parametrize(
    ("cmdline", "said"),
    [
        (("/usr/bin/python3", "/usr/local/bin/jupyter-lab", "--ip=*"), True),
        (("jupyter", "notebook"), True),
        (("python3", "-m", "jupyter_server"), True),
        (("python3", "-m", "ipykernel_launcher", "-f", "kernel.json"), False),
        (("vim", "notes", "jupyter-lab"), False),
        ((), False),
        (("/usr/bin/python3 /usr/bin/jupyter-lab",), True),
    ],
)
def test_what_a_jupyter_server_looks_like(cmdline: tuple[str, ...], said: bool) -> None:
    assert is_jupyter(cmdline) is said
