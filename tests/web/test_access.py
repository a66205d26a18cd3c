"""TLS, client certificates and passwords: real handshakes, real hashes, certificates made by openssl."""

from __future__ import annotations

import base64
import contextlib
import http.client
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import bcrypt
import pytest
import yaml
from daemons import until

from mlsecd import config
from mlsecd.ask import status as ask_status
from mlsecd.errors import ConfigError, SourceError
from mlsecd.meters import Meters
from mlsecd.web import access, web_yml
from mlsecd.web.access import Access, Passwords
from mlsecd.web.http import HttpError, Request, Response, Route, text
from mlsecd.web.server import WebServer

EXAMPLE = Path(__file__).resolve().parents[2] / "config" / "web.yml"
HASH = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
TLS: dict[str, Any] = {"cert_file": "server.crt", "key_file": "server.key"}
CLIENTS = {"client_auth_type": "RequireAndVerifyClientCert", "client_ca_file": "ca.crt"}


def openssl(directory: Path, *args: str) -> None:
    subprocess.run(["openssl", *args], cwd=directory, check=True, capture_output=True)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """server.*: for localhost; client.* and other.*: signed by ca.crt; old.*: expired."""
    directory = tmp_path_factory.mktemp("certificates")
    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    for name, extra in (("ca", ()), ("server", ("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"))):
        openssl(directory, *new, "-keyout", f"{name}.key", "-out", f"{name}.crt", "-subj", f"/CN={name}", *extra)
    for name in ("client", "other"):
        extra = ("-CA", "ca.crt", "-CAkey", "ca.key", "-addext", f"subjectAltName=DNS:{name}.my.org")
        openssl(directory, *new, "-keyout", f"{name}.key", "-out", f"{name}.crt", "-subj", f"/CN={name}", *extra)
    openssl(directory, "req", "-new", "-key", "server.key", "-subj", "/CN=old", "-out", "old.csr")
    dates = ("-not_before", "20200101000000Z", "-not_after", "20200201000000Z")
    try:
        openssl(directory, "x509", "-req", "-in", "old.csr", "-key", "server.key", "-out", "old.crt", *dates)
    except subprocess.CalledProcessError:  # openssl before 3.4 signs for a number of days, which may be negative
        openssl(directory, "x509", "-req", "-in", "old.csr", "-key", "server.key", "-out", "old.crt", "-days", "-1")
    return directory


@pytest.fixture
def write(tmp_path: Path, certificates: Path) -> Callable[..., Path]:
    """Writes web.yml beside copies of the certificates."""
    for file in certificates.iterdir():
        shutil.copy(file, tmp_path)

    def make(**parts: Any) -> Path:
        path = tmp_path / "web.yml"
        path.write_text(yaml.safe_dump(parts))
        return path

    return make


@contextlib.contextmanager
def serving(path: Path | str, errors: list[str] | None = None) -> Iterator[WebServer]:
    routes = {"/": Route(lambda _request: text(HTTPStatus.OK, "hello"))}
    made = Access(str(path), (errors if errors is not None else []).append)
    server = WebServer("127.0.0.1:0", routes, Meters(), access=made)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def trusting(directory: Path, client: str = "") -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(directory / "server.crt"))
    if client:
        context.load_cert_chain(directory / f"{client}.crt", directory / f"{client}.key")
    return context


def ask(server: WebServer, context: ssl.SSLContext | None = None, user: str = "") -> tuple[int, dict[str, str]]:
    plain, secure = http.client.HTTPConnection, http.client.HTTPSConnection
    connection = (
        secure("127.0.0.1", server.port, timeout=10, context=context) if context else plain("127.0.0.1", server.port)
    )
    headers = {"Authorization": "Basic " + base64.b64encode(user.encode()).decode()} if user else {}
    with contextlib.closing(connection):
        connection.request("GET", "/", headers=headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders())


def test_over_tls_with_headers(write: Callable[..., Path], tmp_path: Path) -> None:
    headers = {"Strict-Transport-Security": "max-age=60"}
    with serving(write(tls_server_config=TLS, http_server_config={"headers": headers})) as server:
        assert server.url.startswith("https://127.0.0.1:")
        status, got = ask(server, trusting(tmp_path))
        assert (status, got["Strict-Transport-Security"]) == (200, "max-age=60")
        with pytest.raises((OSError, http.client.HTTPException)):
            ask(server)  # in the clear
        old = trusting(tmp_path)
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        assert ask(server, old)[0] == 200
        until(lambda: server._meters.value("mlsecd_dropped_total", where="web", reason="tls_handshake") == 1)


def test_a_client_that_never_shakes_hands_is_let_go(write: Callable[..., Path], tmp_path: Path) -> None:
    import socket  # noqa: PLC0415

    with serving(write(tls_server_config=TLS)) as server:
        server._limits = type(server._limits)(recv_seconds=0.3)
        with socket.create_connection(("127.0.0.1", server.port)) as silent:
            silent.settimeout(20)
            assert silent.recv(1) == b""
        assert ask(server, trusting(tmp_path))[0] == 200


def test_only_certificates_of_the_authority_and_the_right_name(write: Callable[..., Path], tmp_path: Path) -> None:
    parts = {**TLS, **CLIENTS, "client_allowed_sans": ["client.my.org"]}
    with serving(write(tls_server_config=parts)) as server:
        assert ask(server, trusting(tmp_path, "client"))[0] == 200
        for stranger in ("", "server", "other"):
            with pytest.raises((OSError, http.client.HTTPException)):
                ask(server, trusting(tmp_path, stranger))
        assert Access(str(tmp_path / "web.yml")).authenticates


def test_passwords_guard_every_path(write: Callable[..., Path]) -> None:
    with serving(write(basic_auth_users={"prometheus": HASH})) as server:
        status, headers = ask(server)
        assert (status, headers["WWW-Authenticate"][:5]) == (401, "Basic")
        assert ask(server, user="prometheus:secret")[0] == 200
        assert ask(server, user="prometheus:wrong")[0] == 401
        assert ask(server, user="somebody:secret")[0] == 401
        for method, path in (("POST", "/-/reload"), ("GET", "/metrics"), ("GET", "/none")):
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)) as connection:
                connection.request(method, path)
                assert connection.getresponse().status == 401


def request(user: str) -> Request:
    return Request("GET", "/", "", (1, 1), {"authorization": "Basic " + base64.b64encode(user.encode()).decode()})


def refused(passwords: Passwords, user: str) -> int:
    with pytest.raises(HttpError) as caught:
        passwords.check(request(user))
    return caught.value.status.value


def test_a_right_password_is_hashed_once_and_guessing_does_not_keep_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now, hashed = [0.0], []
    matches = access._matches
    monkeypatch.setattr(access, "_matches", lambda *pair: hashed.append(pair) or matches(*pair))
    passwords = Passwords({"u": HASH}, clock=lambda: now[0])
    for _ in range(50):
        passwords.check(request("u:secret"))
    assert len(hashed) == 1
    assert [refused(passwords, f"u:guess{i}") for i in range(6)] == [401, 401, 401, 401, 429, 429]
    assert len(hashed) == 5  # a refused turn costs nothing
    passwords.check(request("u:secret"))
    now[0] += 2.5
    assert [refused(passwords, "nobody:x"), refused(passwords, "u:y"), refused(passwords, "u:z")] == [401, 401, 429]
    assert len(hashed) == 7  # nobody takes as long as somebody


@pytest.mark.parametrize("header", ["", "Bearer x", "Basic", "Basic ###", "Basic bm9jb2xvbg==", "Basic /w=="])
def test_malformed_credentials_are_none(header: str) -> None:
    with pytest.raises(HttpError) as caught:
        Passwords({"u": HASH}).check(Request("GET", "/", "", (1, 1), {"authorization": header}))
    assert caught.value.status is HTTPStatus.UNAUTHORIZED


@pytest.mark.parametrize("password", ["s" * 73, "secret\0"])
def test_what_bcrypt_would_cut_is_wrong(password: str) -> None:
    hashed = bcrypt.hashpw(b"s" * 72, bcrypt.gensalt(4)).decode()
    assert refused(Passwords({"u": hashed}), f"u:{password}") == 401


def test_a_changed_file_is_taken_up_and_a_wrong_one_is_not(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "_LOOK_SECONDS", 0.0)
    errors: list[str] = []
    with serving(write(basic_auth_users={"a": HASH}), errors) as server:
        assert ask(server, user="a:secret")[0] == 200
        write(basic_auth_users={"b": HASH})
        assert ask(server, user="a:secret")[0] == 401
        assert ask(server, user="b:secret")[0] == 200
        write(basic_auth_users={"b": "plain"})
        assert [ask(server, user="b:secret")[0] for _ in range(3)] == [200, 200, 200]
        assert len(errors) == 1
        assert "not a bcrypt hash" in errors[0]


def test_top_and_doctor_ask_over_tls_with_a_password(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tls_server_config={**TLS, **CLIENTS}, basic_auth_users={"me": HASH})
    status = Route(lambda _request: Response(HTTPStatus.OK, "application/json", b'{"now": 1}'))
    server = WebServer("127.0.0.1:0", {"/api/v1/status": status}, Meters(), access=Access(str(path)))
    server.start()
    loaded = config.parse(f'[web]\nlisten = "127.0.0.1:{server.port}"\nconfig_file = "{path}"\n')
    try:
        with pytest.raises(SourceError, match="no daemon answers"):
            ask_status(loaded)  # no certificate
        (tmp_path / "both.pem").write_bytes(
            b"".join((tmp_path / f"client.{part}").read_bytes() for part in ("crt", "key"))
        )
        monkeypatch.setenv("MLSECD_WEB_CERT", str(tmp_path / "both.pem"))
        with pytest.raises(ConfigError, match="MLSECD_WEB_USER"):
            ask_status(loaded)
        monkeypatch.setenv("MLSECD_WEB_USER", "me:secret")
        assert ask_status(loaded) == {"now": 1}
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"tls_server_config": {"cert_file": "none.crt", "key_file": "server.key"}}, "No such file"),
        ({"tls_server_config": {"cert_file": "server.crt", "key_file": "client.key"}}, "no certificate with its key"),
        ({"tls_server_config": {"cert_file": "old.crt", "key_file": "server.key"}}, "expired: renew it"),
        ({"tls_server_config": {"cert_file": "server.crt"}}, "key_file"),
        ({"tls_server_config": {**TLS, "client_auth_type": "RequireAnyClientCert"}}, "on trust"),
        ({"tls_server_config": {**TLS, "client_auth_type": "Maybe"}}, "one of NoClientCert"),
        ({"tls_server_config": {**TLS, "client_ca_file": "ca.crt"}}, "go together"),
        ({"tls_server_config": {**TLS, **CLIENTS, "client_ca_file": "server.key"}}, "no certificate (PEM)"),
        ({"tls_server_config": {**TLS, "client_allowed_sans": ["x"]}}, "nobody's certificate"),
        ({"tls_server_config": {**TLS, "min_version": "TLS10"}}, "TLS12 or TLS13"),
        ({"tls_server_config": {**TLS, "cipher_suites": []}}, "unknown field"),
        ({"http_server_config": {"headers": {"X-Mine": "1"}}}, "cannot be set"),
        ({"http_server_config": {"headers": {"X-Frame-Options": "a\r\nb"}}}, "no header may"),
        ({"basic_auth_users": {"a": "secret"}}, "htpasswd"),
        ({"basic_auth_users": {"a:b": HASH}}, "no colon"),
        ({"rate_limit": {"interval": "1s"}}, "unknown field"),
    ],
)
def test_what_cannot_be_kept_is_refused_in_one_line(
    write: Callable[..., Path], parts: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Access(str(write(**parts)))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text_", "words"),
    [("a: [", "web.yml:1: not valid YAML"), ("[]", "Expected `object`"), ("#" * 300_000, "longer than")],
)
def test_what_is_no_configuration_is_refused_in_one_line(tmp_path: Path, text_: str, words: str) -> None:
    path = tmp_path / "web.yml"
    path.write_text(text_)
    with pytest.raises(ConfigError, match=words.replace("[", r"\[")) as caught:
        web_yml.read(str(path))
    assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        web_yml.read(str(path))


def test_an_empty_file_asks_for_nothing(write: Callable[..., Path]) -> None:
    path = write()
    path.write_text("")
    assert not Access(str(path)).authenticates
    assert Access(str(path)).scheme == "http"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_key_that_may_not_be_read_says_so(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write(tls_server_config=TLS)
    (tmp_path / "server.key").chmod(0)
    with pytest.raises(ConfigError, match="let the user that mlsecd runs as read it"):
        Access(str(path))


def test_check_config_and_run_refuse_it_with_exit_code_2(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write(tls_server_config={**TLS, "cert_file": "old.crt"})
    file = tmp_path / "mlsecd.toml"
    file.write_text(
        f'[daemon]\nstate_dir = "{tmp_path}"\nbaseline = ""\n[web]\nlisten = "127.0.0.1:0"\nconfig_file = "{path}"\n'
        f'[sinks.forensic_log]\ndirectory = "{tmp_path}/log"\n'
    )
    for command in ("check-config", "run"):
        done = subprocess.run(
            [sys.executable, "-m", "mlsecd", command, "--config", str(file)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 2, done.stderr
        assert [line for line in done.stderr.splitlines() if "renew it" in line] == [done.stderr.splitlines()[-1]]


def test_the_example_is_what_promtool_and_we_accept(certificates: Path, tmp_path: Path, in_ci: bool) -> None:
    shutil.copy(EXAMPLE, tmp_path / "web.yml")
    shutil.copy(certificates / "server.crt", tmp_path / "mlsecd.crt")
    shutil.copy(certificates / "server.key", tmp_path / "mlsecd.key")
    made = Access(str(tmp_path / "web.yml"))
    assert (made.scheme, made.authenticates) == ("https", True)
    made.check(request("prometheus:change me"))
    if shutil.which("promtool") is None:
        assert not in_ci, "promtool is not installed"
        pytest.skip("promtool is not installed")
    done = subprocess.run(
        ["promtool", "check", "web-config", str(tmp_path / "web.yml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
