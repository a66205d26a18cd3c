"""TLS for the web server: a context from ``web.yml``, checked by using it once."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from typing import Final

from mlsecd.errors import ConfigError
from mlsecd.web.web_yml import TlsServer

__all__ = ["allowed", "context", "wrap"]

_VERSIONS: Final = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_CLIENT: Final = {
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}
_WHY: Final = {9: "not valid yet: is the clock right?", 10: "expired: renew it"}


def context(tls: TlsServer) -> ssl.SSLContext:
    """The server's side.

    Raises
    ------
    ConfigError
        A file cannot be read, does not hold what it should, or the certificate is expired or not valid yet.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version, made.maximum_version = _VERSIONS[tls.min_version], _VERSIONS[tls.max_version]
    for path in filter(None, (tls.cert_file, tls.key_file, tls.client_ca_file)):
        _readable(path)
    try:
        made.load_cert_chain(tls.cert_file, tls.key_file, password=lambda: b"")
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"{tls.cert_file}, {tls.key_file}: no certificate with its key (PEM): {_said(error)}"
        ) from error
    _try(made, tls.cert_file)
    if tls.client_ca_file:
        made.verify_mode = _CLIENT[tls.client_auth_type]
        try:
            made.load_verify_locations(tls.client_ca_file)
        except ssl.SSLError as error:
            raise ConfigError(f"{tls.client_ca_file}: no certificate (PEM): {_said(error)}") from error
    return made


def _readable(path: str) -> None:
    try:
        with open(path, "rb"):  # noqa: PTH123 - only whether it opens
            pass
    except OSError as error:
        hint = "let the user that mlsecd runs as read it" if isinstance(error, PermissionError) else "check the path"
        raise ConfigError(f"{path}: cannot be read: {error.strerror}: {hint}") from error


def _said(error: Exception) -> str:
    return getattr(error, "reason", None) or str(error)


def _try(server: ssl.SSLContext, cert_file: str) -> None:
    """One handshake in memory with a client that trusts just this certificate: it refuses one that is out of date."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(cert_file)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True)]
    for _ in range(8):
        for side in sides:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError as error:
                raise ConfigError(f"{cert_file}: {_WHY.get(error.verify_code, error.verify_message)}") from error
            except ssl.SSLError as error:
                raise ConfigError(f"{cert_file}: no handshake comes about with it: {_said(error)}") from error


def wrap(sock: socket.socket, server: ssl.SSLContext, seconds: float) -> ssl.SSLSocket:
    """The connection behind TLS; ``OSError`` (which ``ssl.SSLError`` is) where no handshake came about in time."""
    sock.settimeout(seconds)
    wrapped = server.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
    try:
        wrapped.do_handshake()
    except OSError:
        wrapped.close()
        raise
    return wrapped


def allowed(wrapped: ssl.SSLSocket, sans: Sequence[str]) -> bool:
    """Whether the client's certificate, where it gave one, carries one of these names."""
    certificate = wrapped.getpeercert()
    if not sans or not certificate:
        return True
    names = certificate.get("subjectAltName", ())
    return any(str(name[1]) in sans for name in names if name[0] in {"DNS", "IP Address", "email", "URI"})
