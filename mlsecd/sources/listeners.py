"""Which process listens on which port: socket tables of every network namespace, joined with descriptors."""

from __future__ import annotations

import itertools
import os
import socket
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

__all__ = ["Listening", "listening", "parse_table"]

_MAX_DESCRIPTORS: Final = 16_384  # of one process
_MAX_SECONDS: Final = 0.25  # of the thread's CPU, a scan: hosts with hundreds of namespaces take several scans
_MAX_TABLE_BYTES: Final = 1 << 20  # about 7,000 sockets of one protocol in one namespace
_CHUNK_BYTES: Final = 1 << 16
# The kernel fills at most a page a read, with lines of at most 200 bytes: a shorter read was the last one.
_FULL_READ_BYTES: Final = os.sysconf("SC_PAGE_SIZE") - 512
_TABLES: Final = (("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07"))  # LISTEN; unconnected


@dataclass(slots=True)
class Listening:
    """What one scan found."""

    by_pid: dict[int, tuple[str, ...]] = field(default_factory=dict)  # of every process that was looked at
    denied: int = 0  # processes whose descriptors we may not read
    last: int = -1  # where a limit or the deadline ended the scan; -1: it did not


def listening(procfs: str, pids: Iterable[int], deadline: float, after: int = -1) -> Listening:
    """Scan the descriptors of these processes, those above ``after`` first.

    It ends when ``time.monotonic()`` passes ``deadline``, or when it has cost too much.
    """
    found = Listening()
    namespaces: dict[str, dict[str, str]] = {}
    spent_from = time.thread_time()
    for pid in sorted(pids, key=lambda pid: (pid <= after, pid)):
        base = f"{procfs}/{pid}"
        try:
            inodes = _sockets(base)
        except PermissionError:
            found.denied += 1
            inodes = ()
        except OSError:
            continue  # gone
        found.by_pid[pid] = _addresses(base, inodes, namespaces) if inodes else ()
        if time.thread_time() - spent_from > _MAX_SECONDS or time.monotonic() > deadline:
            found.last = pid
            break
    return found


def _sockets(base: str) -> Sequence[str]:
    """The inodes of the sockets that one process holds."""
    inodes = []
    with os.scandir(f"{base}/fd") as descriptors:
        for descriptor in itertools.islice(descriptors, _MAX_DESCRIPTORS):
            try:
                target = os.readlink(descriptor.path)  # noqa: PTH115 - hot
            except OSError:
                continue  # closed meanwhile
            if target.startswith("socket:["):
                inodes.append(target[8:-1])
    return inodes


def _addresses(base: str, inodes: Iterable[str], namespaces: dict[str, dict[str, str]]) -> tuple[str, ...]:
    """Where these sockets listen; a namespace's tables are read once a scan."""
    try:
        namespace = os.readlink(f"{base}/ns/net")  # noqa: PTH115 - hot
    except OSError:
        namespace = ""
    if namespace not in namespaces:
        namespaces[namespace] = _tables(f"{base}/net")
    table = namespaces[namespace]
    return tuple(sorted({table[inode] for inode in inodes if inode in table}))


def _tables(net: str) -> dict[str, str]:
    """The listening sockets of one network namespace: address by inode."""
    sockets: dict[str, str] = {}
    for protocol, state in _TABLES:
        try:
            _read_table(f"{net}/{protocol}", protocol, state, sockets)
        except OSError:
            continue  # no IPv6 here, or the process is gone
    return sockets


def _read_table(path: str, protocol: str, state: str, sockets: dict[str, str]) -> None:
    """Read one table. The kernel lists TCP's listening sockets first, so we stop at the first other one.

    A further read would walk the kernel's whole hash of connections, 2.6 ms even where there are none.
    """
    rest = b""
    total = 0
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while total < _MAX_TABLE_BYTES and (chunk := os.read(fd, _CHUNK_BYTES)):
            total += len(chunk)
            lines = (rest + chunk).split(b"\n")
            rest = lines.pop()
            others = parse_table(lines, protocol, state, sockets)
            if len(chunk) < _FULL_READ_BYTES or (others and protocol.startswith("tcp")):
                break
    finally:
        os.close(fd)


def parse_table(lines: Iterable[bytes], protocol: str, state: str, sockets: dict[str, str]) -> bool:
    """Add the sockets of these lines that are in ``state``, by inode; True where any is in another state."""
    others = False
    for line in lines:
        fields = line.split(None, 10)
        if len(fields) < 10 or fields[0] == b"sl":
            continue
        if fields[3].decode("ascii", "replace") != state:
            others = True
            continue
        address = _address(fields[1])
        if address is not None and fields[9] != b"0":
            sockets[fields[9].decode("ascii", "replace")] = f"{protocol.removesuffix('6')}:{address}"
    return others


def _address(text: bytes) -> str | None:
    """``0100007F:1F40`` is ``127.0.0.1:8000``: words of 32 bits in the host's byte order."""
    host, _, port = text.partition(b":")
    try:
        words = bytes.fromhex(host.decode("ascii"))
        number = int(port, 16)
    except ValueError:
        return None
    if sys.byteorder == "little":
        words = b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4))
    if len(words) == 4:
        return f"{socket.inet_ntop(socket.AF_INET, words)}:{number}"
    if len(words) == 16:
        return f"[{socket.inet_ntop(socket.AF_INET6, words)}]:{number}"
    return None
