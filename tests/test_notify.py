from __future__ import annotations

import os
import socket
from pathlib import Path

from mlsecd.notify import Notifier


def test_what_systemd_hears(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(5)
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "30000000"})
        assert notifier.watchdog_seconds == 30.0
        notifier.ready("listening")
        assert manager.recv(4096) == b"READY=1\nSTATUS=listening"
        notifier.reloading()
        assert manager.recv(4096).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        notifier.alive("fine")
        assert manager.recv(4096) == b"WATCHDOG=1\nSTATUS=fine"
        notifier.stopping()
        assert manager.recv(4096).startswith(b"STOPPING=1")


def test_an_abstract_address_is_understood() -> None:
    name = f"mlsecd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        manager.settimeout(5)
        Notifier({"NOTIFY_SOCKET": f"@{name}"}).ready("x")
        assert manager.recv(4096).startswith(b"READY=1")


def test_no_manager_or_a_dead_one_is_no_failure(tmp_path: Path) -> None:
    Notifier({}).ready("x")
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).ready("x")
    assert Notifier({"WATCHDOG_USEC": "5", "WATCHDOG_PID": "1"}).watchdog_seconds is None
