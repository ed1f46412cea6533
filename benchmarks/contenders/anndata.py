"""anndata: the matrix left on disk and indexed (backed mode; sparse_dataset for zarr)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import h5py
import zarr
from anndata.io import read_elem, sparse_dataset

from benchmarks.contenders import windows
from benchmarks.contenders.delivery import Delivery


def backed(job: dict[str, Any]) -> tuple[Any, Any]:
    """Matrix on disk and label codes of a job's store."""
    path = windows.single(job)
    group: Any = h5py.File(path) if path.endswith(".h5ad") else zarr.open_group(path, mode="r")
    return sparse_dataset(group["X"]), read_elem(group["obs"])["cell_type"].cat.codes.to_numpy()


def read(job: dict[str, Any]) -> Iterator[Any]:
    """Read all cells once: by slices in order, by row numbers of a window at random."""
    delivery = Delivery(job)
    size = job["batch_size"]
    yield
    X, codes = backed(job)
    if job["order"] == "sequential":
        for first in range(0, X.shape[0], size):
            delivery.take(X[first : first + size], codes[first : first + size])
    else:
        for _, cells, order in windows.random(X.shape[0], job):
            window = X[cells]
            for start in range(0, len(order), size):
                batch = order[start : start + size]
                delivery.take(window[batch], codes[cells[batch]])
    yield delivery.counts()
    yield delivery.evidence()
