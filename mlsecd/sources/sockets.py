"""What processes that hold a GPU send to other hosts, and what the host sends in all."""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Annotated, Final

from msgspec import Meta

from mlsecd.errors import SourceError
from mlsecd.meters import Meters
from mlsecd.records import Kind, SocketSample, Traffic
from mlsecd.sources.base import Params, Poll, Source
from mlsecd.sources.depth import HOLDERS, holding
from mlsecd.sources.file_uses import describe
from mlsecd.sources.sock_diag import Connection, connections

__all__ = ["SOURCE", "Sockets", "SocketsParams"]

_MAX_DESCRIPTORS: Final = 16_384
_PEERS: Final = 16  # of one process, the busiest
_TELLING: Final = ("169.254.", "100.100.100.200:", "[fd00:ec2:")
_FRESH_SECONDS: Final = 120.0
_SEARCH_SECONDS: Final = 60.0
_MAX_SECONDS: Final = 0.25


class SocketsParams(Params, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Configuration of the watch over connections."""

    interval_seconds: Annotated[float, Meta(gt=0, le=3600, description="seconds between two looks")] = 10.0
    device_prefix: Annotated[str, Meta(min_length=2, description="how the paths of GPU device nodes begin")] = (
        "/dev/nvidia"
    )
    procfs: Annotated[str, Meta(min_length=1, description="where /proc is mounted")] = "/proc"


class Sockets(Source):
    """Counts bytes that peers acknowledged, by connection, and adds up what is new.

    A connection that opens and closes between two looks is missed; the interfaces' counters are not.
    """

    name = "sockets"
    emits = frozenset({Kind.SOCKET})
    summary = "bytes that GPU processes and the host send to others"
    Params = SocketsParams

    def __init__(self, params: SocketsParams, meters: Meters) -> None:
        super().__init__(params, meters)
        self.interval_seconds = params.interval_seconds
        self._params = params
        self._last: dict[int, int] | None = None  # acknowledged bytes by inode
        self._at = 0.0
        self._interface: int | None = None
        self._searched = -_SEARCH_SECONDS
        self._found: frozenset[int] = frozenset()

    def supported(self) -> str | None:
        """``None`` where there is a /proc."""
        return None if Path(self._params.procfs).is_dir() else f"no {self._params.procfs} here"

    def close(self) -> None:
        """Forget; nothing is held open."""
        self._last = None

    def poll(self, deadline: float) -> Poll:
        """Look once; the first look only takes the counters down."""
        ts, now = time.time(), time.monotonic()
        try:
            every = connections()
        except OSError as error:
            raise SourceError(f"the kernel does not tell of sockets: {error.strerror}") from error
        denied, owners = self._owners(deadline)
        sent = self._grown(every)
        interface = _interfaces()
        before, self._interface = self._interface, interface
        seconds, self._at = now - self._at, now
        if sent is None:
            return Poll([], seen=len(owners))
        blind = (f"sockets: {denied} of {denied + len(owners)} not permitted (CAP_DAC_READ_SEARCH)",) if denied else ()
        grown = None if interface is None or before is None or interface < before else interface - before
        sample = SocketSample(
            ts=ts,
            seconds=seconds,
            traffic=tuple(self._traffic(pid, inodes, every, sent) for pid, inodes in sorted(owners.items())),
            interface_bytes=grown,
            blind=blind,
        )
        return Poll([sample], seen=len(owners))

    def _grown(self, every: list[Connection]) -> dict[int, int] | None:
        """New bytes by inode; None at the first look."""
        before, self._last = self._last, {one.inode: one.acked_bytes for one in every}
        if before is None:
            return None
        # An inode whose count went down is another connection.
        return {
            one.inode: one.acked_bytes - (old if (old := before.get(one.inode, 0)) <= one.acked_bytes else 0)
            for one in every
        }

    def _holders(self, deadline: float) -> frozenset[int]:
        """Who holds a GPU: as the process source knows it, or by looking."""
        now = time.monotonic()
        known = HOLDERS.get((self._params.procfs, self._params.device_prefix))
        if known is not None and now - known[0] <= _FRESH_SECONDS:
            return known[1]
        if now - self._searched < _SEARCH_SECONDS:
            return self._found
        self._searched, spent_from = now, time.thread_time()
        found = set()
        for name in os.listdir(self._params.procfs):  # noqa: PTH208 - hot
            if name.isdigit() and holding(f"{self._params.procfs}/{name}", self._params.device_prefix).devices:
                found.add(int(name))
            if time.thread_time() - spent_from > _MAX_SECONDS or time.monotonic() > deadline:
                break
        self._found = frozenset(found)
        return self._found

    def _owners(self, deadline: float) -> tuple[int, dict[int, frozenset[int]]]:
        """How many holders may not be looked into, and the others' socket inodes."""
        denied, owners = 0, {}
        for pid in self._holders(deadline):
            try:
                owners[pid] = _inodes(f"{self._params.procfs}/{pid}/fd")
            except PermissionError:
                denied += 1
            except OSError:
                continue  # gone
        return denied, owners

    def _traffic(self, pid: int, inodes: frozenset[int], every: list[Connection], sent: dict[int, int]) -> Traffic:
        peers: Counter[str] = Counter()
        for one in every:
            if one.inode in inodes:
                peers[one.peer] += sent[one.inode]
        who = describe(self._params.procfs, "", pid, "")
        # What hands out credentials is shown however little was said to it.
        busiest = sorted(peers.items(), key=lambda pair: (not pair[0].startswith(_TELLING), -pair[1], pair[0]))[:_PEERS]
        return Traffic(
            pid=pid,
            sent_bytes=sum(peers.values()),
            start_ticks=who.start_ticks,
            exe=who.exe,
            uid=who.uid,
            unit=who.unit,
            peers=tuple(peer for peer, _ in busiest),
            peer_bytes=tuple(count for _, count in busiest),
        )


def _inodes(directory: str) -> frozenset[int]:
    found = set()
    with os.scandir(directory) as listed:
        for one in itertools.islice(listed, _MAX_DESCRIPTORS):
            try:
                target = os.readlink(one.path)  # noqa: PTH115 - hot
            except OSError:
                continue
            if target.startswith("socket:["):
                found.add(int(target[8:-1]))
    return frozenset(found)


def _interfaces(path: str = "/proc/net/dev", devices: str = "/sys/class/net") -> int | None:
    """Bytes sent by the host's network cards; where it has none of its own, by all interfaces but loopback."""
    try:
        lines = Path(path).read_text().splitlines()[2:]
    except OSError:
        return None
    sent: defaultdict[bool, int] = defaultdict(int)
    for line in lines:
        name, _, rest = line.partition(":")
        fields = rest.split()
        if name.strip() != "lo" and len(fields) > 8:
            sent[os.path.exists(f"{devices}/{name.strip()}/device")] += int(fields[8])  # noqa: PTH110
    return sent[True] if True in sent else sent.get(False)


SOURCE = Sockets
