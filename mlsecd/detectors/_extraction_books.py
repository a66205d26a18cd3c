"""Books of what hides: each account's counts of its epoch in a row of one table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._extraction_hiding import HIDING, decades
from mlsecd.detectors._extraction_state import TICK
from mlsecd.errors import StateError
from mlsecd.kernels import Kernels
from mlsecd.windows.keyed import Keyed

__all__ = ["MEMORY", "Books", "halve"]

F8 = NDArray[np.float64]
I8 = NDArray[np.int64]

MEMORY: Final = 2_048  # trials after which counts are halved, as the kernel does
_FEWEST: Final = 64  # rows that a table begins with
_SPARE: Final = 1.25  # rows for each account that may be held: those that were pushed out are swept when they run out

_ROW: Final = np.dtype(
    [
        ("first_ts", np.float64),  # its epoch begins here
        ("fired", np.int64, len(HIDING)),  # repeats of rows that were looked up, and blanks of answered rows
        ("tried", np.int64, len(HIDING)),
        ("expected", np.float64, len(HIDING)),  # as many as others' shares make of the rows tried
        ("told", np.float64, len(HIDING)),  # the highest score that was told,
        ("told_ts", np.float64, len(HIDING)),  # and when something was told last
    ]
)


def halve(fired: Any, tried: Any, expected: Any) -> None:
    """Forget half, in place, where there are too many trials: arrays of any one shape."""
    while (over := np.asarray(tried >= MEMORY)).any():
        fired[over] //= 2
        tried[over] //= 2
        expected[over] /= 2.0


class Books:
    """Accounts by name, and their rows.

    Parameters
    ----------
    limit
        The most accounts that are held; those that were told of are pushed out last.
    """

    def __init__(self, limit: int) -> None:
        self._most = int(_SPARE * limit) + 1
        self._rows = np.zeros(min(_FEWEST, self._most), _ROW)
        self._free = list(range(len(self._rows)))[::-1]
        self._held: Keyed[int] = Keyed(limit, lambda _: self._free.pop(), TICK, self._was_told)

    def __len__(self) -> int:
        return len(self._held)

    @property
    def refused(self) -> int:
        """Accounts that found no room."""
        return self._held.refused

    def _was_told(self, row: int) -> bool:
        return bool((self._rows["told"][row] > 0.0).any())

    def rows_of(self, names: Sequence[str], first_ts: F8, now: float, epoch_seconds: float) -> I8:
        """The row of each account, int64[n], begun afresh where it is new or an epoch is over; -1: there is no room."""
        rows = np.full(len(names), -1, np.int64)
        for i, (name, first) in enumerate(zip(names, first_ts.tolist(), strict=True)):
            if not self._free:
                self._find_room()
            known = name in self._held
            row = self._held.touch(name, now)
            if row is None:
                continue
            rows[i] = row
            began = self._rows["first_ts"][row]
            if not known or first - began >= epoch_seconds or began > now:  # then the clock was set back
                self._rows[row] = (first, 0, 0, 0.0, -np.inf, -np.inf)
        return rows

    def _find_room(self) -> None:
        """Sweep the rows of those that were pushed out, or get more rows."""
        size = len(self._rows)
        used = {row for _, row in self._held.items()}
        if len(used) * _SPARE > size and size < self._most:
            self._rows = np.concatenate([self._rows, np.zeros(min(size, self._most - size), _ROW)])
        self._free = [row for row in range(len(self._rows)) if row not in used][::-1]

    def add(self, rows: I8, channel: int, fired: I8, tried: I8, others: F8) -> None:
        """Count an account's rows at each of ``rows``, which are distinct; ``others``: the share that others have."""
        held: dict[str, Any] = {name: self._rows[name][rows, channel] for name in ("fired", "tried", "expected")}
        held["fired"] += fired
        held["tried"] += tried
        held["expected"] += tried * others
        halve(**held)
        for name, column in held.items():
            self._rows[name][rows, channel] = column

    def scores(self, rows: I8, channel: int, null: F8, kernels: Kernels) -> F8:
        """Decades of one channel, float64[n]."""
        fired, tried = (self._rows[name][rows, channel] for name in ("fired", "tried"))
        others = self._rows["expected"][rows, channel] / np.maximum(tried, 1)
        return decades((fired, tried), others, null, channel, kernels)

    def of(self, row: int) -> Any:
        """One account's row, to read and to write to."""
        return self._rows[row]

    def dump(self) -> dict[str, Any]:
        """What a snapshot holds."""
        held = self._held.dump()
        rows = self._rows[np.array([row for _, _, row in held], np.int64)]
        return {
            "names": [name for name, _, _ in held],
            "ticks": [tick for _, tick, _ in held],
            "columns": {str(name): np.ascontiguousarray(rows[name]) for name in _ROW.names or ()},
            "counts": [self._held.kept, self._held.evicted, self._held.refused],
        }

    @classmethod
    def load(cls, limit: int, dumped: dict[str, Any]) -> Books:
        """Out of what :meth:`dump` gave.

        Raises
        ------
        StateError
            It is of another shape, or no counts.
        """
        names, ticks = [str(name) for name in dumped["names"]], [int(tick) for tick in dumped["ticks"]]
        kept, evicted, refused = (int(count) for count in dumped["counts"])
        made, n = cls(limit), len(names)
        if n > limit or len(set(names)) < n or len(ticks) != n or not 0 <= kept <= n:
            raise StateError("what hides in a snapshot has more accounts than it may, or some twice")
        made._rows = np.zeros(max(n, len(made._rows)), _ROW)
        for name in _ROW.names or ():
            column, into = dumped["columns"][name], made._rows[name][:n]
            if column.shape != into.shape or column.dtype != into.dtype or np.isnan(column).any():
                raise StateError("what hides in a snapshot has other channels")
            into[:] = column
        rows = made._rows[:n]
        sound = (rows["fired"] >= 0) & (rows["fired"] <= rows["tried"]) & (rows["tried"] < MEMORY)
        sound &= (rows["expected"] >= 0.0) & (rows["expected"] <= rows["tried"] + 1.0)  # whole numbers halve downwards
        sound &= (rows["told"] < np.inf) & (rows["told_ts"] < np.inf)
        if not sound.all() or not np.isfinite(rows["first_ts"]).all():
            raise StateError("what hides in a snapshot are no counts")
        made._free = list(range(n, len(made._rows)))[::-1]
        made._held.load([(name, tick, i) for i, (name, tick) in enumerate(zip(names, ticks, strict=True))], kept)
        made._held.evicted, made._held.refused = evicted, refused
        return made
