"""The landing page: server-rendered, no script, no image, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from html import escape
from typing import Final

from mlsecd.web.cells import Cell, ago, breakable, chip, clock, colour, section, span, table
from mlsecd.web.rows import ActiveRow, DetectorRow, FindingRow, GpuRow, SourceRow, Status
from mlsecd.web.style import STYLE

__all__ = ["render"]

_SYNTHETIC: Final = '<span class="chip violet" title="from the bundled recording, not a real alarm">synthetic</span>'


def render(status: Status, refresh_seconds: int = 0) -> bytes:
    """The page. Everything that came from outside is escaped here, and was bounded in :mod:`mlsecd.web.status`."""
    refresh = f'<meta http-equiv="refresh" content="{refresh_seconds}">' if refresh_seconds else ""
    verdict = status.verdict
    notes = "".join(f"<li>{escape(note)}</li>" for note in verdict.notes)
    banner = f"<h1>{escape(verdict.headline)}</h1>" + (f"<ul>{notes}</ul>" if notes else "")
    page = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">{refresh}
<title>{escape(verdict.headline)} · {escape(status.host)} · mlsecd</title>
<link rel="icon" type="image/svg+xml" href="/favicon.ico"><style>{STYLE}</style></head>
<body><header><b>mlsecd</b><span class="host">{escape(status.host)}</span>
<span class="right">{clock(status.now)} · up {span(status.now - status.started)}</span></header>
<main><div class="verdict {colour(verdict.level)}">{banner}</div>
{_tiles(status)}
{_active(status)}
{_recent(status)}
{_detectors(status)}
{_sources(status)}
{_gpus(status)}
<div class="two">{_blind(status)}{_coverage(status)}{_dropped(status)}</div>
</main>{_footer(status, refresh_seconds)}</body></html>
"""
    return page.encode("utf-8", "replace")


def _severity(row: ActiveRow | FindingRow) -> str:
    """A synthetic finding never wears an alarm's colour: at night, colours are read before words."""
    if row.synthetic:
        return f'<span class="chip grey">{escape(row.severity)}</span> {_SYNTHETIC}'
    return chip(row.severity, strong=row.severity == "critical")


def _tiles(status: Status) -> str:
    up = sum(row.state == "up" for row in status.sources)
    armed = sum(row.state in {"armed", "shifted"} for row in status.detectors)
    answering = sum(row.state == "ok" for row in status.gpus)
    log = status.log
    words = "off" if log is None else "blocked" if log.blocked else "broken" if log.chain_ok is False else "ok"
    tiles = [
        ("Active findings", str(status.active_total), ""),
        ("Detectors armed", str(armed), f" of {len(status.detectors)}"),
        ("Sources up", str(up), f" of {len(status.sources)}"),
        ("GPUs answering", str(answering) if status.gpus else "none", f" of {len(status.gpus)}" if status.gpus else ""),
        ("Forensic log", words, f" {log.tree_size:,} lines" if log else ""),
    ]
    if status.pages_past_week is not None:
        budget = "" if status.budget_per_week is None else f" budget: {status.budget_per_week:g} false"
        tiles.append(("Pages in a week", str(status.pages_past_week), budget))
    elif status.budget_per_week is not None:
        tiles.append(("False-page budget", f"{status.budget_per_week:g}", " a week"))
    cells = (f'<div class="tile"><span>{a}</span><strong>{b}</strong><em>{c}</em></div>' for a, b, c in tiles)
    return f'<div class="tiles">{"".join(cells)}</div>'


def _what(row: ActiveRow | FindingRow, status: Status) -> str:
    """Reason and action, or where to read them."""
    if row.reason or row.action:
        return escape(row.reason) + (f"<small>{escape(row.action)}</small>" if row.action else "")
    if not row.id or status.detail:
        return ""
    command = f"""jq 'select(.unmapped.mlsecd.id? == "{row.id}")' /var/log/mlsecd/*.jsonl"""
    return f'<span class="dim">on the host:</span> <code class="dim">{escape(command)}</code>'


def _subject(row: ActiveRow | FindingRow) -> str:
    kind = ' class="t"' if len(row.subject) <= 20 else ""
    return f"<code{kind}>{escape(row.subject)}</code><small>{escape(row.subject_kind)}</small>"


def _uncertified(row: ActiveRow) -> str:
    """A note where a false-alarm rate is promised and not certified; what GPUs show is judged without one."""
    return "" if row.certified or row.detector.startswith("gpu_") else "<small>not certified</small>"


def _active(status: Status) -> str:
    """What somebody should act on in the open; what is only told, folded away: one setting can make a row a GPU."""
    if not status.active:
        return ""
    told = [row for row in status.active if row.severity == "info"]
    rows = [_active_row(row, status) for row in status.active if row.severity != "info"]
    content = table(rows) if rows else ""
    if told:
        names = ", ".join(dict.fromkeys(row.detector for row in told))
        content += f"<details><summary>{len(told)} for information: {escape(names)}</summary>"
        content += table(_active_row(row, status) for row in told) + "</details>"
    left = status.active_total - len(status.active)
    return section("Active findings", f"and {left} more, in the forensic log" if left else "", content)


def _active_row(row: ActiveRow, status: Status) -> list[Cell]:
    return [
        ("severity", "", _severity(row)),
        ("detector", "", breakable(row.detector) + _uncertified(row)),
        ("subject", "", _subject(row)),
        ("what, and what to do", "w", _what(row, status)),
        ("since", "t", ago(row.first_ts, status.now)),
        ("last", "t", ago(row.last_ts, status.now)),
        ("times", "n", f"{row.count:,}"),
    ]


def _recent(status: Status) -> str:
    if not status.recent:
        return section("Latest findings", "", "<p>None since the start.</p>")
    above = {row.id for row in status.active}  # what to do about these was just read
    rows: list[list[Cell]] = [
        [
            ("time", "t", ago(row.ts, status.now)),
            ("status", "", chip(row.status)),
            ("severity", "", _severity(row)),
            ("detector", "", breakable(row.detector)),
            ("subject", "", _subject(row)),
            ("reason, and action", "w", _what(replace(row, action="") if row.id in above else row, status)),
        ]
        for row in status.recent
    ]
    return section("Latest findings", "", table(rows))


def _detectors(status: Status) -> str:
    """The ones to look at in the open; those that simply work, folded away."""
    armed = [row for row in status.detectors if row.state == "armed"]
    other = [row for row in status.detectors if row.state != "armed"]
    content = table(_detector_row(row, status) for row in other) if other else ""
    if armed:
        content += f"<details><summary>{len(armed)} armed</summary>"
        content += table(_detector_row(row, status) for row in armed) + "</details>"
    return section("Detectors", "", content or "<p>None is configured.</p>")


def _detector_row(row: DetectorRow, status: Status) -> list[Cell]:
    maturity = "" if row.maturity in {"", "stable"} else f" <small>{escape(row.maturity)}</small>"
    return [
        ("detector", "", f"{breakable(row.name)}{maturity}"),
        ("state", "", chip(row.state)),
        ("why", "w", f"{escape(row.why)}<small>{escape(row.summary)}</small>" if row.why else escape(row.summary)),
        ("judged", "t", ago(row.last_run, status.now)),
    ]


def _sources(status: Status) -> str:
    if not status.sources:
        return section("Sources", "", "<p>None is configured.</p>")
    return section("Sources", "", table(_source_row(row, status) for row in status.sources))


def _source_row(row: SourceRow, status: Status) -> list[Cell]:
    expected = "" if row.expected is None else f" of {row.expected:,}"
    return [
        ("source", "", breakable(row.name)),
        ("state", "", chip(row.state)),
        ("why", "w", escape(row.why)),
        ("found", "n", "" if row.seen is None else f"{row.seen:,}{expected}"),
        ("last success", "t", ago(row.last_success, status.now)),
    ]


def _gpus(status: Status) -> str:
    if not status.gpus:
        return section("GPUs", "", "<p>None is seen on this host.</p>")
    return section("GPUs", "", table(_gpu_row(row, status) for row in status.gpus))


def _gpu_row(row: GpuRow, status: Status) -> list[Cell]:
    badge = f" {_SYNTHETIC}" if row.synthetic else ""
    index = "" if row.index is None else f"{row.index} "
    return [
        ("GPU", "", f"{index}{escape(row.name)}{badge}<small><code>{escape(row.gpu)}</code></small>"),
        ("state", "", chip(row.state)),
        ("utilization", "n", "" if row.utilization is None else f"{row.utilization:.0%}"),
        ("memory", "n", _memory(row)),
        ("power", "n", "" if row.power_watts is None else f"{row.power_watts:.0f} W"),
        ("temperature", "n", "" if row.temperature_celsius is None else f"{row.temperature_celsius:.0f} °C"),
        ("processes", "n", "" if row.processes is None else str(row.processes)),
        ("sampled", "t", ago(row.ts, status.now)),
    ]


def _memory(row: GpuRow) -> str:
    if row.memory_used_bytes is None or row.memory_total_bytes is None:
        return ""
    return f"{row.memory_used_bytes / 2**30:.1f} of {row.memory_total_bytes / 2**30:.0f} GiB"


def _blind(status: Status) -> str:
    if not status.blind:
        return section(
            "Not watched", "", "<p>Nothing that mlsecd knows of. Every detector's blind spots: the docs.</p>"
        )
    rows: Iterable[list[Cell]] = (
        [("what", "", escape(row.what)), ("why", "w", escape(row.why))] for row in status.blind
    )
    return section("Not watched", "and why", table(rows))


def _coverage(status: Status) -> str:
    """A detector that wants what no record carries is blind without any fault of a source."""
    total = status.coverage.requests
    if not total:
        return section("What requests carry", "", "<p>No request record has come yet: request detectors are blind.</p>")
    rows: Iterable[list[Cell]] = (
        [("field", "", breakable(name)), ("carried by", "n", f"{count / total:.0%}")]
        for name, count in status.coverage.fields.items()
    )
    return section("What requests carry", f"{total:,} since the start", table(rows))


def _dropped(status: Status) -> str:
    if not status.dropped:
        return section("Dropped at a limit", "since the start", "<p>Nothing.</p>")
    rows: Iterable[list[Cell]] = (
        [
            ("where", "", escape(row.where)),
            ("reason", "", escape(row.reason.replace("_", " "))),
            ("count", "n", f"{row.count:,}"),
        ]
        for row in status.dropped
    )
    return section("Dropped at a limit", "since the start", table(rows))


def _footer(status: Status, refresh_seconds: int) -> str:
    toggle = '<a href="/?refresh=0">stop refreshing</a>' if refresh_seconds else '<a href="/">refresh by itself</a>'
    build = " ".join(filter(None, ("mlsecd", status.version, status.revision[:12], status.backend)))
    links = "".join(f'<a href="{to}">{to}</a>' for to in ("/metrics", "/api/v1/status", "/-/healthy", "/-/ready"))
    return f"<footer>{links}{toggle}<span>{escape(build)}</span></footer>"
