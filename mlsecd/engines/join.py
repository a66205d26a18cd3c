"""One request that several sources tell of becomes one record: never counted twice, never another client's.

A gateway knows who asked, a span how many tokens it cost, a tap what was written. They are joined where the request
id is the same (``chatcmpl-ID`` and ``ID`` are), the sources differ, and one record's time lies within the other's.
An id is the client's to choose: so records that contradict each other about the client are not joined, a request that
a gateway turned away is not joined with one that was answered, and where two records of one source could be meant,
none is, ever. The worst that a chosen id can do is to keep two records of one request apart.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.meters import Meters
from mlsecd.records import FIELDS, I4, I8, Column, Field, Ragged, RequestBatch, Text, Texts

__all__ = ["Joiner", "join_key"]

MAX_GROUP: Final = 16  # records of one id at a time; more is a client that sends one id with everything
_SLACK_SECONDS: Final = 0.25  # clocks are read at different moments, and some logs round to milliseconds
_TURNED_AWAY: Final = (401.0, 403.0, 429.0)
_PREFIXED: Final = re.compile(r"(chatcmpl|cmpl|embd|rerank|score|classify|pool|resp|msg)[-_](.+)", re.DOTALL)
_NUMBERED: Final = re.compile(r"-[0-9]{1,4}")
_PLACEHOLDER: Final = "unknown"  # the model where a log does not say it


def join_key(request_id: str) -> str:
    """The id without what servers put around it."""
    match = _PREFIXED.fullmatch(request_id)
    if match is None:
        return request_id
    kind, bare = match.groups()
    if kind == "cmpl" and (number := _NUMBERED.search(bare, max(0, len(bare) - 5))) and number.end() == len(bare):
        return bare[: number.start()]
    return bare


class Joiner:
    """Joins requests that are sorted by completion.

    Parameters
    ----------
    window_seconds
        How long after one record's completion another of the same request may complete.
    """

    def __init__(self, window_seconds: float, meters: Meters) -> None:
        self.window = window_seconds
        self._meters = meters

    def join(self, batch: RequestBatch, until: float) -> RequestBatch:
        """The batch, joined as far as that is decided.

        Parameters
        ----------
        batch
            Rows in order of completion; everything that completes before ``until`` is in it.
        until
            Rows that complete before ``until - window`` look for their partners.
        """
        groups = list(self._groups(batch))
        if not groups:
            return batch
        work = _Work(batch)
        decided = int(np.searchsorted(work.end, until - self.window, "left"))
        seen = int(np.searchsorted(work.end, until, "left"))
        for rows in groups:
            self._join_group([row for row in rows if row < seen], decided, work)
        if not work.joined and not work.barred.any():
            return batch
        self._meters.count("mlsecd_requests_joined_total", len(work.joined))
        return work.result()

    def _groups(self, batch: RequestBatch) -> Iterator[list[int]]:
        """Rows that share an id and come from more than one source; cheap where there are none."""
        if not (batch.has("request_id") and batch.has("source")):
            return
        ids, sources = batch.text("request_id"), batch.text("source")
        rows = np.flatnonzero((ids.codes >= 0) & (batch.seq < 0) & (sources.codes >= 0))
        if not len(rows) or (sources.codes[rows] == sources.codes[rows[0]]).all():
            return
        keys = [join_key(value) for value in ids.values]
        by_key: defaultdict[str, list[int]] = defaultdict(list)
        for row, code in zip(rows.tolist(), ids.codes[rows].tolist(), strict=True):
            by_key[keys[code]].append(row)
        for group in by_key.values():
            if len(group) > 1 and len(set(sources.codes[group].tolist())) > 1:
                yield group

    def _join_group(self, rows: list[int], decided: int, work: _Work) -> None:
        """Each row in turn looks at those that complete after it, within the window: all of them are here.

        What was looked at must not depend on how the stream was cut, so no row looks back: rows that were
        found ambiguous lose their id, and with it every later chance.
        """
        for at, row in enumerate(rows):
            if row >= decided:
                return
            if work.barred[row]:
                continue
            limit = work.end[row] + self.window
            following = (rows[place] for place in range(at + 1, len(rows)))
            later = list(islice((one for one in following if not work.barred[one]), MAX_GROUP))
            later = [one for one in later if work.end[one] <= limit]
            if len(later) == MAX_GROUP:
                self._meters.drop("join", "crowded")
                work.barred[row] = True
                continue
            partner = self._partner(row, later, work)
            if partner is not None:
                work.merge(row, partner)

    def _partner(self, row: int, later: list[int], work: _Work) -> int | None:
        """The one that can be meant, and for which ``row`` is the only one meant; the first, of several sources."""
        candidates = [other for other in later if work.may(row, other)]
        for other in candidates:
            rivals = [one for one in candidates if one != other and work.source[one] == work.source[other]]
            suitors = [
                one
                for one in later
                if one != other and work.source[one] == work.source[row] and work.may(min(one, other), max(one, other))
            ]
            doubts = [one for one in rivals if work.same_client(row, one)]
            doubts += [one for one in suitors if work.same_client(one, other)]
            if not work.same_client(row, other):
                doubts = rivals + suitors
            if not doubts:
                return other
            self._meters.drop("join", "ambiguous", 2 + len(doubts))
            work.barred[[row, other, *doubts]] = True
            return None
        return None


class _Work:
    """A batch while rows of it are merged: which row each column of each row is taken from."""

    def __init__(self, batch: RequestBatch) -> None:
        self._batch = batch
        n = len(batch)
        self.alive = np.ones(n, np.bool_)
        self.barred = np.zeros(n, np.bool_)  # nobody knows whose the id is
        self.joined: list[int] = []
        self.ts = batch.ts.copy()
        self.end = batch.completion
        self.aborted = batch.flag("aborted").copy()
        self.source = _strings(batch.text("source"))
        self._status = batch.number("status")
        self._synthetic = batch.synthetic
        self._host = batch.text("host").codes
        self._model = _strings(batch.text("model"))
        self._client = batch.text("client").codes.copy()
        self._strength = _strengths(self._client, _strings(batch.text("identity")))
        self._held = {name: _present(name, column) for name, column in batch.columns.items()}
        self._from: dict[str, NDArray[np.int64]] = {}

    def may(self, row: int, other: int) -> bool:
        """Whether two rows, ``other`` completing later, can be of one request."""
        if not (self.alive[row] and self.alive[other]) or self._synthetic[row] != self._synthetic[other]:
            return False
        if (
            set(self.source[row].split("+")) & set(self.source[other].split("+"))
            or self._host[row] != self._host[other]
        ):
            return False
        if self.ts[other] > self.ts[row] + _SLACK_SECONDS:
            return False  # it began after the other was under way: another request
        outer, inner = self._status[other], self._status[row]
        if outer in _TURNED_AWAY and np.isfinite(inner) and inner != outer:
            return False
        if self._client[row] < 0 or self._client[other] < 0 or self._client[row] == self._client[other]:
            return True
        return bool(self._strength[row] != self._strength[other])

    def same_client(self, row: int, other: int) -> bool:
        """Whether both name the same client."""
        return bool(self._client[row] >= 0 and self._client[row] == self._client[other])

    def merge(self, row: int, into: int) -> None:
        """What ``row`` says and ``into`` does not, ``into`` says from now on; ``row`` is gone."""
        for name, held in self._held.items():
            if held[row] and (not held[into] or self._better(name, row, into)):
                self._mapping(name)[into] = self._mapping(name)[row]
                held[into] = True
                if name == "model":
                    self._model[into] = self._model[row]
        if self._strength[row] > self._strength[into]:
            self._strength[into], self._client[into] = self._strength[row], self._client[row]
        self.ts[into] = min(self.ts[row], self.ts[into])
        self.aborted[into] = max(self.aborted[row], self.aborted[into])
        self.source[into] = "+".join(sorted({*self.source[row].split("+"), *self.source[into].split("+")}))
        self.alive[row] = False
        self.joined.append(into)

    def _better(self, name: str, row: int, into: int) -> bool:
        """Whether the earlier row's word counts more although the later one has one, too."""
        if name in ("client", "identity"):
            return bool(self._strength[row] > self._strength[into])
        if name == "model":
            return self._model[into] == _PLACEHOLDER and self._model[row] != _PLACEHOLDER
        return False

    def _mapping(self, name: str) -> NDArray[np.int64]:
        if name not in self._from:
            self._from[name] = np.arange(len(self._batch))
        return self._from[name]

    def result(self) -> RequestBatch:
        """The rows that are left, with what they were given."""
        kept = np.flatnonzero(self.alive)
        columns: dict[str, Any] = {}
        for name, column in self._batch.columns.items():
            rows = self._from[name][kept] if name in self._from else kept
            columns[name] = column[rows] if isinstance(column, np.ndarray) else column.take(rows)
        columns["ts"] = self.ts[kept]
        columns["duration_s"] = self._durations(kept)
        if "aborted" in columns:
            columns["aborted"] = self.aborted[kept]
        columns["source"] = _text(self.source[kept].tolist())
        ids = columns["request_id"]
        columns["request_id"] = Text(np.where(self.barred[kept], np.int32(-1), ids.codes), ids.values)
        return RequestBatch({name: columns[name] for name in FIELDS if name in columns}, self._batch.seq[kept])

    def _durations(self, kept: NDArray[np.int64]) -> NDArray[np.float64]:
        """So that each joined row completes when it did: its place in the order stays."""
        durations = self._batch.number("duration_s").copy()
        for row in self.joined:
            durations[row] = max(0.0, self.end[row] - self.ts[row])
        return durations[kept]


def _strengths(clients: I4, identities: NDArray[Any]) -> I8:
    """How much a record's word about the client weighs: 2 verified, 1 a key shown, 0 an address, -1 none."""
    weights = np.where(identities == "verified", 2, np.where(identities == "unverified", 0, 1))
    return np.where(clients < 0, -1, weights)


def _strings(column: Text) -> NDArray[Any]:
    """object[n]: the strings, "" where absent."""
    return np.array([*column.values, ""], object)[column.codes]


def _present(name: str, column: Column) -> NDArray[np.bool_]:
    """bool[n]: rows that hold a value."""
    match column:
        case Text(codes, _):
            return codes >= 0
        case Texts(codes, _):
            return codes.lengths > 0
        case Ragged():
            return column.lengths > 0
        case _:
            return np.isfinite(column) if FIELDS[name] is Field.NUMBER else column >= 0


def _text(values: list[str]) -> Text:
    table: dict[str, int] = {}
    codes = [table.setdefault(value, len(table)) if value else -1 for value in values]
    return Text(np.array(codes, np.int32), tuple(table))
