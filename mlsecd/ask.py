"""Asks the daemon on this host how things stand: over TLS and with a password where ``web.yml`` wants them."""

from __future__ import annotations

import base64
import http.client
import json
import os
import ssl
from typing import Any, Final

from mlsecd.config import Config
from mlsecd.errors import ConfigError, MlsecdError, SourceError

__all__ = ["metrics", "status"]

_BYTES_MAX: Final = 4 << 20
_USER: Final = "MLSECD_WEB_USER"  # name:password; never on the command line, which every user of the host can read
_CERT: Final = "MLSECD_WEB_CERT"  # a PEM file with a client's certificate and its key
_EVERYWHERE: Final = ("", "0.0.0.0", "[::]")  # noqa: S104 - what a daemon may listen on, not what is listened on here


def status(config: Config, listen: str | None = None, seconds: float = 2.0) -> dict[str, Any]:
    """The answer of ``/api/v1/status``.

    Parameters
    ----------
    config
        Where the daemon listens, and by which ``web.yml``.
    listen
        Another ``address:port``.
    seconds
        How long it may take.

    Raises
    ------
    SourceError
        None answers there, or not with a status.
    ConfigError
        It wants a name and password, or a certificate, and none was given.
    """
    code, body, where = _get(config, "/api/v1/status", listen, seconds)
    try:
        loaded = json.loads(body)
    except ValueError as error:
        raise SourceError(f"{where} answers {code}, and no status: is that mlsecd?") from error
    if code != http.client.OK or not isinstance(loaded, dict):
        raise SourceError(f"{where} answers {code}, and no status: is that mlsecd?")
    return loaded


def metrics(config: Config, seconds: float = 2.0) -> str:
    """The answer of ``/metrics``; raises as :func:`status` does."""
    code, body, where = _get(config, "/metrics", None, seconds)
    if code != http.client.OK:
        raise SourceError(f"{where} answers {code} for /metrics")
    return body.decode("utf-8", "replace")


def _get(config: Config, path: str, listen: str | None, seconds: float) -> tuple[int, bytes, str]:
    """Code and body of an answer, and where it came from."""
    host, _, port = (listen or config.web.listen).rpartition(":")
    address = "127.0.0.1" if host in _EVERYWHERE else host.strip("[]")
    if not port.isdigit():
        raise ConfigError(f'"{listen}" is no address: write address:port, as in 127.0.0.1:9847')
    where = f"{address}:{port}"
    context = _context(config)
    connection = (
        http.client.HTTPSConnection(address, int(port), timeout=seconds, context=context)
        if context
        else http.client.HTTPConnection(address, int(port), timeout=seconds)
    )
    try:
        connection.request("GET", path, headers=_credentials())
        answer = connection.getresponse()
        body = answer.read(_BYTES_MAX)
    except (OSError, http.client.HTTPException) as error:
        raise SourceError(f"no daemon answers on {where}: {error}") from error
    finally:
        connection.close()
    if answer.status == http.client.UNAUTHORIZED:
        raise ConfigError(f"{where} wants a name and a password: set {_USER}=name:password in the environment")
    return answer.status, body, where


def _credentials() -> dict[str, str]:
    user = os.environ.get(_USER, "")
    return {"Authorization": "Basic " + base64.b64encode(user.encode()).decode()} if user else {}


def _context(config: Config) -> ssl.SSLContext | None:
    """Trusts the one certificate that ``web.yml`` names, whatever name it was made for; ``None``: in the clear."""
    if not config.web.config_file:
        return None
    from mlsecd.web.web_yml import read  # noqa: PLC0415 - most hosts have none

    tls = read(config.web.config_file).tls_server_config
    if tls is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(tls.cert_file)
        if certificate := os.environ.get(_CERT):
            context.load_cert_chain(certificate)
    except (OSError, ssl.SSLError) as error:
        raise MlsecdError(f"{tls.cert_file}, {_CERT}: cannot be used: {error}") from error
    return context
