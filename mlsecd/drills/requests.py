"""Attacks through a model's own API."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from mlsecd.drills.drill import Drill, bundled, column_batch
from mlsecd.engines.replay import records_of
from mlsecd.meters import Meters
from mlsecd.records import Ragged, Records, RequestBatch

__all__ = ["REQUESTS"]

_HOUR: Final = 3_600.0
_DIMS, _CLASSES = 8, 4


def _recorded() -> list[RequestBatch]:
    pieces = records_of([str(bundled("recording.jsonl.gz"))], Meters())
    return [_synthetic(piece) for piece in pieces if isinstance(piece, RequestBatch)]


def _synthetic(batch: RequestBatch) -> RequestBatch:
    return RequestBatch({**batch.columns, "synthetic": np.ones(len(batch), np.int8)})


def _real(batch: RequestBatch) -> RequestBatch:
    """What a detector learns from: a baseline is not fitted on drills."""
    return RequestBatch({**batch.columns, "synthetic": np.zeros(len(batch), np.int8)})


def _copied() -> list[Records]:
    """The recording: fifteen ordinary accounts, and one that copies the model."""
    return list(_recorded())


def _drift() -> list[Records]:
    """The recording until it is known, then the same requests with every vector moved."""
    before = RequestBatch.concat(_recorded())
    columns = dict(before.columns)
    for name in ("features", "input_features"):
        vectors = before.ragged(name)
        columns[name] = Ragged(vectors.offsets, (vectors.values + 3.0).astype(vectors.values.dtype))
    columns["ts"] = before.ts + 300.0
    return [before, RequestBatch(columns)]


def _accounts(rng: np.random.Generator, count: int, rows: int, prefix: str, outside: float = 0.0) -> RequestBatch:
    """Accounts that ask around the centres of classes over an hour; a share of what they ask comes from outside."""
    centres = np.random.default_rng(99).normal(0, 3, (_CLASSES, _DIMS))
    total = count * rows
    usual = centres[rng.integers(0, _CLASSES, total)] + rng.normal(0, 1, (total, _DIMS))
    made = np.tile([7.0, -7.0], _DIMS // 2) + rng.normal(0, 2, (total, _DIMS))
    x = np.where(rng.random(total)[:, None] < outside, made, usual)
    return column_batch(
        rng.uniform(0, _HOUR, total),
        client=[f"{prefix}{i % count}" for i in range(total)],
        features=x,
        predicted=[str(one) for one in np.linalg.norm(x[:, None] - centres, axis=2).argmin(axis=1)],
        body_hash=[f"{prefix}{i}" for i in range(total)],
    )


def _together(*parts: RequestBatch) -> list[Records]:
    whole = RequestBatch.concat(parts)
    whole = whole.take(np.argsort(whole.completion, kind="stable"))
    return [whole.slice(at, min(at + 500, len(whole))) for at in range(0, len(whole), 500)]


def _crowd() -> list[Records]:
    return [_real(_accounts(np.random.default_rng(1), 120, 40, "c"))]


def _campaign() -> list[Records]:
    """Fifteen accounts under one hand, four fifths of their queries cover, among forty ordinary ones."""
    rng = np.random.default_rng(11)
    last = _accounts(rng, 1, 1, "last")
    closing = RequestBatch({**last.columns, "ts": last.ts + 2 * _HOUR})  # ends the hour that is judged
    return _together(_accounts(rng, 40, 40, "c"), _accounts(rng, 15, 40, "k-hand", outside=0.2), closing)


def _exposure() -> list[Records]:
    """An ordinary crowd, and one account that asks thirty times as much and so sees the most of the model."""
    rng = np.random.default_rng(3)
    return _together(_accounts(rng, 20, 80, "c"), _accounts(rng, 1, 2_400, "k-collector"))


def _chat(rng: np.random.Generator, count: int, client: str, **columns: Any) -> RequestBatch:
    """Requests of one client of a language model."""
    usual = {
        "input_tokens": (60 * rng.lognormal(0, 0.5, count)).round(),
        "output_tokens": (150 * rng.lognormal(0, 0.3) * rng.lognormal(0, 0.5, count)).round(),
        "template": [f"{client}-{i}" for i in range(count)],
        "body_hash": [f"{client}-{i}" for i in range(count)],
        "status": 200.0,
        "finish_reason": "stop",
    }
    return column_batch(rng.uniform(0, 5_000, count), client=client, **{**usual, **columns})


def _chats() -> list[Records]:
    rng = np.random.default_rng(1)
    sizes = np.clip(50 * rng.lognormal(0, 0.7, 100), 12, 400).astype(int)
    return [_real(one) for one in _together(*(_chat(rng, int(n), f"c{i}") for i, n in enumerate(sizes)))]  # type: ignore[arg-type]


def _distilled() -> list[Records]:
    """Forms filled in by a program, long answers, reasoning asked for each time."""
    rng = np.random.default_rng(7)
    count = 120
    return [
        _chat(
            rng,
            count,
            "k-distiller",
            template=[f"form{i % 8}" for i in range(count)],
            output_tokens=(700 * rng.lognormal(0, 0.4, count)).round(),
            flags=[["elicit_reasoning"]] * count,
            max_tokens=2_048.0,
        )
    ]


def _sweep() -> list[Records]:
    """Each request asks for four other tokens of the vocabulary and their probabilities."""
    count = 200
    return [
        column_batch(
            [float(i) for i in range(count)],
            client="k-sweeper",
            logit_bias=[range(4 * i, 4 * i + 4) for i in range(count)],
            logprobs=5.0,
            max_tokens=1.0,
            output_tokens=1.0,
            input_tokens=40.0,
            template="t",
            sketch=[[1, 7, 9]] * count,
            body_hash=[f"b{i}" for i in range(count)],
        )
    ]


REQUESTS: Final = {
    "extraction_account": Drill("an account copies the bundled model", _copied, {"client_alpha": 0.02}, bundled=True),
    "campaign_extraction": Drill(
        "fifteen accounts copy a model together, under cover",
        _campaign,
        {"epoch_seconds": _HOUR, "false_alarms_per_week": 1.0},
        ordinary=_crowd,
    ),
    "extraction_exposure": Drill("one account sees most of a model", _exposure, ordinary=_crowd),
    "extraction_language": Drill(
        "an account has a language model reason for it", _distilled, {"client_alpha": 0.05}, ordinary=_chats
    ),
    "extraction_parameters": Drill("an account sweeps the vocabulary for probabilities", _sweep),
    "drift_requests": Drill("every vector of a model's requests moves", _drift, bundled=True),
}
