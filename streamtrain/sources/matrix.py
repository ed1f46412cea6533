"""Matrices by rows: sliceable arrays (numpy, h5py, zarr) enter, Rows and their ranges leave."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from streamtrain.budget import format_bytes
from streamtrain.buffers import empty
from streamtrain.decode.slices import as_gatherable
from streamtrain.errors import InputError
from streamtrain.kernels import csr, remap
from streamtrain.rows import Rows, stack
from streamtrain.sources.damage import damaged, fetch, plain_dtype, reading
from streamtrain.threads import Threads, every_cpu

logger = logging.getLogger(__name__)

INDPTR_SLICE = 1 << 20  # cells whose offsets are held at once: 8 MB, whatever the atlas

COUNTS = 2**16  # what two bytes do not hold any more
GAP = 32  # rows read and thrown away rather than ask the store once more
TOGETHER = 16 << 20  # bytes, decoded, of dense cells that are read together, unless a chunk is more


class Matrix(Protocol):
    """Cells x genes that can be read as row ranges."""

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    is_sparse: bool

    def row_bytes(self, start: int, stop: int) -> NDArray[np.int64]:
        """Bytes that each of the cells start to stop takes while it is decoded."""
        ...

    def blocks(self, nbytes: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Row ranges in order, covering start to stop, each of one cell or at most `nbytes`."""
        ...

    def read(self, start: int, stop: int) -> Rows:
        """Cells start to stop."""
        ...

    def take(self, rows: NDArray[np.int64], *, compact: bool = False) -> Rows:
        """The cells `rows`, ascending and distinct.

        With `compact` values and gene positions may come as uint16 where that holds them all.
        """
        ...

    def decoded_bytes(self, rows: NDArray[np.int64]) -> int:
        """Bytes of the chunks that hold the cells `rows`, ascending, about."""
        ...

    @property
    def decoded(self) -> int:
        """Bytes decoded so far."""
        ...

    def cell_entries(self) -> float:
        """Stored entries of a cell, on average."""
        ...

    def close(self) -> None:
        """Give up scratch and caches; a later read makes them again."""
        ...


def cut(
    row_bytes: Callable[[int, int], NDArray[np.int64]],
    nbytes: int,
    start: int,
    end: int,
    step: int = INDPTR_SLICE,
) -> Iterator[tuple[int, int]]:
    """Cut the cells start to end into ranges of at most `nbytes`; ask for `step` sizes at once."""
    while start < end:
        stop = min(start + step, end)
        ends = np.cumsum(row_bytes(start, stop))
        first = done = 0
        while first < len(ends):
            last = int(np.searchsorted(ends, done + nbytes - 8, side="right"))  # 8: indptr[0]
            last = max(last, first + 1)
            if last == len(ends) and stop < end and first > 0:
                break  # the range may go on: ask again from its first cell
            yield start + first, start + last
            first, done = last, int(ends[last - 1])
        start += first


def parts_of(starts: NDArray[np.int64], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Give (part, first, last) for the cells start to stop of parts that begin at `starts`.

    `starts` ends with the number of cells; positions are those within the part.
    """
    i = int(np.searchsorted(starts, start, side="right")) - 1
    while start < stop:
        low, high = int(starts[i]), int(starts[i + 1])
        if high > start:
            yield i, start - low, min(stop, high) - low
            start = min(stop, high)
        i += 1


def canonical(rows: Rows, name: str, threads: Threads | None = None) -> Rows:
    """Sort each cell's genes and sum duplicates, where needed; refuse gene positions out of range.

    `rows.indices` must be int32 or uint16; cells are sorted in place.
    """
    verdicts: list[int] = []
    repeated: list[bool] = []
    threads, indices = threads or every_cpu(), rows.indices

    def check(start: int, stop: int) -> None:
        indptr = rows.indptr[start : stop + 1]
        verdicts.append(csr.check_indices(indices, indptr, rows.n_vars)[0])

    def sort(start: int, stop: int) -> None:
        indptr = rows.indptr[start : stop + 1]
        repeated.append(remap.any_repeated(indices, indptr, rows.n_vars))
        if not repeated[-1]:
            remap.sort_genes(rows.data, indices, indptr, rows.n_vars)

    threads.share(rows.n_obs, check)
    if csr.OUT_OF_RANGE in verdicts:
        raise damaged(name, f"a cell has a gene position outside 0 to {rows.n_vars - 1}")
    if csr.UNSORTED not in verdicts:
        return rows
    threads.share(rows.n_obs, sort)
    if not any(repeated):
        return rows
    parts = rows.data, indices.astype(np.int32, copy=False), rows.indptr
    matrix = sp.csr_matrix(parts, shape=(rows.n_obs, rows.n_vars), copy=False)
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
    """Compressed sparse rows over three one-dimensional arrays.

    Parameters
    ----------
    data, indices, indptr
        Arrays of `streamtrain.decode`, or numpy or scratch arrays. indptr is never held whole:
        cells in order read it in slices, cells in any order by an index of 4 bytes a cell.
    shape
        Cells, genes.
    name
        What messages call the matrix.
    threads
        They share the checks; None for all CPUs.
    """

    is_sparse = True

    def __init__(
        self,
        data: Any,
        indices: Any,
        indptr: Any,
        shape: Any,
        name: str,
        threads: Threads | None = None,
    ) -> None:
        self.shape = (int(shape[0]), int(shape[1]))
        self.dtype = plain_dtype(data.dtype, name)
        self.name = name
        check_compressed(data, indices, indptr, self.shape[0], name)
        self._data, self._indices = as_gatherable(data), as_gatherable(indices)
        self._indptr = as_gatherable(indptr)
        self._threads = threads
        self._index: RowIndex | None = None
        self._are_counts = True  # as far as has been seen
        self._told = False  # of large chunks
        wide = indices.dtype.itemsize
        self._entry = self.dtype.itemsize + (4 if indices.dtype == np.int32 else 4 + wide)
        if data.dtype != self.dtype:
            self._entry += data.dtype.itemsize

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_threads": None}

    def _offsets(self, start: int, stop: int) -> NDArray[np.int64]:
        found = fetch(self._indptr, start, stop + 1, self.name).astype(np.int64, copy=False)
        steps = np.diff(found)
        if found[0] < 0 or found[-1] > self._data.shape[0] or (len(steps) and steps.min() < 0):
            cell = start + (int(np.argmax(steps < 0)) if len(steps) and steps.min() < 0 else 0)
            raise damaged(self.name, f"the offsets (indptr) at cell {cell} do not ascend")
        if len(steps) and steps.max() > self.shape[1]:
            cell, n = start + int(steps.argmax()), int(steps.max())
            what = f"cell {cell} has {n:,} stored entries, and there are {self.shape[1]:,} genes"
            raise damaged(self.name, what)
        return found

    def lengths(self, start: int, stop: int) -> NDArray[np.int64]:
        """Stored entries of each cell; a gene that a cell repeats counts each time."""
        return np.diff(self._offsets(start, stop))

    def row_bytes(self, start: int, stop: int) -> NDArray[np.int64]:
        """Bytes of each cell: values, stored and int32 gene positions, one offset."""
        return self.lengths(start, stop) * self._entry + 8

    def blocks(self, nbytes: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Row ranges cut by their non-zeros."""
        chunk = max(_chunk_bytes(self._data), _chunk_bytes(self._indices))
        if chunk > nbytes and not self._told:
            self._told = True
            logger.warning(
                "%s is stored in chunks of %s, more than the %s that are read at a time: they are "
                "decoded whole, and take memory beside the budget; raise memory, or rewrite the "
                "file with smaller chunks (streamtrain convert)",
                self.name, format_bytes(chunk), format_bytes(nbytes),
            )  # fmt: skip
        return cut(self.row_bytes, nbytes, start, stop)

    def read(self, start: int, stop: int) -> Rows:
        """Cells start to stop, made canonical."""
        offsets = self._offsets(start, stop)
        cells = range(start, stop)
        return self._gather(offsets[:1], offsets[-1:], offsets - offsets[0], cells)

    def take(self, rows: NDArray[np.int64], *, compact: bool = False) -> Rows:
        """The cells `rows`, ascending and distinct, made canonical; each chunk is decoded once.

        With `compact` values and gene positions are uint16 where that holds them all.
        """
        if self._index is None:
            self._index = RowIndex(self._offsets, self.shape[0], INDPTR_SLICE)
        starts, stops = self._index.spans(rows)
        indptr = np.concatenate([[0], np.cumsum(stops - starts)])
        first = np.flatnonzero(np.concatenate([[True], np.diff(rows) != 1])[: len(rows)])
        last = np.concatenate([first[1:], [len(rows)]])[: len(first)] - 1
        return self._gather(starts[first], stops[last], indptr, rows, compact)

    def _gather(
        self,
        starts: NDArray[np.int64],
        stops: NDArray[np.int64],
        indptr: NDArray[np.int64],
        cells: Sequence[int] | NDArray[np.int64],
        compact: bool = False,
    ) -> Rows:
        """Read stretches of entries, which make up `cells` at `indptr`."""
        n_vars, n = self.shape[1], indptr[-1]
        indices = empty(n, np.uint16 if compact and n_vars <= COUNTS else np.int32)
        data = empty(n, np.uint16 if compact and self._are_counts else self.dtype)
        with reading(self.name):
            if data.dtype == self.dtype:
                self._data.gather(starts, stops, data)
            elif not self._data.gather(starts, stops, data, COUNTS):
                self._are_counts = False  # nor will the rest be
                data = empty(n, self.dtype)
                self._data.gather(starts, stops, data)
            # Checked before the cast to int32, which could wrap a damaged position into the range.
            fine = self._indices.gather(starts, stops, indices, n_vars)
        if not fine:
            self._refuse_position(starts, stops, indptr, cells)
        rows = canonical(Rows(data, indices, indptr, n_vars), self.name, self._threads)
        return self._as_stored(rows, data.dtype)

    def _as_stored(self, rows: Rows, dtype: np.dtype[Any]) -> Rows:
        """Bring sums of repeated entries back to the stored type, or the compact one."""
        if rows.data.dtype == dtype:
            return rows
        for kind in (dtype, self.dtype):
            limits = None if kind.kind == "f" else np.iinfo(kind)
            low, high = rows.data.min(), rows.data.max()
            if limits is None or (low >= limits.min and high <= limits.max):
                return replace(rows, data=rows.data.astype(kind))
        raise InputError(
            f"{self.name}: entries of a gene that repeats in its cell sum to {rows.data.max():,}, "
            f"more than its type {self.dtype} holds: sum them (X.sum_duplicates()) and write it "
            "anew as float32"
        )

    def _refuse_position(
        self,
        starts: NDArray[np.int64],
        stops: NDArray[np.int64],
        indptr: NDArray[np.int64],
        cells: Sequence[int] | NDArray[np.int64],
    ) -> None:
        """Name the first entry with a gene position out of range."""
        n_vars, entry = self.shape[1], 0
        for low, high in zip(starts.tolist(), stops.tolist(), strict=True):
            stored = fetch(self._indices, low, high, self.name)
            wrong = (stored < 0) | (stored >= n_vars)
            if wrong.any():
                first = int(wrong.argmax())
                cell = cells[int(np.searchsorted(indptr, entry + first, side="right")) - 1]
                what = f"cell {cell} has gene position {stored[first]}, outside 0 to {n_vars - 1}"
                raise damaged(self.name, what)
            entry += high - low

    def decoded_bytes(self, rows: NDArray[np.int64]) -> int:
        """Bytes of the chunks that hold the cells `rows`, taking cells as equally long."""
        entries = self.cell_entries()
        found = 0.0
        for array in (self._data, self._indices):
            chunk = (getattr(array, "chunks", None) or (1,))[0]
            cells = max(1.0, chunk / max(entries, 1e-9))
            n_chunks = np.count_nonzero(np.diff(rows // cells)) + (len(rows) > 0)
            found += n_chunks * cells * entries * array.dtype.itemsize
        return int(found)

    @property
    def decoded(self) -> int:
        """Bytes decoded so far."""
        return self._data.decoded + self._indices.decoded

    def cell_entries(self) -> float:
        """Stored entries of a cell, on average."""
        return float(self._data.shape[0] / max(1, self.shape[0]))

    def close(self) -> None:
        """Forget the index, and close files; the next read makes and opens them anew."""
        self._index = None
        for array in (self._data, self._indices, self._indptr):
            array.close()


class RowIndex:
    """Where each cell's entries lie: 4 bytes a cell, and 8 for each `STEP` cells.

    Parameters
    ----------
    offsets
        Gives the offsets of the cells start to stop, stop's end included.
    n_obs
        Number of cells.
    step
        Cells whose offsets are asked for at once.
    """

    STEP = 128

    def __init__(
        self, offsets: Callable[[int, int], NDArray[np.int64]], n_obs: int, step: int
    ) -> None:
        self._lengths = np.empty(n_obs, np.uint32)
        self._bases = np.zeros(n_obs // self.STEP + 1, np.int64)
        step -= step % self.STEP
        for start in range(0, n_obs, step):
            stop = min(start + step, n_obs)
            found = offsets(start, stop)
            self._lengths[start:stop] = np.diff(found)
            bases = found[: stop - start : self.STEP]
            self._bases[start // self.STEP :][: len(bases)] = bases

    def spans(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First entry of each cell, and the one after its last."""
        starts, stops = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
        csr.spans(self._lengths, self._bases, self.STEP, rows, starts, stops)
        return starts, stops


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


class DenseMatrix:
    """A two-dimensional sliceable array (numpy, h5py, zarr), its non-zeros read as Rows."""

    is_sparse = False

    def __init__(self, array: Any, name: str) -> None:
        if len(array.shape) != 2:
            raise InputError(f"{name} has shape {tuple(array.shape)}, and must be cells x genes")
        self.shape = (int(array.shape[0]), int(array.shape[1]))
        self.dtype = plain_dtype(array.dtype, name)
        self.name = name
        self.decoded = 0
        self._array = array
        # A chunk along the cells is decoded whole, a shard only partly: whole shards if they fit.
        units = (getattr(array, "shards", None), getattr(array, "chunks", None))
        self._units = [int(unit[0]) for unit in units if unit]

    def row_bytes(self, start: int, stop: int) -> NDArray[np.int64]:
        """Bytes of each cell: its values dense, and sparse if none is zero."""
        row = self.shape[1] * (2 * self.dtype.itemsize + 4) + 8
        return np.full(stop - start, row, np.int64)

    def blocks(self, nbytes: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Row ranges of whole chunks where `nbytes` holds at least one chunk."""
        rows = max(1, (nbytes - 8) // int(self.row_bytes(0, 1)[0]))
        unit = next((unit for unit in self._units if 0 < unit <= rows), 1)
        rows -= rows % unit
        while start < stop:
            end = min(start + rows - start % unit, stop)
            yield start, end
            start = end

    def read(self, start: int, stop: int) -> Rows:
        """Cells start to stop, zeros left out (NaN kept)."""
        self.decoded += (stop - start) * self.shape[1] * self.dtype.itemsize
        return sparsify(fetch(self._array, start, stop, self.name), self.dtype)

    def take(self, rows: NDArray[np.int64], *, compact: bool = False) -> Rows:  # noqa: ARG002
        """The cells `rows`, ascending and distinct; near ones, and those of a chunk, together."""
        chunk = self._units[-1] if self._units else 1
        most = chunk * max(1, TOGETHER // (chunk * int(self.row_bytes(0, 1)[0])))
        apart = (np.diff(rows) > GAP) & (np.diff(rows // chunk) > 0)
        cuts = np.flatnonzero(apart | (np.diff(rows // most) > 0)) + 1
        parts = [
            self.read(int(near[0]), int(near[-1]) + 1).take(near - near[0])
            for near in np.split(rows, cuts)
            if len(near)
        ]
        return stack(parts, self.shape[1], self.dtype)

    def decoded_bytes(self, rows: NDArray[np.int64]) -> int:
        """Bytes of the chunks that hold the cells `rows`, ascending."""
        unit = min(self._units, default=1)
        n_units = np.count_nonzero(np.diff(rows // unit)) + (len(rows) > 0)
        return int(n_units) * unit * self.shape[1] * self.dtype.itemsize

    def cell_entries(self) -> float:
        """Genes: how many of them are not zero is told by reading alone."""
        return float(self.shape[1])

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
