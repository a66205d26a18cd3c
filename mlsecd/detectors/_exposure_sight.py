"""What an account, or a group of accounts, has seen of a model: exact bitmaps that merge by OR."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from mlsecd.errors import StateError
from mlsecd.windows.keyed import Keyed

__all__ = ["CLIENTS_MAX", "COLUMNS_MAX", "KEY_BITS", "LABELS_MAX", "TICK", "Sight", "Sights"]

TICK: Final = 10.0  # seconds of event time within which keys are not put in order of recency
COLUMNS_MAX: Final = 2
LABELS_MAX: Final = 33  # 32 known predictions, and all others
KEY_BITS: Final = 4_096  # of the bitmap that distinct requests are counted with
CLIENTS_MAX: Final = 256  # names of a group that are kept, the first ones
_SETTLED: Final = 50  # queries from which on an account no longer makes room for newcomers


@dataclass(slots=True)
class Sight:
    """What one key has seen in an epoch, and in the one before. Python's integers serve as bitmaps.

    Epochs begin for everybody at the same time, so that shards agree; two are counted together, so
    that work which goes on over the turn of an epoch is not cut in two.

    Attributes
    ----------
    epoch
        The number of the epoch of its last row.
    queries
        Rows.
    keys
        Bitmap of 4,096 hashed request keys: distinct requests, by linear counting (Whang 1990).
    seen
        Bitmap of cells, by column of the model's chart.
    rows
        Rows that had the column, by column.
    labels
        Rows by prediction; the last place is for those that the chart does not know.
    first_ts, last_ts
        Completion of its first and last row.
    clients
        Of a group: when each account was first seen in it, seconds; the first 256.
    past
        The epoch before, if it had rows then.
    """

    epoch: float = -math.inf
    queries: int = 0
    keys: int = 0
    seen: list[int] = field(default_factory=lambda: [0] * COLUMNS_MAX)
    rows: list[int] = field(default_factory=lambda: [0] * COLUMNS_MAX)
    labels: list[int] = field(default_factory=lambda: [0] * LABELS_MAX)
    first_ts: float = math.inf
    last_ts: float = -math.inf
    clients: dict[str, float] = field(default_factory=dict)
    past: Sight | None = None

    @property
    def asked(self) -> int:
        """Rows of both epochs."""
        return self.queries + (self.past.queries if self.past else 0)

    def at(self, epoch: float) -> Sight | None:
        """What it has seen in this epoch and the one before; ``None`` where it was quiet in both."""
        if self.epoch < epoch - 1.0:
            return None
        return self if self.past is None or self.epoch < epoch else self.union(self.past)

    @property
    def distinct(self) -> float:
        """Distinct requests, within 2 % up to 10,000; never more than the rows; saturates near 34,000."""
        free = KEY_BITS - self.keys.bit_count()
        return min(float(self.queries), KEY_BITS * math.log(KEY_BITS / max(free, 1)))

    @property
    def effective_labels(self) -> float:
        """How many predictions it got, had all been equally frequent: the exponential of their entropy."""
        total = sum(self.labels)
        return math.exp(-sum(n / total * math.log(n / total) for n in self.labels if n)) if total else 0.0

    def enter(self, epoch: float) -> None:
        """Turn the page where a later epoch begins; an earlier one does only where the clock was set back."""
        if epoch < self.epoch - 1.0:
            self.take(Sight(epoch))
        if epoch > self.epoch:
            past = replace(self, past=None) if self.epoch == epoch - 1.0 else None
            self.take(Sight(epoch, past=past))

    def take(self, other: Sight) -> None:
        """Become what the other is."""
        for name in self.__slots__:
            setattr(self, name, getattr(other, name))

    def see(self, ts: float, cells: Sequence[int], bit: int, label: int) -> None:
        """One request more: its cell by column, its place among the request keys and the predictions; -1 for none."""
        self.queries += 1
        self.keys |= 1 << bit
        for i, cell in enumerate(cells):
            if cell >= 0:
                self.seen[i] |= 1 << cell
                self.rows[i] += 1
        if label >= 0:
            self.labels[label] += 1
        self.first_ts, self.last_ts = min(self.first_ts, ts), max(self.last_ts, ts)

    def meet(self, client: str, ts: float) -> None:
        """An account of this group."""
        if client not in self.clients and len(self.clients) < CLIENTS_MAX:
            self.clients[client] = ts

    def merged(self, other: Sight) -> Sight:
        """The union with what another shard saw under the same key, epoch by epoch."""
        late, early = (self, other) if self.epoch >= other.epoch else (other, self)
        if late.epoch == early.epoch:
            made, pasts = late.union(early), [late.past, early.past]
        elif late.epoch == early.epoch + 1.0:
            made, pasts = late, [late.past, replace(early, past=None)]
        else:
            return late
        held = [past for past in pasts if past is not None]
        return replace(made, past=held[0].union(held[1]) if len(held) > 1 else held[0] if held else None)

    def union(self, other: Sight) -> Sight:
        """The union of two sights, without their pasts."""
        clients = dict(self.clients)
        for name, ts in other.clients.items():
            clients[name] = min(ts, clients.get(name, math.inf))
        first = sorted(clients.items(), key=lambda pair: (pair[1], pair[0]))[:CLIENTS_MAX]
        return Sight(
            self.epoch,
            self.queries + other.queries,
            self.keys | other.keys,
            [one | two for one, two in zip(self.seen, other.seen, strict=True)],
            [one + two for one, two in zip(self.rows, other.rows, strict=True)],
            [one + two for one, two in zip(self.labels, other.labels, strict=True)],
            min(self.first_ts, other.first_ts),
            max(self.last_ts, other.last_ts),
            dict(first),
        )

    def dump(self) -> list[Any]:
        """What a snapshot holds."""
        bitmaps = [bits.to_bytes((bits.bit_length() + 7) // 8, "little") for bits in (self.keys, *self.seen)]
        return [
            self.epoch,
            self.queries,
            bitmaps,
            self.rows,
            self.labels,
            self.first_ts,
            self.last_ts,
            list(self.clients.items()),
            self.past.dump() if self.past else None,
        ]

    @classmethod
    def load(cls, dumped: Any) -> Sight:
        """Take back what :meth:`dump` gave."""
        epoch, queries, bitmaps, rows, labels, first_ts, last_ts, clients, past = dumped
        keys, *seen = (int.from_bytes(bits, "little") for bits in bitmaps)
        if (len(seen), len(rows), len(labels)) != (COLUMNS_MAX, COLUMNS_MAX, LABELS_MAX) or len(clients) > CLIENTS_MAX:
            raise StateError("what accounts have seen is of another shape in this snapshot")
        if keys.bit_length() > KEY_BITS:
            raise StateError("a bitmap in this snapshot is too long")
        made = cls(float(epoch), int(queries), keys, seen, [int(n) for n in rows], [int(n) for n in labels])
        made.first_ts, made.last_ts = float(first_ts), float(last_ts)
        made.clients = {str(name): float(ts) for name, ts in clients}
        made.past = None if past is None else cls.load(past)
        return made


class Sights:
    """Sights by key, bounded. A flood of names pushes out other newcomers, not those who have asked much.

    Parameters
    ----------
    limit
        The most keys; up to half as many again have settled, with 50 queries or more: who is quiet
        longest makes room, newcomers for newcomers, settled ones for settled ones.
    """

    def __init__(self, limit: int) -> None:
        self._new: Keyed[Sight] = Keyed(limit, lambda _: Sight(), TICK)
        self._settled: Keyed[Sight] = Keyed(max(limit // 2, 1), lambda _: Sight(), TICK)

    def __len__(self) -> int:
        return len(self._new) + len(self._settled)

    @property
    def evicted(self) -> int:
        """Keys that made room for others."""
        return self._new.evicted + self._settled.evicted

    def touch(self, key: str, tick: float) -> Sight | None:
        """One key's sight, to fold rows of one tick into; ``None``: there is no room for it.

        A key settles with the first row of a later tick, so that it does not matter how rows of one
        tick were cut into batches.
        """
        if key in self._settled:
            return self._settled.touch(key, tick)
        newcomer = self._new.peek(key)
        if newcomer is not None and newcomer.asked >= _SETTLED and newcomer.last_ts // TICK * TICK < tick:
            settled = self._settled.touch(key, tick)
            if settled is not None:
                settled.take(newcomer)
                self._new.drop(key)
                return settled
        return self._new.touch(key, tick)

    def items(self) -> list[tuple[str, Sight]]:
        """All pairs."""
        return [*self._new.items(), *self._settled.items()]

    def dump(self) -> list[Any]:
        """What a snapshot holds."""
        return [
            [
                [(key, tick, sight.dump()) for key, tick, sight in held.dump()],
                held.evicted,
                held.refused,
            ]
            for held in (self._new, self._settled)
        ]

    def load(self, dumped: Any) -> None:
        """Take back what :meth:`dump` gave; nothing is taken where a part is damaged."""
        made = [
            ([(str(key), int(tick), Sight.load(fields)) for key, tick, fields in rows], int(evicted), int(refused))
            for rows, evicted, refused in dumped
        ]
        for held, (rows, evicted, refused) in zip((self._new, self._settled), made, strict=True):
            held.load(rows)
            held.evicted, held.refused = evicted, refused
