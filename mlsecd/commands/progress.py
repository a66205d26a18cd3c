"""A progress bar on a terminal, silence elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Self

__all__ = ["Progress"]

_WIDTH = 30


class Progress:
    """Call it with (bytes read, bytes in all); it draws at most ten times a second, on standard error."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._on = sys.stderr.isatty()
        self._drawn = 0.0

    def __call__(self, done: int, total: int) -> None:  # noqa: D102 - the class says it
        now = time.monotonic()
        if not self._on or now - self._drawn < 0.1:
            return
        self._drawn = now
        if total > 0:
            share = min(done / total, 1.0)
            bar = ("█" * round(share * _WIDTH)).ljust(_WIDTH, "░")
            sys.stderr.write(f"\r{self._label} {bar} {share:4.0%} {done / 1e6:.0f} MB")
        else:
            sys.stderr.write(f"\r{self._label} {done / 1e6:.0f} MB")
        sys.stderr.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._on and self._drawn:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
