"""What every source is: something that can be polled for records, and may fail without harm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec

from mlsecd.meters import Meters
from mlsecd.records import Kind, Records

__all__ = ["Params", "Poll", "Source"]


class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A source's configuration: every field typed, bounded and described (``msgspec.Meta``)."""

    enabled: bool = True


@dataclass(frozen=True, slots=True)
class Poll:
    """What one poll brought. The runner turns it into the poll's ``source`` record."""

    records: Sequence[Records] = ()
    seen: int | None = None  # things found: GPUs, processes, files
    expected: int | None = None  # things that should be there, where that is known
    error: str | None = None  # set: the poll failed in part, and this is why


class Source(ABC):
    """One file, one source. Each runs in a thread of its own, so a slow one delays no other.

    The runner in ``daemon.py`` calls :meth:`poll` every ``interval_seconds``; whatever it raises
    becomes ``mlsecd_source_up{source} 0`` and one log line per change.
    """

    name: ClassVar[str]
    emits: ClassVar[frozenset[Kind]]
    summary: ClassVar[str]  # one sentence for docs, doctor and the landing page
    Params: ClassVar[type[Params]]
    interval_seconds: float = 1.0

    def __init__(self, params: Any, meters: Meters) -> None:
        """Keep parameters; open nothing yet (the first poll does)."""
        self.params = params
        self.meters = meters

    def supported(self) -> str | None:
        """``None`` where it can work here, else the reason why not."""
        return None

    @abstractmethod
    def poll(self, deadline: float) -> Poll:
        """Deliver what is new, until ``time.monotonic()`` passes ``deadline`` at the latest.

        Raises :class:`~mlsecd.errors.SourceError` where nothing could be delivered.
        """

    def state(self) -> dict[str, Any]:
        """Small JSON-able state to keep over a restart (file offsets, say)."""
        return {}

    def resume(self, state: dict[str, Any]) -> None:  # noqa: B027 - most sources keep nothing
        """Take back what :meth:`state` gave, before the first poll."""

    def samples(self) -> dict[str, str]:
        """Refused input since the last call, one harmless excerpt a reason, for the daemon's log."""
        return {}

    @abstractmethod
    def close(self) -> None:
        """Give back what is held; may be called more than once."""
