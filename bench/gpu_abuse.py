"""Foreign GPU work found by power and requests: the detector's quantile line beside an isolation forest.

Usage: python -m bench.gpu_abuse [--json] [--boards N]
Each host learns one day and is judged on other days with other seeds; no row of a day is in both. "became" is judged on
a workload that it never saw, served under the same model's name: what an unannounced change of traffic costs.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from sklearn.ensemble import IsolationForest

from bench.gpu_series import BOARDS, WORKLOADS, Board, Foreign, Workload, day
from bench.rows import Row, report
from mlsecd.detectors._power_bins import Draw, Work, features
from mlsecd.detectors._power_fit import step
from mlsecd.detectors.gpu_power_unexplained import DETECTOR, Params
from mlsecd.kernels import select
from mlsecd.records import GpuSample, Records, RequestBatch

LATER = 3 * 86_400.0
HOURS = 8
CASES: dict[str, tuple[Foreign, ...]] = {
    "ordinary": (),
    "full": (Foreign(10_800, 14_400, 0.95),),
    "20 % at night": (Foreign(10_800, 18_000, 0.2),),
    "8 % at night": (Foreign(10_800, 18_000, 0.08),),
    "4 % at night": (Foreign(10_800, 18_000, 0.04),),
    "20 % beside traffic": (Foreign(10_800, 18_000, 0.2, beside_traffic=True),),
    "5 min diagnostics": (Foreign(10_800, 11_100, 0.95),),
}


def by_line(fit: Any, records: Iterable[Records]) -> list[float]:
    detector = DETECTOR(Params(), select("cpu"), fit)
    found = (one for record in records for one in detector.observe(record))
    return [one.ts for one in found if one.evidence["kind"] == "power"]


def table(records: Iterable[Records], model: str) -> tuple[list[int], np.ndarray[Any, Any]]:
    """Minutes, and of each features, power, utilization."""
    work, draw = Work(), Draw()
    for one in records:
        if isinstance(one, RequestBatch):
            work.take(one, np.arange(len(one)), (model,), 5_000)
        elif isinstance(one, GpuSample):
            draw.take(one)
    minutes = [one for one in sorted(draw.bins) if draw.means(one) is not None]
    rows = [[*features(work, one, 1), *(draw.means(one) or ())[:2]] for one in minutes]
    return minutes, np.array(rows)


def by_forest(seen: np.ndarray[Any, Any], records: Iterable[Records], model: str) -> list[float]:
    """The same e-detector over minutes that an isolation forest finds odder than 95 % of the held-out ordinary ones."""
    cut = round(0.7 * len(seen))
    forest = IsolationForest(n_estimators=200, random_state=0).fit(seen[:cut])
    level = np.quantile(forest.score_samples(seen[cut:]), 0.05)
    minutes, rows = table(records, model)
    log, found = 0.0, []
    for minute, odd in zip(minutes, (forest.score_samples(rows) < level).tolist(), strict=True):
        log = max(0.0, log + step(odd))
        if log >= math.log(604_800 / 60 / 0.1):
            found.append(minute * 60.0 + 180)
            log = 0.0
    return found


def _minutes(found: Sequence[float], foreign: tuple[Foreign, ...]) -> float:
    """From the beginning of the foreign work to the first finding; infinity where it was never found."""
    start = LATER + (foreign[0].start if foreign else 0)
    after = [ts for ts in found if ts >= start]
    return (after[0] - start) / 60 if after else math.inf


def judge(board: Board, work: Workload, other: Workload) -> Iterator[Row]:
    """Every case of one host."""
    fit = DETECTOR.fit(day(board, work, 1, hours=24), Params(), select("cpu"))
    if fit is None or fit.section is None:
        return
    _, seen = table(day(board, work, 1, hours=24), work.name)
    for case, foreign in CASES.items():
        line = by_line(fit.section, day(board, work, 2, start=LATER, hours=HOURS, foreign=foreign))
        forest = by_forest(seen, day(board, work, 2, start=LATER, hours=HOURS, foreign=foreign), work.name)
        for how, found in (("line", line), ("forest", forest)):
            if foreign and case != "5 min diagnostics":
                yield Row(f"{board.name}, {work.name}, {case}: {how}", _minutes(found, foreign), "min")
                false = [ts for ts in found if ts < LATER + foreign[0].start]
            else:
                false = found
            yield Row(f"{board.name}, {work.name}, {case}: {how}, false", float(len(false)), "findings")
    renamed = dataclasses.replace(other, name=work.name)
    moved = by_line(fit.section, day(board, renamed, 3, start=LATER, hours=HOURS))
    yield Row(f"{board.name}, {work.name} became {other.name}: line, false", float(len(moved)), "findings")


def main() -> int:
    """Judge every board with the workloads that are quick to make."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--boards", type=int, default=len(BOARDS))
    args = parser.parse_args()
    light = [work for work in WORKLOADS if work.per_second < 5]
    for board, (work, other) in itertools.product(BOARDS[: args.boards], itertools.permutations(light, 2)):
        report(judge(board, work, other), as_json=args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
