"""What the server records of a chat, completion or embedding request; text goes into sketches."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from mlsecd.taps.sketch import Sketcher

from .text_corpus import Rng

__all__ = ["CANARY", "MODEL", "VOCABULARY", "Account", "write"]

MODEL: Final = "chat-v1"
VOCABULARY: Final = 32_000
CANARY: Final = "canary:5d0b3a9e77c1f2a4"
# ids as the tap's patterns have them
FLAGS: Final = {
    "elicit_reasoning": re.compile(
        r"step by step|chain of thought|show your (?:work|reasoning)|explain your reasoning"
    ),
    "system_prompt": re.compile(r"(?:system|initial|original|your) (?:prompt|instructions?)"),
}
_sketcher: Final = Sketcher(b"one key for every trace")


@lru_cache(200_000)
def _sketch(text: str) -> dict[str, Any]:
    vector, minhash, template = _sketcher.sketch(text)
    made: dict[str, Any] = {"input_features": base64.b64encode(vector).decode(), "sketch": minhash}
    flags = [name for name, rule in FLAGS.items() if rule.search(text.lower())]
    return made | ({"template": template} if template else {}) | ({"flags": flags} if flags else {})


@dataclass
class Account:
    """A client and its requests, as records."""

    client: str
    kind: str
    network: str
    attack: bool = False
    campaign: int | None = None
    user: str | None = None  # of an aggregator's users, the one that is meant
    records: list[dict[str, Any]] = field(default_factory=list)

    def send(self, rng: Rng, ts: float, text: str, out: float, **given: Any) -> dict[str, Any]:
        """One request: ``out`` is the median of tokens answered, ``given`` what the request says beyond its text."""
        parameters = {name: value for name, value in given.items() if name not in {"cached_tokens", "flags", "user"}}
        tokens = len(text) // 4 + 1
        answered = int(min(given.get("max_tokens") or 2_048, max(1, out * rng.lognormal(0, 0.5))))
        fresh = tokens - (given.get("cached_tokens") or 0)
        ttft = (0.012 + 0.0004 * fresh) * rng.lognormal(0, 0.15)
        body = f"{text}\0{sorted(parameters.items())}".encode("utf-8", "replace")
        record = {
            "ts": round(ts, 3),
            "client": self.client,
            "model": MODEL,
            "route": "/v1/chat/completions",
            "network": self.network,
            "status": 200,
            "input_tokens": tokens,
            "output_tokens": answered,
            "ttft_s": round(ttft, 5),
            "duration_s": round(ttft + 0.011 * answered * rng.lognormal(0, 0.1), 4),
            "finish_reason": "length" if answered == given.get("max_tokens") else "stop",
            "body_hash": hashlib.blake2b(body, digest_size=8).hexdigest(),
        }
        record |= _sketch(text) | {name: value for name, value in given.items() if name != "flags"}
        if given.get("flags"):
            record["flags"] = record.get("flags", []) + given["flags"]
        if record["route"] == "/v1/embeddings":
            record |= {"output_tokens": 0, "finish_reason": None}
        self.records.append(record)
        return record


def write(folder: Path, name: str, accounts: list[Account]) -> int:
    """``NAME.jsonl.gz`` in order of completion, and ``NAME.truth.json``; how many records."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = sorted((row for one in accounts for row in one.records), key=itemgetter("ts"))
    with (folder / f"{name}.jsonl.gz").open("wb") as raw, gzip.GzipFile("", "wb", 3, raw, mtime=0) as file:
        file.writelines(msgspec.json.encode(row) + b"\n" for row in rows)
    truth = {}
    for one in accounts:
        truth[one.client] = {"attack": one.attack, "kind": one.kind, "campaign": one.campaign}
        if one.user is not None:
            truth[one.client]["user"] = one.user
    (folder / f"{name}.truth.json").write_text(json.dumps(truth, indent=0, sort_keys=True) + "\n")
    return len(rows)


def ids(rng: Rng, count: int) -> list[int]:
    """Token ids, as an application would choose them."""
    return np.sort(rng.integers(100, VOCABULARY, count)).tolist()
