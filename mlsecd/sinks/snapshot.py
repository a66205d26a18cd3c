"""The daemon's state on disk: named sections in one file, replaced as a whole or not at all.

Layout: magic (8 bytes), length of the table (8, little-endian), the table as JSON, BLAKE2b-256 of all
that comes before, the sections. The table holds the format version, a free header, and each
section's name, size and BLAKE2b-256, so that a damaged byte anywhere is found.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from mlsecd.errors import StateError

__all__ = ["MAX_BYTES", "read_header", "read_snapshot", "set_aside", "write_snapshot"]

MAX_BYTES: Final = 1 << 30  # nothing that we write comes near; a larger file is not read into memory
_MAGIC: Final = b"MLSECST\x01"
_VERSION: Final = 1
_DIGEST_BYTES: Final = 32
_MODE: Final = 0o600  # the state holds clients' behaviour
_ASIDE: Final = "aside"
_ASIDE_MAX: Final = 3


class _Section(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    size: int
    blake2b: str


class _Table(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    header: dict[str, Any]
    sections: list[_Section]


def write_snapshot(path: Path, sections: Mapping[str, bytes], header: Mapping[str, Any] | None = None) -> None:
    """Replace the snapshot; durable on return. A crash at any moment leaves the old one or the new one.

    Raises
    ------
    StateError
        It cannot be written; the old one is untouched.
    """
    table = _Table(
        _VERSION,
        dict(header or {}),
        [_Section(name, len(blob), _digest(blob).hex()) for name, blob in sections.items()],
    )
    packed = msgspec.json.encode(table)
    head = _MAGIC + len(packed).to_bytes(8, "little") + packed
    # One fixed name: what a crash left is overwritten, never piled up.
    temporary = path.with_name(path.name + ".tmp")
    try:
        _write(temporary, [head, _digest(head), *sections.values()])
        temporary.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise StateError(f"the snapshot {path} cannot be written: {error.strerror or error}") from error


def _write(path: Path, parts: list[bytes]) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, _MODE)
    with os.fdopen(fd, "wb") as file:
        os.fchmod(fd, _MODE)
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(fd)


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_snapshot(path: Path, *, max_bytes: int = MAX_BYTES) -> dict[str, bytes]:
    """The sections, every byte of them checked.

    Raises
    ------
    FileNotFoundError
        There is none.
    StateError
        It is damaged, too large, of another version, or cannot be read.
    """
    table, body = _read(path, max_bytes)
    sections: dict[str, bytes] = {}
    at = 0
    for section in table.sections:
        blob = body[at : at + section.size]
        at += section.size
        if section.size < 0 or len(blob) != section.size or _digest(blob).hex() != section.blake2b:
            raise StateError(f"the snapshot {path} is damaged: section {section.name!r}")
        sections[section.name] = blob
    if at != len(body):
        raise StateError(f"the snapshot {path} is damaged: {len(body) - at} bytes too many")
    return sections


def set_aside(path: Path, now: float) -> Path | None:
    """Keep a snapshot that this version cannot use under another name; the last three are kept. ``None``: not possible.

    ``now``: seconds since the epoch, for the name.
    """
    kept = path.with_name(f"{path.name}.{_ASIDE}-{int(now):010d}")
    try:
        with contextlib.suppress(FileExistsError):
            os.link(path, kept, follow_symlinks=False)
        for old in sorted(path.parent.glob(f"{path.name}.{_ASIDE}-*"))[:-_ASIDE_MAX]:
            old.unlink()
    except OSError:
        return None
    return kept


def read_header(path: Path, *, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The header alone; errors as of :func:`read_snapshot`. The sections are not checked."""
    return _read(path, max_bytes)[0].header


def _read(path: Path, max_bytes: int) -> tuple[_Table, bytes]:
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StateError(f"the snapshot {path} cannot be read: {error.strerror or error}") from error
    if len(data) > max_bytes:
        raise StateError(f"the snapshot {path} is larger than {max_bytes} bytes")
    start = len(_MAGIC) + 8
    end = start + int.from_bytes(data[len(_MAGIC) : start], "little")
    if data[: len(_MAGIC)] != _MAGIC or _digest(data[:end]) != data[end : end + _DIGEST_BYTES]:
        raise StateError(f"the snapshot {path} is damaged, or not one")
    try:
        table = msgspec.json.decode(data[start:end], type=_Table)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise StateError(f"the snapshot {path} cannot be read: {error}") from error
    if table.version != _VERSION:
        raise StateError(f"the snapshot {path} is of version {table.version}, this is version {_VERSION}")
    return table, data[end + _DIGEST_BYTES :]


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()
