"""Model servers, notebooks and clusters that let anybody in, and GPU processes that listen undeclared."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Final

import msgspec
from msgspec import Meta

from mlsecd.detectors import base
from mlsecd.detectors._allow import Allow, allows, glob_matches
from mlsecd.detectors._floors import Floor
from mlsecd.detectors._gpu_processes import Table, as_state, printable
from mlsecd.detectors._service_versions import OUTCOMES, shared_memory, versions
from mlsecd.detectors._services import Exposure, expositions, is_metadata, open_listeners, product_of
from mlsecd.detectors._told import Told
from mlsecd.detectors.base import Detector, DetectorState, Maturity, Section, Standing
from mlsecd.kernels import Kernels
from mlsecd.records import Finding, GpuSample, Kind, Process, ProcessTable, Records, Severity, SocketSample
from mlsecd.windows.keyed import Keyed
from mlsecd.windows.packing import pack, unpack

__all__ = ["DETECTOR", "ExposureServices", "Listen", "Params"]

_HOSTS_MAX: Final = 256
_GPUS_MAX: Final = 256
_PARENTS: Final = 3
_FRESH_SECONDS: Final = 120.0
_NEVER: Final = float("-inf")
_JUPYTER: Final = ("jupyter", "jupyter-lab", "jupyter-notebook", "jupyter-server", "jupyterhub-singleuser")
_JUPYTER_MODULES: Final = ("jupyter", "jupyterlab", "notebook", "jupyter_server", "jupyterhub.singleuser")


class Listen(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A listener that belongs here: who, and where."""

    exe: Annotated[str, Meta(max_length=1024, description="executable, a glob; empty: any")] = ""
    unit: Annotated[str, Meta(max_length=256, description="systemd unit, a glob; empty: any")] = ""
    container: Annotated[str, Meta(max_length=256, description='container id, a glob ("*": any container)')] = ""
    address: Annotated[str, Meta(max_length=128, description="as in tcp:0.0.0.0:8000, a glob; empty: any")] = ""

    def __post_init__(self) -> None:
        """Refuse an entry that would declare everything."""
        if not (self.exe or self.unit or self.container or self.address):
            raise ValueError("a declared listener needs at least one condition")


class Params(base.Params, frozen=True):
    """What may listen."""

    declared: Annotated[tuple[Listen, ...], Meta(max_length=1024, description="listeners that belong here")] = ()
    metadata_allow: Annotated[
        tuple[Allow, ...], Meta(max_length=256, description="GPU processes that may ask the cloud's metadata service")
    ] = ()
    floors: Annotated[
        tuple[Floor, ...],
        Meta(
            max_length=512,
            description="service versions below which a hole is known, beside those of the [floors] file",
        ),
    ] = ()
    after_tables: Annotated[int, Meta(ge=1, le=100, description="successive process tables that must show it")] = 2
    repeat_seconds: Annotated[
        float, Meta(ge=1, le=300, description="event time between repeats of a finding that goes on")
    ] = 300.0


@dataclass(slots=True)
class _Host:
    """One host."""

    table_ts: float = _NEVER
    on_gpu: dict[str, tuple[float, list[int]]] = field(default_factory=dict)  # by GPU: when, pids that NVML lists
    seen: dict[str, int] = field(default_factory=dict)  # tables in a row, by subject
    told: Told = field(default_factory=Told)
    listeners: int = 0
    versions: dict[str, int] = field(default_factory=dict)  # checks of versions, by their outcome
    denied: bool = False


class ExposureServices(Detector):
    """Judges every listening process of a table; the generic rule needs no list of products."""

    name = "exposure_services"
    consumes = frozenset({Kind.PROCESS, Kind.GPU, Kind.SOCKET})
    key = "host"
    maturity = Maturity.INCUBATING
    atlas = ("AML.T0049", "AML.T0050", "AML.T0055")
    owasp = ("LLM03:2025",)
    summary = (
        "A notebook, cluster or model server lets anybody in, or a GPU process listens where policy does not say so."
    )
    action = (
        "Bind it to loopback or a management network and put authentication before it. If others could reach it, "
        "look for processes and files that came since it started. A listener that belongs here goes into declared."
    )
    blind_spots: ClassVar[tuple[str, ...]] = (
        "Firewalls and published ports of containers are not looked at: an address says who could reach it.",
        "Products that are not in the table are known by the generic rule only, and only where they hold a GPU.",
        "Ports of other users' processes take CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH.",
        "Versions are those of Python packages and Triton's container variable; others', Ollama's say, are unknown.",
        "Versions of others take CAP_SYS_PTRACE, Triton's CAP_DAC_READ_SEARCH too; floors are as old as their file.",
        "A client that registers Triton's shared memory over HTTP shows in access logs, which are not read for it.",
        "Jupyter's runtime file may lie where the service cannot read (home drop-in); then argv and a probe must do.",
        "The metadata endpoint is seen while the connection lives at a sample; a short request between two is not.",
    )
    Params = Params

    def __init__(self, params: Any, kernels: Kernels, section: Section | None = None) -> None:
        super().__init__(params, kernels, section)
        self._hosts: Keyed[_Host] = Keyed(_HOSTS_MAX, lambda _: _Host())

    def observe(self, records: Records) -> list[Finding]:
        """Fold one process table, one GPU sample or one socket sample."""
        if not isinstance(records, ProcessTable | GpuSample | SocketSample):
            return []
        host = self._hosts.touch(f"{records.host}\0{int(records.synthetic)}", records.ts)
        if host is None:
            return []
        if isinstance(records, GpuSample):
            tenants = records.tenants
            if tenants is not None and (records.gpu in host.on_gpu or len(host.on_gpu) < _GPUS_MAX):
                host.on_gpu[records.gpu] = (records.ts, [one.pid for one in tenants])
            return []
        if isinstance(records, SocketSample):
            return list(self._sockets(host, records))
        return self._table(host, records)

    def _table(self, host: _Host, table: ProcessTable) -> list[Finding]:
        if table.ts < host.table_ts:
            host.seen.clear()
        host.table_ts = table.ts
        host.denied = any(entry.startswith("listen:") and "not permitted" in entry for entry in table.blind)
        indexed = Table(table)
        on_gpu = {pid for ts, pids in host.on_gpu.values() if table.ts - ts <= _FRESH_SECONDS for pid in pids}
        listeners = [one for one in table.processes if one.listen]
        host.listeners = len(listeners)
        before, host.seen = host.seen, {}
        host.versions = {}
        found = []
        for process in listeners:
            for case in self._judge(host, process, indexed, on_gpu):
                subject = f"{case.product} {_called(process)} uid={process.uid}"
                host.seen[subject] = min(before.get(subject, 0) + 1, self.params.after_tables)
                due = host.seen[subject] >= self.params.after_tables
                if due and host.told.due(f"{subject} {case.severity}", table.ts, self.params.repeat_seconds):
                    found.append(self._report(table, process, case, subject, on_gpu))
        return found

    def _judge(self, host: _Host, process: Process, table: Table, on_gpu: set[int]) -> Iterator[Exposure]:
        open_to = open_listeners(process)
        undeclared = [one for one, _ in open_to if not self._declared(process, one)]
        cmdline = _cmdline(process)
        parent: Process | None = process
        for _ in range(_PARENTS):  # a worker's own command line may say nothing: gunicorn's, say
            parent = None if parent is None or parent.ppid is None else table.by_pid.get(parent.ppid)
            if parent is not None and parent.pid > 1 and parent.exe == process.exe:
                cmdline = f"{cmdline} {_cmdline(parent)}"
        jupyter = _is_jupyter(process)
        known = list(expositions(process, cmdline, jupyter=jupyter))
        if open_to and not undeclared:
            known = [one for one in known if one.severity is Severity.CRITICAL]  # declared, but still free for all
        known += self._old(host, process, cmdline, jupyter=jupyter, reached=bool(open_to))
        apart = process.depth is not None and process.depth.own_network
        for one in known:
            lower = apart and one.severity.rank > Severity.MEDIUM.rank
            text = f"{one.text} (in a network namespace of its own: only if it is published)" if apart else one.text
            yield Exposure(one.product, Severity.MEDIUM if lower else one.severity, text, one.note)
        holds = process.pid in on_gpu or (process.depth is not None and bool(process.depth.devices))
        if holds and undeclared and not any(one.listens for one in known):
            text = f"a GPU process listens on {', '.join(undeclared[:4])}, which no declared entry covers"
            yield Exposure("listener", Severity.LOW if apart else Severity.MEDIUM, text)

    def _old(self, host: _Host, process: Process, cmdline: str, *, jupyter: bool, reached: bool) -> Iterator[Exposure]:
        """What its version, and the memory that it shares, add."""
        product = product_of(process, cmdline, jupyter=jupyter)
        if product is None:
            return
        checks = list(versions(self.params.floors, process, *product, reached=reached))
        for outcome, case in checks:
            host.versions[outcome] = host.versions.get(outcome, 0) + 1
            if case is not None:
                yield case
        if product[1] == "triton":
            yield from shared_memory(process, reached=reached, sound=[outcome for outcome, _ in checks] == ["passed"])

    def _declared(self, process: Process, address: str) -> bool:
        return any(
            (not one.exe or glob_matches(one.exe, process.exe))
            and (not one.unit or glob_matches(one.unit, process.unit))
            and (not one.container or glob_matches(one.container, process.container))
            and (not one.address or glob_matches(one.address, address))
            for one in self.params.declared
        )

    def _report(self, table: ProcessTable, process: Process, case: Exposure, subject: str, on_gpu: set[int]) -> Finding:
        return self.finding(
            ts=table.ts,
            subject_kind="process",
            subject=subject,
            severity=case.severity,
            score=1.0,
            threshold=1.0,
            reason=f"{printable(case.text, 300)} (pid {process.pid}, uid {process.uid}, {_called(process)})",
            evidence={
                "product": case.product,
                "host": table.host,
                "pid": process.pid,
                "start_ticks": process.start_ticks,
                "exe": None if process.exe is None else printable(process.exe, 1024),
                "cmdline": printable(" ".join(process.cmdline), 400),
                "uid": process.uid,
                "unit": process.unit,
                "container": process.container,
                "listen": list(process.listen[:16]),
                "on_gpu": process.pid in on_gpu,
                "note": case.note,
            },
            synthetic=table.synthetic,
        )

    def _sockets(self, host: _Host, sample: SocketSample) -> Iterator[Finding]:
        for one in sample.traffic:
            peers = [peer for peer in one.peers if is_metadata(peer)]
            if not peers:
                continue
            stand_in = Process(pid=one.pid, start_ticks=0, exe=one.exe, uid=one.uid, unit=one.unit)
            if allows(self.params.metadata_allow, stand_in, "") is True:
                continue
            exe = "unreadable" if one.exe is None else printable(one.exe)
            subject = f"metadata {exe} uid={one.uid}"
            if host.told.due(subject, sample.ts, self.params.repeat_seconds):
                yield self.finding(
                    ts=sample.ts,
                    subject_kind="process",
                    subject=subject,
                    severity=Severity.MEDIUM,
                    score=1.0,
                    threshold=1.0,
                    reason=f'"{exe}" (pid {one.pid}, uid {one.uid}) talks to {peers[0]}, which hands out the '
                    "machine's cloud credentials",
                    evidence={"host": sample.host, "pid": one.pid, "exe": exe, "peers": peers[:8], "unit": one.unit},
                    synthetic=sample.synthetic,
                )

    def standing(self) -> Standing:
        """Armed once a process table came; whether ports of all can be seen."""
        hosts = [host for _, host in self._hosts.items()]
        gauges = {
            "hosts": float(len(hosts)),
            "listeners": float(sum(host.listeners for host in hosts)),
            **{f"versions_{name}": float(sum(host.versions.get(name, 0) for host in hosts)) for name in OUTCOMES},
            "refused": float(self._hosts.refused),
        }
        if not any(host.table_ts > _NEVER for host in hosts):
            return Standing(DetectorState.STALE, "blind: no process table yet", gauges)
        why = "ports of other users' processes cannot be read" if any(host.denied for host in hosts) else ""
        return Standing(DetectorState.ARMED, why, gauges)

    def snapshot(self) -> bytes:
        """Every host's state."""
        return pack(self.version, self._hosts.dump())

    def restore(self, blob: bytes) -> None:
        """Take a snapshot's state."""
        self._hosts.load(as_state(unpack(self.version, blob), list[tuple[str, int, _Host]]))


def _cmdline(process: Process) -> str:
    return " ".join(process.cmdline)


def _is_jupyter(process: Process) -> bool:
    """As the source tells it: by the program's name, or by ``-m``."""
    words = process.cmdline[0].split(" ") if len(process.cmdline) == 1 else list(process.cmdline)
    if any(word.rpartition("/")[2] in _JUPYTER for word in words[:2]):
        return True
    return any(a == "-m" and b in _JUPYTER_MODULES for a, b in itertools.pairwise(words[:4]))


def _called(process: Process) -> str:
    return "unreadable" if process.exe is None else printable(process.exe)


DETECTOR = ExposureServices
