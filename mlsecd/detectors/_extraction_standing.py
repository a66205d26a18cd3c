"""How far a calibration carries: thresholds of all references, and what to say about them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._extraction_budget import level_asked
from mlsecd.detectors._extraction_channels import Reference
from mlsecd.detectors._extraction_hiding import HIDING, LEVEL_SHARE, HidingPlan
from mlsecd.detectors._extraction_level import Level, clients_needed, level_of, saturated_channels
from mlsecd.detectors.base import DetectorState
from mlsecd.kernels import Kernels

__all__ = ["Calibration"]

_DEFAULT_SHARE: Final = 0.25  # false alarms a week, where the configuration hands down none
_TICKETS: Final = 1.0 - LEVEL_SHARE * len(HIDING)  # of the level: what hides has tickets of its own
_MISMATCH_RUN: Final = 100  # rows in a row whose vectors do not fit the baseline: another model is served


class HidingLimit(NamedTuple):
    """What one model's accounts are told above: float64[2], and the level that this follows from."""

    scores: NDArray[np.float64]
    asked: float


class Calibration:
    """The thresholds that a configuration draws from references.

    Attributes
    ----------
    asked
        The level per client and epoch that was asked for, by reference.
    levels
        What was set, by reference.
    hiding
        Of what hides, by number of the model's first reference; of its views, the strictest level.
    blind
        Channels that cannot alarm alone, by reference.
    left_out
        Clients that a person kept from the baseline.
    """

    def __init__(
        self,
        references: list[Reference],
        params: Any,
        kernels: Kernels,
        hiding: Mapping[int, HidingPlan],
        left_out: int,
    ) -> None:
        self._references, self.left_out = references, left_out
        self._channels = len(kernels.CHANNELS) if references else 0
        models = len({reference.model for reference in references})
        self.asked = [
            level_asked(params, _DEFAULT_SHARE, models, reference.facts["clients_per_week"]) for reference in references
        ]
        self.levels: list[Level] = [
            level_of(
                reference.scores,
                alpha,
                on_average=params.client_alpha is not None,
                crossed=reference.crossed,
                ticket_share=_TICKETS,
                left_out=left_out,
            )
            for reference, alpha in zip(references, self.asked, strict=True)
        ]
        self.hiding: dict[int, HidingLimit] = {}
        for number, plan in hiding.items():
            own = zip(references, self.asked, strict=True)
            asked = min(alpha for reference, alpha in own if reference.model == plan.model)
            self.hiding[number] = HidingLimit(plan.thresholds(asked), asked)
        self.blind = [
            saturated_channels(reference.plan, level.ticket, kernels)
            for reference, level in zip(references, self.levels, strict=True)
        ]

    @property
    def certified(self) -> bool:
        """Whether every reference is."""
        return all(level.certified for level in self.levels)

    def gauges(self) -> dict[str, float]:
        """The weakest of all references, for metrics."""
        return {
            "calibration_clients": float(min(len(reference.scores) for reference in self._references)),
            "calibration_level": max(level.level for level in self.levels),
            "calibration_level_upper": max(level.upper for level in self.levels),
            "calibration_certified": float(self.certified),
            "calibration_timestamp_seconds": min(reference.facts["last_ts"] for reference in self._references),
            "calibration_left_out": float(self.left_out),
            "calibration_suspects": sum(reference.facts["suspects"] for reference in self._references),
            "calibration_models": float(len({reference.model for reference in self._references})),
            "blind_channels": float(max(map(len, self.blind))),
        }

    def state(self, mismatch_run: int) -> tuple[DetectorState, str]:
        """What it can do just now, and why."""
        if mismatch_run >= _MISMATCH_RUN:
            why = f"the last {mismatch_run:,} requests have vectors of other widths than the baseline's"
            return DetectorState.MISMATCH, f"{why}: was the model replaced? fit the baseline again"
        if all(len(blind) == self._channels for blind in self.blind):
            why = "ordinary clients score as high as scores go, so no account can alarm"
            return DetectorState.SATURATED, f"{why}: look for health checks and batch jobs, and fit without them"
        told = [
            f'"{reference.model}" by {reference.inputs}: {", ".join(blind)}'
            for reference, blind in zip(self._references, self.blind, strict=True)
            if blind
        ]
        why_armed = [] if self.certified else [self._shortage()]
        left_out = f"{self.left_out:,} clients were left out of the baseline: certificates hold if they are thieves"
        why_armed += [left_out] * bool(self.left_out)
        why_armed += ["a baseline of before: what hides is not judged, fit it again"] * (not self.hiding)
        why_armed += [f"channels that cannot alarm alone: {'; '.join(told)}"] if told else []
        return DetectorState.ARMED, "; ".join(why_armed)

    def _shortage(self) -> str:
        """How many clients a certificate would take, of the reference that is furthest from it."""
        asked, held = min(
            ((alpha, len(reference.scores)) for alpha, reference in zip(self.asked, self._references, strict=True)),
            key=lambda pair: pair[0] * pair[1],
        )
        return (
            f"uncertified, so findings are low: {held:,} calibration clients, and a level of {asked:.2g} a client and "
            f"epoch takes {clients_needed(asked):,}"
        )
