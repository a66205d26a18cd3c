"""The board that metrics and pages are read from: how things stand, put up once a turn of the loop."""

from __future__ import annotations

import collections
import platform
import time
from collections.abc import Sequence

from mlsecd.app import Pipeline
from mlsecd.campaigns import Campaigns
from mlsecd.config import Config
from mlsecd.coverage import FIELDS_COUNTED, ModelsSeen
from mlsecd.detectors.base import Detector, DetectorState, Standing
from mlsecd.engines.hold import Ordered
from mlsecd.meters import Meters
from mlsecd.records import Finding, GpuSample, Severity, Status
from mlsecd.runner import Health
from mlsecd.sinks.forensic_log import ForensicLog
from mlsecd.sinks.metrics_view import Build, DetectorHealth, FindingKey, LogHealth, MetricsView
from mlsecd.version import version
from mlsecd.web.view import StatusView

__all__ = ["Board"]

_RECENT = 100  # lines that the landing page can show
_GPUS = 256
_SEVERITIES = 20_000
_DAY_SECONDS = 86_400.0
_WEEK_SECONDS = 7 * _DAY_SECONDS


class Board:
    """Collects what the loop learns and puts up two immutable pictures, for metrics and for pages.

    It lives through reloads, so that counters never go back.
    """

    def __init__(self, meters: Meters) -> None:
        self.metrics: MetricsView | None = None
        self.status: StatusView | None = None
        self._meters = meters
        self._started = time.time()
        self._findings: collections.Counter[FindingKey] = collections.Counter()
        self._severity: dict[str, Severity] = {}  # the highest that was told, by finding
        self._latest: dict[FindingKey, tuple[str, float]] = {}
        self._recent: collections.deque[Finding] = collections.deque(maxlen=_RECENT)
        self._campaigns = Campaigns()
        self._models = ModelsSeen()
        self._pages: collections.deque[float] = collections.deque(maxlen=100_000)
        self._gpus: dict[tuple[str, str, bool], GpuSample] = {}
        self._reload_successful = True
        self._reloaded = self._started

    def note(self, line: Finding, *, muted: bool) -> None:
        """One line of a finding's life; a muted one is shown, and counted apart."""
        self._recent.appendleft(line)
        self._campaigns.note(line)
        if not self._is_news(line):
            return
        if muted:
            self._meters.count("mlsecd_findings_muted_total", detector=line.detector)
            return
        key = (line.detector, line.severity, line.synthetic)
        self._findings[key] += 1
        self._latest[key] = (line.id, line.ts)
        if line.severity.rank >= Severity.HIGH.rank and not line.synthetic:
            self._pages.append(time.time())

    def _is_news(self, line: Finding) -> bool:
        """A new finding, or one that is now more severe than ever: what a page is owed for."""
        if line.status is Status.RESOLVED:
            self._severity.pop(line.id, None)
            return False
        before = self._severity.get(line.id)
        if before is None and line.status is not Status.NEW:
            before = line.severity  # told by an earlier life of the daemon
        if len(self._severity) < _SEVERITIES or line.id in self._severity:
            self._severity[line.id] = line.severity
        return before is None or line.severity.rank > before.rank

    def samples(self, ordered: Ordered) -> None:
        """Keep each GPU's latest sample, and count each model's requests."""
        if ordered.requests is not None:
            self._models.count(ordered.requests)
        for record in ordered.others:
            if isinstance(record, GpuSample):
                key = (record.host, record.gpu, record.synthetic)
                if key in self._gpus or len(self._gpus) < _GPUS:
                    self._gpus[key] = record

    def reloaded(self, now: float) -> None:
        """A new configuration is in force."""
        self._reload_successful, self._reloaded = True, now

    def reload_failed(self) -> None:
        """The configuration in force is not the one on disk."""
        self._reload_successful = False

    def status_line(self) -> str:
        """One line for systemd."""
        if self.status is None:
            return "starting"
        real = sum(not one.synthetic for one in self.status.active)
        down = [one.name for one in self.status.sources if one.up is False and not one.unsupported]
        return f"{real} active finding{'' if real == 1 else 's'}" + (
            f"; sources down: {', '.join(down)}" if down else ""
        )

    def publish(self, config: Config, pipeline: Pipeline, sources: Sequence[Health], log: ForensicLog | None) -> None:
        """Put up how things stand now."""
        now = time.time()
        while self._pages and self._pages[0] < now - _WEEK_SECONDS:
            self._pages.popleft()
        build = Build(version(), "", platform.python_version(), pipeline.backend)
        detectors = _detectors(config, pipeline)
        muted = pipeline.exceptions.muted
        active = [one for one in pipeline.ledger.active() if not muted(one.detector, one.subject, one.last_ts)]
        health = (
            None if log is None else LogHealth(log.blocked, log.last_error or "", log.queued, log.chain_ok, log.seq)
        )
        counters = self._meters.counters()
        gpus = self._known_gpus(now)
        self.metrics = MetricsView(
            now=now,
            build=build,
            counters=counters,
            gauges=self._meters.gauges(),
            detectors=detectors,
            sources=sources,
            findings=self._counts(pipeline),
            latest=dict(self._latest),
            active=active,
            accounts=self._campaigns.count(active),
            gpus=gpus,
            log=health,
            budget_per_week=config.budget.false_alarms_per_week,
            pages_past_week=len(self._pages),
            reload_successful=self._reload_successful,
            reloaded=self._reloaded,
        )
        self.status = StatusView(
            now=now,
            host=config.host,
            build=build,
            started=self._started,
            active=active,
            recent=tuple(self._recent),
            sources=sources,
            detectors=detectors,
            gpus=gpus,
            dropped=_dropped(counters),
            coverage=_coverage(counters),
            models=self._models.rows(),
            log=health,
            budget_per_week=config.budget.false_alarms_per_week,
            pages_past_week=len(self._pages),
        )

    def _known_gpus(self, now: float) -> tuple[GpuSample, ...]:
        """Every GPU that was sampled within a day: a lost one stays in sight, a removed one does not for ever."""
        self._gpus = {key: one for key, one in self._gpus.items() if one.ts > now - _DAY_SECONDS}
        return tuple(self._gpus.values())

    def _counts(self, pipeline: Pipeline) -> dict[FindingKey, float]:
        """Every detector and severity from the start, so that the first finding is seen as an increase."""
        zero = {(detector.name, severity, False): 0.0 for detector in pipeline.fold.detectors for severity in Severity}
        return {**zero, **self._findings}


def _detectors(config: Config, pipeline: Pipeline) -> list[DetectorHealth]:
    rows = []
    for detector in pipeline.fold.detectors:
        standing = _standing(detector)
        why = standing.why
        if failed := pipeline.fold.failures.get(detector.name):
            why = f"its last {failed} steps failed, see the daemon's log; {why}".rstrip("; ")
        rows.append(
            DetectorHealth(
                detector.name,
                str(standing.state),
                why,
                standing.gauges,
                pipeline.fold.last_run.get(detector.name),
                str(detector.maturity),
                detector.summary,
            )
        )
    rows += [DetectorHealth(name, "off", "switched off by the configuration") for name in sorted(config.disabled)]
    return rows


def _standing(detector: Detector) -> Standing:
    try:
        return detector.standing()
    except Exception as error:  # noqa: BLE001 - a detector that cannot say how it is must not hide the rest
        return Standing(DetectorState.MISMATCH, f"it cannot tell its state: {type(error).__name__}: {error}")


_Counters = dict[str, dict[tuple[tuple[str, str], ...], float]]


def _dropped(counters: _Counters) -> dict[tuple[str, str], float]:
    rows = counters.get("mlsecd_dropped_total", {})
    return {(dict(labels)["where"], dict(labels)["reason"]): amount for labels, amount in rows.items()}


def _coverage(counters: _Counters) -> dict[str, float]:
    """Requests in all (key ``requests``), and how many carry each field."""
    total = sum(counters.get("mlsecd_requests_total", {}).values())
    held = {dict(labels)["field"]: n for labels, n in counters.get("mlsecd_requests_with_field_total", {}).items()}
    return {"requests": total, **{name: held.get(name, 0.0) for name in FIELDS_COUNTED}}
