"""Model files: whether they change, and who opens or maps them."""

from __future__ import annotations

import glob
import os
import stat
import threading
import time
from typing import Annotated, Final

from msgspec import Meta

from mlsecd.errors import SourceError
from mlsecd.meters import Meters
from mlsecd.records import FileSample, FileUse, Kind, WatchedFile
from mlsecd.sources.base import Params, Poll, Source
from mlsecd.sources.file_events import Events
from mlsecd.sources.file_uses import Key, Search, describe
from mlsecd.sources.page_cache import opened
from mlsecd.sources.procfs import readable
from mlsecd.sources.weights_digest import Hasher, sampled, stamp_of

__all__ = ["SOURCE", "Weights", "WeightsParams"]

_OPENED_MAX: Final = 1_024  # opens between two polls


class WeightsParams(Params, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Configuration of the watch over model files."""

    paths: Annotated[
        tuple[str, ...],
        Meta(max_length=256, description="model files and directories; patterns (*, **) may be given"),
    ] = ()
    honey: Annotated[
        tuple[str, ...], Meta(max_length=64, description="files that nobody has a reason to open: any use is told of")
    ] = ()
    interval_seconds: Annotated[
        float, Meta(gt=0, le=3600, description="seconds between two looks at who uses them")
    ] = 10.0
    search_seconds: Annotated[
        float, Meta(gt=0, le=3600, description="seconds within which a known process that opens one is noticed")
    ] = 60.0
    sample_seconds: Annotated[
        float, Meta(ge=0, le=86_400, description="seconds between two digests of 64 blocks of each file; 0: none")
    ] = 60.0
    hash_bytes_per_second: Annotated[
        float, Meta(ge=0, description="rate of the background pass that reads whole files; 0: none")
    ] = 50e6
    max_files: Annotated[int, Meta(gt=0, le=4096, description="most files that are watched")] = 1_024
    events: Annotated[bool, Meta(description="whether the kernel is asked for opens (CAP_SYS_ADMIN)")] = True
    procfs: Annotated[str, Meta(min_length=1, description="where /proc is mounted")] = "/proc"


class Weights(Source):
    """Three ways of looking, from cheap to thorough.

    Each poll: stat of every file, and whether its users, GPU processes and newcomers have it open or mapped; within a
    minute everybody else. Each minute: 64 blocks of each.
    In the background: all of it, once for each version, without evicting what the server has cached.
    After a model was loaded into GPU memory nothing of it may be left open: then the opens tell, where
    CAP_SYS_ADMIN lets us have them.
    """

    name = "weights"
    emits = frozenset({Kind.FILE})
    summary = "model files: their digests, and which processes open or map them"
    Params = WeightsParams

    def __init__(self, params: WeightsParams, meters: Meters) -> None:
        super().__init__(params, meters)
        self.interval_seconds = params.interval_seconds
        self._params = params
        self._hasher = Hasher(params.hash_bytes_per_second) if params.hash_bytes_per_second else None
        self._events: Events | None = None
        self._no_events: str | None = None if params.events else "off (events = false)"
        self._lock = threading.Lock()
        self._opened: dict[tuple[str, int], FileUse] = {}
        self._samples: dict[str, tuple[float, tuple[int, ...], str]] = {}  # by path: when, of which version, digest
        self._seen: dict[str, None] = {}
        self._search = Search(params.procfs, params.search_seconds)

    def supported(self) -> str | None:
        """``None`` where it was told what to watch."""
        return (
            None
            if self._params.paths or self._params.honey
            else "no model files are configured ([sources.weights] paths)"
        )

    def close(self) -> None:
        """End the threads."""
        if self._events is not None:
            self._events.close()
            self._events = None
        if self._hasher is not None:
            self._hasher.stop()

    def poll(self, deadline: float) -> Poll:
        """Look once."""
        ts = time.time()
        self._start_events()
        blind: list[str] = []
        names, cut = self._names()
        if cut:
            self.meters.drop(self.name, "max_files", cut)
            blind.append(f"files: {cut} more than max_files are not watched")
        files = [one for path in names if (one := self._look(path, deadline, blind)) is not None]
        found = {readable(os.fsencode(one)) for one in names}
        missing = tuple(path for path in self._seen if path not in {one.path for one in files})[
            : self._params.max_files
        ]
        self._seen.update(dict.fromkeys(one.path for one in files))
        while len(self._seen) > 2 * self._params.max_files:
            del self._seen[next(iter(self._seen))]
        held, more = self._uses(names, files, deadline)
        if self._no_events is not None:
            blind.append(f"opens: {self._no_events}")
        sample = FileSample(
            ts=ts, files=tuple(files), uses=tuple(held), missing=missing, blind=tuple([*blind, *more][:16])
        )
        if not names and not self._seen:
            raise SourceError("no configured model file is there")
        return Poll([sample], seen=len(files), expected=len(found | set(missing)))

    def _start_events(self) -> None:
        if self._events is None and self._no_events is None:
            self._events = Events(self._open)
            self._no_events = self._events.start()

    def _open(self, path: str, _device: int, _inode: int, pid: int) -> None:
        """An open, told by the kernel: look at the process before it is gone."""
        use = describe(self._params.procfs, path, pid, "opened")
        with self._lock:
            if len(self._opened) < _OPENED_MAX:
                self._opened[path, pid] = use
            else:
                self.meters.drop(self.name, "opens")

    def _names(self) -> tuple[list[str], int]:
        """The files to watch, and how many more there would be."""
        names: dict[str, None] = {}
        for pattern in (*self._params.honey, *self._params.paths):
            for found in sorted(glob.iglob(pattern, recursive=True)):  # noqa: PTH207 - patterns are absolute
                if os.path.isdir(found):  # noqa: PTH112
                    names.update(dict.fromkeys(sorted(os.path.join(found, one) for one in _listed(found))))  # noqa: PTH118
                else:
                    names[found] = None
        return list(names)[: self._params.max_files], max(0, len(names) - self._params.max_files)

    def _look(self, path: str, deadline: float, blind: list[str]) -> WatchedFile | None:
        try:
            found = os.stat(path)  # noqa: PTH116 - hot
        except FileNotFoundError:
            return None
        except OSError as error:
            blind.append(f"files: {error.strerror}")
            return None
        if not stat.S_ISREG(found.st_mode):
            return None
        if self._events is not None:
            self._events.watch(path, found.st_dev, found.st_ino)
        stamp = stamp_of(found)
        digest = self._hasher.want(path, stamp) if self._hasher is not None else None
        return WatchedFile(
            path=readable(os.fsencode(path)),
            device=found.st_dev,
            inode=found.st_ino,
            size=found.st_size,
            mtime_ns=found.st_mtime_ns,
            ctime_ns=found.st_ctime_ns,
            mode=stat.S_IMODE(found.st_mode),
            uid=found.st_uid,
            sampled=self._sample(path, stamp, deadline, blind),
            sha256=digest,
            honey=path in self._params.honey,
        )

    def _sample(self, path: str, stamp: tuple[int, ...], deadline: float, blind: list[str]) -> str | None:
        """The digest of 64 blocks: anew each minute, since an attacker with root can put times back."""
        every, now = self._params.sample_seconds, time.monotonic()
        held = self._samples.get(path)
        if held is not None and held[1] == stamp and (now - held[0] < every or now > deadline):
            return held[2]
        if not every or now > deadline:
            return None
        try:
            fd = opened(path)
            try:
                digest = sampled(fd, stamp[2])
            finally:
                os.close(fd)
        except OSError as error:
            blind.append(f"sampled: {error.strerror} (CAP_DAC_READ_SEARCH)")
            return None
        if len(self._samples) >= 2 * self._params.max_files:
            self._samples.clear()
        self._samples[path] = (now, stamp, digest)
        return digest

    def _uses(self, names: list[str], files: list[WatchedFile], deadline: float) -> tuple[list[FileUse], list[str]]:
        by_path = {readable(os.fsencode(name)): name for name in names}
        watched: dict[Key, str] = {(one.device, one.inode): by_path[one.path] for one in files}
        scan = self._search.look(watched, deadline)
        with self._lock:
            opened, self._opened = list(self._opened.values()), {}
        blind = [f"uses: {scan.denied} processes not permitted (CAP_SYS_PTRACE)"] if scan.denied else []
        if scan.cut:
            blind.append("uses: the last look was cut, the next one goes on")
        if self._events is not None and self._events.lost:
            self.meters.drop(self.name, "kernel_queue", self._events.lost)
            self._events.lost = 0
        return [*opened, *scan.found][:4096], blind


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)  # noqa: PTH208
    except OSError:
        return []


SOURCE = Weights
