"""One exposition as bounded rows: label values made harmless, series capped, duplicates refused."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from typing import Final

from prometheus_client.core import Exemplar, Metric, Sample

from mlsecd.meters import Labels
from mlsecd.sinks.metrics_catalog import CATALOG, Spec, Type, describe
from mlsecd.sinks.plain import harmless

__all__ = ["LABEL_MAX", "Page", "Reuse"]

LABEL_MAX: Final = 128

_Row = tuple[float, Exemplar | None]


# The same series come back at every rendering: what they are called is worked out once.
_MEMO: Final = 16_384


@functools.lru_cache(_MEMO)
def _known(name: str, values: tuple[str, ...]) -> tuple[Spec, Labels]:
    spec = CATALOG[name]
    return spec, tuple(zip(spec.labels, (harmless(text, LABEL_MAX) for text in values), strict=True))


@functools.lru_cache(_MEMO)
def _named(name: str, kind: Type, labels: Labels) -> tuple[Spec, Labels] | None:
    spec = describe(name, kind, tuple(key for key, _ in labels))
    if spec is None:
        return None
    return spec, tuple((key, harmless(text, LABEL_MAX)) for key, text in labels)


class Page:
    """Series by family, in the order of the first row of each.

    Parameters
    ----------
    max_series
        Rows beyond this many are left out; :attr:`dropped` says how many of what.
    """

    def __init__(self, max_series: int) -> None:
        self.families: dict[str, tuple[Spec, dict[Labels, _Row]]] = {}
        self.dropped: Counter[str] = Counter()
        self.series = 0
        self._max_series = max_series

    def add(self, name: str, value: float | None, *values: str, exemplar: Exemplar | None = None) -> None:
        """Add a series of a metric in the catalog, label values in the catalog's order; no value, no series."""
        if value is not None:
            self._put(*_known(name, values), value, exemplar)

    def add_named(self, name: str, kind: Type, labels: Labels, value: float) -> None:
        """Add a series whose name another room chose."""
        named = _named(name, kind, labels)
        if named is None:
            self.dropped["bad_name"] += 1
        else:
            self._put(*named, value, None)

    def _put(self, spec: Spec, labels: Labels, value: float, exemplar: Exemplar | None) -> None:
        held, rows = self.families.setdefault(spec.family, (spec, {}))
        if held.name != spec.name:
            self.dropped["bad_name"] += 1
        elif labels in rows:
            self.dropped["duplicate"] += 1  # two of them would make Prometheus refuse the whole scrape
        elif self.series >= self._max_series:
            self.dropped["max_series"] += 1
        else:
            rows[labels] = (float(value), exemplar)
            self.series += 1


class Reuse:
    """Makes metric objects of pages, and gives the same object again where a family has not changed.

    Most families (states, information, counters of rare events) do not change between two scrapes.
    The renderer keeps their text by the identity of the object.
    """

    def __init__(self) -> None:
        self._held: dict[str, tuple[dict[Labels, _Row], Metric]] = {}

    def metrics(self, page: Page) -> list[Metric]:
        """The page's families; those that vanished are forgotten."""
        before, self._held = self._held, {}
        for family, (spec, rows) in page.families.items():
            held = before.get(family)
            if rows:
                self._held[family] = held if held and held[0] == rows else (rows, _metric(spec, rows))
        return [metric for _, metric in self._held.values()]


def _metric(spec: Spec, rows: Mapping[Labels, _Row]) -> Metric:
    metric = Metric(spec.family, spec.help, spec.type, spec.unit)
    metric.samples = [
        Sample(spec.name, dict(labels), value, None, exemplar) for labels, (value, exemplar) in rows.items()
    ]
    return metric
