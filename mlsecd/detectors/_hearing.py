"""Whether a request would have been seen: silence is evidence only where somebody listens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from mlsecd.records import SourceStatus

__all__ = ["SOURCES", "Hearing"]

SOURCES: Final = (
    "request_log",
    "request_socket",
    "otlp",
    "litellm",
    "syslog",
    "trace_files",
    "server_metrics",
    "recording",
)
# These read what a server wrote, or its counters. The others listen, or bring other news: that they live says
# nothing until a request has come in.
_READERS: Final = frozenset({"request_log", "server_metrics"})
_FORGET_SECONDS: Final = 3_600.0  # a source that says nothing for so long was switched off, not broken
_NEVER: Final = float("-inf")


@dataclass(slots=True)
class _Source:
    """What is known of one request source."""

    ts: float
    ok_ts: float = _NEVER


@dataclass(slots=True)
class Hearing:
    """The request sources of one host."""

    sources: dict[str, _Source] = field(default_factory=dict)

    def hear(self, status: SourceStatus) -> None:
        """Take one poll's word. Where time steps back, what was known starts afresh."""
        source = self.sources.get(status.source)
        if source is None or status.ts < source.ts:
            self.sources[status.source] = source = _Source(status.ts)
        source.ts = status.ts
        if status.ok:
            source.ok_ts = status.ts

    def deaf(self, ts: float, alive_seconds: float, accepted: int) -> str | None:
        """Why the absence of requests says nothing; ``None`` where a request would have been seen.

        A source that worked and now fails makes the host deaf even beside a live one: the requests
        may well be the ones that it brought.
        """
        live = {name for name, source in self.sources.items() if 0 <= ts - source.ok_ts <= alive_seconds}
        if not live:
            return f"no request source has delivered for {alive_seconds:.0f} s"
        for name, source in self.sources.items():
            if name not in live and source.ok_ts > _NEVER and ts - source.ts <= _FORGET_SECONDS:
                return f"{name} has delivered before and does not now"
        if not accepted and not live & _READERS:
            return f"nothing has ever come in by {', '.join(sorted(live))}: is a tap in place?"
        return None
