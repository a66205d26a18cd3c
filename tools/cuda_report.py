"""Compiles every CUDA kernel for real, without a GPU, and prints what the compiler says of it.

Usage: python -m tools.cuda_report [--json] [--ptx-per-arch] [--not] [NAME...]
NAME is the beginning of a kernel's name; with ``--not``, of those to leave out. The compiler comes with mlsecd[cuda].
PTX is made for sm_80 and assembled for every architecture; ``--ptx-per-arch`` makes it anew for each, as a launch does.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any, NamedTuple

from mlsecd.kernels.cuda import compile_ptx, compile_report
from mlsecd.kernels.cuda_backend import shapes

WARP = 32


class Chip(NamedTuple):
    """What one multiprocessor has (CUDA C++ programming guide, table of compute capabilities)."""

    arch: tuple[int, int]
    card: str
    registers: int
    shared: int
    warps: int
    blocks: int


CHIPS = (
    Chip((8, 0), "A100", 65_536, 164 << 10, 64, 32),
    Chip((8, 9), "L4", 65_536, 100 << 10, 48, 24),
    Chip((9, 0), "H100", 65_536, 228 << 10, 64, 32),
)


def occupancy(chip: Chip, registers: int, shared: int, threads: int) -> float:
    """The share of its warps that can be resident: a warp takes registers by 256, a block 1 KiB more than it asks."""
    warps = -(-threads // WARP)
    by_registers = chip.registers // (-(-registers * WARP // 256) * 256 * warps)
    by_shared = chip.shared // (shared + 1024)
    return min(by_registers, by_shared, chip.warps // warps, chip.blocks) * warps / chip.warps


def rows(names: list[str], *, leave_out: bool, per_arch: bool) -> list[dict[str, Any]]:
    made = []
    for name, shape in shapes().items():
        if names and name.startswith(tuple(names)) == leave_out:
            continue
        ptx = compile_ptx(shape, CHIPS[0].arch)
        for chip in CHIPS:
            if per_arch:
                ptx = compile_ptx(shape, chip.arch)
            report = compile_report(ptx, chip.arch)
            made.append({
                "kernel": name,
                "arch": f"sm_{chip.arch[0]}{chip.arch[1]}",
                "card": chip.card,
                "threads": shape.threads,
                "registers": report.registers,
                "spilled": report.spilled,
                "stack": report.stack,
                "shared": report.shared,
                "occupancy": occupancy(chip, report.registers, report.shared, shape.threads),
                "doubles": sum(".f64" in line for line in ptx.splitlines()),
                "cubin": len(report.cubin),
                "elf": report.cubin[:4] == b"\x7fELF",
                "intensity": shape.intensity,
            })  # fmt: skip
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--not", action="store_true", dest="leave_out")
    parser.add_argument("--ptx-per-arch", action="store_true")
    options = parser.parse_args()
    made = rows(options.names, leave_out=options.leave_out, per_arch=options.ptx_per_arch)
    if options.json:
        print(json.dumps(made))
        return 0
    print("kernel                       arch   threads  regs spill stack  shared occup.  intensity")
    for row in made:
        print(
            f"{row['kernel']:<28} {row['arch']:<6} {row['threads']:>7} {row['registers']:>5} {row['spilled']:>5} "
            f"{row['stack']:>5} {row['shared']:>7} {row['occupancy']:>6.0%}  {row['intensity']}"
        )
    return 0 if not any(row["spilled"] or row["stack"] for row in made) else 1


if __name__ == "__main__":
    sys.exit(main())
