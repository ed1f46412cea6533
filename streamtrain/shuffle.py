"""Cells enter in storage order with their places in a permutation; they leave by place, in windows.

An external shuffle: the places are cut into even ranges, each with a file (a bucket) that the cells
of that range are appended to as they come. A bucket is a random sample of the cells, so buckets are
alike in size, whatever the order of the source. One that does not fit in memory is read more than
once, a part of its places at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.atomic import fsync
from streamtrain.kernels import csr
from streamtrain.partial import opened, read_exactly, write_all
from streamtrain.rows import Rows
from streamtrain.sharded import Named

# Files of one folder; with more, the cells that a block of the source gives each are too few to be
# worth the 30 us of opening and writing a file.
MOST = 1024
_HEAD = np.dtype("<i8")  # three of them: cells, bytes of names, entries
_CELL = np.dtype([("place", "<i8"), ("length", "<u4"), ("name", "<u4"), ("sum", "<u8")])
CELL_BYTES = _CELL.itemsize
_OFFSET = np.dtype("<i8")

Stretch = tuple[Path, int, int]  # of a file, from and to


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
        self._width = bucket_width(n_obs, n_buckets)
        self._folder = folder

    def _path(self, bucket: int) -> Path:
        return self._folder / f"{bucket}.bucket"

    def append(self, cells: Named, places: NDArray[np.int64]) -> None:
        """Append cells, each to the bucket of its place."""
        for bucket, parts in _cut(cells, places, self._width, self._index):
            self._write(bucket, parts)

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
        whole = [(path, 0, self.sizes[bucket])]
        return window(whole, lo, hi, self.n_vars, self._dtype, path)


def _cut(
    cells: Named, places: NDArray[np.int64], width: int, index: np.dtype[Any]
) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Sort cells by place; give each bucket that has some, and what is to be written there."""
    order = np.argsort(places, kind="stable")
    bucket_of = places[order] // width
    rows = cells.rows.take(order)
    ends = _offsets(cells.ends)
    names_ptr = csr.take_indptr(ends, order)
    text = np.empty(len(cells.text), np.uint8)
    csr.take_values(cells.text, ends, order, names_ptr, text)
    meta = np.empty(len(order), _CELL)
    meta["place"], meta["sum"] = places[order], cells.sums[order]
    meta["length"], meta["name"] = np.diff(rows.indptr), np.diff(names_ptr)
    indices = rows.indices.astype(index, copy=False)
    edges = np.flatnonzero(np.diff(bucket_of, prepend=-1)).tolist()
    for lo, hi in zip(edges, [*edges[1:], len(order)], strict=True):
        entries, names = _span(rows.indptr, lo, hi), _span(names_ptr, lo, hi)
        head = np.array([hi - lo, names.stop - names.start, entries.stop - entries.start], _HEAD)
        first = head.tobytes() + meta[lo:hi].tobytes() + text[names].tobytes()
        yield int(bucket_of[lo]), (first, indices[entries], rows.data[entries])


def write_run(
    path: Path, blocks: Iterator[tuple[Named, NDArray[np.int64]]], n_obs: int, n_vars: int,
    n_buckets: int,
) -> None:  # fmt: skip
    """Write cells and their places to one file, each block of them by bucket.

    At its end stands where each bucket begins and the last one ends, for each block, int64, and
    the number of blocks.
    """
    width, index = bucket_width(n_obs, n_buckets), index_type(n_vars)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        end, tables = 0, []
        for cells, places in blocks:
            sizes = np.zeros(n_buckets + 1, _OFFSET)
            sizes[0] = end
            for bucket, parts in _cut(cells, places, width, index):
                start = end
                for part in parts:
                    end = write_all(handle, part, end, path)
                sizes[bucket + 1] = end - start
            tables.append(np.cumsum(sizes))
        write_all(handle, np.concatenate([*tables, [len(tables)]]).astype(_OFFSET), end, path)
        os.fsync(handle)
    finally:
        os.close(handle)


def run_stretches(path: Path, first: int, last: int, n_buckets: int) -> Iterator[Stretch]:
    """Where in the file of `write_run` the buckets first to last stand."""
    with opened(path) as handle:
        at, table = os.fstat(handle).st_size - _OFFSET.itemsize, n_buckets + 1
        (n_blocks,) = read_exactly(handle, 1, _OFFSET, at, path).tolist()
        for block in range(n_blocks):
            here = at + _OFFSET.itemsize * (table * (block - n_blocks) + first)
            found = read_exactly(handle, last + 2 - first, _OFFSET, here, path)
            yield path, int(found[0]), int(found[-1])


def window(
    stretches: Iterable[Stretch], lo: int, hi: int, n_vars: int, dtype: Any, what: object
) -> Named:
    """Read the cells of the places `lo` to `hi` from all stretches that have some.

    Raises
    ------
    OSError
        If not all are there; `what` should have had them.
    """
    pieces = [piece for part in stretches for piece in _pieces(*part, lo, hi, n_vars, dtype)]
    if sum(len(piece.chosen) for piece in pieces) != hi - lo:
        raise OSError(f"{what} lacks cells: something else wrote to it; delete its folder")
    cells = np.empty(hi - lo, _CELL)
    for piece in pieces:
        cells[piece.at] = piece.cells[piece.chosen]
    columns = []
    for field, kind in (("name", np.uint8), ("length", index_type(n_vars)), ("length", dtype)):
        indptr = _offsets(np.cumsum(cells[field], dtype=np.int64))
        columns.append((field, indptr, np.empty(indptr[-1], kind)))
    for path, group in groupby(pieces, lambda piece: piece.path):
        with opened(path) as handle:
            for piece in group:
                for field, indptr, out in columns:
                    piece.place(handle, field, indptr, out)
    (_, names, text), (_, indptr, indices), (_, _, data) = columns
    return Named(Rows(data, indices, indptr, n_vars), text, names[1:], cells["sum"].copy())


def _pieces(
    path: Path, at: int, stop: int, lo: int, hi: int, n_vars: int, dtype: Any
) -> Iterator[_Piece]:
    """Of each piece in a stretch of a file, the cells with places `lo` to `hi`."""
    entry = index_type(n_vars).itemsize + np.dtype(dtype).itemsize
    with opened(path) as handle:
        while at < stop:
            n, text, entries = read_exactly(handle, 3, _HEAD, at, path).tolist()
            at += 3 * _HEAD.itemsize
            cells = read_exactly(handle, n, _CELL, at, path)
            at += n * _CELL.itemsize
            chosen = np.flatnonzero((cells["place"] >= lo) & (cells["place"] < hi))
            if len(chosen):
                yield _Piece(path, cells, chosen, cells["place"][chosen] - lo, at)
            at += text + entries * entry


@dataclass(slots=True)
class _Piece:
    """What one block gave a bucket: its cells, which of them are wanted, their places among those.

    `offset` is where what comes next in the file begins: names, then gene positions, then values.
    """

    path: Path
    cells: NDArray[Any]
    chosen: NDArray[np.int64]
    at: NDArray[np.int64]
    offset: int

    def place(self, handle: int, field: str, indptr: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Read the wanted cells of what comes next, of lengths `field`, to their places."""
        ends = np.cumsum(self.cells[field], dtype=np.int64)
        starts = ends - self.cells[field]
        # Of a bucket that is read in parts, only the stretch of these cells.
        first, last = int(starts[self.chosen[0]]), int(ends[self.chosen[-1]])
        width = out.dtype.itemsize
        raw = read_exactly(handle, last - first, out.dtype, self.offset + first * width, self.path)
        csr.place(raw, starts[self.chosen] - first, ends[self.chosen] - first, self.at, indptr, out)
        self.offset += int(ends[-1]) * width


def bucket_width(n_obs: int, n_buckets: int) -> int:
    """Places of each bucket."""
    return max(1, -(-n_obs // n_buckets))


def index_type(n_vars: int) -> np.dtype[Any]:
    """Type of gene positions on scratch: two bytes where the genes allow."""
    return np.dtype(np.uint16 if n_vars <= 2**16 else np.int32)


def _offsets(ends: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), ends])


def _span(indptr: NDArray[np.int64], lo: int, hi: int) -> slice:
    return slice(int(indptr[lo]), int(indptr[hi]))
