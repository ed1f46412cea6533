"""Weights, and an epoch's mini-batches dealt to several copies of a model, in; their mean out.

Data-parallel SGD as of McDonald, Hall and Mann (2010), with an average after every epoch: local SGD
(Stich 2019). An approximation of SGD over all the batches, each copy taking a share of the steps.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from streamtrain.batches import Batch, planned
from streamtrain.config import Settings
from streamtrain.descent import (
    JUDGED,
    make_sgd,
    on_device,
    plan_epochs,
    scaled_batches,
    schedule_of,
    with_prior,
)
from streamtrain.frozen import Keep
from streamtrain.history import Curve, of_epochs
from streamtrain.pairwise import PairwiseSum
from streamtrain.progress import stage
from streamtrain.scaling import Scaler
from streamtrain.solvers.counters import State
from streamtrain.solvers.schedule import Schedule
from streamtrain.stored import Fitted, Stored
from streamtrain.threads import Threads

if TYPE_CHECKING:
    from streamtrain.gpu.cells import DeviceScaler

_COUNTS = ("t", "n_averaged")


@dataclass(frozen=True, slots=True)
class Replica:
    """Weights of copies, times the steps that each took since the last mean; two of them add up.

    Attributes
    ----------
    state
        Each array times the steps; `t` and `n_averaged` are the largest.
    drawn
        Cells of each class that were taken, shape (n_classes,); their sum is the steps.
    eta0
        Constant step that `step` came to; None without it.
    loss, judged
        Sums of losses, shape (columns,), and the number of cells whose they are.
    rates
        Size of each column's last step, the least of the copies', shape (columns,).
    """

    state: State
    drawn: NDArray[np.int64]
    eta0: float | None
    loss: NDArray[np.float64]
    judged: int
    rates: NDArray[np.float64]

    def __add__(self, other: Replica) -> Replica:
        sums: dict[str, Any] = {}
        for name in State.__dataclass_fields__:
            one, two = getattr(self.state, name), getattr(other.state, name)
            add = np.maximum if name in _COUNTS else np.add
            sums[name] = None if one is None or two is None else add(one, two)
        return Replica(
            State(**sums), self.drawn + other.drawn, self.eta0, self.loss + other.loss,
            self.judged + other.judged, np.minimum(self.rates, other.rates),
        )  # fmt: skip

    def times(self, factor: float) -> State:
        """The state with its weights multiplied."""
        weights = {
            name: values * values.dtype.type(factor)
            for name in State.__dataclass_fields__
            if name not in _COUNTS and (values := getattr(self.state, name)) is not None
        }
        return replace(self.state, **weights)

    def mean(self) -> State:
        """Of all copies that were added up."""
        return self.times(1 / int(self.drawn.sum()))

    def end_epoch(self, curve: Curve) -> None:
        """Add the epoch to the curve, once all copies are added up."""
        curve.add(int(self.drawn.sum()), self.loss / self.judged, self.rates)


def train_replica(
    config: Settings,
    stored: Stored,
    scaler: Scaler | DeviceScaler,
    start: State | None,
    threads: Threads,
    schedule: Schedule,
    batches: Iterator[Batch],
) -> Replica | None:
    """One epoch of one copy, which takes the `batches`; None where there are none."""
    solver, drawn = None, np.zeros(len(stored.cells.classes), np.int64)
    for batch in batches:
        solver = solver or make_sgd(
            config, [schedule], stored, scaler, start, threads, blocks_of=[schedule],
            judged=JUDGED,
        )  # fmt: skip
        solver.partial_fit(batch.cells)
        drawn += np.bincount(batch.codes, minlength=len(drawn))
    if solver is None:
        return None
    n, (loss, _) = int(drawn.sum()), solver.end_epoch()
    eta0 = None if config.step is None else schedule.eta0
    one = Replica(solver.state(), drawn, eta0, loss, -(-n // solver.judged), solver.rates())
    return replace(one, state=one.times(n))


def train_replicas(
    config: Settings,
    stored: Stored,
    scaler: Scaler,
    start: State | None,
    threads: Threads,
    epoch: int,
    numbers: Iterable[int],
) -> PairwiseSum[Replica]:
    """One epoch of some copies, one after the other.

    Each takes every `replicas`-th batch of the epoch, the first that of its number.
    """
    plan, n = plan_epochs(config, stored.drawn, None), config.replicas
    scale = on_device(scaler, stored.device)
    each = -(-plan.epoch_size // plan.batch_size)  # batches of an epoch
    every = list(islice(planned(plan, None, epoch), each))

    def scaled(batches: Iterable[tuple[int, NDArray[np.int64]]], first: int) -> Iterator[Batch]:
        served = ((e, cells, stored.spill.gather(stored.record(cells))) for e, cells in batches)
        return scaled_batches(config, served, stored.cells.codes, scale, first, n)

    square = 0.0
    if config.step is not None:  # it goes by the first batch of all in every copy
        square = next(scaled(islice(planned(plan), 1), 0)).cells.mean_square()
    schedule = schedule_of(config, square)
    copies: PairwiseSum[Replica] = PairwiseSum()
    for number in numbers:
        batches = scaled(every[number::n], epoch * each + number)
        one = train_replica(config, stored, scale, start, threads, schedule, batches)
        if one is not None:
            copies.add(one, number)
    return copies


def fit_replicas(
    config: Settings,
    stored: Stored,
    scaler: Scaler,
    start: State | None,
    threads: Threads,
    *,
    progress: bool,
    before: list[Any] | None = None,
    keep: Keep | None = None,
) -> Fitted:
    """Train the copies one after the other, epoch by epoch; see `rounds.fit`."""
    plan = plan_epochs(config, stored.drawn, None)
    total: Replica | None
    first, total, drawn, curve = before or nothing_yet(len(stored.cells.classes))
    began = time.perf_counter()
    with stage("Training", (plan.epochs - first) * plan.epoch_size, show=progress) as bar:
        for epoch in range(first, plan.epochs):
            state = start if total is None else total.mean()
            every = range(config.replicas)
            copies = train_replicas(config, stored, scaler, state, threads, epoch, every)
            total = copies.total()
            bar.update(int(total.drawn.sum()))
            drawn = drawn + total.drawn
            began, curve.seconds = time.perf_counter(), time.perf_counter() - began
            total.end_epoch(curve)
            if keep is not None:
                keep(partial(list, [epoch + 1, total, drawn, curve.copy()]))
    if total is None:
        raise ValueError("there are no epochs")
    return averaged(config, stored.cells.counts, total, drawn, curve)


def nothing_yet(n_classes: int) -> list[Any]:
    """Epochs that are done, copies added up, cells of each class that were taken, and the curve."""
    return [0, None, np.zeros(n_classes, np.int64), Curve(["loss", "learning_rate"])]


def averaged(
    config: Settings,
    counts: NDArray[np.int64],
    last: Replica,
    drawn: NDArray[np.int64],
    curve: Curve,
) -> Fitted:
    """What training ends with, of `counts` cells of each class; so many were `drawn` in all."""
    state = last.mean()
    if config.correct_prior:
        state = with_prior(state, counts, drawn)
    return Fitted(state, eta0=last.eta0, drawn=drawn, history=of_epochs([curve]))
