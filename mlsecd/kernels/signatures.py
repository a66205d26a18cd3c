"""Signatures of the batch kernels, which the CPU and a GPU both offer; ``formulas`` has those of the others.

Each is a method here for its parameters and docstring alone: a backend offers functions of these names.
Every one refuses arguments of another dtype, shape or layout with a ``KernelError`` before it computes.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mlsecd.kernels.mmd import MmdSums
from mlsecd.kernels.ragged import Near, Windows
from mlsecd.kernels.rings import Ring

__all__ = ["BatchKernels"]


class BatchKernels(Protocol):
    """Whole numbers come out the same from every backend, to the last bit; the others state their error."""

    def ring_push(self, ring: Ring, vectors: NDArray[Any], owners: NDArray[np.int32]) -> None:
        """Put rows into the ring, in order, over the oldest.

        Parameters
        ----------
        vectors
            [n, d] of the ring's dtype, contiguous. One with a NaN is never anyone's neighbour.
        owners
            int32[n]: the account of each.
        """

    def ring_nearest(
        self, ring: Ring, queries: NDArray[Any], owners: NDArray[np.int32], k: int = 10
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """The k (1 to 10) nearest rows of each query among those of other owners, nearest first.

        A query's answer does not depend on the other queries of the batch; of equally near rows
        the lower slots are given.

        Returns
        -------
        squares, slots
            float32[n, k], squared distances in the ring's units: exact for int8, relative error
            below 1e-5 for float16. int32[n, k]. Where fewer than k rows are held by others: inf, -1.
        """

    def window_neighbours(self, asked: Windows) -> Near:
        """Each query against the rows before it: the ten smallest squared distances, and counts within radii.

        With h rows in its window, near is ``squares <= near[h]``; far are all but the last 32 rows, and near
        among them ``squares <= near[h - 32]``. A label differs where both are known and not equal. Exact.
        """

    def mmd_sums(self, x: NDArray[np.float32], members: NDArray[np.uint8], gammas: NDArray[np.float64]) -> MmdSums:
        """Sums of the mean of ``exp(-gamma |x_i - x_j|^2)`` over pairs, for many divisions of the rows at once.

        Parameters
        ----------
        x
            float32[N, d], 2 to 16,384 rows; it is centred here.
        members
            uint8[N, P]: 1 where row i is in side A of division p. ``mmd.mmd_squares`` makes MMD^2 of it.
        gammas
            float64[1 to 4].

        Returns
        -------
        MmdSums
            Relative error below 1e-6, against float64, of each sum.
        """

    def random_features(
        self, x: NDArray[np.float32], directions: NDArray[np.float32], phases: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """``sqrt(2 / m) cos(x @ directions + phases)`` (Rahimi & Recht 2007): float32[n, d], [d, m], [m] to [n, m].

        Absolute error below 1e-5 where the angles stay below 100.
        """

    def histograms(self, values: NDArray[np.float32], edges: NDArray[np.float32]) -> NDArray[np.int64]:
        """Counts between ascending edges, feature by feature: float32[F, n], float32[F, E] to int64[F, E + 2].

        Column b counts values with ``edges[b - 1] <= value < edges[b]``; the last column counts NaN.
        """

    def ks_distances(
        self, reference: NDArray[np.float32], sample: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """The two-sample Kolmogorov-Smirnov distance of each feature, exactly, as a fraction.

        Parameters
        ----------
        reference
            float32[F, m], rows ascending.
        sample
            float32[F, n] in any order; NaN is left out.

        Returns
        -------
        numerators, used
            int64[F], int32[F]: D = numerator / (used * m); 0 where nothing was used.
        """

    def hll_add(self, registers: NDArray[np.uint8], slots: NDArray[np.int32], hashes: NDArray[np.uint64]) -> None:
        """Add hashes to distinct counts: uint8[keys, 2^p], int32[n], uint64[n]; ``counters.hll_count`` reads them."""

    def countmin_add(self, table: NDArray[np.int64], hashes: NDArray[np.uint64], amounts: NDArray[np.int64]) -> None:
        """Add amounts to a count-min table: int64[depth, 2^w], uint64[n], int64[n]."""

    def countmin_read(self, table: NDArray[np.int64], hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The least counter of each hash: never less than what was added, where no amount was negative."""

    def quantile_add(self, counts: NDArray[np.int64], slots: NDArray[np.int32], values: NDArray[np.float32]) -> None:
        """Add values to bins: int64[keys, BINS], int32[n], float32[n]; ``counters.quantile_read`` reads them.

        NaN is left out; what is not positive or below 2^-32 falls into the first bin, 2^32 and above into the last.
        """

    def moments_add(
        self,
        counts: NDArray[np.int64],
        sums: NDArray[np.int64],
        products: NDArray[np.int64],
        slots: NDArray[np.int32],
        codes: NDArray[np.int8],
    ) -> None:
        """Add rows to counts, sums and sums of products by key: what means and covariances are made of.

        int64[keys], int64[keys, d], int64[keys, d, d], int32[n], int8[n, d] with d up to 64.
        """
