"""Receivers behind ``web.yml``: TLS, client certificates and passwords for whoever posts records from elsewhere."""

from __future__ import annotations

import socket
from collections.abc import Callable

from mlsecd.config import Config
from mlsecd.errors import ConfigError
from mlsecd.sources.http_exchange import Refused
from mlsecd.sources.http_receiver import ReceiverParams, on_loopback
from mlsecd.web import tls
from mlsecd.web.access import Access
from mlsecd.web.http import HttpError, Request

__all__ = ["WebGate", "check", "gate_of"]


class WebGate:
    """One ``web.yml``, taken up anew whenever a file of it changes.

    Raises
    ------
    ConfigError
        It cannot be used, or lets in whoever comes.
    """

    def __init__(self, path: str, where: str, on_error: Callable[[str], None], *, clear: bool) -> None:
        self._access = Access(path, on_error)
        if not self._access.authenticates:
            raise ConfigError(
                f"{where}: {path} asks nobody for a password or a certificate: anybody could post records"
            )
        if self._access.scheme != "https" and not clear:
            raise ConfigError(
                f"{where}: {path} has no tls_server_config: passwords would cross the network in the clear"
            )

    def wrap(self, connection: socket.socket, seconds: float) -> socket.socket:
        """The connection as ``web.yml`` wants it; ``OSError`` where it does not come about."""
        context, sans = self._access.look()
        if context is None:
            return connection
        wrapped = tls.wrap(connection, context, seconds)
        if not tls.allowed(wrapped, sans):
            wrapped.close()
            raise ConnectionError
        return wrapped

    def check(self, authorization: str) -> None:
        """Raise :class:`~mlsecd.sources.http_exchange.Refused` unless the header holds a right name and password."""
        try:
            self._access.check(Request("POST", "/", "", (1, 1), {"authorization": authorization}))
        except HttpError as error:
            raise Refused(int(error.status), str(error)) from error


def gate_of(name: str, params: object, on_error: Callable[[str], None] = lambda _why: None) -> WebGate | None:
    """The gate of one source; ``None`` where it is no receiver, is off, or asks for none.

    Raises :class:`~mlsecd.errors.ConfigError`.
    """
    if not isinstance(params, ReceiverParams) or not params.enabled or not params.config_file:
        return None
    where = f"sources.{name}.config_file"
    if params.listen.startswith("/"):
        raise ConfigError(f"{where}: a Unix socket is guarded by its mode and group; take one of the two away")
    if params.token_file:
        raise ConfigError(f"{where}: token_file is for a port without it; take one of the two away")
    return WebGate(params.config_file, where, on_error, clear=on_loopback(params.listen))


def check(config: Config) -> None:
    """Raise :class:`~mlsecd.errors.ConfigError` where a gate cannot be made."""
    for name, params in config.sources.items():
        gate_of(name, params)
