"""When a class stops: its objective or validation score after each epoch in, what to do out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamtrain.solvers.schedule import SLOWER

_LEAST_STEP = 1e-6  # an "adaptive" step at or below it is not divided again, scikit-learn's


class Stopping:
    """Stop the columns of an `SGD` that improve no more, by the rule of scikit-learn's ``fit``.

    A column that has not gained `tol` over its best for `n_iter_no_change` epochs in a row stops,
    or with an "adaptive" step goes on with a fifth of it until that is 1e-6 or less.

    Parameters
    ----------
    n_columns
        Columns of the solver.
    tol
        Least gain that counts; None never stops.
    n_iter_no_change
        Epochs to wait for it.
    eta0
        First step of the "adaptive" schedule, None with another.

    Attributes
    ----------
    active
        Which columns go on, shape (columns,), bool.
    n_iter_
        Epochs of each column, shape (columns,), int64; scikit-learn's ``n_iter_`` is the largest.
    """

    def __init__(
        self,
        n_columns: int,
        *,
        tol: float | None = 1e-3,
        n_iter_no_change: int = 5,
        eta0: float | None = None,
    ) -> None:
        self.tol = -np.inf if tol is None else tol
        self.n_iter_no_change = n_iter_no_change
        self.active = np.ones(n_columns, bool)
        self.n_iter_ = np.zeros(n_columns, np.int64)
        self._best = np.full(n_columns, -np.inf)
        self._waited = np.zeros(n_columns, np.int64)
        self._eta = np.full(n_columns, 0.0 if eta0 is None else eta0)

    def update(self, gain: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Take each column's value after an epoch; larger is better.

        Parameters
        ----------
        gain
            Minus the mean objective, or the validation score; shape (columns,). Those of columns
            that stopped are not read.

        Returns
        -------
        slower, stopped
            Columns for `SGD.slow` and for `SGD.freeze`.
        """
        active = self.active
        self.n_iter_[active] += 1
        self._waited = np.where(gain < self._best + self.tol, self._waited + 1, 0)
        self._best = np.fmax(self._best, gain)  # NaN in frozen columns
        due = active & (self._waited >= self.n_iter_no_change)
        slower = due & (self._eta > _LEAST_STEP)
        stopped = due & ~slower
        self._eta[slower] /= SLOWER
        self._waited[slower] = 0
        self.active = active & ~stopped
        return np.flatnonzero(slower), np.flatnonzero(stopped)
