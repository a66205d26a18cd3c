"""What hides queries from judgement, by account: repeats, and requests that nobody could judge.

Those are answered ones without a vector that others have, and those that a tap had to give up.

These have books of their own. Their counts, their nulls, the clients that set their thresholds and what was told of
them are apart from those of the channels of content: so that nobody buys silence for a theft with cheap repeats, and
clients who send no vectors do not set the threshold of those who do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._sections import numbers
from mlsecd.detectors.base import Arrays
from mlsecd.errors import MALFORMED, BaselineError
from mlsecd.kernels import Kernels
from mlsecd.records import RequestBatch

__all__ = [
    "HIDING",
    "LEVEL_SHARE",
    "MIN_FIRED",
    "RETRY",
    "UNSCORED",
    "HidingPlan",
    "answered",
    "decades",
    "expected_share",
    "lost",
]

F8 = NDArray[np.float64]
I8 = NDArray[np.int64]
Mask = NDArray[np.bool_]

HIDING: Final = ("retry", "unscored")
RETRY, UNSCORED = range(len(HIDING))
MIN_FIRED: Final = 10  # of an account before they are judged: no fewer than the queries that content takes
LEVEL_SHARE: Final = 0.05  # of the level a client, for each of the two
_HIGHEST: Final = 0.5  # share that is expected because others have it; more than that is dropped before
_MARGIN: Final = 1.2  # over the highest calibration client: few ordinary clients hide, but those do it all the time
_FAILED: Final = 400  # statuses from here on answer nothing,
_LOST_MAX: Final = 10_000.0  # that one row tells of
_CLIENT_LEFT: Final = 499  # but this: the model has worked, and who hung up may have read what was streamed


def answered(batch: RequestBatch) -> Mask:
    """bool[n]: requests that did not fail, as far as one can tell."""
    status = batch.number("status")
    return ~(status >= _FAILED) | (status == _CLIENT_LEFT)


def lost(batch: RequestBatch) -> I8:
    """int64[n]: requests of the row's client that a tap gave up before it: nobody has seen what they asked."""
    return np.nan_to_num(np.clip(batch.number("lost"), 0.0, _LOST_MAX)).astype(np.int64)


def expected_share(null: F8, channel: int, others: Any) -> F8:
    """float64[n]: what is expected where others have so much; what ordinary clients always did stays whole."""
    a, b = null[:2, channel].tolist()
    return np.maximum(a / (a + b), np.minimum(others, _HIGHEST))


def decades(counts: tuple[I8, I8], others: F8, null: F8, channel: int, kernels: Kernels) -> F8:
    """Tails of one channel's beta-binomial, float64[n] in powers of ten; 0 for fewer than ten that fired.

    Parameters
    ----------
    counts
        Fired and tried, int64[n] each.
    others
        float64[n], the shares that others had meanwhile: the null expects no less.
    null
        Of a :class:`HidingPlan`.
    """
    a, b = null[:2, channel].tolist()
    mean = expected_share(null, channel, others)
    strength = np.where(mean > a / (a + b), np.maximum(a + b, 1.0 / (1.0 - mean)), a + b)  # b >= 1: tails fall
    against = np.stack([mean * strength, (1.0 - mean) * strength, np.ones(len(mean))])
    tails = kernels.tails(np.array(counts, np.int32), against)
    return np.where(counts[0] >= MIN_FIRED, tails, 0.0)


@dataclass(frozen=True, slots=True)
class HidingPlan:
    """What one model's clients are held against.

    Attributes
    ----------
    null
        float64[3, 2]: a, b, scale 1, by channel.
    scores
        float64[N, 2]: each calibration client's highest score of each channel.
    usual
        float64[2]: the share of clients that one meets with many of a channel at a time, where all is well.
    """

    model: str
    null: F8
    scores: F8
    usual: F8

    def thresholds(self, alpha: float) -> F8:
        """float64[2]: an account is told above these.

        Never below what the null itself says of the level's share: calibration clients are too few to tell that.
        """
        floor = -math.log10(LEVEL_SHARE * alpha)
        return np.maximum(_MARGIN * self.scores.max(axis=0, initial=0.0), floor)

    def arrays(self, prefix: str) -> dict[str, NDArray[Any]]:
        """For a section."""
        return {f"{prefix}.null": self.null, f"{prefix}.scores": self.scores, f"{prefix}.usual": self.usual}

    @classmethod
    def of(cls, model: str, arrays: Arrays, prefix: str) -> HidingPlan:
        """Out of a section; :class:`~mlsecd.errors.BaselineError` where it is of another shape."""
        try:
            names = ("null", "scores", "usual")
            null, scores, usual = (numbers(arrays, f"{prefix}.{name}") for name in names)
        except MALFORMED as error:
            raise BaselineError(f"extraction_account: the baseline's part cannot be used: {error}") from error
        k = len(HIDING)
        sound = (null.shape, scores.shape[1:], usual.shape, scores.ndim) == ((3, k), (k,), (k,), 2)
        if not sound or not (null > 0).all() or not (null[1] >= 1).all():
            raise BaselineError("extraction_account: the baseline's arrays do not belong together")
        return cls(model, null, scores, usual)
