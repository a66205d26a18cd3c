"""How benchmarks print: rows of name, value, unit, and a peer or a budget to hold them against."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Row", "report"]


@dataclass(frozen=True)
class Row:
    """One figure. ``peer`` names what ``ratio`` is to; ``budget`` is the most that it may be."""

    name: str
    value: float
    unit: str
    peer: str = ""
    ratio: float | None = None
    budget: float | None = None


def report(rows: Iterable[Row], *, as_json: bool) -> None:
    """Print each row as it is measured."""
    for row in rows:
        if as_json:
            shown = {"name": row.name, "value": row.value, "unit": row.unit, "peer": row.peer, "ratio": row.ratio}
            print(json.dumps(shown), flush=True)
            continue
        against = f"{row.ratio:.2f}x {row.peer}" if row.ratio is not None else ""
        if row.budget is not None:
            against = f"budget {row.budget:g}: {'kept' if row.value <= row.budget else 'MISSED'}"
        print(f"{row.name:<58} {row.value:>14,.3f} {row.unit:<12} {against}", flush=True)
