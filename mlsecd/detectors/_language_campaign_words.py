"""What a finding about many accounts of a language model says: reason, evidence, and how loud it is."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, Final

from mlsecd.detectors._language_campaign import Kind, Members, View
from mlsecd.detectors._language_crowd import SIGNS, Crowd
from mlsecd.detectors._language_standing import WORDS
from mlsecd.detectors._parameters_books import subject_of
from mlsecd.records import Severity

__all__ = ["SEVERITY", "action_of", "evidence_of", "reason_of", "score_of"]

_CLIENTS_MAX: Final = 1_000  # that one finding names
_NETWORKS: Final = 5
_LEAST: Final = 1e-300

SEVERITY: Final = {
    Kind.COVERED: Severity.MEDIUM,
    Kind.OPEN: Severity.LOW,
    Kind.OWN_WORDS: Severity.LOW,
    Kind.PROMPT: Severity.LOW,
    Kind.APPLICATION: Severity.INFO,
    Kind.SEASON: Severity.INFO,
    Kind.LAUNCH: Severity.INFO,
}
_BOTH: Final = "ask for the reasoning, and many drew very long answers"
_MEANING: Final = {
    Kind.COVERED: (
        "They share {forms} forms among other requests, as accounts do that work off one list under cover; customers "
        "who take up an application with that many forms look the same"
    ),
    Kind.OPEN: (
        "They share {forms} forms and send little else: a new application with that many forms, or accounts that work "
        "off one list without cover"
    ),
    Kind.OWN_WORDS: (
        "Most have no form in common: an application that puts such words after its users' own looks the same"
    ),
    Kind.PROMPT: (
        "They use the same forms ({forms}) among other requests: customers who take up an application, or a campaign "
        "under cover that puts one prompt before everything"
    ),
    Kind.APPLICATION: (
        "They use the same forms ({forms}) and send little else, as the accounts of a new application do; a campaign "
        "that puts one prompt before everything and hides nothing looks the same"
    ),
    Kind.SEASON: "More than a third of all, or the others too: a season or a new model rather than a campaign",
    Kind.LAUNCH: "Most are new since an announced launch began, and the others are no more than usual",
}
_LOOK: Final = (
    "Ask whether an application was launched that explains all of this. If not, look at what the named accounts have "
    "in common: owner, payment, network, date of creation; then limit or suspend them together. Some are ordinary: "
    "evidence.expected_ordinary says how many."
)
_NOTHING: Final = "Nothing to stop. If the change is here to stay, record a week and fit the baseline again."


def action_of(kind: Kind) -> str:
    """What to do about it."""
    return _NOTHING if kind in {Kind.SEASON, Kind.LAUNCH} else _LOOK


def score_of(chance: float) -> float:
    """Decades of a chance, as scores and thresholds are told."""
    return round(-math.log10(max(chance, _LEAST)), 3)


def evidence_of(told: Members, view: View, crowd: Crowd, model: str) -> dict[str, Any]:
    """Numbers behind a finding, JSON-able."""
    recent = [view.accounts[i].recent for i in told.members]
    networks = Counter(one.network for one in recent if one.network).most_common(_NETWORKS)
    return {
        "model": model,
        "sign": SIGNS[told.sign],
        "clients": [subject_of(view.names[i].partition(":")[2])[0] for i in told.members[:_CLIENTS_MAX]],
        "members": len(told.members),
        "active_accounts": len(view.names),
        "expected_ordinary": round(told.expected, 1),
        "ordinary_share": round(told.usual, 4),
        "common_forms": told.forms,
        "kind": told.kind.value,
        "requests": sum(sum(one.rows) for one in recent),
        "first_ts": min(one.first_ts for one in recent),
        "last_ts": max(one.last_ts for one in recent),
        "networks": [{"network": network, "members": n} for network, n in networks],
        "calibration_clients": len(crowd.looks),
    }


def reason_of(told: Members, evidence: dict[str, Any]) -> str:
    """One line in plain words."""
    what, meaning = WORDS.get(evidence["sign"], _BOTH), _MEANING[told.kind].format(forms=told.forms)
    return (
        f'{evidence["members"]} of {evidence["active_accounts"]} accounts of "{evidence["model"]}" are odd '
        f"together: more of their requests than of ordinary accounts' {what}. {told.usual:.1%} of ordinary accounts "
        f"are so, which makes about {evidence['expected_ordinary']:g} of these. {meaning}; uncertified"
    )
