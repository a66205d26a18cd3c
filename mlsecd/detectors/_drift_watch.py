"""One model under watch: its sample while it learns, then its reference and what the streams have against it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from mlsecd.detectors._drift_calibration import RATE_HEADROOM, RATE_MIN, threshold
from mlsecd.detectors._drift_crowd import Crowd
from mlsecd.detectors._drift_freeze import freeze
from mlsecd.detectors._drift_picture import expected_bins
from mlsecd.detectors._drift_plan import Plan, digest_of
from mlsecd.detectors._drift_reference import Reference
from mlsecd.detectors._drift_renewal import Strayed, strayed
from mlsecd.detectors._drift_sample import Sample
from mlsecd.detectors._drift_season import at_times
from mlsecd.detectors._drift_streams import Admission, Columns
from mlsecd.detectors._drift_vectors import WINDOW
from mlsecd.detectors._drift_windows import SHARE, Windows, stride_of
from mlsecd.kernels import Kernels
from mlsecd.kernels import drift_layout as at
from mlsecd.records import F8, I8

__all__ = ["Watch"]

_WEEK: Final = 604_800.0


def _length(left: I8 | None) -> int:
    return 0 if left is None else len(left)


@dataclass(slots=True)
class Watch:
    """What is held of one model.

    A model that learns is held against a provisional reference as soon as it has the rows for one; the
    whole sample's takes its place. Where references are renewed, the first whole one (or the baseline's)
    stays pinned: a new sample that has strayed from it, or that came while a drift was on, is not taken.

    Memory: 32 KiB for clients; while it learns 80 bytes a sampled row and 4 a coordinate (2 MiB at
    6,000 rows and 64 coordinates); then 4 bytes a row and stream (0.5 MiB at 6,000 rows), 1 KiB a
    stream, and 100 KiB for whole vectors.
    """

    plan: Plan
    sample: Sample | None
    reference: Reference | None = None
    admission: Admission = field(default_factory=Admission)
    crowd: Crowd = field(default_factory=Crowd)
    stage: int = 0  # of the plan's; what the sample is complete for next
    scored: int = 0  # rows that counted since it is armed
    thresholds: F8 = field(default_factory=lambda: np.zeros(0))
    state: F8 = field(default_factory=lambda: np.zeros((0, at.STREAM)))
    runs: F8 = field(default_factory=lambda: np.zeros((0, at.BETS, at.RUN)))
    clock: F8 = field(default_factory=lambda: np.zeros(at.CLOCK))
    bins: F8 = field(default_factory=lambda: np.zeros((0, 2, at.BINS)))
    expected: F8 = field(default_factory=lambda: np.zeros((0, at.BINS)))  # shares of the reference in them
    windows: Windows | None = None
    pinned: Reference | None = None
    strayed: list[Strayed] = field(default_factory=list)  # at the row that is being spoken of
    latest: float = -math.inf  # event time of the last row that counted
    without: dict[int, str] = field(default_factory=dict)  # tenants, left out when a reference is made

    @staticmethod
    def learning(plan: Plan) -> Watch:
        """A model that nothing is known of yet."""
        return Watch(plan, Sample.of(plan.settings.rows))

    @staticmethod
    def armed(plan: Plan, reference: Reference) -> Watch:
        """A model whose reference comes from a baseline."""
        made = Watch(plan, None, stage=len(plan.stages))
        made.arm(reference)
        made._pin()
        return made

    def _pin(self) -> None:
        """The reference is whole: it stays, and where it may be renewed, learning begins anew beside it."""
        renewed = self.plan.refresh_seconds > 0.0
        self.pinned = self.reference if renewed else None
        self.sample = Sample.of(self.plan.settings.rows) if renewed else None

    @property
    def provisional(self) -> bool:
        """Whether it is judged by less than the rows that a reference needs, and learns more."""
        return self.sample is not None and self.reference is not None and self.stage < self.plan.whole

    def arm(self, reference: Reference) -> None:
        """Begin to score against a reference."""
        streams = len(reference.names)
        updates = RATE_HEADROOM * max(reference.rate, RATE_MIN) * _WEEK
        self.reference = reference
        alarms = self.plan.alarms_per_week / (1 + len(reference.tenants))
        self.windows = Windows.against(
            reference,
            digest_of(reference),
            updates / (WINDOW * stride_of(reference)),
            SHARE * alarms,
        )
        budget = alarms * (1.0 - SHARE if self.windows else 1.0)
        self.thresholds = np.full(streams, threshold(streams, reference.rate, budget))
        self.state = np.zeros((streams, at.STREAM))
        self.runs = np.zeros((streams, at.BETS, at.RUN))
        self.clock = np.zeros(at.CLOCK)
        self.scored = 0
        self.bins = np.zeros((streams, 2, at.BINS))
        self.expected = expected_bins(reference)

    def observe(self, columns: Columns, rows: I8, kernels: Kernels) -> Iterator[int]:
        """Fold rows; yield each row that is to be spoken of, with the state as it is at that row."""
        rows = self.admission.admit(columns, rows, self.plan.client_rows, kernels)
        if len(rows):
            self.latest = max(self.latest, float(columns.times[rows].max()))
        while self.sample is not None and len(rows):
            whole = self.stage == len(self.plan.stages)
            need = (self.plan.settings.rows, self.plan.refresh_seconds) if whole else self.plan.stages[self.stage]
            left = self.sample.add(columns, rows, need, kernels)
            yield from self._score(columns, rows[: len(rows) - _length(left)], kernels)
            if left is None:
                return
            if whole:
                self.strayed = self._renew(self.sample, kernels)
                if self.strayed:
                    yield int(rows[len(rows) - len(left) - 1])
                self.strayed = []
            else:
                self._promote(self.sample, kernels)
            rows = left
        yield from self._score(columns, rows, kernels)

    def _promote(self, sample: Sample, kernels: Kernels) -> None:
        """The sample is complete for the next stages."""
        self.arm(self.freeze(sample, kernels))
        while self.stage < len(self.plan.stages) and sample.complete(*self.plan.stages[self.stage]):
            self.stage += 1
        if self.stage == len(self.plan.stages):
            self._pin()

    def _renew(self, sample: Sample, kernels: Kernels) -> list[Strayed]:
        """Take a new sample's reference, unless it strayed from the pinned one; how it did."""
        pinned = self.pinned
        found = strayed(pinned, sample.without(pinned.tenants), kernels) if pinned is not None else []
        if not found and not self.shifted:
            self.arm(self.freeze(sample, kernels))
        self.sample = Sample.of(self.plan.settings.rows)
        return found

    def freeze(self, sample: Sample, kernels: Kernels) -> Reference:
        """The reference of a sample less its tenants."""
        return replace(
            freeze(sample.without(self.without), self.plan.settings, kernels),
            crowd=self.crowd.most,
            tenants=tuple(self.without),
            tenant_names=tuple(self.without.values()),
        )

    def _score(self, columns: Columns, rows: I8, kernels: Kernels) -> Iterator[int]:
        """Score rows, and count their clients up to each that is spoken of."""
        if self.reference is not None and self.reference.tenants:
            rows = rows[~np.isin(columns.clients[rows], np.array(self.reference.tenants, np.uint64))]
        counted, clients = 0, columns.clients[rows]
        if self.reference is not None:
            for row in self._told(self.reference, columns, rows, kernels):
                stop = int(np.searchsorted(rows, row, side="right"))
                self.crowd.add(clients[counted:stop])
                counted = stop
                yield row
        self.crowd.add(clients[counted:])

    def _told(self, reference: Reference, columns: Columns, rows: I8, kernels: Kernels) -> Iterator[int]:
        self.scored += len(rows)
        if not len(rows) or not (reference.names or self.windows):
            return
        values, scores = reference.values(columns, rows, kernels)
        times = columns.times[rows]
        ranks = kernels.drift_ranks(values, reference.values_sorted, reference.offsets, reference.two_valued)
        if reference.seasonal:
            ranks = (ranks - at_times(reference.season, times)) * at_times(reference.weights, times)
        start, stride = 0, stride_of(reference)
        ends = self.windows.ends(scores, times, stride) if self.windows else []
        for stop in [*(end + 1 for end in ends), len(rows)]:
            yield from (int(rows[row]) for row in self._fold(reference, (values, times, ranks), start, stop, kernels))
            full = self.windows is not None and self.windows.take(scores[start:stop], times[start:stop], stride)
            if full and self._test(reference, float(times[stop - 1]), kernels):
                yield int(rows[stop - 1])
            start = stop

    def judge_values(self, reference: Reference, values: F8, times: F8, kernels: Kernels) -> bool:
        """Fold rows of stream values, float64[n, k]; whether the last is to be spoken of."""
        ranks = kernels.drift_ranks(values, reference.values_sorted, reference.offsets, reference.two_valued)
        if reference.seasonal:
            ranks = (ranks - at_times(reference.season, times)) * at_times(reference.weights, times)
        told = list(self._fold(reference, (values, times, ranks), 0, len(times), kernels))
        return len(times) - 1 in told

    def _fold(
        self, reference: Reference, read: tuple[F8, F8, F8], start: int, stop: int, kernels: Kernels
    ) -> Iterator[int]:
        values, times, ranks = (one[:stop] for one in read)
        repeat = self.plan.repeat_seconds
        own = (self.state, self.runs, self.clock, self.bins)
        while start < stop:
            row = kernels.drift_fold(values, times, start, ranks, self.thresholds, reference.bets, repeat, *own)
            if row < stop:
                yield row
            start = row + 1

    def _test(self, reference: Reference, time: float, kernels: Kernels) -> bool:
        """Test a complete window of vectors; whether it is to be spoken of."""
        windows = self.windows
        if windows is None:
            return False
        fresh, was = self.clock[at.LATCHES] == 0.0, windows.latched
        above = windows.test(reference, kernels)
        self.clock[at.LATCHES] += float(windows.latched) - float(was)
        if not above or not (fresh or time - self.clock[at.SAID] >= self.plan.repeat_seconds):
            return False
        self.clock[at.SAID] = time
        return True

    @property
    def shifted(self) -> bool:
        """Whether any stream is latched."""
        return bool(self.clock[at.LATCHES] > 0.0)

    @property
    def busy(self) -> bool:
        """Whether more rows are scored a day than the promise is made for."""
        if self.reference is None:
            return False
        daily = RATE_HEADROOM * max(self.reference.rate, RATE_MIN) * 86_400.0
        return bool(max(self.clock[at.TODAY], self.clock[at.YESTERDAY]) > daily)

    def dump(self, baseline: str | None = None) -> dict[str, Any]:
        """All of it, for a snapshot; a baseline's reference is named by its digest only."""
        original = self.pinned or self.reference
        renewed = self.reference if self.reference is not original else None
        return {
            "baseline": baseline,
            "sample": None if self.sample is None else self.sample.dump(),
            "original": None if original is None or baseline is not None else original.dump(),
            "renewed": None if renewed is None else renewed.dump(),
            "table": self.admission.table,
            "window": self.admission.window,
            "crowd": self.crowd.dump(),
            "stage": self.stage,
            "scored": self.scored,
            "state": self.state,
            "runs": self.runs,
            "clock": self.clock,
            "bins": self.bins,
            "windows": None if self.windows is None else self.windows.dump(),
            "latest": self.latest,
        }

    @staticmethod
    def load(plan: Plan, state: dict[str, Any], baseline: Reference | None = None) -> Watch:
        """What :meth:`dump` gave.

        Raises
        ------
        ValueError, KeyError, TypeError
            It does not fit.
        """
        made = Watch(plan, None if state["sample"] is None else Sample.load(state["sample"]), stage=int(state["stage"]))
        original = baseline
        if original is None and state["original"] is not None:
            original = Reference.load(*state["original"])
        whole = made.stage == len(plan.stages)
        if (original is None and made.sample is None) or not 0 <= made.stage <= len(plan.stages):
            raise ValueError("a watch holds a sample of a stage of this configuration, or a reference")
        if original is not None:
            made.arm(original if state["renewed"] is None else Reference.load(*state["renewed"]))
        if whole:
            sample = made.sample
            made._pin()
            made.pinned = original if made.pinned is not None else None
            made.sample = sample if made.sample is not None and sample is not None else made.sample
        if (made.windows is None) != (state["windows"] is None):
            raise ValueError("a watch's windows do not fit its reference")
        if made.windows is not None:
            made.windows.load(state["windows"])
        made.latest = float(state["latest"])
        made.admission = Admission(state["table"], state["window"])
        made.crowd = Crowd.load(state["crowd"])
        made.scored = int(state["scored"])
        for name in ("state", "runs", "clock", "bins"):
            if state[name].shape != getattr(made, name).shape:
                raise ValueError(f"a watch's {name} does not fit its reference")
            setattr(made, name, state[name])
        if made.admission.table.shape != Admission().table.shape or made.admission.window.shape != (3,):
            raise ValueError("a watch's admission is damaged")
        return made
