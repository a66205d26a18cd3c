"""The published detectors on a stream of records: each account's path of scores."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bench.peers import PEERS, Peer, Query
from mlsecd.records import RequestBatch

__all__ = ["Path", "Paths", "contestants", "make_peer", "walk"]

SPACES: Final = {"input_features": "in", "features": "feat"}  # and how the table calls them

F4 = NDArray[np.float32]


@dataclass
class Path:
    """Where one account's highest score rose: after how many queries, and to what."""

    queries: list[int] = field(default_factory=list)
    highest: list[float] = field(default_factory=list)

    def add(self, query: int, score: float) -> None:
        """Note a score, if it is a new maximum."""
        if not self.highest or score > self.highest[-1]:
            self.queries.append(query)
            self.highest.append(score)

    @property
    def maximum(self) -> float:
        """The highest of all; minus infinity where there was none."""
        return self.highest[-1] if self.highest else -np.inf

    def crossing(self, threshold: float) -> int | None:
        """After how many queries the score was above ``threshold`` first."""
        at = int(np.searchsorted(self.highest, threshold, side="right"))
        return self.queries[at] if at < len(self.queries) else None


@dataclass
class Paths:
    """What a peer made of a stream."""

    accounts: dict[str, Path]
    seconds_per_query: float  # of CPU
    bytes_per_account: float  # the mean, in arrays


def contestants(batch: RequestBatch) -> dict[str, tuple[str, str]]:
    """Label -> (peer, vector): each peer on the vectors that its paper has it see, where most rows carry them.

    Where none of a peer's is recorded it gets the one that is.
    """
    there = [name for name in SPACES if batch.has(name) and (batch.ragged(name).lengths > 0).mean() > 0.5]
    if not there:
        raise ValueError("no vectors in these records")
    made = {}
    for name, peer in PEERS.items():
        chosen = [space for space in peer.spaces if space in there] or there[:1]
        made |= {f"{name} ({SPACES[space]})": (name, space) for space in chosen}
    return made


def _rows(batch: RequestBatch, field_name: str) -> tuple[NDArray[np.int64], F4, NDArray[np.int32]]:
    """Row numbers that carry a vector, (n, width) of it, and labels (0 where there are none)."""
    ragged = batch.ragged(field_name)
    width = int(np.median(ragged.lengths[ragged.lengths > 0]))
    rows = np.flatnonzero((ragged.lengths == width) & (batch.text("client").codes >= 0))
    return rows, ragged.matrix(rows, width), np.maximum(batch.text("predicted").codes[rows], 0)


def make_peer(name: str, reference: RequestBatch, field_name: str) -> Peer:
    """A peer that has seen the reference sample. Labels are numbered by name: codes differ between files."""
    rows, x, _ = _rows(reference, field_name)
    return PEERS[name](x, np.array(_labels(reference, rows)))


def _labels(batch: RequestBatch, rows: NDArray[np.int64]) -> list[int]:
    predicted = batch.text("predicted")
    numbers = [int(value) if value.lstrip("-").isdigit() else sum(value.encode()) for value in predicted.values]
    return [numbers[code] if code >= 0 else 0 for code in predicted.codes[rows].tolist()]


def walk(peer: Peer, batch: RequestBatch, field_name: str) -> Paths:
    """Tell the peer every query in order, but for exact repeats of a body by one account."""
    rows, x, _ = _rows(batch, field_name)
    labels = _labels(batch, rows)
    who, bodies = batch.text("client"), batch.text("body_hash")
    accounts = {}
    paths: dict[str, Path] = {}
    counts: dict[int, int] = {}
    seen: set[tuple[int, object]] = set()
    began, told = time.thread_time(), 0
    for i, row in enumerate(rows.tolist()):
        code = int(who.codes[row])
        counts[code] = counts.get(code, 0) + 1
        body = int(bodies.codes[row])
        key = (code, body if body >= 0 else x[i].tobytes())
        if key in seen:
            continue
        seen.add(key)
        if code not in accounts:
            accounts[code] = peer.account()
            paths[who.values[code]] = Path()
        told += 1
        score = accounts[code].add(Query(x[i], labels[i]))
        if score is not None:
            paths[who.values[code]].add(counts[code], score)
    seconds = time.thread_time() - began
    return Paths(paths, seconds / max(told, 1), float(np.mean([one.nbytes for one in accounts.values()] or [0])))
