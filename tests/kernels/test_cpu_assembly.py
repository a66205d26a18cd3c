"""The machine code of the hot CPU kernels: their inner loops work on whole vectors, where the processor has them."""

from __future__ import annotations

import pytest
from numba import config

from tools import cpu_report
from tools.cpu_report import KERNELS, Loop, loops, widest

# what the loop of a row of vectors looks like in AT&T syntax, with a remainder that takes one number at a time
CODE = """
kernel:
\tmovq\t%rdi, %rax
.LBB0_2:
\tvmovups\t(%rsi,%rax,4), %ymm1
\tvfmadd231ps\t%ymm0, %ymm1, %ymm2
\tvfmadd231ps\t%zmm0, %zmm1, %zmm2
\taddq\t$8, %rax
\tcmpq\t%rax, %rcx
\tjne\t.LBB0_2
.LBB0_3:
\tvfmadd231ss\t%xmm0, %xmm1, %xmm2
\tvaddss\t%xmm0, %xmm1, %xmm2
\tjne\t.LBB0_3
.LBB0_4:
\tvfmadd231ps\t%ymm0, %ymm1, %ymm2
\tjmp\t.LBB0_2
\tvfmadd231ps\t%ymm0, %ymm1, %ymm2
\tjne\t.LBB0_4
"""


def test_a_loop_is_from_a_label_to_the_jump_back() -> None:
    assert loops(CODE, cpu_report.FMA) == [Loop(vector=3, wanted=2, scalar=0), Loop(vector=0, wanted=0, scalar=2)]


def test_the_widest_loop_speaks_for_a_kernel() -> None:
    kernel = KERNELS["moments"]
    assert widest(kernel, lambda _: CODE) == Loop(3, 2, 0)
    assert widest(kernel, lambda _: "nothing:\n\tret\n") == Loop(0, 0, 0)


@pytest.mark.skipif(not cpu_report.fused(), reason="this processor has no AVX2 with FMA")
@pytest.mark.skipif(bool(config.BOUNDSCHECK), reason="checked indices are taken one by one")
@pytest.mark.parametrize("name", KERNELS)
def test_the_inner_loop_works_on_vectors(name: str) -> None:
    """In vectors of 32 bytes or more, with the instruction that the kernel is made for, and nothing one by one."""
    loop = widest(KERNELS[name])
    assert loop.wanted >= 1, f"`python -m tools.cpu_report --asm '{name}'` shows the code"
    assert loop.vector >= 4
    assert loop.scalar == 0
