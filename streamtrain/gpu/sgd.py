"""Stochastic gradient descent on a device: scaled batches in, weights per class out.

Blocks of cells are dense tiles Z there. With the weights W before a block, Z W and G = Z Z' give
the margins of all its cells: after a step s of cell i those of the cells after it decay, and move
by s times a row of G. So steps are found one by one from n x n numbers, for all columns at a time;
then W = a W + Z' V, with V the steps times the decays after them, and likewise the weights' sum.
The iterates are those of `solvers.sgd`, with sums in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streamtrain.errors import InputError
from streamtrain.gpu.aside import Aside
from streamtrain.gpu.cells import TILE, DeviceCells
from streamtrain.gpu.device import THREADS, Device
from streamtrain.gpu.products import Products
from streamtrain.kernels import blocks as kernel
from streamtrain.solvers.counters import Counters, State, Weights, judged_cells, overflow
from streamtrain.solvers.schedule import LOSSES, PASSIVE, Loss, Schedule
from streamtrain.solvers.stripe import Steps

_PIECE = 4096  # cells of a batch whose step sizes are made at a time
# What `_send_columns` makes, and what works beside.
_MADE = "_aside", "_product", "_sums", "_scores", "_V", "_moved", "_of_columns"


@dataclass
class DeviceColumns:
    """Weights of some columns on the device, and what goes with them.

    `U` and `A` have shape (genes, columns), A without averaging (0, columns); `sums` (5, columns),
    float64: intercepts, their sums, |W|^2, and sums of losses and penalties.
    """

    columns: NDArray[np.int64]
    U: Any
    A: Any
    sums: Any

    def take(self, at: NDArray[np.int64], xp: Any) -> DeviceColumns:
        """Some of them, by their places."""
        where = xp.asarray(at)
        taken = self.each(lambda a: xp.ascontiguousarray(a[:, where]))
        return replace(taken, columns=self.columns[at])

    def each(self, function: Callable[[Any], Any]) -> DeviceColumns:
        """The same columns with what a function gives of each array."""
        return DeviceColumns(self.columns, *map(function, (self.U, self.A, self.sums)))


class DeviceSGD:
    """`solvers.sgd.SGD` on a device, for dense cells with an L2 penalty or none.

    Parameters
    ----------
    device
        Where.
    n_classes, schedule, average, intercept_rate, loss, epsilon, class_weight, epochs, judged, dtype
        As of `SGD`.
    n_genes
        Number of genes.
    state, blocks_of
        As of `SGD`.
    beside
        Bytes on the device that batches take.

    Raises
    ------
    InputError
        For an L1 penalty or passive-aggressive steps, or where the weights do not fit.
    """

    def __init__(
        self,
        device: Device,
        n_classes: int,
        n_genes: int,
        schedule: Schedule | Sequence[Schedule],
        *,
        average: bool | int = False,
        intercept_rate: float = 1.0,
        loss: Loss = "log_loss",
        epsilon: float = 0.1,
        class_weight: ArrayLike | None = None,
        epochs: bool = False,
        judged: int = 0,
        dtype: Any = np.float32,
        state: State | None = None,
        blocks_of: Sequence[Schedule] = (),
        beside: float = 0,
    ) -> None:
        self._device, self._dtype, xp = device, np.dtype(dtype), device.xp
        self.schedules = [schedule] if isinstance(schedule, Schedule) else list(schedule)
        for one in self.schedules:
            check(one.penalty, one.learning_rate)
        self.average, self.epochs = int(average), epochs
        self.judged, self._seen = 1 if epochs else judged, 0
        tracked = kernel.PENALTIES if epochs else kernel.LOSSES if judged else kernel.NOTHING
        # Of the kernel's types.
        self._options = (
            np.int32(LOSSES[loss]), np.float64(epsilon), np.float64(intercept_rate),
            np.int32(tracked), np.int32(bool(average)),
        )  # fmt: skip
        self.n_columns = (1 if n_classes == 2 else n_classes) * len(self.schedules)
        needed = beside + nbytes(n_genes, self.n_columns, dtype, average)
        device.require(needed, f"SGD of {self.n_columns} columns x {n_genes:,} genes")
        state = state or State.zeros(self.n_columns, n_genes, dtype)
        self._counters = Counters(
            n_classes, self.schedules, self.average, state, class_weight, blocks_of
        )
        self.model, self._n_genes = self._counters.model, n_genes
        n_averaged = self._counters.n_averaged
        U = xp.array(np.asarray(state.coef, dtype).T, order="C")
        A = xp.zeros((n_genes if self.average else 0, self.n_columns), dtype)
        sums = np.zeros((5, self.n_columns))
        sums[0] = state.intercept
        averages = state.average_coef, state.average_intercept
        if self.average and averages[0] is not None and averages[1] is not None:
            A = xp.asarray(np.ascontiguousarray((averages[0].T * n_averaged).astype(dtype)))
            sums[1] = averages[1] * n_averaged
        self._active = DeviceColumns(np.arange(self.n_columns), U, A, xp.asarray(sums))
        self._frozen: list[DeviceColumns] = []
        self._aside, self._product = Aside(device, n_genes, self._dtype), Products(xp)
        self._send_columns()

    def __getstate__(self) -> dict[str, Any]:
        """What going on takes, on the host; `copy` brings it to a device."""
        state = {key: value for key, value in self.__dict__.items() if key not in _MADE}
        there: Device | None = self.__dict__["_device"]
        if there is None:  # of one that was kept
            return state
        to_host = there.to_host
        here = {
            "_active": self._active.each(to_host),
            "_frozen": [w.each(to_host) for w in self._frozen],
        }
        return state | here | {"_device": None}

    def copy(self, device: Device) -> DeviceSGD:
        """The same, to go on by itself on a device, of one that was kept."""
        other, xp = copy(self), device.xp  # as `__getstate__` tells
        other._device, other._counters = device, deepcopy(self._counters)
        other._active = self._active.each(lambda a: xp.array(a, order="C"))
        other._frozen = [w.each(lambda a: xp.array(a, order="C")) for w in self._frozen]
        other._aside, other._product = Aside(device, self._n_genes, self._dtype), Products(xp)
        other._send_columns()
        return other

    def _send_columns(self) -> None:
        """Copy what the kernel asks of the active columns, and make room for their blocks."""
        counters, at, xp = self._counters, self._active.columns, self._device.xp
        self._sums = tuple(self._active.sums)  # a view of each
        wide = len(at) * (1 + bool(self.average))
        self._scores = xp.empty((TILE, len(at)), self._dtype)
        self._V = xp.empty((TILE, wide), self._dtype)
        self._moved = xp.empty((self._n_genes, wide), self._dtype)
        self._of_columns = [
            xp.asarray(values[at])
            for values in (
                counters.group.astype(np.int32), counters.label, counters.positive,
                counters.negative,
            )
        ]  # fmt: skip

    @property
    def t_(self) -> float:
        """Steps taken plus one, of the column that took the most."""
        return float(self._counters.t.max())

    def partial_fit(
        self,
        cells: DeviceCells,
        sample_weight: NDArray[np.float64] | None = None,
        *,
        taken: NDArray[np.bool_] | None = None,
    ) -> DeviceSGD:
        """Take one step for each cell of the batch, in order; see `SGD.partial_fit`.

        The device is told what to do, and not waited for: weights that overflow are found when they
        are asked for. The cells are released.
        """
        if cells.codes is None:
            raise ValueError("a batch needs label codes")
        n = cells.n_obs
        weight = np.ones(n) if sample_weight is None else np.asarray(sample_weight, np.float64)
        if taken is None:
            taken = np.ones((len(self.schedules), n), bool)
        self._aside.begin(cells)
        for start in range(0, n, _PIECE):
            stop = min(start + _PIECE, n)
            self._piece(cells, start, stop, weight[start:stop], taken[:, start:stop])
        cells.release()
        return self

    def _piece(
        self,
        cells: DeviceCells,
        start: int,
        stop: int,
        weight: NDArray[np.float64],
        taken: NDArray[np.bool_],
    ) -> None:
        codes = cells.codes
        if codes is None or not len(self._active.columns):
            self._counters.count(taken, None)
            return
        n, averaging = stop - start, bool(self.average)
        judged = judged_cells(self._seen, n, self.judged)
        self._seen += n
        steps = self._counters.steps(taken, np.ones(n, bool), TILE)
        factors = later(steps)
        by_group = (steps.eta, steps.decay, steps.averaged & averaging, *factors)
        sent = self._device.send(
            codes[start:stop], weight, judged, *(np.ascontiguousarray(a.T) for a in by_group),
            steps.alpha, *begun(steps, factors), small=True,
        )  # fmt: skip
        *of_cells, alpha, whole, before = sent.wait()
        w = self._active
        for block, (first, end) in enumerate(pairwise(steps.edges.tolist())):
            made = self._aside(cells, start + first, start + end)
            if self.epochs:
                w.sums[2] = self._device.xp.square(w.U).sum(axis=0, dtype=np.float64)
            scores, V = self._scores, self._V
            if made.n < TILE:  # two views take the host 10 us
                scores, V = scores[: made.n], V[: made.n]
            self._product(made.tile, w.U, scores)
            self._steps(scores, made.gram, of_cells, alpha, first, V)
            self._product(made.by_gene, V, self._moved)
            made.release()
            self._settle(whole, before, block)
        sent.release()
        self._counters.count(taken, steps)

    def _steps(
        self, scores: Any, gram: Any, of_cells: list[Any], alpha: Any, first: int, out: Any
    ) -> None:
        device, n = self._device, len(scores)
        if device.xp is np:
            some = (a[first : first + n] for a in of_cells)
            given = *some, alpha, *self._of_columns, *self._options, *self._sums, out
            kernel.steps(scores, gram, *given)
            return
        sizes = first, n, scores.shape[1], len(alpha)
        device.launch(
            "steps", self._dtype, scores.shape[1], scores, gram, *of_cells, alpha,
            *self._of_columns, *map(np.int32, sizes), *self._options, *self._sums, out,
        )  # fmt: skip

    def _settle(self, whole: Any, before: Any, block: int) -> None:
        w, device, averaging = self._active, self._device, bool(self.average)
        group = self._of_columns[0]
        if device.xp is np:
            kernel.settle(self._moved, whole[block], before[block], group, averaging, w.U, w.A)
            return
        device.launch(
            "settle", self._dtype, -(-w.U.size // THREADS), self._moved, whole, before, group,
            np.int32(block), np.int32(whole.shape[1]), np.int64(w.U.size),
            np.int32(w.U.shape[1]), np.int32(averaging), w.U, w.A,
        )  # fmt: skip

    def end_epoch(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Sums of loss and penalty since the last call; see `SGD.end_epoch`.

        Raises
        ------
        InputError
            If the weights overflowed.
        """
        sums = np.full((2, self.n_columns), np.nan)
        on_host = self._device.to_host(self._active.sums)
        # Without epochs the sums of losses alone may overflow, which nothing goes by.
        if not np.isfinite(on_host if self.epochs else on_host[:2]).all():
            raise overflow(self.schedules)
        self._seen = 0
        sums[:, self._active.columns] = on_host[3:]
        self._active.sums[3:] = 0
        return sums[0], sums[1]

    def rates(self) -> NDArray[np.float64]:
        """Size of each column's last step, shape (columns,); NaN for frozen columns."""
        return self._counters.rates()

    def freeze(self, columns: NDArray[np.int64]) -> None:
        """Stop training these columns: weights and averages stay, and cost no more time."""
        if not len(columns):
            return
        mine, xp = np.isin(self._active.columns, columns), self._device.xp
        self._frozen.append(self._active.take(np.flatnonzero(mine), xp))
        self._active = self._active.take(np.flatnonzero(~mine), xp)
        self._regroup()

    def slow(self, columns: NDArray[np.int64]) -> None:
        """Divide the step of these columns by `SLOWER`."""
        if not len(columns):
            return
        self._counters.slow(columns)
        self._regroup()

    def _regroup(self) -> None:
        if len(self._active.columns):
            self._counters.regroup(self._active.columns)
            self._send_columns()

    def scores(self, cells: DeviceCells) -> NDArray[np.float64]:
        """Decision scores under the present weights (not the averages), shape (n_obs, columns)."""
        parts = [self._active, *self._frozen]
        on_device = [self._device.xp.empty((cells.n_obs, len(w.columns))) for w in parts]
        for some, Z in cells.tiles():
            for w, scores in zip(parts, on_device, strict=True):
                scores[some] = Z @ w.U
        cells.release()
        found = np.empty((cells.n_obs, self.n_columns))
        for w, scores in zip(parts, on_device, strict=True):
            scores += w.sums[0]
            found[:, w.columns] = self._device.to_host(scores)
        return found

    def n_correct(self, cells: DeviceCells) -> NDArray[np.int64]:
        """Cells on the right side of each column's boundary; see `SGD.n_correct`."""
        if cells.codes is None:
            raise ValueError("a batch needs label codes")
        codes, scores = cells.codes, self.scores(cells)
        if not np.isfinite(scores).all():
            raise overflow(self.schedules)
        right = (scores > 0) == (codes[:, None] == self._counters.label)
        counts: NDArray[np.int64] = np.count_nonzero(right, axis=0)
        return counts

    def state(self, model: int = 0) -> State:
        """Present weights, averages and counters of one model.

        Raises
        ------
        InputError
            If the weights overflowed.
        """
        return self._counters.state(model, self._weights(model), self._n_genes, self._dtype)

    def _weights(self, model: int) -> Iterator[Weights]:
        """Weights of a model's columns, on the host."""
        for w in (self._active, *self._frozen):
            own = np.flatnonzero(self.model[w.columns] == model)
            if not len(own):
                continue
            w = w.take(own, self._device.xp)
            U, A, sums = (self._device.to_host(a) for a in (w.U, w.A, w.sums))
            if not (np.isfinite(U).all() and np.isfinite(sums[0]).all()):
                raise overflow(self.schedules)
            yield w.columns, U, sums[0], A, sums[1]


def check(penalty: str | None, learning_rate: str) -> None:
    """Refuse what blocks of cells cannot do.

    Raises
    ------
    InputError
        For an L1 penalty or passive-aggressive steps.
    """
    if penalty in ("l1", "elasticnet"):
        raise InputError(
            f"penalty={penalty!r} visits every gene at each step of SGD, which is for the CPU "
            "alone: leave out device, or pass penalty='l2'"
        )
    if learning_rate in PASSIVE:
        raise InputError(
            f"learning_rate={learning_rate!r} is for the CPU alone: leave out device, or pass "
            "another"
        )


def nbytes(n_genes: int, n_columns: int, dtype: Any, average: bool | int) -> int:
    """Bytes on the device of the weights, two tiles, and what a block makes of them.

    Of no columns: what all share.
    """
    arrays = 1 + bool(average)
    item = int(np.dtype(dtype).itemsize)
    weights = n_genes * n_columns * item * (2 * arrays + 1)  # moved, and taken when some freeze
    return weights + TILE * (2 * n_genes + 4 * n_columns + 2 * TILE) * item


def later(steps: Steps) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What a step counts for at the end of its block, and in the sum of the averaged weights.

    Shape (groups, n_obs) each: the product of the decays after the step, and the sum of that
    product, as of each averaged step from this one on.
    """
    after, tail = np.empty(steps.decay.shape), np.empty(steps.decay.shape)
    kernel.later(steps.decay, steps.averaged, steps.edges, after, tail)
    return after, tail


def begun(
    steps: Steps, factors: tuple[NDArray[np.float64], NDArray[np.float64]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What the weights before a block count for after it, and in its sum, (blocks, groups) each."""
    starts = steps.edges[:-1]
    first = steps.decay[:, starts]
    whole, summed = (first * factor[:, starts] for factor in factors)
    return np.ascontiguousarray(whole.T), np.ascontiguousarray(summed.T)
