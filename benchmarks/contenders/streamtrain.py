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
    """The balanced plan of a job: its batches in epochs of `batches_an_epoch`."""
    an_epoch = min(job["batches_an_epoch"], job["batches"])  # warming up takes less than one
    return Plan(
        codes, job["n_types"], batch_size=job["batch_size"], batch_number=an_epoch,
        epochs=job["batches"] // an_epoch, balance=True, shuffle=True, seed=job["seed"],
        replace=job["replace"],
    )  # fmt: skip


def sample(job: dict[str, Any]) -> Iterator[Any]:
    """Draw cells by a balanced plan, by the strategy that the planner chooses."""
    delivery = Delivery(job)
    an_epoch = min(job["batches_an_epoch"], job["batches"])
    options = {
        "batch_number": an_epoch, "epochs": job["batches"] // an_epoch, "balance": True,
        "replace": job["replace"],
    }  # fmt: skip
    yield
    start = time.perf_counter()
    _deliver(job["store"], job, options, delivery)
    yield delivery.draws(start)
    yield delivery.evidence()


def _deliver(store: str, job: dict[str, Any], options: dict[str, Any], to: Delivery) -> None:
    size, seed = job["batch_size"], job["seed"]
    with Loader(
        store, "cell_type", batch_size=size, random_state=seed, progress=False, **options
    ) as loader:
        for batch in loader:
            to.take(batch.X, batch.codes)
