"""The committed dashboards, as tests read them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1] / "grafana"

# what Grafana puts in place of its variables; the rest is PromQL
VALUES = {
    "$__rate_interval": "10s",
    "$job": ".+",
    "$instance": ".+",
    "$gpu": ".+",
    "$synthetic": "true|false",
    "$finding": ".+",
    "$before": "1s",
}


class Target(NamedTuple):
    """One expression of one panel."""

    board: str
    panel: str
    kind: str
    expr: str

    @property
    def plain(self) -> str:
        expr = self.expr
        for name, value in VALUES.items():
            expr = expr.replace(name, value)
        return expr


def boards() -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "dashboards").glob("*.json"))}


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def targets() -> Iterator[Target]:
    for name, board in boards().items():
        for panel in panels(board):
            for target in panel.get("targets", ()):
                yield Target(name, panel["title"], panel["type"], target["expr"])
