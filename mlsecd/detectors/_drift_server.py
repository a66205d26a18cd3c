"""What drift detection reads of a server's scrapes: rows of enough requests, and numbers by request, not minute."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._drift_curves import Stream
from mlsecd.records import ServerSample

__all__ = ["COLUMNS", "STREAMS", "Tally"]

COLUMNS: Final = ("load", "input", "output", "ratio", "running", "waiting", "cache", "failing")
_LOAD, _INPUT, _OUTPUT, _RATIO, _RUNNING, _WAITING, _CACHE, _FAILING = range(len(COLUMNS))
STREAMS: Final = (
    Stream("input tokens a request", _INPUT, _LOAD),
    Stream("output tokens a request", _OUTPUT, _LOAD),
    Stream("output tokens an input token", _RATIO, _LOAD),
    Stream("requests running for their rate", _RUNNING, _LOAD),
    Stream("requests waiting for their rate", _WAITING, _LOAD),
    Stream("cache use for its load", _CACHE, _LOAD),
    Stream("a twentieth of requests failed", _FAILING, two_valued=True),
)

_ROW_SECONDS: Final = 60.0
_SCRAPE_SECONDS_MAX: Final = 900.0  # a rate over longer says little of any hour
_FAILING_SHARE: Final = 0.05
_TOKENS_A_REQUEST: Final = 256.0  # where requests are not counted, so many tokens stand for one
_NUMBER_MAX: Final = 1e15


def _sum(*values: float) -> float:
    """Of those that are known; NaN where none is."""
    known = [value for value in values if math.isfinite(value)]
    return sum(known) if known else math.nan


@dataclass(frozen=True, slots=True)
class _Told:
    """A row's sums by name, NaN where nothing was said."""

    requests: float
    failed: float
    input_tokens: float
    output_tokens: float
    running: float
    waiting: float
    kv_cache_usage: float

    @property
    def amount(self) -> float:
        """Requests, or as many as its tokens would be of; NaN where it counts neither."""
        counted = _sum(self.requests, self.failed)
        return counted if math.isfinite(counted) else _sum(self.input_tokens, self.output_tokens) / _TOKENS_A_REQUEST


_NAMES: Final = tuple(one.name for one in fields(_Told))


class Tally(msgspec.Struct):
    """Sums over the scrapes of one row; a number that the server does not say stays at a count of 0."""

    ts: float = -math.inf  # of the last scrape
    seconds: float = 0.0
    sums: list[float] = msgspec.field(default_factory=lambda: [0.0] * len(_NAMES))
    counts: list[int] = msgspec.field(default_factory=lambda: [0] * len(_NAMES))

    def __post_init__(self) -> None:
        """Refuse what no tally wrote."""
        if len(self.sums) != len(_NAMES) or len(self.counts) != len(_NAMES):
            raise ValueError("a tally is damaged")

    def add(self, sample: ServerSample) -> None:
        """Add a scrape. The first of a server says no rates; where time steps back, a row begins anew."""
        if sample.ts < self.ts:
            self.clear()
        self.ts = sample.ts
        if sample.interval_s is None or not 0.0 < sample.interval_s <= _SCRAPE_SECONDS_MAX:
            return
        self.seconds += sample.interval_s
        for at, name in enumerate(_NAMES):
            value = getattr(sample, name)
            if value is not None and 0.0 <= value < _NUMBER_MAX:
                self.sums[at] += value
                self.counts[at] += 1

    def row(self, requests: int) -> NDArray[np.float32] | None:
        """float32[8] in the order of :data:`COLUMNS`, NaN where nothing was said; ``None`` while it is too short.

        It is whole once it spans a minute and so many ``requests``: the mean of ever so many varies alike, by
        day and by night.
        """
        told = _Told(*(total if count else math.nan for total, count in zip(self.sums, self.counts, strict=True)))
        amount = told.amount
        if self.seconds < _ROW_SECONDS or not amount >= requests:
            return None
        asked = told.requests if told.requests > 0.0 else math.nan
        finished = told.requests + told.failed
        scrapes = [max(count, 1) for count in self.counts]
        made = np.full(len(COLUMNS), np.nan, np.float32)
        made[_LOAD] = math.log1p(60.0 * amount / self.seconds)
        made[_INPUT] = told.input_tokens / asked
        made[_OUTPUT] = told.output_tokens / asked
        made[_RATIO] = told.output_tokens / told.input_tokens if told.input_tokens > 0.0 else math.nan
        made[_RUNNING] = told.running / scrapes[_NAMES.index("running")]
        made[_WAITING] = told.waiting / scrapes[_NAMES.index("waiting")]
        made[_CACHE] = told.kv_cache_usage / scrapes[_NAMES.index("kv_cache_usage")]
        if finished > 0.0:
            made[_FAILING] = float(told.failed >= _FAILING_SHARE * finished)
        return made

    def clear(self) -> None:
        """Begin a row."""
        self.seconds, self.sums, self.counts = 0.0, [0.0] * len(_NAMES), [0] * len(_NAMES)
