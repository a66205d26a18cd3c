"""Which accounts an open campaign names, so that one page for the campaign can stand for theirs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Final

from mlsecd.records import Finding, Severity, Status
from mlsecd.sinks.metrics_view import ActiveFinding

__all__ = ["Campaigns"]

_CAMPAIGNS: Final = 256
_CLIENTS: Final = 10_000  # of one campaign

Key = tuple[str, Severity, bool]  # detector, severity, whether a campaign names the account


class Campaigns:
    """The members of open campaigns, as their latest lines list them; synthetic ones cover nobody.

    After a restart a campaign covers its accounts from its next line on: until then they page, which is the safe side.
    """

    def __init__(self) -> None:
        self._clients: dict[str, frozenset[str]] = {}  # by the campaign finding's id
        self._covered: frozenset[str] = frozenset()
        self._seen: set[tuple[str, Severity]] = set()

    def note(self, line: Finding) -> None:
        """One line of any finding's life."""
        if line.subject_kind != "campaign" or line.synthetic:
            return
        if line.status is Status.RESOLVED:
            self._clients.pop(line.id, None)
            self._covered = frozenset().union(*self._clients.values())
        elif line.id in self._clients or len(self._clients) < _CAMPAIGNS:
            clients = line.evidence.get("clients", ())
            listed = clients if isinstance(clients, list | tuple) else ()
            self._clients[line.id] = frozenset(map(str, itertools.islice(listed, _CLIENTS)))
            self._covered = frozenset().union(*self._clients.values())

    def count(self, active: Iterable[ActiveFinding]) -> dict[Key, int]:
        """Real unresolved findings about accounts, by detector, severity and membership.

        What was counted once stays, at 0: a series that goes would leave its last value standing in a look-back.
        """
        accounts = [one for one in active if one.subject_kind == "client" and not one.synthetic]
        self._seen.update((one.detector, one.severity) for one in accounts)
        counts = {(*pair, covered): 0 for pair in sorted(self._seen) for covered in (False, True)}
        for one in accounts:
            counts[one.detector, one.severity, one.subject in self._covered] += 1
        return counts
