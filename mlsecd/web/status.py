"""From the daemon's view to what anyone may see: bounded, printable, accounts shortened, no scores."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Sequence
from typing import Final

from mlsecd.records import Finding, GpuSample, Severity
from mlsecd.sinks.metrics_view import DetectorHealth, LogHealth, SourceHealth
from mlsecd.sinks.plain import harmless
from mlsecd.web.rows import (
    ActiveRow,
    BlindRow,
    Coverage,
    DetectorRow,
    DropRow,
    FindingRow,
    GpuRow,
    ModelRow,
    SourceRow,
    Status,
)
from mlsecd.web.verdict import TROUBLE, judge
from mlsecd.web.view import ActiveEntry, StatusView

__all__ = ["present"]

_RANKS: Final = {severity: severity.rank for severity in Severity}
_ROWS_MAX: Final = 50  # of any table
_WORDS_MAX: Final = 400
_NAME_MAX: Final = 80
_GPU_STALE_SECONDS: Final = 30.0  # as in the metrics
_CLIENT: Final = re.compile(r"\bk-([0-9a-f]{8})[0-9a-f]+")

_STATE_ORDER: Final = (*TROUBLE, "shifted", "learning", "off", "armed")  # what to look at first
_BLIND: Final = frozenset((*TROUBLE, "off"))


def _words(text: str | None, limit: int = _WORDS_MAX) -> str:
    """Prose: bounded and printable, and an account in it named as briefly as everywhere on the page."""
    cut = (text or "")[: 4 * limit]  # shortening a name leaves a third of it: enough is left to fill the limit
    return harmless(_CLIENT.sub(r"k-\1…", cut), limit)


def _plain(name: str) -> str:
    return harmless(name, _NAME_MAX)


def _subject(kind: str, subject: str) -> str:
    """Enough of an account's name to recognise it, not enough to use it."""
    short = _words(subject, _NAME_MAX)
    return short if kind != "client" or len(short) <= 12 else f"{short[:10].rstrip('…')}…"


def present(view: StatusView, *, detail: bool = True) -> Status:
    """The public picture. ``detail`` shows reasons and actions: they quote what gave an attacker away."""
    detectors = tuple(sorted(map(_detector, view.detectors), key=lambda row: (_state_rank(row.state), row.name)))
    sources = tuple(_source(one) for one in view.sources)
    log = view.log and LogHealth(view.log.blocked, _words(view.log.why), *_rest(view.log))
    return Status(
        now=view.now,
        started=view.started,
        host=_plain(view.host),
        version=view.build.version,
        revision=view.build.revision,
        backend=view.build.backend,
        verdict=judge(
            [(one.severity, one.synthetic) for one in view.active],
            [(row.name, row.state) for row in sources],
            [(row.name, row.state) for row in detectors],
            log,
        ),
        detail=detail,
        active=_active(view.active, view.recent, detail=detail),
        active_total=len(view.active),
        recent=tuple(_finding(one, detail=detail) for one in view.recent[:_ROWS_MAX]),
        sources=sources,
        detectors=detectors,
        blind=_blind(view, sources, detectors),
        gpus=tuple(_gpu(one, view.now) for one in view.gpus[:_ROWS_MAX]),
        dropped=_dropped(view),
        coverage=_coverage(view),
        models=tuple(ModelRow(_plain(name), requests, last) for name, requests, last in view.models[:_ROWS_MAX]),
        log=log,
        budget_per_week=view.budget_per_week,
        pages_past_week=view.pages_past_week,
    )


def _rest(log: LogHealth) -> tuple[int, bool | None, int]:
    return log.queued, log.chain_ok, log.tree_size


def _state_rank(state: str) -> int:
    return _STATE_ORDER.index(state) if state in _STATE_ORDER else 0


def _active(active: Sequence[ActiveEntry], recent: Sequence[Finding], *, detail: bool) -> tuple[ActiveRow, ...]:
    """The worst first, real ones before synthetic, then the newest evidence."""
    actions = {one.id: one.action for one in reversed(recent)} if detail else {}
    worst = heapq.nsmallest(_ROWS_MAX, active, key=lambda one: (one.synthetic, -_RANKS[one.severity], -one.last_ts))
    return tuple(
        ActiveRow(
            one.id,
            _plain(one.detector),
            str(one.severity),
            one.subject_kind,
            _subject(one.subject_kind, one.subject),
            one.first_ts,
            one.last_ts,
            one.count,
            one.synthetic,
            one.certified,
            _words(one.reason) if detail else "",
            _words(actions.get(one.id)),
        )
        for one in worst
    )


def _finding(one: Finding, *, detail: bool) -> FindingRow:
    return FindingRow(
        one.ts,
        one.id,
        str(one.status),
        str(one.severity),
        _plain(one.detector),
        one.subject_kind,
        _subject(one.subject_kind, one.subject),
        one.synthetic,
        one.certified,
        _words(one.reason) if detail else "",
        _words(one.action) if detail else "",
    )


def _source(one: SourceHealth) -> SourceRow:
    state = "unsupported" if one.unsupported else {None: "starting", True: "up", False: "down"}[one.up]
    why = _words(one.why)
    return SourceRow(_plain(one.name), state, one.up, one.unsupported, why, one.last_success, one.seen, one.expected)


def _detector(one: DetectorHealth) -> DetectorRow:
    names = (_plain(one.name), one.state, _words(one.why), _plain(one.maturity))
    return DetectorRow(*names, _words(one.summary), one.last_run)


def _gpu(one: GpuSample, now: float) -> GpuRow:
    old = one.state == "ok" and now - one.ts > _GPU_STALE_SECONDS
    return GpuRow(
        _plain(one.gpu),
        one.index,
        _plain(one.name or ""),
        "stale" if old else one.state,
        one.ts,
        one.utilization,
        one.memory_used_bytes,
        one.memory_total_bytes,
        one.power_watts,
        one.temperature_celsius,
        None if one.processes is None else len(one.processes),
        one.synthetic,
    )


def _blind(view: StatusView, sources: Iterable[SourceRow], detectors: Iterable[DetectorRow]) -> tuple[BlindRow, ...]:
    rows = [BlindRow(f"source {row.name}", row.why) for row in sources if row.state in {"down", "unsupported"}]
    rows += [BlindRow(f"detector {row.name}", row.why or row.state) for row in detectors if row.state in _BLIND]
    rows += [BlindRow(_plain(what), _words(why)) for what, why in view.blind]
    return tuple(rows[: 2 * _ROWS_MAX])


def _dropped(view: StatusView) -> tuple[DropRow, ...]:
    rows = [
        DropRow(_plain(where), _plain(reason), int(count)) for (where, reason), count in view.dropped.items() if count
    ]
    return tuple(sorted(rows, key=lambda row: -row.count)[:_ROWS_MAX])


def _coverage(view: StatusView) -> Coverage:
    fields = {_plain(name): int(count) for name, count in view.coverage.items() if name != "requests"}
    return Coverage(int(view.coverage.get("requests", 0)), fields)
