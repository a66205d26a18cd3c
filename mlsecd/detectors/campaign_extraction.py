"""Many accounts that copy a model together, each too quiet to be told from a customer."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from operator import itemgetter
from typing import Annotated, Any, ClassVar, Final

import numpy as np
from msgspec import Meta

from mlsecd.detectors import _campaign_fit as fitting
from mlsecd.detectors import base
from mlsecd.detectors._account_groups import Groups, Links, read_links
from mlsecd.detectors._campaign_excuses import Excuse, excused
from mlsecd.detectors._campaign_memory import LOOKS, Memory
from mlsecd.detectors._campaign_null import Null
from mlsecd.detectors._campaign_rehearsal import rehearse
from mlsecd.detectors._campaign_sketches import Others, Sketch
from mlsecd.detectors._campaign_telling import DISTANCE, channels_of
from mlsecd.detectors._campaign_verdict import LOOKALIKES, ODDNESS, Campaign, Crowd, Shift, judge
from mlsecd.detectors._campaign_view import RING_ROWS, View
from mlsecd.detectors._campaign_words import evidence_of, evidence_of_shift, reason_of, reason_of_shift
from mlsecd.detectors._extraction_calibration import MIN_QUERIES
from mlsecd.detectors._extraction_fit import NEEDED
from mlsecd.detectors._extraction_groups import Group, crowd_of, groups_of, route
from mlsecd.detectors._extraction_state import TICK
from mlsecd.detectors._launches import Announced, Launches
from mlsecd.detectors._seasons import DAY, Seasons, born_of
from mlsecd.detectors._waiting import WAITING_MAX, Waiting
from mlsecd.detectors.base import Detector, DetectorState, Fit, Interval, Maturity, Section, Standing
from mlsecd.errors import MALFORMED, BaselineError, StateError
from mlsecd.kernels import Kernels
from mlsecd.records import Finding, Kind, Records, RequestBatch, Severity
from mlsecd.windows.keyed import Keyed
from mlsecd.windows.packing import pack, unpack

__all__ = ["DETECTOR", "CampaignExtraction", "Params"]

_SNAPSHOT: Final = 4
_WEEK: Final = 604_800.0
_DEFAULT_SHARE: Final = 0.25  # false alarms a week, where the configuration hands down none
_NEEDED: Final = (*NEEDED, "network", "principal", "synthetic")
_LEARNING: Final = "no baseline: record a day of ordinary requests, then run `mlsecd baseline fit`"


class Params(base.Params, frozen=True):
    """How often it may be wrong, how often it looks, and how much it may hold."""

    false_alarms_per_week: (
        Annotated[float, Meta(gt=0, description="share of the false-alarm budget; default: handed down from [budget]")]
        | None
    ) = None
    epoch_seconds: Annotated[
        float,
        Meta(ge=3_600, le=_WEEK, description="accounts are summed up over this event time, and looked at 24 times"),
    ] = DAY
    max_models: Annotated[int, Meta(ge=1, le=64, description="models that a baseline holds, largest first")] = 8
    max_clients: Annotated[int, Meta(ge=10, le=1_000_000, description="accounts with a sketch, 3 KiB each")] = 20_000
    links: Annotated[
        Links, Meta(max_length=10_000, description="groups that you know of, as lines of CSV: a name, then its clients")
    ] = ()
    launches: Announced = ()
    max_compared_rows: Annotated[
        int,
        Meta(ge=256, le=1 << 17, multiple_of=128, description="latest queries that others are compared with, a model"),
    ] = RING_ROWS

    def __post_init__(self) -> None:
        """Refuse links that are none."""
        read_links(self.links)


class CampaignExtraction(Detector):
    """Sums up what each account sends, and looks for a direction that some of them have in common.

    Ordinary clients differ too, but each in its own way. The top eigenvalue of the accounts'
    whitened sketches is held against groups of ordinary clients; accounts that lie out in its
    direction are a campaign where most of them also do what attackers do, and a coordinated shift
    (a season, a launch) where they do not.
    """

    name = "campaign_extraction"
    consumes = frozenset({Kind.REQUEST})
    key = "client"
    maturity = Maturity.INCUBATING
    atlas = ("AML.T0024.002",)  # Extract AI Model
    owasp = ("LLM10:2025",)
    summary = "Accounts that work together on copying a model, each with too few queries to be told from a customer."
    action = (
        "Look at what the named accounts have in common: owner, payment, network, date of creation. If they are one "
        "customer's or your own test, add an exception with an end date; if you launched something, announce it in "
        "[[launches]]; else limit or suspend them together, and keep the evidence: single ones will be replaced."
    )
    blind_spots: ClassVar[tuple[str, ...]] = (
        "Accounts that send nothing but ordinary inputs: extraction_exposure shows how much they have seen together.",
        "Fewer than 6 accounts that work together, or fewer than 20 active accounts in all.",
        "Accounts with fewer than 10 distinct queries in an epoch (a day).",
        "A small share of many accounts: one in fifty drowns, and under ordinary cover one in twenty.",
        "Accounts under cover whose own queries are of ordinary distance: mixtures of real inputs, small steps.",
        "A launch whose inputs are as foreign to the model as a thief's looks like a campaign, unless it is announced.",
        "A season as foreign does for some hours, until most of the accounts that had been calm have turned.",
        "Thieves who are most of the accounts that had been calm, or new in an announced launch, and merely odd: info.",
        "A crowd of calm decoys that goes on moving makes a campaign's oddness a ticket, as a season does.",
        "Accounts that leave out one of two vectors are a crowd of their own, and below 20 not looked at.",
        "Requests without features and input_features.",
        "Accounts beyond max_clients: the quiet ones are forgotten first.",
    )
    resolve_after_seconds = 26 * 3_600.0  # it looks once an hour, and a campaign rests at night
    Params = Params

    def __init__(self, params: Any, kernels: Kernels, section: Section | None = None) -> None:
        super().__init__(params, kernels, section)
        self._views: list[View] = []
        self._nulls: list[Null] = []
        self._headers: list[dict[str, Any]] = []
        self._load(section)
        self._sketches: Keyed[Sketch] = Keyed(params.max_clients, self._new, TICK, _is_known)
        self._others = [Others(view, params.max_compared_rows) for view in self._views]
        self._epoch: float | None = None
        self._look = 0
        self._memory = Memory(params.max_clients, params.epoch_seconds)
        self._counts = {"unscored": 0, "refused": 0}
        self._waiting = Waiting(_NEEDED)
        self._groups = Groups(params.links)
        self._launches, self._seasons = Launches(params.launches), Seasons([view.model for view in self._views])
        for view, null in zip(self._views, self._nulls, strict=True):
            rehearse(view, null, kernels)

    def _load(self, section: Section | None) -> None:
        if section is None:
            return
        headers = section.header.get("views")
        if not isinstance(headers, list) or not all(isinstance(header, dict) for header in headers):
            raise BaselineError(f"{self.name}: the baseline's part cannot be used")
        for i, header in enumerate(headers):
            view = View.of(header, section.arrays, str(i))
            self._views.append(view)
            self._nulls.append(Null.of(section.arrays, str(i), len(view.names), len(channels_of(view.names))))
            self._headers.append(header)

    def _new(self, name: str) -> Sketch:
        number = int(name.partition(":")[0])
        if number >= len(self._views):
            raise StateError("a snapshot has accounts of a model that the baseline does not have")
        return Sketch.new(self._views[number])

    def observe(self, records: Records) -> list[Finding]:
        """Keep requests for the end of the interval: folded together they cost a fraction of what single rows do."""
        if isinstance(records, RequestBatch) and len(records) and self._views:
            self._waiting.add(records)
            if self._waiting.rows >= WAITING_MAX:
                self._fold()
        return []

    def _fold(self) -> None:
        """Fold what waits into the accounts' sketches. When this happens changes nothing but the cost."""
        batch = self._waiting.take()
        if batch is None:
            return
        routed = route(batch, self._views)
        self._counts["unscored"] += int((routed.chosen < 0).sum())
        ticks = batch.completion // TICK
        belongs = self._groups.of(batch)
        groups: list[Group] = []
        for number in np.unique(routed.chosen[routed.chosen >= 0]).tolist():
            at = np.flatnonzero(routed.chosen == number)
            groups += groups_of(batch, at, ticks, number, self._views[number], self.kernels)
        for group in sorted(groups, key=itemgetter(0)):  # accounts enter in order of appearance
            sketch = self._sketches.touch(group.name, group.tick)
            if sketch is None:
                self._counts["refused"] += group.stop - group.start
                continue
            sketch.belong(belongs[group.first])
            sketch.fold(group.rows, group.start, group.stop, self._views[group.number], self.kernels)

    def states(self) -> Iterable[tuple[str, Sketch]]:
        """Accounts by name."""
        self._fold()
        return self._sketches.items()

    def close(self, interval: Interval, states: Iterable[tuple[str, Any]]) -> list[Finding]:
        """Hold accounts against each other, and look for campaigns where an hour (a 24th of the epoch) has passed."""
        accounts: list[tuple[str, Sketch]] = list(states)
        self._launches.watch(interval.start)
        waiting: list[list[tuple[str, Sketch]]] = [[] for _ in self._views]
        for name, sketch in accounts:
            if sketch.pending.count:
                waiting[_number(name)].append((name, sketch))
        for others, own in zip(self._others, waiting, strict=True):
            others.mingle(own, int(interval.end // TICK), self.kernels)
        if self._epoch is None and not any(waiting):
            return []
        if self._epoch is None or self._epoch > interval.end:  # then the clock was set back
            self._epoch, self._look = interval.start, 0
        looks = int((interval.end - self._epoch) * LOOKS / self.params.epoch_seconds)
        if looks <= self._look:
            return []
        self._look = looks
        found = self._judge(interval.end, accounts)
        if looks >= LOOKS:
            self._epoch, self._look = None, 0
            for _, sketch in accounts:
                sketch.clear()
        return found

    @property
    def _level(self) -> float:
        """Of each look at each view: the budget's share of a week's looks."""
        share = self.params.false_alarms_per_week or _DEFAULT_SHARE
        return float(min(share * self.params.epoch_seconds / (_WEEK * LOOKS * max(len(self._views), 1)), 0.05))

    def _judge(self, now: float, accounts: list[tuple[str, Sketch]]) -> list[Finding]:
        crowds: dict[str, list[tuple[str, Sketch]]] = {}
        for name, sketch in accounts:
            if sketch.count >= MIN_QUERIES:
                crowds.setdefault(crowd_of(name), []).append((name, sketch))
        looks = [(key, self._crowd(members)) for key, members in sorted(crowds.items())]
        verdicts = [judge(crowd, self._level, self.kernels) for _, crowd in looks]
        for (_, crowd), verdict in zip(looks, verdicts, strict=True):
            for sketch, odd in zip(crowd.sketches, verdict.odd.tolist(), strict=True):
                sketch.judged(sketch.last_ts, odd=odd)
        self._seasons.look(accounts, now)
        held = dict(accounts)
        found: list[Finding] = []
        self._memory.shifted = {}
        for (key, crowd), verdict in zip(looks, verdicts, strict=True):
            excuse = self._excuse(crowd, now, held)
            told = verdict if excuse is None else excused(verdict, crowd, excuse, self._level, self.kernels)
            synthetic = key.endswith(":1")
            found += [self._tell(now, one, held, crowd, synthetic=synthetic) for one in told.campaigns]
            self._memory.looked(key, moving=told.moving)
            if told.shift is not None:
                found.append(self._tell_shift(now, told.shift, crowd, synthetic=synthetic))
        return found

    def _crowd(self, members: list[tuple[str, Sketch]]) -> Crowd:
        number = _number(members[0][0])
        names, sketches = [name for name, _ in members], [sketch for _, sketch in members]
        return Crowd(self._views[number], self._nulls[number], names, sketches)

    def _excuse(self, crowd: Crowd, now: float, held: dict[str, Sketch]) -> Excuse | None:
        """What explains that accounts of a crowd are odd just now, if anything does."""
        season = self._seasons.of(crowd.names[0])
        if season is not None:
            return Excuse(np.array([season.explains(one) for one in crowd.sketches]), season.words, season=True)
        launch = self._launches.of(crowd.view.model, now)
        if launch is None:
            return None
        new = [born_of(name, len(self._views), held.get) >= launch.since for name in crowd.names]
        return Excuse(np.array(new), launch.words, season=False)

    def _tell(self, now: float, group: Campaign, held: dict[str, Sketch], crowd: Crowd, *, synthetic: bool) -> Finding:
        """A campaign, under the name that it was told by before if it goes on."""
        # near-duplicates or mere distance, or oddness while everybody has been moving for half a day: alone a ticket
        doubtful = {*LOOKALIKES, *DISTANCE, *(ODDNESS if self._memory.moving(crowd_of(group.members[0])) else ())}
        name, earlier = self._memory.name(group.members, now)
        sketches = [held[member] for member in group.members]
        for sketch in sketches:
            sketch.suspected = min(sketch.suspected, now)
        evidence = evidence_of(group, sketches, crowd.view.model, crowd.view.view, len(crowd.names))
        evidence["earlier_members"] = earlier
        return self.finding(
            ts=now,
            subject_kind="campaign",
            subject=name,
            severity=Severity.MEDIUM if doubtful.issuperset(one.name for one in group.channels) else Severity.HIGH,
            score=round(group.value, 4),
            threshold=round(group.threshold, 4),
            reason=reason_of(group, evidence),
            evidence=evidence,
            synthetic=synthetic,
        )

    def _tell_shift(self, now: float, shift: Shift, crowd: Crowd, *, synthetic: bool) -> Finding:
        """Context for on-call: no attack, but certificates of this model stand on another population."""
        reason = reason_of_shift(shift, crowd.view.model, len(crowd.names))
        evidence = evidence_of_shift(shift, crowd.view.model, len(crowd.names))
        if not synthetic:
            self._memory.shifted[crowd.view.model] = reason
        return self.finding(
            ts=now,
            subject_kind="model",
            subject=crowd.view.model,
            severity=Severity.INFO,
            score=round(shift.value, 4),
            threshold=round(shift.threshold, 4),
            reason=reason,
            evidence=evidence,
            action="Nothing to stop. If the change is here to stay, record a day and fit the baseline again.",
            synthetic=synthetic,
        )

    def standing(self) -> Standing:
        """Whether it has a null, and whether everybody moved."""
        gauges = {
            "accounts": float(len(self._sketches)),
            "evicted_clients": float(self._sketches.evicted),
            "unscored_rows": float(self._counts["unscored"]),
            "refused_rows": float(self._counts["refused"]),
        }
        if not self._views:
            return Standing(DetectorState.LEARNING, _LEARNING, gauges)
        gauges |= {
            "calibration_clients": float(min(len(null.held) for null in self._nulls)),
            "calibration_level": self._level,
            "calibration_timestamp_seconds": min(float(header["last_ts"]) for header in self._headers),
        }
        if self._memory.shifted:
            return Standing(DetectorState.SHIFTED, "; ".join(self._memory.shifted.values()), gauges)
        return Standing(DetectorState.ARMED, "", gauges)

    def snapshot(self) -> bytes:
        """Sketches, rings and the looks so far, bound to the baseline."""
        self._fold()
        state = {
            "baseline": self._fingerprint(),
            "accounts": [(name, tick, sketch.dump()) for name, tick, sketch in self._sketches.dump()],
            "others": [others.dump() for others in self._others],
            "clock": [self._epoch, self._look],
            "memory": self._memory.dump(),
            "excuses": [self._launches.dump(), self._seasons.dump()],
            "counts": [*self._counts.values(), self._sketches.evicted, self._sketches.refused, self._sketches.kept],
        }
        return pack(_SNAPSHOT, state)

    def restore(self, blob: bytes) -> None:
        """Take a snapshot's state, if it was made with the same baseline."""
        state = unpack(_SNAPSHOT, blob)
        try:
            if state["baseline"] != self._fingerprint():
                raise StateError("the snapshot was made with another baseline")
            sketches = [
                (str(name), int(tick), Sketch.load(self._views[_number(name)], dumped))
                for name, tick, dumped in state["accounts"]
            ]
            others = [one.loaded(dumped) for one, dumped in zip(self._others, state["others"], strict=True)]
            epoch, look = state["clock"]
            clock = None if epoch is None else float(epoch), int(look)
            unscored, refused, evicted, turned_away, kept = map(int, state["counts"])
            memory = Memory.load(self.params.max_clients, self.params.epoch_seconds, state["memory"])
            watching, seasons = state["excuses"]
            launches, seasons = self._launches.loaded(watching), self._seasons.loaded(seasons)
            if clock[0] is not None and not math.isfinite(clock[0]):
                raise StateError("the looks in a snapshot have no beginning")
            self._sketches.load(sketches, kept)
        except MALFORMED as error:
            raise StateError(f"a snapshot of {self.name} is damaged: {error}") from error
        self._waiting.take()
        self._sketches.evicted, self._sketches.refused = evicted, turned_away
        (self._epoch, self._look), self._others, self._memory = clock, others, memory
        self._launches, self._seasons = launches, seasons
        self._counts = {"unscored": unscored, "refused": refused}

    def _fingerprint(self) -> str:
        """What was summed up, and against what."""
        digest = hashlib.blake2b(digest_size=16)
        for view, null in zip(self._views, self._nulls, strict=True):
            digest.update(f"{view.model}\0{view.view}\0".encode())
            for array in (view.arrays("") | null.arrays("")).values():
                digest.update(array.tobytes())
        return digest.hexdigest()

    @classmethod
    def fit(cls, records: Iterable[Records], params: Any, kernels: Kernels) -> Fit:
        """Learn what ordinary accounts look like as a crowd, for each model that has enough of them."""
        return fitting.fit(records, params, kernels)


def _is_known(sketch: Sketch) -> bool:
    """Strangers with a query or two make room before it does."""
    return sketch.count >= MIN_QUERIES


def _number(name: str) -> int:
    return int(name.partition(":")[0])


DETECTOR = CampaignExtraction
