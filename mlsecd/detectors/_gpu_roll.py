"""The roll of GPUs: who delivers, since when without a break, and for how long somebody has been missing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from mlsecd.detectors._gpu_processes import printable
from mlsecd.records import GpuSample, SourceStatus

__all__ = ["Card", "Host", "Poll", "Steady", "host_key", "witnessed"]

_NEVER: Final = float("-inf")
_SOURCES_MAX: Final = 64  # sources of one host that are told apart


def host_key(host: str, *, synthetic: bool) -> str:
    """A state key that sorts before the keys of the host's GPUs."""
    return f"{host}\0{int(synthetic)}"


@dataclass(slots=True)
class Steady:
    """A run of records without a break.

    That something else is missing, only a run proves: after a jump of the clock, or a stretch that
    was not recorded, everything seems missing until its own next record comes.
    """

    since: float = _NEVER
    last: float = _NEVER

    def tick(self, ts: float, gap: float) -> bool:
        """One more record; ``True`` where the run goes on."""
        goes_on = 0 <= ts - self.last <= gap
        if not goes_on:
            self.since = ts
        self.last = ts
        return goes_on

    def rewind(self, ts: float) -> None:
        """Time was set back to ``ts``: nothing can have happened after it."""
        self.last = min(self.last, ts)
        self.since = min(self.since, ts)

    def beyond(self, ts: float) -> float:
        """For how long it has run on since ``ts``, seconds."""
        return self.last - max(ts, self.since) if self.last > _NEVER else _NEVER


@dataclass(slots=True)
class Card:
    """One GPU as its samples show it."""

    host: str
    synthetic: bool
    gpu: str
    run: Steady = field(default_factory=Steady)
    samples: int = 0
    name: str | None = None
    index: int | None = None
    state: str = "ok"
    state_since: float = _NEVER  # in this run
    why: str | None = None  # what the source said of the state
    xids: tuple[int, ...] = ()  # the latest ones, to tell why it was lost
    told: dict[str, float] = field(default_factory=dict)  # when each state was last reported

    def take(self, sample: GpuSample, gap: float) -> None:
        """Take a sample."""
        back = sample.ts < self.run.last
        goes_on = self.run.tick(sample.ts, gap)
        if back:
            self.told.clear()
        if sample.state != self.state or not goes_on:
            self.state, self.state_since = sample.state, sample.ts
        said = [entry.removeprefix("gpu: ") for entry in sample.blind if entry.startswith("gpu: ")]
        self.why = printable(said[0]) if said else None
        self.samples += 1
        self.name = sample.name or self.name
        self.index = self.index if sample.index is None else sample.index
        self.xids = (*self.xids, *(event.xid for event in sample.xid))[-8:]

    @property
    def called(self) -> str:
        """The GPU as on-call knows it."""
        index = "" if self.index is None else f"GPU {self.index} "
        name = f" ({printable(self.name, 64)})" if self.name else ""
        return f"{index}{self.gpu}{name}"


@dataclass(slots=True)
class Poll:
    """The polls of the ``nvml`` source, as its ``source`` records show them."""

    run: Steady = field(default_factory=Steady)
    good: Steady = field(default_factory=Steady)  # polls that delivered GPUs, if not all of them
    failing_since: float = _NEVER  # -inf: the latest poll delivered what it could
    short_since: float = _NEVER  # -inf: the latest poll saw as many GPUs as there should be
    error: str | None = None
    seen: int | None = None
    wanted: int = 0  # GPUs that there should be, or ever were; 0: nobody knows of any

    def take(self, status: SourceStatus, gap: float, configured: int) -> None:
        """Take one poll's record; ``configured``: how many GPUs there should be, 0 where nobody said."""
        goes_on = self.run.tick(status.ts, gap)
        self.error, self.seen = status.error, status.seen
        self.wanted = configured or status.expected or max(self.wanted, status.seen or 0)
        delivers = bool(status.seen) or (status.ok and status.seen is None)
        if delivers:
            self.good.tick(status.ts, gap)
        # that a driver answers is no use where it lists no GPU
        fails = not (delivers or (status.ok and not self.wanted))
        short = bool(status.seen) and (status.seen or 0) < self.wanted
        self.failing_since = _onset(self.failing_since, status.ts, goes_on=goes_on) if fails else _NEVER
        self.short_since = _onset(self.short_since, status.ts, goes_on=goes_on) if short else _NEVER

    @property
    def worked(self) -> bool:
        """Whether it ever delivered."""
        return self.good.last > _NEVER

    @property
    def failing(self) -> float:
        """For how long every poll failed, or found nothing, seconds."""
        return 0.0 if self.failing_since == _NEVER else self.run.last - self.failing_since

    @property
    def short(self) -> float:
        """For how long it saw some, but too few GPUs, seconds."""
        return 0.0 if self.short_since == _NEVER else self.run.last - self.short_since


def _onset(since: float, ts: float, *, goes_on: bool) -> float:
    """When a condition began that holds at ``ts``; a break in the records begins it anew."""
    return since if goes_on and since > _NEVER else ts


@dataclass(slots=True)
class Host:
    """The sources of one host."""

    host: str
    synthetic: bool
    nvml: Poll = field(default_factory=Poll)
    others: dict[str, Steady] = field(default_factory=dict)

    def take_other(self, status: SourceStatus, gap: float) -> None:
        """Take the word of another source: the host lives."""
        if status.source in self.others or len(self.others) < _SOURCES_MAX:
            self.others.setdefault(status.source, Steady()).tick(status.ts, gap)

    @property
    def alive(self) -> Steady:
        """The other source that has gone on for longest since NVML's last word."""
        return max([Steady(), *self.others.values()], key=lambda run: run.beyond(self.nvml.run.last))


def witnessed(card: Card, host: Host | None, cards: Iterable[Card]) -> Steady:
    """Whoever went on delivering for longest since this GPU's last sample."""
    runs = [Steady()] + [other.run for other in cards if other is not card]
    if host is not None:
        runs.append(host.nvml.good)
    return max(runs, key=lambda run: run.beyond(card.run.last))
