"""``mlsecd replay``."""

from __future__ import annotations

import collections
import datetime
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from mlsecd import app, config, explaining
from mlsecd.commands.progress import Progress
from mlsecd.commands.report_page import Latest, render
from mlsecd.commands.words import counted, drops, print_drops
from mlsecd.detectors.base import Detector
from mlsecd.engines.replay import records_of, replay
from mlsecd.errors import RecordError
from mlsecd.meters import Meters
from mlsecd.records import Finding

__all__ = ["run"]

_ACCOUNTS = "extraction_account"
_REPORTED_MAX = 200  # findings on a page
_EXPLAINED_MAX = 20
_ROW = "{:<20} {:<8} {:<8} {:<24} {:<28} {}"


def run(  # noqa: PLR0913, PLR0917 - one argument an option
    files: list[str],
    form: str,
    baseline: str | None,
    path: str | None,
    overrides: tuple[str, ...],
    report: str | None = None,
) -> int:
    """Fold the files; print findings as they come; sum up on standard error; write the report."""
    loaded = config.load(path, overrides)
    if baseline is not None:
        daemon = msgspec.structs.replace(loaded.daemon, baseline=baseline, baseline_sha256="")
        loaded = msgspec.structs.replace(loaded, daemon=daemon)
    meters = Meters()
    pipeline = app.make_pipeline(loaded, meters)
    for note in pipeline.notes:
        print(f"note: {note}", file=sys.stderr)
    if pipeline.baseline is None and _ACCOUNTS not in loaded.disabled:
        print(f"note: no baseline is loaded, and {_ACCOUNTS} needs one: give --baseline FILE", file=sys.stderr)
    pipeline.fold.on_failed = _raise
    counts: collections.Counter[str] = collections.Counter()
    started = time.perf_counter()
    if form == "table":
        print(_ROW.format("TIME", "SEVERITY", "STATUS", "DETECTOR", "SUBJECT", "REASON"))
    failure = None
    latest = Latest(_REPORTED_MAX)
    with Progress("replay") as progress:
        try:
            for finding in replay(pipeline.fold, _counted(records_of(files, meters, progress), counts)):
                _print(finding, form)
                latest.add(finding)
                counts[f"{finding.status}"] += 1
        except RecordError as error:
            failure = error
    if failure is None and not counts["records"]:
        raise RecordError(_nothing(files, meters))
    _sum_up(pipeline, meters, counts, time.perf_counter() - started)
    if report is not None:
        _report(report, files, latest, counts, pipeline)
    if failure is not None:
        raise failure
    return 0


def _report(
    report: str, files: list[str], latest: Latest, counts: collections.Counter[str], pipeline: app.Pipeline
) -> None:
    """Read the files again for what a classifier makes of each drift, and write the page."""
    lines = list(latest.lines.values())
    drifts = [one for one in lines if one.evidence.get("streams") and one.subject_kind == "model"][:_EXPLAINED_MAX]
    changes = [explaining.Change(one.subject, float(one.evidence["onset"])) for one in drifts]
    if "-" in files:
        print("note: standard input cannot be read again: the report has no classifier test", file=sys.stderr)
    elif changes:
        explaining.gather(records_of(files, Meters()), changes)
    kernels = app.load_kernels(pipeline.config)
    told = {one.id: explaining.explain(change, kernels) for one, change in zip(drifts, changes, strict=True)}
    known = {key: one for key, one in told.items() if one is not None}
    try:
        Path(report).write_bytes(render(", ".join(files), counts, lines, known, len(latest.left)))
    except OSError as error:
        raise RecordError(f"{report}: cannot be written: {error.strerror}") from error
    print(f"wrote {report}", file=sys.stderr)


def _raise(detector: Detector, error: Exception) -> None:
    """In a replay nobody is protected by going on: a detector's fault is the result."""
    raise RecordError(f"detector {detector.name} failed: {type(error).__name__}: {error}") from error


def _counted(records: Any, counts: collections.Counter[str]) -> Any:
    for one in records:
        counts["records"] += len(one) if hasattr(one, "columns") else 1
        yield one


def _print(finding: Finding, form: str) -> None:
    if form == "jsonl":
        sys.stdout.buffer.write(msgspec.json.encode(finding.line()) + b"\n")
        return
    when = datetime.datetime.fromtimestamp(finding.ts, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
    subject = f"{finding.subject_kind} {finding.subject}"
    row = _ROW.format(when, finding.severity, finding.status, finding.detector, _plain(subject, 28), finding.reason)
    print(_plain(row, 400))


def _plain(text: str, limit: int) -> str:
    """Text that an attacker may have chosen, safe for a terminal."""
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(char if char.isprintable() else "�" for char in cut)


def _nothing(files: list[str], meters: Meters) -> str:
    """Why there was nothing to replay."""
    bad = {reason: amount for (where, reason), amount in drops(meters).items() if where == "replay"}
    told = ", ".join(f"{reason}: {amount:,.0f}" for reason, amount in bad.items())
    why = f"{counted(sum(bad.values()), 'line')} dropped ({told})" if bad else "nothing is in there"
    return f"{', '.join(files)}: no readable record: {why}"


def _sum_up(pipeline: app.Pipeline, meters: Meters, counts: collections.Counter[str], seconds: float) -> None:
    sys.stdout.flush()
    rate = counts["records"] / seconds if seconds else 0.0
    print(
        f"{counted(counts['records'], 'record')} in {seconds:.1f} s ({rate:,.0f}/s): "
        f"{counted(counts['new'], 'finding')}, {counts['resolved']} of them resolved",
        file=sys.stderr,
    )
    print_drops(meters)
    for detector in pipeline.fold.detectors:
        standing = detector.standing()
        why = f": {standing.why}" if standing.why else ""
        print(f"{detector.name}: {standing.state}{why}", file=sys.stderr)
