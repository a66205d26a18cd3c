"""What an account did lately: counts of two half days by channel, and the forms that it asked in."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._language_channels import CHANNELS
from mlsecd.errors import StateError

__all__ = ["CROWD", "FORMS", "HALF", "Recent", "half_of"]

I4 = NDArray[np.int32]

HALF: Final = 43_200.0  # seconds of event time; this half day and the one before are counted
FORMS: Final = 16  # the latest forms of requests that fired, remembered by account
# what accounts are compared in: not what an outage, a health check or a slow tap makes many do at once
CROWD: Final = ("long", "long_tail", "asks_long", "elicits", "elicits_long")
_AT: Final = np.array([CHANNELS.index(name) for name in CROWD])


def half_of(ts: float) -> float:
    """The half day that a moment is in, as a number; the end of one belongs to it."""
    return math.ceil(ts / HALF) - 1.0


def _nothing() -> I4:
    return np.zeros((2, len(CROWD)), np.int32)


@dataclass(slots=True)
class Recent:
    """Counts of one account in the half day of its last row and the one before.

    Attributes
    ----------
    half
        The number of the half day that ``now`` is of; minus infinity before the first row.
    now, before
        int32[2, K]: fired and tried, by channel of :data:`CROWD`.
    rows
        Rows in ``now`` and in ``before``.
    born
        When it was first seen.
    forms
        Hashes of templates of rows that fired, the latest last.
    network
        The prefix that its last row came from; empty: not told.
    """

    half: float = -math.inf
    now: I4 = field(default_factory=_nothing)
    before: I4 = field(default_factory=_nothing)
    rows: list[int] = field(default_factory=lambda: [0, 0])
    first_ts: float = 0.0
    last_ts: float = 0.0
    born: float = math.inf
    forms: array[int] = field(default_factory=lambda: array("Q"))
    network: str = ""

    def add(self, ts: float, fired: I4, tried: I4, template: int | None) -> None:
        """Count one row; ``fired`` and ``tried`` are int32[C], by all channels."""
        half = half_of(ts)
        if half > self.half or half < self.half - 1.0:  # then the clock was set back
            follows = half == self.half + 1.0
            if not self.rows[0] or not follows:
                self.first_ts, self.forms = ts, array("Q")
            self.before, self.rows[1] = (self.now, self.rows[0]) if follows else (_nothing(), 0)
            self.now, self.rows[0], self.half = _nothing(), 0, half
        own = fired[_AT]
        self.now[0] += own
        self.now[1] += tried[_AT]
        self.rows[0] += 1
        self.last_ts, self.born = ts, min(self.born, ts)
        if template is not None and own[1:].any() and template not in self.forms:
            self.forms.append(template)
            if len(self.forms) > FORMS:
                self.forms.pop(0)

    def counts(self, half: float) -> tuple[I4, int]:
        """Counts int32[2, K] and rows, as they stand in a half day."""
        if half == self.half:
            return self.now + self.before, sum(self.rows)
        if half == self.half + 1.0:
            return self.now, self.rows[0]
        return _nothing(), 0

    def dump(self) -> list[Any]:
        """What a snapshot holds."""
        numbers = [self.half, *self.rows, self.first_ts, self.last_ts, self.born]
        return [self.now, self.before, numbers, np.array(self.forms, np.uint64), self.network]

    @classmethod
    def load(cls, dumped: list[Any]) -> Recent:
        """Take back what :meth:`dump` gave.

        Raises
        ------
        StateError
            It is of another shape.
        """
        now, before, (half, rows, rows_before, *times), forms, network = dumped
        for one in (now, before):
            if one.shape != (2, len(CROWD)) or one.dtype != np.int32:
                raise StateError("recent counts in a snapshot have other channels")
        if forms.dtype != np.uint64 or forms.ndim != 1 or len(forms) > FORMS:
            raise StateError("forms in a snapshot are damaged")
        first_ts, last_ts, born = map(float, times)
        if not born > -math.inf:
            raise StateError("an account in a snapshot was first seen at no time")
        made = cls(float(half), now, before, [int(rows), int(rows_before)], first_ts, last_ts, born)
        made.forms, made.network = array("Q", forms.tobytes()), str(network)
        return made
