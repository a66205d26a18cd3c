"""Text from outside, made fit for a label, a page or a line."""

from __future__ import annotations

__all__ = ["harmless"]


def harmless(value: str, limit: int) -> str:
    """One printable line of at most ``limit`` characters.

    Escaping alone would carry newlines, terminal controls and direction overrides intact into every tool
    behind it, and a lone surrogate cannot be encoded at all.
    """
    cut = value if len(value) <= limit else value[: limit - 1] + "…"
    return cut if cut.isprintable() else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in cut)
