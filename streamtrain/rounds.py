"""One round of training: cells on scratch, a scaler and settings in, fitted weights out.

What a round takes of the budget, and what it refuses, stands here; the ways to train are SGD
(`descent`) and logistic regression to its optimum (`optimum`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from streamtrain.budget import format_bytes
from streamtrain.config import Settings
from streamtrain.descent import batch_size, descend, fitted, sweep_bytes
from streamtrain.errors import InputError
from streamtrain.frozen import Keep
from streamtrain.optimum import fit_logistic
from streamtrain.replicas import fit_replicas
from streamtrain.scaling import Scaler
from streamtrain.solvers.counters import State
from streamtrain.solvers.logistic import Logistic
from streamtrain.solvers.sgd import SGD
from streamtrain.stored import Fitted, Stored
from streamtrain.threads import Threads, n_threads
from streamtrain.tiles import MOST

if TYPE_CHECKING:
    from streamtrain.gpu.device import Device


def check(config: Settings) -> Device | None:
    """Refuse before anything is read what the solver of these settings cannot do.

    Returns
    -------
    Device
        The GPU that trains, or None.
    """
    n_threads(config.n_jobs)
    if not config.on_gpu:
        return None
    from streamtrain.gpu.device import Device
    from streamtrain.gpu.sgd import check as check_sgd

    if config.use_SGD:
        check_sgd(config.penalty, config.learning_rate)
    return Device.gpu(config.gpu_memory)


def check_matrix(config: Settings, is_sparse: bool) -> None:
    """Refuse what the GPU cannot do with a matrix that is stored so."""
    whole = config.use_SGD and not config.mini_batch and not config.early_stopping
    if config.on_gpu and whole and is_sparse and not config.with_mean:
        raise InputError(
            "SGD over whole epochs of a sparse matrix, not centred (with_mean=False), stops by the "
            "weights of each cell's own genes, as scikit-learn does, on the CPU alone: leave out "
            "device, or with_mean, or pass early_stopping=True or mini_batch=True"
        )


def fit(
    config: Settings,
    stored: Stored,
    scaler: Scaler,
    start: State | None,
    room: float,
    threads: Threads,
    *,
    progress: bool,
    before: Any = None,
    keep: Keep | None = None,
) -> Fitted:
    """Train once.

    Parameters
    ----------
    scaler
        Of the genes to train on.
    start
        Weights of those genes to continue from.
    room
        Bytes for cells and for what the solver keeps.
    before
        Where the same round was, as `keep` was told.
    keep
        Called at moments from which the round can go on, with what gives its state then.
    """
    given = config, stored, scaler, start, room, threads
    under_way: Any = {"progress": progress, "before": before, "keep": keep}
    if not config.use_SGD:
        return fit_logistic(*given, **under_way)
    if config.replicas > 1:
        return fit_replicas(config, stored, scaler, start, threads, **under_way)
    run = descend(*given, **under_way)
    return fitted(config, stored.cells, stored.held_out, [run])


def keeps_apart(config: Settings, is_sparse: bool) -> bool:
    """Whether the solver takes the genes that most cells express apart, as dense numbers.

    SGD does, but where it must tell stored entries from zeros, or visits every gene of each cell.
    """
    stored = is_sparse and not config.with_mean and not config.mini_batch
    return config.use_SGD and config.penalty in ("l2", None) and not stored


def fixed_bytes(config: Settings, n_genes: int, n_classes: int, n_obs: int) -> int:
    """Bytes that the solver takes whatever the number of cells, weights to start from included."""
    needs = []
    if config.trains_sgd:
        more = config.penalty, not config.mini_batch
        one = SGD.nbytes(n_genes, n_classes, config.dtype, config.average, *more)
        needs.append(one)
        if config.folds is not None:  # one trial at least, and a model of it as it scores
            needs.append(models_bytes(config, n_genes, n_classes) + 24 * n_genes * n_classes)
    if not config.use_SGD:  # weights and scores of all classes, and one class being solved
        needs.append((16 * n_genes + 24 * MOST) * n_classes + Logistic.nbytes(n_genes, n_obs))
    start = n_genes * n_classes * np.dtype(config.dtype).itemsize * 2
    return max(needs) + start * (config.warm_start is not None or config.init is not None)


def models_bytes(config: Settings, n_genes: int, n_classes: int) -> int:
    """Bytes of the models that one trial trains, of all folds.

    Twice, as they are copied when some of the trials end.
    """
    columns = (1 if n_classes == 2 else n_classes) * (config.folds or 0)
    arrays = 1 + bool(config.average) + (config.penalty in ("l1", "elasticnet"))
    return 2 * columns * n_genes * arrays * np.dtype(config.dtype).itemsize


def needed_room(config: Settings, room: float, cell_bytes: float, entry_bytes: int) -> float:
    """Bytes that the batches take, of cells of `cell_bytes` as they are kept.

    Alive at a time are three scaled batches and three as gathered, and with early stopping the
    held-out cells of a sweep as stored, scaled and scored.
    """
    size = cell_bytes * batch_size(config)
    # Room for as many entries again: genes in most cells get one in every cell.
    scaled = 2 * size * (np.dtype(config.dtype).itemsize + 4) / entry_bytes
    return (
        3 * size
        + 3 * scaled
        + 16 * 10**6
        + 5 * sweep_bytes(room) * (config.early_stopping or config.folds is not None)
    )


def check_room(config: Settings, room: float, cell_bytes: float, entry_bytes: int) -> None:
    """Refuse batches that do not fit."""
    missing = needed_room(config, room, cell_bytes, entry_bytes) - room
    if missing > 0:
        remedy = "raise memory or lower batch_size" if config.mini_batch else "raise memory"
        raise InputError(
            f"memory is too small for batches of {batch_size(config):,} cells of "
            f"{format_bytes(cell_bytes * batch_size(config))}: {format_bytes(missing)} more are "
            f"needed; {remedy}"
        )
