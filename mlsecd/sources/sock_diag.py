"""TCP connections and what they sent, from the kernel by netlink: one dump, no privilege, no walk over text."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

__all__ = ["Connection", "connections", "parse"]

_SOCK_DIAG: Final = 4  # NETLINK_SOCK_DIAG
_BY_FAMILY: Final = 20  # SOCK_DIAG_BY_FAMILY
_REQUEST_DUMP: Final = 0x1 | 0x300
_DONE, _ERROR = 3, 2
_INFO: Final = 2  # INET_DIAG_INFO
_ESTABLISHED_AND_CLOSING: Final = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8  # and FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT
_HEADER: Final = struct.Struct("=IHHII")
_REQUEST: Final = struct.Struct("=BBBBI48x")
_MESSAGE: Final = struct.Struct("=BBBB2s2s16s16sI8sIIIII")
_ACKED_OFFSET: Final = 120  # tcpi_bytes_acked in struct tcp_info, since Linux 4.1
_MAX_CONNECTIONS: Final = 200_000
_BUFFER_BYTES: Final = 1 << 16
_TIMEOUT_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Connection:
    """One TCP connection to another host."""

    inode: int
    peer: str  # address:port
    acked_bytes: int  # sent, and acknowledged by the peer


def connections() -> list[Connection]:
    """Every TCP connection of this network namespace but those over loopback.

    Raises
    ------
    OSError
        The kernel does not answer.
    """
    found: list[Connection] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _SOCK_DIAG) as link:
        link.settimeout(_TIMEOUT_SECONDS)
        for family in (socket.AF_INET, socket.AF_INET6):
            body = _REQUEST.pack(family, socket.IPPROTO_TCP, 1 << (_INFO - 1), 0, _ESTABLISHED_AND_CLOSING)
            link.send(_HEADER.pack(_HEADER.size + len(body), _BY_FAMILY, _REQUEST_DUMP, family, 0) + body)
            done = False
            while not done and len(found) < _MAX_CONNECTIONS:
                more, done = parse(link.recv(_BUFFER_BYTES))
                found += more
    return found


def parse(data: bytes) -> tuple[list[Connection], bool]:
    """Connections in one datagram of the kernel's, and whether it was the last.

    Raises
    ------
    OSError
        The kernel refused.
    """
    found: list[Connection] = []
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size or at + length > len(data):
            break
        body = data[at + _HEADER.size : at + length]
        at += length + 3 & ~3
        if kind == _DONE:
            return found, True
        if kind == _ERROR:
            code = struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0
            raise OSError(-code, os.strerror(-code))
        if len(body) >= _MESSAGE.size and (one := _connection(body)) is not None:
            found.append(one)
    return found, False


def _connection(body: bytes) -> Connection | None:
    family, _, _, _, _, port, _, address, _, _, _, _, _, _, inode = _MESSAGE.unpack_from(body)
    peer = ipaddress.ip_address(address[:4] if family == socket.AF_INET else address)
    mapped = peer.ipv4_mapped if isinstance(peer, ipaddress.IPv6Address) else None
    peer = mapped or peer
    if peer.is_loopback:
        return None
    for kind, value in _attributes(body[_MESSAGE.size :]):
        if kind == _INFO and len(value) >= _ACKED_OFFSET + 8:
            (acked,) = struct.unpack_from("=Q", value, _ACKED_OFFSET)
            shown = f"[{peer}]" if peer.version == 6 else str(peer)
            return Connection(inode, f"{shown}:{int.from_bytes(port, 'big')}", acked)
    return None


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4 or at + length > len(data):
            return
        yield kind, data[at + 4 : at + length]
        at += length + 3 & ~3
