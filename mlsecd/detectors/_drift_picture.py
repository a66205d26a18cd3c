"""A small picture of a stream before and after: how its latest rows fall among sixteenths of the reference."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from mlsecd.detectors._drift_reference import Reference
from mlsecd.kernels import drift_layout as at
from mlsecd.records import F8

__all__ = ["expected_bins", "picture", "psi", "sparkline"]

_BARS: Final = "▁▂▃▄▅▆▇█"
_LINE_BARS: Final = 8
_FULL: Final = 4.0  # times its share in the reference: a bar that high is full


def picture(reference: Reference, stream: int, bins: F8, expected: F8) -> dict[str, Any]:
    """Edges of the reference's sixteenths in the stream's unit, and the share of the latest rows in each.

    Unchanged rows fill all sixteen alike. At most 256 rows are in it, from before the change too
    when it has just begun; ``psi`` is of the same rows. ``bins`` is float64[2, 16],
    ``expected`` float64[16].
    """
    values = reference.values_sorted[reference.offsets[stream] : reference.offsets[stream + 1]]
    places = np.minimum(np.arange(at.BINS + 1) * len(values) // at.BINS, len(values) - 1)
    counts = bins.sum(axis=0)
    return {
        "edges": [float(f"{edge:.4g}") for edge in values[places].tolist()],
        "after": [round(share, 4) for share in (counts / max(counts.sum(), 1.0)).tolist()],
        "rows": int(counts.sum()),
        "psi": round(_stability(counts, expected), 3),
    }


def psi(bins: F8, expected: F8) -> float:
    """The largest population stability index of any stream, of its latest 128 to 256 rows; 0 before there are so many.

    A gauge, no verdict: at so few rows chance alone gives 0.1 to 0.2, and 0.25 is called a large shift.

    Parameters
    ----------
    bins, expected
        float64[k, 2, 16], float64[k, 16].
    """
    counts = bins.sum(axis=1)
    seen = np.flatnonzero(counts.sum(axis=1) >= at.BLOCK).tolist()
    return max((_stability(counts[stream], expected[stream]) for stream in seen), default=0.0)


def expected_bins(reference: Reference) -> F8:
    """The share of each stream's own reference in each sixteenth of its ranks, float64[k, 16]; ties are in one."""
    made = [_expected(reference, stream) for stream in range(len(reference.names))]
    return np.array(made, np.float64).reshape(-1, at.BINS)


def _expected(reference: Reference, stream: int) -> F8:
    values = reference.values_sorted[reference.offsets[stream] : reference.offsets[stream + 1]]
    shares = np.zeros(at.BINS)
    if not len(values):
        one = float(reference.means[stream])
        places = np.clip((reference.two_valued[stream] + 0.5) * at.BINS, 0.0, at.BINS - 1.0).astype(int)
        np.add.at(shares, places, np.array([1.0 - one, one]))
        return shares
    middles = (np.searchsorted(values, values, "left") + np.searchsorted(values, values, "right") + 1) / 2.0
    places = (middles / (len(values) + 1) * at.BINS).astype(int)
    return np.bincount(places, minlength=at.BINS) / len(values)


def _stability(counts: F8, expected: F8) -> float:
    """The population stability index, half a row added to each share."""
    rows = counts.sum()
    shares, before = ((each + 0.5) / (rows + 0.5 * at.BINS) for each in (counts, rows * expected))
    return float(((shares - before) * np.log(shares / before)).sum())


def sparkline(drawn: dict[str, Any]) -> str:
    """Eight bars, low values first; of even height where nothing moved."""
    shares = np.array(drawn["after"]).reshape(_LINE_BARS, -1).sum(axis=1) * _LINE_BARS
    heights = np.minimum(shares / _FULL * len(_BARS), len(_BARS) - 1).astype(int)
    return "".join(_BARS[height] for height in heights.tolist())
