"""Where thieves with ordinary data rank by what they have seen of a model, on labelled traces.

    python bench/exposure.py --data DIR [--json]

DIR holds traces as `bench/extraction.py` takes them. It fits on the ordinary clients set apart for that, folds the
ordinary traffic of the test, and puts one attacker at a time among it: where would it rank at its 500th, 707th and
1,000th query, among the accounts that have 500 by then? Groups are those that the records' networks give. Without DIR
or its files it says so and exits 0.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from mlsecd.detectors._exposure_chart import Chart
from mlsecd.detectors._exposure_rank import Ranked, ranking
from mlsecd.detectors.base import Interval, Section
from mlsecd.detectors.extraction_exposure import ExtractionExposure, Params
from mlsecd.jsonlines import Decoder
from mlsecd.kernels import select
from mlsecd.meters import Meters
from mlsecd.records import RequestBatch

FITS = (("reference", "benign_calib", "benign_null"), ("baseline",))
ORDINARY = ("benign_a", "benign_b", "benign_town", "benign_test")
ALONE = ("indist", "mixup", "cutmix")
GROUPS = ("sybil24_indist",)
VOLUMES = (500, 707, 1_000)
STEP = 600.0  # seconds of event time between two judgements here


class Traces:
    """Traces of one folder, joined and in order of time."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.names = {path.name.removesuffix(".jsonl.gz") for path in directory.glob("*.jsonl.gz")}

    def having(self, names: tuple[str, ...]) -> list[str]:
        """Those of these names that are there."""
        return [name for name in names if name in self.names]

    def requests(self, *names: str) -> RequestBatch:
        """Requests of some files, in order of completion."""
        decoder = Decoder(Meters(), "bench")
        parts = [
            records
            for name in names
            for records in decoder.decode(gzip.decompress((self.directory / f"{name}.jsonl.gz").read_bytes()))
            if isinstance(records, RequestBatch)
        ]
        joined = RequestBatch.concat(parts)
        return joined.take(np.argsort(joined.completion, kind="stable"))

    def truth(self, *names: str) -> dict[str, Any]:
        """What each client of some files is."""
        return {
            k: v for name in names for k, v in json.loads((self.directory / f"{name}.truth.json").read_bytes()).items()
        }


def told(section: Section, requests: RequestBatch) -> list[Any]:
    """Every telling, judged each ten minutes."""
    detector = ExtractionExposure(Params(), select("cpu"), section)
    ticks = requests.completion // STEP
    cuts = [0, *(np.flatnonzero(np.diff(ticks)) + 1).tolist(), len(requests)]
    found = []
    for start, stop in pairwise(cuts):
        detector.observe(requests.slice(start, stop))
        end = float(ticks[start] + 1.0) * STEP
        found += detector.close(Interval(end - STEP, end), sorted(detector.states(), key=lambda pair: pair[0]))
    return found


def probes(section: Section, requests: RequestBatch, truth: dict[str, Any]) -> list[tuple[float, int, Any]]:
    """(when, queries, state) of each attacker at each volume, alone."""
    made = []
    client = requests.text("client")
    for code, name in enumerate(client.values):
        if not truth[name]["attack"]:
            continue
        own = requests.take(np.flatnonzero(client.codes == code))
        detector = ExtractionExposure(Params(), select("cpu"), section)
        start = 0
        for volume in VOLUMES:
            if len(own) < volume:
                break
            detector.observe(own.slice(start, volume))
            start = volume
            [(key, sight)] = [pair for pair in detector.states() if pair[0].startswith("client:")]
            made.append((float(own.completion[volume - 1]), volume, (key, type(sight).load(sight.dump()))))
    return sorted(made, key=lambda probe: probe[0])


def placed(section: Section, ordinary: RequestBatch, found: list[tuple[float, int, Any]]) -> dict[int, list[Ranked]]:
    """Where each probe ranks among ordinary accounts of that instant, by volume."""
    detector = ExtractionExposure(Params(), select("cpu"), section)
    charts = [Chart.of(header, section.arrays, str(i)) for i, header in enumerate(section.header["charts"])]
    ranked: dict[int, list[Ranked]] = {}
    start = 0
    for when, volume, state in found:
        stop = int(np.searchsorted(ordinary.completion, when, side="right"))
        if stop > start:
            detector.observe(ordinary.slice(start, stop))
            start = stop
        others = [pair for pair in detector.states() if pair[0].startswith("client:")]
        ranks = ranking([*others, state], charts, when // Params().epoch_seconds, Params().min_queries, 1)
        ranked.setdefault(volume, []).append(next(one for one in ranks if one.key == state[0]))
    return ranked


def alone_rows(name: str, ranked: dict[int, list[Ranked]]) -> Iterator[dict[str, Any]]:
    for volume, ones in sorted(ranked.items()):
        leading = [one.rank <= Params().leading and one.price.ratio >= Params().min_ratio for one in ones]
        yield {
            "name": f"{name} at {volume:,} queries",
            "value": sum(leading) / len(ones),
            "unit": "share of attackers told",
            "peer": None,
            "ratio": None,
            "attackers": len(ones),
            "pace_first": sum(one.pace_rank == 1 for one in ones),
            "pace_top3": sum(one.pace_rank <= 3 for one in ones),
            "coverage_top3": sum(one.coverage_rank <= 3 for one in ones),
            "among": [min(one.of for one in ones), max(one.of for one in ones)],
            "coverage_ratio": round(statistics.median(one.price.ratio for one in ones), 1),
            "over_expected": round(statistics.median(one.price.breadth for one in ones), 2),
        }


def told_rows(name: str, found: list[Any], truth: dict[str, Any], requests: RequestBatch) -> Iterator[dict[str, Any]]:
    """Which accounts and groups were told in a whole file."""
    attackers = {client for client, what in truth.items() if what["attack"]}
    days = float(np.ptp(requests.completion)) / 86_400.0
    accounts = {one.subject for one in found if one.subject_kind == "client"}
    groups = {one.subject: one for one in found if one.subject_kind == "campaign"}
    of_attackers = [one for one in groups.values() if attackers & set(one.evidence["clients"])]
    yield {
        "name": f"{name}: whole file",
        "value": len(found) / days,
        "unit": "tellings a day",
        "peer": None,
        "ratio": None,
        "ordinary_accounts_told": sorted(truth[one]["kind"] for one in accounts - attackers),
        "groups_told": len(groups),
        "attack_groups_told": len(of_attackers),
        "attack_accounts_in_them": sum(len(attackers & set(one.evidence["clients"])) for one in of_attackers),
        "of_attack_accounts": len(attackers),
        "attack_group_ratios": [one.evidence["ratio"] for one in of_attackers],
    }


def evaluate(directory: Path) -> Iterator[dict[str, Any]]:
    traces = Traces(directory)
    chosen = next((fit for fit in FITS if set(fit) <= traces.names), None)
    usual = traces.having(ORDINARY)
    if chosen is None or not usual:
        print(f"{directory}: no traces to fit on; skipped", file=sys.stderr)
        return
    began = time.process_time()
    fit = ExtractionExposure.fit([traces.requests(*chosen)], Params(), select("cpu"))
    print(
        f"fit in {time.process_time() - began:.1f} s of CPU: {fit.refused or ''} {'; '.join(fit.notes)}",
        file=sys.stderr,
    )
    if fit.section is None:
        return
    ordinary = traces.requests(*usual)
    began = time.process_time()
    found = told(fit.section, ordinary)
    cost = (time.process_time() - began) / len(ordinary) * 1e6
    print(f"{len(ordinary):,} ordinary requests: {cost:.1f} us of CPU each, judging included", file=sys.stderr)
    yield from told_rows(f"ordinary ({', '.join(usual)})", found, traces.truth(*usual), ordinary)
    for kind in ALONE:
        for name in traces.having((kind, f"atk_{kind}")):
            requests, truth = traces.requests(name), traces.truth(name)
            ranked = placed(fit.section, ordinary, probes(fit.section, requests, truth))
            yield from alone_rows(name, ranked)
    for name in traces.having(GROUPS):
        requests = traces.requests(name, *[one for one in usual if one in {"benign_a", "benign_b"}])
        truth = traces.truth(name, *usual)
        yield from told_rows(name, told(fit.section, requests), truth, requests)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory of traces")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of lines")
    options = parser.parse_args()
    rows = []
    for row in evaluate(options.data):
        rows.append(row)
        if not options.json:
            told_of = {
                key: value for key, value in row.items() if key not in {"name", "value", "unit", "peer", "ratio"}
            }
            print(f"{row['name']:44s} {row['value']:6.2f} {row['unit']}  {told_of}", flush=True)
    if options.json:
        print(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
