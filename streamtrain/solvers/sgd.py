"""Stochastic gradient descent: scaled batches in, weights per class out.

The iterates are those of scikit-learn's ``SGDClassifier`` on the dense scaled cells in the same
order, to rounding: of ``partial_fit``, or of ``fit`` where epochs are counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streamtrain.errors import InputError
from streamtrain.kernels import sgd as kernel
from streamtrain.scaling import Scaled
from streamtrain.solvers.stripe import Columns, Stripe
from streamtrain.threads import Threads, spans

LearningRate = Literal["optimal", "constant", "invscaling", "adaptive"]
Penalty = Literal["l2", "l1", "elasticnet"]
Loss = Literal["log_loss", "hinge", "modified_huber"]
LOSSES: dict[str, int] = {
    "log_loss": kernel.LOG,
    "hinge": kernel.HINGE,
    "modified_huber": kernel.MODIFIED_HUBER,
}
SPARSE_INTERCEPT_RATE = 0.01  # of the intercept's step on sparse input, scikit-learn's
SLOWER = 5  # divides the step of an "adaptive" class that stops improving, scikit-learn's


@dataclass(frozen=True, slots=True)
class Schedule:
    """Step size and penalty of each step, as scikit-learn's.

    "optimal" is 1 / (alpha (t0 + t - 1)) with t0 = 1 / (alpha sqrt(1 / sqrt(alpha))), Bottou's
    heuristic; "constant" eta0; "invscaling" eta0 / t^power_t; "adaptive" eta0 until `SGD.slow`.
    The penalty is alpha times |W|^2 / 2 ("l2"), |W|_1 ("l1"), their mean weighted by l1_ratio
    ("elasticnet"), or none.
    """

    learning_rate: LearningRate = "optimal"
    alpha: float = 1e-4
    eta0: float = 0.01
    power_t: float = 0.5
    penalty: Penalty | None = "l2"
    l1_ratio: float = 0.15

    @property
    def l1_share(self) -> float:
        """Share of alpha in the L1 penalty."""
        return {"l1": 1.0, "elasticnet": self.l1_ratio}.get(self.penalty or "", 0.0)

    def steps(self, t: float, n: int) -> NDArray[np.float64]:
        """Step sizes of the steps t, t + 1, ..., t + n - 1."""
        count = t + np.arange(n, dtype=np.float64)
        if self.learning_rate == "optimal":
            t0 = 1 / (math.sqrt(1 / math.sqrt(self.alpha)) * self.alpha)
            return 1 / (self.alpha * (t0 + count - 1))
        if self.learning_rate == "invscaling":
            return self.eta0 / np.power(count, self.power_t)
        return np.full(n, self.eta0)

    def decays(self, steps: NDArray[np.float64]) -> NDArray[np.float64]:
        """Factors of the weights before each step."""
        if self.penalty is None:
            return np.ones(len(steps))
        return np.maximum(0.0, 1.0 - (1.0 - self.l1_share) * steps * self.alpha)


@dataclass(frozen=True, slots=True)
class State:
    """All that training needs to continue.

    Attributes
    ----------
    coef, intercept
        Present weights, shape (columns, genes) and (columns,); one column for two classes.
    average_coef, average_intercept
        Means of the weights over the averaged steps, or None.
    t
        Steps taken plus one, scikit-learn's ``t_``.
    """

    coef: NDArray[Any]
    intercept: NDArray[np.float64]
    average_coef: NDArray[Any] | None = None
    average_intercept: NDArray[np.float64] | None = None
    t: float = 1.0


class SGD:
    """Linear classifiers, one class against the rest, by stochastic gradient descent.

    Parameters
    ----------
    n_classes
        Two classes make one column, more make one each.
    shift
        m of z = x' - m, shape (genes,); zero without centring.
    schedule
        Step sizes and penalty. An L1 penalty on dense cells costs every gene at each step.
    average
        False, or the step from which weights are averaged (True: from the first), as
        scikit-learn's.
    intercept_rate
        Factor of the intercept's step: 1, or `SPARSE_INTERCEPT_RATE` for a sparse matrix without
        centring, or 0 for no intercept.
    loss
        One of `LOSSES`.
    class_weight
        Factor of the steps of each class's own cells, shape (n_classes,); None for 1. With two
        classes both count, with more those of other classes' cells are 1, as in scikit-learn.
    sparse
        Whether scikit-learn would take the cells as a sparse matrix. The L1 penalty is then paid
        by a cell's own genes alone, and the norm that `end_epoch` sums is that of their weights.
    epochs
        Train as scikit-learn's ``fit``, which sums losses for `end_epoch` and remembers from one
        batch to the next what L1 penalty each weight has paid; ``partial_fit`` forgets it.
    dtype
        Of the weights: float32 or float64. Sums over genes are float64 in both.
    threads
        They share the columns; their number does not change the result.
    state
        Where to continue from.
    """

    def __init__(
        self,
        n_classes: int,
        shift: NDArray[np.float64],
        schedule: Schedule,
        *,
        average: bool | int = False,
        intercept_rate: float = 1.0,
        loss: Loss = "log_loss",
        class_weight: ArrayLike | None = None,
        sparse: bool = False,
        epochs: bool = False,
        dtype: Any = np.float32,
        threads: Threads,
        state: State | None = None,
    ) -> None:
        self.schedule, self.average, self.intercept_rate = schedule, int(average), intercept_rate
        self.loss, self.sparse, self.epochs = loss, sparse, epochs
        self._shift = np.asarray(shift, np.float64)
        self._threads = threads
        self._n_classes = n_classes
        self.n_columns = 1 if n_classes == 2 else n_classes
        weight = np.ones(n_classes) if class_weight is None else np.asarray(class_weight, float)
        if state is None:
            zero = np.zeros((self.n_columns, len(shift)), dtype)
            state = State(zero, np.zeros(self.n_columns))
        # Steps taken before averaging count in no average.
        self._average_from = self.average
        if self.average and state.average_coef is None:
            self._average_from = max(self.average, int(state.t))
            state = replace(
                state,
                average_coef=np.zeros_like(state.coef),
                average_intercept=np.zeros(self.n_columns),
            )
        self.t_ = state.t
        self._frozen: list[Stripe] = []
        self._stripes = [
            self._start(np.arange(*span), state, weight, np.dtype(dtype))
            for span in spans(self.n_columns, threads.n)
        ]

    def _start(
        self,
        columns: NDArray[np.int64],
        state: State,
        weight: NDArray[np.float64],
        dtype: np.dtype[Any],
    ) -> Stripe:
        # W = a (U - m c') with a = 1 and c = 0, so U is W itself.
        U = np.array(state.coef[columns].T, dtype, order="C")
        n, n_genes = len(columns), len(U)
        A = np.zeros((n_genes if self.average else 0, n), dtype)
        ab = np.zeros(n)
        if self.average and state.average_coef is not None and state.average_intercept is not None:
            A[:] = -state.average_coef[columns].T * self._averaged
            ab[:] = state.average_intercept[columns] * self._averaged
        one = self.n_columns == 1
        w = Columns(
            U=U,
            A=A,
            paid=np.zeros((n_genes if self.schedule.l1_share else 0, n), dtype),
            c=np.zeros(n),
            q=self._shift @ U.astype(np.float64),
            b=np.array(state.intercept[columns], np.float64),
            ac=np.zeros(n),
            ab=ab,
            owed=np.zeros(n),
            # Column by column: how a matrix is summed depends on its width.
            square=np.array([np.square(w, dtype=np.float64).sum() for w in state.coef[columns]]),
            absolute=np.array([np.abs(w, dtype=np.float64).sum() for w in state.coef[columns]]),
            loss=np.zeros(n),
            penalty=np.zeros(n),
            positive=weight[1:].copy() if one else weight[columns],
            negative=weight[:1].copy() if one else np.ones(n),
        )
        return Stripe(columns, w, np.array([1.0, 0.0]))

    @property
    def _averaged(self) -> int:
        """Steps that count in the average so far."""
        return max(0, int(self.t_) - self._average_from) if self.average else 0

    def partial_fit(self, cells: Scaled) -> SGD:
        """Take one step for each cell of the batch, in order.

        Raises
        ------
        InputError
            If the weights overflow.
        """
        rows = cells.rows
        if rows.codes is None:
            raise ValueError("a batch needs label codes")
        eta = self.schedule.steps(self.t_, rows.n_obs)
        averaged = self.t_ + np.arange(rows.n_obs) >= max(1, self._average_from)
        self._threads.each(lambda stripe: self._step(stripe, cells, eta, averaged), self._stripes)
        self.t_ += rows.n_obs
        return self

    def _step(
        self,
        stripe: Stripe,
        cells: Scaled,
        eta: NDArray[np.float64],
        averaged: NDArray[np.bool_],
    ) -> None:
        rows, w, schedule = cells.rows, stripe.w, self.schedule
        eta = eta / SLOWER**stripe.slowed
        decay, column_of = schedule.decays(eta), stripe.column_of(self._n_classes)
        alpha = 0.0 if schedule.penalty is None else schedule.alpha
        loss, l1 = LOSSES[self.loss], schedule.l1_share
        if l1:
            if not self.epochs:
                w.paid[:], w.owed[:] = 0, 0
            # Where scikit-learn folds: under L1 its average depends on it.
            fold_below = 1e-9 if w.U.dtype == np.float64 else 1e-6
            kernel.sgd_l1(
                rows.data, rows.indices, rows.indptr, rows.codes, column_of, eta, decay,
                l1 * eta * alpha, averaged, self._shift, not self.sparse, fold_below,
                self.intercept_rate, loss, self.epochs, alpha, l1, stripe.scalars, w,
            )  # fmt: skip
            if not self.epochs:
                kernel.fold(stripe.scalars, w)
        else:
            norms = kernel.STORED if self.sparse else kernel.WHOLE
            kernel.sgd(
                rows.data, rows.indices, rows.indptr, cells.dots, rows.codes, column_of, eta, decay,
                averaged, self._shift, self.intercept_rate, loss,
                norms if self.epochs else kernel.UNTRACKED, alpha, stripe.scalars, w,
            )  # fmt: skip
        if not kernel.finite(w.U, w.b, w.c):
            raise InputError(
                "the weights overflowed: lower the step (eta0) or raise alpha; "
                f"learning_rate={schedule.learning_rate!r}, eta0={schedule.eta0}, "
                f"alpha={schedule.alpha}"
            )

    def end_epoch(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Sums of loss and penalty since the last call, each as before its cell's step.

        Over the cells' number, their sum is the objective by which scikit-learn 1.8 and later
        stop; earlier ones take the loss alone. Only with `epochs`.

        Returns
        -------
        loss, penalty
            Shape (columns,), float64; NaN for frozen columns.
        """
        sums = np.full((2, self.n_columns), np.nan)
        for stripe in self._stripes:
            sums[:, stripe.columns] = stripe.w.loss, stripe.w.penalty
            stripe.w.loss[:], stripe.w.penalty[:] = 0, 0
        return sums[0], sums[1]

    def freeze(self, columns: NDArray[np.int64]) -> None:
        """Stop training these columns: weights and averages stay, and cost no more time."""
        if not len(columns):
            return
        parts = []
        for stripe in self._stripes:
            out = np.isin(stripe.columns, columns)
            if out.any():
                part = stripe.take(out)
                part.averaged = self._averaged
                self._frozen.append(part)
            parts.append(stripe.take(~out) if out.any() else stripe)
        self._share(parts)

    def slow(self, columns: NDArray[np.int64]) -> None:
        """Divide the step of these columns by `SLOWER`."""
        if not len(columns):
            return
        parts = []
        for stripe in self._stripes:
            # Columns that share step and scalars share a stripe. Folded, all have one scale; but
            # scikit-learn's average under an L1 penalty depends on when that is done.
            if not (self.schedule.l1_share and self.average):
                kernel.fold(stripe.scalars, stripe.w)
            slower = np.isin(stripe.columns, columns)
            parts += [stripe.take(slower), stripe.take(~slower)]
            parts[-2].slowed += 1
        self._share(parts)

    def _share(self, parts: list[Stripe]) -> None:
        """Share the columns anew among the threads, those of one step and scale side by side."""
        groups: dict[Any, list[Stripe]] = {}
        for part in parts:
            if len(part.columns):
                groups.setdefault((part.slowed, *part.scalars), []).append(part)
        self._stripes = []
        for group in groups.values():
            joined = Stripe.join(group)
            self._stripes += [
                joined.take(slice(*span)) for span in spans(len(joined.columns), self._threads.n)
            ]

    def scores(self, cells: Scaled) -> NDArray[np.float64]:
        """Decision scores under the present weights (not the averages), shape (n_obs, columns)."""
        rows = cells.rows
        found = np.empty((rows.n_obs, self.n_columns))

        def score(stripe: Stripe) -> None:
            part = np.empty((rows.n_obs, len(stripe.columns)))
            kernel.scores(
                rows.data, rows.indices, rows.indptr, self._shift, stripe.scalars[0], stripe.w, part
            )
            found[:, stripe.columns] = part

        self._threads.each(score, self._stripes + self._frozen)
        return found

    def n_correct(self, cells: Scaled) -> NDArray[np.int64]:
        """Cells on the right side of each column's boundary, shape (columns,), int64.

        Over the cells' number, the validation score by which scikit-learn stops early, but that
        it leaves out of the weights the L2 decay that it has not multiplied in yet.
        """
        if cells.rows.codes is None:
            raise ValueError("a batch needs label codes")
        positive = np.arange(self.n_columns) + (self.n_columns == 1)
        right = (self.scores(cells) > 0) == (cells.rows.codes[:, None] == positive)
        counts: NDArray[np.int64] = np.count_nonzero(right, axis=0)
        return counts

    def state(self) -> State:
        """Present weights, averages and counter.

        With `epochs` and an averaged L1 penalty, only at the end: it folds, see `slow`.
        """
        stripes = self._stripes + self._frozen
        coef = np.empty((self.n_columns, len(self._shift)), stripes[0].w.U.dtype)
        intercept = np.empty(self.n_columns)
        average_coef = np.empty_like(coef) if self._averaged else None
        average_intercept = np.empty_like(intercept) if self._averaged else None
        for stripe in stripes:
            w, at = stripe.w, stripe.columns
            kernel.fold(stripe.scalars, w)
            coef[at] = (w.U - np.outer(self._shift, w.c)).T
            intercept[at] = w.b
            if average_coef is not None and average_intercept is not None:
                n = self._averaged if stripe.averaged is None else stripe.averaged
                # A column frozen before averaging began has no average: its weights stand in.
                average_coef[at] = ((np.outer(self._shift, w.ac) - w.A) / n).T if n else coef[at]
                average_intercept[at] = w.ab / n if n else w.b
        return State(coef, intercept, average_coef, average_intercept, self.t_)

    @staticmethod
    def nbytes(
        n_genes: int,
        n_classes: int,
        dtype: Any,
        average: bool | int,
        penalty: Penalty | None = "l2",
        epochs: bool = False,
    ) -> int:
        """Bytes that training needs, the export at the end included."""
        weights = n_genes * (1 if n_classes == 2 else n_classes)
        arrays = 1 + bool(average) + (penalty in ("l1", "elasticnet"))  # W, its running sum, paid
        # Copies: what is exported, or all arrays where columns are frozen or slowed, twice.
        copies = arrays + (2 * arrays if epochs else 1)
        return weights * (int(np.dtype(dtype).itemsize) * copies + 16)
