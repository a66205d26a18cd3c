"""The small parts of which pages are put together. What comes from outside is escaped here."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from html import escape
from typing import Final

__all__ = ["Cell", "ago", "breakable", "chip", "clock", "colour", "section", "span", "table"]

_COLOURS: Final = {
    **dict.fromkeys(("critical", "high", "down", "mismatch", "lost", "hung", "reset_required"), "red"),
    **dict.fromkeys(("medium", "impaired", "stale", "saturated", "shifted"), "amber"),
    **dict.fromkeys(("low", "learning", "starting", "update"), "blue"),
    **dict.fromkeys(("quiet", "up", "armed", "ok"), "green"),
    "synthetic": "violet",
    "new": "amber",
}

Cell = tuple[str, str, str]  # heading, class, HTML


def colour(word: str) -> str:
    """The class of a level, state or severity; grey says nothing."""
    return _COLOURS.get(word, "grey")


def clock(ts: float) -> str:
    """Date and time in full, in UTC like every log that it will be compared with."""
    at = datetime.fromtimestamp(ts, UTC)
    return f'<time datetime="{at:%Y-%m-%dT%H:%M:%SZ}">{at:%a %d %b %Y, %H:%M:%S} UTC</time>'


def span(seconds: float) -> str:
    """A length of time in one unit, as people say it."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def ago(ts: float | None, now: float) -> str:
    """How long ago, for people, and when, for the logs that they compare it with."""
    if ts is None:
        return '<span class="dim">never</span>'
    try:
        at = datetime.fromtimestamp(ts, UTC)
    except (ValueError, OverflowError, OSError):
        return '<span class="dim">unknown</span>'  # event time is what a client said it was
    words = f"{span(now - ts)} ago" if ts <= now + 1 else f"in {span(ts - now)}"
    clock = f"{at:%H:%M:%S}" if abs(now - ts) < 43_200 else f"{at:%d %b %H:%M}"
    return f'<time datetime="{at:%Y-%m-%dT%H:%M:%SZ}">{words}<small>{clock}</small></time>'


def breakable(name: str) -> str:
    """A name that may be broken after an underscore, and nowhere else."""
    return escape(name).replace("_", "_<wbr>")


def chip(word: str, *, strong: bool = False) -> str:
    """A state or severity in its colour."""
    return f'<span class="chip {colour(word)}{" strong" if strong else ""}">{escape(word.replace("_", " "))}</span>'


def section(title: str, aside: str, content: str) -> str:
    """A part of the page: title and content are HTML, the aside is text."""
    small = f"<small>{escape(aside)}</small>" if aside else ""
    return f'<section><h2>{title}{small}</h2><div class="card">{content}</div></section>'


def table(rows: Iterable[list[Cell]]) -> str:
    """Cells carry their heading along: on a phone the heading row is hidden and each row becomes a card."""
    listed = list(rows)
    heads = "".join(f'<th class="{kind}">{head}</th>' for head, kind, _ in listed[0])
    body = "".join("<tr>" + "".join(_cell(*one) for one in row) + "</tr>" for row in listed)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def _cell(head: str, kind: str, html: str) -> str:
    return f'<td class="{kind if html else "none"}" data-h="{head}"><div>{html}</div></td>'
