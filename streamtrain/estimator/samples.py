"""A matrix in memory, dense or sparse, enters; its rows leave a batch at a time, as Rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from streamtrain.errors import InputError
from streamtrain.kernels import csr
from streamtrain.rows import Rows
from streamtrain.scaling import MomentsPass, RunningMoments
from streamtrain.threads import Threads

_BATCH = 1024  # rows at a time, fewer where they are wide
_NBYTES = 1 << 22  # of a batch as copied, unless one row is more
_ENTRY = 16  # bytes of an entry at most: a float64 and an int64


class Samples:
    """Rows of a matrix that stays as it is: batches are copied, nothing of its own size is made.

    Parameters
    ----------
    X
        An array or a sparse CSR container of numbers, shape (n_obs, n_vars). Indices may be int32
        or int64, in any order, and repeated ones add up.
    codes
        Class of each row, shape (n_obs,), or None.
    weight
        Of each row, shape (n_obs,), or None.

    Attributes
    ----------
    dtype
        Of the rows: float32 as X, else float64.
    is_sparse
        Whether X is.
    """

    def __init__(
        self,
        X: Any,
        codes: NDArray[np.int32] | None = None,
        weight: NDArray[np.float64] | None = None,
    ) -> None:
        self._X, self.codes, self.weight = X, codes, weight
        self.n_obs, self.n_vars = X.shape
        self.is_sparse = sp.issparse(X)
        self.dtype = np.dtype(np.float32 if X.dtype == np.float32 else np.float64)
        entries = X.nnz / max(1, self.n_obs) if self.is_sparse else self.n_vars
        self._step = max(1, min(_BATCH, int(_NBYTES / (_ENTRY * entries + 1))))
        # SciPy would read out of bounds.
        if self.is_sparse and np.any(np.diff(X.indptr, prepend=0) < 0):
            raise InputError("X is damaged: its offsets (indptr) do not ascend from 0")
        if self.is_sparse and X.indptr[-1] > min(len(X.data), len(X.indices)):
            raise InputError("X is damaged: its offsets (indptr) pass the end of its entries")

    def take(self, at: NDArray[Any]) -> Rows:
        """The rows at these positions, in that order."""
        codes = None if self.codes is None else self.codes[at]
        part = self._X[at]
        if not self.is_sparse:
            dense = np.asarray(part, self.dtype, order="C")
            indptr = csr.count_nonzero(dense)
            data, indices = np.empty(indptr[-1], self.dtype), np.empty(indptr[-1], np.int32)
            csr.from_dense(dense, indptr, data, indices)
            return Rows(data, indices, indptr, self.n_vars, codes)
        # Before the cast to int32, which could wrap a damaged position into the range.
        verdict, row = csr.check_indices(part.indices, part.indptr, self.n_vars)
        if verdict == csr.OUT_OF_RANGE:
            raise InputError(
                f"X is damaged: row {at[row]} has an index outside 0 to {self.n_vars - 1}"
            )
        part = part.astype(self.dtype, copy=False)
        if verdict == csr.UNSORTED:
            part.sum_duplicates()
        indices, indptr = part.indices.astype(np.int32, copy=False), part.indptr.astype(np.int64)
        return Rows(part.data, indices, indptr, self.n_vars, codes)

    def batches(
        self, order: NDArray[Any] | None = None
    ) -> Iterator[tuple[Rows, NDArray[np.float64] | None]]:
        """Rows and their weights, batch by batch: all as they stand, or those of `order`."""
        n = self.n_obs if order is None else len(order)
        for start in range(0, n, self._step):
            stop = min(start + self._step, n)
            at = np.arange(start, stop) if order is None else order[start:stop]
            yield self.take(at), None if self.weight is None else self.weight[at]

    def moments(self, threads: Threads) -> RunningMoments:
        """Moments of all rows."""
        moments = MomentsPass(self.n_vars, threads)
        for rows, _ in self.batches():
            moments.update(rows)
        return moments.result()
