"""Every budget of docs/performance.md, one benchmark after the other.

Usage: python -m bench [--json]
``bench.extraction`` and ``bench.drift_lanes`` measure detection on labelled traces and take a folder: run them by name.
``bench.traces`` makes such a folder.
"""

from __future__ import annotations

import datetime
import platform
import subprocess
import sys
from pathlib import Path

BENCHES = ("ingest", "adapters", "tap", "accounts", "kernels", "metrics", "sweep", "host")


def machine() -> str:
    """Which machine this is, in a line."""
    rows = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((row.partition(":")[2].strip() for row in rows if row.startswith("model name")), platform.machine())
    count = sum(row.startswith("processor") for row in rows)
    return f"{count} x {model}, Linux {platform.release()}, Python {platform.python_version()}"


def main() -> int:
    """Run them all; the worst exit code comes back."""
    if "--json" not in sys.argv:
        print(f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}  {machine()}", flush=True)
    worst = 0
    for name in BENCHES:
        if "--json" not in sys.argv:
            print(f"\n{name}", flush=True)
        command = [sys.executable, "-m", f"bench.{name}", *sys.argv[1:]]
        worst = max(worst, subprocess.run(command, check=False).returncode)
    return worst


if __name__ == "__main__":
    sys.exit(main())
