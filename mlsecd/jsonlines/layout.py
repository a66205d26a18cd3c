"""The keys that a stream uses: learned from its lines, given up when they no longer come."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Final

import msgspec

from .columns import plan
from .wire import REQUEST, REQUIRED, request_struct

__all__ = ["Layout", "Learner"]

LEARN_AT: Final = 8  # lines with a key, before the layout takes it up
REST: Final = 4_096  # rows between two layouts: making one costs as much as some hundred rows
FORGET_AFTER: Final = 65_536  # rows without a key, before the layout gives it up
MAX_CARRIED: Final = 32  # unknown keys in a layout
MAX_SIGHTINGS: Final = 512  # keys that wait to be learned
_PLAIN: Final = re.compile(r"[A-Za-z0-9_.:/-]{1,64}")


class Layout:
    """Decodes a line that has no keys but these, and knows how its rows become columns."""

    def __init__(self, keys: Iterable[str]) -> None:
        self.keys = dict.fromkeys((*REQUIRED, *keys))
        known = [key for key in self.keys if key in REQUEST]
        carried = [key for key in self.keys if key not in REQUEST]
        self.carried = {f"_{at}": key for at, key in enumerate(carried)}
        self.plan = plan(known)
        self.decode = msgspec.json.Decoder(request_struct(known, carried, strict=True)).decode
        self.bare = len(self.keys) == len(REQUIRED)


class Learner:
    """Keeps a stream's layout.

    A producer that invents keys gains nothing: what is kept is bounded, and a layout stays for a while.
    """

    def __init__(self) -> None:
        self.layout = Layout(())
        self._sightings: Counter[str] = Counter()  # keys that the layout lacks
        self._used: set[str] = set()
        self._age = REST  # rows since the layout was made
        self._epoch = 0  # rows since keys were last given up
        self._ripe = False

    def see(self, keys: Iterable[str]) -> None:
        """Note what the layout lacked for a good line."""
        for key in keys:
            if not _PLAIN.fullmatch(key):
                continue
            if len(self._sightings) >= MAX_SIGHTINGS:  # invented keys do not push out real ones
                self._sightings = Counter({name: n for name, n in self._sightings.items() if name in REQUEST})
            self._sightings[key] += 1
            self._ripe |= self.layout.bare or self._sightings[key] >= LEARN_AT

    def due(self, rows: int = 0) -> bool:
        """Whether to change the layout after these rows."""
        return self._ripe and self._age + rows >= REST

    def note(self, rows: int, used: Iterable[str]) -> None:
        """Count rows and the keys that they used; then change the layout where it is time to."""
        self._age += rows
        self._epoch += rows
        self._used.update(used)
        stale: set[str] = set()
        if self._epoch >= FORGET_AFTER:
            if "logit_bias_count" in self._used:
                self._used.add("logit_bias")  # it may have left nothing but its count
            stale = self.layout.keys.keys() - self._used - {*REQUIRED, "kind", "seq"}
            self._epoch, self._used = 0, set()
        if stale or self.due():
            self._change(stale)

    def _change(self, stale: set[str]) -> None:
        enough = 1 if self.layout.bare else LEARN_AT
        keys = [key for key in self.layout.keys if key not in stale]
        keys += [key for key, n in self._sightings.items() if n >= enough]
        carried = [key for key in keys if key not in REQUEST]
        self.layout = Layout(key for key in keys if key not in carried[MAX_CARRIED:])
        self._sightings.clear()
        self._age, self._ripe = 0, False
