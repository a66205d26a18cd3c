"""The key that names clients: a daemon that was given one and cannot use it does not start.

With a key of its own it would run, and give every client another name after each start: what was learnt of them would
be lost without a word, and no tap's records would join with an adapter's.
"""

from __future__ import annotations

from typing import Final

from mlsecd.config import Config
from mlsecd.errors import ConfigError
from mlsecd.taps.identity import key_path, load_key

__all__ = ["check", "wanted"]

_NAMING: Final = ("otlp", "litellm", "syslog", "request_log")  # the sources that name clients themselves


def wanted(config: Config) -> bool:
    """Whether a source that is on names clients itself."""
    return any(config.sources[name].enabled for name in _NAMING)


def check(config: Config) -> None:
    """Raise :class:`~mlsecd.errors.ConfigError` where a key is named, is needed, and cannot be used."""
    path = key_path()
    if path is None or not wanted(config):
        return
    _, trouble = load_key(path)
    if trouble:
        raise ConfigError(
            f"{trouble}; let the user that mlsecd runs as read it, or take MLSECD_KEY_FILE or id.key away"
        )
