"""Where the alarm stands: from calibration clients' highest scores to a threshold, and what it promises."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.kernels import Kernels

__all__ = ["Level", "binomial", "clients_needed", "level_of", "risen", "saturated_channels", "tail_of"]

_FLOOR: Final = 1.0  # a score below one decade at client level is no evidence, however calm the calibration was
_CONFIDENCE: Final = 0.95
_BODY: Final = 0.1  # of the clients lie above the higher of the quantiles that the tail is drawn through
_MARGIN: Final = 1.3
_RISE: Final = 1.0  # decades by which a score must have grown to be told again,
_GROWTH: Final = 0.25  # or this share of itself, if that is more: some twenty findings on the way to the ceiling
_LONG_PATH: Final = 1_024  # queries, all of one kind: what a channel could reach at best


@dataclass(frozen=True, slots=True)
class Level:
    """A threshold on scores and its promise.

    Attributes
    ----------
    threshold
        An account alarms when its score is above it.
    level
        The chance that an ordinary client ever crosses it, on average over calibrations.
    upper
        What that chance is at most, with 95 % confidence given these calibration clients.
    certified
        Whether the calibration has the clients for the level that was asked for.
    ticket
        The score from which on an account is told at all, never above ``threshold``: a model of the tail.
    left_out
        Clients that a person kept from the calibration.
    upper_if_ordinary
        As ``upper``, if those are ordinary, and would all score above.
    """

    threshold: float
    level: float
    upper: float
    certified: bool
    ticket: float
    left_out: int
    upper_if_ordinary: float

    def pages(self, score: float) -> bool:
        """Whether a score is past what the calibration certifies; what is only past the ticket is ``low``."""
        return self.certified and score > self.threshold


def risen(told: float) -> float:
    """The score from which on one that was told of is told again."""
    return told + max(_RISE, _GROWTH * told)


def clients_needed(alpha: float) -> int:
    """Calibration clients that certify a level: about 3 / alpha."""
    return math.ceil(math.log(1.0 - _CONFIDENCE) / math.log1p(-alpha))


def level_of(  # noqa: PLR0913 - scores, and what is asked of them
    scores: NDArray[np.float64],
    alpha: float,
    *,
    on_average: bool,
    crossed: NDArray[np.float64] | None = None,
    ticket_share: float = 1.0,
    left_out: int = 0,
) -> Level:
    """Set the threshold for a level per client.

    Parameters
    ----------
    scores
        float64[N], ascending, N >= 1.
    alpha
        The level that is asked for.
    on_average
        True: the ``ceil((1 - alpha)(N + 1))``-th smallest score, so that the level holds on average
        over calibrations (split conformal, Vovk 2005). False: where N allows it, the lowest rank at
        which the level holds with 95 % confidence (Vovk 2012, training-conditional validity).
    crossed
        Scores that the ticket's tail is drawn through, where there are more than ``scores``: a model's, so these
        need not be by the very reference that is deployed.
    ticket_share
        The part of the level that tickets by these scores have; others tell tickets by the rest.
    left_out
        Clients that a person kept from the calibration.

    Notes
    -----
    With k the rank and N exchangeable clients, the rate above the k-th score is Beta(N + 1 - k, k).
    A level that wants more clients than there are gives way to the smallest one that there is, 1 / (N + 1).
    """
    n = len(scores)
    certified = n >= clients_needed(alpha)
    if certified and not on_average:
        rank = n - _most_above(n, alpha)
        level = alpha
    else:
        level = max(alpha, 1.0 / (n + 1))
        rank = min(math.ceil((1.0 - level) * (n + 1) - 1e-9), n)
    threshold = max(float(scores[rank - 1]), _FLOOR)
    ticket = min(threshold, _ticket(scores if crossed is None else crossed, ticket_share * alpha))
    above = n - rank
    if_ordinary = _upper(n + left_out, above + left_out)
    return Level(threshold, level, _upper(n, above), certified, ticket, left_out, if_ordinary)


def tail_of(scores: NDArray[np.float64], share: float) -> float:
    """The score that this share of ordinary clients reaches, by an exponential tail through two quantiles.

    An order statistic far out in the tail is a few clients' doing: one loud honest kind, or five thieves among the
    calibration clients, move it past everybody. The median and the 90 % quantile hardly feel either.
    """
    median, high = np.quantile(scores, [0.5, 1.0 - _BODY])
    decay = (high - median) / math.log(0.5 / _BODY)
    return float(high + decay * max(math.log(_BODY / share), 0.0))


def _ticket(scores: NDArray[np.float64], alpha: float) -> float:
    """The score that one ordinary client in ``1 / alpha`` reaches: a model, not a certificate.

    The margin is what unseen populations needed (docs/detection.md). What this alone tells is ``low``.
    """
    return max(_MARGIN * tail_of(scores, alpha), _FLOOR)


def binomial(n: int, k: int, rate: float) -> float:
    """P(Bin(n, rate) <= k)."""
    logs = (
        math.lgamma(n + 1)
        - math.lgamma(i + 1)
        - math.lgamma(n - i + 1)
        + i * math.log(rate)
        + (n - i) * math.log1p(-rate)
        for i in range(k + 1)
    )
    return math.fsum(math.exp(term) for term in logs)


def _most_above(n: int, alpha: float) -> int:
    """How many of n clients may lie above the threshold so that ``alpha`` holds with 95 % confidence."""
    above = 0
    while above + 1 < n and binomial(n, above + 1, alpha) <= 1.0 - _CONFIDENCE:
        above += 1
    return above


def _upper(n: int, above: int) -> float:
    """95 % quantile of Beta(above + 1, n - above), by bisection."""
    low, high = 1e-12, 1.0 - 1e-12
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if binomial(n, above, middle) > 1.0 - _CONFIDENCE else (low, middle)
    return high


def saturated_channels(plan: Any, threshold: float, kernels: Kernels) -> tuple[str, ...]:
    """Channels that could not pass the threshold if each of 1,024 queries fired them: blind, and to be told."""
    tally = np.full((2, plan.null.shape[1]), _LONG_PATH, np.int32)
    reach = kernels.tails(tally, plan.null)
    return tuple(name for name, most in zip(kernels.CHANNELS, reach, strict=True) if most <= threshold)
