"""What bytes and half floats lose against float32: bounds on random vectors; `bench.storage` measures real ones."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from bench import storage
from mlsecd.kernels import cpu


def sets(dims: int, *, tight: bool) -> tuple[np.ndarray, np.ndarray]:
    """Rows to hold and rows to ask about, all alike; or in groups a tenth as wide as they lie apart."""
    rng = np.random.default_rng(dims)
    centres = rng.normal(size=(20, dims)) if tight else np.zeros((20, dims))
    width = 0.1 if tight else 1.0
    held, asked = (centres[rng.integers(0, 20, n)] + width * rng.normal(size=(n, dims)) for n in (5_000, 200))
    return held.astype(np.float32), asked.astype(np.float32)


# twice what was seen: int8 rounds by a step of half a spread's thirtieth, so tight groups lose most
@pytest.mark.parametrize(("dtype", "tight", "recall", "error", "crowding"), [
    ("int8", False, 0.93, 0.02, 0.01), ("float16", False, 0.99, 0.0005, 0.0005),
    ("int8", True, 0.70, 0.13, 0.08), ("float16", True, 0.98, 0.004, 0.003),
])  # fmt: skip
@pytest.mark.parametrize("dims", [32, 64])
def test_the_loss_is_within_its_bounds(  # noqa: PLR0917
    dims: int, dtype: str, tight: bool, recall: float, error: float, crowding: float
) -> None:
    held, asked = sets(dims, tight=tight)
    found = storage.loss(cpu, held, asked, dtype, storage.step_of(held), storage.nearest(held, asked))
    assert found.recall >= recall
    assert found.worst <= error
    assert found.crowding <= crowding
    assert found.median <= found.worst


def test_whole_steps_lose_nothing() -> None:
    """Vectors that storage can hold exactly are found exactly: the measurement itself adds no error."""
    rng = np.random.default_rng(3)
    held, asked = (rng.integers(-100, 101, (n, 32)).astype(np.float32) for n in (2_000, 50))
    for dtype in ("int8", "float16"):
        found = storage.loss(cpu, held, asked, dtype, 1.0, storage.nearest(held, asked))
        assert (found.recall, found.nearest) == (1.0, 1.0)
        assert found.worst < 1e-6


def test_vectors_come_from_traces(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    rows = rng.normal(size=(300, 8)).round(3)
    for name in ("benign_calib", "atk_copycat"):
        lines = [
            json.dumps({"ts": 1.0 + i, "model": "m", "client": "a", "features": list(row)})
            for i, row in enumerate(rows)
        ]
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    assert np.array_equal(storage.vectors(tmp_path / "benign_calib.jsonl.gz", "features"), rows.astype(np.float32))
    names = [name for name, *_ in storage.traced(tmp_path)]
    assert names == ["features: ordinary", "features: atk_copycat"]
    assert len(list(storage.measure(tmp_path))) == 2 * 2 * 5
