"""Versions of model servers against the list of floors, and what Triton's shared memory adds to an old one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from mlsecd.detectors._floors import Floor, judged
from mlsecd.detectors._gpu_processes import printable
from mlsecd.detectors._services import Exposure
from mlsecd.records import Process, Severity

__all__ = ["OUTCOMES", "shared_memory", "versions"]

OUTCOMES: Final = ("passed", "failed", "unknown")
_SHOWN_MAX: Final = 4
_OTHERS_WRITE: Final = 0o002


def versions(
    floors: Iterable[Floor], process: Process, name: str, field: str, *, reached: bool
) -> Iterator[tuple[str, Exposure | None]]:
    """Each check's outcome, and what to tell of one that failed.

    Parameters
    ----------
    name, field
        What the product is called, and how floors and the source call it.
    reached
        Whether others than this host can reach it.
    """
    told = process.depth.software if process.depth is not None else ()
    found = [one.removeprefix(f"{field} ") for one in told if one.startswith(f"{field} ")]
    # Of two installed copies the command line does not tell which one runs.
    version = found[0] if len(found) == 1 else None
    for floor, good in judged(floors, field, version):
        if good is not False:
            yield "passed" if good else "unknown", None
            continue
        severity = Severity.MEDIUM if reached else Severity.LOW
        why = floor.why or "a known hole"
        text = f"{name} {printable(version or '?', 64)} is older than {floor.at_least}, which repairs {why}"
        yield "failed", Exposure(f"{name} version", severity, text, floor.source, listens=False)


def shared_memory(process: Process, *, reached: bool, sound: bool) -> Iterator[Exposure]:
    """Regions of Triton's Python backend: who may write them here, and who may reach them over HTTP where it is old.

    ``sound``: its version is known to be good.
    """
    rows = [one.rpartition(" ") for one in (process.depth.shared_memory if process.depth is not None else ())]
    written = [path for path, _, mode in rows if mode.isdigit() and int(mode, 8) & _OTHERS_WRITE]
    if written:
        paths = printable(", ".join(written[:_SHOWN_MAX]))
        text = f"every local user may write {paths}, through which Triton's Python backend runs"
        yield Exposure("Triton shared memory", Severity.MEDIUM, text, listens=False)
    if rows and reached and not sound:
        text = (
            f"Triton's Python backend shares {len(rows)} memory region{'s' if len(rows) > 1 else ''}, others can reach "
            "the server, and it is not known to be new enough to keep them apart"
        )
        note = (
            "CVE-2025-23319, 23320 and 23334: a region's name leaks, is registered over HTTP, and is read and written"
        )
        yield Exposure("Triton shared memory by HTTP", Severity.MEDIUM, text, note, listens=False)
