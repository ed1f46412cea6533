"""Stochastic gradient descent: scaled batches in, weights per class out.

The iterates are those of scikit-learn's ``SGDClassifier`` on the dense scaled cells in the same
order, to rounding: of ``partial_fit``, or of ``fit`` where epochs are counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy, deepcopy
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streamtrain.kernels import sgd as kernel
from streamtrain.kernels import sgd_l1
from streamtrain.kernels.lanes import lanes_of
from streamtrain.kernels.sgd_dense import gram as dense_products
from streamtrain.scaling import Scaled
from streamtrain.solvers.counters import Counters, State, judged_cells, overflow
from streamtrain.solvers.schedule import LOSSES, PASSIVE, Loss, Penalty, Schedule
from streamtrain.solvers.stripe import Cells, Columns, Options, Steps, Stripe, Work, restripe, zeros
from streamtrain.threads import Threads

_PIECE = 1024  # cells of a batch at a time, for which products with each other are held


class SGD:
    """Linear classifiers, one class against the rest, by stochastic gradient descent.

    Parameters
    ----------
    n_classes
        Two classes make one column, more make one each.
    shift
        m of z = x' - m, shape (genes,); zero without centring and for dense genes. Batches may
        have another, where genes are dropped.
    schedule
        Step sizes and penalty; or those of several models that are trained on the same cells, whose
        columns stand one model after the other. Their L1 shares are one. An L1 penalty on dense
        cells costs every gene at each step.
    average
        False, or the step from which weights are averaged (True: from the first), as
        scikit-learn's.
    intercept_rate
        Factor of the intercept's step: 1, or `SPARSE_INTERCEPT_RATE` for a sparse matrix without
        centring, or 0 for no intercept.
    loss, epsilon
        One of `LOSSES`, and the epsilon of those that have one.
    class_weight
        Factor of the steps of each class's own cells, shape (n_classes,) or (models, n_classes);
        None for 1. With two classes both count, with more those of other classes' cells are 1, as
        in scikit-learn.
    sparse
        Whether scikit-learn would take the cells as a sparse matrix. The L1 penalty is then paid
        by a cell's own genes alone, and the norm that `end_epoch` sums is that of their weights.
    epochs
        Train as scikit-learn's ``fit``, which sums losses and penalties for `end_epoch` and
        remembers from one batch to the next what L1 penalty each weight has paid; ``partial_fit``
        forgets it.
    judged
        Without `epochs`, sum for `end_epoch` the losses of the first cell of an epoch and of every
        so-manyth after it; 0 for none.
    dtype
        Of the weights: float32 or float64. Sums over genes go on in float64 where several parts of
        some hundred genes come together.
    threads
        They share the columns; their number does not change the result, nor does that of the
        classes, to the bit (but that a block of cells ends for all columns where the decays of one
        have multiplied to 1e-3).
    state
        Where to continue from, all models' columns.
    blocks_of
        Schedules of all models over the stream, of which these are some, in whole rounds of
        `taken`: blocks of cells then end as if all were here and none frozen or slower. Sums are
        rounded by block, and so alike whichever models and columns are trained together.
    share
        The columns that are trained here, of one model; None for all. `state` is of all.
    """

    def __init__(
        self,
        n_classes: int,
        shift: NDArray[np.float64],
        schedule: Schedule | Sequence[Schedule],
        *,
        average: bool | int = False,
        intercept_rate: float = 1.0,
        loss: Loss = "log_loss",
        epsilon: float = 0.1,
        class_weight: ArrayLike | None = None,
        sparse: bool = False,
        epochs: bool = False,
        judged: int = 0,
        dtype: Any = np.float32,
        threads: Threads,
        state: State | None = None,
        blocks_of: Sequence[Schedule] = (),
        share: range | None = None,
    ) -> None:
        self.schedules = [schedule] if isinstance(schedule, Schedule) else list(schedule)
        self.average, self.sparse, self.epochs = int(average), sparse, epochs
        self.judged, self._seen = 1 if epochs else judged, 0
        kinds = {(s.l1_share, PASSIVE.get(s.learning_rate, 0)) for s in self.schedules}
        if len(kinds) > 1:
            raise ValueError("models over one stream share the penalty and the kind of steps")
        [(self._l1_share, passive)] = kinds
        norms = (kernel.STORED if sparse else kernel.WHOLE) if epochs else kernel.UNTRACKED
        self._options = Options(
            LOSSES[loss], float(epsilon), float(intercept_rate), passive, norms, self._l1_share
        )
        self._shift = np.ascontiguousarray(shift, np.float64)
        self._shift_of_q, self._centred = self._shift, bool(self._shift.any())
        self._dtype, self._threads, n_models = np.dtype(dtype), threads, len(self.schedules)
        each = 1 if n_classes == 2 else n_classes
        self.n_columns = (each if share is None else len(share)) * n_models
        if share is not None and n_models > 1:
            raise ValueError("columns are shared out of one model")
        state = state or State.zeros(self.n_columns, len(self._shift), dtype)
        self._counters = Counters(
            n_classes, self.schedules, self.average, state, class_weight, blocks_of, share
        )
        if share is not None and len(state.coef) > len(share):
            state = state.columns(share)
        self.model = self._counters.model
        self._frozen: list[Stripe] = []
        # Two classes make one column; of more, a cache line of columns are stepped together. That
        # must not follow from how many there are, as a column's sums are in another order.
        width = 1 if each == n_models == 1 else lanes_of(self._dtype)
        self._stripes = self._start(state, width)
        self._regroup()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_threads": None}

    def copy(self, threads: Threads) -> SGD:
        """The same, to go on by itself by these threads; also of one that was pickled."""
        other = copy(self)
        other._threads, other._counters = threads, deepcopy(self._counters)
        other._stripes = [stripe.copy() for stripe in self._stripes]
        other._frozen = [stripe.copy() for stripe in self._frozen]
        return other

    def _start(self, state: State, width: int) -> list[Stripe]:
        counters, stripes = self._counters, []
        for first in range(0, self.n_columns, width):
            at = np.arange(first, min(first + width, self.n_columns))
            n = len(at)

            def idle(values: NDArray[Any], fill: float = 0, n: int = n) -> NDArray[Any]:
                return np.pad(values, (0, width - n), constant_values=fill)

            U = zeros((len(self._shift), width), self._dtype)
            U[:, :n] = state.coef[at].T
            A, ab = zeros((len(U) if self.average else 0, width), self._dtype), np.zeros(width)
            averages = state.average_coef, state.average_intercept
            if self.average and averages[0] is not None and averages[1] is not None:
                A[:, :n] = averages[0][at].T * counters.n_averaged[at]
                ab[:n] = averages[1][at] * counters.n_averaged[at]
            q, square = _products(self._shift, U)
            zero = np.zeros(width)
            w = Columns(
                U=U,
                A=A,
                paid=zeros((len(U) if self._l1_share else 0, width), self._dtype),
                q=q,
                b=idle(np.asarray(state.intercept[at], np.float64)),
                ab=ab,
                owed=zero.copy(),
                square=square,
                absolute=np.abs(U).sum(axis=0, dtype=np.float64),
                loss=zero.copy(),
                penalty=zero.copy(),
                positive=idle(counters.positive[at]),
                negative=idle(counters.negative[at]),
                scale=zero + 1,
                total=zero.copy(),
                label=idle(counters.label[at], -1),
                group=np.zeros(width, np.int64),
            )
            stripes.append(Stripe(at, w))
        return stripes

    @property
    def t_(self) -> float:
        """Steps taken plus one, of the column that took the most."""
        return float(self._counters.t.max())

    def _regroup(self) -> None:
        """Give each stripe the groups of its columns."""
        if not self._stripes:
            return
        self._counters.regroup(np.concatenate([stripe.columns for stripe in self._stripes]))
        for stripe in self._stripes:
            stripe.w.group[: len(stripe.columns)] = self._counters.group[stripe.columns]

    def partial_fit(
        self,
        cells: Scaled,
        sample_weight: NDArray[np.float64] | None = None,
        *,
        taken: NDArray[np.bool_] | None = None,
    ) -> SGD:
        """Take one step for each cell of the batch, in order.

        Parameters
        ----------
        cells
            Scaled, with codes; with an L1 penalty no genes apart.
        sample_weight
            Factors of the cells' steps, shape (n_obs,); None for 1.
        taken
            Which cells each model takes, shape (models, n_obs), bool; None for all. A model trains
            as if the others were not in the batch, but for the rounding of sums, as blocks of cells
            end elsewhere. Not where losses are summed.

        Raises
        ------
        InputError
            If the weights overflow.
        """
        rows = cells.rows
        if rows.codes is None:
            raise ValueError("a batch needs label codes")
        weight = np.ones(rows.n_obs) if sample_weight is None else sample_weight
        weight = np.asarray(weight, np.float64)
        if weight.shape != (rows.n_obs,):
            raise ValueError(f"{rows.n_obs} cells need as many weights; got {weight.shape}")
        shape = len(self.schedules), rows.n_obs
        if taken is None:
            taken = np.ones(shape, bool)
        elif self.judged or taken.shape != shape or taken.dtype != bool:
            raise ValueError(
                f"`taken` is bool, {shape}, and not for epochs; got {taken.dtype}, {taken.shape}"
            )
        forgets = self._stripes if self._l1_share and not self.epochs else []
        for stripe in forgets:
            stripe.w.paid[:], stripe.w.owed[:] = 0, 0
        for start in range(0, rows.n_obs, _PIECE):
            stop = min(start + _PIECE, rows.n_obs)
            part = cells.slice(start, stop), weight[start:stop], taken[:, start:stop]
            self._partial_fit(*part)
        for stripe in forgets:
            sgd_l1.fold(stripe.w, np.inf)
        return self

    def _partial_fit(
        self, scaled: Scaled, weight: NDArray[np.float64], taken: NDArray[np.bool_]
    ) -> None:
        rows, dense_at, n_genes = scaled.rows, scaled.dense_at, len(self._shift)
        self._take_shift(scaled.shift)
        if not self._stripes or rows.codes is None:
            self._counters.count(taken, None)
            return
        n, n_dense, width = rows.n_obs, len(dense_at), self._stripes[0].width
        judged = judged_cells(self._seen, n, self.judged)
        self._seen += n
        size = block_size(n_dense, n_genes, width, centred=self._centred)
        dense = np.ascontiguousarray(scaled.dense, self._dtype)
        needs_lengths = self._options.passive or self._options.norms == kernel.WHOLE
        lengths = np.empty(n if needs_lengths else 0)
        if needs_lengths:
            shift_norm = float(np.sum(self._shift_of_q**2))
            kernel.lengths(rows.data, rows.indptr, scaled.dots, dense, shift_norm, lengths)
        # "pa1" passes over cells without entries.
        skips = self._options.passive == kernel.PASSIVE_1
        moves = lengths != 0 if skips else np.ones(n, bool)
        steps = self._counters.steps(taken, moves, size)
        wide = (0,) * lanes_of(self._dtype)
        blocked = width > 1 and n_dense > 0
        gram = np.empty((n, steps.largest) if blocked else (0, 0), self._dtype)
        if blocked:
            blocks = list(pairwise(steps.edges.tolist()))
            self._threads.each(lambda block: dense_products(dense, *block, gram, wide), blocks)
        cells = Cells(
            rows.data, rows.indices, rows.indptr, scaled.dots, dense, rows.codes, weight, judged,
            lengths, gram,
        )  # fmt: skip
        fine = []

        def step(stripe: Stripe) -> None:
            if self._l1_share:
                fine.append(self._step_l1(stripe, cells, steps))
                return
            w, lanes = stripe.w, (0,) * width
            work = Work.of(w, n_dense, steps.largest)
            fine.append(
                kernel.sgd(
                    cells, steps, self._options, self._shift_of_q, dense_at, w, work, lanes, wide
                )
            )

        self._threads.each(step, self._stripes)
        if not all(fine):
            raise overflow(self.schedules)
        self._counters.count(taken, steps)

    def _take_shift(self, shift: NDArray[np.float64]) -> None:
        """Bring q = W'm up to the shift of the next cells, where it is of another."""
        if shift is self._shift_of_q or np.array_equal(shift, self._shift_of_q):
            return
        self._shift_of_q = np.ascontiguousarray(shift, np.float64)

        def take(stripe: Stripe) -> None:
            stripe.w.q[:], _ = _products(self._shift_of_q, stripe.w.U)

        if not self._l1_share:  # which keeps no q
            self._threads.each(take, self._stripes + self._frozen)

    def _step_l1(self, stripe: Stripe, cells: Cells, steps: Steps) -> bool:
        w = stripe.w
        if cells.dense.shape[1]:
            raise ValueError("an L1 penalty takes no genes apart")
        # Where scikit-learn folds: under L1 its average depends on it.
        below = 1e-9 if self._dtype == np.float64 else 1e-6
        return bool(
            sgd_l1.sgd_l1(cells, steps, self._options, self._shift_of_q, not self.sparse, below, w)
        )

    def end_epoch(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Sums of loss and penalty since the last call, each as before its cell's step.

        Over the cells' number, their sum is the objective by which scikit-learn 1.8 and later
        stop; earlier ones take the loss alone.

        Returns
        -------
        loss
            Of the cells that are `judged`, shape (columns,), float64; NaN for frozen columns.
        penalty
            Likewise; 0 without `epochs`.
        """
        self._seen = 0
        sums = np.full((2, self.n_columns), np.nan)
        for stripe in self._stripes:
            at, n = stripe.columns, len(stripe.columns)
            sums[:, at] = stripe.w.loss[:n], stripe.w.penalty[:n]
            stripe.w.loss[:], stripe.w.penalty[:] = 0, 0
        return sums[0], sums[1]

    def rates(self) -> NDArray[np.float64]:
        """Size of each column's last step, shape (columns,); NaN for frozen columns."""
        return self._counters.rates()

    def freeze(self, columns: NDArray[np.int64]) -> None:
        """Stop training these columns: weights and averages stay, and cost no more time."""
        if not len(columns) or not self._stripes:
            return
        keep = np.ones(self.n_columns, bool)
        keep[columns] = False
        stripes, width = self._stripes, self._stripes[0].width
        self._frozen += restripe(stripes, ~keep, width)
        self._stripes = restripe(stripes, keep, width)
        self._regroup()

    def slow(self, columns: NDArray[np.int64]) -> None:
        """Divide the step of these columns by `SLOWER`."""
        if not len(columns):
            return
        self._counters.slow(columns)
        self._regroup()

    def scores(self, cells: Scaled) -> NDArray[np.float64]:
        """Decision scores under the present weights (not the averages), shape (n_obs, columns)."""
        rows = cells.rows
        self._take_shift(cells.shift)
        found = np.empty((rows.n_obs, self.n_columns))
        nothing = np.empty(0)
        dense = np.ascontiguousarray(cells.dense, self._dtype)
        taken = Cells(
            rows.data, rows.indices, rows.indptr, cells.dots, dense, np.empty(0, np.int32), nothing,
            np.empty(0, bool), nothing, np.empty((0, 0), self._dtype),
        )  # fmt: skip
        wide = (0,) * lanes_of(self._dtype)

        def score(stripe: Stripe) -> None:
            part, w = np.empty((rows.n_obs, stripe.width)), stripe.w
            q = np.einsum("g,gk", self._shift_of_q, w.U) if self._l1_share else w.q
            kernel.scores(taken, cells.dense_at, w, q, part, (0,) * stripe.width, wide)
            found[:, stripe.columns] = part[:, : len(stripe.columns)]

        self._threads.each(score, self._stripes + self._frozen)
        return found

    def n_correct(self, cells: Scaled) -> NDArray[np.int64]:
        """Cells on the right side of each column's boundary, shape (columns,), int64.

        Over the cells' number, the validation score by which scikit-learn stops early, but that
        it leaves out of the weights the L2 decay that it has not multiplied in yet.
        """
        if cells.rows.codes is None:
            raise ValueError("a batch needs label codes")
        right = (self.scores(cells) > 0) == (cells.rows.codes[:, None] == self._counters.label)
        counts: NDArray[np.int64] = np.count_nonzero(right, axis=0)
        return counts

    def state(self, model: int = 0) -> State:
        """Present weights, averages and counters of one model.

        With `epochs` and an averaged L1 penalty, only at the end: it folds, see `sgd_l1`.
        """
        stripes = self._stripes + self._frozen
        if self._l1_share:
            for stripe in stripes:
                sgd_l1.fold(stripe.w, np.inf)
        parts = ((s.columns, s.w.U, s.w.b, s.w.A, s.w.ab) for s in stripes)
        return self._counters.state(model, parts, len(self._shift), self._dtype)

    @staticmethod
    def nbytes(
        n_genes: int,
        n_classes: int,
        dtype: Any,
        average: bool | int,
        penalty: Penalty | None = "l2",
        epochs: bool = False,
    ) -> int:
        """Bytes that training one model needs, the export at the end included."""
        columns, item = 1 if n_classes == 2 else n_classes, int(np.dtype(dtype).itemsize)
        width = 1 if columns == 1 else lanes_of(dtype)
        weights = n_genes * (-(-columns // width) * width)  # idle columns included
        arrays = 1 + bool(average) + (penalty in ("l1", "elasticnet"))  # W, its sum, paid
        # Copies: what is exported, or all arrays where columns are frozen, twice.
        copies = arrays + (2 * arrays if epochs else 1)
        return weights * (item * copies + 16)


def _products(
    shift: NDArray[np.float64], U: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """W'm and |W|^2 of each column of the weights U, shape (columns,).

    Not by BLAS, whose threads spin on for a while and take the CPUs from ours.
    """
    width = U.shape[1]
    q, square, as_they_are = np.zeros(width), np.zeros(width), np.zeros((4, width), U.dtype)
    as_they_are[0] = 1
    kernel.settle(shift, as_they_are, U, U[:0], q, square, (0,) * width)
    return q, square


def block_size(n_dense: int, n_genes: int, width: int, *, centred: bool) -> int:
    """Cells of a block, by cost: products among dense genes against passes over all the weights.

    Measured in cycles for a cell and stripe of which four share the products: 0.16 / width for each
    dense gene and cell of the block, and 0.5 for each cell; against 4 for each gene, over the cells
    of the block. It follows from no number of classes, which would change how weights are rounded.
    Without either there is nothing to divide.
    """
    if not n_dense and not centred:
        return _PIECE
    if width == 1:  # no products
        return 256
    best = math.sqrt(4 * n_genes / (0.16 * n_dense / width + 0.5))
    return int(2 ** min(8, max(5, round(math.log2(best)))))
