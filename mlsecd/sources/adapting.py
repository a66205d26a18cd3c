"""Which adapter reads which file: a path may begin with a format, ``nginx:/var/log/nginx/mlsecd.jsonl``."""

from __future__ import annotations

import time
from collections.abc import Iterable

from mlsecd.adapters.base import Adapter, Context, adapters
from mlsecd.meters import Meters
from mlsecd.sources.log_paths import matches
from mlsecd.taps.identity import Hasher, key_path, load_key

__all__ = ["Formats"]


class Formats:
    """The formats of configured paths, and lines made ours by them.

    Parameters
    ----------
    paths
        Patterns, each with or without ``FORMAT:`` before it; without, the file holds mlsecd's own records.
    model
        Of requests that name none.
    where
        The source's name in meters.
    whole
        Whether the files are read whole, so that all adapters will do.
    """

    def __init__(self, paths: Iterable[str], model: str, meters: Meters, where: str, *, whole: bool = False) -> None:
        self._meters = meters
        self._where = where
        self._model = model
        self._whole = whole
        self._pairs = [_split(path) for path in paths]
        needs_key = any(name for name, _ in self._pairs)
        key, trouble = load_key(key_path()) if needs_key else (b"", None)
        self._hasher = Hasher(key)
        self._trouble = trouble

    def troubles(self) -> dict[str, str]:
        """What an operator should know, by kind; once."""
        trouble, self._trouble = self._trouble, None
        return {"key": trouble} if trouble else {}

    @property
    def patterns(self) -> tuple[str, ...]:
        """The paths without their formats."""
        return tuple(pattern for _, pattern in self._pairs)

    def unknown(self) -> str | None:
        """What is wrong with the formats; ``None`` where nothing is."""
        usable = {name for name, adapter in adapters().items() if self._whole or not adapter.whole}
        wrong = sorted({name for name, _ in self._pairs if name and name not in usable})
        if not wrong:
            return None
        return f'no adapter "{wrong[0]}" for these files: known are {", ".join(sorted(usable))}'

    def adapter(self, path: str) -> Adapter | None:
        """Who reads this file; ``None`` where it holds our own records."""
        name = next((name for name, pattern in self._pairs if matches(path, pattern)), "")
        return adapters().get(name)

    def ours(self, path: str, data: bytes) -> bytes:
        """The lines (or the whole file) as our own records; what cannot be read is counted."""
        adapter = self.adapter(path)
        if adapter is None:
            return data
        now = time.time()
        context = Context(self._hasher, self._model, now, now - time.monotonic())
        adapted = adapter.adapt(data, context)
        if adapted.bad:
            self._meters.drop(self._where, "record", adapted.bad)
        return adapted.lines


def _split(path: str) -> tuple[str, str]:
    """(format or "", pattern): a path is absolute, or has no colon before its first slash."""
    name, colon, rest = path.partition(":")
    return (name, rest) if colon and rest and "/" not in name and name.isidentifier() else ("", path)
