"""Where a key stands in a TOML text: ``tomllib`` says what, but not in which line."""

from __future__ import annotations

import re

__all__ = ["line_of"]

_TABLE = re.compile(r"^\s*\[\[?\s*([^\]]+?)\s*\]\]?\s*(#.*)?$")
_KEY = re.compile(r"""^\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=""")


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))


def line_of(text: str, path: tuple[str, ...]) -> int | None:
    """The line, from 1, of the key or table at ``path``; of its nearest table where it is inline.

    ``None`` where the text has neither: it came from elsewhere (``--set``).
    """
    table: tuple[str, ...] = ()
    best: tuple[int, int] | None = None  # (depth, line)
    for number, line in enumerate(text.splitlines(), 1):
        if match := _TABLE.match(line):
            table = _parts(match[1])
            found = table
        elif match := _KEY.match(line):
            found = (*table, *_parts(match[1]))
        else:
            continue
        if found == path:
            return number
        if path[: len(found)] == found and (best is None or len(found) > best[0]):
            best = (len(found), number)
    return best[1] if best else None
