"""What of the configuration one model's watch depends on, and how references are told apart."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from mlsecd.detectors._drift_freeze import Settings
from mlsecd.detectors._drift_reference import Reference

__all__ = ["Plan", "digest_of"]


class Plan(NamedTuple):
    """What of the configuration one model's watch depends on."""

    settings: Settings
    stages: tuple[tuple[int, float], ...]  # rows, and seconds that they span, at which the reference is made anew
    whole: int  # the stage at which a reference is no longer provisional
    refresh_seconds: float  # over which a new sample may take a whole reference's place; 0: never
    client_rows: int
    repeat_seconds: float
    alarms_per_week: float  # this model's share


def digest_of(reference: Reference) -> str:
    """What tells one reference from another, 16 hex digits."""
    plain, arrays = reference.dump()
    digest = hashlib.blake2b(repr(sorted(plain.items())).encode(), digest_size=8)
    for name in sorted(arrays):
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()
