"""scDataset: blocks through torch's DataLoader from anndata's matrix on disk."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

from scdataset import BlockShuffling, ClassBalancedSampling, Streaming, scDataset
from torch.utils.data import DataLoader

from benchmarks.contenders.anndata import backed
from benchmarks.contenders.delivery import Delivery


class _Cells:
    """The matrix and the labels, opened in each worker: HDF5 files do not survive a fork."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.opened: tuple[Any, Any] | None = None
        X, _ = backed(job)
        self.n_obs = int(X.shape[0])

    def __len__(self) -> int:
        return self.n_obs

    def __getitem__(self, index: Any) -> tuple[Any, Any]:
        if self.opened is None:
            self.opened = backed(self.job)
        X, codes = self.opened
        return X[index], codes[index]


def _take(fetched: Any, index: Any) -> tuple[Any, Any]:
    X, codes = fetched
    return X[index], codes[index]


def serve(job: dict[str, Any], strategy: Any, workers: int) -> Iterator[tuple[Any, Any]]:
    """Batches of (CSR matrix, label codes) under a strategy of scDataset's."""
    dataset = scDataset(
        _Cells(job), strategy, batch_size=job["batch_size"],
        fetch_factor=max(1, job["window"] // job["batch_size"]), seed=job["seed"],
        batch_callback=_take,
    )  # fmt: skip
    yield from DataLoader(dataset, batch_size=None, num_workers=workers)


def read(job: dict[str, Any]) -> Iterator[Any]:
    """Read all cells once, in order or in random blocks."""
    delivery = Delivery(job)
    yield
    random = job["order"] == "random"
    strategy = BlockShuffling(job["block"]) if random else Streaming()
    # Workers take turns, so storage order is kept by one alone.
    workers = (os.cpu_count() or 1) if random else 1
    for X, codes in serve(job, strategy, workers):
        delivery.take(X, codes)
    yield delivery.counts()
    yield delivery.evidence()


def sample(job: dict[str, Any]) -> Iterator[Any]:
    """Draw cells balanced, repeats allowed; blocks are of draws in storage order."""
    delivery = Delivery(job)
    yield
    start = time.perf_counter()
    _, codes = backed(job)
    strategy = ClassBalancedSampling(
        codes, block_size=job["block"], total_size=job["batches"] * job["batch_size"]
    )
    for X, labels in serve(job, strategy, os.cpu_count() or 1):
        delivery.take(X, labels)
    yield delivery.draws(start)
    yield delivery.evidence()
