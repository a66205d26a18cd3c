"""Sketches of accounts: sums over an epoch that say what an account sent, kept small enough for many accounts."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._campaign_view import CELL_BITS, RING_ROWS, TRAIL, View
from mlsecd.detectors._seasons import Past
from mlsecd.errors import StateError
from mlsecd.kernels import Kernels
from mlsecd.kernels.rings import make_ring
from mlsecd.windows.recent import Recent, are_queries

__all__ = ["Others", "Sketch", "counts_and_sums"]

_PENDING: Final = 64  # rows of one account and interval that are held against other accounts
_NEIGHBOURS: Final = 4  # that are looked at: the nearest may be exact repeats
_GROUP_MAX: Final = 64  # characters of a group's name
_CELL_BYTES: Final = (1 << CELL_BITS) // 8


@dataclass(slots=True)
class Pending:
    """Rows of the interval that other accounts have not been asked about yet."""

    codes: list[NDArray[np.int8]] = field(default_factory=list)
    labels: list[NDArray[np.int16]] = field(default_factory=list)
    keys: list[NDArray[np.uint32]] = field(default_factory=list)
    count: int = 0


@dataclass(slots=True)
class Sketch(Past):
    """One account in the current epoch, and its past.

    Attributes
    ----------
    recent
        Its trail; it outlives the epoch.
    sums
        int64[D], sums of its rows' coordinates, in units of ``1 / FIXED_POINT``: they add up over accounts and hosts.
    count
        Distinct rows.
    rows
        Rows, exact repeats included.
    cells
        uint8[128], one bit for each cell that it has queried; they unite by OR.
    groups
        What it belongs to, by kind (network, principal, link): the first that was seen of each.
    """

    recent: Recent
    sums: NDArray[np.int64]
    count: int = 0
    rows: int = 0
    cells: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(_CELL_BYTES, np.uint8))
    first_ts: float = 0.0
    last_ts: float = 0.0
    groups: dict[str, str] = field(default_factory=dict)
    pending: Pending = field(default_factory=Pending)

    @classmethod
    def new(cls, view: View) -> Sketch:
        """An account without rows."""
        return cls(Recent(view.window_space.dims, TRAIL), np.zeros(len(view.names), np.int64))

    def fold(self, rows: Any, start: int, stop: int, view: View, kernels: Kernels) -> None:
        """Add ``start:stop`` of encoded rows, which are this account's, in order."""
        self.recent.make_room(stop - start)
        recent = self.recent
        trail = kernels.Trail(recent.codes, recent.labels, recent.keys, recent.pushed)
        kernels.revisit(trail, TRAIL, rows.codes, rows.labels, rows.keys, view.near, rows.kinds, start, stop)
        kinds = rows.kinds[start:stop]
        rows.values[start:stop, -4] = (kinds & 1) * (kinds > 0)
        rows.values[start:stop, -3] = (kinds >> 1 & 1) * (kinds > 0)
        first_ts = float(rows.ts[start])
        if not self.rows:
            self.first_ts = first_ts
        self.born = min(self.born, first_ts)
        self.last_ts = float(rows.ts[stop - 1])
        self.rows += stop - start
        self.count += kernels.add_rows(rows.values, rows.kinds, start, stop, self.sums)
        new = start + np.flatnonzero(kinds >= 0)
        np.bitwise_or.at(self.cells, rows.cells[new] >> 3, (1 << (rows.cells[new] & 7)).astype(np.uint8))
        self._wait(rows, new[: _PENDING - self.pending.count])

    def _wait(self, rows: Any, new: NDArray[np.int64]) -> None:
        if len(new):
            self.pending.codes.append(rows.codes[new])
            self.pending.labels.append(rows.labels[new])
            self.pending.keys.append(rows.keys[new])
            self.pending.count += len(new)

    def belong(self, groups: Sequence[tuple[str, str]]) -> None:
        """Note what a row says the account belongs to; an account that moves stays where it was first seen."""
        for kind, value in groups:
            self.groups.setdefault(kind, value[:_GROUP_MAX])

    def clear(self) -> None:
        """Begin a new epoch."""
        self.sums[:] = 0
        self.cells[:] = 0
        self.count = self.rows = 0

    def dump(self) -> list[Any]:
        """What a snapshot holds."""
        waiting = self.pending
        held = [np.concatenate(part) if part else None for part in (waiting.codes, waiting.labels, waiting.keys)]
        numbers = [self.count, self.rows, self.first_ts, self.last_ts]
        groups = list(self.groups.items())
        return [self.recent.dump(), self.sums, self.cells, numbers, self.dump_past(), groups, held]

    @classmethod
    def load(cls, view: View, dumped: list[Any]) -> Sketch:
        """Take back what :meth:`dump` gave.

        Raises
        ------
        StateError
            It is of another shape.
        """
        recent, sums, cells, (count, rows, first_ts, last_ts), past, groups, held = dumped
        made = cls.new(view)
        pairs = ((sums, made.sums), (cells, made.cells))
        if any(one.shape != like.shape or one.dtype != like.dtype for one, like in pairs):
            raise StateError("accounts in a snapshot have other coordinates than their baseline")
        made.recent = Recent.load(view.window_space.dims, TRAIL, recent)
        made.sums, made.cells = sums, cells
        made.count, made.rows = int(count), int(rows)
        made.first_ts, made.last_ts = float(first_ts), float(last_ts)
        made.load_past(past)
        made.groups = {str(kind): str(value) for kind, value in groups}
        if made.count < 0 or made.rows < made.count or not math.isfinite(made.first_ts + made.last_ts):
            raise StateError("accounts in a snapshot have no counts")
        if held[0] is not None:
            made.pending = _waiting(view, *held)
        return made


def _waiting(view: View, codes: Any, labels: Any, keys: Any) -> Pending:
    """Rows of a snapshot that wait to be held against other accounts'."""
    n = len(codes)
    if n > _PENDING or not are_queries(codes, labels, keys, (n, view.window_space.dims), n):
        raise StateError("rows in a snapshot have other coordinates than their baseline")
    return Pending([codes], [labels], [keys], n)


class Others:
    """A ring of the latest queries of all accounts, to tell who else sent nearly the same."""

    def __init__(self, view: View, rows: int = RING_ROWS) -> None:
        self._view = view
        self._rows = rows
        self._key = hashlib.blake2b(view.window_space.offset.tobytes(), digest_size=32).digest()
        self._ring = make_ring(rows, view.ring_dims)
        self._labels = np.full(rows, -1, np.int16)
        self._keys = np.zeros(rows, np.uint32)

    def mingle(self, waiting: Sequence[tuple[str, Sketch]], turn: int, kernels: Kernels) -> None:
        """Hold each account's waiting rows against the other accounts', and count what lies near into its sums.

        Where there are more accounts than can be held against each other, ``turn`` tells with whom to begin: the same
        for the same interval, another one for the next.
        """
        if not waiting:
            return
        mingled = self._rows // 4
        first = turn * mingled % len(waiting)
        waiting = [*waiting[first:], *waiting[:first]]
        share = max(mingled // len(waiting), 1)
        codes = np.concatenate([np.concatenate(sketch.pending.codes)[:share] for _, sketch in waiting])[:mingled]
        labels = np.concatenate([np.concatenate(sketch.pending.labels)[:share] for _, sketch in waiting])[:mingled]
        keys = np.concatenate([np.concatenate(sketch.pending.keys)[:share] for _, sketch in waiting])[:mingled]
        sizes = [min(sketch.pending.count, share) for _, sketch in waiting]
        owners = np.repeat(np.array([self._owner(name) for name, _ in waiting], np.int32), sizes)[:mingled]
        near, flipped = self._search(codes, labels, keys, owners, kernels)
        stops = np.cumsum(sizes)
        for (_, sketch), stop, size in zip(waiting, stops.tolist(), sizes, strict=True):
            sketch.sums[-2] += int(near[stop - size : stop].sum()) * int(kernels.FIXED_POINT)
            sketch.sums[-1] += int(flipped[stop - size : stop].sum()) * int(kernels.FIXED_POINT)
            sketch.pending = Pending()

    def _owner(self, name: str) -> int:
        """A number for an account, int31: keyed by what the model's clients are like, so that nobody can choose it."""
        return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4, key=self._key).digest(), "little") >> 1

    def _search(
        self,
        codes: NDArray[np.int8],
        labels: NDArray[np.int16],
        keys: NDArray[np.uint32],
        owners: NDArray[np.int32],
        kernels: Kernels,
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Whether each row is a slight variant of another account's, and whether that got another label."""
        wide = np.zeros((len(codes), self._view.ring_dims), np.int8)
        wide[:, : codes.shape[1]] = codes
        at = (int(self._ring.pushed[0]) + np.arange(len(codes))) % self._rows
        kernels.ring_push(self._ring, wide, owners)  # first: accounts of one interval see each other
        self._labels[at], self._keys[at] = labels, keys
        squares, slots = kernels.ring_nearest(self._ring, wide, owners, _NEIGHBOURS)
        near = (squares <= self._view.near_others) & (self._keys[slots] != keys[:, None])
        known = (labels[:, None] >= 0) & (self._labels[slots] >= 0)
        flipped = near & known & (self._labels[slots] != labels[:, None])
        return near.any(axis=1), flipped.any(axis=1)

    def dump(self) -> list[Any]:
        """What a snapshot holds: only slots that were used."""
        pushed = int(self._ring.pushed[0])
        tiles = -(-min(pushed, self._rows) // self._ring.owners.shape[1])
        rows = tiles * self._ring.owners.shape[1]
        return [pushed, self._ring.codes[:tiles], self._ring.owners[:tiles], self._labels[:rows], self._keys[:rows]]

    def loaded(self, dumped: list[Any]) -> Others:
        """Another ring of the same view, out of what :meth:`dump` gave.

        Raises
        ------
        StateError
            It is of another shape.
        """
        pushed, codes, owners, labels, keys = dumped
        made = Others(self._view, self._rows)
        tiles, width = len(owners), made._ring.owners.shape[1]
        rows = tiles * width
        shapes = (codes.shape[1:], owners.shape[1:], len(codes), labels.shape, keys.shape)
        wanted = (made._ring.codes.shape[1:], (width,), tiles, (rows,), (rows,))
        kinds = (codes.dtype, owners.dtype, labels.dtype, keys.dtype)
        if kinds != (made._ring.codes.dtype, made._ring.owners.dtype, np.int16, np.uint32):
            raise StateError("a ring in a snapshot has other numbers than its baseline's")
        if shapes != wanted or rows > self._rows or int(pushed) < 0 or (int(pushed) > rows and rows < self._rows):
            raise StateError("a ring in a snapshot has another shape than its baseline's")
        made._ring.codes[:tiles], made._ring.owners[:tiles] = codes, owners
        made._ring.pushed[0] = int(pushed)
        made._labels[:rows], made._keys[:rows] = labels, keys
        return made


def counts_and_sums(sketches: Sequence[Sketch], kernels: Kernels) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rows, float64[A], and sums, float64[A, D], of accounts that have rows."""
    counts = np.array([float(sketch.count) for sketch in sketches])
    sums = np.array([sketch.sums for sketch in sketches], np.float64) / kernels.FIXED_POINT
    return counts, sums
