"""Learns what each GPU draws for the requests that its host serves, and how far from it ordinary minutes stray."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors._power_bins import BIN_SECONDS, Draw, Work, features
from mlsecd.detectors._serving import by_host
from mlsecd.detectors.base import Fit, Section
from mlsecd.records import GpuSample, Records, RequestBatch

__all__ = ["P_ALARM", "P_ORDINARY", "Ordinary", "learn", "step"]

MODELS_MAX: Final = 4
_SEEN_MAX: Final = 16  # models that are told apart while reading
P_ORDINARY: Final = 0.05  # share of ordinary minutes above the limit
P_ALARM: Final = 0.6  # share of minutes above it under foreign work
_UPPER: Final = 0.9  # the quantile that is fitted; the held-out part then moves it
_TOLERANCE: Final = 0.03  # of the span between rest and the busiest minutes: less is a probe, a fan, a warmer room
_BINS_MIN: Final = 240
_BINS_MAX: Final = 20_000  # the newest two weeks
_GPUS_MAX: Final = 256
_HELD_OUT: Final = 0.3  # the last part of a recording: neighbouring minutes are alike, so rows are not drawn at random
_HOURS_MIN: Final = 12
_HOUR_BINS: Final = 3_600 // BIN_SECONDS
_TOKENS_MIN: Final = 1_000.0  # of an hour, for its energy per token to say anything

F8 = NDArray[np.float64]


class Ordinary(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU's ordinary draw: ``limit = offset + weights @ features``, watts."""

    weights: list[float]
    offset: float
    worst: float  # the highest log of the e-detector on the held-out part
    bins: int
    idle_watts: float
    joules_per_token: float | None = None  # upper limit of an hour's; None: too few hours with tokens


def step(above: bool) -> float:
    """What one minute adds to the log of the e-detector."""
    p, q = (P_ALARM, P_ORDINARY) if above else (1 - P_ALARM, 1 - P_ORDINARY)
    return math.log(p / q)


def learn(records: Iterable[Records]) -> Fit:
    """Fit every GPU that has four hours of minutes; synthetic records teach nothing."""
    names: dict[str, int] = {}  # the first models seen, by place
    asked: Counter[str] = Counter()
    works: dict[str, Work] = {}
    draws: dict[tuple[str, str], Draw] = {}
    for one in records:
        if isinstance(one, RequestBatch):
            for host, synthetic, rows in by_host(one):
                if not synthetic and (host in works or len(works) < _GPUS_MAX):
                    _count(one, rows, names, asked)
                    works.setdefault(host, Work()).take(one, rows, _places(names), _BINS_MAX)
        elif isinstance(one, GpuSample) and not one.synthetic and one.state == "ok":
            key = (one.host, one.gpu)
            if key in draws or len(draws) < _GPUS_MAX:
                draw = draws.setdefault(key, Draw())
                draw.take(one)
                if len(draw.bins) > _BINS_MAX:
                    del draw.bins[next(iter(draw.bins))]
    models = tuple(name for name, _ in sorted(asked.items(), key=lambda pair: (-pair[1], pair[0]))[:MODELS_MAX])
    order = [names[name] for name in models]
    return _conclude(draws, {host: _regroup(work, order) for host, work in works.items()}, models)


def _count(batch: RequestBatch, rows: NDArray[np.int64], names: dict[str, int], asked: Counter[str]) -> None:
    column = batch.text("model")
    codes, counts = np.unique(column.codes[rows], return_counts=True)
    for code, count in zip(codes.tolist(), counts.tolist(), strict=True):
        name = column.values[code] if code >= 0 else None
        if name is not None and (name in names or len(names) < _SEEN_MAX):
            names.setdefault(name, len(names))
            asked[name] += count


def _places(names: dict[str, int]) -> tuple[str, ...]:
    """The names by place, filled up with what no model is called, so that every bin has the same width."""
    return (*names, *("\0" for _ in range(_SEEN_MAX - len(names))))


def _regroup(work: Work, order: list[int]) -> Work:
    """The bins of the chosen models in order, and all others added up in the last place."""
    others = [at for at in range(_SEEN_MAX + 1) if at not in order]
    return Work(
        {
            one: [
                *(held[3 * at + part] for at in order for part in range(3)),
                *(sum(held[3 * at + part] for at in others) for part in range(3)),
            ]
            for one, held in work.bins.items()
        }
    )


def _conclude(draws: dict[tuple[str, str], Draw], works: dict[str, Work], models: tuple[str, ...]) -> Fit:
    if not draws:
        return Fit(None, "no GPU samples: record with the nvml source beside a request source")
    if not models:
        return Fit(None, "no requests: record while the host serves, or nothing explains its power")
    learned: dict[str, Any] = {}
    notes: list[str] = []
    for (host, gpu), draw in sorted(draws.items()):
        means = {one: found for one in sorted(draw.bins) if (found := draw.means(one)) and math.isfinite(found[0])}
        if len(means) < _BINS_MIN:
            notes.append(f"{gpu}: {len(means)} minutes with power, needs {_BINS_MIN}")
        else:
            learned[gpu] = msgspec.to_builtins(_fit(means, works.get(host, Work()), len(models)))
    if not learned:
        return Fit(None, f"no GPU has {_BINS_MIN} minutes of power: record longer", tuple(notes))
    notes.append(f"power of {len(learned)} GPUs explained by requests for {', '.join(models)}")
    return Fit(Section({"models": list(models), "gpus": learned}, {}), notes=tuple(notes))


def _fit(means: dict[int, tuple[float, float, float]], work: Work, models: int) -> Ordinary:
    bins = list(means)
    x = np.array([features(work, one, models) for one in bins])
    y = np.array([means[one][0] for one in bins])
    cut = round(len(bins) * (1 - _HELD_OUT))
    weights, offset = quantile_line(x[:cut], y[:cut])
    over = y[cut:] - (offset + x[cut:] @ weights)
    # What is ordinary was not all seen: the limit moves up until the held-out part keeps its promise.
    low, high = np.quantile(y, [0.05, 0.99])
    offset += max(0.0, float(np.quantile(over, 1 - P_ORDINARY))) + _TOLERANCE * float(high - low) + 0.01 * float(low)
    log, worst = 0.0, 0.0
    for above in (y[cut:] > offset + x[cut:] @ weights).tolist():
        log = max(0.0, log + step(above))
        worst = max(worst, log)
    return Ordinary(
        weights=weights.tolist(),
        offset=offset,
        worst=worst,
        bins=len(bins),
        idle_watts=float(low),
        joules_per_token=_energy(means, work),
    )


def quantile_line(x: F8, y: F8) -> tuple[F8, float]:
    """Weights and offset of the upper quantile of ``y`` given ``x``; no feature lowers what is expected."""
    from sklearn.linear_model import QuantileRegressor  # noqa: PLC0415 - the daemon never fits

    scale = np.maximum(x.std(axis=0), 1e-9)
    used = x.std(axis=0) > 1e-9
    weights = np.zeros(x.shape[1])
    if not used.any():
        return weights, float(np.quantile(y, _UPPER))
    size = max(float(y.std()), 1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = QuantileRegressor(quantile=_UPPER, alpha=1e-4, solver="highs")
        model.fit(x[:, used] / scale[used], y / size)
    weights[used] = model.coef_ * size / scale[used]
    offset = float(model.intercept_ * size)
    return weights, offset


def _energy(means: dict[int, tuple[float, float, float]], work: Work) -> float | None:
    """Upper limit of an hour's joules per output token."""
    hours: dict[int, list[float]] = {}
    for one, (power, *_) in means.items():
        held = hours.setdefault(one // _HOUR_BINS, [0.0, 0.0, 0.0])
        held[0] += power * BIN_SECONDS
        held[1] += work.tokens(one)
        held[2] += 1
    costs = [joules / tokens for joules, tokens, count in hours.values() if tokens >= _TOKENS_MIN and count >= 50]
    return None if len(costs) < _HOURS_MIN else 1.1 * max(costs)
