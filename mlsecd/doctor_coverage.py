"""doctor's lines on what the request records carry: by where they come from, and what each detector sees of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from mlsecd import plugins
from mlsecd.config import Config
from mlsecd.coverage import FIELDS_BY_ORIGIN
from mlsecd.records import Kind

__all__ = ["Counts", "Line", "lines"]

# What a detector cannot do without, by the longest prefix of its name: all of these, of each one alternative.
NEEDS: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "extraction_": (("client",), ("features", "input_features")),
    "campaign_": (("client",), ("features", "input_features")),
    "access_": (("client",),),
}
_SERIES: Final = re.compile(
    r'^mlsecd_origin_requests(?:_with_field)?_total\{(?=.*origin="([^"]+)")(?:.*?field="([^"]+)")?[^}]*\} ([0-9.e+]+)$',
    re.MULTILINE,
)
_SHOWN: Final = {
    "client": "identity",
    "features": "features",
    "input_features": "input features",
    "predicted": "classes",
    "scores": "scores",
    "input_tokens": "input tokens",
    "output_tokens": "output tokens",
}
_ADVICE: Final = {
    "client": "a tap, or a gateway's log, names the clients",
    "features": "tell(features=...), a tap on a server of text, Triton's TENSORS, or a span's mlsecd.features",
}
_MOST: Final = 0.9


class Line(NamedTuple):
    """One answer, as :class:`mlsecd.doctor.Check` shows it."""

    name: str
    state: str  # ok, blind or info
    detail: str


class Counts(NamedTuple):
    """Requests of one origin, and how many of them carry each field."""

    requests: float
    fields: Mapping[str, float]


def parse_counts(text: str) -> dict[str, Counts]:
    """The counts out of an exposition."""
    requests: dict[str, float] = {}
    fields: dict[str, dict[str, float]] = {}
    for origin, field, value in _SERIES.findall(text):
        if field:
            fields.setdefault(origin, {})[field] = float(value)
        else:
            requests[origin] = float(value)
    return {origin: Counts(n, fields.get(origin, {})) for origin, n in sorted(requests.items()) if n}


def lines(config: Config, counts: Mapping[str, Counts]) -> Iterator[Line]:
    """What each origin's records carry, then what each detector that reads requests sees of them all."""
    for origin, held in counts.items():
        shares = [
            f"{_SHOWN[name]} {held.fields.get(name, 0) / held.requests:.0%}"
            for name in FIELDS_BY_ORIGIN
            if held.fields.get(name)
        ]
        state = "ok" if held.fields.get("client", 0) >= _MOST * held.requests else "blind"
        known = ", ".join(shares) or "nothing that a detector could use"
        yield Line(f"requests from {origin}", state, f"{held.requests:,.0f}: {known}")
    total = sum(held.requests for held in counts.values())
    for name, cls in plugins.detectors().items():
        if total and name not in config.disabled and Kind.REQUEST in cls.consumes and (needs := _needs(name)):
            yield _seen(name, needs, counts, total)


def _needs(name: str) -> tuple[tuple[str, ...], ...]:
    return next((NEEDS[prefix] for prefix in sorted(NEEDS, key=len, reverse=True) if name.startswith(prefix)), ())


def _seen(name: str, needs: tuple[tuple[str, ...], ...], counts: Mapping[str, Counts], total: float) -> Line:
    """How many requests hold all that the detector needs, at the most: fields are counted one by one."""
    seen = sum(
        min(max(held.fields.get(field, 0.0) for field in alternatives) for alternatives in needs)
        for held in counts.values()
    )
    lacking = [
        alternatives
        for alternatives in needs
        if sum(max(held.fields.get(field, 0.0) for field in alternatives) for held in counts.values()) < _MOST * total
    ]
    detail = f"sees at most {seen / total:.0%} of {total:,.0f} requests"
    if lacking:
        wanted = "; ".join(f"{' or '.join(_SHOWN[one] for one in each)}: {_ADVICE[each[0]]}" for each in lacking)
        detail += f": many lack {wanted}"
    elif seen < _MOST * total:
        detail += ": no one source brings all that it needs; send X-Request-Id on, so that they can be joined"
    return Line(f"detector {name}", "ok" if seen >= _MOST * total else "blind", detail)
