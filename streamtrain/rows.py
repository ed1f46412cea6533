"""Rows: what every source yields and every later stage passes on; a CSR slice of cells."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.buffers import empty
from streamtrain.kernels import csr


@dataclass(frozen=True, slots=True)
class Rows:
    """Cells as compressed sparse rows, optionally with their label codes.

    Attributes
    ----------
    data
        Values of the stored entries, shape (nnz,).
    indices
        Gene position of each entry, shape (nnz,), ascending within a cell.
    indptr
        Where each cell starts in `data`, shape (n_obs + 1,), int64, beginning with 0.
    n_vars
        Number of genes.
    codes
        Position of each cell's label among the classes, shape (n_obs,), or None.
    left_out
        Sum of x and of expm1(x) over the entries of each cell that are not here, as other files of
        a collection lack their genes, shape (n_obs, 2); None for none. Normalisation is of the
        whole cell.
    """

    data: NDArray[Any]
    indices: NDArray[Any]
    indptr: NDArray[np.int64]
    n_vars: int
    codes: NDArray[np.int32] | None = None
    left_out: NDArray[np.float64] | None = None

    @property
    def n_obs(self) -> int:
        """Number of cells."""
        return len(self.indptr) - 1

    @property
    def nbytes(self) -> int:
        """Bytes held by the arrays."""
        beside = sum(array.nbytes for array in (self.codes, self.left_out) if array is not None)
        return self.data.nbytes + self.indices.nbytes + self.indptr.nbytes + beside

    def take(self, index: NDArray[np.int64], dtypes: tuple[Any, Any] | None = None) -> Rows:
        """Cells at `index`, in that order (repeats allowed).

        Values and gene positions come as `dtypes`, or as they are.
        """
        indptr = csr.take_indptr(self.indptr, index)
        kinds = dtypes or (self.data.dtype, self.indices.dtype)
        data, indices = (empty(indptr[-1], kind) for kind in kinds)
        csr.take_values(self.data, self.indptr, index, indptr, data)
        csr.take_values(self.indices, self.indptr, index, indptr, indices)
        codes = None if self.codes is None else self.codes[index]
        left_out = None if self.left_out is None else self.left_out[index]
        return Rows(data, indices, indptr, self.n_vars, codes, left_out)

    def slice(self, start: int, stop: int) -> Rows:
        """Cells start to stop, sharing memory with these."""
        lo, hi = self.indptr[start], self.indptr[stop]
        codes = None if self.codes is None else self.codes[start:stop]
        left_out = None if self.left_out is None else self.left_out[start:stop]
        indptr = self.indptr[start : stop + 1] - lo
        return Rows(self.data[lo:hi], self.indices[lo:hi], indptr, self.n_vars, codes, left_out)

    def with_codes(self, codes: NDArray[np.int32]) -> Rows:
        """The same cells with label codes."""
        return replace(self, codes=codes)


def stack(parts: list[Rows], n_vars: int, dtype: np.dtype[Any]) -> Rows:
    """Cells of all parts, one part after the other, without label codes.

    `dtype` is that of the values where there is no part.
    """
    if len(parts) == 1:
        return parts[0]
    if not parts:
        empty = np.empty(0, np.int32)
        return Rows(np.empty(0, dtype), empty, np.zeros(1, np.int64), n_vars)
    ends = np.cumsum([len(part.data) for part in parts])
    offsets = [
        part.indptr[1:] + end - len(part.data) for part, end in zip(parts, ends, strict=True)
    ]
    sums = [np.zeros((p.n_obs, 2)) if p.left_out is None else p.left_out for p in parts]
    return Rows(
        np.concatenate([part.data for part in parts]),
        np.concatenate([part.indices for part in parts]),
        np.concatenate([np.zeros(1, np.int64), *offsets]),
        n_vars,
        left_out=None if all(p.left_out is None for p in parts) else np.concatenate(sums),
    )
