"""Requests or predictions of a model that are no longer distributed as its reference is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, ClassVar, Final

import numpy as np
from msgspec import Meta

from mlsecd.detectors import base
from mlsecd.detectors._drift_fit import fit_references, load_references
from mlsecd.detectors._drift_freeze import Settings
from mlsecd.detectors._drift_plan import Plan, digest_of
from mlsecd.detectors._drift_reference import Reference
from mlsecd.detectors._drift_standing import standing_of
from mlsecd.detectors._drift_streams import Columns
from mlsecd.detectors._drift_tenants import House
from mlsecd.detectors._drift_verdicts import judge, stray
from mlsecd.detectors._drift_watch import Watch
from mlsecd.detectors.base import Detector, Fit, Maturity, Section, Standing
from mlsecd.errors import MALFORMED, BaselineError, StateError
from mlsecd.kernels import Kernels
from mlsecd.records import I8, Finding, Kind, Records, RequestBatch, rows_of
from mlsecd.windows.keyed import Keyed
from mlsecd.windows.packing import pack, unpack

__all__ = ["DETECTOR", "DriftRequests", "Params"]

_DEFAULT_SHARE: Final = 0.25  # false alarms a week, where the configuration hands down none
_TICK_SECONDS: Final = 60.0  # the grain of recency among models
_LONGER: Final = (86_400.0, 172_800.0, 1_209_600.0)  # a day, a day again, and every day of the week again
_TIME_MAX: Final = 1e11  # seconds; what lies beyond is no time


class Params(base.Params, frozen=True):
    """What is learned, and how sure an alarm must be."""

    false_alarms_per_week: (
        Annotated[float, Meta(gt=0, description="share of the false-alarm budget; default: handed down from [budget]")]
        | None
    ) = None
    expected_models: Annotated[
        int,
        Meta(ge=1, le=1_024, description="models that the share is divided among, or those of the baseline if more"),
    ] = 4
    models: Annotated[int, Meta(ge=1, le=1_024, description="models watched at most; the one quiet longest goes")] = 32
    reference_rows: Annotated[
        int, Meta(ge=200, le=20_000, description="rows that a reference needs; up to three times as many are kept")
    ] = 2_000
    arm_rows: Annotated[
        int, Meta(ge=200, le=20_000, description="rows that a provisional reference needs, while the whole is learned")
    ] = 500
    reference_seconds: Annotated[
        float, Meta(ge=0, description="event time that a reference learned from the stream must span")
    ] = 3_600.0
    arm_seconds: Annotated[float, Meta(ge=0, description="event time that a provisional reference must span")] = 600.0
    learn_seconds: Annotated[
        float,
        Meta(ge=0, description="event time over which a learned reference grows: at a day, two days and two weeks"),
    ] = 1_209_600.0
    refresh_seconds: Annotated[
        float,
        Meta(ge=0, description="event time after which a whole reference is learned anew; 0: it stays as it is"),
    ] = 0.0
    reference_max_age_seconds: Annotated[
        float, Meta(gt=0, description="event time after which a reference is called stale; it stays in force")
    ] = 7_776_000.0
    tolerance: Annotated[
        float, Meta(ge=0, le=1, description="shift of a mean that is of no interest, in standard deviations")
    ] = 0.01
    classes: Annotated[int, Meta(ge=1, le=256, description="predicted classes with a stream of their own")] = 16
    axes: Annotated[int, Meta(ge=2, le=64, description="principal axes of vectors with a stream of their own")] = 16
    client_rows: Annotated[
        int, Meta(ge=1, le=200, description="rows of one client that count among 200 of its model, or in a minute")
    ] = 10
    repeat_seconds: Annotated[
        float, Meta(ge=1, le=900, description="event time between repeats of a finding that goes on")
    ] = 60.0


class DriftRequests(Detector):
    """A conformal e-detector per stream and a permutation test of whole vectors, against a reference that stays."""

    name = "drift_requests"
    version = 3
    consumes = frozenset({Kind.REQUEST})
    key = "model"
    maturity = Maturity.INCUBATING
    atlas = ("AML.T0031", "AML.T0059", "AML.T0020")
    owasp = ("LLM04:2025",)
    resolve_after_seconds = 3_600.0  # sparse traffic shows a drift again only so often
    summary = "A model's requests, vectors or predictions no longer look like its reference."
    action = (
        "Look at what changed when it began: a deployment, a tenant, upstream data, poisoned feedback. If it is the "
        "new normal, fit the baseline again on records from after the change; a whole reference stays as it is."
    )
    blind_spots: ClassVar[tuple[str, ...]] = (
        "Seasons that the reference did not see are drift; until it spans two days, nothing is certified.",
        "Shifts below the tolerance, or six standard errors of the reference, are never found: minimum_effect.",
        "A client beyond its share, exact retries, and rows without a stream's value are not scored.",
        "A number that never varied while it was learned has no stream.",
        "Where a client comes to send most of the rows later, what drifts beside it is spoken of softly.",
        "A tenant with a reference of its own that falls silent, or sends only a little.",
        "What is already wrong while the reference is learned becomes the reference.",
        "Traffic that wanders for longer than the reference spans is drift, and not certified.",
        "A model that is not of the baseline, and is quiet while more models than the limit call, is forgotten.",
    )
    Params = Params

    def __init__(self, params: Any, kernels: Kernels, section: Section | None = None) -> None:
        super().__init__(params, kernels, section)
        try:
            references = {} if section is None else load_references(section)
        except MALFORMED as error:
            raise BaselineError(f"{self.name}: the baseline's references cannot be used: {error}") from error
        self._plan = _plan(params, len(references))
        self._fitted = {
            (model, synthetic): House.armed(self._plan, *held)
            for model, held in references.items()
            for synthetic in (False, True)
        }
        self._references = references
        self._digests = {model: _digest(*held) for model, held in references.items()}
        self._learned = {
            synthetic: Keyed(params.models, lambda _: House.learning(self._plan), _TICK_SECONDS)
            for synthetic in (False, True)
        }

    def observe(self, records: Records) -> list[Finding]:
        """Fold request rows."""
        if not isinstance(records, RequestBatch) or not len(records):
            return []
        columns = Columns(records)
        found: list[tuple[int, Finding]] = []
        for model, synthetic, house, rows in self._groups(records, columns):
            found.extend(
                (row, self._tell(model, watch, tenant, float(columns.times[row]), synthetic=synthetic))
                for row, watch, tenant in house.observe(columns, rows, self.kernels)
            )
        return [finding for _, finding in sorted(found, key=lambda pair: pair[0])]

    def _groups(self, batch: RequestBatch, columns: Columns) -> Iterator[tuple[str, bool, House, I8]]:
        """Rows by model, real and synthetic apart.

        Models are touched in order of (minute, first appearance), whatever the batch: which of them
        is forgotten must not depend on where a batch was cut.
        """
        models = batch.text("model")
        timely = np.abs(columns.times) < _TIME_MAX
        ticks = np.floor_divide(np.where(timely, columns.times, 0.0), _TICK_SECONDS)
        minutes = np.zeros(len(ticks), np.int64)
        if ticks.min() < ticks.max():
            _, minutes = np.unique(ticks, return_inverse=True)
        codes = (minutes * len(models.values) + models.codes) * 2 + batch.synthetic
        codes = np.where(timely & (models.codes >= 0), codes, -1)
        groups: dict[int, tuple[str, bool, House, list[I8]]] = {}
        for code, rows in rows_of(codes.astype(np.int64)):
            model, synthetic = models.values[code // 2 % len(models.values)], bool(code % 2)
            house = self._fitted.get((model, synthetic)) or self._learned[synthetic].touch(
                model, float(columns.times[rows[0]])
            )
            if house is not None:
                groups.setdefault(id(house), (model, synthetic, house, []))[3].append(rows)
        for model, synthetic, house, parts in groups.values():
            yield model, synthetic, house, parts[0] if len(parts) == 1 else np.sort(np.concatenate(parts))

    def _tell(self, model: str, watch: Watch, tenant: str, ts: float, *, synthetic: bool) -> Finding:
        assert watch.reference is not None  # noqa: S101 - only an armed watch speaks
        verdict = stray(watch.strayed) if watch.strayed else judge(watch, watch.reference, ts)
        verdict = verdict.of_tenant(tenant) if tenant else verdict
        return self.finding(ts=ts, subject_kind="model", subject=model, synthetic=synthetic, **verdict._asdict())

    def standing(self) -> Standing:
        """Learning until a model has its reference; shifted while any has left it."""
        real = [house for (_, synthetic), house in self._fitted.items() if not synthetic]
        real += [house for _, house in self._learned[False].items()]
        return standing_of(
            real or [house for _, house in self._learned[True].items()],
            sum(keyed.refused + keyed.evicted for keyed in self._learned.values()),
            self.params.reference_max_age_seconds,
        )

    def snapshot(self) -> bytes:
        """Every model's sample, or reference and streams; a baseline's reference by its digest."""
        return pack(
            self.version,
            {
                "fitted": [
                    [model, synthetic, house.dump(self._digests[model])]
                    for (model, synthetic), house in self._fitted.items()
                ],
                "learned": [
                    [[key, tick, house.dump()] for key, tick, house in self._learned[synthetic].dump()]
                    for synthetic in (False, True)
                ],
            },
        )

    def restore(self, blob: bytes) -> None:
        """Take a snapshot's state; models whose baseline is another one start afresh."""
        held = unpack(self.version, blob)
        try:
            fitted = {
                (model, synthetic): House.load(self._plan, state, *self._references[model])
                for model, synthetic, state in held["fitted"]
                if state["baseline"] == self._digests.get(model)
            }
            learned = [
                [(key, tick, House.load(self._plan, state)) for key, tick, state in rows if key not in self._digests]
                for rows in held["learned"]
            ]
            pairs = list(zip(self._learned.values(), learned, strict=True))
        except MALFORMED as error:
            raise StateError(f"{self.name}: a snapshot does not fit: {error}") from error
        self._fitted |= fitted
        for keyed, rows in pairs:
            keyed.load(rows[-self.params.models :])

    @classmethod
    def fit(cls, records: Iterable[Records], params: Any, kernels: Kernels) -> Fit | None:
        """Learn every model's reference from its ordinary rows, evenly thinned."""
        return fit_references(records, _plan(params, 0), params.models, kernels)


def _digest(reference: Reference, own: dict[str, Reference]) -> str:
    """What tells a model's part of a baseline from another."""
    return "-".join(digest_of(one) for one in (reference, *(own[name] for name in sorted(own))))


def _plan(params: Any, models: int) -> Plan:
    """What a model's watch needs of the configuration; ``models`` in the baseline."""
    need = (params.reference_rows, float(params.reference_seconds))
    first = (min(params.arm_rows, need[0]), min(params.arm_seconds, need[1]))
    longer = (seconds for seconds in _LONGER if need[1] < seconds <= params.learn_seconds)
    stages = tuple(dict.fromkeys((first, need, *((need[0], seconds) for seconds in longer))))
    alarms = (params.false_alarms_per_week or _DEFAULT_SHARE) / max(params.expected_models, models)
    return Plan(
        settings=Settings(need[0], first[0], params.classes, params.axes, params.tolerance, alarms),
        stages=stages,
        whole=stages.index(need) + 1,
        refresh_seconds=params.refresh_seconds,
        client_rows=params.client_rows,
        repeat_seconds=float(params.repeat_seconds),
        alarms_per_week=alarms,
    )


DETECTOR = DriftRequests
