"""Drift detection beside its peers, in one run, on the same arrays: seconds of one core, memory, alarms, power.

Usage: python -m bench.drift [--peer NAME=PYTHON]... [--slow] [--power TRIALS [--seed N]] [--delays RUNS]
                            [--only] [--json]

scipy stands in mlsecd's own environment. river, alibi-detect and frouros are measured where --peer names an interpreter
that has them (`--peer river=/somewhere/bin/python`, also `alibi`, `frouros`): the latter two pin numpy releases
that mlsecd cannot run with. --slow adds what takes a peer minutes. --power counts how often each test finds
a change at level .05, 600 rows against 300, 32 columns. --delays is the time to the first alarm after a mean has
moved, twenty minutes after arming and in the moment of it, at 100 rows a minute and one false alarm a week, for one
stream and for forty that share that. --only leaves the rest out.
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


LABELS = 0.58  # distance of two classes in each of 32 features, in standard deviations


def shifts(rng: np.random.Generator) -> Iterator[tuple[str, Any]]:
    """What happens to the later rows, as functions of float[300, 32]."""
    yield "null", lambda x: x
    for by in (0.05, 0.1, 0.2):
        yield f"all features +{by} sigma", lambda x, by=by: x + by
    for by in (0.2, 0.3, 0.5):
        yield f"one of 32 +{by}", lambda x, by=by: x + by * (np.arange(32) == 5)
    for by in (1.1, 1.25):
        yield f"variance x{by}", lambda x, by=by: x * by**0.5
    for rho in (0.1, 0.2):
        yield (
            f"correlation {rho}",
            lambda x, rho=rho: np.sqrt(1.0 - rho) * x + np.sqrt(rho) * rng.standard_normal((len(x), 1)),
        )
    for share in (0.05, 0.1):
        yield f"{share:.0%} of points +1 sigma", lambda x, share=share: x + (rng.random((len(x), 1)) < share)
    for prior in (0.6, 0.7):
        yield f"label prior .5 to {prior}", lambda x, prior=prior: x + LABELS * (rng.random((len(x), 1)) < prior)
    yield "gradual 0 to .2", lambda x: x + 0.2 * np.linspace(0.0, 1.0, len(x))[:, None]


def energy_p(reference: Any, window: Any, rng: np.random.Generator, permutations: int) -> float:
    """The permutation test of the energy distance (Szekely & Rizzo 2013)."""
    pooled = np.concatenate((reference, window)).astype(np.float64)
    squares = np.einsum("ij,ij->i", pooled, pooled)
    apart = np.sqrt(np.maximum(squares[:, None] + squares - 2.0 * pooled @ pooled.T, 0.0))
    n, m = len(reference), len(window)
    chosen = np.zeros((n + m, permutations + 1))
    chosen[n:, 0] = 1.0
    order = np.argpartition(rng.random((n + m, permutations)), m, axis=0)[:m]
    np.put_along_axis(chosen[:, 1:], order, 1.0, axis=0)
    inside = np.einsum("ij,ij->j", chosen, apart @ chosen)
    between = apart.sum(axis=0) @ chosen - inside
    found = 2.0 * between / (n * m) - inside / m**2 - (apart.sum() - inside - 2.0 * between) / n**2
    return float((1 + (found[1:] >= found[0] - 1e-12).sum()) / (permutations + 1))


SINGLE = ("three bandwidths", "median bandwidth", "quarter bandwidth", "energy", "KS, Bonferroni")
ALONE = np.zeros(1)  # a concession of nothing, to Gaussian kernels alone


def on_power(trials: int, seed: int) -> Iterator[Row]:
    """How often each test has p <= .05: what the detector uses, and its parts and peers."""
    rng = np.random.default_rng(seed)
    for name, change in shifts(rng):
        hits = dict.fromkeys(("mlsecd", *SINGLE), 0)
        for _ in range(trials):
            reference, window = rng.standard_normal((600, 32)), rng.standard_normal((300, 32))
            if name.startswith("label"):
                reference += LABELS * (rng.random((600, 1)) < 0.5)
            reference, window = reference.astype(np.float32), change(window).astype(np.float32)
            gammas = KERNELS.drift_mmd_widths(reference)
            found = [KERNELS.drift_mmd(reference, window, gammas, rng, 199, stop=sys.maxsize).p]
            widths = (gammas, gammas[1:2], gammas[0:1])
            found += [KERNELS.drift_mmd(reference, window, one, rng, 199, ALONE, sys.maxsize).p for one in widths]
            ks = 32.0 * min(ks_2samp(reference[:, j], window[:, j], method="asymp").pvalue for j in range(32))
            found += [energy_p(reference, window, rng, 199), ks]
            for column, p in zip(hits, found, strict=True):
                hits[column] += p <= 0.05
        best = max(hits[column] for column in SINGLE) / trials
        for column, count in hits.items():
            yield Row(
                f"power, {name}: {column}", count / trials, f"of {trials}", "below the best", best - count / trials
            )


def delay(rng: np.random.Generator, shift: float, streams: int, before: int) -> float:
    """Minutes to the alarm, inf within six hours; all streams are alike and the first moves after so many rows."""
    long = rng.standard_normal(10_000)
    column = long.astype(np.float32)[:, None]
    reference = freeze_columns(np.arange(10_000) * 0.6, column, ("stream",), 1.0 / streams, KERNELS)
    if not reference.names:
        return np.inf
    rows = before + 36_000
    values = (rng.standard_normal(rows) + shift * (np.arange(rows) >= before))[:, None]
    ranks = KERNELS.drift_ranks(values, reference.values_sorted, reference.offsets, reference.two_valued)
    state = np.zeros((1, at.STREAM)), np.zeros((1, reference.bets.shape[2], at.RUN)), np.zeros(at.CLOCK)
    threshold, bins = np.array([streams * 100.0 * 10_080.0]), np.zeros((1, 2, at.BINS))
    row = -1
    while row < rows:  # an alarm before the change is a false one, and not counted here
        row = KERNELS.drift_fold(
            values, np.arange(rows) * 0.6, row + 1, ranks, threshold, reference.bets, 0.0, *state, bins
        )
        if row >= before:
            break
    return (row + 1 - before) / 100.0 if row < rows else np.inf


def on_delays(runs: int) -> Iterator[Row]:
    """Delays, each run with a reference of its own; every bet of the two-sided sixfold mixture pays for the others."""
    rng = np.random.default_rng(17)
    for streams, before, words in ((1, 2_000, ""), (40, 2_000, ""), (1, 0, ", in the moment of arming")):
        for shift in (0.1, 0.2, 0.5):
            found = [delay(rng, shift, streams, before) for _ in range(runs)]
            name = f"delay, {streams} streams, +{shift} sigma{words}"
            yield Row(f"{name}: median", float(np.median(found)), "minutes")
            yield Row(f"{name}: found within six hours", float(np.isfinite(found).mean()), "of runs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--slow", action="store_true")
    parser.add_argument("--power", type=int, default=0, metavar="TRIALS")
    parser.add_argument("--seed", type=int, default=5, help="of --power")
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
        report(on_power(args.power, args.seed), as_json=args.json)
    if args.delays:
        report(on_delays(args.delays), as_json=args.json)


if __name__ == "__main__":
    main()
