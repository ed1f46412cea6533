"""Matrices not stored by cell: their entries enter, and leave by cell after one external sort."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.budget import format_bytes
from streamtrain.kernels import transpose
from streamtrain.progress import stage
from streamtrain.rows import Rows
from streamtrain.scratch import Room, ScratchArray, place_of, require_free
from streamtrain.sources.damage import damaged, fetch, plain_dtype
from streamtrain.sources.matrix import CsrMatrix, check_compressed
from streamtrain.threads import Threads

logger = logging.getLogger(__name__)

GROUPS = 1 << 20  # rows are counted in at most this many groups: 8 MB, whatever the atlas


class CooMatrix:
    """Entries in any order, sorted by cell through scratch files at the first read.

    Parameters
    ----------
    data, rows, cols
        Value, cell and gene of each entry: numpy, h5py or zarr arrays, or anything sliceable.
    shape
        Cells, genes.
    name
        What messages call the matrix.
    room
        Within which it is sorted; the sorted matrix is gone after `close`.
    threads
        They share the checks of what is read; None for all CPUs.
    """

    is_sparse = True
    _order = "not sorted by cell"

    def __init__(
        self,
        data: Any,
        rows: Any,
        cols: Any,
        shape: Any,
        name: str,
        room: Room | None = None,
        threads: Threads | None = None,
    ) -> None:
        self.shape = (int(shape[0]), int(shape[1]))
        self.dtype = plain_dtype(data.dtype, name)
        self.name = name
        self._data, self._indices, self._cols = data, rows, cols
        self._room, self._threads = room or Room(), threads
        self._files: list[ScratchArray] = []
        self._rows: CsrMatrix | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": [], "_rows": None, "_threads": None}

    def _by_row(self) -> CsrMatrix:
        if self._rows is None:
            entries = self._data.shape[0]
            need = entries * (8 + self.dtype.itemsize) + 8 * (self.shape[0] + 1)
            require_free(
                self._room.scratch, need, f"transposing {self.name}, which is {self._order},"
            )
            logger.warning(
                "%s is %s; transposing it through %s of scratch in %s",
                self.name, self._order, format_bytes(need), place_of(self._room.scratch),
            )  # fmt: skip
            try:
                with stage("Transposing", entries, " entries", show=self._room.progress) as bar:
                    # Three times over all entries: counted, dealt out, sorted.
                    self._rows = self._transpose(lambda n: bar.update(n / 3))
            except BaseException:
                self.close()
                raise
        return self._rows

    def _slices(self, entry_bytes: int) -> Iterator[tuple[int, int]]:
        step = max(1, self._room.memory // 2 // entry_bytes)
        for start in range(0, self._data.shape[0], step):
            yield start, min(start + step, self._data.shape[0])

    def _row_slice(self, start: int, stop: int) -> NDArray[Any]:
        rows = fetch(self._indices, start, stop, self.name)
        return rows if rows.dtype in (np.int32, np.int64) else rows.astype(np.int64)

    def _transpose(self, done: Callable[[int], object]) -> CsrMatrix:
        n_obs, n_vars = self.shape
        width = max(1, -(-n_obs // GROUPS))
        counts = self._count(width, done)
        # A bucket's cells are sorted in memory: entries in and out, and its offsets.
        entry = 2 * (4 + self.dtype.itemsize) + 4
        bucket_of = _cut_groups(counts * entry + 8 * width, self._room.memory // 2)
        edges = np.flatnonzero(np.diff(bucket_of, prepend=-1))  # first group of each bucket
        first_row = edges.astype(np.int64) * width
        size = np.add.reduceat(counts, edges) if len(edges) else np.zeros(0, np.int64)
        start = np.cumsum(size) - size

        total = self._data.shape[0]
        types = (np.int32, np.int32, self.dtype, np.int64)
        self._files = [ScratchArray(self._room.scratch, t) for t in types]
        rows, cols, values, offsets = self._files
        self._scatter((rows, cols, values), width, bucket_of, first_row, start, done)

        # Buckets follow one another by row, so each is sorted in its own place in the files.
        stops = np.append(first_row, n_obs)[1:]
        for low, n, first, stop in zip(start, size, first_row, stops, strict=True):
            part = slice(int(low), int(low + n))
            indptr = np.zeros(stop - first + 1, np.int64)
            sorted_cols, sorted_values = np.empty(n, np.int32), np.empty(n, self.dtype)
            transpose.sort_by_row(
                rows[part], cols[part], values[part], indptr, sorted_cols, sorted_values
            )
            cols.write(sorted_cols, int(low))
            values.write(sorted_values, int(low))
            offsets.write(indptr[:-1] + low, int(first))
            done(int(n))
        offsets.write(np.array([total]), n_obs)
        rows.close()
        return CsrMatrix(values, cols, offsets, (n_obs, n_vars), self.name, self._threads)

    def _count(self, width: int, done: Callable[[int], object]) -> NDArray[np.int64]:
        n_obs = self.shape[0]
        counts = np.zeros(-(-n_obs // width), np.int64)
        for low, high in self._slices(2 * self._indices.dtype.itemsize):
            rows = self._row_slice(low, high)
            bad = transpose.count_groups(rows, n_obs, width, counts)
            if bad >= 0:
                what = f"entry {low + bad} has cell position {rows[bad]}, outside 0 to {n_obs - 1}"
                raise damaged(self.name, what)
            done(high - low)
        return counts

    def _scatter(
        self,
        files: tuple[ScratchArray, ScratchArray, ScratchArray],
        width: int,
        bucket_of: NDArray[np.int64],
        first_row: NDArray[np.int64],
        start: NDArray[np.int64],
        done: Callable[[int], object],
    ) -> None:
        """Append every entry to its bucket's stretch of the files."""
        at, ends = start.copy(), np.empty(len(start), np.int64)
        wide = 2 * self._indices.dtype.itemsize + self._data.dtype.itemsize
        for low, high in self._slices(wide + 2 * self.dtype.itemsize + 16):
            n = high - low
            out = [np.empty(n, file.dtype) for file in files]
            rows = self._row_slice(low, high)
            values = fetch(self._data, low, high, self.name)
            values = np.ascontiguousarray(values, dtype=self.dtype)
            cols = fetch(self._cols, low, high, self.name)
            transpose.part(rows, cols, values, width, bucket_of, first_row, ends, *out)
            begin = 0
            for b, end in enumerate(ends.tolist()):
                if end > begin:
                    for file, array in zip(files, out, strict=True):
                        file.write(array[begin:end], int(at[b]))
                    at[b] += end - begin
                begin = end
            done(n)

    def row_bytes(self, start: int, stop: int) -> NDArray[np.int64]:
        """Bytes of each cell."""
        return self._by_row().row_bytes(start, stop)

    def blocks(self, nbytes: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Row ranges cut by their non-zeros."""
        return self._by_row().blocks(nbytes, start, stop)

    def read(self, start: int, stop: int) -> Rows:
        """Cells start to stop."""
        return self._by_row().read(start, stop)

    def take(self, rows: NDArray[np.int64], *, compact: bool = False) -> Rows:
        """The cells `rows`, ascending and distinct."""
        return self._by_row().take(rows, compact=compact)

    def decoded_bytes(self, rows: NDArray[np.int64]) -> int:
        """Bytes of the cells `rows`."""
        return int(len(rows) * self.cell_entries() * (4 + self.dtype.itemsize))

    @property
    def decoded(self) -> int:
        """Bytes of cells read so far from scratch."""
        return 0 if self._rows is None else self._rows.decoded

    def cell_entries(self) -> float:
        """Stored entries of a cell, on average."""
        return float(self._data.shape[0] / max(1, self.shape[0]))

    def close(self) -> None:
        """Give the scratch back."""
        self._rows = None
        while self._files:
            self._files.pop().close()


class CscMatrix(CooMatrix):
    """Compressed sparse columns, turned into rows through scratch files at the first read.

    Parameters
    ----------
    data, indices, indptr
        numpy, h5py or zarr arrays.
    shape, name, room, threads
        As of `CooMatrix`.
    order
        What messages say of how the matrix is stored.
    """

    def __init__(
        self,
        data: Any,
        indices: Any,
        indptr: Any,
        shape: Any,
        name: str,
        room: Room | None = None,
        order: str = "stored by gene (CSC)",
        threads: Threads | None = None,
    ) -> None:
        cols = _Columns(indptr, int(shape[1]), name)
        super().__init__(data, indices, cols, shape, name, room, threads)
        self._order = order
        check_compressed(data, indices, indptr, self.shape[1], name)


class _Columns:
    """The gene of each entry of compressed columns, sliceable."""

    def __init__(self, indptr: Any, n_vars: int, name: str) -> None:
        self._indptr, self._n_vars, self._name = indptr, n_vars, name
        self._offsets: NDArray[np.int64] | None = None

    def __getitem__(self, part: slice) -> NDArray[np.int32]:
        if self._offsets is None:
            offsets = fetch(self._indptr, 0, self._n_vars + 1, self._name).astype(np.int64)
            if np.any(np.diff(offsets) < 0):
                gene = int(np.argmax(np.diff(offsets) < 0))
                raise damaged(self._name, f"the offsets (indptr) at gene {gene} do not ascend")
            self._offsets = offsets
        first = int(np.searchsorted(self._offsets, part.start, side="right")) - 1
        last = int(np.searchsorted(self._offsets, part.stop, side="left"))
        edges = np.clip(self._offsets[first : last + 1], part.start, part.stop)
        return np.repeat(np.arange(first, last, dtype=np.int32), edges[1:] - edges[:-1])


def _cut_groups(sizes: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """Bucket of each group of rows: consecutive, each of one group or at most `limit` bytes."""
    ends = np.cumsum(sizes)
    bucket_of = np.empty(len(sizes), np.int64)
    first = done = bucket = 0
    while first < len(sizes):
        last = max(first + 1, int(np.searchsorted(ends, done + limit, side="right")))
        bucket_of[first:last] = bucket
        first, done, bucket = last, int(ends[last - 1]), bucket + 1
    return bucket_of
