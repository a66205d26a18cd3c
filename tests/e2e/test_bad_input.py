"""What an operator gets wrong, and what an upgrade leaves behind: one line, and nothing lost."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from daemons import Daemon
from forensic import Params, finding

from mlsecd.meters import Meters
from mlsecd.sinks import log_verify, snapshot
from mlsecd.sinks.forensic_log import ForensicLog

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def lived_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directories of a daemon that ran and stopped: state and log."""
    directory = tmp_path_factory.mktemp("lived-in")
    one = Daemon(directory)
    try:
        one.start()
        one.stop()
    finally:
        one.close()
    assert (directory / "state" / "state.snapshot").stat().st_size > 100
    return directory


@pytest.fixture
def daemon(lived_in: Path, tmp_path: Path) -> Daemon:
    for name in ("state", "log"):
        shutil.copytree(lived_in / name, tmp_path / name)
    return Daemon(tmp_path)


def kept(one: Daemon) -> dict[str, str]:
    """Every file of state and log, by digest."""
    files = [path for name in ("state", "log") for path in (one.directory / name).iterdir()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def refused(one: Daemon, *command: str) -> str:
    """The one line that a command says before it exits with 2; state and log are untouched."""
    before = kept(one)
    done = subprocess.run(
        [sys.executable, "-m", "mlsecd", *command, "--config", str(one.file)],
        env=one.env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith(("mlsecd: ", str(one.file)))]
    assert len(said) == 1, done.stderr
    assert done.stderr.splitlines()[-1] == said[0]
    assert kept(one) == before
    return said[0]


def _web(one: Daemon) -> str:
    (one.directory / "web.yml").write_text("tls_server_confg: {}\n")
    return f'config_file = "{one.directory}/web.yml"\n'


def _credential(one: Daemon) -> str:
    (one.directory / "id.key").mkdir()  # what even root cannot read as a file
    one.env["MLSECD_KEY_FILE"] = str(one.directory / "id.key")
    return f'[sources.syslog]\nenabled = true\npath = "{one.directory}/syslog"\n'


def _short_credential(one: Daemon) -> str:
    (one.directory / "id.key").write_bytes(b"short")
    one.env["CREDENTIALS_DIRECTORY"] = str(one.directory)  # as systemd hands it over
    return f'[sources.syslog]\nenabled = true\npath = "{one.directory}/syslog"\n'


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (_web, "unknown field"),
        (_credential, "let the user that mlsecd runs as read it"),
        (_short_credential, "must hold 16 to 64 bytes"),
    ],
)
def test_a_start_that_cannot_work_is_refused_before_anything_is_touched(
    daemon: Daemon, wrong: Callable[[Daemon], str], words: str
) -> None:
    daemon.configure(wrong(daemon))
    try:
        assert words in refused(daemon, "check-config")
        assert words in refused(daemon, "run")
    finally:
        daemon.close()


def test_a_port_that_is_taken_is_refused(daemon: Daemon) -> None:
    with socket.create_server(("127.0.0.1", daemon.port)):
        assert "another program listens there" in refused(daemon, "run")
    daemon.close()


def test_without_a_source_that_names_clients_an_unusable_key_is_no_matter(daemon: Daemon) -> None:
    daemon.env["MLSECD_KEY_FILE"] = "/nonexistent/id.key"
    try:
        daemon.start()
        daemon.stop()
    finally:
        daemon.close()


def _damaged(path: Path) -> None:
    blob = bytearray(path.read_bytes())
    blob[len(blob) // 2] ^= 1
    path.write_bytes(blob)


def _newer(path: Path) -> None:
    """What a later format looks like to us: whole, and of another version."""
    sections = snapshot.read_snapshot(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshot, "_VERSION", 2)
        snapshot.write_snapshot(path, sections)


def _one_newer_detector(path: Path) -> None:
    sections = snapshot.read_snapshot(path)
    name = next(name for name in sections if name.startswith("detector:"))
    snapshot.write_snapshot(path, {**sections, name: b"\x01what a later version writes"})


@pytest.mark.parametrize(
    ("change", "event", "words"),
    [
        (_damaged, "the saved state is left aside", "is damaged"),
        (_newer, "the saved state is left aside", "is of version 2, this is version 1"),
        (_one_newer_detector, "part of the saved state is left aside", "a snapshot cannot be read"),
    ],
)
def test_a_state_of_another_version_is_told_in_a_line_and_kept(
    daemon: Daemon, change: Callable[[Path], None], event: str, words: str
) -> None:
    """A package that was downgraded must not leave the host unwatched, nor cost what the newer one had learnt."""
    path = daemon.directory / "state" / "state.snapshot"
    change(path)
    before = path.read_bytes()
    try:
        daemon.start()
        daemon.stop()
        told = [line for line in daemon.log() if line["event"] == event]
        assert len(told) == 1, daemon.log()
        assert words in told[0]["why"]
        (aside,) = path.parent.glob("state.snapshot.aside-*")
        assert str(aside) in told[0]["hint"]
        assert aside.read_bytes() == before
        assert snapshot.read_snapshot(path), "the new state is whole"
        assert log_verify.verify(daemon.directory / "log").ok
        daemon.stderr.unlink()
        daemon.start()
        daemon.stop()
        assert not [line for line in daemon.log() if "aside" in line["event"]], "and the next start has nothing to say"
    finally:
        daemon.close()


def test_only_the_last_three_states_are_kept_aside(tmp_path: Path) -> None:
    path = tmp_path / "state.snapshot"
    for now in range(5):
        path.unlink(missing_ok=True)
        path.write_bytes(b"%d" % now)
        assert snapshot.set_aside(path, float(now)) is not None
    assert [one.read_bytes() for one in sorted(tmp_path.glob("*.aside-*"))] == [b"2", b"3", b"4"]
    assert snapshot.set_aside(tmp_path / "none", 9.0) is None


def test_syslog_is_told_the_head_until_the_end_and_verify_compares(daemon: Daemon) -> None:
    """The anchors of a daemon's life hold for its log; a log that was cut does not hold them."""
    path = daemon.directory / "syslog"
    log = ForensicLog(Params(directory=str(daemon.directory / "log")), "h", Meters())
    log.append([finding(number) for number in range(3)])
    log.close()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(str(path))
        syslog.settimeout(30)
        text = daemon.file.read_text().replace("[sinks.forensic_log]\n", f'[sinks.forensic_log]\nanchor = "{path}"\n')
        daemon.file.write_text(text)
        try:
            daemon.start()
            first = syslog.recv(4096)
            assert daemon.metric("mlsecd_forensic_log_anchor_interval_seconds") == 300.0
            daemon.stop()
            last = syslog.recv(4096)
        finally:
            daemon.close()
    noted = daemon.directory / "noted"
    noted.write_bytes(first + b"\n" + last + b"\n")
    verify = [sys.executable, "-m", "mlsecd", "log", "verify", str(daemon.directory / "log"), "--anchors"]
    assert subprocess.run([*verify, str(noted)], capture_output=True, check=False).returncode == 0
    with noted.open("rb") as lines:
        assert subprocess.run([*verify, "-"], stdin=lines, capture_output=True, check=False).returncode == 0
    segment = max((daemon.directory / "log").glob("*.jsonl"))
    os.truncate(segment, segment.read_bytes().rindex(b"\n", 0, -1) + 1)
    done = subprocess.run([*verify, str(noted)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the line that was noted elsewhere is gone" in done.stdout
    noted.write_text("nothing of the kind\n")
    done = subprocess.run([*verify, str(noted)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
