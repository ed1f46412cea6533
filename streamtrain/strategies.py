"""A plan, a source and a byte budget enter; how cells come from disk, and at what cost, leaves."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from streamtrain.batches import planned
from streamtrain.budget import format_bytes
from streamtrain.errors import InputError
from streamtrain.sampling import Plan
from streamtrain.sources.base import Source

logger = logging.getLogger(__name__)

Name = Literal["memory", "sweeps", "scratch", "plan order"]

# Bytes a second on two cores, measured on cells of 2,550 entries: decoding blosc and deflate 1.4e9
# (h5py's and zarr's own readers a third of that), scratch in the page cache 1.5e9 and 2.5e9, on the
# disk beyond it a third of that.
DECODE, WRITE, READ, DISK = 1.2e9, 1.5e9, 2.5e9, 0.5e9
_BUCKETS = 100  # windows in plan order on scratch: two open files each, of the usual 1,024
_SAMPLED = 8  # windows of which the cost of a sweep is told exactly, the others alike


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
        Batches whose cells are gathered at a time by "sweeps" and "plan order".
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
    total = plan.epochs * plan.epoch_size * cell_bytes
    distinct = len(drawn) * cell_bytes
    once = source.decoded_bytes(row(drawn))
    batch = plan.batch_size * cell_bytes
    # Two windows are alive: the one that is served and the next.
    window = max(1, int(means.room / 2 // batch))
    n_windows = -(-plan.epochs * -(-plan.epoch_size // plan.batch_size) // window)
    found = []
    if distinct <= means.room:
        found.append(Strategy("memory", 0, once, 0, 0, distinct, once / DECODE))
    if distinct <= means.disk:
        cached = distinct <= means.cache
        seconds = once / DECODE + distinct / (WRITE if cached else DISK)
        seconds += total / (READ if cached else DISK)
        found.append(Strategy("scratch", 0, once, distinct, total, 0, seconds))
    fits = window * batch * 2 <= means.room
    if total <= means.disk and n_windows <= _BUCKETS and fits:
        cached = total <= means.cache
        seconds = once / DECODE + 2 * total / (READ if cached else DISK)
        held = 2 * window * batch
        found.append(Strategy("plan order", window, once, total, total, held, seconds))
    if fits:
        decoded = _swept(plan, source, row, window, n_windows)
        held = 2 * window * batch
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


def _swept(
    plan: Plan,
    source: Source,
    row: Callable[[NDArray[np.int64]], NDArray[np.int64]],
    window: int,
    n_windows: int,
) -> float:
    """Bytes that decoding anew for each window takes, from the first windows."""
    batches = (cells for _, cells in planned(plan))
    sizes = []
    for _ in range(min(_SAMPLED, n_windows)):
        cells = np.unique(np.concatenate(list(islice(batches, window))))
        sizes.append(source.decoded_bytes(row(cells)))
    return float(np.mean(sizes)) * n_windows
