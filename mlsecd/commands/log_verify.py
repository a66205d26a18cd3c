"""``mlsecd log verify``."""

from __future__ import annotations

from pathlib import Path

from mlsecd import config
from mlsecd.errors import ConfigError
from mlsecd.sinks import log_verify

__all__ = ["run"]


def run(
    directory: str | None, anchor: str | None, path: str | None, overrides: tuple[str, ...], *, as_json: bool
) -> int:
    """Verify and print the report."""
    where = directory or config.load(path, overrides).sinks.forensic_log.directory
    return log_verify.print_report(Path(where), as_json=as_json, anchor=_anchor(anchor))


def _anchor(text: str | None) -> tuple[int, str] | None:
    if text is None:
        return None
    seq, _, digest = text.partition(":")
    if not seq.isdecimal() or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise ConfigError(f'--anchor wants SEQ:SHA256 as an earlier verify printed it, not "{text}"')
    return int(seq), digest
