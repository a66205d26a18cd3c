"""What a campaign's finding says: reason and evidence, for the person who was woken by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from mlsecd.detectors._campaign_sketches import Sketch
from mlsecd.detectors._campaign_telling import DISTANCE, Channel
from mlsecd.detectors._campaign_verdict import Campaign, Shift, networks_of
from mlsecd.detectors._extraction_channels import COLUMNS

__all__ = ["evidence_of", "evidence_of_shift", "reason_of", "reason_of_shift"]

_CLIENTS_MAX: Final = 1_000  # that one finding names
_CHANNELS_MAX: Final = 4

# "most of them ...", by channel without its letter
_WORDS: Final = {
    "odd_f": "send more of what looks to the model unlike what others send",
    "odd_e": "send more inputs unlike what others send",
    "very_odd_f": "send what looks to the model very unlike what others send",
    "very_odd_e": "send inputs very unlike what others send",
    "odd_u": "leave the model unsure far more often than others",
    "very_odd_u": "leave the model very unsure far more often than others",
    "comes_back": "come back to vary queries that they had left behind",
    "comes_back_flipped": "come back to vary a query until it gets another answer",
    "near_others": "send slight variants of each other's queries",
    "near_others_flipped": "send slight variants of each other's queries that get other answers",
}


def _channel(one: Channel, size: int) -> dict[str, Any]:
    return {
        "channel": one.name,
        "odd_members": one.odd_members,
        "of": size,
        "share_of_queries": round(one.rate, 4),
        "ordinary_share": round(one.ordinary, 4),
    }


def evidence_of(group: Campaign, sketches: Sequence[Sketch], model: str, inputs: str, active: int) -> dict[str, Any]:
    """Numbers behind a campaign, JSON-able; ``sketches`` are those of its members."""
    cells = np.bitwise_or.reduce([sketch.cells for sketch in sketches])
    own = sorted(int(np.unpackbits(sketch.cells).sum()) for sketch in sketches)
    return {
        "model": model,
        "inputs": [COLUMNS[letter] for letter in inputs],
        "clients": [name.split(":", 2)[2] for name in group.members[:_CLIENTS_MAX]],
        "members": len(group.members),
        "active_accounts": active,
        "channels": [_channel(one, len(group.members)) for one in group.channels[:_CHANNELS_MAX]],
        "queries": sum(sketch.rows for sketch in sketches),
        "distinct_queries": sum(sketch.count for sketch in sketches),
        "first_ts": min(sketch.first_ts for sketch in sketches),
        "last_ts": max(sketch.last_ts for sketch in sketches),
        "networks": [{"network": network, "members": n} for network, n in networks_of(sketches)],
        "cells_seen_together": int(np.unpackbits(cells).sum()),
        "cells_seen_by_the_median_member": own[len(own) // 2],
        "found_by": group.group or "what they send",
    }


def evidence_of_shift(shift: Shift, model: str, active: int) -> dict[str, Any]:
    """Numbers behind a shift, JSON-able; ``explained_clients`` accuses nobody, as ``clients`` of a campaign does."""
    names = [name.split(":", 2)[2] for name in shift.names[:_CLIENTS_MAX]]
    return {"accounts": shift.accounts, "active_accounts": active, "model": model} | (
        {"explained_clients": names} if names else {}
    )


def reason_of(group: Campaign, evidence: dict[str, Any]) -> str:
    """One line in plain words."""
    leading = group.channels[0]
    together = f"of {group.group} " if group.group else ""
    who = "they" if leading.name in DISTANCE else f"{leading.odd_members} of them"
    ratio = leading.rate / max(leading.ordinary, 1e-6)
    return (
        f"{evidence['members']} of {evidence['active_accounts']} accounts {together}act as one on model "
        f'"{evidence["model"]}": {who} {_WORDS[leading.name]} '
        f"({leading.rate:.1%} of their queries, {ratio:.0f} times the ordinary share), "
        f"{evidence['distinct_queries']:,} queries together"
    )


def reason_of_shift(shift: Shift, model: str, active: int) -> str:
    """One line in plain words."""
    if shift.why:
        return f'{shift.accounts} of {active} accounts changed together on model "{model}": {shift.why}'
    return (
        f'{shift.accounts} of {active} accounts changed together on model "{model}", and nothing they do is what an '
        f"attacker does: a season, a launch or a new customer rather than a campaign"
    )
