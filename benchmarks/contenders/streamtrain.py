"""Ours: cells read in storage order or in random blocks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np

from benchmarks.contenders import windows
from benchmarks.contenders.delivery import Delivery
from streamtrain import open_source
from streamtrain.batches import batches
from streamtrain.rows import Rows
from streamtrain.sampling import Plan
from streamtrain.spill import Spill
from streamtrain.streaming import ahead, sweep


class _Matrix:
    """Rows as `Delivery` takes them."""

    def __init__(self, rows: Rows) -> None:
        self.data, self.indices, self.indptr = rows.data, rows.indices, rows.indptr
        self.shape = (rows.n_obs, rows.n_vars)


def read(job: dict[str, Any]) -> Iterator[Any]:
    """Read all cells once, a window ahead of the consumer."""
    delivery = Delivery(job)
    size = job["batch_size"]
    yield
    with closing(open_source(windows.single(job))) as source:
        codes = source.obs("cell_type").cat.codes.to_numpy()
        if job["order"] == "sequential":
            for first, rows in sweep(source, None, 256 * 10**6):
                for start in range(0, rows.n_obs, size):
                    stop = min(start + size, rows.n_obs)
                    delivery.take(
                        _Matrix(rows.slice(start, stop)), codes[first + start : first + stop]
                    )
        else:
            gathered = (
                (_gather(source, blocks), cells, order)
                for blocks, cells, order in windows.random(source.n_obs, job)
            )
            for rows, cells, order in ahead(gathered):
                for start in range(0, len(order), size):
                    batch = order[start : start + size]
                    delivery.take(_Matrix(rows.take(batch)), codes[cells[batch]])
    yield delivery.counts()
    yield delivery.evidence()


def plan(codes: Any, job: dict[str, Any]) -> Plan:
    """The balanced plan of a job: its batches in epochs of `batches_an_epoch`."""
    an_epoch = min(job["batches_an_epoch"], job["batches"])  # warming up takes less than one
    return Plan(
        codes, job["n_types"], batch_size=job["batch_size"], batch_number=an_epoch,
        epochs=job["batches"] // an_epoch, balance=True, shuffle=True, seed=job["seed"],
    )  # fmt: skip


def sample(job: dict[str, Any]) -> Iterator[Any]:
    """Draw cells as `streamtrain.train` does: one sweep to scratch, then batches in plan order.

    The counts stay raw. A window holds as many cells as the other contenders', not train's bytes.
    """
    delivery = Delivery(job)
    unscaled: Any = lambda rows: rows  # noqa: E731 - stands where train has its scaler
    yield
    start = time.perf_counter()
    with (
        closing(open_source(job["store"])) as source,
        Spill(source.n_vars, np.float32, None) as spill,
    ):
        codes: Any = source.obs("cell_type").cat.codes.to_numpy(np.int32)
        drawing = plan(codes, job)
        drawn = drawing.ever_drawn()
        for position, rows in sweep(source, None, 256 * 10**6):
            spill.append(rows.take(np.flatnonzero(drawn[position : position + rows.n_obs])))
        spill.finish()
        rank = np.cumsum(drawn) - 1
        window = int(job["window"] * (spill.nbytes / spill.n_obs + 8))
        for batch in batches(drawing, spill, lambda cells: rank[cells], codes, unscaled, window):
            cells: Any = batch.cells
            delivery.take(_Matrix(cells), cells.codes)
    yield delivery.draws(start)
    yield delivery.evidence()


def _gather(source: Any, blocks: list[tuple[int, int]]) -> Rows:
    parts = [source.read(start, stop) for start, stop in blocks]
    lengths = np.concatenate([[0], *(np.diff(p.indptr) for p in parts)])
    return Rows(
        np.concatenate([p.data for p in parts]),
        np.concatenate([p.indices for p in parts]),
        np.cumsum(lengths, dtype=np.int64),
        parts[0].n_vars,
    )
