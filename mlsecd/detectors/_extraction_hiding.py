"""What hides queries from judgement, by account: repeats, and answered requests without a usable vector.

These have books of their own. Their counts, their nulls, the clients that set their thresholds and what was told of
them are apart from those of the channels of content: so that nobody buys silence for a theft with cheap repeats, and
clients who send no vectors do not set the threshold of those who do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors.base import Arrays
from mlsecd.errors import BaselineError
from mlsecd.kernels import Kernels
from mlsecd.records import RequestBatch

__all__ = ["HIDING", "LEVEL_SHARE", "MIN_FIRED", "RETRY", "UNSCORED", "Hidden", "HidingPlan", "answered", "raised"]

F8 = NDArray[np.float64]
Mask = NDArray[np.bool_]

HIDING: Final = ("retry", "unscored")
RETRY, UNSCORED = range(len(HIDING))
MIN_FIRED: Final = 10  # of an account before they are judged: no fewer than the queries that content takes
LEVEL_SHARE: Final = 0.05  # of the level a client, for each of the two
_MEMORY: Final = 2_048  # trials after which counts are halved, as the kernel does
_HIGHEST: Final = 0.5  # share that is expected because others have it; more than that is dropped before
_MARGIN: Final = 1.2  # over the highest calibration client: few ordinary clients hide, but those do it all the time
_FAILED: Final = 400  # statuses from here on answer nothing


def answered(batch: RequestBatch) -> Mask:
    """bool[n]: requests that did not fail, as far as one can tell."""
    return ~(batch.number("status") >= _FAILED)


def _mean(null: F8, channel: int, share: float) -> float:
    """The share that is expected where others have ``share``; what ordinary clients always did stays whole."""
    a, b = null[:2, channel].tolist()
    return float(max(a / (a + b), min(share, _HIGHEST)))


def raised(null: F8, channel: int, share: float) -> F8:
    """A null that expects at least this share."""
    a, b = null[:2, channel].tolist()
    mean = _mean(null, channel, share)
    if mean == a / (a + b):
        return null
    strength = max(a + b, 1.0 / (1.0 - mean))  # b >= 1: tails fall
    made = null.copy()
    made[:2, channel] = mean * strength, (1.0 - mean) * strength
    return made


@dataclass(slots=True)
class Hidden:
    """One client's counts at one model in its epoch, whatever the view of its rows.

    Attributes
    ----------
    fired, tried
        By channel: repeats of rows that were looked up, and blanks of answered rows.
    expected
        By channel: as many as others' shares make of the rows tried.
    told, told_ts
        By channel: the highest score that was told, and when something was told last.
    """

    started: float = -math.inf
    first_ts: float = 0.0
    fired: list[int] = field(default_factory=lambda: [0, 0])
    tried: list[int] = field(default_factory=lambda: [0, 0])
    expected: list[float] = field(default_factory=lambda: [0.0, 0.0])
    told: list[float] = field(default_factory=lambda: [-math.inf, -math.inf])
    told_ts: list[float] = field(default_factory=lambda: [-math.inf, -math.inf])

    def begin(self, tick: float, first_ts: float) -> None:
        """Start afresh: an epoch begins."""
        fresh = Hidden(tick, first_ts)
        for name in self.__slots__:
            setattr(self, name, getattr(fresh, name))

    def add(self, channel: int, fired: int, tried: int, share: float = 0.0) -> None:
        """Count rows; ``share``: what others have of the same."""
        self.fired[channel] += fired
        self.tried[channel] += tried
        self.expected[channel] += tried * share
        while self.tried[channel] >= _MEMORY:
            self.fired[channel] //= 2
            self.tried[channel] //= 2
            self.expected[channel] /= 2

    def score(self, channel: int, null: F8, kernels: Kernels) -> float:
        """Decades of the beta-binomial's tail; 0 for fewer than ten."""
        if self.fired[channel] < MIN_FIRED:
            return 0.0
        against = raised(null, channel, self.expected[channel] / self.tried[channel])
        return float(kernels.tails(np.array([self.fired, self.tried], np.int32), against)[channel])

    def expects(self, channel: int, null: F8) -> float:
        """How many of the rows tried an ordinary client would have."""
        tried = self.tried[channel]
        return tried * _mean(null, channel, self.expected[channel] / max(tried, 1))


@dataclass(frozen=True, slots=True)
class HidingPlan:
    """What one model's clients are held against.

    Attributes
    ----------
    null
        float64[3, 2]: a, b, scale 1, by channel.
    scores
        float64[N, 2]: each calibration client's highest score of each channel.
    """

    model: str
    null: F8
    scores: F8

    def thresholds(self, alpha: float) -> F8:
        """float64[2]: an account is told above these.

        Never below what the null itself says of the level's share: calibration clients are too few to tell that.
        """
        floor = -math.log10(LEVEL_SHARE * alpha)
        return np.maximum(_MARGIN * self.scores.max(axis=0, initial=0.0), floor)

    def arrays(self, prefix: str) -> dict[str, NDArray[Any]]:
        """For a section."""
        return {f"{prefix}.null": self.null, f"{prefix}.scores": self.scores}

    @classmethod
    def of(cls, model: str, arrays: Arrays, prefix: str) -> HidingPlan:
        """Out of a section; :class:`~mlsecd.errors.BaselineError` where it is of another shape."""
        try:
            null = np.ascontiguousarray(arrays[f"{prefix}.null"], np.float64)
            scores = np.ascontiguousarray(arrays[f"{prefix}.scores"], np.float64)
        except (KeyError, TypeError, ValueError) as error:
            raise BaselineError(f"extraction_account: the baseline's part cannot be used: {error}") from error
        sound = null.shape == (3, len(HIDING)) and scores.ndim == 2 and scores.shape[1:] == (len(HIDING),)
        if not sound or not (null > 0).all() or not (null[1] >= 1).all() or not np.isfinite(scores).all():
            raise BaselineError("extraction_account: the baseline's arrays do not belong together")
        return cls(model, null, scores)
