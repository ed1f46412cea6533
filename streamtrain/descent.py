"""A plan, kept cells and settings in; SGD under way out, to go on from or as weights."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.batches import Batch, Served, Waited, batches, gathered
from streamtrain.cells import Cells
from streamtrain.config import Settings
from streamtrain.errors import InputError
from streamtrain.frozen import Keep
from streamtrain.history import Curve, of_epochs
from streamtrain.mixing import mixing
from streamtrain.progress import stage
from streamtrain.quotas import Quotas
from streamtrain.sampling import Plan
from streamtrain.sampling_columns import check_weights
from streamtrain.scaling import Scaler
from streamtrain.solvers.class_weight import class_weights
from streamtrain.solvers.counters import State
from streamtrain.solvers.schedule import SPARSE_INTERCEPT_RATE, Schedule
from streamtrain.solvers.sgd import SGD
from streamtrain.solvers.stopping import Stopping
from streamtrain.stored import Fitted, Stored, unconverged
from streamtrain.threads import Threads

if TYPE_CHECKING:
    from streamtrain.gpu.cells import DeviceScaler
    from streamtrain.gpu.device import Device
    from streamtrain.gpu.sgd import DeviceSGD

logger = logging.getLogger(__name__)

_EPOCH_BATCH = 256  # cells that SGD takes at a time where epochs have no mini-batches
# Every so-manyth cell's loss is summed over mini-batches: that costs 0% to 2.5% of the steps, and
# all of them 1% to 35%, most for few genes and many classes (2,000 and 200; one thread, log_loss).
JUDGED = 16
_SWEEP = 32 * 10**6  # bytes of held-out cells, and of their scores, at a time, at most


@dataclass(slots=True)
class Descent:
    """SGD between two mini-batches: all that going on takes, elsewhere too, to the same bits.

    Attributes
    ----------
    solver
        With its weights.
    eta0
        Constant step that `step` came to; None without it.
    drawn
        Cells of each class taken so far, shape (n_classes,).
    stopping
        Which columns go on, where epochs are judged; else None.
    curve
        What each epoch came to.
    epoch, batches
        Epochs that are done, and mini-batches of the next one.
    ended
        Whether nothing is left to do.
    """

    solver: SGD | DeviceSGD
    eta0: float | None
    drawn: NDArray[np.int64]
    stopping: Stopping | None
    curve: Curve
    epoch: int = 0
    batches: int = 0
    ended: bool = False


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


def descend(
    config: Settings,
    stored: Stored,
    scaler: Scaler,
    start: State | None,
    room: float,
    threads: Threads,
    *,
    progress: bool,
    before: Descent | None = None,
    due: Callable[[], bool] | None = None,
    keep: Keep | None = None,
) -> Descent:
    """Train to the end, or until an epoch ends and it is `due`.

    Parameters
    ----------
    scaler, start, room
        As of `rounds.fit`.
    before
        Where to go on from, in place of `start`; it stays as it is.
    keep
        Called after each mini-batch with what gives the state then.
    """
    kept = None if stored.held_out is None else np.flatnonzero(~stored.held_out)
    plan = plan_epochs(config, stored.drawn, stored.held_out)
    codes, drawn_codes = (
        c.codes if kept is None else c.codes[kept] for c in (stored.cells, stored.drawn)
    )
    record = stored.record if kept is None else lambda at: stored.record(kept[at])
    spill = stored.spill
    first, done = (0, 0) if before is None else (before.epoch, before.batches)

    def report(epoch: int, positions: NDArray[Any]) -> None:
        mixed = mixing(positions, drawn_codes, plan.n_classes, plan.batch_size)
        logger.info("epoch %d: %s", epoch + 1, mixed)

    drawn = config.mini_batch and logger.isEnabledFor(logging.INFO)
    if stored.ordered is not None:
        cells = stored.ordered.serve(report if drawn else None)
    else:
        gather = lambda at: spill.gather(record(at))  # noqa: E731
        cells = gathered(plan, gather, report if drawn else None, first, done)
    scale = on_device(scaler, stored.device)
    before_it = first * -(-plan.epoch_size // plan.batch_size) + done
    began = time.perf_counter()
    served = Waited(scaled_batches(config, cells, codes, scale, before_it))
    every: Iterator[Batch] = served
    if before is not None:
        run = replace(
            before, solver=resumed(before.solver, stored.device, threads),
            drawn=before.drawn.copy(), stopping=deepcopy(before.stopping),
            curve=before.curve.copy(),
        )  # fmt: skip
    else:
        batch = next(served)
        run, every = _begun(config, stored, scale, batch, start, threads), chain([batch], served)
        del batch  # it would stay beside the batches that are counted on
    held_out = None if stored.held_out is None else np.flatnonzero(stored.held_out)
    nbytes, seen = sweep_bytes(room - spill.held), done * plan.batch_size
    with stage("Training", (plan.epochs - first) * plan.epoch_size - seen, show=progress) as bar:
        for batch in every:
            run.solver.partial_fit(batch.cells)
            run.drawn += np.bincount(batch.codes, minlength=len(run.drawn))
            seen += batch.cells.n_obs
            bar.update(batch.cells.n_obs)
            run.batches += 1
            began = _spent(run, began)
            if seen % plan.epoch_size == 0:
                run.epoch, run.batches = batch.epoch + 1, 0
                told = _judge(config, run, stored, held_out, scale, plan, nbytes)
                began = _spent(run, began)
                run.curve.add(plan.epoch_size, *told)
                if run.ended or (due is not None and due()):
                    break
            if keep is not None:
                keep(lambda: run)
    run.ended |= run.epoch == plan.epochs
    logger.info("SGD waited %.1f s for cells, %.0f%% of its time", served.waited,
                100 * served.share)  # fmt: skip
    return run


def _begun(
    config: Settings,
    stored: Stored,
    scaler: Scaler | DeviceScaler,
    first: Batch,
    start: State | None,
    threads: Threads,
) -> Descent:
    """A solver that has taken no step; `first` is the first batch."""
    schedule = schedule_of(config, first.cells.mean_square())
    # Blocks of cells then end alike, whichever classes are trained here.
    solver = make_sgd(
        config, [schedule], stored, scaler, start, threads, blocks_of=[schedule], judged=JUDGED
    )
    stopping, names = None, ["loss", "learning_rate"]
    if not config.mini_batch or config.early_stopping:
        stopping = Stopping(
            solver.n_columns,
            tol=config.stop_tol,
            n_iter_no_change=config.n_iter_no_change,
            eta0=config.eta0 if config.learning_rate == "adaptive" else None,
        )
        names += ["accuracy"] * (stored.held_out is not None)
    drawn, eta0 = np.zeros(len(stored.cells.classes), np.int64), schedule.eta0
    return Descent(solver, None if config.step is None else eta0, drawn, stopping, Curve(names))


def _spent(run: Descent, since: float) -> float:
    """Add the time since then to the epoch's; the time now."""
    now = time.perf_counter()
    run.curve.seconds += now - since
    return now


def resumed(solver: SGD | DeviceSGD, device: Device | None, threads: Threads) -> SGD | DeviceSGD:
    """A solver that was kept, to go on by itself here."""
    if isinstance(solver, SGD):
        return solver.copy(threads)
    if device is None:
        raise ValueError("a solver on a device goes on there")
    return solver.copy(device)


def _judge(
    config: Settings,
    run: Descent,
    stored: Stored,
    held_out: NDArray[np.int64] | None,
    scaler: Scaler | DeviceScaler,
    plan: Plan,
    nbytes: int,
) -> list[NDArray[np.float64]]:
    """At the end of an epoch each class stops by scikit-learn's rule, on its own.

    Gives the values of the curve.
    """
    solver, stopping = run.solver, run.stopping
    loss, penalty = solver.end_epoch()
    told = [loss / -(-plan.epoch_size // solver.judged), solver.rates()]
    if stopping is None:
        return told
    if held_out is not None:
        gain = _accuracy(solver, stored, held_out, scaler, nbytes)
        told.append(gain)
    else:
        gain = -(loss + penalty) / plan.epoch_size
    slower, stopped = stopping.update(gain)
    solver.slow(slower)
    solver.freeze(stopped)
    run.ended = not stopping.active.any()
    if config.verbose:
        logger.info("epoch %d: %d cell types go on", run.epoch, stopping.active.sum())
    return told


def _accuracy(
    solver: SGD | DeviceSGD,
    stored: Stored,
    held_out: NDArray[np.int64],
    scaler: Scaler | DeviceScaler,
    nbytes: int,
) -> NDArray[np.float64]:
    """Share of the held-out cells on the right side of each column's boundary."""
    right = np.zeros(solver.n_columns, np.int64)
    for rows in stored.sweep(held_out, nbytes, nbytes // (24 * solver.n_columns)):
        cells: Any = scaler(rows)  # of the same device as the solver
        right += solver.n_correct(cells)
    share: NDArray[np.float64] = right / len(held_out)
    return share


def fitted(
    config: Settings, cells: Cells, held_out: NDArray[np.bool_] | None, runs: Sequence[Descent]
) -> Fitted:
    """Weights of all columns of the `cells`, of which each run that ended has some, in order.

    Steps are counted to the end of the last class, as where all are trained together.
    """
    states = [run.solver.state() for run in runs]
    last = max(runs, key=lambda run: run.epoch)
    steps = max(int(run.drawn.sum()) for run in runs)
    states = [
        replace(state, t=state.t + (steps - int(run.drawn.sum())))
        for run, state in zip(runs, states, strict=True)
    ]
    state = states[0] if len(states) == 1 else State.joined(states)
    certificate, words = None, ""
    stopping = [run.stopping for run in runs if run.stopping is not None]
    if stopping:
        active = np.concatenate([each.active for each in stopping])
        n_iter = np.concatenate([each.n_iter_ for each in stopping])
        certificate = {"n_iter": n_iter, "converged": ~active}
        if config.stop_tol is not None:
            raised = "epochs" if config.mini_batch else "max_iter"
            remedy = f"after {last.epoch} epochs: raise {raised}, or tol"
            words = unconverged(cells.classes, active, remedy)
    if config.correct_prior:
        codes = cells.codes if held_out is None else cells.codes[~held_out]
        state = with_prior(state, np.bincount(codes, minlength=len(last.drawn)), last.drawn)
    history = of_epochs([run.curve for run in runs])
    return Fitted(state, certificate, words, last.eta0, last.drawn, history)


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
    config: Settings,
    served: Served,
    codes: NDArray[np.int32],
    scaler: Scaler | DeviceScaler,
    first: int = 0,
    step: int = 1,
) -> Iterator[Batch]:
    """Mini-batches as training takes them, the `first` and every `step`-th of the plan."""
    share, seed = config.gene_dropout, config.random_state
    numbers = count(first, step)
    return batches(served, codes, scaler, gene_dropout=share, seed=seed, numbers=numbers)


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
    judged: int = 0,
) -> SGD | DeviceSGD:
    """The solver of one model for each schedule; `blocks_of` and `judged` are as of `SGD`."""
    classes, epochs = stored.cells.classes, not config.mini_batch
    sparse = stored.is_sparse and not config.with_mean
    options: dict[str, Any] = {
        "average": config.average,
        "intercept_rate": (SPARSE_INTERCEPT_RATE if sparse else 1.0) * config.fit_intercept,
        "loss": config.loss,
        "epsilon": config.epsilon,
        "class_weight": class_weights(config.class_weight, classes, stored.counts),
        "epochs": epochs,
        "judged": judged,
        "dtype": config.dtype,
        "state": start,
        "blocks_of": blocks_of,
    }
    if stored.device is None:
        return SGD(
            len(classes), scaler.shift, schedules, sparse=sparse, threads=threads,
            share=stored.share, **options,
        )  # fmt: skip
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


def batch_size(config: Settings) -> int:
    """Cells that SGD takes at a time."""
    return config.batch_size if config.mini_batch else _EPOCH_BATCH


def sweep_bytes(room: float) -> int:
    """Bytes of held-out cells, and of their scores, at a time."""
    return int(min(_SWEEP, room / 20))
