"""What `mlsecd doctor` says of the sandbox it runs in, and of who knows how far the log came."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from mlsecd import config, doctor


def test_a_home_that_systemd_hides_is_told_with_the_drop_in_that_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0)  # as ProtectHome=yes mounts it
    assert doctor._hidden(str(home))
    assert not doctor._hidden(str(tmp_path))
    assert not doctor._hidden(str(tmp_path / "none"))
    monkeypatch.setattr(doctor, "_hidden", lambda name: name == "/home")
    told = [check for check in doctor._privileges(config.Config()) if "hidden" in check.name]
    assert [(one.name, "drop-in 10-home" in one.detail) for one in told] == [("/home is hidden", True)]


def test_the_anchor_is_none_broken_or_there(tmp_path: Path) -> None:
    def said(anchor: str) -> list[tuple[str, str]]:
        text = f'[sinks.forensic_log]\nanchor = "{anchor}"\n'
        return [(check.state, check.detail) for check in doctor._anchor(config.parse(text))]

    assert said("")[0][0] == "info"
    path = tmp_path / "log"
    assert said(str(path))[0][0] == "broken"
    assert str(path) in said(str(path))[0][1]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(str(path))
        assert said(str(path)) == [("ok", "syslog is told the head each 300 s")]
    off = config.parse("[sinks.forensic_log]\nenabled = false\n")
    assert list(doctor._anchor(off)) == []
