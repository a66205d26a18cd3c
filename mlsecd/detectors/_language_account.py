"""One account's counts of language channels, and the path of its score: the same in fitting and in service."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._language_channels import CHANNELS, FORMED, FORMED_LONG, LONG, RETRY, Reference, Rows
from mlsecd.detectors._language_recent import Recent
from mlsecd.errors import StateError
from mlsecd.kernels import Kernels

__all__ = ["MIN_ROWS", "Account", "count", "walk"]

MIN_ROWS: Final = 10  # before an account is judged, in calibration as in service
_PACE: Final = 1.05  # growth of the account between two looks
_RECENT: Final = 32  # templates and bodies that are remembered
_MEMORY: Final = 1 << 16  # rows, above which counts are halved: what lies long back weighs less


@dataclass(slots=True)
class Account:
    """Counts of one account in its epoch.

    Attributes
    ----------
    tally
        int32[2, C]: fired and tried, by channel.
    best
        float64[C]: highest scaled tails of the path.
    rows, look
        Rows so far, and at how many it is judged next.
    templates, bodies
        Hashes of the latest, oldest first.
    recent
        What campaigns are told by; it outlives the epoch.
    """

    tally: NDArray[np.int32] = field(default_factory=lambda: np.zeros((2, len(CHANNELS)), np.int32))
    best: NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(CHANNELS)))
    rows: int = 0
    look: int = MIN_ROWS
    started: float = 0.0
    first_ts: float = 0.0
    told: float = -np.inf
    told_ts: float = -np.inf
    templates: array[int] = field(default_factory=lambda: array("Q"))
    bodies: array[int] = field(default_factory=lambda: array("Q"))
    recent: Recent = field(default_factory=Recent)

    def dump(self) -> list[Any]:
        """What a snapshot holds."""
        numbers = [self.rows, self.look, self.started, self.first_ts, self.told, self.told_ts]
        hashes = [np.array(held, np.uint64) for held in (self.templates, self.bodies)]
        return [self.tally, self.best, numbers, *hashes, self.recent.dump()]

    @classmethod
    def load(cls, dumped: list[Any]) -> Account:
        """Take back what :meth:`dump` gave.

        Raises
        ------
        StateError
            It is of another shape.
        """
        tally, best, (rows, look, *times), templates, bodies, lately = dumped
        like = cls()
        for one, other in ((tally, like.tally), (best, like.best)):
            if one.shape != other.shape or one.dtype != other.dtype:
                raise StateError("accounts in a snapshot have other channels")
        for hashes in (templates, bodies):
            if hashes.dtype != np.uint64 or hashes.ndim != 1 or len(hashes) > _RECENT:
                raise StateError("hashes in a snapshot are damaged")
        started, first_ts, told, told_ts = map(float, times)
        held = [array("Q", hashes.tobytes()) for hashes in (templates, bodies)]
        made = cls(tally, best, int(rows), int(look), started, first_ts, told, told_ts, held[0], held[1])
        made.recent = Recent.load(lately)
        return made


def _remember(recent: array[int], value: int) -> bool:
    """Whether it is among the latest; it is from now on."""
    if value in recent:
        return True
    if len(recent) >= _RECENT:
        recent.pop(0)
    recent.append(value)
    return False


def count(account: Account, rows: Rows, i: int) -> None:
    """Add row ``i``. An exact repeat counts as a repeat, and as nothing else."""
    fired, tried, body, template = rows.fired[i], rows.tried[i], rows.bodies[i], rows.templates[i]
    account.rows += 1
    if body is not None:
        tried[RETRY] = 1
        if _remember(account.bodies, body):
            account.tally[:, RETRY] += 1
            return
    if template is not None:
        formed = _remember(account.templates, template)
        tried[FORMED] = 1
        fired[FORMED] = formed
        tried[FORMED_LONG] = tried[LONG]
        fired[FORMED_LONG] = formed and fired[LONG]
    account.tally[0] += fired
    account.tally[1] += tried
    account.recent.add(float(rows.ts[i]), fired, tried, template)
    if account.rows % _MEMORY == 0:
        account.tally //= 2


def walk(
    account: Account, rows: Rows, which: Iterable[int], reference: Reference, kernels: Kernels
) -> Iterator[tuple[int, float]]:
    """Fold rows, in this order, into an account; the row and the score each time that it is judged.

    It is judged at 10 rows and then whenever it has grown by 5 %, counted in its own rows: looks do
    not depend on batches or the clock, and calibration clients were looked at as often.
    """
    for i in which:
        count(account, rows, i)
        if account.rows >= account.look:
            account.look = max(account.rows + 1, int(account.rows * _PACE))
            tails = kernels.tails(account.tally, reference.null)
            np.maximum(account.best, tails, out=account.best)
            yield i, float(tails.max())
