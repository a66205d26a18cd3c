"""JSON lines to columns on one core: records a second, in CPU time, medians of rounds that alternate with the peers.

Peers: orjson, a dict a line and no columns; and pysimdjson's tape of the whole input, no Python object a record:
the limit of what reading JSON can reach here.

Usage: python -m bench.ingest [--lines 8192] [--rounds 25] [--json]
"""

from __future__ import annotations

import argparse
import base64
import importlib
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bench.rows import Row, report
from mlsecd.jsonlines import Decoder
from mlsecd.meters import Meters

BLOCK = 5  # rounds of one contender in a row
GOALS = {"ordinary": 500_000, "32-d base64 features": 300_000}


def ordinary(draw: random.Random, at: int) -> dict[str, Any]:
    """About 300 bytes, 11 keys, of which two are different in each record."""
    return {
        "ts": 1_790_000_000 + at / 100 + draw.random() / 100,
        "client": f"k-{draw.randrange(200):032x}",
        "model": draw.choice(["llama-70b", "qwen-7b"]),
        "route": "/v1/chat/completions",
        "status": 200,
        "duration_s": round(draw.random() * 5, 4),
        "ttft_s": round(draw.random(), 4),
        "input_tokens": draw.randrange(4000),
        "output_tokens": draw.randrange(900),
        "request_id": f"{draw.getrandbits(128):032x}",
        "body_hash": f"{draw.getrandbits(64):016x}",
    }


def inputs(n: int) -> dict[str, bytes]:
    """The same records, plain, with a vector in either form, and with every hundredth line cut off or out of range."""
    draw = random.Random(1)
    plain = [ordinary(draw, at) for at in range(n)]
    vectors = np.random.default_rng(1).normal(size=(n, 32)).astype("<f4")
    coded = [base64.b64encode(vector.tobytes()).decode() for vector in vectors]
    listed = [[round(value, 6) for value in vector] for vector in vectors.tolist()]
    return {
        "ordinary": lines(plain),
        "32-d base64 features": lines([one | {"features": vector} for one, vector in zip(plain, coded, strict=True)]),
        "32-d list features": lines([one | {"features": vector} for one, vector in zip(plain, listed, strict=True)]),
        "1 % bad lines": lines(
            [one if at % 100 else one | {"ts": -1} if at % 200 else None for at, one in enumerate(plain)]
        ),
    }


def lines(records: list[Any]) -> bytes:
    """JSON lines; None becomes a line that is cut off."""
    text = (json.dumps(one, separators=(",", ":")) if one else '{"ts":1790000000.5,"client":"k-0' for one in records)
    return "\n".join(text).encode() + b"\n"


def peers(data: bytes) -> Iterator[tuple[str, Callable[[], object]]]:
    """What is installed of the bench group; only input without bad lines has peers."""
    split = data.splitlines()
    if any(not line.endswith(b"}") for line in split):
        return
    try:
        loads = importlib.import_module("orjson").loads
        yield "orjson, dicts only", lambda: [loads(line) for line in data.splitlines()]
    except ImportError:
        pass
    try:
        parser = importlib.import_module("simdjson").Parser()
        whole = b"[" + b",".join(split) + b"]"
        yield "simdjson tape", lambda: len(parser.parse(whole))
    except ImportError:
        pass


def measure(name: str, data: bytes, rounds: int) -> Iterator[Row]:
    n = data.count(b"\n")
    decoder = Decoder(Meters(), "bench")
    work: dict[str, Callable[[], object]] = {"mlsecd": lambda: decoder.decode(data), **dict(peers(data))}
    if sum(map(len, decoder.decode(data))) < 0.98 * n:
        raise SystemExit(f"{name}: records were lost")
    took: dict[str, list[float]] = {peer: [] for peer in work}
    for _ in range(-(-rounds // BLOCK)):
        for peer, run in work.items():
            run()  # what the peer before left of the caches is not this one's concern
            for _ in range(BLOCK):
                started = time.process_time()
                run()
                took[peer].append(time.process_time() - started)
    rate = {peer: n / statistics.median(seconds) for peer, seconds in took.items()}
    goal = GOALS.get(name)
    title = f"ingest, {name}, {len(data) // n} B" + (f" (goal {goal:,})" if goal else "")
    if len(rate) == 1:
        yield Row(title, rate["mlsecd"], "records/s")
    for peer in list(rate)[1:]:
        yield Row(title, rate["mlsecd"], "records/s", peer, rate["mlsecd"] / rate[peer])
    yield Row(f"ingest, {name}, best round", n / min(took["mlsecd"]), "records/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=8192, help="lines of a batch")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    args = parser.parse_args()
    for name, data in inputs(args.lines).items():
        report(measure(name, data, args.rounds), as_json=args.json)


if __name__ == "__main__":
    main()
