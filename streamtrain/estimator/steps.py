"""The parameters of `SparseSGDClassifier` and its samples in; solver, epochs and their end out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.utils import check_random_state

from streamtrain.errors import InputError
from streamtrain.estimator.samples import Samples
from streamtrain.sampling import Plan
from streamtrain.scaling import Scaler
from streamtrain.solvers.counters import State
from streamtrain.solvers.schedule import SPARSE_INTERCEPT_RATE, Schedule
from streamtrain.solvers.sgd import SGD
from streamtrain.solvers.stopping import Stopping
from streamtrain.threads import Threads

logger = logging.getLogger(__name__)

_BATCH = 256  # samples that an order is drawn for at a time, about
Split = tuple[NDArray[np.int64] | None, NDArray[np.int64] | None]


def split_samples(given: Mapping[str, Any], samples: Samples) -> Split:
    """Positions to train on and those to judge epochs by, ascending; None for all and for none.

    They are SGDClassifier's, for the same seed.

    Raises
    ------
    InputError
        If all samples to judge by have no weight.
    """
    if not given["early_stopping"]:
        return None, None
    split = StratifiedShuffleSplit(
        test_size=given["validation_fraction"], random_state=given["random_state"]
    )
    kept, held_out = map(np.sort, next(split.split(samples.codes, samples.codes)))
    if samples.weight is not None and not samples.weight[held_out].any():
        raise InputError(
            "sample_weight is 0 for all samples that are held out for early stopping: pass "
            "another random_state, or a larger validation_fraction"
        )
    return kept, held_out


def make_solver(
    given: Mapping[str, Any],
    samples: Samples,
    scaler: Scaler,
    class_weight: NDArray[np.float64],
    state: State,
    threads: Threads,
    *,
    epochs: bool,
) -> SGD:
    """The solver of these parameters, which begins with `state` and its dtype."""
    sparse = samples.is_sparse and not given["with_mean"]
    schedule = Schedule(
        given["learning_rate"],
        given["alpha"],
        given["eta0"],
        given["power_t"],
        given["penalty"],
        given["l1_ratio"] or 0.0,
    )
    return SGD(
        len(class_weight),
        scaler.shift,
        schedule,
        average=given["average"],
        intercept_rate=(SPARSE_INTERCEPT_RATE if sparse else 1.0) * given["fit_intercept"],
        loss=given["loss"],
        epsilon=given["epsilon"],
        class_weight=class_weight,
        sparse=sparse,
        epochs=epochs,
        dtype=state.coef.dtype,
        threads=threads,
        state=state,
    )


def plan_orders(given: Mapping[str, Any], n_obs: int) -> Plan:
    """The order of the samples in each epoch; the same seed gives those of `streamtrain.train`."""
    seed = given["random_state"]
    if not isinstance(seed, Integral):
        seed = check_random_state(seed).randint(np.iinfo(np.int32).max)
    size = min(_BATCH, n_obs)
    return Plan(
        np.empty(n_obs, np.int8),  # an epoch takes all, whatever their class
        1,
        batch_size=size,
        batch_number=-(-n_obs // size),
        epochs=given["max_iter"],
        balance=False,
        shuffle=False,
        as_stored=not given["shuffle"],
        seed=int(seed),
    )


def until_stopped(
    given: Mapping[str, Any],
    solver: SGD,
    scaler: Scaler,
    samples: Samples,
    kept: NDArray[np.int64] | None,
    held_out: NDArray[np.int64] | None,
) -> Stopping:
    """Train epoch by epoch; each class stops by scikit-learn's rule, on its own."""
    n = samples.n_obs if kept is None else len(kept)
    plan = plan_orders(given, n)
    stopping = Stopping(
        solver.n_columns,
        tol=given["tol"],
        n_iter_no_change=given["n_iter_no_change"],
        eta0=given["eta0"] if given["learning_rate"] == "adaptive" else None,
    )
    for epoch in range(given["max_iter"]):
        order = plan.epoch(epoch)
        for rows, weight in samples.batches(order if kept is None else kept[order]):
            solver.partial_fit(scaler(rows), weight)
        if held_out is None:
            loss, penalty = solver.end_epoch()
            gain = -(loss + penalty) / n
        else:
            gain = _accuracy(solver, scaler, samples, held_out)
        slower, stopped = stopping.update(gain)
        solver.slow(slower)
        solver.freeze(stopped)
        if given["verbose"]:
            logger.info("epoch %d: %d classes go on", epoch + 1, stopping.active.sum())
        if not stopping.active.any():
            break
    return stopping


def _accuracy(
    solver: SGD, scaler: Scaler, samples: Samples, held_out: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Share of the held-out samples, by weight, on the right side of each column's boundary."""
    positive = np.arange(solver.n_columns) + (solver.n_columns == 1)
    right, total = np.zeros(solver.n_columns), 0.0
    for rows, weight in samples.batches(held_out):
        weight = np.ones(rows.n_obs) if weight is None else weight
        own = np.asarray(rows.codes)[:, None] == positive
        right += weight @ ((solver.scores(scaler(rows)) > 0) == own)
        total += weight.sum()
    return right / total
