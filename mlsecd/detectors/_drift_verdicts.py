"""What a drift means: which streams moved, from where to where, how far, since when; and how loud that is."""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np

from mlsecd.detectors._drift_crowd import dominated
from mlsecd.detectors._drift_effect import effect_of_rank, effect_of_shares
from mlsecd.detectors._drift_picture import picture, sparkline
from mlsecd.detectors._drift_reference import Reference
from mlsecd.detectors._drift_renewal import STRAY_MIN, Strayed
from mlsecd.detectors._drift_season import DAY, WEEK, weekdays
from mlsecd.detectors._drift_watch import Watch
from mlsecd.kernels import drift_layout as at
from mlsecd.records import Severity

__all__ = ["Moved", "Verdict", "judge", "stray"]

# Cohen's conventions (1988): below "small" nothing is asked of anybody, from "medium" on somebody should look.
_SMALL: Final = 0.2
_MEDIUM: Final = 0.5

_ROWS_MIN: Final = 1_000.0  # a smaller reference certifies nothing
_DAY_SEEN: Final = 0.95
_DAYS_MIN: Final = 1.95  # nor does one that cannot have seen a day come back
_SHOWN_MAX: Final = 8  # streams in a finding
_NAME_CHARS: Final = 48
_PICTURES_MAX: Final = 3
CUSTOMER: Final = "one client sends "  # so a doubt about a big customer begins
WHOLE: Final = "whole vector"  # the name under which the test of vectors stands among the streams


class Moved(NamedTuple):
    """One stream that is at its threshold, over the run that took it there.

    ``effect`` is Cohen's d as the ranks give it, Cohen's h of two shares, or for the whole vector the
    distance of the means over the spread, both in the kernel's space. ``least`` is the smallest
    effect that would have shown in the end.
    """

    name: str
    before: float
    after: float
    effect: float
    onset: float
    rows: int
    log_e: float
    log_threshold: float
    steady: bool
    reference_rows: int
    least: float
    picture: dict[str, Any] | None

    def evidence(self) -> dict[str, Any]:
        """As a finding shows it."""
        return {
            "stream": self.name,
            "from": _short(self.before),
            "to": _short(self.after),
            "effect": round(self.effect, 3),
            "least_effect": round(self.least, 3),
            "onset": self.onset,
            "rows": self.rows,
            "log_e": round(self.log_e, 2),
            "log_threshold": round(self.log_threshold, 2),
        }

    def words(self) -> str:
        """In a sentence; the name may be an attacker's."""
        line = "" if self.picture is None else f" {sparkline(self.picture)}"
        return f"{_plain(self.name)} {self.before:.3g} -> {self.after:.3g} (effect {self.effect:+.2f}){line}"


class Verdict(NamedTuple):
    """What to say of a model."""

    severity: Severity
    certified: bool
    score: float
    threshold: float
    reason: str
    evidence: dict[str, Any]

    def of_tenant(self, name: str) -> Verdict:
        """The same, said of a customer who is held against a reference of its own."""
        reason = f"of the tenant {_plain(name)}, against its own reference: {self.reason}"
        return self._replace(reason=reason, evidence={**self.evidence, "tenant": name})


def judge(watch: Watch, reference: Reference, ts: float) -> Verdict:
    """The verdict on a model of which at least one stream is latched, at the time of a row."""
    moved = sorted(_moved(watch, reference), key=lambda one: (-abs(one.effect), one.name))
    doubts = _doubts(watch, reference, moved, ts)
    furthest = max(moved, key=lambda one: one.log_e - one.log_threshold)
    more = f"; and {len(moved) - 3} more" if len(moved) > 3 else ""
    return Verdict(
        severity=_severity(max(abs(one.effect) for one in moved), doubts, reference.end - reference.start),
        certified=not doubts,
        score=furthest.log_e,
        threshold=furthest.log_threshold,
        reason=f"{len(moved)} of {len(reference.names) + (watch.windows is not None)} streams left the reference: "
        + "; ".join(one.words() for one in moved[:3])
        + more,
        evidence={
            "streams": [one.evidence() for one in moved[:_SHOWN_MAX]],
            "pictures": {one.name: one.picture for one in moved[:_PICTURES_MAX] if one.picture is not None},
            "streams_moved": len(moved),
            "streams_watched": len(reference.names) + (watch.windows is not None),
            "onset": min(one.onset for one in moved),
            "uncertified": doubts,
            "reference": {
                "rows": int(reference.rows.max(initial=0.0)),
                "start": reference.start,
                "end": reference.end,
                "scored_per_second": _short(reference.rate),
            },
        },
    )


def stray(found: list[Strayed]) -> Verdict:
    """The verdict on a renewed sample that is not taken, for it has strayed from the pinned reference."""
    words = "; ".join(
        f"{_plain(one.name)} {one.before:.3g} -> {one.after:.3g} ({one.effect:+.2f})" for one in found[:3]
    )
    streams = [
        {
            "stream": one.name,
            "from": _short(one.before),
            "to": _short(one.after),
            "effect": round(one.effect, 3),
            "rows": one.rows,
        }
        for one in found[:_SHOWN_MAX]
    ]
    return Verdict(
        severity=Severity.LOW,
        certified=False,
        score=abs(found[0].effect),
        threshold=STRAY_MIN,
        reason=f"a renewed reference is not taken, it has strayed little by little from the pinned one: {words}",
        evidence={"strayed": streams, "streams_moved": len(found)},
    )


def _plain(name: str) -> str:
    """A name that may be an attacker's, for a sentence."""
    return name[:_NAME_CHARS].encode("unicode_escape").decode()


def _moved(watch: Watch, reference: Reference) -> list[Moved]:
    latched = np.flatnonzero(watch.state[:, at.LATCHED] > 0.0).tolist()
    found = [_stream(watch, reference, stream) for stream in latched]
    windows = watch.windows
    if windows is not None and windows.latched:
        spread = max(windows.spread, 1e-9)
        found.append(
            Moved(
                name=WHOLE,
                before=0.0,
                after=math.sqrt(max(windows.mmd2, 0.0)),
                effect=windows.effect,
                onset=windows.onset,
                rows=(windows.tests - windows.since) * len(windows.rows),
                log_e=windows.log_s,
                log_threshold=windows.log_threshold,
                steady=True,
                reference_rows=len(reference.pool),
                least=math.sqrt(float(reference.concession[0]) / spread),
                picture=None,
            )
        )
    return found


def _stream(watch: Watch, reference: Reference, stream: int) -> Moved:
    own = watch.state[stream]
    run = watch.runs[stream, int(np.argmax(watch.runs[stream, :, at.W]))]  # the bet that won most
    rows = max(own[at.COUNT] - run[at.COUNT_0], 1.0)
    rank = float((own[at.SUM_X] - run[at.SUM_X_0]) / rows)
    before, after = float(reference.means[stream]), float((own[at.SUM_VALUE] - run[at.SUM_VALUE_0]) / rows)
    share = reference.offsets[stream] == reference.offsets[stream + 1]
    return Moved(
        name=reference.names[stream],
        before=before,
        after=after,
        effect=effect_of_shares(before, before + 2.0 * rank) if share else effect_of_rank(rank),
        onset=float(run[at.START]),
        rows=int(rows),
        log_e=math.log(max(float(watch.runs[stream, :, at.S].mean()), 1e-300)),
        log_threshold=math.log(watch.thresholds[stream]),
        steady=bool(reference.steady[stream]),
        reference_rows=int(reference.rows[stream]),
        least=float(abs(reference.least[stream])),
        picture=None if share else picture(reference, stream, watch.bins[stream], watch.expected[stream]),
    )


def _doubts(watch: Watch, reference: Reference, moved: list[Moved], ts: float) -> list[str]:
    """Why the promised run length may not hold for this finding; empty: it holds."""
    doubts = []
    span = reference.end - reference.start
    if watch.provisional:
        doubts.append("the reference is provisional: the whole sample is still being learned")
    streams = [one.reference_rows for one in moved if one.name != WHOLE]
    if streams and min(streams) < _ROWS_MIN:
        doubts.append(f"the reference has fewer than {_ROWS_MIN:,.0f} rows")
    if span < _DAYS_MIN * DAY:
        doubts.append("the reference is shorter than two days: an ordinary change over the day looks like drift")
    elif span < WEEK and not (weekdays(reference.start, reference.end) & weekdays(ts, ts)):
        doubts.append("the reference has no such day of the week")
    if not all(one.steady for one in moved):
        doubts.append("a stream varies more between stretches of its reference than independent rows would")
    if dominated(watch.crowd.share, reference.crowd):
        doubts.append(
            f"{CUSTOMER}{watch.crowd.share:.0%} of the rows that count, {reference.crowd:.0%} was the most before"
        )
    if watch.busy:
        doubts.append("more rows are scored than when the reference was learned")
    return doubts


def _severity(effect: float, doubts: list[str], span: float) -> Severity:
    """Drift never pages: it is a reason to look, not to wake anybody.

    Before a day was seen, what is not large may well be the day itself, and where one client came to
    send much more than anybody did, it may be that client: it is context.
    """
    customer = any(doubt.startswith(CUSTOMER) for doubt in doubts)
    if effect < _SMALL or (effect < _MEDIUM and (customer or span < _DAY_SEEN * DAY)):
        return Severity.INFO
    if effect < _MEDIUM or doubts:
        return Severity.LOW
    return Severity.MEDIUM


def _short(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")
