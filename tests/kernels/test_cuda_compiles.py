"""Every CUDA kernel is compiled for real, to PTX and cubins for three generations, and the report is read."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("numba_cuda", reason="the CUDA target is the extra mlsecd[cuda]")

CARDS = {"sm_80", "sm_89", "sm_90"}
# The most registers and shared memory of each, with a little air: a change that costs occupancy must say so here.
CEILINGS = {
    "ring_nearest int8": (128, 35_840),
    "ring_nearest float16": (128, 35_840),
    "ring_join": (48, 23_552),
    "window_neighbours": (64, 13_312),
    "mmd": (160, 14_336),
    "random_features": (48, 4_096),
    "histograms": (48, 10_240),
    "ks_distances": (56, 21_504),
    "hll_add": (32, 1_024),
    "countmin_add": (48, 1_024),
    "quantile_add": (32, 1_024),
    "moments_add": (48, 4_096),
}
DOUBLES = {"mmd_tiles", "mmd_fold"}  # sums over tiles and blocks, one addition for a thousand in float32


def report(*options: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "tools.cuda_report", "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=115)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check(found: list[dict[str, Any]]) -> None:
    for row in found:
        registers, shared = next(CEILINGS[name] for name in CEILINGS if row["kernel"].startswith(name))
        assert row["elf"]
        assert row["cubin"] > 1000
        assert (row["spilled"], row["stack"]) == (0, 0), row
        assert row["registers"] <= registers, row
        assert row["shared"] <= shared, row
        assert row["occupancy"] >= 0.15, row
        assert row["intensity"]
        assert not row["doubles"] or row["kernel"] in DOUBLES, row


@pytest.mark.parametrize("group", ["ring", "others"])
def test_no_kernel_spills_on_any_card(group: str) -> None:
    """One process a group: starting the compiler takes longer than most kernels."""
    found = report(*(["ring"] if group == "ring" else ["--not", "ring"]))  # a kernel without a ceiling is found too
    check(found)
    for name in (name for name in CEILINGS if name.startswith("ring") == (group == "ring")):
        assert {row["arch"] for row in found if row["kernel"].startswith(name)} == CARDS


@pytest.mark.slow
@pytest.mark.parametrize("name", CEILINGS)
def test_nor_when_it_is_compiled_for_each_card(name: str) -> None:
    check(report("--ptx-per-arch", name))
