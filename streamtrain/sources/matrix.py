"""Matrices by rows: sliceable arrays (numpy, h5py, zarr) enter, Rows and their ranges leave."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from streamtrain.budget import format_bytes
from streamtrain.errors import InputError
from streamtrain.kernels import csr
from streamtrain.rows import Rows
from streamtrain.sources.damage import damaged, fetch, plain_dtype

logger = logging.getLogger(__name__)

INDPTR_SLICE = 1 << 20  # cells whose offsets are held at once: 8 MB, whatever the atlas


class Matrix(Protocol):
    """Cells x genes that can be read as row ranges."""

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    is_sparse: bool

    def row_bytes(self, start: int, stop: int) -> NDArray[np.int64]:
        """Bytes that each of the cells start to stop takes while it is decoded."""
        ...

    def blocks(self, nbytes: int) -> Iterator[tuple[int, int]]:
        """Row ranges in order, covering all cells, each of one cell or at most `nbytes`."""
        ...

    def read(self, start: int, stop: int) -> Rows:
        """Cells start to stop."""
        ...

    def close(self) -> None:
        """Give up scratch and caches; a later read makes them again."""
        ...


def cut(
    n_obs: int,
    row_bytes: Callable[[int, int], NDArray[np.int64]],
    nbytes: int,
    step: int = INDPTR_SLICE,
) -> Iterator[tuple[int, int]]:
    """Cut cells into consecutive ranges of at most `nbytes`, asking for `step` sizes at once."""
    start = 0
    while start < n_obs:
        stop = min(start + step, n_obs)
        ends = np.cumsum(row_bytes(start, stop))
        first = done = 0
        while first < len(ends):
            last = int(np.searchsorted(ends, done + nbytes - 8, side="right"))  # 8: indptr[0]
            last = max(last, first + 1)
            if last == len(ends) and stop < n_obs and first > 0:
                break  # the range may go on: ask again from its first cell
            yield start + first, start + last
            first, done = last, int(ends[last - 1])
        start += first


def canonical(rows: Rows, name: str) -> Rows:
    """Sort each cell's genes and sum duplicates, where needed; refuse gene positions out of range.

    `rows.indices` must be int32.
    """
    verdict, _ = csr.check_indices(rows.indices, rows.indptr, rows.n_vars)
    if verdict == csr.OUT_OF_RANGE:
        raise damaged(name, f"a cell has a gene position outside 0 to {rows.n_vars - 1}")
    if verdict == csr.CANONICAL:
        return rows
    matrix = sp.csr_matrix(
        (rows.data, rows.indices, rows.indptr), shape=(rows.n_obs, rows.n_vars), copy=False
    )
    before = matrix.nnz
    if matrix.dtype.kind in "iu" and matrix.dtype.itemsize < 8:
        matrix = matrix.astype(np.int64)  # sums of repeated entries may not fit
    matrix.has_canonical_format = False
    matrix.sum_duplicates()
    if matrix.nnz < before:
        logger.warning(
            "%s: %d entries repeat a gene of their cell; their values are summed",
            name,
            before - matrix.nnz,
        )
    return from_scipy(matrix)


def from_scipy(matrix: Any) -> Rows:
    """View a canonical scipy CSR matrix as Rows."""
    return Rows(
        matrix.data,
        matrix.indices.astype(np.int32, copy=False),
        matrix.indptr.astype(np.int64, copy=False),
        matrix.shape[1],
    )


class CsrMatrix:
    """Compressed sparse rows over three sliceable one-dimensional arrays.

    Parameters
    ----------
    data, indices, indptr
        numpy, h5py or zarr arrays (or anything with `shape`, `dtype` and slices). indptr is read
        in slices, never held whole.
    shape
        Cells, genes.
    name
        What messages call the matrix.
    """

    is_sparse = True

    def __init__(self, data: Any, indices: Any, indptr: Any, shape: Any, name: str) -> None:
        self.shape = (int(shape[0]), int(shape[1]))
        self.dtype = plain_dtype(data.dtype, name)
        self.name = name
        self._data, self._indices, self._indptr = data, indices, indptr
        check_compressed(data, indices, indptr, self.shape[0], name)
        wide = indices.dtype.itemsize
        self._entry = self.dtype.itemsize + (4 if indices.dtype == np.int32 else 4 + wide)
        if data.dtype != self.dtype:
            self._entry += data.dtype.itemsize

    def _offsets(self, start: int, stop: int) -> NDArray[np.int64]:
        found = fetch(self._indptr, start, stop + 1, self.name).astype(np.int64, copy=False)
        steps = np.diff(found)
        if found[0] < 0 or found[-1] > self._data.shape[0] or (len(steps) and steps.min() < 0):
            cell = start + (int(np.argmax(steps < 0)) if len(steps) and steps.min() < 0 else 0)
            raise damaged(self.name, f"the offsets (indptr) at cell {cell} do not ascend")
        return found

    def row_bytes(self, start: int, stop: int) -> NDArray[np.int64]:
        """Bytes of each cell: values, stored and int32 gene positions, one offset."""
        return np.diff(self._offsets(start, stop)) * self._entry + 8

    def blocks(self, nbytes: int) -> Iterator[tuple[int, int]]:
        """Row ranges cut by their non-zeros."""
        chunk = max(_chunk_bytes(self._data), _chunk_bytes(self._indices))
        if chunk > nbytes:
            logger.warning(
                "%s is stored in chunks of %s, more than the %s that are read at a time: each is "
                "decoded again for every part of it, and takes memory beside the budget; raise "
                "memory, or rewrite the file with smaller chunks",
                self.name, format_bytes(chunk), format_bytes(nbytes),
            )  # fmt: skip
        return cut(self.shape[0], self.row_bytes, nbytes)

    def read(self, start: int, stop: int) -> Rows:
        """Cells start to stop, made canonical."""
        offsets = self._offsets(start, stop)
        low, high = int(offsets[0]), int(offsets[-1])
        data = own(fetch(self._data, low, high, self.name), self._data, self.dtype)
        stored = fetch(self._indices, low, high, self.name)
        n_vars = self.shape[1]
        # Before the cast to int32, which could wrap a damaged position into the valid range.
        if len(stored) and (stored.min() < 0 or stored.max() >= n_vars):
            entry = low + int(np.argmax((stored < 0) | (stored >= n_vars)))
            cell = start + int(np.searchsorted(offsets, entry, side="right")) - 1
            what = f"cell {cell} has gene position {stored[entry - low]}, outside 0 to {n_vars - 1}"
            raise damaged(self.name, what)
        indices = own(stored, self._indices, np.dtype(np.int32))
        return canonical(Rows(data, indices, offsets - low, n_vars), self.name)

    def close(self) -> None:
        """Nothing to give up."""


def _chunk_bytes(array: Any) -> int:
    """Decoded bytes of one chunk; 0 where the array is not chunked."""
    chunks = getattr(array, "chunks", None)
    return int(np.prod(chunks)) * int(array.dtype.itemsize) if chunks else 0


def check_compressed(data: Any, indices: Any, indptr: Any, n_major: int, name: str) -> None:
    """Check what the lengths of a compressed matrix's three arrays must be.

    Raises
    ------
    InputError
        Where they contradict each other.
    """
    if indices.dtype.kind not in "iu" or indptr.dtype.kind not in "iu":
        raise damaged(name, f"indices and indptr are {indices.dtype} and {indptr.dtype}")
    if indptr.shape != (n_major + 1,):
        raise damaged(name, f"indptr has shape {indptr.shape} where {(n_major + 1,)} is due")
    if data.shape != indices.shape or len(data.shape) != 1:
        raise damaged(name, f"data has shape {data.shape} and indices {indices.shape}")
    first = int(fetch(indptr, 0, 1, name)[0])
    last = int(fetch(indptr, n_major, n_major + 1, name)[0])
    if first != 0 or last != data.shape[0]:
        what = f"indptr runs from {first} to {last}, and there are {data.shape[0]} values"
        raise damaged(name, what)


def own(values: NDArray[Any], source: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Values as `dtype`, contiguous, and sharing no memory with an array of the user's."""
    if isinstance(source, np.ndarray):
        return np.array(values, dtype=dtype, order="C")
    return np.ascontiguousarray(values, dtype=dtype)


class DenseMatrix:
    """A two-dimensional sliceable array (numpy, h5py, zarr), its non-zeros read as Rows."""

    is_sparse = False

    def __init__(self, array: Any, name: str) -> None:
        if len(array.shape) != 2:
            raise InputError(f"{name} has shape {tuple(array.shape)}, and must be cells x genes")
        self.shape = (int(array.shape[0]), int(array.shape[1]))
        self.dtype = plain_dtype(array.dtype, name)
        self.name = name
        self._array = array
        # A chunk along the cells is decoded whole, a shard only partly: whole shards if they fit.
        units = (getattr(array, "shards", None), getattr(array, "chunks", None))
        self._units = [int(unit[0]) for unit in units if unit]

    def row_bytes(self, start: int, stop: int) -> NDArray[np.int64]:
        """Bytes of each cell: its values dense, and sparse if none is zero."""
        row = self.shape[1] * (2 * self.dtype.itemsize + 4) + 8
        return np.full(stop - start, row, np.int64)

    def blocks(self, nbytes: int) -> Iterator[tuple[int, int]]:
        """Row ranges of whole chunks where `nbytes` holds at least one chunk."""
        rows = max(1, (nbytes - 8) // int(self.row_bytes(0, 1)[0]))
        unit = next((unit for unit in self._units if 0 < unit <= rows), 1)
        rows -= rows % unit
        for start in range(0, self.shape[0], rows):
            yield start, min(start + rows, self.shape[0])

    def read(self, start: int, stop: int) -> Rows:
        """Cells start to stop, zeros left out (NaN kept)."""
        return sparsify(fetch(self._array, start, stop, self.name), self.dtype)

    def close(self) -> None:
        """Nothing to give up."""


def sparsify(values: NDArray[Any], dtype: np.dtype[Any]) -> Rows:
    """Non-zeros of dense cells as Rows of `dtype`."""
    dense = np.ascontiguousarray(values, dtype=dtype)
    indptr = csr.count_nonzero(dense)
    data = np.empty(indptr[-1], dtype)
    indices = np.empty(indptr[-1], np.int32)
    csr.from_dense(dense, indptr, data, indices)
    return Rows(data, indices, indptr, dense.shape[1])
