"""Builds the stand-in."""

from __future__ import annotations

import subprocess
from pathlib import Path

__all__ = ["build"]

HERE = Path(__file__).resolve().parent


def build(directory: Path) -> Path:
    """Compile ``libnvidia-ml.so.1`` into ``directory`` (made where absent); returns its path.

    Raises ``RuntimeError`` with the compiler's words where that fails.
    """
    done = subprocess.run(
        ["make", "--directory", str(HERE), f"OUT={directory.resolve()}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the stand-in for NVML does not build:\n{done.stdout}{done.stderr}")
    return directory / "libnvidia-ml.so.1"
