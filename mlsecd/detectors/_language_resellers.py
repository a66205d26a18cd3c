"""Clients with many end users, which nobody declared: who they are, counted in small sketches."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from mlsecd.detectors._parameters_books import TICK
from mlsecd.detectors._parameters_distinct import Distinct, hash_text
from mlsecd.records import RequestBatch
from mlsecd.windows.keyed import Keyed

__all__ = ["Resellers"]

_KEPT: Final = 64  # end users of one client that are told apart exactly


class Resellers:
    """End users by client.

    Parameters
    ----------
    limit
        The most clients.
    least
        End users from which a client is named; at most 64.
    declared
        Clients that need not be named.
    """

    def __init__(self, limit: int, least: int, declared: frozenset[str]) -> None:
        self._least, self._declared = least, declared
        self._users: Keyed[Distinct] = Keyed(limit, lambda _: Distinct(_KEPT), TICK)
        self.named = 0

    def fold(self, batch: RequestBatch) -> list[tuple[int, int]]:
        """The row at which a client reached the number, and the number."""
        if not batch.has("user"):
            return []
        client, user, ts, synthetic = batch.text("client"), batch.text("user"), batch.completion, batch.synthetic
        hashes: dict[int, int] = {}
        found = []
        for row in np.flatnonzero((client.codes >= 0) & (user.codes >= 0)).tolist():
            who = client.values[client.codes[row]]
            users = None if who in self._declared else self._users.touch(f"{int(synthetic[row])}:{who}", float(ts[row]))
            if users is None:
                continue
            code = int(user.codes[row])
            if code not in hashes:
                hashes[code] = hash_text(user.values[code])
            before = len(users)
            users.add(hashes[code])
            if before < self._least <= len(users):
                self.named += 1
                found.append((row, len(users)))
        return found

    def dump(self) -> list[Any]:
        """What a snapshot holds."""
        counts = [self.named, self._users.evicted, self._users.refused]
        return [*counts, [(name, tick, users.dump()) for name, tick, users in self._users.dump()]]

    def load(self, dumped: list[Any]) -> None:
        """Take back what :meth:`dump` gave."""
        named, evicted, refused, held = dumped
        loaded = [(str(name), int(tick), Distinct.load(_KEPT, users)) for name, tick, users in held]
        counts = int(named), int(evicted), int(refused)
        self._users.load(loaded)
        self.named, self._users.evicted, self._users.refused = counts
