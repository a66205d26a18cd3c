"""Socket tables as the kernel writes them, and as it does not."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from fakeproc import FakeProc, table_line
from hypothesis import given
from hypothesis import strategies as st

from mlsecd.sources.listeners import listening, parse_table


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("00000000:1F40", "tcp:0.0.0.0:8000"),
        ("0100007F:0016", "tcp:127.0.0.1:22"),
        ("00000000000000000000000001000000:1F40", "tcp:[::1]:8000"),
        ("0000000000000000FFFF00000100007F:1F40", "tcp:[::ffff:127.0.0.1]:8000"),
        ("00000000:FFFF", "tcp:0.0.0.0:65535"),
    ],
)
def test_addresses(address: str, expected: str) -> None:
    sockets: dict[str, str] = {}
    assert not parse_table([table_line(address, "0A", 7).encode()], "tcp6", "0A", sockets)
    assert sockets == {"7": expected}


@pytest.mark.parametrize("address", ["", "zz:1", "0000:1", "00000000:zz", "00000000", "é:1"])
def test_addresses_that_make_no_sense(address: str) -> None:
    sockets: dict[str, str] = {}
    parse_table([table_line(address, "0A", 7).encode()], "tcp", "0A", sockets)
    assert sockets == {}


def test_sockets_without_an_inode_belong_to_nobody() -> None:
    sockets: dict[str, str] = {}
    parse_table([table_line("00000000:1F40", "0A", 0).encode()], "tcp", "0A", sockets)
    assert sockets == {}


@given(st.lists(st.binary(max_size=120), max_size=5))
def test_takes_any_lines(lines: list[bytes]) -> None:
    parse_table(lines, "tcp", "0A", {})


def test_what_it_may_not_read_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeProc(tmp_path / "proc")
    for pid in (42, 43):
        fake.add(pid)

    def sockets(base: str) -> list[str]:
        if base.endswith("/42"):
            raise PermissionError(13, "Permission denied")
        if base.endswith("/43"):
            raise FileNotFoundError(2, "gone")
        return []

    monkeypatch.setattr("mlsecd.sources.listeners._sockets", sockets)
    found = listening(str(fake.root), [1, 42, 43], time.monotonic() + 30)
    assert (found.by_pid, found.denied, found.last) == ({1: (), 42: ()}, 1, -1)


def test_a_long_table_is_read_as_far_as_it_is_of_listeners(tmp_path: Path) -> None:
    fake = FakeProc(tmp_path / "proc")
    fake.add(42)
    listeners = [table_line(f"00000000:{port:04X}", "0A", 10_000 + port) for port in range(1, 2001)]
    others = [table_line("0100007F:1F40", "01", 50_000 + number) for number in range(2000)]
    fake.net(42, "tcp", [*listeners, *others])
    fake.socket(42, 10_000 + 1999)
    fake.socket(42, 50_000, 4)
    assert listening(str(fake.root), [42], time.monotonic() + 30).by_pid == {42: ("tcp:0.0.0.0:1999",)}
