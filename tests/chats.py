"""Requests to a language model as tests make them: no vectors, no sketches, no text."""

from __future__ import annotations

from typing import Any

import numpy as np
from support import requests

from mlsecd.records import RequestBatch

REASONS = "elicit_reasoning"
LIST = 30  # forms that a campaign works off


def chat(rng: np.random.Generator, n: int, client: str, *, start: float = 0.0, **columns: Any) -> RequestBatch:
    """Requests of one ordinary client: no vectors, no sketches, no text."""
    habit = rng.lognormal(0, 0.3)
    given = {
        "client": client,
        "input_tokens": (60 * rng.lognormal(0, 0.5, n)).round(),
        "output_tokens": (150 * habit * rng.lognormal(0, 0.5, n)).round(),
        "template": [f"{client}-{i}" for i in rng.integers(0, 10**6, n)],
        "body_hash": [f"{client}-{i}" for i in rng.integers(0, 10**9, n)],
        "status": 200.0,
        "finish_reason": "stop",
        **columns,
    }
    return requests(start + np.sort(rng.uniform(0, 5_000, n)), **{k: v for k, v in given.items() if v is not None})


def merged(parts: list[RequestBatch]) -> RequestBatch:
    whole = RequestBatch.concat(parts)
    return whole.take(np.argsort(whole.ts, kind="stable"))


def crowd(seed: int, clients: int, prefix: str = "c", **columns: Any) -> RequestBatch:
    """Ordinary clients: chat, forms filled in by programs, health checks, classifiers, embedders."""
    rng = np.random.default_rng(seed)
    parts = []
    for i in range(clients):
        n, name = int(np.clip(50 * rng.lognormal(0, 0.7), 12, 400)), f"{prefix}{i}"
        habits: list[dict[str, Any]] = [
            {},
            {},
            {},
            {},
            {"template": f"{name}-form", "output_tokens": (40 * rng.lognormal(0, 0.4, n)).round(), "max_tokens": 128.0},
            {"template": "ping", "body_hash": "ping", "output_tokens": 1.0, "max_tokens": 1.0},
            {"template": f"{name}-form", "output_tokens": 2.0, "max_tokens": 5.0, "logprobs": 5.0},
            {"route": "/v1/embeddings", "output_tokens": 0.0, "input_tokens": rng.normal(120, 20, n).round()},
        ]
        parts.append(chat(rng, n, name, **habits[i % len(habits)] | columns))
    return merged(parts)


def distiller(seed: int, n: int, client: str = "k-thief", **columns: Any) -> RequestBatch:
    """Forms filled in by a program, long answers, reasoning on demand."""
    rng = np.random.default_rng(seed)
    given = {
        "template": [f"{client}-form{i}" for i in rng.integers(0, 8, n)],
        "output_tokens": (700 * rng.lognormal(0, 0.4, n)).round(),
        "flags": [[REASONS]] * n,
        "max_tokens": 2_048.0,
    }
    return chat(rng, n, client, **given | columns)


def hydra(
    seed: int,
    accounts: int,
    *,
    n: int = 50,
    odd: int = 10,
    forms: int = LIST,
    start: float = 0.0,
    **columns: Any,
) -> RequestBatch:
    """Accounts each of which asks for ``odd`` long answers with reasons among chat, by ``forms`` forms (0: none)."""
    rng, made = np.random.default_rng([seed, 2]), []
    for i in range(accounts):
        client, asks = f"hydra{i:02d}", np.zeros(n, bool)
        asks[rng.choice(n, odd, replace=False)] = True
        own = [f"{client}-{j}" for j in range(n)]
        listed = [f"form{j}" for j in rng.integers(0, forms, n)] if forms else own
        given = {
            "template": [one if ask else other for one, other, ask in zip(listed, own, asks, strict=True)],
            "output_tokens": np.where(asks, 900.0, 150.0) * rng.lognormal(0, 0.4, n),
            "flags": [[REASONS] if ask else [] for ask in asks],
        }
        made.append(chat(rng, n, client, start=start, **given | columns))
    return merged(made)
