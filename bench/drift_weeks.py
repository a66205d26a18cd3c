"""Simulated weeks in which nothing changes, and changes of many kinds: what `drift_requests` says of either.

Usage: python -m bench.drift_weeks [--seeds N] [--weeks N] [--per-minute R] [--traffic KIND] [--first-seed S]
                                   [--vectors] [--changes N] [--verbose] [--json]

Traffic has a daily and a weekly season in rate, tokens and classes, clients of unequal size, and values that go
together (KIND: independent, minutes, hours, seasons, traces, all). `traces` is fitted to two real traces, their
lengths as normal scores: the Azure code trace (2023) shows a covariance of 0.02 that is gone within two minutes, the
Mooncake trace one of 0.08 that is gone within ten; Azure's rows a minute vary as widely as their mean. `all` is
that, both seasons, and a level that lasts half an hour, which neither trace is long enough to show. Each seed is a host
of its own: the detector learns from the stream's beginning, as a daemon without a baseline does. Findings are counted
by what they ask of anybody: tickets and warnings are alarms, `info` is context. Rates come with exact Poisson
intervals, and as a multiple of what the detector promises. A week takes 0.4 s of a free core (20 hosts, 52 weeks: seven
minutes), with --vectors more: say --seeds 4 --weeks 8.
With --changes, N streams of each kind of change, each with two hours of reference and other seeds: delays in minutes.
"""

from __future__ import annotations

import argparse
import collections
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.signal import lfilter
from scipy.stats import chi2

from bench.drift_lanes import KERNELS, found
from bench.rows import Row, report
from mlsecd.detectors.drift_requests import DriftRequests, Params
from mlsecd.records import Finding, Ragged, RequestBatch, Severity, Text

DAY, WEEK = 86_400.0, 604_800.0
CLIENTS, CLASSES, WIDTH = 60, 6, 16
CHUNK_SECONDS = DAY
PROMISED = 0.25  # alarms a week: what the detector is handed where nothing else is configured

# Seconds that a level lasts (to 1/e), and its standard deviation in those of a value.
LASTING: dict[str, tuple[tuple[float, float], ...]] = {
    "minutes": ((300.0, 0.25),),
    "hours": ((3_600.0, 0.25), (14_400.0, 0.25)),
    "traces": ((40.0, 0.14), (300.0, 0.28)),
    "all": ((40.0, 0.14), (300.0, 0.28), (1_800.0, 0.25)),
}


class Traffic:
    """One host's requests, a stretch after the other."""

    def __init__(self, seed: int, kind: str, per_minute: float, *, vectors: bool) -> None:
        self.rng = np.random.default_rng([seed, 77])
        self.per_second, self.vectors = per_minute / 60.0, vectors
        self.season = kind in {"seasons", "all"}
        self.bursts = kind in {"traces", "all"}
        self.lasting = LASTING.get(kind, ())
        self.levels = {seconds: self.rng.standard_normal(3) for seconds, _ in self.lasting}
        self.phase = self.rng.uniform(0.0, DAY)
        self.shares = self.rng.dirichlet(np.full(CLIENTS, 0.5))
        self.mixing = np.linalg.qr(self.rng.standard_normal((WIDTH, WIDTH)))[0] * np.sqrt(np.geomspace(4.0, 0.2, WIDTH))
        self.directions = self.rng.standard_normal((3, WIDTH)) / np.sqrt(WIDTH)

    def stretch(self, start: float, seconds: float) -> RequestBatch:
        """All requests of a stretch of time."""
        rng = self.rng
        steps = start + np.arange(0.0, seconds, 60.0)
        wave = np.sin(2 * np.pi * (steps + self.phase) / DAY)
        weekend = (np.floor((steps - 345_600.0) / DAY) % 7 >= 5) & self.season
        rates = self.per_second * 60.0 * (1.0 + (0.7 * wave if self.season else 0.0)) * np.where(weekend, 0.5, 1.0)
        if self.bursts:
            rates = rates * rng.exponential(1.0, len(rates))
        counts = rng.poisson(rates)
        counts[rng.random(len(counts)) < 0.002] *= 5
        minute = np.repeat(np.arange(len(counts)), counts)
        ts = np.sort(steps[minute] + rng.uniform(0.0, 60.0, len(minute)))
        levels = (self._slow(seconds, len(steps)) * far for seconds, far in self.lasting)
        drift = sum(levels, np.zeros((len(steps), 3)))
        if self.season:
            drift = drift + np.column_stack((0.3 * wave, -0.2 * wave, 0.2 * wave)) + 0.2 * weekend[:, None]
        return self._rows(ts, drift[minute])

    def _slow(self, lasting: float, steps: int) -> np.ndarray:
        """Three levels that forget themselves within so many seconds, minute by minute."""
        keep = np.exp(-60.0 / lasting)
        noise = self.rng.standard_normal((steps, 3)) * np.sqrt(1.0 - keep**2)
        made, last = lfilter([1.0], [1.0, -keep], noise, axis=0, zi=keep * self.levels[lasting][None])
        self.levels[lasting] = last[0] / keep
        return made

    def _rows(self, ts: np.ndarray, drift: np.ndarray) -> RequestBatch:
        rng, n = self.rng, len(ts)
        output = np.floor(np.exp(4.0 + 1.0 * (rng.standard_normal(n) + drift[:, 1])))
        classes = np.argmax(rng.gumbel(size=(n, CLASSES)) + np.outer(drift[:, 2], np.linspace(-0.5, 0.5, CLASSES)), 1)
        columns: dict[str, Any] = {
            "ts": ts,
            "model": Text(np.zeros(n, np.int32), ("m",)),
            "client": Text(rng.choice(CLIENTS, n, p=self.shares).astype(np.int32), tuple(map(str, range(CLIENTS)))),
            "input_tokens": np.floor(np.exp(5.0 + rng.standard_normal(n) + drift[:, 0])),
            "output_tokens": output,
            "duration_s": np.round(0.002 * output * np.exp(rng.normal(0.0, 0.3, n)), 4),
            "status": np.where(rng.random(n) < 0.01, 500.0, 200.0),
            "predicted": Text(classes.astype(np.int32), tuple(map(str, range(CLASSES)))),
            "scores": Ragged(np.arange(n + 1), rng.beta(4, 2, n).astype(np.float32)),
        }
        if self.vectors:
            x = rng.standard_normal((n, WIDTH)) @ self.mixing.T * np.sqrt(6.0 / rng.chisquare(6, n))[:, None]
            x += drift @ self.directions
            columns["features"] = Ragged(np.arange(n + 1) * WIDTH, x.astype(np.float32).ravel())
        batch = RequestBatch(columns)
        return batch.take(np.argsort(batch.completion, kind="stable"))


def interval(events: int, exposure: float) -> tuple[float, float]:
    """95 % Poisson interval of a rate, exact."""
    low = chi2.ppf(0.025, 2 * events) / 2.0 / exposure if events else 0.0
    return float(low), float(chi2.ppf(0.975, 2 * events + 2) / 2.0 / exposure)


def episodes(detector: DriftRequests, stretches: Iterator[RequestBatch]) -> list[Finding]:
    """Findings as the ledger would begin and resolve them, each by its loudest line, and much quicker."""
    made: list[Finding] = []
    last = -np.inf
    for batch in stretches:
        for line in detector.observe(batch):
            if line.ts - last > DriftRequests.resolve_after_seconds:
                made.append(line)
            elif line.severity.rank > made[-1].severity.rank:
                made[-1] = line
            last = line.ts
    return made


def on_weeks(args: argparse.Namespace) -> Iterator[Row]:
    """Weeks without a change."""
    told: collections.Counter[str] = collections.Counter()
    first_day = certified = 0
    streams: list[float] = []
    least: list[float] = []
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        traffic = Traffic(seed, args.traffic, args.per_minute, vectors=args.vectors)
        detector = DriftRequests(Params(expected_models=1), KERNELS)
        starts = np.arange(0.0, args.weeks * WEEK, CHUNK_SECONDS)
        for line in episodes(detector, (traffic.stretch(start, CHUNK_SECONDS) for start in starts)):
            told[str(line.severity)] += 1
            first_day += line.ts < DAY
            certified += line.certified
            if args.verbose:
                print(f"  seed {seed} {line.ts / DAY:7.2f} d {line.severity} {line.reason[:150]}", flush=True)
        gauges = detector.standing().gauges
        streams.append(gauges["streams"])
        least.append(gauges["minimum_effect"])
        print(f"host {seed}: {args.weeks:g} weeks, so far {dict(told)}", file=sys.stderr, flush=True)
    weeks = args.seeds * args.weeks
    name = f"{args.traffic}{', vectors' if args.vectors else ''}"
    alarms = sum(told[level] for level in (Severity.LOW, Severity.MEDIUM))
    yield Row(f"{name}: weeks watched", weeks, "weeks")
    for what, events in (
        ("any finding", sum(told.values())),
        ("tickets and warnings", alarms),
        ("certified", certified),
    ):
        low, high = interval(events, weeks)
        rate = events / weeks
        yield Row(f"{name}: {what} a week", rate, f"1/week [{low:.4f}, {high:.4f}]", "promised", rate / PROMISED)
    yield Row(f"{name}: findings within the first day", first_day, "findings")
    yield Row(f"{name}: streams in the end", float(np.mean(streams)), "streams")
    yield Row(f"{name}: smallest effect that half of them show in the end", float(np.mean(least)), "sd")


KINDS = ("mean", "variance", "correlation", "label", "gradual", "mixture", "new cluster", "tokens", "errors")


def on_changes(args: argparse.Namespace) -> Iterator[Row]:
    """Changes, each in streams of its own: 25 rows a minute, a reference of two hours, a change at 200 minutes."""
    for kind in KINDS:
        delays, early = [], 0
        for seed in range(args.first_seed, args.first_seed + args.changes):
            lines = found(DriftRequests(Params(learn_seconds=0.0), KERNELS), iter(changed(kind, seed)))
            early += sum(line.ts < 12_000.0 for line in lines)
            late = [line.ts for line in lines if line.ts >= 12_000.0]
            delays.append((min(late) - 12_000.0) / 60.0 if late else np.inf)
        within = int(np.sum(np.array(delays) <= 60.0))
        yield Row(f"{kind}: found within 60 minutes", within, f"of {args.changes} streams")
        yield Row(f"{kind}: median delay", float(np.median(delays)), "minutes")
        yield Row(f"{kind}: false alarms before", early, "findings")


def changed(kind: str, seed: int) -> list[RequestBatch]:
    """A stream of six hours that changes in one way."""
    rng = np.random.default_rng([seed, 99])
    n, d = 9_000, 32
    ts = np.sort(rng.uniform(0.0, 21_600.0, n))
    late = ts >= 12_000.0
    eight = np.zeros(d)
    eight[rng.choice(d, 8, replace=False)] = 1.0
    common = rng.standard_normal((n, 4)) @ rng.standard_normal((4, d)) * 0.5
    own = rng.standard_normal((n, d))
    if kind == "correlation":
        swap = np.flatnonzero(late)
        shuffled = common.copy()
        for j in np.flatnonzero(eight):
            shuffled[swap, j] = common[rng.permutation(swap), j]
        common = shuffled
    x = common + own
    sd = x.std(axis=0)
    ramp = np.clip((ts - 12_000.0) / 1_800.0, 0.0, 1.0)
    x = {
        "mean": lambda: x + np.outer(late, 0.35 * sd * eight),
        "variance": lambda: x * (1.0 + np.outer(late, 0.45 * eight)),
        "gradual": lambda: x + np.outer(ramp, 0.6 * sd * eight),
        "mixture": lambda: x + np.outer(late & (rng.random(n) < 0.1), 2.0 * sd * rng.choice([-1.0, 1.0], d)),
        "new cluster": lambda: np.where((late & (rng.random(n) < 0.2))[:, None], 0.15 * x + 1.5 * eight * sd, x),
    }.get(kind, lambda: x)()
    weights = np.where(late[:, None] & (kind == "label"), [0.3] + [0.7 / 9] * 9, np.full(10, 0.1))
    predicted = (weights.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    columns: dict[str, Any] = {
        "ts": ts,
        "model": Text(np.zeros(n, np.int32), ("m",)),
        "client": Text(rng.integers(0, 40, n).astype(np.int32), tuple(map(str, range(40)))),
        "output_tokens": np.floor(np.exp(rng.normal(4.0, 1.0, n) + (0.4 * late if kind == "tokens" else 0.0))),
        "status": np.where(rng.random(n) < np.where(late & (kind == "errors"), 0.08, 0.01), 500.0, 200.0),
        "predicted": Text(predicted.astype(np.int32), tuple(map(str, range(10)))),
        "features": Ragged(np.arange(n + 1) * d, x.astype(np.float32).ravel()),
    }
    batch = RequestBatch(columns)
    return [batch.slice(start, start + 500) for start in range(0, n, 500)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--weeks", type=float, default=52.0)
    parser.add_argument("--per-minute", type=float, default=10.0)
    parser.add_argument("--traffic", choices=("independent", "seasons", *LASTING), default="all")
    parser.add_argument("--vectors", action="store_true", help="16-d vectors as well: the multivariate lanes")
    parser.add_argument("--changes", type=int, default=0)
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    report(on_changes(args) if args.changes else on_weeks(args), as_json=args.json)


if __name__ == "__main__":
    main()
