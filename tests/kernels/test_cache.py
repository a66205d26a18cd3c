"""Compiled kernels are kept and found again, also where the package cannot be written to and there is no home."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# the package's own directory is made to look read-only: root may write anywhere, so permissions alone would not tell
CODE = """if True:
    import os
    real = os.access
    os.access = lambda path, mode, **more: real(path, mode, **more) and not (mode & os.W_OK and "kernels" in str(path))
    from mlsecd.app import load_kernels
    from mlsecd.config import Config
    import numpy as np
    kernels = load_kernels(Config())
    from mlsecd.kernels import cpu_vectors
    out = np.zeros(3, np.int32)
    kernels.squared_distances(np.ones((2, 3), np.int8), np.zeros(2, np.int8), out)
    assert out.tolist() == [2, 2, 2]
    stats = cpu_vectors.squared_distances.stats
    print(stats.cache_path, sum(stats.cache_hits.values()), sum(stats.cache_misses.values()), sep="|")
"""


def run(**environment: str) -> tuple[str, int, int]:
    """Where a fresh process keeps what it compiles, and how often it found it there or not."""
    plain = {
        key: value for key, value in os.environ.items() if not key.startswith(("NUMBA_", "XDG_", "CACHE_", "HOME"))
    }
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=plain | environment, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    path, hits, misses = done.stdout.strip().split("|")
    return path, int(hits), int(misses)


def test_the_second_start_finds_what_the_first_compiled(tmp_path: Path) -> None:
    first, second = (run(CACHE_DIRECTORY=str(tmp_path / "cache"), HOME="/proc") for _ in range(2))
    assert first[0].startswith(str(tmp_path / "cache" / "mlsecd-numba"))
    assert first[1:] == (0, 1)
    assert second == (first[0], 1, 0)
    assert (tmp_path / "cache" / "mlsecd-numba").stat().st_mode & 0o777 == 0o700


def test_with_nowhere_to_write_it_compiles_all_the_same(tmp_path: Path) -> None:
    path, _, misses = run(HOME="/proc", TMPDIR=str(tmp_path))
    assert path.startswith(str(tmp_path / "mlsecd-numba-"))
    assert misses == 1


def test_a_cache_that_others_may_write_to_is_not_used(tmp_path: Path) -> None:
    """Code from it would be run."""
    (tmp_path / "mlsecd-numba").mkdir(mode=0o777)
    (tmp_path / "mlsecd-numba").chmod(0o777)
    path, _, _ = run(XDG_CACHE_HOME=str(tmp_path), TMPDIR=str(tmp_path), HOME="/proc")
    assert path.startswith(str(tmp_path / "mlsecd-numba-"))


def test_bounds_checks_catch_an_index_outside(tmp_path: Path) -> None:
    """What `make bounds` relies on: with the variable set and a cache of its own, every index is checked."""
    code = """if True:
        import numpy as np
        from mlsecd.kernels import cpu_ring
        ring, owners, pushed = np.zeros((1, 8, 128), np.int8), np.zeros((1, 64), np.int32), np.full(1, 100)
        try:
            cpu_ring._push(ring, owners, pushed, np.zeros((1, 8), np.int8), np.zeros(1, np.int32))
        except IndexError as error:
            print(error)
    """
    environment = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=100
    )
    assert "out of bounds" in done.stdout, done.stderr
