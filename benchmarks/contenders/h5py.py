"""h5py: slices of the CSR arrays, as one writes them by hand."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import h5py
import numpy as np
from scipy import sparse

from benchmarks.contenders import windows
from benchmarks.contenders.delivery import Delivery

# Rows closer than this are read by one slice: a slice costs about as much as so many rows more.
_GAP = 16


@contextmanager
def _opened(path: str) -> Iterator[tuple[Any, Any]]:
    """Label codes, and a function from a range of rows to a CSR matrix; indptr is held."""
    with h5py.File(path) as file:
        codes = file["obs/cell_type/codes"][:]
        x = file["X"]
        data, indices, indptr = x["data"], x["indices"], x["indptr"][:].astype(np.int64)
        n_vars = int(x.attrs["shape"][1])

        def rows(start: int, stop: int) -> sparse.csr_matrix:
            lo, hi = indptr[start], indptr[stop]
            parts = (data[lo:hi], indices[lo:hi], indptr[start : stop + 1] - lo)
            return sparse.csr_matrix(parts, shape=(stop - start, n_vars))

        yield codes, rows


def read(job: dict[str, Any]) -> Iterator[Any]:
    """Read all cells once, in order or in random blocks; one window of cells is held."""
    delivery = Delivery(job)
    size = job["batch_size"]
    yield
    with _opened(job["store"]) as (codes, rows):
        n_obs = len(codes)
        if job["order"] == "sequential":
            for first in range(0, n_obs, size):
                last = min(first + size, n_obs)
                delivery.take(rows(first, last), codes[first:last])
        else:
            for blocks, cells, order in windows.random(n_obs, job):
                window = sparse.vstack([rows(*block) for block in blocks], format="csr")
                for start in range(0, len(order), size):
                    batch = order[start : start + size]
                    delivery.take(window[batch], codes[cells[batch]])
    yield delivery.counts()
    yield delivery.evidence()


def sample(job: dict[str, Any]) -> Iterator[Any]:
    """Draw every cell on its own, classes alike and repeats allowed; one window is held."""
    delivery = Delivery(job)
    size, total = job["batch_size"], job["batches"] * job["batch_size"]
    yield
    start = time.perf_counter()
    with _opened(job["store"]) as (codes, rows):
        weights = 1 / np.bincount(codes)[codes]
        drawn = np.random.default_rng(job["seed"]).choice(
            len(codes), total, p=weights / weights.sum()
        )
        for first in range(0, total, job["window"]):
            cells = drawn[first : first + job["window"]]
            distinct, where = np.unique(cells, return_inverse=True)
            runs = np.split(distinct, np.flatnonzero(np.diff(distinct) > _GAP) + 1)
            parts = [rows(run[0], run[-1] + 1)[run - run[0]] for run in runs]
            window = sparse.vstack(parts, format="csr")
            for at in range(0, len(cells), size):
                delivery.take(window[where[at : at + size]], codes[cells[at : at + size]])
    yield delivery.draws(start)
    yield delivery.evidence()
