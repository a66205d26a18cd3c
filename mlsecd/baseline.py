"""The baseline file: one npz, a JSON header, a section of arrays per detector. Never pickle."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlsecd.detectors.base import Section
from mlsecd.errors import BaselineError

__all__ = ["Baseline", "read", "write"]

FORMAT = 1
_MAX_BYTES = 256 << 20  # a baseline is a few MiB; a file of this size is a mistake or an attack


@dataclass(frozen=True, slots=True)
class Baseline:
    """What ``baseline fit`` learned.

    Attributes
    ----------
    header
        Format, mlsecd's version, event-time span, count and digest of the records fitted on.
    sections
        By detector name.
    digest
        Hex SHA-256 of the file, what a configuration pins.
    """

    header: dict[str, Any]
    sections: dict[str, Section]
    digest: str


def write(path: Path, header: dict[str, Any], sections: dict[str, Section]) -> str:
    """Write a baseline, replacing the old one at once; return its digest."""
    arrays: dict[str, Any] = {}
    head = {**header, "format": FORMAT, "sections": {}}
    for name, section in sorted(sections.items()):
        head["sections"][name] = section.header
        for key, array in section.arrays.items():
            if array.dtype.hasobject:
                raise BaselineError(f"{name}.{key}: object arrays are not stored")
            arrays[f"{name}/{key}"] = array
    text = json.dumps(head, sort_keys=True, allow_nan=False).encode()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, header=np.frombuffer(text, np.uint8), **arrays)
    _replace(path, buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def _replace(path: Path, data: bytes) -> None:
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise BaselineError(f"{path}: cannot be written: {error.strerror}") from error


def read(path: Path, pinned: str = "") -> Baseline:
    """Read a baseline.

    Parameters
    ----------
    pinned
        The SHA-256 that the file must have; empty: any.

    Raises
    ------
    BaselineError
        It cannot be read, is damaged, of another format, or not the pinned one.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise BaselineError(f"{path}: larger than {_MAX_BYTES >> 20} MiB: not a baseline")
        data = path.read_bytes()
    except OSError as error:
        raise BaselineError(f"{path}: cannot be read: {error.strerror}") from error
    digest = hashlib.sha256(data).hexdigest()
    if pinned and digest != pinned:
        raise BaselineError(f"{path}: its SHA-256 is {digest}, the configuration pins {pinned}")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        header = json.loads(arrays.pop("header").tobytes())
        names = header.pop("sections")
        known = header["format"]
    except Exception as error:
        raise BaselineError(f"{path}: damaged, or not a baseline: {error}") from error
    if known != FORMAT:
        raise BaselineError(f"{path}: format {known}; this mlsecd reads format {FORMAT}: fit it again")
    sections = {
        name: Section(
            head, {key.partition("/")[2]: array for key, array in arrays.items() if key.startswith(f"{name}/")}
        )
        for name, head in names.items()
    }
    return Baseline(header, sections, digest)
