"""Iterators that read ahead: the next block is fetched while the present one is worked on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from streamtrain.rows import Rows
from streamtrain.sources.base import Source
from streamtrain.threads import WORKER

T = TypeVar("T")
_AHEAD = "ahead"  # what the threads that read ahead are called


def ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield `items`, making the next one in a thread while the caller works on the present one.

    Two items are alive at a time, no more: a queue would hold a third while waiting to put it.
    """
    end = object()
    executor = ThreadPoolExecutor(1, _AHEAD)
    try:
        pending = executor.submit(next, items, end)
        while True:
            item = pending.result()
            if item is end:
                return
            pending = executor.submit(next, items, end)
            yield item  # type: ignore[misc]
    finally:
        # An abandoned iterator may be collected in its own thread, or in one that it waits for.
        inside = threading.current_thread().name.startswith((WORKER, _AHEAD))
        executor.shutdown(wait=not inside, cancel_futures=inside)


def sweep(
    source: Source,
    selected: NDArray[np.int64] | None,
    nbytes: int,
    most: int | None = None,
    start: int = 0,
) -> Iterator[tuple[int, Rows]]:
    """Read the selected cells in storage order, blocks of at most `nbytes` decoded.

    Parameters
    ----------
    selected
        Row numbers, ascending, or None for all.
    most
        Cells that a block may hold; None for any number.
    start
        Position of the cell to begin with.

    Yields
    ------
    position, rows
        Cells and the position of the first of them among the selected.
    """
    # Asked for here, not while reading ahead: a source that must be transposed first does so in
    # the caller's thread, where an interrupt reaches it.
    low, high = start, source.n_obs
    if selected is not None:
        wanted = selected[start:]
        low, high = (int(wanted[0]), int(wanted[-1]) + 1) if len(wanted) else (0, 0)
    ranges = source.blocks(nbytes, low, high)
    return ahead(_blocks(source, selected, ranges, most))


def takes(source: Source, rows: NDArray[np.int64], cells: int) -> Iterator[tuple[int, Rows]]:
    """Take cells that lie apart, `cells` at a time, decoding the chunks alone that hold them.

    Parameters
    ----------
    rows
        Row numbers, ascending and distinct.
    cells
        Number of cells, which come compact (see `Source.take`).

    Yields
    ------
    position, rows
        Cells and the position of the first of them among `rows`.
    """
    starts = range(0, len(rows), cells)
    parts = ((start, rows[start : start + cells]) for start in starts)
    return ahead((start, source.take(part, compact=True)) for start, part in parts)


def _blocks(
    source: Source,
    selected: NDArray[np.int64] | None,
    ranges: Iterator[tuple[int, int]],
    most: int | None,
) -> Iterator[tuple[int, Rows]]:
    pieces = (
        (first, min(first + step, stop))
        for start, stop in ranges
        for step in (most or stop - start,)
        for first in range(start, stop, step)
    )
    for start, stop in pieces:
        if selected is None:
            yield start, source.read(start, stop)
            continue
        lo, hi = np.searchsorted(selected, (start, stop)).tolist()
        if lo < hi:
            first, last = int(selected[lo]), int(selected[hi - 1]) + 1
            rows = source.read(first, last)
            if hi - lo < rows.n_obs:
                rows = rows.take(selected[lo:hi].astype(np.int64) - first)
            yield lo, rows
