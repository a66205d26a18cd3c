"""Learns an allow list of GPU processes from ordinary records, for a person to review."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

import msgspec

from mlsecd.detectors._allow import Allow, is_deleted, is_memfd
from mlsecd.detectors._gpu_processes import GpuProcesses, Table, gpu_key, printable
from mlsecd.detectors.base import Fit, Section
from mlsecd.records import GpuSample, Process, ProcessTable, Records

__all__ = ["entry_of", "propose"]

_SAMPLES_MIN: Final = 3  # a process on a GPU for fewer samples is no example of ordinary use
_ENTRIES_MAX: Final = 256
_GPUS_MAX: Final = 256
_NOTES_MAX: Final = 20


def propose(records: Iterable[Records]) -> Fit:
    """An allow entry for each kind of process that the records show on a GPU; synthetic records teach nothing."""
    gpus: dict[str, GpuProcesses] = {}
    uses: Counter[Allow] = Counter()
    unfit: set[str] = set()
    tables = listing = 0
    for one in records:
        if isinstance(one, ProcessTable) and not one.synthetic:
            tables += 1
            table = Table(one)
            for gpu in gpus.values():
                if gpu.host == one.host:
                    gpu.table(table)
        elif isinstance(one, GpuSample) and not one.synthetic and one.processes is not None:
            listing += 1
            key = gpu_key(one.host, one.gpu, synthetic=False)
            if key in gpus or len(gpus) < _GPUS_MAX:
                gpu = gpus.setdefault(key, GpuProcesses.of(one))
                gpu.sample(one)
                _count(gpu, uses, unfit)
    return _conclude(uses, unfit, tables, listing)


def _count(gpu: GpuProcesses, uses: Counter[Allow], unfit: set[str]) -> None:
    for _, process in gpu.known():
        why = _unfit(process)
        if why is None:
            uses[entry_of(process)] += 1
        elif len(unfit) < _NOTES_MAX:
            unfit.add(why)


def _unfit(process: Process) -> str | None:
    """Why a process must not become an allow entry by itself."""
    if process.exe is None:
        return f"not learned: uid {process.uid} runs a GPU program whose executable cannot be read"
    if is_memfd(process.exe):
        return f"not learned: uid {process.uid} runs a GPU program from memory"
    shown = printable(process.exe)
    if is_deleted(process.exe):
        return f'not learned: "{shown}": its file was deleted'
    if "*" in process.exe or "?" in process.exe:
        return f'not learned: "{shown}": its name would be a glob'
    return None


def entry_of(process: Process) -> Allow:
    """What of a process stays the same over restarts: never a container's id, nor a transient unit."""
    unit = process.unit or ""
    stable = unit.endswith(".service") and not unit.startswith("run-") and "*" not in unit and "?" not in unit
    container = "*" if process.container else "" if process.cgroup is not None else None
    return Allow(exe=process.exe, uid=process.uid, unit=unit if stable else None, container=container)


def _conclude(uses: Counter[Allow], unfit: set[str], tables: int, listing: int) -> Fit:
    notes = sorted(unfit)
    learned = [(entry, count) for entry, count in uses.items() if count >= _SAMPLES_MIN]
    learned.sort(key=lambda pair: (-pair[1], msgspec.json.encode(pair[0])))
    if not listing:
        return Fit(None, "no GPU sample lists processes: record with the nvml source, as a user whom NVML answers")
    if not tables:
        return Fit(None, "no process tables: record with the processes source beside nvml")
    if not learned:
        need = f"no process with a readable executable was on a GPU for {_SAMPLES_MIN} samples: record while it serves"
        return Fit(None, need, tuple(notes))
    if len(learned) > _ENTRIES_MAX:
        notes.append(f"{len(learned) - _ENTRIES_MAX} rarer kinds of processes left out")
    entries = sorted(msgspec.json.encode(entry) for entry, _ in learned[:_ENTRIES_MAX])
    told = (
        "1 allow entry learned: review it"
        if len(entries) == 1
        else f"{len(entries)} allow entries learned: review them"
    )
    notes.append(f"{told}, whatever ran while recording is now allowed")
    return Fit(Section({"allow": [msgspec.json.decode(entry) for entry in entries]}, {}), notes=tuple(notes))
