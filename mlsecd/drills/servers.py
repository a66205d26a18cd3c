"""Attacks that only an inference server's own metrics show."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from mlsecd.drills.drill import Drill
from mlsecd.records import Records, ServerSample

__all__ = ["SERVERS"]

_SCRAPE: Final = 10.0


def _scrapes(count: int, start: int, seed: int, output_tokens: float) -> Iterator[ServerSample]:
    """A server that is asked once a second, scraped every ten."""
    rng = np.random.default_rng(seed)
    for step in range(start, start + count):
        asked = int(rng.poisson(_SCRAPE))
        yield ServerSample(
            ts=1e9 + step * _SCRAPE,
            server="127.0.0.1:8000",
            model="drill",
            synthetic=True,
            interval_s=_SCRAPE,
            running=float(rng.poisson(2.0)),
            waiting=float(rng.poisson(0.5)),
            requests=float(asked),
            failed=0.0,
            input_tokens=float(rng.exponential(300.0, asked).sum()),
            output_tokens=float(rng.exponential(output_tokens, asked).sum()),
        )


def _longer_answers() -> list[Records]:
    """A server is learnt for five hours; then its answers are twice as long, as when somebody distils its model."""
    return [*_scrapes(1_800, 0, 1, 200.0), *_scrapes(720, 1_800, 2, 400.0)]


SERVERS: Final = {
    "drift_server": Drill("a server's answers become twice as long", _longer_answers, {"arm_rows": 120}),
}
