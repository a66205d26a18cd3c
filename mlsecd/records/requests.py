"""Requests, in columns, because there are many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.records.columns import F8, I1, I8, Column, Field, Ragged, Text, Texts, absent, concat
from mlsecd.records.kinds import Kind

__all__ = ["FIELDS", "RequestBatch"]

# Every field of a request record, version 1. ``seq`` is apart: the fold gives it.
FIELDS: Final[dict[str, Field]] = {
    "ts": Field.NUMBER,
    "model": Field.TEXT,
    "client": Field.TEXT,
    "request_id": Field.TEXT,
    "source": Field.TEXT,
    "host": Field.TEXT,
    "identity": Field.TEXT,
    "network": Field.TEXT,
    "user_agent": Field.TEXT,
    "user": Field.TEXT,
    "route": Field.TEXT,
    "status": Field.NUMBER,
    "aborted": Field.FLAG,
    "duration_s": Field.NUMBER,
    "ttft_s": Field.NUMBER,
    "input_tokens": Field.NUMBER,
    "output_tokens": Field.NUMBER,
    "cached_tokens": Field.NUMBER,
    "reasoning_tokens": Field.NUMBER,
    "features": Field.VECTOR,
    "input_features": Field.VECTOR,
    "predicted": Field.TEXT,
    "scores": Field.VECTOR,
    "body_hash": Field.TEXT,
    "n": Field.NUMBER,
    "logprobs": Field.NUMBER,
    "prompt_logprobs": Field.NUMBER,
    "logit_bias": Field.IDS,
    "logit_bias_count": Field.NUMBER,
    "allowed_tokens": Field.NUMBER,
    "max_tokens": Field.NUMBER,
    "temperature": Field.NUMBER,
    "finish_reason": Field.TEXT,
    "template": Field.TEXT,
    "sketch": Field.IDS,
    "flags": Field.TEXTS,
    "principal": Field.TEXT,
    "resources": Field.TEXTS,
    "labels": Field.TEXT,
    "server_pid": Field.NUMBER,
    "lost": Field.NUMBER,  # requests of this client that a tap gave up since its last record
    "synthetic": Field.FLAG,
}


class RequestBatch:
    """Requests in columns of equal length. A field that no row has costs nothing: it is not held.

    Parameters
    ----------
    columns
        Column by field name, as :data:`FIELDS` types it. ``ts`` is required.
    seq
        int64[n]; the number that the fold gave each row, -1 where it has not yet.
    """

    __slots__ = ("columns", "seq")

    kind: Final = Kind.REQUEST

    def __init__(self, columns: dict[str, Column], seq: I8 | None = None) -> None:
        self.columns = columns
        self.seq = np.full(len(columns["ts"]), -1, np.int64) if seq is None else seq

    def __len__(self) -> int:
        return len(self.seq)

    def __repr__(self) -> str:
        return f"RequestBatch({len(self)} rows: {', '.join(self.columns)})"

    def has(self, name: str) -> bool:
        """Whether any row may hold this field."""
        return name in self.columns

    def _column(self, name: str, *kinds: Field) -> Any:
        if FIELDS[name] not in kinds:
            raise TypeError(f"{name} is a {FIELDS[name].value} column")
        held = self.columns.get(name)
        return absent(FIELDS[name], len(self)) if held is None else held

    def number(self, name: str) -> F8:
        """float64[n], NaN where absent."""
        column: F8 = self._column(name, Field.NUMBER)
        return column

    def flag(self, name: str) -> I1:
        """int8[n]: 1 true, 0 false, -1 absent."""
        column: I1 = self._column(name, Field.FLAG)
        return column

    def text(self, name: str) -> Text:
        """Dictionary-encoded strings."""
        column: Text = self._column(name, Field.TEXT)
        return column

    def texts(self, name: str) -> Texts:
        """Lists of strings."""
        column: Texts = self._column(name, Field.TEXTS)
        return column

    def ragged(self, name: str) -> Ragged:
        """Vectors (float32) or ids (int64) of any length."""
        column: Ragged = self._column(name, Field.VECTOR, Field.IDS)
        return column

    @property
    def ts(self) -> F8:
        """Start times, seconds since the epoch."""
        return self.number("ts")

    @property
    def completion(self) -> F8:
        """When each request was over, the time that the fold orders by: ``ts + duration_s``."""
        if not self.has("duration_s"):
            return self.ts
        completed: F8 = self.ts + np.nan_to_num(self.number("duration_s"), nan=0.0)
        return completed

    @property
    def synthetic(self) -> NDArray[np.bool_]:
        """bool[n]: rows that no real caller sent."""
        return self.flag("synthetic") == 1

    def take(self, rows: I8) -> RequestBatch:
        """These rows, in this order."""
        columns: dict[str, Column] = {
            name: column[rows] if isinstance(column, np.ndarray) else column.take(rows)
            for name, column in self.columns.items()
        }
        return RequestBatch(columns, self.seq[rows])

    def slice(self, start: int, stop: int) -> RequestBatch:
        """Rows ``start:stop``, ``0 <= start <= stop <= n``: a view, nobody writes into a column."""
        columns: dict[str, Column] = {
            name: column[start:stop] if isinstance(column, np.ndarray) else column.slice(start, stop)
            for name, column in self.columns.items()
        }
        return RequestBatch(columns, self.seq[start:stop])

    @staticmethod
    def concat(batches: Sequence[RequestBatch]) -> RequestBatch:
        """One batch of all rows, in order. Dictionaries are merged and keep only what is used."""
        if len(batches) == 1:
            return batches[0]
        names = [name for name in FIELDS if any(name in batch.columns for batch in batches)]
        columns: dict[str, Column] = {}
        for name in names:
            parts = [batch._column(name, FIELDS[name]) for batch in batches]  # noqa: SLF001 - its own class
            columns[name] = concat(FIELDS[name], parts)
        if not names:
            columns["ts"] = np.zeros(0)
        seqs = [batch.seq for batch in batches]
        return RequestBatch(columns, np.concatenate(seqs) if seqs else np.zeros(0, np.int64))
