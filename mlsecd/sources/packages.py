"""Versions of installed packages, from dpkg's own list: a pure reading of one file, the standard library only."""

from __future__ import annotations

import os
from typing import Final

__all__ = ["version_of"]

_MAX_BYTES: Final = 32 << 20  # a large system's list has 5 MiB


def version_of(package: str, path: str = "/var/lib/dpkg/status") -> str | None:
    """The installed version of a package; None where dpkg knows none, or is not used here (as with RPM).

    The list is read again only when it changed.
    """
    try:
        found = os.stat(path)  # noqa: PTH116 - pathlib would cost the NVML child memory
        key = (package, path, found.st_mtime_ns, found.st_size)
        if key not in _known:
            with open(path, "rb") as file:  # noqa: PTH123
                text = file.read(_MAX_BYTES)
            _known.clear()
            _known[key] = _parse(package, text)
    except OSError:
        return None
    return _known[key]


_known: dict[tuple[str, str, int, int], str | None] = {}


def _parse(package: str, text: bytes) -> str | None:
    at = text.find(f"\nPackage: {package}\n".encode())
    if text.startswith(f"Package: {package}\n".encode()):
        at = 0
    if at < 0:
        return None
    end = text.find(b"\n\n", at + 1)
    entry = text[at : None if end < 0 else end].split(b"\n")
    fields = {key: value.strip() for line in entry for key, colon, value in [line.partition(b":")] if colon}
    if b" installed" not in fields.get(b"Status", b""):
        return None
    version = fields.get(b"Version", b"").decode("ascii", "replace")[:64]
    return version or None
