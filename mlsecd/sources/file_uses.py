"""Which processes have a file open or mapped: descriptors and maps, since loaders close the one and keep the other."""

from __future__ import annotations

import itertools
import os
import time
from dataclasses import dataclass, field
from typing import Final

from mlsecd.records import FileUse
from mlsecd.sources.depth import read_all
from mlsecd.sources.procfs import DENIED, exe_link, facts, parse_stat, read_stat, readable

__all__ = ["Uses", "describe", "uses"]

_MAX_DESCRIPTORS: Final = 16_384
_MAX_MAPS_BYTES: Final = 8 << 20
_MAX_SECONDS: Final = 0.25  # of the thread's CPU, a scan
_CMDLINE_BYTES: Final = 64  # not looked at, so little is read

Key = tuple[int, int]  # device and inode


@dataclass(slots=True)
class Uses:
    """What one scan found."""

    found: list[FileUse] = field(default_factory=list)
    denied: int = 0  # processes that can be looked into in neither way
    last: int = -1  # where a limit ended the scan; -1: it did not


def uses(procfs: str, watched: dict[Key, str], deadline: float, after: int = -1) -> Uses:
    """Look at every process, those above ``after`` first.

    Parameters
    ----------
    watched
        Path by device and inode: a name may be replaced while the old file is still mapped.
    """
    made = Uses()
    names = {path: path for path in watched.values()}
    own, spent_from = os.getpid(), time.thread_time()
    with os.scandir(procfs) as listed:
        pids = sorted(int(one.name) for one in listed if one.name.isdigit())
    for pid in sorted(pids, key=lambda pid: (pid <= after, pid)):
        if pid == own:
            continue
        held = _of(f"{procfs}/{pid}", watched, names)
        if held is None:
            made.denied += 1
        elif held:
            made.found += [describe(procfs, path, pid, how) for path, how in sorted(held.items())]
        if time.thread_time() - spent_from > _MAX_SECONDS or time.monotonic() > deadline:
            made.last = pid
            break
    return made


def _of(base: str, watched: dict[Key, str], names: dict[str, str]) -> dict[str, str] | None:
    """How the process at ``base`` holds watched files: by path. None where it may not be looked into."""
    held: dict[str, str] = {}
    descriptors = mapped = True
    try:
        with os.scandir(f"{base}/fd") as listed:
            targets = [_link(one.path) for one in itertools.islice(listed, _MAX_DESCRIPTORS)]
        held.update({target: "open" for target in targets if target in names})
    except PermissionError:
        descriptors = False
    except OSError:
        return {}
    try:
        _mapped(read_all(f"{base}/maps", _MAX_MAPS_BYTES), watched, held)
    except PermissionError:
        mapped = False
    except OSError:
        return {}
    return held if descriptors or mapped else None


def _link(path: str) -> str:
    try:
        return os.readlink(path)  # noqa: PTH115 - hot
    except OSError:
        return ""


def _mapped(raw: bytes, watched: dict[Key, str], held: dict[str, str]) -> None:
    inodes = {inode for _, inode in watched}
    names = set(watched.values())
    for line in raw.split(b"\n"):
        fields = line.split(None, 5)
        if len(fields) < 6 or not fields[5].startswith(b"/"):
            continue
        path = os.fsdecode(fields[5])
        gone = path.endswith(" (deleted)")
        path = path.removesuffix(" (deleted)")
        # The path is as the process sees it; where a container names it otherwise, the inode tells.
        if path in names:
            held[path] = "mapped_deleted" if gone else "mapped"
        elif (inode := int(fields[4])) in inodes and not gone:
            major, minor = (int(part, 16) for part in fields[3].split(b":"))
            if (named := watched.get((os.makedev(major, minor), inode))) is not None:
                held[named] = "mapped"


def describe(procfs: str, path: str, pid: int, how: str) -> FileUse:
    """A use with what can be read of its process now."""
    shown = readable(os.fsencode(path))
    try:
        dir_fd = os.open(f"{procfs}/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return FileUse(path=shown, pid=pid, how=how)
    try:
        stat = parse_stat(read_stat("stat", dir_fd))
        link, slow = exe_link("exe", dir_fd), facts(dir_fd, _CMDLINE_BYTES)
    except (OSError, ValueError):
        return FileUse(path=shown, pid=pid, how=how)
    finally:
        os.close(dir_fd)
    return FileUse(
        path=shown,
        pid=pid,
        how=how,
        start_ticks=stat.start_ticks,
        uid=slow.uid,
        exe=None if link == DENIED else link,
        unit=slow.placement.unit,
        container=slow.placement.container,
        cgroup=slow.placement.cgroup,
    )
