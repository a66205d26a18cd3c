"""What looks across accounts: a sweep that many share, and many that turn to a new model together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._parameters_account import Account, Sign
from mlsecd.detectors._parameters_books import subject_of
from mlsecd.detectors._parameters_distinct import Distinct, hash_text
from mlsecd.detectors._parameters_rows import SWEEP
from mlsecd.detectors.base import Interval
from mlsecd.records import RequestBatch
from mlsecd.windows.keyed import Keyed

__all__ = ["SPLIT_IDS", "Group", "Models", "Move", "pivots", "shared_sweeps", "sweeping"]

SPLIT_IDS: Final = 24  # walked by one account, for its part in a shared sweep
_ACCOUNTS: Final = 3
_FRESH: Final = 3  # different lists of ids
_IDS_A_TEXT: Final = 16  # biased, by one account
_APART: Final = 0.5  # of the accounts' ids, at least, are of one account only
_MODELS: Final = 8  # that a client is known to call


class Group(NamedTuple):
    """Accounts that did something together."""

    model: str
    synthetic: bool
    ts: float
    first_ts: float
    size: int  # ids, or clients
    names: list[str]
    evidence: dict[str, Any]


def sweeping(account: Account) -> Sign | None:
    """An account's sweep, if it walks over one text or a few: ids that hardly repeat, in lists that change."""
    sign = account.signs.get(SWEEP)
    if sign is None or len(sign.things) < SPLIT_IDS or 2 * len(sign.things) < sign.amount:
        return None
    texts = len(sign.texts)
    return sign if sign.fresh >= _FRESH and 0 < texts * _IDS_A_TEXT <= sign.amount else None


def shared_sweeps(interval: Interval, states: Iterable[tuple[str, Any]], least: int) -> Iterator[Group]:
    """Models whose vocabulary is walked by several accounts, each a part, of which one was at it in this interval."""
    members: dict[tuple[bool, str], list[tuple[str, Account, Sign]]] = defaultdict(list)
    for key, account in states:
        sign = sweeping(account) if isinstance(account, Account) else None
        if sign is not None:
            subject, synthetic, _ = subject_of(key.partition(":")[2])
            for model in account.models:
                members[synthetic, model].append((subject, account, sign))
    for (synthetic, model), held in sorted(members.items()):
        signs = [sign for _, _, sign in held]
        last = max(sign.last_ts for sign in signs)
        if len(held) < _ACCOUNTS or not interval.start <= last < interval.end:
            continue
        ids = len(Distinct.union(signs[0].shared.k, [sign.shared for sign in signs]))
        if ids < least or ids < _APART * sum(len(sign.things) for sign in signs):
            continue
        first = min(account.first_ts for _, account, _ in held)
        names = [name for name, _, _ in held]
        evidence = {"distinct_tokens": ids, "requests": sum(sign.rows for sign in signs)}
        yield Group(model, synthetic, last, first, ids, names, evidence)


@dataclass(slots=True)
class Move:
    """A client that is not new called a model that is new to it."""

    model: str
    ts: float


class Models:
    """Which models each client calls; who lately turned to one that is new to it.

    Parameters
    ----------
    limit
        The most clients.
    settled_seconds
        Event time after which a client is no newcomer.
    window_seconds
        How long a move is remembered.
    tick_seconds
        The grain of recency.
    """

    def __init__(self, limit: int, settled_seconds: float, window_seconds: float, tick_seconds: float) -> None:
        self._settled, self._window, self._tick = settled_seconds, window_seconds, tick_seconds
        self._known: Keyed[list[Any]] = Keyed(limit, lambda _: [], tick_seconds)  # first ts, then hashes of names
        self._moves: Keyed[Move] = Keyed(max(limit // 4, 1), lambda _: Move("", 0.0), tick_seconds)

    def fold(self, batch: RequestBatch) -> None:
        """Note who calls what."""
        client, model, ts = batch.text("client"), batch.text("model"), batch.completion
        known = np.flatnonzero((client.codes >= 0) & (model.codes >= 0))
        synthetic = batch.synthetic
        for row in _firsts(batch, known, np.floor(ts / self._tick)):
            name = f"{int(synthetic[row])}:{client.values[client.codes[row]]}"
            self._call(name, model.values[model.codes[row]], float(ts[row]))

    def _call(self, name: str, model: str, ts: float) -> None:
        known, hashed = self._known.touch(name, ts), hash_text(model)
        if known is None or hashed in known[1:]:
            return
        if not known:
            known.append(ts)
        elif ts - known[0] >= self._settled:
            move = self._moves.touch(name, ts)
            if move is not None:
                move.model, move.ts = model, ts
        if len(known) <= _MODELS:
            known.append(hashed)

    def states(self) -> Iterator[tuple[str, Move]]:
        """All moves that are remembered."""
        return ((f"move:{name}", move) for name, move in self._moves.items())

    def dump(self) -> list[Any]:
        """What a snapshot holds."""
        return [self._known.dump(), [(name, tick, [move.model, move.ts]) for name, tick, move in self._moves.dump()]]

    def load(self, dumped: list[Any]) -> None:
        """Take back what :meth:`dump` gave."""
        known, moves = dumped
        known = [(str(name), int(tick), [float(held[0]), *map(int, held[1:])]) for name, tick, held in known]
        moved = [(str(name), int(tick), Move(str(model), float(ts))) for name, tick, (model, ts) in moves]
        self._known.load(known)
        self._moves.load(moved)


def _firsts(batch: RequestBatch, rows: NDArray[np.int64], ticks: NDArray[np.float64]) -> list[int]:
    """The first row of each (tick, client, model, synthetic) among these, in order."""
    columns = (ticks, batch.text("client").codes, batch.text("model").codes, batch.synthetic)
    first: dict[tuple[Any, ...], int] = {}
    for row, *key in zip(rows.tolist(), *(column[rows].tolist() for column in columns), strict=True):
        first.setdefault(tuple(key), row)
    return list(first.values())


def pivots(interval: Interval, states: Iterable[tuple[str, Any]], least: int, window_seconds: float) -> Iterator[Group]:
    """Models that many settled clients turned to within the window, one of them in this interval."""
    members: dict[tuple[bool, str], list[tuple[float, str]]] = defaultdict(list)
    for key, move in states:
        if isinstance(move, Move) and interval.end - window_seconds <= move.ts < interval.end:
            subject, synthetic, _ = subject_of(key.partition(":")[2])
            members[synthetic, move.model].append((move.ts, subject))
    for (synthetic, model), held in sorted(members.items()):
        moves = sorted(held)
        if len(moves) < least or moves[-1][0] < interval.start:
            continue
        ts = np.array([at for at, _ in moves])
        half = (len(ts) + 1) // 2
        evidence = {"half_within_seconds": round(float((ts[half - 1 :] - ts[: len(ts) - half + 1]).min()), 3)}
        names = [name for _, name in moves]
        yield Group(model, synthetic, float(ts[-1]), float(ts[0]), len(moves), names, evidence)
