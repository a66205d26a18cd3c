"""A GPU that draws more than its host's requests explain: a miner beside real traffic, or one that holds back."""

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
from mlsecd.detectors._gpu_load import Load, holders
from mlsecd.detectors._gpu_processes import GpuProcesses, Table, as_state
from mlsecd.detectors._hearing import SOURCES, Hearing
from mlsecd.detectors._power_bins import BIN_SECONDS, FEATURES, Draw, Work, features
from mlsecd.detectors._power_fit import Ordinary, learn, step
from mlsecd.detectors._serving import FAR_SECONDS, by_host
from mlsecd.detectors.base import Detector, DetectorState, Fit, Maturity, Section, Standing
from mlsecd.errors import BaselineError
from mlsecd.kernels import Kernels
from mlsecd.records import Finding, GpuSample, Kind, ProcessTable, Records, RequestBatch, Severity, SourceStatus
from mlsecd.windows.keyed import Keyed
from mlsecd.windows.packing import pack, unpack

__all__ = ["DETECTOR", "GpuPowerUnexplained", "Params"]

_HOSTS_MAX: Final = 64
_GPUS_MAX: Final = 256
_DEFAULT_SHARE: Final = 0.1
_WEEK_BINS: Final = 604_800 // BIN_SECONDS
_LATE_BINS: Final = 120
_HOUR_BINS: Final = 3_600 // BIN_SECONDS
_TOKENS_MIN: Final = 1_000.0
_ALIVE_SECONDS: Final = 60.0
_COSTLY_HOURS: Final = 3  # hours in a row above the limit of joules per token
_NEVER: Final = float("-inf")


class Params(base.Params, frozen=True):
    """What explains power, and how sure to be."""

    false_alarms_per_week: (
        Annotated[float, Meta(gt=0, description="share of the budget; default: handed down from [budget]")] | None
    ) = None
    settle_seconds: Annotated[
        float, Meta(ge=0, le=3600, description="a minute is judged after this: longer requests explain it too late")
    ] = 120.0
    warmup_seconds: Annotated[
        float, Meta(ge=0, le=86_400, description="load that a new GPU process may cause while it loads its model")
    ] = 180.0
    request_sources: Annotated[
        tuple[str, ...], Meta(min_length=1, max_length=64, description="sources whose silence means that nobody asked")
    ] = SOURCES
    batch: Annotated[
        tuple[Allow, ...], Meta(max_length=1024, description="processes that may load a GPU without any request")
    ] = ()


@dataclass(slots=True)
class _Gpu:
    """One GPU: its draw, and the e-detector over its minutes."""

    load: Load
    draw: Draw = field(default_factory=Draw)
    forgiven: dict[int, bool] = field(default_factory=dict)  # bins that are not judged
    judged: int | None = None  # the latest bin that was
    log: float = 0.0
    onset: int | None = None  # the bin from which it has been above zero
    excess: float = 0.0  # watts above the limit since then, summed over minutes
    minutes: int = 0
    hour: int = -1
    hour_sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])  # joules, tokens, minutes
    costly: int = 0


@dataclass(slots=True)
class _Host:
    """One host: its requests, and whether one would have been heard."""

    now: float = _NEVER
    accepted: int = 0
    last_ts: float = _NEVER
    work: Work = field(default_factory=Work)
    hearing: Hearing = field(default_factory=Hearing)
    gpus: dict[str, _Gpu] = field(default_factory=dict)


class GpuPowerUnexplained(Detector):
    """Holds each minute's power against an upper quantile that was learned from requests and tokens.

    Minutes above it bet against "ordinary" (an e-detector: Bernoulli 0.05 against 0.6, never below 1), so that
    watching for ever costs the budgeted share of false alarms where minutes were independent; they are not,
    and so the threshold also stands above the worst that the held-out recording showed, and a half.
    """

    name = "gpu_power_unexplained"
    consumes = frozenset({Kind.REQUEST, Kind.GPU, Kind.PROCESS, Kind.SOURCE})
    key = "host"
    maturity = Maturity.SANDBOX
    atlas = ("AML.T0112", "AML.T0048.000")
    owasp = ("LLM10:2025",)
    summary = "A GPU draws more power than the requests of its host explain, or tokens cost more energy than before."
    action = (
        "See which processes hold the GPU (evidence.processes). If load, model or engine changed, fit the baseline "
        "again; a job that belongs here goes into this detector's batch list; else look for what runs beside it."
    )
    blind_spots: ClassVar[tuple[str, ...]] = (
        "Work that costs less than the spread of ordinary minutes: see docs/detection.md for what was measured.",
        "A miner that runs only while traffic is far above what was recorded, where the line is extrapolated.",
        "Load that an insider covers with requests of his own explains itself.",
        "Without a baseline, and for GPUs that it does not hold, it says nothing.",
        "An upgrade of engine, model or driver changes what is ordinary: fit again, or it reports the change.",
        "Requests longer than settle_seconds are counted too late for their first minutes.",
    )
    Params = Params

    def __init__(self, params: Any, kernels: Kernels, section: Section | None = None) -> None:
        super().__init__(params, kernels, section)
        self._models: tuple[str, ...] = ()
        self._known: dict[str, Ordinary] = {}
        if section is not None:
            try:
                self._models = msgspec.convert(section.header.get("models"), tuple[str, ...])
                self._known = msgspec.convert(section.header.get("gpus"), dict[str, Ordinary])
            except msgspec.ValidationError as error:
                raise BaselineError(f"{self.name}: the baseline cannot be used: {error}") from error
            if any(len(one.weights) != FEATURES * (len(self._models) + 1) for one in self._known.values()):
                raise BaselineError(f"{self.name}: the baseline was made for other features: fit it again")
        share = (params.false_alarms_per_week or _DEFAULT_SHARE) / max(1, len(self._known))
        self._least = math.log(_WEEK_BINS / share)
        self._keep = math.ceil(params.settle_seconds / BIN_SECONDS) + _LATE_BINS
        self._hosts: Keyed[_Host] = Keyed(_HOSTS_MAX, lambda _: _Host())

    def observe(self, records: Records) -> list[Finding]:
        """Fold requests, or one record of another kind."""
        if isinstance(records, RequestBatch):
            for name, synthetic, rows in by_host(records) if len(records) else ():
                first = float(np.clip(records.ts[rows[0]], -FAR_SECONDS, FAR_SECONDS))
                host = self._hosts.touch(f"{name}\0{int(synthetic)}", first)
                if host is not None:
                    host.accepted += len(rows)
                    host.work.take(records, rows, self._models, self._keep)
            return []
        host = self._hosts.touch(f"{records.host}\0{int(records.synthetic)}", records.ts)
        if host is None:
            return []
        host.now = records.ts
        if isinstance(records, GpuSample):
            return self._sample(host, records)
        if isinstance(records, ProcessTable):
            table = Table(records)
            for gpu in host.gpus.values():
                gpu.load.processes.table(table)
        elif isinstance(records, SourceStatus) and records.source in self.params.request_sources:
            host.hearing.hear(records)
        return []

    def _sample(self, host: _Host, sample: GpuSample) -> list[Finding]:
        ordinary = self._known.get(sample.gpu)
        if ordinary is None or sample.state != "ok" or (sample.gpu not in host.gpus and len(host.gpus) >= _GPUS_MAX):
            return []
        gpu = host.gpus.get(sample.gpu)
        if gpu is None or sample.ts < gpu.load.last_ts:
            host.gpus[sample.gpu] = gpu = _Gpu(Load(GpuProcesses.of(sample)))
        quiet = gpu.load.step(sample, self.params.warmup_seconds) is None
        one = math.floor(sample.ts / BIN_SECONDS)
        if quiet or host.hearing.deaf(sample.ts, _ALIVE_SECONDS, host.accepted) is not None or self._batch(gpu):
            gpu.forgiven[one] = True
        gpu.draw.take(sample)
        due = math.floor((sample.ts - self.params.settle_seconds) / BIN_SECONDS) - 1
        if gpu.judged is None:
            gpu.judged = one  # its first minute is not whole
        found: list[Finding] = []
        for minute in range(max(gpu.judged + 1, due - _LATE_BINS), due + 1):
            found += self._judge(host, gpu, sample, ordinary, minute)
            gpu.judged = minute
            gpu.draw.bins.pop(minute, None)
            gpu.forgiven.pop(minute, None)
        return found

    def _batch(self, gpu: _Gpu) -> bool:
        held = gpu.load.processes
        known = held.known() if self.params.batch else []
        return any(allows(self.params.batch, process, held.gpu, sight.around) for sight, process in known)

    def _judge(self, host: _Host, gpu: _Gpu, sample: GpuSample, ordinary: Ordinary, minute: int) -> list[Finding]:
        means = gpu.draw.means(minute)
        if means is None or not math.isfinite(means[0]) or minute in gpu.forgiven:
            return []
        limit = ordinary.offset + float(features(host.work, minute, len(self._models)) @ np.array(ordinary.weights))
        found = self._hour(host, gpu, sample, ordinary, minute, means[0])
        over = means[0] - limit
        gpu.log = max(0.0, gpu.log + step(over > 0))
        if gpu.log == 0.0:
            gpu.onset, gpu.excess, gpu.minutes = None, 0.0, 0
            return found
        gpu.onset = minute if gpu.onset is None else gpu.onset
        gpu.excess += over
        gpu.minutes += 1
        threshold = self._threshold(ordinary)
        if gpu.log < threshold:
            return found
        gpu.log = min(gpu.log, 2 * threshold)  # so that it can end
        mean = gpu.excess / gpu.minutes
        reason = (
            f"{sample.gpu} has drawn {mean:.0f} W more for {gpu.minutes} minutes than the most that "
            f"{len(self._models)} {'model' if len(self._models) == 1 else 'models'}' requests explain"
        )
        evidence = {"kind": "power", "onset_ts": gpu.onset * BIN_SECONDS, "excess_watts": mean, "limit_watts": limit}
        return [*found, self._report(gpu, sample, Severity.MEDIUM, (gpu.log, threshold), reason, evidence)]

    def _threshold(self, ordinary: Ordinary) -> float:
        return max(self._least, 1.5 * ordinary.worst)

    def _hour(  # noqa: PLR0913, PLR0917 - one minute of one GPU
        self, host: _Host, gpu: _Gpu, sample: GpuSample, ordinary: Ordinary, minute: int, power: float
    ) -> list[Finding]:
        """Energy per token, by whole hours."""
        hour, found = minute // _HOUR_BINS, []
        if hour != gpu.hour:
            joules, tokens, minutes = gpu.hour_sums
            if ordinary.joules_per_token is not None and tokens >= _TOKENS_MIN and minutes >= _HOUR_BINS - 10:
                cost = joules / tokens
                gpu.costly = gpu.costly + 1 if cost > ordinary.joules_per_token else 0
                if gpu.costly >= _COSTLY_HOURS:
                    reason = (
                        f"a token has cost {cost:.2f} J on {sample.gpu} for {gpu.costly} hours, more than ever before"
                    )
                    measured = (cost, ordinary.joules_per_token)
                    found = [self._report(gpu, sample, Severity.LOW, measured, reason, {"kind": "energy"})]
            gpu.hour, gpu.hour_sums = hour, [0.0, 0.0, 0.0]
        gpu.hour_sums[0] += power * BIN_SECONDS
        gpu.hour_sums[1] += host.work.tokens(minute)
        gpu.hour_sums[2] += 1
        return found

    def _report(  # noqa: PLR0913, PLR0917 - what was measured
        self,
        gpu: _Gpu,
        sample: GpuSample,
        severity: Severity,
        measured: tuple[float, float],
        reason: str,
        evidence: dict[str, Any],
    ) -> Finding:
        about = {"gpu": sample.gpu, "host": sample.host, "processes": holders(gpu.load.processes)}
        return self.finding(
            ts=sample.ts,
            subject_kind="gpu",
            subject=sample.gpu if evidence["kind"] == "power" else f"{sample.gpu} energy",
            severity=severity,
            score=measured[0],
            threshold=measured[1],
            reason=reason,
            evidence={**about, **evidence},
            synthetic=sample.synthetic,
        )

    def standing(self) -> Standing:
        """Learning without a baseline; armed where a request would have been heard."""
        hosts = [host for _, host in self._hosts.items() if host.gpus]
        deaf = [why for host in hosts if (why := host.hearing.deaf(host.now, _ALIVE_SECONDS, host.accepted))]
        gauges = {
            "gpus": float(sum(len(host.gpus) for host in hosts)),
            "baseline_gpus": float(len(self._known)),
            "blind_hosts": float(len(deaf)),
            "refused": float(self._hosts.refused),
        }
        if not self._known:
            return Standing(DetectorState.LEARNING, "no baseline: record four hours of service, then fit", gauges)
        if deaf:
            return Standing(DetectorState.STALE, f"blind: {deaf[0]}", gauges)
        return Standing(DetectorState.ARMED, "", gauges)

    def snapshot(self) -> bytes:
        """Every host's state."""
        return pack(self.version, self._hosts.dump())

    def restore(self, blob: bytes) -> None:
        """Take a snapshot's state."""
        self._hosts.load(as_state(unpack(self.version, blob), list[tuple[str, int, _Host]]))

    @classmethod
    def fit(cls, records: Iterable[Records], params: Any, kernels: Kernels) -> Fit | None:  # noqa: ARG003
        """Learn each GPU's power from the requests of its host."""
        return learn(records)


DETECTOR = GpuPowerUnexplained
