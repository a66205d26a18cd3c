"""Load, queue and token rates of inference servers, from their own /metrics: what a host without a tap still shows."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Final
from urllib.parse import urlsplit

from msgspec import Meta

from mlsecd.errors import SourceError
from mlsecd.meters import Meters
from mlsecd.records import Kind, Records, ServerSample
from mlsecd.sources.base import Params, Poll, Source
from mlsecd.sources.http_receiver import read_token
from mlsecd.sources.server_aliases import COUNTERS, GAUGES, MODEL_LABELS, NAMES

__all__ = ["SOURCE", "ServerMetrics", "ServerMetricsParams", "readings"]

_MAX_BYTES: Final = 16 << 20
_MAX_MODELS: Final = 16  # of one server: a label may be what a client asked for
_MAX_NAME: Final = 256
_LINE: Final = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?[ \t]+(\S+)(?:[ \t]+\S+)?[ \t]*")
_LABEL: Final = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)[ \t]*=[ \t]*"((?:[^"\\]|\\.)*)"')

_Url = Annotated[
    str, Meta(pattern=r"^https?://[^\s/]+(/\S*)?$", max_length=1024, description="http://ADDRESS:PORT/metrics")
]


class ServerMetricsParams(Params, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Configuration of the scrapes."""

    enabled: bool = False
    urls: Annotated[
        tuple[_Url, ...],
        Meta(
            max_length=32,
            description="the servers' /metrics: vLLM, SGLang, TGI, Triton, llama.cpp, Ray Serve, MLServer",
        ),
    ] = ()
    token_file: Annotated[str, Meta(description="a bearer token that they want, if any")] = ""
    interval_seconds: Annotated[float, Meta(ge=1, le=300, description="seconds between two scrapes")] = 10.0
    timeout_seconds: Annotated[float, Meta(gt=0, le=60, description="seconds that a server may take to answer")] = 3.0


@dataclass(slots=True)
class _Before:
    """A server's counters at the last scrape, by model."""

    ts: float
    counters: dict[str, dict[str, float]] = field(default_factory=dict)


def readings(text: str) -> dict[str, dict[str, float]]:
    """An exposition's values in our names, by model ("" where there is no such label); series of a model are added."""
    sums: dict[str, dict[str, float]] = {}
    for line in text.splitlines():
        if line[:1] in ("", "#") or line[: re.search(r"[{ \t]|$", line).start()] not in NAMES:  # type: ignore[union-attr]
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        name, labels, raw = match.groups()
        try:
            value = float(raw)
        except ValueError:
            continue
        held = dict(_LABEL.findall(labels or ""))
        if _is_part(held):
            continue
        model = next((held[name] for name in MODEL_LABELS if held.get(name)), "")[:_MAX_NAME]
        if not math.isfinite(value) or value < 0 or (model not in sums and len(sums) >= _MAX_MODELS):
            continue
        series = sums.setdefault(model, {})
        series[name] = series.get(name, 0.0) + value
    return {model: named for model, series in sums.items() if (named := _named(series))}


def _is_part(labels: dict[str, str]) -> bool:
    """Whether a series is counted in another one (SGLang's queues by priority), or by no client (Ray's own routes)."""
    return bool(labels.get("priority")) or labels.get("route", "").startswith("/-/")


def _named(series: dict[str, float]) -> dict[str, float]:
    found = {}
    for group in (GAUGES, COUNTERS):
        for ours, theirs in group.items():
            name = next((name for name in theirs if name in series), None)
            if name is not None:
                found[ours] = series[name]
    return found


class ServerMetrics(Source):
    """Scrapes each server in turn; one that does not answer does not keep the others."""

    name = "server_metrics"
    emits = frozenset({Kind.SERVER})
    summary = "load, queue and token rates of inference servers, from their /metrics"
    Params = ServerMetricsParams

    def __init__(self, params: ServerMetricsParams, meters: Meters) -> None:
        super().__init__(params, meters)
        self.interval_seconds = params.interval_seconds
        self._params = params
        self._before: dict[str, _Before] = {}

    def supported(self) -> str | None:
        """``None`` where it was told whom to ask."""
        return None if self._params.urls else "sources.server_metrics.urls is empty"

    def poll(self, deadline: float) -> Poll:
        """Scrape every server once."""
        token = read_token(self._params.token_file) if self._params.token_file else b""
        records: list[Records] = []
        troubles = []
        seen = 0
        for url in self._params.urls:
            if time.monotonic() >= deadline:
                troubles.append("no time was left for the last servers")
                break
            try:
                text = self._scrape(url, token)
            except (OSError, ValueError) as error:
                self._before.pop(url, None)
                from mlsecd.sources import _plain_get  # noqa: PLC0415 - see _scrape

                troubles.append(f"{_server(url)}: {_plain_get.why(error)}")
                continue
            samples = list(self._samples(url, text, time.time()))
            seen += 1
            if not samples:
                troubles.append(f"{_server(url)}: answers, and shows none of the metrics that are known")
            records += samples
        if not seen:
            raise SourceError("; ".join(troubles[:3]))
        return Poll(records, seen=seen, expected=len(self._params.urls), error="; ".join(troubles[:3]) or None)

    def _scrape(self, url: str, token: bytes) -> str:
        from mlsecd.sources import _plain_get  # noqa: PLC0415 - with Python's HTTP client, only where it is used

        headers = {"Accept": "text/plain"}
        if token:
            headers["Authorization"] = f"Bearer {token.decode('latin-1')}"
        body = _plain_get.get(url, headers, self._params.timeout_seconds, _MAX_BYTES)
        if len(body) > _MAX_BYTES:
            raise ValueError(f"more than {_MAX_BYTES >> 20} MiB of metrics")
        return body.decode("utf-8", "replace")

    def _samples(self, url: str, text: str, now: float) -> Iterator[ServerSample]:
        """One sample a model; counters as what was added since the last scrape."""
        before = self._before.get(url)
        after = _Before(now)
        for model, values in readings(text).items():
            counters = {name: values[name] for name in COUNTERS if name in values}
            after.counters[model] = counters
            added: dict[str, float] = {}
            if before is not None and model in before.counters:
                last = before.counters[model]
                # a counter that fell began anew with its server
                added = {
                    name: value - last[name] if value >= last[name] else value
                    for name, value in counters.items()
                    if name in last
                }
            yield ServerSample(
                ts=now,
                server=_server(url),
                model=model or None,
                interval_s=max(0.0, now - before.ts) if before is not None and added else None,
                running=values.get("running"),
                waiting=values.get("waiting"),
                kv_cache_usage=min(1.0, values["kv_cache_usage"]) if "kv_cache_usage" in values else None,
                requests=added.get("requests"),
                failed=added.get("failed"),
                input_tokens=added.get("input_tokens"),
                output_tokens=added.get("output_tokens"),
            )
        self._before[url] = after

    def close(self) -> None:
        """Forget the counters: the next scrape begins anew."""
        self._before = {}


def _server(url: str) -> str:
    """Its name in records: where it is, without a user or a query."""
    parts = urlsplit(url)
    return f"{parts.hostname or ''}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


SOURCE = ServerMetrics
