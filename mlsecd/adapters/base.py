"""What every adapter is: a pure function from the bytes that a server writes to request records as JSON lines.

Records leave as bytes of our own wire format, so that the one decoder applies its types and limits to them like to
any other: an adapter maps names and units, and need not defend the house. What a client chose (paths, user agents,
request ids) is cut or hashed here, so that no client can make its own line unreadable.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

import msgspec

__all__ = [
    "BAD",
    "Adapted",
    "Adapter",
    "Context",
    "Hasher",
    "adapters",
    "clean",
    "count",
    "label",
    "lines_of",
    "number",
    "objects",
    "positive",
    "render",
    "timely",
    "who",
]

MAX_TEXT: Final = 256
END_OF_TIME: Final = 7_289_654_400.0  # this and the next as the wire format has them: what is beyond would be refused
MAX_SECONDS: Final = 366 * 86_400.0
BAD: Final = (msgspec.MsgspecError, ValueError, RecursionError, OverflowError)

_encode: Final = msgspec.json.Encoder().encode_lines
_decode_object: Final = msgspec.json.Decoder(dict[str, Any]).decode
MAX_COUNT: Final = 2.0**53


class Hasher(Protocol):
    """Names clients; :class:`mlsecd.taps.identity.Hasher` is one."""

    def client(self, scheme: str, secret: str | bytes) -> str:
        """``k-...`` of a secret: ``bearer``, ``user``, ``mtls`` or ``peer``."""

    def opaque(self, text: str | bytes) -> str:
        """A keyed hash of what only needs comparing."""


@dataclass(frozen=True, slots=True)
class Context:
    """What an adapter may know beside the bytes."""

    hasher: Hasher
    model: str = "unknown"  # where the server does not say it
    now: float = 0.0  # seconds since the epoch, where a record has no time of its own
    monotonic_offset: float = 0.0  # epoch minus CLOCK_MONOTONIC, seconds, for servers that log the latter


class Adapted(NamedTuple):
    """What came of it."""

    lines: bytes  # request records, each with its newline
    bad: int  # lines or objects that are none of the server's
    skipped: int = 0  # those that are, and tell of no request


class Adapter(NamedTuple):
    """One server's format."""

    name: str  # "nginx"
    summary: str
    adapt: Callable[[bytes, Context], Adapted]
    whole: bool = False  # reads whole files, not lines


@functools.cache
def adapters() -> dict[str, Adapter]:
    """All adapters by name: one module each, named by its ``ADAPTER``."""
    package = importlib.import_module("mlsecd.adapters")
    modules = [
        importlib.import_module(info.name) for info in pkgutil.iter_modules(package.__path__, "mlsecd.adapters.")
    ]
    found = [module.ADAPTER for module in modules if hasattr(module, "ADAPTER")]
    return {adapter.name: adapter for adapter in sorted(found)}


def lines_of(rows: list[Any]) -> bytes:
    """Records as JSON lines."""
    return _encode(rows) if rows else b""


def objects(data: bytes) -> Iterator[dict[str, Any] | None]:
    """The JSON object of each line, ``None`` for a line that is none. Bytes that are not UTF-8 are replaced."""
    for line in data.split(b"\n"):
        if not line.strip():
            continue
        try:
            yield _decode_object(line)
        except BAD:
            try:
                yield _decode_object(line.decode("utf-8", "replace"))
            except BAD:
                yield None


def render(found: Iterable[dict[str, Any] | None], skipped: int = 0) -> Adapted:
    """Rows, ``None`` where there was no reading one, as what an adapter returns."""
    rows = list(found)
    kept = [row for row in rows if row is not None and timely(row["ts"], row.get("duration_s"), row.get("ttft_s"))]
    return Adapted(lines_of(kept), len(rows) - len(kept), skipped)


def timely(ts: float, *spans: float | None) -> bool:
    """Whether a record's time and durations, seconds, can be any; others are of a wrong unit or a liar's."""
    return 0 <= ts < END_OF_TIME and all(span is None or 0 <= span <= MAX_SECONDS for span in spans)


def clean(value: Any) -> str | None:
    """A text as a record holds it: cut, without halves of surrogate pairs; ``None`` for "", "-" and other things."""
    if not isinstance(value, str) or value in ("", "-"):
        return None
    if len(value) > MAX_TEXT:
        value = value[:MAX_TEXT]
    return value if value.isascii() else value.encode("utf-8", "replace").decode()


def number(value: Any) -> float | None:
    """A finite number, also of a string; ``None`` for anything else."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    # exact types: a bool is no number; NaN is in no range
    if type(value) is float or type(value) is int:
        return float(value) if -MAX_COUNT <= value <= MAX_COUNT else None
    return None


def positive(value: Any) -> float | None:
    """A finite number that is not negative."""
    if type(value) is float:
        return value if 0.0 <= value <= MAX_COUNT else None
    found = number(value)
    return found if found is not None and found >= 0 else None


def count(value: Any) -> int | None:
    """A whole number that is not negative: servers write missing counts as "" or "-"."""
    if type(value) is int:
        return value if 0 <= value <= MAX_COUNT else None
    found = positive(value)
    return int(found) if found is not None and found == int(found) else None


def label(value: Any) -> int | str | None:
    """A predicted class: an integer of 64 bits, or a text."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value if -(2**63) <= value < 2**63 else None
    return clean(value)


def who(
    hasher: Hasher, *, client: Any = None, user: Any = None, subject: Any = None, peer: Any = None
) -> tuple[str | None, str]:
    """(client, identity) from what a gateway says, the strongest first; an address alone is ``unverified``.

    Parameters
    ----------
    client
        ``k-...`` as made by mlsecd, or any other name that the gateway gave the caller.
    user, subject
        The name that the gateway checked a password for; the subject of a client certificate that it checked.
    peer
        The caller's address.
    """
    if name := clean(client):
        return (name if name.startswith("k-") else hasher.client("user", name)), "verified"
    if name := clean(subject):
        return hasher.client("mtls", name), "verified"
    if name := clean(user):
        return hasher.client("user", name), "verified"
    if name := clean(peer):
        return hasher.client("peer", name), "unverified"
    return None, "unverified"
