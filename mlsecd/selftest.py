"""A synthetic attack through each armed detector to the alert path, in this process: no live record, no page.

It takes the configured parameters, but not the host's baseline where the attack is about the bundled model: it shows
that detectors, ledger, log and metrics work here, not that this host's thresholds are well chosen.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from mlsecd import app, baseline, drills, plugins
from mlsecd.config import Config
from mlsecd.detectors.base import Detector, Params, Section
from mlsecd.engines.replay import replay
from mlsecd.errors import MlsecdError
from mlsecd.findings.ledger import Ledger
from mlsecd.kernels import Kernels
from mlsecd.meters import Meters
from mlsecd.records import Finding, Records, Severity
from mlsecd.sinks import log_verify
from mlsecd.sinks.forensic_log import ForensicLog
from mlsecd.sinks.metrics_view import Build, MetricsView
from mlsecd.sinks.prometheus import PrometheusSink

__all__ = ["Outcome", "run"]


@dataclass(frozen=True)
class Outcome:
    """What came of one detector's drill."""

    detector: str
    state: Literal["passed", "failed", "untried", "off"]
    detail: str
    seconds: float = 0.0


def run(config: Config) -> Iterator[Outcome]:
    """Every detector's outcome, in the order of their names."""
    kernels = app.load_kernels(config)
    sections = baseline.read(drills.bundled("baseline.npz"), "").sections
    for name, cls in plugins.detectors().items():
        drill = drills.DRILLS.get(name)
        if name in config.disabled:
            yield Outcome(name, "off", "switched off by the configuration")
        elif drill is None:
            yield Outcome(name, "untried", "there is no synthetic attack for it")
        else:
            yield _tried(config, cls, drill, kernels, sections.get(name) if drill.bundled else None)


def _tried(
    config: Config, cls: type[Detector], drill: drills.Drill, kernels: Kernels, section: Section | None
) -> Outcome:
    started = time.monotonic()
    try:
        params = drills.fits(drill, config.detectors[cls.name])
        if drill.ordinary is not None:
            section = _learnt(cls, params, kernels, drill.ordinary())
        found = _fold(config, cls(params, kernels, section), drill)
        problem = _path_problem(config, cls.name, found)
    except Exception as error:  # noqa: BLE001 - a detector that raises is the outcome; the others are tried all the same
        problem = f"{type(error).__name__}: {error}"
    seconds = time.monotonic() - started
    if problem:
        return Outcome(cls.name, "failed", f"{drill.what}: {problem}", seconds)
    return Outcome(cls.name, "passed", f"{drill.what}: found, logged and shown as synthetic", seconds)


def _learnt(cls: type[Detector], params: Params, kernels: Kernels, ordinary: list[Records]) -> Section:
    """What the detector learns from the drill's ordinary records, by its own fit."""
    fit = cls.fit(ordinary, params, kernels)
    if fit is None or fit.section is None:
        raise MlsecdError(f"it learnt nothing from ordinary records: {fit.refused if fit else 'it has no baseline'}")
    return fit.section


def _fold(config: Config, detector: Detector, drill: drills.Drill) -> list[Finding]:
    fold = app.make_fold(config, Meters(), [detector], Ledger())

    def failed(_detector: Detector, error: Exception) -> None:
        raise error

    fold.on_failed = failed
    return list(replay(fold, drill.records()))


def _path_problem(config: Config, name: str, found: list[Finding]) -> str:
    """What is wrong between the finding and the alert; empty where nothing is."""
    if not found:
        return "nothing was found"
    if not all(one.synthetic and one.detector == name for one in found):
        return "a finding of it does not say that it is synthetic: it would page"
    return _log_problem(config, found) or _metrics_problem(name, found)


def _log_problem(config: Config, found: list[Finding]) -> str:
    """Write the findings to a log of its own, and verify that."""
    with tempfile.TemporaryDirectory(prefix="mlsecd-selftest-") as directory:
        params = msgspec.structs.replace(config.sinks.forensic_log, directory=directory)
        log = ForensicLog(params, config.host, Meters())
        log.append(found)
        log.close()
        if log.blocked:
            return f"the forensic log refused it: {log.last_error}"
        report = log_verify.verify(Path(directory))
    return "" if report.ok else "the forensic log that it was written to does not verify"


def _metrics_problem(name: str, found: list[Finding]) -> str:
    """Render the metrics, and look for the one series that may be there."""
    severity = max((one.severity for one in found), key=lambda one: one.rank)
    sink = PrometheusSink(Meters())
    counts = {(name, each, False): 0.0 for each in Severity} | {(name, severity, True): 1.0}
    sink.publish(MetricsView(now=time.time(), build=Build("selftest"), findings=counts))
    lines = sink.body().data.decode().splitlines()
    wanted = f'mlsecd_findings_total{{detector="{name}",severity="{severity}",synthetic="true"}} 1.0'
    if wanted not in lines:
        return "its series is not in the metrics"
    if any(line.startswith("mlsecd_findings_total{") and 'synthetic="false"} 1' in line for line in lines):
        return "the metrics take it for real: it would page"
    return ""


def check(outcomes: list[Outcome]) -> None:
    """Raise where nothing could be tried at all."""
    if not any(one.state in {"passed", "failed"} for one in outcomes):
        raise MlsecdError("no detector that is on has a synthetic attack: nothing was tried")
