"""h5py: slices of the CSR arrays, as one writes them by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np
from scipy import sparse

from benchmarks.contenders import windows
from benchmarks.contenders.delivery import Delivery


def read(job: dict[str, Any]) -> Iterator[Any]:
    """Read all cells once; indptr and labels are held, and one window of cells."""
    delivery = Delivery(job)
    size = job["batch_size"]
    yield
    with h5py.File(job["store"]) as file:
        codes = file["obs/cell_type/codes"][:]
        x = file["X"]
        data, indices, indptr = x["data"], x["indices"], x["indptr"][:].astype(np.int64)
        n_obs, n_vars = len(indptr) - 1, int(x.attrs["shape"][1])

        def rows(start: int, stop: int) -> sparse.csr_matrix:
            lo, hi = indptr[start], indptr[stop]
            parts = (data[lo:hi], indices[lo:hi], indptr[start : stop + 1] - lo)
            return sparse.csr_matrix(parts, shape=(stop - start, n_vars))

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
