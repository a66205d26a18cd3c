"""The daemon's own log: what it does, on standard error. Findings go to the forensic log, and here in one line."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Literal, TextIO, cast

import structlog

__all__ = ["configure", "get"]

Format = Literal["auto", "console", "logfmt", "json"]

_LIMIT = 500  # characters of one value: attackers write some of them


def configure(level: str = "info", form: Format = "auto") -> None:
    """Set level and format; ``auto`` is ``console`` on a terminal and ``logfmt`` elsewhere."""
    if form == "auto":
        form = "console" if sys.stderr.isatty() else "logfmt"
    renderer: Any = {
        "console": structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        "logfmt": structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"]),
        "json": structlog.processors.JSONRenderer(),
    }[form]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _harmless,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", _Unfailing(sys.stderr))),
        cache_logger_on_first_use=False,
    )


class _Unfailing:
    """A stream whose reader may go away, or whose disk may fill up: neither must end the daemon."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what can be written."""
        with contextlib.suppress(OSError, ValueError):
            return self._stream.write(text)
        return 0

    def flush(self) -> None:
        """Flush what can be flushed."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


def _harmless(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Text from outside is cut and made printable, so that it cannot forge lines or drive a terminal."""
    for key, value in event.items():
        if isinstance(value, str):
            cut = value if len(value) <= _LIMIT else value[:_LIMIT] + "…"
            event[key] = cut if cut.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in cut)
    return event


def get() -> Any:
    """A logger."""
    return structlog.get_logger()
