"""A real Prometheus scrapes over TLS, with certificate and password: the shipped web.yml and job, as they are."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import certificates
import pytest
from daemons import Daemon, until
from monitoring import CONFIG, Monitoring, get

pytestmark = [pytest.mark.needs("prometheus, prometheus-alertmanager, openssl"), pytest.mark.timeout(300)]

ASKED = ("client_auth_type", "client_ca_file", "client_allowed_sans")
SCRAPE = ("scheme:", "tls_config:", "basic_auth:")


def uncommented(text: str, keys: tuple[str, ...]) -> str:
    """The example with these keys in force."""
    lines = text.splitlines()
    bare = [line.replace("# ", "", 1) if line.lstrip(" #").startswith(keys) else line for line in lines]
    assert sum(a != b for a, b in zip(lines, bare, strict=True)) == len(keys)
    return "\n".join(bare) + "\n"


def test_prometheus_scrapes_with_certificate_and_password_and_not_without(
    tmp_path: Path, daemon: Callable[..., Daemon], monitoring: Monitoring
) -> None:
    certificates.make(tmp_path)
    (tmp_path / "web.yml").write_text(uncommented((CONFIG / "web.yml").read_text(), ASKED))
    one = daemon(None, f'config_file = "{tmp_path}/web.yml"\n').start()
    example = (CONFIG / "prometheus" / "prometheus.yml").read_text()
    password = tmp_path / "mlsecd.password"
    password.write_text("change me")
    job = uncommented(example, SCRAPE).splitlines()[-len(SCRAPE) :]
    monitoring.start(one.port, more="\n".join(job) + "\n")  # returns once the scrape worked
    until(lambda: monitoring.query("mlsecd_build_info"))
    (target,) = get(f"http://127.0.0.1:{monitoring.prometheus}/api/v1/targets")["data"]["activeTargets"]
    assert target["scrapeUrl"].startswith("https://")

    def refused() -> str:
        (target,) = get(f"http://127.0.0.1:{monitoring.prometheus}/api/v1/targets")["data"]["activeTargets"]
        return str(target["lastError"])

    password.write_text("change you")  # read anew at each scrape
    until(lambda: "401" in refused(), 60)
    until(lambda: monitoring.query('up{job="mlsecd"} == 0'), 60)
    password.write_text("change me")
    until(lambda: monitoring.query('up{job="mlsecd"} == 1'), 60)
    without = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{one.port}", "-CAfile", "mlsecd.crt", "-tls1_2"],
        cwd=tmp_path,
        input=b"",
        capture_output=True,
        check=False,
    )
    assert b"alert" in without.stderr, "a client without a certificate gets no connection"
