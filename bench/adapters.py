"""Adapters and joining on one core: recorded lines of real gateways, over and over; thread time, best of rounds.

Usage: python -m bench.adapters [--rounds 9] [--json]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.rows import Row, report
from mlsecd.adapters import otlp
from mlsecd.adapters.base import Context, adapters
from mlsecd.engines.join import Joiner
from mlsecd.jsonlines import Decoder
from mlsecd.meters import Meters
from mlsecd.records import RequestBatch
from mlsecd.taps.identity import Hasher

DATA = Path(__file__).parent.parent / "tests" / "data" / "servers"
CONTEXT = Context(Hasher(bytes(32)))
GOALS = {"nginx": 200_000.0, "OTLP, protobuf": 50_000.0}


def best(run: Callable[[], object], rounds: int) -> float:
    """Seconds of the fastest round."""
    took = []
    for _ in range(rounds):
        started = time.thread_time()
        run()
        took.append(time.thread_time() - started)
    return min(took)


def measure(rounds: int) -> Iterator[Row]:
    for name, file in (
        ("nginx", "nginx_access.jsonl"),
        ("envoy", "envoy_access.jsonl"),
        ("bentoml", "bentoml_monitor.jsonl"),
    ):
        data = (DATA / file).read_bytes() * 40
        adapt = adapters()[name].adapt
        yield from rates(
            name, data.count(b"\n"), lambda data=data, adapt=adapt: adapt(data, CONTEXT), rounds, "lines/s"
        )
    trace = (DATA / "triton_trace.json").read_bytes()
    yield from rates(
        "triton", 50, lambda: [adapters()["triton"].adapt(trace, CONTEXT) for _ in range(50)], rounds, "traces/s"
    )
    exports = [path.read_bytes() for path in sorted((DATA / "otlp").glob("*.pb"))]
    if otlp.missing() is None:
        yield from rates(
            "OTLP, protobuf", 243, lambda: [otlp.adapt(one, CONTEXT, json=False) for one in exports], rounds, "spans/s"
        )
    yield from joining(rounds)


def rates(name: str, n: int, run: Callable[[], object], rounds: int, unit: str) -> Iterator[Row]:
    rate = n / best(run, rounds)
    goal = GOALS.get(name)
    title = f"{name}" + (f" (goal {goal:,.0f})" if goal else "")
    yield Row(title, rate, unit, "goal" if goal else "", rate / goal if goal else None)


def joining(rounds: int) -> Iterator[Row]:
    """The 150 lines of nginx and 153 of Envoy with the 231 spans, joined; and the same without anything to join."""
    if otlp.missing() is not None:
        return
    lines = [
        adapters()[name].adapt((DATA / f"{name}_access.jsonl").read_bytes(), CONTEXT).lines
        for name in ("nginx", "envoy")
    ]
    alone = lines[0]
    lines += [otlp.adapt(path.read_bytes(), CONTEXT, json=False).lines for path in sorted((DATA / "otlp").glob("*.pb"))]
    joiner = Joiner(1.0, Meters())
    for title, data in (("joining three sources", b"".join(lines)), ("joining, one source", alone * 20)):
        batches = [one for one in Decoder(Meters(), "bench").decode(data) if isinstance(one, RequestBatch)]
        batch = RequestBatch.concat(batches)
        batch = batch.take(batch.completion.argsort(kind="stable"))
        yield Row(title, len(batch) / best(lambda batch=batch: joiner.join(batch, float("inf")), rounds), "records/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    report(measure(args.rounds), as_json=args.json)


if __name__ == "__main__":
    main()
