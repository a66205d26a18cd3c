"""The page that ``mlsecd replay --report`` writes: findings, and of drift what moved, in pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from typing import Any, Final

from mlsecd.explaining import Told
from mlsecd.records import Finding
from mlsecd.web.cells import Cell, chip, section, table
from mlsecd.web.style import STYLE

__all__ = ["Latest", "render"]

_MORE_STYLE: Final = """
figure{display:inline-block;margin:.6rem 1.2rem .6rem 1.1rem}figcaption{font-size:.85rem;color:var(--dim)}
svg text{font-size:10px;fill:var(--dim)}
"""
_BAR, _HEIGHT, _LEFT = 16, 90, 4
_STREAMS_MAX: Final = 8


def render(
    title: str,
    counts: Mapping[str, int],
    latest: Sequence[Finding],
    explained: Mapping[str, Told],
    left: int,
) -> bytes:
    """One HTML file, with no script and nothing from elsewhere.

    Parameters
    ----------
    counts
        Lines by status, and records.
    latest
        The last line of each finding, in order of its first.
    explained
        By finding id, what a classifier makes of the rows before and after.
    left
        Findings that there was no room for.
    """
    said = f"{counts.get('records', 0):,} records, {counts.get('new', 0):,} findings"
    more = f"and {left:,} more, which are not shown" if left else ""
    body = section("Findings", more, table(map(_row, latest)) if latest else "<p>None.</p>")
    body += "".join(_drift(one, explained.get(one.id)) for one in latest if one.evidence.get("streams"))
    page = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{escape(title)} · mlsecd report</title><style>{STYLE}{_MORE_STYLE}</style></head>
<body><header><b>mlsecd report</b><span class="host">{escape(title)}</span></header>
<main><div class="verdict"><h1>{escape(said)}</h1></div>
{body}</main></body></html>
"""
    return page.encode("utf-8", "replace")


def _when(ts: float) -> str:
    try:
        return f"{datetime.fromtimestamp(ts, UTC):%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):
        return f"{ts:.0f}"


def _row(one: Finding) -> list[Cell]:
    return [
        ("time", "t", _when(one.ts)),
        ("severity", "", chip(str(one.severity)) + (" synthetic" if one.synthetic else "")),
        ("status", "", escape(str(one.status))),
        ("detector", "", escape(one.detector) + ("" if one.certified else "<small>not certified</small>")),
        ("subject", "", f"<code>{escape(one.subject)}</code><small>{escape(one.subject_kind)}</small>"),
        ("what, and what to do", "w", f"{escape(one.reason)}<small>{escape(one.action)}</small>"),
    ]


def _drift(one: Finding, told: Told | None) -> str:
    """Which streams moved, how far and since when, with a picture of each that has one."""
    pictures = one.evidence.get("pictures", {})
    rows = [_stream(moved) for moved in one.evidence["streams"][:_STREAMS_MAX]]
    figures = "".join(_figure(name, drawn) for name, drawn in pictures.items())
    doubts = "".join(f"<p>Not certified: {escape(str(doubt))}.</p>" for doubt in one.evidence.get("uncertified", ()))
    onset = f"since about {_when(float(one.evidence.get('onset', one.ts)))} UTC"
    return section(f"{escape(one.subject)}: what moved", onset, table(rows) + figures + _classifier(told) + doubts)


def _stream(moved: Mapping[str, Any]) -> list[Cell]:
    return [
        ("stream", "", escape(str(moved["stream"]))),
        ("before", "n", f"{moved['from']:.4g}"),
        ("after", "n", f"{moved['to']:.4g}"),
        ("effect, standard deviations", "n", f"{moved['effect']:+.2f}"),
        ("least that would show", "n", f"{moved.get('least_effect', 0.0):.2f}"),
        ("rows", "n", f"{moved['rows']:,}"),
        ("since", "t", _when(float(moved["onset"]))),
    ]


def _figure(name: str, drawn: Mapping[str, Any]) -> str:
    """Bars: the share of the latest rows in each sixteenth of the reference; the line is where it was before."""
    after, edges = drawn["after"], drawn["edges"]
    full = max(2.0 / len(after), *after) * 1.05
    width = _LEFT + _BAR * len(after) + _LEFT
    level = _HEIGHT * (1.0 - 1.0 / len(after) / full)
    bars = "".join(
        f'<rect x="{_LEFT + _BAR * at + 1}" y="{_HEIGHT * (1.0 - share / full):.1f}" width="{_BAR - 2}" '
        f'height="{_HEIGHT * share / full:.1f}" fill="currentColor" opacity="0.55"/>'
        for at, share in enumerate(after)
    )
    ticks = "".join(
        f'<text x="{_LEFT + _BAR * at}" y="{_HEIGHT + 12}" text-anchor="{anchor}">{edges[at]:.3g}</text>'
        for at, anchor in ((0, "start"), (len(after) // 2, "middle"), (len(after), "end"))
    )
    about = (
        f"{escape(name)}: the latest {drawn['rows']} rows by sixteenth of the reference "
        f"(PSI {drawn.get('psi', 0.0):.2f}); before the change every bar reached the line"
    )
    return (
        f'<figure><svg width="{width}" height="{_HEIGHT + 16}" role="img" aria-label="{escape(name)} since the change">'
        f'{bars}<line x1="{_LEFT}" x2="{width - _LEFT}" y1="{level:.1f}" y2="{level:.1f}" stroke="currentColor" '
        f'stroke-dasharray="3 3"/>{ticks}</svg><figcaption>{about}</figcaption></figure>'
    )


def _classifier(told: Told | None) -> str:
    if told is None:
        return ""
    chance = f"p = {told.p:.1g}" if told.p >= 1e-12 else "p below 1e-12"
    leans = "; ".join(f"{escape(name)} ({gain:.3f})" for name, gain in told.features)
    words = (
        f"A classifier tells rows after from rows before with AUC {told.auc:.3f} on rows that it did not see "
        f"({told.rows[0]:,} before, {told.rows[1]:,} after; {chance}; 0.5 would tell nothing)."
    )
    return f"<p>{words}</p>" + (f"<p>It leans on (AUC lost without): {leans}.</p>" if leans else "")


@dataclass(slots=True)
class Latest:
    """The last telling line of each finding, of as many findings as fit."""

    limit: int
    lines: dict[str, Finding] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)

    def add(self, one: Finding) -> None:
        """Keep this line, where it says more than that its finding is over."""
        if one.id not in self.lines and len(self.lines) >= self.limit:
            self.left.add(one.id)
        elif one.evidence or one.id not in self.lines:
            self.lines[one.id] = one
