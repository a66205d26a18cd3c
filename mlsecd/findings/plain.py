"""Evidence as plain values: what every encoder takes, and what looks the same after a restart."""

from __future__ import annotations

import math
from typing import Any, Final

__all__ = ["plain", "plain_text"]

_DEPTH: Final = 8  # evidence is shallow; deeper is a mistake, and a cycle has no bottom
_INT64: Final = range(-(2**63), 2**63)


def plain_text(text: str) -> str:
    r"""``text`` as valid Unicode: a lone surrogate (a file name that is not UTF-8) becomes ``\udcff`` spelled out."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text


def plain(value: Any, depth: int = _DEPTH) -> Any:  # noqa: PLR0911 - one return a kind of value
    """``value`` as JSON knows it: no numpy, no tuples, no sets, no infinities, nothing unprintable to an encoder.

    A number that is not finite becomes ``None``; an unknown object, or one nested too deep, its ``ascii()``.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return plain_text(str(value))
    if isinstance(value, int):
        return int(value) if value in _INT64 else str(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if depth and isinstance(value, dict):
        return {plain_text(str(key)): plain(item, depth - 1) for key, item in value.items()}
    if depth and isinstance(value, list | tuple):
        return [plain(item, depth - 1) for item in value]
    if depth and isinstance(value, set | frozenset):
        return sorted((plain(item, depth - 1) for item in value), key=repr)
    if depth and callable(tolist := getattr(value, "tolist", None)):  # numpy's arrays and scalars
        return plain(tolist(), depth - 1)
    return ascii(value)[:1_000]
