"""One GET, of a server that the operator named: no proxy, no redirects, bounded. Loads Python's HTTP client."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import Any

__all__ = ["get", "why"]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A server does not send us, and our token, elsewhere."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Follow nothing."""


_OPENER = urllib.request.build_opener(_NoRedirect, urllib.request.ProxyHandler({}))


def get(url: str, headers: dict[str, str], timeout_seconds: float, max_bytes: int) -> bytes:
    """The body, and a byte more than ``max_bytes`` where it is longer.

    Raises ``OSError`` or ``ValueError``; :func:`why` says it in words.
    """
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - the configuration lets http and https through
    with _OPENER.open(request, timeout=timeout_seconds) as answer:
        body: bytes = answer.read(max_bytes + 1)
    return body


def why(error: Exception) -> str:
    """What went wrong, in a few words."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        return f"answers {error.code}"
    reason = getattr(error, "reason", error)
    return (getattr(reason, "strerror", None) or str(reason) or type(error).__name__).lower()[:120]
