"""What tells a model's rows after a change from those before: a classifier two-sample test, offline.

After Lopez-Paz & Oquab 2017. It runs on the command line only (`mlsecd replay --report`): it needs
scikit-learn and the records themselves, and it judges nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._drift_streams import CATEGORIES, SCALARS, SKETCH_WIDTH, Columns
from mlsecd.kernels import Kernels
from mlsecd.records import Records, RequestBatch, Text

__all__ = ["Change", "Told", "explain", "gather"]

_ROWS_MAX: Final = 3_000  # of each side: those nearest to the change
_ROWS_MIN: Final = 200
_TEXTS_MAX: Final = 12  # values of a text column with a feature of their own
_SHOWN_MAX: Final = 6
_GAIN_MIN: Final = 0.002  # of AUC, that a feature must bring to be named
_SEED: Final = 1


@dataclass(slots=True)
class Change:
    """A model, when it changed, and its rows on both sides, nearest to the change."""

    model: str
    onset: float
    before: list[RequestBatch] = field(default_factory=list)
    after: list[RequestBatch] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Told:
    """How well rows after are told from rows before, on rows that the classifier did not see.

    ``auc`` is the chance that a later row looks later than an earlier one: one half tells nothing.
    ``p`` is Mann & Whitney's, valid because the rows were held out. ``features`` are what it leans on,
    with the AUC that each costs when it is shuffled.
    """

    auc: float
    p: float
    rows: tuple[int, int]
    features: tuple[tuple[str, float], ...]


def gather(records: Iterable[Records], changes: list[Change]) -> None:
    """Fill each change's rows from records in order of time; at most 3,000 a side are held."""
    for batch in records:
        if not isinstance(batch, RequestBatch) or not len(batch):
            continue
        models = batch.text("model")
        for change in changes:
            own = np.array([value == change.model for value in models.values] + [False])[models.codes]
            own &= ~batch.synthetic
            late = batch.completion >= change.onset
            if (own & ~late).any():
                change.before.append(batch.take(np.flatnonzero(own & ~late)[-_ROWS_MAX:]))
                _drop_earliest(change.before)
            room = _ROWS_MAX - sum(map(len, change.after))
            if room > 0 and (own & late).any():
                change.after.append(batch.take(np.flatnonzero(own & late)[:room]))


def _drop_earliest(batches: list[RequestBatch]) -> None:
    while sum(map(len, batches)) - len(batches[0]) >= _ROWS_MAX:
        batches.pop(0)


def explain(change: Change, kernels: Kernels) -> Told | None:
    """Train on every second row, judge on the others; ``None`` with fewer than 200 rows on either side."""
    sizes = (sum(map(len, change.before)), sum(map(len, change.after)))
    if min(sizes) < _ROWS_MIN:
        return None
    from sklearn.ensemble import HistGradientBoostingClassifier  # noqa: PLC0415 - offline only
    from sklearn.inspection import permutation_importance  # noqa: PLC0415
    from sklearn.metrics import roc_auc_score  # noqa: PLC0415
    from threadpoolctl import threadpool_limits  # noqa: PLC0415 - scikit-learn's own

    features, names = _features(RequestBatch.concat([*change.before, *change.after]), kernels)
    if not names:
        return None
    later = np.repeat([0, 1], sizes)
    train = np.arange(len(later)) % 2 == 0
    model = HistGradientBoostingClassifier(max_iter=40, max_leaf_nodes=8, min_samples_leaf=30, random_state=_SEED)
    with threadpool_limits(1):  # small work: threads would only wait for each other
        model.fit(features[train], later[train])
        held, truth = features[~train], later[~train]
        auc = float(roc_auc_score(truth, model.predict_proba(held)[:, 1]))
        leans = permutation_importance(model, held, truth, scoring="roc_auc", n_repeats=2, random_state=_SEED)
    order = np.argsort(-leans.importances_mean)[:_SHOWN_MAX]
    named = tuple(
        (names[at], float(leans.importances_mean[at]))
        for at in order.tolist()
        if leans.importances_mean[at] > _GAIN_MIN
    )
    return Told(auc, _mann_whitney(auc, int((truth == 0).sum()), int(truth.sum())), sizes, named)


def _mann_whitney(auc: float, n: int, m: int) -> float:
    """One-sided p of an AUC, by the normal limit of its null distribution."""
    return 0.5 * math.erfc((auc - 0.5) / math.sqrt((n + m + 1) / (12.0 * n * m)) / math.sqrt(2.0))


def _features(batch: RequestBatch, kernels: Kernels) -> tuple[NDArray[np.float64], list[str]]:
    """Every number, text and coordinate of the rows, float64[n, f], NaN where absent; and their names.

    What never varies is left out.
    """
    columns = Columns(batch)
    parts, names = [columns.scalars], list(SCALARS)
    for title, text in zip(CATEGORIES, columns.categories, strict=True):
        shares, values = _shares(text)
        parts.append(shares)
        names += [f"{title}:{value}" for value in values]
    rows = np.arange(len(batch))
    widths = columns.widths(rows)
    if (widths > 0).any():
        width = int(np.bincount(widths[widths > 0]).argmax())
        vectors: NDArray[Any] = columns.vectors(rows, width, kernels).astype(np.float64)
        parts.append(np.where(np.isfinite(vectors), vectors, np.nan))
        sketched = " of the sketch" if width > SKETCH_WIDTH else ""
        names += [f"coordinate {at}{sketched}" for at in range(vectors.shape[1])]
    made = np.concatenate(parts, axis=1)
    varied = [at for at in range(made.shape[1]) if len(np.unique(made[np.isfinite(made[:, at]), at])) > 1]
    return made[:, varied], [names[at] for at in varied]


def _shares(text: Text) -> tuple[NDArray[np.float64], list[str]]:
    counts = np.bincount(text.codes[text.codes >= 0], minlength=len(text.values))
    held = [code for code in np.argsort(-counts, kind="stable")[:_TEXTS_MAX].tolist() if counts[code]]
    return (text.codes[:, None] == np.array(held, np.int32)).astype(np.float64), [text.values[code] for code in held]
