"""``mlsecd log verify``."""

from __future__ import annotations

import sys
from pathlib import Path

from mlsecd import config
from mlsecd.errors import ConfigError
from mlsecd.sinks import log_verify
from mlsecd.sinks.log_anchors import Noted, read_anchors

__all__ = ["run"]


def run(  # noqa: PLR0913 - as many as the command has options
    directory: str | None,
    anchor: str | None,
    anchors: str | None,
    path: str | None,
    overrides: tuple[str, ...],
    *,
    as_json: bool,
) -> int:
    """Verify and print the report."""
    where = directory or config.load(path, overrides).sinks.forensic_log.directory
    noted = [*_one(anchor), *_many(anchors)]
    return log_verify.print_report(Path(where), as_json=as_json, anchors=noted)


def _one(text: str | None) -> list[Noted]:
    if text is None:
        return []
    seq, _, digest = text.partition(":")
    if not seq.isdecimal() or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise ConfigError(f'--anchor wants SEQ:SHA256 as an earlier verify printed it, not "{text}"')
    return [Noted(int(seq), digest)]


def _many(name: str | None) -> list[Noted]:
    if name is None:
        return []
    try:
        if name == "-":
            found = list(read_anchors(sys.stdin))
        else:
            with Path(name).open(errors="replace") as file:
                found = list(read_anchors(file))
    except OSError as error:
        raise ConfigError(f"--anchors {name}: {error.strerror}") from error
    if not found:  # nothing to compare with must not look like nothing wrong
        raise ConfigError(f"--anchors {name}: no line of it holds an anchor (anchor=SEQ:SHA256)")
    return found
