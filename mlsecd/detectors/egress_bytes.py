"""More bytes leave a GPU process, or its host, than the answers that were served explain: weights leave as bytes."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Final

import msgspec
import numpy as np
from msgspec import Meta

from mlsecd.detectors import base
from mlsecd.detectors._gpu_processes import as_state, printable
from mlsecd.detectors._serving import FAR_SECONDS, by_host
from mlsecd.detectors._told import Told
from mlsecd.detectors.base import Detector, DetectorState, Fit, Maturity, Section, Standing
from mlsecd.errors import BaselineError
from mlsecd.kernels import Kernels
from mlsecd.records import Finding, Kind, Records, RequestBatch, Severity, SocketSample, Traffic
from mlsecd.windows.keyed import Keyed
from mlsecd.windows.packing import pack, unpack

__all__ = ["DETECTOR", "EgressBytes", "Params"]

_HOSTS_MAX: Final = 64
_PROCESSES_MAX: Final = 256
_PEERS_MAX: Final = 64  # peers of one host's processes that are told apart
_HOURS: Final = 24
_HOUR: Final = 3_600.0
_MILLI: Final = 1000.0


class Params(base.Params, frozen=True):
    """What an answer may weigh, and where bytes may go."""

    bytes_per_token: Annotated[
        float, Meta(ge=0, le=1e6, description="what one output token may weigh on the wire; streamed ones weigh most")
    ] = 1_024.0
    bytes_per_request: Annotated[
        float, Meta(ge=0, le=1e9, description="what an answer may weigh beside its tokens (images, vectors)")
    ] = 65_536.0
    excess_bytes: Annotated[
        float, Meta(ge=1, description="bytes beyond that, of one process within a day, that are told of")
    ] = 4e9
    peer_bytes: Annotated[
        float, Meta(ge=1, description="of these bytes to a single peer within a day: at this it is a page")
    ] = 16e9
    ignore: Annotated[
        tuple[str, ...], Meta(max_length=256, description="networks (CIDR) of storage, backup and other GPU hosts")
    ] = ()
    repeat_seconds: Annotated[
        float, Meta(ge=1, le=300, description="event time between repeats of a finding that goes on")
    ] = 300.0

    def __post_init__(self) -> None:
        """Refuse what is no network."""
        for one in self.ignore:
            ipaddress.ip_network(one)


@dataclass(slots=True)
class _Host:
    """One host, by hour of event time. All sums are of whole numbers."""

    ts: float = float("-inf")
    served: dict[int, list[int]] = field(default_factory=dict)  # requests, millitokens
    sent: dict[str, dict[int, int]] = field(default_factory=dict)  # by process: bytes
    peers: dict[str, dict[str, int]] = field(default_factory=dict)  # by process: bytes to each peer, of a day
    peer_day: int = -1
    interface: dict[int, int] = field(default_factory=dict)
    interface_seconds: dict[int, int] = field(default_factory=dict)
    told: Told = field(default_factory=Told)
    blind: bool = False


class EgressBytes(Detector):
    """Adds up a day by hours: bytes of each process less what the requests of its host may weigh."""

    name = "egress_bytes"
    consumes = frozenset({Kind.SOCKET, Kind.REQUEST})
    key = "host"
    maturity = Maturity.SANDBOX
    atlas = ("AML.T0025", "AML.T0024")
    owasp = ("LLM02:2025", "LLM10:2025")
    summary = "A GPU process, or its host, sends more bytes to others than the answers it served weigh."
    action = (
        "See evidence.peers: who is it, and what did the process open (integrity_weights)? Storage, checkpoints and "
        "other GPU hosts go into ignore. If nobody knows the peer, cut it off and treat the weights as copied."
    )
    blind_spots: ClassVar[tuple[str, ...]] = (
        "Slower than excess_bytes a day is never seen: 140 GB leave unnoticed in five weeks at 4 GB a day.",
        "Bytes that leave through another process (a proxy on loopback, scp) show in the host's sum alone.",
        "A connection that opens and closes between two looks is not counted for its process, only for the host.",
        "UDP (QUIC), RDMA and NVLink are not counted; other network namespaces are not seen.",
        "A busy server's allowance hides what leaves beside it: see bytes_per_token, and fit.",
        "Without request records everything is excess: the detector then only ranks peers, as information.",
    )
    Params = Params

    def __init__(self, params: Any, kernels: Kernels, section: Section | None = None) -> None:
        super().__init__(params, kernels, section)
        self._ignored = [ipaddress.ip_network(one) for one in params.ignore]
        self._hour_limit: float | None = None
        if section is not None:
            try:
                self._hour_limit = msgspec.convert(section.header.get("hour_bytes"), float)
            except msgspec.ValidationError as error:
                raise BaselineError(f"{self.name}: the baseline cannot be used: {error}") from error
        self._hosts: Keyed[_Host] = Keyed(_HOSTS_MAX, lambda _: _Host())

    def observe(self, records: Records) -> list[Finding]:
        """Fold requests, or what was sent."""
        if isinstance(records, RequestBatch):
            for name, synthetic, rows in by_host(records) if len(records) else ():
                first = float(np.clip(records.ts[rows[0]], -FAR_SECONDS, FAR_SECONDS))
                host = self._hosts.touch(f"{name}\0{int(synthetic)}", first)
                if host is not None:
                    _count(host, records, rows)
            return []
        if not isinstance(records, SocketSample):
            return []
        host = self._hosts.touch(f"{records.host}\0{int(records.synthetic)}", records.ts)
        if host is None:
            return []
        if records.ts < host.ts:
            host.sent.clear()
            host.peers.clear()
            host.interface.clear()
            host.interface_seconds.clear()
        host.ts, host.blind = records.ts, bool(records.blind)
        hour = int(records.ts // _HOUR)
        _forget(host, hour)
        found = [finding for one in records.traffic for finding in self._process(host, records, one, hour)]
        return [*found, *self._interface(host, records, hour)]

    def _process(self, host: _Host, sample: SocketSample, one: Traffic, hour: int) -> Iterator[Finding]:
        exe = "unreadable" if one.exe is None else printable(one.exe)
        name = f"{exe} uid={one.uid}"
        if name not in host.sent and len(host.sent) >= _PROCESSES_MAX:
            return
        counted = {p: n for p, n in zip(one.peers, one.peer_bytes, strict=False) if n > 0 and not self._is_ignored(p)}
        left_out = sum(n for p, n in zip(one.peers, one.peer_bytes, strict=False) if self._is_ignored(p))
        hours, peers = host.sent.setdefault(name, {}), host.peers.setdefault(name, {})
        hours[hour] = hours.get(hour, 0) + max(0, one.sent_bytes - left_out)
        for peer, count in counted.items():
            address = peer.rpartition(":")[0]
            if address in peers or len(peers) < _PEERS_MAX:
                peers[address] = peers.get(address, 0) + count
        total, allowed = sum(hours.values()), self._allowed(host)
        excess = total - allowed
        if excess < self.params.excess_bytes or not host.told.due(name, sample.ts, self.params.repeat_seconds):
            return
        ranked = sorted(peers.items(), key=lambda pair: (-pair[1], pair[0]))[:8]
        yield self._report(sample, one, name, (total, excess), ranked, known=bool(host.served))

    def _report(  # noqa: PLR0913 - who sent what to whom
        self,
        sample: SocketSample,
        one: Traffic,
        name: str,
        measured: tuple[float, float],
        ranked: list[tuple[str, int]],
        *,
        known: bool,
    ) -> Finding:
        total, excess = measured
        worst = ranked[0][1] if ranked else 0
        severity = Severity.INFO if not known else Severity.MEDIUM
        if known and min(worst, excess) >= self.params.peer_bytes:
            severity = Severity.HIGH
        to = f", {worst / 1e9:.1f} GB of it to {ranked[0][0]}" if ranked else ""
        beyond = f", {excess / 1e9:.1f} GB more than its answers weigh" if known else "; no requests are recorded"
        return self.finding(
            ts=sample.ts,
            subject_kind="process",
            subject=f"{name} egress",
            severity=severity,
            score=excess,
            threshold=self.params.excess_bytes,
            reason=f"{name} (pid {one.pid}) has sent {total / 1e9:.1f} GB within a day{to}{beyond}",
            evidence={
                "host": sample.host,
                "pid": one.pid,
                "start_ticks": one.start_ticks,
                "unit": one.unit,
                "sent_bytes": total,
                "excess_bytes": excess,
                "peers": [{"peer": peer, "bytes": count} for peer, count in ranked],
            },
            synthetic=sample.synthetic,
        )

    def _allowed(self, host: _Host) -> float:
        requests = sum(held[0] for held in host.served.values())
        tokens = sum(held[1] for held in host.served.values()) / _MILLI
        return requests * self.params.bytes_per_request + tokens * self.params.bytes_per_token

    def _is_ignored(self, peer: str) -> bool:
        try:
            address = ipaddress.ip_address(peer.rpartition(":")[0].strip("[]"))
        except ValueError:
            return False
        return any(address in network for network in self._ignored)

    def _interface(self, host: _Host, sample: SocketSample, hour: int) -> Iterator[Finding]:
        if sample.interface_bytes is None:
            return
        host.interface[hour] = host.interface.get(hour, 0) + sample.interface_bytes
        host.interface_seconds[hour] = host.interface_seconds.get(hour, 0) + round(sample.seconds)
        total = host.interface[hour]
        limit = None if self._hour_limit is None else 2 * self._hour_limit + self.params.excess_bytes
        if limit is None or total < limit or not host.told.due("host", sample.ts, self.params.repeat_seconds):
            return
        yield self.finding(
            ts=sample.ts,
            subject_kind="host",
            subject=f"{sample.host} egress",
            severity=Severity.LOW,
            score=total,
            threshold=limit,
            reason=f"the host has sent {total / 1e9:.1f} GB in this hour; the most of the baseline's hours was "
            f"{(self._hour_limit or 0) / 1e9:.1f} GB",
            evidence={"host": sample.host, "sent_bytes": total, "hour_ts": hour * _HOUR},
            synthetic=sample.synthetic,
        )

    def standing(self) -> Standing:
        """Armed where sockets of GPU processes can be seen."""
        hosts = [host for _, host in self._hosts.items() if host.ts > float("-inf")]
        gauges = {
            "hosts": float(len(hosts)),
            "senders": float(sum(len(host.sent) for host in hosts)),
            "refused": float(self._hosts.refused),
        }
        if not hosts:
            return Standing(DetectorState.STALE, "blind: no sockets have been looked at yet", gauges)
        whys = ["sockets of some GPU processes cannot be read"] if any(host.blind for host in hosts) else []
        if self._hour_limit is None:
            whys.append("no baseline: the host's sum is not judged")
        return Standing(DetectorState.ARMED, "; ".join(whys), gauges)

    def snapshot(self) -> bytes:
        """Every host's state."""
        return pack(self.version, self._hosts.dump())

    def restore(self, blob: bytes) -> None:
        """Take a snapshot's state."""
        self._hosts.load(as_state(unpack(self.version, blob), list[tuple[str, int, _Host]]))

    @classmethod
    def fit(cls, records: Iterable[Records], params: Any, kernels: Kernels) -> Fit | None:  # noqa: ARG003
        """Learn the busiest hour of the host's interfaces."""
        hours: dict[tuple[str, int], list[float]] = {}
        for one in records:
            if isinstance(one, SocketSample) and not one.synthetic and one.interface_bytes is not None:
                held = hours.setdefault((one.host, int(one.ts // _HOUR)), [0.0, 0.0])
                held[0] += one.interface_bytes
                held[1] += one.seconds
        if not hours:
            return None
        whole = [sent for sent, seconds in hours.values() if seconds >= 0.9 * _HOUR]
        if len(whole) < _HOURS:
            return Fit(None, f"{len(whole)} whole hours of interface counters, needs {_HOURS}: a day shows its backups")
        notes = (f"the busiest of {len(whole)} hours sent {max(whole) / 1e9:.2f} GB",)
        return Fit(Section({"hour_bytes": max(whole)}, {}), notes=notes)


def _count(host: _Host, batch: RequestBatch, rows: Any) -> None:
    """Requests and output tokens by the hour in which they completed."""
    hours = np.floor(np.clip(batch.completion[rows], -FAR_SECONDS, FAR_SECONDS) / _HOUR).astype(np.int64)
    tokens = np.rint(np.clip(np.nan_to_num(batch.number("output_tokens")[rows]), 0, 1e7) * _MILLI).astype(np.int64)
    for hour in np.unique(hours).tolist():
        held = host.served.setdefault(hour, [0, 0])
        held[0] += int((hours == hour).sum())
        held[1] += int(tokens[hours == hour].sum())
    if len(host.served) > 3 * _HOURS:
        latest = max(host.served)
        for old in [one for one in host.served if one < latest - _HOURS]:
            del host.served[old]


def _forget(host: _Host, hour: int) -> None:
    """Drop what is older than a day; peers are counted by calendar day."""
    for held in (host.interface, host.interface_seconds, *host.sent.values()):
        for old in [one for one in held if one <= hour - _HOURS]:
            del held[old]
    for old in [one for one in host.served if one <= hour - _HOURS]:
        del host.served[old]
    for name in [name for name, hours in host.sent.items() if not hours]:
        del host.sent[name]
        host.peers.pop(name, None)
    if hour // _HOURS != host.peer_day:
        host.peer_day = hour // _HOURS
        host.peers.clear()


DETECTOR = EgressBytes
