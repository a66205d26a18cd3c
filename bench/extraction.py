"""How well model thieves are told from customers: ours beside published detectors, on labelled traces.

    python -m bench.extraction --data DIR [--alpha 0.02 | --budget] [--held-out] [--spread] [--json]

DIR holds traces as `python -m bench.traces` writes them, one victim's or a folder of VICTIM/PART: gzip JSON lines of
requests, `NAME.truth.json` beside each, and `plan.json`. Everyone is calibrated on the same ordinary clients by the
same rule: the split-conformal quantile of the highest score that a client ever reaches, at `--alpha` a client.
Nothing but the files to fit on is seen before it is scored. `--held-out` judges the parts that nobody tuned on.
`--spread` fits anew on five random halves of the calibration clients, and with 1, 2 and 5 % of thieves among them.

A row: accounts found of those that attack, the median of queries until then, ordinary accounts flagged; ours by
findings of severity `low` and above about the account, by campaigns that name it, and by either.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.judging.court import OURS, Court, Row, warn
from bench.judging.folder import Folder
from bench.peers import clopper_pearson

SPREAD = ("mixed_day", "atk_jbda", "hydra50_knockoff", "txt_distil", "hydra60_distil", "benign_test", "benign_launch")
SPLITS = 5
POISON = (0.01, 0.02, 0.05)


def show(row: Row) -> str:
    """A line of the table."""
    low, high = clopper_pearson(row.found, row.accounts) if row.accounts else (math.nan, math.nan)
    hits = f"{row.found:4d} of {row.accounts:4d} [{low:4.0%},{high:5.0%}]" if row.accounts else " " * 24
    queries = f"@{row.queries:<5g}" if row.queries else " " * 6
    words = " ".join(
        f"{name}={dict(value) if isinstance(value, dict) else value}"
        for name, value in row.more.items()
        if value and name not in {"standing", "by_detector", "bytes_per_account", "microseconds"}
    )
    cost = f"{row.more['microseconds']:5.0f} us" if "microseconds" in row.more else " " * 8
    flagged = f"flagged {row.flagged:3d} of {row.ordinary:4d}" if row.ordinary else " " * 20
    return f"{row.scenario:22s} {row.share:4.0%} {row.detector:20s} {hits} {queries} {flagged} {cost} {words}"


def table(court: Court, only: str) -> Iterator[dict[str, Any]]:
    """Every scenario, by everyone; the best peer stands beside ours."""
    calibration = court.calibrate()
    for note in calibration.fitted.notes:
        warn(note)
    court.warm_up(calibration)
    judged: set[str] = set()
    for mixture in court.folder.mixtures(only):
        rows = list(court.judge(mixture, calibration, peers=mixture.scenario not in judged))
        judged.add(mixture.scenario)
        for row in rows:
            print(show(row), file=sys.stderr, flush=True)
        best = max((row for row in rows if not row.detector.startswith(OURS)), key=lambda row: row.found, default=None)
        for row in rows:
            made = row.as_dict()
            if row.detector == OURS and best is not None and row.accounts:
                made |= {"peer": best.detector, "ratio": row.found / best.found if best.found else None}
            yield made


def spread(court: Court, only: str) -> Iterator[dict[str, Any]]:
    """The same on other draws of the calibration clients, and on poisoned ones."""
    clients = court.clients()
    fits: list[tuple[str, list[str] | None, list[str]]] = [("all", None, [])]
    for i in range(SPLITS):
        half = np.random.default_rng(i).choice(clients, len(clients) // 2, replace=False)
        fits.append((f"half {i}", half.tolist(), []))
    thieves = sorted(court.folder.truth(["poison"]))
    for share in POISON if thieves else ():
        count = math.ceil(share * len(clients))  # or all that there are
        fits.append((f"{share:.0%} poisoned", None, thieves[:count]))
    mixtures = [one for one in court.folder.mixtures(only) if only or one.scenario in SPREAD]
    for name, chosen, poison in fits:
        calibration = court.calibrate(chosen, poison)
        for mixture in mixtures:
            for row in court.judge(mixture, calibration):
                row.scenario = f"{row.scenario} ({name})"
                print(show(row), file=sys.stderr, flush=True)
                yield row.as_dict()


def folders(data: Path, held_out: bool) -> list[Path]:
    """The folder itself, or the parts of the victims in it."""
    if any(data.glob("*.jsonl.gz")):
        return [data]
    return sorted(path for path in data.glob(f"*/{'held_out' if held_out else 'tune'}") if any(path.glob("*.jsonl.gz")))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of traces")
    parser.add_argument("--alpha", type=float, default=0.02, help="level a client")
    parser.add_argument("--budget", action="store_true", help="ours at the default weekly budget; peers at --alpha")
    parser.add_argument("--held-out", action="store_true", help="the parts that nobody tuned on")
    parser.add_argument("--spread", action="store_true", help="other calibration clients, and poisoned ones")
    parser.add_argument("--only", default="", help="scenarios whose name this pattern is found in")
    parser.add_argument("--who", choices=("all", "ours", "peers"), default="all", help="who is judged")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as mlsecd's own")
    parser.add_argument("--json", action="store_true", help="rows as one JSON document on standard output")
    options = parser.parse_args()
    found = folders(options.data, options.held_out)
    if not found:
        warn(f"{options.data}: no traces there; make some with `python -m bench.traces --out {options.data}`")
    rows: list[dict[str, Any]] = []
    for path in found:
        warn(f"# {path}")
        court = Court(Folder(path), options.alpha, budget=options.budget, overrides=options.set, who=options.who)
        made = spread(court, options.only) if options.spread else table(court, options.only)
        rows += [row | {"folder": f"{path.parent.name}/{path.name}"} for row in made]
    if options.json:
        print(json.dumps(rows, indent=1, default=float))
    return 0


if __name__ == "__main__":
    sys.exit(main())
