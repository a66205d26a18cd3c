"""Lines in, records out: the fast path, the tolerant path, and the account of what was bad."""

from __future__ import annotations

import io
import re
import time
from collections import Counter
from collections.abc import KeysView
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from operator import attrgetter
from typing import Any, Final, NoReturn

import msgspec
import numpy as np
from msgspec import Raw
from numpy.typing import NDArray

from mlsecd.meters import Meters
from mlsecd.records import Kind, Records, RequestBatch

from .columns import Unfit, plan, to_batch, with_source
from .layout import Layout, Learner
from .samples import SAMPLES, from_wire, sample_type
from .wire import REQUEST, REQUIRED, request_struct

__all__ = ["Decoder"]

PART: Final = 16_384  # rows that are turned into columns at a time
SAMPLE_SECONDS: Final = 60.0
MAX_SAMPLE: Final = 120
BOM: Final = b"\xef\xbb\xbf"
# What reading can raise: ValueError is text that is not UTF-8, RecursionError is nesting.
BAD: Final = (msgspec.MsgspecError, ValueError, RecursionError, OverflowError)

_LIMIT: Final = re.compile("[<>]=? |out of range")  # how msgspec says that a limit is missed, not the type
_KINDS: Final = {str(kind): kind for kind in Kind}
_NOTHING: Final = (b"null", b'""')
_REQUIRED: Final = {
    Kind.REQUEST: REQUIRED,
    Kind.GPU: ("ts", "gpu"),
    Kind.PROCESS: ("ts", "processes"),
    Kind.FILE: ("ts",),
    Kind.SOCKET: ("ts", "seconds"),
    Kind.SERVER: ("ts", "server"),
    Kind.SOURCE: ("ts", "source", "ok"),
}
_keys_of: Final = msgspec.json.Decoder(dict[str, Raw]).decode
_kind_of: Final = msgspec.json.Decoder(str | None).decode


class _Bad(Exception):  # noqa: N818 - a signal inside this module
    """A line that gives no record; its text is the reason."""


@cache
def _tolerant(kind: Kind) -> tuple[Any, frozenset[str]]:
    """What decodes any line of a kind, and the keys that it knows."""
    struct = request_struct(REQUEST) if kind is Kind.REQUEST else sample_type(SAMPLES[kind])
    return msgspec.json.Decoder(struct).decode, frozenset(struct.__struct_fields__) | {"kind"}


class Decoder:
    """Reads JSON lines of one stream; not for use by two threads at once.

    Rows are objects for a moment, the worst of them 30 times as large as their lines: feed it at most a few MiB
    at a time. Lines that are no record are counted (``mlsecd_dropped_total``) under one of these reasons:
    ``json`` (not JSON, or nested too deep), ``encoding`` (not UTF-8), ``type``, ``range`` (a limit of a
    number, text, list or vector), ``missing`` (a required key), ``kind`` (unknown, or not accepted here),
    ``kind_unsupported``, ``too_long``. Empty lines are nothing.

    Parameters
    ----------
    meters
        Where drops and unknown keys are counted.
    where
        The stream's name in them.
    max_line_bytes
        Longer lines are not looked at.
    accept
        The kinds to take; ``None`` takes all.

    Attributes
    ----------
    samples
        The last bad line by reason, escaped, at most 120 characters, renewed once a minute at most. Whoever
        logs them may clear it.
    """

    def __init__(
        self, meters: Meters, where: str, *, max_line_bytes: int = 1 << 20, accept: frozenset[Kind] | None = None
    ) -> None:
        self.samples: dict[str, str] = {}
        self._meters = meters
        self._where = where
        self._max_line_bytes = max_line_bytes
        self._accept = frozenset(Kind) if accept is None else accept
        self._learner = Learner()
        self._sampled: dict[str, float] = {}
        self._dropped: Counter[str] = Counter()
        self._unknown = 0

    def decode(self, lines: bytes | list[bytes], *, producer: str | None = None) -> list[Records]:
        """Records in order of arrival; requests that follow each other make one batch.

        Parameters
        ----------
        lines
            Whole lines; the last newline may be missing. An item of a list may hold more than one.
        producer
            The ``source`` of requests that name none.
        """
        data = self._without_long(lines if isinstance(lines, bytes) else b"\n".join(lines))
        stream = io.BytesIO(data)
        run = _Run(producer)
        while True:
            fast = self._learner.layout.decode if Kind.REQUEST in self._accept else _refuse
            try:
                # On a bad line, extend keeps the rows before it, and the stream stands behind it.
                run.rows.extend(islice(map(fast, stream), PART - len(run.rows)))
            except BAD:
                end = stream.tell()
                self._take(run, data[data.rfind(b"\n", 0, end - 1) + 1 : end])
                continue
            more = len(run.rows) == PART
            self._close_part(run)
            if not more:
                run.close_batch()
                self._count()
                return run.done

    def _without_long(self, data: bytes) -> bytes:
        """The lines within the limit. It jumps from line end to line end, a limit's length at a time."""
        kept: list[bytes] = []
        start = at = 0
        while len(data) - at > self._max_line_bytes:
            end = data.rfind(b"\n", at, at + self._max_line_bytes + 1)
            if end < 0:
                self._drop("too_long", data[at : at + MAX_SAMPLE])
                kept.append(data[start:at])
                end = data.find(b"\n", at)
                start = end + 1 if end >= 0 else len(data)
            at = end + 1 if end >= 0 else len(data)
        return b"".join([*kept, data[start:]]) if start else data

    def _take(self, run: _Run, line: bytes) -> None:
        """Read a line that the layout refused."""
        line = line.removeprefix(BOM)
        if not line.strip():
            return
        try:
            kind, keys, found = self._read(line)
        except _Bad as bad:
            self._drop(str(bad), line)
            return
        self._unknown += len(keys - _tolerant(kind)[1])
        if kind is not Kind.REQUEST:
            self._close_part(run)
            run.close_batch()
            run.done.append(found)
            return
        lacking = [key for key in keys if key not in self._learner.layout.keys]
        self._learner.see(lacking)
        run.wide.append(len(run.rows))
        run.rows.append(found)
        run.rare.update(key for key in lacking if key in REQUEST)
        if self._learner.due(len(run.rows)):
            self._close_part(run)

    def _read(self, line: bytes) -> tuple[Kind, KeysView[str], Any]:
        """Kind, keys, and row or record of one line; raises _Bad."""
        try:
            raw = _keys_of(line)
            said = _kind_of(raw.get("kind", b"null"))
            kind = Kind.REQUEST if said is None else _KINDS.get(said)
            if kind not in self._accept:
                raise _Bad("kind")
            if kind not in _REQUIRED:
                raise _Bad("kind_unsupported")
            for key in _REQUIRED[kind]:
                if bytes(raw.get(key, b"null")) in _NOTHING:
                    raise _Bad("missing")
            found = _tolerant(kind)[0](msgspec.json.encode(raw))  # of a key given twice, the last counts
            return kind, raw.keys(), found if kind is Kind.REQUEST else from_wire(found)
        except BAD as error:
            raise _Bad(_reason(error)) from None

    def _close_part(self, run: _Run) -> None:
        """Rows in hand to columns."""
        layout = self._learner.layout
        held = len(run.rows)
        used = self._carried(run, layout)
        while run.rows:
            try:
                batch = to_batch(run.rows, layout.plan, run.wide, plan(sorted(run.rare)))
            except Unfit as unfit:
                run.rows, run.wide = self._without_unfit(run, unfit.keep)
                continue
            used += batch.columns
            run.parts.append(batch if run.producer is None else with_source(batch, run.producer))
            break
        self._learner.note(held, used)
        run.rows, run.wide, run.rare = [], [], set()

    def _carried(self, run: _Run, layout: Layout) -> list[str]:
        """Count the unknown keys that the layout let through; gives those that were there."""
        if not layout.carried:
            return []
        wide = set(run.wide)
        fast = [row for at, row in enumerate(run.rows) if at not in wide]
        seen = {key: len(fast) - list(map(attrgetter(name), fast)).count(None) for name, key in layout.carried.items()}
        self._unknown += sum(seen.values())
        return [key for key, n in seen.items() if n]

    def _without_unfit(self, run: _Run, keep: NDArray[np.bool_]) -> tuple[list[Any], list[int]]:
        for at in np.flatnonzero(~keep):
            self._drop("range", run.rows[at])
        kept = np.flatnonzero(keep)
        return [run.rows[at] for at in kept], np.flatnonzero(np.isin(kept, run.wide)).tolist()

    def _count(self) -> None:
        """Hand what a call counted to the meters, which cost a lock each time."""
        for reason, n in self._dropped.items():
            self._meters.drop(self._where, reason, n)
        if self._unknown:
            self._meters.count("mlsecd_unknown_fields_total", self._unknown, where=self._where)
        self._dropped.clear()
        self._unknown = 0

    def _drop(self, reason: str, what: Any) -> None:
        """Count a bad line, and keep it as the sample of its reason where one is due."""
        self._dropped[reason] += 1
        now = time.monotonic()
        if now - self._sampled.get(reason, -np.inf) >= SAMPLE_SECONDS:
            self._sampled[reason] = now
            line = what if isinstance(what, bytes) else _line_of(what)
            self.samples[reason] = repr(line[:MAX_SAMPLE])[2:-1][:MAX_SAMPLE]


@dataclass(slots=True)
class _Run:
    """What one call of :meth:`Decoder.decode` has in hand."""

    producer: str | None
    rows: list[Any] = field(default_factory=list)  # requests, not yet in columns
    wide: list[int] = field(default_factory=list)  # those of them that took the tolerant path
    rare: set[str] = field(default_factory=set)  # the fields that only they may have
    parts: list[RequestBatch] = field(default_factory=list)  # of the batch in hand
    done: list[Records] = field(default_factory=list)

    def close_batch(self) -> None:
        """No more requests follow on these."""
        if self.parts:
            self.done.append(RequestBatch.concat(self.parts))
            self.parts = []


def _refuse(_: bytes) -> NoReturn:
    """The fast path of a stream that takes no requests."""
    raise ValueError


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "encoding"
    if isinstance(error, msgspec.ValidationError):
        return "range" if _LIMIT.search(str(error)) else "type"
    return "json"


def _line_of(row: Any) -> bytes:
    """A row as JSON once more, as far as that goes."""
    try:
        return msgspec.json.encode(row)
    except BAD:
        return b"?"
