"""Learns cells and what ordinary clients see of them: offline, for ``baseline fit``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._exposure_cells import Codebook, coordinates
from mlsecd.detectors._exposure_chart import GRID, PACE_SECONDS, QUANTILES, STEPS, Chart
from mlsecd.detectors._exposure_sight import LABELS_MAX
from mlsecd.detectors._extraction_channels import COLUMNS, ends_of, request_keys, usable
from mlsecd.detectors._extraction_clients import SAMPLE_ROWS, evenly, split
from mlsecd.detectors._extraction_fit import gather, models_of
from mlsecd.detectors.base import Fit, Section
from mlsecd.kernels import Kernels
from mlsecd.records import Ragged, Records, RequestBatch, rows_of

__all__ = ["MIN_CLIENTS", "NEEDED", "fit"]

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
I8 = NDArray[np.int64]

MIN_CLIENTS: Final = 30  # a third draws the cells, two thirds are counted in them
MIN_QUERIES: Final = int(STEPS[0])  # distinct queries of a client that is learned from
CELLS_MIN: Final = 64
_ROWS_A_CELL: Final = 4  # sampled rows behind each cell
_REACHED: Final = 10  # clients that must have got as far, for others to be compared with them there
NEEDED: Final = ("ts", "duration_s", "model", "client", "predicted", "body_hash", *COLUMNS.values())


@dataclass(frozen=True, slots=True)
class Way:
    """How one client went, at each of its distinct queries: counted from 1."""

    ts: F8  # [n]
    places: dict[str, I8]  # [n] by letter: cells, in order


def fit(records: Iterable[Records], params: Any, kernels: Kernels) -> Fit:
    """Chart every model that has enough clients, largest first."""
    batch, seen = gather(records, NEEDED)
    notes = [f"only the first {len(batch):,} of {seen:,} usable requests were read"] if seen > len(batch) else []
    made: list[Chart] = []
    refused: list[str] = []
    models = models_of(batch)
    for model, rows in models[: params.max_models]:
        charted = _chart(model, batch, rows, params.cells, kernels)
        if isinstance(charted, Chart):
            made.append(charted)
        else:
            refused.append(charted)
    if len(models) > params.max_models:
        notes.append(f"model limit {params.max_models}: {len(models) - params.max_models} smaller models left out")
    if not made:
        why = "; ".join(refused) or "no request has a client and features or input_features"
        needs = f"needs {MIN_CLIENTS} clients with {MIN_QUERIES} distinct queries each"
        return Fit(None, f"{why}; {needs}", tuple(notes))
    arrays: dict[str, NDArray[Any]] = {}
    for i, chart in enumerate(made):
        arrays |= chart.arrays(str(i))
    section = Section({"charts": [chart.header() for chart in made]}, arrays)
    return Fit(section, None, (*notes, *refused, *map(_describe, made)))


def _describe(chart: Chart) -> str:
    cells = ", ".join(f"{book.cells} cells of {COLUMNS[letter]}" for letter, book in chart.books.items())
    return (
        f'model "{chart.model}": {cells}; the median of {chart.facts["clients"]:.0f} clients asked '
        f"{chart.volume[50]:,.0f} distinct queries and saw {chart.facts['median_coverage']:.1%} of the cells"
    )


def _columns(batch: RequestBatch, rows: I8) -> tuple[dict[str, int], I8]:
    """Widths by letter of the columns that half of the rows have; and the rows that have them all."""
    widths: dict[str, int] = {}
    good = np.ones(len(rows), bool)
    for letter, name in COLUMNS.items():
        lengths = batch.ragged(name).lengths[rows]
        if not (lengths > 0).any():
            continue
        width = int(np.bincount(lengths[lengths > 0]).argmax())
        fits = usable(batch.ragged(name), width)[rows]
        if 2 * fits.sum() >= len(rows):
            widths[letter] = width
            good &= fits
    return widths, rows[good]


def _chart(model: str, batch: RequestBatch, rows: I8, cells: int, kernels: Kernels) -> Chart | str:
    """One model's chart; or why there is none."""
    widths, rows = _columns(batch, rows)
    client = batch.text("client")
    keys = request_keys(batch, rows, widths, kernels)
    clients: dict[str, I8] = {}
    for code, places in rows_of(client.codes[rows]) if widths else ():
        _, first = np.unique(keys[places], return_index=True)
        if len(first) >= MIN_QUERIES:
            clients[client.values[code]] = rows[places[np.sort(first)]]
    if len(clients) < MIN_CLIENTS:
        return f'model "{model}": {len(clients)} clients, too few'
    drawing, counted = split(list(clients))
    sampled = np.concatenate([evenly(clients[name]) for name in drawing])
    size = min(cells, len(sampled) // _ROWS_A_CELL)
    if size < CELLS_MIN:
        return f'model "{model}": {len(sampled)} queries of {len(drawing)} clients, too few for cells'
    vectors = {letter: _vectors(batch.ragged(COLUMNS[letter]), width) for letter, width in widths.items()}
    books = {letter: _book(x(sampled), size, kernels) for letter, x in vectors.items()}
    ways = [
        Way(
            batch.completion[clients[name]],
            {letter: books[letter].places(x(clients[name]), kernels) for letter, x in vectors.items()},
        )
        for name in counted
    ]
    labels = [str(one) for one in map(batch.text("predicted").at, rows) if one is not None]
    return _counted(model, books, ways, labels)


def _vectors(column: Ragged, width: int) -> Any:
    return lambda rows: np.array(column.matrix(rows, width), np.float32)


def _book(x: F4, cells: int, kernels: Kernels) -> Codebook:
    """Cells of float32[n, D], by k-means on what the daemon sees: bytes."""
    from sklearn.cluster import MiniBatchKMeans  # noqa: PLC0415 - the daemon never imports it
    from threadpoolctl import threadpool_limits  # noqa: PLC0415 - comes with scikit-learn

    x = np.clip(x, *ends_of(x))  # a few numbers of 1e38 would leave one cell for all others
    offset, matrix = coordinates(x)
    u = kernels.project(x, offset, matrix)
    step = max(float(np.quantile(np.abs(u), 0.999)) * 1.5 / 127.0, 1e-6)
    codes = kernels.quantise(u, step)
    distinct = np.unique(codes, axis=0)
    if len(distinct) > cells:
        means = MiniBatchKMeans(cells, batch_size=4_096, n_init=1, max_iter=50, random_state=0)
        with threadpool_limits(1):  # small steps: threads that wait for each other on a busy host cost minutes
            means.fit(codes.astype(np.float32))
        distinct = np.unique(np.rint(means.cluster_centers_).astype(np.int8), axis=0)
    return Codebook(offset, matrix, step, distinct)


def _counted(model: str, books: dict[str, Codebook], ways: list[Way], labels: list[str]) -> Chart:
    """How clients, who did not draw the cells, fill them."""
    expected = {
        letter: _rarefaction([way.places[letter] for way in ways], book.cells) for letter, book in books.items()
    }
    named, counts = np.unique(labels, return_counts=True)
    known = tuple(str(named[i]) for i in np.argsort(-counts, kind="stable")[: LABELS_MAX - 1])
    one = np.ones((1, len(QUANTILES)))
    made = Chart(model, books, known, expected, one, one, one[0], {})
    coverage, breadths, paces = [], [], []
    for way in ways:
        share, breadth, pace = _path(made, way)
        coverage.append(share)
        breadths.append(breadth)
        paces.append(pace)
    reached = max(int((np.isfinite(np.array(breadths)).sum(axis=0) >= _REACHED).sum()), 1)
    facts = {
        "clients": float(len(ways)),
        "first_ts": float(min(way.ts[0] for way in ways)),
        "last_ts": float(max(way.ts[-1] for way in ways)),
        "median_coverage": float(np.median(coverage)),
    }
    return Chart(
        model,
        books,
        known,
        expected,
        _quantiles(np.array(breadths)[:, :reached]),
        _quantiles(np.array(paces)[:, :reached]),
        np.quantile([len(way.ts) for way in ways], QUANTILES),
        facts,
    )


def _rarefaction(places: list[I8], cells: int) -> F8:
    """Share of cells that n queries of ordinary traffic see, n as in GRID: float64[65] (Hurlbert 1971).

    Each client counts with 200 queries at most; half a query is added to each cell, so that none is
    taken for one that is never met.
    """
    mass = np.full(cells, 0.5)
    for own in places:
        mass += np.bincount(own, minlength=cells) * min(1.0, SAMPLE_ROWS / len(own))
    mass /= mass.sum()
    curve: F8 = (1.0 - (1.0 - mass[None, :]) ** GRID[:, None]).mean(axis=1)
    return curve


def _path(chart: Chart, way: Way) -> tuple[float, F8, F8]:
    """One client's coverage at its end; its breadth and pace when it had got as far as each step, NaN beyond."""
    asked = np.arange(1, len(way.ts) + 1)
    ratios, shares = [], []
    for letter, places in way.places.items():
        fresh = np.zeros(len(places), bool)
        fresh[np.unique(places, return_index=True)[1]] = True
        share = np.cumsum(fresh) / chart.books[letter].cells
        ratios.append(share / np.interp(np.log(asked), np.log(GRID), chart.expected[letter]))
        shares.append(share[-1])
    ratio = np.max(ratios, axis=0)
    pace = ratio * asked / (np.maximum(way.ts - way.ts[0], PACE_SECONDS) / 3_600.0)
    breadths, paces = np.full((2, len(STEPS)), np.nan)
    at = STEPS[len(asked) >= STEPS].astype(np.int64) - 1
    breadths[: len(at)], paces[: len(at)] = ratio[at], pace[at]
    return float(shares[int(np.argmax([own[-1] for own in ratios]))]), breadths, paces


def _quantiles(values: F8) -> F8:
    """Quantiles of each column, NaN left out: float64[S, 101]."""
    return np.array([np.quantile(own[np.isfinite(own)], QUANTILES) for own in values.T])
