"""From what the tap kept of a request to its record, one JSON line. Runs in the worker's thread only."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import sys
from array import array
from collections.abc import Hashable, Iterable
from math import isfinite
from typing import Any, Final

from mlsecd.taps.bodies import Asked, asked, written
from mlsecd.taps.identity import Hasher, Proxies, credential, key_path, load_key
from mlsecd.taps.patterns import Canaries, flags_of
from mlsecd.taps.sketch import Sketcher

__all__ = ["Renderer"]

_MAX_TEXT: Final = 256
_QUIET: Final = frozenset({"/health", "/healthz", "/ping", "/metrics", "/livez", "/readyz", "/load"})

_log = logging.getLogger("mlsecd.tap")


class Renderer:
    """Makes lines of exchanges.

    Parameters
    ----------
    key
        The host's secret.
    proxies
        Whose X-Forwarded-For counts.
    model
        The model where neither body nor application names one.
    keys_checked
        Whether the server refuses unknown keys, so that the key of an answered request is a verified identity.
    canaries
        Strings to look for in requests and answers.
    """

    def __init__(
        self,
        key: bytes,
        *,
        proxies: Proxies | None = None,
        model: str = "unknown",
        keys_checked: bool = False,
        canaries: list[str] | None = None,
    ) -> None:
        self.hasher = Hasher(key)
        self._sketcher = Sketcher(key)
        self._proxies = proxies or Proxies()
        self._model = model
        self._keys_checked = keys_checked
        self._canaries = Canaries(canaries or [], self.hasher)

    @classmethod
    def from_environment(cls) -> Renderer:
        """As MLSECD_KEY_FILE, MLSECD_TRUSTED_PROXIES, MLSECD_MODEL, MLSECD_KEYS_CHECKED, MLSECD_CANARY_FILE say.

        What is wrong with them is logged, and taken as not said: a tap does not keep a server from starting.
        """
        key, trouble = load_key(key_path())
        if trouble:
            _log.warning("mlsecd tap: %s", trouble)
        trusted = os.environ.get("MLSECD_TRUSTED_PROXIES", "").split(",")
        try:
            proxies = Proxies(trusted)
        except ValueError as error:
            _log.warning("mlsecd tap: MLSECD_TRUSTED_PROXIES: %s; no proxy is trusted", error)
            proxies = Proxies()
        made = cls(
            key,
            proxies=proxies,
            model=os.environ.get("MLSECD_MODEL") or "unknown",
            keys_checked=os.environ.get("MLSECD_KEYS_CHECKED", "") in ("1", "true", "yes"),
        )
        made._canaries = Canaries.from_environment(made.hasher)
        return made

    def line(self, exchange: Any, sketch: bool = True, lost: int = 0) -> bytes | None:
        """The record of one exchange; ``None`` for probes of a server's health.

        Parameters
        ----------
        exchange
            A :class:`mlsecd.taps.asgi.Exchange`.
        sketch
            Whether there is time for sketches and patterns.
        lost
            Exchanges of the same client that were given up since its last record.
        """
        path = exchange.scope.get("path", "")
        if path in _QUIET and exchange.scope.get("method") in ("GET", "HEAD"):
            return None
        body = b"".join(exchange.body)
        whole = len(body) == exchange.body_bytes
        said = asked(body) if whole and body[:1] not in (b"", b"-") else None  # "-" begins a form with files
        record = _outline(exchange)
        answer, answered = _answer(exchange)
        record |= self._who(exchange, said)
        record |= (said.fields if said else {}) | answer
        record.setdefault("model", self._model)
        if rid := _header(exchange.scope["headers"], b"x-request-id"):
            record["request_id"] = rid
        if whole and body:
            record["body_hash"] = self.hasher.opaque(body)
        if lost:
            record["lost"] = lost
        self._told(record, exchange.told, answered)
        if sketch and said is not None:
            self._sketch(record, said, body, exchange)
        record["model"] = record["model"] or self._model
        for name, value in record.items():
            if isinstance(value, str) and not value.isascii():  # half a surrogate pair would spoil the line
                record[name] = value.encode("utf-8", "replace").decode()[:_MAX_TEXT]
        return json.dumps(record, separators=(",", ":"), ensure_ascii=True).encode()

    def lane(self, exchange: Any) -> Hashable:
        """Whose record it will be, told without a hash: what is fair is fair by client, and so is what was lost."""
        shown, network = self._shown(exchange)
        if shown is None or len(shown[1]) <= _MAX_TEXT:
            return network if shown is None else shown
        return shown[0], hashlib.blake2b(shown[1], digest_size=16).digest()  # lanes outlive their requests

    def _shown(self, exchange: Any) -> tuple[tuple[str, bytes] | None, str | None]:
        """The credential, where the server did not refuse it, and the caller's address."""
        scope = exchange.scope
        headers = scope.get("headers", ())
        peer = scope["client"][0] if scope.get("client") else None
        shown = credential(headers) if exchange.status != 401 else None
        return shown, self._proxies.caller(peer, _forwarded(headers))

    def _who(self, exchange: Any, said: Asked | None) -> dict[str, Any]:
        """Who asked. A key that the server refused names nobody: guessers are gathered under their address.

        ``identity`` is left out where a key was shown and nobody says whether the server checks keys.
        """
        headers = exchange.scope["headers"]
        found: dict[str, Any] = {}
        shown, network = self._shown(exchange)
        if network:
            found["network"] = network[:_MAX_TEXT]
        if shown is not None:
            found["client"] = self.hasher.client(*shown)
            if self._keys_checked and exchange.status is not None and exchange.status < 500:
                found["identity"] = "verified"
        else:
            found["identity"] = "unverified"
            if network:
                found["client"] = self.hasher.client("peer", network)
        if agent := _header(headers, b"user-agent"):
            found["user_agent"] = self.hasher.opaque(agent)
        if said is not None and said.user:
            found["user"] = self.hasher.client("user", said.user)
        return found

    def _told(self, record: dict[str, Any], told: dict[str, Any] | None, answered: Any) -> None:
        for name, value in (told or {}).items():
            if isinstance(value, array):
                if all(map(isfinite, value)):
                    record[name] = _base64(value) if name != "scores" else [round(score, 6) for score in value]
            elif isinstance(value, str):
                record[name] = value[:_MAX_TEXT] or None
            elif -(2**63) <= value < 2**63:
                record[name] = value
        if not told and isinstance(answered, dict):
            record |= _classified(answered)

    def _sketch(self, record: dict[str, Any], said: Asked, body: bytes, exchange: Any) -> None:
        """The text is reduced here, in place; it goes no further."""
        if said.text:
            vector, record["sketch"], record["template"] = self._sketcher.sketch(said.text)
            record.setdefault("input_features", base64.b64encode(vector).decode())
        answer = b"".join([exchange.first or b"", *exchange.tail])
        flags = flags_of(said.text) + self._canaries.found(body) + self._canaries.found(answer)
        if flags:
            record["flags"] = list(dict.fromkeys(flags))


def _outline(exchange: Any) -> dict[str, Any]:
    """Times, status, and how it ended."""
    scope = exchange.scope
    record: dict[str, Any] = {
        "ts": round(exchange.ts, 6),
        "duration_s": round(max(0.0, exchange.ended - exchange.began), 6),
        "route": _route(scope),
        "status": 500 if exchange.status is None and not exchange.aborted else exchange.status,
        "aborted": not exchange.complete and (exchange.aborted or exchange.status is not None),
        "server_pid": os.getpid(),
        "source": "tap",
    }
    if exchange.first is not None:
        record["ttft_s"] = round(max(0.0, exchange.first_at - exchange.began), 6)
    return record


def _route(scope: Any) -> str:
    """The route's pattern where the framework says it, since a path may hold anything; else the path, cut."""
    pattern = getattr(scope.get("route"), "path", None)
    return (pattern if isinstance(pattern, str) else scope.get("path", ""))[:_MAX_TEXT]


def _answer(exchange: Any) -> tuple[dict[str, Any], Any]:
    """What the answer says, of which the first piece and the last ones were kept."""
    first = exchange.first or b""
    full = len(exchange.tail) < (exchange.tail.maxlen or 0) and exchange.complete
    body = b"".join([first, *exchange.tail])
    length = _header(exchange.headers, b"content-length")
    return written(body, whole=full and (not length or length == str(len(body))))


def _forwarded(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """All X-Forwarded-For headers as one list: a client may send one of its own before the proxy's."""
    return ",".join(value.decode("latin-1") for name, value in headers if name == b"x-forwarded-for")


def _header(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> str:
    """A header's text, "" where there is none."""
    found = next((value for name, value in headers if name.lower() == wanted), b"")
    return found.decode("latin-1")[:_MAX_TEXT]


def _classified(answer: dict[str, Any]) -> dict[str, Any]:
    """Class and probabilities out of a plain answer: ``{"label": 3, "probs": [...]}``."""
    found: dict[str, Any] = {}
    for name in ("label", "predicted", "prediction", "class"):
        value = answer.get(name)
        if isinstance(value, str) and value:
            found["predicted"] = value[:_MAX_TEXT]
            break
        if isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63:
            found["predicted"] = value
            break
    for name in ("scores", "probs", "probabilities"):
        value = answer.get(name)
        if isinstance(value, list) and 0 < len(value) <= 1024:
            numbers = [v for v in value if isinstance(v, int | float) and not isinstance(v, bool) and isfinite(v)]
            if len(numbers) == len(value):
                found["scores"] = numbers
                break
    return found


def _base64(values: array[float]) -> str:
    if sys.byteorder == "big":
        values = array("f", values)
        values.byteswap()
    return base64.b64encode(values.tobytes()).decode()
