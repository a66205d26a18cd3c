"""The ledger: gives raw findings an identity and a life, in event time. Pure: no clock, no disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from mlsecd.errors import StateError
from mlsecd.findings.plain import plain, plain_text
from mlsecd.records import Finding, Severity, Status
from mlsecd.windows.packing import pack, unpack

__all__ = ["ActiveFinding", "Ledger", "finding_id"]

_VERSION = 1
_KEPT_BYTES = 512  # of one evidence value, packed, that later lines still show

Key = tuple[str, str, str, bool]


_RANK = {severity: severity.rank for severity in Severity}


class ActiveFinding(msgspec.Struct, frozen=True, kw_only=True):
    """One finding that is not resolved, for metrics and the landing page. Times are event time, seconds."""

    id: str
    detector: str
    severity: Severity  # the highest of its life
    subject_kind: str
    subject: str
    reason: str  # of its last line
    first_ts: float
    last_ts: float
    synthetic: bool
    certified: bool
    count: int  # pieces of evidence, the first included


class _Life(msgspec.Struct):
    """An active finding. ``line`` is the last one that was emitted, its evidence cut to what is small."""

    line: Finding
    first_ts: float
    last_ts: float
    emitted_ts: float
    count: int = 1


class _State(msgspec.Struct):
    """What a snapshot holds."""

    absorbed: int
    evicted: int
    lives: list[_Life]


class Ledger:
    """De-duplicates findings without ever hiding a new subject.

    The first evidence for a (detector, subject, synthetic) is a ``new`` line. Later evidence keeps
    the finding alive, and is told as an ``update`` only where severity rose above the highest so
    far, a certificate of that severity came, or ``update_after_seconds`` passed since the last line; otherwise
    it is absorbed. Only :meth:`close` resolves. Lines carry the highest severity of the life so far, with its
    certificate, words and numbers: a finding does not flap. What weaker evidence says stands beside them as
    ``latest``, for a page that reads as a ticket is closed.

    Nothing depends on how findings are sliced into calls of :meth:`take`. For that, the limit is
    applied to what is active at :meth:`close`; between two closes at most twice as many are held.

    Parameters
    ----------
    resolve_after_seconds
        Event time without evidence after which a finding is resolved.
    update_after_seconds
        Event time between two updates that say nothing new.
    limit
        The most findings that are tracked. Beyond it the least severe go, of those the oldest: such a
        finding is ``new`` again when its evidence comes back.
    resolve_after
        ``resolve_after_seconds`` by detector, where it differs.
    """

    def __init__(
        self,
        *,
        resolve_after_seconds: float = 900.0,
        update_after_seconds: float = 300.0,
        limit: int = 10_000,
        resolve_after: Mapping[str, float] | None = None,
    ) -> None:
        self.absorbed = 0  # pieces of evidence that made no line
        self.evicted = 0  # findings that the limit pushed out
        self._resolve_after_seconds = resolve_after_seconds
        self._resolve_after = dict(resolve_after or {})
        self._update_after_seconds = update_after_seconds
        self._limit = limit
        self._lives: dict[Key, _Life] = {}

    def __len__(self) -> int:
        return len(self._lives)

    def take(self, findings: Iterable[Finding]) -> list[Finding]:
        """Detectors' raw findings become lines with id and status, in the same order."""
        lines = []
        for raw in findings:
            found = _with_valid_text(raw)
            life = self._lives.get(found.key)
            line = self._begin(found) if life is None else self._go_on(life, found)
            if line is not None:
                lines.append(line)
        return lines

    def _begin(self, found: Finding) -> Finding:
        ts = float(found.ts)
        line = replace(found, ts=ts, id=finding_id(found), status=Status.NEW, evidence=plain(found.evidence))
        self._lives[found.key] = _Life(_slim(line), ts, ts, ts)
        if len(self._lives) > 2 * self._limit:  # memory comes first
            self._evict()
        return line

    def _go_on(self, life: _Life, found: Finding) -> Finding | None:
        life.count += 1
        life.last_ts = max(life.last_ts, float(found.ts))
        before = life.line
        louder = _loudness(found) > _loudness(before)
        if not louder and found.ts - life.emitted_ts < self._update_after_seconds:
            self.absorbed += 1
            return None
        life.emitted_ts = max(life.emitted_ts, float(found.ts))
        if _loudness(found) < _loudness(before):
            evidence = {**before.evidence, "latest": _gist(found), "life": _story(life)}
            return replace(before, ts=float(found.ts), status=Status.UPDATE, evidence=evidence)
        evidence = {**plain(found.evidence), "life": _story(life)}
        line = replace(found, ts=float(found.ts), id=before.id, status=Status.UPDATE, evidence=evidence)
        life.line = _slim(line)
        return line

    def close(self, end_ts: float) -> list[Finding]:
        """End an interval of event time: resolve what was silent for long enough, sorted by key.

        The line's ``ts`` is ``end_ts``, the first instant at which the silence is known. Where event
        time was set back, a finding's silence counts from here: it is never resolved early.
        """
        silent: list[tuple[Key, float]] = []
        for key, life in self._lives.items():
            life.last_ts = min(end_ts, life.last_ts)
            life.emitted_ts = min(end_ts, life.emitted_ts)
            silence = self._resolve_after.get(key[0], self._resolve_after_seconds)
            if end_ts - life.last_ts >= silence:
                silent.append((key, silence))
        lines = [_resolved(self._lives.pop(key), end_ts, silence) for key, silence in sorted(silent)]
        self._evict()
        return lines

    def _evict(self) -> None:
        excess = len(self._lives) - self._limit
        if excess > 0:
            least = sorted(self._lives, key=lambda key: (_weight(self._lives[key]), key))
            for key in least[:excess]:
                del self._lives[key]
            self.evicted += excess

    def active(self) -> list[ActiveFinding]:
        """What is not resolved: the most severe first, of those the latest."""
        lives = sorted(self._lives.values(), key=lambda life: (_weight(life), life.line.id), reverse=True)
        return [
            ActiveFinding(
                id=life.line.id,
                detector=life.line.detector,
                severity=life.line.severity,
                subject_kind=life.line.subject_kind,
                subject=life.line.subject,
                reason=life.line.reason,
                first_ts=life.first_ts,
                last_ts=life.last_ts,
                synthetic=life.line.synthetic,
                certified=life.line.certified,
                count=life.count,
            )
            for life in lives
        ]

    def snapshot(self) -> bytes:
        """The whole state, versioned; its size is bounded by the limit."""
        return pack(_VERSION, _State(self.absorbed, self.evicted, list(self._lives.values())))

    def restore(self, blob: bytes) -> None:
        """Take back what :meth:`snapshot` gave; :class:`~mlsecd.errors.StateError` where it is damaged."""
        try:
            state = msgspec.convert(unpack(_VERSION, blob), _State)
        except msgspec.ValidationError as error:
            raise StateError(f"the findings' ledger cannot be restored: {error}") from error
        self.absorbed, self.evicted = state.absorbed, state.evicted
        self._lives = {life.line.key: life for life in state.lives}


def finding_id(first: Finding) -> str:
    """16 hex digits of what a finding is and when it began; host, engine and batch do not enter."""
    parts = [first.detector, str(first.version), first.subject_kind, first.subject, repr(float(first.ts))]
    if first.synthetic:
        parts.append("synthetic")
    return hashlib.blake2b("\0".join(parts).encode()).hexdigest()[:16]


def _with_valid_text(found: Finding) -> Finding:
    """A name that is not UTF-8, chosen by who runs a process, must break neither a snapshot nor a sink."""
    if found.subject.isascii() and found.reason.isascii() and found.action.isascii():
        return found
    return replace(
        found,
        subject=plain_text(found.subject),
        reason=plain_text(found.reason),
        action=plain_text(found.action),
    )


def _loudness(found: Finding) -> tuple[int, bool]:
    """In order of what a person is told: a certificate is of its own severity, and lends itself to no other."""
    return _RANK[found.severity], found.certified


def _gist(found: Finding) -> dict[str, Any]:
    """What weaker evidence says, beside the line that stands."""
    said = {name: getattr(found, name) for name in ("certified", "score", "threshold", "reason")}
    return {"severity": str(found.severity), **{name: plain(value) for name, value in said.items()}}


def _slim(line: Finding) -> Finding:
    """A line to remember: its evidence cut to short values, so that 10,000 of them stay small."""
    return replace(line, evidence={key: value for key, value in line.evidence.items() if _is_small(key, value)})


def _is_small(key: str, value: Any) -> bool:
    if not isinstance(value, str | dict | list):
        return True
    return key != "life" and len(msgspec.msgpack.encode(value)) <= _KEPT_BYTES


def _story(life: _Life) -> dict[str, Any]:
    return {"first_ts": life.first_ts, "last_ts": life.last_ts, "count": life.count}


def _resolved(life: _Life, end_ts: float, silence: float) -> Finding:
    return replace(
        life.line,
        ts=float(end_ts),
        status=Status.RESOLVED,
        reason=f"no more evidence for {silence:g} s; it was: {life.line.reason}",
        evidence={**life.line.evidence, "life": _story(life)},
    )


def _weight(life: _Life) -> tuple[int, float]:
    """What is kept longest has the greatest."""
    return (_RANK[life.line.severity], life.last_ts)
