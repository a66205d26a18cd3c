"""How far a language calibration carries: thresholds, what to say about them, and what a finding says."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from mlsecd.detectors._extraction_budget import level_asked
from mlsecd.detectors._extraction_level import Level, clients_needed, level_of
from mlsecd.detectors._language_account import Account
from mlsecd.detectors._language_channels import CHANNELS, Reference
from mlsecd.detectors.base import DetectorState
from mlsecd.kernels import Kernels

__all__ = ["DEFAULT_SHARE", "WORDS", "Calibration", "evidence_of", "reason_of"]

DEFAULT_SHARE: Final = 0.1  # false alarms a week, where the configuration hands down none
_LONG_PATH: Final = 1_024  # requests, all of one kind: what a channel could reach at best
_SHOWN: Final = 4  # channels in a finding
_SHARE: Final = 0.5  # of the leading channel's score, for a channel to be said to have driven it

# "of its requests ...", by channel
WORDS: Final = {
    "long": "drew long answers (the longest 5% of ordinary ones)",
    "long_tail": "drew very long answers (the longest 0.5%)",
    "ratio": "drew much answer for little question (the highest 5%)",
    "ratio_tail": "drew very much answer for little question (the highest 0.5%)",
    "asks_long": "allowed longer answers than ordinary requests do",
    "elicits": "ask for the reasoning behind the answer",
    "elicits_long": "ask for the reasoning and drew long answers",
    "formed": "fill in a form that it used before",
    "formed_long": "fill in a form that it used before and drew long answers",
    "odd_length": "are shorter or longer than 95% of ordinary texts",
    "odd_status": "failed or were refused",
    "unscorable": "tell no tokens of the question or of the answer",
    "retry": "repeat an earlier request exactly",
}


class Calibration:
    """The thresholds that a configuration draws from references."""

    def __init__(self, references: list[Reference], params: Any, kernels: Kernels) -> None:
        self._references = references
        self.asked = [
            level_asked(params, DEFAULT_SHARE, len(references), reference.facts["clients_per_week"])
            for reference in references
        ]
        self.levels: list[Level] = [
            level_of(reference.scores, alpha, on_average=params.client_alpha is not None)
            for reference, alpha in zip(references, self.asked, strict=True)
        ]
        always = np.full((2, len(CHANNELS)), _LONG_PATH, np.int32)
        self.blind = [
            [
                name
                for name, most in zip(CHANNELS, kernels.tails(always, one.null), strict=True)
                if most <= level.threshold
            ]
            for one, level in zip(references, self.levels, strict=True)
        ]

    def gauges(self) -> dict[str, float]:
        """The weakest of all references, for metrics."""
        return {
            "calibration_clients": float(min(len(reference.scores) for reference in self._references)),
            "calibration_level": max(level.level for level in self.levels),
            "calibration_level_upper": max(level.upper for level in self.levels),
            "calibration_certified": float(all(level.certified for level in self.levels)),
            "calibration_timestamp_seconds": min(reference.facts["last_ts"] for reference in self._references),
            "calibration_models": float(len(self._references)),
            "blind_channels": float(max(map(len, self.blind))),
        }

    def state(self) -> tuple[DetectorState, str]:
        """What it can do just now, and why."""
        if all(len(blind) == len(CHANNELS) for blind in self.blind):
            return DetectorState.SATURATED, "ordinary clients score as high as scores go, so no account can alarm"
        told = []
        for reference, level, alpha, blind in zip(self._references, self.levels, self.asked, self.blind, strict=True):
            if not level.certified:
                told.append(
                    f'"{reference.model}" uncertified, so findings are low: {len(reference.scores):,} calibration '
                    f"clients, and a level of {alpha:.2g} takes {clients_needed(alpha):,}"
                )
            if blind:
                told.append(f'"{reference.model}": channels that cannot alarm alone: {", ".join(blind)}')
        return DetectorState.ARMED, "; ".join(told)


def evidence_of(reference: Reference, level: Level, account: Account, kernels: Kernels) -> dict[str, Any]:
    """Numbers behind a finding, JSON-able."""
    scores = kernels.tails(account.tally, reference.null)
    a, b = reference.null[0], reference.null[1]
    order = [int(c) for c in np.argsort(-scores, kind="stable") if scores[c] >= _SHARE * scores.max()]
    channels = [
        {
            "channel": CHANNELS[c],
            "count": int(account.tally[0, c]),
            "of": int(account.tally[1, c]),
            "expected": round(float(account.tally[1, c] * a[c] / (a[c] + b[c])), 2),
            "score": round(float(scores[c]), 3),
        }
        for c in order[:_SHOWN]
    ]
    return {
        "model": reference.model,
        "channels": channels,
        "requests": account.rows,
        "first_ts": account.first_ts,
        "level": level.level,
        "level_upper_95": level.upper,
        "calibration_clients": len(reference.scores),
        "calibration_ts": reference.facts["last_ts"],
    }


def reason_of(evidence: dict[str, Any], level: Level) -> str:
    """One line in plain words."""
    leading = evidence["channels"][0]
    if level.certified:
        promise = f"an ordinary client gets here with a chance of {100 * level.level:.2g}%"
    else:
        promise = f"uncertified: only {evidence['calibration_clients']} calibration clients"
    return (
        f'{leading["count"]} of {leading["of"]} requests to "{evidence["model"]}" {WORDS[leading["channel"]]}, where '
        f"{leading['expected']:g} are expected; {promise}"
    )
