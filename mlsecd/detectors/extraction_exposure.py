"""How much of a model's input space each account, and each group of accounts, has seen."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from operator import attrgetter
from typing import Annotated, Any, ClassVar, Final

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from mlsecd.detectors import _exposure_fit as fitting
from mlsecd.detectors import base
from mlsecd.detectors._account_groups import Groups, Links, read_links, used
from mlsecd.detectors._exposure_chart import Chart
from mlsecd.detectors._exposure_rank import Key, Ranked, ranking
from mlsecd.detectors._exposure_rows import Placed, place
from mlsecd.detectors._exposure_sight import TICK, Sight, Sights
from mlsecd.detectors._exposure_words import evidence_of, reason_of
from mlsecd.detectors._extraction_channels import COLUMNS
from mlsecd.detectors._waiting import WAITING_MAX, Waiting
from mlsecd.detectors.base import Detector, DetectorState, Fit, Interval, Maturity, Section, Standing
from mlsecd.errors import MALFORMED, BaselineError, StateError
from mlsecd.kernels import Kernels
from mlsecd.records import Finding, Kind, Records, RequestBatch, Severity
from mlsecd.windows.packing import pack, unpack

__all__ = ["DETECTOR", "ExtractionExposure", "Params"]

I8 = NDArray[np.int64]

_SNAPSHOT: Final = 1
_GROWTH: Final = math.sqrt(2.0)  # queries by which an account must have grown to be told again
_MISMATCH_RUN: Final = 100  # rows in a row whose vectors do not fit the baseline: another model is served
_CROWD: Final = 5  # accounts below which a maximum would be one account's own score
_COUNTERS: Final = ("unattributed", "unscored", "mismatched", "refused")  # rows of each fate
_NEEDED: Final = (*fitting.NEEDED, "synthetic", "network", "principal")
_LEARNING: Final = "no baseline: record a week of ordinary requests, then run `mlsecd baseline fit`"


class Params(base.Params, frozen=True):
    """Who is ranked, who is told, and how much is held."""

    min_queries: Annotated[int, Meta(ge=10, description="queries from which on an account is ranked")] = 500
    min_group_queries: Annotated[int, Meta(ge=10, description="queries from which on a group is ranked")] = 250
    leading: Annotated[int, Meta(ge=1, le=100, description="accounts told, by pace and by coverage each")] = 3
    leading_groups: Annotated[int, Meta(ge=1, le=100, description="groups told, by pace and by coverage each")] = 5
    min_ratio: Annotated[
        float, Meta(gt=0, description="told above so many times the median ordinary client's coverage")
    ] = 1.5
    epoch_seconds: Annotated[
        float, Meta(ge=3_600, le=31_536_000, description="event time of an epoch; it and the one before are counted")
    ] = 1_209_600.0
    links: Annotated[
        Links,
        Meta(max_length=10_000, description="groups that you know of, as lines of CSV: a name, then its clients"),
    ] = ()
    cells: Annotated[int, Meta(ge=256, le=1_024, description="cells of each vector column, if fitted on enough")] = 512
    max_models: Annotated[int, Meta(ge=1, le=64, description="models that a baseline holds, largest first")] = 8
    max_clients: Annotated[int, Meta(ge=10, le=10_000_000, description="accounts with counts")] = 50_000
    max_groups: Annotated[int, Meta(ge=10, le=1_000_000, description="groups with counts")] = 5_000

    def __post_init__(self) -> None:
        """Refuse links that are none."""
        read_links(self.links)


class ExtractionExposure(Detector):
    """Counts the cells of a model's input space that each account has seen, and ranks accounts by it.

    No alarm: who steals with ordinary data sends what customers send. What is left to see is how much
    of the input space was opened up, and how fast; so the leaders are told as context, at volumes that
    grow by the root of two.
    """

    name = "extraction_exposure"
    consumes = frozenset({Kind.REQUEST})
    key = "client"
    maturity = Maturity.INCUBATING
    atlas = ("AML.T0024.002",)  # Extract AI Model
    owasp = ("LLM10:2025",)  # Unbounded Consumption, which covers model extraction
    summary = "The accounts and groups that have seen most of a model's input space, or saw it fastest."
    action = (
        "Context, no alarm: somebody always leads. Ask whether this customer's business needs so much of the input "
        "space so fast; if nobody knows, limit its volume, and look at the other findings about it."
    )
    blind_spots: ClassVar[tuple[str, ...]] = (
        "It ranks and does not accuse: a large honest customer or a batch job looks like a thief with ordinary data.",
        "A thief who is as slow as customers are leads by coverage only once it has asked more than they have.",
        "Pace counts from an account's first query in the epoch: idle days before a burst slow it down on paper.",
        "Work split over accounts that share no network, tenant or known link is nowhere added up.",
        "A network is the address that the records carry: behind a proxy or a NAT, strangers share one.",
        "What is older than the epoch before is forgotten, so work spread over months never adds up.",
        "Cells are those of the baseline: a season or a launch moves ordinary clients into cells seldom seen before.",
        "Fewer than min_queries, and requests without a vector, are not ranked.",
    )
    resolve_after_seconds = 86_400.0  # what was seen stays seen; it is told again when it has grown
    Params = Params

    def __init__(self, params: Any, kernels: Kernels, section: Section | None = None) -> None:
        super().__init__(params, kernels, section)
        self._charts = self._load(section)
        self._by_model = {chart.model: number for number, chart in enumerate(self._charts)}
        self._clients, self._shared = Sights(params.max_clients), Sights(params.max_groups)
        self._groups = Groups(params.links)
        self._told: dict[str, float] = {}  # queries at which a key was told last
        self._counts = dict.fromkeys(_COUNTERS, 0)
        self._mismatch_run = 0
        self._waiting = Waiting(_NEEDED)
        self._gauges: dict[str, float] = {}  # of the last ranking
        for chart in self._charts:
            chart.compile_for(kernels)

    def _load(self, section: Section | None) -> list[Chart]:
        if section is None:
            return []
        headers = section.header.get("charts")
        if not isinstance(headers, list) or not headers or not all(isinstance(header, dict) for header in headers):
            raise BaselineError(f"{self.name}: the baseline's part cannot be used")
        return [Chart.of(header, section.arrays, str(i)) for i, header in enumerate(headers)]

    def observe(self, records: Records) -> list[Finding]:
        """Keep requests, in order of completion; who leads is judged in :meth:`close`."""
        if isinstance(records, RequestBatch) and len(records):
            self._waiting.add(records)
            if self._waiting.rows >= WAITING_MAX:
                self._see()
        return []

    def _see(self) -> None:
        """Fold what waits. When this happens changes nothing but the cost."""
        records = self._waiting.take()
        if records is None:
            return
        known = records.text("client").codes >= 0
        self._counts["unattributed"] += int((~known).sum())
        model = records.text("model")
        scored = np.zeros(len(records), bool)
        for code in np.unique(model.codes[known]).tolist():
            number = self._by_model.get(model.values[code])
            if number is not None:
                rows = np.flatnonzero(known & (model.codes == code))
                scored[rows] = self._place(records, rows, number)
        self._counts["unscored"] += int((known & ~scored).sum())

    def _place(self, batch: RequestBatch, rows: I8, number: int) -> NDArray[np.bool_]:
        """Fold one model's rows; bool[n]: which had a vector of the chart's width."""
        placed = place(batch, rows, self._charts[number].books, self.kernels)
        self._count_misfits(batch, rows, placed.good)
        self._fold(batch.take(rows[placed.good]), number, placed)
        return placed.good

    def _count_misfits(self, batch: RequestBatch, rows: I8, good: NDArray[np.bool_]) -> None:
        vectors = np.logical_or.reduce([batch.ragged(name).lengths[rows] > 0 for name in COLUMNS.values()])
        misfit = vectors & ~good
        self._counts["mismatched"] += int(misfit.sum())
        last = np.flatnonzero(good)
        if len(last):
            self._mismatch_run = 0
        self._mismatch_run += int(misfit[last[-1] + 1 if len(last) else 0 :].sum())

    def _fold(self, batch: RequestBatch, number: int, placed: Placed) -> None:
        """Fold rows, each as (client, when, cells, request, prediction), into its account and its groups."""
        chart, client = self._charts[number], used(batch.text("client"))
        labels = {code: chart.place(label) for code, label in used(batch.text("predicted")).items()}
        columns = zip(
            batch.text("client").codes.tolist(),
            batch.completion.tolist(),
            batch.synthetic.tolist(),
            placed.cells.tolist(),
            placed.bits.tolist(),
            batch.text("predicted").codes.tolist(),
            self._groups.of(batch),
            strict=True,
        )
        for code, ts, synthetic, cells, bit, label, groups in columns:
            tick, epoch, name = ts // TICK * TICK, ts // self.params.epoch_seconds, client[code]
            own = self._clients.touch(Key("client", number, synthetic, name).text(), tick)
            self._counts["refused"] += own is None
            shared = [self._shared.touch(Key(kind, number, synthetic, value).text(), tick) for kind, value in groups]
            for sight in (own, *shared):
                if sight is not None:
                    sight.enter(epoch)
                    sight.see(ts, cells, bit, labels.get(label, -1))
            for sight in shared:
                if sight is not None:
                    sight.meet(name, ts)

    def states(self) -> Iterator[tuple[str, Sight]]:
        """Accounts with enough queries, and all groups: a shard cannot know how many queries a group has."""
        self._see()
        yield from self._shared.items()
        yield from (pair for pair in self._clients.items() if pair[1].asked >= self.params.min_queries)

    def close(self, interval: Interval, states: Iterable[tuple[str, Any]]) -> list[Finding]:
        """Rank everybody with enough queries, and tell of the leaders that have grown."""
        limits = self.params.min_queries, self.params.min_group_queries
        ranked = ranking(states, self._charts, interval.start // self.params.epoch_seconds, *limits)
        told = {one.key: self._told[one.key] for one in ranked if one.key in self._told}
        due = [
            one
            for one in ranked
            if one.rank <= (self.params.leading if one.kind == "client" else self.params.leading_groups)
            and one.price.ratio >= self.params.min_ratio
            and not told.get(one.key, 0.0) <= one.sight.queries < _GROWTH * told.get(one.key, 0.0)  # fewer: afresh
        ]
        self._told = told | {one.key: float(one.sight.queries) for one in due}
        self._gauges = self._measure(ranked)
        return [self._tell(one) for one in sorted(due, key=attrgetter("sight.last_ts", "key"))]

    def _measure(self, ranked: list[Ranked]) -> dict[str, float]:
        """Numbers over all accounts: of none alone."""
        clients = [one.price.ratio for one in ranked if one.kind == "client" and not one.synthetic]
        gauges = {
            "ranked_clients": float(len(clients)),
            "ranked_groups": float(sum(one.kind != "client" for one in ranked)),
            "exposed_clients": float(sum(ratio >= self.params.min_ratio for ratio in clients)),
        }
        return gauges | ({"coverage_max_ratio": max(clients)} if len(clients) >= _CROWD else {})

    def _tell(self, one: Ranked) -> Finding:
        chart = self._charts[one.number]
        alone = one.kind == "client"
        # A group's subject becomes a label of a metric: a digest, for its name is chosen by others.
        digest = hashlib.blake2b(f"{chart.model}\0{one.kind}\0{one.value}".encode(), digest_size=8).hexdigest()
        return self.finding(
            ts=one.sight.last_ts,
            subject_kind="client" if alone else "campaign",
            subject=one.value if alone else digest,
            severity=Severity.INFO,
            score=one.price.ratio,
            threshold=self.params.min_ratio,
            reason=reason_of(chart, one),
            evidence=evidence_of(chart, one),
            synthetic=one.synthetic,
        )

    def standing(self) -> Standing:
        """Whether it has a chart, and numbers over all accounts."""
        gauges = {f"{name}_rows": float(count) for name, count in self._counts.items()} | {
            "clients": float(len(self._clients)),
            "groups": float(len(self._shared)),
            "evicted_clients": float(self._clients.evicted),
            "evicted_groups": float(self._shared.evicted),
            **self._gauges,
        }
        if not self._charts:
            return Standing(DetectorState.LEARNING, _LEARNING, gauges)
        gauges["calibration_clients"] = min(chart.facts["clients"] for chart in self._charts)
        gauges["calibration_timestamp_seconds"] = min(chart.facts["last_ts"] for chart in self._charts)
        if self._mismatch_run >= _MISMATCH_RUN:
            why = f"the last {self._mismatch_run:,} requests have vectors of other widths than the baseline's"
            return Standing(DetectorState.MISMATCH, f"{why}: was the model replaced? fit it again", gauges)
        return Standing(DetectorState.ARMED, "", gauges)

    def snapshot(self) -> bytes:
        """What everybody has seen, bound to the baseline's cells."""
        self._see()
        state = {
            "baseline": self._fingerprint(),
            "clients": self._clients.dump(),
            "shared": self._shared.dump(),
            "told": list(self._told.items()),
            "counts": [self._counts[name] for name in _COUNTERS],
            "mismatch_run": self._mismatch_run,
            "gauges": self._gauges,
        }
        return pack(_SNAPSHOT, state)

    def restore(self, blob: bytes) -> None:
        """Take a snapshot's state, if it was made with the same cells."""
        state = unpack(_SNAPSHOT, blob)
        try:
            if state["baseline"] != self._fingerprint():
                raise StateError("the snapshot was made with another baseline")
            clients, shared = Sights(self.params.max_clients), Sights(self.params.max_groups)
            clients.load(state["clients"])
            shared.load(state["shared"])
            told = {str(key): float(queries) for key, queries in state["told"]}
            counts = dict(zip(_COUNTERS, map(int, state["counts"]), strict=True))
            run = int(state["mismatch_run"])
            gauges = {str(name): float(value) for name, value in state["gauges"].items()}
        except MALFORMED as error:
            raise StateError(f"a snapshot of {self.name} is damaged: {error}") from error
        self._waiting.take()
        self._clients, self._shared, self._told, self._gauges = clients, shared, told, gauges
        self._counts, self._mismatch_run = counts, run

    def _fingerprint(self) -> str:
        """What the cells are."""
        digest = hashlib.blake2b(digest_size=16)
        for chart in self._charts:
            digest.update(f"{chart.model}\0".encode())
            for book in chart.books.values():
                for array in book.arrays("").values():
                    digest.update(array.tobytes())
        return digest.hexdigest()

    @classmethod
    def fit(cls, records: Iterable[Records], params: Any, kernels: Kernels) -> Fit:
        """Chart each model that has enough clients."""
        return fitting.fit(records, params, kernels)


DETECTOR = ExtractionExposure
