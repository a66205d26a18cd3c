"""Makes the bundled demo: a recording and its baseline, from labelled extraction traces.

Usage: python tools/make_demo.py TRACES
TRACES is a folder with ``reference``, ``benign_calib``, ``benign_test`` and ``atk_knockoff`` as
``NAME.jsonl.gz``: request records of an image classifier with 32-d ``features``.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

OUT = Path(__file__).parent.parent / "mlsecd" / "data" / "demo"
SECONDS = 240
ORDINARY_CLIENTS = 24
ATTACK_FROM = 12.0
MINER_FROM = 20.0
DURATION = 0.012  # seconds, of every request: in the baseline too, or its appearance would be drift
GPU = "GPU-5ec0de00-0000-4000-8000-000000000001"


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    with gzip.open(folder / f"{name}.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


def packed(vector: list[float]) -> str:
    """base64 of little-endian float32, rounded to float16 so that it compresses."""
    return base64.b64encode(np.asarray(vector, np.float16).astype("<f4").tobytes()).decode()


def request(row: dict[str, Any], ts: float, client: str) -> dict[str, Any]:
    return {
        "ts": round(ts, 3),
        "client": client,
        "model": row["model"],
        "route": row["route"],
        "status": row["status"],
        "duration_s": DURATION,
        "predicted": row["predicted"],
        "scores": row["scores"],
        "features": packed(row["features"]),
        "input_features": packed(row["input_features"]),
        "body_hash": row["body_hash"],
    }


def traffic(folder: Path, draw: random.Random) -> list[dict[str, Any]]:
    """Ordinary clients over the whole recording, and one thief with natural images of something else."""
    by_client: dict[str, list[dict[str, Any]]] = {}
    for row in rows(folder, "benign_test"):
        by_client.setdefault(row["client"], []).append(row)
    made = []
    for number, client in enumerate(sorted(by_client)[:ORDINARY_CLIENTS]):
        mine = by_client[client][: draw.randint(20, 60)]
        stamps = sorted(draw.uniform(0.0, SECONDS) for _ in mine)
        made += [request(row, ts, f"k-demo{number:02d}") for row, ts in zip(mine, stamps, strict=True)]
    thief = [row for row in rows(folder, "atk_knockoff") if row["client"] == "knockoff0"]
    ts = ATTACK_FROM
    for row in thief:
        made.append(request(row, ts, "k-demothief"))
        ts += draw.expovariate(2.5)
        if ts > SECONDS - 20:
            break
    return made


def host(ts: float) -> list[dict[str, Any]]:
    """One H100: the server's work, and from ``MINER_FROM`` on a program that nobody knows."""
    mining = ts >= MINER_FROM
    server = {
        "pid": 4100,
        "start_ticks": 90_000,
        "ppid": 1,
        "uid": 996,
        "exe": "/opt/vllm/bin/python3.11",
        "name": "python3.11",
        "cmdline": ["python3.11", "-m", "vllm.entrypoints.openai.api_server"],
        "cgroup": "/system.slice/vllm.service",
        "unit": "vllm.service",
    }
    miner = {
        "pid": 7331,
        "start_ticks": 1_204_000,
        "ppid": 7002,
        "uid": 1004,
        "exe": "/var/tmp/.cache/kdevtmpfsi",
        "name": "kdevtmpfsi",
        "cmdline": ["./kdevtmpfsi", "--donate-level", "1"],
        "cgroup": "/user.slice/user-1004.slice/session-7.scope",
        "unit": "session-7.scope",
    }
    on_gpu = [{"pid": 4100, "exe": server["exe"], "used_memory_bytes": 68_719_476_736}]
    if mining:
        on_gpu.append({"pid": 7331, "exe": miner["exe"], "used_memory_bytes": 5_368_709_120})
    table = {"kind": "process", "ts": ts, "processes": [server, miner] if mining else [server]}
    sample = {
        "kind": "gpu",
        "ts": ts,
        "gpu": GPU,
        "index": 0,
        "name": "NVIDIA H100 80GB HBM3",
        "state": "ok",
        "utilization": 0.97 if mining else 0.31,
        "memory_used_bytes": 74_088_185_856 if mining else 68_719_476_736,
        "memory_total_bytes": 85_520_809_984,
        "power_watts": 611.0 if mining else 284.0,
        "temperature_celsius": 66.0 if mining else 47.0,
        "sm_clock_hz": 1_980_000_000.0,
        "processes": on_gpu,
        "posture": {"driver_version": "590.48.01"},
    }
    return [table, sample]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", type=Path)
    folder = parser.parse_args().traces
    draw = random.Random(20261122)
    lines = traffic(folder, draw)
    lines += [record for second in range(SECONDS) for record in host(float(second))]
    lines.sort(key=lambda row: row["ts"] + row.get("duration_s", 0.0))
    OUT.mkdir(parents=True, exist_ok=True)
    with (
        (OUT / "recording.jsonl.gz").open("wb") as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, compresslevel=9) as file,
    ):
        for row in lines:
            file.write(json.dumps({**row, "synthetic": True}, separators=(",", ":")).encode() + b"\n")
    with tempfile.TemporaryDirectory() as scratch:
        ordinary = Path(scratch) / "ordinary.jsonl"
        with ordinary.open("w") as file:
            for name in ("reference", "benign_calib"):
                file.writelines(json.dumps({**row, "duration_s": DURATION}) + "\n" for row in rows(folder, name))
        subprocess.run(
            [
                sys.executable,
                "-m",
                "mlsecd",
                "baseline",
                "fit",
                str(ordinary),
                "-o",
                str(OUT / "baseline.npz"),
                "--require",
                "extraction_account",
            ],
            check=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
