"""How GPUs are set up: changes of settings and firmware, required settings, and versions with known holes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Final

import msgspec
from msgspec import Meta

from mlsecd.detectors import base
from mlsecd.detectors._floors import Floor, judged
from mlsecd.detectors._gpu_processes import as_state, gpu_key, printable
from mlsecd.detectors._posture_rules import Require, grave
from mlsecd.detectors._told import Told
from mlsecd.detectors.base import Detector, DetectorState, Fit, Interval, Maturity, Section, Standing
from mlsecd.errors import BaselineError
from mlsecd.kernels import Kernels
from mlsecd.records import Finding, GpuSample, Kind, Records, Severity
from mlsecd.windows.keyed import Keyed
from mlsecd.windows.packing import pack, unpack

__all__ = ["DETECTOR", "GpuPosture", "Params"]

_GPUS_MAX: Final = 256
_FIELDS_MAX: Final = 64
_DAY: Final = 86_400.0
_NEVER: Final = float("-inf")
_TWINS: Final = ("vbios_version", "inforom_version")  # boards of one name should agree on these


class Params(base.Params, frozen=True):
    """What must be, and how long a change stays news."""

    require: Annotated[tuple[Require, ...], Meta(max_length=64, description="settings that every GPU must have")] = (
        Require(field="confidential_compute_devtools", value="disabled"),
    )
    floors: Annotated[
        tuple[Floor, ...],
        Meta(max_length=512, description="versions below which a hole is known, beside those of the [floors] file"),
    ] = ()
    adopt_seconds: Annotated[
        float,
        Meta(ge=0, le=31_536_000, description="a change that is low or medium becomes the reference after this"),
    ] = _DAY
    repeat_seconds: Annotated[
        float, Meta(ge=1, le=300, description="event time between repeats of a finding that goes on")
    ] = 300.0


@dataclass(slots=True)
class _Gpu:
    """One GPU's settings."""

    host: str = ""
    synthetic: bool = False
    gpu: str = ""
    name: str = ""
    last_ts: float = _NEVER
    posture: dict[str, str] = field(default_factory=dict)
    reference: dict[str, str] = field(default_factory=dict)
    changed: dict[str, float] = field(default_factory=dict)  # since when a field differs
    told: Told = field(default_factory=Told)


class GpuPosture(Detector):
    """Compares each GPU with its reference: the baseline's, or what it was when first seen.

    A field that NVML does not tell is unknown, not passed and not failed.
    """

    name = "gpu_posture"
    consumes = frozenset({Kind.GPU})
    key = "gpu"
    maturity = Maturity.INCUBATING
    atlas = ("AML.T0010.000", "AML.T0112")
    owasp = ("LLM03:2025",)
    summary = "A GPU's settings, firmware or driver changed, are not as required, or have a known hole."
    action = (
        "Find out who changed it (change log, sudo history, journal). If it was planned, fit the baseline again or add "
        "an exception with an end date; if not, put it back and look for what else was changed."
    )
    blind_spots: ClassVar[tuple[str, ...]] = (
        "What was wrong when the reference was learned is the reference.",
        "Versions are what the driver and dpkg say; a tampered driver says what it likes. RPM's list is not read.",
        "Floors are as old as their file: bulletins overtake any list, the shipped one too; doctor says its date.",
        "A driver branch that no floor names is unknown, be it too new for the list or too old for repairs.",
        "A setting that is changed and put back within posture_seconds of the nvml source is not seen.",
        "Whether firmware is genuine takes attestation, which needs confidential computing and NVIDIA's service.",
    )
    Params = Params

    def __init__(self, params: Any, kernels: Kernels, section: Section | None = None) -> None:
        super().__init__(params, kernels, section)
        self._known: dict[str, dict[str, str]] = {}
        if section is not None:
            try:
                self._known = msgspec.convert(section.header.get("postures"), dict[str, dict[str, str]])
            except msgspec.ValidationError as error:
                raise BaselineError(f"{self.name}: the baseline's settings cannot be used: {error}") from error
        self._gpus: Keyed[_Gpu] = Keyed(_GPUS_MAX, lambda _: _Gpu())

    def observe(self, records: Records) -> list[Finding]:
        """Fold one GPU sample."""
        if not isinstance(records, GpuSample) or records.state != "ok" or not records.posture:
            return []
        gpu = self._gpus.touch(gpu_key(records.host, records.gpu, synthetic=records.synthetic), records.ts)
        if gpu is None:
            return []
        if not gpu.gpu:
            gpu.host, gpu.synthetic, gpu.gpu = records.host, records.synthetic, records.gpu
            known = {} if records.synthetic else self._known.get(records.gpu, {})
            gpu.reference = dict(known or _slim(records.posture))
        if records.ts < gpu.last_ts:
            gpu.changed.clear()
        gpu.name, gpu.last_ts, gpu.posture = records.name or gpu.name, records.ts, _slim(records.posture)
        return [*self._drift(gpu, records), *self._policy(gpu, records)]

    def _drift(self, gpu: _Gpu, sample: GpuSample) -> Iterator[Finding]:
        for name, after in gpu.posture.items():
            before = gpu.reference.setdefault(name, after)
            if before == after:
                gpu.changed.pop(name, None)
                continue
            severity = grave(name, after)
            since = gpu.changed.setdefault(name, sample.ts)
            if severity is None or (
                severity.rank <= Severity.MEDIUM.rank and sample.ts - since >= self.params.adopt_seconds
            ):
                gpu.reference[name] = after
                del gpu.changed[name]
                continue
            reason = f"{name} is {after}, and was {before}"
            yield from self._report(
                gpu, sample, name, severity, reason, {"before": before, "after": after, "since_ts": since}
            )

    def _policy(self, gpu: _Gpu, sample: GpuSample) -> Iterator[Finding]:
        for rule, state, reason in _checks(self.params, gpu.posture):
            if state is False:
                severity = Severity.HIGH if isinstance(rule, Require) else Severity.MEDIUM
                source = rule.source if isinstance(rule, Floor) else ""
                cited = {"source": source} if source else {}
                yield from self._report(gpu, sample, f"{rule.field} policy", severity, reason, cited)

    def _report(  # noqa: PLR0913, PLR0917 - what differs, from what
        self, gpu: _Gpu, sample: GpuSample, what: str, severity: Severity, reason: str, evidence: dict[str, Any]
    ) -> Iterator[Finding]:
        if not gpu.told.due(f"{what} {severity}", sample.ts, self.params.repeat_seconds):
            return
        index = "" if sample.index is None else f"GPU {sample.index} "
        yield self.finding(
            ts=sample.ts,
            subject_kind="gpu",
            subject=f"{sample.gpu} {printable(what, 64)}",
            severity=severity,
            score=1.0,
            threshold=1.0,
            reason=f"{index}{sample.gpu}: {printable(reason, 400)}",
            evidence={"gpu": sample.gpu, "host": sample.host, "what": what, "name": sample.name, **evidence},
            synthetic=sample.synthetic,
        )

    def states(self) -> Iterable[tuple[str, Any]]:
        """Each GPU's state."""
        return self._gpus.items()

    def close(self, interval: Interval, states: Iterable[tuple[str, Any]]) -> list[Finding]:
        """Boards of one name on one host that differ in firmware: one was flashed, or swapped."""
        groups: dict[tuple[str, bool, str], list[_Gpu]] = {}
        for _, gpu in states:
            if interval.start <= gpu.last_ts < interval.end and gpu.name:
                groups.setdefault((gpu.host, gpu.synthetic, gpu.name), []).append(gpu)
        found = []
        for (host, synthetic, name), gpus in groups.items():
            for what in _TWINS:
                versions = sorted({gpu.posture[what] for gpu in gpus if what in gpu.posture})
                if len(versions) > 1 and int(interval.start) % 300 < interval.end - interval.start:
                    by = {one: [gpu.gpu for gpu in gpus if gpu.posture.get(what) == one][:16] for one in versions[:8]}
                    found.append(
                        self.finding(
                            ts=max(gpu.last_ts for gpu in gpus),
                            subject_kind="host",
                            subject=f"{host} {what}",
                            severity=Severity.LOW,
                            score=len(versions),
                            threshold=1.0,
                            reason=f"{len(gpus)} GPUs of one kind ({printable(name, 64)}) have {len(versions)} {what}s",
                            evidence={"host": host, "what": what, "versions": by},
                            synthetic=synthetic,
                        )
                    )
        return found

    def standing(self) -> Standing:
        """Armed from the first sample; how many checks passed, failed, and cannot be told."""
        every = [gpu for _, gpu in self._gpus.items()]
        gpus = [gpu for gpu in every if not gpu.synthetic] or every
        states = [state for gpu in gpus for _, state, _ in _checks(self.params, gpu.posture)]
        gauges = {
            "gpus": float(len(gpus)),
            "checks_passed": float(states.count(True)),
            "checks_failed": float(states.count(False)),
            "checks_unknown": float(states.count(None)),
            "changed_settings": float(sum(len(gpu.changed) for gpu in gpus)),
            "refused": float(self._gpus.refused),
        }
        if not gpus:
            return Standing(DetectorState.STALE, "blind: no GPU sample yet", gauges)
        unknown = states.count(None)
        why = f"{unknown} of {len(states)} checks cannot be told here" if unknown else ""
        return Standing(DetectorState.ARMED, why, gauges)

    def snapshot(self) -> bytes:
        """Every GPU's state."""
        return pack(self.version, self._gpus.dump())

    def restore(self, blob: bytes) -> None:
        """Take a snapshot's state."""
        self._gpus.load(as_state(unpack(self.version, blob), list[tuple[str, int, _Gpu]]))

    @classmethod
    def fit(cls, records: Iterable[Records], params: Any, kernels: Kernels) -> Fit | None:  # noqa: ARG003
        """Learn each GPU's settings as they are at the end of the recording."""
        postures: dict[str, dict[str, str]] = {}
        for one in records:
            if not isinstance(one, GpuSample) or one.synthetic or not one.posture or one.state != "ok":
                continue
            if one.gpu in postures or len(postures) < _GPUS_MAX:
                postures[one.gpu] = _slim(one.posture)
        if not postures:
            return Fit(None, "no GPU sample tells settings: record with the nvml source for a minute or more")
        return Fit(Section({"postures": postures}, {}), notes=(f"settings of {len(postures)} GPUs are the reference",))


def _slim(posture: dict[str, str]) -> dict[str, str]:
    return {key[:64]: value[:256] for key, value in list(posture.items())[:_FIELDS_MAX]}


def _checks(params: Any, posture: dict[str, str]) -> Iterator[tuple[Require | Floor, bool | None, str]]:
    """Every rule with pass, fail or unknown, and the reason of a failure."""
    for rule in params.require:
        have = posture.get(rule.field)
        yield rule, None if have is None else have == rule.value, f"{rule.field} is {have}, and must be {rule.value}"
    for name in dict.fromkeys(floor.field for floor in params.floors):
        have = posture.get(name)
        for floor, good in judged(params.floors, name, have):
            why = f": {floor.why}" if floor.why else ""
            yield floor, good, f"{name} {have} is older than {floor.at_least}{why}"


DETECTOR = GpuPosture
