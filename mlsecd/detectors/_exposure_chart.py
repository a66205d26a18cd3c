"""What ordinary clients of one model come to see of it, and what any sight is worth beside that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._exposure_cells import Codebook
from mlsecd.detectors._exposure_sight import LABELS_MAX, Sight
from mlsecd.detectors._extraction_channels import COLUMNS
from mlsecd.detectors._sections import facts_of, numbers
from mlsecd.detectors.base import Arrays
from mlsecd.errors import MALFORMED, BaselineError
from mlsecd.kernels import Kernels

__all__ = ["GRID", "QUANTILES", "STEPS", "Chart", "Price"]

F8 = NDArray[np.float64]

GRID: Final = np.geomspace(1.0, 65_536.0, 65)  # queries at which the expected coverage is tabulated
STEPS: Final = 2.0 ** np.arange(4, 14)  # distinct queries at which ordinary clients are compared: 16 to 8,192
QUANTILES: Final = np.linspace(0.0, 1.0, 101)
PACE_SECONDS: Final = 600.0  # a shorter life counts as this long: three requests in a second are no pace
_FACTS: Final = frozenset({"clients", "last_ts", "median_coverage"})


@dataclass(frozen=True, slots=True)
class Price:
    """One sight, priced.

    Attributes
    ----------
    column
        The vector column in which it stands out most, by its name in records.
    seen, cells
        Cells seen, of how many.
    expected
        Share of cells that queries drawn from all ordinary traffic, as many as its distinct ones, would see.
    distinct
        Its distinct queries.
    pace
        Queries of ordinary traffic an hour that open up cells as fast as it did: its distinct queries
        an hour, times coverage over expected coverage.
    breadth_rank, pace_rank, volume_rank
        Share of ordinary clients that covered less, and that were slower, when they had asked as much;
        share that ever asked less.
    ratio
        Its coverage over that of the median ordinary client.
    """

    column: str
    seen: int
    cells: int
    expected: float
    distinct: float
    pace: float
    breadth_rank: float
    pace_rank: float
    volume_rank: float
    ratio: float

    @property
    def coverage(self) -> float:
        """Share of cells seen."""
        return self.seen / self.cells

    @property
    def breadth(self) -> float:
        """Coverage over the expected one: 1 is as if drawn from everybody's queries."""
        return self.coverage / self.expected if self.expected else 0.0


@dataclass(frozen=True, slots=True)
class Chart:
    """One model's cells, and how ordinary clients fill them.

    Attributes
    ----------
    books
        Codebook by letter of the vector column, in this order the columns of a :class:`Sight`.
    labels
        Known predictions, at most 32.
    expected
        float64[65] by letter: share of cells that n queries of ordinary traffic see, n as in :data:`GRID`.
    breadth, pace
        float64[S, 101]: quantiles of ordinary clients when they had asked as many distinct queries as
        :data:`STEPS` says; S <= 10 steps that enough clients reached.
    volume
        float64[101]: quantiles of distinct queries of ordinary clients.
    facts
        Numbers of the fit.
    """

    model: str
    books: dict[str, Codebook]
    labels: tuple[str, ...]
    expected: dict[str, F8]
    breadth: F8
    pace: F8
    volume: F8
    facts: dict[str, float]

    def expects(self, letter: str, queries: float) -> float:
        """Share of cells that so many queries of ordinary traffic see."""
        return float(np.interp(np.log(max(queries, 1.0)), np.log(GRID), self.expected[letter]))

    def place(self, label: str | None) -> int:
        """The place of a prediction in a sight's ``labels``, -1 for none."""
        if label is None:
            return -1
        return self.labels.index(label) if label in self.labels else LABELS_MAX - 1

    def price(self, sight: Sight) -> Price | None:
        """What a sight is worth; ``None`` where it has no row."""
        distinct = sight.distinct
        columns = []
        for i, (letter, book) in enumerate(self.books.items()):
            if sight.rows[i]:
                seen, expected = (
                    sight.seen[i].bit_count(),
                    self.expects(letter, distinct * sight.rows[i] / sight.queries),
                )
                columns.append((seen / book.cells / expected, letter, seen, book.cells, expected))
        if not columns:
            return None
        breadth, letter, seen, cells, expected = max(columns)
        pace = breadth * distinct / (max(sight.last_ts - sight.first_ts, PACE_SECONDS) / 3_600.0)
        step = min(max(int(np.searchsorted(STEPS, distinct, side="right")) - 1, 0), len(self.breadth) - 1)
        return Price(
            COLUMNS[letter],
            seen,
            cells,
            expected,
            distinct,
            pace,
            _share_below(self.breadth[step], breadth),
            _share_below(self.pace[step], pace),
            _share_below(self.volume, distinct),
            seen / cells / self.facts["median_coverage"],
        )

    def arrays(self, prefix: str) -> dict[str, NDArray[Any]]:
        """For a section."""
        made = {f"{prefix}.breadth": self.breadth, f"{prefix}.pace": self.pace, f"{prefix}.volume": self.volume}
        for letter, book in self.books.items():
            made |= book.arrays(f"{prefix}.{letter}") | {f"{prefix}.{letter}.expected": self.expected[letter]}
        return made

    def header(self) -> dict[str, Any]:
        """For a section."""
        return {"model": self.model, "columns": "".join(self.books), "labels": list(self.labels), "facts": self.facts}

    @classmethod
    def of(cls, header: dict[str, Any], arrays: Arrays, prefix: str) -> Chart:
        """Out of a section.

        Raises
        ------
        BaselineError
            Something is missing or does not belong together.
        """
        try:
            letters = [letter for letter in COLUMNS if letter in str(header["columns"])]
            breadth, pace, volume = (numbers(arrays, f"{prefix}.{name}") for name in ("breadth", "pace", "volume"))
            made = cls(
                str(header["model"]),
                {letter: Codebook.of(arrays, f"{prefix}.{letter}") for letter in letters},
                tuple(str(label) for label in header["labels"]),
                {letter: numbers(arrays, f"{prefix}.{letter}.expected") for letter in letters},
                breadth,
                pace,
                volume,
                facts_of(header),
            )
        except MALFORMED as error:
            raise BaselineError(f"extraction_exposure: the baseline's part cannot be used: {error}") from error
        curves = all(one.shape == GRID.shape and bool((one > 0).all()) for one in made.expected.values())
        steps = len(made.breadth) if made.breadth.ndim else 0
        shapes = (made.breadth.shape, made.pace.shape, made.volume.shape)
        wanted = ((steps, len(QUANTILES)), (steps, len(QUANTILES)), (len(QUANTILES),))
        sound = curves and bool(made.books) and shapes == wanted and 0 < steps <= len(STEPS)
        sound = sound and len(made.labels) < LABELS_MAX and made.facts.keys() >= _FACTS
        if not sound or not made.facts["median_coverage"] > 0:
            raise BaselineError("extraction_exposure: the baseline was fitted by another version: fit it again")
        return made

    def compile_for(self, kernels: Kernels) -> None:
        """Have the kernels compiled, or read from their cache, before the first request waits for it."""
        for book in self.books.values():
            book.places(np.zeros((0, book.width), np.float32), kernels)
            book.codes(np.zeros((0, book.width), np.float32), kernels)
        kernels.vector_keys(np.zeros((0, 1), np.float32))


def _share_below(quantiles: F8, value: float) -> float:
    """Share of those whose quantiles these are that lie below a value."""
    return float(np.searchsorted(quantiles, value) / len(quantiles))
