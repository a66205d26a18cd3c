"""How `drift_requests` does on labelled streams, on a real trace, and where nothing ever changes.

Usage: python -m bench.drift_lanes [--data DIR] [--trace FILE]... [--cost]
                                  [--null-days DAYS] [--budget B] [--seed N] [--verbose] [--json]

DIR holds `NAME.jsonl.gz` streams with a `NAME.truth.json` beside each: `reference_until`, and `change_ts` or null.
Each is judged with a reference fitted on what lies before `reference_until`, and by learning from its own beginning.
FILE is a trace of arrivals and token counts, Azure's (CSV: TIMESTAMP, ContextTokens, GeneratedTokens) or Mooncake's
(JSON lines: timestamp in ms, input_length, output_length): nobody knows of a change in either. The null is
independent rows of one model, 100 a minute, with tokens, latency, status, ten classes, confidence and 32-d vectors:
a new reference every five days. Delays are minutes from the change to the first finding, -1 where it was missed;
false alarms are findings that began where nothing had changed.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import chi2

from bench.rows import Row, report
from mlsecd.detectors.base import Fit
from mlsecd.detectors.drift_requests import DriftRequests, Params
from mlsecd.engines.fold import Fold
from mlsecd.findings.ledger import Ledger
from mlsecd.jsonlines import Decoder
from mlsecd.kernels import select
from mlsecd.meters import Meters
from mlsecd.records import Finding, Ragged, RequestBatch, Severity, Status, Text

RATE = 100.0 / 60.0
DAYS_A_REFERENCE = 5
RESOLVE_SECONDS = 900.0
KERNELS = select("cpu")


def read(path: Path) -> RequestBatch:
    """A recording's requests, in order of completion."""
    batch = RequestBatch.concat(
        [
            one
            for one in Decoder(Meters(), "bench").decode(gzip.decompress(path.read_bytes()))
            if isinstance(one, RequestBatch)
        ]
    )
    return batch.take(np.argsort(batch.completion, kind="stable"))


def found(detector: DriftRequests, batches: Iterator[RequestBatch]) -> list[Finding]:
    """The lines of findings that began."""
    resolve_after = {detector.name: detector.resolve_after_seconds}  # as the daemon does
    ledger = Ledger(update_after_seconds=300.0, limit=10_000, resolve_after=resolve_after)
    fold = Fold([detector], ledger, Meters())
    lines = [line for batch in batches for line in fold.push([batch])] + fold.finish()
    return [line for line in lines if line.status is Status.NEW]


def pieces(batch: RequestBatch, rows: int = 500) -> Iterator[RequestBatch]:
    for start in range(0, len(batch), rows):
        yield batch.slice(start, min(start + rows, len(batch)))


def fitted(batch: RequestBatch, params: Params) -> tuple[DriftRequests, Fit]:
    fit = DriftRequests.fit([batch], params, KERNELS)
    assert fit is not None
    return DriftRequests(params, KERNELS, fit.section), fit


def on_stream(path: Path, verbose: bool) -> Iterator[Row]:
    """One labelled stream, with a fitted and with a learned reference."""
    truth = json.loads(path.with_name(path.name.replace(".jsonl.gz", ".truth.json")).read_text())
    name, batch, change = path.name.removesuffix(".jsonl.gz"), read(path), truth["change_ts"]
    before = np.flatnonzero(batch.completion < truth["reference_until"])
    after = np.flatnonzero(batch.completion >= truth["reference_until"])
    armed, _ = fitted(batch.take(before), Params())
    for way, detector, rows in (
        ("fitted", armed, batch.take(after)),
        ("learned", DriftRequests(Params(), KERNELS), batch),
    ):
        lines = found(detector, pieces(rows))
        early = [line for line in lines if change is None or line.ts < change]
        yield Row(f"{name}, {way}: false alarms", len(early), "findings")
        for line in lines if verbose else ():
            print(f"  {(line.ts - truth['start']) / 60:8.1f} min {line.severity} {line.reason}")
        if change is not None:
            late = [line.ts for line in lines if line.ts >= change]
            yield Row(f"{name}, {way}: delay", (min(late) - change) / 60.0 if late else -1.0, "minutes")


def read_trace(path: Path) -> RequestBatch:
    """Arrivals, input and output tokens, in order of time."""
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            table = list(csv.DictReader(file))
        stamps = [datetime.fromisoformat(row["TIMESTAMP"][:26]).replace(tzinfo=UTC).timestamp() for row in table]
        names = ("ContextTokens", "GeneratedTokens")
    else:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        stamps = [row["timestamp"] / 1_000.0 for row in lines]
        table, names = lines, ("input_length", "output_length")
    batch = RequestBatch(
        {
            "ts": np.array(stamps),
            "model": Text(np.zeros(len(table), np.int32), ("trace",)),
            "input_tokens": np.array([float(row[names[0]]) for row in table]),
            "output_tokens": np.array([float(row[names[1]]) for row in table]),
        }
    )
    return batch.take(np.argsort(batch.completion, kind="stable"))


def on_trace(path: Path, verbose: bool) -> Iterator[Row]:
    """A real trace: references of several lengths from its beginning."""
    batch = read_trace(path)
    first, last = batch.completion[[0, -1]]
    yield Row(f"{path.stem}: rows", len(batch), "rows")
    yield Row(f"{path.stem}: length", (last - first) / 60.0, "minutes")
    for minutes in (one for one in (40, 30, 20, 15, 10, 5) if 60.0 * one < last - first):
        params = Params(reference_seconds=60.0 * minutes, arm_seconds=min(600.0, 60.0 * minutes))
        detector = DriftRequests(params, KERNELS)
        lines = found(detector, pieces(batch))
        for line in lines if verbose else ():
            print(f"  {(line.ts - first) / 60:8.1f} min {line.severity} {line.reason} {line.evidence['uncertified']}")
        standing = detector.standing()
        yield Row(f"{path.stem}, reference of {minutes} min: streams", standing.gauges["streams"], "streams")
        alarms = [line for line in lines if line.severity is not Severity.INFO]
        yield Row(f"{path.stem}, reference of {minutes} min: findings", len(lines), "findings")
        yield Row(f"{path.stem}, reference of {minutes} min: tickets and warnings", len(alarms), "findings")


def ordinary(rng: np.random.Generator, mixing: np.ndarray, start: float, rows: int) -> RequestBatch:
    """Independent rows: heavy-tailed correlated vectors, log-normal tokens, ten even classes, 1 % errors."""
    vectors = rng.standard_normal((rows, 32)) @ mixing.T * np.sqrt(6.0 / rng.chisquare(6, rows))[:, None]
    output = np.floor(np.exp(rng.normal(4.0, 1.2, rows)))
    columns: dict[str, Any] = {
        "ts": start + np.arange(rows) / RATE,
        "model": Text(np.zeros(rows, np.int32), ("null",)),
        "input_tokens": np.floor(np.exp(rng.normal(5.0, 1.0, rows))),
        "output_tokens": output,
        "duration_s": np.round(0.002 * output * np.exp(rng.normal(0.0, 0.3, rows)), 4),
        "status": np.where(rng.random(rows) < 0.01, 500.0, 200.0),
        "predicted": Text(rng.integers(0, 10, rows).astype(np.int32), tuple(map(str, range(10)))),
        "scores": Ragged(np.arange(rows + 1), rng.beta(4, 2, rows).astype(np.float32)),
        "features": Ragged(np.arange(rows + 1) * 32, vectors.astype(np.float32).ravel()),
    }
    return RequestBatch(columns)


def on_null(days: int, budget: float, seed: int, verbose: bool) -> Iterator[Row]:
    """Days on which nothing changes, with an exact Poisson interval of the weekly rate."""
    rng = np.random.default_rng(seed)
    params, alarms, watched = Params(false_alarms_per_week=budget), 0, 0.0
    while watched < days:
        mixing = np.linalg.qr(rng.standard_normal((32, 32)))[0] * np.sqrt(np.geomspace(4.0, 0.2, 32))
        detector, last = DriftRequests(params, KERNELS), -np.inf
        rows = int(DAYS_A_REFERENCE * 86_400 * RATE)
        for start in range(0, rows, 20_000):
            batch = ordinary(rng, mixing, start / RATE, min(20_000, rows - start))
            for line in detector.observe(batch.take(np.argsort(batch.completion, kind="stable"))):
                if line.ts - last > RESOLVE_SECONDS:
                    alarms += 1
                    if verbose:
                        print(f"  {watched + line.ts / 86400:.2f} d {line.severity} {line.reason}", flush=True)
                last = line.ts
        watched += DAYS_A_REFERENCE
    weeks = watched / 7.0
    low = chi2.ppf(0.025, 2 * alarms) / 2.0 / weeks if alarms else 0.0
    high = chi2.ppf(0.975, 2 * alarms + 2) / 2.0 / weeks
    promised = budget / params.expected_models
    yield Row("null: days watched", watched, "days")
    yield Row("null: false alarms", alarms, "findings")
    yield Row("null: false alarms a week", alarms / weeks, "1/week", "promised", alarms / weeks / promised)
    yield Row("null: lower end, 95 % Poisson", low, "1/week")
    yield Row("null: upper end, 95 % Poisson", high, "1/week")


def on_cost() -> Iterator[Row]:
    """CPU time a row, columns to findings, all streams; the reference is learned before."""
    rng = np.random.default_rng(1)
    for size, calls in ((10, 400), (100, 200), (1_000, 30), (20_000, 3)):
        detector = DriftRequests(Params(reference_seconds=0.0), KERNELS)
        detector.observe(ordinary(rng, np.eye(32), 0.0, 3_000))
        batches = [ordinary(rng, np.eye(32), 1_800.0 + call * size / RATE, size) for call in range(calls)]
        began = time.process_time()
        for batch in batches:
            detector.observe(batch)
        spent = time.process_time() - began
        streams = detector.standing().gauges["streams"]
        yield Row(f"cost, {size} rows a call, {streams:.0f} streams", 1e6 * spent / (size * calls), "us/row")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--trace", type=Path, action="append", default=[])
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--null-days", type=int, default=0)
    parser.add_argument("--budget", type=float, default=0.25, help="false alarms a week, shared by 4 models")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    for path in sorted(args.data.glob("*.jsonl.gz")) if args.data else ():
        report(on_stream(path, args.verbose), as_json=args.json)
    for path in args.trace:
        report(on_trace(path, args.verbose), as_json=args.json)
    if args.cost:
        report(on_cost(), as_json=args.json)
    if args.null_days:
        report(on_null(args.null_days, args.budget, args.seed, args.verbose), as_json=args.json)


if __name__ == "__main__":
    main()
