"""The result of the last ``mlsecd selftest``: written by the command, shown by the daemon as metrics."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from typing import Final

import msgspec

from mlsecd.errors import StateError
from mlsecd.meters import Meters

__all__ = ["Result", "Watch", "path_in", "write"]

_BYTES_MAX: Final = 65_536


class Result(msgspec.Struct, frozen=True):
    """When it ran, and which detectors passed; the untried and those that are off do not stand here."""

    ts: float  # wall clock, seconds
    passed: dict[str, bool]


def path_in(state_dir: str) -> Path:
    """Where the result lies."""
    return Path(state_dir) / "selftest.json"


def write(path: Path, result: Result) -> None:
    """Put the result in place as a whole; :class:`~mlsecd.errors.StateError` where that is not possible.

    Root may run this in a directory of the daemon's user: a link that waits there must not be followed.
    """
    new = path.with_name(f"{path.name}.{secrets.token_hex(8)}.new")
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
            os.fchmod(descriptor, 0o644)
            file.write(msgspec.json.encode(result))
        new.replace(path)
    except OSError as error:
        raise StateError(f"{path}: the result cannot be kept: {error.strerror}: run it as the daemon's user") from error


class Watch:
    """Looks whether there is a new result, and puts it into gauges: a stat a turn, a reading a result."""

    def __init__(self, path: Path, meters: Meters, known: frozenset[str]) -> None:
        self._path = path
        self._meters = meters
        self._known = known
        self._stamp: tuple[int, int] | None = None
        self._shown: frozenset[str] = frozenset()

    def look(self) -> None:
        """Take up a new result; whatever is wrong with the file, the daemon goes on with the old."""
        try:
            found = os.stat(self._path)  # noqa: PTH116 - once a turn
            stamp = (found.st_mtime_ns, found.st_ino)
            if stamp == self._stamp or not stat.S_ISREG(found.st_mode):
                return
            self._stamp = stamp
            with self._path.open("rb") as file:
                result = msgspec.json.decode(file.read(_BYTES_MAX), type=Result)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return
        passed = {name: ok for name, ok in result.passed.items() if name in self._known}
        for name in self._shown - passed.keys():
            self._meters.forget("mlsecd_selftest_success", detector=name)
        for name, ok in passed.items():
            self._meters.gauge("mlsecd_selftest_success", float(ok), detector=name)
        self._meters.gauge("mlsecd_selftest_timestamp_seconds", result.ts)
        self._shown = frozenset(passed)
