"""What an inference server should not do: a shell as its child, code from /tmp, a tracer, a preload, odd privileges."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Final

from msgspec import Meta

from mlsecd.detectors import base
from mlsecd.detectors._allow import Allow, allows, glob_matches
from mlsecd.detectors._behaviour import odd_child, risky_capabilities
from mlsecd.detectors._declared import undeclared
from mlsecd.detectors._gpu_processes import Table, as_state, printable
from mlsecd.detectors._told import Told
from mlsecd.detectors.base import Detector, DetectorState, Maturity, Section, Standing
from mlsecd.kernels import Kernels
from mlsecd.records import Depth, Finding, GpuSample, Kind, Process, ProcessTable, Records, Severity
from mlsecd.windows.keyed import Keyed
from mlsecd.windows.packing import pack, unpack

__all__ = ["DETECTOR", "Params", "ProcessInference"]

_HOSTS_MAX: Final = 256
_GPUS_MAX: Final = 256
_ANCESTORS: Final = 6
_FRESH_SECONDS: Final = 120.0
_SERVERS_MAX: Final = 1_024
_NEVER: Final = float("-inf")
_CHILD: Final = {
    "shell": (Severity.HIGH, "started a shell"),
    "compiler": (Severity.LOW, "started a compiler"),
    "fetcher": (Severity.HIGH, "started a program that moves files over the network"),
    "memory": (Severity.CRITICAL, "started a program that was never a file"),
    "deleted": (Severity.MEDIUM, "started a program whose file was deleted"),
    "dropped": (Severity.HIGH, "started a program from a place where everybody may write"),
}


class Params(base.Params, frozen=True):
    """Which processes are inference servers, and what they may do."""

    servers: Annotated[
        tuple[Allow, ...], Meta(max_length=1024, description="inference servers beside those that hold a GPU")
    ] = ()
    warmup_seconds: Annotated[
        float,
        Meta(
            ge=0, le=86_400, description="time after a server's first sight in which it may start shells and compilers"
        ),
    ] = 300.0
    children: Annotated[
        tuple[Allow, ...], Meta(max_length=1024, description="processes that a server may start (an engine's JIT, say)")
    ] = ()
    mappings: Annotated[
        tuple[str, ...], Meta(max_length=256, description="executable mappings that are ordinary: globs over paths")
    ] = (
        "/tmp/torchinductor_*/**",  # noqa: S108 - where these compilers put what they made
        "/tmp/tmp*/**/*.so",  # noqa: S108
        "/memfd:libffi*",
        "/memfd:doublemapper*",
        "/dev/shm/sem.*",  # noqa: S108
    )
    preload: Annotated[
        tuple[str, ...], Meta(max_length=64, description="LD_PRELOAD values that are ordinary: globs over NAME=VALUE")
    ] = ("LD_PRELOAD=**/libjemalloc.so*", "LD_PRELOAD=**/libtcmalloc*.so*", "LD_PRELOAD=**/libgomp*.so*")
    repeat_seconds: Annotated[
        float, Meta(ge=1, le=300, description="event time between repeats of a finding that goes on")
    ] = 300.0


@dataclass(slots=True)
class _Server:
    """One server as it was when first looked at."""

    start_ticks: int
    first_ts: float
    namespaces: tuple[str, ...] | None = None
    capabilities: int | None = None


@dataclass(slots=True)
class _Host:
    """One host's servers."""

    table_ts: float = _NEVER
    first_ts: float = _NEVER
    on_gpu: dict[str, tuple[float, list[int]]] = field(default_factory=dict)
    servers: dict[int, _Server] = field(default_factory=dict)
    told: Told = field(default_factory=Told)
    unread: int = 0
    undeclared: int = 0  # servers of a unit whose files could not be read


class ProcessInference(Detector):
    """A server is whoever is on a GPU, or is named; its descendants are judged with it."""

    name = "process_inference"
    consumes = frozenset({Kind.PROCESS, Kind.GPU})
    key = "host"
    maturity = Maturity.INCUBATING
    atlas = ("AML.T0050", "AML.T0072", "AML.T0105")
    owasp = ("LLM05:2025",)
    summary = (
        "An inference server started a shell, mapped code from memory or /tmp, is traced, or changed its privileges."
    )
    action = (
        "Treat it as code execution until shown otherwise: note the command line and parent, keep the access log "
        "of the minutes before, isolate the host. An engine's own compiler or helper goes into children or mappings."
    )
    blind_spots: ClassVar[tuple[str, ...]] = (
        "A child that starts and ends between two process tables is not seen: five seconds by default.",
        "Code that runs inside the server's own interpreter (a pickle, an eval) starts no child and maps no file.",
        "A shell that was renamed, or is started by a child that was detached from the server, looks like any program.",
        "Mappings, tracers and preloads of other users take CAP_SYS_PTRACE; the environment CAP_DAC_READ_SEARCH too.",
        "A preload that was removed from the environment after the start is not seen, unless its mapping is odd.",
        "Without unit files to read (containers, user units) privileges are held against the first look alone.",
        "A unit that starts something with + or !, delegates, or joins other namespaces is not judged by its files.",
    )
    Params = Params

    def __init__(self, params: Any, kernels: Kernels, section: Section | None = None) -> None:
        super().__init__(params, kernels, section)
        self._hosts: Keyed[_Host] = Keyed(_HOSTS_MAX, lambda _: _Host())

    def observe(self, records: Records) -> list[Finding]:
        """Fold one process table, or one GPU sample for who is on it."""
        if not isinstance(records, ProcessTable | GpuSample):
            return []
        host = self._hosts.touch(f"{records.host}\0{int(records.synthetic)}", records.ts)
        if host is None:
            return []
        if isinstance(records, GpuSample):
            tenants = records.tenants
            if tenants is not None and (records.gpu in host.on_gpu or len(host.on_gpu) < _GPUS_MAX):
                host.on_gpu[records.gpu] = (records.ts, [one.pid for one in tenants])
            return []
        return list(self._table(host, records))

    def _table(self, host: _Host, records: ProcessTable) -> Iterator[Finding]:
        if records.ts < host.table_ts:
            host.servers.clear()
            host.first_ts = records.ts
        host.first_ts = records.ts if host.first_ts == _NEVER else host.first_ts
        host.table_ts = records.ts
        table = Table(records)
        on_gpu = {pid for ts, pids in host.on_gpu.values() if records.ts - ts <= _FRESH_SECONDS for pid in pids}
        servers = {one.pid: one for one in records.processes if self._is_server(one, on_gpu)}
        before, host.servers = host.servers, {}
        for pid, one in list(servers.items())[:_SERVERS_MAX]:
            held = before.get(pid)
            known = held is not None and held.start_ticks == one.start_ticks
            host.servers[pid] = held if known and held is not None else _Server(one.start_ticks, records.ts)
            yield from self._server(host, records, one)
        host.unread = sum(one.depth is None or one.depth.mappings is None for one in servers.values())
        host.undeclared = sum(_declares_nothing(one) for one in servers.values())
        for one in records.processes:
            if one.pid not in servers and (kind := odd_child(one)) is not None:
                yield from self._child(host, records, one, kind, table, servers)

    def _is_server(self, process: Process, on_gpu: set[int]) -> bool:
        if process.pid in on_gpu:
            return True
        devices = process.depth.devices if process.depth is not None else None
        if any(device.endswith("-uvm") for device in devices or ()):
            return True
        return bool(self.params.servers) and allows(self.params.servers, process, "") is True

    def _child(  # noqa: PLR0913, PLR0917 - a child, its kind, and where to look for its ancestors
        self, host: _Host, records: ProcessTable, child: Process, kind: str, table: Table, servers: dict[int, Process]
    ) -> Iterator[Finding]:
        server = _server_above(child, table, servers)
        if server is None or allows(self.params.children, child, "") is True:
            return
        young = records.ts - host.servers[server.pid].first_ts < self.params.warmup_seconds
        # What runs when we first look may have been there for days: its server is not young for our sake.
        if young and host.servers[server.pid].first_ts > host.first_ts and kind in {"shell", "compiler"}:
            return
        severity, text = _CHILD[kind]
        what = "memfd" if kind == "memory" else printable(child.exe or "?")
        reason = f'{_called(server)} {text}: "{what}" (pid {child.pid}, uid {child.uid})'
        yield from self._report(host, records, server, (f"child {what}", severity), reason, child)

    def _server(self, host: _Host, records: ProcessTable, server: Process) -> Iterator[Finding]:
        depth, held = server.depth, host.servers[server.pid]
        if depth is None:
            return
        for what, severity, reason in self._odd(depth, held):
            yield from self._report(host, records, server, (what, severity), f"{_called(server)} {reason}", server)
        held.namespaces = held.namespaces or depth.namespaces
        held.capabilities = depth.capabilities if held.capabilities is None else held.capabilities

    def _odd(self, depth: Depth, held: _Server) -> Iterator[tuple[str, Severity, str]]:
        for path in depth.mappings or ():
            if not any(glob_matches(glob, path) for glob in self.params.mappings):
                memory = path.startswith("/memfd:")
                severity = Severity.HIGH if memory or not path.endswith(" (deleted)") else Severity.LOW
                what = "memory" if memory else printable(path)
                yield f"mapping {what}", severity, f'runs code mapped from "{printable(path)}"'
        if depth.tracer:
            yield "tracer", Severity.HIGH, f"is traced by pid {depth.tracer}"
        for one in depth.preload or ():
            if not any(glob_matches(glob, one) for glob in self.params.preload):
                yield f"preload {printable(one, 100)}", Severity.MEDIUM, f"was started with {printable(one)}"
        if held.namespaces is not None and depth.namespaces is not None and held.namespaces != depth.namespaces:
            moved = sorted({a.partition(":")[0] for a in {*held.namespaces} ^ {*depth.namespaces}})
            yield "namespaces", Severity.HIGH, f"has moved to another namespace ({', '.join(moved)})"
        if held.capabilities is not None and depth.capabilities is not None:
            gained = risky_capabilities(depth.capabilities & ~held.capabilities)
            if gained:
                yield "capabilities", Severity.HIGH, f"has gained capabilities: {', '.join(gained)}"

        yield from undeclared(depth)

    def _report(  # noqa: PLR0913, PLR0917 - who did what
        self,
        host: _Host,
        table: ProcessTable,
        server: Process,
        told: tuple[str, Severity],
        reason: str,
        accused: Process,
    ) -> Iterator[Finding]:
        what, severity = told
        subject = f"{_name(server)} uid={server.uid} {what}"
        if not host.told.due(f"{subject} {severity}", table.ts, self.params.repeat_seconds):
            return
        yield self.finding(
            ts=table.ts,
            subject_kind="process",
            subject=subject,
            severity=severity,
            score=1.0,
            threshold=1.0,
            reason=reason,
            evidence={
                "what": what,
                "host": table.host,
                "server_pid": server.pid,
                "pid": accused.pid,
                "start_ticks": accused.start_ticks,
                "exe": None if accused.exe is None else printable(accused.exe, 1024),
                "cmdline": printable(" ".join(accused.cmdline), 400),
                "uid": accused.uid,
                "unit": server.unit,
                "container": server.container,
            },
            synthetic=table.synthetic,
        )

    def standing(self) -> Standing:
        """Armed once there is a server to watch."""
        hosts = [host for _, host in self._hosts.items()]
        servers, unread = sum(len(host.servers) for host in hosts), sum(host.unread for host in hosts)
        undeclared_servers = sum(host.undeclared for host in hosts)
        gauges = {
            "hosts": float(len(hosts)),
            "servers": float(servers),
            "unread_processes": float(unread),
            "undeclared_servers": float(undeclared_servers),
            "refused": float(self._hosts.refused),
        }
        if not any(host.table_ts > _NEVER for host in hosts):
            return Standing(DetectorState.STALE, "blind: no process table yet", gauges)
        if not servers:
            return Standing(DetectorState.ARMED, "no process holds a GPU, and none is named in servers", gauges)
        whys = [f"{unread} servers cannot be looked into, only their children"] if unread else []
        if undeclared_servers:
            whys.append(
                f"privileges of {undeclared_servers} servers are held against the first look, not their unit's files"
            )
        return Standing(DetectorState.ARMED, "; ".join(whys), gauges)

    def snapshot(self) -> bytes:
        """Every host's state."""
        return pack(self.version, self._hosts.dump())

    def restore(self, blob: bytes) -> None:
        """Take a snapshot's state."""
        self._hosts.load(as_state(unpack(self.version, blob), list[tuple[str, int, _Host]]))


def _server_above(process: Process, table: Table, servers: dict[int, Process]) -> Process | None:
    """The nearest ancestor that is a server."""
    one: Process | None = process
    for _ in range(_ANCESTORS):
        one = None if one is None or one.ppid is None else table.by_pid.get(one.ppid)
        if one is None:
            return None
        if one.pid in servers:
            return one
    return None


def _declares_nothing(server: Process) -> bool:
    """Whether it is of a unit whose files told nothing."""
    looked = server.depth is not None and server.unit is not None and server.container is None
    return looked and server.depth is not None and server.depth.declared is None


def _name(process: Process) -> str:
    return "unreadable" if process.exe is None else printable(process.exe)


def _called(process: Process) -> str:
    return f'"{_name(process)}" (pid {process.pid}, {process.unit or process.container or "no unit"})'


DETECTOR = ProcessInference
