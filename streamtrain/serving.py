"""Planned cells of a source, a strategy and a byte budget in; batches of rows in plan order out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamtrain import ordered
from streamtrain.batches import Served, gathered
from streamtrain.budget import format_bytes
from streamtrain.ordered import PlanOrder, cells_of
from streamtrain.progress import counted
from streamtrain.rows import Rows
from streamtrain.sampling import BLOCKS, MIX, Plan, Stream, uniforms
from streamtrain.scratch import Folder
from streamtrain.sources.base import Source
from streamtrain.spill import Spill
from streamtrain.strategies import RARE, Strategy
from streamtrain.streaming import ahead, sweep, takes
from streamtrain.threads import Threads

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """What is served, and with what.

    Attributes
    ----------
    source
        Where the cells are.
    rows
        Row numbers of the cells that may be drawn, ascending; None for all.
    n_obs
        Their number.
    codes
        Class of each, shape (n_obs,).
    express
        Makes of stored rows, the cells `rows` of the source, what is served.
    dtype
        Of the served values.
    counts
        Whether they may be counts, which take two bytes while they are kept.
    block
        Bytes of stored cells read at a time.
    cell_bytes
        Bytes of a cell as it is kept, about.
    room
        Bytes for kept cells, and for the batches.
    served_bytes
        Bytes of a cell as it is served, about.
    scratch, threads, progress
        As of `Loader`.
    """

    source: Source
    rows: NDArray[np.int64] | None
    n_obs: int
    codes: NDArray[np.int32]
    express: Callable[[Rows, NDArray[np.int64]], Rows]
    dtype: np.dtype[Any]
    counts: bool
    block: int
    cell_bytes: float
    room: float
    served_bytes: float
    scratch: Folder
    threads: Threads
    progress: bool

    def row(self, cells: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row numbers of cells in the source."""
        return cells if self.rows is None else self.rows[cells]

    def spill(self, memory: float = 0) -> Spill:
        """A place to keep cells."""
        return Spill(
            self.source.n_vars, self.dtype, self.scratch, memory=memory, counts=self.counts,
            threads=self.threads,
        )  # fmt: skip

    def take(self, cells: NDArray[np.int64], what: str | None = None) -> Iterator[tuple[int, Rows]]:
        """Position among `cells`, ascending, and rows; shown as `what` where that is given."""
        wanted = self.row(cells)
        if len(wanted) == self.source.n_obs:
            pieces = sweep(self.source, None, self.block)
        else:
            pieces = takes(self.source, wanted, max(1, int(self.block / (2 * self.cell_bytes))))
        for at, rows in counted(pieces, what or "", len(cells), show=bool(what) and self.progress):
            yield at, self.express(rows, wanted[at : at + rows.n_obs])


def serve(job: Job, plan: Plan, strategy: Strategy, done: dict[str, float]) -> Served:
    """Serve every batch of a plan, in order; `done` counts bytes written, read and held.

    Cells that are kept are collected in the caller's thread, where an interrupt reaches it between
    blocks; batches, and windows of "sweeps", are made ahead.
    """
    if strategy.name == "sweeps":
        yield from _swept(job, plan, strategy.window, done)
        return
    drawn = np.flatnonzero(plan.ever_drawn())
    if strategy.name == "plan order":
        yield from _ordered(job, plan, strategy.window, drawn, done)
        return
    rank = None if len(drawn) == job.n_obs else _ranks(drawn, job.n_obs)
    with job.spill(job.room if strategy.name == "memory" else 0) as spill:
        for _, rows in job.take(drawn, "Reading"):
            spill.append(rows)
        spill.finish()
        done["held" if spill.in_memory else "written"] += spill.nbytes
        if strategy.name == "memory" and not spill.in_memory:
            logger.warning(
                "cells took more memory than foreseen, %s: they went to scratch",
                format_bytes(spill.nbytes),
            )

        def gather(cells: NDArray[np.int64]) -> Rows:
            rows = spill.gather(cells if rank is None else rank[cells].astype(np.int64), np.int32)
            if not spill.in_memory:
                done["read"] += len(rows.data) * spill.entry_bytes
            return rows

        yield from ahead(gathered(plan, gather))


def _ranks(drawn: NDArray[np.int64], n_obs: int) -> NDArray[np.uint32]:
    rank = np.zeros(n_obs, np.uint32)
    rank[drawn] = np.arange(len(drawn), dtype=np.uint32)
    return rank


def _ordered(
    job: Job, plan: Plan, window: int, drawn: NDArray[np.int64], done: dict[str, float]
) -> Served:
    order = PlanOrder(
        plan, window, job.source.n_vars, job.dtype, job.scratch, counts=job.counts,
        threads=job.threads,
    )  # fmt: skip
    try:
        for at, rows in job.take(drawn, "Reading"):
            order.append(rows, drawn[at : at + rows.n_obs])
        order.finish()
        done["written"] += order.nbytes
        yield from ahead(order.serve())
    finally:
        done["read"] += order.read
        order.close()


def _swept(job: Job, plan: Plan, window: int, done: dict[str, float]) -> Served:
    """Decode each window's cells anew, but for those of rare classes."""
    rare = _rare(job, plan)
    where = np.full(job.n_obs, -1, np.int32) if len(rare) else None
    with job.spill(job.room * RARE) as kept:
        if where is not None:
            for _, rows in job.take(rare):
                kept.append(rows)
            where[rare] = np.arange(len(rare))
        kept.finish()
        done["held"] += kept.held
        most = 0

        def filled() -> Iterator[tuple[list[tuple[int, NDArray[np.int64]]], Any, Spill]]:
            for batches in ordered.windows(plan, window):
                wanted = cells_of(batches)
                fresh = wanted if where is None else wanted[where[wanted] < 0]
                spill = job.spill(job.room)
                if where is not None and len(fresh) < len(wanted):
                    spill.append(kept.gather(where[wanted[where[wanted] >= 0]].astype(np.int64)))
                for _, rows in job.take(fresh):
                    spill.append(rows)
                spill.finish()
                order = fresh
                if where is not None:
                    order = np.concatenate([wanted[where[wanted] >= 0], fresh])
                yield batches, order, spill

        def served() -> Served:
            nonlocal most
            for batches, order, spill in ahead(filled()):
                with spill:
                    most = max(most, spill.held)
                    by_cell = np.argsort(order, kind="stable")
                    for epoch, cells in batches:
                        at = by_cell[np.searchsorted(order, cells, sorter=by_cell)]
                        yield epoch, cells, spill.gather(at, np.int32)

        yield from ahead(served())
        done["held"] += most


def _rare(job: Job, plan: Plan) -> NDArray[np.int64]:
    """Cells of the rarest classes, as far as they fit: drawn again and again when balanced."""
    if not plan.repeats:
        return np.empty(0, np.int64)
    sizes = np.bincount(job.codes)
    order = np.argsort(sizes, kind="stable")
    fits = np.cumsum(sizes[order]) * job.cell_bytes <= job.room * RARE
    return np.flatnonzero(np.isin(job.codes, order[fits]))


def in_blocks(job: Job, epochs: int, batch: int, block: int, window: int, seed: int) -> Served:
    """Serve all cells once an epoch, runs of `block` cells in random order, mixed in windows.

    The last block of the store comes last where it is short. A `block` of 0 leaves cells as they
    lie.
    """
    size = block or batch
    per_window = window // size if block else 1

    def windows() -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64], Rows]]:
        for epoch in range(epochs):
            starts = np.arange(-(-job.n_obs // size))
            if block:
                keys = uniforms(seed, BLOCKS, epoch, len(starts))
                if job.n_obs % size:
                    keys[-1] = 1.0  # a block that is short comes last, and so does a batch
                starts = np.argsort(keys, kind="stable")
            mixing = Stream(seed, MIX, epoch)
            for first in range(0, len(starts), per_window):
                begins = np.sort(starts[first : first + per_window]) * size
                cells = (begins[:, None] + np.arange(size)).ravel()
                cells = cells[cells < job.n_obs]
                order = np.arange(len(cells))
                if block:
                    order = np.argsort(mixing(len(cells)), kind="stable")
                wanted = job.row(cells)
                rows = job.express(job.source.take(wanted, compact=job.counts), wanted)
                yield epoch, cells, order, rows

    def batches() -> Served:
        for epoch, cells, order, rows in ahead(windows()):
            for start in range(0, len(cells), batch):
                chosen = order[start : start + batch]
                # Not by the pool, where it would wait until the next window is decoded.
                yield epoch, cells[chosen], rows.take(chosen, (job.dtype, np.int32))

    return ahead(batches())
