"""Snapshots: whole or not at all, and never believed when damaged."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from mlsecd.errors import StateError
from mlsecd.sinks import snapshot
from mlsecd.sinks.snapshot import read_header, read_snapshot, write_snapshot

SECTIONS = {"fold": b"\x00\x01state", "detector:ü": b"", "ledger": bytes(range(256))}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    there = tmp_path / "state.snapshot"
    write_snapshot(there, SECTIONS, {"host": "a", "n": 1})
    return there


def test_what_was_written_is_read(path: Path) -> None:
    assert read_snapshot(path) == SECTIONS
    assert list(read_snapshot(path)) == list(SECTIONS)
    assert read_header(path) == {"host": "a", "n": 1}
    write_snapshot(path, {})
    assert read_snapshot(path) == {}
    assert read_header(path) == {}


def test_it_is_private_and_leaves_nothing_beside_it(path: Path) -> None:
    before = os.umask(0)
    try:
        write_snapshot(path, SECTIONS)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_cut_at_any_byte_it_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with pytest.raises(StateError):
            read_snapshot(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(StateError, match="too many"):
        read_snapshot(path)


def test_any_changed_byte_is_found(path: Path) -> None:
    whole = path.read_bytes()
    for at in range(len(whole)):
        broken = bytearray(whole)
        broken[at] ^= 1 << at % 8
        path.write_bytes(broken)
        with pytest.raises(StateError):
            read_snapshot(path)


def test_lengths_that_lie_cost_no_memory(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[8:16] = (2**63).to_bytes(8, "little")
    path.write_bytes(whole)
    with pytest.raises(StateError):
        read_snapshot(path)


def test_a_file_that_is_too_large_is_not_read(path: Path) -> None:
    size = path.stat().st_size
    assert read_snapshot(path, max_bytes=size) == SECTIONS
    with pytest.raises(StateError, match="larger"):
        read_snapshot(path, max_bytes=size - 1)


def test_another_version_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "_VERSION", 2)
    with pytest.raises(StateError, match="version 1"):
        read_snapshot(path)


def test_none_is_not_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_snapshot(tmp_path / "none")
    with pytest.raises(StateError):
        read_snapshot(tmp_path)


@pytest.mark.parametrize("call", ["open", "fchmod", "fsync", "rename"])
def test_when_it_cannot_be_written_the_old_one_stays(path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if call == "rename":
            patch.setattr(Path, "replace", refuse)
        else:
            patch.setattr(os, call, refuse)
        with pytest.raises(StateError, match="No space left"):
            write_snapshot(path, {"new": b"1"})
    assert read_snapshot(path) == SECTIONS
    assert list(path.parent.iterdir()) == [path]


def test_it_is_durable_before_it_replaces_the_old_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("sync"), sync(fd))[1])
    monkeypatch.setattr(Path, "replace", lambda one, other: (calls.append("replace"), replace(one, other))[1])
    write_snapshot(path, SECTIONS)
    assert calls == ["sync", "replace", "sync"]


def test_what_a_crash_left_is_overwritten_and_a_link_is_not_followed(path: Path) -> None:
    beside = path.with_name(path.name + ".tmp")
    beside.write_bytes(b"half a snapshot")
    write_snapshot(path, {"a": b"1"})
    assert read_snapshot(path) == {"a": b"1"}
    victim = path.with_name("victim")
    victim.write_bytes(b"precious")
    beside.symlink_to(victim)
    with pytest.raises(StateError):
        write_snapshot(path, {"a": b"2"})
    assert victim.read_bytes() == b"precious"
