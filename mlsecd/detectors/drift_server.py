"""A server whose own metrics no longer look as they did: tokens a request, latency, queue, cache, failures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Final

import msgspec
from msgspec import Meta

from mlsecd.detectors import base
from mlsecd.detectors._drift_lane import Lane, Recipe
from mlsecd.detectors._drift_server import COLUMNS, STREAMS, Tally
from mlsecd.detectors._serving import FAR_SECONDS
from mlsecd.detectors.base import Detector, DetectorState, Maturity, Section, Standing
from mlsecd.errors import MALFORMED, StateError
from mlsecd.kernels import Kernels
from mlsecd.records import Finding, Kind, Records, ServerSample
from mlsecd.windows.keyed import Keyed
from mlsecd.windows.packing import pack, unpack

__all__ = ["DETECTOR", "DriftServer", "Params"]

_DEFAULT_SHARE: Final = 0.25  # false alarms a week, where the configuration hands down none
_TICK_SECONDS: Final = 60.0


class Params(base.Params, frozen=True):
    """What is learned, and how sure an alarm must be."""

    false_alarms_per_week: (
        Annotated[float, Meta(gt=0, description="share of the false-alarm budget; default: handed down from [budget]")]
        | None
    ) = None
    expected_models: Annotated[int, Meta(ge=1, le=1_024, description="models that the share is divided among")] = 4
    models: Annotated[
        int, Meta(ge=1, le=256, description="models of all servers watched at most; the one quiet longest goes")
    ] = 16
    arm_rows: Annotated[
        int,
        Meta(ge=60, le=1_440, description="rows, of a minute or longer, that a reference needs; it grows to 42 times"),
    ] = 240
    row_requests: Annotated[
        int, Meta(ge=1, le=10_000, description="requests that a row holds at least, however long they take to come")
    ] = 32
    repeat_seconds: Annotated[
        float, Meta(ge=60, le=900, description="event time between repeats of a finding that goes on")
    ] = 300.0


@dataclass(slots=True)
class _Model:
    """What is held of one model of one server: 0.8 MiB while it learns for two weeks, then its reference."""

    lane: Lane
    tally: Tally = field(default_factory=Tally)


class DriftServer(Detector):
    """A conformal e-CUSUM per number of a server's model, each less what the load explains of it."""

    name = "drift_server"
    consumes = frozenset({Kind.SERVER})
    key = "model"
    maturity = Maturity.SANDBOX
    atlas = ("AML.T0034", "AML.T0029")
    owasp = ("LLM10:2025",)
    resolve_after_seconds = 7_200.0
    summary = "A server's own metrics show other requests than they used to: tokens, latency, queue, cache, failures."
    action = (
        "Look at what changed when it began: a deployment, a new tenant, longer prompts, a slower GPU. A tap or a "
        "gateway's log says which client. If it is the new normal, restart without the kept state to learn it."
    )
    blind_spots: ClassVar[tuple[str, ...]] = (
        "Who asked, and what: a server's metrics name no client, and hold no vectors and no classes.",
        "How many requests come is no drift; a change that few of them have drowns in the mean.",
        "Rows with another load than was ever seen are judged by their failures only.",
        "What a server does not count: see docs/integrations/server-metrics.md.",
        "What is already wrong while the first hours are learned becomes the reference.",
        "The references are learned from the stream, not from a baseline.",
    )
    Params = Params

    def __init__(self, params: Any, kernels: Kernels, section: Section | None = None) -> None:
        super().__init__(params, kernels, section)
        share = params.false_alarms_per_week or _DEFAULT_SHARE
        self._recipe = Recipe.of(
            len(COLUMNS),
            STREAMS,
            params.arm_rows,
            alarms_per_week=share / params.expected_models,
            repeat_seconds=params.repeat_seconds,
        )
        self._models = {
            synthetic: Keyed(params.models, lambda _: _Model(Lane.of(self._recipe)), _TICK_SECONDS)
            for synthetic in (False, True)
        }

    def observe(self, records: Records) -> list[Finding]:
        """Fold a scrape; where it completes a row, judge it."""
        if not isinstance(records, ServerSample) or not abs(records.ts) < FAR_SECONDS:
            return []
        name = f"{records.model} at {records.server}" if records.model else records.server
        model = self._models[records.synthetic].touch(f"{records.host}\0{name}", records.ts)
        if model is None:
            return []
        model.tally.add(records)
        row = model.tally.row(self.params.row_requests)
        if row is None:
            return []
        model.tally.clear()
        if not model.lane.take(row, records.ts, self.kernels):
            return []
        verdict = model.lane.verdict(records.ts)
        told = {"server": records.server, "model": records.model, "host": records.host}
        return [
            self.finding(
                ts=records.ts,
                subject_kind="model",
                subject=name,
                synthetic=records.synthetic,
                **{**verdict._asdict(), "evidence": verdict.evidence | told},
            )
        ]

    def standing(self) -> Standing:
        """Learning until a model has its reference; shifted while any has left it; stale where nothing is scraped."""
        models = [one for _, one in self._models[False].items()] or [one for _, one in self._models[True].items()]
        armed = [one.lane.watch for one in models if one.lane.armed]
        gauges = {
            "models": float(len(models)),
            "armed_models": float(len(armed)),
            "shifted_models": float(sum(watch.shifted for watch in armed)),
            "streams": float(sum(len(watch.state) for watch in armed)),
            "refused": float(sum(keyed.refused + keyed.evicted for keyed in self._models.values())),
        }
        if gauges["shifted_models"]:
            return Standing(
                DetectorState.SHIFTED, f"{gauges['shifted_models']:.0f} models left their reference", gauges
            )
        if armed:
            return Standing(DetectorState.ARMED, "", gauges)
        if not models:
            return Standing(DetectorState.STALE, "blind: no server is scraped (sources.server_metrics)", gauges)
        furthest = max(len(one.lane.times) for one in models)
        return Standing(
            DetectorState.LEARNING, f"{furthest} of {self.params.arm_rows} rows of the furthest model", gauges
        )

    def snapshot(self) -> bytes:
        """Every model's rows, or reference and streams, and the row that is not whole yet."""
        return pack(
            self.version,
            [
                [[key, tick, model.lane.dump(), msgspec.to_builtins(model.tally)] for key, tick, model in keyed.dump()]
                for keyed in self._models.values()
            ],
        )

    def restore(self, blob: bytes) -> None:
        """Take a snapshot's state."""
        held = unpack(self.version, blob)
        try:
            loaded = [
                [
                    (key, tick, _Model(Lane.load(self._recipe, lane), msgspec.convert(tally, Tally)))
                    for key, tick, lane, tally in rows
                ]
                for rows in held
            ]
            pairs = list(zip(self._models.values(), loaded, strict=True))
        except MALFORMED as error:
            raise StateError(f"{self.name}: a snapshot does not fit: {error}") from error
        for keyed, rows in pairs:
            keyed.load(rows[-self.params.models :])


DETECTOR = DriftServer
