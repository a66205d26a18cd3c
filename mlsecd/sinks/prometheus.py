"""Prometheus exposition, rendered off the scrape's path: a scrape gets bytes that are ready."""

from __future__ import annotations

import gzip
import itertools
import threading
import time
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from mlsecd.meters import Meters
from mlsecd.sinks.metrics_catalog import CATALOG
from mlsecd.sinks.metrics_collect import Slots, fill
from mlsecd.sinks.metrics_page import Page, Reuse
from mlsecd.sinks.metrics_text import Encoder
from mlsecd.sinks.metrics_view import MetricsView

__all__ = ["Body", "PrometheusSink"]

_EVERY_SECONDS: Final = 1.0
_WANTED_SECONDS: Final = 75.0  # Prometheus' default interval is a minute
_FRESH_SECONDS: Final = 3.0  # what is older was left over by an earlier scraper, or by a render that failed
_LEAD_SECONDS: Final = 2.5  # rendering begins this long before a steady scraper's next visit
_WAIT_SECONDS: Final = 5.0  # for a render by another thread


class Body(NamedTuple):
    """One exposition, ready to send."""

    content_type: str
    data: bytes
    encoding: str | None = None  # gzip, or none


class _Form(NamedTuple):
    """How a scraper wants it. Only these four exist, so a header cannot make us keep a fifth."""

    openmetrics: bool
    zipped: bool


# Both in prometheus_client's own negotiation; what the scraper wrote beside it never comes back in our headers.
_ACCEPT: Final = {True: "application/openmetrics-text; version=1.0.0", False: ""}


class _Exporter(Collector):
    """What the registry asks: the latest view as metric families."""

    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self._collect = collect

    def describe(self) -> Iterable[Metric]:
        """All families that may come, so that the registry refuses a second owner of a name."""
        return [Metric(spec.family, spec.help, spec.type) for spec in CATALOG.values()]

    def collect(self) -> Iterable[Metric]:
        """The families of the latest view."""
        return self._collect()


class PrometheusSink:
    """Takes a :class:`MetricsView` a tick and answers scrapes with text that a thread of its own rendered.

    The thread renders once a second at the most, and only when a scrape is near: a scraper that comes every
    15 seconds finds text a second old at the price of three renderings, not of fifteen. The first scrape,
    and one that comes out of turn, renders in its caller. Text older than three seconds is never served:
    where rendering fails, scrapes fail, and Prometheus sees ``up == 0`` in place of frozen numbers.

    Parameters
    ----------
    meters
        Where series that were left out are counted.
    registry
        Other collectors on it are exported too; one that gives the same object again has not changed. A fresh registry
        by default, never the library's global one.
    top
        Findings shown as ``mlsecd_finding_active``.
    max_series
        Series at the most, those of other collectors apart.
    gpu_stale_seconds
        A GPU whose last sample is older keeps only ``mlsecd_gpu_up 0``.
    """

    def __init__(
        self,
        meters: Meters,
        *,
        registry: CollectorRegistry | None = None,
        top: int = 20,
        max_series: int = 10_000,
        gpu_stale_seconds: float = 30.0,
    ) -> None:
        self._meters = meters
        self._registry = registry or CollectorRegistry(auto_describe=False)
        self._registry.register(_Exporter(self._families))
        ProcessCollector(registry=self._registry)
        self._slots = Slots(top)
        self._max_series = max_series
        self._gpu_stale_seconds = gpu_stale_seconds
        self._view: MetricsView | None = None
        self._reuse = Reuse()
        self._encoders = {openmetrics: _encoder(openmetrics=openmetrics) for openmetrics in (True, False)}
        self._ready: dict[_Form, tuple[float, Body]] = {}  # monotonic time and body
        self._visits: dict[_Form, tuple[float, float]] = {}  # monotonic time of the last, seconds since the one before
        self._rendering = threading.Lock()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def publish(self, view: MetricsView) -> None:
        """Take what the next rendering shows. Never waits."""
        self._view = view

    def body(self, accept: str = "", accept_encoding: str = "") -> Body:
        """The exposition in the form that these headers ask for; a second old at most while scraped steadily."""
        form = _form(accept, accept_encoding)
        now = time.monotonic()
        last, _ = self._visits.get(form, (now, 0.0))
        self._visits[form] = (now, now - last)
        at, body = self._ready.get(form, (-_FRESH_SECONDS, None))
        if body is not None and now - at < _FRESH_SECONDS:
            return body
        body = self._first(form)
        self._wake.set()
        return body

    def start(self) -> None:
        """Start the rendering thread; without it, every scrape after three seconds renders for itself."""
        self._thread = threading.Thread(target=self._run, name="metrics-render", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the rendering thread."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=1.0)

    def _first(self, form: _Form) -> Body:
        """Render in the caller, or wait for the one who does: a crowd of first scrapes costs one rendering."""
        if not self._rendering.acquire(timeout=_WAIT_SECONDS):
            raise TimeoutError("the exposition is not ready")
        try:
            at, body = self._ready.get(form, (-_FRESH_SECONDS, None))
            if body is None or time.monotonic() - at >= _FRESH_SECONDS:
                self._render([form])
                body = self._ready[form][1]
            return body
        finally:
            self._rendering.release()

    def _run(self) -> None:
        while True:
            if not self._visitors():
                self._wake.wait()
                self._wake.clear()
            if self._stopping.wait(_EVERY_SECONDS):
                return
            forms = [form for form, (since, gap) in self._visitors().items() if since > gap - _LEAD_SECONDS]
            try:
                if forms:
                    with self._rendering:
                        self._render(forms)
            except Exception:  # noqa: BLE001 - counted; the next scrape finds old text, renders, and shows the error
                self._meters.drop("metrics", "render_failed")

    def _visitors(self) -> dict[_Form, tuple[float, float]]:
        """The forms that are still scraped: seconds since the last visit, and between the last two."""
        now = time.monotonic()
        visits = list(self._visits.items())
        return {form: (now - last, gap) for form, (last, gap) in visits if now - last < _WANTED_SECONDS}

    def _render(self, forms: Iterable[_Form]) -> None:
        started = time.monotonic()
        metrics = list(self._registry.collect())
        for openmetrics, group in itertools.groupby(sorted(forms), key=lambda form: form.openmetrics):
            content_type, encoder = self._encoders[openmetrics]
            data = encoder.encode(metrics)
            for form in group:
                ready = gzip.compress(data, compresslevel=1, mtime=0) if form.zipped else data
                self._ready[form] = (started, Body(content_type, ready, "gzip" if form.zipped else None))
        self._meters.gauge("mlsecd_metrics_render_seconds", time.monotonic() - started)

    def _families(self) -> list[Metric]:
        """The latest view as families; called by the registry, under the rendering lock."""
        if self._view is None:
            return []
        page = Page(self._max_series)
        fill(page, self._view, self._slots, time.time(), self._gpu_stale_seconds)
        for reason, count in page.dropped.items():
            if count:
                self._meters.drop("metrics", reason, count)
        self._meters.gauge("mlsecd_metrics_series", page.series)
        return self._reuse.metrics(page)


def _encoder(*, openmetrics: bool) -> tuple[str, Encoder]:
    encode, content_type = choose_encoder(_ACCEPT[openmetrics])
    return content_type, Encoder(encode, openmetrics=openmetrics)


def _form(accept: str, accept_encoding: str) -> _Form:
    """The scraper's wishes: OpenMetrics where it is named, gzip where it is not refused."""
    openmetrics = any(part.split(";")[0].strip() == "application/openmetrics-text" for part in accept.split(","))
    zipped = False
    for part in accept_encoding.split(","):
        name, _, quality = part.replace(" ", "").partition(";")
        if name.lower() == "gzip":
            zipped = quality not in {"q=0", "q=0.0", "q=0.00", "q=0.000"}
    return _Form(openmetrics, zipped)
