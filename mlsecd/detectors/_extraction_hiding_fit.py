"""Learns how often ordinary clients repeat, and send no usable vector: offline, for ``baseline fit``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._extraction_books import halve
from mlsecd.detectors._extraction_calibration import MIN_QUERIES, walk
from mlsecd.detectors._extraction_channels import Reference
from mlsecd.detectors._extraction_clients import split
from mlsecd.detectors._extraction_cohorts import HEAVY
from mlsecd.detectors._extraction_groups import route
from mlsecd.detectors._extraction_hiding import HIDING, HidingPlan, answered, decades, lost
from mlsecd.detectors._extraction_null import null_of
from mlsecd.detectors._extraction_state import TICK
from mlsecd.kernels import Kernels
from mlsecd.records import Records, RequestBatch, rows_of

__all__ = ["BlankRows", "hiding_of"]

F8 = NDArray[np.float64]
I8 = NDArray[np.int64]

_BLANKS_MAX: Final = 200_000  # rows without any vector, apart from those with one: these must not crowd out those
_CLIENT_MAX: Final = 2_048  # of one client: as many as are remembered of it in service
_COLUMNS: Final = ("ts", "duration_s", "model", "client", "status", "lost")


class BlankRows:
    """Rows of real, known clients that were answered without any vector, taken off records that pass by.

    Attributes
    ----------
    seen
        How many passed by; of a client 2,048 are taken, of all 200,000.
    """

    def __init__(self) -> None:
        self._kept: list[RequestBatch] = []
        self._by_client: Counter[str] = Counter()
        self._held = 0
        self.seen = 0

    def watch(self, records: Iterable[Records]) -> Iterator[Records]:
        """The same records."""
        for batch in records:
            if isinstance(batch, RequestBatch) and len(batch):
                self._take(batch)
            yield batch

    def _take(self, batch: RequestBatch) -> None:
        client = batch.text("client")
        bare = (batch.ragged("features").lengths == 0) & (batch.ragged("input_features").lengths == 0)
        rows = np.flatnonzero(bare & (client.codes >= 0) & ~batch.synthetic & answered(batch))
        self.seen += len(rows)
        chosen = []
        for code, places in rows_of(client.codes[rows]):
            name = client.values[code]
            some = rows[places][: max(_CLIENT_MAX - self._by_client[name], 0)][: max(_BLANKS_MAX - self._held, 0)]
            self._by_client[name] += len(some)
            self._held += len(some)
            chosen.append(some)
        if chosen and (taken := np.sort(np.concatenate(chosen))).size:
            columns = {name: batch.columns[name] for name in _COLUMNS if batch.has(name)}
            self._kept.append(RequestBatch(columns, batch.seq).take(taken))

    def batch(self) -> RequestBatch:
        """All of them."""
        return RequestBatch.concat(self._kept)


def hiding_of(
    references: Sequence[Reference], batch: RequestBatch, blanks: RequestBatch, epoch_seconds: float, kernels: Kernels
) -> HidingPlan:
    """Learn one model's null from a third of its clients, thresholds from the others: those without vectors too.

    Parameters
    ----------
    references
        Of all views of the model.
    batch, blanks
        Rows with a vector, usable or not, and rows without; of any model.
    """
    events: dict[str, list[F8]] = {}
    for name, rows in _with_vectors(references, batch, kernels):
        events.setdefault(name, []).append(rows)
    for name, rows in _without(references[0].model, blanks):
        events.setdefault(name, []).append(rows)
    joined = {name: np.concatenate(parts) for name, parts in events.items()}
    joined = {name: rows[np.argsort(rows[:, 0], kind="stable")] for name, rows in joined.items()}
    reference_part, calibration_part = split([name for name, rows in joined.items() if len(rows) >= MIN_QUERIES])
    tallies = np.array([joined[name][:, 1:].sum(axis=0).reshape(2, 2).T for name in reference_part], np.int32)
    null = null_of(tallies.reshape(-1, 2, len(HIDING)), HIDING)
    calibrating = [joined[name] for name in calibration_part]
    scores = [_highest(rows, null, epoch_seconds, kernels) for rows in calibrating]
    return HidingPlan(references[0].model, null, np.array(scores).reshape(-1, len(HIDING)), _usual(calibrating))


def _rows(ts: F8, counts: Sequence[Any]) -> F8:
    """float64[n, 5]: when, then fired and tried of each channel."""
    made = np.zeros((len(ts), 1 + 2 * len(HIDING)))
    made[:, 0] = ts
    for i, count in enumerate(counts, 1):
        made[:, i] = count
    return made


def _with_vectors(references: Sequence[Reference], batch: RequestBatch, kernels: Kernels) -> Iterator[tuple[str, F8]]:
    """Clients and their rows with a vector: of those that fit a view, whether the window had their key."""
    routed, client, good, missing = route(batch, references), batch.text("client"), answered(batch), lost(batch)
    for number, reference in enumerate(references):
        at = np.flatnonzero(routed.chosen == number)
        for code, places in rows_of(client.codes[at]):
            own = at[places]
            rows = reference.encode(batch, own, kernels)
            walk(rows, reference, kernels, np.inf)  # which marks repeats
            lacking = good[own] & (number > 0)  # a vector that others have
            counts = (rows.repeats, 1.0, lacking + missing[own], good[own] + missing[own])
            yield client.values[code], _rows(rows.ts, counts)
    at = np.flatnonzero((routed.blank >= 0) & good)
    for code, places in rows_of(client.codes[at]):
        unseen = 1.0 + missing[at[places]]
        yield client.values[code], _rows(batch.completion[at[places]], (0.0, 0.0, unseen, unseen))


def _without(model: str, blanks: RequestBatch) -> Iterator[tuple[str, F8]]:
    names, client, missing = blanks.text("model"), blanks.text("client"), lost(blanks)
    at = np.flatnonzero(np.isin(names.codes, [i for i, value in enumerate(names.values) if value == model]))
    for code, places in rows_of(client.codes[at]):
        unseen = 1.0 + missing[at[places]]
        yield client.values[code], _rows(blanks.completion[at[places]], (0.0, 0.0, unseen, unseen))


def _usual(rows: Sequence[F8]) -> F8:
    """The share of clients that one meets with many of a channel at a time, float64[2].

    One who has many is one of them, and one who has few is now and then: where few rows come at a time, a share of all.
    """
    sums = np.array([own[:, 1:].sum(axis=0).reshape(len(HIDING), 2) for own in rows]).reshape(-1, len(HIDING), 2)
    shares = sums[:, :, 0] / np.maximum(sums[:, :, 1], 1.0)
    return np.where(shares >= HEAVY, 1.0, shares).sum(axis=0) / max(len(rows), 1)


def _highest(rows: F8, null: F8, epoch_seconds: float, kernels: Kernels) -> list[float]:
    """The highest score of each channel on a client's path, judged after each tick, afresh in each epoch."""
    cuts = np.flatnonzero(np.diff(rows[:, 0] // TICK, prepend=-np.inf))
    ticks = np.add.reduceat(rows[:, 1:], cuts).astype(np.int64).reshape(-1, len(HIDING), 2)
    path = np.zeros_like(ticks)
    held, started = np.zeros((2, len(HIDING)), np.int64), rows[0, 0]
    for i, (start, counts) in enumerate(zip(rows[cuts, 0].tolist(), ticks, strict=True)):
        if start - started >= epoch_seconds:
            held[:], started = 0, start
        held += counts.T
        halve(held[0], held[1], np.zeros(len(HIDING)))
        path[i] = held.T
    best = []
    for channel in range(len(HIDING)):
        own = path[ticks[:, channel, 0] > 0, channel]
        nobody = np.zeros(len(own))
        best.append(float(decades((own[:, 0], own[:, 1]), nobody, null, channel, kernels).max(initial=0.0)))
    return best
