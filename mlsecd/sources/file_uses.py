"""Which processes have a file open or mapped: descriptors and maps, since loaders close the one and keep the other."""

from __future__ import annotations

import itertools
import os
import time
from dataclasses import dataclass, field
from typing import Final

from mlsecd.records import FileUse
from mlsecd.sources.depth import HOLDERS, read_all
from mlsecd.sources.procfs import DENIED, exe_link, facts, parse_stat, read_stat, readable

__all__ = ["Search", "Uses", "describe"]

_MAX_DESCRIPTORS: Final = 16_384
_MAX_MAPS_BYTES: Final = 8 << 20
_MAX_SECONDS: Final = 0.06  # of the thread's CPU, a look
_NEWCOMER_SECONDS: Final = 5.0
_CMDLINE_BYTES: Final = 64  # not looked at, so little is read

Key = tuple[int, int]  # device and inode


@dataclass(slots=True)
class Uses:
    """What one look found."""

    found: list[FileUse] = field(default_factory=list)
    denied: int = 0  # processes that can be looked into in neither way
    cut: bool = False  # a limit ended it: who was not reached comes first in the next


class Search:
    """Looks for users of files: often where it matters, everywhere seldom.

    Who uses one already, and who holds a GPU, is looked at each time; a newcomer soon after it starts, for a server
    opens its files seconds after that; everybody else within ``search_seconds``, spread over them.
    """

    def __init__(self, procfs: str, search_seconds: float) -> None:
        self._procfs = procfs
        self._every = search_seconds
        self._watched: frozenset[Key] = frozenset()
        self._due: dict[int, tuple[float, float]] = {}  # by pid: time.monotonic() of its first sight, of the next look
        self._users: set[int] = set()
        self._denied: set[int] = set()

    def look(self, watched: dict[Key, str], deadline: float) -> Uses:
        """One look.

        Parameters
        ----------
        watched
            Path by device and inode: a name may be replaced while the old file is still mapped.
        """
        made, names = Uses(), {path: path for path in watched.values()}
        now, spent_from = time.monotonic(), time.thread_time()
        if watched.keys() != self._watched:
            self._watched = frozenset(watched)
            self._due = {pid: (born, now) for pid, (born, _) in self._due.items()}
        for pid in self._order(now):
            held = _of(f"{self._procfs}/{pid}", watched, names)
            self._settle(pid, held, now)
            made.found += [describe(self._procfs, path, pid, how) for path, how in sorted((held or {}).items())]
            if time.thread_time() - spent_from > _MAX_SECONDS or time.monotonic() > deadline:
                made.cut = True
                break
        made.denied = len(self._denied)
        return made

    def _order(self, now: float) -> list[int]:
        """Whose turn it is: those that are looked at each time, newcomers (youngest first), who waited longest."""
        with os.scandir(self._procfs) as listed:
            there = {int(one.name) for one in listed if one.name.isdigit()} - {os.getpid()}
        self._due = {pid: self._due.get(pid, (now, now)) for pid in there}
        self._users &= there
        self._denied &= there
        always = (self._users | _holders(self._procfs)) & there
        waiting = sorted(
            (due != born, due if due != born else 0.0, -pid)  # the two are the same until the first look
            for pid, (born, due) in self._due.items()
            if due <= now and pid not in always
        )
        return [*sorted(always), *(-behind for _, _, behind in waiting)]

    def _settle(self, pid: int, held: dict[str, str] | None, now: float) -> None:
        born, _ = self._due[pid]
        wait = min(self._every * (0.5 + pid % 61 / 122), max(_NEWCOMER_SECONDS, now - born))
        self._due[pid] = (born, now + wait)
        (self._denied.add if held is None else self._denied.discard)(pid)
        (self._users.add if held else self._users.discard)(pid)


def _holders(procfs: str) -> set[int]:
    """Who holds a GPU, as far as the process source found out."""
    return {pid for (root, _), (_, pids) in HOLDERS.items() if root == procfs for pid in pids}


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
