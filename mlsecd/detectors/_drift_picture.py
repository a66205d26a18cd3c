"""A small picture of a stream before and after: how its latest rows fall among sixteenths of the reference."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from mlsecd.detectors._drift_reference import Reference
from mlsecd.kernels import drift_layout as at
from mlsecd.records import F8

__all__ = ["picture", "sparkline"]

_BARS: Final = "▁▂▃▄▅▆▇█"
_LINE_BARS: Final = 8
_FULL: Final = 4.0  # times its share in the reference: a bar that high is full


def picture(reference: Reference, stream: int, bins: F8) -> dict[str, Any]:
    """Edges of the reference's sixteenths in the stream's unit, and the share of the latest rows in each.

    Unchanged rows fill all sixteen alike. At most 256 rows are in it, from before the change too
    when it has just begun; ``psi`` is of the same rows. ``bins`` is float64[2, 16].
    """
    values = reference.values_sorted[reference.offsets[stream] : reference.offsets[stream + 1]]
    places = np.minimum(np.arange(at.BINS + 1) * len(values) // at.BINS, len(values) - 1)
    counts = bins.sum(axis=0)
    return {
        "edges": [float(f"{edge:.4g}") for edge in values[places].tolist()],
        "after": [round(share, 4) for share in (counts / max(counts.sum(), 1.0)).tolist()],
        "rows": int(counts.sum()),
        "psi": round(_stability(counts), 3),
    }


def _stability(counts: F8) -> float:
    """The population stability index against even shares, half a row added to each; 0.25 is called a large shift."""
    shares = (counts + 0.5) / (counts.sum() + 0.5 * len(counts))
    even = 1.0 / len(counts)
    return float(((shares - even) * np.log(shares / even)).sum())


def sparkline(drawn: dict[str, Any]) -> str:
    """Eight bars, low values first; of even height where nothing moved."""
    shares = np.array(drawn["after"]).reshape(_LINE_BARS, -1).sum(axis=1) * _LINE_BARS
    heights = np.minimum(shares / _FULL * len(_BARS), len(_BARS) - 1).astype(int)
    return "".join(_BARS[height] for height in heights.tolist())
