"""A GPU that fell off the bus, hangs, wants a reset, or is no longer there; and a driver that no longer answers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Final

from msgspec import Meta

from mlsecd.detectors import base
from mlsecd.detectors._gpu_processes import as_state, gpu_key, printable
from mlsecd.detectors._gpu_roll import Card, Host, Steady, host_key, witnessed
from mlsecd.detectors.base import Detector, DetectorState, Interval, Maturity, Section, Standing
from mlsecd.kernels import Kernels
from mlsecd.records import Finding, GpuSample, Kind, Records, Severity, SourceStatus
from mlsecd.windows.keyed import Keyed
from mlsecd.windows.packing import pack, unpack

__all__ = ["DETECTOR", "GpuLost", "Params"]

_GPUS_MAX: Final = 256
_HOSTS_MAX: Final = 256
_SHOWN_MAX: Final = 16

_SEVERITY: Final = {"lost": Severity.HIGH, "hung": Severity.HIGH, "reset_required": Severity.MEDIUM}
_ACTIONS: Final = {
    "lost": "Take this GPU's server out of rotation, save dmesg and the output of nvidia-bug-report.sh, then reset the "
    "GPU or reboot. If it is lost again, check power and seating, and return it.",
    "hung": "Calls into the driver do not return. Take the host out of rotation, save dmesg, and reboot; kill -9 on a "
    "process that hangs in the driver does nothing, or makes it worse.",
    "reset_required": "Drain this GPU's server, then nvidia-smi --gpu-reset -i INDEX, or reboot at the next window.",
    "missing": "Look for Xid 79 and PCIe errors in dmesg, and at the machine itself. If it was taken out on purpose, "
    "list the GPUs that stay in detectors.gpu_lost.expected.",
    "source": "GPUs of this host are not watched. Run nvidia-smi: if it hangs, reboot; if it tells of a mismatch, "
    "the driver was upgraded under a running kernel module; if it sees no GPU, check /dev/nvidia* and the unit's "
    "DeviceAllow. If the nvml source was switched off on purpose, switch this detector off too.",
}

_Seconds = Annotated[float, Meta(ge=1, le=86_400)]


class Params(base.Params, frozen=True):
    """Which GPUs should be there, and for how long one may be silent."""

    expected: Annotated[
        tuple[str, ...], Meta(max_length=_GPUS_MAX, description="UUIDs that must be there; empty: those seen before")
    ] = ()
    expected_count: Annotated[
        int, Meta(ge=0, le=_GPUS_MAX, description="how many GPUs must be there; 0: as many as expected lists")
    ] = 0
    learn_samples: Annotated[
        int, Meta(ge=1, le=100_000, description="samples after which a GPU is expected to stay")
    ] = 10
    hung_seconds: Annotated[_Seconds, Meta(description="a GPU that answers nothing for this long hangs")] = 15.0
    missing_after_seconds: Annotated[
        _Seconds, Meta(description="a GPU is missing after this; more than NVML's interval")
    ] = 30.0
    source_down_seconds: Annotated[_Seconds, Meta(description="NVML is down after this")] = 60.0
    forget_after_seconds: Annotated[
        float, Meta(ge=3600, le=31_536_000, description="a learned GPU that stays away this long is forgotten")
    ] = 604_800.0
    repeat_seconds: Annotated[
        float, Meta(ge=1, le=300, description="event time between repeats of a finding that goes on")
    ] = 30.0


class GpuLost(Detector):
    """Keeps a roll of GPUs. What a sample says is told at once; absence is judged at an interval's end.

    Absence needs a witness: NVML, or another GPU, that went on delivering without a break. A jump of
    the clock or a hole in a recording is no witness, and so no GPU is missing after one.
    """

    name = "gpu_lost"
    consumes = frozenset({Kind.GPU, Kind.SOURCE})
    key = "gpu"
    maturity = Maturity.INCUBATING
    atlas = ("AML.T0029",)
    owasp = ()
    summary = "A GPU is lost, hung, wants a reset or is no longer there, or the driver has stopped answering."
    action = _ACTIONS["lost"]
    blind_spots: ClassVar[tuple[str, ...]] = (
        "A GPU that was never there since the first sample is missed unless expected or expected_count names it.",
        "A GPU that answers NVML and computes wrong results, or slowly, looks well.",
        "MIG instances come and go with the layout: they are not expected to stay.",
        "A GPU that comes back within missing_after_seconds was not missing.",
        "Whether hands or heat took a GPU away, the records do not tell.",
        "When the whole daemon or host stops, nobody is left to say so: alert on the absence of its metrics.",
    )
    Params = Params

    def __init__(self, params: Any, kernels: Kernels, section: Section | None = None) -> None:
        super().__init__(params, kernels, section)
        self._cards: Keyed[Card] = Keyed(_GPUS_MAX, lambda _: Card("", synthetic=False, gpu=""))
        self._hosts: Keyed[Host] = Keyed(_HOSTS_MAX, lambda _: Host("", synthetic=False))

    def observe(self, records: Records) -> list[Finding]:
        """Fold one GPU sample or one poll's word."""
        if isinstance(records, GpuSample):
            return self._sample(records)
        if isinstance(records, SourceStatus):
            self._status(records)
        return []

    def _status(self, status: SourceStatus) -> None:
        host = self._hosts.touch(host_key(status.host, synthetic=status.synthetic), status.ts)
        if host is None:
            return
        host.host, host.synthetic = status.host, status.synthetic
        if status.source != "nvml":
            host.take_other(status, self.params.source_down_seconds)
            return
        if status.ts < host.nvml.run.last:  # or a GPU that was lost then would seem to come from the future
            for _, _, card in self._cards.dump():
                if (card.host, card.synthetic) == (host.host, host.synthetic):
                    card.run.rewind(status.ts)
        configured = self.params.expected_count or len(self.params.expected)
        host.nvml.take(status, self.params.missing_after_seconds, 0 if status.synthetic else configured)

    def _sample(self, sample: GpuSample) -> list[Finding]:
        card = self._cards.touch(gpu_key(sample.host, sample.gpu, synthetic=sample.synthetic), sample.ts)
        if card is None:
            return []
        card.host, card.synthetic, card.gpu = sample.host, sample.synthetic, sample.gpu
        card.take(sample, self.params.missing_after_seconds)
        lasted = sample.ts - card.state_since
        told = card.told.get(card.state, float("-inf"))
        if card.state not in _SEVERITY or sample.ts - told < self.params.repeat_seconds:
            return []
        if card.state == "hung" and lasted < self.params.hung_seconds:
            return []
        if (
            card.state == "lost"
            and self.params.expected
            and not card.synthetic
            and card.gpu not in self.params.expected
        ):
            return []  # taken out on purpose: the source goes on looking for it until it is restarted
        card.told[card.state] = sample.ts
        what = {
            "lost": f"is lost: {card.why or 'the driver cannot reach it'}",
            "hung": f"has answered nothing for {lasted:.0f} s",
            "reset_required": "needs a reset before it can be used again",
        }[card.state]
        xid = f" (last Xid {card.xids[-1]})" if card.xids else ""
        threshold = self.params.hung_seconds if card.state == "hung" else 0.0
        return [self._of_card(card, sample.ts, card.state, f"{card.called} {what}{xid}", (lasted, threshold))]

    def _of_card(self, card: Card, ts: float, kind: str, reason: str, measured: tuple[float, float]) -> Finding:
        return self.finding(
            ts=ts,
            subject_kind="gpu",
            subject=card.gpu,
            severity=_SEVERITY.get(kind, Severity.HIGH),
            score=measured[0],
            threshold=measured[1],
            reason=reason,
            action=_ACTIONS[kind],
            evidence={
                "kind": kind,
                "host": card.host,
                "gpu": card.gpu,
                "name": card.name,
                "index": card.index,
                "state": card.state,
                "last_sample_ts": card.run.last if card.samples else None,
                "xids": list(card.xids),
            },
            synthetic=card.synthetic,
        )

    def states(self) -> Iterable[tuple[str, Any]]:
        """Every GPU's and every host's state."""
        return [(key, state) for keyed in (self._cards, self._hosts) for key, state in keyed.items()]

    def close(self, interval: Interval, states: Iterable[tuple[str, Any]]) -> list[Finding]:
        """Call the roll of each host: who is missing while others go on, and whether NVML itself is."""
        hosts: dict[tuple[str, bool], Host] = {}
        cards: dict[tuple[str, bool], dict[str, Card]] = {}
        for _, state in states:  # of several shards, each may hold the same host
            where = (state.host, state.synthetic)
            if isinstance(state, Host):
                hosts[where] = state
            else:
                cards.setdefault(where, {})[state.gpu] = state
        alone = sum(not synthetic for _, synthetic in {*hosts, *cards}) == 1
        found: list[Finding] = []
        for where in sorted({*hosts, *cards}):
            host, here = hosts.get(where), cards.get(where, {})
            # the configured UUIDs are of one machine: in a fleet's recordings each host goes by what was seen
            expected = self.params.expected if alone and not where[1] else ()
            missing = self._missing(interval, host, _roll(where[0], here, expected, self.params.learn_samples), here)
            found += missing
            if host is not None:
                unwell = any(card.state != "ok" for card in here.values())
                found += self._source(interval, host, here, explained=unwell or bool(missing))
        return found

    def _missing(
        self, interval: Interval, host: Host | None, roll: list[Card], cards: dict[str, Card]
    ) -> list[Finding]:
        limit = self.params.missing_after_seconds
        found = []
        for card in roll:
            witness = witnessed(card, host, cards.values())
            beyond, away = witness.beyond(card.run.last), witness.last - card.run.last
            if beyond < limit or witness.last < interval.start:
                continue
            if not self.params.expected and away > self.params.forget_after_seconds:
                continue
            since = f"its last sample is {away:.0f} s old" if card.samples else "it was never seen"
            reason = f"{card.called} is missing: {since}, while NVML went on delivering"
            found.append(self._of_card(card, witness.last, "missing", reason, (beyond, limit)))
        return found

    def _source(self, interval: Interval, host: Host, cards: dict[str, Card], *, explained: bool) -> list[Finding]:
        nvml, alive, limit = host.nvml, host.alive, self.params.source_down_seconds
        sampled = max((card.run.last for card in cards.values()), default=float("-inf"))
        said = f": {printable(nvml.error)}" if nvml.error else ""
        configured = not host.synthetic and bool(self.params.expected or self.params.expected_count)
        if not (nvml.worked or cards or configured):
            return []  # a host without GPUs
        if nvml.failing >= limit and nvml.run.last >= interval.start and sampled <= nvml.run.last - limit:
            what = "NVML has failed" if nvml.seen is None else f"NVML has listed no GPU, of {nvml.wanted},"
            return [self._of_source(host, nvml.run, f"{what} for {nvml.failing:.0f} s{said}", (nvml.failing, limit))]
        silent = alive.beyond(max(nvml.run.last, sampled))
        if nvml.worked and silent >= limit and alive.last >= interval.start:
            reason = f"NVML has been silent for {silent:.0f} s while other sources went on"
            return [self._of_source(host, alive, reason, (silent, limit))]
        patience = self.params.missing_after_seconds
        if nvml.short < patience or nvml.run.last < interval.start or explained:
            return []  # those that are missing or unwell have findings of their own
        reason = f"NVML has listed {nvml.seen} GPUs, of {nvml.wanted}, for {nvml.short:.0f} s{said}"
        return [self._of_source(host, nvml.run, reason, (nvml.short, patience))]

    def _of_source(self, host: Host, witness: Steady, reason: str, measured: tuple[float, float]) -> Finding:
        return self.finding(
            ts=witness.last,
            subject_kind="source",
            subject=f"{host.host}/nvml" if host.host else "nvml",
            severity=Severity.HIGH,
            score=measured[0],
            threshold=measured[1],
            reason=reason,
            action=_ACTIONS["source"],
            evidence={
                "host": host.host,
                "error": None if host.nvml.error is None else printable(host.nvml.error, 400),
                "seen": host.nvml.seen,
                "expected": host.nvml.wanted,
                "last_poll_ts": host.nvml.run.last if host.nvml.run.last > float("-inf") else None,
            },
            synthetic=host.synthetic,
        )

    def standing(self) -> Standing:
        """Learning until a GPU is known, armed then; stale while NVML fails."""
        every = [card for _, _, card in self._cards.dump()]
        cards = [card for card in every if not card.synthetic] or every
        hosts = [host for _, _, host in self._hosts.dump() if not host.synthetic]
        failing = [host.nvml for host in hosts if host.nvml.failing_since > float("-inf")]
        known = len(self.params.expected) or sum(card.samples >= self.params.learn_samples for card in cards)
        gauges = {
            "gpus": float(len(cards)),
            "expected_gpus": float(self.params.expected_count or known),
            "unwell_gpus": float(sum(card.state != "ok" for card in cards)),
            "refused": float(self._cards.refused + self._hosts.refused),
        }
        if self._cards.refused:
            return Standing(DetectorState.SATURATED, f"more than {_GPUS_MAX} GPUs: the rest is not watched", gauges)
        if failing and known:
            return Standing(
                DetectorState.STALE, f"blind: NVML fails: {printable(failing[0].error or 'no reason')}", gauges
            )
        if not (known or self.params.expected_count):
            return Standing(DetectorState.LEARNING, "no GPU has been seen often enough to be expected", gauges)
        return Standing(DetectorState.ARMED, "", gauges)

    def snapshot(self) -> bytes:
        """Every GPU's and every host's state."""
        return pack(self.version, {"cards": self._cards.dump(), "hosts": self._hosts.dump()})

    def restore(self, blob: bytes) -> None:
        """Take a snapshot's state."""
        state = as_state(unpack(self.version, blob), dict[str, Any])
        cards = as_state(state.get("cards"), list[tuple[str, int, Card]])
        self._hosts.load(as_state(state.get("hosts"), list[tuple[str, int, Host]]))
        self._cards.load(cards)


def _roll(host: str, cards: dict[str, Card], expected: tuple[str, ...], learn_samples: int) -> list[Card]:
    """The GPUs that should be there, in order of name. MIG instances may go as they came."""
    if expected:
        return [cards.get(gpu) or Card(host, synthetic=False, gpu=gpu) for gpu in sorted(set(expected))]
    settled = [card for card in cards.values() if card.samples >= learn_samples and not card.gpu.startswith("MIG-")]
    return sorted(settled, key=lambda card: card.gpu)


DETECTOR = GpuLost
