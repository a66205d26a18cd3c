"""What is held of one account's parameters: a few counts a sign, bounded whatever it sends."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._parameters_distinct import Distinct
from mlsecd.detectors._parameters_rows import CANARY, SIGNS, SWEEP, SWEEP_LONG
from mlsecd.errors import StateError

__all__ = ["Account", "Probe", "Sign"]

_PROMPTS: Final = 32  # different prompts that are counted exactly
_MODELS: Final = 8  # names kept for the evidence,
_NAME: Final = 128  # characters of each
_EXACT: Final = {SWEEP: 256, SWEEP_LONG: 256, CANARY: 16}  # other things are counted exactly up to
_THINGS: Final = 128

_PROBE_SECONDS: Final = 60.0  # an own request this long ago still holds its prefix in the cache
_BLOCK_TOKENS: Final = 16  # of a prefix cache: smaller differences of cached tokens are none
_BINS: Final = 32  # of the time to the first token, half octaves from 0.1 ms


@dataclass(slots=True)
class Sign:
    """Requests of one kind.

    Attributes
    ----------
    rows
        How many.
    amount
        Of what the sign adds up: biased ids, samples, logits, changes between a cached prefix and none.
    fresh
        Of a sweep, different lists of ids; of probes, changes of a cached prefix's length; of those who ask, how
        often with two flags.
    last_ts
        Event time of the last one.
    things
        Different ids, bodies, texts or canaries.
    texts
        Different prompts among them.
    shared
        A sweep's ids once more, hashed alike for all accounts.
    lists
        A sweep's lists of ids.
    """

    things: Distinct
    texts: Distinct
    shared: Distinct
    lists: Distinct
    rows: int = 0
    amount: float = 0.0
    fresh: int = 0
    last_ts: float = -math.inf

    @property
    def sketches(self) -> tuple[Distinct, Distinct, Distinct, Distinct]:
        """All of them."""
        return self.things, self.texts, self.shared, self.lists

    @classmethod
    def new(cls, sign: int) -> Sign:
        """An empty one."""
        things, texts, shared = Distinct(_EXACT.get(sign, _THINGS)), Distinct(_PROMPTS), Distinct(_EXACT.get(sign, 1))
        return cls(things, texts, shared, Distinct(_PROMPTS))


class Probe(NamedTuple):
    """What one request tells of the prefix cache; NaN where it does not."""

    ts: float
    template: int | None
    cached_tokens: float
    ttft_s: float


@dataclass(slots=True)
class Account:
    """One account's signs in its epoch.

    Attributes
    ----------
    started
        The tick of its first request of interest, seconds.
    first_ts
        Completion of that request, seconds.
    models
        Names that it called, the first eight.
    signs
        By number, those that it has shown.
    told
        By number of the sign: rank of severity and event time of the last finding.
    risk
        The highest share of an alarm that it has reached.
    last
        Its last one-token request.
    delays
        int32[32]: requests of sign ``CACHE`` by time to the first token.
    """

    started: float = 0.0
    first_ts: float = 0.0
    models: list[str] = field(default_factory=list)
    signs: dict[int, Sign] = field(default_factory=dict)
    told: dict[int, tuple[int, float]] = field(default_factory=dict)
    risk: float = 0.0
    last: Probe | None = None
    delays: NDArray[np.int32] | None = None

    def sign(self, number: int) -> Sign:
        """A sign of it, made where it is new."""
        held = self.signs.get(number)
        if held is None:
            held = self.signs[number] = Sign.new(number)
        return held

    def call(self, model: str) -> None:
        """Note a model."""
        if len(self.models) < _MODELS and model[:_NAME] not in self.models:
            self.models.append(model[:_NAME])

    def probe(self, sign: Sign, now: Probe) -> None:
        """Fold one request that may probe the cache: how often one's prefix was cached and the next's was not."""
        before, self.last = self.last, now
        if now.ttft_s > 0:
            if self.delays is None:
                self.delays = np.zeros(_BINS, np.int32)
            at = int(2 * math.log2(max(now.ttft_s, 1e-4) / 1e-4))
            self.delays[min(at, _BINS - 1)] += 1
        if before is None or now.template is None or now.template != before.template:
            return
        less, more = sorted((now.cached_tokens, before.cached_tokens))
        if more - less < _BLOCK_TOKENS or not 0 <= now.ts - before.ts <= _PROBE_SECONDS:
            return
        if less < _BLOCK_TOKENS:
            sign.amount += 1.0
        else:
            sign.fresh += 1

    def dump(self) -> list[Any]:
        """What a snapshot holds."""
        signs = [
            [number, one.rows, one.amount, one.fresh, one.last_ts, *map(Distinct.dump, one.sketches)]
            for number, one in sorted(self.signs.items())
        ]
        told = [[number, *what] for number, what in sorted(self.told.items())]
        last = None if self.last is None else list(self.last)
        return [self.started, self.first_ts, self.models, signs, told, self.risk, last, self.delays]

    @classmethod
    def load(cls, dumped: list[Any]) -> Account:
        """Take back what :meth:`dump` gave.

        Raises
        ------
        StateError
            It is of another shape.
        """
        started, first_ts, models, signs, told, risk, last, delays = dumped
        made = cls(float(started), float(first_ts), [str(name) for name in models], risk=float(risk))
        for number, rows, amount, fresh, last_ts, *sketches in signs:
            if not 0 <= number < len(SIGNS):
                raise StateError("a snapshot has a sign that this version does not know")
            like = Sign.new(number)
            things, texts, shared, lists = (
                Distinct.load(one.k, values) for one, values in zip(like.sketches, sketches, strict=True)
            )
            counts = int(rows), float(amount), int(fresh), float(last_ts)
            made.signs[number] = Sign(things, texts, shared, lists, *counts)
        made.told = {int(number): (int(rank), float(ts)) for number, rank, ts in told}
        made.last = None if last is None else Probe(*last)
        if delays is not None and (delays.shape != (_BINS,) or delays.dtype != np.int32):
            raise StateError("delays in a snapshot have another shape")
        made.delays = delays
        return made
