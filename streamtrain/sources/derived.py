"""Matrices made from others: a subset of a matrix or a dask graph enters, Rows leave."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from streamtrain.errors import InputError
from streamtrain.rows import Rows, stack
from streamtrain.sources.damage import plain_dtype, reading
from streamtrain.sources.matrix import (
    GAP,
    Matrix,
    canonical,
    cut,
    from_scipy,
    parts_of,
    sparsify,
)


class SubsetMatrix:
    """Chosen cells and genes of a matrix, in the chosen order: what an AnnData view shows.

    AnnData itself would load the whole matrix to take genes from a backed one.

    Parameters
    ----------
    matrix
        What to take from.
    obs_index
        Positions of the cells, shape (n_obs,).
    var_index
        Positions of the genes, shape (n_vars,), or None for all of them.
    """

    def __init__(
        self, matrix: Matrix, obs_index: NDArray[np.int64], var_index: NDArray[np.int64] | None
    ) -> None:
        self.dtype, self.is_sparse = matrix.dtype, matrix.is_sparse
        n_vars = matrix.shape[1] if var_index is None else len(var_index)
        self.shape = (len(obs_index), n_vars)
        self._matrix, self._obs, self._var = matrix, obs_index, var_index

    def row_bytes(self, start: int, stop: int) -> NDArray[np.int64]:
        """Bytes of each cell before its genes are taken; the taken copy is counted, too."""
        cells, place = np.unique(self._obs[start:stop], return_inverse=True)
        breaks = np.flatnonzero(np.diff(cells) > GAP) + 1
        sizes = [
            self._matrix.row_bytes(int(near[0]), int(near[-1]) + 1)[near - near[0]]
            for near in np.split(cells, breaks)
            if len(near)
        ]
        return 2 * np.concatenate([np.empty(0, np.int64), *sizes])[place]

    def blocks(self, nbytes: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Row ranges cut by the cost of their cells."""
        return cut(self.row_bytes, nbytes, start, stop)

    def read(self, start: int, stop: int) -> Rows:
        """Cells start to stop of the subset."""
        cells, place = np.unique(self._obs[start:stop], return_inverse=True)
        rows = self._matrix.take(cells)
        if not np.array_equal(place, np.arange(len(cells))):
            rows = rows.take(place)
        if self._var is None:
            return rows
        taken = _as_scipy(rows)[:, self._var]
        taken.sort_indices()
        return from_scipy(taken)

    def take(self, rows: NDArray[np.int64], *, compact: bool = False) -> Rows:  # noqa: ARG002
        """The cells `rows` of the subset, ascending and distinct."""
        return SubsetMatrix(self._matrix, self._obs[rows], self._var).read(0, len(rows))

    def decoded_bytes(self, rows: NDArray[np.int64]) -> int:
        """Bytes of the chunks that hold the cells `rows`."""
        return self._matrix.decoded_bytes(np.sort(self._obs[rows]))

    @property
    def decoded(self) -> int:
        """Bytes decoded so far."""
        return self._matrix.decoded

    def cell_entries(self) -> float:
        """Stored entries of a cell, on average; before genes are taken."""
        return self._matrix.cell_entries()

    def close(self) -> None:
        """Close the matrix below."""
        self._matrix.close()


class SlicedMatrix:
    """A dask array of dense or scipy-sparse chunks, computed one row of chunks at a time.

    The row of chunks computed last is kept, so that ranges smaller than it compute it once.
    """

    def __init__(self, array: Any, name: str) -> None:
        if array.ndim != 2 or any(np.isnan(size) for size in array.shape):
            raise InputError(
                f"{name} has shape {array.shape}, and must be cells x genes of known sizes: "
                "call its compute_chunk_sizes() first"
            )
        self.shape = (int(array.shape[0]), int(array.shape[1]))
        self.dtype = plain_dtype(array.dtype, name)
        self.is_sparse = sp.issparse(array._meta)
        self.name = name
        self._array = array
        self._starts = np.concatenate([[0], np.cumsum(array.chunks[0])]).astype(np.int64)
        self._kept: tuple[int, Rows] | None = None
        self.decoded = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}

    def _chunk(self, i: int) -> Rows:
        """All cells of the i-th row of chunks."""
        if self._kept is None or self._kept[0] != i:
            self._kept = None  # the old one goes before the new one comes
            parts = []
            for j in range(self._array.numblocks[1]):
                with reading(self.name):
                    # One chunk on this thread: the reader above owns the thread budget.
                    part = self._array.blocks[i, j].compute(scheduler="synchronous")
                if bool(sp.issparse(part)):
                    parts.append(sp.csr_matrix(part, dtype=self.dtype))
                else:
                    parts.append(_as_scipy(sparsify(np.asarray(part), self.dtype)))
            whole = parts[0] if len(parts) == 1 else sp.hstack(parts, format="csr")
            self._kept = i, canonical(from_scipy(whole), self.name)
            self.decoded += self._kept[1].nbytes
        return self._kept[1]

    def row_bytes(self, start: int, stop: int) -> NDArray[np.int64]:
        """Bytes of each cell; computes the chunks if they are sparse."""
        if not self.is_sparse:
            row = self.shape[1] * (2 * self.dtype.itemsize + 4) + 8
            return np.full(stop - start, row, np.int64)
        parts = [
            np.diff(self._chunk(i).indptr[low : high + 1])
            for i, low, high in parts_of(self._starts, start, stop)
        ]
        return np.concatenate(parts) * (2 * (self.dtype.itemsize + 4)) + 8

    def blocks(self, nbytes: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Row ranges within the chunks.

        Sparse chunks are computed here to count their entries, one ahead of the reads that follow.
        """
        for i, low, high in parts_of(self._starts, start, stop):
            first = int(self._starts[i])
            yield from cut(self.row_bytes, nbytes, first + low, first + high)

    def read(self, start: int, stop: int) -> Rows:
        """Cells start to stop."""
        parts = [
            self._chunk(i).take(np.arange(low, high))
            for i, low, high in parts_of(self._starts, start, stop)
        ]
        return stack(parts, self.shape[1], self.dtype)

    def take(self, rows: NDArray[np.int64], *, compact: bool = False) -> Rows:  # noqa: ARG002
        """The cells `rows`, ascending and distinct."""
        chunk_of = np.searchsorted(self._starts, rows, side="right") - 1
        parts = [
            self._chunk(i).take(rows[chunk_of == i] - self._starts[i])
            for i in np.unique(chunk_of).tolist()
        ]
        return stack(parts, self.shape[1], self.dtype)

    def decoded_bytes(self, rows: NDArray[np.int64]) -> int:
        """Bytes of the chunks that hold the cells `rows`, ascending, as if they were dense."""
        chunks = np.unique(np.searchsorted(self._starts, rows, side="right") - 1)
        cells = np.diff(self._starts)[chunks].sum()
        return int(cells) * self.shape[1] * self.dtype.itemsize

    def cell_entries(self) -> float:
        """Genes: how many of them are not zero is told by computing alone."""
        return float(self.shape[1])

    def close(self) -> None:
        """Forget the chunks computed last."""
        self._kept = None


def _as_scipy(rows: Rows) -> Any:
    return sp.csr_matrix((rows.data, rows.indices, rows.indptr), shape=(rows.n_obs, rows.n_vars))
