"""What is seen of a host: processes, files, sockets, servers, and whether a source could look at all."""

from __future__ import annotations

from dataclasses import dataclass

from mlsecd.records.kinds import Kind

__all__ = [
    "Declared",
    "Depth",
    "FileSample",
    "FileUse",
    "Process",
    "ProcessTable",
    "ServerSample",
    "SocketSample",
    "SourceStatus",
    "Traffic",
    "WatchedFile",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What a service's unit files declare of its privileges."""

    file: str  # the unit's fragment
    capabilities: int = 0  # the most that its processes may hold, as the kernel's bits
    private: tuple[str, ...] = ()  # namespaces that are to be its own: mnt, net, pid, user
    odd: bool = False  # it may start programs with more than this says: nothing can be judged


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """What is read of a process that holds a GPU or listens; ``None`` where it may not be read."""

    devices: tuple[str, ...] | None = None  # GPU device nodes that it has open or mapped
    sha256: str | None = None  # of its executable; hex
    tracer: int | None = None  # pid of who traces it; 0: nobody
    capabilities: int | None = None  # effective ones, as the kernel's bits
    namespaces: tuple[str, ...] | None = None  # "mnt:[4026531841]", ...: mnt, net, pid, user
    preload: tuple[str, ...] | None = None  # LD_PRELOAD and LD_AUDIT, as NAME=VALUE, where they are set
    own_network: bool | None = None  # it is in another network namespace than the daemon
    unauthenticated: bool | None = None  # a Jupyter server whose runtime file, or answer, says so; None: not known
    mappings: tuple[str, ...] | None = None  # executable ones of deleted files, of memory, of places all may write to
    declared: Declared | None = None  # by its unit's files; None: it has no unit, or they may not be read
    host_namespaces: tuple[str, ...] | None = None  # of mnt, net, pid, user: those that it shares with pid 1
    software: tuple[str, ...] = ()  # "vllm 0.8.5", "triton 25.07": what it serves with, where that is told
    shared_memory: tuple[str, ...] = ()  # Triton's regions that it has mapped, as "path mode"


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process; (pid, start_ticks) is its identity. ``exe`` is ``None`` where it may not be read."""

    pid: int
    start_ticks: int
    ppid: int | None = None
    uid: int | None = None
    exe: str | None = None  # as /proc shows it: "... (deleted)", "/memfd:..."
    name: str | None = None
    cmdline: tuple[str, ...] = ()  # secrets redacted in the source
    cgroup: str | None = None
    unit: str | None = None  # systemd unit, from the cgroup
    container: str | None = None  # container id, from the cgroup
    listen: tuple[str, ...] = ()
    cpu_seconds: float | None = None
    rss_bytes: int | None = None
    depth: Depth | None = None  # None: it neither holds a GPU nor listens, or was not looked at yet


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessTable:
    """The host's processes at one instant."""

    kind = Kind.PROCESS

    ts: float
    processes: tuple[Process, ...]
    host: str = ""
    synthetic: bool = False
    seq: int = -1
    complete: bool = True  # False: a limit or a deadline cut it
    blind: tuple[str, ...] = ()  # what could not be read, as "field: reason"


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedFile:
    """One model file: what tells it from another of the same name. ``None`` where it may not be read."""

    path: str
    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    mode: int  # permission bits
    uid: int
    sampled: str | None = None  # digest of 64 blocks over the whole file; hex
    sha256: str | None = None  # of all of it, once the background pass has read it
    honey: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FileUse:
    """A process that has a model file open or mapped, or opened it a moment ago."""

    path: str
    pid: int
    how: str  # open, mapped, opened (an event of the kernel's), mapped_deleted
    start_ticks: int | None = None
    uid: int | None = None
    exe: str | None = None
    unit: str | None = None
    container: str | None = None
    cgroup: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSample:
    """The model files of a host at one instant, and who uses them."""

    kind = Kind.FILE

    ts: float
    files: tuple[WatchedFile, ...] = ()
    uses: tuple[FileUse, ...] = ()
    missing: tuple[str, ...] = ()  # watched before, and gone
    host: str = ""
    synthetic: bool = False
    seq: int = -1
    blind: tuple[str, ...] = ()  # what could not be read, as "field: reason"


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What one process that holds a GPU, or reads model files, sent since the last sample, by TCP."""

    pid: int
    sent_bytes: int
    start_ticks: int | None = None
    exe: str | None = None
    uid: int | None = None
    unit: str | None = None
    peers: tuple[str, ...] = ()  # "address:port" of connections that it made or took, busiest first
    peer_bytes: tuple[int, ...] = ()  # sent to each of them


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketSample:
    """What left a host by its network in one stretch of time."""

    kind = Kind.SOCKET

    ts: float
    seconds: float  # how long the stretch was
    traffic: tuple[Traffic, ...] = ()
    interface_bytes: int | None = None  # sent by all interfaces but loopback
    host: str = ""
    synthetic: bool = False
    seq: int = -1
    blind: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSample:
    """One model of an inference server at one scrape of its /metrics. ``None`` is "it does not say", never 0.

    ``requests``, ``failed`` and the tokens are what was added in the ``interval_s`` before ``ts``.
    """

    kind = Kind.SERVER

    ts: float
    server: str  # address:port, as configured
    model: str | None = None
    host: str = ""
    synthetic: bool = False
    seq: int = -1
    interval_s: float | None = None
    running: float | None = None
    waiting: float | None = None
    kv_cache_usage: float | None = None  # 0..1
    requests: float | None = None
    failed: float | None = None
    input_tokens: float | None = None
    output_tokens: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceStatus:
    """One poll of one source: the watermark, and the only evidence of absence."""

    kind = Kind.SOURCE

    ts: float
    source: str
    ok: bool
    error: str | None = None
    expected: int | None = None
    seen: int | None = None
    host: str = ""
    synthetic: bool = False
    seq: int = -1
