"""A plan, a source and a byte budget enter; how cells come from disk, and at what cost, leaves."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from streamtrain.budget import format_bytes
from streamtrain.errors import InputError
from streamtrain.ordered import cells_of, windows
from streamtrain.sampling import Plan
from streamtrain.sources.base import Source

logger = logging.getLogger(__name__)

Name = Literal["memory", "sweeps", "scratch", "plan order"]

# Bytes a second on two cores, measured on cells of 2,550 entries: decoding blosc and deflate (a
# third of it by h5py and zarr themselves); scratch in the page cache; on the disk beyond it, in
# order and cell by cell.
DECODE, WRITE, READ, DISK, SCATTERED = 1.2e9, 1.5e9, 2.5e9, 0.5e9, 0.1e9
RARE = 0.25  # share of the room for cells of rare classes, which stay decoded between sweeps
_BUCKETS = 200  # windows in plan order on scratch: two open files each, of the usual 1,024
_SAMPLED = 8  # windows whose cells and bytes are counted, the others taken as like them


@dataclass(frozen=True, slots=True)
class Strategy:
    """How the cells of a plan come from disk; bytes are predictions, or what was done.

    Attributes
    ----------
    name
        "memory": decoded once, and held; "scratch": decoded once, and read from scratch in plan
        order; "plan order": decoded once, and written to scratch in the order of the windows that
        need them; "sweeps": decoded anew for each window of batches.
    window
        Batches whose cells "sweeps" and "plan order" keep together.
    decoded, written, read, held
        Bytes of chunks decoded, of cells written to and read from scratch, of cells in memory.
    seconds
        What they take, about.
    """

    name: Name
    window: int
    decoded: float
    written: float
    read: float
    held: float
    seconds: float

    def __str__(self) -> str:
        parts = {
            "decoded": self.decoded, "held": self.held, "written to scratch": self.written,
            "read from it": self.read,
        }  # fmt: skip
        words = ", ".join(f"{format_bytes(n)} {what}" for what, n in parts.items() if n)
        return f"{self.name} ({words}; {self.seconds:.1f} s)"


@dataclass(frozen=True, slots=True)
class Means:
    """What a machine has for it: bytes of memory for cells, of free disk, of page cache."""

    room: float
    disk: float
    cache: float


def choose(
    plan: Plan,
    source: Source,
    row: Callable[[NDArray[np.int64]], NDArray[np.int64]],
    drawn: NDArray[np.int64],
    cell_bytes: float,
    means: Means,
    wanted: str = "auto",
) -> Strategy:
    """Cost every strategy, log them, and give the one that takes the least time.

    Parameters
    ----------
    row
        Gives the row numbers of planned cells in the source.
    drawn
        Planned cells that any epoch takes, ascending.
    cell_bytes
        Bytes of a cell as it is kept.
    wanted
        A strategy's name to take that one, or "auto".

    Raises
    ------
    InputError
        If no strategy, or not the wanted one, fits in the room and the disk.
    """
    n_batches = plan.epochs * -(-plan.epoch_size // plan.batch_size)
    total = plan.epochs * plan.epoch_size * cell_bytes
    distinct = len(drawn) * cell_bytes
    once = source.decoded_bytes(row(drawn))
    batch = plan.batch_size * cell_bytes
    found = []
    if distinct <= means.room:
        found.append(Strategy("memory", 0, once, 0, 0, distinct, once / DECODE))
    if distinct <= means.disk:
        rates = (WRITE, READ) if distinct <= means.cache else (DISK, SCATTERED)
        seconds = once / DECODE + distinct / rates[0] + total / rates[1]
        found.append(Strategy("scratch", 0, once, distinct, total, 0, seconds))
    window = window_in_cache(plan, cell_bytes, means.cache)
    if window and (distinct > means.cache or wanted == "plan order"):
        n_windows = -(-n_batches // window)
        cells, _ = _of_windows(plan, source, row, window, n_windows)
        written = cells * cell_bytes
        if written <= means.disk:
            seconds = once / DECODE + written / DISK + total / DISK
            found.append(Strategy("plan order", window, once, written, total, 0, seconds))
    # Two windows are in memory, the one that is served and the next, and cells of rare classes.
    room = means.room * (1 - RARE)
    window = min(n_batches, max(1, int(room / 2 // batch)))
    held = 2 * window * batch
    if held <= room:
        _, decoded = _of_windows(plan, source, row, window, -(-n_batches // window))
        found.append(Strategy("sweeps", window, decoded, 0, 0, held, decoded / DECODE))
    for strategy in found:
        logger.debug("possible: %s", strategy)
    possible = [s for s in found if wanted in ("auto", s.name)]
    if not possible:
        what = "any strategy" if wanted == "auto" else f"strategy={wanted!r}"
        raise InputError(
            f"memory leaves {format_bytes(means.room)} for cells and scratch has "
            f"{format_bytes(means.disk)} free, too little for {what}: {len(drawn):,} cells of "
            f"{format_bytes(cell_bytes)} are drawn, {plan.batch_size:,} a batch; raise memory, "
            "lower batch_size, or pass scratch=FOLDER (--scratch) on a larger disk"
        )
    best = min(possible, key=lambda s: s.seconds)
    logger.info("cells come by %s", best)
    return best


def window_in_cache(plan: Plan, cell_bytes: float, cache: float) -> int:
    """Batches of a window that is kept on scratch together; 0 where there would be too many.

    It is read at random, so that the page cache should hold it.
    """
    n_batches = plan.epochs * -(-plan.epoch_size // plan.batch_size)
    window = min(n_batches, max(1, int(cache / 4 / (plan.batch_size * cell_bytes))))
    return window if n_batches <= _BUCKETS * window else 0


def _of_windows(
    plan: Plan,
    source: Source,
    row: Callable[[NDArray[np.int64]], NDArray[np.int64]],
    window: int,
    n_windows: int,
) -> tuple[float, float]:
    """Cells that windows need, each once a window, and bytes to decode them; by the first few."""
    cells, decoded = [], []
    for batches in islice(windows(plan, window), _SAMPLED):
        needed = cells_of(batches)
        cells.append(len(needed))
        decoded.append(source.decoded_bytes(row(needed)))
    return float(np.mean(cells)) * n_windows, float(np.mean(decoded)) * n_windows
