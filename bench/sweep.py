"""What watching processes, model files and sockets costs at 600 and at 2,000 processes, at the default intervals.

Usage: python -m bench.sweep [--seconds 60] [--settle 75] [--json]

The processes are real: sleepers, twenty that listen, eight that hold a device node (a file stands for it) and map a
model file. The CPU is that of the polling thread, as in the daemon; hashing whole files has a rate of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.rows import Row, report
from mlsecd.meters import Meters
from mlsecd.sources.base import Source
from mlsecd.sources.processes import Processes, ProcessesParams
from mlsecd.sources.sockets import Sockets, SocketsParams
from mlsecd.sources.weights import Weights, WeightsParams

HOLDER = (
    "import sys, time, mmap\na = open(sys.argv[1])\nb = open(sys.argv[2], 'rb')\n"
    "c = mmap.mmap(b.fileno(), 0, access=mmap.ACCESS_READ)\ntime.sleep(900)"
)
LISTENER = "import socket, time\na = socket.create_server(('127.0.0.1', 0))\ntime.sleep(900)"


@contextlib.contextmanager
def processes(count: int, device: Path, model: Path) -> Iterator[None]:
    """Bring the process table to ``count``."""
    commands = [[sys.executable, "-c", HOLDER, str(device), str(model)]] * 8 + [[sys.executable, "-c", LISTENER]] * 20
    have = sum(entry.name.isdigit() for entry in Path("/proc").iterdir())
    commands += [["/bin/sleep", "900"]] * max(0, count - have - len(commands))
    running = [subprocess.Popen(command) for command in commands]
    try:
        yield
    finally:
        for one in running:
            one.terminate()
        for one in running:
            one.wait()


def run(sources: dict[str, Source], seconds: float) -> dict[str, list[float]]:
    """Poll each at its interval; the CPU seconds of each poll by source."""
    due = dict.fromkeys(sources, time.monotonic())
    cost: dict[str, list[float]] = defaultdict(list)
    end = time.monotonic() + seconds
    while (now := time.monotonic()) < end:
        name = min(due, key=due.__getitem__)
        if due[name] > now:
            time.sleep(min(due[name], end) - now)
            continue
        due[name] = now + sources[name].interval_seconds
        before = time.thread_time()
        sources[name].poll(time.monotonic() + 5)
        cost[name].append(time.thread_time() - before)
    return cost


def measure(seconds: float, settle: float) -> Iterator[Row]:
    directory = Path(tempfile.mkdtemp(prefix="mlsecd-bench-"))
    device, model = directory / "nvidia0", directory / "model.safetensors"
    device.touch()
    model.write_bytes(bytes(range(256)) * (1 << 16))
    try:
        for count in (600, 2_000):
            sources: dict[str, Source] = {
                "processes": Processes(ProcessesParams(device_prefix=str(directory / "nvidia")), Meters()),
                "weights": Weights(WeightsParams(paths=(str(model),), hash_bytes_per_second=0), Meters()),
                "sockets": Sockets(SocketsParams(), Meters()),
            }
            with processes(count, device, model):
                time.sleep(3)
                run(sources, settle)  # newcomers are read twice, and searched soon and again after they start
                cost = run(sources, seconds)
            for name, source in sources.items():
                source.close()
                share = sum(cost[name]) / seconds * 100
                yield Row(f"{count} processes: {name}", share, "% of a core")
                yield Row(f"{count} processes: {name}, one poll", statistics.median(cost[name]) * 1e3, "ms")
            total = sum(map(sum, cost.values())) / seconds * 100
            yield Row(f"{count} processes: all of it", total, "% of a core", budget=3.0)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of each measurement")
    parser.add_argument("--settle", type=float, default=75.0, help="seconds before each")
    parser.add_argument("--json", action="store_true")
    arguments: Any = parser.parse_args(argv)
    report(measure(arguments.seconds, arguments.settle), as_json=arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
