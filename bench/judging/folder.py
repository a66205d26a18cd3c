"""A folder of labelled traces: what to fit on, and what runs beside what."""

from __future__ import annotations

import gzip
import json
import re
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from mlsecd.jsonlines import Decoder
from mlsecd.meters import Meters
from mlsecd.records import RequestBatch

__all__ = ["Folder", "Mixture", "keep_clients"]

FITS: Final = (("reference", "benign_calib", "benign_null"), ("reference", "benign_calib"), ("baseline",))
KEPT: Final = 12  # decoded files
CAMPAIGNS: Final = ("sybil", "hydra", "split")


@dataclass(frozen=True)
class Mixture:
    """One scenario among one set of ordinary files."""

    scenario: str
    family: str
    files: tuple[str, ...]
    among: tuple[str, ...]


class Folder:
    """Traces with their ``plan.json``; without one (older traces) the plan is told from the names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names = sorted(one.name.removesuffix(".jsonl.gz") for one in path.glob("*.jsonl.gz"))
        chosen = next((fit for fit in FITS if set(fit) <= set(self.names)), None)
        if chosen is None:
            raise FileNotFoundError(f"{path}: no traces to fit on: neither benign_calib nor baseline")
        self.fit: tuple[str, ...] = chosen
        plan = path / "plan.json"
        self._plan: dict[str, Any] = json.loads(plan.read_text())["scenarios"] if plan.exists() else self._guess()
        self._batches: OrderedDict[str, RequestBatch] = OrderedDict()

    def _guess(self) -> dict[str, Any]:
        made = {}
        for name in self.names:
            attacks = [one["attack"] for one in self.truth([name]).values()]
            family = name.partition("_")[0] if any(attacks) else "benign"
            among = ["benign_test"] if all(attacks) and "benign_test" in self.names else []
            made[name] = {"family": "fit" if name in self.fit else family, "with": among, "mixtures": []}
        return made

    def mixtures(self, only: str = "") -> list[Mixture]:
        """All whose name the pattern ``only`` is found in, ordinary traffic first; a campaign in each of its mixes."""
        found = []
        for name, plan in self._plan.items():
            if plan["family"] in {"fit", "poison"} or name not in self.names or not re.search(only, name):
                continue
            beside = plan["mixtures"] or [plan["with"]]
            found += [Mixture(name, plan["family"], (name, *among), tuple(among)) for among in beside]
        return sorted(found, key=lambda one: one.family != "benign")

    def batch(self, name: str) -> RequestBatch:
        """One file, in order of completion; the last few are kept."""
        if name in self._batches:
            self._batches.move_to_end(name)
            return self._batches[name]
        raw = gzip.decompress((self.path / f"{name}.jsonl.gz").read_bytes())
        parts = [part for part in Decoder(Meters(), "bench").decode(raw) if isinstance(part, RequestBatch)]
        self._batches[name] = _sorted(RequestBatch.concat(parts))
        while len(self._batches) > KEPT:
            self._batches.popitem(last=False)
        return self._batches[name]

    def together(self, names: Iterable[str]) -> RequestBatch:
        """Files merged by completion."""
        return _sorted(RequestBatch.concat([self.batch(name) for name in names]))

    def truth(self, names: Iterable[str]) -> dict[str, dict[str, Any]]:
        """What each client is."""
        made: dict[str, dict[str, Any]] = {}
        for name in names:
            path = self.path / f"{name}.truth.json"
            made |= json.loads(path.read_text()) if path.exists() else {}
        for one in made.values():
            one.setdefault("kind", "")
        return made


def _sorted(batch: RequestBatch) -> RequestBatch:
    return batch.take(np.argsort(batch.completion, kind="stable"))


def keep_clients(batch: RequestBatch, clients: set[str]) -> RequestBatch:
    """The rows of these clients."""
    who = batch.text("client")
    wanted = np.array([*(value in clients for value in who.values), False])
    return batch.take(np.flatnonzero(wanted[who.codes]))
