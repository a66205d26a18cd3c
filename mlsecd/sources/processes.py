"""The process table, from /proc: who runs what, for whom, in which unit and container, on which port."""

from __future__ import annotations

import heapq
import math
import os
import time
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mlsecd.errors import SourceError
from mlsecd.meters import Meters
from mlsecd.records import Depth, Kind, Process, ProcessTable
from mlsecd.sources.base import Poll, Source
from mlsecd.sources.cgroups import Placement
from mlsecd.sources.depth import HOLDERS, closer, with_jupyter
from mlsecd.sources.listeners import Listening, listening
from mlsecd.sources.process_params import ProcessesParams
from mlsecd.sources.procfs import DENIED, Facts, Stat, exe_link, facts, parse_stat, read_stat

__all__ = ["SOURCE", "Processes", "ProcessesParams"]

_HOST_NAMESPACE: Final = "pid:[4026531836]"  # the kernel's fixed number of the first PID namespace
_KERNEL_FACTS: Final = Facts(0, (), Placement(None, None, None), 0)
_ENTRY_BYTES: Final = 1024  # what a process costs beside its texts
_DEPTH_SECONDS: Final = 0.03  # of the thread's CPU, a sweep: what does not fit waits for the next one


@dataclass(slots=True)
class _Known:
    """What the last sweep knew of a process, so that the next one reads only what may have changed."""

    line: bytes
    stat: Stat
    link: str | None
    facts: Facts
    listen: tuple[str, ...]
    due: float  # time.monotonic() of the next full read
    process: Process
    weight: int
    depth: Depth | None
    depth_due: float  # time.monotonic() of the next closer look
    born: float  # time.monotonic() of the sweep that saw it first


@dataclass(slots=True)
class _Sweep:
    """One sweep's tally."""

    started: float
    seen: dict[int, _Known]
    weight: int = 0
    hidden: int = 0
    cut: str | None = None


class Processes(Source):
    """Reads /proc itself: in the steady state one link and one line a process.

    The link (``exe``) is read on every sweep, since it costs 2 us and changes with most execs; an exec
    of the same file shows in the stat line (see :class:`~mlsecd.sources.procfs.Stat`). Where we may
    not trace a process neither shows, and its command line may be ``refresh_seconds`` old.
    """

    name = "processes"
    emits = frozenset({Kind.PROCESS})
    summary = "this host's process table: program, user, unit, container and listening ports"
    Params = ProcessesParams

    def __init__(self, params: ProcessesParams, meters: Meters) -> None:
        super().__init__(params, meters)
        self.interval_seconds = params.interval_seconds
        self._params = params
        self._known: dict[int, _Known] = {}
        self._after = -1  # a sweep that was cut: the next one goes on behind this process
        self._listening = Listening()
        self._listening_due = 0.0

    def supported(self) -> str | None:
        """``None`` where there is a /proc."""
        procfs = self._params.procfs
        return None if Path(procfs).is_dir() else f"no {procfs} here: the process table needs Linux"

    def close(self) -> None:
        """Forget everything; nothing is held open between polls."""
        self._known = {}

    def poll(self, deadline: float) -> Poll:
        """Sweep once. A table that a limit cut says so, and the next one begins where it ended."""
        ts = time.time()
        pids, total = self._list()
        sweep = _Sweep(time.monotonic(), {})
        self._sweep(pids, deadline, sweep)
        if sweep.cut is None and total > len(pids):
            sweep.cut = "max_processes"
        if not sweep.seen:
            raise SourceError(f"no process can be read under {self._params.procfs}")
        self._listen(sweep, deadline)
        self._deepen(sweep, deadline)
        self._remember(sweep, pids, total)
        table = ProcessTable(
            ts=ts,
            processes=tuple(sweep.seen[pid].process for pid in sorted(sweep.seen)),
            complete=sweep.cut is None,
            blind=tuple(self._blind(sweep)),
        )
        return Poll(
            [table],
            seen=len(sweep.seen),
            expected=total if sweep.cut else None,
            error=f"the process table was cut: {sweep.cut}" if sweep.cut else None,
        )

    def _list(self) -> tuple[list[int], int]:
        """The processes to read, in the order to read them in, and how many there are."""
        limit = self._params.max_processes
        try:
            with os.scandir(self._params.procfs) as entries:
                # Four bytes each: a kernel can hold 4 M processes, and a hostile user may try.
                listed = array("i", (int(entry.name) for entry in entries if entry.name.isdigit()))
        except OSError as error:
            raise SourceError(f"cannot list {self._params.procfs}: {error.strerror}") from error
        behind = heapq.nsmallest(limit, (pid for pid in listed if pid > self._after))
        before = heapq.nsmallest(limit - len(behind), (pid for pid in listed if pid <= self._after))
        return behind + before, len(listed)

    def _sweep(self, pids: list[int], deadline: float, sweep: _Sweep) -> None:
        for pid in pids:
            if time.monotonic() > deadline:
                sweep.cut = "deadline"
                return
            try:
                known = self._look(pid, sweep.started)
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended meanwhile
            except PermissionError:
                sweep.hidden += 1
                continue
            except ValueError:
                self.meters.drop(self.name, "malformed")
                continue
            except OSError as error:
                sweep.cut = error.strerror  # out of descriptors or memory: not the process's doing
                return
            sweep.weight += known.weight
            if sweep.weight > self._params.max_table_bytes:
                sweep.cut = "max_table_bytes"
                return
            sweep.seen[pid] = known

    def _look(self, pid: int, now: float) -> _Known:
        """One process, from memory where nothing changed."""
        directory = f"{self._params.procfs}/{pid}"
        known = self._known.get(pid)
        if known is None or now >= known.due:
            return self._read(pid, directory, now)
        # The link comes first: where the line behind it is still the known process's, so was the link.
        link = None if known.stat.kernel else exe_link(f"{directory}/exe")
        line = read_stat(f"{directory}/stat")
        if link != known.link:
            return self._read(pid, directory, now)
        if line == known.line:
            return known
        stat = parse_stat(line)
        if stat.start_ticks != known.stat.start_ticks or stat.image != known.stat.image:
            return self._read(pid, directory, now)
        known.line, known.stat = line, stat
        known.process = _process(pid, stat, link, known.facts, known.listen, known.depth)
        return known

    def _read(self, pid: int, directory: str, now: float) -> _Known:
        """Everything about one process, through its directory: see :func:`~mlsecd.sources.procfs.facts`."""
        dir_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            line = read_stat("stat", dir_fd)
            stat = parse_stat(line)
            link = None if stat.kernel else exe_link("exe", dir_fd)
            slow = _KERNEL_FACTS if stat.kernel else facts(dir_fd, self._params.cmdline_bytes)
        finally:
            os.close(dir_fd)
        known = self._known.get(pid)
        listen: tuple[str, ...] = ()
        depth, depth_due, born = None, 0.0, now
        # A newcomer is read again by the next sweep: between fork, change of user and exec it looks like
        # its parent. Afterwards the full reads are spread over time by process number.
        due = now
        if known is not None and known.stat.start_ticks == stat.start_ticks:
            listen = known.listen
            if known.link == link:  # another program is looked at anew
                depth, depth_due, born = known.depth, known.depth_due, known.born
            due = now + self._params.refresh_seconds * (0.5 + pid % 61 / 122)
        weight = _ENTRY_BYTES + slow.weight + len(line) + len(link or "") + len(slow.placement.cgroup or "")
        process = _process(pid, stat, link, slow, listen, depth)
        return _Known(line, stat, link, slow, listen, due, process, weight, depth, depth_due, born)

    def _listen(self, sweep: _Sweep, deadline: float) -> None:
        """Scan for listening sockets where it is time to, and note what changed."""
        every = self._params.listen_seconds
        if not every or sweep.started < self._listening_due:
            return
        self._listening_due = sweep.started + every
        pids = [pid for pid, known in sweep.seen.items() if not known.stat.kernel]
        self._listening = listening(self._params.procfs, pids, deadline, self._listening.last)
        for pid, listen in self._listening.by_pid.items():
            known = sweep.seen[pid]
            if listen != known.listen:
                known.listen = listen
                known.process = _process(pid, known.stat, known.link, known.facts, listen, known.depth)
                known.depth_due = 0.0

    def _deepen(self, sweep: _Sweep, deadline: float) -> None:
        """Look closer at those whose turn it is: holders of a GPU and listeners often, others for whether they are."""
        every = self._params.depth_seconds
        if not every:
            return
        spent_from = time.thread_time()
        # Those that are known to hold a GPU or listen come first, then the youngest: a crowd must not push them back.
        due = [(k.depth is None, k.depth_due, -pid) for pid, k in sweep.seen.items() if k.depth_due <= sweep.started]
        for _, _, behind in sorted(due):
            pid = -behind
            known = sweep.seen[pid]
            if known.stat.kernel:
                known.depth_due = math.inf
                continue
            base = f"{self._params.procfs}/{pid}"
            placed = known.facts.placement
            unit = None if placed.container else placed.unit
            depth = closer(base, known.stat.start_ticks, known.listen, self._params, unit)
            if depth is not None and known.listen:
                depth = with_jupyter(depth, base, known.process, self._params)
            # A newcomer is looked at again soon: a server opens its GPU seconds after it starts.
            wait = min(self._params.search_seconds * (0.5 + pid % 61 / 122), max(5.0, sweep.started - known.born))
            known.depth_due = sweep.started + (wait if depth is None else every)
            if depth != known.depth:
                known.depth = depth
                known.process = _process(pid, known.stat, known.link, known.facts, known.listen, depth)
            if time.thread_time() - spent_from > _DEPTH_SECONDS or time.monotonic() > deadline:
                break
        held = frozenset(pid for pid, known in sweep.seen.items() if known.depth is not None and known.depth.devices)
        HOLDERS[self._params.procfs, self._params.device_prefix] = (time.monotonic(), held)

    def _remember(self, sweep: _Sweep, pids: list[int], total: int) -> None:
        """Keep what was seen; of a sweep that was cut also the rest, within the same bound again."""
        kept = dict(sweep.seen)
        self._after = -1
        if sweep.cut is not None:
            self.meters.drop(self.name, "cut", total - len(sweep.seen))
            self._after = next(reversed(sweep.seen))  # the last one that was read
            room = self._params.max_table_bytes
            for pid in pids:
                known = self._known.get(pid)
                if pid not in kept and known is not None and (room := room - known.weight) > 0:
                    kept[pid] = known
        self._known = kept

    def _blind(self, sweep: _Sweep) -> list[str]:
        count = len(sweep.seen)
        denied = sum(known.link == DENIED for known in sweep.seen.values())
        blind = []
        if denied:
            blind.append(f"exe: {denied} of {count} not permitted (CAP_SYS_PTRACE)")
        if not self._params.listen_seconds:
            blind.append("listen: off (listen_seconds = 0)")
        elif self._listening.denied:
            blind.append(
                f"listen: {self._listening.denied} of {count} not permitted (CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH)"
            )
        unread = sum(k.depth is not None and k.depth.mappings is None for k in sweep.seen.values())
        if unread:
            blind.append(f"depth: {unread} of {count} not permitted (CAP_SYS_PTRACE)")
        blind += self._late(sweep)
        if self._listening.last >= 0:
            blind.append("listen: the last scan was cut, the next one goes on")
        if sweep.hidden:
            blind.append(f"processes: {sweep.hidden} of {count + sweep.hidden} not permitted (hidepid)")
        if sweep.cut:
            blind.append(f"processes: cut ({sweep.cut})")
        elif 1 not in sweep.seen:
            blind.append("processes: other users' are hidden (hidepid or ProtectProc)")
        if self._in_container():
            blind.append("processes: those outside this PID namespace are hidden")
        return blind

    def _late(self, sweep: _Sweep) -> list[str]:
        """Whether closer looks fall behind: there are more processes than their share of the CPU reaches in time."""
        since = sweep.started - self._params.search_seconds
        late = sum(0 < known.depth_due < since for known in sweep.seen.values()) if self._params.depth_seconds else 0
        return [f"depth: {late} of {len(sweep.seen)} wait longer than search_seconds for a closer look"] if late else []

    def _in_container(self) -> bool:
        try:
            return str(Path(f"{self._params.procfs}/self/ns/pid").readlink()) != _HOST_NAMESPACE
        except OSError:
            return False


def _process(  # noqa: PLR0913, PLR0917 - a process has this many sides
    pid: int, stat: Stat, link: str | None, slow: Facts, listen: tuple[str, ...], depth: Depth | None
) -> Process:
    return Process(
        pid=pid,
        start_ticks=stat.start_ticks,
        ppid=stat.ppid,
        uid=slow.uid,
        exe=None if link == DENIED else link,
        name=stat.name,
        cmdline=slow.cmdline,
        cgroup=slow.placement.cgroup,
        unit=slow.placement.unit,
        container=slow.placement.container,
        listen=listen,
        cpu_seconds=stat.cpu_seconds,
        rss_bytes=stat.rss_bytes,
        depth=depth,
    )


SOURCE = Processes
