"""What an exposure finding says, in plain units."""

from __future__ import annotations

from typing import Any

from mlsecd.detectors._exposure_chart import Chart
from mlsecd.detectors._exposure_rank import Ranked
from mlsecd.detectors._exposure_sight import CLIENTS_MAX

__all__ = ["evidence_of", "reason_of"]


def evidence_of(chart: Chart, one: Ranked) -> dict[str, Any]:
    """Numbers behind a finding, JSON-able."""
    price, sight = one.price, one.sight
    told: dict[str, Any] = {
        "model": chart.model,
        "rank": one.rank,
        "of": one.of,
        "by": one.by,
        "coverage_rank": one.coverage_rank,
        "pace_rank": one.pace_rank,
        "coverage": round(price.coverage, 4),
        "ratio": round(price.ratio, 2),
        "cells_seen": price.seen,
        "cells": price.cells,
        "inputs": [price.column],
        "queries": sight.queries,
        "distinct_queries": round(price.distinct),
        "expected_coverage": round(price.expected, 4),
        "coverage_over_expected": round(price.breadth, 3),
        "queries_an_hour": round(price.pace, 1),
        "ordinary_clients_covering_less": round(price.breadth_rank, 2),
        "ordinary_clients_slower": round(price.pace_rank, 2),
        "ordinary_clients_with_fewer_queries": round(price.volume_rank, 2),
        "effective_classes": round(sight.effective_labels, 1),
        "first_ts": sight.first_ts,
        "last_ts": sight.last_ts,
        "calibration_clients": int(chart.facts["clients"]),
        "calibration_ts": chart.facts["last_ts"],
    }
    if one.kind != "client":
        told |= {"group": one.kind, "value": one.value, "clients": sorted(sight.clients)}
    return told


def reason_of(chart: Chart, one: Ranked) -> str:
    """One sentence: how much, how fast, and beside whom."""
    price = one.price
    hours = max(one.sight.last_ts - one.sight.first_ts, 0.0) / 3_600.0
    named = len(one.sight.clients)
    many = f"{named} or more" if named == CLIENTS_MAX else f"{named}"
    who = "" if one.kind == "client" else f"{many} accounts of one {one.kind} together: "
    peers = "accounts" if one.kind == "client" else f"{one.kind} groups"
    return (
        f'{who}has seen {price.coverage:.0%} of the input cells of model "{chart.model}", '
        f"{price.ratio:.1f}x the median client, with {one.sight.queries:,} queries in {hours:.1f} h: "
        f"rank {one.pace_rank} by pace and {one.coverage_rank} by coverage of {one.of} {peers} with as many queries; "
        f"so many distinct queries of ordinary traffic would see {price.expected:.0%}"
    )
