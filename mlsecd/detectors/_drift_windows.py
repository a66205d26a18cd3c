"""Vectors as a whole against the reference's pool: a permutation test a window, and the evidence over windows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._drift_reference import Reference
from mlsecd.detectors._drift_vectors import WINDOW
from mlsecd.detectors.base import rng
from mlsecd.kernels import Kernels
from mlsecd.records import F8, I8

__all__ = ["SHARE", "Windows", "permutations", "stride_of"]

SHARE: Final = 0.25  # of a model's false-alarm budget; the streams have the rest
_SECONDS_MIN: Final = 300.0  # that a window spans at the reference's rate: fast traffic is thinned
_REST_SECONDS: Final = 30.0  # of event time after a test: a flood must not bring a test every few rows
_MOST: Final = (2_999, 9_999)  # permutations, as long as fewer than 20 exceed what was seen; 0.15 and 0.45 s
_WINDOWS: Final = 3  # that shall be enough: the fewer permutations will do where these reach the threshold
_MOST_LATCHED: Final = 99  # enough to stay: traffic that has drifted must not cost ten times what it did
_KAPPA: Final = 0.15  # e = kappa p^(kappa - 1), whose mean is 1 under a uniform p (Vovk & Wang 2021)
_CEILING: Final = 1.0  # beyond the threshold, in logarithms: it must come down again
_EFFECT_WEIGHT: Final = 0.5  # of the last window in the smoothed distance that findings show


def stride_of(reference: Reference) -> int:
    """Every so many scored rows enter a window."""
    return max(1, math.ceil(_SECONDS_MIN * reference.rate / WINDOW))


def _rested(due: I8, times: F8, tested: float) -> I8:
    """Without those within the rest after a test; a clock that was set back does not prolong it."""
    since = times[due] - tested
    return due[(since < 0.0) | (since >= _REST_SECONDS)]


def _log_e(p: float) -> float:
    return math.log(_KAPPA) + (_KAPPA - 1.0) * math.log(p)


def permutations(log_threshold: float) -> int:
    """At most so many in one test: enough for three windows that nothing exceeds to reach the threshold, if any are."""
    few, many = _MOST
    return few if _WINDOWS * _log_e(1.0 / (few + 1)) >= log_threshold else many


@dataclass(slots=True)
class Windows:
    """The evidence of one model's vectors.

    Each window of 250 vectors gives a p-value, valid where the window is exchangeable with the pool or stands no
    farther from it than the reference's own stretches do; a calibrator makes it an e-value, and an e-CUSUM adds
    up what windows have against the reference: in the mean it takes at least c windows to reach c.

    Memory: 32 KiB for the rows of a window.
    """

    log_threshold: float
    key: str  # of the random draws: the reference's digest
    rows: NDArray[np.float32]
    seen: int = 0  # scored rows with a vector
    filled: int = 0
    tested: float = -math.inf  # when the last test's window was complete
    tests: int = 0
    log_s: float = 0.0
    latched: bool = False
    begun: float = 0.0  # when the window's first row came
    onset: float = 0.0  # where S last left 1
    since: int = 0  # the number of that window
    p: float = 1.0  # of the last test
    mmd2: float = 0.0  # smoothed since the onset, as is
    shift2: float = 0.0  # the squared shift of the farthest column, or of squared lengths, in standard deviations
    spread: float = field(default=1.0)

    @staticmethod
    def against(reference: Reference, key: str, windows_per_week: float, alarms_per_week: float) -> Windows | None:
        """Ready for a reference, or ``None`` where it has no pool."""
        if not len(reference.pool):
            return None
        threshold = max(windows_per_week / alarms_per_week, 2.0)
        return Windows(math.log(threshold), key, np.zeros((WINDOW, reference.pool.shape[1]), np.float32))

    def ends(self, scores: F8, times: F8, stride: int) -> list[int]:
        """Take the rows' scaled axis scores, float64[n, q]; the rows that complete a window, whose test is due.

        Call :meth:`take` for the rows up to each in turn.
        """
        _, due = self._due(scores, stride)
        found: list[int] = []
        need, tested = WINDOW - self.filled, self.tested
        while True:
            due = _rested(due, times, tested)
            if len(due) < need:
                return found
            found.append(int(due[need - 1]))
            due, need, tested = due[need:], WINDOW, float(times[found[-1]])

    def _due(self, scores: F8, stride: int) -> tuple[int, I8]:
        """How many rows have a vector, and those of them that may enter a window."""
        fine = np.flatnonzero(np.isfinite(scores).all(axis=1))
        return len(fine), fine[(self.seen + np.arange(len(fine))) % stride == 0]

    def take(self, scores: F8, times: F8, stride: int) -> bool:
        """Add rows; at most the last of them completes the window. Whether it did."""
        fine, due = self._due(scores, stride)
        due = _rested(due, times, self.tested)
        self.seen += fine
        if len(due) and not self.filled:
            self.begun = float(times[due[0]])
        self.rows[self.filled : self.filled + len(due)] = scores[due]
        self.filled += len(due)
        if self.filled < WINDOW:
            return False
        self.tested = float(times[due[-1]])
        return True

    def test(self, reference: Reference, kernels: Kernels) -> bool:
        """Test the complete window and begin the next; whether the evidence is at the threshold."""
        draw = rng("drift_requests", self.key, float(self.tests))
        most = _MOST_LATCHED if self.latched else permutations(self.log_threshold)
        found = kernels.drift_mmd(reference.pool, self.rows, reference.gammas, draw, most, reference.concession)
        shift2 = max(found.apart[1:], default=0.0)
        if self.log_s <= 0.0:
            self.log_s, self.onset, self.since = 0.0, self.begun, self.tests
            self.mmd2, self.shift2 = found.mmd2, shift2
        self.log_s += _log_e(found.p)
        self.log_s = min(self.log_s, self.log_threshold + _CEILING)
        self.mmd2 += _EFFECT_WEIGHT * (found.mmd2 - self.mmd2)
        self.shift2 += _EFFECT_WEIGHT * (shift2 - self.shift2)
        self.spread, self.p = found.spread, found.p
        self.tests += 1
        self.filled = 0
        above = self.log_s >= self.log_threshold
        self.latched = above or (self.latched and self.log_s > 0.5 * self.log_threshold)
        if not self.latched and self.log_s < 0.0:
            self.log_s = 0.0
        return above

    @property
    def effect(self) -> float:
        """The distance of the means over the reference's spread, both in the kernel's space, or a column's shift."""
        return math.sqrt(max(self.mmd2 / max(self.spread, 1e-9), self.shift2, 0.0))

    def dump(self) -> dict[str, Any]:
        """All of it, for a snapshot."""
        names = (
            "seen",
            "filled",
            "tested",
            "tests",
            "log_s",
            "latched",
            "begun",
            "onset",
            "since",
            "p",
            "mmd2",
            "shift2",
            "spread",
        )
        return {**{name: getattr(self, name) for name in names}, "rows": self.rows[: self.filled]}

    def load(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`dump` gave.

        Raises
        ------
        ValueError, KeyError, TypeError
            It does not fit.
        """
        rows, filled = state["rows"], int(state["filled"])
        if rows.shape != (filled, self.rows.shape[1]) or filled >= WINDOW:
            raise ValueError("a window's rows do not fit the reference")
        self.rows[:filled] = rows
        for name, value in state.items():
            if name != "rows":
                setattr(self, name, type(getattr(self, name))(value))
