"""Drift detection beside its peers, in one run, on the same arrays: seconds of one core, memory, alarms, power.

Usage: python -m bench.drift [--peer NAME=PYTHON]... [--slow] [--power TRIALS] [--delays RUNS] [--only] [--json]

scipy stands in mlsecd's own environment. river, alibi-detect and frouros are measured where --peer names an interpreter
that has them (`--peer river=/somewhere/bin/python`, also `alibi`, `frouros`): the latter two pin numpy releases
that mlsecd cannot run with. --slow adds what takes a peer minutes. --power counts how often each test finds
a change at level .05, 600 rows against 300, 32 columns. --delays is the time to the first alarm after a mean has
moved, at 100 rows a minute and one false alarm a week, for one stream and for forty that share that. --only leaves
the rest out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import ks_2samp

from bench.rows import Row, report
from mlsecd.detectors._drift_freeze import freeze_columns
from mlsecd.kernels import drift_layout as at
from mlsecd.kernels import select

KERNELS = select("cpu")
WORKER = Path(__file__).with_name("drift_peers.py")
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
DAYS = 2


def arrays(path: Path) -> None:
    """The arrays of all tasks: vectors with a small shift, a stationary stream, its reference."""
    rng = np.random.default_rng(11)
    np.savez(
        path,
        reference=rng.standard_normal((1_000, 384)).astype(np.float32),
        window=(rng.standard_normal((1_000, 384)) + 0.02).astype(np.float32),
        stream=rng.standard_normal(DAYS * 144_000),
        long=rng.standard_normal(10_000),
    )


def measure(python: str, library: str, task: str, path: Path) -> dict[str, float]:
    """One task in a fresh process."""
    done = subprocess.run(
        [python, str(WORKER), library, task, str(path)],
        env={**os.environ, **ONE_THREAD, "PYTHONPATH": str(WORKER.parent.parent) if library == "mlsecd" else ""},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{library} {task}: {done.stderr.strip().splitlines()[-1:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def on_mmd(peers: dict[str, str], path: Path, *, slow: bool) -> Iterator[Row]:
    """The permutation test, 1,000 against 1,000 vectors of 384."""
    for permutations in (100, 1_000):
        task = f"mmd{permutations}"
        mine = measure(sys.executable, "mlsecd", task, path)
        name = f"MMD, {permutations} permutations"
        yield Row(f"{name}: mlsecd", mine["seconds"], "cpu seconds")
        yield Row(f"{name}: mlsecd, peak memory", mine["peak_mib"], "MiB", budget=250.0)
        yield Row(f"{name}: mlsecd, p", mine["p"], "")
        for peer in ("alibi", "frouros"):
            if peer not in peers or (peer == "frouros" and not (slow and permutations == 100)):
                continue
            other = measure(peers[peer], peer, task, path)
            yield Row(f"{name}: {peer}", other["seconds"], "cpu seconds", "mlsecd", other["seconds"] / mine["seconds"])
            yield Row(f"{name}: {peer}, peak memory", other["peak_mib"], "MiB")
            yield Row(f"{name}: {peer}, p", other["p"], "")


def on_streams(peers: dict[str, str], path: Path) -> Iterator[Row]:
    """One stationary number, 100 a minute for two days: updates a second, and false alarms."""
    count = DAYS * 144_000
    mine = measure(sys.executable, "mlsecd", "stream", path)
    rate = count / mine["seconds"]
    yield Row("stream: mlsecd e-CUSUM, ranks and bets", rate / 1e6, "M updates/s")
    yield Row("stream: mlsecd, false alarms", mine["alarms"] / DAYS, "a day")
    for task in ("adwin", "page_hinkley") if "river" in peers else ():
        other = measure(peers["river"], "river", task, path)
        yield Row(
            f"stream: river {task}",
            count / other["seconds"] / 1e6,
            "M updates/s",
            "mlsecd faster",
            rate * other["seconds"] / count,
        )
        yield Row(f"stream: river {task}, false alarms", other["alarms"] / DAYS, "a day")
    other = measure(sys.executable, "scipy", "days", path)
    yield Row("stream: scipy KS p < .05 each minute, false alarms", other["alarms"] / DAYS, "a day")


def shifts(rng: np.random.Generator) -> Iterator[tuple[str, Any]]:
    """What happens to the later rows, as functions of float[300, 32]."""
    yield "null", lambda x: x
    yield "all features +0.05 sigma", lambda x: x + 0.05
    yield "one of 32 +0.3", lambda x: x + 0.3 * (np.arange(32) == 5)
    yield "variance x1.1", lambda x: x * 1.1**0.5
    yield "correlation .1", lambda x: np.sqrt(0.9) * x + np.sqrt(0.1) * rng.standard_normal((len(x), 1))
    yield "5 % of points +1 sigma", lambda x: x + (rng.random((len(x), 1)) < 0.05)
    yield "gradual 0 to .2", lambda x: x + 0.2 * np.linspace(0.0, 1.0, len(x))[:, None]


def on_power(trials: int) -> Iterator[Row]:
    """How often each test has p <= .05."""
    rng = np.random.default_rng(5)
    for name, change in shifts(rng):
        hits = dict.fromkeys(("three bandwidths", "median bandwidth", "KS, Bonferroni", "either"), 0)
        for _ in range(trials):
            reference = rng.standard_normal((600, 32)).astype(np.float32)
            window = change(rng.standard_normal((300, 32))).astype(np.float32)
            gammas = KERNELS.drift_mmd_widths(reference)
            three = KERNELS.drift_mmd(reference, window, gammas, rng, 199, stop=sys.maxsize).p
            middle = KERNELS.drift_mmd(reference, window, gammas[1:2], rng, 199, stop=sys.maxsize).p
            ks = 32.0 * min(ks_2samp(reference[:, j], window[:, j], method="asymp").pvalue for j in range(32))
            for column, p in zip(hits, (three, middle, ks, 2.0 * min(three, ks)), strict=True):
                hits[column] += p <= 0.05
        best = max(hits[column] for column in ("three bandwidths", "median bandwidth", "KS, Bonferroni")) / trials
        for column, count in hits.items():
            ratio = (count / trials) / best if best else None
            yield Row(f"power, {name}: {column}", count / trials, f"of {trials}", "best single test", ratio)


def delay(rng: np.random.Generator, shift: float, streams: int) -> float:
    """Minutes to the alarm, inf within six hours; all streams are alike and the first of them moves."""
    long = rng.standard_normal(10_000)
    reference = freeze_columns(
        np.arange(10_000) * 0.6, long.astype(np.float32)[:, None], ("stream",), 1.0 / streams, KERNELS
    )
    if not reference.names:
        return np.inf
    values = (rng.standard_normal(36_000) + shift)[:, None]
    ranks = KERNELS.drift_ranks(values, reference.values_sorted, reference.offsets, reference.two_valued)
    state = np.zeros((1, at.STREAM)), np.zeros((1, reference.bets.shape[2], at.RUN)), np.zeros(at.CLOCK)
    threshold, bins = np.array([streams * 100.0 * 10_080.0]), np.zeros((1, 2, at.BINS))
    times = np.arange(36_000) * 0.6
    row = KERNELS.drift_fold(values, times, 0, ranks, threshold, reference.bets, 900.0, *state, bins)
    return (row + 1) / 100.0 if row < 36_000 else np.inf


def on_delays(runs: int) -> Iterator[Row]:
    """Delays, each run with a reference of its own; every bet of the two-sided sixfold mixture pays for the others."""
    rng = np.random.default_rng(17)
    for streams in (1, 40):
        for shift in (0.1, 0.2, 0.5):
            found = [delay(rng, shift, streams) for _ in range(runs)]
            name = f"delay, {streams} streams, +{shift} sigma"
            yield Row(f"{name}: median", float(np.median(found)), "minutes")
            yield Row(f"{name}: found within six hours", float(np.isfinite(found).mean()), "of runs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--slow", action="store_true")
    parser.add_argument("--power", type=int, default=0, metavar="TRIALS")
    parser.add_argument("--delays", type=int, default=0, metavar="RUNS")
    parser.add_argument("--only", action="store_true", help="only what --power and --delays ask for")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    peers = dict(one.partition("=")[::2] for one in args.peer)
    if not args.only:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "arrays.npz"
            arrays(path)
            report(on_mmd(peers, path, slow=args.slow), as_json=args.json)
            report(on_streams(peers, path), as_json=args.json)
    if args.power:
        report(on_power(args.power), as_json=args.json)
    if args.delays:
        report(on_delays(args.delays), as_json=args.json)


if __name__ == "__main__":
    main()
