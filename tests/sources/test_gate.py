"""Receivers behind web.yml: who is let in from elsewhere, who is not, and what is refused at the start."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import shutil
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bcrypt
import certificates
import pytest
import yaml
from daemons import until

from mlsecd import app, cli, config
from mlsecd.errors import ConfigError
from mlsecd.meters import Meters
from mlsecd.sources.posted import PostedSource

TLS = {"cert_file": "mlsecd.crt", "key_file": "mlsecd.key"}
CLIENTS = {"client_auth_type": "RequireAndVerifyClientCert", "client_ca_file": "monitoring-ca.crt"}
USERS = {"gateway": bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()}
CALL = {"startTime": 1.7e9, "endTime": 1.7e9 + 1, "model": "x", "metadata": {"user_api_key_hash": "ab" * 32}}

Load = Callable[..., config.Config]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("certificates")
    certificates.make(directory)
    return directory


@pytest.fixture
def load(tmp_path: Path, made: Path) -> Load:
    """A configuration with the receiver behind a web.yml of these parts."""
    for file in made.iterdir():
        shutil.copy(file, tmp_path)

    def write(*, listen: str = "127.0.0.1:0", more: str = "", **parts: Any) -> config.Config:
        (tmp_path / "web.yml").write_text(yaml.safe_dump(parts))
        text = f'[sources.litellm]\nenabled = true\nlisten = "{listen}"\nconfig_file = "{tmp_path}/web.yml"\n{more}'
        (tmp_path / "mlsecd.toml").write_text(text)
        return config.parse(text)

    return write


@contextlib.contextmanager
def listening(loaded: config.Config) -> Iterator[PostedSource]:
    (source,) = [one for one in app.make_sources(loaded, Meters()) if isinstance(one, PostedSource)]
    source.poll(time.monotonic() + 5)
    try:
        yield source
    finally:
        source.close()


def post(source: PostedSource, context: ssl.SSLContext | None, user: str = "") -> tuple[int, str]:
    where = "127.0.0.1", source.address[1]
    connection = (
        http.client.HTTPSConnection(*where, timeout=10, context=context)
        if context
        else http.client.HTTPConnection(*where, timeout=10)
    )
    headers = {"Content-Type": "application/json"}
    if user:
        headers["Authorization"] = "Basic " + base64.b64encode(user.encode()).decode()
    with contextlib.closing(connection):
        connection.request("POST", min(source.paths), json.dumps([CALL]), headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.getheader("WWW-Authenticate", "")


def trusting(directory: Path, client: str = "") -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(directory / "mlsecd.crt"))
    if client:
        context.load_cert_chain(directory / f"{client}.crt", directory / f"{client}.key")
    return context


def came(source: PostedSource) -> int:
    return sum(len(one) for one in source.poll(time.monotonic() + 5).records)  # type: ignore[arg-type]


def test_a_password_over_tls_lets_records_in_and_nothing_else_does(load: Load, tmp_path: Path) -> None:
    with listening(load(listen="0.0.0.0:0", tls_server_config=TLS, basic_auth_users=USERS)) as source:
        assert post(source, trusting(tmp_path), "gateway:secret")[0] == 200
        assert came(source) == 1
        status, scheme = post(source, trusting(tmp_path), "gateway:wrong")
        assert (status, scheme.partition(" ")[0]) == (401, "Basic")
        assert post(source, trusting(tmp_path))[0] == 401
        with pytest.raises((OSError, http.client.HTTPException)):
            post(source, None, "gateway:secret")
        assert came(source) == 0
        assert source.meters.value("mlsecd_dropped_total", where="litellm", reason="http_401") == 2
        until(lambda: source.meters.value("mlsecd_dropped_total", where="litellm", reason="tls") == 1)


def test_only_certificates_of_the_authority(load: Load, tmp_path: Path) -> None:
    with listening(load(tls_server_config=TLS | CLIENTS)) as source:
        assert post(source, trusting(tmp_path, "prometheus"))[0] == 200
        for client in ("", "stranger"):
            with pytest.raises((OSError, http.client.HTTPException)):
                post(source, trusting(tmp_path, client))
        assert came(source) == 1


def test_places_are_given_back_however_the_handshake_ends(load: Load, tmp_path: Path) -> None:
    more = "max_connections = 2\ntimeout_seconds = 1\n"
    with listening(load(tls_server_config=TLS, basic_auth_users=USERS, more=more)) as source:
        for _ in range(6):
            with pytest.raises((OSError, http.client.HTTPException)):
                post(source, None)
        assert post(source, trusting(tmp_path), "gateway:secret")[0] == 200
    assert source._receiver is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tls_server_config": TLS}, "asks nobody for a password or a certificate"),
        ({"basic_auth_users": USERS, "listen": "0.0.0.0:0"}, "in the clear"),
        ({"basic_auth_users": USERS, "listen": "/run/mlsecd/x"}, "guarded by its mode and group"),
        ({"basic_auth_users": USERS, "more": 'token_file = "/x"\n'}, "take one of the two away"),
        ({"basic_auth_users": {"a": "plain"}}, "web.yml"),
    ],
)
def test_what_would_let_anybody_in_is_refused_at_the_start(
    load: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        app.make_sources(load(**settings), Meters())
    assert cli.main(["check-config", "--config", str(tmp_path / "mlsecd.toml")]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1


def test_a_receiver_that_is_off_asks_for_nothing(load: Load) -> None:
    loaded = config.parse('[sources.litellm]\nenabled = false\nlisten = "0.0.0.0:1"\nconfig_file = "/nonexistent"\n')
    assert not [one for one in app.make_sources(loaded, Meters()) if isinstance(one, PostedSource)]
