"""Ours: the Loader, in storage order, in random blocks, and by a balanced plan."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from benchmarks.contenders.delivery import Delivery
from streamtrain.loader import Loader
from streamtrain.sampling import Plan


def read(job: dict[str, Any]) -> Iterator[Any]:
    """Read all cells once, in order or in random blocks."""
    delivery = Delivery(job)
    options: dict[str, Any] = {"order": "stored"}
    if job["order"] == "random":
        options = {"order": "blocks", "block_size": job["block"], "window": job["window"]}
    yield
    _deliver(job["store"], job, options, delivery)
    yield delivery.counts()
    yield delivery.evidence()


def plan(codes: Any, job: dict[str, Any]) -> Plan:
    """The balanced plan of a job."""
    n, epochs = _epochs(job)
    return Plan(
        codes, job["n_types"], batch_size=job["batch_size"], batch_number=n, epochs=epochs,
        balance=True, shuffle=True, seed=job["seed"], replace=job["replace"],
    )  # fmt: skip


def _epochs(job: dict[str, Any]) -> tuple[int, int]:
    """Batches of an epoch, and epochs; warming up takes less than one."""
    n = min(job.get("batches_an_epoch", job["batches"]), job["batches"])
    return n, job["batches"] // n


def sample(job: dict[str, Any]) -> Iterator[Any]:
    """Draw cells by a balanced plan, as the planner chooses; or all in blocks, full batches."""
    delivery = Delivery(job)
    yield
    start = time.perf_counter()
    if job["way"] == "blocks":
        options: dict[str, Any] = {
            "order": "blocks", "block_size": job["block"], "window": job["window"], "epochs": 10**6,
        }  # fmt: skip
    else:
        n, epochs = _epochs(job)
        options = {"batch_number": n, "epochs": epochs, "balance": True, "replace": job["replace"]}
    _deliver(job["store"], job, options, delivery)
    yield delivery.draws(start)
    yield delivery.evidence()


def _deliver(store: str, job: dict[str, Any], options: dict[str, Any], to: Delivery) -> None:
    size, seed = job["batch_size"], job["seed"]
    left = job.get("batches")
    with Loader(
        store, "cell_type", batch_size=size, random_state=seed, progress=False, **options
    ) as loader:
        for batch in loader:
            if left is None:
                to.take(batch.X, batch.codes)
            elif len(batch.obs) == size:
                to.take(batch.X, batch.codes)
                left -= 1
                if not left:
                    break
