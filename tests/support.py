"""Small builders that tests share."""

from __future__ import annotations

import resource
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlsecd.detectors.base import Detector, Interval, Section, Standing
from mlsecd.engines.fold import Fold
from mlsecd.findings.ledger import Ledger
from mlsecd.kernels import select
from mlsecd.meters import Meters
from mlsecd.records import (
    FIELDS,
    Field,
    Finding,
    GpuSample,
    Ragged,
    Records,
    RequestBatch,
    ServerSample,
    Text,
    Texts,
)


def free_row(count: int) -> int:
    """The first of so many descriptor numbers in a row that nothing uses: a fixed number may be somebody's by now."""
    taken = {int(path.name) for path in Path("/proc/self/fd").iterdir()}
    highest = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 65_536) - count
    return next(low for low in range(highest, 2, -1) if taken.isdisjoint(range(low, low + count)))


def text(values: Sequence[str | None]) -> Text:
    table: dict[str, int] = {}
    codes = [-1 if value is None else table.setdefault(value, len(table)) for value in values]
    return Text(np.array(codes, np.int32), tuple(table))


def ragged(rows: Sequence[Any], dtype: Any) -> Ragged:
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    flat = [np.asarray(row, dtype) for row in rows]
    return Ragged(offsets, np.concatenate(flat) if flat else np.zeros(0, dtype))


def texts(rows: Sequence[Sequence[str]]) -> Texts:
    table: dict[str, int] = {}
    codes = [[table.setdefault(value, len(table)) for value in row] for row in rows]
    return Texts(ragged(codes, np.int32), tuple(table))


def requests(ts: Sequence[float], **columns: Any) -> RequestBatch:
    """A batch; a scalar column is repeated."""
    n = len(ts)
    made: dict[str, Any] = {"ts": np.asarray(ts, float)}
    for name, value in {"model": "m", **columns}.items():
        match FIELDS[name]:
            case Field.NUMBER:
                made[name] = np.broadcast_to(np.asarray(value, float), n).copy()
            case Field.FLAG:
                made[name] = np.broadcast_to(np.asarray(value, np.int8), n).copy()
            case Field.TEXT:
                made[name] = text([value] * n if value is None or isinstance(value, str) else list(value))
            case Field.TEXTS:
                made[name] = texts(value)
            case Field.VECTOR:
                made[name] = ragged(value, np.float32)
            case Field.IDS:
                made[name] = ragged(value, np.int64)
    return RequestBatch(made)


def atoms(records: Sequence[Records]) -> list[Records]:
    """Every row and record on its own."""
    return [
        atom
        for one in records
        for atom in ([one.slice(i, i + 1) for i in range(len(one))] if isinstance(one, RequestBatch) else [one])
    ]


def regroup(parts: Sequence[Records], sizes: Sequence[int]) -> list[list[Records]]:
    """Pushes of ``sizes`` atoms each, the last taking the rest; neighbouring requests become one batch."""
    pushes: list[list[Records]] = []
    start = 0
    for size in [*sizes, len(parts)]:
        push: list[Records] = []
        run: list[RequestBatch] = []
        for atom in parts[start : start + size]:
            if isinstance(atom, RequestBatch):
                run.append(atom)
                continue
            if run:
                push.append(RequestBatch.concat(run))
                run = []
            push.append(atom)
        if run:
            push.append(RequestBatch.concat(run))
        if push:
            pushes.append(push)
        start += size
        if start >= len(parts):
            break
    return pushes


@dataclass(frozen=True)
class Case:
    """What the conformance suite needs of a detector: ``tests/detectors/test_NAME.py`` defines ``conformance()``.

    records
        In order of arrival; the detector must find something in them.
    flood
        Records of ``n`` distinct keys, for the memory bound under ``limited``, whose limits are below 100 keys.
    """

    detector: type[Detector]
    params: Any
    records: list[Records]
    limited: Any
    flood: Callable[[int], list[Records]]
    section: Section | None = None

    def make(self, params: Any = None) -> Detector:
        return self.detector(self.params if params is None else params, select("cpu"), self.section)


class Sharded(Detector):
    """Several instances of one detector behind the face of one, split by its key."""

    def __init__(self, shards: list[Detector]) -> None:
        first = shards[0]
        self.shards = shards
        self.name, self.consumes, self.key = first.name, first.consumes, first.key  # type: ignore[misc]

    def observe(self, records: Records) -> list[Finding]:
        count = len(self.shards)
        if isinstance(records, RequestBatch) and self.key in {"client", "model"}:
            codes = records.text(self.key).codes
            values = records.text(self.key).values
            homes = np.array([zlib.crc32(value.encode()) % count for value in values] + [0])
            return [
                finding
                for home, shard in enumerate(self.shards)
                if len(rows := np.flatnonzero(homes[codes] == home))
                for finding in shard.observe(records.take(rows))
            ]
        if isinstance(records, ServerSample) and self.key == "model":
            return self.shards[zlib.crc32((records.model or "").encode()) % count].observe(records)
        if isinstance(records, GpuSample) and self.key == "gpu":
            return self.shards[zlib.crc32(records.gpu.encode()) % count].observe(records)
        return [finding for shard in self.shards for finding in shard.observe(records)]

    def states(self) -> list[tuple[str, Any]]:
        return [pair for shard in self.shards for pair in shard.states()]

    def close(self, interval: Interval, states: Iterable[tuple[str, Any]]) -> list[Finding]:
        return self.shards[0].close(interval, states)

    def standing(self) -> Standing:
        return self.shards[0].standing()

    def snapshot(self) -> bytes:
        return self.shards[0].snapshot()

    def restore(self, blob: bytes) -> None:
        raise NotImplementedError


def fold_of(detector: Detector, meters: Meters | None = None) -> Fold:
    """A fold whose detector's faults are the test's."""
    ledger = Ledger(resolve_after_seconds=900.0, update_after_seconds=60.0, limit=10_000)
    fold = Fold([detector], ledger, meters or Meters())

    def failed(_detector: Detector, error: Exception) -> None:
        raise error

    fold.on_failed = failed
    return fold


def listen(fold: Fold) -> list[Finding]:
    """Every finding that detectors make from now on, before lives are made of them; the list fills as they come."""
    found: list[Finding] = []
    take = fold.ledger.take

    def heard(findings: Iterable[Finding]) -> list[Finding]:
        found.extend(kept := list(findings))
        return take(kept)

    fold.ledger.take = heard  # type: ignore[method-assign]
    return found


def lines(fold: Fold, pushes: Iterable[Sequence[Records]], *, finish: bool = True) -> list[dict[str, Any]]:
    """Every finding's line, in an order that does not depend on where an interval was cut."""
    got = [finding.line() for push in pushes for finding in fold.push(push)]
    if finish:
        got += [finding.line() for finding in fold.finish()]
    return sorted(got, key=lambda line: (line["ts"], line["id"], line["status"]))
