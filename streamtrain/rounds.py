"""One round of training: cells on scratch, a scaler and settings in, fitted weights out.

The three ways to train stand here: logistic regression to its optimum, SGD over mini-batches, and
SGD over whole epochs until the loss no longer falls.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.batches import Batch, Served, Waited, batches, gathered
from streamtrain.budget import format_bytes
from streamtrain.cells import Cells
from streamtrain.config import Settings
from streamtrain.errors import InputError, some
from streamtrain.mixing import mixing
from streamtrain.ordered import PlanOrder
from streamtrain.progress import stage
from streamtrain.quotas import Quotas
from streamtrain.rows import Rows
from streamtrain.sampling import Plan
from streamtrain.sampling_columns import check_weights
from streamtrain.scaling import Scaler
from streamtrain.solvers.class_weight import class_weights
from streamtrain.solvers.counters import State
from streamtrain.solvers.logistic import (
    Logistic,
    Penalty,
    Sums,
    TileSums,
    column_classes,
    problem_weights,
)
from streamtrain.solvers.schedule import SPARSE_INTERCEPT_RATE, Schedule
from streamtrain.solvers.sgd import SGD
from streamtrain.solvers.stopping import Stopping
from streamtrain.spill import Spill
from streamtrain.threads import Threads, n_threads
from streamtrain.tiles import MOST, Tiles

if TYPE_CHECKING:
    from streamtrain.gpu.cells import DeviceScaler
    from streamtrain.gpu.device import Device
    from streamtrain.gpu.sgd import DeviceSGD

logger = logging.getLogger(__name__)

_READING = 512 * 10**6  # bytes of cells scaled and turned by gene at a time, at most
_EPOCH_BATCH = 256  # cells that SGD takes at a time where epochs have no mini-batches
_SWEEP = 32 * 10**6  # bytes of held-out cells, and of their scores, at a time, at most


@dataclass(frozen=True, slots=True)
class Stored:
    """The cells of a run as the first pass left them.

    Attributes
    ----------
    spill
        Normalised expression of the cells that any round takes.
    record
        Gives their number on scratch by their position among the labelled cells.
    cells
        Codes and classes of the labelled cells, a class for each column of the solver.
    drawn
        The same cells by the classes that they have, from which they are drawn.
    held_out
        Whether each labelled cell is held out to judge epochs by, shape (n,); None for none.
    is_sparse
        Whether scikit-learn would see a sparse matrix where cells are not centred.
    ordered
        The cells of every mini-batch, in place of `spill`; None where they are there.
    device
        The GPU that trains; None for the CPU.
    """

    spill: Spill
    record: Callable[[NDArray[np.int64]], NDArray[np.int64]]
    cells: Cells
    drawn: Cells
    held_out: NDArray[np.bool_] | None
    is_sparse: bool
    ordered: PlanOrder | None = None
    device: Device | None = None

    @property
    def entries(self) -> float:
        """Entries of a cell, on average."""
        kept = self.spill if self.ordered is None else self.ordered
        return kept.entries

    @property
    def counts(self) -> NDArray[np.int64]:
        """Cells of each class, shape (n_classes,)."""
        return np.bincount(self.cells.codes, minlength=len(self.cells.classes))


@dataclass(frozen=True, slots=True)
class Fitted:
    """Weights, in the form training continues from, and what is known of each column's.

    Attributes
    ----------
    state
        The weights.
    certificate
        Of each column, by the names that a model has for it.
    unconverged
        Words which cell types did not converge, and what to do; empty for none.
    eta0
        Constant step that `step` came to; None without it.
    """

    state: State
    certificate: dict[str, NDArray[Any]] | None = None
    unconverged: str = ""
    eta0: float | None = None

    @property
    def weights(self) -> NDArray[Any]:
        """Coefficients that score cells: the average where there is one, shape (columns, genes)."""
        return self.state.scoring[0]


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


def plan_epochs(config: Settings, cells: Cells, held_out: NDArray[np.bool_] | None) -> Plan:
    """Which cells SGD takes, in which order: positions among the cells that are not held out.

    Raises
    ------
    InputError
        For quotas of unknown cell types, or weights that leave too little to draw from.
    """
    kept = slice(None) if held_out is None else ~held_out
    codes = cells.codes[kept]
    batch_key = None if cells.batch_key is None else cells.batch_key[kept]
    weight = None if cells.weight is None else cells.weight[kept]
    n = len(codes)
    whole = not config.mini_batch
    size = batch_size(config)
    if weight is not None:
        check_weights(
            weight, codes, cells.classes,
            by_class=config.balance_cell_type or config.quotas is not None,
            n_draws=None if config.replace else min(size * config.batch_number, n),
        )  # fmt: skip
    return Plan(
        codes,
        len(cells.classes),
        batch_size=min(size, n) if whole else size,
        batch_number=-(-n // size) if whole else config.batch_number,
        epochs=config.most_passes(cells.n_obs) if whole else config.epochs,
        balance=config.balance_cell_type and not whole,
        shuffle=config.shuffle and not whole,
        as_stored=whole and not config.shuffle,
        seed=config.random_state,
        replace=config.replace,
        quotas=None if config.quotas is None else Quotas.of(config.quotas, cells.classes, size),
        batch_key=batch_key,
        weight=weight,
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
    """
    if config.use_SGD:
        return _fit_sgd(config, stored, scaler, start, room, threads, progress)
    return _fit_logistic(config, stored, scaler, start, room, threads, progress)


def keeps_apart(config: Settings, is_sparse: bool) -> bool:
    """Whether the solver takes the genes that most cells express apart, as dense numbers.

    SGD does, but where it must tell stored entries from zeros, or visits every gene of each cell.
    """
    stored = is_sparse and not config.with_mean and not config.mini_batch
    return config.use_SGD and config.penalty in ("l2", None) and not stored


def fixed_bytes(config: Settings, n_genes: int, n_classes: int) -> int:
    """Bytes that the solver takes whatever the number of cells, weights to start from included."""
    needs = []
    if config.trains_sgd:
        more = config.penalty, not config.mini_batch
        one = SGD.nbytes(n_genes, n_classes, config.dtype, config.average, *more)
        needs.append(one)
        if config.folds is not None:  # one trial at least, and a model of it as it scores
            needs.append(models_bytes(config, n_genes, n_classes) + 24 * n_genes * n_classes)
    if not config.use_SGD:  # weights and scores of all classes, and one class being solved
        needs.append((16 * n_genes + 24 * MOST) * n_classes + Logistic.nbytes(n_genes))
    start = n_genes * n_classes * np.dtype(config.dtype).itemsize * 2
    return max(needs) + start * (config.warm_start is not None or config.init is not None)


def models_bytes(config: Settings, n_genes: int, n_classes: int) -> int:
    """Bytes of the models that one trial trains, of all folds.

    Twice, as they are copied when some of the trials end.
    """
    columns = (1 if n_classes == 2 else n_classes) * (config.folds or 0)
    arrays = 1 + bool(config.average) + (config.penalty in ("l1", "elasticnet"))
    return 2 * columns * n_genes * arrays * np.dtype(config.dtype).itemsize


def batch_size(config: Settings) -> int:
    """Cells that SGD takes at a time."""
    return config.batch_size if config.mini_batch else _EPOCH_BATCH


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


def sweep_bytes(room: float) -> int:
    """Bytes of held-out cells, and of their scores, at a time."""
    return int(min(_SWEEP, room / 20))


def _fit_sgd(
    config: Settings,
    stored: Stored,
    scaler: Scaler,
    start: State | None,
    room: float,
    threads: Threads,
    progress: bool,
) -> Fitted:
    kept = None if stored.held_out is None else np.flatnonzero(~stored.held_out)
    plan = plan_epochs(config, stored.drawn, stored.held_out)
    codes, drawn_codes = (
        c.codes if kept is None else c.codes[kept] for c in (stored.cells, stored.drawn)
    )
    record = stored.record if kept is None else lambda at: stored.record(kept[at])
    spill = stored.spill

    def report(epoch: int, positions: NDArray[Any]) -> None:
        mixed = mixing(positions, drawn_codes, plan.n_classes, plan.batch_size)
        logger.info("epoch %d: %s", epoch + 1, mixed)

    drawn = config.mini_batch and logger.isEnabledFor(logging.INFO)
    if stored.ordered is not None:
        cells = stored.ordered.serve(report if drawn else None)
    else:
        cells = gathered(plan, lambda at: spill.gather(record(at)), report if drawn else None)
    scale = on_device(scaler, stored.device)
    served = Waited(scaled_batches(config, cells, codes, scale))
    first = next(served)
    schedule = schedule_of(config, first.cells.mean_square())
    solver = make_sgd(config, [schedule], stored, scale, start, threads)
    drawn_of = np.zeros(len(stored.cells.classes), np.int64)
    every = tallied(chain([first], served), drawn_of)
    del first  # it would stay beside the batches that are counted on
    judged = not config.mini_batch or config.early_stopping
    certificate, unconverged = None, ""
    with stage("Training", plan.epochs * plan.epoch_size, show=progress) as bar:
        if judged:
            stopping = _until_stopped(
                config, solver, stored, scale, plan, every, bar, sweep_bytes(room - spill.held)
            )
            certificate = {"n_iter": stopping.n_iter_, "converged": ~stopping.active}
            if config.stop_tol is not None:
                raised = "epochs" if config.mini_batch else "max_iter"
                unconverged = _words(
                    stored, stopping.active, f"after {plan.epochs} epochs: raise {raised}, or tol"
                )
        else:
            for batch in every:
                solver.partial_fit(batch.cells)
                bar.update(batch.cells.n_obs)
    logger.info("SGD waited %.1f s for cells, %.0f%% of its time", served.waited,
                100 * served.share)  # fmt: skip
    eta0 = None if config.step is None else schedule.eta0
    state = solver.state()
    if config.correct_prior:
        state = with_prior(state, np.bincount(codes, minlength=len(drawn_of)), drawn_of)
    return Fitted(state, certificate, unconverged, eta0)


def tallied(served: Iterable[Batch], counts: NDArray[np.int64]) -> Iterator[Batch]:
    """Batches as they come, the cells of each class being added to `counts`."""
    for batch in served:
        counts += np.bincount(batch.codes, minlength=len(counts))
        yield batch


def with_prior(state: State, cells: NDArray[np.int64], drawn: NDArray[np.int64]) -> State:
    """Shift the averaged intercepts from the classes' shares in the draws to those of the cells.

    A type's odds change by those of the shares (Elkan 2001, for one type against the rest); the
    last intercepts, which training goes on from, stay.
    """
    if state.average_intercept is None:
        logger.warning("correct_prior has no effect: no step was averaged (average)")
        return state
    of_cells, of_draws = ((n + 0.5) / (n.sum() + 1.0) for n in (cells, drawn))
    shift = np.log(of_cells / (1 - of_cells)) - np.log(of_draws / (1 - of_draws))
    shift[(cells == 0) | (drawn == 0)] = 0
    own = shift if len(state.intercept) > 1 else shift[1:]
    return replace(state, average_intercept=state.average_intercept + own)


def on_device(scaler: Scaler, device: Device | None) -> Scaler | DeviceScaler:
    """The same scaling, on the GPU if one trains."""
    if device is None:
        return scaler
    from streamtrain.gpu.cells import DeviceScaler

    return DeviceScaler(scaler, device)


def scaled_batches(
    config: Settings, served: Served, codes: NDArray[np.int32], scaler: Scaler | DeviceScaler
) -> Iterator[Batch]:
    """Mini-batches as training takes them."""
    share, seed = config.gene_dropout, config.random_state
    return batches(served, codes, scaler, gene_dropout=share, seed=seed)


def schedule_of(config: Settings, square: float) -> Schedule:
    """Steps and penalty of settings that leave no choice; `step` is over `square`, the mean |z|².

    A step of 1 / |z|² moves the score of its own cell by as much as its residual: larger ones
    overshoot, and the scores saturate, as the first ones of "optimal" do.
    """
    (alpha,), (step,) = config.alphas, config.steps
    rate, eta0 = config.learning_rate, config.eta0
    if step is not None:
        if square == 0:
            raise InputError(
                f"step={step!r} is over the mean squared length of the cells of the first "
                "mini-batch, which express none of the genes: raise batch_size, or pass "
                "learning_rate='constant' and eta0 in its place"
            )
        rate, eta0 = "constant", (1.0 if step == "auto" else float(step)) / square
    return Schedule(rate, alpha, eta0, config.power_t, config.penalty, config.sgd_l1_ratio)


def make_sgd(
    config: Settings,
    schedules: list[Schedule],
    stored: Stored,
    scaler: Scaler | DeviceScaler,
    start: State | None,
    threads: Threads,
    blocks_of: Sequence[Schedule] = (),
) -> SGD | DeviceSGD:
    """The solver of one model for each schedule; `blocks_of` is as of `SGD`."""
    classes, epochs = stored.cells.classes, not config.mini_batch
    sparse = stored.is_sparse and not config.with_mean
    options: dict[str, Any] = {
        "average": config.average,
        "intercept_rate": (SPARSE_INTERCEPT_RATE if sparse else 1.0) * config.fit_intercept,
        "loss": config.loss,
        "epsilon": config.epsilon,
        "class_weight": class_weights(config.class_weight, classes, stored.counts),
        "epochs": epochs,
        "dtype": config.dtype,
        "state": start,
        "blocks_of": blocks_of,
    }
    if stored.device is None:
        return SGD(len(classes), scaler.shift, schedules, sparse=sparse, threads=threads, **options)
    from streamtrain.gpu.sgd import DeviceSGD

    beside = batches_on_device(config, stored)
    return DeviceSGD(
        stored.device, len(classes), len(scaler.shift), schedules, beside=beside, **options
    )


def batches_on_device(config: Settings, stored: Stored) -> float:
    """Bytes of a GPU that batches take, and the held-out cells of early stopping.

    Under way, waiting and worked on, each in a buffer a quarter larger, with positions of four
    bytes at most.
    """
    item = np.dtype(config.dtype).itemsize + 4
    batch = stored.entries * item * batch_size(config)
    swept = _SWEEP if config.early_stopping else 0
    return 1.25 * (3 * batch + 2 * swept)


def _until_stopped(
    config: Settings,
    solver: SGD | DeviceSGD,
    stored: Stored,
    scaler: Scaler | DeviceScaler,
    plan: Plan,
    served: Iterator[Batch],
    bar: Any,
    nbytes: int,
) -> Stopping:
    """Train epoch by epoch; each class stops by scikit-learn's rule, on its own."""
    stopping = Stopping(
        solver.n_columns,
        tol=config.stop_tol,
        n_iter_no_change=config.n_iter_no_change,
        eta0=config.eta0 if config.learning_rate == "adaptive" else None,
    )
    held_out = None if stored.held_out is None else np.flatnonzero(stored.held_out)
    seen = 0
    for batch in served:
        solver.partial_fit(batch.cells)
        seen += batch.cells.n_obs
        bar.update(batch.cells.n_obs)
        if seen % plan.epoch_size:
            continue
        if held_out is not None:
            gain = _accuracy(solver, stored, held_out, scaler, nbytes)
        else:
            loss, penalty = solver.end_epoch()
            gain = -(loss + penalty) / plan.epoch_size
        slower, stopped = stopping.update(gain)
        solver.slow(slower)
        solver.freeze(stopped)
        if config.verbose:
            logger.info("epoch %d: %d cell types go on", batch.epoch + 1, stopping.active.sum())
        if not stopping.active.any():
            return stopping
    return stopping


def _accuracy(
    solver: SGD | DeviceSGD,
    stored: Stored,
    held_out: NDArray[np.int64],
    scaler: Scaler | DeviceScaler,
    nbytes: int,
) -> NDArray[np.float64]:
    """Share of the held-out cells on the right side of each column's boundary."""
    right = np.zeros(solver.n_columns, np.int64)
    for rows in _sweep(stored, held_out, nbytes, nbytes // (24 * solver.n_columns)):
        cells: Any = scaler(rows)  # of the same device as the solver
        right += solver.n_correct(cells)
    share: NDArray[np.float64] = right / len(held_out)
    return share


def _sweep(stored: Stored, positions: NDArray[np.int64], nbytes: int, most: int) -> Iterator[Rows]:
    """Cells from scratch with their codes, in order; about `nbytes` and `most` at a time."""
    spill = stored.spill
    step = max(1, min(most, int(nbytes / (spill.nbytes / spill.n_obs + 8))))
    for start in range(0, len(positions), step):
        part = positions[start : start + step]
        yield spill.gather(stored.record(part)).with_codes(stored.cells.codes[part])


def _fit_logistic(
    config: Settings,
    stored: Stored,
    scaler: Scaler,
    start: State | None,
    room: float,
    threads: Threads,
    progress: bool,
) -> Fitted:
    cells, n_genes = stored.cells, len(scaler.shift)
    room -= stored.spill.held
    size = Logistic.nbytes(n_genes)
    columns = 1 if len(cells.classes) == 2 else len(cells.classes)
    # The solver's vectors come first; the cells that do not fit in the rest lie on scratch.
    vectors = max(size, min(columns * size, 0.75 * room))
    reading = min((room - vectors) / 2, _READING)
    liblinear = config.solver == "liblinear"
    weights = problem_weights(config.class_weight, cells.classes, stored.counts, liblinear)
    solver = Logistic(
        scaler.shift,
        weights,
        stored.counts,
        penalty=_penalty(config),
        tol=config.stop_tol or 0.0,
        max_iter=config.most_passes(cells.n_obs),
        fit_intercept=config.fit_intercept,
        threads=threads,
        memory=vectors,
        start=start,
    )
    with Tiles(n_genes, config.dtype, room - vectors - reading, config.scratch) as tiles:
        sums = _sums(stored.device, tiles, weights, threads)
        # Alive at a time: a window as stored, scaled and by gene.
        for rows in _sweep(stored, np.arange(cells.n_obs), int(reading / 6), cells.n_obs):
            tiles.append(scaler(rows).rows)
        logger.info("solving on %s of scaled cells", format_bytes(tiles.nbytes))
        with stage("Training", None, show=progress) as bar:
            seen = 0

            def report(n: int, ended: int) -> None:
                nonlocal seen
                seen += n
                bar.set_postfix_str(f"{ended} of {columns} cell types done", refresh=False)
                bar.update(n)
                if config.verbose and seen % cells.n_obs == 0:
                    passes = seen // cells.n_obs
                    logger.info("pass %d: %d of %d cell types done", passes, ended, columns)

            solution = solver.fit(sums, report)
    certificate = solution.certificate
    logger.info("%d passes over the cells", certificate["n_passes"].max())
    dtype = config.dtype
    ended = certificate["n_iter"]
    most = config.most_passes(cells.n_obs)
    unconverged = _words(
        stored, ~certificate["converged"] & (ended >= most),
        f"after {most} iterations: raise max_iter, or tol",
    ) or _words(
        stored, ~certificate["converged"], "within the precision of the numbers: raise tol"
    )  # fmt: skip
    state = State(solution.coef.astype(dtype), solution.intercept)
    return Fitted(state, certificate, unconverged)


def _sums(
    device: Device | None, tiles: Tiles, weights: NDArray[np.float64], threads: Threads
) -> Sums:
    if device is None:
        return TileSums(tiles, weights, threads)
    from streamtrain.gpu.logistic import DeviceSums

    return DeviceSums(device, tiles, weights, column_classes(len(weights)))


def _penalty(config: Settings) -> Penalty:
    l1_ratio = {"l1": 1.0, "elasticnet": config.l1_ratio or 0.0}.get(config.penalty or "", 0.0)
    return Penalty(
        np.inf if config.penalty is None else config.C,
        l1_ratio,
        config.intercept_scaling if config.solver == "liblinear" else None,
    )


def _words(stored: Stored, which: NDArray[np.bool_], remedy: str) -> str:
    """Name the columns `which`, that did not converge; the one of two classes is the second."""
    classes = stored.cells.classes
    columns = classes[1:] if len(classes) == 2 else classes
    names = columns[which]
    if len(names) == 0:
        return ""
    share = f"{len(names)} of {len(columns)}"
    return f"{share} cell types did not converge {remedy}; {some(names, 10)}"
