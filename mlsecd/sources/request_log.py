"""Request records out of log files that others write: follows them over rotation, truncation and restarts."""

from __future__ import annotations

import itertools
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from mlsecd.errors import StateError
from mlsecd.jsonlines import Decoder
from mlsecd.meters import Meters
from mlsecd.records import Kind, Records, RequestBatch
from mlsecd.sources.adapting import Formats
from mlsecd.sources.base import Params, Poll, Source
from mlsecd.sources.gzip_tail import GzipTail
from mlsecd.sources.log_paths import MAX_NAMES, expand, matches, open_log, reason
from mlsecd.sources.tail import Identity, Place, Tail

__all__ = ["SOURCE", "RequestLog", "RequestLogParams"]

_LINGER_SECONDS: Final = 5.0  # a server writes to a renamed file until it is told to reopen
_SEARCH_SECONDS: Final = 5.0  # between two expansions of the patterns
_MAX_FINISHED: Final = 256

_MAX_TOLD: Final = 3  # files whose troubles one status names

_Path = Annotated[str, Meta(min_length=1)]


class RequestLogParams(Params, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Configuration of the followed logs."""

    enabled: bool = False
    paths: Annotated[
        tuple[_Path, ...],
        Meta(
            max_length=256,
            description="files to follow; patterns (*, ?, [a-z], **) may be given; a server's own log has its format "
            'before it: "nginx:/var/log/nginx/mlsecd.jsonl" (nginx, envoy, litellm, sglang, dynamo, bentoml)',
        ),
    ] = ()
    model: Annotated[
        str, Meta(min_length=1, max_length=256, description="the model of requests whose log names none")
    ] = "unknown"
    interval_seconds: Annotated[float, Meta(gt=0, le=3600, description="seconds between two looks")] = 1.0
    from_start: Annotated[
        bool, Meta(description="read what stands in a file that is seen for the first time; else only what is added")
    ] = False
    follow_symlinks: Annotated[
        bool,
        Meta(description="follow a path that is a symbolic link; only where nobody else may write to its directory"),
    ] = False
    max_files: Annotated[int, Meta(gt=0, le=4096, description="most files followed at a time")] = 64
    max_line_bytes: Annotated[int, Meta(ge=1024, le=1 << 26, description="longest line, bytes")] = 1 << 20
    max_bytes_per_poll: Annotated[
        int, Meta(ge=1 << 16, description="most that is read at a time, of all files, bytes; the rest waits")
    ] = 16 << 20


class _Saved(msgspec.Struct, frozen=True):
    """What :meth:`RequestLog.state` gives; there, paths are their bytes in hex: a file name need not be text."""

    patterns: tuple[str, ...] = ()
    places: tuple[Place, ...] = ()
    finished: tuple[Place, ...] = ()


class RequestLog(Source):
    """Follows JSON-lines files. One that cannot be read does not keep the others."""

    name = "request_log"
    emits = frozenset({Kind.REQUEST})
    summary = "request records from JSON-lines files, over rotation, truncation and restarts"
    Params = RequestLogParams

    def __init__(self, params: RequestLogParams, meters: Meters) -> None:
        super().__init__(params, meters)
        self.interval_seconds = params.interval_seconds
        self._formats = Formats(params.paths, params.model, meters, self.name)
        self._params = params = msgspec.structs.replace(params, paths=self._formats.patterns)
        # Requests only: who may write a server's log must not forge what GPUs and processes do.
        self._decoder = Decoder(meters, self.name, max_line_bytes=params.max_line_bytes, accept=self.emits)
        self._tails: dict[str, Tail] = {}
        self._leaving: list[Tail] = []  # renamed or unlinked, still read to their end
        self._finished: OrderedDict[Identity, Place] = OrderedDict()  # a pattern may find them again
        self._troubles: dict[str, str] = {}
        self._found: list[str] = []
        self._search_due = 0.0
        self._before = _Saved()  # what an earlier life left
        self._saved: dict[str, Any] = {}
        self._begun = False

    def supported(self) -> str | None:
        """``None`` where it was told what to follow."""
        return self._formats.unknown() if self._params.paths else "sources.request_log.paths is empty"

    def state(self) -> dict[str, Any]:
        """How far each file was read, as of the last poll."""
        return self._saved

    def resume(self, state: dict[str, Any]) -> None:
        """Go on where an earlier life stopped.

        Raises
        ------
        StateError
            The state makes no sense; it is left aside.
        """
        try:
            self._before = _with_paths(msgspec.convert(state, _Saved), _decoded)
        except ValueError as error:  # a ValidationError is one
            raise StateError(f"{self.name}: {error}") from error
        self._saved = state

    def samples(self) -> dict[str, str]:
        """One refused line a reason and minute."""
        samples, self._decoder.samples = self._decoder.samples, {}
        return samples | self._formats.troubles()

    def close(self) -> None:
        """Close all files."""
        for tail in self._every():
            tail.close()
        self._tails, self._leaving = {}, []

    def poll(self, deadline: float) -> Poll:
        """Read what was added, of each file in turn, until the poll's share of bytes is used up."""
        self._troubles = {}
        if not self._begun:
            self._take_up()
        for path in self._search():
            self._follow(path)
        self._begun = True
        records = [*self._read(deadline), *self._leave()]
        self.meters.gauge("mlsecd_source_lag_bytes", sum(tail.lag() for tail in self._every()), source=self.name)
        self._saved = self._state()
        troubles = [f"{_readable(path)}: {why}" for path, why in sorted(self._troubles.items())]
        error = "; ".join(troubles[:_MAX_TOLD]) or None
        return Poll(records, seen=len(self._tails), expected=len(self._found), error=error)

    def _every(self) -> list[Tail]:
        return [*self._leaving, *self._tails.values()]

    def _search(self) -> list[str]:
        """The paths to follow. Patterns are expanded now and then: a directory may hold many names."""
        now = time.monotonic()
        if now >= self._search_due:
            self._search_due = now + _SEARCH_SECONDS
            self._found = list(dict.fromkeys(path for pattern in self._params.paths for path in expand(pattern)))
        if len(self._found) > self._params.max_files:
            self._troubles["max_files"] = f"more than {self._params.max_files} files match, the others are not read"
        chosen = self._found[: self._params.max_files]
        for path in [path for path in self._tails if path not in chosen]:
            self._depart(path)
        return chosen

    def _follow(self, path: str) -> None:
        """See to it that the file which ``path`` means now is the one that we read."""
        follow = self._params.follow_symlinks
        try:
            status = Path(path).stat(follow_symlinks=follow)
            identity = (status.st_dev, status.st_ino)
            if path in self._tails and self._tails[path].identity != identity:
                self._depart(path)
            if any(tail.identity == identity for tail in self._every()):
                return
            tail = self._tail(path, open_log(path, follow_symlinks=follow))
        except OSError as error:
            self._troubles[path] = reason(error)
            if path in self._tails:
                self._depart(path)
            return
        self._tails[path] = tail
        place = self._finished.get(tail.identity)
        if (place is None or not tail.resume(place)) and not self._from_start(path):
            tail.start_at_end()

    def _tail(self, path: str, fd: int) -> Tail:
        """Of a packed file where a packed one is configured; the rotated remains of a log are never looked at."""
        return (GzipTail if path.endswith(".gz") else Tail)(path, fd, self._params.max_line_bytes)

    def _from_start(self, path: str) -> bool:
        """A file that appears while we watch is read whole, also where an earlier life watched for it."""
        watched = self._begun or any(matches(path, pattern) for pattern in self._before.patterns)
        return self._params.from_start or watched

    def _depart(self, path: str) -> None:
        """The path means another file now, or none: the old one is still read to its end."""
        tail = self._tails.pop(path)
        tail.left = time.monotonic()
        self._leaving.append(tail)

    def _read(self, deadline: float) -> Iterator[Records]:
        """A piece of each file in turn, so that a busy one does not starve the others."""
        waiting = [tail for tail in self._every() if self._check(tail)]
        budget = self._params.max_bytes_per_poll
        while waiting and budget > 0 and time.monotonic() < deadline:
            # A path's new file waits until its old one was read: the order within a log is kept.
            unfinished = {tail.path for tail in waiting if tail.left is not None}
            for tail in [tail for tail in waiting if tail.left is not None or tail.path not in unfinished]:
                before = tail.position
                try:
                    lines = tail.read()
                except OSError as error:
                    self._troubles[tail.path] = reason(error)
                    waiting.remove(tail)
                    continue
                yield from self._decode(tail.path, lines)
                if tail.at_end:
                    waiting.remove(tail)
                budget -= max(tail.position - before, len(lines))

    def _decode(self, path: str, lines: bytes) -> Iterator[Records]:
        """Requests without a place in the fold's order: that is not a log's to claim."""
        for records in self._decoder.decode(self._formats.ours(path, lines)) if lines else ():
            if isinstance(records, RequestBatch):
                yield RequestBatch(records.columns)

    def _check(self, tail: Tail) -> bool:
        """Whether a file can be read; notes where it was truncated."""
        try:
            if tail.check():
                self.meters.count("mlsecd_log_truncations_total", source=self.name)
        except OSError as error:
            self._troubles[tail.path] = reason(error)
            return False
        return True

    def _leave(self) -> list[Records]:
        """Close the files that nobody writes to any more."""
        records: list[Records] = []
        settled = time.monotonic() - _LINGER_SECONDS
        crowded = len(self._leaving) - self._params.max_files
        for number, tail in enumerate(self._leaving[:]):
            done = tail.at_end and tail.left is not None and tail.left <= settled
            if not done and number >= crowded:
                continue
            if not tail.at_end:
                self.meters.drop(self.name, "rotated_away")
            records += self._decode(tail.path, tail.finish())
            self._remember(tail.place())
            self._leaving.remove(tail)
            tail.close()
        return records

    def _remember(self, place: Place) -> None:
        self._finished[place.identity] = place
        while len(self._finished) > _MAX_FINISHED:
            self._finished.popitem(last=False)

    def _state(self) -> dict[str, Any]:
        saved = _Saved(
            patterns=self._params.paths,
            places=tuple(tail.place() for tail in self._every()),
            finished=tuple(self._finished.values()),
        )
        built: dict[str, Any] = msgspec.to_builtins(_with_paths(saved, _encoded))
        return built

    def _take_up(self) -> None:
        """Open again what an earlier life followed, also where it was renamed meanwhile."""
        for place in self._before.finished[-_MAX_FINISHED:]:
            self._remember(place)
        for place in self._before.places[: 2 * self._params.max_files]:
            if not any(matches(place.path, pattern) for pattern in self._params.paths):
                continue  # no longer configured
            if place.path not in self._tails and (tail := self._at(place.path, place)) is not None:
                self._tails[place.path] = tail
            elif (tail := self._renamed(place)) is not None:
                tail.left = time.monotonic()
                self._leaving.append(tail)
            elif place.offset:
                self.meters.drop(self.name, "lost_place")

    def _at(self, path: str, place: Place) -> Tail | None:
        """The file at ``path``, where it is the one that ``place`` speaks of."""
        try:
            fd = open_log(path, follow_symlinks=self._params.follow_symlinks)
        except OSError:
            return None
        tail = self._tail(place.path, fd)
        if tail.resume(place):
            return tail
        tail.close()
        return None

    def _renamed(self, place: Place) -> Tail | None:
        """Look for the file under another name in its directory, as log rotation gives it."""
        try:
            with os.scandir(Path(place.path).parent) as entries:
                names = [one.path for one in itertools.islice(entries, MAX_NAMES) if one.inode() == place.inode]
        except OSError:
            return None
        return next((tail for name in names if (tail := self._at(name, place)) is not None), None)


def _encoded(path: str) -> str:
    return os.fsencode(path).hex()


def _decoded(text: str) -> str:
    """The path that :func:`_encoded` was given; ValueError where the text is not of its making."""
    path = os.fsdecode(bytes.fromhex(text))
    if not path or "\0" in path or _encoded(path) != text:
        raise ValueError("a path is damaged")
    return path


def _readable(path: str) -> str:
    """A path for a person, whatever bytes it has."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _with_paths(saved: _Saved, change: Callable[[str], str]) -> _Saved:
    return _Saved(
        patterns=tuple(map(change, saved.patterns)),
        places=tuple(place._replace(path=change(place.path)) for place in saved.places),
        finished=tuple(place._replace(path=change(place.path)) for place in saved.finished),
    )


SOURCE = RequestLog
