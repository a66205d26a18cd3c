"""What a receiver takes and answers; apart from the handler, which loads Python's HTTP server."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from mlsecd.meters import Meters

__all__ = ["Answer", "House", "Refused", "Request"]


class Request(NamedTuple):
    """A body that came whole, decompressed."""

    path: str
    content_type: str  # without parameters, lower case
    body: bytes


class Answer(NamedTuple):
    """What the caller is told."""

    status: int
    body: bytes = b""
    content_type: str = ""


class Refused(Exception):  # noqa: N818 - an answer, on its way
    """The request is answered with this status and not handled."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass(frozen=True, slots=True)
class House:
    """What each connection needs to know."""

    where: str
    max_body_bytes: int
    timeout_seconds: float
    token: bytes
    paths: frozenset[str]
    types: frozenset[str]
    handle: Callable[[Request], Answer]
    meters: Meters
    turn: threading.Lock
    check: Callable[[str], None] | None = None  # raises Refused unless the Authorization header lets its sender in
