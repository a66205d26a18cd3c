"""What a finding says: reason and evidence, for the person who was woken by it."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from mlsecd.detectors._extraction_channels import COLUMNS, Reference
from mlsecd.detectors._extraction_hideouts import Hider, Part, Together
from mlsecd.detectors._extraction_hiding import HIDING, LEVEL_SHARE, HidingPlan, expected_share
from mlsecd.detectors._extraction_level import Level
from mlsecd.detectors._extraction_state import Account
from mlsecd.kernels import Kernels

__all__ = [
    "evidence_of",
    "evidence_of_hiding",
    "evidence_of_together",
    "is_walk",
    "reason_of",
    "reason_of_hiding",
    "reason_of_together",
]

_SHOWN: Final = 4  # channels in a finding
_SHARE: Final = 0.5  # of the leading channel's score, for a channel to be said to have driven it

# "of its queries ...", by channel
_WORDS: Final = {
    "ood_f": "look to the model unlike what others send (its features are among the oddest 5%)",
    "ood_f_tail": "look to the model very unlike what others send (its features are among the oddest 0.5%)",
    "ood_e": "are inputs unlike what others send (among the oddest 5%)",
    "ood_e_tail": "are inputs very unlike what others send (among the oddest 0.5%)",
    "unc": "left the model unsure (among the 5% least certain answers)",
    "unc_tail": "left the model very unsure (among the 0.5% least certain answers)",
    "resid_f": "look to the model unlike others' where those hardly vary (oddest 5%)",
    "resid_f_tail": "look to the model very unlike others' where those hardly vary (oddest 0.5%)",
    "resid_e": "are inputs unlike others' where those hardly vary (oddest 5%)",
    "resid_e_tail": "are inputs very unlike others' where those hardly vary (oddest 0.5%)",
    "central_f_tail": "look to the model like mixtures of others' queries (nearest their middle, 0.5%)",
    "knn": "crowd together more than others' queries do (closest 5%)",
    "knn_tail": "crowd together far more than others' queries do (closest 0.5%)",
    "neardup": "are slight variants of its own earlier ones",
    "crowd": "have 16 or more slight variants among its own",
    "flip": "vary an earlier one slightly and got another answer",
    "far": "go back to vary a query it had left behind",
    "farflip": "go back to vary a query it had left behind and got another answer",
    "back_tail": "come back very close to a query it had left behind (closest 0.5%)",
    "back_rare": "come back extremely close to a query it had left behind (closest 0.05%)",
}

_HIDING_WORDS: Final = {
    "retry": "repeat an earlier body, by its hash",
    "unscored": "were answered without a vector by which others are judged, or lost before the tap could read them",
}

# Led by these, an account varies single queries again and again: it estimates gradients or walks along a boundary.
_WALKS: Final = frozenset({"knn", "knn_tail", "neardup", "crowd", "flip"})


def is_walk(evidence: dict[str, Any]) -> bool:
    """Whether an account looks for adversarial inputs (ATLAS AML.T0043.001) rather than for a copy of the model.

    Extraction without data (DFME) estimates gradients in the same way, and reads as a walk too.
    """
    return evidence["channels"][0]["channel"] in _WALKS


def evidence_of(reference: Reference, level: Level, account: Account, window: int, kernels: Kernels) -> dict[str, Any]:
    """Numbers behind a finding, JSON-able; ``window`` is the number of queries held."""
    tally = account.tally.astype(np.int32)
    scores = kernels.tails(tally, reference.plan.null)
    a, b = reference.plan.null[0], reference.plan.null[1]
    order = [int(c) for c in np.argsort(-scores, kind="stable") if scores[c] >= _SHARE * scores.max()]
    channels = [
        {
            "channel": kernels.CHANNELS[c],
            "count": int(tally[0, c]),
            "of": int(tally[1, c]),
            "expected": round(float(tally[1, c] * a[c] / (a[c] + b[c])), 2),
            "score": round(float(scores[c]), 3),
        }
        for c in order[:_SHOWN]
    ]
    return {
        "model": reference.model,
        "inputs": [COLUMNS[letter] for letter in reference.view],
        "channels": channels,
        "queries": int(account.seen[0]),
        "distinct_queries": int(account.seen[1]),
        "first_ts": account.first_ts,
        "window_queries": window,
        "level": level.level,
        "level_upper_95": level.upper,
        "calibration_clients": len(reference.scores),
        "calibration_ts": reference.facts["last_ts"],
        "calibration_left_out": level.left_out,
        "level_upper_95_if_those_are_ordinary": level.upper_if_ordinary,
    }


def reason_of(evidence: dict[str, Any], level: Level, *, certified: bool, excuse: str | None) -> str:
    """One line in plain words; ``excuse``: what explains all of it."""
    leading = evidence["channels"][0]
    repeats = evidence["queries"] - evidence["distinct_queries"]
    purpose = "searches for adversarial inputs" if is_walk(evidence) else "copies it"
    told = (
        f"{leading['count']} of {leading['of']} queries {_WORDS[leading['channel']]}, where {leading['expected']:g} "
        f'are expected: it probes model "{evidence["model"]}" as one who {purpose} does'
    )
    aside = f" ({repeats} exact repeats not counted)" if repeats else ""
    if excuse is not None:
        return f"{told}{aside}; but {excuse}"
    n = evidence["calibration_clients"]
    if certified:
        promise = f"an ordinary client gets here with a chance of {100 * level.level:.2g}%"
        left_out = evidence["calibration_left_out"]
        promise += f", if the {left_out:,} clients left out of the baseline are none" if left_out else ""
    elif level.certified:
        promise = f"uncertified: odd, but some of the {n} calibration clients scored as high"
    else:
        promise = f"uncertified: only {n} calibration clients"
    return f"{told}{aside}; {promise}"


def evidence_of_hiding(plan: HidingPlan, hider: Hider) -> dict[str, Any]:
    """Numbers behind a finding that rests on what cannot be judged; the channel that led to it comes first."""
    channels = [_hiding_channel(plan, hider, hider.lead)]
    channels += [_hiding_channel(plan, hider, c) for c in range(len(HIDING)) if c != hider.lead and hider.scores[c] > 0]
    return {
        "model": plan.model,
        "channels": channels,
        "first_ts": float(hider.row["first_ts"]),
        "calibration_clients": len(plan.scores),
    }


def _hiding_channel(plan: HidingPlan, hider: Hider, c: int) -> dict[str, Any]:
    tried = int(hider.row["tried"][c])
    others = hider.row["expected"][c] / max(tried, 1)
    return {
        "channel": HIDING[c],
        "count": int(hider.row["fired"][c]),
        "of": tried,
        "expected": round(tried * float(expected_share(plan.null, c, others)), 2),
        "score": round(float(hider.scores[c]), 3),
    }


def reason_of_hiding(evidence: dict[str, Any], alpha: float) -> str:
    """One line in plain words."""
    leading = evidence["channels"][0]
    of, words = leading["of"], _HIDING_WORDS[leading["channel"]]
    level = 100 * LEVEL_SHARE * alpha
    return (
        f"{leading['count']} of {of} queries {words}, where {leading['expected']:g} "
        f'are expected: what it asks model "{evidence["model"]}" is kept from judgement, or its client is broken; '
        f"uncertified: by a model of {evidence['calibration_clients']} ordinary clients, set to {level:.2g}%"
    )


def evidence_of_together(plan: HidingPlan, group: Together) -> dict[str, Any]:
    """Numbers behind a finding about many accounts that hide at a time."""
    names = dict.fromkeys(name for part in group.parts for name in part.names)
    return {
        "model": plan.model,
        "channels": [
            {"channel": HIDING[part.channel], "score": round(part.score, 3), "accounts": part.accounts}
            | ({"active_accounts": part.of} if part.of else {})
            for part in group.parts
        ],
        "clients": [name.split(":", 2)[2] for name in names],
        "accounts": len(names),
        "first_ts": min(part.first_ts for part in group.parts),
        "calibration_clients": len(plan.scores),
    }


def reason_of_together(plan: HidingPlan, group: Together) -> str:
    """One line in plain words."""
    return "; ".join(_part(plan.model, part) for part in group.parts) + "; uncertified"


def _part(model: str, part: Part) -> str:
    words = f'have many queries of model "{model}" that {_HIDING_WORDS[HIDING[part.channel]]}'
    if part.of:
        return (
            f"{part.accounts} of {part.of} accounts at a time {words}: taken for the doing of the service or tap, "
            "so nobody is accused, and what hides among them is not counted while this lasts"
        )
    return (
        f"{part.accounts} accounts within an hour {words}: a tap or gateway that fails for some of them, or accounts "
        "that hide together"
    )
