"""Who may ask: TLS, passwords and headers from ``web.yml``, read again whenever a file of it changes."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import secrets
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from types import MappingProxyType
from typing import Final

from mlsecd.errors import ConfigError
from mlsecd.web import tls
from mlsecd.web.http import HttpError, Request
from mlsecd.web.web_yml import WebYml, read

__all__ = ["Access", "Passwords"]

_LOOK_SECONDS: Final = 1.0  # between two looks at the files
_CACHED: Final = 100
_BURST: Final = 5.0  # passwords that may be tried at once
_PER_SECOND: Final = 1.0
_NOBODY: Final = "$2b$10$xfz7zCiiVMbDQm8vWYJYZO25lQzadZo7tzqQQiSpXH1g2NzyOA1zO"  # takes as long as somebody
_Stamp = tuple[tuple[int, ...], ...]
_REALM: Final = MappingProxyType({"WWW-Authenticate": 'Basic realm="mlsecd", charset="UTF-8"'})
_LATER: Final = MappingProxyType({"Retry-After": "2"})


class Passwords:
    """Checks basic authentication against bcrypt hashes.

    A hash costs some 70 ms of a core by design, so what was right is remembered (hashed, with a key of this process),
    and what is not remembered is checked one at a time and at a limited rate: guessing must neither cost a core
    nor keep out who has been let in before.
    """

    def __init__(self, users: Mapping[str, str], clock: Callable[[], float] = time.monotonic) -> None:
        self._users = dict(users)
        self._key = secrets.token_bytes(32)
        self._right: dict[bytes, None] = {}
        self._lock = threading.Lock()
        self._clock = clock
        self._tokens, self._at = _BURST, clock()

    def check(self, request: Request) -> None:
        """Raise :class:`~mlsecd.web.http.HttpError` unless the request carries a right name and password."""
        given = _given(request.headers.get("authorization", ""))
        if given is None:
            raise HttpError(HTTPStatus.UNAUTHORIZED, "a name and a password are needed here", _REALM)
        user, password = given
        mark = hashlib.blake2b(b"\0".join((user.encode(), password)), key=self._key, digest_size=32).digest()
        if mark in self._right:
            return
        with self._lock:
            self._take_turn()
            right = _matches(password, self._users.get(user, _NOBODY)) and user in self._users
            if right:
                while len(self._right) >= _CACHED:
                    del self._right[next(iter(self._right))]
                self._right[mark] = None
        if not right:
            raise HttpError(HTTPStatus.UNAUTHORIZED, "no such name and password", _REALM)

    def _take_turn(self) -> None:
        now = self._clock()
        self._tokens, self._at = min(_BURST, self._tokens + (now - self._at) * _PER_SECOND), now
        if self._tokens < 1.0:
            raise HttpError(HTTPStatus.TOO_MANY_REQUESTS, "too many passwords were tried: later", _LATER)
        self._tokens -= 1.0


def _given(header: str) -> tuple[str, bytes] | None:
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
        return (user.decode(), password) if colon else None
    except (binascii.Error, ValueError):
        return None


def _matches(password: bytes, hashed: str) -> bool:
    import bcrypt  # noqa: PLC0415 - only where there are users

    if len(password) > 72 or b"\0" in password:
        return False  # bcrypt would not look at the rest
    return bool(bcrypt.checkpw(password, hashed.encode()))


@dataclass(frozen=True)
class _Kept:
    """One reading of the files."""

    yml: WebYml
    context: ssl.SSLContext | None
    passwords: Passwords | None
    stamp: _Stamp


class Access:
    """What ``web.yml`` asks for; without a file, anybody may ask anything in the clear.

    Parameters
    ----------
    path
        The file, or an empty string.
    on_error
        Told once when a changed file cannot be used; what was read before it stays in force.

    Raises
    ------
    ConfigError
        The file cannot be used at the start.
    """

    def __init__(self, path: str = "", on_error: Callable[[str], None] = lambda _why: None) -> None:
        self._path = path
        self._on_error = on_error
        self._lock = threading.Lock()
        self._look_at = 0.0
        self._refused: _Stamp | None = None
        self._kept = self._read() if path else _Kept(WebYml(), None, None, ())

    @property
    def scheme(self) -> str:
        """``http`` or ``https``."""
        return "https" if self._kept.context else "http"

    @property
    def authenticates(self) -> bool:
        """Whether nobody gets an answer without a password or a certificate."""
        return self._kept.yml.authenticates

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers for every answer."""
        return self._kept.yml.http_server_config.headers

    def look(self) -> tuple[ssl.SSLContext | None, list[str]]:
        """The TLS context for a new connection, and the names that its certificate may carry."""
        if self._path and time.monotonic() >= self._look_at:
            with self._lock:
                self._look()
        kept = self._kept
        sans = kept.yml.tls_server_config.client_allowed_sans if kept.yml.tls_server_config else []
        return kept.context, sans

    def check(self, request: Request) -> None:
        """Raise :class:`~mlsecd.web.http.HttpError` where the request may not be answered."""
        passwords = self._kept.passwords
        if passwords is not None:
            passwords.check(request)

    def _look(self) -> None:
        self._look_at = time.monotonic() + _LOOK_SECONDS
        stamp = _stamp(self._path, self._kept.yml)
        if stamp in {self._kept.stamp, self._refused}:
            return
        try:
            self._kept = self._read()
            self._refused = None
        except ConfigError as error:
            self._refused = stamp
            self._on_error(str(error))

    def _read(self) -> _Kept:
        yml = read(self._path)
        stamp = _stamp(self._path, yml)
        if yml.basic_auth_users:
            _need_bcrypt()
        server = tls.context(yml.tls_server_config) if yml.tls_server_config else None
        return _Kept(yml, server, Passwords(yml.basic_auth_users) if yml.basic_auth_users else None, stamp)


def _need_bcrypt() -> None:
    try:
        import bcrypt  # noqa: F401, PLC0415
    except ImportError as error:
        raise ConfigError("basic_auth_users needs bcrypt: pip install 'mlsecd[web]'") from error


def _stamp(path: str, yml: WebYml) -> _Stamp:
    """What changes when any file does."""
    part = yml.tls_server_config
    names = (path, part.cert_file, part.key_file, part.client_ca_file) if part else (path,)
    stamps: list[tuple[int, ...]] = []
    for name in filter(None, names):
        try:
            found = os.stat(name)  # noqa: PTH116 - a string, once a second
            stamps.append((found.st_mtime_ns, found.st_size, found.st_ino))
        except OSError:
            stamps.append(())
    return tuple(stamps)
