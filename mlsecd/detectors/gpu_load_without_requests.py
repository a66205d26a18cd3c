"""A GPU that works while nobody asks the host for anything."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Final

import msgspec
import numpy as np
from msgspec import Meta

from mlsecd.detectors import base
from mlsecd.detectors._allow import Allow, allows
from mlsecd.detectors._gpu_idle import Idle, learn
from mlsecd.detectors._gpu_load import Load, busy, holders
from mlsecd.detectors._gpu_processes import GpuProcesses, Table, as_state
from mlsecd.detectors._hearing import SOURCES, Hearing
from mlsecd.detectors._server_load import as_requests
from mlsecd.detectors._serving import BIN_MS, FAR_SECONDS, Serving, by_host
from mlsecd.detectors.base import Detector, DetectorState, Fit, Maturity, Section, Standing
from mlsecd.errors import BaselineError
from mlsecd.kernels import Kernels
from mlsecd.records import (
    Finding,
    GpuSample,
    Kind,
    ProcessTable,
    Records,
    RequestBatch,
    ServerSample,
    Severity,
    SourceStatus,
)
from mlsecd.windows.keyed import Keyed
from mlsecd.windows.packing import pack, unpack

__all__ = ["DETECTOR", "GpuLoadWithoutRequests", "Params"]

_HOSTS_MAX: Final = 256
_GPUS_MAX: Final = 256  # on one host, MIG instances included
_NEVER: Final = float("-inf")

_Seconds = Annotated[float, Meta(ge=0, le=86_400)]
_Share = Annotated[float, Meta(gt=0, le=1)]


class Params(base.Params, frozen=True):
    """What counts as load, and what explains it."""

    utilization_threshold: Annotated[_Share, Meta(description="utilization (0 to 1) from which a GPU is busy")] = 0.2
    power_ratio_threshold: Annotated[
        _Share, Meta(description="power over the power limit from which a GPU is busy, where the idle power is unknown")
    ] = 0.25
    sustained_seconds: Annotated[
        float, Meta(ge=30, le=86_400, description="load without requests must go on for this long")
    ] = 300.0
    max_sustained_seconds: Annotated[
        float,
        Meta(ge=30, le=86_400, description="how far long requests may stretch sustained_seconds: 1.5 x the longest"),
    ] = 1800.0
    unexplained_ratio: Annotated[_Share, Meta(description="part of that time that no request explains")] = 0.8
    request_grace_seconds: Annotated[_Seconds, Meta(description="load that a request may leave behind it")] = 1.0
    assumed_request_seconds: Annotated[
        _Seconds, Meta(description="load before and after a request whose duration is not recorded")
    ] = 10.0
    warmup_seconds: Annotated[
        _Seconds, Meta(description="load that a new GPU process may cause while it loads its model")
    ] = 120.0
    source_alive_seconds: Annotated[
        float, Meta(ge=1, le=3600, description="a request source must have delivered within this time")
    ] = 60.0
    request_sources: Annotated[
        tuple[str, ...], Meta(min_length=1, max_length=64, description="sources whose silence means that nobody asked")
    ] = SOURCES
    batch: Annotated[
        tuple[Allow, ...], Meta(max_length=1024, description="processes that may load a GPU without any request")
    ] = ()
    repeat_seconds: Annotated[
        float, Meta(ge=1, le=300, description="event time between repeats of a finding that goes on")
    ] = 30.0


@dataclass(slots=True)
class _Host:
    """One host: its GPUs, its requests, and whether anybody would hear a request."""

    host: str = ""
    synthetic: bool = False
    now: float = _NEVER
    refused: int = 0
    serving: Serving = field(default_factory=Serving)
    hearing: Hearing = field(default_factory=Hearing)
    gpus: dict[str, Load] = field(default_factory=dict)


class GpuLoadWithoutRequests(Detector):
    """Adds up the time that a GPU works while no request is under way, and a request would have been seen.

    Requests are known once they complete, so one that is still running cannot explain its load yet:
    the time that must pass follows the longest request of today and yesterday.
    """

    name = "gpu_load_without_requests"
    consumes = frozenset({Kind.REQUEST, Kind.GPU, Kind.PROCESS, Kind.SERVER, Kind.SOURCE})
    key = "host"
    maturity = Maturity.INCUBATING
    atlas = ("AML.T0112", "AML.T0048.000")  # 5.6.0 has no "resource hijacking": the compromise, and its cost
    owasp = ("LLM10:2025",)
    summary = (
        "A GPU is busy for minutes while the host serves no requests: a miner, a stray job, or a way past the tap."
    )
    action = (
        "See which processes hold the GPU (evidence.processes) and who started them. A job that belongs here goes into "
        "this detector's batch list; a server whose requests are not recorded needs a tap."
    )
    blind_spots: ClassVar[tuple[str, ...]] = (
        "A load below both thresholds (20 % of the time, or a quarter of the power limit) counts as idle.",
        "Work that runs only beside real traffic is explained by that traffic.",
        "Requests that an insider sends to cover the load explain it, as long as they are not refused.",
        "With no live request source there is no verdict: silence of a dead tap is no evidence.",
        "A GPU that a batch process shares with something else is not judged.",
        "A server on the host that has no tap looks like load without requests: a finding, though no attack.",
        "The first request that runs longer than any of late may be reported before it completes.",
    )
    Params = Params

    def __init__(self, params: Any, kernels: Kernels, section: Section | None = None) -> None:
        super().__init__(params, kernels, section)
        self._idle: dict[str, Idle] = {}
        if section is not None:
            try:
                self._idle = msgspec.convert(section.header.get("idle"), dict[str, Idle])
            except msgspec.ValidationError as error:
                raise BaselineError(f"{self.name}: the baseline's idle levels cannot be used: {error}") from error
        longest = max(params.sustained_seconds, params.max_sustained_seconds)
        self._keep = math.ceil(longest * 1000 / BIN_MS) + 4  # bins that a judgement may look back
        self._hosts: Keyed[_Host] = Keyed(_HOSTS_MAX, lambda _: _Host())

    def observe(self, records: Records) -> list[Finding]:
        """Fold requests, or one record of another kind."""
        if isinstance(records, ServerSample):
            records = as_requests(records)
        if isinstance(records, RequestBatch):
            for name, synthetic, rows in by_host(records) if len(records) else ():
                first = np.clip(records.ts[rows[0]], -FAR_SECONDS, FAR_SECONDS)
                host = self._host(name, float(first), synthetic=synthetic)
                if host is not None:
                    host.serving.take(records, rows, self.params, self._keep)
            return []
        host = self._host(records.host, records.ts, synthetic=records.synthetic)
        if host is None:
            return []
        host.now = records.ts
        if isinstance(records, GpuSample):
            return self._sample(host, records)
        if isinstance(records, ProcessTable):
            table = Table(records)
            for gpu in host.gpus.values():
                gpu.processes.table(table)
        elif isinstance(records, SourceStatus) and records.source in self.params.request_sources:
            host.hearing.hear(records)
        return []

    def _host(self, name: str, ts: float, *, synthetic: bool) -> _Host | None:
        host = self._hosts.touch(f"{name}\0{int(synthetic)}", ts)
        if host is not None:
            host.host, host.synthetic = name, synthetic
        return host

    def _sample(self, host: _Host, sample: GpuSample) -> list[Finding]:
        if sample.gpu not in host.gpus and len(host.gpus) >= _GPUS_MAX:
            host.refused += 1
            return []
        gpu = host.gpus.setdefault(sample.gpu, Load(GpuProcesses.of(sample)))
        if sample.ts < gpu.last_ts:  # time was set back: what was added up belongs to another time
            host.gpus[sample.gpu] = gpu = Load(GpuProcesses.of(sample))
        params = self.params
        since = gpu.step(sample, params.warmup_seconds)
        idle = self._idle.get(sample.gpu, Idle())
        if since is None or not busy(sample, idle, params.utilization_threshold, params.power_ratio_threshold):
            return []
        if self._batch(gpu.processes) or self._deaf(host, sample.ts) is not None:
            return []
        gpu.add(since, sample.ts)
        return self._judge(host, gpu, sample) if gpu.enters_bin() else []

    def _batch(self, gpu: GpuProcesses) -> bool:
        known = gpu.known() if self.params.batch else []
        return any(allows(self.params.batch, process, gpu.gpu, sight.around) for sight, process in known)

    def _deaf(self, host: _Host, ts: float) -> str | None:
        if not host.serving.accepted:
            host.serving.settle(self.params, self._keep)
        return host.hearing.deaf(ts, self.params.source_alive_seconds, host.serving.accepted)

    def _judge(self, host: _Host, gpu: Load, sample: GpuSample) -> list[Finding]:
        host.serving.settle(self.params, self._keep)
        # a request that still runs is not known yet: allow for one as long as the longest of late, and a half
        stretched = min(self.params.max_sustained_seconds, 1.5 * host.serving.longest)
        seconds = max(self.params.sustained_seconds, stretched)
        share, bins = gpu.unexplained(host.serving, seconds, self._keep)
        if share < self.params.unexplained_ratio or sample.ts - gpu.emitted_ts < self.params.repeat_seconds:
            return []
        gpu.emitted_ts = sample.ts
        completed = sum(host.serving.completed.get(one, 0) for one in (*bins, bins.stop))
        return [self._report(host, gpu, sample, share=share, seconds=seconds, completed=completed)]

    def _report(  # noqa: PLR0913 - what was measured, by name
        self, host: _Host, gpu: Load, sample: GpuSample, *, share: float, seconds: float, completed: int
    ) -> Finding:
        ever = host.serving.last_ts > _NEVER
        quiet = f"{completed or 'no'} request{'' if completed == 1 else 's'} completed"
        last = (
            f"; the last one {max(0.0, sample.ts - host.serving.last_ts):.0f} s ago" if ever else "; none was ever seen"
        )
        load = "" if sample.utilization is None else f" at {sample.utilization:.0%}"
        power = "" if sample.power_watts is None else f", {sample.power_watts:.0f} W"
        return self.finding(
            ts=sample.ts,
            subject_kind="gpu",
            subject=sample.gpu,
            severity=Severity.MEDIUM,
            score=share,
            threshold=self.params.unexplained_ratio,
            reason=f"{sample.gpu} is busy{load}{power}; in the last {seconds:.0f} s {quiet}{last}; "
            f"{share:.0%} of that time is load that no request explains",
            evidence={
                "gpu": sample.gpu,
                "host": host.host,
                "utilization": sample.utilization,
                "power_watts": sample.power_watts,
                "window_seconds": seconds,
                "unexplained_seconds": share * seconds,
                "requests": completed,
                "last_request_ts": host.serving.last_ts if ever else None,
                "request_sources": sorted(host.hearing.sources),
                "processes": holders(gpu.processes),
            },
            synthetic=sample.synthetic,
        )

    def standing(self) -> Standing:
        """Armed where a request would have been seen; blind, and why, elsewhere."""
        every = [host for _, _, host in self._hosts.dump() if host.gpus]
        hosts = [host for host in every if not host.synthetic] or every
        deaf = [reason for host in hosts if (reason := self._deaf(host, host.now)) is not None]
        gauges = {
            "hosts": float(len(hosts)),
            "blind_hosts": float(len(deaf)),
            "gpus": float(sum(len(host.gpus) for host in hosts)),
            "idle_levels": float(len(self._idle)),
            "refused": float(self._hosts.refused + sum(host.refused for host in hosts)),
        }
        if not hosts:
            return Standing(DetectorState.STALE, "blind: no GPU sample yet", gauges)
        if deaf:
            return Standing(DetectorState.STALE, f"blind: {deaf[0]}", gauges)
        return Standing(DetectorState.ARMED, "", gauges)

    def snapshot(self) -> bytes:
        """Every host's state."""
        for _, _, host in self._hosts.dump():
            host.serving.settle(self.params, self._keep)
        return pack(self.version, self._hosts.dump())

    def restore(self, blob: bytes) -> None:
        """Take a snapshot's state."""
        self._hosts.load(as_state(unpack(self.version, blob), list[tuple[str, int, _Host]]))

    @classmethod
    def fit(cls, records: Iterable[Records], params: Any, kernels: Kernels) -> Fit | None:  # noqa: ARG003
        """Learn each GPU's utilization and power while no request is under way."""
        return learn(records, params)


DETECTOR = GpuLoadWithoutRequests
