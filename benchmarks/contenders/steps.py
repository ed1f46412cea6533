"""SGD on scaled cells in memory: ours and scikit-learn's dense, on the same cells in order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import SGDClassifier

from streamtrain import open_source
from streamtrain.rows import Rows
from streamtrain.scaling import MomentsPass, Scaled, Scaler, places, standard_deviation
from streamtrain.solvers.sgd import SGD, Schedule
from streamtrain.threads import Threads

_COMPARED = 16  # classes whose weights are compared


def _batches(job: dict[str, Any], threads: Threads, dtype: Any) -> tuple[list[Scaled], Scaler]:
    """Scaled mini-batches of a store's first cells, log-normalised, and their scaler."""
    with closing(open_source(job["store"])) as source:
        rows = source.read(0, job["cells"])
        types = source.obs("cell_type").cat.codes.to_numpy()[: job["cells"]]
    lengths = np.diff(rows.indptr)
    totals = np.add.reduceat(rows.data, rows.indptr[:-1], dtype=np.float64)
    data = np.log1p(rows.data / np.repeat(totals, lengths) * 1e4)
    codes = (types % job["classes"]).astype(np.int32)  # any labels: the arithmetic is the same
    rows = Rows(data, rows.indices, rows.indptr, rows.n_vars, codes)
    moments = MomentsPass(rows.n_vars, threads)
    moments.update(rows)
    found = moments.result()
    at = np.flatnonzero(found.nonzero)
    scaler = Scaler(
        found.mean[at], standard_deviation(found)[at], places(at, rows.n_vars), with_mean=True,
        dtype=dtype, share=found.nonzero[at] / found.n,
    )  # fmt: skip
    size = job["batch_size"]
    starts = range(0, rows.n_obs, size)
    return [scaler(rows.slice(i, min(i + size, rows.n_obs))) for i in starts], scaler


def _found(job: dict[str, Any], batches: list[Scaled]) -> dict[str, int]:
    entries = sum(len(batch.rows.data) for batch in batches)
    return {"cells": job["cells"] * job["passes"], "entries": entries * job["passes"]}


def _evidence(coef: NDArray[Any], intercept: NDArray[Any]) -> dict[str, NDArray[Any]]:
    some = np.unique(np.linspace(0, len(coef) - 1, _COMPARED).astype(int))
    return {"coef": np.asarray(coef[some], np.float64), "intercept": intercept[some]}


def ours(job: dict[str, Any]) -> Iterator[Any]:
    """One step a cell, batch by batch, on the sparse cells."""
    with Threads() as threads:
        batches, scaler = _batches(job, threads, job["dtype"])
        solver = SGD(job["classes"], scaler.shift, Schedule(), dtype=job["dtype"], threads=threads)
        yield
        for batch in batches * job["passes"]:
            solver.partial_fit(batch)
        yield _found(job, batches)
        state = solver.state()
        yield _evidence(state.coef, state.intercept)


def sklearn(job: dict[str, Any]) -> Iterator[Any]:
    """The same by SGDClassifier.partial_fit, which takes centred cells dense only."""
    with Threads() as threads:
        # Scaled in float64, as StandardScaler would, and cast.
        batches, scaler = _batches(job, threads, np.float64)
    dense, classes = [], np.arange(job["classes"])
    for batch in batches:
        rows = batch.rows
        X = np.zeros((rows.n_obs, rows.n_vars))
        cell = np.repeat(np.arange(rows.n_obs), np.diff(rows.indptr))
        X[cell, rows.indices] = rows.data
        dense.append(((X - scaler.shift).astype(job["dtype"]), rows.codes))
    solver = SGDClassifier(
        loss="log_loss", alpha=1e-4, shuffle=False, n_jobs=job["n_jobs"], random_state=0
    )
    yield
    for X, codes in dense * job["passes"]:
        solver.partial_fit(X, codes, classes=classes)
    yield _found(job, batches)
    yield _evidence(solver.coef_, solver.intercept_)
