"""Reads the machine code that numba makes of the hot CPU kernels, and prints what their inner loops are made of.

Usage: python -m tools.cpu_report [--json] [--asm KERNEL]

A row is the widest inner loop of a kernel (a block of code that jumps back to itself): instructions on vectors of 32
bytes and more, those among them that do the work asked for, and arithmetic on single floating-point numbers, which
ought to be none. What a machine without AVX2 and FMA gets is printed as well, but is no evidence for anything.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import llvmlite.binding as llvm
import numpy as np
from numba import njit, types

from mlsecd.kernels import (
    cpu_counters,
    cpu_drift_gram,
    cpu_features,
    cpu_mmd,
    cpu_ring,
    cpu_sketches,
    cpu_vectors,
    cpu_windows,
)

__all__ = ["KERNELS", "Loop", "assembly", "fused", "loops", "widest"]


class Kernel(NamedTuple):
    """A compiled function, the types it is called with, and what its inner loop should be made of."""

    module: Any
    name: str
    arguments: tuple[Any, ...]
    wanted: str  # a regular expression of mnemonics


def _array(dtype: Any, dims: int) -> Any:
    return types.Array(getattr(types, np.dtype(dtype).name), dims, "C")


_F1, _F2, _F3 = (_array(np.float32, dims) for dims in (1, 2, 3))
_D1, _D2 = _array(np.float64, 1), _array(np.float64, 2)
_B1, _B2, _B3 = (_array(np.int8, dims) for dims in (1, 2, 3))
_H2, _H3, _H1 = _array(np.uint16, 2), _array(np.uint16, 3), _array(np.int16, 1)
_I1, _I2 = _array(np.int32, 1), _array(np.int32, 2)
_L1, _L2, _L3 = (_array(np.int64, dims) for dims in (1, 2, 3))

FMA: Final = r"vf(n?m)(add|sub)\d+p[sd]"
KERNELS: Final[dict[str, Kernel]] = {
    "ring, int8": Kernel(cpu_ring, "_search_int8", (_B3, _I2, types.int64, _B2, _I1, _F2, _I2), FMA),
    "ring, float16": Kernel(cpu_ring, "_search_half", (_H3, _I2, types.int64, _H2, _I1, _F2, _I2), FMA),
    "ring, widening int8": Kernel(cpu_ring, "_widen_int8", (_B2, _F2, _F1), r"vcvtdq2ps"),
    "ring, widening float16": Kernel(cpu_ring, "_widen_halves", (_H2, _F2), r"vpslld|vpmovzxwd"),
    "windows": Kernel(cpu_windows, "_neighbours", (_B2, _H1, _I1, _I1, _I1, _I2, _I2), r"vpmulld|vpmaddwd"),
    "windows, counts": Kernel(cpu_windows, "_count", (_I1, _H1, types.int16, *[types.int32] * 2, _I1), r"vpcmp\w*d"),
    "one query's distances": Kernel(cpu_vectors, "squared_distances", (_B2, _B1, _I1), r"vpmulld|vpmaddwd"),
    "projection": Kernel(cpu_vectors, "project", (_F2, _F1, _F2), FMA),
    "Mahalanobis distance": Kernel(cpu_vectors, "mahalanobis", (_F2, _F2, _F2, _I1), FMA),
    "sketch coordinates": Kernel(cpu_sketches, "spread", (_F2, _F2, _F2, _I1, _F2), FMA),
    "MMD, distances": Kernel(cpu_mmd, "_squares", (_F3, types.int64, _F2, _F2), FMA),
    "drift's MMD, distances": Kernel(cpu_drift_gram, "_distances_of", (_F2, _F1, types.int64), FMA),
    "random features": Kernel(cpu_mmd, "_angles", (_F2, _F2, _F1, _F2), FMA),
    "moments": Kernel(cpu_counters, "_moments", (_L1, _L2, _L3, _I1, _B2), FMA),
    "histogram places": Kernel(cpu_features, "_cells", (_F1, *[types.float32] * 3, _I1), r"vcvttps2dq"),
}  # fmt: skip


class Loop(NamedTuple):
    """One block of code that jumps back to itself."""

    vector: int  # instructions on ymm or zmm registers
    wanted: int  # those among them that are asked for
    scalar: int  # arithmetic on single floating-point numbers


def fused() -> bool:
    """Whether this processor has what the kernels are written for."""
    has = llvm.get_host_cpu_features()
    return bool(has.get("avx2") and has.get("fma"))


def assembly(kernel: Kernel) -> str:
    """What is executed, without the cache: numba does not show what it has loaded from there."""
    made = getattr(kernel.module, kernel.name)
    fresh = njit(**{key: value for key, value in made.targetoptions.items() if key not in {"cache", "nopython"}})(
        made.py_func
    )
    fresh.compile(kernel.arguments)
    text: str = fresh.inspect_asm(fresh.signatures[0])
    return text


_LABEL: Final = re.compile(r"^(\.?[A-Za-z_$][\w$.]*):")
_CODE: Final = re.compile(r"^\s+([a-z]\w*)\s*(.*)$")
_SCALAR: Final = re.compile(r"v?(add|sub|mul|div|f(n?m)(add|sub)\d+)s[sd]$")


def loops(text: str, wanted: str) -> list[Loop]:
    """Every loop of one block: from a label to the first jump, where that leads back to the label."""
    found, label, block = [], "", Counter[str]()
    for line in text.splitlines():
        if at := _LABEL.match(line):
            label, block = at[1], Counter()
        elif code := _CODE.match(line):
            name, operands = code.groups()
            if name.startswith("j"):
                if operands.strip() == label:
                    found.append(_loop(block, wanted))
                label = ""  # what follows a jump is another block, with or without a label
            elif re.search(r"%[yz]mm|\b[yz]mm\d", operands):
                block[f"{name} vector"] += 1
            else:
                block[name] += 1
    return found


def _loop(block: Counter[str], wanted: str) -> Loop:
    asked = re.compile(rf"({wanted}) vector$")
    return Loop(
        sum(count for name, count in block.items() if name.endswith(" vector")),
        sum(count for name, count in block.items() if asked.match(name)),
        sum(count for name, count in block.items() if _SCALAR.match(name)),
    )


def widest(kernel: Kernel, read: Callable[[Kernel], str] = assembly) -> Loop:
    """The loop with most of what is asked for; nothing, where no loop has it."""
    return max(loops(read(kernel), kernel.wanted), key=lambda one: (one.wanted, one.vector), default=Loop(0, 0, 0))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--asm", choices=KERNELS, metavar="KERNEL", help="print all of one kernel's machine code")
    options = parser.parse_args()
    if options.asm:
        print(assembly(KERNELS[options.asm]))
        return 0
    found = {name: widest(kernel) for name, kernel in KERNELS.items()}
    if options.json:
        print(json.dumps({name: loop._asdict() for name, loop in found.items()}))
        return 0
    print(f"{llvm.get_host_cpu_name()}, {'AVX2 and FMA' if fused() else 'without AVX2 and FMA'}")
    print("kernel                     in vectors  wanted  scalar  wanted is")
    for name, loop in found.items():
        print(f"{name:<26} {loop.vector:>10} {loop.wanted:>7} {loop.scalar:>7}  {KERNELS[name].wanted}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
