"""SGD on scaled cells in memory: ours and scikit-learn's, on the same cells in the same order.

Each contender trains model after model, each from nothing over all cells, until that has taken
`at_least_s`: all do the same steps however often, and the weights that are compared are those of
the last model, which was timed. Compared are also those after the first `EARLY` cells.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any, TypeVar

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.linear_model import SGDClassifier

from benchmarks.simulated import Genes, uniform
from streamtrain import open_source
from streamtrain.rows import Rows
from streamtrain.scaling import Scaled
from streamtrain.solvers.counters import State
from streamtrain.solvers.schedule import SPARSE_INTERCEPT_RATE, Schedule
from streamtrain.solvers.sgd import SGD
from streamtrain.threads import Threads

EARLY = 128
_COMPARED = 16  # classes whose weights are compared
_BLOCK = 32  # cells made dense at a time: in the cache, six times as fast as 1,000
M = TypeVar("M")
B = TypeVar("B")


def expression(job: dict[str, Any]) -> Rows:
    """Log-normalised cells with label codes: a store's first, or simulated ones of a density."""
    if job["density"]:
        return uniform(job["cells"], job["genes"], job["density"], job["classes"])
    with closing(open_source(job["store"])) as source:
        rows = source.read(0, job["cells"])
        types = source.obs("cell_type").cat.codes.to_numpy()[: job["cells"]]
    lengths = np.diff(rows.indptr)
    totals = np.add.reduceat(rows.data, rows.indptr[:-1], dtype=np.float64)
    data = np.log1p(rows.data / np.repeat(totals, lengths) * 1e4)
    codes = (types % job["classes"]).astype(np.int32)  # any labels: the arithmetic is the same
    return Rows(data, rows.indices, rows.indptr, rows.n_vars, codes)


def _cut(n: int, size: int) -> list[tuple[int, int]]:
    """Where each mini-batch of the first `n` cells starts and stops."""
    return [(i, min(i + size, n)) for i in range(0, n, size)]


def _train(model: M, batches: Sequence[B], take: Callable[[M, B], Any]) -> M:
    for batch in batches:
        take(model, batch)
    return model


def _timed(
    job: dict[str, Any], new: Callable[[], M], batches: Sequence[B], take: Callable[[M, B], Any]
) -> tuple[M, dict[str, float]]:
    """Train new models until that took long enough; the last, and what all took and did.

    Only steps are timed: making a model of 400 classes takes as long as a thousand of its steps.
    """
    seconds, cpu, cells = 0.0, 0.0, 0
    while seconds < job["at_least_s"]:
        model = new()
        start, cpu_start = time.perf_counter(), time.process_time()
        _train(model, batches, take)
        seconds += time.perf_counter() - start
        cpu += time.process_time() - cpu_start
        cells += job["cells"]
    return model, {"seconds": seconds, "cpu_seconds": cpu, "cells": cells}


def _weights(coef: NDArray[Any], intercept: NDArray[Any]) -> dict[str, NDArray[Any]]:
    some = np.unique(np.linspace(0, len(coef) - 1, _COMPARED).astype(int))
    return {"coef": coef[some], "intercept": np.asarray(intercept[some])}


def _ours(states: Sequence[State]) -> dict[str, NDArray[Any]]:
    """Weights of models, those of one after those of another, and their steps."""
    found = [
        _weights(state.coef, state.intercept)
        if state.average_coef is None or state.average_intercept is None
        else _weights(state.average_coef, state.average_intercept)
        for state in states
    ]
    joined = {key: np.concatenate([one[key] for one in found]) for key in found[0]}
    return joined | {"steps": np.concatenate([np.atleast_1d(state.t) - 1 for state in states])}


def _entries(rows: Rows) -> dict[str, float]:
    return {"entries_a_cell": len(rows.data) / rows.n_obs}


def _named(when: str, found: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {f"{key}_{when}": value for key, value in found.items()}


def ours(job: dict[str, Any]) -> Iterator[Any]:
    """One step a cell, batch by batch, on the sparse cells; for each of `alphas` a model.

    With `scaling` the batches are stored expression, and scaled under the clock.
    """
    with Threads() as threads:
        rows = expression(job)
        genes = Genes.of(rows, threads)
        scaler = genes.scaler(job["dtype"], centred=job["centred"], apart=True)
        schedules = [Schedule(alpha=alpha) for alpha in job["alphas"]]

        def cut(n: int) -> list[Any]:
            stored = [rows.slice(*at) for at in _cut(n, job["batch_size"])]
            return stored if job["scaling"] else [scaler(cells) for cells in stored]

        def new(schedules: Any = schedules) -> SGD:
            return SGD(
                job["classes"], scaler.shift, schedules[0] if len(schedules) == 1 else schedules,
                average=job["average"], sparse=not job["centred"],
                intercept_rate=1.0 if job["centred"] else SPARSE_INTERCEPT_RATE,
                dtype=job["dtype"], threads=threads,
            )  # fmt: skip

        def take(solver: SGD, batch: Any) -> None:
            solver.partial_fit(scaler(batch) if job["scaling"] else batch)

        batches, sparse = cut(job["cells"]), len(scaler(rows).rows.data)
        _train(new(), batches, take)  # compiles
        yield
        solver, found = _timed(job, new, batches, take)
        yield found | _entries(rows) | {"sparse_a_cell": sparse / rows.n_obs}
        if len(schedules) == 1:
            early = _train(new(), cut(min(EARLY, job["cells"])), take)
            yield _ours([solver.state()]) | _named("early", _ours([early.state()]))
        else:
            together = _ours([solver.state(model) for model in range(len(schedules))])
            alone = _ours([_train(new([one]), batches, take).state() for one in schedules])
            yield together | _named("alone", alone)


def _dense(rows: Rows, shift: NDArray[np.float64], dtype: Any) -> NDArray[Any]:
    """All entries of scaled cells; scaled in float64, as StandardScaler would, and cast."""
    X = np.empty((rows.n_obs, rows.n_vars), dtype)
    for start in range(0, rows.n_obs, _BLOCK):
        part = rows.slice(start, min(start + _BLOCK, rows.n_obs))
        block = np.tile(-shift, (part.n_obs, 1))
        block[np.repeat(np.arange(part.n_obs), np.diff(part.indptr)), part.indices] += part.data
        X[start : start + part.n_obs] = block
    return X


def _theirs(solver: SGDClassifier) -> dict[str, NDArray[Any]]:
    return _weights(solver.coef_, solver.intercept_) | {"steps": np.array([solver.t_ - 1])}


def sklearn(job: dict[str, Any]) -> Iterator[Any]:
    """The same by SGDClassifier.partial_fit, which takes centred cells dense only."""
    with Threads() as threads:
        rows = expression(job)
        scaler = Genes.of(rows, threads).scaler(np.float64, centred=job["centred"])
        scaled: Scaled = scaler(rows)
    cells, codes = scaled.rows, rows.codes
    assert codes is not None  # noqa: S101 - for the type checker
    X: Any
    if job["centred"]:
        X = _dense(cells, scaler.shift, job["dtype"])
    else:
        parts = (cells.data.astype(job["dtype"]), cells.indices, cells.indptr.astype(np.int32))
        X = sp.csr_matrix(parts, shape=(cells.n_obs, cells.n_vars))
    classes = np.arange(job["classes"])

    def cut(n: int) -> list[Any]:
        spans = _cut(n, job["batch_size"])
        return [(X[start:stop], codes[start:stop]) for start, stop in spans]

    def new() -> SGDClassifier:
        return SGDClassifier(
            loss="log_loss", alpha=job["alphas"][0], average=job["average"], shuffle=False,
            n_jobs=job["n_jobs"], random_state=0,
        )  # fmt: skip

    def take(solver: SGDClassifier, batch: Any) -> None:
        solver.partial_fit(*batch, classes=classes)

    _train(new(), cut(16)[:1], take)  # imports, and starts its threads
    yield
    solver, found = _timed(job, new, cut(job["cells"]), take)
    yield found | _entries(rows)
    early = _train(new(), cut(min(EARLY, job["cells"])), take)
    yield _theirs(solver) | _named("early", _theirs(early))
