"""Cells enter in storage order with their places in a permutation; they leave by place, in windows.

An external shuffle: the places are cut into even ranges, each with a file (a bucket) that the cells
of that range are appended to as they come. A bucket is a random sample of the cells, so buckets are
alike in size, whatever the order of the source. One that does not fit in memory is read more than
once, a part of its places at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.atomic import fsync
from streamtrain.kernels import csr
from streamtrain.partial import read_exactly, write_all
from streamtrain.rows import Rows
from streamtrain.sharded import Named

# Files of one folder; with more, the cells that a block of the source gives each are too few to be
# worth the 30 us of opening and writing a file.
MOST = 1024
_HEAD = np.dtype("<i8")  # three of them: cells, bytes of names, entries
_CELL = np.dtype([("place", "<i8"), ("length", "<u4"), ("name", "<u4"), ("sum", "<u8")])
CELL_BYTES = _CELL.itemsize


class Buckets:
    """The files of an external shuffle.

    Parameters
    ----------
    folder
        Where they are.
    n_obs, n_vars
        Numbers of cells and genes.
    dtype
        Of the values.
    n_buckets
        Their number.
    sizes
        Bytes of each to keep, of those that are there; None for none.
    """

    def __init__(
        self, folder: Path, n_obs: int, n_vars: int, dtype: Any, n_buckets: int,
        sizes: list[int] | None,
    ) -> None:  # fmt: skip
        self.n_vars, self.n_obs = n_vars, n_obs
        self.sizes = [0] * n_buckets if sizes is None else list(sizes)
        self._dtype, self._index = np.dtype(dtype), index_type(n_vars)
        self._width = max(1, -(-n_obs // n_buckets))
        self._folder = folder

    def _path(self, bucket: int) -> Path:
        return self._folder / f"{bucket}.bucket"

    def append(self, cells: Named, places: NDArray[np.int64]) -> None:
        """Append cells, each to the bucket of its place."""
        bucket_of = places // self._width
        order = np.argsort(bucket_of, kind="stable")
        rows = cells.rows.take(order)
        ends = _offsets(cells.ends)
        names_ptr = csr.take_indptr(ends, order)
        text = np.empty(len(cells.text), np.uint8)
        csr.take_values(cells.text, ends, order, names_ptr, text)
        meta = np.empty(len(order), _CELL)
        meta["place"], meta["sum"] = places[order], cells.sums[order]
        meta["length"], meta["name"] = np.diff(rows.indptr), np.diff(names_ptr)
        indices = rows.indices.astype(self._index, copy=False)
        edges = np.flatnonzero(np.diff(bucket_of[order], prepend=-1)).tolist()
        for lo, hi in zip(edges, [*edges[1:], len(order)], strict=True):
            entries, names = _span(rows.indptr, lo, hi), _span(names_ptr, lo, hi)
            head = np.array(
                [hi - lo, names.stop - names.start, entries.stop - entries.start], _HEAD
            )
            first = head.tobytes() + meta[lo:hi].tobytes() + text[names].tobytes()
            bucket = int(bucket_of[order[lo]])
            self._write(bucket, (first, indices[entries], rows.data[entries]))

    def _write(self, bucket: int, parts: tuple[Any, ...]) -> None:
        path = self._path(bucket)
        # Opened for each write: a process may hold few files open, and 1,024 by default.
        handle = os.open(path, os.O_WRONLY | os.O_CREAT)
        try:
            end = self.sizes[bucket]
            if os.fstat(handle).st_size > end:  # what a killed process wrote after its last commit
                os.ftruncate(handle, end)
            for part in parts:
                end = write_all(handle, part, end, path)
            self.sizes[bucket] = end
        finally:
            os.close(handle)

    def intact(self, start: int) -> bool:
        """Whether the buckets of the places from `start` on are there."""
        needed = list(enumerate(self.sizes))[start // self._width :]
        paths = ((self._path(bucket), size) for bucket, size in needed if size)
        return all(path.is_file() and path.stat().st_size >= size for path, size in paths)

    def sync(self) -> None:
        """Have the system write them to the disk."""
        for bucket, size in enumerate(self.sizes):
            if size:
                handle = os.open(self._path(bucket), os.O_RDONLY)
                os.fsync(handle)
                os.close(handle)
        fsync(self._folder)

    def windows(self, start: int, nbytes: int) -> Iterator[Named]:
        """Cells by place from `start` on, windows of about `nbytes`.

        A bucket's file is deleted by `delete_before`, once what it holds is safe elsewhere.
        """
        while start < self.n_obs:
            bucket = start // self._width
            stop = min((bucket + 1) * self._width, self.n_obs)
            parts = -(-self.sizes[bucket] // nbytes)
            step = max(1, -(-self._width // max(1, parts)))
            for lo in range(start, stop, step):
                yield self._window(bucket, lo, min(lo + step, stop))
            start = stop

    def delete_before(self, place: int) -> None:
        """Delete the buckets of the places before `place`."""
        for bucket in range(min(place // self._width, len(self.sizes))):
            self._path(bucket).unlink(missing_ok=True)

    def _window(self, bucket: int, lo: int, hi: int) -> Named:
        path = self._path(bucket)
        handle = os.open(path, os.O_RDONLY)
        try:
            pieces = list(self._pieces(handle, path, self.sizes[bucket], lo, hi))
            if sum(len(piece.chosen) for piece in pieces) != hi - lo:
                raise OSError(f"{path} lacks cells: something else wrote to it; delete its folder")
            cells = np.empty(hi - lo, _CELL)
            for piece in pieces:
                cells[piece.at] = piece.cells[piece.chosen]
            columns = []
            for field, dtype in (
                ("name", np.uint8),
                ("length", self._index),
                ("length", self._dtype),
            ):
                indptr = _offsets(np.cumsum(cells[field], dtype=np.int64))
                out = np.empty(indptr[-1], dtype)
                for piece in pieces:
                    piece.place(handle, path, field, indptr, out)
                columns.append((out, indptr))
        finally:
            os.close(handle)
        (text, names), (indices, indptr), (data, _) = columns
        return Named(Rows(data, indices, indptr, self.n_vars), text, names[1:], cells["sum"].copy())

    def _pieces(self, handle: int, path: Path, size: int, lo: int, hi: int) -> Iterator[_Piece]:
        """Of each append to a bucket, the cells with places `lo` to `hi`."""
        at = 0
        while at < size:
            n, text, entries = read_exactly(handle, 3, _HEAD, at, path).tolist()
            at += 3 * _HEAD.itemsize
            cells = read_exactly(handle, n, _CELL, at, path)
            at += n * _CELL.itemsize
            chosen = np.flatnonzero((cells["place"] >= lo) & (cells["place"] < hi))
            if len(chosen):
                yield _Piece(cells, chosen, cells["place"][chosen] - lo, at)
            at += text + entries * (self._index.itemsize + self._dtype.itemsize)


@dataclass(slots=True)
class _Piece:
    """What one append wrote: its cells, which of them are wanted, their places among those wanted.

    `offset` is where what comes next in the file begins: names, then gene positions, then values.
    """

    cells: NDArray[Any]
    chosen: NDArray[np.int64]
    at: NDArray[np.int64]
    offset: int

    def place(
        self, handle: int, path: Path, field: str, indptr: NDArray[np.int64], out: NDArray[Any]
    ) -> None:
        """Read the wanted cells of what comes next, of lengths `field`, to their places."""
        ends = np.cumsum(self.cells[field], dtype=np.int64)
        starts = ends - self.cells[field]
        # Of a bucket that is read in parts, only the stretch that these cells lie in.
        first, last = int(starts[self.chosen[0]]), int(ends[self.chosen[-1]])
        width = out.dtype.itemsize
        raw = read_exactly(handle, last - first, out.dtype, self.offset + first * width, path)
        csr.place(raw, starts[self.chosen] - first, ends[self.chosen] - first, self.at, indptr, out)
        self.offset += int(ends[-1]) * width


def index_type(n_vars: int) -> np.dtype[Any]:
    """Type of gene positions on scratch: two bytes where the genes allow."""
    return np.dtype(np.uint16 if n_vars <= 2**16 else np.int32)


def _offsets(ends: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), ends])


def _span(indptr: NDArray[np.int64], lo: int, hi: int) -> slice:
    return slice(int(indptr[lo]), int(indptr[hi]))
