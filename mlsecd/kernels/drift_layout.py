"""The columns of the arrays that drift kernels keep their state in; no numba, so that detectors can name them."""

from __future__ import annotations

from typing import Final

# Of a stream, `state`: rows so far, sums over their ranks and values, a latch.
STREAM: Final = 4
COUNT: Final = 0
SUM_X: Final = 1
SUM_VALUE: Final = 2
LATCHED: Final = 3

# Bets by stream: three sizes up, three down. A constant, for the compiler unrolls what it can count.
BETS: Final = 6

# Of each bet of a stream, `runs`: what speaks for a change since any row so far (S) and since the likeliest (W),
# and the time and the sums where W last left 1.
RUN: Final = 6
S: Final = 0
START: Final = 1
COUNT_0: Final = 2
SUM_X_0: Final = 3
SUM_VALUE_0: Final = 4
W: Final = 5

# Of each stream, `bins`: its latest ranks by sixteenth of the reference, this block of rows and the one before.
BINS: Final = 16
BLOCK: Final = 128

# Of all streams together, `clock`: when it last said something, streams latched, scored rows by day.
CLOCK: Final = 5
SAID: Final = 0
LATCHES: Final = 1
DAY: Final = 2
TODAY: Final = 3
YESTERDAY: Final = 4
