"""``web.yml``: TLS, client certificates, users and headers, in the format of Prometheus' exporter-toolkit.

What the toolkit knows and this server cannot keep is refused with a reason, never ignored: a lock that is not there
must not look like one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from mlsecd.errors import ConfigError

__all__ = ["TlsServer", "WebYml", "read"]

_BYTES_MAX: Final = 262_144
_BCRYPT: Final = re.compile(r"\$2[aby]\$(0[4-9]|1[0-9])\$[./A-Za-z0-9]{53}")
_VERSIONS: Final = ("TLS12", "TLS13")
_CLIENT_AUTH: Final = ("", "NoClientCert", "VerifyClientCertIfGiven", "RequireAndVerifyClientCert")
_HEADERS: Final = (
    "Strict-Transport-Security",
    "X-Content-Type-Options",
    "X-Frame-Options",
    "X-XSS-Protection",
    "Content-Security-Policy",
)

Path_ = Annotated[str, Meta(max_length=4_096)]


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the file."""


class TlsServer(_Part, frozen=True, kw_only=True):
    """``tls_server_config``. Paths are made absolute, from the file's own directory."""

    cert_file: Path_
    key_file: Path_
    client_auth_type: str = ""
    client_ca_file: Path_ = ""
    client_allowed_sans: list[str] = []
    min_version: str = "TLS12"
    max_version: str = "TLS13"


class _HttpServer(_Part, frozen=True, kw_only=True):
    """``http_server_config``. ``http2`` is read and means nothing: HTTP/1.1 is spoken here."""

    http2: bool = True
    headers: dict[str, str] = {}


class WebYml(_Part, frozen=True, kw_only=True):
    """The whole file."""

    tls_server_config: TlsServer | None = None
    http_server_config: _HttpServer = _HttpServer()
    basic_auth_users: dict[str, str] = {}

    @property
    def authenticates(self) -> bool:
        """Whether nobody gets an answer without a password or a certificate."""
        tls = self.tls_server_config
        return bool(self.basic_auth_users) or (tls is not None and tls.client_auth_type == "RequireAndVerifyClientCert")


def read(path: str) -> WebYml:
    """Read and check a file.

    Raises
    ------
    ConfigError
        It cannot be read or kept: one line that says what and what to write instead.
    """
    document = _load(path)
    try:
        made = msgspec.convert({} if document is None else document, WebYml)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from error
    for problem in _problems(made):
        raise ConfigError(f"{path}: {problem}")
    tls = made.tls_server_config
    if tls is None:
        return made
    here = Path(path).resolve().parent
    absolute = {
        name: str(here / value) for name in ("cert_file", "key_file", "client_ca_file") if (value := getattr(tls, name))
    }
    return msgspec.structs.replace(made, tls_server_config=msgspec.structs.replace(tls, **absolute))


def _load(path: str) -> Any:
    try:
        import yaml  # noqa: PLC0415 - most daemons have no web.yml
    except ImportError as error:
        raise ConfigError("web.config_file needs PyYAML and bcrypt: pip install 'mlsecd[web]'") from error
    try:
        with Path(path).open("rb") as file:
            text = file.read(_BYTES_MAX + 1)
        if len(text) > _BYTES_MAX:
            raise ConfigError(f"{path}: longer than {_BYTES_MAX} bytes: that is no web configuration")
        return yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"web.config_file: {path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark is not None else path
        raise ConfigError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from error


def _problems(made: WebYml) -> Iterator[str]:
    """What cannot be kept, the worst first."""
    if made.tls_server_config is not None:
        for problem in _tls_problems(made.tls_server_config):
            yield f"tls_server_config: {problem}"
    for name, value in made.http_server_config.headers.items():
        if name not in _HEADERS:
            yield f"http_server_config: header {name!r} cannot be set: known are {', '.join(_HEADERS)}"
        if not value.isprintable() or not value.isascii():
            yield f"http_server_config: header {name!r}: its value holds what no header may"
    for user, hashed in made.basic_auth_users.items():
        if not user or ":" in user:
            yield f"basic_auth_users: {user!r}: a name is not empty and holds no colon"
        if not _BCRYPT.fullmatch(hashed):
            yield f"basic_auth_users: {user}: not a bcrypt hash: make one with `htpasswd -nBC 10 {user}`"


def _tls_problems(tls: TlsServer) -> Iterator[str]:
    if not tls.cert_file or not tls.key_file:
        yield "cert_file and key_file are needed"
    if tls.min_version not in _VERSIONS or tls.max_version not in _VERSIONS or tls.min_version > tls.max_version:
        yield "min_version and max_version: TLS12 or TLS13, the first not above the second"
    if tls.client_auth_type in {"RequestClientCert", "RequireAnyClientCert"}:
        yield f"client_auth_type: {tls.client_auth_type} takes a certificate on trust: use RequireAndVerifyClientCert"
    if tls.client_auth_type not in _CLIENT_AUTH:
        yield f"client_auth_type: {tls.client_auth_type!r}: one of {', '.join(_CLIENT_AUTH[1:])}"
    verifies = tls.client_auth_type in _CLIENT_AUTH[2:]
    if verifies != bool(tls.client_ca_file):
        yield "client_auth_type and client_ca_file go together: who signs the certificates that are verified?"
    if tls.client_allowed_sans and not verifies:
        yield "client_allowed_sans: nobody's certificate is verified: set client_auth_type"
