"""What a process on a GPU is accused of, how loudly, and in which words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from mlsecd.detectors._allow import Allow, allows, is_deleted, is_memfd, path_of
from mlsecd.detectors._gpu_processes import GpuProcesses, Sight, View, printable
from mlsecd.detectors.base import DetectorState
from mlsecd.records import Process, Severity

__all__ = [
    "ACTIONS",
    "SHOWN_MAX",
    "Case",
    "blindness",
    "by_host",
    "judge",
    "judge_unseen",
    "reason",
    "sees_host",
    "subject",
    "unseen_reason",
]

SHOWN_MAX: Final = 16  # pids listed in one finding

ACTIONS: Final = {
    "foreign": "Look at the executable, its parent and its user. If it belongs here, add an allow entry; if not, copy "
    "/proc/PID/exe before you stop it, then look for how it was started.",
    "deleted": "If a package was upgraded, restart the service so that it runs the new file. If not, copy "
    "/proc/PID/exe now (it is gone once the process ends) and treat the host as compromised.",
    "memfd": "Copy /proc/PID/exe now: the program exists nowhere else. Isolate the host, then stop the process.",
    "hidden": "Do not trust ps or /proc on this host: isolate it, capture its memory, and look for a kernel module or "
    "preloaded library that hides processes.",
    "vanished": "Look for children that inherited the GPU (fuser -v /dev/nvidia*) and stop them to free its memory. "
    "If there are none, treat the process as hidden by a rootkit: isolate the host.",
}


@dataclass(frozen=True, slots=True)
class Case:
    """One process that must be told of."""

    kind: str  # a key of ACTIONS
    severity: Severity
    sight: Sight
    process: Process


def judge(allow: tuple[Allow, ...], sight: Sight, process: Process, gpu: str) -> Case | None:
    """What a visible process is accused of; ``None``: allowed, or not to be judged by what can be read."""
    if is_memfd(process.exe):
        return Case("memfd", Severity.CRITICAL, sight, process)
    answer = allows(allow, process, gpu, sight.around)
    if is_deleted(process.exe):
        # With no policy to go by: a file that was there when the process was first seen was likelier upgraded.
        benign = answer is True if allow else sight.intact
        return Case("deleted", Severity.MEDIUM if benign else Severity.HIGH, sight, process)
    if allow and answer is False:
        return Case("foreign", Severity.HIGH, sight, process)
    return None


def judge_unseen(allow: tuple[Allow, ...], sight: Sight, gpu: str) -> tuple[str, Severity]:
    """What a pid that NVML shows and /proc does not is accused of.

    A process that was visible and allowed is most likely dead, its GPU memory kept by a child that
    inherited the driver's descriptors: NVML goes on showing the parent's pid. A rootkit that hides a
    running process looks the same, so one that was not allowed before is told of loudly.
    """
    if sight.process is None:
        return "hidden", Severity.CRITICAL
    allowed = allows(allow, sight.process, gpu, sight.around) is True
    return "vanished", Severity.MEDIUM if allowed else Severity.HIGH


def subject(case: Case, gpu: str) -> str:
    """Names a case by executable, user and GPU, not by pid: a miner restarted each second is one finding."""
    if case.kind == "memfd":
        what = "memfd"  # its name is whatever its maker chose
    else:
        what = "unreadable" if case.process.exe is None else printable(path_of(case.process.exe))
    return f"{what} uid={case.process.uid} gpu={gpu}"


def reason(case: Case, allow: tuple[Allow, ...], gpu: str, starts: int) -> str:
    """One sentence for on-call."""
    process = case.process
    exe = "a program with an unreadable path" if process.exe is None else f'"{printable(path_of(process.exe))}"'
    unit = printable(process.unit, 64) if process.unit else None
    container = f"container {printable(process.container, 12)}" if process.container else None
    who = f"pid {process.pid}, uid {process.uid}, {unit or container or 'no systemd unit'}"
    memory = case.sight.used_memory_bytes
    use = f"is on {gpu}" if memory is None else f"holds {memory / 2**30:.1f} GiB of {gpu}"
    again = f"; {starts} starts so far" if starts > 1 else ""
    if case.kind == "memfd":
        return f"a program that runs from memory and was never a file ({who}) {use}{again}"
    if case.kind == "foreign":
        miss = (
            "does not match the only allow entry" if len(allow) == 1 else f"matches none of {len(allow)} allow entries"
        )
        return f"{exe} ({who}) {use} and {miss}{again}"
    if allow:
        likely = "its path is allowed" if case.severity is Severity.MEDIUM else "no allow entry covers its path"
    else:
        likely = "it was there when the process came" if case.sight.intact else "it was gone when first looked at"
    return f"{exe} ({who}) {use} and its file was deleted: {likely}{again}"


def unseen_reason(kind: str, sights: list[Sight], gpu: str) -> str:
    """One sentence for on-call, on pids that only NVML shows."""
    pids = [str(sight.pid) for sight in sights]
    named = ", ".join(pids[:SHOWN_MAX]) + ("" if len(pids) <= SHOWN_MAX else f" and {len(pids) - SHOWN_MAX} more")
    tables = max(sight.absent for sight in sights)
    if kind == "hidden":
        return f"NVML shows pid {named} on {gpu}; {tables} whole process tables in a row do not: hidden from /proc"
    names = {sight.process.exe for sight in sights if sight.process is not None and sight.process.exe is not None}
    was = f' ("{printable(min(names))}")' if names else ""
    return (
        f"pid {named}{was} was in /proc, is missing from {tables} whole process tables in a row, and is still on "
        f"{gpu}: it ended and something keeps its GPU memory, or it was hidden"
    )


def by_host(gpus: Iterable[GpuProcesses]) -> list[list[GpuProcesses]]:
    """GPUs of each host, synthetic ones apart, in the order given."""
    hosts: dict[tuple[str, bool], list[GpuProcesses]] = {}
    for gpu in gpus:
        hosts.setdefault((gpu.host, gpu.synthetic), []).append(gpu)
    return list(hosts.values())


def _resolved(gpus: list[GpuProcesses]) -> bool:
    return any(sight.process is not None for gpu in gpus for sight in gpu.sights.values())


def sees_host(gpus: list[GpuProcesses]) -> bool:
    """Whether tables speak of the pids that NVML speaks of: kernel threads are in them, or one of those pids."""
    return any(gpu.view is View.HOST for gpu in gpus) or _resolved(gpus)


def blindness(gpus: list[GpuProcesses]) -> tuple[DetectorState | None, list[str]]:
    """What cannot be seen, and the state that says so where it is everything."""
    for host in by_host(gpus):
        looked = [s for gpu in host for s in gpu.sights.values() if gpu.table_ts > s.first_ts and s.samples > 1]
        if any(gpu.blind for gpu in host):
            return DetectorState.STALE, ["blind: no process table of late tells what is on the GPUs"]
        if looked and not sees_host(host):
            need = "run in the host's pid namespace, with CAP_SYS_PTRACE where hidepid is set"
            return DetectorState.MISMATCH, [f"blind: {len(looked)} pids on GPUs, none in the process table: {need}"]
        if looked and any(gpu.view is View.PART for gpu in host):
            return None, ["hidden processes cannot be told: the process table was cut short or lacks pid 1"]
    return None, []
