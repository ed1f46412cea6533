"""Mini-batch stochastic gradient descent: scaled batches in, weights per class out.

The iterates are those of scikit-learn's ``SGDClassifier(loss="log_loss").partial_fit`` on the
dense scaled cells in the same order, to rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from streamtrain.errors import InputError
from streamtrain.kernels import sgd as kernel
from streamtrain.scaling import Scaled
from streamtrain.threads import Threads, spans

LearningRate = Literal["optimal", "constant", "invscaling"]
SPARSE_INTERCEPT_RATE = 0.01  # of the intercept's step on sparse input, scikit-learn's


@dataclass(frozen=True, slots=True)
class Schedule:
    """Step size and L2 decay of each step, as scikit-learn's.

    "optimal" is 1 / (alpha (t0 + t - 1)) with t0 = 1 / (alpha sqrt(1 / sqrt(alpha))), Bottou's
    heuristic; "constant" eta0; "invscaling" eta0 / t^power_t.
    """

    learning_rate: LearningRate = "optimal"
    alpha: float = 1e-4
    eta0: float = 0.01
    power_t: float = 0.5

    def steps(self, t: float, n: int) -> NDArray[np.float64]:
        """Step sizes of the steps t, t + 1, ..., t + n - 1."""
        count = t + np.arange(n, dtype=np.float64)
        if self.learning_rate == "optimal":
            t0 = 1 / (math.sqrt(1 / math.sqrt(self.alpha)) * self.alpha)
            return 1 / (self.alpha * (t0 + count - 1))
        if self.learning_rate == "constant":
            return np.full(n, self.eta0)
        return self.eta0 / np.power(count, self.power_t)

    def decays(self, steps: NDArray[np.float64]) -> NDArray[np.float64]:
        """Factors of the weights before each step."""
        return np.maximum(0.0, 1.0 - steps * self.alpha)


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


class _Stripe:
    """The kernel's arrays for some of the classes: threads share the classes, never the arrays."""

    def __init__(self, first: int, state: State, shift: NDArray[np.float64], averaged: int) -> None:
        self.first = first
        self.scalars = np.array([1.0, 0.0])
        # W = a (U - m c') with a = 1 and c = 0, so U is W itself.
        self.U = np.ascontiguousarray(state.coef.T)
        self.c = np.zeros(self.U.shape[1])
        self.q = shift @ self.U.astype(np.float64)
        self.b = np.array(state.intercept, np.float64)
        averaging = state.average_coef is not None
        self.A = np.zeros(self.U.shape if averaging else (0, 0), self.U.dtype)
        self.ac = np.zeros(len(self.c) if averaging else 0)
        self.ab = np.zeros(len(self.ac))
        if state.average_coef is not None and state.average_intercept is not None:
            self.A[:] = -state.average_coef.T * averaged
            self.ab[:] = state.average_intercept * averaged

    def export(
        self, shift: NDArray[np.float64], averaged: int
    ) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Present weights and their average, shape (columns, genes)."""
        kernel.fold(self.scalars, self.U, self.c, self.q, self.A, self.ac)
        coef = self.U - np.outer(shift, self.c)
        average = None
        if len(self.ac) and averaged:
            average = ((np.outer(shift, self.ac) - self.A) / averaged).T.astype(self.U.dtype)
        return coef.T.astype(self.U.dtype), average


class SGD:
    """Logistic regression, one class against the rest, by stochastic gradient descent.

    Parameters
    ----------
    n_classes
        Two classes make one column, more make one each.
    shift
        m of z = x' - m, shape (genes,); zero without centring.
    schedule
        Step sizes and penalty.
    average
        False, or the step from which weights are averaged (True: from the first), as
        scikit-learn's.
    intercept_rate
        Factor of the intercept's step: 1, or `SPARSE_INTERCEPT_RATE` for a sparse matrix without
        centring, or 0 for no intercept.
    dtype
        Of the weights: float32 or float64. Sums over genes are float64 in both.
    threads
        They share the classes; their number does not change the result.
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
        dtype: Any = np.float32,
        threads: Threads,
        state: State | None = None,
    ) -> None:
        self.schedule, self.average, self.intercept_rate = schedule, int(average), intercept_rate
        self._shift = np.asarray(shift, np.float64)
        self._threads = threads
        self._binary = n_classes == 2
        columns = 1 if self._binary else n_classes
        if state is None:
            state = State(np.zeros((columns, len(shift)), dtype), np.zeros(columns))
        if self.average and state.average_coef is None:
            state = replace(
                state,
                average_coef=np.zeros_like(state.coef),
                average_intercept=np.zeros(columns),
            )
        self.t_ = state.t
        self._stripes = []
        for lo, hi in spans(columns, threads.n):
            part = State(
                state.coef[lo:hi].astype(dtype),
                state.intercept[lo:hi],
                None if state.average_coef is None else state.average_coef[lo:hi],
                None if state.average_intercept is None else state.average_intercept[lo:hi],
            )
            self._stripes.append(_Stripe(lo, part, self._shift, self._averaged))

    @property
    def _averaged(self) -> int:
        """Steps that count in the average so far."""
        return max(0, int(self.t_) - self.average) if self.average else 0

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
        decay = self.schedule.decays(eta)
        averaged = self.t_ + np.arange(rows.n_obs) >= max(1, self.average)
        # With two classes the one column stands for the second.
        self._threads.each(
            lambda s: kernel.sgd(
                rows.data, rows.indices, rows.indptr, cells.dots, rows.codes,
                s.first + self._binary, eta, decay, averaged, self._shift,
                self.intercept_rate, s.scalars, s.U, s.c, s.q, s.b, s.A, s.ac, s.ab,
            ),
            self._stripes,
        )  # fmt: skip
        if not all(np.isfinite(s.b).all() and np.isfinite(s.q).all() for s in self._stripes):
            raise InputError(
                "the weights overflowed: lower the step (eta0) or raise alpha; "
                f"learning_rate={self.schedule.learning_rate!r}, eta0={self.schedule.eta0}, "
                f"alpha={self.schedule.alpha}"
            )
        self.t_ += rows.n_obs
        return self

    def state(self) -> State:
        """Present weights, averages and counter."""
        parts = [s.export(self._shift, self._averaged) for s in self._stripes]
        averages = [average for _, average in parts if average is not None]
        return State(
            np.concatenate([coef for coef, _ in parts]),
            np.concatenate([s.b for s in self._stripes]),
            np.concatenate(averages) if averages else None,
            np.concatenate([s.ab for s in self._stripes]) / self._averaged if averages else None,
            self.t_,
        )

    @staticmethod
    def nbytes(n_genes: int, n_classes: int, dtype: Any, average: bool | int) -> int:
        """Bytes that training needs, the export at the end included."""
        weights = n_genes * (1 if n_classes == 2 else n_classes)
        copies = 3 if average else 2  # W, its running sum, and what is exported
        return weights * (int(np.dtype(dtype).itemsize) * copies + 16)
