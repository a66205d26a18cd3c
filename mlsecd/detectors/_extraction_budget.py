"""How often a detector of single accounts may be wrong: what is configured, and the level a client that follows."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from mlsecd.detectors import base
from mlsecd.detectors._launches import Announced

__all__ = ["WEEK", "BudgetParams", "level_asked"]

WEEK: Final = 604_800.0


class BudgetParams(base.Params, frozen=True):
    """How often it may be wrong, and for how long an account and a finding last."""

    client_alpha: (
        Annotated[
            float,
            Meta(
                gt=0, le=0.5, description="false-alarm level of each client and epoch, in place of the budget's share"
            ),
        ]
        | None
    ) = None
    false_alarms_per_week: (
        Annotated[float, Meta(gt=0, description="share of the false-alarm budget; default: handed down from [budget]")]
        | None
    ) = None
    clients_per_week: (
        Annotated[float, Meta(gt=0, description="expected clients a week and model; default: as seen at calibration")]
        | None
    ) = None
    epoch_seconds: Annotated[
        float, Meta(ge=3_600, le=31_536_000, description="an account is judged afresh after this event time")
    ] = WEEK
    repeat_seconds: Annotated[
        float, Meta(ge=10, le=86_400, description="event time between repeats of a finding that goes on")
    ] = 300.0
    launches: Announced = ()
    max_models: Annotated[int, Meta(ge=1, le=64, description="models that a baseline holds, largest first")] = 8


def level_asked(params: BudgetParams, default_share: float, models: int, seen_per_week: float) -> float:
    """The level per client and epoch: the common one, or the budget's share of it.

    By linearity the expected false alarms of a week are the level times the client-epochs of a
    week, so the share is divided by those that are *expected*: a flood of accounts must not
    raise the threshold.

    Parameters
    ----------
    default_share
        False alarms a week, where the configuration hands down none.
    models
        That share it.
    seen_per_week
        Clients a week at calibration.
    """
    if params.client_alpha is not None:
        return float(params.client_alpha)
    share = (params.false_alarms_per_week or default_share) / models
    weekly = params.clients_per_week or max(seen_per_week, 1.0)
    return float(min(share / (weekly * max(WEEK / params.epoch_seconds, 1.0)), 0.5))
