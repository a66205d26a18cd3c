"""Rows of a batch, by account and tick, in the form that kernels take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._extraction_channels import COLUMNS, Frame, Reference, usable
from mlsecd.detectors._extraction_state import TICK, Account
from mlsecd.kernels import Kernels
from mlsecd.records import Ragged, RequestBatch
from mlsecd.windows.recent import Recent

__all__ = ["Group", "Routed", "compile_for", "crowd_of", "groups_of", "route"]

F8 = NDArray[np.float64]
I8 = NDArray[np.int64]


class Encodes(Protocol):
    """What turns rows of a batch into the form that its kernels take."""

    def encode(self, batch: RequestBatch, rows: I8, kernels: Kernels) -> Any: ...


class Group(NamedTuple):
    """One account's rows of one tick: ``start:stop`` of encoded rows, which lie at ``at`` in their batch."""

    first: int  # the place of its first row in the batch
    name: str
    number: int  # of the reference
    rows: Any
    at: I8
    start: int
    stop: int
    tick: float


def crowd_of(name: str) -> str:
    """Whom an account is held against: those of the same reference, and synthetic ones apart."""
    number, synthetic, _ = name.split(":", 2)
    return f"{number}:{synthetic}"


class Routed(NamedTuple):
    """Where each row of a batch belongs."""

    chosen: I8  # [n]: the frame that it is measured in, -1 for none
    known: NDArray[np.bool_]  # [n]: it has a client
    misfit: NDArray[np.bool_]  # [n]: it has a client, a known model and a vector, but none that fits a frame
    blank: I8  # [n]: the first frame of its model, where it has a client but nothing that fits; -1 for the others


def route(batch: RequestBatch, frames: Sequence[Frame]) -> Routed:
    """The fullest view that fits each row; of one model, later frames hold fewer inputs (:data:`VIEWS`)."""
    known = batch.text("client").codes >= 0
    model = batch.text("model")
    chosen = np.full(len(batch), -1, np.int64)
    first = np.full(len(batch), -1, np.int64)
    fits: dict[tuple[str, int], NDArray[np.bool_]] = {}
    for code in np.unique(model.codes[known]).tolist():
        numbers = [i for i, frame in enumerate(frames) if frame.model == model.values[code]]
        rows = np.flatnonzero(known & (model.codes == code))
        first[rows] = numbers[0] if numbers else -1
        for number in reversed(numbers):  # the fullest view comes last, and stays
            fitting_rows = np.ones(len(rows), bool)
            for letter, width in frames[number].widths.items():
                if (letter, width) not in fits:
                    fits[letter, width] = usable(batch.ragged(COLUMNS[letter]), width)
                fitting_rows &= fits[letter, width][rows]
            chosen[rows[fitting_rows]] = number
    vectors = (batch.ragged("features").lengths > 0) | (batch.ragged("input_features").lengths > 0)
    blank = np.where(chosen < 0, first, -1)
    return Routed(chosen, known, vectors & (blank >= 0), blank)


def groups_of(  # noqa: PLR0913, PLR0917 - rows, and what they are held against
    batch: RequestBatch, at: I8, ticks: F8, number: int, reference: Encodes | None, kernels: Kernels
) -> Iterator[Group]:
    """The rows at ``at``, which belong to one reference, encoded so that each group lies in one piece.

    Parameters
    ----------
    reference
        ``None``: of rows that nothing is measured of; their groups have no rows.
    ticks
        float64[n], the tick of each row of the batch, counted from 0.
    """
    client = batch.text("client")
    account = client.codes[at].astype(np.int64) * 2 + batch.synthetic[at]
    segment = np.cumsum(np.diff(ticks[at], prepend=ticks[at[:1]]) != 0)
    order = np.lexsort((account, segment))
    at, account, segment = at[order], account[order], segment[order]
    rows = None if reference is None else reference.encode(batch, at, kernels)
    cuts = np.flatnonzero(np.diff(account, prepend=-1) | np.diff(segment, prepend=-1))
    names = [f"{number}:{code & 1}:{client.values[code >> 1]}" for code in account[cuts].tolist()]
    when = (ticks[at[cuts]] * TICK).tolist()
    starts = cuts.tolist()
    stops = [*starts[1:], len(at)]
    for first, name, start, stop, tick in zip(at[cuts].tolist(), names, starts, stops, when, strict=True):
        yield Group(first, name, number, rows, at, start, stop, tick)


def compile_for(reference: Reference, kernels: Kernels) -> None:
    """Have the kernels compiled, or read from their cache, before the first request waits for it."""
    nothing = np.zeros(0, np.int64)
    empty = RequestBatch({"ts": np.zeros(0), "scores": Ragged(np.zeros(1, np.int64), np.zeros(0, np.float32))})
    rows = reference.encode(empty, nothing, kernels)
    account, recent = Account.new(len(kernels.CHANNELS)), Recent(reference.window_space.dims, 0)
    held = kernels.Account(
        recent.codes, recent.labels, recent.keys, recent.pushed, account.seen, account.tally, account.best
    )
    kernels.scan(held, rows, reference.plan, np.zeros(4), 0, 0)
    kernels.vector_keys(np.zeros((0, 1), np.float32))
