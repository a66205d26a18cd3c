"""A status as lines for a terminal. What comes from outside is made harmless here; nothing is asked or printed."""

from __future__ import annotations

import datetime
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

__all__ = ["lines"]

_COLOURS: Final = {
    **dict.fromkeys(("critical", "high", "down", "mismatch", "lost", "hung", "reset_required"), "31"),
    **dict.fromkeys(("medium", "impaired", "stale", "saturated", "shifted"), "33"),
    **dict.fromkeys(("low", "learning", "starting"), "34"),
    **dict.fromkeys(("quiet", "up", "armed", "ok"), "32"),
}
_SUSPECTS: Final = ("client", "campaign")
_LINES_MAX: Final = 4  # of a reason, and of an action
Paint = Callable[[str, str], str]


def lines(status: dict[str, Any], before: dict[str, Any], width: int, *, colour: bool) -> list[str]:
    """The whole picture, the worst first, each line at most ``width`` characters wide.

    Parameters
    ----------
    status
        What ``/api/v1/status`` answers; ``{"error": ...}`` where nobody does.
    before
        An earlier status, for rates; may be empty.
    width
        Columns of the terminal.
    colour
        Whether severities and states are coloured.
    """
    if "error" in status:
        return [_fit(str(status["error"]), width)]

    def paint(word: str, text: str) -> str:
        code = _COLOURS.get(word)
        return f"\033[{code}m{text}\033[0m" if colour and code else text

    return [*_head(status, width, paint), *_body(status, before, width, paint)]


def _head(status: dict[str, Any], width: int, paint: Paint) -> Iterator[str]:
    verdict, now = status["verdict"], float(status["now"])
    clock = datetime.datetime.fromtimestamp(now, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    host = f"mlsecd {status['version']} on {status['host']}, up {_span(now - float(status['started']))}, {clock}"
    yield _fit(host, width)
    yield paint(verdict["level"], _fit(verdict["headline"], width))
    for note in verdict["notes"]:
        yield _fit(f"  {note}", width)


def _body(status: dict[str, Any], before: dict[str, Any], width: int, paint: Paint) -> Iterator[str]:
    active, now = status["active"], float(status["now"])
    suspects = [one for one in active if one["subject_kind"] in _SUSPECTS]
    drift = [one for one in active if one["detector"].startswith("drift_") and one not in suspects]
    others = [one for one in active if one not in suspects and one not in drift]
    for title, findings in (("SUSPICIOUS CLIENTS", suspects), ("DRIFT", drift), ("OTHER FINDINGS", others)):
        yield from _findings(title, findings, now, width, paint)
    yield from _table("GPUS", _GPU, [_gpu(one) for one in status["gpus"]], width, paint)
    yield from _table("MODELS", _MODEL, _models(status, before), width, paint)
    yield from _table("SOURCES", _SOURCE, [_source(one, now) for one in status["sources"]], width, paint)
    yield from _detectors(status["detectors"], width, paint)
    drops = [("", one["where"], one["reason"], f"{one['count']:,}") for one in status["dropped"]]
    yield from _table("DROPPED SINCE THE START", _DROP, drops, width, paint)


# Heading and width of each column; the last takes what is left. A row's first cell is the word that colours it.
_FINDING: Final = (("SEVERITY", 10), ("DETECTOR", 26), ("SINCE", 8), ("SUBJECT", 0))
_GPU: Final = (
    ("GPU", 4),
    ("NAME", 24),
    ("STATE", 15),
    ("USE", 6),
    ("MEMORY", 18),
    ("POWER", 8),
    ("TEMP", 7),
    ("PROCESSES", 0),
)
_MODEL: Final = (("MODEL", 40), ("REQUESTS", 14), ("PER SECOND", 0))
_SOURCE: Final = (("SOURCE", 20), ("STATE", 13), ("LAST", 10), ("SEEN", 12), ("WHY", 0))
_DETECTOR: Final = (("DETECTOR", 28), ("STATE", 12), ("WHY", 0))
_DROP: Final = (("WHERE", 20), ("REASON", 24), ("COUNT", 0))

_Columns = Sequence[tuple[str, int]]


def _table(title: str, columns: _Columns, rows: Sequence[Sequence[str]], width: int, paint: Paint) -> Iterator[str]:
    """A title, its headings and rows; nothing where there are no rows."""
    if not rows:
        return
    yield ""
    yield _fit(f"{title} ({len(rows)})", width)
    yield _fit("  " + _row([heading for heading, _ in columns], columns), width)
    for word, *cells in rows:
        yield paint(word, _fit("  " + _row(cells, columns), width))


def _row(cells: Sequence[str], columns: _Columns) -> str:
    parts = [
        _fit(cell, size - 1).ljust(size) if size else _plain(cell)
        for cell, (_, size) in zip(cells, columns, strict=True)
    ]
    return "".join(parts).rstrip()


def _findings(title: str, findings: Sequence[dict[str, Any]], now: float, width: int, paint: Paint) -> Iterator[str]:
    """Each finding, what it says, and what to do about it, in full: who reads it has just been woken."""
    rows = [_finding(one, now) for one in findings if one["severity"] != "info"]
    told = [one for one in findings if one["severity"] == "info"]
    heads = list(_table(title, _FINDING, rows, width, paint))
    texts = [_texts(one, width) for one in findings if one["severity"] != "info"]
    yield from heads[:3]
    for row, more in zip(heads[3:], texts, strict=True):
        yield row
        yield from more
    if told:
        names = ", ".join(dict.fromkeys(one["detector"] for one in told))
        yield ""
        yield _fit(f"{title}, FOR INFORMATION ({len(told)}): {names}", width)


def _texts(one: dict[str, Any], width: int) -> list[str]:
    reason = ("synthetic: " if one["synthetic"] else "") + one["reason"]
    action = f"do: {one['action']}" if one["action"] and not one["synthetic"] else ""
    inner = max(20, width - 4)
    found = [line for text in (reason, action) if text for line in textwrap.wrap(_plain(text), inner)[:_LINES_MAX]]
    return [_fit(f"    {line}", width) for line in found]


def _finding(one: dict[str, Any], now: float) -> tuple[str, ...]:
    severity = f"({one['severity']})" if one["synthetic"] else one["severity"]
    subject = f"{one['subject_kind']} {one['subject']}"
    return severity, severity, one["detector"], _span(now - float(one["first_ts"])), subject


def _detectors(detectors: Sequence[dict[str, Any]], width: int, paint: Paint) -> Iterator[str]:
    """Those to look at, a row each; those that simply work, in a line."""
    other = [_detector(one) for one in detectors if one["state"] != "armed"]
    armed = [one["name"] for one in detectors if one["state"] == "armed"]
    if detectors:
        yield ""
        yield _fit(f"DETECTORS ({len(detectors)})", width)
    yield from list(_table("", _DETECTOR, other, width, paint))[2:]
    if armed:
        yield paint("armed", _fit(f"  {len(armed)} armed: {', '.join(armed)}", width))


def _gpu(one: dict[str, Any]) -> tuple[str, ...]:
    def shown(value: float | None, form: str) -> str:
        return "" if value is None else form.format(value)

    used, total = one["memory_used_bytes"], one["memory_total_bytes"]
    memory = "" if used is None or not total else f"{used / 2**30:.1f}/{total / 2**30:.0f} GiB"
    return (
        one["state"],
        shown(one["index"], "{}"),
        one["name"] or one["gpu"],
        one["state"],
        shown(one["utilization"], "{:.0%}"),
        memory,
        shown(one["power_watts"], "{:.0f} W"),
        shown(one["temperature_celsius"], "{:.0f} °C"),
        shown(one["processes"], "{}"),
    )


def _models(status: dict[str, Any], before: dict[str, Any]) -> list[tuple[str, ...]]:
    earlier = {one["name"]: one["requests"] for one in before.get("models", ())}
    seconds = float(status["now"]) - float(before.get("now", status["now"]))
    rows: list[tuple[str, ...]] = []
    for one in status.get("models", ()):
        known = one["name"] in earlier and seconds > 0
        rate = f"{max(0.0, (one['requests'] - earlier[one['name']]) / seconds):.1f}" if known else ""
        rows.append(("", one["name"], f"{one['requests']:,}", rate))
    return rows


def _source(one: dict[str, Any], now: float) -> tuple[str, ...]:
    last = "never" if one["last_success"] is None else f"{_span(now - float(one['last_success']))} ago"
    seen = "" if one["seen"] is None else f"{one['seen']:,}"
    if one["expected"] is not None:
        seen += f" of {one['expected']:,}"
    return one["state"], one["name"], one["state"], last, seen, one["why"]


def _detector(one: dict[str, Any]) -> tuple[str, ...]:
    return one["state"], one["name"], one["state"], one["why"]


def _span(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _plain(text: str) -> str:
    """No control characters, whoever chose the name: a terminal obeys them."""
    return "".join(char if char.isprintable() else "�" for char in str(text))


def _fit(text: str, width: int) -> str:
    plain = _plain(text)
    return plain if len(plain) <= width else plain[: max(0, width - 1)] + "…"
