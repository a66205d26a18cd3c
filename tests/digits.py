"""A victim: digits, a classifier, and what its ordinary clients and its thief send."""

from __future__ import annotations

import base64
import functools
import json
from typing import Any

import numpy as np

DIMENSIONS = 32


@functools.cache
def victim() -> tuple[Any, Any, Any]:
    """(images of length 1, the classifier, the projection to features)."""
    from sklearn.datasets import load_digits  # noqa: PLC0415
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415

    images, labels = load_digits(return_X_y=True)
    images = images / 16.0
    model = LogisticRegression(max_iter=60).fit(images[:500], labels[:500])
    projection = np.random.default_rng(0).normal(size=(64, DIMENSIONS)) / 8.0
    return images, model, projection


def answer(pixels: Any) -> tuple[list[float], int, list[float]]:
    """(features, class, probabilities) of one image."""
    _, model, projection = victim()
    row = np.asarray(pixels, float).reshape(1, -1)
    scores = model.predict_proba(row)[0]
    return (row @ projection)[0].tolist(), int(scores.argmax()), np.sort(scores)[::-1][:5].tolist()


def ordinary(clients: int, queries: int, seed: int = 1) -> bytes:
    """Records of clients that each ask for images of their own few digits, over a day."""
    images, model, projection = victim()
    draw = np.random.default_rng(seed)
    centres = images[draw.integers(len(images), size=(clients, 8))]
    chosen = np.take_along_axis(centres, draw.integers(8, size=(clients, queries, 1)), axis=1)
    rows = np.clip(chosen + draw.normal(0, 0.08, chosen.shape), 0, 1).reshape(-1, 64)
    scores = model.predict_proba(rows)
    features = (rows @ projection).astype("<f4")
    starts = 1_790_000_000 + draw.uniform(0, 40_000, clients)
    stamps = (starts[:, None] + np.cumsum(draw.uniform(1, 20, (clients, queries)), axis=1)).ravel()
    made = [
        {
            "ts": float(stamps[at]),
            "model": "digits",
            "client": f"k-{at // queries:032x}",
            "status": 200,
            "duration_s": 0.004,
            "features": base64.b64encode(features[at].tobytes()).decode(),
            "predicted": int(scores[at].argmax()),
            "scores": np.sort(scores[at])[::-1][:5].round(6).tolist(),
            "body_hash": f"{at:016x}",
        }
        for at in range(len(rows))
    ]
    made.sort(key=lambda one: one["ts"])
    return b"".join(json.dumps(one).encode() + b"\n" for one in made)


def stolen(queries: int, seed: int = 2) -> Any:
    """What a thief asks: steps from a few images towards the borders between classes, and noise; (queries, 64)."""
    images, _, _ = victim()
    draw = np.random.default_rng(seed)
    seeds = images[draw.integers(len(images), size=10)]
    one, other = seeds[draw.integers(10, size=queries)], seeds[draw.integers(10, size=queries)]
    share = draw.uniform(0, 1, (queries, 1))
    noisy = np.clip(one * share + other * (1 - share) + draw.choice([-0.3, 0.3], (queries, 64)), 0, 1)
    return np.where(draw.random((queries, 1)) < 0.3, draw.random((queries, 64)), noisy)
