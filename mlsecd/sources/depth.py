"""What is read of the few processes that hold a GPU or listen: descriptors, mappings, tracer, environment, digest.

Raw reads only. Of the environment four variables are looked at (LD_PRELOAD, LD_AUDIT, two of Triton's), and nothing
else of it is kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import re
import stat
from dataclasses import dataclass
from typing import Final

from mlsecd.records import Depth, Process
from mlsecd.sources.jupyter import is_jupyter, unauthenticated
from mlsecd.sources.process_params import ProcessesParams
from mlsecd.sources.procfs import parse_stat, read, read_stat, readable
from mlsecd.sources.software import regions, software
from mlsecd.sources.units import declared

__all__ = ["HOLDERS", "Holding", "closer", "holding", "look", "read_all", "with_jupyter"]

_MAX_DESCRIPTORS: Final = 16_384
_MAX_MAPS_BYTES: Final = 8 << 20  # a server with every CUDA library mapped has some 300 KiB
_MAX_ENVIRON_BYTES: Final = 1 << 18
_MAX_TEXT: Final = 1024  # of one mapping's path, or one variable
_MAX_MAPPINGS: Final = 16
_MAX_DEVICES: Final = 64
_MAX_DIGEST_BYTES: Final = 256 << 20
_DIGESTS: Final = 256  # executables whose digest is remembered
_NAMESPACES: Final = ("mnt", "net", "pid", "user")
# Where everybody may write: code mapped from there was put there by somebody, not by a package.
_OPEN_PLACES: Final = ("/tmp/", "/var/tmp/", "/dev/shm/", "/run/user/")  # noqa: S108 - they are what we look for
_PERHAPS_ODD: Final = re.compile(
    b"|".join(re.escape(os.fsencode(one)) for one in (*_OPEN_PLACES, "/memfd:", " (deleted)"))
)
_NUMBER: Final = {
    name: re.compile(rf"^{name}:\s+([0-9a-f]+)".encode(), re.MULTILINE) for name in ("TracerPid", "CapEff")
}


# Who holds a GPU, by procfs and device prefix: time.monotonic() and pids. The process source keeps it for others.
HOLDERS: Final[dict[tuple[str, str], tuple[float, frozenset[int]]]] = {}


@dataclass(frozen=True, slots=True)
class Holding:
    """The GPU device nodes that a process has open or mapped, and its odd executable mappings."""

    devices: tuple[str, ...]
    mappings: tuple[str, ...]
    seen: bool  # False: neither descriptors nor mappings may be read
    maps: bytes = b""  # the mappings as the kernel tells them


def holding(base: str, prefix: str) -> Holding:
    """Look at descriptors and mappings of the process at ``base`` (``/proc/PID``).

    A descriptor of an NVIDIA node tells that the driver is used; a mapping tells the same without
    ``CAP_DAC_READ_SEARCH``, which reading another user's descriptors takes.
    """
    devices: set[str] = set()
    descriptors = _descriptors(base, prefix, devices)
    try:
        maps: bytes | None = read_all(f"{base}/maps", _MAX_MAPS_BYTES)
    except OSError:
        maps = None
    mappings = _mappings(maps or b"", prefix, devices)
    return Holding(tuple(sorted(devices)[:_MAX_DEVICES]), mappings, descriptors or maps is not None, maps or b"")


def _descriptors(base: str, prefix: str, devices: set[str]) -> bool:
    """Add the device nodes among the descriptors; False where they may not be read."""
    try:
        with os.scandir(f"{base}/fd") as listed:
            for one in itertools.islice(listed, _MAX_DESCRIPTORS):
                try:
                    target = os.readlink(one.path)  # noqa: PTH115 - hot
                except OSError:
                    continue  # closed meanwhile
                if target.startswith(prefix):
                    devices.add(readable(os.fsencode(target))[:_MAX_TEXT])
    except OSError:
        return False
    return True


def _mappings(raw: bytes, prefix: str, devices: set[str]) -> tuple[str, ...]:
    """The odd executable mappings; adds mapped device nodes."""
    odd: set[str] = set()
    wanted = os.fsencode(prefix)
    if wanted not in raw and not _PERHAPS_ODD.search(raw):
        return ()  # most processes: one search in C in place of a walk over hundreds of lines
    for line in raw.split(b"\n"):
        at = line.find(b"/")
        if at < 0:
            continue
        path = line[at:]
        if path.startswith(wanted):
            devices.add(readable(path)[:_MAX_TEXT])
        elif b"x" in line[: line.find(b" ") + 5] and _is_odd(text := readable(path)[:_MAX_TEXT]):
            odd.add(text)
    return tuple(sorted(odd)[:_MAX_MAPPINGS])


def _is_odd(path: str) -> bool:
    return path.startswith((*_OPEN_PLACES, "/memfd:")) or path.endswith(" (deleted)")


def read_all(path: str, limit: int) -> bytes:
    """Up to ``limit`` bytes of a file that the kernel gives in pieces; raises OSError."""
    parts: list[bytes] = []
    left = limit
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while left > 0 and (part := os.read(fd, min(left, 1 << 17))):
            parts.append(part)
            left -= len(part)
    finally:
        os.close(fd)
    return b"".join(parts)


def closer(
    base: str, start_ticks: int, listen: tuple[str, ...], params: ProcessesParams, unit: str | None = None
) -> Depth | None:
    """The depth of the process at ``base`` that started then; None: it neither holds a GPU nor listens.

    ``unit`` is the systemd unit that it runs in; None for none, and for a container, whose runtime declares its own.
    """
    held = holding(base, params.device_prefix)
    if not (held.devices or listen):
        return None
    depth = look(base, held, digest=params.digest and bool(held.devices))
    if unit is not None and params.unit_directories:
        depth = dataclasses.replace(depth, declared=declared(unit, params.unit_directories))
    try:
        same = parse_stat(read_stat(f"{base}/stat")).start_ticks == start_ticks
    except (OSError, ValueError):
        same = False
    return depth if same else None  # its number may have gone to another while we read


def with_jupyter(depth: Depth, base: str, process: Process, params: ProcessesParams) -> Depth:
    """The same, with what a Jupyter server tells of its authentication."""
    if not is_jupyter(process.cmdline):
        return depth
    return dataclasses.replace(depth, unauthenticated=unauthenticated(base, process, probe=params.probe_jupyter))


def look(base: str, held: Holding, *, digest: bool) -> Depth:
    """Everything that is told of one process; what may not be read stays None.

    Parameters
    ----------
    held
        What :func:`holding` found.
    digest
        Whether its executable is hashed, once for each version of the file.
    """
    tracer, capabilities = _status(base)
    environ = _environ(base)
    namespaces = _namespaces(base)
    return Depth(
        devices=held.devices if held.seen else None,
        sha256=_sha256(base) if digest else None,
        tracer=tracer,
        capabilities=capabilities,
        namespaces=namespaces,
        own_network=_own_network(base),
        preload=None if environ is None else _preload(environ),
        mappings=held.mappings if held.seen else None,
        host_namespaces=_shared(namespaces, _namespaces(f"{base.rpartition('/')[0]}/1")),
        software=software(base, held.maps, environ or b""),
        shared_memory=regions(base, held.maps),
    )


def _status(base: str) -> tuple[int | None, int | None]:
    """Who traces it (0: nobody), and its effective capabilities."""
    try:
        text = read(f"{base}/status", 4096)
    except OSError:
        return None, None
    tracer, capabilities = (found[1] if (found := _NUMBER[name].search(text)) else None for name in _NUMBER)
    return None if tracer is None else int(tracer), None if capabilities is None else int(capabilities, 16)


def _namespaces(base: str) -> tuple[str, ...] | None:
    try:
        return tuple(os.readlink(f"{base}/ns/{name}") for name in _NAMESPACES)  # noqa: PTH115 - hot
    except OSError:
        return None


def _own_network(base: str) -> bool | None:
    try:
        return os.readlink(f"{base}/ns/net") != os.readlink("/proc/self/ns/net")  # noqa: PTH115 - hot
    except OSError:
        return None


def _shared(own: tuple[str, ...] | None, first: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Which namespaces are those of pid 1; None where it cannot be told."""
    if own is None or first is None:
        return None
    return tuple(name for name, mine, its in zip(_NAMESPACES, own, first, strict=True) if mine == its)


def _environ(base: str) -> bytes | None:
    try:
        return read_all(f"{base}/environ", _MAX_ENVIRON_BYTES)
    except OSError:
        return None


def _preload(environ: bytes) -> tuple[str, ...]:
    """LD_PRELOAD and LD_AUDIT; the rest of the environment holds secrets and is dropped here."""
    found = [one for one in environ.split(b"\0") if one.startswith((b"LD_PRELOAD=", b"LD_AUDIT="))]
    return tuple(readable(one)[:_MAX_TEXT] for one in found[:4] if one.partition(b"=")[2].strip())


def _sha256(base: str) -> str | None:
    """Of the file that really runs, which the path may no longer name."""
    try:
        fd = os.open(f"{base}/exe", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size > _MAX_DIGEST_BYTES:
            return None
        key = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        if key not in _known:
            with os.fdopen(os.dup(fd), "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if len(_known) >= _DIGESTS:
                del _known[next(iter(_known))]
            _known[key] = digest
    except OSError:
        return None
    finally:
        os.close(fd)
    return _known[key]


_known: dict[tuple[int, ...], str] = {}  # by device, inode, size and times
