"""Builders that the tests of the forensic log share."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from mlsecd.meters import Meters
from mlsecd.records import Finding, Severity, Status
from mlsecd.sinks.forensic_log import ForensicLog


@dataclass(frozen=True, kw_only=True)
class Params:
    directory: str
    queue_max: int = 1000
    max_segment_bytes: int = 1 << 20
    max_segment_seconds: float = 86_400.0
    max_segments: int = 400


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def finding(number: int = 0, **other: Any) -> Finding:
    base = Finding(
        ts=1_700_000_000.25 + number,
        detector="extraction_account",
        version=1,
        subject_kind="client",
        subject=f"k-{number}",
        severity=Severity.HIGH,
        score=2.0,
        threshold=1.0,
        reason="too even",
        action="look",
        evidence={"n": number},
        atlas=("AML.T0024.002",),
        owasp=("LLM10:2025",),
        id=f"{number:016x}",
        status=Status.NEW,
    )
    return replace(base, **other)


def open_log(
    directory: Path,
    clock: Clock | None = None,
    meters: Meters | None = None,
    names: dict[str, str] | None = None,
    **params: Any,
) -> ForensicLog:
    settings = Params(directory=str(directory), **params)
    return ForensicLog(settings, "host-1", meters or Meters(), technique_names=names, clock=clock or Clock())


def files(directory: Path) -> list[Path]:
    return sorted(directory.glob("mlsecd-*.jsonl"))


def lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in files(directory) for line in path.read_bytes().splitlines()]


def controls(directory: Path, type_: str) -> list[dict[str, Any]]:
    return [line for line in lines(directory) if line.get("type") == type_]


def numbers(directory: Path) -> list[int]:
    """The numbers of the findings that the log holds, as written."""
    return numbers_in(lines(directory))


def numbers_in(bodies: list[dict[str, Any]]) -> list[int]:
    return [body["unmapped"]["mlsecd"]["evidence"]["n"] for body in bodies if "class_uid" in body]


def merkle_root(entries: list[bytes]) -> bytes:
    """RFC 6962, section 2.1, word for word."""
    if not entries:
        return hashlib.sha256(b"").digest()
    if len(entries) == 1:
        return hashlib.sha256(b"\x00" + entries[0]).digest()
    k = 1 << (len(entries) - 1).bit_length() - 1
    return hashlib.sha256(b"\x01" + merkle_root(entries[:k]) + merkle_root(entries[k:])).digest()


def without_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop of a thousand restarts needs no platter."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(os, "fdatasync", lambda _: None)
