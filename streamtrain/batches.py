"""A plan and the spilled cells in, scaled mini-batches in plan order out, inside a byte budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.rows import Rows
from streamtrain.sampling import Plan
from streamtrain.scaling import Scaled, Scaler
from streamtrain.spill import Spill
from streamtrain.streaming import ahead


@dataclass(frozen=True, slots=True)
class Batch:
    """One mini-batch: the epoch it belongs to, counted from 0, and its scaled cells."""

    epoch: int
    cells: Scaled


def batches(
    plan: Plan,
    spill: Spill,
    record: Callable[[NDArray[np.int64]], NDArray[np.int64]],
    codes: NDArray[np.int32],
    scaler: Scaler,
    window_bytes: int,
    report: Callable[[int, NDArray[Any]], None] | None = None,
) -> Iterator[Batch]:
    """Serve every batch of `plan`, in order.

    Cells are gathered a window at a time: as many whole batches as fit in `window_bytes`, read in
    storage order, across the ends of epochs. The next window is read and the next batch scaled
    while the solver works. How windows fall changes nothing in the batches.

    Parameters
    ----------
    record
        Gives the number of planned cells on scratch by their position in the plan.
    codes
        Class of each cell of the plan.
    window_bytes
        Size of a window; two are alive at a time.
    report
        Called with the number of each epoch, from 0, and its positions before they are read.
    """

    def planned() -> Iterator[tuple[int, NDArray[np.int64]]]:
        for epoch in range(plan.epochs):
            order = plan.epoch(epoch)
            if report is not None:
                report(epoch, order)
            for start in range(0, len(order), plan.batch_size):
                # A copy, which does not keep the whole epoch alive beside the next.
                yield epoch, order[start : start + plan.batch_size].astype(np.int64)

    def windows() -> Iterator[tuple[list[tuple[int, NDArray[np.int64]]], Rows]]:
        waiting: list[tuple[int, NDArray[np.int64]]] = []
        held = 0
        for epoch, positions in planned():
            size = spill.entries(record(positions)) * spill.entry_bytes + 8 * len(positions)
            if waiting and held + size > window_bytes:
                yield waiting, gather(waiting)
                waiting, held = [], 0
            waiting.append((epoch, positions))
            held += size
        yield waiting, gather(waiting)

    def gather(window: list[tuple[int, NDArray[np.int64]]]) -> Rows:
        return spill.gather(record(np.concatenate([positions for _, positions in window])))

    def scaled() -> Iterator[Batch]:
        for window, rows in ahead(windows()):
            start = 0
            for epoch, positions in window:
                stop = start + len(positions)
                # No name for the slice: it would keep the window alive beside the next two.
                yield Batch(epoch, scaler(rows.slice(start, stop).with_codes(codes[positions])))
                start = stop

    return ahead(scaled())
