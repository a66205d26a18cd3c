"""Accounts to files: request records of format version 1, and the truth beside them."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlsecd.jsonlines import encode
from mlsecd.records import Ragged, RequestBatch, Text

from .clients import Sent
from .worlds import World

__all__ = ["batch_of", "save", "write"]


def _table(values: Sequence[str]) -> Text:
    distinct = {value: code for code, value in enumerate(dict.fromkeys(values))}
    return Text(np.array([distinct[value] for value in values], np.int32), tuple(distinct))


def _ragged(rows: Any) -> Ragged:
    n, width = rows.shape
    return Ragged(np.arange(0, n * width + 1, width), np.ascontiguousarray(rows).ravel())


def batch_of(world: World, accounts: Sequence[Sent]) -> RequestBatch:
    """All accounts' requests in order of time."""
    lengths = [len(one.ts) for one in accounts]
    who = np.repeat(np.arange(len(accounts)), lengths)
    ts = np.round(np.concatenate([one.ts for one in accounts]), 3)
    answers = [world.answer(one.x) for one in accounts]
    digests = [hashlib.blake2b(row, digest_size=8).hexdigest() for one in accounts for row in one.x]
    columns: dict[str, Any] = {
        "ts": ts,
        "client": Text(who.astype(np.int32), tuple(one.client for one in accounts)),
        "model": Text(np.zeros(len(who), np.int32), (world.model,)),
        "route": Text(np.zeros(len(who), np.int32), ("/v1/classify",)),
        "network": Text(who.astype(np.int32), tuple(one.network for one in accounts)),
        "status": np.full(len(who), 200.0),
        "predicted": _table([str(label) for one in answers for label in one.predicted]),
        "scores": _ragged(np.round(np.concatenate([one.scores for one in answers]), 4)),
        "features": _ragged(np.concatenate([one.features for one in answers]).astype(np.float32)),
        "body_hash": _table(digests),
    }
    if answers[0].input_features is not None:
        columns["input_features"] = _ragged(np.concatenate([one.input_features for one in answers]).astype(np.float32))
    return RequestBatch(columns).take(np.argsort(ts, kind="stable"))


def save(folder: Path, name: str, batch: RequestBatch, truth: dict[str, Any]) -> None:
    """``NAME.jsonl.gz`` and ``NAME.truth.json``; the same rows give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.jsonl.gz").open("wb") as raw, gzip.GzipFile("", "wb", 3, raw, mtime=0) as file:
        for start in range(0, len(batch), 20_000):
            file.write(encode(batch.slice(start, min(len(batch), start + 20_000))))
    (folder / f"{name}.truth.json").write_text(json.dumps(truth, indent=0, sort_keys=True) + "\n")


def write(folder: Path, name: str, world: World, accounts: Sequence[Sent]) -> int:
    """Write a scenario; how many records."""
    truth = {one.client: {"attack": one.attack, "kind": one.kind, "campaign": one.campaign} for one in accounts}
    batch = batch_of(world, accounts)
    save(folder, name, batch, truth)
    return len(batch)
