"""Ours: cells read in storage order or in random blocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np

from benchmarks.contenders import windows
from benchmarks.contenders.delivery import Delivery
from streamtrain import open_source
from streamtrain.rows import Rows
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


def _gather(source: Any, blocks: list[tuple[int, int]]) -> Rows:
    parts = [source.read(start, stop) for start, stop in blocks]
    lengths = np.concatenate([[0], *(np.diff(p.indptr) for p in parts)])
    return Rows(
        np.concatenate([p.data for p in parts]),
        np.concatenate([p.indices for p in parts]),
        np.cumsum(lengths, dtype=np.int64),
        parts[0].n_vars,
    )
