"""Certificates by the real openssl, as an operator makes them."""

from __future__ import annotations

import subprocess
from pathlib import Path

__all__ = ["make"]


def make(directory: Path) -> None:
    """``mlsecd.*`` for 127.0.0.1; ``monitoring-ca.*``, and ``prometheus.*`` signed by it; ``stranger.*`` by itself."""
    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    signed = ("-CA", "monitoring-ca.crt", "-CAkey", "monitoring-ca.key")
    for name, extra in (
        ("mlsecd", ("-addext", "subjectAltName=IP:127.0.0.1")),
        ("monitoring-ca", ()),
        ("prometheus", ("-addext", "subjectAltName=DNS:prometheus.my.org", *signed)),
        ("stranger", ("-addext", "subjectAltName=DNS:prometheus.my.org")),
    ):
        made = (*new, "-keyout", f"{name}.key", "-out", f"{name}.crt", "-subj", f"/CN={name}", *extra)
        subprocess.run(["openssl", *made], cwd=directory, check=True, capture_output=True)
